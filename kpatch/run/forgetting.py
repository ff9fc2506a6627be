"""Recompiles the functions that models keep, when a patch that they were traced with begins or ends."""

import gc
import sys
import threading
import weakref
from types import FrameType

from kpatch.run import blocks

KEPT = ("train_function", "test_function", "predict_function", "generate_function")  # the last is keras_hub's


def forget_compiled(layers):
    """Replaces the compiled functions of all models among `layers`; the new ones are traced at their next call.

    They are replaced immediately, because `fit` reads its function at each step, and this can be called in a callback.

    Example:
        >>> import keras, numpy
        >>> from kpatch.run.forgetting import forget_compiled
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> _ = model.predict(numpy.ones((1, 4)), verbose=0)
        >>> before = model.predict_function
        >>> forget_compiled([model])
        >>> model.predict_function is before
        False
    """
    import keras

    for model in layers:
        if isinstance(model, keras.Model):
            for name in KEPT:
                make = getattr(model, f"make_{name}", None)
                if make is not None and getattr(model, name, None) is not None:
                    setattr(model, name, None)
                    make()


def layers_of(index):
    """The model of a `ModelIndex` and its layers."""
    return [node.item for node in index.nodes if node.item is not None]


def models_with(layers):
    """All live models that contain one of the layers.

    A layer does not know its models, so this searches all objects of the process, at about 100 ns each: cheap compared
    with tracing a function, too slow for frequent use. The first search after a `gc.freeze()` takes about 3 µs each.
    """
    held = set(map(id, layers))
    return [model for model in _models() if any(id(layer) in held for layer in model._flatten_layers())]


class _Mark:
    """An object that Python lists until the next `gc.freeze()`, which takes it away with all others."""


_mark, _frozen = _Mark(), weakref.WeakSet()  # the models that Python does not list, while it lists the mark


def _models():
    """All live models; Python does not list what a program has frozen by `gc.freeze()`.

    While other threads run it asks for what refers to the classes, which is slower: a list of all objects would refer
    to a tuple that another thread is filling, and Python cannot resize a tuple that is referred to twice. Those of
    `blocks` wait.
    """
    global _mark, _frozen
    if any(thread is not threading.current_thread() and not blocks.is_own(thread) for thread in threading.enumerate()):
        return _distinct([*_models_in(gc.get_referrers(*_model_classes())), *_frozen])
    listed = gc.get_objects()
    # In this order: Python counts what is frozen one by one.
    if id(_mark) not in map(id, listed) and gc.get_freeze_count():
        _mark = _Mark()
        _frozen = weakref.WeakSet(_models_in(_reachable(listed)))
    return _distinct([*_models_in(listed), *_frozen])


def _distinct(models):
    return list({id(model): model for model in models}.values())


def _model_classes():
    import keras

    found, stack = set(), [keras.Model]
    while stack:
        kind = stack.pop()
        if kind not in found:
            found.add(kind)
            stack += kind.__subclasses__()
    return found


def _models_in(listed):
    """The models among all kinds of objects, which are not asked for their class: a proxy may answer for another."""
    classes = set(map(id, _model_classes()))
    return [each for each in listed if id(type(each)) in classes and "_layers" in vars(each)]


def _reachable(listed):
    """All objects that can be reached from modules, from calls that run, and from those that Python lists."""
    seen, found = {}, [*listed, sys.modules]
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            found += [*frame.f_locals.values(), frame.f_globals]
            frame = frame.f_back
    while found:
        fresh = {number: each for number, each in zip(map(id, found), found, strict=True) if number not in seen}
        seen |= fresh
        found = [*filter(gc.is_tracked, gc.get_referents(*fresh.values()))]
    return list(seen.values())
