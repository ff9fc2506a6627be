"""An edit that ends before later ones: what these inherit of it, and restore when they end."""

from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.run.encoding import StoredStep
from kpatch.run.records import Link, Record, overlapping, with_inherited
from kpatch.values import tensors


def hand_on(records: list) -> list[tuple[Record, Link]]:
    """Gives old values of entries that later edits have written to the first of these, which will restore them.

    Of a plain variable these entries alone; the records keep the rest. A later edit that nobody can undo any more takes
    what it was given with it. Codes of a weight share a scale, so its records go as a whole, to a block.

    Args:
        records: those of a journal, from which records of whole weights are taken.

    Returns:
        The first record of each weight whose edit stays, and the later edit, which no block ends, that overlaps it.
    """
    own = {each.link for _, each in with_inherited(records)}
    stay = []
    for held in _of_weights(records):
        linked = [each for _, each in with_inherited(held) if each.link is not None]
        later = [link for each in linked for link in overlapping(each, each.link, own)]
        if not later:
            continue
        first = min(later, key=lambda link: link.number)
        _take(records, held)
        if first.ends:
            first.inherited += tuple(held)
        else:
            stay.append((held[-1], first))
    for record in records:
        if _weight(record) is None:
            _hand_on(record)
    return stay


def _of_weights(records: list) -> list[list[Record]]:
    """The records of each weight that is stored as codes, own or inherited, the latest first."""
    found: dict[int, list[Record]] = {}
    for record in reversed(records):
        for each in (record, *record.link.inherited) if _weight(record) is None else (record,):
            if (weight := _weight(each)) is not None:
                found.setdefault(id(weight), []).append(each)
    return list(found.values())


def _weight(record: Record) -> Any:
    return record.step.step.place.weight if isinstance(record.step, StoredStep) else None


def _take(records: list, held: list[Record]) -> None:
    gone = set(map(id, held))
    for record in records:
        record.link.inherited = tuple(each for each in record.link.inherited if id(each) not in gone)
    records[:] = [record for record in records if id(record) not in gone]


def _hand_on(record: Record) -> None:
    shape = record.step.place.shape
    link: Any = record.link
    for each in (record, *link.inherited):
        if _weight(each) is not None:
            continue
        for later in overlapping(each, link):
            mask, old = tensors.mask_of(each.selection, shape), _spread(each, shape)
            theirs = mask & tensors.mask_of(later.selection, shape)
            given = Record(each.step, indexing.PackedMask(theirs), old[theirs])
            given.begun = True
            later.inherited += (given,)
            mine = mask & ~theirs
            each.selection, each.before = indexing.PackedMask(mine), old[mine]


def _spread(record: Record, shape: tuple[int, ...]) -> np.ndarray:
    """The old values of a record in an array of the variable's shape, each at its place."""
    before = tensors.to_numpy(record.before)
    if isinstance(record.selection, indexing.Mask) and not isinstance(record.selection, indexing.PackedMask):
        return before
    values = np.zeros(shape, before.dtype)
    if isinstance(record.selection, indexing.PackedMask):
        values[record.selection.mask] = before
    else:
        values.reshape(-1)[tensors.positions(record.selection, shape).flat] = before.ravel()
    return values
