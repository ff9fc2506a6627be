"""Element-wise operations of jax arrays in one pass over the memory, with the bits that they have one by one.

XLA contracts a product and a sum to one operation that rounds once. It cannot if the product passes through an integer
operation whose other operand is known only at the run: here "exclusive or" with a zero, which changes nothing.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

BITS = {4: np.int32, 8: np.int64}
CACHED = 2**10  # functions that are kept
TOGETHER = 2**6  # values that one function computes: XLA takes 5 to 10 ms to compile one of them
FEW = 2**4  # entries that are added up together
ROWS = 2**3  # of sums of so few entries
ROUNDED = ("*", "/", "square", "negative")


NUMBER = 1  # the kind of operands of a program that are numbers
BOOLEAN, NORMAL = 1, 2  # kinds of numbers
# Comparisons with a number that no denormal number, nor zero in its place, comes to the other side of.
PLAIN = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


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
    **{name: _compared(function) for name, function in PLAIN.items()},
}


class NewValue(NamedTuple):
    """A whole new value of an array.

    Attributes:
        operations: those of a program.
        own: the array.
        arrays: the arrays of the program, of which some may be `own`.
        numbers: its numbers.
        counts: the last operation is a choice, whose entries are counted.
        donated: the result takes the array's memory.
    """

    operations: tuple
    own: Any
    arrays: list
    numbers: list
    counts: bool = False
    donated: bool = False

    @property
    def kind(self):
        """What is compiled for the job, besides shapes and dtypes; it has the places of what is donated."""
        places = tuple(place for place, array in enumerate(self.arrays) if array is self.own) if self.donated else None
        return self.operations, places, tuple(map(_kind, self.numbers))

    @property
    def others(self):
        """The arrays that are not donated."""
        return [array for array in self.arrays if not (self.donated and array is self.own)]

    @property
    def where(self):
        """Jobs of which this is equal can be computed in one call."""
        return self.own.dtype, self.own.sharding, self.own._committed, any(x._committed for x in self.arrays)


def shares(jobs):
    """The jobs in lists, each with the place of its first job, of those that one call computes."""
    start = 0
    for at, job in enumerate(jobs):
        if at - start == TOGETHER or job.where != jobs[start].where:
            yield start, jobs[start:at]
            start = at
    yield start, jobs[start:]


def call(jobs):
    """The call `(function, *arguments)` that computes the values of all jobs, as a list."""
    owns, others = [job.own if job.donated else None for job in jobs], [job.others for job in jobs]
    return _function(tuple(job.kind for job in jobs)), owns, others, _numbers(jobs), _zero(jobs)


def counts(jobs):
    """The number of entries that each job's choice takes from its first operand; 0 if they are not counted.

    On a CPU XLA adds up few entries at a time, in a pass of its own, and NumPy the rest: one sum of all XLA would
    make one by one.
    """
    counted = [job for job in jobs if job.counts]
    if not counted:
        return [0] * len(jobs)
    few = next(iter(counted[0].own.devices())).platform == "cpu"
    count = _counter(tuple((job.operations, job.kind[-1]) for job in counted), few)
    found = iter(count([job.arrays for job in counted], _numbers(counted), _zero(counted)))
    return [_total(next(found)) if job.counts else 0 for job in jobs]


def _kind(number):
    """What is compiled for a number: `BOOLEAN`, `NORMAL`, or 0 if it may be denormal, zero or NaN."""
    if number.dtype == bool:
        return BOOLEAN
    return NORMAL if abs(number) >= np.finfo(number.dtype).tiny else 0


def _total(few):
    """The sum of small numbers of up to `FEW`, which NumPy adds fastest as they are."""
    few = np.asarray(few)
    even = few.size - few.size % ROWS
    return int(few[:even].reshape(ROWS, -1).sum(axis=0, dtype=few.dtype).sum() + few[even:].sum())


def _numbers(jobs):
    """All numbers in one array, of the arrays' dtype, which jax takes faster than one after the other."""
    return np.array([number for job in jobs for number in job.numbers], jobs[0].own.dtype)


def _zero(jobs):
    return BITS[jobs[0].own.dtype.itemsize](0)


def _scalars(numbers, kinds):
    """The numbers of each job, of which the last member of its kind says what they are."""
    left = iter(range(numbers.shape[0]))
    return [
        [numbers[next(left)] != 0 if each == BOOLEAN else numbers[next(left)] for each in kind[-1]] for kind in kinds
    ]


@functools.lru_cache(CACHED)
def _function(kinds):
    """The compiled function of jobs of these kinds."""

    def compute(owns, others, numbers, zero):
        values = []
        given = zip(kinds, owns, others, _scalars(numbers, kinds), strict=True)
        for (operations, places, of_numbers), own, rest, scalars in given:
            arrays = list(rest)
            for place in places or ():
                arrays.insert(place, own)
            values.append(_results(operations, arrays, scalars, of_numbers, zero)[operations[-1].target])
        return values

    donates = any(places is not None for _, places, _ in kinds)
    return jax.jit(compute, donate_argnums=0, keep_unused=True) if donates else jax.jit(compute)


@functools.lru_cache(CACHED)
def _counter(kinds, few):
    def compute(arrays, numbers, zero):
        for (operations, of_numbers), given, scalars in zip(kinds, arrays, _scalars(numbers, kinds), strict=True):
            _, place = operations[-1].operands[0]
            mask = _results(operations[:-1], given, scalars, of_numbers, zero)[place]
            length = math.gcd(mask.size, FEW) if few else mask.size
            yield jnp.sum(mask.reshape(-1, length), axis=1, dtype="uint8" if few else "int32")

    return jax.jit(lambda *given: [*compute(*given)])


def _results(operations, arrays, numbers, of_numbers, zero):
    """The results by their targets, when all operations are done."""
    results: dict = {}
    for op in operations:
        operands = [(arrays, numbers, results)[kind][place] for kind, place in op.operands]
        normal = any(kind == NUMBER and of_numbers[place] == NORMAL for kind, place in op.operands)
        result = (PLAIN if normal and op.name in PLAIN else OPERATORS)[op.name](*operands)
        results[op.target] = _rounded(result, zero) if op.name in ROUNDED else result
    return results


def _rounded(x, zero):
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, zero.dtype) ^ zero, x.dtype)
