"""Entries of a tensor axis by axis, also along axes whose length is known only when a compiled function runs.

A read is a slice and one `take`. A write of slices is a copy and a write into it; with steps or index arrays it is one
`where` between the tensor and the values, spread out to its axes. The mask is a small constant vector for each axis
that is not taken whole, so that compilers fuse it. Either way the gradient of what is overwritten is exactly zero.

Index arrays may be tensors of a graph, which are in range: the planner has proved it. Where entries repeat, the last
of each is found by a maximum over segments, which has one result on every backend, as a scatter of values has not.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.errors import SubscriptError
from kpatch.indexing import Unknown, last_wins
from kpatch.tensors import slices, symbols, widths


class Span:
    """Which entries of an axis a slice or an integer takes. `start`, `count` and `length` may be tensors of a graph.

    Attributes:
        whole: all of them, in their order.
        static: the numbers are known.
    """

    __slots__ = ("count", "item", "length", "start", "static", "step", "whole")

    def __init__(self, item, length, axis):
        self.item = item
        self.length = length
        self.static = isinstance(length, int)
        self.step = 1 if type(item) is int or item.step is None else item.step
        self.whole = item == slice(None)
        if type(item) is int:
            self.start, self.count = self._entry(item, axis), 1
        elif self.static:
            found = range(*item.indices(length))
            self.start, self.count, self.step = found.start, len(found), found.step
            self.whole = found == range(length)
        elif self.whole:
            self.start, self.count = 0, length
        else:
            self._measure(item)

    def _entry(self, item, axis):
        from keras import backend

        known = self.static or backend.backend() != "tensorflow"  # symbols of jax and torch can be compared
        if known and not -self.length <= item < self.length:
            raise SubscriptError(f"index {item} is out of range for axis {axis} with {self.length} entries")
        return item + self.length if item < 0 else item

    def _measure(self, item):
        """The slice's start and count in the graph, by the rules of `slice.indices`."""
        from keras import ops

        forward = self.step > 0
        length = ops.zeros((), "int32") + self.length  # of a symbol Keras itself would make a constant in torch
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
        """The axis's entries as places in the span, and which of them are in it."""
        if self.static:
            offset = np.arange(self.length) - self.start
            place, on = offset // self.step, offset % self.step == 0
            return np.clip(place, 0, max(self.count - 1, 0)), on & (place >= 0) & (place < self.count)
        from keras import ops

        offset = ops.arange(self.length, dtype="int32") - self.start
        place, on = offset // self.step, offset % self.step == 0
        count = ops.cast(self.count, "int32")
        held = ops.logical_and(on, ops.logical_and(place >= 0, place < count))
        return ops.clip(place, 0, count), held


def layout(tensor, items, tensors):
    """The grid that items make; `tensors` are those of them that are tensors of integers in range, by position."""
    from keras import ops

    stand_ins = {position: Unknown(tuple(index.shape), "int32") for position, index in tensors.items()}
    known = [stand_ins.get(position, item) for position, item in enumerate(items)]
    grid, members = indexing.layout(symbols.lengths(tensor.shape), known)
    lengths = ops.shape(tensor)
    flat = sum(
        _from_start(tensors.get(position, value), lengths[axis]) * grid.stride(axis, lengths)
        for axis, value, position in members
    )
    block = ops.shape(flat) if None in grid.block else grid.block
    return dataclasses.replace(grid, flat=ops.reshape(flat, (-1,)), block=tuple(block))


def _from_start(index, length):
    """The index as a tensor of int32, no entry negative."""
    from keras import ops

    index = ops.cast(index, "int32")
    return ops.where(index < 0, index + length, index)


def take(tensor, grid):
    """The entries of the grid, as a tensor of the shape that they make."""
    from keras import ops

    spans = _spans(tensor, grid)
    index: list[Any] = []
    backward = []
    for axis, span in spans.items():
        if span is None:
            index.append(slice(None))
        elif type(span.item) is int:
            index.append(span.start if span.static else span.item)
        elif span.static and span.step < 0:  # torch has no negative steps
            first = span.start + span.step * (span.count - 1)
            index.append(slice(first, span.start + 1, -span.step) if span.count else slice(0, 0))
            backward.append(axis - sum(type(item) is int for item in index))
        else:
            index.append(span.item)
    if any(item != slice(None) for item in index):
        tensor = tensor[tuple(index)]
    if backward:
        tensor = ops.flip(tensor, axis=tuple(backward))
    return tensor if grid.flat is None else _take_block(tensor, grid)


def _take_block(tensor, grid):
    from keras import ops

    axes, others = _block_axes(grid)
    flat = ops.reshape(grid.flat, grid.block)
    if axes == [grid.place]:
        return ops.take(tensor, flat, axis=grid.place)
    lengths = ops.shape(tensor)
    rest = [lengths[axis] for axis in others]
    rows = ops.reshape(ops.transpose(tensor, (*axes, *others)), (math.prod(lengths[axis] for axis in axes), *rest))
    taken = ops.take(rows, flat, axis=0)
    made = range(len(grid.block))
    return ops.moveaxis(taken, tuple(made), tuple(grid.place + i for i in made)) if grid.block else taken


def replace(tensor, grid, values):
    """A new tensor with the entries of the grid replaced; `values` broadcasts to them."""
    spans = _spans(tensor, grid)
    if slices.fills(spans.values(), values):
        return slices.fill(tensor, spans.values(), values)
    from keras import ops

    if 0 in grid.shape:
        return ops.copy(tensor)
    values = widths.as_tensor(values)
    values = ops.reshape(values, (*[1] * (len(grid.shape) - len(values.shape)), *ops.shape(values)))
    held = []
    values = _on_axes(values, grid, tensor, held)
    if not held and not all(span.whole for span in spans.values()) and slices.suits(spans.values()):
        return slices.replace(tensor, list(spans.values()), values)
    for axis, span in spans.items():
        if span is None or span.whole:
            continue
        places, on = span.places()
        held.append(_along(on, axis, len(spans)))
        if values.shape[axis] != 1 and type(span.item) is not int:
            values = _spread(values, axis, span, places)
    if not held:
        return ops.copy(ops.broadcast_to(values, ops.shape(tensor)))
    return widths.where(_all(held), values, tensor)


def _spans(tensor, grid):
    """The span of each axis; `None` for those of the block."""
    lengths = tensor.shape
    if None in lengths:
        from keras import ops

        lengths = ops.shape(tensor)
    return {axis: None if item is None else Span(item, lengths[axis], axis) for axis, item in enumerate(grid.items)}


def _on_axes(values, grid, tensor, held):
    """The values with one dimension for each axis of the tensor; the block's mask joins those `held`."""
    from keras import ops

    if grid.flat is None:
        dropped = tuple(axis for axis, item in enumerate(grid.items) if type(item) is int)
        return ops.expand_dims(values, dropped) if dropped else values
    axes, others = _block_axes(grid)
    lengths = ops.shape(tensor)
    sizes = tuple(lengths[axis] for axis in axes)
    last = _last_of_each(grid.flat, math.prod(sizes))
    held.append(_shaped(last >= 0, [1 if axis in others else length for axis, length in enumerate(lengths)]))
    values = _over_block(values, grid, sizes, last)
    order = [*others, *axes]
    return ops.transpose(values, tuple(order.index(axis) for axis in range(len(order))))


def _last_of_each(flat, size):
    """For each entry of a block, the place in `flat` of the last offset that means it, or −1."""
    if isinstance(flat, np.ndarray):
        places, last = np.full(size, -1, "int32"), last_wins(flat)
        places[flat[last]] = last
        return places
    from keras import backend, ops

    if flat.shape[0] == 1:
        return ops.where(ops.arange(size, dtype="int32") == flat, 0, -1)
    places = ops.arange(ops.shape(flat)[0], dtype="int32")
    if backend.backend() == "torch":  # where Keras takes the maximum in float32
        empty = flat.new_full((size,), -1, dtype=places.dtype)
        return empty.scatter_reduce(0, flat.long(), places, "amax")
    return ops.segment_max(places, flat, num_segments=size)


def _over_block(values, grid, sizes, last):
    """The values with the block's dimensions last, one for each of its axes, of these sizes or of 1.

    Args:
        last: where among the block's dimensions, in one row, the value of each entry is, or −1.
    """
    from keras import ops

    after = grid.place + len(grid.block)
    own, lengths = values.shape[grid.place : after], ops.shape(values)
    rest = (*lengths[: grid.place], *lengths[after:])
    if all(length == 1 for length in own):
        return ops.reshape(values, (*rest, *[1] * len(sizes)))
    values = ops.broadcast_to(values, (*lengths[: grid.place], *grid.block, *lengths[after:]))
    made = range(len(grid.block))
    values = ops.moveaxis(values, tuple(grid.place + i for i in made), tuple(i - len(made) for i in made))
    values = ops.reshape(values, (*rest, math.prod(grid.block)))
    sources = last.clip(0) if isinstance(last, np.ndarray) else ops.maximum(last, 0)
    return ops.reshape(ops.take(values, sources, axis=-1), (*rest, *sizes))


def _spread(values, axis, span, places):
    """The values of a span at the places of the whole axis; what stands elsewhere is masked."""
    from keras import ops

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
    """The mask of an axis, beside the other axes."""
    return _shaped(mask, [-1 if a == axis else 1 for a in range(count)])


def _shaped(mask, shape):
    if isinstance(mask, np.ndarray):
        return mask.reshape(shape)
    from keras import ops

    return ops.reshape(mask, shape)


def _block_axes(grid):
    axes = [axis for axis, item in enumerate(grid.items) if item is None]
    return axes, [axis for axis, item in enumerate(grid.items) if item is not None]


def _all(held):
    """The conjunction of masks; those that are constants are combined beforehand."""
    from keras import ops

    constant = [mask for mask in held if isinstance(mask, np.ndarray)]
    masks = [mask for mask in held if not isinstance(mask, np.ndarray)] + constant
    result = masks[0]
    for mask in masks[1:]:
        result = ops.logical_and(result, mask)
    return result
