"""Comparisons of floats that tell denormal numbers from zero, also where a backend takes them for zeros.

XLA and TensorFlow flush denormal numbers to zero in comparisons too. There floats are compared as integers of the same
order, so that a text selects the same entries on every backend, and by each way in which a patch runs.
"""

import operator

import ml_dtypes
import numpy as np

from kpatch import backends
from kpatch.values.dtypes import NUMPY, RANGES
from kpatch.values.numerics import scalar, where

_BITS = {"float64": "int64", "float32": "int32", "bfloat16": "int16"}  # float16 is computed in float32, where none is


def _equal(x, y):
    return backends.current().equal(x, y)


def _not_equal(x, y):
    return ~found if hasattr(found := _equal(x, y), "shape") else not found


def _ordered(compare):
    return lambda x, y: backends.current().ordered(compare, x, y)


COMPARISONS = {
    "==": _equal,
    "!=": _not_equal,
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
}


def compared(op, x, y, dtype):
    """`x op y` of tensors of one dtype, exactly."""
    backend = backends.current()
    if dtype not in _BITS or not backend.flushes_denormals or not backend.reads_bits():
        return COMPARISONS[op](x, y)
    ops = backend.ops
    found = COMPARISONS[op](ranked(x, dtype), ranked(y, dtype))
    if op == "!=":
        return ops.logical_or(found, ops.logical_or(_not_equal(x, x), _not_equal(y, y)))
    return ops.logical_and(found, ops.logical_and(_equal(x, x), _equal(y, y)))


def is_plain(array, dtype):
    """Whether no denormal number lies between an entry of the array and zero, or is one."""
    if dtype not in _BITS or not backends.current().flushes_denormals:
        return True
    return not (np.abs(array) < ml_dtypes.finfo(NUMPY[dtype]).smallest_normal).any()


def is_nonzero(x, dtype):
    """Where a tensor is not zero; NaN is not."""
    return compared("!=", x, scalar(0, dtype), dtype)


def ranked(x, dtype):
    """Integers of the same order as floats; −0 is 0, and NaN lies beyond the infinities."""
    whole = _BITS[dtype]
    bits = backends.current().bits(x, whole)
    return where(bits < scalar(0, whole), scalar(RANGES[whole][0], whole) - bits, bits, whole)
