"""Entries picked by their indices or by their size."""

import numpy as np

from kpatch.errors import DTypeError, FunctionError, PatchError, ShapeError, SubscriptError
from kpatch.functions import ranges, reductions
from kpatch.functions.rules import moved, need_lengths, reduction, strong
from kpatch.functions.shapes import normal_axis
from kpatch.indexing import broadcast
from kpatch.tensors import to_numpy
from kpatch.values import dtypes, numerics
from kpatch.values.arithmetic import compute, doubt, fold, is_planning
from kpatch.values.dtypes import is_floating, is_integer, is_signed


def pick(name, x, k=0, indices=None, axis=None, traced=False):
    """The rule of the group."""
    if name == "top_k":
        return _top(x, k)
    if isinstance(axis, tuple):
        raise FunctionError("'axis' is one integer here, not a list", argument="axis")
    _check_dtype(name, indices)
    if axis is None:
        x, axis = moved("ravel", x), 0
    axis = normal_axis(axis, len(x.shape))
    shape = _SHAPES[name](x.shape, indices.shape, axis)
    dtypes.check_size(shape, x, indices)
    _check_bounds(name, x, indices, axis, traced)
    if x.weak and indices.weak:
        return fold(shape, lambda a, i: getattr(np, name)(a, _places(i), axis=axis), x, indices, dtype=x.dtype)
    x = strong(x)[0] if x.weak else x
    return compute(x.dtype, shape, lambda a, i: _PICKS[name](a, _normal(i, a, axis), axis, x.dtype), x, indices)


def _check_dtype(name, indices):
    if is_integer(indices.dtype):
        return
    found = {"float": "floats", "bool": "booleans"}.get(indices.dtype, indices.dtype)
    note = 'cast(x, "int32") makes integers of it' if is_floating(indices.dtype) else "x[mask] picks by a mask"
    raise DTypeError(f"the indices of {name}() are integers, not {found}", argument="indices", notes=[note])


def _check_bounds(name, x, indices, axis, traced):
    """Refuses indices out of range, and in a compiled function those that could be."""
    length = x.shape[axis]
    if not indices.weak and (traced or (indices.data is not None and numerics.is_traced(indices.data))):
        if is_planning() or not traced:  # when it runs, it has been proved
            _prove(x, indices, axis)
        return
    if length is None:
        need_lengths(name, x)
    if indices.data is None or length is None:
        doubt()
        return
    if 0 in indices.shape:
        return
    low, high = (_extreme(indices, how) for how in ("min", "max"))
    wrong = low if low < -length else high
    if not -length <= wrong < length:
        count = f"{length} entr{'y' if length == 1 else 'ies'}"
        raise SubscriptError(f"index {wrong} is out of range for axis {axis} with {count}", argument="indices")


def _prove(x, indices, axis):
    """Refuses, while a compiled function is planned, indices that could be out of range."""
    try:
        ranges.check(indices, x, axis)
    except PatchError as error:
        error.argument = "indices"
        raise


def _extreme(indices, how):
    """The smallest or the largest index, as Python's integer."""
    if indices.weak:
        return int(getattr(np, how)(indices.data))
    return int(to_numpy(reduction(how, indices).data))


def _places(indices):
    """Literals as NumPy takes them for indices."""
    return indices.astype("int64")


def _normal(indices, x, axis):
    """Checked indices along an axis of `x`, none of them negative, as int32."""
    from keras import ops

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
        message = f"indices of shape {indices} do not go along an axis of shape {shape}; they need {len(shape)} axes"
        raise ShapeError(message, argument="indices")
    rest = [(*other[:axis], 1, *other[axis + 1 :]) for other in (shape, indices)]
    try:
        joined = broadcast(rest)
    except ShapeError:
        message = f"indices of shape {indices} do not broadcast with the shape {shape} beside axis {axis}"
        raise ShapeError(message, argument="indices") from None
    return (*joined[:axis], indices[axis], *joined[axis + 1 :])


def _take(x, indices, axis, dtype):
    from keras import ops

    return numerics.carried(lambda part: ops.take(part, indices, axis=axis), dtype, x)


def _take_along(x, indices, axis, dtype):
    """Both are first repeated to one shape beside the axis: the backends differ in whether they do so."""
    from keras import ops

    spread = _spread(indices, x, axis)
    return numerics.carried(lambda part: ops.take_along_axis(_spread(part, indices, axis), spread, axis=axis), dtype, x)


def _spread(x, other, axis):
    """The tensor repeated to the lengths of another beside the axis, where its own are 1."""
    from keras import ops

    lengths = enumerate(zip(x.shape, ops.shape(other), strict=True))
    repeats = [theirs if own == 1 and place != axis else 1 for place, (own, theirs) in lengths]
    return x if all(isinstance(count, int) and count == 1 for count in repeats) else ops.tile(x, repeats)


_SHAPES = {"take": _taken_shape, "take_along_axis": _along_shape}
_PICKS = {"take": _take, "take_along_axis": _take_along}

# -- the largest -------------------------------------------------------------------------------------------------------


def _top(x, k):
    """The values; where they are equal, in their order."""
    if not x.shape:
        raise ShapeError("top_k() takes a tensor of at least one axis, found a number", argument="x")
    length = x.shape[-1]
    if k < 0 or (length is not None and k > length):
        raise FunctionError(f"'k' of top_k() lies between 0 and the length of the last axis: {k}", argument="k")
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
    places = reductions.order(_reversed(x, dtype), len(x.shape) - 1, dtype)[..., :k]
    return _take_along(x, places, len(x.shape) - 1, dtype)


def _reversed(x, dtype):
    """Numbers in the opposite order, NaN still last; of integers without overflow."""
    if dtype == "bool":
        return x == False  # noqa: E712 ('~' is not defined on every backend's booleans)
    if is_floating(dtype):
        return -x
    return numerics.scalar(-1 if is_signed(dtype) else dtypes.RANGES[dtype][1], dtype) - x
