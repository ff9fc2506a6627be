"""The kinds of selection, in normal form: checked, without negative indices and `...`."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Unknown:
    """An index array with unknown values: only its shape (lengths can be `None`) and dtype are known."""

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

    Normal form: `starts` are not negative; an axis of one entry has step 1; an empty axis has start 0 and step 1.
    `dropped` holds the axes that an integer removed, ascending; their count is 1. `full`: the region is the whole
    tensor in its own order and shape.

    Example:
        >>> from kpatch.indexing import select
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
        """The region as an index of slices and integers."""
        axes = zip(self.starts, self.counts, self.steps, strict=True)
        return tuple(
            start if axis in self.dropped else _slice(start, count, step)
            for axis, (start, count, step) in enumerate(axes)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Entries by their offsets: `flat` is int64, 1-d, in C order of `shape`; offsets can repeat."""

    flat: np.ndarray
    shape: tuple

    @property
    def size(self):
        return len(self.flat)

    def coordinates(self, shape):
        """One index array for each axis of a variable of shape `shape`, each as long as `flat`.

        Example:
            >>> from kpatch.indexing import select
            >>> select((3, 4), (np.array([2, 0]), 1)).coordinates((3, 4))
            (array([2, 0]), array([1, 1]))
        """
        if not len(self.flat):
            return tuple(self.flat for _ in shape)
        return tuple(np.unravel_index(self.flat, shape)) if shape else ()


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The true entries of `mask`, a boolean tensor of the variable's shape; values are scalars or of that shape.

    `count` is the number of true entries, or `None` if it was not counted.
    """

    mask: object
    shape: tuple
    count: int | None = None

    @property
    def size(self):
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class GraphEntry:
    """One entry of an axis whose length is known only when the graph runs.

    `index` is a non-negative tensor of the graph, `exists` a boolean one: whether the given index was in range. If it
    was not, `index` is some valid index.
    """

    index: object
    exists: object


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Entries of a tensor with unknown lengths, axis by axis.

    Attributes:
        items: a slice, an integer or an `GraphEntry` for each axis; `None` for an axis with an index array.
        shape: the shape of the result.
        flat: offsets of the index arrays, counted along their axes; a tensor if an index array is one.
        block: the shape to which the index arrays broadcast; its lengths can be tensors if `flat` is one.
        place: the position of the block's dimensions in the result.
        exists: a tensor that tells which offsets are in range, or `None` if all are.

    Example:
        >>> from kpatch.indexing import select
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
        """The stride, in `flat`, of an axis of the block; `lengths` are the tensor's."""
        return math.prod(lengths[later] for later in range(axis + 1, len(lengths)) if self.items[later] is None)


class PackedMask(Mask):
    """A `Mask` kept on the host, packed to one bit an entry."""

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
    """The region of the whole tensor."""
    shape = tuple(shape)
    return Region((0,) * len(shape), shape, (1,) * len(shape), (), True)


def parts(shape, size):
    """Regions that cover a tensor in order, each of at most `size` entries (but at least one).

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


def _slice(start, count, step):
    stop = start + count * step
    return slice(start, stop if stop >= 0 else None, step)
