"""`intervene`: the calls of a model's layers, and its weights, are patched while a `with` block lasts."""

import contextlib
import functools

from kpatch import api
from kpatch.activations import Activations, check_one_tensor
from kpatch.compiled import TensorPatch
from kpatch.errors import UnsupportedError
from kpatch.holding import forget_compiled
from kpatch.splitting import Split


@contextlib.contextmanager
def intervene(model, patch, /, **bindings):
    """Patches what layers are given and give, and weights, while a `with` block lasts: for models of any kind.

    Compiled functions that Keras keeps for the model are dropped, before and after, so that none hides it. A function
    that you have compiled yourself is not seen: compile it inside of the block.

    Args:
        model: a Keras model or layer.
        patch: a `Patch`, or its text: weights (edited first, and restored), and activations, each of one tensor. An
            expression reads the activations of layers that were called before, in the same call of the model.
        bindings: the values of the patch's `$names`; for activations constants.

    Returns:
        A context manager.

    Raises:
        PatchError: for anything wrong with the patch, or with its fit to the model; for what depends on the shapes
            of activations, or on their order, when the model is called.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.intervene(model, "dense_1.output[..., 0] = 7"):
        ...     model.predict(keras.ops.ones((1, 4)), verbose=0)[0, 0].item()
        7.0
    """
    split = Split(model, patch, bindings)
    calls = _Calls(split)
    models = [node.item for node in split.index.nodes if node.item is not None]
    weights, given = split.weights_patch()
    with contextlib.ExitStack() as stack:
        stack.callback(_forget, models)
        if weights.statements:
            stack.enter_context(api.apply(model, weights, **given))
        calls.patch(model, stack)
        _forget(models)
        yield


def _forget(models):
    for model in models:
        forget_compiled(model)


class _Calls:
    """The calls that are patched. Activations that others read are kept for the time of one call of the model."""

    def __init__(self, split):
        self._parts: dict[tuple, tuple] = {}
        for part in split.parts:
            edit = TensorPatch(part.patch, part.constants, "kpatch.intervene")
            self._parts[id(part.node.item), part.kind] = part, edit
        self._read = {(id(node.item), kind) for part in split.parts for node, kind, _ in part.reads.values()}
        self._source = split.patch.source
        self._calls = []  # the `Activations` of each call of the model under way
        nodes = [node for part in split.parts for node, _, _ in part.reads.values()]
        self._layers = {id(node.item): node.item for node in [*(part.node for part in split.parts), *nodes]}
        for part in split.parts:
            for node, kind, span in part.reads.values():
                self._refuse_loops(node, kind, span)

    def _refuse_loops(self, node, kind, span):
        """What a loop computes anew in each step cannot be read outside of it."""
        import keras

        holder = node.parent
        while holder is not None:
            if isinstance(holder.item, (keras.layers.RNN, keras.layers.TimeDistributed)):
                message = f"'{node.item.name}.{kind}' is computed in the steps of '{holder.item.name}', once for each"
                raise UnsupportedError(message, span=span, source=self._source)
            holder = holder.parent

    def patch(self, model, stack):
        """Patches the calls until the stack closes."""
        for key, layer in self._layers.items():
            kinds = [kind for kind in ("input", "output") if (key, kind) in self._parts or (key, kind) in self._read]
            _replace_call(layer, functools.partial(self._called, layer, kinds), stack)
        if self._read:
            _replace_call(model, self._of_model, stack)

    def _of_model(self, call, *args, **kwargs):
        self._calls.append(self._activations())
        try:
            return call(*args, **kwargs)
        finally:
            self._calls.pop()

    def _activations(self):
        return Activations("in another call", self._source)

    def _called(self, layer, kinds, call, *args, **kwargs):
        if "input" in kinds:
            if not args:
                raise UnsupportedError(
                    f"'{layer.name}' is called without a positional argument, so it has no one input"
                )
            args = (self._patched(layer, "input", args[0]), *args[1:])
        outputs = call(*args, **kwargs)
        return self._patched(layer, "output", outputs) if "output" in kinds else outputs

    def _patched(self, layer, kind, x):
        key = id(layer), kind
        part, edit = self._parts.get(key, (None, None))
        check_one_tensor(layer, kind, x, part, self._source)
        kept = self._calls[-1] if self._calls else self._activations()
        if edit is not None:
            x = edit.run(edit.free, x, *[kept.read(part, name) for name in edit.free])
        if key in self._read:
            kept.keep(layer, kind, x)
        return x


def _replace_call(layer, function, stack):
    """The layer's `call` becomes `function(call, ...)`, and is as it was when the stack closes."""
    call, before = layer.call, vars(layer).get("call")

    @functools.wraps(call)
    def patched(*args, **kwargs):
        return function(call, *args, **kwargs)

    def restore():
        if before is None:
            vars(layer).pop("call", None)
        else:
            layer.call = before

    layer.call = patched
    stack.callback(restore)
