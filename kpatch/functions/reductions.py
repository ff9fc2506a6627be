"""Reductions along any axes, with one result on every backend.

Adjacent axes are reshaped into the middle one of three, so backends' limits on the number of axes do not matter, and
few of their kernels are needed.
"""

import math
import warnings
from functools import partial

import numpy as np

from kpatch import backends
from kpatch.backends.base import OtherBitsError
from kpatch.errors import ShapeError
from kpatch.functions import ranges
from kpatch.functions.axes import normal_axes, reduced, size
from kpatch.functions.operands import as_floats, blaming, float_of
from kpatch.functions.parameters import Axis, Flag, Integers, Number, Numeric, Tensor
from kpatch.functions.ranges import Range
from kpatch.functions.registry import Group
from kpatch.values import dtypes
from kpatch.values.arithmetic import compute, convert, fold
from kpatch.values.dtypes import NUMPY, Value, is_floating, literal
from kpatch.values.floats import is_nonzero
from kpatch.values.numerics import engine, full, recast, scalar, where

BLOCK = 256  # terms added one by one; a longer sum is a sum of such sums
REDUCTIONS = Group("Reductions", names=ranges.without_reduced)

# -- dtype rules: the operand, the result's dtype, and the dtype of the reduction --------------------------------------


def same(x):
    return x, x.dtype, x.dtype


def floats(x):
    """16-bit floats are reduced in float32."""
    if x.weak:
        return as_floats(x), "float", None
    dtype = float_of(x)
    return x, dtype, "float32" if dtypes.FLOATS[dtype] == 16 else dtype


def sums(x):
    """Booleans are counted; integers are summed in at least 32 bits."""
    if x.weak and x.dtype == "bool":
        x = Value("int", x.shape, None if x.data is None else x.data.astype("int64"), True)
    if x.weak:
        return same(x)
    if is_floating(x.dtype):
        return floats(x)
    dtype = x.dtype if NUMPY[x.dtype].itemsize >= 4 else "int32"
    return x, dtype, dtype


def _flags(x):
    return x, "bool", x.dtype


def _whole(x):
    if x.weak:
        return x, "int", None
    return x, "int32", "uint8" if x.dtype == "bool" else x.dtype


def reduce(kernel, x, axis, keepdims, rule, formula):
    """The `Value` of a kernel that reduces axes.

    Args:
        kernel: takes a tensor, the axes and the dtype of the reduction; returns the result without these axes.
        rule: the dtype rule.
        formula: NumPy's function, for literals; with `None`, literals become float32 tensors.
    """
    axes = normal_axes(axis, len(x.shape))
    shape = reduced(x.shape, axes, keepdims)
    if x.weak and formula is None:
        dtype = inner = "float32"
    else:
        x, dtype, inner = rule(x)
    if x.weak and formula:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of no entries is NaN, without a warning
            return fold(shape, lambda a: formula(a, axis=axis, keepdims=keepdims), x, dtype=dtype)

    def run(a):
        result = recast(kernel(a, axes, inner), dtype)
        return restore_axes(result, axes) if keepdims and axes else result

    return compute(dtype, shape, partial(_on_host, run), x, to=inner)


def _on_host(run, x):
    """`run(x)`, by another backend if the present one has that reduce `x`."""
    backend = backends.current()
    reducer = backend.reducer(x)
    if reducer is None:
        return run(x)
    try:
        with backends.using(reducer):
            result = run(reducer.taken(x))
    except OtherBitsError:
        return run(x)
    return backend.placed(result, x)


def need_entries(name, x, axis):
    shape, axes = x.shape, normal_axes(axis, len(x.shape))
    if 0 in [shape[axis] for axis in axes]:
        raise ShapeError(f"{name}() of no entries: the shape is {shape}", argument=0)


# -- sums --------------------------------------------------------------------------------------------------------------


def _count_bounds(result, x, axis, **_):
    """The range of a count of entries."""
    count = size([x.shape[place] for place in normal_axes(axis, len(x.shape))])
    return None if count is None else Range(0, count)


@REDUCTIONS(
    "the sum; for booleans, the number of true entries",
    "sum([[1, 2], [3, 4]], axis=0) is [4, 6]",
    bounds=lambda result, x, **options: _count_bounds(result, x, **options) if x.dtype == "bool" else None,
)
def sum_(x: Tensor, axis: Integers = None, keepdims: Flag = False):
    return reduce(total, x, axis, keepdims, sums, np.sum)


def total(x, axes, dtype):
    """The sum. Float sums are taken in blocks if the backend adds terms one by one."""
    x = x if x.dtype == NUMPY[dtype] else recast(x, dtype)  # of its own dtype NumPy would copy it
    in_blocks = is_floating(dtype) and backends.current().sums_one_by_one
    return reduce_along(_sum_in_blocks, x, axes) if in_blocks else by_name("sum", x, axes)


def _sum_in_blocks(x):
    """Sums of at most `BLOCK` terms, except along a contiguous axis, which NumPy and TensorFlow add pairwise."""
    ops = backends.current().ops
    outer, count, inner = x.shape
    if None in (outer, count, inner) or inner == 1 or count <= BLOCK:
        return ops.sum(x, axis=1)
    whole = count - count % BLOCK
    blocks = ops.reshape(x[:, :whole], (outer, BLOCK, whole // BLOCK, inner))
    result = _sum_in_blocks(ops.sum(blocks, axis=1))
    return result if whole == count else result + ops.sum(x[:, whole:], axis=1)


@REDUCTIONS("the mean; for booleans, the share of true entries", "mean([[1, 2], [3, 4]]) is 2.5")
def mean(x: Tensor, axis: Integers = None, keepdims: Flag = False):
    return reduce(_mean, x, axis, keepdims, floats, np.mean)


def _mean(x, axes, dtype):
    return total(x, axes, dtype) / _length(x, axes, dtype)


def _length(x, axes, dtype):
    """The number of entries reduced to one, as a float scalar."""
    ops = backends.current().ops
    shape = ops.shape(x)
    lengths = [shape[axis] for axis in axes]
    if all(isinstance(length, int) for length in lengths):
        return scalar(math.prod(lengths), dtype)
    return ops.cast(ops.zeros((), "int32") + math.prod(lengths), dtype)  # as in `grids.Span`


@REDUCTIONS("the product", "prod([[1, 2], [3, 4]]) is 24")
def prod(x: Numeric, axis: Integers = None, keepdims: Flag = False):
    def kernel(a, axes, dtype):
        return reduce_along(lambda part: recast(engine("prod", dtype)(part, 1), dtype), a, axes)

    return reduce(kernel, x, axis, keepdims, sums, np.prod)


def _best_bounds(result, x, initial, **_):
    """The range of one of the entries or `initial`."""
    if initial is None:
        return ranges.of_x(result, x)
    return ranges.hull(ranges.of(x), Range(initial, initial)) if isinstance(initial, int) else None


@REDUCTIONS("the largest entry; nan if an entry is nan", "max([[1, 2], [3, 4]], axis=1) is [2, 4]", bounds=_best_bounds)
def max_(x: Numeric, axis: Integers = None, keepdims: Flag = False, initial: Number = None):
    return _best("max", x, axis, keepdims, initial)


@REDUCTIONS(
    "the smallest entry; nan if an entry is nan",
    "min([[1, 2], [3, 4]], axis=1, keepdims=true) is [[1], [3]]",
    bounds=_best_bounds,
)
def min_(x: Numeric, axis: Integers = None, keepdims: Flag = False, initial: Number = None):
    return _best("min", x, axis, keepdims, initial)


def _best(how, x, axis, keepdims, initial):
    """The best entry, or `initial` if that is better; without it there must be an entry."""
    if initial is None:
        need_entries(how, x, axis)
        return reduce(partial(by_name, how), x, axis, keepdims, same, getattr(np, how))
    if x.dtype not in ("int", "float"):
        with blaming("initial"):
            convert(literal(initial), x.dtype)
    elif isinstance(initial, float):
        x = as_floats(x)

    def kernel(a, axes, dtype):
        start = scalar(initial, dtype)
        if 0 in a.shape:  # not every backend reduces it
            return full(reduced(tuple(a.shape), axes), start, dtype)
        return engine(f"{how}imum", dtype)(by_name(how, a, axes), start)

    return reduce(kernel, x, axis, keepdims, same, partial(getattr(np, how), initial=initial))


@REDUCTIONS("the variance", "var([1, 2, 3, 6]) is 3.5")
def var(x: Numeric, axis: Integers = None, keepdims: Flag = False):
    return reduce(_variance, x, axis, keepdims, floats, np.var)


def _variance(x, axes, dtype):
    centred = x - restore_axes(_mean(x, axes, dtype), axes)
    return _mean(centred * centred, axes, dtype)


@REDUCTIONS("the standard deviation", "std([1, 2, 3, 6]) is about 1.87083")
def std(x: Numeric, axis: Integers = None, keepdims: Flag = False):
    def kernel(a, axes, dtype):
        return engine("sqrt", dtype)(_variance(a, axes, dtype))

    return reduce(kernel, x, axis, keepdims, floats, np.std)


@REDUCTIONS("whether an entry is not 0", "any([true, false]) is true")
def any_(x: Tensor, axis: Integers = None, keepdims: Flag = False):
    return _whether("any", x, axis, keepdims)


@REDUCTIONS("whether no entry is 0", "all([true, false]) is false")
def all_(x: Tensor, axis: Integers = None, keepdims: Flag = False):
    return _whether("all", x, axis, keepdims)


def _whether(name, x, axis, keepdims):
    def kernel(a, axes, dtype):
        return by_name(name, _as_flags(a, dtype), axes)

    return reduce(kernel, x, axis, keepdims, _flags, lambda a, **axes: getattr(np, name)(a != 0, **axes))


def _as_flags(x, dtype):
    return x if dtype == "bool" else is_nonzero(x, dtype)


@REDUCTIONS("the number of entries that are not 0", "count_nonzero([0, 5, 0, 7]) is 2", bounds=_count_bounds)
def count_nonzero(x: Tensor, axis: Integers = None):
    def kernel(a, axes, dtype):
        return total(_as_flags(a, dtype), axes, "int32")

    return reduce(kernel, x, axis, False, _whole, lambda a, **axes: np.count_nonzero(a != 0, **axes))


def index_bounds(result, x, axis, **_):
    """The range of an index along an axis or, for `None`, into the flattened tensor."""
    if len(x.shape) < 2:
        axis = 0
    length = size(x.shape) if axis is None or not x.shape else x.shape[axis]
    if length is not None:
        return Range(0, max(0, length - 1))
    name = None if axis is None else ranges.named(x.axes, axis)
    return name and Range(0, -1, name)


@REDUCTIONS("the index of the first largest entry or first nan", "argmax([1, 9, 9]) is 1", bounds=index_bounds)
def argmax(x: Tensor, axis: Axis = None, keepdims: Flag = False):
    need_entries("argmax", x, axis)
    return reduce(partial(_first_best, "max"), x, axis, keepdims, _whole, np.argmax)


@REDUCTIONS(
    "the index of the first smallest entry or first nan",
    "argmin([[1, 2], [4, 3]], axis=1) is [0, 1]",
    bounds=index_bounds,
)
def argmin(x: Tensor, axis: Axis = None, keepdims: Flag = False):
    need_entries("argmin", x, axis)
    return reduce(partial(_first_best, "min"), x, axis, keepdims, _whole, np.argmin)


def _first_best(how, x, axes, dtype):
    """The index of the first NaN, else of the first best entry, as int32; for several axes, into all of them.

    The backends differ for NaN, for ties, and (by design of Keras) for −0 and 0.
    """
    ops = backends.current().ops
    if not x.shape:
        x, axes = ops.reshape(x, (1,)), (0,)

    def of_three_axes(part):
        places = backends.current().first_best(how, part)
        if places is not None:
            return places
        best = getattr(ops, how)(part, axis=1, keepdims=True)
        found = part == best
        if is_floating(dtype):
            found = ops.where(best == best, found, part != part)
        length = ops.shape(part)[1]
        places = ops.reshape(ops.arange(length, dtype="int32"), (1, length, 1))
        return ops.min(ops.where(found, places, places * 0 + length), axis=1)  # openvino takes 2 ** 31 - 1 for less

    return reduce_along(of_three_axes, x, axes)


@REDUCTIONS("log(sum(exp(x)))", "logsumexp([0, 0]) is about 0.693147")
def logsumexp(x: Numeric, axis: Integers = None, keepdims: Flag = False):
    return reduce(_logsumexp, x, axis, keepdims, floats, None)


def _logsumexp(x, axes, dtype):
    ops = backends.current().ops
    if 0 in x.shape:
        return total(x, axes, dtype) - scalar(np.inf, dtype)
    top = by_name("max", x, axes)
    top = where(ops.isfinite(top), top, scalar(0, dtype), dtype)
    scaled = engine("exp", dtype)(x - restore_axes(top, axes))
    return engine("log", dtype)(total(scaled, axes, dtype)) + top


# -- along several axes ------------------------------------------------------------------------------------------------


def runs(axes):
    """The axes grouped into half-open intervals of adjacent ones.

    Example:
        >>> runs([0, 2, 3])
        [(0, 1), (2, 4)]
    """
    result: list[tuple[int, int]] = []
    for axis in sorted(axes):
        if result and result[-1][1] == axis:
            result[-1] = (result[-1][0], axis + 1)
        else:
            result.append((axis, axis + 1))
    return result


def reduce_along(function, x, axes):
    """Applies a function that reduces the middle of three axes to each run of adjacent axes."""
    ops = backends.current().ops
    shape = ops.shape(x)
    for start, stop in reversed(runs(axes)):
        parts = shape[:start], shape[start:stop], shape[stop:]
        x = function(ops.reshape(x, [math.prod(part) for part in parts]))
        shape = shape[:start] + shape[stop:]
    return ops.reshape(x, shape)


def by_name(name, x, axes, dtype=None):
    """A reduction of `keras.ops` with the same meaning on every backend."""
    ops = backends.current().ops
    return reduce_along(lambda part: getattr(ops, name)(part, axis=1), x, axes)


def restore_axes(x, axes):
    """The tensor with the reduced axes put back, with length 1."""
    ops = backends.current().ops
    return ops.expand_dims(x, tuple(axes)) if axes else x
