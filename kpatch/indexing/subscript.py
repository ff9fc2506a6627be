"""Index items to a selection, by NumPy's rules, on shapes alone.

`infer` gives only the shape of the result; index values and lengths can be unknown.
"""

import math
from dataclasses import replace
from functools import reduce

import numpy as np

from kpatch.errors import LimitError, ShapeError, SubscriptError
from kpatch.indexing.broadcasting import broadcast, counted
from kpatch.indexing.kinds import Grid, Point, Positions, Region, Unknown, whole

MAX_AXES = 64  # axes of a selection; NumPy's limit
MAX_OFFSET = 2**62  # flat offsets stay well inside int64
MAX_REPEATED = 2**28  # entries that repeated indices can always select; a larger tensor allows four times its size


def select(shape, items):
    """The selection of `items` (a tuple) in a tensor of shape `shape` (a tuple).

    It is `None` if an integer or an index array indexes an axis of unknown length; use `layout` for these.

    Raises:
        SubscriptError: an item does not fit; `argument` is its position.
        LimitError: repeated indices select far more entries than the tensor has.

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
    if len(items) == len(shape):  # the most common case: one integer an axis
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
    """The shape of the entries that `items` select, with `None` for unknown lengths.

    Items can be `Unknown`, lengths of the tensor `None`. All checks that need no unknown value are made.

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
    """The `Grid` of the items without the offsets of index arrays, and its indices.

    An index is `(axis, value, position of the item)`, one for each integer and index array. The value is checked and
    not negative. If the item is unknown or its axis has an unknown length, the value is `None` for an integer and an
    `Unknown` for an array.

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


# From items to parts. A part is `(value, axis, position of the item)`. Its value is one of
#   a list of (start, count, step)   for the axes of a slice or of `...`;
#   an int                           in range, not negative; None if the integer is unknown;
#   an int64 array, or an Unknown    indices in range, not negative. A mask is converted to the offsets of its true
#                                    entries, counted along its axes; the last of these axes is the part's axis
#                                    (a 0-d mask has no axis: its offsets are 0, which fits any axis).

_ARRAYS = (np.ndarray, Unknown)


def _resolve(shape, items):
    """The parts of a subscript; every item is checked against its axes."""
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
            parts.append((_mask_offsets(item, shape, axis, position), axis + taken - 1, position))
        elif type(item) is Unknown:
            parts.append((item if item.shape else None, axis, position))
        else:
            parts.append((_entries(item, shape[axis], axis, position), axis, position))
        axis += taken
    if axis < len(shape):
        parts.append(([(0, length, 1) for length in shape[axis:]], axis, None))
    return parts


def _plain(item, position):
    """The item as an `int`, a `slice`, `...`, an `ndarray` or an `Unknown`."""
    kind = type(item)
    if kind is int or kind is slice or item is Ellipsis:
        return item
    if isinstance(item, (bool, np.ndarray, np.generic)):
        item = np.asarray(item)
        if item.dtype.kind in "iu":
            return item if item.ndim else int(item)  # a 0-d integer array is an integer, as in NumPy
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
    notes = ['cast(x, "int32") converts it to integers'] if "float" in found else []
    raise SubscriptError(message, notes=notes, argument=position)


def _is_mask(item):
    return item.dtype == bool if type(item) is np.ndarray else str(item.dtype) == "bool"


def _axes_taken(item):
    if item is Ellipsis:
        return 0
    return len(item.shape) if type(item) in _ARRAYS and _is_mask(item) else 1


def _missing_axes(shape, items, takes):
    """The number of axes that `...` covers; raises if there are too many items."""
    used, found = 0, False
    for position, item in enumerate(items):
        if item is Ellipsis:
            if found:
                raise SubscriptError("an index holds at most one '...'", argument=position)
            found = True
        used += takes[position]
        if used > len(shape):
            notes = [f"the index takes {counted(sum(takes), 'axis', 'axes')}, the tensor has {len(shape)}"]
            raise SubscriptError(f"too many indices for shape {tuple(shape)}", notes=notes, argument=position)
    return len(shape) - used


def _progression(item, length, position):
    """Start, count and step of a slice in the normal form of `Region`."""
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
    """The index, made non-negative; `None` if the length is unknown."""
    if length is None:
        return None
    if not -length <= index < length:
        raise _out_of_range(index, length, axis, position)
    return index + length if index < 0 else index


def _entries(indices, length, axis, position):
    """The indices as int64, made non-negative; an `Unknown` if the length is unknown."""
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
    message = f"index {shown} is out of range for axis {axis} with {counted(length, 'entry', 'entries')}"
    right = f"axis {axis} takes indices from {-length} to {length - 1}" if length else f"axis {axis} is empty"
    return SubscriptError(message, notes=[*notes, right], argument=position)


def _mask_offsets(mask, shape, axis, position):
    """The offsets of the mask's true entries, along the axes that it covers, in C order."""
    covered = tuple(shape[axis : axis + len(mask.shape)])
    if any(None not in pair and pair[0] != pair[1] for pair in zip(mask.shape, covered, strict=True)):
        last = axis + len(covered) - 1
        if len(covered) == 1:
            where = f"axis {axis} with {counted(covered[0], 'entry', 'entries')}"
        else:
            where = f"axes {axis} to {last} of shape {covered}"
        notes = ["a mask must have the shape of the axes that it covers"]
        raise SubscriptError(f"mask of shape {mask.shape} does not fit {where}", notes=notes, argument=position)
    return Unknown((None,), "int64") if type(mask) is Unknown else np.flatnonzero(mask)


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
    """The result's shape for basic indexing."""
    return tuple(count for value, _, _ in parts if type(value) is list for _, count, _ in value)


def _whole_axes(parts, items):
    """The axes that slices and `...` cover, with the slice of each."""
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
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))] + [0]  # 0: for masks of a 0-d tensor
    offsets = sum(value * strides[axis] for value, axis, _ in parts if type(value) is not list)
    dimensions = [_offsets(dimension, strides) for dimension in before]
    dimensions.append(offsets.reshape(-1))
    dimensions += [_offsets(dimension, strides) for dimension in after]
    return Positions(reduce(lambda flat, more: np.add.outer(flat, more).reshape(-1), dimensions), result)


def _offsets(dimension, strides):
    axis, count, start, step = dimension
    return np.arange(count, dtype=np.int64) * (step * strides[axis]) + start * strides[axis]


def _arrange(parts):
    """The dimensions before and after the block of the index arrays, and the shape of the result.

    Integers beside arrays belong to the block. The block takes the place of its first index, or comes first if a slice
    or `...` divides its indices. Before and after are lists of `(axis, count, start, step)`.
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
    """The shape to which the index arrays broadcast."""
    arrays = [(value, position) for value, _, position in parts if type(value) in _ARRAYS]
    try:
        return broadcast([value.shape for value, _ in arrays])
    except ShapeError as error:
        message = error.message.replace("shapes", "index arrays of shapes", 1)
        notes = ["a mask counts as an array of as many entries as it selects"]
        raise SubscriptError(message, notes=notes, argument=arrays[error.argument][1]) from None


def _bound(shape, result, parts):
    """Raises, before allocation, if the offsets do not fit int64 or repeated indices select too many entries."""
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
