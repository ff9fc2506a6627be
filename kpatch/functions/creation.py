"""Functions that create tensors of constants."""

import math

import numpy as np

from kpatch.errors import DTypeError, FunctionError, LimitError, ShapeError
from kpatch.functions import ranges
from kpatch.functions.axes import widens
from kpatch.functions.operands import blaming, need_lengths, strong
from kpatch.functions.parameters import DType, Flag, Integer, Length, Lengths, Number, Tensor
from kpatch.functions.ranges import Range, between
from kpatch.functions.registry import Group
from kpatch.values import arithmetic, dtypes, numerics
from kpatch.values.arithmetic import compute, fold
from kpatch.values.dtypes import Value, is_floating, literal

CREATION = Group("Creation")


def _of_value(result, fill_value, **_):
    return ranges.of(fill_value)


@CREATION("zeros; float32 by default", "zeros([2, 3]) is [[0, 0, 0], [0, 0, 0]]", bounds=between(0, 0))
def zeros(shape: Lengths, dtype: DType = None):
    return _filled(shape, 0, dtype)


@CREATION("ones; float32 by default", 'ones(2, "int8") is [1, 1]', bounds=between(1, 1))
def ones(shape: Lengths, dtype: DType = None):
    return _filled(shape, 1, dtype)


def _filled(shape, number, dtype):
    dtype = dtype or "float32"
    dtypes.check_size(shape)
    dtypes.check_available(dtype)
    return compute(dtype, shape, lambda: numerics.full(shape, numerics.scalar(number, dtype), dtype))


@CREATION("a tensor filled with one value", "full([2, 2], 0.5) is [[0.5, 0.5], [0.5, 0.5]]", bounds=_of_value)
def full(shape: Lengths, fill_value: Tensor, dtype: DType = None):
    _check_fill(shape, fill_value)
    dtypes.check_size(shape, fill_value)
    if dtype is None:
        dtype = "float32" if fill_value.dtype in ("int", "float") else fill_value.dtype
    dtypes.check_available(dtype)
    with blaming("fill_value"):
        value = arithmetic.convert(fill_value, dtype)
    if value.weak and value.data is not None:
        value = Value(dtype, value.shape, numerics.as_tensor(value.data, dtype))
    return compute(dtype, shape, lambda a: numerics.full(shape, a, dtype), value)


def _check_fill(shape, value):
    if not widens(value.shape, shape):
        raise ShapeError(f"a value of shape {value.shape} does not broadcast to {shape}", argument="fill_value")


@CREATION("zeros of x's shape and dtype", "zeros_like([1, 2]) is [0, 0]", bounds=between(0, 0))
def zeros_like(x: Tensor, dtype: DType = None):
    return _filled_like(x, 0, dtype)


@CREATION("ones of x's shape and dtype", "ones_like([1, 2]) is [1, 1]", bounds=between(1, 1))
def ones_like(x: Tensor, dtype: DType = None):
    return _filled_like(x, 1, dtype)


def _filled_like(x, number, dtype):
    """A literal if `x` is one and no dtype is given."""
    if x.weak and dtype is None:
        return fold(x.shape, lambda a: np.full_like(a, number), x, moves=True)
    dtype = dtype or x.dtype
    if None in x.shape:
        return compute(dtype, x.shape, lambda a: numerics.filled_like(a, number, dtype), x)
    return _filled(x.shape, number, dtype)


@CREATION("one value in x's shape and dtype", "full_like([1.5, 2.5], 7) is [7, 7]", bounds=_of_value)
def full_like(x: Tensor, fill_value: Tensor, dtype: DType = None):
    if dtype is None:
        dtype = fill_value.dtype if x.weak and not fill_value.weak else x.dtype
        if dtype in ("int", "float"):
            dtype = strong(x)[0].dtype
    if None in x.shape and x.data is None:
        _check_fill(x.shape, fill_value)
        return arithmetic.convert(fill_value, dtype) and Value(dtype, x.shape)
    need_lengths("full_like", x)
    return full(x.shape, fill_value, dtype)


@CREATION("ones on a diagonal", "eye(2) is [[1, 0], [0, 1]]")
def eye(N: Length, M: Length = None, k: Integer = 0, dtype: DType = None):  # noqa: N803
    shape = (N, N if M is None else M)
    dtypes.check_size(shape)
    dtype = dtype or "float32"
    return compute(dtype, shape, lambda: numerics.eye(*shape, max(-shape[0], min(k, shape[1])), dtype))


def _between(result, start, stop, step, dtype):
    """The range from the bounds alone, whatever the step."""
    numbers = (0, start) if stop is None else (start, stop)
    whole = all(isinstance(number, int) for number in (*numbers, step or 1))
    if not whole or numbers[0] == numbers[1]:
        return None
    forward = numbers[0] < numbers[1]
    return Range(numbers[0], numbers[1] - 1) if forward else Range(numbers[1] + 1, numbers[0])


@CREATION("start, start + step, ... below stop", "arange(1, 10, 3) is [1, 4, 7]", bounds=_between)
def arange(start: Number, stop: Number = None, step: Number = None, dtype: DType = None):
    if stop is None:
        start, stop = 0, start
    step = 1 if step is None else step
    if step == 0 or not all(math.isfinite(number) for number in (start, stop, step)):
        raise FunctionError(
            "arange() needs finite bounds and a step that is not 0", argument="step" if step == 0 else None
        )
    numbers = (start, stop, step)
    whole = all(isinstance(number, int) for number in numbers)
    length = max(0, -((start - stop) // step) if whole else math.ceil(_finite((stop - start) / step)))
    dtypes.check_size((length,))
    dtype = dtype or ("int32" if whole else "float32")
    if dtype == "bool":
        raise DTypeError("arange() makes numbers, not booleans", argument="dtype")
    last = start + step * max(0, length - 1)
    dtypes.fit(literal([start, last]), dtype)
    return compute(dtype, (length,), lambda: numerics.sequence(start, step, length, dtype))


def _finite(length):
    if not math.isfinite(length):
        raise LimitError(f"a result has at most {dtypes.MAX_SIZE} entries")
    return length


@CREATION("num evenly spaced numbers", "linspace(0, 1, 5) is [0, 0.25, 0.5, 0.75, 1]")
def linspace(start: Number, stop: Number, num: Integer = 50, endpoint: Flag = True, dtype: DType = None):
    if num < 0:
        raise FunctionError(f"'num' of linspace() cannot be negative: {num}", argument="num")
    dtypes.check_size((num,))
    dtype = dtype or "float32"
    if not is_floating(dtype):
        raise DTypeError(f"linspace() makes floats, not {dtype}", argument="dtype")
    step = (stop - start) / max(1, num - 1 if endpoint else num)
    dtypes.fit(literal([float(start), float(stop)]), dtype)
    return compute(dtype, (num,), lambda: numerics.sequence(start, step, num, dtype, stop if endpoint else None))
