"""Between which numbers the entries of an expression lie, whatever its tensors hold: interval analysis.

Inside a compiled function an index tensor cannot be looked at. It is allowed where its range proves that it fits the
axis. Ranges are worked out while such a function is planned, each from those of the operands, and travel on the
`Value`s. Where nothing is known, the range is the dtype's; where a result could leave its dtype, and wrap, likewise.

A length that is not known yet has a name, `("_", 0)`, so that `argmax(_, axis=0)` fits the first axis of `_`. Names
travel as `Value.axes`, one for each axis.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kpatch.errors import SubscriptError, UnsupportedError
from kpatch.functions.shapes import normal_axes
from kpatch.tensors import to_numpy
from kpatch.values.dtypes import FLOATS, INTEGERS, NUMPY, RANGES, Value, is_integer
from kpatch.values.numerics import is_traced


class Range(NamedTuple):
    """From `low` to `high`, both of them included; floats may be NaN besides.

    With `over`, the name of an unknown length, `high` is counted from that length: −1 is its last index.
    """

    low: float
    high: float
    over: tuple | None = None


def of(value):
    """The range of a value.

    Example:
        >>> of(Value("uint8", (3,)))
        Range(low=0, high=255, over=None)
    """
    if value.range is not None:
        return value.range
    if value.data is None or (not value.weak and is_traced(value.data)):
        return _widest(value.dtype)
    entries = np.asarray(value.data if value.weak else to_numpy(value.data))
    entries = entries[entries == entries]  # without NaN
    return Range(entries.min().item(), entries.max().item()) if entries.size else _widest(value.dtype)


def fits(index, tensor, axis):
    """Whether the index is in range for an axis of the tensor.

    Example:
        >>> fits(Value("int32", (), range=Range(-4, 3)), Value("float32", (2, 4)), 1)
        True
        >>> x = Value("float32", (None, 4), axes=(("_", 0), None))
        >>> fits(Value("int32", (), range=Range(0, -1, ("_", 0))), x, 0)
        True
    """
    if 0 in index.shape:
        return True
    low, high, over = of(index)
    length = tensor.shape[axis]
    if length is None:
        return over is not None and over == named(tensor.axes, axis) and low >= 0 and high < 0
    return over is None and -length <= low and high < length


def proves(index, tensor, axis):
    """Whether an index tensor is certain to be in range for an axis; raises if it is certain not to be."""
    low, high, over = of(index)
    length = tensor.shape[axis]
    if length is not None and over is None and 0 not in index.shape and (low >= length or high < -length):
        message = f"this index is out of range for {_axis(axis, length)}, whatever the tensors hold"
        raise SubscriptError(message, notes=[_found(index)])
    return fits(index, tensor, axis)


def check(index, tensor, axis):
    """Refuses an index of an axis, be it a tensor, an array or an integer, that is not certain to be in range."""
    length, is_tensor = tensor.shape[axis], isinstance(index, Value)
    if fits(index, tensor, axis) if is_tensor else length is not None:  # what is no tensor was checked where it can be
        return
    if length is not None:
        where = _axis(axis, length)
        right = f"clip(..., 0, {length - 1}) is in range, and so is ... % {length}" if length else "the axis is empty"
    else:
        where = f"axis {axis}, whose length is not known"
        right = f"argmax, argmin and argsort along that axis are in range, and so is arange(shape(...)[{axis}])"
        if isinstance(index, int):
            right = "a slice is empty where there is no such entry: 0:1 for 0, -1: for -1"
    notes = [_found(index), right] if is_tensor else [right]
    raise UnsupportedError(f"a compiled function cannot check that this index is in range for {where}", notes=notes)


def _axis(axis, length):
    return f"axis {axis} with {length} entr{'y' if length == 1 else 'ies'}"


def _found(index):
    low, high, over = found = of(index)
    if over is not None:
        return "its entries lie below a length that is not known"
    if found == _widest(index.dtype):
        return f"nothing is known of its entries, but that they are {index.dtype}"
    return f"its entries lie between {low} and {high}"


def places(x, axis):
    """The value of `arange(shape(x)[axis])`, of an axis of unknown length."""
    name = named(x.axes, axis)
    return Value("int32", (None,), range=name and Range(0, -1, name), axes=(name,) if name else ())


def named(axes, axis):
    """The name of an axis's unknown length, or `None`."""
    return axes[axis] if axes else None


def _widest(dtype):
    if dtype == "bool":
        return Range(0, 1)
    return Range(*RANGES[dtype]) if dtype in RANGES else Range(-math.inf, math.inf)


def _with(result, found, axes=()):
    """The result with its range, where its dtype holds that, and with the names of its axes."""
    if result.weak and result.data is not None:  # which says more
        return result
    if found is not None:
        widest = _widest(result.dtype)
        wraps = found.low < widest.low or found.high > widest.high
        narrow = found.over is not None and INTEGERS.get(result.dtype, 0) < 32  # lengths fit 32 bits
        found = None if wraps or narrow else found
    axes = tuple(axes) if None in result.shape else ()
    return replace(result, range=found, axes=axes if any(axes) else ())


# -- operators ---------------------------------------------------------------------------------------------------------


def unary(result, op, x):
    """The result of `-x` or `not x`, with its range."""
    found = _negative(of(x)) if op == "-" else None
    return _with(result, found, _aligned(result.shape, [x]))


def binary(result, op, a, b):
    """The result of `a op b`, with its range; floats round, and are left alone."""
    rule = _OPERATORS.get(op) if is_integer(result.dtype) else None
    return _with(result, rule and rule(of(a), of(b)), () if op == "@" else _aligned(result.shape, [a, b]))


def compare(result, operands):
    """The result of a comparison, with the names of its axes."""
    return _with(result, None, _aligned(result.shape, operands))


def entries(result, value, items):
    """Some entries of a value, with its range; basic indices keep the names of axes."""
    return _with(result, of(value), _kept(value, items))


def _kept(value, items):
    if not value.axes or not all(type(item) in (int, slice, type(Ellipsis)) for item in items):
        return ()
    items = list(items)
    missing = [slice(None)] * (len(value.shape) - sum(item is not Ellipsis for item in items))
    place = items.index(Ellipsis) if Ellipsis in items else len(items)
    items[place : place + 1] = missing
    pairs = zip(items, value.axes, strict=True)
    return [name if item == slice(None) else None for item, name in pairs if type(item) is not int]


def _aligned(shape, operands):
    """The names of the axes of an element-wise result. Where its length is unknown, the operands' are, or are 1."""
    names = []
    for back in range(len(shape), 0, -1):
        unknown = [value for value in operands if len(value.shape) >= back and value.shape[-back] is None]
        found = {named(value.axes, -back) for value in unknown}
        names.append(found.pop() if len(found) == 1 else None)
    return names


def _negative(x):
    return None if x.over else Range(-x.high, -x.low)


def _sum(a, b):
    return None if a.over and b.over else Range(a.low + b.low, a.high + b.high, a.over or b.over)


def _difference(a, b):
    return None if b.over else Range(a.low - b.high, a.high - b.low, a.over)


def _corners(function):
    """The range of a function that takes its extremes where both operands do."""

    def rule(a, b):
        if a.over or b.over:
            return None
        found = [function(x, y) for x in a[:2] for y in b[:2]]
        return Range(min(found), max(found))

    return rule


def _quotient(a, b):
    """By divisors of one sign."""
    return _corners(lambda x, y: x // y)(a, b) if not b.over and (b.low > 0 or b.high < 0) else None


def _remainder(a, b):
    """It has the sign of the divisor."""
    if b.over or b.low <= 0 <= b.high:
        return None
    if b.high < 0:
        return Range(b.low + 1, 0)
    if a.low >= 0 and a.high < b.low and not a.over:
        return a
    return Range(0, b.high - 1)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "+": _sum,
    "-": _difference,
    "*": _corners(lambda x, y: x * y),
    "//": _quotient,
    "%": _remainder,
}

# -- functions ---------------------------------------------------------------------------------------------------------


def called(name, result, given, elementwise):
    """The result of a function of the table, with its range.

    Args:
        given: the arguments as its rule takes them, by parameter, in the order of the signature.
        elementwise: each entry depends on the entries at its place alone.
    """
    if not elementwise:
        rule = _OTHERS.get(name)
        return _with(result, rule and rule(**given), _axes(name, result, **given))
    operands = [value for value in given.values() if isinstance(value, Value)]
    axes = _aligned(result.shape, operands)
    if name == "cast":
        return _with(result, _cast(of(operands[0]), result.dtype), axes)
    rule = _ELEMENTWISE.get(name)
    if rule is None or (name in _ROUNDING and not is_integer(result.dtype)) or given.get("decimals", 0) < 0:
        return _with(result, None, axes)
    return _with(result, rule(*(_brought(of(value), result.dtype) for value in operands)), axes)


def _brought(found, dtype):
    """The range when it is brought to the dtype of a result; rounding keeps the order."""
    if dtype not in FLOATS:
        return found
    if found.over:
        return _widest(dtype)
    with np.errstate(over="ignore"):
        low, high = (float(NUMPY[dtype].type(bound)) for bound in found[:2])
    return Range(low, high)


def _cast(found, dtype):
    """Floats are truncated, and NaN is 0; what does not fit wraps."""
    if not is_integer(dtype):
        return _brought(found, dtype) if dtype in FLOATS else None
    if all(isinstance(bound, int) for bound in found[:2]):
        return found
    if not all(map(math.isfinite, found[:2])):
        return None
    return Range(min(0, math.trunc(found.low)), max(0, math.trunc(found.high)))


def _maximum(a, b):
    if b.low > a.low:
        a, b = b, a
    if not b.over and b.high <= a.low:  # the other one is never larger
        return a
    return Range(a.low, max(a.high, b.high), a.over) if a.over == b.over else None


def _minimum(a, b):
    if a.over and not b.over:
        a, b = b, a
    high = min(a.high, b.high) if a.over == b.over else a.high  # both are bounds, and one that is a number is kept
    return Range(min(a.low, b.low), high, a.over)


def _clip(x, low, high):
    return _minimum(_maximum(x, low) or Range(low.low, math.inf), high)


def _hull(first, *others):
    """What holds all of them."""
    every = (first, *others)
    if any(other.over != first.over for other in others):
        return None
    return Range(min(x.low for x in every), max(x.high for x in every), first.over)


def _absolute(x):
    if x.over:
        return x if x.low >= 0 else None
    return Range(max(0, x.low, -x.high), max(-x.low, x.high))


def _rounded(x):
    """Between the whole numbers around it; integers and infinities are whole."""
    low, high = (bound if isinstance(bound, int) else float(to(bound)) for to, bound in zip(_OUTWARDS, x, strict=False))
    return Range(low, high, x.over)


_OUTWARDS = (np.floor, np.ceil)
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "negative": _negative,
    "add": _sum,
    "subtract": _difference,
    "multiply": _OPERATORS["*"],
    "floor_divide": _quotient,
    "mod": _remainder,
    "abs": _absolute,
    "sign": lambda x: Range(-1, 1),
    "relu": lambda x: _maximum(x, Range(0, 0)),
    "relu6": lambda x: _clip(x, Range(0, 0), Range(6, 6)),
    "floor": _rounded,
    "ceil": _rounded,
    "trunc": _rounded,
    "round": _rounded,
    "maximum": _maximum,
    "minimum": _minimum,
    "clip": _clip,
    "where": lambda condition, x1, x2: _hull(x1, x2),
}
_ROUNDING = ("add", "subtract", "multiply", "floor_divide", "mod")  # of floats


def _axes(name, result, x=None, axis=None, keepdims=False, **_):
    """The names of the axes where a function keeps them, or takes some away."""
    if not isinstance(x, Value) or not x.axes:
        return ()
    if name in _ALONG:
        return x.axes if len(result.shape) == len(x.shape) else ()
    if name not in _REDUCTIONS:
        return ()
    gone = normal_axes(axis, len(x.shape))
    kept = [None if place in gone else known for place, known in enumerate(x.axes)]
    return kept if keepdims else [known for place, known in enumerate(kept) if place not in gone]


_ALONG = ("sort", "argsort", "cumsum", "cumprod", "softmax", "log_softmax")
_REDUCTIONS = ("sum", "mean", "prod", "max", "min", "any", "all", "count_nonzero", "argmax", "argmin")


def _index(x, axis, **_):
    """An index along an axis, or for `None` along all entries in one row."""
    if len(x.shape) < 2:
        axis = 0
    if axis is None:
        return None if None in x.shape else Range(0, max(0, math.prod(x.shape) - 1))
    length = x.shape[axis] if x.shape else 1
    if length is not None:
        return Range(0, max(0, length - 1))
    name = named(x.axes, axis)
    return name and Range(0, -1, name)


def _count(x, axis, **_):
    lengths = [x.shape[place] for place in normal_axes(axis, len(x.shape))]
    return None if None in lengths else Range(0, math.prod(lengths))


def _sum_of(x, **options):
    """Of booleans it is how many hold."""
    return _count(x, **options) if x.dtype == "bool" else None


def _of_x(x, **_):
    return of(x)


def _of_x_and_zero(x, **_):
    return _hull(of(x), Range(0, 0))


def _of_all(axis, x=None, xs=None):
    return _hull(*map(of, xs if x is None else x))


def _arange(start, stop, step, dtype):
    """The bounds themselves, without looking at where the steps lead."""
    numbers = (0, start) if stop is None else (start, stop)
    whole = all(isinstance(number, int) for number in (*numbers, step or 1))
    if not whole or numbers[0] == numbers[1]:
        return None
    forward = numbers[0] < numbers[1]
    return Range(numbers[0], numbers[1] - 1) if forward else Range(numbers[1] + 1, numbers[0])


_MOVING = (
    "reshape ravel transpose swapaxes moveaxis squeeze expand_dims broadcast_to repeat tile flip roll diagonal "
    "sort max min top_k take take_along_axis"
)
_OTHERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_MOVING.split(), _of_x),
    **dict.fromkeys(("tril", "triu", "diag"), _of_x_and_zero),
    **dict.fromkeys(("argmax", "argmin", "argsort"), _index),
    **dict.fromkeys(("concatenate", "stack"), _of_all),
    "count_nonzero": _count,
    "sum": _sum_of,
    "arange": _arange,
    "randint": lambda minval, maxval, **_: Range(minval, maxval - 1),
    "permutation": lambda n, **_: Range(0, max(0, n - 1)),
    "zeros": lambda **_: Range(0, 0),
    "zeros_like": lambda **_: Range(0, 0),
    "ones": lambda **_: Range(1, 1),
    "ones_like": lambda **_: Range(1, 1),
    "full": lambda fill_value, **_: of(fill_value),
    "full_like": lambda fill_value, **_: of(fill_value),
}
