"""Subscript to selection, by NumPy's rules, on shapes alone: no tensors, no Keras.

`select` turns the items between the brackets into one of a few selections, in normalised form (no negative index, no
`...`, everything checked), so that whatever reads or writes the entries needs no rules of its own:

* `Point`: one entry, every axis by an integer;
* `Region`: basic indexing, an arithmetic progression on each axis;
* `Positions`: anything else, as flat offsets in C order;
* `Mask`: a boolean tensor of the variable's own shape; the executor makes it where the mask never leaves its device;
* `Grid`: of a tensor with lengths that are not known yet, or by index tensors of a graph: one item an axis.

`infer` gives the shape of the result alone, also where index values and lengths are not known yet.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from kpatch.errors import LimitError, ShapeError, SubscriptError

MAX_AXES = 64  # of a selection; NumPy's own limit
MAX_OFFSET = 2**62  # flat offsets stay well inside int64
MAX_REPEATED = 2**28  # entries that repeated indices may always ask for; above, four times those of the tensor


@dataclass(frozen=True, slots=True)
class Unknown:
    """An array among the items of which only shape (lengths may be `None`) and dtype are known."""

    shape: tuple
    dtype: str


@dataclass(frozen=True, slots=True)
class Point:
    """One entry: a non-negative integer for every axis."""

    index: tuple

    shape = ()
    size = 1


@dataclass(frozen=True, slots=True)
class Region:
    """Basic indexing: axis `i` takes `starts[i] + k * steps[i]` for `k` below `counts[i]`.

    Normal form: `starts` are not negative, an axis of one entry has step 1, an empty one start 0 and step 1.
    `dropped` holds the axes that an integer removed, ascending; their count is 1. `full` says that the region is the
    whole tensor in its own order and shape.

    Example:
        >>> region = select((4, 6), (1, slice(None, None, -2)))
        >>> region.starts, region.counts, region.steps, region.dropped
        ((1, 5), (1, 3), (1, -2), (0,))
        >>> region.shape, region.slices
        ((3,), (1, slice(5, None, -2)))
    """

    starts: tuple
    counts: tuple
    steps: tuple
    dropped: tuple = ()
    full: bool = False

    @property
    def shape(self):
        if not self.dropped:
            return self.counts
        return tuple(count for axis, count in enumerate(self.counts) if axis not in self.dropped)

    @property
    def size(self):
        return math.prod(self.counts)

    @property
    def slices(self):
        """The index, of slices and integers, that takes the region from an array."""
        axes = zip(self.starts, self.counts, self.steps, strict=True)
        return tuple(
            start if axis in self.dropped else _slice(start, count, step)
            for axis, (start, count, step) in enumerate(axes)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Entries by their offsets: `flat` is int64, one-dimensional, in C order of `shape`; it may hold repeats."""

    flat: np.ndarray
    shape: tuple

    @property
    def size(self):
        return len(self.flat)

    def coordinates(self, shape):
        """An index array for each axis of a variable of that shape, each as long as `flat`.

        Example:
            >>> select((3, 4), (np.array([2, 0]), 1)).coordinates((3, 4))
            (array([2, 0]), array([1, 1]))
        """
        if not len(self.flat):
            return tuple(self.flat for _ in shape)
        return tuple(np.unravel_index(self.flat, shape)) if shape else ()


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The entries where `mask` holds, a boolean tensor of the variable's shape; values are scalars or of that shape.

    `count` is how many entries those are, or `None` if they were not counted.
    """

    mask: object
    shape: tuple
    count: int | None = None

    @property
    def size(self):
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry of an axis whose length the graph alone knows: `index`, not negative, and whether it `exists`.

    Both are tensors of the graph. An index that does not exist is one of the axis all the same.
    """

    index: object
    exists: object


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Entries of a tensor with lengths that are not known yet: the part of each axis by itself.

    `items` holds a slice, an integer or an `Entry` for each axis, and `None` for the axes of `block`: those of index
    arrays, which together take the offsets `flat`, counted along these axes. The dimensions that they make, `block`,
    stand at `place` in the result. If index arrays are tensors, `flat` is one too, and lengths in `block` may be;
    `exists` then says which of the offsets are entries, or is `None` if all of them are.

    Example:
        >>> grid = select((None, 4, 5), (slice(1, None), np.array([0, 3]), -1))
        >>> grid.items, grid.flat, grid.block, grid.place, grid.shape
        ((slice(1, None, None), None, None), array([ 4, 19]), (2,), 1, (None, 2))
    """

    items: tuple
    shape: tuple
    flat: np.ndarray | None = None
    block: tuple = ()
    place: int = 0
    exists: object = None

    size = None

    def stride(self, axis, lengths):
        """By how much an index on an axis of the block counts among the offsets; `lengths` are the tensor's."""
        return math.prod(lengths[later] for later in range(axis + 1, len(lengths)) if self.items[later] is None)


class PackedMask(Mask):
    """A `Mask` on the host, an eighth of its size: for keeping."""

    __slots__ = ("bits",)
    bits: np.ndarray

    def __init__(self, mask, count=None):
        object.__setattr__(self, "bits", np.packbits(mask))
        object.__setattr__(self, "shape", mask.shape)
        object.__setattr__(self, "count", count)

    @property
    def mask(self):
        size = math.prod(self.shape)
        return np.unpackbits(self.bits, count=size).view(bool).reshape(self.shape)


def whole(shape):
    """The region that is the whole tensor."""
    shape = tuple(shape)
    return Region((0,) * len(shape), shape, (1,) * len(shape), (), True)


def parts(shape, size):
    """Regions that cover a tensor, in order, of up to `size` entries each (of one entry at least).

    Example:
        >>> [region.slices for region in parts((2, 5), 3)]
        [(0, slice(0, 3, 1)), (0, slice(3, 5, 1)), (1, slice(0, 3, 1)), (1, slice(3, 5, 1))]
    """
    axis = next((a for a in range(len(shape)) if math.prod(shape[a + 1 :]) <= size), len(shape) - 1)
    step = max(1, size // max(1, math.prod(shape[axis + 1 :])))
    for before in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            count = min(step, shape[axis] - start)
            counts = ((1,) * axis, (count,), shape[axis + 1 :])
            starts = (*before, start, *(0,) * (len(shape) - axis - 1))
            yield Region(starts, sum(counts, ()), (1,) * len(shape), tuple(range(axis)), size >= math.prod(shape))


def select(shape, items):
    """The selection that `items` (a tuple) makes of a tensor of that shape (a tuple).

    It is `None` if an integer or an index array meets an axis of unknown length: `layout` is for those.

    Raises:
        SubscriptError: with the item's position as `argument`.
        LimitError: where repeated indices ask for far more entries than the tensor has.

    Example:
        >>> select((3, 4), (1, -1))
        Point(index=(1, 3))
        >>> select((3, 4), (slice(None), 2))
        Region(starts=(0, 2), counts=(3, 1), steps=(1, 1), dropped=(1,), full=False)
        >>> select((3, 4), (np.array([0, 2]), np.array([1, 1])))
        Positions(flat=array([1, 9]), shape=(2,))
    """
    if None in shape:
        return _grid(shape, items)
    if len(items) == len(shape):  # by far the commonest: one integer an axis
        index = []
        for item, length in zip(items, shape):  # noqa: B905 (equal lengths; strict costs time here)
            if type(item) is not int:
                break
            if item < 0:
                item += length
            if not 0 <= item < length:
                break
            index.append(item)
        else:
            return Point(tuple(index)) if index else whole(())
    parts = _resolve(shape, items)
    for value, _, position in parts:
        if type(value) is np.ndarray:
            return _positions(shape, parts)
        if type(value) is Unknown:
            raise TypeError(f"select needs the values of item {position}; infer does not")
    return _region(shape, parts)


def infer(shape, items):
    """The shape of what `items` select, with `None` for unknown lengths.

    Items may be `Unknown`, and the tensor's own lengths `None`. Every check is made that needs no unknown value.

    Example:
        >>> infer((None, 4, 5), (slice(0, 2), 1))
        (None, 5)
        >>> infer((3, 4, 5), (Unknown((3, 4), "bool"), Unknown((2, 1), "int32")))
        (2, None)
    """
    parts = _resolve(shape, items)
    if not any(type(value) in _ARRAYS for value, _, _ in parts):
        return _shape(parts)
    _, _, result = _arrange(parts)
    _bound(shape, result, parts)
    return result


def layout(shape, items):
    """The `Grid` that the items make, without the offsets of index arrays, and the indices that it is made of.

    Those are `(axis, value, position of the item)` for each integer and index array. The value is checked and not
    negative; it is `None` for an integer, and an `Unknown` for an array, that is not known or meets an axis of unknown
    length.

    Example:
        >>> grid, indices = layout((2, 4, 5), (1, slice(None), Unknown((3,), "int32")))
        >>> grid.items, grid.shape, indices
        ((None, slice(None, None, None), None), (3, 4), [(0, 1, 0), (2, Unknown(shape=(3,), dtype='int32'), 2)])
    """
    parts = _resolve(shape, items)
    taken = _whole_axes(parts, items)
    indices = [(axis, value, position) for value, axis, position in parts if type(value) is not list]
    if any(type(value) in _ARRAYS or type(items[position]) is Unknown for _, value, position in indices):
        before, _, result = _arrange(parts)
        axes = tuple(taken.get(axis) for axis in range(len(shape)))
        return Grid(axes, result, None, _block(parts), len(before)), indices
    taken.update((axis, items[position] if value is None else value) for axis, value, position in indices)
    return Grid(tuple(taken[axis] for axis in range(len(shape))), _shape(parts)), indices


def fit(value_shape, selection_shape):
    """The value's shape without surplus leading axes of length 1; `ShapeError` where it does not broadcast.

    `None`, an unknown length, fits any.

    Example:
        >>> fit((1, 1, 3), (2, 3))
        (1, 3)
    """
    value_shape, selection_shape = tuple(value_shape), tuple(selection_shape)
    if not value_shape or value_shape == selection_shape:
        return value_shape
    surplus = max(0, len(value_shape) - len(selection_shape))
    kept = value_shape[surplus:]
    fits = all(length in (1, None) for length in value_shape[:surplus]) and all(
        length in (1, None, target) or target is None
        for length, target in zip(kept, selection_shape[len(selection_shape) - len(kept) :], strict=True)
    )
    if fits:
        return kept
    message = f"value of shape {value_shape} does not fit the selection of shape {selection_shape}"
    raise ShapeError(message, notes=_why_unfit(value_shape, selection_shape))


def broadcast(shapes):
    """The shape that the shapes broadcast to; `None` is an unknown length. `ShapeError` where they do not.

    The error's `argument` is the place, in `shapes`, of the first that does not go with one before it.

    Example:
        >>> broadcast([(3, 1), (None,), (3, 4)])
        (3, 4)
        >>> broadcast([(1,), (None,)])
        (None,)
    """
    result = ()
    for place, shape in enumerate(shapes):
        shape = tuple(shape)
        if shape == result:
            continue
        merged = _merge(result, shape)
        if merged is None:
            other = next(tuple(earlier) for earlier in shapes if _merge(tuple(earlier), shape) is None)
            raise ShapeError(f"shapes {other} and {shape} do not broadcast together", argument=place)
        result = merged
    return result


def overlap(a, b, shape):
    """Whether two selections of a tensor of that shape have an entry in common; exact.

    Example:
        >>> even, odd = (select((10,), (slice(start, None, 2),)) for start in (0, 1))
        >>> overlap(even, odd, (10,)), overlap(even, select((10,), (slice(3, 5),)), (10,))
        (False, True)
    """
    if not a.size or not b.size:
        return False
    if isinstance(a, Mask) or isinstance(b, Mask):
        return _mask_overlaps(a, b) if isinstance(a, Mask) else _mask_overlaps(b, a)
    if isinstance(a, Positions) and isinstance(b, Positions):
        return _common(a.flat, b.flat)
    if isinstance(a, Positions):
        a, b = b, a
    if isinstance(b, Positions):
        return _region_holds(_progressions(a), b, shape)
    return all(_meet(*p, *q) for p, q in zip(_progressions(a), _progressions(b), strict=True))


def last_wins(flat):
    """Indices into `flat` of each distinct offset's last occurrence, in ascending order of the offsets.

    So `flat[last_wins(flat)]` is sorted and without repeats, and writing `values[last_wins(flat)]` there does what
    NumPy's assignment does, in any order.

    Example:
        >>> last_wins(np.array([7, 3, 7, 5]))
        array([1, 3, 2])
    """
    flat = np.asarray(flat)
    if np.all(flat[1:] > flat[:-1]):
        return np.arange(len(flat))
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    return order[np.append(ordered[1:] != ordered[:-1], True)]


# From items to parts. A part is `(value, axis, position of the item)`, its value one of
#   a list of (start, count, step)   for the axes of a slice or of `...`;
#   an int                           in range, not negative (None: an integer not known yet);
#   an int64 array, or an Unknown    indices that are in range, not negative; a mask is already the array of the places
#                                    where it holds, counted along its axes, with the last of them as the part's axis
#                                    (a 0-d mask has none: its places are all 0, and any axis will do).

_ARRAYS = (np.ndarray, Unknown)


def _resolve(shape, items):
    """The parts of a subscript, every item checked against its axes."""
    items = [_plain(item, position) for position, item in enumerate(items)]
    takes = [_axes_taken(item) for item in items]
    missing = _missing_axes(shape, items, takes)
    parts: list[tuple] = []
    axis = 0
    for position, item in enumerate(items):
        taken = takes[position]
        if item is Ellipsis:
            taken = missing
            parts.append(([(0, length, 1) for length in shape[axis : axis + taken]], axis, position))
        elif type(item) is slice:
            parts.append(([_progression(item, shape[axis], position)], axis, position))
        elif type(item) is int:
            parts.append((_entry(item, shape[axis], axis, position), axis, position))
        elif _is_mask(item):
            parts.append((_holding(item, shape, axis, position), axis + taken - 1, position))
        elif type(item) is Unknown:
            parts.append((item if item.shape else None, axis, position))
        else:
            parts.append((_entries(item, shape[axis], axis, position), axis, position))
        axis += taken
    if axis < len(shape):
        parts.append(([(0, length, 1) for length in shape[axis:]], axis, None))
    return parts


def _plain(item, position):
    """The item, of one of the types `int`, `slice`, `ellipsis`, `ndarray`, `Unknown`."""
    kind = type(item)
    if kind is int or kind is slice or item is Ellipsis:
        return item
    if isinstance(item, (bool, np.ndarray, np.generic)):
        item = np.asarray(item)
        if item.dtype.kind in "iu":
            return item if item.ndim else int(item)  # NumPy, too, takes a 0-d integer array for an integer
        if item.dtype.kind == "b":
            return item
        found = str(item.dtype)
    elif kind is Unknown:
        found = str(item.dtype)
        if found == "bool" or found.startswith(("int", "uint")):
            return item
    elif isinstance(item, int):
        return int(item)
    else:
        found = kind.__name__
    message = f"an index is an integer, a slice, '...', an array of integers or a boolean mask, not {found}"
    notes = ['cast(x, "int32") makes integers of it'] if "float" in found else []
    raise SubscriptError(message, notes=notes, argument=position)


def _is_mask(item):
    return item.dtype == bool if type(item) is np.ndarray else str(item.dtype) == "bool"


def _axes_taken(item):
    if item is Ellipsis:
        return 0
    return len(item.shape) if type(item) in _ARRAYS and _is_mask(item) else 1


def _missing_axes(shape, items, takes):
    """How many axes `...` stands for; raises where there are too many items."""
    used, found = 0, False
    for position, item in enumerate(items):
        if item is Ellipsis:
            if found:
                raise SubscriptError("an index holds at most one '...'", argument=position)
            found = True
        used += takes[position]
        if used > len(shape):
            notes = [f"the index takes {_count(sum(takes), 'axis', 'axes')}, the tensor has {len(shape)}"]
            raise SubscriptError(f"too many indices for shape {tuple(shape)}", notes=notes, argument=position)
    return len(shape) - used


def _progression(item, length, position):
    """Start, count and step of a slice, in the normal form of `Region`."""
    try:
        start, stop, step = item.indices(0 if length is None else length)
    except ValueError:
        raise SubscriptError("a slice's step cannot be 0", argument=position) from None
    except TypeError:
        raise SubscriptError("a slice's start, stop and step are integers", argument=position) from None
    if length is None:
        return 0, None, 1
    count = len(range(start, stop, step))
    if count > 1:
        return start, count, step
    return (start, 1, 1) if count else (0, 0, 1)


def _entry(index, length, axis, position):
    """The index, from the start of its axis."""
    if length is None:
        return None
    if not -length <= index < length:
        raise _out_of_range(index, length, axis, position)
    return index + length if index < 0 else index


def _entries(indices, length, axis, position):
    """The indices as int64, from the start of their axis."""
    if length is None:
        return Unknown(indices.shape, "int64")
    if not indices.size:
        return indices.astype(np.int64)
    low, high = int(indices.min()), int(indices.max())
    if low < -length or high >= length:
        wide = indices if indices.dtype == np.uint64 else indices.astype(np.int64)
        place = np.argwhere((wide >= length) | (wide < -length))[0]
        notes = [f"it is the entry {place.tolist()} of the index array"]
        raise _out_of_range(int(indices[tuple(place)]), length, axis, position, notes)
    indices = indices.astype(np.int64, copy=False)
    return np.where(indices < 0, indices + length, indices) if low < 0 else indices


def _out_of_range(index, length, axis, position, notes=()):
    shown = str(index) if index.bit_length() <= 128 else "of more than 128 bits"
    message = f"index {shown} is out of range for axis {axis} with {_count(length, 'entry', 'entries')}"
    right = f"axis {axis} takes indices from {-length} to {length - 1}" if length else f"axis {axis} is empty"
    return SubscriptError(message, notes=[*notes, right], argument=position)


def _holding(mask, shape, axis, position):
    """Where the mask holds, as offsets into the axes that it stands for, in C order."""
    covered = tuple(shape[axis : axis + len(mask.shape)])
    if any(None not in pair and pair[0] != pair[1] for pair in zip(mask.shape, covered, strict=True)):
        last = axis + len(covered) - 1
        if len(covered) == 1:
            where = f"axis {axis} with {_count(covered[0], 'entry', 'entries')}"
        else:
            where = f"axes {axis} to {last} of shape {covered}"
        notes = ["a mask has the shape of the axes that it stands for"]
        raise SubscriptError(f"mask of shape {mask.shape} does not fit {where}", notes=notes, argument=position)
    return Unknown((None,), "int64") if type(mask) is Unknown else np.flatnonzero(mask)


# From parts to a selection.


def _region(shape, parts):
    starts, counts, steps, dropped = [], [], [], []
    for value, axis, _ in parts:
        if type(value) is int:
            dropped.append(axis)
            value = [(value, 1, 1)]
        for start, count, step in value:
            starts.append(start)
            counts.append(count)
            steps.append(step)
    if dropped and len(dropped) == len(shape):
        return Point(tuple(starts))
    full = not dropped and counts == list(shape) and steps.count(1) == len(steps)
    return Region(tuple(starts), tuple(counts), tuple(steps), tuple(dropped), full)


def _grid(shape, items):
    grid, indices = layout(shape, items)
    if any(value is None or type(value) is Unknown for _, value, _ in indices):
        return None
    if None not in grid.items:
        return grid
    if any(shape[axis] is None for axis, item in enumerate(grid.items) if item is None):
        return None  # a mask that covers an axis of unknown length
    offsets = sum(value * grid.stride(axis, shape) for axis, value, _ in indices)
    return replace(grid, flat=np.broadcast_to(offsets, grid.block).reshape(-1))


def _shape(parts):
    """The shape of basic indexing."""
    return tuple(count for value, _, _ in parts if type(value) is list for _, count, _ in value)


def _whole_axes(parts, items):
    """The axes that slices and `...` take, and the slice of each."""
    taken = {}
    for value, axis, position in parts:
        if type(value) is list:
            item = slice(None) if position is None or items[position] is Ellipsis else items[position]
            taken.update((axis + i, item) for i in range(len(value)))
    return taken


def _positions(shape, parts):
    before, after, result = _arrange(parts)
    _bound(shape, result, parts)
    if not math.prod(result):
        return Positions(np.empty(0, np.int64), result)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))] + [0]  # the last: of a 0-d tensor's masks
    offsets = sum(value * strides[axis] for value, axis, _ in parts if type(value) is not list)
    dimensions = [_offsets(dimension, strides) for dimension in before]
    dimensions.append(offsets.reshape(-1))
    dimensions += [_offsets(dimension, strides) for dimension in after]
    return Positions(reduce(lambda flat, more: np.add.outer(flat, more).reshape(-1), dimensions), result)


def _offsets(dimension, strides):
    axis, count, start, step = dimension
    return np.arange(count, dtype=np.int64) * (step * strides[axis]) + start * strides[axis]


def _arrange(parts):
    """What stands before and after the block of dimensions that the index arrays make together, and the whole's shape.

    Integers beside arrays belong to the block. It stands where the first of them was, or in front where a slice or
    `...` divides them. Before and after are lists of `(axis, count, start, step)`.
    """
    block = _block(parts)
    members = [place for place, (value, _, _) in enumerate(parts) if type(value) is not list]
    divided = members[-1] - members[0] + 1 > len(members)
    first = 0 if divided else members[0]
    sides: tuple[list, list] = ([], [])
    for place, (value, axis, _) in enumerate(parts):
        if type(value) is list:
            dimensions = [(axis + i, count, start, step) for i, (start, count, step) in enumerate(value)]
            sides[place >= first].extend(dimensions)
    before, after = sides
    shape = (*(count for _, count, *_ in before), *block, *(count for _, count, *_ in after))
    return before, after, shape


def _block(parts):
    """The shape that the index arrays broadcast to."""
    arrays = [(value, position) for value, _, position in parts if type(value) in _ARRAYS]
    try:
        return broadcast([value.shape for value, _ in arrays])
    except ShapeError as error:
        message = error.message.replace("shapes", "index arrays of shapes", 1)
        notes = ["a mask counts as an array of as many entries as it selects"]
        raise SubscriptError(message, notes=notes, argument=arrays[error.argument][1]) from None


def _bound(shape, result, parts):
    """Refuses, before anything is allocated, a selection whose offsets would not fit or that repeats without bound."""
    position = next(position for value, _, position in parts if type(value) in _ARRAYS)
    if len(result) > MAX_AXES:
        raise LimitError(f"the selection has {len(result)} axes, more than {MAX_AXES}", argument=position)
    if None in shape or None in result:
        return
    if math.prod(max(1, length) for length in shape) > MAX_OFFSET:
        raise LimitError(f"a tensor of shape {tuple(shape)} is too large for an index array", argument=position)
    size, most = math.prod(result), min(MAX_OFFSET, max(MAX_REPEATED, 4 * math.prod(shape)))
    if size > most:
        raise LimitError(f"the index selects {size:,} entries, more than {most:,}", argument=position)


# Shapes.


def _merge(a, b):
    """The shape that two shapes broadcast to, or `None`."""
    if len(a) < len(b):
        a, b = b, a
    surplus = len(a) - len(b)
    merged = list(a[:surplus])
    for m, n in zip(a[surplus:], b, strict=True):
        if m == n or n == 1:
            merged.append(m)
        elif m == 1 or m is None:
            merged.append(n)
        elif n is None:
            merged.append(m)
        else:
            return None
    return tuple(merged)


def _why_unfit(value_shape, selection_shape):
    surplus = max(0, len(value_shape) - len(selection_shape))
    if any(length not in (1, None) for length in value_shape[:surplus]):
        return [f"the value has {_count(surplus, 'axis', 'axes')} too many; only leading axes of length 1 are dropped"]
    for back in range(1, len(value_shape) - surplus + 1):
        length, target = value_shape[-back], selection_shape[-back]
        if length not in (1, None, target) and target is not None:
            axis = len(selection_shape) - back
            right = f"{target} or 1" if target != 1 else "1"
            return [f"axis {axis} of the selection has length {target}: the value's must be {right}, not {length}"]
    raise AssertionError("the value fits")


# Overlap.


def _progressions(selection):
    if type(selection) is Point:
        return [(index, 1, 1) for index in selection.index]
    return list(zip(selection.starts, selection.counts, selection.steps, strict=True))


def _meet(start, count, step, other_start, other_count, other_step):
    """Whether two arithmetic progressions, neither empty, have a term in common."""
    low, high, step = _ascending(start, count, step)
    other_low, other_high, other_step = _ascending(other_start, other_count, other_step)
    common = math.gcd(step, other_step)
    rounds, remainder = divmod(other_low - low, common)
    if remainder:
        return False
    period = other_step // common  # Chinese remainder theorem: the first term of the one that lies on the other's grid
    first = low + step * (rounds * pow(step // common, -1, period) % period)
    least, cycle = max(low, other_low), step * period
    first += -((first - least) // cycle) * cycle  # the first such term that is not below `least`
    return first <= min(high, other_high)


def _ascending(start, count, step):
    end = start + (count - 1) * step
    return (start, end, step) if step > 0 else (end, start, -step)


def _region_holds(progressions, positions, shape):
    """Whether any of the positions lies in the region."""
    inside = np.ones(len(positions.flat), bool)
    for indices, progression in zip(positions.coordinates(shape), progressions, strict=True):
        low, high, step = _ascending(*progression)
        inside &= (indices >= low) & (indices <= high)
        if step > 1:
            inside &= (indices - low) % step == 0
    return bool(inside.any())


def _mask_overlaps(mask, other):
    array = np.asarray(mask.mask)
    if isinstance(other, Mask):
        array = array & np.asarray(other.mask)
    elif isinstance(other, Positions):
        array = array.reshape(-1)[other.flat]
    else:
        array = array[other.index if isinstance(other, Point) else other.slices]
    return bool(array.any())


def _common(a, b):
    """Whether two arrays of offsets, neither empty, share one."""
    few, many = (a, b) if len(a) < len(b) else (b, a)
    few = np.sort(few)
    places = np.searchsorted(few, many)
    return bool((few[np.minimum(places, len(few) - 1)] == many).any())


def _slice(start, count, step):
    stop = start + count * step
    return slice(start, stop if stop >= 0 else None, step)


def _count(number, singular, plural):
    return f"{number} {singular if number == 1 else plural}"
