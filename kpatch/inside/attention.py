"""The scores and heads of attention layers, as activations: where they are computed, and in which shape they are seen.

Fused attention computes no scores. While a block lasts that sees them, a layer takes the way that it has for
`return_attention_scores`, or for machines without a fused kernel: its own code, with other answers to its questions.
"""

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

from kpatch.errors import UnsupportedError
from kpatch.inside.calls import patch_method
from kpatch.inside.outputs import Inputs, Keys, Outputs
from kpatch.names import attention

COMPUTES = "_compute_attention"  # the method in which Keras and keras_hub choose the way
IS_FUSED = "fused_attention_op_available"  # the function that layers of keras_hub ask
HEADS = ("num_heads", "num_query_heads", "_num_heads")  # the attributes of layers with the number of their heads


def source(layer: Any, kind: str) -> tuple[Any, str]:
    """The layer whose call computes an activation, and whether it is the "input" or "output" of that call."""
    return (attention.sublayer(layer, kind), attention.SIDES[kind]) if kind in attention.SIDES else (layer, kind)


def seen(layer: Any, kind: str, held: Inputs | Outputs) -> Any:
    """An activation of a layer, in what its `source` is given or gives."""
    return Step(layer, kind, held) if kind in attention.SIDES else held


class Step:
    """The scores or heads of an attention layer, with one axis for all of its heads; with the methods of `Outputs`.

    Layers that group their heads compute scores in groups, and some layers join the heads before the projection.
    """

    def __init__(self, layer: Any, kind: str, held: Inputs | Outputs) -> None:
        self._layer = layer
        self._kind = kind
        self._held = held

    def tensor(self, keys: Keys = ()) -> Any:
        from keras import ops

        x = self._held.tensor(())
        shape = ops.shape(x)
        if self._kind == "scores" and len(shape) == 5 and hasattr(self._layer, "num_key_value_heads"):
            return ops.reshape(x, (shape[0], x.shape[1] * x.shape[2], *shape[3:]))
        if self._kind == "heads" and len(shape) == 3:
            return ops.reshape(x, (*shape[:2], self._count(x.shape[-1]), -1))
        return x

    def replace(self, keys: Keys, x: Any) -> None:
        from keras import ops

        before = self._held.tensor(())
        self._held.replace((), x if len(x.shape) == len(before.shape) else ops.reshape(x, ops.shape(before)))

    def _count(self, width: int) -> int:
        count = next((getattr(self._layer, name) for name in HEADS if hasattr(self._layer, name)), None)
        if not count or width % count:
            raise UnsupportedError(
                f"'{self._layer.name}' joins its heads before the projection, and has no 'num_heads'"
            )
        return count


def unfuse(layer: Any, stack: contextlib.ExitStack) -> None:
    """Until the stack closes, an attention layer computes its scores apart."""
    if hasattr(type(layer), COMPUTES):
        patch_method(layer, COMPUTES, _Apart(layer), stack)


class _Apart:
    """What stands in for `_compute_attention`: the same code, for a twin of the layer that does not fuse."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        kind: Any = type(self._layer)
        signature = inspect.signature(kind._compute_attention)
        given = signature.bind(_twin(self._layer), *args, **kwargs)
        if "return_attention_scores" in signature.parameters:
            given.arguments["return_attention_scores"] = True
        return _unfused(kind._compute_attention)(*given.args, **given.kwargs)


def _twin(layer: Any) -> Any:
    """Another object of the layer's class with all that the layer has, whose own answers say that nothing is fused."""
    kind: Any = type(layer)
    twin = object.__new__(kind)
    state = vars(twin)
    state.update(vars(layer))
    state.pop(COMPUTES, None)
    for name in ("_return_attention_scores", "_flash_attention"):
        if name in state:
            state[name] = name == "_return_attention_scores"
    for name in dir(kind):
        function = inspect.getattr_static(kind, name)
        if isinstance(function, types.FunctionType) and IS_FUSED in function.__code__.co_names:
            state[name] = types.MethodType(_unfused(function), twin)
    return twin


def _unfused(function: Any) -> Any:
    """The function, which finds no fused kernel on this machine; itself if it does not ask for one."""
    if IS_FUSED not in function.__code__.co_names:
        return function
    answers = {**function.__globals__, IS_FUSED: lambda: False}
    code = types.FunctionType(
        function.__code__, answers, function.__name__, function.__defaults__, function.__closure__
    )
    code.__kwdefaults__ = function.__kwdefaults__
    return code
