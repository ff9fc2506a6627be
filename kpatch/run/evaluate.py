"""Expression → `Value`: the same evaluator plans (without data) and runs (with data)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kpatch import backends, functions, indexing
from kpatch.errors import DTypeError, LimitError, PatchError, ResolutionError, SubscriptError, UnsupportedError
from kpatch.functions import ranges
from kpatch.syntax import ast
from kpatch.values import arithmetic, grids, numerics, tensors
from kpatch.values.budget import Budget, size_of
from kpatch.values.dtypes import MAX_SIZE, RANGES, Value, constant, literal, tensor

MAX_BLOCK = 2**31 - 1  # entries of the axes with index tensors, whose offsets are int32
NAMED = (ast.Reference, ast.Binding)
UNREAD = ("shape", "size", "ndim")  # functions that do not read the entries of their operand
CONSTANTS = {"inf": math.inf, "nan": math.nan, "pi": math.pi, "e": math.e}


@dataclass(slots=True)
class Scope:
    """The meaning of the names in an expression.

    Attributes:
        look_up: the function `(node, target)` from a `Reference` or `Binding` to its `Value`; `$donor._` needs the
            target.
        read: the function `(node, target, selection)` that reads only the selected entries; or `None`.
        reduced: the function `(node, scope)` that computes a call which reduces a tensor, or gives `None`; or `None`.
        implied: the `Value` of `_`, or `None`.
        whole: the `Place` that `_` is as a whole, which is read only if it is asked for; or `None`.
        locals: the values of earlier `let` statements.
        target: the `Place` that the statement writes to, or `None`.
        stream: the number of the glob's match; each match draws its own random numbers.
        traced: in a compiled function, whose values are unknown.
        grown: the number of entries by which results exceeded their inputs: with this statement, and up to the last
            `let`.
        budget: counts the entries that names touch, while planning and if sizes are known only at the run; or `None`.
        bound: the shape of the place if `_` is what is assigned to in it; repeated entries are touched once.
        seen: the value of each node, by `id`, that the statement being planned has evaluated; or `None`.
        unproved: the index nodes, by `id`, whose tensors are not proved to be in range; found while planning.
        source: the text of the patch, for errors of a running graph.
        match: the match of a `for` block that is under way, or `None`.
        outside: of `grown`, what is of the `let`s before that block.
    """

    look_up: Callable[..., Value]
    read: Callable | None = None
    reduced: Callable | None = None
    implied: Value | None = None
    whole: Any = None
    locals: dict[str, Value] = field(default_factory=dict)
    target: Any = None
    stream: int = 0
    traced: bool = False
    grown: list[int] = field(default_factory=lambda: [0, 0])
    budget: Budget | None = None
    bound: tuple | None = None
    seen: dict[int, Value] | None = None
    unproved: set[int] = field(default_factory=set)
    source: str | None = None
    match: tuple[int, int] | None = None
    outside: int = 0

    def begin(self, target=None, stream=0, block=None):
        """Begins a statement: the results of the last one are freed, except those of a `let` outside of a block."""
        match = None if block is None else (id(block), stream)
        if match != self.match:
            if self.match is not None:  # its locals are gone
                self.grown[1] = self.outside
            self.match, self.outside = match, self.grown[1]
        self.grown[0] = self.grown[1]
        self.target, self.stream = target, stream

    def bind(self, name, value):
        self.locals[name] = value
        self.grown[1] = self.grown[0]

    def touched(self, value, bound=None):
        """The value of a name; its entries are counted, at most as many as the shape `bound` has."""
        if self.budget is not None and value.weak:
            self.budget.allow(_size(value))
        elif self.budget is not None:
            self.budget.touch(value.shape, bound)
        return value

    def account(self, result, inputs):
        """The result; `LimitError` if results grow beyond `MAX_SIZE` entries in all."""
        if not result.weak:
            self.grown[0] += max(0, _size(result) - max(map(_size, inputs), default=0))
            if self.grown[0] > MAX_SIZE:
                raise LimitError(
                    f"the results of a statement, and of the 'let's before it, grow by over {MAX_SIZE} entries"
                )
        return result

    @property
    def proves(self):
        """Whether a compiled function is planned, so that ranges are computed."""
        return self.traced and arithmetic.is_planning()

    def with_implied(self, value, bound=None):
        return replace(self, implied=value, whole=None, bound=bound)


def _size(value):
    return size_of(value.shape)


class PoisonedError(Exception):
    """A local whose `let` failed: the error is reported once, not at each use."""


def evaluate(node, scope):
    """The value of an expression; its `data` is `None` if that of a tensor in it is."""
    try:
        value = _EVALUATORS[type(node)](node, scope)
    except PatchError as error:
        raise error.locate(node.span) from error.__cause__
    if scope.seen is not None:
        scope.seen[id(node)] = value
    return value


def index_items(nodes, scope):
    """The items of a subscript: integers, slices, `...`, NumPy arrays, and `Value`s of tensors."""
    return tuple(_index_item(node, scope) for node in nodes)


def known(items):
    """Whether no item is a tensor, so that the selection does not depend on values."""
    return not any(isinstance(item, Value) for item in items)


def lists(items):
    """Whether an item is an index array or a mask, so that entries are listed one by one."""
    return any(isinstance(item, (Value, np.ndarray)) for item in items)


def select(shape, items, nodes):
    """The selection of the items, `None` if a length is unknown; errors get the span of the faulty item."""
    return _at_items(indexing.select, shape, [_with_values(item) for item in items], nodes)


def infer(shape, items, nodes):
    """The shape that the items select, with `None` for lengths that depend on values."""
    return _at_items(indexing.infer, shape, [_without_values(item) for item in items], nodes)


def _at_items(function, shape, items, nodes, *args):
    try:
        return function(shape, tuple(items), *args)
    except PatchError as error:
        at = None if error.argument is None else nodes[error.argument].span
        raise error.locate(at) from None


def _with_values(item):
    return tensors.to_numpy(item.data) if isinstance(item, Value) else item


def _without_values(item):
    return indexing.Unknown(item.shape, item.dtype) if isinstance(item, Value) else item


def _index_item(node, scope):
    if type(node) is ast.Integer:
        return node.value
    if type(node) is ast.Slice:
        return slice(*(_bound(part, scope) for part in (node.start, node.stop, node.step)))
    if type(node) is ast.Ellipsis_:
        return Ellipsis
    value = evaluate(node, scope)
    if value.dtype.startswith(("float", "bfloat")):
        raise DTypeError(
            f"an index is made of integers or booleans, not of {value.dtype}",
            notes=['cast(x, "int32") converts it to integers'],
        ).locate(node.span)
    if not value.weak:
        known = type(node) is ast.Binding and value.data is not None and not arithmetic.is_traced(value.data)
        return tensors.to_numpy(value.data) if known else value
    if value.data is None:
        return value
    return int(value.data) if value.data.ndim == 0 and value.dtype == "int" else value.data


def _bound(node, scope):
    if node is None:
        return None
    value = evaluate(node, scope)
    if value.weak and value.dtype == "int" and value.shape == () and value.data is not None:
        return int(value.data)
    if not value.weak or value.data is None:
        raise UnsupportedError(
            "a slice's bound must be known before the patch runs: an integer, not a tensor",
            notes=["a list or a mask can depend on values: x[arange(10) < n]"],
        ).locate(node.span)
    raise DTypeError("a slice's bound is one integer").locate(node.span)


def _list(node, scope):
    items = [evaluate(item, scope) for item in node.items]
    arithmetic.count_constants(sum(_size(item) for item in items if item.weak))
    if all(item.weak and item.data is not None for item in items):
        return literal([item.data.tolist() for item in items])
    return functions.call("stack", [items], {}, scope.traced)


def _implied(node, scope):
    if scope.implied is None and scope.whole is not None:
        scope.implied = scope.look_up(node, scope.whole)
    if scope.implied is None:
        raise ResolutionError(
            "'_' means nothing here: there is no implied tensor",
            notes=["in an edit of a model '_' stands for the entries being assigned; name a variable instead"],
        )
    return scope.touched(scope.implied, scope.bound)


def _local(node, scope):
    value = scope.locals.get(node.name)
    if value is None:
        raise PoisonedError(node.name)
    return value


def _unary(node, scope):
    operand = evaluate(node.operand, scope)
    result = _existing(arithmetic.unary(node.op, operand), (operand,))
    return ranges.unary(result, node.op, operand) if scope.proves else result


def _binary(node, scope):
    left, right = evaluate(node.left, scope), evaluate(node.right, scope)
    result = _at_arguments((node.left, node.right), arithmetic.binary, node.op, left, right, scope.traced)
    result = _existing(scope.account(result, (left, right)), (left, right), node.op != "@")
    return ranges.binary(result, node.op, left, right) if scope.proves else result


def _compare(node, scope):
    """`a < b < c` means `a < b and b < c`; each operand is evaluated once."""
    values = [evaluate(operand, scope) for operand in node.operands]
    result = None
    for i, op in enumerate(node.ops):
        link = _at_arguments(node.operands[i : i + 2], arithmetic.compare, op, values[i], values[i + 1])
        result = link if result is None else arithmetic.binary("and", result, link)
    result = _existing(scope.account(result, values), values)
    return ranges.compare(result, values) if scope.proves else result


def _call(node, scope):
    if scope.reduced is not None and (value := scope.reduced(node, scope)) is not None:
        return value
    if scope.traced and (places := _places_along(node, scope)) is not None:
        return places
    positional = [a for a in node.arguments if a.name is None]
    named = {a.name: a for a in node.arguments if a.name is not None}
    at = {**dict(enumerate(positional)), **named}
    try:
        unread = replace(scope, budget=None) if node.function in UNREAD else scope
        given = {key: _argument(argument.value, unread) for key, argument in at.items()}
        args = [given[place] for place in range(len(positional))]
        kwargs = {name: given[name] for name in named}
        inputs = [value for value in given.values() if isinstance(value, Value)]
        result = scope.account(functions.call(node.function, args, kwargs, scope.traced, scope.stream), inputs)
        return _existing(result, inputs, functions.is_elementwise(node.function))
    except PatchError as error:
        faulty = at.get(error.argument)
        raise error.locate(faulty and faulty.span) from None


def _axis(node, scope):
    """The tensor and the axis of `shape(x)[i]` in a compiled function; `None` for other expressions."""
    match node:
        case ast.Subscript(ast.Call("shape", (of,)), (ast.Integer(axis),)):
            x = evaluate(of.value, scope)
            return (x, axis) if -len(x.shape) <= axis < len(x.shape) else None
    return None


def _places_along(node, scope):
    """`arange(shape(x)[i])` in a compiled function, whose length can be unknown; `None` for other calls."""
    match node:
        case ast.Call("arange", (ast.Argument(None, count),)) if found := _axis(count, scope):
            x, axis = found
        case _:
            return None
    if (length := x.shape[axis]) is not None:
        return scope.account(functions.call("arange", [literal(length)], traced=scope.traced), [x])
    if scope.proves:
        return ranges.places(x, axis)
    ops = backends.current().ops
    return tensor(ops.arange(ops.shape(x.data)[axis], dtype="int32"))


def _argument(node, scope):
    """A string, a value, or the list of values of a list with tensors (`concatenate([a, b])`)."""
    if isinstance(node, ast.String):
        return node.value
    if isinstance(node, ast.List) and node.items:
        items = [evaluate(item, scope) for item in node.items]
        if not all(item.weak for item in items):
            return items
    return evaluate(node, scope)


def _subscript(node, scope):
    if scope.traced and (found := _axis(node, scope)) and found[0].shape[found[1]] is not None:
        return literal(found[0].shape[found[1]])
    named = type(node.value) in NAMED
    value = scope.look_up(node.value, scope.target) if named else evaluate(node.value, scope)
    items = index_items(node.index, scope.with_implied(value))
    if scope.traced and (not known(items) or None in value.shape):
        result = _traced_entries(value, items, node, scope)
    else:
        result = _entries(value, items, node, scope)
    if named:
        scope.touched(value, result.shape)
    result = _existing(result, (value, *(item for item in items if isinstance(item, Value))), False)
    return ranges.entries(result, value, items) if scope.proves else result


def _existing(result, operands, elementwise=True):
    """The result with `exists` computed from its operands; one flag for all entries if it is not element-wise."""
    found = [value.exists for value in (result, *operands) if value.exists is not None]
    if not found:
        return result
    ops = backends.current().ops
    if not elementwise:
        found = [result.exists if exists is result.exists else ops.all(exists) for exists in found]
    return replace(result, exists=functools.reduce(ops.logical_and, found))


def _entries(value, items, node, scope):
    if scope.budget is not None:
        arithmetic.count(infer(value.shape, items, node.index), value.weak)
    if value.data is None or any(isinstance(item, Value) and item.data is None for item in items):
        weak = value.weak and all(item.weak for item in items if isinstance(item, Value))
        if any(isinstance(item, Value) and item.data is None and item.dtype != "bool" for item in items):
            arithmetic.doubt()  # whether it is in range
        return Value(value.dtype, infer(value.shape, items, node.index), None, weak)
    selection = select(value.shape, items, node.index)
    if scope.read is not None and type(node.value) in NAMED:
        return scope.read(node.value, scope.target, selection)
    return entries(value, selection)


def entries(value, selection):
    """The selected entries of a value; a literal if the value is one."""
    if value.weak:
        flat = np.ravel(value.data)[tensors.positions(selection, value.shape).flat]
        return constant(flat.reshape(selection.shape), value.is_list and bool(selection.shape))
    return tensor(tensors.take(value.data, selection))


def _traced_entries(value, items, node, scope):
    """Entries in a compiled function, by index tensors or along axes of unknown length."""
    if scope.proves:
        prove(value, items, node.index, scope)
        return Value(value.dtype, infer(value.shape, items, node.index), None, value.weak)
    selection = traced_selection(value.data, items, node.index, scope)
    return replace(tensor(tensors.take(value.data, selection)), exists=grids.existing(selection))


def traced_selection(data, items, nodes, scope):
    """The selection of a tensor's entries. An unproved index is checked now if its values are known, else by the
    running graph, if the backend's graphs can raise."""
    checked = [_known_array(item, node, scope) for item, node in zip(items, nodes, strict=True)]
    given = {position: _index_data(item) for position, item in enumerate(checked) if isinstance(item, Value)}
    proved = [at for at in given if id(nodes[at]) not in scope.unproved and checked[at].exists is None]
    selection, checks = _at_items(grids.layout, data, checked, nodes, given, proved)
    for position, exists in checks.items():
        at = SubscriptError("").locate(nodes[position].span, scope.source)
        message = f"index {nodes[position]} (line {at.line}, column {at.column}) names an entry that does not exist"
        backends.current().require(exists, message)
    return selection


def _index_data(index):
    """The indices; an index computed from an index out of range becomes out of range too."""
    if index.exists is None:
        return index.data
    ops = backends.current().ops
    dtype = index.dtype if index.dtype in ("int64", "uint32", "uint64") else "int32"
    return ops.where(index.exists, ops.cast(index.data, dtype), RANGES[dtype][1])


def _known_array(item, node, scope):
    """The item, as an array if it is an unproved tensor with known values."""
    unproved = isinstance(item, Value) and id(node) in scope.unproved
    return tensors.to_numpy(item.data) if unproved and not numerics.is_traced(item.data) else item


def prove(value, items, nodes, scope):
    """Records, while a compiled function is planned, which index tensors could be out of range."""
    if value.weak:
        raise UnsupportedError(
            "a list cannot be indexed by a tensor inside a compiled function",
            notes=['cast([...], "float32") converts it to a tensor'],
        )
    _refuse_masks(items, nodes)
    grid, indices = _at_items(indexing.layout, value.shape, [_without_values(item) for item in items], nodes)
    axes = [axis for axis, item in enumerate(grid.items) if item is None]
    if math.prod(value.shape[axis] or 1 for axis in axes) > MAX_BLOCK:
        raise LimitError(f"an index tensor into more than {MAX_BLOCK} entries").locate(nodes[indices[0][2]].span)
    for axis, _, position in indices:
        item, node = items[position], nodes[position]
        if isinstance(item, Value) and not _at(node.span, ranges.proves, item, value, axis):
            scope.unproved.add(id(node))


def _refuse_masks(items, nodes):
    for item, node in zip(items, nodes, strict=True):
        if isinstance(item, Value) and item.dtype == "bool":
            raise UnsupportedError(
                "the number of entries that a mask selects is unknown inside a compiled function",
                notes=["a mask of the whole tensor, or of its first axes, can be assigned to; where(mask, a, b) reads"],
            ).locate(node.span)


def _at(span, function, *args):
    """Calls a function; its errors get the span."""
    try:
        return function(*args)
    except PatchError as error:
        raise error.locate(span) from None


def _named(node, scope):
    return scope.touched(scope.look_up(node, scope.target))


def _at_arguments(nodes, function, *args):
    """Calls an operation; its errors get the span of the faulty operand."""
    try:
        return function(*args)
    except PatchError as error:
        at = None if error.argument is None else nodes[error.argument].span
        raise error.locate(at) from None


_EVALUATORS = {
    ast.Integer: lambda node, scope: literal(node.value),
    ast.Float: lambda node, scope: literal(node.value),
    ast.Boolean: lambda node, scope: literal(node.value),
    ast.Constant: lambda node, scope: literal(CONSTANTS[node.name]),
    ast.List: _list,
    ast.Local: _local,
    ast.Implied: _implied,
    ast.Reference: _named,
    ast.Binding: _named,
    ast.Unary: _unary,
    ast.Binary: _binary,
    ast.Compare: _compare,
    ast.Call: _call,
    ast.Subscript: _subscript,
}
