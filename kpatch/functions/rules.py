"""What each group of functions does: checks dtypes and shapes, says what the result is, and computes it.

A rule takes the function's name and its arguments, read and completed, and returns a `Value`. Where an argument is at
fault, the error's `argument` is the parameter's name, or its place among the tensors.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kpatch.errors import DTypeError, FunctionError, LimitError, PatchError, ShapeError, UnsupportedError
from kpatch.functions import reductions, shapes
from kpatch.functions.shapes import differ, normal_axes, one_axis, reduced, widens
from kpatch.indexing import broadcast
from kpatch.values import arithmetic, dtypes, numerics
from kpatch.values.arithmetic import apply, compute, fold
from kpatch.values.dtypes import RANGES, Value, is_floating, is_integer, literal


def need_numbers(name, *values):
    for place, value in enumerate(values):
        if value.dtype == "bool":
            message = f'{name}() takes numbers, not booleans; write cast(..., "float32") or where(..., 1, 0)'
            raise DTypeError(message, argument=place)


def _float_of(value):
    """The float dtype in which a tensor's mathematics is done."""
    return value.dtype if value.dtype in dtypes.FLOATS else "float32"


# -- element by element ------------------------------------------------------------------------------------------------

_OPERATOR = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "true_divide": "/",
    "floor_divide": "//",
    "mod": "%",
    "power": "**",
    "logical_and": "and",
    "logical_or": "or",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}


def _arithmetic(name, x1=None, x2=None, x=None, traced=False):
    if x is not None:
        return arithmetic.unary("-" if name == "negative" else "not", x)
    if name == "logical_xor":
        arithmetic.need_booleans("logical_xor()", x1, x2)
        return arithmetic.compare("!=", replace(x1, is_list=False), replace(x2, is_list=False))
    op = _OPERATOR[name]
    if op in numerics.COMPARISONS:
        return arithmetic.compare(op, x1, x2)
    return arithmetic.binary(op, x1, x2, traced)


def _mathematics(name, x=None, x1=None, x2=None, **options):
    """Of integers in float32; of 16-bit floats computed in float32 and rounded once."""
    operands = [value for value in (x, x1, x2) if value is not None]
    need_numbers(name, *operands)
    shape = broadcast([value.shape for value in operands])
    dtypes.check_size(shape, *operands)
    dtype = dtypes.common(operands)
    formula = numerics.formula(name)
    if dtype in ("int", "float") and formula:
        return fold(shape, formula, *map(as_floats, operands))
    dtype = dtype if dtype in dtypes.FLOATS else "float32"

    def kernel(*arguments):
        *tensors, inner = arguments
        if name in numerics.ACTIVATIONS:
            return numerics.ACTIVATIONS[name](*tensors, inner, **options)
        return numerics.engine(name, inner)(*tensors)

    return apply(dtype, shape, lambda *x: numerics.in_float32(kernel, dtype, *x), *operands, to=dtype)


def as_floats(value):
    data = None if value.data is None else value.data.astype("float64")
    return Value("float", value.shape, data, True, value.is_list)


def _clip(x, x_min, x_max, dtype):
    return numerics.minimum(numerics.maximum(x, x_min, dtype), x_max, dtype)


def _relu(x, dtype):
    return numerics.maximum(x, numerics.scalar(0, dtype), dtype)


_SAME: dict[str, Callable[..., Any]] = {
    "abs": numerics.absolute,
    "sign": numerics.sign,
    "square": lambda x, dtype: x * x,
    "floor": functools.partial(numerics.rounded, "floor"),
    "ceil": functools.partial(numerics.rounded, "ceil"),
    "trunc": numerics.truncate,
    "round": functools.partial(numerics.rounded, "round"),
    "relu": _relu,
    "relu6": lambda x, dtype: numerics.minimum(_relu(x, dtype), numerics.scalar(6, dtype), dtype),
    "nan_to_num": numerics.nan_to_num,
    "maximum": numerics.maximum,
    "minimum": numerics.minimum,
    "clip": _clip,
}
_FOLDED: dict[str, Callable[..., Any]] = {
    "floor": lambda x: x if x.dtype == object else np.floor(x),
    "ceil": lambda x: x if x.dtype == object else np.ceil(x),
    "trunc": lambda x: x if x.dtype == object else np.trunc(x),
    "round": lambda x, decimals: x if x.dtype == object else np.round(x, decimals),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "nan_to_num": lambda x, **to: x if x.dtype == object else np.nan_to_num(x, **to),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
}


def _same_dtype(name, decimals=None, nan=None, posinf=None, neginf=None, **tensors):
    """The operands' common dtype is the result's."""
    operands = list(tensors.values())
    need_numbers(name, *operands)
    shape = broadcast([value.shape for value in operands])
    dtypes.check_size(shape, *operands)
    dtype = dtypes.common(operands)
    options: dict[str, Any] = {}
    if name == "round":
        if decimals < 0 and is_integer(dtype):
            raise FunctionError("integers are not rounded to tens; divide first", argument="decimals")
        options = {"decimals": max(-300, min(decimals, 300))}
    if name == "nan_to_num":
        options = {"nan": nan, "posinf": posinf, "neginf": neginf}
        if dtype in dtypes.FLOATS:
            _check_replacements(options, dtype)
    if dtype in ("int", "float"):
        formula = _FOLDED.get(name) or getattr(np, name)
        return fold(shape, lambda *a: formula(*a, **options), *operands, dtype=dtype)
    return apply(dtype, shape, lambda *x: _SAME[name](*x, dtype=dtype, **options), *operands, to=dtype)


def _check_replacements(options, dtype):
    for parameter, number in options.items():
        if number is not None:
            try:
                dtypes.fit(literal(number), dtype)
            except DTypeError as error:
                error.argument = parameter
                raise


def _test(name, x):
    need_numbers(name, x)
    if x.weak:
        return fold(x.shape, lambda a: getattr(np, name)(a), as_floats(x))
    if is_integer(x.dtype):
        always = name == "isfinite"
        return apply("bool", x.shape, lambda a: (a == a) if always else (a != a), x)
    return apply("bool", x.shape, lambda a: numerics.engine(name, x.dtype)(a), x)


def _close(name, x1, x2, rtol, atol, equal_nan):
    """NumPy's definition, in the operands' float dtype, float32 at least."""
    need_numbers(name, x1, x2)
    shape = broadcast([x1.shape, x2.shape])
    dtypes.check_size(shape, x1, x2)
    dtype = dtypes.common((x1, x2))
    if dtype in ("int", "float"):
        operands = as_floats(x1), as_floats(x2)
        close = fold(shape, lambda a, b: np.isclose(a, b, rtol, atol, equal_nan), *operands)
    else:
        wide = "float64" if dtype == "float64" else "float32"
        near = functools.partial(numerics.close, rtol=rtol, atol=atol, equal_nan=equal_nan, dtype=wide)
        close = apply("bool", shape, near, x1, x2, to=wide)
    return RULES["Reductions"]("all", close) if name == "allclose" else close


def _where(name, condition, x1, x2):
    if condition.dtype != "bool":
        found = {"int": "an integer", "float": "a float"}.get(condition.dtype, condition.dtype)
        raise DTypeError(f"the condition of where() is boolean, not {found}; write '!= 0'", argument="condition")
    shape = broadcast([condition.shape, x1.shape, x2.shape])
    dtypes.check_size(shape, condition, x1, x2)
    try:
        dtype = dtypes.common((x1, x2))
    except DTypeError as error:
        error.argument = ("x1", "x2")[error.argument]
        raise
    if condition.weak and x1.weak and x2.weak:
        return fold(shape, np.where, condition, x1, x2, dtype=dtype)
    if dtype in ("int", "float", "bool"):
        a, b = strong(x1, x2)
        dtype = a.dtype
    else:
        a, b = (arithmetic.prepared(x, dtype, name) for x, name in ((x1, "x1"), (x2, "x2")))
    return apply(dtype, shape, lambda c, a, b: numerics.where(c, a, b, dtype), _as_tensor(condition), a, b)


def strong(*literals):
    """Literals that meet no tensor, as tensors: float32, int32 (int64 where they need it) or bool."""
    kind = dtypes.common(literals)
    if kind == "bool":
        return [_as_tensor(x) for x in literals]
    dtype = "float32"
    if kind == "int":
        low, high = RANGES["int32"]
        wide = any(x.data is not None and ((x.data < low) | (x.data > high)).any() for x in literals)
        dtype = "int64" if wide else "int32"
    dtypes.check_available(dtype)
    return [arithmetic.prepared(x, dtype) for x in literals]


def _as_tensor(value):
    return arithmetic.prepared(value, "bool") if value.weak else value


def _cast(name, x, dtype):
    if not x.weak:
        return apply(dtype, x.shape, lambda a: numerics.cast(a, x.dtype, dtype), x)
    dtypes.check_available(dtype)
    if x.data is None:
        return Value(dtype, x.shape)
    return Value(dtype, x.shape, numerics.as_tensor(numerics.cast_array(x.data, dtype), dtype))


# -- reductions --------------------------------------------------------------------------------------------------------

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": reductions.total,
    "mean": reductions.mean,
    "prod": reductions.product,
    "max": reductions.largest,
    "min": reductions.smallest,
    "var": reductions.variance,
    "std": reductions.deviation,
    "any": reductions.any_along,
    "all": reductions.all_along,
    "count_nonzero": reductions.count,
    "argmax": reductions.first_largest,
    "argmin": reductions.first_smallest,
    "logsumexp": reductions.logsumexp,
    "norm": reductions.norm,
}
_COUNTING = ("sum", "mean", "any", "all", "count_nonzero", "argmax", "argmin")  # take booleans
_NEEDS_ENTRIES = ("max", "min", "argmax", "argmin", "median", "quantile")
_TO_FLOAT = ("mean", "var", "std", "logsumexp", "norm")


def reduction(name, x, axis=None, keepdims=False, **options):
    if name not in _COUNTING:
        need_numbers(name, x)
    axes = normal_axes(axis, len(x.shape))
    if name in ("argmax", "argmin") and isinstance(axis, tuple):
        raise FunctionError("'axis' is one integer here, not a list", argument="axis")
    if name == "norm":
        _check_order(options["ord"], axes)
    shape = reduced(x.shape, axes, keepdims)
    if name in _NEEDS_ENTRIES:
        _check_entries(name, x.shape, axes)
    if x.weak and name not in ("logsumexp", "norm"):
        return _folded_reduction(name, x, shape, axis, keepdims)
    dtype, inner = _reduction_dtypes(name, x)

    def reduce(a):
        a, kept = (a, axes) if x.shape or not name.startswith("arg") else (numerics.reshape(a, (1,)), (0,))
        result = numerics.recast(_REDUCTIONS[name](a, kept, inner, **options), dtype)
        return reductions.restore_axes(result, axes) if keepdims and axes else result

    return compute(dtype, shape, reduce, x, to=inner)


def _reduction_dtypes(name, x):
    """The dtypes of the result, and of the operand while it is reduced: 16-bit floats are summed in float32."""
    if name in ("any", "all"):
        return "bool", x.dtype
    if name in ("count_nonzero", "argmax", "argmin"):
        return "int32", "uint8" if x.dtype == "bool" else x.dtype
    if name in ("max", "min"):
        return x.dtype, x.dtype
    if name in _TO_FLOAT or is_floating(x.dtype):
        dtype = _float_of(x)
        return dtype, "float32" if dtypes.FLOATS[dtype] == 16 else dtype
    dtype = x.dtype if dtypes.NUMPY[x.dtype].itemsize >= 4 else "int32"
    return dtype, dtype


def _check_entries(name, shape, axes):
    if 0 in [shape[axis] for axis in axes]:
        raise ShapeError(f"{name}() of no entries: the shape is {shape}", argument=0)


def _check_order(order, axes):
    if order not in (None, 1, 2, math.inf, -math.inf):
        raise FunctionError(f"'ord' of norm() is 1, 2, inf or -inf, not {order}", argument="ord")
    if order is not None and len(axes) > 1:
        raise UnsupportedError("norms of matrices are not executed yet; name one axis, or ravel", argument="ord")


def _folded_reduction(name, x, shape, axis, keepdims):
    if x.dtype == "bool" and name in ("sum", "mean"):
        x = Value("int", x.shape, None if x.data is None else x.data.astype("int64"), True)
    if name in _TO_FLOAT:
        x = as_floats(x)
    options = {"axis": axis, **({} if name == "count_nonzero" else {"keepdims": keepdims})}
    dtype = "bool" if name in ("any", "all") else "int" if name.startswith(("arg", "count")) else x.dtype
    whole = (lambda a: a != 0) if name in ("any", "all", "count_nonzero") else (lambda a: a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing is NaN, and no warning beside it
        return fold(shape, lambda a: getattr(np, name)(whole(a), **options), x, dtype=dtype)


def _quantile(name, x, q=0.5, axis=None, method="linear", keepdims=False):
    need_numbers(name, x)
    shares = q if isinstance(q, list) else [q]
    wrong = next((share for share in shares if not 0 <= share <= 1), None)
    if wrong is not None:
        raise FunctionError(f"'q' of quantile() lies between 0 and 1: {wrong}", argument="q")
    if isinstance(axis, tuple):
        raise UnsupportedError("quantiles over several axes are not executed yet; reshape first", argument="axis")
    axes = normal_axes(axis, len(x.shape))
    _check_entries(name, x.shape, axes)
    need_lengths(name, x)
    shape = ((len(q),) if isinstance(q, list) else ()) + reduced(x.shape, axes, keepdims)
    dtypes.check_size(shape, x)
    if x.weak:
        return fold(shape, lambda a: np.quantile(a, q, axis=axis, method=method, keepdims=keepdims), as_floats(x))
    dtype = _float_of(x)

    def pick(a, inner):
        results = reductions.quantiles(a, shares, axes, method, inner)
        results = results if isinstance(q, list) else results[0]
        places = [axis + 1 for axis in axes] if isinstance(q, list) else axes
        return reductions.restore_axes(results, places) if keepdims else results

    return compute(dtype, shape, lambda a: numerics.in_float32(pick, dtype, a), x, to=dtype)


def _along(name, x, axis):
    """Functions that keep the shape, and run along one axis; for `None` along all entries in one row."""
    if name not in ("sort", "argsort"):
        need_numbers(name, x)
    if axis is None:
        x = moved("ravel", x)
    if not x.shape:
        x = moved("reshape", x, newshape=(1,))
    axis = 0 if axis is None else one_axis(axis, len(x.shape)) if x.shape else 0
    if x.weak and "softmax" not in name:
        options = {"kind": "stable"} if "sort" in name else {}
        dtype = "int" if name == "argsort" else x.dtype
        return fold(x.shape, lambda a: getattr(np, name)(a, axis=axis, **options), x, dtype=dtype)
    if "softmax" in name:
        dtype, log = _float_of(x), name == "log_softmax"
        kernel = functools.partial(numerics.in_float32, lambda a, inner: reductions.softmax(a, inner, axis, log), dtype)
        return compute(dtype, x.shape, kernel, x, to=dtype)
    if name == "argsort":
        return compute("int32", x.shape, lambda a: reductions.order(a, axis, x.dtype), x)
    if name == "sort":
        return compute(x.dtype, x.shape, lambda a: reductions.sort(a, axis, x.dtype), x)
    dtype, inner = _reduction_dtypes("sum", x)
    return compute(
        dtype, x.shape, lambda a: numerics.recast(reductions.accumulate(name, a, axis, inner), dtype), x, to=inner
    )


# -- creation ----------------------------------------------------------------------------------------------------------


def _creation(name, **arguments):
    return _CREATORS[name](**arguments)


def _filled(shape, number, dtype):
    dtype = dtype or "float32"
    dtypes.check_size(shape)
    dtypes.check_available(dtype)
    return compute(dtype, shape, lambda: numerics.full(shape, numerics.scalar(number, dtype), dtype))


def _filled_with(shape, fill_value, dtype=None):
    _check_fill(shape, fill_value)
    dtypes.check_size(shape, fill_value)
    if dtype is None:
        dtype = "float32" if fill_value.dtype in ("int", "float") else fill_value.dtype
    dtypes.check_available(dtype)
    try:
        value = arithmetic.convert(fill_value, dtype)
    except PatchError as error:
        error.argument = "fill_value"
        raise
    if value.weak and value.data is not None:
        value = Value(dtype, value.shape, numerics.as_tensor(value.data, dtype))
    return compute(dtype, shape, lambda a: numerics.full(shape, a, dtype), value)


def _check_fill(shape, value):
    if not widens(value.shape, shape):
        raise ShapeError(f"a value of shape {value.shape} does not broadcast to {shape}", argument="fill_value")


def _filled_like(x, number, dtype):
    """Of a literal a literal."""
    if x.weak and dtype is None:
        return fold(x.shape, lambda a: np.full_like(a, number), x)
    if None in x.shape:
        dtype = dtype or x.dtype
        return compute(dtype, x.shape, lambda a: numerics.filled_like(a, number, dtype), x)
    return _filled(x.shape, number, dtype or x.dtype)


def _full_like(x, fill_value, dtype):
    if dtype is None:
        dtype = fill_value.dtype if x.weak and not fill_value.weak else x.dtype
        if dtype in ("int", "float"):
            dtype = strong(x)[0].dtype
    if None in x.shape and x.data is None:
        _check_fill(x.shape, fill_value)
        return arithmetic.convert(fill_value, dtype) and Value(dtype, x.shape)
    need_lengths("full_like", x)
    return _filled_with(x.shape, fill_value, dtype)


def need_lengths(name, *operands):
    """Refuses lengths that are not known: while planning they may be known later."""
    unknown = any(None in value.shape for value in operands)
    if unknown and (all(value.data is not None for value in operands) or arithmetic.stays_unknown()):
        raise UnsupportedError(f"{name}() of a tensor with an axis of unknown length is not supported", argument=0)


def _eye(k, dtype, **lengths):
    rows = lengths["N"]
    shape = (rows, rows if lengths["M"] is None else lengths["M"])
    dtypes.check_size(shape)
    dtype = dtype or "float32"
    return compute(dtype, shape, lambda: numerics.eye(*shape, max(-shape[0], min(k, shape[1])), dtype))


def _arange(start, stop, step, dtype):
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


def _linspace(start, stop, num, endpoint, dtype):
    if num < 0:
        raise FunctionError(f"'num' of linspace() cannot be negative: {num}", argument="num")
    dtypes.check_size((num,))
    dtype = dtype or "float32"
    if not is_floating(dtype):
        raise DTypeError(f"linspace() makes floats, not {dtype}", argument="dtype")
    step = (stop - start) / max(1, num - 1 if endpoint else num)
    dtypes.fit(literal([float(start), float(stop)]), dtype)
    return compute(dtype, (num,), lambda: numerics.sequence(start, step, num, dtype, stop if endpoint else None))


_CREATORS: dict[str, Callable[..., Any]] = {
    "zeros": lambda shape, dtype: _filled(shape, 0, dtype),
    "ones": lambda shape, dtype: _filled(shape, 1, dtype),
    "full": _filled_with,
    "zeros_like": lambda x, dtype: _filled_like(x, 0, dtype),
    "ones_like": lambda x, dtype: _filled_like(x, 1, dtype),
    "full_like": _full_like,
    "eye": _eye,
    "arange": _arange,
    "linspace": _linspace,
}


# -- shapes ------------------------------------------------------------------------------------------------------------


def _sizes(name, x):
    if name == "ndim":
        return literal(len(x.shape))
    known = None not in x.shape
    if not known and (x.data is not None or arithmetic.stays_unknown()):
        shape = (len(x.shape),) if name == "shape" else ()
        return compute("int32", shape, functools.partial(numerics.shape_or_size, name), x)
    if name == "shape":
        data = np.array(x.shape, "int64") if known else None
        return Value("int", (len(x.shape),), data, True, True)
    return literal(math.prod(x.shape)) if known else Value("int", (), None, True)


def moved(name, x, **arguments):
    """Functions that move entries: the shape rule gives the result's shape, and the arguments by position."""
    if name == "trace":
        return reduction("sum", moved("diagonal", x, **arguments), axis=-1)
    shape, options = shapes.RULES[name](x.shape, **arguments)
    dtypes.check_size(shape, x)
    if x.weak and None in shape:
        return Value(x.dtype, shape, None, True, x.is_list)  # `broadcast_to(0, shape(_))`, planned under a mask
    if x.weak:
        numpy_name = "reshape" if name == "ravel" else name
        return fold(shape, lambda a: getattr(np, numpy_name)(a, *options), x, dtype=x.dtype)
    return compute(x.dtype, shape, lambda a: numerics.move(name, a, options, x.dtype), x)


# -- joining ---------------------------------------------------------------------------------------------------------


def _joining(name, axis, x=None, xs=None):
    return join(name, xs if x is None else x, axis)


def join(name, values, axis):
    """`concatenate` or `stack`: one tensor of several, which meet in one dtype."""
    if not values:
        raise FunctionError(f"{name}() of no tensors", argument=0)
    if any(isinstance(value, str) for value in values):
        raise FunctionError("a list holds tensors and numbers, not strings", argument=0)
    if any(len(value.shape) != len(values[0].shape) for value in values):
        _refuse_shapes(name, [value.shape for value in values])
    if name == "stack":
        place = one_axis(axis, len(values[0].shape) + 1)
        values = [moved("expand_dims", value, axis=place) for value in values]
    if not values[0].shape:
        raise ShapeError("numbers have no axis to be joined along; write stack(...)", argument=0)
    place = one_axis(axis, len(values[0].shape))
    rests = [value.shape[:place] + value.shape[place + 1 :] for value in values]
    rest = rests[0]
    for other in rests:
        if any(map(differ, rest, other)):
            _refuse_shapes(name, rests if name == "stack" else [value.shape for value in values])
        rest = tuple(b if a is None else a for a, b in zip(rest, other, strict=True))
    lengths = [value.shape[place] for value in values]
    shape = (*rest[:place], None if None in lengths else sum(lengths), *rest[place:])
    dtypes.check_size(shape, *values)
    dtype = dtypes.common(values)
    if all(value.weak for value in values):
        return fold(shape, lambda *arrays: np.concatenate(arrays, axis=place), *values, dtype=dtype)
    return compute(dtype, shape, lambda *x: numerics.concatenate(x, place, dtype), *values, to=dtype)


def _refuse_shapes(name, found):
    first, other = found[0], next(shape for shape in found if shape != found[0])
    verb = "joined" if name == "concatenate" else "stacked"
    raise ShapeError(f"tensors of the shapes {first} and {other} cannot be {verb}", argument=0)


RULES: dict[str, Callable[..., Any]] = {
    "Arithmetic and comparison": _arithmetic,
    "Element-wise mathematics": _mathematics,
    "Element-wise, in the same dtype": _same_dtype,
    "Tests of entries": _test,
    "Closeness": _close,
    "Choice": _where,
    "Conversion": _cast,
    "Reductions": reduction,
    "Quantiles": _quantile,
    "Along an axis": _along,
    "Creation": _creation,
    "Sizes": _sizes,
    "Shape": moved,
    "Joining": _joining,
}
