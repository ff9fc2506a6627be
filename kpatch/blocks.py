"""Masks that are element-wise in `_`, made in one pass over the tensor's memory, a block at a time.

`abs(_) < quantile(abs(_), 0.9)` by whole tensors takes a temporary of the variable's size for each operation. Here
what is one number (the quantile) is evaluated first, once, as any expression is, and the rest in blocks that stay in
the processor's cache, by NumPy on a view of the tensor's memory: on every backend, on a CPU. Only what NumPy does to
the bit as every backend does takes part: `+ - *`, comparisons, logic, and a few functions, on float32 and float64.
"""

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpatch import arithmetic, tensors
from kpatch import evaluate as ev
from kpatch.dtypes import NUMPY, fit
from kpatch.errors import PatchError
from kpatch.syntax import ast

BLOCK = 2**16  # entries of a block
DTYPES = ("float32", "float64")

_BINARY = {"+": np.add, "-": np.subtract, "*": np.multiply, "and": np.logical_and, "or": np.logical_or}
_COMPARE = {"==": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater}
_COMPARE[">="] = np.greater_equal
_FUNCTIONS: dict[str, Callable] = {
    "abs": np.abs,
    "square": np.square,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "logical_not": np.logical_not,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
}


@dataclass(frozen=True, slots=True)
class Program:
    """A mask of a tensor, block by block.

    Attributes:
        scalars: the nodes that are one number each, evaluated first.
        compute: of a block and those numbers, the block's mask.
        dtype: of the tensor.
    """

    scalars: tuple
    compute: Callable
    dtype: str

    def run(self, view, scope):
        """The mask of a whole tensor.

        Args:
            view: the tensor as a NumPy array.
            scope: an `evaluate.Scope` in which `_` is the tensor.

        Returns:
            A boolean NumPy array of the tensor's shape.
        """
        numbers = self.numbers(scope)
        flat, mask = view.reshape(-1), np.empty(view.size, bool)
        with np.errstate(all="ignore"):
            for start in range(0, len(flat), BLOCK):
                mask[start : start + BLOCK] = self.compute(flat[start : start + BLOCK], numbers)
        return mask.reshape(view.shape)

    def numbers(self, scope):
        """The values of the scalars, as `compute` takes them."""
        return [_number(ev.evaluate(node, scope), self.dtype) for node in self.scalars]


def compile_mask(node, scope, place):
    """The `Program` of a boolean expression, or `None` where it is not one that can be run in blocks.

    Args:
        scope: the planner's `Scope`, in which `_` is the place, its values unknown.
        place: the `Place` of the tensor.
    """
    if place.dtype not in DTYPES:
        return None
    compiler = _Compiler(scope, place)
    try:
        compute = compiler.array(node)
    except _NotInBlocksError:
        return None
    return Program(tuple(compiler.scalars), compute, place.dtype)


def _number(value, dtype):
    """A value of shape () as a NumPy scalar of the tensor's dtype, or a boolean."""
    data = value.data if value.weak else tensors.to_numpy(value.data)
    return np.asarray(data, bool if value.dtype == "bool" else NUMPY[dtype])[()]


class _NotInBlocksError(Exception):
    """The expression is left to the evaluator."""


class _Compiler:
    """Turns nodes into functions of a block and the list of numbers."""

    def __init__(self, scope, place):
        self.scope = scope
        self.place = place
        self.scalars = []

    def array(self, node):
        value = self._planned(node)
        if value.shape == ():
            return self._scalar(node, value)
        if value.shape != self.place.shape or value.dtype not in (self.place.dtype, "bool") or value.weak:
            raise _NotInBlocksError
        if type(node) is ast.Implied:
            return lambda block, numbers: block
        if type(node) is ast.Compare:
            return self._comparison(node)
        function, operands = self._operation(node)
        return _applied(function, [self.array(operand) for operand in operands])

    def _planned(self, node):
        try:
            with arithmetic.planning():
                return ev.evaluate(node, self.scope)
        except PatchError:
            raise _NotInBlocksError from None

    def _scalar(self, node, value):
        if not value.weak and value.dtype not in (self.place.dtype, "bool"):
            raise _NotInBlocksError
        if value.weak and value.dtype != "bool":
            self._check_literal(value)
        self.scalars.append(node)
        place = len(self.scalars) - 1
        return lambda block, numbers: numbers[place]

    def _check_literal(self, value):
        """An integer that rounds in the tensor's dtype is left to the comparison that is exact."""
        if value.data is None:
            raise _NotInBlocksError
        try:
            rounded = fit(value, self.place.dtype)
        except PatchError:
            raise _NotInBlocksError from None
        if value.dtype == "int" and int(rounded) != int(value.data):
            raise _NotInBlocksError

    def _comparison(self, node):
        operands = [self.array(operand) for operand in node.operands]
        links = [_applied(_COMPARE[op], pair) for op, pair in zip(node.ops, itertools.pairwise(operands), strict=True)]
        whole = links[0]
        for link in links[1:]:
            whole = _applied(np.logical_and, [whole, link])
        return whole

    @staticmethod
    def _operation(node):
        """The NumPy function of a node, and the operands' nodes."""
        if type(node) is ast.Unary:
            return (operator.neg if node.op == "-" else np.logical_not), [node.operand]
        if type(node) is ast.Binary and node.op in _BINARY:
            return _BINARY[node.op], [node.left, node.right]
        if type(node) is ast.Call and node.function in _FUNCTIONS and not any(a.name for a in node.arguments):
            return _FUNCTIONS[node.function], [argument.value for argument in node.arguments]
        raise _NotInBlocksError


def _applied(function, operands):
    if len(operands) == 1:
        (only,) = operands
        return lambda block, numbers: function(only(block, numbers))
    left, right = operands
    return lambda block, numbers: function(left(block, numbers), right(block, numbers))
