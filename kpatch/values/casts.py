"""Conversions between dtypes with one meaning on all backends: floats truncate, wrap, and count NaN as 0."""

import math

import numpy as np

from kpatch import backends
from kpatch.values import numerics
from kpatch.values.dtypes import INTEGERS, NUMPY, RANGES, is_floating
from kpatch.values.floats import is_nonzero


def cast(x, source, dtype):
    """A tensor in another dtype, as `cast(x, dtype)` means it: floats truncate, wrap, and count NaN as 0.

    The backends' own casts saturate, wrap, or are undefined beyond the range of the target.
    """
    ops = backends.current().ops
    if source == dtype:
        return x
    if dtype == "bool":
        return is_nonzero(x, source)
    if source == "float64" and dtype == "float16":
        return _round_to_half(x)
    if is_floating(source) and dtype in RANGES:
        return _wrap(x, source, dtype)
    return ops.cast(x, dtype)


def _wrap(x, source, dtype):
    """Float to integer, modulo a power of two: every step is exact."""
    ops = backends.current().ops
    if source in ("float16", "bfloat16"):
        x, source = ops.cast(x, "float32"), "float32"
    wide = "int64" if dtype in ("int64", "uint64") else "int32"
    half = float(RANGES[wide][1] + 1)
    x = numerics.where(ops.isfinite(x), x, numerics.scalar(0, source), source)
    x = numerics.truncate(x, source)
    if half < 2.0**60 or source == "float64":
        turns = numerics.truncate(x / numerics.scalar(2 * half, source), source)
    else:
        turns = numerics.truncate(x * numerics.scalar(0.5 / half, source), source)
    x = x - turns * numerics.scalar(2 * half, source)
    x = numerics.where(x >= numerics.scalar(half, source), x - numerics.scalar(2 * half, source), x, source)
    x = numerics.where(x < numerics.scalar(-half, source), x + numerics.scalar(2 * half, source), x, source)
    return ops.cast(ops.cast(x, wide), dtype)


def _round_to_half(x):
    """float64 to float16 by way of float32, rounded to odd there, so that it rounds once in all."""
    ops = backends.current().ops
    narrow = ops.cast(x, "float32")
    view = backends.current().bits
    bits, one, two = view(narrow, "int32"), numerics.scalar(1, "int32"), numerics.scalar(2, "int32")
    back = ops.cast(narrow, "float64")
    bits = ops.where(abs(back) > abs(x), bits - one, bits)
    inexact = ops.logical_and(back != x, x == x)
    bits = ops.where(ops.logical_and(inexact, bits % two != one), bits + one, bits)
    odd = view(bits, "float32")  # which has no gradient, as bits have none; a step from `narrow` keeps its
    finite, zero = ops.isfinite(narrow), numerics.scalar(0, "float32")
    start, end = ops.where(finite, narrow, zero), ops.where(finite, odd, zero)
    stepped = ops.where(end != start, start + ops.stop_gradient(end - start), start)  # `+ 0` would lose the sign of -0
    return ops.cast(ops.where(finite, stepped, odd), "float16")


def cast_array(array, dtype):
    """A NumPy array of literals as `cast` would have it."""
    if dtype not in RANGES or array.dtype.kind == "b":
        with np.errstate(all="ignore"):
            return (array != 0) if dtype == "bool" else array.astype(NUMPY[dtype])
    flat = [int(number) if math.isfinite(number) else 0 for number in array.ravel().tolist()]
    period = 2 ** INTEGERS[dtype]
    wrapped = [(number - RANGES[dtype][0]) % period + RANGES[dtype][0] for number in flat]
    return np.array(wrapped, dtype=NUMPY[dtype]).reshape(array.shape)
