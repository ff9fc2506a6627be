"""What an optimizer remembers of entries that a patch writes, set to its start by further writes of the edit."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.errors import BindingError, PatchError, UnsupportedError
from kpatch.names.meanings import Place, place_of
from kpatch.names.optimizers import NAME, is_optimizer, optimizers_in, state_of
from kpatch.run.records import Record
from kpatch.syntax import ast
from kpatch.values import tensors

KEEP, RESET = "keep", "reset"


@dataclass(eq=False, slots=True)
class SlotStep:
    """The reset of a slot for the entries that a step wrote.

    Attributes:
        step: that step.
        place: the slot.
    """

    step: Any
    place: Place

    @property
    def statement(self) -> ast.Edit:
        return self.step.statement

    @property
    def statements(self) -> tuple[ast.Edit, ...]:
        return self.step.statements


def optimizers_for(slots: Any, models: Iterable[Any]) -> list[Any]:
    """The optimizers that an argument `slots` means, those inside of the ones that wrap others.

    Raises:
        BindingError: it is neither "keep" nor "reset" nor an optimizer, or the models have none.
    """
    if isinstance(slots, str) and slots == KEEP:
        return []
    if is_optimizer(slots):
        return optimizers_in(slots)
    if not isinstance(slots, str) or slots != RESET:
        raise BindingError(f"slots is 'keep', 'reset' or an optimizer. Received: slots={slots!r}")
    found = [each for each in (getattr(model, NAME, None) for model in models) if is_optimizer(each)]
    if not found:
        raise BindingError(
            "slots='reset' is about the optimizer of a compiled model, and there is none",
            notes=["in a training loop of your own, hand the optimizer in: slots=optimizer"],
        )
    return [part for each in {id(each): each for each in found}.values() for part in optimizers_in(each)]


def reset(live: Any, optimizers: Iterable[Any]) -> None:
    """Resets the slots of all entries that a journal has as written.

    Raises:
        UnsupportedError: a slot belongs to rows or columns, of which not all entries were written.
    """
    written: dict[int, list[Record]] = {}
    for record in live.records:
        written.setdefault(id(record.step.place.variable), []).append(record)
    for optimizer in optimizers:
        slots = state_of(optimizer).slots
        for records in written.values():
            variable = records[0].step.place.variable
            own = {name: of[id(variable)] for name, of in slots.items() if id(variable) in of}
            starts = _starts(optimizer, variable) if own else {}
            for name, slot in own.items():
                place = place_of(slot, _path(records[0].step.place, name))
                for record, selection in _selections(records, place):
                    live.reset(SlotStep(record.step, place), selection, starts[name])


def _starts(optimizer: Any, variable: Any) -> dict[str, np.ndarray]:
    """What the slots of a variable start from, each as one number if all entries have it."""
    try:
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build([variable])
    except Exception as error:  # an optimizer of somebody's own may not be made from its configuration
        message = f"slots: no new {type(optimizer).__name__} can be made to see what its slots start from: {error}"
        raise PatchError(message) from error
    averages = getattr(fresh, "_model_variables_moving_average", None) or ()
    found = {}
    for name, of in state_of(fresh).slots.items():
        slot = of[id(variable)]
        start = tensors.to_numpy(tensors.of_variable(variable if any(slot is each for each in averages) else slot))
        uniform = start.size > 0 and (start == start.flat[0]).all() and not np.signbit(start).any()
        found[name] = start.reshape(-1)[0].reshape(()) if uniform else start
    return found


def _selections(records: list[Record], place: Place) -> Iterator[tuple[Record, Any]]:
    """The entries of a slot that belong to what was written, by the records."""
    shape = records[0].step.place.shape
    if place.shape == tuple(records[0].step.place.variable.shape):
        yield from ((record, record.selection) for record in records if record.selection.size)
        return
    written = np.zeros(shape, bool)
    for record in records:
        written |= tensors.mask_of(record.selection, shape)
    if not written.any():
        return
    if not written.all():
        raise UnsupportedError(
            f"slots: '{place.path}' {place.shape} has no entries of their own for the {written.sum():,} of "
            f"{math.prod(shape):,} that are written",
            notes=["it is reset if all entries of the variable are written"],
        )
    yield records[-1], indexing.whole(place.shape)


def _path(place: Place, name: str) -> str:
    own = "_" if place.entry is None else place.entry.path
    return f"{place.path.removesuffix(own)}{NAME}.{name}.{own}"
