"""Plans consecutive statements that each set one entry to a number together: one write for each variable.

Ten thousand such statements cost as much as one write of ten thousand entries. Unusual cases (an index out of range, a
number that does not fit) are left to the planner, which raises the error.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.errors import PatchError
from kpatch.syntax import ast
from kpatch.values import arithmetic
from kpatch.values.dtypes import is_floating, is_integer, literal

MIN_BATCH = 8  # consecutive statements from which a batched write pays
NUMBERS = (ast.Integer, ast.Float)


@dataclass(eq=False, slots=True)
class BatchStep:
    """Consecutive statements that each set one entry of the same place to a number.

    Attributes:
        statements: the `ast.Edit`s, in order.
        place: the variable.
        offsets: the flat offset of each statement.
        numbers: the number of each statement, in the place's dtype.
        selection: the distinct entries.
        constant: the final value of each distinct entry.
        prepared: as in `EditStep`.
    """

    statements: tuple
    place: Any
    offsets: np.ndarray
    numbers: np.ndarray
    selection: indexing.Positions
    constant: np.ndarray
    prepared: Any = None

    fresh = may_fail = open_ended = False
    stream, block, value = 0, None, None

    @property
    def statement(self):
        return self.statements[0]


def sets_one_entry(statement):
    """Whether the statement is `name[integers] = number`."""
    index = statement.target.index
    return (
        statement.op == "="
        and index is not None
        and _number(statement.value) is not None
        and all(type(item) is ast.Integer for item in index)
    )


def _number(node):
    if type(node) is ast.Unary and node.op == "-" and type(node.operand) is ast.Float:
        return -node.operand.value
    return node.value if type(node) in NUMBERS else None


def batches(statements, names):
    """A `BatchStep` for each place; `None` for too few statements and in unusual cases."""
    if len(statements) < MIN_BATCH:
        return None
    selectors, places, groups = {}, {}, {}
    for statement in statements:
        selector = statement.target.selector
        place = selectors.get(selector)
        if place is None:
            if not isinstance(selector, ast.Implied) and selector.is_glob:
                return None
            try:
                place = selectors[selector] = names.place(None if isinstance(selector, ast.Implied) else selector)
            except PatchError:
                return None
        if place.weight is not None:
            return None
        places[id(place)] = place
        groups.setdefault(id(place), []).append(statement)
    steps = [_batch(group, places[key]) for key, group in groups.items()]
    return None if None in steps else steps


def _batch(statements, place):
    offsets = _offsets(statements, place.shape)
    numbers = _numbers(statements, place.dtype)
    if offsets is None or numbers is None:
        return None
    last = indexing.last_wins(offsets)
    distinct = offsets[last]
    selection = indexing.Positions(distinct, distinct.shape)
    return BatchStep(tuple(statements), place, offsets, numbers, selection, numbers[last])


def _offsets(statements, shape):
    """The flat offset of each statement, or `None` if an index does not fit."""
    rank = len(shape)
    if None in shape or any(len(s.target.index) != rank for s in statements):
        return None
    items = (
        item.value for s in statements for item in s.target.index
    )  # no lists: the garbage collector would scan them
    try:
        index = np.fromiter(items, "int64", rank * len(statements)).reshape(-1, rank)
    except OverflowError:
        return None
    index = index + np.where(index < 0, np.array(shape, "int64"), 0)
    if ((index < 0) | (index >= shape)).any():
        return None
    return np.ravel_multi_index(tuple(index.T), shape).astype("int64")


def _numbers(statements, dtype):
    """The numbers in the place's dtype, or `None` if the dtype cannot hold one."""
    numbers = [_number(s.value) for s in statements]
    if not is_floating(dtype) and not (is_integer(dtype) and all(type(n) is int for n in numbers)):
        return None
    wide = np.array(numbers, "float64" if is_floating(dtype) else None)
    if wide.dtype.kind == "f" and not is_floating(dtype):  # NumPy's choice for integers on both sides of 2**63
        wide = np.array(numbers, object)
    try:
        return arithmetic.convert(literal(wide), dtype).data
    except PatchError:
        return None
