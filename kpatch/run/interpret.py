"""Statements that run for the first time, on a backend that compiles a function for each shape: by NumPy.

Compiled later it gives the same bits: only operations are interpreted in which NumPy agrees with the backend. A whole
new value that has a program is computed in blocks, whatever numbers it holds; other expressions are evaluated, if none
of the numbers is one that the backend treats in its own way.
"""

from dataclasses import replace

from kpatch import backends
from kpatch.backends.base import OtherBitsError
from kpatch.run.programs import IN_BLOCKS
from kpatch.syntax import ast
from kpatch.values.dtypes import tensor

LEAVES = (ast.Integer, ast.Float, ast.Boolean, ast.Constant, ast.String)
NAMES = (ast.Implied, ast.Reference, ast.Binding, ast.Local)
OPERATORS = ("+", "-", "*", "and", "or")  # not "/": XLA multiplies by the reciprocal of a number
FUNCTIONS = {
    *("abs", "square", "sqrt", "floor", "ceil", "sign", "negative", "add", "subtract", "multiply"),
    *("maximum", "minimum", "clip", "where", "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_not"),
    *("any", "all", "max", "min", "quantile", "median", "sum", "mean", "prod", "var", "std"),
}


def value(step, data, scope, evaluate, program):
    """`evaluate(data, scope)`, the value of a step, as a tensor of the backend; by its program, if it has one."""
    own = None if program is None else scope.with_implied(tensor(data))
    in_blocks = own is not None and program.dtype in IN_BLOCKS and not scope.traced
    if in_blocks and backends.current().compiles_operations:
        numbers = _numbers(step, program, data, own)
        agrees = backends.current().agrees(program.operations, numbers)
        if agrees and (found := program.computed(program.tensors(own), numbers)) is not None:
            return found
    found = _interpreted((step.statement.value,), step, data, scope, evaluate)
    if found is not None:
        return backends.current().placed(found, data)
    found = None if own is None else program.value(own)
    return evaluate(data, scope) if found is None else found


def _numbers(step, program, data, scope):
    """The numbers of a program; what computes them is interpreted, if it can be."""
    found, nodes = None, [node for node, known in program.scalars if known is None]
    if nodes:
        compute = lambda data, scope: program.numbers(scope.with_implied(tensor(data)))  # noqa: E731
        found = _interpreted(nodes, step, data, scope, compute)
    return program.numbers(scope) if found is None else found


def index(step, data, scope, compute):
    """`compute(data, scope)`, which evaluates the index of a step; of arrays if it is interpreted.

    A mask that has a program is computed by NumPy in any case, so that only its numbers may need an interpreter.
    """
    if step.mask is not None and all(known is not None for _, known in step.mask.scalars):
        return compute(data, scope)
    found = _interpreted(step.statement.target.index, step, data, scope, compute)
    return compute(data, scope) if found is None else found


def _interpreted(nodes, step, data, scope, compute):
    """The result of NumPy; or `None` if the computation is left to the backend."""
    work = step.works.get(id(nodes[0]))
    if work is None:
        exact = step.place.dtype == "float32" and all(map(_is_exact, nodes))
        work = step.works[id(nodes[0])] = str(nodes[0]) if exact else ""
    interpreter = backends.current().interpreter(work, data) if work and not scope.traced else None
    if interpreter is None:
        return None
    try:
        with backends.using(interpreter):
            return compute(interpreter.taken(data), _translated(scope, interpreter, nodes))
    except OtherBitsError:
        return None


def _is_exact(node):
    match node:
        case ast.Call(function):
            exact = function in FUNCTIONS
        case ast.Binary(op):
            exact = op in OPERATORS
        case _:
            exact = isinstance(node, (ast.Unary, ast.Compare, ast.List, ast.Argument))
    return isinstance(node, LEAVES + NAMES) or (exact and all(map(_is_exact, ast.children(node))))


def _translated(scope, interpreter, nodes):
    """The scope with all values as arrays."""

    def taken(value):
        return value if value.weak else replace(value, data=interpreter.taken(value.data))

    names = {part.name for node in nodes for part in ast.walk(node) if isinstance(part, ast.Local)}
    return replace(
        scope,
        look_up=lambda *at: taken(scope.look_up(*at)),
        read=None,
        locals={name: taken(scope.locals[name]) for name in names},
        grown=list(scope.grown),  # as the backend may have to compute it again
        budget=None,
    )
