"""Reads and writes entries of a tensor axis by axis; lengths can be unknown until a compiled function runs.

* A read is a slice and one `take`.
* A write of slices copies the tensor and writes into the copy.
* A write with steps or index arrays is one `where` between the tensor and the values, expanded to its axes. The mask is
  a small constant vector for each partly selected axis, so that compilers fuse it.

The gradient of overwritten entries is exactly zero.

Index arrays can be tensors of a graph. If indices repeat, a maximum over segments finds the last of each: unlike a
scatter of values, it has the same result on every backend. An index out of range reads 0 and writes nothing; neither
has a gradient.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from kpatch import backends, indexing
from kpatch.errors import SubscriptError
from kpatch.indexing import GraphEntry, Unknown, last_wins
from kpatch.values import slices, symbols, widths
from kpatch.values.dtypes import dtype_name


class Span:
    """The entries of an axis that a slice or an integer selects. `start`, `count`, `length` can be graph tensors.

    Attributes:
        whole: all entries are selected, in order.
        static: the numbers are known.
        exists: for an `GraphEntry`, its `exists`; else `None`.
    """

    __slots__ = ("count", "exists", "item", "length", "start", "static", "step", "whole")

    def __init__(self, item, length):
        self.item = item
        self.length = length
        self.static = isinstance(length, int)
        self.step = item.step if type(item) is slice and item.step is not None else 1
        self.whole = item == slice(None)
        self.exists = None
        if type(item) is int:
            self.start, self.count = item if item >= 0 else item + length, 1
        elif type(item) is GraphEntry:
            self.start, self.count, self.exists = item.index, 1, item.exists
        elif self.static:
            found = range(*item.indices(length))
            self.start, self.count, self.step = found.start, len(found), found.step
            self.whole = found == range(length)
        elif self.whole:
            self.start, self.count = 0, length
        else:
            self._measure(item)

    def _measure(self, item):
        """The slice's start and count in the graph, by the rules of `slice.indices`."""
        ops = backends.current().ops
        forward = self.step > 0
        length = ops.zeros((), "int32") + self.length  # in torch, Keras would convert a symbol to a constant
        low, high = (0, length) if forward else (-1, length - 1)

        def bound(given, default):
            if given is None:
                return default
            return ops.clip(ops.convert_to_tensor(given, "int32") + (length if given < 0 else 0), low, high)

        self.start = bound(item.start, low if forward else high)
        stop = bound(item.stop, high if forward else low)
        reach = stop - self.start if forward else self.start - stop
        self.count = ops.maximum((reach + abs(self.step) - 1) // abs(self.step), 0)

    def places(self):
        """For each entry of the axis, its position in the span, and whether it is in the span."""
        if self.static:
            offset = np.arange(self.length) - self.start
            place, on = offset // self.step, offset % self.step == 0
            return np.clip(place, 0, max(self.count - 1, 0)), on & (place >= 0) & (place < self.count)
        ops = backends.current().ops
        offset = ops.arange(self.length, dtype="int32") - self.start
        place, on = offset // self.step, offset % self.step == 0
        count = ops.cast(self.count, "int32")
        held = ops.logical_and(on, ops.logical_and(place >= 0, place < count))
        if self.exists is not None:
            held = ops.logical_and(held, self.exists)
        return ops.clip(place, 0, count), held


def layout(tensor, items, tensors, proved):
    """The grid of items in a tensor of a graph, and the checks left for when the graph runs.

    Args:
        tensors: the items that are integer tensors, `{position: tensor}`.
        proved: the positions of those that are proved to be in range.

    Returns:
        The `Grid`, and for each unproved item a boolean tensor, `{position: in range}`.

    Raises:
        SubscriptError: an index is known to be out of range; `argument` is the item's position.
    """
    known = [_stand_in(tensors[at]) if at in tensors else item for at, item in enumerate(items)]
    grid, indices = indexing.layout(symbols.lengths(tensor.shape), known)
    lengths = _lengths(tensor)
    placed, checks = {}, {}
    for axis, value, position in indices:
        item, exists = tensors.get(position, items[position]), None
        if value is None and type(item) is int:
            value, exists = _integer(item, lengths[axis], axis, position)
        elif value is None or type(value) is Unknown:
            value, exists = _array(item, lengths[axis], position in proved)
        elif covered := _mask_axes(item):
            exists = _same(item.shape, lengths[axis + 1 - covered : axis + 1])
        placed[axis] = value, exists
        if exists is not None:
            checks[position] = exists
    if None in grid.items:
        return _with_offsets(grid, placed, lengths), checks
    items = list(grid.items)
    for axis, (value, exists) in placed.items():
        items[axis] = value if exists is None else GraphEntry(value, exists)
    return dataclasses.replace(grid, items=tuple(items)), checks


def _stand_in(index):
    return Unknown(symbols.lengths(index.shape), "int32")


def _mask_axes(item):
    return item.ndim if isinstance(item, np.ndarray) and item.dtype == bool else 0


def _lengths(tensor):
    """The lengths of a tensor's axes; an unknown length is a tensor of the graph."""
    if None not in tensor.shape:
        return tensor.shape
    ops = backends.current().ops
    return ops.shape(tensor)


def _in_graph(length):
    ops = backends.current().ops
    return ops.zeros((), "int32") + length  # in torch, Keras would convert a symbol to a constant


def _integer(index, length, axis, position):
    """An integer index, and whether it is in range: a boolean tensor, or `None` if it certainly is."""
    inside = backends.current().holds(lambda: -length <= index < length)
    if inside is None:
        return _array(index, length, False)
    if not inside:
        message = f"index {index} is out of range for axis {axis} with {length} entries"
        raise SubscriptError(message, argument=position)
    return index, None


def _array(index, length, proved):
    """Indices as non-negative int32, and which were in range (`None` if proved); the others are replaced by 0."""
    ops = backends.current().ops
    given = ops.convert_to_tensor(index)
    index, length = ops.cast(given, "int32"), _in_graph(length)
    placed = ops.where(index < 0, index + length, index)
    if proved:
        return placed, None
    exists = ops.logical_and(placed >= 0, placed < length)
    dtype = dtype_name(given.dtype)
    if dtype in ("int64", "uint32", "uint64"):
        kept = ops.cast(index, dtype) == given
        exists = ops.logical_and(exists, kept if dtype == "int64" else ops.logical_and(kept, index >= 0))
    return ops.where(exists, placed, 0), exists


def _offsets(index, length):
    """The index as a non-negative tensor."""
    ops = backends.current().ops
    if isinstance(index, int):
        return _in_graph(index if index >= 0 else index + length)
    return ops.convert_to_tensor(index, "int32") if isinstance(index, np.ndarray) else index


def _same(shape, lengths):
    """Whether the axes have the lengths of a mask: a boolean tensor, or `None` if they certainly have."""
    ops = backends.current().ops
    unknown = [_in_graph(b) == a for a, b in zip(shape, lengths, strict=True) if not isinstance(b, int)]
    return ops.all(ops.stack(unknown)) if unknown else None


def _with_offsets(grid, placed, lengths):
    """The grid with the offsets of its block, and which of them are in range."""
    ops = backends.current().ops
    flat = sum(_offsets(value, lengths[axis]) * grid.stride(axis, lengths) for axis, (value, _) in placed.items())
    block = ops.shape(flat) if None in grid.block else grid.block
    every = [exists for _, exists in placed.values() if exists is not None]
    exists = ops.reshape(ops.broadcast_to(_all(every), block), (-1,)) if every else None
    return dataclasses.replace(grid, flat=ops.reshape(flat, (-1,)), block=tuple(block), exists=exists)


def take(tensor, grid):
    """The entries of the grid as a tensor of shape `grid.shape`; 0 for an index out of range."""
    ops = backends.current().ops
    taken, exists = _taken(tensor, grid), existing(grid)
    return taken if exists is None else backends.current().where(exists, taken, ops.zeros((), taken.dtype))


def _taken(tensor, grid):
    """`take`, with an arbitrary entry for an index out of range."""
    ops = backends.current().ops
    spans = _spans(tensor, grid)
    index: list[Any] = []
    backward = []
    for axis, span in spans.items():
        if span is None:
            index.append(slice(None))
        elif type(span.item) is not slice:
            index.append(span.start if span.static or span.exists is not None else span.item)
        elif span.static and span.step < 0:  # torch has no negative steps
            first = span.start + span.step * (span.count - 1)
            index.append(slice(first, span.start + 1, -span.step) if span.count else slice(0, 0))
            backward.append(axis - sum(type(item) is not slice for item in index))
        else:
            index.append(span.item)
    if any(type(item) is not slice or item != slice(None) for item in index):
        tensor = tensor[tuple(index)]
    if backward:
        tensor = ops.flip(tensor, axis=tuple(backward))
    return tensor if grid.flat is None else _take_block(tensor, grid)


def existing(grid):
    """Which of the grid's indices are in range, a tensor that broadcasts to its shape; `None` if all are."""
    if grid.exists is not None:
        ops = backends.current().ops
        after = len(grid.shape) - grid.place - len(grid.block)
        return ops.reshape(grid.exists, (*grid.block, *[1] * after))
    found = [item.exists for item in grid.items if type(item) is GraphEntry]
    return _all(found) if found else None


def _take_block(tensor, grid):
    ops = backends.current().ops
    axes, others = _block_axes(grid)
    flat = ops.reshape(grid.flat, grid.block)
    if axes == [grid.place]:
        return ops.take(tensor, flat, axis=grid.place)
    lengths = ops.shape(tensor)
    rest = [lengths[axis] for axis in others]
    rows = ops.reshape(ops.transpose(tensor, (*axes, *others)), (math.prod(lengths[axis] for axis in axes), *rest))
    taken = ops.take(rows, flat, axis=0)
    made = range(len(grid.block))
    if not grid.block:
        return taken
    return backends.current().move_axes(taken, tuple(made), tuple(grid.place + i for i in made))


def replace(tensor, grid, values):
    """A new tensor with the entries of the grid replaced; `values` broadcasts to `grid.shape`."""
    spans = _spans(tensor, grid)
    if slices.fills(spans.values(), values):
        return slices.fill(tensor, spans.values(), values)
    ops = backends.current().ops
    if 0 in grid.shape:
        return ops.copy(tensor)
    values = widths.as_tensor(values)
    values = ops.reshape(values, (*[1] * (len(grid.shape) - len(values.shape)), *ops.shape(values)))
    held = []
    values = _on_axes(values, grid, tensor, held)
    if not held and not all(span.whole for span in spans.values()) and slices.suits(spans.values()):
        return slices.replace(tensor, list(spans.values()), _where_existing(values, grid, tensor))
    for axis, span in spans.items():
        if span is None or span.whole:
            continue
        places, on = span.places()
        held.append(_along(on, axis, len(spans)))
        if values.shape[axis] != 1 and type(span.item) is slice:
            values = _spread(values, axis, span, places)
    if not held:
        return ops.copy(ops.broadcast_to(values, ops.shape(tensor)))
    return backends.current().where(_all(held), values, tensor)


def _spans(tensor, grid):
    """The span of each axis; `None` for the axes of the block."""
    lengths = _lengths(tensor)
    return {axis: None if item is None else Span(item, lengths[axis]) for axis, item in enumerate(grid.items)}


def _where_existing(values, grid, tensor):
    """The values; the tensor's own entry where an index is out of range."""
    exists = existing(grid)
    if exists is None:
        return values
    return backends.current().where(exists, values, _on_axes(_taken(tensor, grid), grid, tensor, []))


def _on_axes(values, grid, tensor, held):
    """The values with one dimension for each axis of the tensor. Appends the block's mask to `held`."""
    ops = backends.current().ops
    if grid.flat is None:
        dropped = tuple(axis for axis, item in enumerate(grid.items) if type(item) is not slice)
        return ops.expand_dims(values, dropped) if dropped else values
    axes, others = _block_axes(grid)
    lengths = ops.shape(tensor)
    sizes = tuple(lengths[axis] for axis in axes)
    last = _last_of_each(grid, math.prod(sizes))
    held.append(_shaped(last >= 0, [1 if axis in others else length for axis, length in enumerate(lengths)]))
    values = _over_block(values, grid, sizes, last)
    order = [*others, *axes]
    return ops.transpose(values, tuple(order.index(axis) for axis in range(len(order))))


def _last_of_each(grid, size):
    """For each entry along the block's axes, the position in `flat` of its last offset, or −1."""
    flat = grid.flat
    if isinstance(flat, np.ndarray):
        places, last = np.full(size, -1, "int32"), last_wins(flat)
        places[flat[last]] = last
        return places
    ops = backends.current().ops
    if grid.exists is not None:
        flat = ops.where(grid.exists, flat, _in_graph(size))  # an extra segment for indices out of range
    if flat.shape[0] == 1:
        return ops.where(ops.arange(size, dtype="int32") == flat, 0, -1)
    places = ops.arange(ops.shape(flat)[0], dtype="int32")
    more = size if grid.exists is None else size + 1
    return backends.current().largest_in_segments(places, flat, more)[:size]


def _over_block(values, grid, sizes, last):
    """The values with the block's dimensions last: one for each of its axes, of length `sizes` or 1.

    Args:
        last: for each entry, the position of its value in the flattened block, or −1.
    """
    ops = backends.current().ops
    after = grid.place + len(grid.block)
    own, lengths = values.shape[grid.place : after], ops.shape(values)
    rest = (*lengths[: grid.place], *lengths[after:])
    if all(length == 1 for length in own):
        return ops.reshape(values, (*rest, *[1] * len(sizes)))
    values = ops.broadcast_to(values, (*lengths[: grid.place], *grid.block, *lengths[after:]))
    made = range(len(grid.block))
    places = tuple(grid.place + i for i in made)
    values = backends.current().move_axes(values, places, tuple(i - len(made) for i in made))
    values = ops.reshape(values, (*rest, math.prod(grid.block)))
    sources = last.clip(0) if isinstance(last, np.ndarray) else ops.maximum(last, 0)
    return ops.reshape(ops.take(values, sources, axis=-1), (*rest, *sizes))


def _spread(values, axis, span, places):
    """The values of a span expanded to the whole axis; the other entries are arbitrary, and masked later."""
    ops = backends.current().ops
    if not span.static:
        return ops.take(ops.pad(values, _padding(values, axis, 0, 1)), places, axis=axis)
    if not span.count:
        return ops.zeros(
            [span.length if a == axis else length for a, length in enumerate(ops.shape(values))], values.dtype
        )
    if abs(span.step) != 1:
        return ops.take(values, places, axis=axis)
    first = span.start if span.step > 0 else span.start - span.count + 1
    values = values if span.step > 0 else ops.flip(values, axis=axis)
    return ops.pad(values, _padding(values, axis, first, span.length - first - span.count))


def _padding(values, axis, before, after):
    return [(before, after) if a == axis else (0, 0) for a in range(len(values.shape))]


def _along(mask, axis, count):
    """The mask of an axis, shaped to broadcast along the other axes."""
    return _shaped(mask, [-1 if a == axis else 1 for a in range(count)])


def _shaped(mask, shape):
    if isinstance(mask, np.ndarray):
        return mask.reshape(shape)
    ops = backends.current().ops
    return ops.reshape(mask, shape)


def _block_axes(grid):
    axes = [axis for axis, item in enumerate(grid.items) if item is None]
    return axes, [axis for axis, item in enumerate(grid.items) if item is not None]


def _all(held):
    """The conjunction of masks, the constant ones last."""
    ops = backends.current().ops
    constant = [mask for mask in held if isinstance(mask, np.ndarray)]
    masks = [mask for mask in held if not isinstance(mask, np.ndarray)] + constant
    result = masks[0]
    for mask in masks[1:]:
        result = ops.logical_and(result, mask)
    return result
