"""Element-wise operations of jax arrays in one pass over the memory, with the bits that they have one by one.

XLA contracts a product and a sum to one operation that rounds once. It cannot if the product passes through an integer
operation whose other operand is known only at the run: here "exclusive or" with a zero, which changes nothing.
"""

import functools
import operator
from collections.abc import Callable

import jax
import numpy as np
from jax import lax

OPERATORS: dict[str, Callable] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "negative": operator.neg}
ROUNDED = ("*", "negative")
BITS = {4: np.int32, 8: np.int64}
CACHED = 2**10  # expressions whose functions are kept


def call(operations, arrays, numbers):
    """The call `(function, *arguments)` that computes the operations."""
    return _function(operations, None), None, arrays, numbers, _zero(arrays)


def call_donating(operations, own, arrays, numbers):
    """The same, with the result in the memory of the array `own`, which may be one of the arrays."""
    places = tuple(place for place, array in enumerate(arrays) if array is own)
    others = [array for array in arrays if array is not own]
    return _function(operations, places), own, others, numbers, _zero(arrays)


def _zero(arrays):
    return BITS[arrays[0].dtype.itemsize](0)


@functools.lru_cache(CACHED)
def _function(operations, places):
    """The compiled function; `places` are those of the donated array among the arrays, `None` if none is."""

    def compute(own, arrays, numbers, zero):
        arrays = list(arrays)
        for place in places or ():
            arrays.insert(place, own)
        results = {}
        for op in operations:
            operands = [(arrays, numbers, results)[kind][place] for kind, place in op.operands]
            result = OPERATORS[op.name](*operands)
            results[op.target] = _rounded(result, zero) if op.name in ROUNDED else result
        return results[op.target]

    return jax.jit(compute) if places is None else jax.jit(compute, donate_argnums=0, keep_unused=True)


def _rounded(x, zero):
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, zero.dtype) ^ zero, x.dtype)
