"""The shapes of activations, as far as the graph of a model tells them, and patches checked against these.

A graph knows the layers that were called to make it, not what is called inside of them, and seldom the batch.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from kpatch.errors import PatchError, ShapeError, SubscriptError
from kpatch.inside.outputs import Inputs, Keys, Outputs
from kpatch.inside.splitting import Part
from kpatch.inside.tensor_patch import TensorPatch
from kpatch.run import execute
from kpatch.values.dtypes import FLOATS, dtype_name


class Spec(NamedTuple):
    """What is known of a tensor: `None` is an unknown length."""

    shape: tuple[int | None, ...]
    dtype: str


def known(layer: Any, kind: str, keys: Keys) -> Spec | None:
    """What all graphs that a layer is in tell of an activation of it; `None` if they tell nothing, or disagree."""
    found = {spec for node in layer._inbound_nodes for spec in _in_node(layer, kind, keys, node)}
    if len({(len(spec.shape), spec.dtype) for spec in found}) != 1:
        return None
    lengths = [set(axis) for axis in zip(*(spec.shape for spec in found), strict=True)]
    return Spec(tuple(axis.pop() if len(axis) == 1 else None for axis in lengths), found.pop().dtype)


def _in_node(layer: Any, kind: str, keys: Keys, node: Any) -> Iterable[Spec]:
    outputs = node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)
    held: Inputs | Outputs = Outputs(layer, outputs)
    if kind == "input":
        held = Inputs(layer, node.arguments.args, node.arguments.kwargs)
    try:
        x = held.tensor(keys) if kind in ("input", "output") else None
    except PatchError:
        x = None
    if x is not None:
        dtype = dtype_name(x.dtype)
        yield Spec(tuple(x.shape), layer.compute_dtype if kind == "input" and dtype in FLOATS else dtype)


def check(part: Part, edit: TensorPatch) -> tuple[Spec | None, list[int | None]]:
    """What is known of the activation of a part, and how many entries each of its statements writes.

    Raises:
        SubscriptError: an index does not fit the activation.
        ShapeError: a value does not fit what it is written to.
    """
    spec = known(part.node.item, part.kind, part.inner)
    others = {name: known(node.item, kind, inner) for name, (node, kind, inner, _) in part.reads.items()}
    unknown: list[int | None] = [None] * len(part.edits)
    if spec is None or None in others.values():
        return spec, unknown
    for name, value in part.live.items():
        floating = spec.dtype in FLOATS and dtype_name(value.dtype) in FLOATS
        others[name] = Spec(tuple(value.shape), spec.dtype if floating else dtype_name(value.dtype))
    try:
        checked = edit.check(spec, others)
    except (ShapeError, SubscriptError):
        raise
    except PatchError:  # perhaps of lengths that are known when the model runs, as that of the batch
        return spec, unknown
    return spec, [execute.static_count(step) for step in checked.edits for _ in step.statements]
