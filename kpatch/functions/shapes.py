"""Functions of shapes and sizes, and functions that move and join entries."""

import functools

import numpy as np

from kpatch.errors import FunctionError, ShapeError, UnsupportedError
from kpatch.functions import ranges
from kpatch.functions.axes import normal_axes, normal_axis, reduced, size, widens
from kpatch.functions.operands import join, moved
from kpatch.functions.parameters import Axis, Integer, Integers, Lengths, Pairs, Tensor, Tensors
from kpatch.functions.reductions import sum_
from kpatch.functions.registry import Group
from kpatch.values import arithmetic, numerics
from kpatch.values.arithmetic import compute
from kpatch.values.dtypes import Value, literal

SIZES = Group("Sizes")


def _runs_later(x):
    """Whether lengths of `x` stay unknown until the graph runs."""
    return None in x.shape and (x.data is not None or arithmetic.stays_unknown())


@SIZES("the list of the axes' lengths", "shape([[1, 2, 3], [4, 5, 6]]) is [2, 3]")
def shape_(x: Tensor):
    if _runs_later(x):
        return compute("int32", (len(x.shape),), functools.partial(numerics.shape_or_size, "shape"), x)
    data = None if None in x.shape else np.array(x.shape, "int64")
    return Value("int", (len(x.shape),), data, True, True)


@SIZES("the number of axes", "ndim([[1, 2, 3], [4, 5, 6]]) is 2")
def ndim(x: Tensor):
    return literal(len(x.shape))


@SIZES("the number of entries", "size([[1, 2, 3], [4, 5, 6]]) is 6")
def size_(x: Tensor):
    if _runs_later(x):
        return compute("int32", (), functools.partial(numerics.shape_or_size, "size"), x)
    count = size(x.shape)
    return Value("int", (), None, True) if count is None else literal(count)


SHAPE = Group("Shape", bounds=ranges.of_x)


@SHAPE(
    "the entries in another shape; -1 for the length that fits", "reshape([1, 2, 3, 4], [2, -1]) is [[1, 2], [3, 4]]"
)
def reshape(x: Tensor, newshape: Integers):
    new = newshape if isinstance(newshape, tuple) else (newshape,)
    free = [place for place, length in enumerate(new) if length == -1]
    if any(length < -1 for length in new) or len(free) > 1:
        raise ShapeError(f"a shape has lengths and at most one -1: {list(new)}", argument="newshape")
    count = size(x.shape)
    if count is None:
        return moved("reshape", x, tuple(None if length == -1 else length for length in new), new)
    fixed = size([length for length in new if length != -1])
    if (count % fixed if free and fixed else count != fixed) or (free and not fixed):
        raise ShapeError(f"{count} entries of shape {x.shape} do not fill the shape {list(new)}", argument="newshape")
    filled = tuple(count // fixed if length == -1 else length for length in new)
    return moved("reshape", x, filled, filled)


@SHAPE("all entries along one axis", "ravel([[1, 2], [3, 4]]) is [1, 2, 3, 4]")
def ravel(x: Tensor):
    return moved("reshape", x, (size(x.shape),), (-1,))


@SHAPE("the axes reversed, or in the order given", "transpose([[1, 2], [3, 4]]) is [[1, 3], [2, 4]]")
def transpose(x: Tensor, axes: Pairs = None):
    count = len(x.shape)
    order = tuple(reversed(range(count))) if axes is None else normal_axes(_flat(axes), count, "axes")
    if len(order) != count:
        raise ShapeError(f"'axes' names {len(order)} of {count} axes", argument="axes")
    return moved("transpose", x, tuple(x.shape[axis] for axis in order), order)


def _flat(axes):
    """A list of integers; the parameter's kind also allows lists of lists, which are refused here."""
    if isinstance(axes, int):
        return (axes,)
    if any(isinstance(axis, list) for axis in axes):
        raise FunctionError("'axes' is a list of integers here", argument="axes")
    return tuple(axes)


@SHAPE("two axes swapped", "swapaxes([[1, 2, 3]], 0, 1) is [[1], [2], [3]]")
def swapaxes(x: Tensor, axis1: Integer, axis2: Integer):
    a, b = normal_axis(axis1, len(x.shape), "axis1"), normal_axis(axis2, len(x.shape), "axis2")
    new = list(x.shape)
    new[a], new[b] = new[b], new[a]
    return moved("swapaxes", x, tuple(new), a, b)


@SHAPE("axes moved to other positions", "shape(moveaxis(zeros([2, 3, 4]), 0, -1)) is [3, 4, 2]")
def moveaxis(x: Tensor, source: Integers, destination: Integers):
    count = len(x.shape)
    sources, targets = normal_axes(source, count, "source"), normal_axes(destination, count, "destination")
    if len(sources) != len(targets):
        raise ShapeError("'source' and 'destination' must name equally many axes", argument="destination")
    order = [axis for axis in range(count) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return moved("moveaxis", x, tuple(x.shape[axis] for axis in order), sources, targets)


@SHAPE("without axes of length 1", "squeeze([[1, 2]]) is [1, 2]")
def squeeze(x: Tensor, axis: Integers = None):
    if axis is None and None in x.shape:
        raise UnsupportedError("squeeze() with an unknown length needs 'axis'")
    ones = tuple(place for place, length in enumerate(x.shape) if length == 1)
    axes = ones if axis is None else normal_axes(axis, len(x.shape))
    long = next((place for place in axes if x.shape[place] not in (1, None)), None)
    if long is not None:
        raise ShapeError(f"axis {long} has length {x.shape[long]}, not 1", argument="axis")
    return moved("squeeze", x, reduced(x.shape, axes), axes)


@SHAPE("with a new axis of length 1", "expand_dims([1, 2], 0) is [[1, 2]]")
def expand_dims(x: Tensor, axis: Integers):
    count = len(x.shape) + (len(axis) if isinstance(axis, tuple) else 1)
    axes = normal_axes(axis, count)
    lengths = iter(x.shape)
    return moved("expand_dims", x, tuple(1 if place in axes else next(lengths) for place in range(count)), axes)


@SHAPE("repeated to a shape", "broadcast_to([1, 2], [2, 2]) is [[1, 2], [1, 2]]")
def broadcast_to(x: Tensor, shape: Lengths):
    if not widens(x.shape, shape):
        raise ShapeError(f"the shape {x.shape} does not broadcast to {shape}", argument="shape")
    return moved("broadcast_to", x, shape, shape)


def _counts(repeats):
    counts = repeats if isinstance(repeats, tuple) else (repeats,)
    if any(count < 0 for count in counts):
        raise ShapeError("a number of repeats cannot be negative", argument="repeats")
    return counts


@SHAPE("each entry repeated", "repeat([1, 2], 2) is [1, 1, 2, 2]")
def repeat(x: Tensor, repeats: Integers, axis: Axis = None):
    shape, place = ((size(x.shape),), 0) if axis is None else (x.shape, normal_axis(axis, len(x.shape)))
    counts, length = _counts(repeats), shape[place]
    if len(counts) == 1:
        repeats, total = counts[0], None if length is None else length * counts[0]
    elif length is not None and len(counts) != length:
        raise ShapeError(f"{len(counts)} repeats for {length} entries", argument="repeats")
    else:
        total = sum(counts)
    new = (*shape[:place], total, *shape[place + 1 :])
    return moved("repeat", x, new, repeats, axis if axis is None else place)


@SHAPE("the whole tensor repeated", "tile([1, 2], 2) is [1, 2, 1, 2]")
def tile(x: Tensor, repeats: Integers):
    counts = _counts(repeats)
    width = max(len(x.shape), len(counts))
    shape, counts = (1,) * (width - len(x.shape)) + x.shape, (1,) * (width - len(counts)) + counts
    return moved("tile", x, tuple(size(pair) for pair in zip(shape, counts, strict=True)), counts)


@SHAPE("in reverse order", "flip([1, 2, 3]) is [3, 2, 1]")
def flip(x: Tensor, axis: Integers = None):
    return moved("flip", x, x.shape, normal_axes(axis, len(x.shape)))


@SHAPE("entries shifted cyclically", "roll([1, 2, 3], 1) is [3, 1, 2]")
def roll(x: Tensor, shift: Integers, axis: Integers = None):
    shifts = shift if isinstance(shift, tuple) else (shift,)
    if axis is None:
        if len(shifts) != 1:
            raise ShapeError("several shifts need as many axes", argument="shift")
        return moved("roll", x, x.shape, _within(shifts[0], size(x.shape)), None)
    axes = normal_axes(axis, len(x.shape))
    if len(shifts) not in (1, len(axes)) or not shifts:
        raise ShapeError(f"{len(shifts)} shifts for {len(axes)} axes", argument="shift")
    if not axes:
        return moved("roll", x, x.shape, 0, None)
    pairs = zip(shifts * (len(axes) // len(shifts)), axes, strict=True)
    return moved("roll", x, x.shape, tuple(_within(amount, x.shape[place]) for amount, place in pairs), axes)


def _within(shift, length):
    return shift % length if length else 0 if length == 0 else _clamped(shift, 2**31)


def _clamped(number, bound):
    """An integer clamped to the backends' range, which exceeds the length of every axis."""
    return max(-bound, min(number, bound - 1))


# -- triangles and diagonals -------------------------------------------------------------------------------------------


@SHAPE("zeros above a diagonal", "tril([[1, 2], [3, 4]]) is [[1, 0], [3, 4]]", bounds=ranges.of_x_and_zero)
def tril(x: Tensor, k: Integer = 0):
    return _triangle("tril", x, k)


@SHAPE("zeros below a diagonal", "triu([[1, 2], [3, 4]]) is [[1, 2], [0, 4]]", bounds=ranges.of_x_and_zero)
def triu(x: Tensor, k: Integer = 0):
    return _triangle("triu", x, k)


def _triangle(name, x, k):
    _need_matrix(x)
    rows, columns = (2**30 if length is None else length for length in x.shape[-2:])
    return moved(name, x, x.shape, max(-rows, min(k, columns)))


def _need_matrix(x):
    if len(x.shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {x.shape}", argument="x")


@SHAPE("the entries of a diagonal", "diagonal([[1, 2], [3, 4]]) is [1, 4]")
def diagonal(x: Tensor, offset: Integer = 0, axis1: Integer = 0, axis2: Integer = 1):
    _need_matrix(x)
    a, b = normal_axis(axis1, len(x.shape), "axis1"), normal_axis(axis2, len(x.shape), "axis2")
    if a == b:
        raise ShapeError("a diagonal needs two different axes", argument="axis2")
    new = (*reduced(x.shape, (a, b)), _diagonal_length(x.shape[a], x.shape[b], offset))
    return moved("diagonal", x, new, _clamped(offset, 2**30), a, b)


def _diagonal_length(rows, columns, offset):
    if None in (rows, columns):
        return None
    return max(0, min(rows + min(offset, 0), columns - max(offset, 0)))


@SHAPE(
    "the diagonal matrix of a vector, or the diagonal of a matrix",
    "diag([1, 2]) is [[1, 0], [0, 2]]",
    bounds=ranges.of_x_and_zero,
)
def diag(x: Tensor, k: Integer = 0):
    if len(x.shape) not in (1, 2):
        raise ShapeError(f"diag() takes a vector or a matrix, found the shape {x.shape}", argument="x")
    if len(x.shape) == 2:
        return moved("diag", x, (_diagonal_length(*x.shape, k),), _clamped(k, 2**30))
    length = None if x.shape[0] is None else x.shape[0] + abs(k)
    return moved("diag", x, (length, length), k)


@SHAPE("the sum of a diagonal", "trace([[1, 2], [3, 4]]) is 5", bounds=None)
def trace(x: Tensor, offset: Integer = 0, axis1: Integer = 0, axis2: Integer = 1):
    return sum_(diagonal(x, offset, axis1, axis2), axis=-1)


def _of_all(result, axis, x=None, xs=None):
    return ranges.hull(*map(ranges.of, xs if x is None else x))


JOINING = Group("Joining", bounds=_of_all)


@JOINING("tensors one after the other along an axis", "concatenate([[1, 2], [3, 4]]) is [1, 2, 3, 4]")
def concatenate(xs: Tensors, axis: Axis = 0):
    return join("concatenate", xs, axis)


@JOINING("tensors side by side along a new axis", "stack([[1, 2], [3, 4]], axis=1) is [[1, 3], [2, 4]]")
def stack(x: Tensors, axis: Axis = 0):
    return join("stack", x, axis)
