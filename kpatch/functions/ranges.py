"""Interval analysis: the range of an expression's entries for all values of its tensors.

In a compiled function the values of an index tensor are unknown. The index is allowed if its range proves that it fits
the axis. Planning such a function computes each range from those of the operands and stores it in the `Value`. If
nothing is known, or if the result could wrap, the range is that of the dtype.

An unknown length has a name, such as `("_", 0)`, so that `argmax(_, axis=0)` fits the first axis of `_`. `Value.axes`
holds the names, one for each axis.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kpatch.errors import SubscriptError, UnsupportedError
from kpatch.functions.axes import normal_axes
from kpatch.values.dtypes import FLOATS, INTEGERS, NUMPY, RANGES, Value, is_integer
from kpatch.values.numerics import is_traced
from kpatch.values.tensors import to_numpy


class Range(NamedTuple):
    """From `low` to `high`, both included; floats can also be NaN.

    With `over`, the name of an unknown length, `high` is relative to that length: −1 is its last index.
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
    """Whether an index tensor is certainly in range for an axis; raises if it is certainly out of range."""
    low, high, over = of(index)
    length = tensor.shape[axis]
    if length is not None and over is None and 0 not in index.shape and (low >= length or high < -length):
        message = f"this index is out of range for {_axis(axis, length)}, whatever the tensors hold"
        raise SubscriptError(message, notes=[_found(index)])
    return fits(index, tensor, axis)


def check(index, tensor, axis):
    """Raises if an index (a tensor, an array or an integer) is not certainly in range for an axis."""
    length, is_tensor = tensor.shape[axis], isinstance(index, Value)
    if (
        fits(index, tensor, axis) if is_tensor else length is not None
    ):  # arrays and integers are checked already if the length is known
        return
    if length is not None:
        where = _axis(axis, length)
        right = f"clip(..., 0, {length - 1}) is in range, and so is ... % {length}" if length else "the axis is empty"
    else:
        where = f"axis {axis} of unknown length"
        right = f"argmax, argmin and argsort along that axis are in range, and so is arange(shape(...)[{axis}])"
        if isinstance(index, int):
            right = "a slice is empty if the entry does not exist: 0:1 for 0, -1: for -1"
    notes = [_found(index), right] if is_tensor else [right]
    raise UnsupportedError(f"a compiled function cannot check that this index is in range for {where}", notes=notes)


def _axis(axis, length):
    return f"axis {axis} with {length} entr{'y' if length == 1 else 'ies'}"


def _found(index):
    low, high, over = found = of(index)
    if over is not None:
        return "its entries are below an unknown length"
    if found == _widest(index.dtype):
        return f"of its entries only the dtype is known: {index.dtype}"
    return f"its entries lie between {low} and {high}"


def places(x, axis):
    """The value of `arange(shape(x)[axis])` for an axis of unknown length."""
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
    """The result with its range, if the dtype holds it, and with the names of its axes."""
    if result.weak and result.data is not None:  # the data itself says more
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
    found = negative(of(x)) if op == "-" else None
    return _with(result, found, _aligned(result.shape, [x]))


def binary(result, op, a, b):
    """The result of `a op b`, with its range if it is an integer; floats round."""
    rule = _OPERATORS.get(op) if is_integer(result.dtype) else None
    return _with(result, rule and rule(of(a), of(b)), () if op == "@" else _aligned(result.shape, [a, b]))


def compare(result, operands):
    """The result of a comparison, with the names of its axes."""
    return _with(result, None, _aligned(result.shape, operands))


def entries(result, value, items):
    """The indexed entries with the value's range; basic indices keep the names of axes."""
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
    """The names of an element-wise result's axes. For each unknown length, the operands' lengths are unknown or 1."""
    names = []
    for back in range(len(shape), 0, -1):
        unknown = [value for value in operands if len(value.shape) >= back and value.shape[-back] is None]
        found = {named(value.axes, -back) for value in unknown}
        names.append(found.pop() if len(found) == 1 else None)
    return names


def negative(x):
    return None if x.over else Range(-x.high, -x.low)


def _sum(a, b):
    return None if a.over and b.over else Range(a.low + b.low, a.high + b.high, a.over or b.over)


def _difference(a, b):
    return None if b.over else Range(a.low - b.high, a.high - b.low, a.over)


def _corners(function):
    """The range of a function that takes its extremes at the operands' extremes."""

    def rule(a, b):
        if a.over or b.over:
            return None
        found = [function(x, y) for x in a[:2] for y in b[:2]]
        return Range(min(found), max(found))

    return rule


def _quotient(a, b):
    """The range of `//` for divisors of one sign."""
    return _corners(lambda x, y: x // y)(a, b) if not b.over and (b.low > 0 or b.high < 0) else None


def _remainder(a, b):
    """The range of `%`, which has the sign of the divisor."""
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

# -- functions: the rules for `bounds` and `names` of their definitions ------------------------------------------------


def called(function, result, given):
    """The result of a call, with its range.

    Args:
        function: the `Function`.
        given: the arguments of its rule, by parameter, in the order of the signature.
    """
    found = function.bounds(result, **given) if function.bounds else None
    return _with(result, found, function.names(result, **given) if function.names else ())


def between(low, high):
    """The `bounds` of a function whose entries always lie between `low` and `high`."""
    return lambda *_, **__: Range(low, high)


def each(rule):
    """The `bounds` of an element-wise function; `rule` maps the operands' ranges to the result's."""
    return lambda result, **given: rule(*(brought(of(value), result.dtype) for value in _tensors(given)))


def operator(op):
    """The `bounds` of the function of an operator."""
    rule = _OPERATORS.get(op)
    return lambda result, x1, x2: rule(of(x1), of(x2)) if rule and is_integer(result.dtype) else None


def of_x(result, x, **_):
    """The `bounds` of a function that moves or picks entries of `x`."""
    return of(x)


def of_x_and_zero(result, x, **_):
    return hull(of(x), Range(0, 0))


def aligned(result, **given):
    """The `names` of an element-wise result."""
    return _aligned(result.shape, _tensors(given))


def of_axes(result, x, **_):
    """The `names` of a result that keeps the axes of `x`."""
    return x.axes if len(result.shape) == len(x.shape) else ()


def without_reduced(result, x, axis=None, keepdims=False, **_):
    """The `names` of a reduction of `x`."""
    if not x.axes:
        return ()
    gone = normal_axes(axis, len(x.shape))
    kept = [None if place in gone else known for place, known in enumerate(x.axes)]
    return kept if keepdims else [known for place, known in enumerate(kept) if place not in gone]


def _tensors(given):
    return [value for value in given.values() if isinstance(value, Value)]


def brought(found, dtype):
    """The range after conversion to a result's dtype; rounding keeps the order."""
    if dtype not in FLOATS:
        return found
    if found.over:
        return _widest(dtype)
    with np.errstate(over="ignore"):
        low, high = (float(NUMPY[dtype].type(bound)) for bound in found[:2])
    return Range(low, high)


def cast(found, dtype):
    """The range of `cast`: floats are truncated, NaN becomes 0, integers wrap."""
    if not is_integer(dtype):
        return brought(found, dtype) if dtype in FLOATS else None
    if all(isinstance(bound, int) for bound in found[:2]):
        return found
    if not all(map(math.isfinite, found[:2])):
        return None
    return Range(min(0, math.trunc(found.low)), max(0, math.trunc(found.high)))


def maximum(a, b):
    if b.low > a.low:
        a, b = b, a
    if not b.over and b.high <= a.low:  # the other one is never larger
        return a
    return Range(a.low, max(a.high, b.high), a.over) if a.over == b.over else None


def minimum(a, b):
    if a.over and not b.over:
        a, b = b, a
    high = min(a.high, b.high) if a.over == b.over else a.high  # both are upper bounds; a known number is kept
    return Range(min(a.low, b.low), high, a.over)


def clip(x, low, high):
    return minimum(maximum(x, low) or Range(low.low, math.inf), high)


def hull(first, *others):
    """The smallest range that holds all ranges."""
    every = (first, *others)
    if any(other.over != first.over for other in others):
        return None
    return Range(min(x.low for x in every), max(x.high for x in every), first.over)


def absolute(x):
    if x.over:
        return x if x.low >= 0 else None
    return Range(max(0, x.low, -x.high), max(-x.low, x.high))


def rounded(x):
    """The range extended to whole numbers; integers and infinities are whole."""
    low, high = (bound if isinstance(bound, int) else float(to(bound)) for to, bound in zip(_OUTWARDS, x, strict=False))
    return Range(low, high, x.over)


_OUTWARDS = (np.floor, np.ceil)
