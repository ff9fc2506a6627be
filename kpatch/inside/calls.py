"""What stands in for the `call` of a layer while blocks last: each block adds its functions, and takes them away."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

from kpatch.names.watch import StandIn

INSTEAD, INPUTS, EDITS, OUTPUTS, AROUND = range(5)  # ranks of functions, from the inside out: recordings see edits

CALLED = ("call", "quantized_call")  # the latter if the layer is quantised
_changing = threading.Lock()  # held while functions are added or removed


class PatchedCall(StandIn):
    """What stands in for a method of a layer while blocks last: each adds a function, and takes it away, in any order.

    The functions are called as `function(call, ...)`, those of a higher rank first, and in a rank the latest first;
    `call` goes on to the one before. Without any it is the layer's own, which is put back then. If somebody has put it
    away to bring it back later, it does no harm.
    """

    def __init__(self, layer: Any, name: str) -> None:
        functools.update_wrapper(self, getattr(layer, name))
        self._layer = layer
        self._name = name
        self._before: Callable | None = vars(layer).get(name)
        self.adds = self._before is None
        self._ranked: tuple[tuple[int, Callable], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # dynamo, which cannot make a method, would break its graph
        call = self._before or functools.partial(getattr(type(self._layer), self._name), self._layer)
        for _, function in self._ranked if self._name not in CALLED or self._name == _called(self._layer) else ():
            call = functools.partial(function, call)
        return call(*args, **kwargs)

    def add(self, function: Callable, rank: int) -> None:
        self._ranked = tuple(sorted((*self._ranked, (rank, function)), key=lambda pair: pair[0]))

    def remove(self, function: Callable) -> None:
        with _changing:
            self._ranked = tuple(pair for pair in self._ranked if pair[1] is not function)
            state = vars(self._layer)
            if self._ranked or state.get(self._name) is not self:
                return
            if self._before is None:
                del state[self._name]
            else:
                state[self._name] = self._before


def patch_call(layer: Any, function: Callable, stack: contextlib.ExitStack, rank: int = EDITS) -> None:
    """What Keras calls of the layer becomes `function(call, ...)` until the stack closes."""
    for name in CALLED:
        patch_method(layer, name, function, stack, rank)


def patch_method(layer: Any, name: str, function: Callable, stack: contextlib.ExitStack, rank: int = EDITS) -> None:
    """A method of the layer becomes `function(method, ...)` until the stack closes."""
    with _changing:
        method = vars(layer).get(name)
        if not isinstance(method, PatchedCall):
            method = vars(layer)[name] = PatchedCall(layer, name)
        stack.callback(method.remove, function)
        method.add(function, rank)


def _called(layer: Any) -> str:
    """The one of `CALLED` that Keras calls now: the layer may be quantised while a block lasts."""
    return CALLED[getattr(layer, "quantization_mode", None) is not None]


def is_rehearsed(x: Any) -> bool:
    """Whether Keras computes shapes alone: `x` has no values, or made-up ones."""
    import keras
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope

    return in_symbolic_scope() or isinstance(x, keras.KerasTensor)


def end(stack: contextlib.ExitStack, message: str) -> None:
    """Ends a block that was entered by hand and whose object is gone."""
    stack.close()
    warnings.warn(message, RuntimeWarning, stacklevel=3)
