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
from jax import numpy as jnp

BITS = {4: np.int32, 8: np.int64}
CACHED = 2**10  # expressions whose functions are kept
ROUNDED = ("*", "/", "square", "negative")


def _compared(function):
    """A comparison that tells denormal numbers from zero, as `values.floats.compared` does."""

    def compare(x, y):
        if jnp.result_type(x) == np.bool_:
            return function(x, y)
        found, ordered = function(_ranked(x), _ranked(y)), (x == x) & (y == y)
        return found | ~ordered if function is operator.ne else found & ordered

    return compare


def _ranked(x):
    whole = BITS[jnp.result_type(x).itemsize]
    bits = lax.bitcast_convert_type(x, whole)
    return jnp.where(bits < 0, np.iinfo(whole).min - bits, bits)


OPERATORS: dict[str, Callable] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "negative": operator.neg,
    "square": lambda x: x * x,
    "abs": jnp.abs,
    "where": jnp.where,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "clip": lambda x, low, high: jnp.minimum(jnp.maximum(x, low), high),
    **{name: getattr(jnp, name) for name in ("isnan", "isinf", "isfinite")},
    **{name: getattr(jnp, name) for name in ("logical_not", "logical_and", "logical_or")},
    "==": _compared(operator.eq),
    "!=": _compared(operator.ne),
    "<": _compared(operator.lt),
    "<=": _compared(operator.le),
    ">": _compared(operator.gt),
    ">=": _compared(operator.ge),
}


def call(operations, arrays, numbers):
    """The call `(function, *arguments)` that computes the operations."""
    return _function(operations, None), None, arrays, numbers, _zero(arrays)


def call_donating(operations, own, arrays, numbers):
    """The same, with the result in the memory of the array `own`, which may be one of the arrays."""
    places = tuple(place for place, array in enumerate(arrays) if array is own)
    others = [array for array in arrays if array is not own]
    return _function(operations, places), own, others, numbers, _zero(arrays)


def count(operations, arrays, numbers):
    """How many entries the last operation, a choice, takes from its first operand: XLA counts them one by one."""
    mask = _chooser(operations)(arrays, numbers, _zero(arrays))
    return int(np.count_nonzero(mask) if mask.device.platform == "cpu" else jnp.count_nonzero(mask))


def _zero(arrays):
    return BITS[arrays[0].dtype.itemsize](0)


@functools.lru_cache(CACHED)
def _function(operations, places):
    """The compiled function; `places` are those of the donated array among the arrays, `None` if none is."""

    def compute(own, arrays, numbers, zero):
        arrays = list(arrays)
        for place in places or ():
            arrays.insert(place, own)
        return _results(operations, arrays, numbers, zero)[operations[-1].target]

    return jax.jit(compute) if places is None else jax.jit(compute, donate_argnums=0, keep_unused=True)


@functools.lru_cache(CACHED)
def _chooser(operations):
    def compute(arrays, numbers, zero):
        _, mask = operations[-1].operands[0]
        return _results(operations[:-1], arrays, numbers, zero)[mask]

    return jax.jit(compute)


def _results(operations, arrays, numbers, zero):
    """The results by their targets, when all operations are done."""
    results: dict = {}
    for op in operations:
        operands = [(arrays, numbers, results)[kind][place] for kind, place in op.operands]
        result = OPERATORS[op.name](*operands)
        results[op.target] = _rounded(result, zero) if op.name in ROUNDED else result
    return results


def _rounded(x, zero):
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, zero.dtype) ^ zero, x.dtype)
