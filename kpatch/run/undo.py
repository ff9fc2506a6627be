"""What an edit can take back: `AppliedPatch`."""

import weakref
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from kpatch import backends
from kpatch.errors import UndoError, UnsupportedError, boundary
from kpatch.names.index import ModelIndex
from kpatch.names.tree import LAYER
from kpatch.run import execute
from kpatch.run.inheriting import hand_on
from kpatch.run.plan import Plan, told
from kpatch.run.records import Record, enter, latest_link, overlapping, with_inherited
from kpatch.run.steps import Checked
from kpatch.run.writes import Write, overview, writes
from kpatch.view.overview import Overview
from kpatch.view.pictures import figure
from kpatch.view.shown import Shown

if TYPE_CHECKING:
    from typing_extensions import Self


def _is_later(record: Any) -> bool:
    """Whether an earlier edit of the variable can still be undone."""
    return record.selection is not None and latest_link(record.step.place.variable) is not None


class AppliedPatch(Shown):
    """Edits that were made, and can be undone.

    As a context manager it undoes them on leaving, also by an exception.

    Attributes:
        plan: the `Plan` that was executed, with the entries that each statement wrote.
        writes: a `Write` for each statement and variable: path, entries, values before and after; none with
            `undo=False`.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.apply(model, "dense_1.bias[1] = 5") as applied:
        ...     print(applied.writes[0].path, applied.writes[0].before, applied.writes[0].after)
        dense_1.bias [0.] [5.]
        >>> model.get_weights()[1][1].item()
        0.0
    """

    __slots__ = ("__weakref__", "_checked", "_counts", "_live", "_undone")

    def __init__(self, checked: Checked, live: Any) -> None:
        self._checked = checked
        self._counts = live.counts
        self._live: Any = None if live.lets_go else live  # which holds the old values
        self._undone = False
        for record in live.records:
            if not live.lets_go or _is_later(record):
                enter(record)

    @property
    def plan(self) -> Plan:
        steps = self._checked.edits
        return Plan.of(self._checked, (self._counts.get(step, execute.static_count(step)) for step in steps))

    @property
    def _records(self) -> list[Any]:
        """The journal; empty with `undo=False`."""
        return self._live.records if self._live is not None else []

    @property
    def writes(self) -> tuple[Write, ...]:
        with backends.current().untraced():
            return writes(self._records, self._checked.patch)

    @boundary
    def undo(self) -> None:
        """Restores every bit that the edits changed. An interrupt (Ctrl-C) waits until that is done.

        Raises:
            UndoError: when undone before, when a later edit of the same entries was not undone first, or when the
                edit was made with `undo=False`.
            UnsupportedError: inside a function that is being traced.
            ExecutionError: when the backend fails; it says what is not restored. `undo` can then be called again.
        """
        self._check_kept()
        if self._undone:
            raise UndoError("this edit has been undone already")
        for record in _of_replaced(self._records):
            raise _replaced(record)
        self._check_order()
        self._restore()

    def _of_block(self) -> "Self":
        """Says that a block ends the edits, by `_withdraw`."""
        for record in self._records:
            record.link.ends = True
        return self

    def _of_hold(self) -> Callable[[], None]:
        """Says that a hold keeps what was written; returns what says that it was released, and stands in no way."""
        links = [weakref.ref(record.link) for record in self._records]  # which earlier edits keep, if any
        for record in self._records:
            record.link.held = True

        def released() -> None:
            for link in filter(None, (each() for each in links)):
                link.undone = True

        return released

    def _withdraw(self) -> None:
        """Undoes the edits, if need be out of order: entries that a later edit has written keep its values.

        When the later edit is undone, it restores what was there before both. A weight that is stored as codes is
        restored as a whole: when the later block ends.

        Raises:
            UndoError: an edit stays, as nothing can take it back alone. All others are restored.
        """
        if self._undone:
            return
        replaced = _of_replaced(self._records)
        stay = hand_on(self._records)
        self._restore()
        for record, later in stay:
            message = f"the edit of '{record.step.place.path}' stays: a later edit of its codes was not undone before"
            raise UndoError(message, notes=_both(later, record))
        for record in replaced:
            raise _replaced(record)

    def _restore(self) -> None:
        interrupt = self._live.undo()
        for _, each in with_inherited(self._records):
            if each.link is not None:
                each.link.undone = True
        self._undone = True
        if interrupt is not None:
            raise interrupt

    def _check_order(self) -> None:
        if all(record.link.next is None and not record.link.inherited for record in self._records):
            return  # nothing was edited later
        last = {id(record.step.place.variable): record.link for record in self._records}
        every = [pair for pair in with_inherited(self._records) if pair[1].link is not None]
        own = {each.link for _, each in every}
        for owner, each in every:
            since = last[id(each.step.place.variable)] if each is owner else each.link
            for later in overlapping(each, since, own):
                path = each.step.place.path
                message = f"a later edit of '{path}' overlaps this one; undo that first"
                if later.held:
                    message = f"a later hold of '{path}' overlaps this edit; release that first"
                raise UndoError(message, notes=_both(later, each))

    def _check_kept(self) -> None:
        if self._live is None:
            raise UndoError("this edit was made with undo=False, and kept no old values")

    def __enter__(self) -> "Self":
        try:
            self._check_kept()
            return self
        except Exception:
            raise
        except BaseException:  # an interrupt: there will be no `__exit__`
            self.undo()
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            if not self._undone:
                self.undo()
        except Exception:
            raise
        except BaseException:  # an interrupt, perhaps before anything was restored
            if not self._undone:
                self.undo()
            raise

    def __copy__(self) -> "Self":
        """Itself, since an edit is undone once."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Of a deep copy and of a pickle: their variables would be others."""
        message = (
            "an AppliedPatch undoes an edit of the variables that it was made in; it has no deep copy and no pickle"
        )
        raise UnsupportedError(message, notes=["copy.copy gives the AppliedPatch itself"])

    def __repr__(self) -> str:
        state = "undone" if self._undone else "applied"
        return f"<AppliedPatch {len(self._checked.edits)} writes, {state}>"

    def overview(self) -> Overview:
        return overview(self.writes)

    def to_dict(self) -> dict[str, Any]:
        return {"patch": told(self._checked.patch), "writes": [write.to_dict() for write in self.writes]}

    def plot(self) -> Any:
        """A figure of matplotlib with a picture for each write: where its entries lie, and by how much they changed.

        Orange is more, blue is less, the stronger the more. The last axis runs to the right and the others run down;
        each filter of a convolution is a tile. A cell of a picture stands for one entry or for several; of these it
        shows the largest change. Of a write of more than 16,777,216 entries a random sample is drawn, and the picture
        says so. Of more than 24 writes the first 24 are drawn.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return figure([(f"{write.path}\n{write.statement}", write.map) for write in self.writes])


def _both(later: Any, record: Record) -> list[str]:
    return [f"the later edit: {later.statement}", f"this edit: {record.step.statement}"]


def _of_replaced(records: Iterable[Record]) -> list[Record]:
    """The first record of each variable that its layer has no longer: quantising a layer makes new ones."""
    first = {id(record.step.place.variable): record for record in reversed(list(records))}
    return [record for record in first.values() if not _is_held(record.step.place)]


def _is_held(place: Any) -> bool:
    if place.entry is None or place.entry.owner.kind != LAYER:
        return True
    layer = place.entry.owner.item
    if id(place.variable) in map(id, chain(layer._trainable_variables, layer._non_trainable_variables)):
        return True
    return any(entry.variable is place.variable for entry in ModelIndex(layer).entries)


def _replaced(record: Record) -> UndoError:
    place = record.step.place
    layer = place.entry.owner.item
    mode = getattr(layer, "quantization_mode", None)
    why = "was built anew" if mode is None else f"was quantised to {mode}"
    message = f"the edit of '{place.path}' cannot be undone: since then '{layer.name}' {why}, and has other variables"
    return UndoError(message, notes=[f"this edit: {record.step.statement}"])
