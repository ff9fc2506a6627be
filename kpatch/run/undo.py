"""What an edit can take back: `AppliedPatch`, and the history of each variable, which says what overlaps."""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kpatch import indexing
from kpatch.backends.base import Backend
from kpatch.errors import UndoError
from kpatch.run import execute
from kpatch.run.encoding import StoredStep
from kpatch.run.plan import Plan
from kpatch.run.steps import Checked
from kpatch.run.writes import Write, writes
from kpatch.view import tables

if TYPE_CHECKING:
    from typing_extensions import Self


class Link:
    """One edit in the history of a variable. Each points to the next, so that an edit that can still be undone, and
    only such a one, keeps alive what is needed to see whether a later one overlaps it."""

    __slots__ = ("__weakref__", "inherited", "next", "selection", "statement", "undone")

    def __init__(self, statement: Any, selection: Any) -> None:
        self.statement = statement  # not the step, which would keep the variable alive
        self.selection = selection
        self.undone = False
        self.next = None
        self.inherited = ()  # records of earlier edits that were withdrawn: what this one restores after its own


_latest: dict = {}  # id of a variable → [weak reference to it, and one to its latest link]


def latest_link(variable: Any) -> Link | None:
    """The variable's latest edit, or `None` if no edit is left that could be undone."""
    history = _latest.get(id(variable))
    return history[1]() if history is not None else None


def enter(record: Any) -> None:
    """Adds a write to the history of its variable."""
    variable = record.step.place.variable
    record.link = link = Link(record.step.statement, record.selection)
    key = id(variable)
    history = _latest.get(key)
    if history is None:
        _latest[key] = [weakref.ref(variable, _forgetter(key, _latest)), weakref.ref(link)]
    else:
        latest = history[1]()  # gone, if no edit is left that could be undone
        if latest is not None:
            latest.next = link
        history[1] = weakref.ref(link)


def _is_later(record: Any) -> bool:
    """Whether an earlier edit of the variable can still be undone."""
    return record.selection is not None and latest_link(record.step.place.variable) is not None


def _forgetter(key: int, latest: dict[int, Any]) -> Callable[[Any], None]:
    """Drops the history of a variable that is gone; holds the dictionary, as the module may be gone by then too."""
    return lambda _: latest.pop(key, None)


class AppliedPatch:
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
        return writes(self._records, self._checked.patch)

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
        self._check_order(self._records)
        self._restore()

    def _withdraw(self) -> None:
        """Undoes the edits, if need be out of order: entries that a later edit has written keep its values.

        When the later edit is undone, it restores what was there before both.

        Raises:
            UndoError: for a weight that is stored as codes. They share scales and bytes, so none is taken back alone.
        """
        if not self._undone:
            self._check_order([record for record in self._records if isinstance(record.step, StoredStep)])
            self._live.hand_on()
            self._restore()

    def _restore(self) -> None:
        interrupt = self._live.undo(self._checked.patch)
        for record in self._records:
            record.link.undone = True
        self._undone = True
        if interrupt is not None:
            raise interrupt

    def _check_order(self, records: list) -> None:
        last = {id(record.step.place.variable): record for record in self._records}
        for record in records:
            link = last[id(record.step.place.variable)].link.next
            while link is not None:
                if not link.undone and indexing.overlap(record.selection, link.selection, record.step.place.shape):
                    raise UndoError(
                        f"a later edit of '{record.step.place.path}' overlaps this one; undo that first",
                        notes=[f"the later edit: {link.statement}", f"this edit: {record.step.statement}"],
                    )
                link = link.next

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

    def __repr__(self) -> str:
        state = "undone" if self._undone else "applied"
        return f"<AppliedPatch {len(self._checked.edits)} writes, {state}>"

    def __rich__(self) -> Any:
        return tables.writes_table(self.writes)

    def __str__(self) -> str:
        return tables.as_text(self.__rich__())


def prepare_models(writer: Backend, names: Any) -> None:
    """Brings the variables' values where they can be edited (on jax, inside `fit`, they live in the trainer)."""
    for model in (*names.models, *names.bindings.models):
        writer.sync(model)
