"""The `keras.ops` whose results differ between backends, with one meaning everywhere.

Tensors in, tensors out, all operands of one dtype, with shapes and sizes checked by the caller. Python's operators are
used where a tensor has them, since `keras.ops` narrows 64-bit dtypes to 32 on most backends (`engine` goes around it).
Denormal numbers are flushed to zero where XLA and TensorFlow do so.
"""

import functools
import math

import numpy as np

from kpatch import backends
from kpatch.backends.numpy import formula as formula
from kpatch.errors import DTypeError, ExecutionError, PatchError, UnsupportedError
from kpatch.values import dtypes
from kpatch.values.dtypes import DIGITS, LARGEST, NUMPY, RANGES, is_floating, is_signed

BROADCAST_AXES = 5  # TensorFlow broadcasts no more axes in turns

# -- looking at tensors ------------------------------------------------------------------------------------------------


def guarded(compute, *data):
    """Runs a computation on checked operands; what a backend still refuses (memory, say) becomes a `PatchError`."""
    try:
        with np.errstate(all="ignore"):
            return compute(*data)
    except PatchError:
        raise
    except Exception as error:  # each backend has its own, with no common base
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExecutionError(f"the backend failed: {message}") from error


def any_true(flags):
    """Whether any of a tensor's booleans is true, as a Python boolean."""
    ops = backends.current().ops
    return bool(flags.any()) if isinstance(flags, np.ndarray | np.generic) else bool(ops.any(flags))


def is_traced(data):
    """Whether the tensor stands for values that are not known yet: a tracer, a graph's tensor, a fake one."""
    if isinstance(data, np.ndarray | np.generic):
        return False
    import keras

    return isinstance(data, keras.KerasTensor) or backends.current().is_traced(data)


def is_differentiated(data):
    """Whether gradients may be taken with respect to a tensor of known values."""
    return not isinstance(data, np.ndarray | np.generic) and backends.current().is_differentiated(data)


def engine(name, dtype):
    """The function of that name in `keras.ops`, or for 64-bit dtypes the backend's own: Keras narrows those to 32."""
    backend = backends.current()
    own = backend.wide(name, dtype) if NUMPY[dtype].itemsize == 8 else None
    return own or getattr(backend.ops, name)


def scalar(number, dtype):
    """A tensor of shape () that holds the number."""
    return as_tensor(np.asarray(number).astype(NUMPY[dtype]), dtype)


def as_tensor(array, dtype):
    """A NumPy array of that dtype as the backend's tensor."""
    ops = backends.current().ops
    if array.ndim == 0 and backends.current().keeps_scalars():
        return _kept_scalar(array.tobytes(), dtype)
    return ops.convert_to_tensor(array, dtype=dtype)


def from_numpy(array):
    """A NumPy array from outside as the backend's tensor, in its own dtype.

    Raises:
        PatchError: for a dtype that is not part of the language, or that the backend does not have. jax without
            `JAX_ENABLE_X64` takes 64-bit numbers that fit 32 bits.
    """
    name = array.dtype.name
    if name not in NUMPY:
        raise PatchError(f"an array of {array.dtype} is not part of the language")
    array = np.array(array, NUMPY[name])  # a copy, in the machine's order of bytes
    backend = backends.current()
    if backend.arrays_are_tensors:
        return array
    if name in backend.lacks:
        raise UnsupportedError(f"the {backend.name} backend has no {name}")
    if backend.narrows(name):
        array = _narrowed(array, name)
    ops = backends.current().ops
    return ops.convert_to_tensor(array, dtype=array.dtype.name)


def _narrowed(array, name):
    """The array in a dtype of 32 bits."""
    try:
        return dtypes.fit(dtypes.constant(array), name.replace("64", "32"))
    except DTypeError as error:
        raise DTypeError(error.message, notes=[f"jax has no {name} unless JAX_ENABLE_X64 is set"]) from None


@functools.lru_cache(maxsize=4096)
def _kept_scalar(data, dtype):
    ops = backends.current().ops
    with backends.current().untraced():  # it is kept, also if it is first asked for inside jit
        return ops.convert_to_tensor(np.frombuffer(data, NUMPY[dtype]).reshape(()), dtype=dtype)


def where(condition, x, y, dtype):
    return backends.current().where(condition, x, y)


def carried(function, dtype, *tensors):
    """A function that moves entries, and has no kernel for every unsigned dtype, on the signed one of that width."""
    ops = backends.current().ops
    if dtype not in ("uint16", "uint32", "uint64"):
        return function(*tensors)
    return ops.cast(function(*(ops.cast(x, dtype[1:]) for x in tensors)), dtype)


def in_float32(function, dtype, *tensors):
    """`function(*tensors, dtype)`; of 16-bit floats computed in float32, and rounded once."""
    ops = backends.current().ops
    if dtype not in ("float16", "bfloat16"):
        return function(*tensors, dtype)
    return ops.cast(function(*(ops.cast(x, "float32") for x in tensors), "float32"), dtype)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def negative(x, dtype):
    """TensorFlow negates no unsigned integers; `0 - x` would lose the sign of a float zero."""
    return -x if is_floating(dtype) or is_signed(dtype) else scalar(0, dtype) - x


def divide(x, y, dtype):
    return in_float32(lambda x, y, _: x / y, dtype, x, y)


def floor_divide(x, y, dtype):
    """Floors as Python does. The smallest integer by −1 is a division that processors trap, so −1 is kept away."""
    if is_floating(dtype):
        return in_float32(_floor_divide_floats, dtype, x, y)
    if not is_signed(dtype):
        return x // y
    reverse = y == scalar(-1, dtype)
    quotient = backends.current().floor_divide(x, where(reverse, scalar(1, dtype), y, dtype))
    return where(reverse, -x, quotient, dtype)


def remainder(x, y, dtype):
    """With the sign of `y`, as in Python."""
    if is_floating(dtype):
        return in_float32(_remainder_floats, dtype, x, y)
    if not is_signed(dtype):
        return x % y
    reverse = y == scalar(-1, dtype)
    rest = backends.current().remainder(x, where(reverse, scalar(1, dtype), y, dtype))
    return where(reverse, scalar(0, dtype), rest, dtype)


def _remainder_floats(x, y, dtype):
    """A zero takes the sign of `y`, as NumPy's does; the backends disagree."""
    rest = backends.current().remainder(x, y)
    zero = where(y < scalar(0, dtype), scalar(-0.0, dtype), scalar(0, dtype), dtype)
    return where(rest == scalar(0, dtype), zero, rest, dtype)


def _floor_divide_floats(x, y, dtype):
    """NumPy's definition: from the remainder, which is exact, so that `1 // 0.1` is 9."""
    zero, one = scalar(0, dtype), scalar(1, dtype)
    rest = backends.current().remainder(abs(x), abs(y))
    rest = where(x < zero, -rest, rest, dtype)
    quotient = (x - rest) / y
    below = where(y < zero, rest > zero, rest < zero, "bool")
    quotient = where(below, quotient - one, quotient, dtype)
    floored = engine("floor", dtype)(quotient)
    floored = where(quotient - floored > scalar(0.5, dtype), floored + one, floored, dtype)
    return where(y == zero, x / y, floored, dtype)


def power(x, y, dtype):
    if is_floating(dtype):
        return in_float32(lambda x, y, _: backends.current().power(x, y), dtype, x, y)
    return _power_integers(x, y, dtype)


def _power_integers(x, y, dtype):
    """By squaring, for exponents that are not negative: it wraps as NumPy's does, and not every backend has it."""
    one, two = scalar(1, dtype), scalar(2, dtype)
    result = x * scalar(0, dtype) + y * scalar(0, dtype) + one
    for _ in range(RANGES[dtype][1].bit_length()):
        result = where(y % two == one, result * x, result, dtype)
        x, y = x * x, y // two
        if not is_traced(y) and not any_true(y != scalar(0, dtype)):
            break
    return result


OPERATORS = {
    "+": lambda x, y, dtype: x + y,
    "-": lambda x, y, dtype: x - y,
    "*": lambda x, y, dtype: x * y,
    "/": divide,
    "//": floor_divide,
    "%": remainder,
    "**": power,
}


def matmul(x, y, dtype):
    """Integers wrap, 16-bit floats accumulate in float32."""
    ops = backends.current().ops
    if is_floating(dtype):
        return in_float32(_multiply_matrices, dtype, x, y)
    wide = "int64" if dtype in ("int64", "uint64") else "int32"  # the same bits, and every backend multiplies these
    return ops.cast(_multiply_matrices(ops.cast(x, wide), ops.cast(y, wide), wide), dtype)


def _multiply_matrices(x, y, dtype):
    """TensorFlow's `@` takes no vectors."""
    ops = backends.current().ops
    row, column = len(x.shape) == 1, len(y.shape) == 1
    product = (ops.expand_dims(x, 0) if row else x) @ (ops.expand_dims(y, 1) if column else y)
    axes = [-2] * row + [-1] * column
    return ops.squeeze(product, tuple(axes)) if axes else product


def spread(x, shape):
    """The tensor repeated to a shape of many axes, where the backend's own broadcasting would give up."""
    ops = backends.current().ops
    if len(shape) <= BROADCAST_AXES or None in shape or tuple(x.shape) == shape:
        return x
    x = ops.reshape(x, (1,) * (len(shape) - len(x.shape)) + tuple(x.shape))
    return ops.tile(x, [1 if a == b else b for a, b in zip(x.shape, shape, strict=True)])


def truncate(x, dtype):
    """Towards zero."""
    if not is_floating(dtype):
        return x
    down, up = engine("floor", dtype)(x), engine("ceil", dtype)(x)
    return where(x < scalar(0, dtype), up, down, dtype)


# -- element by element ------------------------------------------------------------------------------------------------


def sign(x, dtype):
    """Of NaN it is NaN, of a zero of either sign 0."""
    zero = scalar(0, dtype)
    if not is_floating(dtype):
        ones = where(x > zero, scalar(1, dtype), zero, dtype)
        return where(x < zero, scalar(-1, dtype), ones, dtype) if is_signed(dtype) else ones
    ones = where(x > zero, scalar(1, dtype), where(x < zero, scalar(-1, dtype), zero, dtype), dtype)
    return where(x == x, ones, x, dtype)


def heaviside(x, y, dtype):
    """Of NaN it is NaN; torch gives 0. `y` counts only where `x` is a zero of either sign."""
    zero = scalar(0, dtype)
    steps = where(x > zero, scalar(1, dtype), where(x == zero, y, zero, dtype), dtype)
    return where(x == x, steps, x, dtype)


def maximum(x, y, dtype):
    """NaN where either is."""
    return engine("maximum", dtype)(x, y)


def minimum(x, y, dtype):
    """NaN where either is."""
    return engine("minimum", dtype)(x, y)


def clip(x, low, high, dtype):
    """The bounds in turn; NumPy takes both at once, which is faster, and the same unless a bound is zero or NaN."""
    at_once = backends.current().arrays_are_tensors and dtype in ("float32", "float64")
    if at_once and all(np.ndim(bound) == 0 and abs(bound) > 0 for bound in (low, high)):
        return np.clip(x, low, high)
    return minimum(maximum(x, low, dtype), high, dtype)


def absolute(x, dtype):
    return abs(x) if is_floating(dtype) or is_signed(dtype) else x


def rounded(how, x, dtype, decimals=0):
    """By `floor`, `ceil` or `round` (halves to even); integers are round."""
    if not is_floating(dtype):
        return x
    if not decimals:
        return engine(how, dtype)(x)
    return in_float32(lambda x, inner: _round_to(x, decimals, inner), dtype, x)


def _round_to(x, decimals, dtype):
    """To a number of decimals; a number with no more digits than its dtype holds stays as it is."""
    scale = scalar(min(10.0 ** abs(decimals), LARGEST[dtype]), dtype)
    scaled = x * scale if decimals > 0 else x / scale
    near = engine("round", dtype)(scaled)
    near = near / scale if decimals > 0 else near * scale
    return where(abs(scaled) < scalar(2.0 ** DIGITS[dtype], dtype), near, x, dtype)


# Keras rounds the options of these to float32 on some backends.


def gelu(x, dtype, approximate):
    """By functions that are small for negative numbers: of `1 + tanh(y)` and `1 + erf(y)` no digit is left there."""
    if approximate:
        cubic = x + scalar(0.044715, dtype) * x * x * x
        return x * engine("sigmoid", dtype)(scalar(math.sqrt(8 / math.pi), dtype) * cubic)
    return scalar(0.5, dtype) * x * backends.current().erfc(x * scalar(-math.sqrt(0.5), dtype))


def hypot(x, y, dtype):
    """Infinite if one is, as NumPy's is, also beside NaN."""
    endless = where(abs(x) == scalar(np.inf, dtype), abs(x), abs(y), dtype) == scalar(np.inf, dtype)
    return where(endless, scalar(np.inf, dtype), engine("hypot", dtype)(x, y), dtype)


def elu(x, dtype, alpha):
    zero = scalar(0, dtype)
    below = scalar(alpha, dtype) * engine("expm1", dtype)(minimum(x, zero, dtype))
    return where(x > zero, x, below, dtype)


def leaky_relu(x, dtype, negative_slope):
    return where(x > scalar(0, dtype), x, scalar(negative_slope, dtype) * x, dtype)


def nan_to_num(x, dtype, nan=0.0, posinf=None, neginf=None):
    if not is_floating(dtype):
        return x
    largest = LARGEST[dtype]
    high, low = largest if posinf is None else posinf, -largest if neginf is None else neginf
    x = where(x == x, x, scalar(nan, dtype), dtype)
    x = where(x == scalar(np.inf, dtype), scalar(high, dtype), x, dtype)
    return where(x == scalar(-np.inf, dtype), scalar(low, dtype), x, dtype)


def close(x, y, rtol, atol, equal_nan, dtype):
    ops = backends.current().ops
    near = abs(x - y) <= scalar(atol, dtype) + scalar(rtol, dtype) * abs(y)
    result = where(ops.isfinite(y), near, x == y, "bool")
    return ops.logical_or(result, ops.logical_and(x != x, y != y)) if equal_nan else result


# -- moving and making entries -----------------------------------------------------------------------------------------


def move(name, x, options, dtype):
    """A function of `keras.ops` that moves entries and keeps their bits."""
    ops = backends.current().ops
    if name in ("squeeze", "expand_dims", "flip") and not options[0]:
        return x  # TensorFlow takes no axes for all axes
    if name == "moveaxis":
        return carried(lambda part: backends.current().move_axes(part, *options), dtype, x)
    if name == "repeat" and isinstance(options[0], tuple):
        return carried(lambda part: _repeat_each(part, *options), dtype, x)
    return carried(lambda part: getattr(ops, name)(part, *options), dtype, x)


def _repeat_each(x, counts, axis):
    """torch takes no list of counts."""
    ops = backends.current().ops
    places = np.repeat(np.arange(len(counts), dtype="int32"), counts)
    return ops.take(ops.reshape(x, (-1,)) if axis is None else x, places, axis=axis or 0)


def recast(x, dtype):
    """Between dtypes where nothing is lost, or integers wrap."""
    ops = backends.current().ops
    return ops.cast(x, dtype)


def reshape(x, shape):
    ops = backends.current().ops
    return ops.reshape(x, shape)


def concatenate(tensors, axis, dtype):
    ops = backends.current().ops
    return carried(lambda *parts: ops.concatenate(parts, axis=axis), dtype, *tensors)


def shape_or_size(name, a):
    """What `shape` or `size` is, where lengths are tensors of tensorflow's graph."""
    ops = backends.current().ops
    zero = ops.zeros((), "int32")  # of a symbol alone Keras makes a constant in torch
    found = ops.stack([zero + length for length in ops.shape(a)])
    return found if name == "shape" else ops.prod(found)


def full(shape, value, dtype):
    ops = backends.current().ops
    return carried(lambda part: ops.broadcast_to(part, shape), dtype, value)


def filled_like(x, number, dtype):
    """For shapes that are known only inside the graph."""
    ops = backends.current().ops
    return ops.cast(ops.full_like(ops.cast(x, "float32"), number), dtype)


def eye(rows, columns, k, dtype):
    ops = backends.current().ops
    return ops.cast(ops.eye(rows, columns, k=k, dtype="int32"), dtype)


def sequence(start, step, length, dtype, last=None):
    """`start + i * step`, integers exactly, floats in double precision; `last`, if given, ends it exactly."""
    whole = isinstance(start, int) and isinstance(step, int)
    array = np.arange(length, dtype="int64" if whole else "float64")
    array *= step
    array += start
    if last is not None and length > 1:
        array[-1] = last
    return as_tensor(array.astype(NUMPY[dtype]), dtype)
