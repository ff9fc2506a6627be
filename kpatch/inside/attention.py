"""The scores and heads of attention layers, as activations: where they are computed, and in which shape they are seen.

Fused attention computes no scores. While a block lasts that sees them, a layer takes the way that it has for
`return_attention_scores`, or for machines without a fused kernel: its own code, with other answers to its questions.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from kpatch.errors import UnsupportedError
from kpatch.inside.calls import INSTEAD, patch_method
from kpatch.inside.outputs import Inputs, Keys, Outputs
from kpatch.names import attention, softmaxes

COMPUTES = "_compute_attention"  # the method in which Keras and keras_hub choose the way
IS_FUSED = "fused_attention_op_available"  # the function that layers of keras_hub ask
HEADS = (  # the attributes of layers with the number of their heads
    *("num_heads", "num_query_heads", "_num_heads", "num_attention_heads", "heads"),
)
MASKED = -0.7 * 3.4028235e38  # what Keras puts in the place of logits that a mask leaves out


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

    def tensor(self, keys: Keys = (), path: Keys | None = None) -> Any:
        from keras import layers, ops

        x = self._held.tensor(())
        shape = ops.shape(x)
        if self._kind == "heads":
            host, _ = source(self._layer, self._kind)
            if len(shape) > 3 and not isinstance(host, layers.Dense):
                return x
            return ops.reshape(x, (shape[0] if len(shape) > 2 else 1, -1, *self._split(x.shape[-1])))
        if len(shape) == 5 and hasattr(self._layer, "num_key_value_heads"):
            return ops.reshape(x, (shape[0], x.shape[1] * x.shape[2], *shape[3:]))
        if len(shape) == 3 and _heads_of(self._layer):  # in the axis of the batch, or without one
            return ops.reshape(x, (-1, _heads_of(self._layer), *shape[1:]))
        return x

    def replace(self, keys: Keys, x: Any) -> None:
        from keras import ops

        before = self._held.tensor(())
        self._held.replace((), x if len(x.shape) == len(before.shape) else ops.reshape(x, ops.shape(before)))

    def _split(self, width: int) -> tuple[int, int]:
        """How many heads are joined in a width, and the width of each."""
        count = _heads_of(self._layer)
        if not count or width % count:
            raise UnsupportedError(
                f"'{self._layer.name}' joins its heads before the projection, and has no 'num_heads'"
            )
        return count, width // count


def _heads_of(layer: Any) -> int | None:
    return next((getattr(layer, name) for name in HEADS if isinstance(getattr(layer, name, None), int)), None)


def unfuse(layer: Any, stack: contextlib.ExitStack) -> None:
    """Until the stack closes, an attention layer computes its scores apart."""
    method = attention.method_of(layer)
    if method is not None:
        patch_method(layer, method, _Seen(layer, method), stack, INSTEAD)
    elif hasattr(type(layer), COMPUTES):
        patch_method(layer, COMPUTES, _Apart(layer), stack)


class _Seen:
    """What stands in for a method that computes the softmax by a function: its code, with a `CalledSoftmax`."""

    def __init__(self, layer: Any, method: str) -> None:
        called = softmaxes.of_layer(layer)
        self._method = inspect.getattr_static(type(layer), method)
        if self._method not in called.copies:
            called.copies[self._method] = softmaxes.copy_of(self._method, _Softmax(called).of)
        self._copy = called.copies[self._method]

    def __call__(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        if isinstance(call, functools.partial) and call.func is self._method:  # the layer's own, of `PatchedCall`
            return self._copy(*call.args, *args, **kwargs)
        return call(*args, **kwargs)  # another block does it, or the user has replaced the method


class _Softmax:
    """The functions that a copy of a method calls."""

    def __init__(self, called: softmaxes.CalledSoftmax) -> None:
        self._called = called

    def of(self, function: Callable) -> Callable:
        """What is called in the place of a function of Keras."""
        from keras import backend, ops

        if function is backend.backend:
            return lambda: "unfused"  # none, so that the method calls no kernel of it
        return self._attention if function is ops.dot_product_attention else functools.partial(self._call, function)

    def _call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return self._called.call(function, *args, **kwargs)

    def _attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        bias: Any = None,
        mask: Any = None,
        scale: float | None = None,
        is_causal: bool = False,
        flash_attention: bool | None = None,
        attn_logits_soft_cap: float | None = None,
    ) -> Any:
        """`keras.ops.dot_product_attention` as Keras computes it on numpy, unfused."""
        from keras import backend, ops

        if attn_logits_soft_cap is not None:
            raise UnsupportedError("attention with 'attn_logits_soft_cap' is computed by fused kernels alone")
        dtype = backend.result_type(query.dtype, key.dtype, value.dtype)
        query, key, value = (ops.cast(x, dtype) for x in (query, key, value))
        if query.shape[2] != key.shape[2]:
            key, value = (ops.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value))
        logits = ops.cast(ops.einsum("btnh,bsnh->bnts", query, key), backend.result_type(dtype, "float32"))
        logits = logits * (key.shape[-1] ** -0.5 if scale is None else scale)
        if bias is not None:
            logits = logits + ops.cast(bias, logits.dtype)
        if is_causal:
            causal = ops.tril(ops.ones(ops.shape(logits)[2:], dtype="bool"))
            mask = causal if mask is None else ops.logical_and(mask, causal)
        if mask is not None:
            logits = ops.where(ops.cast(mask, "bool"), logits, ops.cast(MASKED, logits.dtype))
        scores = self._called.call(ops.softmax, ops.cast(logits, "float32"), axis=-1)
        return ops.einsum("bnts,bsnh->btnh", ops.cast(scores, dtype), value)


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
    return softmaxes.with_globals(function, {IS_FUSED: lambda: False})
