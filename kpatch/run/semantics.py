"""The meaning of statements: fits values to a place, checks assertions, recognises masks."""

import math

import numpy as np

from kpatch import backends, indexing
from kpatch.errors import DTypeError, PatchAssertionError, PatchError, UnsupportedError
from kpatch.run import evaluate as ev
from kpatch.syntax import ast
from kpatch.values import arithmetic, tensors
from kpatch.values.dtypes import Value

NAMED = (ast.Reference, ast.Binding)
MAX_SHOWN = 8  # entries of an operand that a failed assertion shows


def in_match(error, statement, place, stream, block=None):
    """The error, with a note on the variable if it is one of several matches or models, or the match of a block."""
    if place is None:
        return error
    selector = statement.target.selector if block is None else block.selector
    if isinstance(selector, ast.Implied):
        return error
    if selector.is_glob:
        error.notes += (f"for {place!r}, match {stream + 1} of '{selector}'",)
    elif type(selector.parts[0]) is ast.Key or block is not None:
        error.notes += (f"for {place!r}",)
    return error


def is_mask(items, shape):
    """Whether the items are one boolean tensor of the whole shape."""
    return len(items) == 1 and isinstance(items[0], Value) and items[0].dtype == "bool" and items[0].shape == shape


def is_mask_of_rows(items, shape):
    """Whether the items are one boolean tensor of the shape's first axes; a 0-d tensor selects all or nothing."""
    axes = len(items[0].shape) if len(items) == 1 and isinstance(items[0], Value) else 0
    return is_mask(items, shape[:axes])


def evaluate_side(statement, scope, implied):
    """The value of the right side, with `implied` as `_`."""
    return ev.evaluate(statement.value, scope.with_implied(implied, scope.target.shape))


def assigned_value(statement, value, implied, place, shape, traced=False):
    """The value to write: the operator applied, converted to the place's dtype, in a shape that fits."""
    if statement.op != "=":
        value = operated(statement, implied, value, traced)
    value = converted(statement, value, place.dtype, traced)
    return _fitted(statement, value, shape)


def operated(statement, implied, value, traced=False):
    try:
        return arithmetic.binary(statement.op[:-1], implied, value, traced)
    except PatchError as error:
        raise error.locate(statement.target.span if error.argument == 0 else statement.value.span) from None


def converted(statement, value, dtype, traced=False):
    try:
        return arithmetic.convert(value, dtype, traced=traced)
    except PatchError as error:
        raise error.locate(statement.value.span) from None


def _fitted(statement, value, shape):
    try:
        fitted = indexing.fit(value.shape, shape)
    except PatchError as error:
        raise error.locate(statement.value.span) from None
    if fitted == value.shape:
        return value
    data = None if value.data is None else value.data.reshape(fitted) if value.weak else _reshaped(value.data, fitted)
    return Value(value.dtype, fitted, data, value.weak)


def _reshaped(data, shape):
    ops = backends.current().ops
    return ops.reshape(data, shape)


def fitted_constant(step, shape):
    """The constant in a shape that fits entries whose selection depended on values."""
    return _fitted(step.statement, Value(step.place.dtype, step.constant.shape, step.constant, True), shape).data


def check_assertion(statement, scope):
    """Raises `PatchAssertionError` if the condition is known and not all its entries are true."""
    value = ev.evaluate(statement.condition, scope)
    if value.dtype != "bool":
        message = f"an assertion is a boolean, found {value.dtype}; compare, as in 'assert all(x > 0)'"
        raise DTypeError(message).locate(statement.condition.span)
    if scope.traced and not value.weak:
        raise UnsupportedError(
            "an assertion about values cannot be checked inside a compiled function",
            notes=["an assertion about known shapes can: assert shape(_) == [2, 3]"],
        ).locate(statement.condition.span)
    if value.data is None:
        arithmetic.doubt()
        return
    if np.all(_array(value)):
        return
    condition = _inside_all(statement.condition)
    held = _array(ev.evaluate(condition, scope))
    first, notes = None, []
    if held.ndim:
        first = tuple(map(int, np.unravel_index(np.flatnonzero(~held)[0], held.shape)))
        notes.append(f"{held.size - held.sum()} of {held.size} entries are false, the first at {list(first)}")
    notes += _compared(condition, scope, held.shape, first)
    message = "assertion failed" + (f": {statement.message}" if statement.message else "")
    raise PatchAssertionError(message, notes=notes).locate(statement.condition.span)


def _array(value):
    return np.asarray(value.data if value.weak else tensors.to_numpy(value.data))


def _inside_all(node):
    """The condition whose entries must be true: `x < 1` for `all(x < 1)`."""
    if type(node) is ast.Call and node.function == "all" and len(node.arguments) == 1:
        return node.arguments[0].value
    return node


def _compared(node, scope, shape, first):
    """The values of a failed comparison's operands: whole if they are small, else the first entry that fails."""
    if not isinstance(node, ast.Compare):
        return
    for operand in node.operands:
        names = any(isinstance(part, (*NAMED, ast.Implied, ast.Local)) for part in ast.walk(operand))
        value = ev.evaluate(operand, scope) if names else None
        if value is None or value.data is None:
            continue
        if math.prod(value.shape) <= MAX_SHOWN:
            yield f"{operand} is {_array(value).tolist()}"
        elif first is not None:
            yield f"{operand} is {np.broadcast_to(_array(value), shape)[first].tolist()} at {list(first)}"
