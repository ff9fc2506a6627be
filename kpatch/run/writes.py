"""`Write`: the effect of a statement on a variable, with the values before and after."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from kpatch import backends, indexing
from kpatch.errors import UnsupportedError
from kpatch.run import semantics
from kpatch.run.batch import BatchStep
from kpatch.run.encoding import StoredStep
from kpatch.run.plan import text_in
from kpatch.syntax import Patch
from kpatch.values import tensors
from kpatch.values.dtypes import tensor
from kpatch.view.data import summary
from kpatch.view.overview import Column, Overview, sample, shape
from kpatch.view.pictures import Map

DRAWN = 2**24  # of more entries a picture shows a sample: the offsets of so many take 128 MiB
SAMPLE = 2**21  # entries of a sample
BLOCK = 2**18  # entries that are computed together


@dataclass(frozen=True, slots=True)
class Write:
    """The effect of one statement on one variable.

    Attributes:
        statement: the statement's text.
        path: the variable.
        shape, dtype: the variable's shape and dtype.
        entries: the number of entries written.
        before, after: the values of these entries, as flat NumPy arrays in the order of the selection. Of a weight
            that its layer stores as something else, these are values of the weight.
        asked: the values to be written; `after` is the nearest that can be stored. Otherwise the same.
    """

    statement: str
    path: str
    shape: tuple
    dtype: str
    entries: int
    before: np.ndarray
    after: np.ndarray
    asked: np.ndarray
    _flat: Callable[[np.ndarray | None], np.ndarray] = field(repr=False)  # of all entries, or of those numbered

    @property
    def flat(self) -> np.ndarray:
        """The offsets of the entries in the flattened variable, in C order, one for each of `before`."""
        return self._flat(None)

    def to_dict(self) -> dict[str, Any]:
        """The write as data: of its values the range and mean, and at most three values themselves."""
        return {
            "statement": self.statement,
            "path": self.path,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "entries": self.entries,
            "before": summary(self.before),
            "after": summary(self.after),
            "asked": summary(self.asked) if self.is_rounded else None,
        }

    @property
    def is_rounded(self) -> bool:
        """Whether other values were stored than were asked for."""
        return self.asked is not self.after and self.asked.tobytes() != self.after.tobytes()

    def samples(self, asked: bool) -> list[str]:
        """Some values before, some of those asked for if the table has them, and some after."""
        return [sample(self.before), *[sample(self.asked)] * asked, sample(self.after)]

    def map(self) -> Map:
        """Where the entries lie in the variable, and by how much each changed, as a picture."""
        drawn, numbers, before, after = Map(self.shape), None, self.before, self.after
        if self.entries > DRAWN:
            numbers = np.sort(np.random.default_rng(0).integers(0, self.entries, SAMPLE))
            before, after = before[numbers], after[numbers]
            drawn.note = f"{SAMPLE:,} of {self.entries:,} entries, drawn at random"
        flat = self._flat(numbers)
        with np.errstate(all="ignore"):
            for part in (slice(start, start + BLOCK) for start in range(0, len(flat), BLOCK)):
                drawn.add(flat[part], after[part].astype("float64") - before[part].astype("float64"))
        return drawn


class UnknownWrite(Write):
    """A `Write` some of whose values are not known: to read them is an `UnsupportedError`.

    Attributes:
        told: what stands in their place in a table.
    """

    __slots__ = ()
    told: ClassVar[str]

    def __init__(self, statement: str, place: Any, entries: Any, **known: Any) -> None:
        known |= {"statement": statement, "path": place.path, "shape": place.shape, "dtype": place.dtype}
        for name, value in {**known, "entries": entries}.items():
            object.__setattr__(self, name, value)

    @property
    def after(self) -> np.ndarray:
        raise self._refusal()

    asked = after

    def to_dict(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("statement", "path", "shape", "dtype", "entries")}
        return {**known, "shape": list(self.shape), "before": None, "after": None, "asked": None}

    @property
    def is_rounded(self) -> bool:
        return False

    def samples(self, asked: bool) -> list[str]:
        return [self.told] * (2 + asked)

    def map(self) -> Map:
        empty = Map(self.shape)
        empty.note = f"not drawn: {self._refusal().message}"
        return empty

    def __repr__(self) -> str:
        return f"{type(self).__name__}(statement={self.statement!r}, path={self.path!r}, entries={self.entries})"

    def _refusal(self) -> UnsupportedError:
        raise NotImplementedError


class ChangedWrite(UnknownWrite):
    """A `Write` whose new values are not known: other values may have come into their memory, as torch trains it."""

    __slots__ = ()
    told = "not known"

    def samples(self, asked: bool) -> list[str]:
        return [sample(self.before), *super().samples(asked)[1:]]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "before": summary(self.before)}

    def _refusal(self) -> UnsupportedError:
        message = f"the values that came to '{self.path}' are not known: it was written to since, by training say"
        return UnsupportedError(message)


class SpreadWrite(UnknownWrite):
    """A `Write` to a variable whose values lie in several processes.

    Each process may look at it alone, as nothing is asked of the others: so it has no values.
    """

    __slots__ = ()
    told = "in several processes"

    @property
    def flat(self) -> np.ndarray:
        raise self._refusal()

    before = flat

    def _refusal(self) -> UnsupportedError:
        return UnsupportedError(
            f"the values of '{self.path}' lie in several processes",
            notes=["a 'let' or an assertion of a patch, which every process applies, can look at them"],
        )


def writes(records: Iterable[Any], patch: Patch) -> tuple[Write, ...]:
    """A `Write` for each statement and variable, in the order of the statements."""
    found = []
    for record in records:
        if isinstance(record.step, StoredStep):
            found += _weight_write(record.step, patch)
            continue
        batch = isinstance(record.step, BatchStep)
        found += _batch_writes(record, patch) if batch else [(record.step.statement.span, _write(record, patch))]
    return tuple(write for _, write in sorted(found, key=lambda item: item[0]))


def _write(record: Any, patch: Patch) -> Write:
    if backends.current().is_spread(record.before):
        selected = record.selection
        entries = selected.count if isinstance(selected, indexing.Mask) else selected.size
        return SpreadWrite(text_in(record.step.statement, patch), record.step.place, entries)
    before = tensors.to_numpy(record.before)
    after = _after(record, before)
    place = record.step.place
    text, flat = text_in(record.step.statement, patch), partial(_offsets, record.selection, place.shape)
    if after is None:
        return ChangedWrite(text, place, before.size, before=before.ravel(), _flat=flat)
    after = np.broadcast_to(after, before.shape)
    if isinstance(record.selection, indexing.Mask) and not isinstance(record.selection, indexing.PackedMask):
        mask = tensors.to_numpy(record.selection.mask)
        before, after = before[mask], after[mask]
    before, after = before.ravel(), after.ravel()
    return Write(text, place.path, place.shape, place.dtype, before.size, before, after, after, flat)


def _offsets(selection: Any, shape: tuple, numbers: np.ndarray | None) -> np.ndarray:
    """The offsets of the entries of a selection, or of those with the numbers, which ascend."""
    if isinstance(selection, indexing.Mask):
        mask = tensors.to_numpy(selection.mask).reshape(-1)
        return np.flatnonzero(mask) if numbers is None else _of_mask(mask, numbers)
    if numbers is None or not isinstance(selection, indexing.Region):
        return _numbered(tensors.positions(selection, shape).flat, numbers)
    places = np.unravel_index(numbers, selection.counts)
    axes = zip(places, selection.starts, selection.steps, strict=True)
    return np.ravel_multi_index([start + step * place for place, start, step in axes], shape)


def _of_mask(mask: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    found, before = [], 0
    for start in range(0, mask.size, BLOCK):
        flat = np.flatnonzero(mask[start : start + BLOCK])
        low, high = np.searchsorted(numbers, [before, before + len(flat)])
        found.append(start + flat[numbers[low:high] - before])
        before += len(flat)
    return np.concatenate(found)


def _all_of(size: int, numbers: np.ndarray | None) -> np.ndarray:
    return np.arange(size) if numbers is None else numbers


def _numbered(flat: np.ndarray, numbers: np.ndarray | None) -> np.ndarray:
    return flat if numbers is None else flat[numbers]


def _weight_write(stored: StoredStep, patch: Patch) -> Iterator[tuple[Any, Write]]:
    """The write of a weight, at the first of the variables that it was stored in."""
    if stored.shown is None:
        return
    place, (before, after, asked, offsets) = stored.step.place, stored.shown
    text = text_in(stored.statement, patch)
    flat = partial(_all_of, after.size) if offsets is None else partial(_numbered, np.asarray(offsets))
    write = Write(text, place.path, place.shape, place.dtype, after.size, before, after, asked, flat)
    yield stored.statement.span, write


def _after(record: Any, before: np.ndarray) -> np.ndarray | None:
    """The values written: kept, or computed again from those before; `None` if others have written into them."""
    if record.after is not None:
        kept = record.after()
        return None if kept is None else tensors.to_numpy(kept)
    value = semantics.operated(record.step.statement, tensor(record.before), record.step.operand)
    return tensors.to_numpy(value.data)


def _batch_writes(record: Any, patch: Patch) -> Iterator[tuple[tuple[int, int], Write]]:
    """The writes of a batch, one for each statement; a second write of an entry starts from the first."""
    step = record.step
    present = dict(zip(record.selection.flat.tolist(), tensors.to_numpy(record.before), strict=True))
    for statement, offset, number in zip(step.statements, step.offsets.tolist(), step.numbers, strict=True):
        before, present[offset] = present[offset], number
        place, text = step.place, text_in(statement, patch)
        pair, flat = np.array([before, number], step.numbers.dtype), partial(_numbered, np.array([offset]))
        yield statement.span, Write(text, place.path, place.shape, place.dtype, 1, pair[:1], pair[1:], pair[1:], flat)


def columns(asked: bool = False) -> tuple[Column, ...]:
    """The columns of what writes did; `asked` adds the values asked for, if others were stored."""
    return (
        Column("statement"),
        Column("variable", pictured=True),
        Column("shape", drop=3),
        Column("entries", right=True, drop=1),
        Column("before", breaks=True),
        *[Column("asked", drop=2, breaks=True)] * asked,
        Column("after", breaks=True),
    )


def overview(found: Iterable[Write]) -> Overview:
    """The writes as rows, with pictures."""
    found = tuple(found)
    rounds = any(w.is_rounded for w in found)
    rows = [(w.statement, w.path, shape(w.shape), f"{w.entries:,}", *w.samples(rounds)) for w in found]
    return Overview(columns(rounds), rows, pictures=[None if isinstance(w, UnknownWrite) else w.map for w in found])
