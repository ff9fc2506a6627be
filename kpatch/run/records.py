"""The records of a journal, and the history of each variable, which says what later edits overlap."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.run.encoding import StoredStep


class Record:
    """One write of a journal.

    With a `PackedMask`, `before` is those entries in a row. `after` is the function that gives what was written, or
    `None` if that follows from `before`.

    Attributes:
        step: the step that writes.
        selection: the entries; `None` if there are some, and nobody will ask which.
        before: what was there; `None` if that is not kept.
        after: what came after that.
        begun: the write may have been made.
        done: the write was made.
        link: its `Link` in the history of the variable, or `None`.
    """

    __slots__ = ("after", "before", "begun", "done", "link", "selection", "step")

    def __init__(self, step: Any, selection: Any, before: Any) -> None:
        self.step = step
        self.selection = selection
        self.before = before
        self.after: Any = None
        self.link: Any = None
        self.begun = self.done = False

    @property
    def bits(self) -> Any:
        """Of bytes that hold two codes, the bits of those that were written; `None` if whole entries were."""
        return self.step.bits if type(self.step) is StoredStep else None


class Link:
    """One edit in the history of a variable. Each points to the next, so that an edit that can still be undone, and
    only such a one, keeps alive what is needed to see whether a later one overlaps it.

    Attributes:
        number: of two edits, of whatever variables, the later one has the larger number.
        ends: the edit is one of a block, which ends it for certain.
        held: the edit is one of a hold that was not released.
        inherited: records of earlier edits that were withdrawn: what this one restores after its own.
    """

    __slots__ = (
        "__weakref__",
        "bits",
        "ends",
        "held",
        "inherited",
        "next",
        "number",
        "selection",
        "statement",
        "undone",
    )

    def __init__(self, record: Record) -> None:
        self.statement = record.step.statement  # not the step, which would keep the variable alive
        self.selection = record.selection
        self.bits = record.bits
        self.number = next(_numbers)
        self.undone = self.ends = self.held = False
        self.next: Any = None
        self.inherited: tuple[Record, ...] = ()


_numbers = count()
_latest: dict = {}  # id of a variable → [weak reference to it, and one to its latest link]


def latest_link(variable: Any) -> Link | None:
    """The variable's latest edit, or `None` if no edit is left that could be undone."""
    history = _latest.get(id(variable))
    return history[1]() if history is not None else None


def enter(record: Any) -> None:
    """Adds a write to the history of its variable."""
    variable = record.step.place.variable
    record.link = link = Link(record)
    key = id(variable)
    history = _latest.get(key)
    if history is None:
        _latest[key] = [weakref.ref(variable, _forgetter(key, _latest)), weakref.ref(link)]
    else:
        latest = history[1]()  # gone, if no edit is left that could be undone
        if latest is not None:
            latest.next = link
        history[1] = weakref.ref(link)


def _forgetter(key: int, latest: dict[int, Any]) -> Callable[[Any], None]:
    """Drops the history of a variable that is gone; holds the dictionary, as the module may be gone by then too."""
    return lambda _: latest.pop(key, None)


def with_inherited(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """The records, the latest first, then what they have inherited, and so on: the order in which they are restored.

    Each as a pair of the one of `records` that it belongs to, and itself.
    """
    found = [(record, record) for record in [*records][::-1]]
    for owner, record in found:  # which grows meanwhile
        if record.link is not None and record.link.inherited:
            found += [(owner, each) for each in record.link.inherited]
    return found


def overlapping(record: Record, since: Link, own: Any = ()) -> Iterator[Link]:
    """The edits after the link `since` that were not undone, and wrote entries of the record; without the links `own`.

    Two codes in one byte are two entries.
    """
    link = since.next
    while link is not None:
        if not link.undone and link not in own and _share(record, link):
            yield link
        link = link.next


def _share(record: Record, link: Link) -> bool:
    if not indexing.overlap(record.selection, link.selection, record.step.place.shape):
        return False
    if record.bits is None or link.bits is None:
        return True
    _, mine, theirs = np.intersect1d(record.selection.flat, link.selection.flat, return_indices=True)
    return bool((record.bits[mine] & link.bits[theirs]).any())
