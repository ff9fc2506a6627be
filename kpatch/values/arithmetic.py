"""Operators and conversions, with one meaning on every backend.

Each operation first checks dtypes, shapes and sizes, so that planning (without data) finds the same errors, then
computes if all data is present. Operands are converted to one dtype and combined by Python's operators, which every
backend defines: `keras.ops` narrows 64-bit dtypes to 32. Operations on literals give literals, computed in Python's
integers and NumPy's doubles.
"""

import contextlib
import contextvars
import operator

import numpy as np

from kpatch import backends
from kpatch.errors import DTypeError, LimitError, ShapeError, UnsupportedError
from kpatch.indexing import broadcast
from kpatch.values import casts, comparisons, dtypes, numerics
from kpatch.values.budget import OBJECTS, Budget, size_of
from kpatch.values.dtypes import RANGES, Value, is_floating, is_integer, is_signed
from kpatch.values.dtypes import literal as literal  # for callers that also use the operators
from kpatch.values.numerics import any_true, guarded
from kpatch.values.numerics import is_traced as is_traced

FLOATS_AT_ONCE = 64  # multiplications of literal floats, in a product of matrices, that cost as much as one entry

# -- operators ---------------------------------------------------------------------------------------------------------


def unary(op, x, traced=False):
    """`-x` or `not x`.

    Example:
        >>> unary("-", literal(3)).data
        array(-3)
    """
    if op == "not":
        need_booleans("not", x)
        return fold(x.shape, np.logical_not, x) if x.weak else apply("bool", x.shape, _logical_not, x)
    if x.dtype == "bool":
        refuse_boolean("-", x, 0)
    if x.weak:
        return fold(x.shape, lambda a: -a, x)
    return apply(x.dtype, x.shape, lambda a: numerics.negative(a, x.dtype), x)


def binary(op, a, b, traced=False):
    """`a op b` for `+ - * / // % ** @ and or`.

    Example:
        >>> binary("/", literal(1), literal(4)).data
        array(0.25)
    """
    if op in ("and", "or"):
        return _connect(op, a, b)
    for place, x in enumerate((a, b)):
        if x.dtype == "bool":
            refuse_boolean(op, x, place)
    if op == "@":
        return matmul(a, b)
    shape = broadcast([a.shape, b.shape])
    dtypes.check_size(shape, a, b)
    dtype = dtypes.common((a, b))
    if is_integer(a.dtype) and is_integer(b.dtype):
        _check_integers(op, b, traced)
        if op == "/":
            dtype = "float" if dtype == "int" else "float32"
    if dtype in ("int", "float"):
        return fold(shape, _FOLDED[op], a, b, dtype=dtype)
    if op == "**" and b.weak and b.data is not None and b.shape == () and b.data == 2:
        return apply(dtype, shape, lambda x: x * x, a, to=dtype)
    if op in ("//", "%") and is_integer(dtype) and b.weak and b.data is not None and (b.data > 0).all():
        backend = backends.current()
        return apply(dtype, shape, backend.floor_divide if op == "//" else backend.remainder, a, b, to=dtype)
    return apply(dtype, shape, lambda x, y: numerics.OPERATORS[op](x, y, dtype), a, b, to=dtype)


def compare(op, a, b):
    """`a op b` for `== != < <= > >=`, exact for all dtypes; `==` and `!=` of lists give one boolean.

    Example:
        >>> compare("<", literal(2**53 + 1), literal(2.0**53)).data
        array(False)
    """
    if (a.dtype == "bool") != (b.dtype == "bool"):
        place = 0 if a.dtype == "bool" else 1
        other = (b, a)[place].dtype
        raise DTypeError(
            f"a boolean is not a number: it does not compare with {_named(other)}; write cast(...)", argument=place
        )
    if a.weak and b.weak and (a.is_list or b.is_list) and op in ("==", "!="):
        return _compare_lists(op, a, b)
    shape = broadcast([a.shape, b.shape])
    dtypes.check_size(shape, a, b)
    if a.weak and b.weak:
        return fold(shape, comparisons.COMPARISONS[op], a, b, dtype="bool")
    if a.dtype == "bool" and op not in ("==", "!="):
        return apply("bool", shape, comparisons.COMPARISONS[op], a, b, to="uint8")
    if a.weak:
        op, a, b = comparisons.MIRRORED.get(op, op), b, a
    if b.weak:
        return apply("bool", shape, lambda x: comparisons.compare_literal(op, x, a.dtype, b), a)
    return apply("bool", shape, lambda x, y: comparisons.compare_tensors(op, x, y, a.dtype, b.dtype), a, b)


def _named(dtype):
    return {"int": "an integer", "float": "a float", "bool": "a boolean"}.get(dtype, dtype)


def refuse_boolean(op, x, place):
    raise DTypeError(
        f"'{op}' is not defined on booleans; write cast(..., \"float32\") or where(..., 1, 0)", argument=place
    )


def need_booleans(op, *values):
    for place, value in enumerate(values):
        if value.dtype != "bool":
            raise DTypeError(f"'{op}' takes booleans, not {_named(value.dtype)}; write '!= 0'", argument=place)


def _connect(op, a, b):
    need_booleans(op, a, b)
    shape = broadcast([a.shape, b.shape])
    dtypes.check_size(shape, a, b)
    function = operator.and_ if op == "and" else operator.or_
    return fold(shape, function, a, b) if a.weak and b.weak else apply("bool", shape, function, a, b, to="bool")


def _logical_not(x):
    return x == False  # noqa: E712 ('~' is not defined on every backend's booleans)


def _compare_lists(op, a, b):
    """One boolean: whether the lists have the same shape and entries."""
    if a.data is None or b.data is None:
        if len(a.shape) == len(b.shape):
            return Value("bool", (), None, True)
        equal = False
    else:
        equal = a.shape == b.shape and bool(np.all(a.data.astype(object) == b.data.astype(object)))
    return literal(equal == (op == "=="))


def _check_integers(op, b, traced):
    """Raises if integers are divided by zero or raised to a negative power."""
    if op in ("/", "//", "%"):
        message, found = f"'{op}' of integers by zero", ("==", 0)
        note = "with a float on either side the result would be infinite or nan"
    elif op == "**" and is_signed(b.dtype):
        message, found = "an integer to a negative power", ("<", 0)
        note = 'cast(..., "float32") to a negative power is a float'
    else:
        return
    if not b.weak and (traced or (b.data is not None and is_traced(b.data))):
        raise UnsupportedError(
            f"{message} cannot be ruled out inside a compiled function", argument=1, notes=[f"write a constant; {note}"]
        )
    if b.data is None:
        doubt()
        return
    test = comparisons.COMPARISONS[found[0]]
    wrong = test(b.data, found[1]) if b.weak else guarded(test, b.data, numerics.scalar(found[1], b.dtype))
    if any_true(wrong):
        raise DTypeError(f"{message} is an error", argument=1, notes=[note])


# -- computing ---------------------------------------------------------------------------------------------------------


def apply(dtype, shape, function, *operands, to=None):
    """The `Value` of an element-wise function of operands that broadcast to `shape`; see `compute`."""

    def spread(*data):
        return function(*(numerics.spread(part, shape) for part in data))

    return compute(dtype, shape, spread, *operands, to=to)


class Pass:
    """The state while a patch is planned or, if sizes are known only then, while it runs.

    Attributes:
        budget: the `Budget` that what is computed is counted in.
        plans: nothing is computed.
        traced: a compiled function is planned.
        doubtful: a check must wait until the values are known.
    """

    __slots__ = ("budget", "doubtful", "plans", "traced")

    def __init__(self, budget, plans, traced=False):
        self.budget = budget
        self.plans = plans
        self.traced = traced
        self.doubtful = False


_pass: contextvars.ContextVar[Pass | None] = contextvars.ContextVar("pass", default=None)


@contextlib.contextmanager
def planning(traced=False, budget=None):
    """A block in which nothing is computed, not even `zeros([1000000])`. Yields the `Pass`."""
    with _set(Pass(budget or Budget(), True, traced)) as found:
        yield found


def metered(budget):
    """A block in which what is computed of tensors is counted in the budget."""
    return _set(Pass(budget, False))


@contextlib.contextmanager
def _set(found):
    token = _pass.set(found)
    try:
        yield found
    finally:
        _pass.reset(token)


def doubt():
    """Records, while planning, that a check must wait until the values are known."""
    found = _pass.get()
    if found is not None:
        found.doubtful = True


def is_planning():
    """Whether a planning pass is active."""
    found = _pass.get()
    return found is not None and found.plans


def stays_unknown():
    """Whether a length unknown while planning stays unknown when the patch runs, as in TensorFlow's graphs."""
    found = _pass.get()
    return found is not None and found.traced and backends.current().lengths_stay_unknown


def count(shape, weak=False):
    """Counts a result: one of literals while planning, when it is computed."""
    found = _pass.get()
    if weak:
        count_constants(size_of(shape))
    elif found is not None:
        found.budget.compute(shape)


def count_constants(entries):
    """Counts, while planning, entries that are computed of literals."""
    found = _pass.get()
    if found is not None and found.plans:
        found.budget.fold(entries)


def count_work(steps, *operands):
    """Counts the multiplications of matrices or of linear algebra; literals are computed while planning."""
    found = _pass.get()
    if found is None:
        return
    if not all(x.weak for x in operands):
        found.budget.multiply(steps)
    elif found.plans:
        objects = all(x.dtype == "int" for x in operands)
        found.budget.fold(steps if objects else steps // FLOATS_AT_ONCE)


def compute(dtype, shape, function, *operands, to=None):
    """The `Value` of `function` of the operands' data; without data if an operand has none.

    Args:
        to: the dtype to which the operands are converted; `None` converts none.
    """
    dtypes.check_available(dtype)
    for value in operands:
        if not value.weak:
            dtypes.check_readable(value.dtype)
    found = _pass.get()
    if found is not None:
        found.budget.compute(shape)
    unknown = (found is not None and found.plans) or any(value.data is None for value in operands)
    fitted = [prepared(value, to, place, unknown) if to else value for place, value in enumerate(operands)]
    if unknown:
        return Value(dtype, shape)
    if 0 in shape:  # the backends differ for empty tensors
        return Value(dtype, shape, guarded(lambda: numerics.full(shape, numerics.scalar(0, dtype), dtype)))
    return Value(dtype, shape, backends.current().accepted(guarded(function, *(value.data for value in fitted))))


def prepared(value, dtype, place=None, check_only=False):
    """The operand in `dtype`: a literal is fitted, a tensor cast. `check_only` makes the checks alone."""
    if value.weak and value.data is not None:
        dtypes.check_available(dtype)
        count_constants(value.data.size)
        try:
            array = dtypes.fit(value, dtype)
        except DTypeError as error:
            error.argument = place
            raise
        return Value(dtype, value.shape, None if check_only else numerics.as_tensor(array, dtype))
    if value.dtype == dtype or value.data is None or check_only:
        return value
    ops = backends.current().ops
    return Value(dtype, value.shape, ops.cast(value.data, dtype))


def fold(shape, function, *operands, dtype=None, moves=False):
    """A literal from literals: integers exactly (Python's, in arrays of objects), floats in double precision.

    Args:
        moves: the function computes no new numbers, so that 64 bits hold its integers.
    """
    if dtype is None:
        dtype = "float" if any(x.dtype == "float" for x in operands) else operands[0].dtype
    is_list = bool(shape) and dtype != "bool" and any(x.is_list for x in operands)
    if any(x.data is None for x in operands):
        return Value(dtype, shape, None, True, is_list)
    floats = dtype == "float" and any(x.dtype == "float" for x in operands)
    kinds = {x.data.dtype for x in operands if x.dtype == "int"}
    objects = bool(kinds) and not floats and not (moves and len(kinds) == 1)
    count_constants(max(size_of(shape), *(x.data.size for x in operands)) * (OBJECTS if objects else 1))
    wide = object if objects else "float64" if floats else None
    data = [x.data.astype(wide) if wide and x.dtype == "int" else x.data for x in operands]
    with np.errstate(all="ignore"):
        result = np.asarray(function(*data))
    if result.dtype == object and dtype != "int":
        result = result.astype("float64" if dtype == "float" else bool)
    return dtypes.constant(result, is_list)


def _folded_power(a, b):
    return np.frompyfunc(_integer_power, 2, 1)(a, b) if a.dtype == object else np.power(a, b)


def _integer_power(base, exponent):
    if abs(base) > 1 and exponent > 64:
        raise LimitError(f"{base} ** {exponent} does not fit 64 bits")
    return base**exponent


_FOLDED = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": _folded_power,
}


def matmul(a, b):
    """`a @ b` by NumPy's rules; integers wrap, 16-bit floats accumulate in float32."""
    if not a.shape or not b.shape:
        raise ShapeError("'@' takes tensors of at least one axis", argument=0 if not a.shape else 1)
    inner = b.shape[-2] if len(b.shape) > 1 else b.shape[0]
    if a.shape[-1] != inner and None not in (a.shape[-1], inner):
        raise ShapeError(f"shapes {a.shape} and {b.shape} do not multiply: {a.shape[-1]} is not {inner}", argument=1)
    rows = a.shape[-2:-1]
    columns = b.shape[-1:] if len(b.shape) > 1 else ()
    shape = (*broadcast([a.shape[:-2], b.shape[:-2]]), *rows, *columns)
    dtypes.check_size(shape, a, b)
    dtype = dtypes.common((a, b))
    count_work(size_of(shape) * (inner or 1), a, b)
    if dtype in ("int", "float"):
        return fold(shape, np.matmul, a, b, dtype=dtype)
    return apply(dtype, shape, lambda x, y: numerics.matmul(x, y, dtype), a, b, to=dtype)


# -- conversions -------------------------------------------------------------------------------------------------------


def convert(value, dtype, traced=False):
    """The value in another dtype, for an assignment. Rounding is allowed; any other loss is a `DTypeError`.

    Returns:
        A `Value` of that dtype. If it is made of literals, its data is a NumPy array and it stays `weak`.

    Example:
        >>> convert(literal([1, 2]), "float16").data
        array([1., 2.], dtype=float16)
        >>> convert(literal(0.5), "int8")
        Traceback (most recent call last):
        kpatch.DTypeError: 0.5 has a fraction, which int8 cannot hold
          cast(..., "int8") truncates it
    """
    if value.dtype == dtype:
        return value
    dtypes.check_convertible(value.dtype, dtype)
    if value.weak:
        count_constants(size_of(value.shape))
        array = None if value.data is None else dtypes.fit(value, dtype)
        return Value(dtype, value.shape, array, True)
    lossy = dtypes.could_lose(value.dtype, dtype)
    if lossy and (traced or (value.data is not None and is_traced(value.data))):
        raise DTypeError(
            f"{value.dtype} into {dtype} could lose values, which a compiled function cannot check",
            notes=[f'cast(..., "{dtype}") allows it'],
        )
    result = compute(dtype, value.shape, lambda x: casts.cast(x, value.dtype, dtype), value)
    if lossy and result.data is not None:
        guarded(_check_loss, value, result)
    elif lossy:
        doubt()
    return result


def _check_loss(value, result):
    """Raises for the first entry that the conversion changed by more than rounding."""
    ops = backends.current().ops
    x, dtype = value.data, result.dtype
    if dtype in RANGES:
        low, high = RANGES[dtype]
        bad = ops.logical_or(
            comparisons.compare_literal("<", x, value.dtype, literal(low)),
            comparisons.compare_literal(">", x, value.dtype, literal(high)),
        )
        if is_floating(value.dtype):
            bad = ops.logical_or(bad, _not_whole(x, value.dtype))
    else:
        bad = ops.isinf(result.data)
        if is_floating(value.dtype) and any_true(bad):
            bad = ops.logical_and(bad, ops.isfinite(x))
    if any_true(bad):
        mask = np.asarray(ops.convert_to_numpy(backends.current().gathered(bad)))
        place = tuple(int(i) for i in np.unravel_index(np.flatnonzero(mask)[0], mask.shape))
        entry = x[place] if place else x
        if value.dtype == "bfloat16":
            entry = ops.cast(entry, "float32")  # TensorFlow's scalars of bfloat16 do not convert
        dtypes.refuse_loss(np.asarray(ops.convert_to_numpy(entry)).item(), place, dtype)


def _not_whole(x, dtype):
    """Which entries are fractions, infinities or NaN."""
    return x - numerics.truncate(x, dtype) != numerics.scalar(0, dtype)  # infinity minus infinity is NaN
