"""Quantiles, by NumPy's definition."""

import math

import numpy as np

from kpatch import backends
from kpatch.errors import FunctionError
from kpatch.functions.along import sortable
from kpatch.functions.axes import normal_axes, reduced
from kpatch.functions.operands import as_floats, float_of, need_lengths
from kpatch.functions.parameters import Flag, Integers, Method, Numbers, Numeric
from kpatch.functions.ranks import order_statistics
from kpatch.functions.reductions import need_entries, restore_axes
from kpatch.functions.registry import Group
from kpatch.values import dtypes, numerics
from kpatch.values.arithmetic import compute, fold
from kpatch.values.dtypes import NUMPY, dtype_name
from kpatch.values.numerics import as_tensor, is_differentiated, is_traced, where

QUANTILES = Group("Quantiles")


@QUANTILES("the middle of the sorted entries", "median([3, 1, 2, 10]) is 2.5")
def median(x: Numeric, axis: Integers = None, keepdims: Flag = False):
    return _quantile("median", x, 0.5, axis, "median", keepdims)


@QUANTILES("the value with a share q of the entries below it", "quantile([0, 1, 2, 3, 4], [0.25, 0.5]) is [1, 2]")
def quantile(x: Numeric, q: Numbers, axis: Integers = None, method: Method = "linear", keepdims: Flag = False):
    return _quantile("quantile", x, q, axis, method, keepdims)


def _quantile(name, x, q, axis, method, keepdims):
    shares = q if isinstance(q, list) else [q]
    wrong = next((share for share in shares if not 0 <= share <= 1), None)
    if wrong is not None:
        raise FunctionError(f"'q' of quantile() must be between 0 and 1: {wrong}", argument="q")
    axes = normal_axes(axis, len(x.shape))
    need_entries(name, x, axis)
    if any(x.shape[axis] is None for axis in axes):
        need_lengths(name, x)
    shape = ((len(q),) if isinstance(q, list) else ()) + reduced(x.shape, axes, keepdims)
    dtypes.check_size(shape, x)
    if x.weak:
        if method == "median":
            return fold(shape, lambda a: np.median(a, axis=axis, keepdims=keepdims), as_floats(x))
        return fold(shape, lambda a: np.quantile(a, q, axis=axis, method=method, keepdims=keepdims), as_floats(x))
    dtype = float_of(x)

    def pick(a, inner):
        results = _quantiles(a, shares, axes, method, inner)
        results = results if isinstance(q, list) else results[0]
        places = [axis + 1 for axis in axes] if isinstance(q, list) else axes
        return restore_axes(results, places) if keepdims else results

    return compute(dtype, shape, lambda a: numerics.in_float32(pick, dtype, a), x, to=dtype)


def _quantiles(x, shares, axes, method, dtype):
    """The quantiles, with a new first axis for the shares; NaN if an entry is NaN."""
    ops = backends.current().ops
    last = math.prod(x.shape[axis] for axis in axes) - 1
    places, at, part = _ranks(shares, last, method)
    view = _view(x) if len(axes) == len(x.shape) else None
    if view is not None:
        low, high, top = order_statistics(view.reshape(-1), places)[at]
        return as_tensor(_between(low, high, top, part, method, np.where), dtype)
    if len(axes) == 1:
        x = ops.moveaxis(x, axes[0], -1)
    else:
        kept = [length for axis, length in enumerate(ops.shape(x)) if axis not in axes]
        x = ops.reshape(ops.moveaxis(x, axes, tuple(range(-len(axes), 0))) if axes else x, (*kept, last + 1))
    x = _placed(x, places, dtype)

    def choose(condition, a, b):
        return where(as_tensor(condition, "bool") if isinstance(condition, np.ndarray) else condition, a, b, dtype)

    low, high, top = (ops.take(x, row, axis=-1) for row in at)
    return ops.moveaxis(_between(low, high, top, part, method, choose, lambda share: as_tensor(share, dtype)), -1, 0)


def of_statistics(statistics, size, share, method):
    """A quantile of `size` entries, of which `statistics` gives those at places of the sorted ones."""
    places, at, part = _ranks([share], size - 1, method)
    low, high, top = statistics(places)[at]
    return _between(low, high, top, part, method, np.where)[0]


def _ranks(shares, last, method):
    """Which sorted entries quantiles are made of.

    Returns:
        The places of these entries; for each quantile, by its number in a row, the indices in them of the entry below,
        of that above, and of the largest one; and the share of the way from the one below to that above.
    """
    exact = np.array(shares, "float64") * last
    below = np.minimum(np.floor(exact), last).astype("int32")
    above = np.minimum(below + 1, last)
    part = exact - below
    if method == "nearest":
        part = np.round(exact) - below
    elif method not in ("linear", "median"):
        part = np.where(part > 0, {"lower": 0, "higher": 1, "midpoint": 0.5}[method], 0)
    wanted = np.stack([below, above, np.full_like(below, last)])
    places = np.unique(wanted)
    return places, np.searchsorted(places, wanted).astype("int32"), part


def _between(low, high, top, part, method, choose, made=lambda share: share):
    """Interpolates from `low` to `high` by the share `part`; the result is NaN where `top`, the largest entry, is.

    NumPy's median is the mean of both, so it is infinite if one of them is; a quantile between them is NaN.
    """
    near, far = (made(share.astype(NUMPY[dtype_name(low.dtype)])) for share in (part, 1 - part))
    with np.errstate(all="ignore"):
        step = high - low
        result = choose(part < 0.5, low + step * near, high - step * far)
        if method == "median":
            result = choose(abs(step) == np.inf, low + high, result)
    result = choose(part == 0, low, choose(part == 1, high, result))
    result = choose(low == high, low, result)  # equal infinities have no difference
    return choose(top == top, result, top)


def _view(x):
    """The tensor as a NumPy view, or `None` if the host cannot address its memory, or gradients are taken of it."""
    if is_traced(x) or is_differentiated(x):
        return None
    return backends.current().view(x)


def _placed(x, places, dtype):
    """The entries at `places` of the sorted last axis, NaN last; the order of −0 and 0 is unspecified."""
    ops = backends.current().ops
    backend = backends.current()
    found = backend.smallest_at(x, places)
    if found is not None:
        return found
    if backend.sorts_nan_last:
        return ops.take(ops.sort(x, axis=-1), places.astype("int32"), axis=-1)
    order = ops.take(ops.argsort(sortable(x, dtype), axis=-1), places.astype("int32"), axis=-1)
    return ops.take_along_axis(x, order, axis=-1)  # which has a gradient
