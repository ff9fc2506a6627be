"""Functions that pick entries by index or by size."""

import numpy as np

from kpatch import backends
from kpatch.errors import DTypeError, FunctionError, ShapeError, SubscriptError
from kpatch.functions import ranges
from kpatch.functions.along import order
from kpatch.functions.axes import normal_axis
from kpatch.functions.operands import blaming, need_lengths, strong
from kpatch.functions.parameters import Axis, Context, Integer, Tensor
from kpatch.functions.reductions import max_, min_
from kpatch.functions.registry import Group
from kpatch.functions.shapes import ravel
from kpatch.indexing import broadcast
from kpatch.values import dtypes, numerics
from kpatch.values.arithmetic import compute, doubt, fold, is_planning
from kpatch.values.dtypes import is_floating, is_integer, is_signed
from kpatch.values.tensors import to_numpy

SELECTION = Group("Selection", bounds=ranges.of_x)


@SELECTION(
    "the k largest of the last axis, descending, nan last; their indices are argsort(-x)[..., :k]",
    "top_k([3, 9, 1, 7], 2) is [9, 7]",
)
def top_k(x: Tensor, k: Integer):
    if not x.shape:
        raise ShapeError("top_k() takes a tensor of at least one axis, found a number", argument="x")
    length = x.shape[-1]
    if k < 0 or (length is not None and k > length):
        raise FunctionError(f"'k' of top_k() must be between 0 and the length of the last axis: {k}", argument="k")
    shape = (*x.shape[:-1], k)
    if x.weak:
        return fold(shape, lambda a: _largest_literals(a, k), x, dtype=x.dtype)
    if length is None:
        need_lengths("top_k", x)
    return compute(x.dtype, shape, lambda a: _largest(a, k, x.dtype), x)


def _largest_literals(a, k):
    keys = np.logical_not(a) if a.dtype == bool else -a
    return np.take_along_axis(a, np.argsort(keys, axis=-1, kind="stable")[..., :k], axis=-1)


def _largest(x, k, dtype):
    places = order(_reversed(x, dtype), len(x.shape) - 1, dtype)[..., :k]
    return _take_along(x, places, len(x.shape) - 1, dtype)


def _reversed(x, dtype):
    """Numbers of the opposite order, NaN still last; integers do not overflow."""
    if dtype == "bool":
        return x == False  # noqa: E712 ('~' is not defined on every backend's booleans)
    if is_floating(dtype):
        return -x
    return numerics.scalar(-1 if is_signed(dtype) else dtypes.RANGES[dtype][1], dtype) - x


@SELECTION("the entries at the indices", "take([[1, 2, 3], [4, 5, 6]], [0, -1], axis=1) is [[1, 3], [4, 6]]")
def take(x: Tensor, indices: Tensor, axis: Axis = None, *, traced: Context):
    return _picked("take", _taken_shape, _take, x, indices, axis, traced)


@SELECTION(
    "the entries at the indices of each row",
    "take_along_axis([[1, 2, 3], [4, 5, 6]], [[0], [2]], axis=1) is [[1], [6]]",
)
def take_along_axis(x: Tensor, indices: Tensor, axis: Axis = None, *, traced: Context):
    return _picked("take_along_axis", _along_shape, _take_along, x, indices, axis, traced)


def _picked(name, shape_of, kernel, x, indices, axis, traced):
    _check_dtype(name, indices)
    if axis is None:
        x, axis = ravel(x), 0
    axis = normal_axis(axis, len(x.shape))
    shape = shape_of(x.shape, indices.shape, axis)
    dtypes.check_size(shape, x, indices)
    _check_bounds(name, x, indices, axis, traced)
    if x.weak and indices.weak:
        picked = lambda a, i: getattr(np, name)(a, i.astype("int64"), axis=axis)  # noqa: E731
        return fold(shape, picked, x, indices, dtype=x.dtype, moves=True)
    x = strong(x)[0] if x.weak else x
    return compute(x.dtype, shape, lambda a, i: kernel(a, _normal(i, a, axis), axis, x.dtype), x, indices)


def _check_dtype(name, indices):
    if is_integer(indices.dtype):
        return
    found = {"float": "floats", "bool": "booleans"}.get(indices.dtype, indices.dtype)
    note = 'cast(x, "int32") converts it to integers' if is_floating(indices.dtype) else "x[mask] picks by a mask"
    raise DTypeError(f"the indices of {name}() are integers, not {found}", argument="indices", notes=[note])


def _check_bounds(name, x, indices, axis, traced):
    """Raises if an index is out of range or, in a compiled function, if it could be."""
    length = x.shape[axis]
    if not indices.weak and (traced or (indices.data is not None and numerics.is_traced(indices.data))):
        if is_planning() or not traced:  # planning has proved it before the function runs
            with blaming("indices"):
                ranges.check(indices, x, axis)
        return
    if length is None:
        need_lengths(name, x)
    if indices.data is None or length is None:
        doubt()
        return
    if 0 in indices.shape:
        return
    if indices.weak:
        low, high = int(np.min(indices.data)), int(np.max(indices.data))
    else:
        low, high = (int(to_numpy(extreme(indices).data)) for extreme in (min_, max_))
    wrong = low if low < -length else high
    if not -length <= wrong < length:
        count = f"{length} entr{'y' if length == 1 else 'ies'}"
        raise SubscriptError(f"index {wrong} is out of range for axis {axis} with {count}", argument="indices")


def _normal(indices, x, axis):
    """Checked indices along an axis of `x` as non-negative int32."""
    ops = backends.current().ops
    length = ops.shape(x)[axis]
    if isinstance(indices, np.ndarray) and indices.dtype.kind in "iu":
        indices = indices.astype("int64")
        indices = np.where(indices < 0, indices + length, indices)
        return numerics.as_tensor(indices.astype("int32"), "int32")
    indices = numerics.recast(indices, "int32")
    return ops.where(indices < 0, indices + length, indices)


def _taken_shape(shape, indices, axis):
    return (*shape[:axis], *indices, *shape[axis + 1 :])


def _along_shape(shape, indices, axis):
    if len(shape) != len(indices):
        message = f"indices of shape {indices} do not fit the shape {shape}; they need {len(shape)} axes"
        raise ShapeError(message, argument="indices")
    rest = [(*other[:axis], 1, *other[axis + 1 :]) for other in (shape, indices)]
    try:
        joined = broadcast(rest)
    except ShapeError:
        message = f"indices of shape {indices} do not broadcast with the shape {shape} beside axis {axis}"
        raise ShapeError(message, argument="indices") from None
    return (*joined[:axis], indices[axis], *joined[axis + 1 :])


def _take(x, indices, axis, dtype):
    ops = backends.current().ops
    return numerics.carried(lambda part: ops.take(part, indices, axis=axis), dtype, x)


def _take_along(x, indices, axis, dtype):
    """First repeats both to one shape along the other axes, because not all backends broadcast them."""
    ops = backends.current().ops
    spread = _spread(indices, x, axis)
    return numerics.carried(lambda part: ops.take_along_axis(_spread(part, indices, axis), spread, axis=axis), dtype, x)


def _spread(x, other, axis):
    """The tensor with axes of length 1, except `axis`, repeated to the lengths of `other`."""
    ops = backends.current().ops
    lengths = enumerate(zip(x.shape, ops.shape(other), strict=True))
    repeats = [theirs if own == 1 and place != axis else 1 for place, (own, theirs) in lengths]
    return x if all(isinstance(count, int) and count == 1 for count in repeats) else ops.tile(x, repeats)
