"""Random numbers from one counter-based generator: the same bits on every backend and every machine.

The words come from Philox4x64-10 (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011). NumPy promises that these words never change; for its distributions it does not. The key is the seed
and the stream. The top word of the counter is the function's number, so that two functions with one seed are
independent. Distributions are computed in float64 by operations that every processor rounds alike (`+ - * /`, square
root, powers of two); library logarithms differ between processors and are not used.
"""

import math
from functools import partial

import numpy as np

from kpatch.errors import DTypeError, FunctionError
from kpatch.functions.parameters import Context, DType, Integer, Length, Lengths, Number
from kpatch.functions.ranges import Range
from kpatch.functions.registry import Group
from kpatch.values import dtypes, numerics
from kpatch.values.arithmetic import compute
from kpatch.values.dtypes import LARGEST, NUMPY, RANGES, is_floating

BLOCK = 2**16  # entries computed at a time, to need little memory beyond the result
WORD = 2**64
RANDOM = Group("Random")
FARTHEST = 8.5  # exceeds all standard normal numbers drawn: the smallest tail probability is 2**-54

# -- words -------------------------------------------------------------------------------------------------------------


def words(salt, seed, stream, count):
    """Random words for one call of a function, in blocks of uint64 arrays.

    Args:
        salt: the function's number.
        seed: any integer; its low 64 bits count.
        stream: the number of the sequence; sequences of one seed are independent.

    Example:
        >>> [block.tolist() for block in words(2, 1, 0, 2)]
        [[13864759800467046630, 17602039527240160315]]
    """
    key = np.array([seed % WORD, stream % WORD], "uint64")
    generator = np.random.Philox(key=key, counter=np.array([0, 0, 0, salt], "uint64"))
    for start in range(0, count, BLOCK):
        yield generator.random_raw(min(BLOCK, count - start))


def _shares(block):
    """Multiples of 2**-53 in [0, 1)."""
    return (block >> np.uint64(11)).astype("float64") * 2.0**-53


# -- the normal distribution -------------------------------------------------------------------------------------------


def deviates(block):
    """Standard normal numbers from words, as float64, by the inverse of the distribution function.

    Algorithm AS 241 (M. J. Wichura, "The percentage points of the normal distribution", Applied Statistics 37, 1988),
    relative error about 1e-16. The lowest bit of a word is the sign; the 52 highest bits give the tail probability,
    between 2**-54 and a half.

    Example:
        >>> deviates(np.array([0, 1, 2**63], "uint64"))
        array([-8.29236108,  8.29236108, -0.67448975])
    """
    beyond = ((block >> np.uint64(12)).astype("float64") + 0.5) * 2.0**-53
    result = _central(0.5 - beyond)
    tail = beyond < 0.075
    result[tail] = _outer(beyond[tail])
    return np.where(block & np.uint64(1), result, -result)


def _central(distance):
    r = 0.180625 - distance * distance
    return distance * _polynomial(_A, r) / _polynomial(_B, r)


def _outer(beyond):
    r = np.sqrt(-logarithm(beyond))
    near, far = r - 1.6, r - 5.0
    return np.where(
        r <= 5.0, _polynomial(_C, near) / _polynomial(_D, near), _polynomial(_E, far) / _polynomial(_F, far)
    )


def logarithm(x):
    """The natural logarithm of positive float64 numbers by reproducible operations; relative error about 2e-16.

    With `x = m * 2**e` and `s = (m - 1) / (m + 1)` it is `e * log(2) + 2 * (s + s**3 / 3 + s**5 / 5 + ...)`.

    Example:
        >>> logarithm(np.array([0.5, 1.0]))
        array([-0.69314718,  0.        ])
    """
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, m * 2, m), np.where(low, e - 1, e).astype("float64")
    s = (m - 1) / (m + 1)
    series = _polynomial(_SERIES, s * s)
    return e * _LOG2_HIGH + (e * _LOG2_LOW + 2 * s * series)


def _polynomial(coefficients, x):
    """Horner's scheme; the constant term is first in the list."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


_SERIES = [1 / k for k in range(1, 25, 2)]
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the first has 32 bits
_A = [
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
    4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3,
]  # fmt: skip
_B = [
    1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
    2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3,
]  # fmt: skip
_C = [
    1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
    1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4,
]  # fmt: skip
_D = [
    1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
    1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9,
]  # fmt: skip
_E = [
    6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
    2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7,
]  # fmt: skip
_F = [
    1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
    7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15,
]  # fmt: skip

# -- the functions; the salt in the first line of each must never change -----------------------------------------------


def _drawn(dtype, shape, blocks, make):
    """The `Value` whose entries `make` computes, each from one word."""
    dtypes.check_size(shape)

    def draw():
        count = math.prod(shape)
        result, start = np.empty(count, NUMPY[dtype]), 0
        for block in blocks(count):
            result[start : start + len(block)] = make(block)
            start += len(block)
        return numerics.as_tensor(result.reshape(shape), dtype)

    return compute(dtype, shape, draw)


@RANDOM("normally distributed floats", "normal(3, stddev=0.5, seed=1) is [0.5516383, 0.0043999893, -0.29591203]")
def normal(
    shape: Lengths, mean: Number = 0.0, stddev: Number = 1.0, dtype: DType = None, *, seed: Integer, stream: Context
):
    blocks = partial(words, 1, seed, stream)
    dtype = _float("normal", dtype)
    _need_finite("normal", mean=mean, stddev=stddev)
    if stddev < 0:
        raise FunctionError(f"'stddev' of normal() cannot be negative: {stddev}", argument="stddev")
    mean, stddev = float(mean), float(stddev)
    largest = abs(mean) + FARTHEST * stddev
    if largest > LARGEST[dtype]:
        limit = f"at most {LARGEST[dtype]:.6g}"
        raise DTypeError(f"numbers up to {largest:.6g} do not fit {dtype} ({limit})", argument="stddev")
    return _drawn(dtype, shape, blocks, lambda block: rounded(mean + stddev * deviates(block), dtype))


@RANDOM(
    "uniformly distributed floats, below maxval", "uniform(3, -1, 1, seed=1) is [0.50322026, 0.9084169, 0.55301285]"
)
def uniform(
    shape: Lengths, minval: Number = 0.0, maxval: Number = 1.0, dtype: DType = None, *, seed: Integer, stream: Context
):
    blocks = partial(words, 2, seed, stream)
    dtype = _float("uniform", dtype)
    _need_finite("uniform", minval=minval, maxval=maxval)
    for parameter, bound in (("minval", minval), ("maxval", maxval)):
        if abs(bound) > LARGEST[dtype]:
            limit = f"at most {LARGEST[dtype]:.6g}"
            raise DTypeError(f"{bound} does not fit {dtype} ({limit})", argument=parameter)
    low, high = rounded(np.array([minval, maxval], "float64"), dtype)
    if not low < high:
        _refuse_bounds("uniform", minval, maxval, dtype)
    start, width = float(minval), float(maxval) - float(minval)
    if not math.isfinite(width):
        raise DTypeError("the numbers from 'minval' to 'maxval' span more than float64 holds", argument="maxval")
    below = np.nextafter(high, NUMPY[dtype].type(-np.inf))
    return _drawn(dtype, shape, blocks, lambda block: np.minimum(rounded(start + _shares(block) * width, dtype), below))


@RANDOM(
    "uniformly distributed integers, below maxval",
    "randint([2, 3], 0, 10, seed=1) is [[3, 4, 7], [0, 6, 0]]",
    bounds=lambda result, minval, maxval, **_: Range(minval, maxval - 1),
)
def randint(
    shape: Lengths, minval: Integer, maxval: Integer, dtype: DType = "int32", *, seed: Integer, stream: Context
):
    blocks = partial(words, 3, seed, stream)
    if dtype not in RANGES:
        raise DTypeError(f"randint() makes integers, not {dtype}; uniform() makes floats", argument="dtype")
    low, high = RANGES[dtype]
    if minval < low:
        raise DTypeError(f"'minval' of randint() is at least {low} for {dtype}, not {minval}", argument="minval")
    if maxval > high + 1:
        raise DTypeError(f"'maxval' of randint() is at most {high + 1} for {dtype}, not {maxval}", argument="maxval")
    if minval >= maxval:
        _refuse_bounds("randint", minval, maxval, dtype)
    start, count = np.uint64(minval % WORD), maxval - minval
    return _drawn(dtype, shape, blocks, lambda block: (scaled(block, count) + start).astype(NUMPY[dtype]))


def scaled(block, count):
    """Words as integers in [0, count): the high word of the 128-bit product.

    Each integer's probability is exact to 2**-64.

    Example:
        >>> scaled(np.array([0, 2**63, 2**64 - 1], "uint64"), 6).tolist()
        [0, 3, 5]
    """
    if count >= WORD:
        return block
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    a, b = block >> half, block & mask
    c, d = np.uint64(count >> 32), np.uint64(count & (2**32 - 1))
    ad, bc = a * d, b * c
    middle = ((b * d) >> half) + (ad & mask) + (bc & mask)
    return a * c + (ad >> half) + (bc >> half) + (middle >> half)


@RANDOM("booleans, true with probability p", "bernoulli(4, 0.5, seed=1) is [false, false, true, true]")
def bernoulli(shape: Lengths, p: Number, *, seed: Integer, stream: Context):
    blocks = partial(words, 4, seed, stream)
    if not 0 <= p <= 1:
        raise FunctionError(f"'p' of bernoulli() must be between 0 and 1: {p}", argument="p")
    return _drawn("bool", shape, blocks, lambda block: _shares(block) < p)


@RANDOM(
    "the integers from 0 to n - 1 in random order",
    "permutation(5, seed=1) is [3, 2, 0, 4, 1]",
    bounds=lambda result, n, **_: None if n is None else Range(0, max(0, n - 1)),
)
def permutation(n: Length, *, seed: Integer, stream: Context):
    """The order that sorts n random words; of two equal words the first comes first."""
    blocks = partial(words, 5, seed, stream)
    dtypes.check_size((n,))

    def draw():
        order = np.argsort(np.concatenate(list(blocks(n))), kind="stable")
        return numerics.as_tensor(order.astype("int32"), "int32")

    return compute("int32", (n,), draw)


# -- dtypes and bounds -------------------------------------------------------------------------------------------------


def rounded(array, dtype):
    """A float64 array in a float dtype, rounded once. (ml_dtypes rounds to float32 on the way to bfloat16.)

    Example:
        >>> rounded(np.array([1 + 2**-8 + 2**-40]), "bfloat16")
        array([1.00781], dtype=bfloat16)
    """
    if dtype != "bfloat16":
        return array.astype(NUMPY[dtype])
    narrow = array.astype("float32")
    back = narrow.astype("float64")
    narrow = np.where(np.abs(back) > np.abs(array), np.nextafter(narrow, np.float32(0)), narrow)  # towards zero
    bits = narrow.view("uint32") | (narrow.astype("float64") != array)  # and to an odd last bit where inexact
    return bits.view("float32").astype(NUMPY[dtype])


def _float(name, dtype):
    dtype = dtype or "float32"
    if not is_floating(dtype):
        raise DTypeError(f"{name}() makes floats, not {dtype}; randint() makes integers", argument="dtype")
    return dtype


def _need_finite(name, **numbers):
    for parameter, number in numbers.items():
        if not math.isfinite(number):
            raise FunctionError(f"'{parameter}' of {name}() is finite, not {number}", argument=parameter)


def _refuse_bounds(name, minval, maxval, dtype):
    message = f"'minval' of {name}() must be less than 'maxval' in {dtype}: found {minval} and {maxval}"
    raise FunctionError(message, argument="maxval")
