"""`rewrite`: a new model that shares all weights with the old, with the layers that a patch asks for in its graph."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kpatch import backends
from kpatch.errors import BindingError, PatchError, UnsupportedError
from kpatch.inside.activations import Activations, tensor_in
from kpatch.inside.graphs import Graphs, has_graph
from kpatch.inside.naming import named_by
from kpatch.inside.outputs import Inputs, Outputs
from kpatch.inside.splitting import Part, Split
from kpatch.names import keywords
from kpatch.names.optimizers import OptimizerEntry
from kpatch.names.patches import PatchLike, bound
from kpatch.names.tree import Entry, LayerNode
from kpatch.syntax import ast

if TYPE_CHECKING:
    import keras


@keywords.checked("kpatch.rewrite")
def rewrite(
    model: "keras.Model",
    patch: PatchLike,
    /,
    *,
    trainable_values: bool = False,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> "keras.Model":
    """A new model with the patch in its graph, which shares all weights with the old; that stays as it is.

    `conv1.output[..., 7] = 0` puts a `ScatterLayer` behind a layer, `head.input[:, 0] *= 2` before it, and of a
    patched weight, `dense_1.kernel[0, 0] = 1.0`, the layer becomes a `PatchedLayer`. An expression may read the
    activations of layers that come before. Assertions are checked now. To load such a model, import `kpatch.layers`.

    Args:
        model: a built Sequential or functional model; models inside are rewritten too.
        patch: as for `kpatch.apply`.
        trainable_values: the bindings of activations are weights of the new model, which start from the values given: a
            weight of its own for each activation. Those in an index, and arrays of integers or booleans, are constants.
        expect: how many variables and activations the patch must match; another number is an error.
        bindings: the values of the patch's `$names`, constants: numbers, lists, arrays and tensors.
        **named: the same as keywords, `row=0`.

    Returns:
        A model of the same class and name.

    Raises:
        PatchError: for anything wrong with the patch, or with its fit to the model.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> ablated = kpatch.rewrite(model, "dense_1.output[..., 0] = 0")
        >>> [layer.name for layer in ablated.layers]
        ['dense_1', 'dense_1_output_all_0_is_0']
        >>> ablated.predict(keras.ops.ones((1, 4)), verbose=0)[0, 0].item()
        0.0
    """
    backends.current().refuse_in_dynamo("kpatch.rewrite")
    split = Split(model, *bound(patch, bindings, named), expect)
    split.check_assertions()
    if not has_graph(model) or not model.built:
        raise UnsupportedError(
            f"a {type(model).__name__} has no graph to rewrite; kpatch.intervene patches the calls of its layers"
        )
    try:
        return _Rewriting(split, trainable_values).model(model)
    except PatchError as error:
        raise error.locate(None, split.patch.source) from None


KINDS = ("input", "output")


class _Rewriting:
    """One use of `rewrite`: what is put where, and what has become of each layer."""

    def __init__(self, split: Split, trainable_values: bool) -> None:
        self._split = split
        self._graphs = Graphs(split.index.root)
        self._trainable_values = trainable_values
        self._inserted: dict[tuple, list] = {}  # (id of a layer, kind) → each ScatterLayer, and the part that it is of
        self._weights = {}  # id of a layer of a graph → its statements of weights
        self._new = {}  # id of a layer → the new one
        self._old = {}  # id of a new layer → the layer
        self._touched = set()
        self._read = {(id(node.item), kind) for part in split.parts for node, kind, *_ in part.reads.values()}
        for statement, entry in split.weights:
            if isinstance(entry, OptimizerEntry):
                message = f"'{entry.path}' is no weight of a layer, so no graph has it; kpatch.apply edits it"
                raise UnsupportedError(message).locate(statement.target.span, split.patch.source)
            self._give(statement, entry)
        for part in split.parts:
            self._insert(part)
        if trainable_values and not any(
            layer.trainable_values for layers in self._inserted.values() for layer, _ in layers
        ):
            raise BindingError("trainable_values=True, and no binding of an activation is a floating value")

    def _give(self, statement: ast.Edit, entry: Entry) -> None:
        """Gives the statement to all layers that use the variable, and marks the graphs that they are in."""
        users = self._graphs.users(entry.variable)
        if not users:
            message = f"no layer of the model's graph uses '{entry.path}'; kpatch.apply edits it"
            raise UnsupportedError(message).locate(statement.target.span, self._split.patch.source)
        for user in users:
            self._weights.setdefault(id(user.item), []).append((statement, entry))
            self._touch(user)

    def _touch(self, node: LayerNode) -> None:
        self._touched.update(id(graph.item) for graph in self._graphs.around(node))

    def _insert(self, part: Part) -> None:
        from kpatch.layers import ScatterLayer

        node = part.node
        holders, within = self._graphs.holders(node), self._graphs.containing(node)
        if within:
            raise self._not_rewritten(part, f"it is inside of '{within[0].item.name}', which has no graph")
        if not holders:
            raise self._not_rewritten(part, "it is the model itself" if node.parent is None else "no graph has it")
        for each, kind, span in [(node, part.kind, part.span), *(read[:2] + read[3:] for read in part.reads.values())]:
            if kind not in KINDS:
                raise self._not_rewritten(part, f"'{kind}' are computed inside of '{each.item.name}'", span)
        name = self._free_name([graph.item for graph in holders], named_by(part.text, f"{node.item.name}_{part.kind}"))
        values, dtype = {**part.constants, **part.live}, _unquantised(node.item.dtype_policy)
        layer = ScatterLayer(part.patch, values, name=name, dtype=dtype)
        if self._trainable_values and layer.can_train():
            layer = ScatterLayer(part.patch, values, trainable_values=True, name=name, dtype=dtype)
        self._inserted.setdefault((id(node.item), part.kind), []).append((layer, part))
        self._touch(node)

    def _free_name(self, models: list[Any], name: str) -> str:
        """The name, with a number if a layer of one of the models has it: it was rewritten before, say."""
        inserted = [layer for layers in self._inserted.values() for layer, _ in layers]
        taken = {layer.name for layer in (*(layer for model in models for layer in model.layers), *inserted)}
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        return next(each for each in itertools.chain([name], numbered) if each not in taken)

    @staticmethod
    def _not_rewritten(part: Part, reason: str, span: tuple[int, int] | None = None) -> PatchError:
        message = f"'{part.path}' cannot be rewritten: {reason}; kpatch.intervene patches calls"
        return UnsupportedError(message).locate(span or part.span)

    def model(self, model: Any) -> Any:
        """The model with its parts put in; itself, where nothing inside of it changes."""
        import keras

        if not isinstance(model, keras.Sequential):
            return self._functional(model)
        parts = [part for layer in model.layers for kind in KINDS for _, part in self._of(layer, kind)]
        if not any(part.reads or part.inner for part in parts):
            return self._sequential(model)
        new = self._functional(model._functional)  # what is read passes by the layers between
        return keras.Model(new.input, new.output, name=model.name)  # not lists of them

    def _of(self, layer: Any, kind: str) -> list[tuple[Any, Part]]:
        return self._inserted.get((id(layer), kind), [])

    def _functional(self, model: Any) -> Any:
        import keras

        recorded = Activations("inside of another model", self._split.patch.source)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(recorded, *args, **kwargs)

        return keras.models.clone_model(model, clone_function=self._layer, call_function=call)

    def _sequential(self, model: Any) -> Any:
        import keras

        layers = [keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name)]
        for old in model.layers:
            before, after = ([layer for layer, _ in self._of(old, kind)] for kind in KINDS)
            layers += [*before, self._layer(old), *after]
        new = keras.Sequential(layers, name=model.name, trainable=model.trainable)
        if model.compiled:
            new.compile_from_config(model.get_compile_config())
        return new

    def _layer(self, layer: Any) -> Any:
        """What becomes of a layer: itself, a model rewritten, or a `PatchedLayer`."""
        from kpatch.layers import PatchedLayer

        if id(layer) not in self._new:
            new = layer
            if id(layer) in self._touched:
                new = self.model(layer)
            elif id(layer) in self._weights:
                patch, constants = self._split.layer_patch(layer, self._weights[id(layer)])
                new = PatchedLayer(layer, patch, constants, name=layer.name)
            self._new[id(layer)], self._old[id(new)] = new, layer
        return self._new[id(layer)]

    def _call(self, recorded: Activations, layer: Any, *args: Any, **kwargs: Any) -> Any:
        old = self._old.get(id(layer), layer)
        if not any((id(old), kind) in self._inserted or (id(old), kind) in self._read for kind in KINDS):
            return layer(*args, **kwargs)
        inputs = Inputs(old, args, kwargs)
        self._patch(recorded, old, "input", inputs)
        outputs = Outputs(old, layer(*inputs.args, **inputs.kwargs))
        self._patch(recorded, old, "output", outputs)
        return outputs.value

    def _patch(self, recorded: Activations, layer: Any, kind: str, held: Any) -> None:
        if (id(layer), kind) in self._read:
            recorded.keep(layer, kind, held)
        for scatter, part in self._of(layer, kind):
            x = tensor_in(held, part.node, part.inner, part.span, self._split.patch.source)
            others = [recorded.read(part, name) for name in scatter.patch.free if name in part.reads]
            held.replace(part.inner, scatter([x, *others] if others else x))


def _unquantised(policy: Any) -> Any:
    """The policy without quantisation, which belongs to the layer's own weights."""
    if getattr(policy, "quantization_mode", None) is None:
        return policy
    computes, stores = policy.compute_dtype, policy.variable_dtype
    return computes if computes == stores else f"mixed_{computes}"
