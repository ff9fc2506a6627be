"""Compiles expressions that are element-wise in `_` when they are planned.

Scalar subexpressions, such as the quantile in `abs(_) < quantile(abs(_), 0.9)`, are evaluated once beforehand. The rest
becomes a function of arrays.

* NumPy computes a mask in one pass over the tensor's memory on a CPU, on every backend, in blocks that stay in the
  processor's cache; the evaluator would make a temporary of the tensor's size for each operation. Only operations in
  which NumPy agrees to the bit with every backend are compiled: `+ - *`, comparisons, logic, a few functions.
* The tensors' operators compute a whole new value, such as `0.7 * _ + 0.3 * $donor._`, without repeating the checks.
"""

import contextlib
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kpatch import backends
from kpatch.errors import PatchError
from kpatch.names.meanings import Place
from kpatch.run import evaluate as ev
from kpatch.syntax import ast
from kpatch.values import arithmetic, numerics, tensors
from kpatch.values.dtypes import FLOATS, NUMPY, fit

BLOCK = 2**16  # entries of a block
IN_BLOCKS = ("float32", "float64")

_ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_FLUSHED = ("square", "maximum", "minimum")  # functions that take denormal numbers for zeros, where a backend does
_LOGIC = {"and": np.logical_and, "or": np.logical_or}
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
    """A compiled expression.

    Attributes:
        arrays: the nodes whose values are tensors of the place's shape and dtype.
        scalars: the nodes whose values are scalars.
        compute: computes the result from the list of arrays (or blocks of them) and the list of scalars.
        dtype: the place's dtype.
    """

    arrays: tuple
    scalars: tuple
    compute: Callable
    dtype: str

    def mask(self, view, scope):
        """The mask of a whole tensor; `_` must be the only tensor in the expression.

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
                block = flat[start : start + BLOCK]
                mask[start : start + BLOCK] = self.compute([block] * len(self.arrays), numbers)
        return mask.reshape(view.shape)

    def numbers(self, scope):
        """The values of the scalars, for `compute` with NumPy arrays."""
        return [number[()] for number in self._numbers(scope)]

    def value(self, scope):
        """The whole value, a new tensor of the backend."""
        arrays = [ev.evaluate(node, scope).data for node in self.arrays]
        numbers = [numerics.as_tensor(number, self.dtype) for number in self._numbers(scope)]
        return numerics.guarded(self.compute, arrays, numbers)

    def _numbers(self, scope):
        """The scalars as NumPy arrays of the place's dtype, or booleans."""
        for node in self.scalars:
            value = ev.evaluate(node, scope)
            data = value.data if value.weak else tensors.to_numpy(value.data)
            yield np.asarray(data, bool if value.dtype == "bool" else NUMPY[self.dtype])


def compile_mask(node, planned, place):
    """The `Program` of a boolean or element-wise expression of one tensor, or `None` if it cannot run in blocks.

    Args:
        planned: the value of each node, by `id`, as the planner has evaluated it.
        place: the `Place` of the tensor.
    """
    return _compiled(node, planned, place, mask=True) if place.dtype in IN_BLOCKS else None


def compile_value(node, planned, place):
    """The `Program` of a value of the place's shape that uses only `+ - *`, else `None`."""
    return _compiled(node, planned, place, mask=False) if place.dtype in FLOATS else None


def evaluated(node, scope, names):
    """The value of each node of an expression, by `id`, without data; of those alone that can be planned."""

    def look_up(part, target):
        meaning = names.meaning(part, target)
        return meaning.unknown() if isinstance(meaning, Place) else meaning

    scope = replace(scope, look_up=look_up, read=None, reduced=None, budget=None, seen={})
    with contextlib.suppress(PatchError), arithmetic.planning():
        ev.evaluate(node, scope)
    return scope.seen


def _compiled(node, planned, place, mask):
    compiler = _Compiler(planned, place, mask)
    try:
        compute = compiler.array(node)
    except _NotCompiledError:
        return None
    return Program(tuple(compiler.arrays), tuple(compiler.scalars), compute, place.dtype)


class _NotCompiledError(Exception):
    """The expression is left to the evaluator."""


class _Compiler:
    """Compiles nodes to functions of the list of arrays and the list of numbers."""

    def __init__(self, planned, place, mask):
        self.planned = planned
        self.place = place
        self.mask = mask
        self.arrays = []
        self.scalars = []

    def array(self, node):
        value = self.planned.get(id(node))
        if value is None:
            raise _NotCompiledError
        if value.shape == ():
            return self._scalar(node, value)
        kinds = (self.place.dtype, "bool") if self.mask else (self.place.dtype,)
        if value.shape != self.place.shape or value.dtype not in kinds or value.weak:
            raise _NotCompiledError
        if type(node) is ast.Implied or (type(node) in (ast.Reference, ast.Binding) and not self.mask):
            self.arrays.append(node)
            return _item(0, len(self.arrays) - 1)
        if type(node) is ast.Compare and self.mask:
            return self._comparison(node)
        function, operands = self._operation(node)
        return _applied(function, [self.array(operand) for operand in operands])

    def _scalar(self, node, value):
        if not value.weak and value.dtype not in (self.place.dtype, "bool"):
            raise _NotCompiledError
        if value.weak and value.dtype != "bool":
            self._check_literal(value)
        self.scalars.append(node)
        return _item(1, len(self.scalars) - 1)

    def _check_literal(self, value):
        """Leaves an integer that the tensor's dtype would round to the evaluator, whose comparison is exact."""
        if value.data is None:
            raise _NotCompiledError
        try:
            rounded = fit(value, self.place.dtype)
        except PatchError:
            raise _NotCompiledError from None
        if value.dtype == "int" and int(rounded) != int(value.data):
            raise _NotCompiledError

    def _comparison(self, node):
        operands = [self.array(operand) for operand in node.operands]
        links = [_applied(_COMPARE[op], pair) for op, pair in zip(node.ops, itertools.pairwise(operands), strict=True)]
        return _every(links)

    def _operation(self, node):
        """The function of a node, and the operands' nodes."""
        if type(node) is ast.Unary and node.op == "-":
            return operator.neg, [node.operand]
        if type(node) is ast.Binary and node.op in _ARITHMETIC:
            return self._computing(_ARITHMETIC[node.op]), [node.left, node.right]
        if not self.mask:
            raise _NotCompiledError
        if type(node) is ast.Unary:
            return np.logical_not, [node.operand]
        if type(node) is ast.Binary and node.op in _LOGIC:
            return _LOGIC[node.op], [node.left, node.right]
        if type(node) is ast.Call and node.function in _FUNCTIONS and not any(a.name for a in node.arguments):
            function = _FUNCTIONS[node.function]
            computing = self._computing(function) if node.function in _FLUSHED else function
            return computing, [argument.value for argument in node.arguments]
        raise _NotCompiledError

    def _computing(self, function):
        """A function that computes numbers, of blocks as the backend's own does."""
        return _flushing(function) if self.mask and backends.current().flushes_denormals else function


def _item(which, place):
    return lambda *lists: lists[which][place]


def _flushing(function):
    """The function of NumPy, with denormal operands and results as zeros."""
    return lambda *operands: _flushed(function(*map(_flushed, operands)))


def _flushed(x):
    x = np.asarray(x)
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def _every(links):
    """The conjunction of a chain, in a loop: it may have more links than Python has frames."""

    def compute(arrays, numbers):
        first, *others = links
        whole = first(arrays, numbers)
        for link in others:
            whole = np.logical_and(whole, link(arrays, numbers))
        return whole

    return links[0] if len(links) == 1 else compute


def _applied(function, operands):
    if len(operands) == 1:
        (only,) = operands
        return lambda arrays, numbers: function(only(arrays, numbers))
    left, right = operands
    return lambda arrays, numbers: function(left(arrays, numbers), right(arrays, numbers))
