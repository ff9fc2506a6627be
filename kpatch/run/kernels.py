"""Element-wise functions of NumPy for blocks of entries; each takes `out`, which may be one of the operands."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from kpatch.backends.numpy import BITS, choose

COMPARISONS: dict[str, Callable[..., Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    **COMPARISONS,
    "negative": np.negative,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "logical_not": np.logical_not,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "abs": np.abs,
    "square": np.square,
    "maximum": np.maximum,
    "minimum": np.minimum,
}

FEW = 64  # one entry of so many is chosen faster by itself than by a pass over all

_kept = threading.local()


def where(mask, x, y, out, count=None):
    """`x` where the mask is true, else `y`.

    By logic on bits, which is three times as fast as NumPy's choice. If `out` is `y`, and few entries are true, NumPy
    finds these faster.

    Args:
        count: how many entries of the mask are true, if that is known.
    """
    if not np.ndim(mask):
        np.copyto(out, x if mask else y)
        return out
    if _is_same(y, out):
        count = np.count_nonzero(mask) if count is None else count
        if count * FEW <= out.size:
            if count:
                np.copyto(out, x, where=mask)
            return out
    return choose(mask, x, y, out, _memory(out.size))


def _is_same(x, out):
    """Whether an operand is the memory of the result."""
    return np.ndim(x) and x.__array_interface__["data"] == out.__array_interface__["data"]


def _memory(count):
    """Memory for `choose`, which the thread keeps."""
    if len(_kept.__dict__.setdefault("integers", [()])[0]) < count:
        _kept.integers = [np.empty(count, np.int64) for _ in range(2)]
    return _kept.integers


def clip(x, low, high, out):
    """`minimum(maximum(x, low), high)` of numbers. NumPy's is faster, and the same unless a bound is zero or NaN."""
    if abs(low) > 0 and abs(high) > 0:
        return np.clip(x, low, high, out=out)
    return np.minimum(np.maximum(x, low, out=out), high, out=out)


FUNCTIONS.update(where=where, clip=clip)

# Where denormal numbers are taken for zeros ---------------------------------------------------------------------------


def _exact(function):
    """A comparison in a thread that flushes denormal numbers: of integers of the same order."""

    def compare(x, y, out):
        if x.dtype == bool:
            return function(x, y, out=out)
        ordered = np.logical_and(x == x, y == y)
        if function is np.not_equal:
            return np.logical_or(function(_ranked(x), _ranked(y)), ~ordered, out=out)
        return np.logical_and(function(_ranked(x), _ranked(y)), ordered, out=out)

    return compare


def _ranked(x):
    """Integers of the same order as floats, but for NaN; −0 is 0."""
    bits = x.view(BITS[x.itemsize])
    sign = bits >> 8 * x.itemsize - 1
    return (bits ^ (sign & np.iinfo(bits.dtype).max)) - sign


EXACT = {name: _exact(FUNCTIONS[name]) for name in COMPARISONS}


def flushing(function, *operands, out):
    """The function of NumPy, with denormal operands and results as zeros."""
    np.copyto(out, _flushed(function(*map(_flushed, operands))))
    return out


def _flushed(x):
    x = np.asarray(x)
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)
