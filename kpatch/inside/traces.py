"""Compiled functions while blocks last: what is traced in a block is found again only in the same blocks.

Where a backend can tell the blocks apart, each compiled function of the process keeps a trace for each set of blocks,
and the one without any: also functions that the user compiled. Else the functions that models keep are dropped.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

from kpatch import backends
from kpatch.inside.calls import AROUND, patch_call
from kpatch.names.tree import distinct
from kpatch.run.forgetting import forget_compiled, layers_of, models_with

SPENT = 16  # blocks that are over, until what models have compiled in them is dropped

_numbers = itertools.count(1)
_active: list[int] = []  # the numbers of the blocks that last
_changing = threading.Lock()


class Traces:
    """What is compiled while blocks of one patch last; one block at a time.

    Args:
        index: the index of the model.
        layers: those whose calls are patched.
    """

    def __init__(self, index: Any, layers: list[Any]) -> None:
        self._index = index
        self._layers = layers
        self._number = next(_numbers)
        self._apart = False  # whether the backend tells the blocks apart
        self.seen = False  # whether a function was traced in a block

    def begin(self, stack: contextlib.ExitStack) -> None:
        """Until the stack closes, what is compiled is kept apart. To be called before anything is edited."""
        self._apart = _enter(self._number)
        if not self._apart:
            self.seen = False
            stack.callback(self._forget)
            return
        if len(spent := self._spent()) >= SPENT:
            spent.clear()
            forget_compiled(self._models())
        stack.callback(_leave, self._number)
        if backends.current().compiles_operations and _is_plain(self._index):
            patch_call(self._index.root.item, _eager, stack, AROUND)

    def patched(self) -> None:
        """To be called when everything is patched."""
        if not self._apart:
            forget_compiled(self._models())

    def spend(self) -> None:
        """There are no more blocks: what models have compiled in them is dropped some time, with that of others."""
        if self.seen and self._apart:
            self._spent().append(self._number)

    def _spent(self) -> list[int]:
        return vars(self._index).setdefault("spent_traces", [])

    def _forget(self) -> None:
        forget_compiled(self._models() if self.seen else layers_of(self._index))

    def _models(self) -> list[Any]:
        return distinct([*layers_of(self._index), *(models_with(self._layers) if self._layers else [])])


def _enter(number: int) -> bool:
    with _changing:
        _active.append(number)
        if backends.current().distinguish(tuple(_active)):
            return True
        _active.remove(number)
        return False


def _leave(number: int) -> None:
    with _changing:
        _active.remove(number)
        backends.current().distinguish(tuple(_active))


def _eager(call: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a model; the operations that it calls eagerly keep what they have compiled before."""
    backend = backends.current()
    if backend.is_tracing():
        return call(*args, **kwargs)
    with backend.undistinguished():
        return call(*args, **kwargs)


def _is_plain(index: Any) -> bool:
    """Whether no layer of the model can hold a function that the user compiled."""
    kinds = {type(node.item) for node in index.nodes if node.item is not None}
    return all(kind.__module__.partition(".")[0] in ("keras", "keras_hub") for kind in kinds) and not any(
        kind.__name__ in ("Lambda", "JaxLayer", "FlaxLayer") for kind in kinds
    )
