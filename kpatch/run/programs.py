"""Compiles expressions that are element-wise in `_` when they are planned.

Scalar subexpressions, such as the quantile in `abs(_) < quantile(abs(_), 0.9)`, are evaluated once beforehand. The rest
becomes a list of operations on arrays. NumPy runs them in the memory of a CPU, on every backend (`blocks.py`); the
evaluator would make a temporary of the tensor's size for each. Only operations in which NumPy agrees to the bit with
every backend are compiled: `+ - * /`, comparisons, logic, choices, a few functions (`kernels.py`).

A mask is a program of the tensor in which it selects. So is a whole new value, and a number that is written under a
mask: `where(mask, number, _)`. Of `0.7 * _ + 0.3 * $donor._` the tensors' operators compute what NumPy does not,
without repeating the checks.
"""

import contextlib
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kpatch import backends
from kpatch.errors import PatchError
from kpatch.names.meanings import Place
from kpatch.run import blocks, kernels
from kpatch.run import evaluate as ev
from kpatch.run.blocks import ARRAY, NUMBER, RESULT, Operation
from kpatch.syntax import ast
from kpatch.values import arithmetic, numerics, tensors
from kpatch.values.dtypes import FLOATS, NUMPY, fit

IN_BLOCKS = ("float32", "float64")

_ARITHMETIC = ("+", "-", "*")
_FLUSHED = ("square", "maximum", "minimum")  # functions that take denormal numbers for zeros, where a backend does
_LOGIC = {"and": "logical_and", "or": "logical_or"}
_TESTS = ("isnan", "isinf", "isfinite", "logical_not", "logical_and", "logical_or")
_FUNCTIONS = (*_TESTS, "abs", *_FLUSHED)
_OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "true_divide": "/", "negative": "negative"}
_OF_TENSORS: dict[str, Callable] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "negative": operator.neg}


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression.

    Attributes:
        arrays: the nodes whose values are tensors of the place's shape and dtype.
        scalars: the nodes whose values are scalars, each with the value as a scalar of NumPy if planning knows it.
        operations: the operations of the arrays and the scalars.
        dtype: the place's dtype.
        result: the dtype of the result.
        counts: the last operation is a choice, whose entries are counted.
    """

    arrays: tuple
    scalars: tuple
    operations: tuple
    dtype: str
    result: str
    counts: bool = False

    def mask(self, view, scope):
        """The mask of a whole tensor; `_` must be the only tensor in the expression.

        Args:
            view: the tensor as a NumPy array.
            scope: an `evaluate.Scope` in which `_` is the tensor.

        Returns:
            A boolean NumPy array of the tensor's shape.
        """
        return self.compute([view] * len(self.arrays), self.numbers(scope))

    def compute(self, arrays, numbers):
        """The result of NumPy arrays of one shape, a new array unless there is nothing to compute."""
        if not self.operations:
            return arrays[0]
        out = np.empty(arrays[0].shape, NUMPY[self.result])
        blocks.run([blocks.Job(self.operations, [x.reshape(-1) for x in arrays], numbers, out.reshape(-1))])
        return out

    @property
    def has_bits(self):
        """Whether `overwriting` gives the bits of the backend's own operations."""
        return not backends.current().flushes_denormals or blocks.can_flush()

    def overwriting(self, memory, arrays, numbers):
        """The `InBlocks` of a flat NumPy array, which may be one of the arrays."""
        operations, found = self.operations, []
        if backends.current().flushes_denormals:
            operations = tuple(_compared_exactly(op, numbers) for op in operations)
        if self.counts:
            *firsts, last = operations

            def compute(mask, *choices, out):
                found.append(np.count_nonzero(mask))
                return last.compute(mask, *choices, out=out, count=found[-1])

            operations = (*firsts, last._replace(compute=compute))
        return InBlocks(blocks.Job(operations, arrays, numbers, memory), found)

    def given(self, scope):
        """The tensors and the numbers that `overwriting` takes."""
        return self.tensors(scope), self.numbers(scope)

    def tensors(self, scope):
        """The tensors of the place's shape."""
        return [ev.evaluate(node, scope).data for node in self.arrays]

    def numbers(self, scope):
        """The values of the scalars, for `compute`."""
        return self._numbers(self._values(scope))

    def value(self, scope):
        """The whole value, a new tensor of the backend; `None` if it is left to the evaluator."""
        backend, arrays = backends.current(), self.tensors(scope)
        if self.dtype in IN_BLOCKS and backend.arrays_are_tensors:
            return self.compute(arrays, self.numbers(scope))
        values = self._values(scope)
        if any(not value.weak and numerics.is_differentiated(value.data) for value in values if value is not None):
            return None  # a number has no gradient
        numbers = self._numbers(values)
        if self.dtype in IN_BLOCKS and (found := self.computed(arrays, numbers)) is not None:
            return found
        if not all(op.name in _OF_TENSORS for op in self.operations):
            return None
        numbers = [numerics.as_tensor(number, self.dtype) for number in numbers]
        return numerics.guarded(self._of_tensors, arrays, numbers)

    def computed(self, arrays, numbers):
        """The value of tensors and numbers that are `given`: by NumPy in blocks, or by a function of the backend."""
        found = numerics.guarded(self._in_blocks, arrays, numbers)
        return numerics.guarded(backends.current().fused, self.operations, arrays, numbers) if found is None else found

    def _in_blocks(self, arrays, numbers):
        """The value as a new tensor that NumPy fills, if the backend has such a one and NumPy its bits; or `None`."""
        backend = backends.current()
        suits = self.operations and backend.suits_blocks(self.operations, arrays, numbers)
        blank = backend.blank(arrays) if suits else None
        if blank is None or not self.has_bits:
            return None
        tensor, memory = blank
        views = [view.reshape(-1) for x in arrays if (view := backend.view(x)) is not None]
        InBlocks.run([self.overwriting(memory.reshape(-1), views, numbers)])
        return tensor

    def _of_tensors(self, arrays, numbers):
        results = {}
        for op in self.operations:
            operands = [(arrays, numbers, results)[kind][place] for kind, place in op.operands]
            results[op.target] = _OF_TENSORS[op.name](*operands)
        return results[op.target]

    def _values(self, scope):
        """The values of the scalars; of one whose number is known `None`."""
        return [ev.evaluate(node, scope) if known is None else None for node, known in self.scalars]

    def _numbers(self, values):
        pairs = zip(values, self.scalars, strict=True)
        return [known if value is None else self._number(value) for value, (_, known) in pairs]

    def _number(self, value):
        """A scalar as one of NumPy, of the place's dtype or boolean."""
        data = value.data if value.weak else tensors.to_numpy(value.data)
        return np.asarray(data, bool if value.dtype == "bool" else NUMPY[self.dtype])[()]


class InBlocks(NamedTuple):
    """A result that NumPy is to compute into memory.

    Attributes:
        job: the `blocks.Job`.
        found: the numbers of entries that were chosen in each block, if they are counted.
    """

    job: blocks.Job
    found: list

    @staticmethod
    def run(jobs, begin=lambda at: None):
        """Computes several; gives the number of entries chosen in each (see `base.Overwriting`)."""
        for at in range(len(jobs)):
            begin(at)
        blocks.run([each.job for each in jobs], backends.current().flushes_denormals)
        return [sum(each.found) for each in jobs]


def _compared_exactly(op, numbers):
    """The operation; a comparison tells denormal numbers from zero, where one may lie between the operands."""
    compared = [numbers[place] for kind, place in op.operands if kind == NUMBER]
    if op.name not in kernels.EXACT or any(abs(x) >= np.finfo(x.dtype).tiny for x in compared if x.dtype.kind == "f"):
        return op
    return op._replace(compute=kernels.EXACT[op.name])


def compile_mask(node, planned, place):
    """The `Program` of a boolean or element-wise expression of one tensor, or `None` if it cannot run in blocks.

    Args:
        planned: the value of each node, by `id`, as the planner has evaluated it.
        place: the `Place` of the tensor.
    """
    return _compiled(_OfMasks(planned, place), node) if place.dtype in IN_BLOCKS else None


def compile_value(node, planned, place):
    """The `Program` of a value of the place's shape, else `None`; of 16-bit floats only of `+ - *`."""
    return _compiled(_OfValues(planned, place), node) if place.dtype in FLOATS else None


def compile_choice(mask, number, planned, place):
    """The `Program` of a place in which a number is written under a mask, or `None`.

    Args:
        mask: the node of the mask.
        number: the node of the number, which does not depend on the entries.
    """
    if place.dtype not in IN_BLOCKS or planned[id(number)].dtype == "bool":
        return None
    node = ast.Call("where", tuple(ast.Argument(None, each) for each in (mask, number, ast.Implied())))
    old = place.unknown()
    program = compile_value(node, {**planned, id(node): old, id(node.arguments[-1].value): old}, place)
    return program and replace(program, counts=True)


def evaluated(node, scope, names):
    """The value of each node of an expression, by `id`, without data; of those alone that can be planned."""

    def look_up(part, target):
        meaning = names.meaning(part, target)
        return meaning.unknown() if isinstance(meaning, Place) else meaning

    scope = replace(scope, look_up=look_up, read=None, reduced=None, budget=None, seen={})
    with contextlib.suppress(PatchError), arithmetic.planning():
        ev.evaluate(node, scope)
    return scope.seen


def _compiled(compiler, node):
    """The `Program`; one without operations is an array as it is. Numbers alone are left to the evaluator."""
    try:
        kind, _ = compiler.operand(node)
    except _NotCompiledError:
        return None
    if kind == NUMBER or not compiler.arrays:
        return None
    operations, place = blocks.placed(compiler.operations), compiler.place
    result = compiler.planned[id(node)].dtype
    return Program(tuple(compiler.arrays), tuple(compiler.scalars), operations, place.dtype, result)


class _NotCompiledError(Exception):
    """The expression is left to the evaluator."""


class _Compiler:
    """Compiles nodes to operations on arrays, numbers and earlier results."""

    leaves: tuple = (ast.Implied,)

    def __init__(self, planned, place):
        self.planned = planned
        self.place = place
        self.in_blocks = place.dtype in IN_BLOCKS
        self.kinds = (place.dtype, "bool") if self.in_blocks else (place.dtype,)
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
        if value.shape != self.place.shape or value.dtype not in self.kinds or value.weak:
            raise _NotCompiledError
        if type(node) in self.leaves and value.dtype == self.place.dtype:
            self.arrays.append(node)
            return ARRAY, len(self.arrays) - 1
        if type(node) is ast.Compare and self.in_blocks:
            return self._comparison(node)
        name, operands = self._operation(node)
        return self._added(name, [self.operand(operand) for operand in operands], NUMPY[value.dtype])

    def _added(self, name, operands, dtype):
        function = self._function(name)
        self.operations.append(Operation(name, function, tuple(operands), np.dtype(dtype), len(self.operations)))
        return RESULT, len(self.operations) - 1

    def _scalar(self, node, value):
        if not value.weak and value.dtype not in (self.place.dtype, "bool"):
            raise _NotCompiledError
        known = None
        if value.weak and value.dtype != "bool":
            known = self._literal(value)
        self.scalars.append((node, known))
        return NUMBER, len(self.scalars) - 1

    def _literal(self, value):
        """The number. An integer that the tensor's dtype rounds is left to the evaluator, whose comparison is exact."""
        if value.data is None:
            raise _NotCompiledError
        try:
            rounded = fit(value, self.place.dtype)
        except PatchError:
            raise _NotCompiledError from None
        if value.dtype == "int" and int(rounded) != int(value.data):
            raise _NotCompiledError
        return np.asarray(value.data, NUMPY[self.place.dtype])[()]

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
        match node:
            case ast.Unary("-", operand):
                return "negative", [operand]
            case ast.Binary(op, left, right) if op in _ARITHMETIC:
                return op, [left, right]
            case ast.Unary("not", operand) if self.in_blocks:
                return "logical_not", [operand]
            case ast.Binary(op, left, right) if op in _LOGIC and self.in_blocks:
                return _LOGIC[op], [left, right]
            case ast.Call(name, arguments) if not any(each.name for each in arguments):
                return self._call(name), [each.value for each in arguments]
        raise _NotCompiledError

    def _call(self, name):
        """The operation of a function."""
        if name not in _FUNCTIONS or not self.in_blocks:
            raise _NotCompiledError
        return name

    def _function(self, name):
        return kernels.FUNCTIONS[name]


class _OfMasks(_Compiler):
    """Compiles what is computed of one tensor, in threads in which denormal numbers are what they are."""

    def _function(self, name):
        function = super()._function(name)
        flushes = name in (*_ARITHMETIC, *_FLUSHED) and backends.current().flushes_denormals
        return functools.partial(kernels.flushing, function) if flushes else function


class _OfValues(_Compiler):
    """Compiles what is computed of any tensors of the place's shape, with the bits of the backend's own operations."""

    leaves = (ast.Implied, ast.Reference, ast.Binding, ast.Local)

    def operand(self, node):
        match node:
            case ast.Call("clip", (ast.Argument(None, x), ast.Argument(None, low), ast.Argument(None, high))):
                return self._clipped(node, x, low, high)
        return super().operand(node)

    def _clipped(self, node, *parts):
        """One operation if both bounds are numbers, else two."""
        value = self.planned.get(id(node))
        if value is None or (value.shape, value.dtype) != (self.place.shape, self.place.dtype) or not self.in_blocks:
            return super().operand(node)
        x, low, high = map(self.operand, parts)
        dtype = NUMPY[value.dtype]
        if low[0] == high[0] == NUMBER:
            return self._added("clip", (x, low, high), dtype)
        return self._added("minimum", (self._added("maximum", (x, low), dtype), high), dtype)

    def _operation(self, node):
        match node:
            case ast.Binary("/", left, right) if self.in_blocks:
                return "/", [left, right]
            case ast.Binary("**", left, right) if self.in_blocks and self._is_two(right):
                return "square", [left]
        return super()._operation(node)

    def _is_two(self, node):
        value = self.planned.get(id(node))
        return value is not None and value.weak and value.shape == () and value.data is not None and value.data == 2

    def _call(self, name):
        if name == "where" and self.in_blocks:
            return name
        if name in _OPERATORS and (self.in_blocks or _OPERATORS[name] != "/"):
            return _OPERATORS[name]
        return super()._call(name)
