"""The kinds of parameters: annotations of a definition, each with a reader that checks and reads an argument.

A reader takes the `Function`, the parameter's name and the argument: a `Value`, a string, or a list of `Value`s.
"""

from typing import Annotated, Any

import numpy as np

from kpatch.errors import DTypeError, FunctionError, LimitError, ShapeError, UnsupportedError
from kpatch.functions.operands import blaming, join, need_numbers
from kpatch.syntax import nearest
from kpatch.values import arithmetic, dtypes
from kpatch.values.dtypes import Value, constant

NORMS = ("fro", "nuc")
METHODS = ("linear", "lower", "higher", "midpoint", "nearest")
MAX_OPERANDS = 16  # operands of einsum, which compares all pairs
MAX_NAME = 60  # characters of a wrong name that are shown


def shown(name):
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def hint(name, names):
    """The end of a message about a wrong name: the nearest right one."""
    near = nearest(name, names)
    return f"; did you mean '{near}'?" if near else ""


def _refuse(function, parameter, wanted, value):
    found = "a string" if isinstance(value, str) else "a list of tensors" if isinstance(value, list) else None
    if found is None:
        name = {"int": "an integer", "float": "a float", "bool": "a boolean"}.get(value.dtype, value.dtype)
        found = f"{'a tensor' if not value.weak else 'a list' if value.shape else name}"
        found += f" of {value.dtype}" if not value.weak else ""
    message = f"'{parameter}' of {function.name}() is {wanted}, not {found}"
    raise FunctionError(message, argument=parameter, notes=[function.call_form])


def _tensor(function, parameter, value):
    if isinstance(value, str):
        _refuse(function, parameter, "a tensor or a number", value)
    return join("stack", value, 0) if isinstance(value, list) else value


def _numeric(function, parameter, value):
    value = _tensor(function, parameter, value)
    with blaming(parameter):
        need_numbers(function.name, value)
    return value


def _tensors(function, parameter, value):
    """A list of tensors; the items of a literal list."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) or not value.weak or not value.shape or value.data is None:
        _refuse(function, parameter, "a list of tensors", value)
    return [constant(np.asarray(item)) for item in value.data]


def _operands(function, parameter, values):
    if len(values) > MAX_OPERANDS:
        message = f"{function.name}() takes at most {MAX_OPERANDS} operands, {len(values)} given"
        raise LimitError(message, argument=parameter)
    return [_tensor(function, parameter, value) for value in values]


def _constant(wanted, kinds, axes=(0,)):
    """The reader of a constant whose literal dtype is in `kinds` and whose number of axes is in `axes`."""

    def read(function, parameter, value):
        if isinstance(value, str | list) or not value.weak or value.dtype not in kinds or len(value.shape) not in axes:
            _refuse(function, parameter, wanted, value)
        if value.data is None:
            message = f"'{parameter}' of {function.name}() is not known before the patch runs"
            raise UnsupportedError(message, argument=parameter)
        known = value.data.tolist()
        return tuple(known) if isinstance(known, list) and kinds == ("int",) else known

    return read


_integers = _constant("a constant integer or a list of them", ("int",), (0, 1))

_number = _constant("a constant number", ("int", "float"))


def _axis(function, parameter, value):
    axis = _integers(function, parameter, value)
    if isinstance(axis, tuple):
        raise FunctionError(f"'{parameter}' is one integer here, not a list", argument=parameter)
    return axis


def _read_lengths(wanted, axes):
    """The reader of a shape. While planning, a length can be unknown: that of `shape(_)` under a mask."""
    known = _constant(wanted, ("int",), axes)

    def read(function, parameter, value):
        planned = isinstance(value, Value) and value.data is None and arithmetic.is_planning()
        if planned and value.weak and value.dtype == "int" and len(value.shape) in axes and None not in value.shape:
            return (None,) * (value.shape[0] if value.shape else 1)
        lengths = known(function, parameter, value)
        lengths = lengths if isinstance(lengths, tuple) else (lengths,)
        negative = next((length for length in lengths if length < 0), None)
        if negative is not None:
            raise ShapeError(f"a length cannot be negative: {negative}", argument=parameter)
        return lengths

    return read


_one_length = _read_lengths("a constant integer", (0,))


def _string(function, parameter, value):
    if not isinstance(value, str):
        _refuse(function, parameter, "a string", value)
    return value


def _method(function, parameter, value):
    return _one_of(METHODS, FunctionError, "method", f" of {function.name}()", function, parameter, value)


def _order(function, parameter, value):
    if isinstance(value, str):
        return _one_of(NORMS, FunctionError, "ord", f" of {function.name}()", function, parameter, value)
    return _number(function, parameter, value)


def _dtype(function, parameter, value):
    if isinstance(value, Value) and value.weak and value.dtype == "int" and next(iter(function.parameters)) == "shape":
        example = f"{function.name}([2, 3])"
        raise FunctionError(f"a shape is one list, as in '{example}'; '{parameter}' is a string", argument=parameter)
    return _one_of(dtypes.DTYPES, DTypeError, "dtype", "", function, parameter, value)


def _one_of(names, error, what, where, *given):
    name = _string(*given)
    if name not in names:
        message = f"no {what} '{shown(name)}'{where}{hint(name, names)}"
        raise error(message, argument=given[1], notes=[f"{what}s: {' '.join(names)}"])
    return name


# -- the kinds ---------------------------------------------------------------------------------------------------------

Tensor = Annotated[Value, _tensor]  # a tensor, a number, or a list of them
Numeric = Annotated[Value, _numeric]  # the same, without booleans
Tensors = Annotated[list[Value], _tensors]
Operands = Annotated[Any, _operands]  # for a starred parameter, which takes all further ones
Integer = Annotated[Any, _constant("a constant integer", ("int",))]
Axis = Annotated[Any, _axis]  # a constant integer
Integers = Annotated[Any, _integers]  # an integer or a tuple of integers
Pairs = Annotated[Any, _constant("a constant integer or a list of two lists", ("int",), (0, 1, 2))]
Flag = Annotated[Any, _constant("true or false", ("bool",))]
Number = Annotated[Any, _number]
Numbers = Annotated[Any, _constant("a constant number or a list of them", ("int", "float"), (0, 1))]
Lengths = Annotated[Any, _read_lengths("an integer or a list of them", (0, 1))]  # a tuple of lengths; `None` is unknown
Length = Annotated[Any, lambda *given: _one_length(*given)[0]]
Text = Annotated[str, _string]
DType = Annotated[Any, _dtype]
Order = Annotated[Any, _order]  # which norm: a number, or a name of `NORMS`
Method = Annotated[str, _method]  # how quantiles interpolate

STRINGS = (Text, DType, Order, Method)  # a string in their place is no name
TENSORS = (Tensor, Numeric, Tensors)
Context = Annotated[Any, None]  # no argument: a fact that the caller passes by the parameter's name
