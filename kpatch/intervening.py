"""`intervene`: the calls of a model's layers, and its weights, are patched while a `with` block lasts."""

import contextlib
import functools

from kpatch import api
from kpatch.compiled import TensorPatch
from kpatch.errors import PatchError, UnsupportedError
from kpatch.holding import forget_compiled
from kpatch.splitting import Split
from kpatch.syntax import ast


@contextlib.contextmanager
def intervene(model, patch, /, **bindings):
    """Patches what layers are given and give, and weights, while a `with` block lasts: for models of any kind.

    Compiled functions that Keras keeps for the model are dropped, before and after, so that none hides it. A function
    that you have compiled yourself is not seen: compile it inside of the block.

    Args:
        model: a Keras model or layer.
        patch: a `Patch`, or its text: weights (edited first, and restored), and activations, each of one tensor.
        bindings: the values of the patch's `$names`; for activations constants.

    Returns:
        A context manager.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.intervene(model, "dense_1.output[..., 0] = 7"):
        ...     model.predict(keras.ops.ones((1, 4)), verbose=0)[0, 0].item()
        7.0
    """
    split = Split(model, patch, bindings)
    wrapped = [
        (part.node.item, kind, _tensor_patch(split, part, kind))
        for part in split.parts
        for kind in ("input", "output")
        if part.statements[kind]
    ]
    weights = ast.Patch(tuple(split.weights), split.patch.source)
    models = [node.item for node in split.index.nodes if node.item is not None]
    with contextlib.ExitStack() as stack:
        stack.callback(_forget, models)
        stack.enter_context(api.apply(model, weights, **split.constants(str(weights))))
        for layer, kind, edit in wrapped:
            _wrap(layer, kind, edit, stack)
        _forget(models)
        yield


def _forget(models):
    for model in models:
        forget_compiled(model)


def _tensor_patch(split, part, kind):
    if part.reads[kind]:
        message = f"what edits '{part.node.item.name}.{kind}' reads another activation, which needs kpatch.rewrite"
        raise UnsupportedError(message)
    text = part.text(kind)
    edit = TensorPatch(text, split.constants(text), "kpatch.intervene")
    edit.refuse_free()
    return edit


def _wrap(layer, kind, edit, stack):
    """The layer's `call`, with its first argument or its result edited; as it was when the stack closes."""
    call, before = layer.call, vars(layer).get("call")

    def edited(x):
        if not hasattr(x, "shape"):
            raise UnsupportedError(f"'{layer.name}.{kind}' is not one tensor but a {type(x).__name__} of them")
        return edit.run((), x)

    @functools.wraps(call)
    def patched(*args, **kwargs):
        if kind == "output":
            return edited(call(*args, **kwargs))
        if not args:
            raise PatchError(f"'{layer.name}' is called without a positional argument, so it has no one input")
        return call(edited(args[0]), *args[1:], **kwargs)

    def restore():
        if before is None:
            vars(layer).pop("call", None)
        else:
            layer.call = before

    layer.call = patched
    stack.callback(restore)
