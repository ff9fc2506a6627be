"""Functions along one axis that keep the shape: sorting, running sums, softmax."""

import math
from functools import partial

import numpy as np

from kpatch import backends
from kpatch.errors import DTypeError
from kpatch.functions import ranges
from kpatch.functions.axes import normal_axis
from kpatch.functions.operands import as_floats, blaming, float_of, need_lengths
from kpatch.functions.parameters import Axis, DType, Numeric, Tensor
from kpatch.functions.reductions import by_name, index_bounds, restore_axes, sums, total
from kpatch.functions.registry import Group
from kpatch.functions.shapes import ravel
from kpatch.values import dtypes
from kpatch.values.arithmetic import compute, convert, fold, prepared
from kpatch.values.dtypes import RANGES, Value, is_floating
from kpatch.values.floats import ranked
from kpatch.values.numerics import carried, concatenate, engine, in_float32, recast, scalar, where

ALONG = Group("Along an axis", names=ranges.of_axes)


def _line(x, axis):
    """The operand and the axis to work along; for axis `None` the flattened operand and axis 0."""
    if axis is None or not x.shape:
        x = ravel(x)
    return x, 0 if axis is None else normal_axis(axis, len(x.shape))


# -- sorting -----------------------------------------------------------------------------------------------------------


@ALONG("ascending, nan last", "sort([3.0, nan, 1.0]) is [1, 3, nan]", bounds=ranges.of_x)
def sort(x: Tensor, axis: Axis = -1):
    x, axis = _line(x, axis)
    if x.weak:
        return fold(x.shape, lambda a: np.sort(a, axis=axis, kind="stable"), x, moves=True)
    return compute(x.dtype, x.shape, lambda a: in_rows(lambda rows: _sorted(rows, x.dtype), a, axis), x)


def _sorted(x, dtype):
    """Sorts along the middle of three axes."""
    ops = backends.current().ops
    result = backends.current().sort(x, dtype)
    if result is not None:
        return result
    return carried(lambda part: ops.take_along_axis(part, _order(x, dtype), axis=1), dtype, x)


@ALONG("the indices that sort; stable, nan last", "argsort([3.0, nan, 1.0]) is [2, 0, 1]", bounds=index_bounds)
def argsort(x: Tensor, axis: Axis = -1):
    x, axis = _line(x, axis)
    if x.weak:
        return fold(x.shape, lambda a: np.argsort(a, axis=axis, kind="stable"), x, dtype="int", moves=True)
    return compute("int32", x.shape, lambda a: order(a, axis, x.dtype), x)


def order(x, axis, dtype):
    """The indices that sort along an axis, as int32: stable, NaN last."""
    return in_rows(lambda rows: _order(rows, dtype), x, axis)


def _order(x, dtype):
    """The indices that sort along the middle of three axes."""
    ops = backends.current().ops
    if dtype == "bool":
        x = ops.cast(x, "int8")
    elif dtype in ("float16", "bfloat16"):
        x, dtype = ops.cast(x, "float32"), "float32"
    backend = backends.current()
    if is_floating(dtype) and not backend.sorts_nan_last:
        x = sortable(x, dtype)
    return backend.order(x)


def sortable(x, dtype):
    """Maps floats to integers of the same order: all NaN equal and last, −0 equal to 0."""
    whole = "int64" if dtype == "float64" else "int32"
    return where(x == x, ranked(x, dtype), scalar(RANGES[whole][1], whole), whole)


# -- running sums and softmax ------------------------------------------------------------------------------------------


@ALONG("running sums", "cumsum([1, 2, 3]) is [1, 3, 6]")
def cumsum(x: Numeric, axis: Axis = None, dtype: DType = None):
    return _accumulated("cumsum", x, axis, dtype)


@ALONG("running products", "cumprod([1, 2, 3]) is [1, 2, 6]")
def cumprod(x: Numeric, axis: Axis = None, dtype: DType = None):
    return _accumulated("cumprod", x, axis, dtype)


def _accumulated(name, x, axis, given):
    """Accumulates in the dtype of sums or, as NumPy does, in the one that is given."""
    x, axis = _line(x, axis)
    if given is None and x.weak:
        return fold(x.shape, lambda a: getattr(np, name)(a, axis=axis), x)
    x, dtype, inner = sums(x) if given is None else sums(_in_dtype(name, x, given))
    dtype = given or dtype

    def run(a):
        return recast(in_rows(lambda rows: engine(name, inner)(rows, 1), a, axis), dtype)

    return compute(dtype, x.shape, run, x, to=inner)


def _in_dtype(name, x, dtype):
    """The operand as a tensor of another dtype, by the rules of an assignment."""
    if dtype == "bool":
        raise DTypeError(f"{name}() makes numbers, not booleans", argument="dtype")
    dtypes.check_available(dtype)
    with blaming("x"):
        x = prepared(x, dtype) if x.weak else convert(x, dtype)
    return Value(dtype, x.shape) if x.weak else x  # a literal is unknown while planning


@ALONG("running logsumexp", "logcumsumexp([0, 0, 0]) is about [0, 0.693147, 1.09861]")
def logcumsumexp(x: Numeric, axis: Axis = None):
    x, axis = _line(x, axis)
    if x.weak:
        return fold(x.shape, lambda a: np.logaddexp.accumulate(a, axis=axis), as_floats(x))
    if x.shape[axis] is None:
        need_lengths("logcumsumexp", x)
    return _in_floats(_logcumsumexp, x, axis)


def _logcumsumexp(x, dtype, axis):
    """By doubling: sums of 1, 2, 4, ... entries. Scaling by the overall maximum would underflow far smaller entries."""

    def scan(rows):
        count = 1
        while count < rows.shape[1]:
            sums = engine("logaddexp", dtype)(rows[:, count:], rows[:, :-count])
            rows = concatenate([rows[:, :count], sums], 1, dtype)
            count *= 2
        return rows

    return in_rows(scan, x, axis)


@ALONG("exp(x), scaled so that the sum is 1", "softmax([0, 1]) is about [0.268941, 0.731059]")
def softmax(x: Numeric, axis: Axis = -1):
    return _in_floats(partial(_softmax, log=False), x, axis)


@ALONG("the logarithm of softmax", "log_softmax([0, 1]) is about [-1.31326, -0.313262]")
def log_softmax(x: Numeric, axis: Axis = -1):
    return _in_floats(partial(_softmax, log=True), x, axis)


def _in_floats(kernel, x, axis):
    """Integers are computed in float32; 16-bit floats in float32 and rounded once."""
    x, axis = _line(x, axis)
    dtype = float_of(x)
    return compute(dtype, x.shape, lambda a: in_float32(partial(kernel, axis=axis), dtype, a), x, to=dtype)


def _softmax(x, dtype, axis, log):
    shifted = x - restore_axes(by_name("max", x, (axis,)), (axis,))
    powers = engine("exp", dtype)(shifted)
    whole = restore_axes(total(powers, (axis,), dtype), (axis,))
    return shifted - engine("log", dtype)(whole) if log else powers / whole


def in_rows(function, x, axis):
    """Applies a shape-preserving function of the middle of three axes along `axis`."""
    ops = backends.current().ops
    shape = ops.shape(x)
    rows = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    return ops.reshape(function(ops.reshape(x, rows)), shape)
