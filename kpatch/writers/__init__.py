"""The one place that touches a backend's memory: entries of a variable, read and written in place.

Each backend has one small module, with the same functions as `generic`, which does by `keras.ops` alone what the
others do fast: `read`, `write`, `prepare`, `update` and so on. They take for granted what was checked before: a
selection in normal form for the variable's shape, values of the variable's dtype that broadcast to it, no entry twice.
"""

import importlib
from types import ModuleType

from kpatch.errors import UnsupportedError

BACKENDS = ("numpy", "jax", "torch", "tensorflow")

_loaded: dict[str, ModuleType] = {}  # by backend; not `functools.cache`, which dynamo would look into


def current():
    """The writer of Keras's present backend; `generic` for one that this version does not know."""
    import keras

    return _loaded.get(keras.backend.backend()) or _load(keras.backend.backend())


def _load(backend):
    _loaded[backend] = importlib.import_module(f"kpatch.writers.{backend if backend in BACKENDS else 'generic'}")
    return _loaded[backend]


def refuse_traces(writer, function):
    """Raises for what works at once, where a function is being traced (`jax.jit`, `tf.function`, `torch.compile`).

    Otherwise it would run once, at the time of the trace, or with each call, as the backend likes; and what it keeps
    for the next time would belong to the trace.
    """
    if writer.is_tracing():
        getattr(writer, "refuse", refuse)(function)


def refuse(function):
    """Raises the error of `refuse_traces`."""
    raise UnsupportedError(
        f"{function} works at once, and cannot be called inside a function that is being traced or compiled",
        notes=[
            "kpatch.edit makes a new tensor, and works there",
            "a layer (kpatch.layers.ScatterLayer) or kpatch.rewrite edits in each call of a model",
            "kpatch.hold and kpatch.callbacks.PatchCallback edit weights while a model trains",
        ],
    )
