"""Compiles expressions that are element-wise in `_` when they are planned.

Scalar subexpressions, such as the quantile in `abs(_) < quantile(abs(_), 0.9)`, are evaluated once beforehand. The rest
becomes a list of operations on arrays. NumPy runs them in the memory of a CPU, on every backend (`blocks.py`); the
evaluator would make a temporary of the tensor's size for each. Only operations in which NumPy agrees to the bit with
every backend are compiled: `+ - *`, comparisons, logic, a few functions. Of a whole new value, such as
`0.7 * _ + 0.3 * $donor._`, the tensors' operators compute what NumPy does not, without repeating the checks.
"""

import contextlib
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kpatch import backends
from kpatch.errors import PatchError
from kpatch.names.meanings import Place
from kpatch.run import blocks
from kpatch.run import evaluate as ev
from kpatch.run.blocks import ARRAY, NUMBER, RESULT, Operation
from kpatch.syntax import ast
from kpatch.values import arithmetic, numerics, tensors
from kpatch.values.dtypes import FLOATS, NUMPY, fit

IN_BLOCKS = ("float32", "float64")

_ARITHMETIC = ("+", "-", "*")
_FLUSHED = ("square", "maximum", "minimum")  # functions that take denormal numbers for zeros, where a backend does
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_LOGIC = {"and": "logical_and", "or": "logical_or"}
_FUNCTIONS = ("isnan", "isinf", "isfinite", "logical_not", "logical_and", "logical_or", "abs", *_FLUSHED)
_NUMPY: dict[str, Callable] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    **{name: getattr(np, name) for name in ("negative", *_FUNCTIONS)},
}
_OF_TENSORS: dict[str, Callable] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "negative": operator.neg}


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression.

    Attributes:
        arrays: the nodes whose values are tensors of the place's shape and dtype.
        scalars: the nodes whose values are scalars.
        operations: the operations of the arrays and the scalars.
        dtype: the place's dtype.
        result: the dtype of the result.
    """

    arrays: tuple
    scalars: tuple
    operations: tuple
    dtype: str
    result: str

    def mask(self, view, scope):
        """The mask of a whole tensor; `_` must be the only tensor in the expression.

        Args:
            view: the tensor as a NumPy array.
            scope: an `evaluate.Scope` in which `_` is the tensor.

        Returns:
            A boolean NumPy array of the tensor's shape.
        """
        return self.compute([view.reshape(-1)] * len(self.arrays), self.numbers(scope)).reshape(view.shape)

    def compute(self, arrays, numbers):
        """The result of flat NumPy arrays of one length, a new array unless there is nothing to compute."""
        if not self.operations:
            return arrays[0]
        out = np.empty(arrays[0].shape, NUMPY[self.result])
        blocks.run(self.operations, arrays, numbers, out)
        return out

    @property
    def has_bits(self):
        """Whether `overwrite` gives the bits of the backend's own operations."""
        return not backends.current().flushes_denormals or blocks.can_flush()

    def overwrite(self, memory, arrays, numbers):
        """Computes the result into a flat NumPy array, which may be one of the arrays."""
        blocks.run(self.operations, arrays, numbers, memory, backends.current().flushes_denormals)

    def given(self, scope):
        """The tensors and the numbers that `overwrite` takes."""
        return [ev.evaluate(node, scope).data for node in self.arrays], self.numbers(scope)

    def numbers(self, scope):
        """The values of the scalars, for `compute`."""
        return [number[()] for number in self._numbers(scope)]

    def value(self, scope):
        """The whole value, a new tensor of the backend."""
        backend, arrays = backends.current(), [ev.evaluate(node, scope).data for node in self.arrays]
        if self.dtype in IN_BLOCKS and backend.arrays_are_tensors:
            flat = self.compute([x.reshape(-1) for x in arrays], self.numbers(scope))
            return flat.reshape(arrays[0].shape)
        if self.dtype in IN_BLOCKS:
            found = numerics.guarded(backend.fused, self.operations, arrays, self.numbers(scope))
            if found is not None:
                return found
        numbers = [numerics.as_tensor(number, self.dtype) for number in self._numbers(scope)]
        return numerics.guarded(self._of_tensors, arrays, numbers)

    def _of_tensors(self, arrays, numbers):
        results = {}
        for op in self.operations:
            operands = [(arrays, numbers, results)[kind][place] for kind, place in op.operands]
            results[op.target] = _OF_TENSORS[op.name](*operands)
        return results[op.target]

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
    """The `Program`; one without operations is an array as it is."""
    compiler = _Compiler(planned, place, mask)
    try:
        kind, _ = compiler.operand(node)
    except _NotCompiledError:
        return None
    if kind == NUMBER:
        return None
    operations = blocks.placed(compiler.operations)
    return Program(tuple(compiler.arrays), tuple(compiler.scalars), operations, place.dtype, planned[id(node)].dtype)


class _NotCompiledError(Exception):
    """The expression is left to the evaluator."""


class _Compiler:
    """Compiles nodes to operations on arrays, numbers and earlier results."""

    def __init__(self, planned, place, mask):
        self.planned = planned
        self.place = place
        self.mask = mask
        self.arrays = []
        self.scalars = []
        self.operations = []

    def operand(self, node):
        """The kind and the place of the node's value."""
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
            return ARRAY, len(self.arrays) - 1
        if type(node) is ast.Compare and self.mask:
            return self._comparison(node)
        name, operands = self._operation(node)
        return self._added(name, [self.operand(operand) for operand in operands], NUMPY[value.dtype])

    def _added(self, name, operands, dtype):
        flushes = self.mask and name in (*_ARITHMETIC, *_FLUSHED) and backends.current().flushes_denormals
        compute = functools.partial(_flushing, _NUMPY[name]) if flushes else _NUMPY[name]
        self.operations.append(Operation(name, compute, tuple(operands), np.dtype(dtype), len(self.operations)))
        return RESULT, len(self.operations) - 1

    def _scalar(self, node, value):
        if not value.weak and value.dtype not in (self.place.dtype, "bool"):
            raise _NotCompiledError
        if value.weak and value.dtype != "bool":
            self._check_literal(value)
        self.scalars.append(node)
        return NUMBER, len(self.scalars) - 1

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
        """The conjunction of the chain's links."""
        operands, whole = map(self.operand, node.operands), None
        left = next(operands)
        for op, right in zip(node.ops, operands, strict=True):
            link = self._added(op, (left, right), bool)
            whole = link if whole is None else self._added("logical_and", (whole, link), bool)
            left = right
        return whole

    def _operation(self, node):
        """The name of a node's operation, and the operands' nodes."""
        if type(node) is ast.Unary and node.op == "-":
            return "negative", [node.operand]
        if type(node) is ast.Binary and node.op in _ARITHMETIC:
            return node.op, [node.left, node.right]
        if not self.mask:
            raise _NotCompiledError
        if type(node) is ast.Unary:
            return "logical_not", [node.operand]
        if type(node) is ast.Binary and node.op in _LOGIC:
            return _LOGIC[node.op], [node.left, node.right]
        if type(node) is ast.Call and node.function in _FUNCTIONS and not any(a.name for a in node.arguments):
            return node.function, [argument.value for argument in node.arguments]
        raise _NotCompiledError


def _flushing(function, *operands, out):
    """The function of NumPy, with denormal operands and results as zeros."""
    np.copyto(out, _flushed(function(*map(_flushed, operands))))
    return out


def _flushed(x):
    x = np.asarray(x)
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)
