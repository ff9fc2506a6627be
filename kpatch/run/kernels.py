"""Element-wise functions of NumPy for blocks of entries; each takes `out`, which may be one of the operands."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

_BITS = {4: np.int32, 8: np.int64}  # integers by the bytes of a float

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
    whole = _BITS[out.itemsize]
    flags, chosen = mask.view(np.int8), _integers(0, out.size, whole)
    x, y, result = x.view(whole), y.view(whole), out.view(whole)
    if not np.ndim(x) and not x:  # no bit is set
        np.copyto(chosen, np.subtract(flags, 1))
        np.bitwise_and(chosen, y, out=result)
    else:
        np.copyto(chosen, np.negative(flags))
        np.bitwise_and(chosen, np.bitwise_xor(x, y, out=_integers(1, out.size, whole)), out=chosen)
        np.bitwise_xor(chosen, y, out=result)
    return out


def _is_same(x, out):
    """Whether an operand is the memory of the result."""
    return np.ndim(x) and x.__array_interface__["data"] == out.__array_interface__["data"]


def _integers(place, count, whole):
    """Memory for integers, which the thread keeps."""
    kept = _kept.__dict__.setdefault("integers", {})
    if place not in kept or len(kept[place]) < count:
        kept[place] = np.empty(count, np.int64)
    return kept[place].view(whole)[:count]


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
    bits = x.view(_BITS[x.itemsize])
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
