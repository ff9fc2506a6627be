"""Element-wise functions: operators by name, mathematics, tests, choice and conversion."""

from dataclasses import replace
from functools import partial

import numpy as np

from kpatch.errors import DTypeError
from kpatch.functions import ranges
from kpatch.functions.operands import as_floats, blaming, float_of, strong
from kpatch.functions.parameters import Context, DType, Flag, Integer, Number, Numeric, Tensor
from kpatch.functions.ranges import Range, between, each
from kpatch.functions.reductions import all_
from kpatch.functions.registry import Group
from kpatch.indexing import broadcast
from kpatch.values import arithmetic, casts, comparisons, dtypes, numerics
from kpatch.values.arithmetic import apply, fold
from kpatch.values.dtypes import Value, is_integer, literal


def _broadcast(*operands):
    """The shape of the result."""
    shape = broadcast([value.shape for value in operands])
    dtypes.check_size(shape, *operands)
    return shape


ARITHMETIC = Group("Arithmetic and comparison", elementwise=True, names=ranges.aligned)


def _operator(name, op, description, example):
    """Defines the function of an operator."""

    def rule(x1: Tensor, x2: Tensor, *, traced: Context):
        if op in comparisons.COMPARISONS:
            return arithmetic.compare(op, x1, x2)
        return arithmetic.binary(op, x1, x2, traced)

    ARITHMETIC(description, example, name, bounds=ranges.operator(op))(rule)


_operator("add", "+", "the sum, as `+`", "add([1, 2], 10) is [11, 12]")
_operator("subtract", "-", "the difference, as `-`", "subtract([1, 2], 10) is [-9, -8]")
_operator("multiply", "*", "the product, as `*`", "multiply([1, 2], [3, 4]) is [3, 8]")
_operator("divide", "/", "the quotient, a float, as `/`", "divide([1, 2], 4) is [0.25, 0.5]")
_operator("true_divide", "/", "the quotient, a float, as `/`", "true_divide([1, 2], 4) is [0.25, 0.5]")
_operator("floor_divide", "//", "the quotient rounded down, as `//`", "floor_divide([7, -7], 2) is [3, -4]")
_operator("mod", "%", "the remainder, with the sign of x2, as `%`", "mod([7, -7], 3) is [1, 2]")
_operator("power", "**", "x1 to the power of x2, as `**`", "power([2, 3], 2) is [4, 9]")


@ARITHMETIC("the negative, as unary `-`", "negative([1, -2]) is [-1, 2]", bounds=each(ranges.negative))
def negative(x: Tensor):
    return arithmetic.unary("-", x)


_operator("equal", "==", "as `==`; one boolean for two lists", 'equal(cast([1, 2], "int8"), 2) is [false, true]')
_operator(
    "not_equal", "!=", "as `!=`; one boolean for two lists", 'not_equal(cast([1, 2], "int8"), 2) is [true, false]'
)
_operator("less", "<", "as `<`", "less([1, 2, 3], 2) is [true, false, false]")
_operator("less_equal", "<=", "as `<=`", "less_equal([1, 2, 3], 2) is [true, true, false]")
_operator("greater", ">", "as `>`", "greater([1, 2, 3], 2) is [false, false, true]")
_operator("greater_equal", ">=", "as `>=`", "greater_equal([1, 2, 3], 2) is [false, true, true]")
_operator(
    "logical_and", "and", "as `and`", "logical_and([true, true, false], [true, false, false]) is [true, false, false]"
)
_operator("logical_or", "or", "as `or`", "logical_or([true, true, false], [true, false, false]) is [true, true, false]")


@ARITHMETIC(
    "whether exactly one is true", "logical_xor([true, true, false], [true, false, false]) is [false, true, false]"
)
def logical_xor(x1: Tensor, x2: Tensor):
    arithmetic.need_booleans("logical_xor()", x1, x2)
    return arithmetic.compare("!=", replace(x1, is_list=False), replace(x2, is_list=False))


@ARITHMETIC("as `not`", "logical_not([true, false]) is [false, true]")
def logical_not(x: Tensor):
    return arithmetic.unary("not", x)


MATHEMATICS = Group("Element-wise mathematics", elementwise=True, names=ranges.aligned)


def _in_floats(kernel, formula, *operands):
    """Integers are computed in float32; 16-bit floats in float32 and rounded once.

    Args:
        kernel: the result from the tensors and their dtype.
        formula: the result from literals, as NumPy arrays; with `None`, literals become float32 tensors.
    """
    shape = _broadcast(*operands)
    if formula and all(x.weak for x in operands):
        return fold(shape, formula, *map(as_floats, operands))
    dtype = float_of(*operands)
    return apply(dtype, shape, lambda *x: numerics.in_float32(kernel, dtype, *x), *operands, to=dtype)


def _by_name(name, *operands):
    def kernel(*arguments):
        *tensors, dtype = arguments
        return numerics.engine(name, dtype)(*tensors)

    return _in_floats(kernel, numerics.formula(name), *operands)


def _function(name, description, example, operands=1):
    """Defines the function `keras.ops.name` of one or two operands."""

    def of_one(x: Numeric):
        return _by_name(name, x)

    def of_two(x1: Numeric, x2: Numeric):
        return _by_name(name, x1, x2)

    MATHEMATICS(description, example, name)(of_one if operands == 1 else of_two)


_function("exp", "e to the power of each entry", "exp([0, 1]) is about [1, 2.71828]")
_function("exp2", "2 to the power of each entry", "exp2([3, -1]) is about [8, 0.5]")
_function("expm1", "exp(x) - 1, exact near 0", "expm1([0, 1]) is about [0, 1.71828]")
_function("log", "the natural logarithm", "log([1, 10]) is about [0, 2.30259]")
_function("log2", "the logarithm to base 2", "log2([8, 0.5]) is about [3, -1]")
_function("log10", "the logarithm to base 10", "log10([1000, 0.1]) is about [3, -1]")
_function("log1p", "log(1 + x), exact near 0", "log1p([0, 1]) is about [0, 0.693147]")
_function("sqrt", "the square root", "sqrt([4, 2]) is about [2, 1.41421]")
_function("rsqrt", "1 / sqrt(x)", "rsqrt([4, 0.25]) is about [0.5, 2]")
_function("cbrt", "the cube root", "cbrt([8, -27]) is about [2, -3]")
_function("reciprocal", "1 / x", "reciprocal([2, 8]) is about [0.5, 0.125]")
_function("sin", "the sine", "sin([0, 1]) is about [0, 0.841471]")
_function("cos", "the cosine", "cos([0, 1]) is about [1, 0.540302]")
_function("tan", "the tangent", "tan([0, 1]) is about [0, 1.55741]")
_function("arcsin", "the inverse sine", "arcsin([0, 1]) is about [0, 1.5708]")
_function("arccos", "the inverse cosine", "arccos([1, 0]) is about [0, 1.5708]")
_function("arctan", "the inverse tangent", "arctan([0, 1]) is about [0, 0.785398]")
_function("sinh", "the hyperbolic sine", "sinh([0, 1]) is about [0, 1.1752]")
_function("cosh", "the hyperbolic cosine", "cosh([0, 1]) is about [1, 1.54308]")
_function("tanh", "the hyperbolic tangent", "tanh([0, 1]) is about [0, 0.761594]")
_function("arcsinh", "the inverse hyperbolic sine", "arcsinh([0, 1]) is about [0, 0.881374]")
_function("arccosh", "the inverse hyperbolic cosine", "arccosh([1, 2]) is about [0, 1.31696]")
_function("arctanh", "the inverse hyperbolic tangent", "arctanh([0, 0.5]) is about [0, 0.549306]")
_function("deg2rad", "degrees as radians", "deg2rad([0, 180]) is about [0, 3.14159]")
_function("rad2deg", "radians as degrees", "rad2deg([0, 1]) is about [0, 57.2958]")
_function("erf", "the error function", "erf([0, 1]) is about [0, 0.842701]")
_function("sigmoid", "1 / (1 + exp(-x))", "sigmoid([0, 1]) is about [0.5, 0.731059]")
_function("silu", "x * sigmoid(x)", "silu([0, 1]) is about [0, 0.731059]")
_function("softplus", "log(1 + exp(x))", "softplus([0, 1]) is about [0.693147, 1.31326]")
_function("softsign", "x / (1 + abs(x))", "softsign([1, -3]) is about [0.5, -0.75]")


@MATHEMATICS("the Gaussian error linear unit", "gelu([1, -1], approximate=false) is about [0.841345, -0.158655]")
def gelu(x: Numeric, approximate: Flag = True):
    return _in_floats(partial(numerics.gelu, approximate=approximate), None, x)


@MATHEMATICS("x; alpha * (exp(x) - 1) for negative x", "elu([2, -1]) is about [2, -0.632121]")
def elu(x: Numeric, alpha: Number = 1.0):
    return _in_floats(partial(numerics.elu, alpha=alpha), None, x)


@MATHEMATICS("x; negative_slope * x for negative x", "leaky_relu([2, -1]) is about [2, -0.2]")
def leaky_relu(x: Numeric, negative_slope: Number = 0.2):
    return _in_floats(partial(numerics.leaky_relu, negative_slope=negative_slope), None, x)


_function("arctan2", "the angle of the point (x2, x1)", "arctan2([0, 1], -1) is about [3.14159, 2.35619]", operands=2)


@MATHEMATICS("sqrt(x1**2 + x2**2)", "hypot([3, 5], [4, 12]) is about [5, 13]")
def hypot(x1: Numeric, x2: Numeric):
    return _in_floats(numerics.hypot, np.hypot, x1, x2)


_function("logaddexp", "log(exp(x1) + exp(x2))", "logaddexp([0, 1], 0) is about [0.693147, 1.31326]", operands=2)


@MATHEMATICS(
    "0 for negative x1, x2 where x1 is 0, 1 for positive x1; nan where x1 is nan",
    "heaviside([-2, 0, 3], 0.5) is [0, 0.5, 1]",
    bounds=each(lambda x1, x2: ranges.hull(Range(0, 1), x2)),
)
def heaviside(x1: Numeric, x2: Numeric):
    return _in_floats(numerics.heaviside, np.heaviside, x1, x2)


SAME_DTYPE = Group("Element-wise, in the same dtype", elementwise=True, names=ranges.aligned)


def _in_one_dtype(kernel, formula, *operands):
    """The result has the operands' common dtype. `kernel` and `formula` are as for `_in_floats`."""
    shape, dtype = _broadcast(*operands), dtypes.common(operands)
    if dtype in ("int", "float"):
        return fold(shape, formula, *operands, dtype=dtype)
    return apply(dtype, shape, lambda *x: kernel(*x, dtype), *operands, to=dtype)


def _unless_whole(formula):
    """The formula of literals that leaves integers (arrays of objects) unchanged."""
    return lambda x: x if x.dtype == object else formula(x)


def _of_one(name, kernel, formula, description, example, bounds=None):
    """Defines a function of one operand."""

    def rule(x: Numeric):
        return _in_one_dtype(kernel, formula, x)

    SAME_DTYPE(description, example, name, bounds=bounds and each(bounds))(rule)


def _rounded(name, description, example, kernel):
    _of_one(name, kernel, _unless_whole(getattr(np, name)), description, example, ranges.rounded)


_of_one("abs", numerics.absolute, np.abs, "the absolute value", "abs([1, -2]) is [1, 2]", ranges.absolute)


@SAME_DTYPE("1, 0 or -1; nan for nan", "sign([3.5, 0.0, -2.0]) is [1, 0, -1]", bounds=between(-1, 1))
def sign(x: Numeric):
    return _in_one_dtype(numerics.sign, np.sign, x)


_of_one("square", lambda x, dtype: x * x, np.square, "x * x", "square([3, -4]) is [9, 16]")
_rounded("floor", "rounded down", "floor([1.5, -1.5]) is [1, -2]", partial(numerics.rounded, "floor"))
_rounded("ceil", "rounded up", "ceil([1.5, -1.5]) is [2, -1]", partial(numerics.rounded, "ceil"))
_rounded("trunc", "rounded towards 0", "trunc([1.5, -1.5]) is [1, -1]", numerics.truncate)


@SAME_DTYPE(
    "rounded to the nearest, halves to even",
    "round([0.5, 1.5, 2.25]) is [0, 2, 2]",
    bounds=lambda result, x, decimals: each(ranges.rounded)(result, x=x) if decimals >= 0 else None,
)
def round_(x: Numeric, decimals: Integer = 0):
    if decimals < 0 and is_integer(x.dtype):
        return _to_tens(x, decimals)
    decimals = max(-300, min(decimals, 300))
    kernel = partial(numerics.rounded, "round", decimals=decimals)
    return _in_one_dtype(kernel, _unless_whole(lambda x: np.round(x, decimals)), x)


def _to_tens(x, decimals):
    """Integers rounded to multiples of a power of 10, halves to even; what the dtype cannot hold wraps."""
    ten = 10 ** min(-decimals, 20)
    if ten > dtypes.RANGES["uint64" if x.weak else x.dtype][1]:
        return arithmetic.binary("*", x, literal(0))
    whole = arithmetic.binary("//", x, literal(ten))
    rest = arithmetic.binary("-", x, arithmetic.binary("*", whole, literal(ten)))
    odd = arithmetic.binary("%", whole, literal(2))
    # A half goes up from an odd multiple: `rest > half`, or `rest >= half` there.
    up = arithmetic.compare(">", arithmetic.binary("+", rest, odd), literal(ten // 2))
    whole = where(up, arithmetic.binary("+", whole, literal(1)), whole)
    return arithmetic.binary("*", whole, literal(ten))


@SAME_DTYPE("x; 0 for negative x", "relu([2, -1]) is [2, 0]", bounds=each(lambda x: ranges.maximum(x, Range(0, 0))))
def relu(x: Numeric):
    return maximum(x, literal(0))


@SAME_DTYPE(
    "x, at least 0 and at most 6",
    "relu6([2, -1, 9]) is [2, 0, 6]",
    bounds=each(lambda x: ranges.clip(x, Range(0, 0), Range(6, 6))),
)
def relu6(x: Numeric):
    return clip(x, literal(0), literal(6))


@SAME_DTYPE("nan and infinities replaced by numbers", "nan_to_num([nan, inf, 1.0], posinf=9) is [0, 9, 1]")
def nan_to_num(x: Numeric, nan: Number = 0.0, posinf: Number = None, neginf: Number = None):
    to = {"nan": nan, "posinf": posinf, "neginf": neginf}
    for parameter, number in to.items() if x.dtype in dtypes.FLOATS else ():
        if number is not None:
            with blaming(parameter):
                dtypes.fit(literal(number), x.dtype)
    kernel = partial(numerics.nan_to_num, **to)
    return _in_one_dtype(kernel, _unless_whole(partial(np.nan_to_num, **to)), x)


@SAME_DTYPE("the larger of two; nan where either is", "maximum([1, 5], [3, 2]) is [3, 5]", bounds=each(ranges.maximum))
def maximum(x1: Numeric, x2: Numeric):
    return _in_one_dtype(numerics.maximum, np.maximum, x1, x2)


@SAME_DTYPE("the smaller of two; nan where either is", "minimum([1, 5], [3, 2]) is [1, 2]", bounds=each(ranges.minimum))
def minimum(x1: Numeric, x2: Numeric):
    return _in_one_dtype(numerics.minimum, np.minimum, x1, x2)


@SAME_DTYPE("x, at least x_min and at most x_max", "clip([-3, 0, 7], -1, 1) is [-1, 0, 1]", bounds=each(ranges.clip))
def clip(x: Numeric, x_min: Numeric, x_max: Numeric):
    return _in_one_dtype(numerics.clip, lambda x, low, high: np.minimum(np.maximum(x, low), high), x, x_min, x_max)


TESTS = Group("Tests of entries", elementwise=True, names=ranges.aligned)


def _test(name, description, example):
    """Defines the test `keras.ops.name`; all integers are finite."""

    def rule(x: Numeric):
        if x.weak:
            return fold(x.shape, getattr(np, name), as_floats(x))
        if not is_integer(x.dtype):
            return apply("bool", x.shape, lambda a: numerics.engine(name, x.dtype)(a), x)
        return apply("bool", x.shape, lambda a: (a == a) if name == "isfinite" else (a != a), x)

    TESTS(description, example, name)(rule)


_test("isnan", "whether an entry is nan", "isnan([1.0, nan, inf]) is [false, true, false]")
_test("isinf", "whether an entry is infinite", "isinf([1.0, nan, inf]) is [false, false, true]")
_test("isfinite", "whether an entry is neither nan nor infinite", "isfinite([1.0, nan, inf]) is [true, false, false]")

CLOSENESS = Group("Closeness")


@CLOSENESS("|x1 - x2| <= atol + rtol * |x2|", "isclose([1.0, 1.000001, 1.1], 1) is [true, true, false]")
def isclose(x1: Numeric, x2: Numeric, rtol: Number = 1e-5, atol: Number = 1e-8, equal_nan: Flag = False):
    """NumPy's definition, computed in float64 for float64 operands, else in float32."""
    shape, dtype = _broadcast(x1, x2), dtypes.common((x1, x2))
    if dtype in ("int", "float"):
        return fold(shape, lambda a, b: np.isclose(a, b, rtol, atol, equal_nan), as_floats(x1), as_floats(x2))
    wide = "float64" if dtype == "float64" else "float32"
    near = partial(numerics.close, rtol=rtol, atol=atol, equal_nan=equal_nan, dtype=wide)
    return apply("bool", shape, near, x1, x2, to=wide)


@CLOSENESS("whether isclose is true for all entries", "allclose([1.0, 1.000001], 1) is true")
def allclose(x1: Numeric, x2: Numeric, rtol: Number = 1e-5, atol: Number = 1e-8, equal_nan: Flag = False):
    return all_(isclose(x1, x2, rtol, atol, equal_nan))


CHOICE = Group("Choice", elementwise=True, names=ranges.aligned)
CONVERSION = Group("Conversion", elementwise=True, names=ranges.aligned)


@CHOICE(
    "x1 where the condition is true, else x2",
    "where([true, false, true], [1, 2, 3], 0) is [1, 0, 3]",
    bounds=each(lambda condition, x1, x2: ranges.hull(x1, x2)),
)
def where(condition: Tensor, x1: Tensor, x2: Tensor):
    if condition.dtype != "bool":
        found = {"int": "an integer", "float": "a float"}.get(condition.dtype, condition.dtype)
        raise DTypeError(f"the condition of where() is boolean, not {found}; write '!= 0'", argument="condition")
    shape = _broadcast(condition, x1, x2)
    try:
        dtype = dtypes.common((x1, x2))
    except DTypeError as error:
        error.argument = ("x1", "x2")[error.argument]
        raise
    if condition.weak and x1.weak and x2.weak:
        return fold(shape, np.where, condition, x1, x2, dtype=dtype, moves=True)
    if dtype in ("int", "float", "bool"):
        a, b = strong(x1, x2)
        dtype = a.dtype
    else:
        a, b = (arithmetic.prepared(x, dtype, name) for x, name in ((x1, "x1"), (x2, "x2")))
    c = arithmetic.prepared(condition, "bool")
    return apply(dtype, shape, lambda c, a, b: numerics.where(c, a, b, dtype), c, a, b)


@CONVERSION(
    "x in another dtype; to integers it truncates and wraps, nan becomes 0",
    'cast([2.9, -2.9, 300.0, nan], "int8") is [2, -2, 44, 0]',
    bounds=lambda result, x, dtype: ranges.cast(ranges.of(x), dtype),
)
def cast(x: Tensor, dtype: DType):
    if not x.weak:
        return apply(dtype, x.shape, lambda a: casts.cast(a, x.dtype, dtype), x)
    dtypes.check_available(dtype)
    if x.data is None:
        return Value(dtype, x.shape)
    return Value(dtype, x.shape, numerics.as_tensor(casts.cast_array(x.data, dtype), dtype))
