"""Exact comparisons: tensors and literals are compared as the real numbers that they hold."""

import math
from functools import partial

import numpy as np

from kpatch import backends
from kpatch.values import dtypes
from kpatch.values.dtypes import DIGITS, INTEGERS, NUMPY, RANGES, is_floating, is_integer, is_signed
from kpatch.values.floats import COMPARISONS as COMPARISONS
from kpatch.values.floats import compared, is_plain
from kpatch.values.numerics import as_tensor, engine, scalar, where

MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def compare_literal(op, x, dtype, value):
    """A tensor against literals, as if both were real numbers.

    A float literal beside floats first takes their dtype (`_ == 0.1` holds where 0.1 was written), unless it is
    beyond its range; otherwise the literal stays what it is.
    """
    ops = backends.current().ops
    below, above, exact, decided, answer = _bounds(op, value, dtype)
    if op in ("==", "!="):
        result = _against(op, x, below, dtype)
        return result if exact.all() else ops.where(as_tensor(exact, "bool"), result, scalar(op == "!=", "bool"))
    result = _against(op, x, above if op in ("<", ">=") else below, dtype)
    return ops.where(as_tensor(decided, "bool"), as_tensor(answer, "bool"), result) if decided.any() else result


def _against(op, x, array, dtype):
    """A tensor against an array of its dtype; only near zero is there a denormal number to be told from it."""
    compare = COMPARISONS[op] if is_plain(array, dtype) else partial(compared, op, dtype=dtype)
    return compare(x, as_tensor(array, dtype))


def _bounds(op, value, dtype):
    """What the literals are to `dtype`: the largest value not above, the smallest not below, whether they are equal.

    Integers have no infinities: where a literal lies outside their range, the comparison is `decided`, with `answer`.
    """
    array = value.data
    no, yes = np.zeros(array.shape, bool), np.ones(array.shape, bool)
    if value.dtype == "bool":
        return array, array, yes, no, no
    if dtype in RANGES:
        return _integer_bounds(op, array, dtype)
    nearest = array.astype(NUMPY[dtype])
    overflow = np.isinf(nearest) & np.isfinite(array.astype("float64"))
    if value.dtype == "float" and not overflow.any():
        return nearest, nearest, yes, no, no
    below, above, exact = nearest.copy(), nearest.copy(), yes.copy()
    for place in np.ndindex(array.shape):
        number, near = array[place].item(), float(nearest[place])
        if number == near or (value.dtype == "float" and not overflow[place]):
            continue
        exact[place] = False
        beyond = np.nextafter(nearest[place], NUMPY[dtype].type(-np.inf if near > number else np.inf))
        (above if near < number else below)[place] = beyond
    return below, above, exact, no, no


def _integer_bounds(op, array, dtype):
    low, high = RANGES[dtype]
    below, above = (np.zeros(array.shape, NUMPY[dtype]) for _ in range(2))
    exact, decided, answer = (np.zeros(array.shape, bool) for _ in range(3))
    if array.dtype.kind in "iu" and not ((array < low) | (array > high)).any():
        same = array.astype(NUMPY[dtype])
        return same, same, ~exact, decided, answer
    for place in np.ndindex(array.shape):
        number = array[place].item()
        if low <= number <= high:
            below[place], above[place] = math.floor(number), math.ceil(number)
            exact[place] = number == math.floor(number)
        else:
            decided[place] = True
            answer[place] = op in (("<", "<=") if number > high else (">", ">=")) and number == number
    return below, above, exact, decided, answer


def compare_tensors(op, x, y, a, b):
    """Two tensors of dtypes `a` and `b`, as if they held real numbers."""
    ops = backends.current().ops
    if a == b:
        return compared(op, x, y, a)
    if is_floating(a) and is_floating(b):
        dtype = dtypes.promote(a, b)
        return compared(op, ops.cast(x, dtype), ops.cast(y, dtype), dtype)
    if is_integer(a) and is_integer(b):
        return _compare_integers(op, x, y, a, b)
    if is_floating(a):
        return _compare_mixed(MIRRORED.get(op, op), y, x, b, a)
    return _compare_mixed(op, x, y, a, b)


def _compare_integers(op, x, y, a, b):
    """In the wider of two types of one sign, in the signed one where it is wider; else negatives are set apart."""
    ops = backends.current().ops
    if is_signed(a) == is_signed(b):
        wide = max(a, b, key=lambda name: INTEGERS[name])
        return COMPARISONS[op](ops.cast(x, wide), ops.cast(y, wide))
    if is_signed(a):
        return _compare_integers(MIRRORED.get(op, op), y, x, b, a)
    if INTEGERS[b] > INTEGERS[a]:
        return COMPARISONS[op](ops.cast(x, b), y)
    return ops.where(y < scalar(0, b), scalar(op in (">", ">=", "!="), "bool"), COMPARISONS[op](x, ops.cast(y, a)))


def _compare_mixed(op, x, y, integer, floating):
    """An integer tensor against a float one: in the float's dtype if that holds every integer, else as integers."""
    ops = backends.current().ops
    low, high = RANGES[integer]
    if high < 2 ** DIGITS[floating]:
        return COMPARISONS[op](ops.cast(x, floating), y)
    if floating in ("float16", "bfloat16"):
        y, floating = ops.cast(y, "float32"), "float32"
    zero = scalar(0, floating)
    whole = engine("ceil" if op in ("<", ">=") else "floor", floating)(y)
    large, small = whole >= scalar(float(high + 1), floating), whole < scalar(float(low), floating)
    outside = ops.logical_or(ops.logical_or(large, small), y != y)
    result = COMPARISONS[op](x, ops.cast(where(outside, zero, whole, floating), integer))
    if op in ("==", "!="):
        return ops.where(ops.logical_or(outside, whole != y), scalar(op == "!=", "bool"), result)
    return ops.where(outside, large if op in ("<", "<=") else small, result)
