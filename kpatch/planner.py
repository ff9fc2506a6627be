"""Patch + names → steps: every check that can be made before the first write, and nothing written.

There is one step for each statement and variable; consecutive statements that each set one entry to a number become
one step for each variable, so that ten thousand of them cost one write.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from kpatch import evaluate as ev
from kpatch import functions, indexing, tensors
from kpatch.batch import batches, sets_one_entry
from kpatch.elementwise import compile_mask, compile_value
from kpatch.errors import DTypeError, PatchAssertionError, PatchError, UnsupportedError, combine
from kpatch.functions import ranges
from kpatch.functions.quoted import with_names
from kpatch.resolve.names import Names, Place
from kpatch.syntax import ast
from kpatch.values import arithmetic
from kpatch.values.dtypes import Value, is_floating

NAMED = (ast.Reference, ast.Binding)
MAX_SHOWN = 8  # entries of an operand that a failed assertion shows


@dataclass(eq=False, slots=True)
class EditStep:
    """One statement that writes.

    Attributes:
        statement: the `ast.Edit`.
        place: what it writes to.
        selection: the entries, or `None` if they depend on values, or on lengths that are not known yet.
        constant: the values as a NumPy array of the place's dtype, or `None` where they depend on values.
        scalar: the right-hand side is one number that does not depend on the entries.
        operand: for `op=` by a number, that number as a `Value` of the place's dtype.
        stream: which of a glob's matches the place is.
        fresh: the values are a new tensor of the whole place, which it can take over.
        mask: for an index that is a mask, the `elementwise.Program` that makes it, or `None`.
        value: for fresh values, the `elementwise.Program` that computes them, or `None`.
        prepared: the constant as a backend takes it fastest, filled at the first run.
        open_ended: whether the value fits is known only when the lengths are.
        may_fail: it can still be an error, on the values that it meets.
    """

    statement: ast.Edit
    place: Place
    selection: Any
    constant: Any = None
    scalar: bool = False
    operand: Any = None
    stream: int = 0
    fresh: bool = False
    mask: Any = None
    value: Any = None
    prepared: Any = None
    open_ended: bool = False
    may_fail: bool = True

    @property
    def statements(self):
        return (self.statement,)


@dataclass(eq=False, slots=True)
class AssertStep:
    statement: ast.Assert
    may_fail: bool = True

    place, stream = None, 0


@dataclass(eq=False, slots=True)
class LetStep:
    statement: ast.Let
    may_fail: bool = True

    place, stream = None, 0


def writing(steps):
    """The steps that write."""
    return tuple(step for step in steps if not isinstance(step, (AssertStep, LetStep)))


@dataclass(eq=False)
class Checked:
    """A patch that fits its names: what runs it, and what the caches keep. It holds no values of variables.

    Attributes:
        patch: the `Patch`.
        steps: what is executed, in order.
        names: the `Names` that the steps were made with.
        unproved: the index nodes, by `id`, that are checked when a compiled function runs.
    """

    patch: ast.Patch
    steps: tuple
    names: Names
    unproved: frozenset = frozenset()

    @cached_property
    def edits(self):
        """The steps that write."""
        return writing(self.steps)

    @cached_property
    def doubtful(self):
        """The position of the last step that may still fail on the values that it meets, or -1."""
        return max((position for position, step in enumerate(self.steps) if step.may_fail), default=-1)

    @cached_property
    def dynamic(self):
        """Whether a step writes entries that depend on values."""
        return any(step.selection is None for step in self.edits)

    def plan(self, counts):
        """The `Plan` with these numbers of entries, one for each step that writes."""
        return Plan(self.patch, self.steps, tuple(counts))


@dataclass(frozen=True, eq=False)
class Plan:
    """What a patch does to a model: a snapshot, which later changes of the model leave alone.

    `print(plan)` shows it as a table.

    Attributes:
        patch: the `Patch`.
        steps: what is executed, in order.
        rows: a `Row` for each statement that writes, and each of its matches.
        warnings: a sentence for each statement that edits nothing, or every entry in spite of its index.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> plan = kpatch.plan(model, "dense_1.kernel[0] = 1.0")
        >>> plan.rows[0].path, plan.rows[0].shape, plan.rows[0].entries
        ('dense_1.kernel', (4, 3), 3)
    """

    patch: ast.Patch
    steps: tuple
    counts: tuple = field(repr=False)  # of the entries that each step writes; `None` if only running it tells

    @property
    def edits(self):
        """The steps that write."""
        return writing(self.steps)

    @cached_property
    def rows(self):
        return tuple(row for _, row in self._of_statements)

    @cached_property
    def warnings(self):
        from kpatch.report import plan_warnings

        return plan_warnings(self._of_statements)

    @cached_property
    def _of_statements(self):
        """The statements and their rows."""
        from kpatch.report import plan_rows

        return plan_rows(self)

    def __str__(self):
        from kpatch.report import as_text

        return as_text(self.__rich__())

    def __rich__(self):
        from kpatch.report import plan_table

        return plan_table(self)


def make(patch, names, implied=None, traced=False):
    """Checks a patch against names, and gives what runs it as `Checked`; all its errors are raised together.

    Args:
        patch: the `Patch`.
        names: the `Names` of the patch.
        implied: what `_` is in `let` and `assert`, as a `Value`, or `None`.
        traced: the plan is for a compiled function, where values cannot be looked at.
    """
    scope = ev.Scope(functools.partial(_unknown, names), implied=implied, traced=traced)
    steps, errors, edits = [], [], []
    for statement in (*patch.statements, None):
        if isinstance(statement, ast.Edit):
            edits.append(statement)
            continue
        steps += _edits(edits, names, scope, errors)
        edits = []
        if statement is not None:
            steps += _collect(errors, _OTHERS[type(statement)], with_names(statement), scope)
    if errors:
        raise combine([error.locate(None, patch.source) for error in errors])
    return Checked(patch, tuple(steps), names, frozenset(scope.unproved))


def _unknown(names, node, target):
    """What a name stands for while no variable has been read."""
    meaning = names.meaning(node, target)
    return meaning.unknown() if isinstance(meaning, Place) else meaning


def _edits(edits, names, scope, errors):
    """The steps of statements that write, those that can be batched in one."""
    steps, run = [], []
    for statement in (*edits, None):
        if statement is not None and sets_one_entry(statement):
            run.append(statement)
            continue
        batched = batches(run, names)
        if batched is None:
            batched = [step for s in run for step in _plan_edits(s, names, scope, errors)]
        steps += batched
        run = []
        if statement is not None:
            steps += _plan_edits(with_names(statement), names, scope, errors)
    return steps


def _collect(errors, function, statement, *args):
    """The step of one statement, or its error kept for later."""
    try:
        return [function(statement, *args)]
    except ev.PoisonedError:
        return []
    except PatchError as error:
        errors.append(error.locate(statement.span))
        return []


def _plan_edits(statement, names, scope, errors):
    """The steps of a statement that writes: one for each variable that its target matches."""
    [places] = _collect(errors, _places, statement, names) or [()]
    steps, failed, planned = [], [], {}
    own = [node for node in ast.walk(statement.value) if _is_of_target(node)] if len(places) > 1 else []
    for stream, place in enumerate(places):
        steps += _collect(failed, _plan_match, statement, place, stream, own, planned, names, scope)
    if failed:
        errors.append(_of_matches(failed, len(places)))
    return steps


def _plan_match(statement, place, stream, own, planned, names, scope):
    """The step of one match: a copy of the one `planned` for another of the same shapes and dtypes, if there is one."""
    try:
        key = (place.shape, place.dtype, *[names.meaning(node, place).dtype for node in own])
    except PatchError:
        key = None  # to plan the match says why
    if key in planned:
        return replace(planned[key], place=place, stream=stream)
    planned[key] = step = plan_edit(statement, place, stream, scope)
    return step


def _is_of_target(node):
    """Whether the node is a `$donor._`, which is another variable for each target."""
    return type(node) is ast.Binding and isinstance(node.path, ast.Implied)


def _of_matches(failed, count):
    """The first error of a statement, with a note on the others of a glob."""
    if len(failed) > 1:
        failed[0].notes += (f"{len(failed)} of the {count} matches fail",)
    return failed[0]


def plan_edit(statement, place, stream, scope):
    scope.begin(place, stream)
    try:
        with arithmetic.planning(scope.traced) as found:
            step = _planned_edit(statement, place, stream, scope)
    except PatchError as error:
        raise in_match(error, statement, place, stream) from error.__cause__
    step.may_fail = found.doubtful
    return step


def _planned_edit(statement, place, stream, scope):
    selection, implied, masked = _selected(statement, place, scope)
    if masked and scope.traced:
        implied = _implied_under_mask(statement, place, scope)
    shape = implied.shape
    value = evaluate_side(statement, scope, implied)
    if None in shape and value.shape:
        arithmetic.doubt()  # whether it fits
    step = EditStep(statement, place, selection, stream=stream, open_ended=_is_open_ended(value, shape, implied))
    if masked and not scope.traced:
        step.mask = compile_mask(statement.target.index[0], scope.with_implied(place.unknown()), place)
    step.scalar = statement.op == "=" and value.shape == () and not _mentions_entries(statement.value)
    if statement.op == "=" and value.weak:
        step.constant = assigned_value(statement, value, implied, place, shape).data
        return step
    if value.weak and value.shape == () and is_floating(place.dtype):
        step.operand = _converted(statement, value, place.dtype)
    value = assigned_value(statement, value, implied, place, shape, scope.traced)
    whole = isinstance(selection, indexing.Region) and selection.full and value.shape == place.shape
    step.fresh = whole and (statement.op != "=" or _is_computed(statement.value))
    if step.fresh and statement.op == "=" and not scope.traced:
        step.value = compile_value(statement.value, scope.with_implied(implied), place)
    return step


def _is_open_ended(value, shape, implied):
    """Whether an unknown length decides if the value fits: unless it is 1, or for certain that of the entries."""
    return any(
        None in (value.shape[-back], shape[-back])
        and value.shape[-back] != 1
        and (ranges.named(value.axes, -back) is None or value.axes[-back] != ranges.named(implied.axes, -back))
        for back in range(1, min(len(value.shape), len(shape)) + 1)
    )


def _is_computed(node):
    """Whether the expression's value is a new tensor for certain, and no other tensor's memory."""
    return isinstance(node, ast.Binary) and node.op in ("+", "-", "*", "/")


def _places(statement, names):
    selector = statement.target.selector
    try:
        return names.places(None if isinstance(selector, ast.Implied) else selector)
    except PatchError as error:
        raise error.locate(selector.span) from None


def in_match(error, statement, place, stream):
    """The error; of a glob, with a note that says which of its matches it is about."""
    selector = statement.target.selector
    if not isinstance(selector, ast.Implied) and selector.is_glob:
        error.notes += (f"for {place!r}, match {stream + 1} of '{selector}'",)
    return error


def _selected(statement, place, scope):
    """The selection if it is known, what its entries are, and whether it is one mask of the whole tensor."""
    nodes, whole = statement.target.index, place.unknown()
    if nodes is None:
        return indexing.select(place.shape, (Ellipsis,)), whole, False
    items = ev.index_items(nodes, scope.with_implied(whole))
    selection = ev.select(place.shape, items, nodes) if ev.known(items) else None
    shape = ev.infer(place.shape, items, nodes) if selection is None else selection.shape
    entries = Value(place.dtype, shape)
    if scope.traced:
        entries = ranges.entries(entries, whole, items)
    if selection is not None:
        return selection, entries, False
    masked = is_mask(items, place.shape) or (scope.traced and is_mask_of_rows(items, place.shape))
    if not masked:
        arithmetic.doubt()
    if scope.traced and not masked and not ev.known(items):
        ev.prove(whole, items, nodes, scope)
    return None, entries, masked


def is_mask(items, shape):
    """Whether the items are one boolean tensor of the whole shape."""
    return len(items) == 1 and isinstance(items[0], Value) and items[0].dtype == "bool" and items[0].shape == shape


def is_mask_of_rows(items, shape):
    """Whether the items are one boolean tensor of the shape's first axes, or of none: one that is all or nothing."""
    axes = len(items[0].shape) if len(items) == 1 and isinstance(items[0], Value) else 0
    return is_mask(items, shape[:axes])


def evaluate_side(statement, scope, implied):
    """The right-hand side; `_` in it is the present value of the entries."""
    return ev.evaluate(statement.value, scope.with_implied(implied))


def assigned_value(statement, value, implied, place, shape, traced=False):
    """What the statement writes: the operator applied, cast to the place's dtype, of a shape that fits."""
    if statement.op != "=":
        value = operated(statement, implied, value, traced)
    value = _converted(statement, value, place.dtype, traced)
    return _fitted(statement, value, shape)


def operated(statement, implied, value, traced=False):
    try:
        return arithmetic.binary(statement.op[:-1], implied, value, traced)
    except PatchError as error:
        raise error.locate(statement.target.span if error.argument == 0 else statement.value.span) from None


def _converted(statement, value, dtype, traced=False):
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
    from keras import ops

    return ops.reshape(data, shape)


def fitted_constant(step, shape):
    """The constant in a shape that fits entries which depended on values."""
    return _fitted(step.statement, Value(step.place.dtype, step.constant.shape, step.constant, True), shape).data


def _mentions_entries(node):
    return any(isinstance(part, ast.Implied) for part in ast.walk(node))


ELEMENTWISE = (ast.Implied, ast.Integer, ast.Float, ast.Boolean, ast.Constant, ast.Unary, ast.Binary, ast.Compare)


def _implied_under_mask(statement, place, scope):
    """`_` under a mask in a compiled function: the whole tensor, which only element-wise expressions allow."""
    for part in ast.walk(statement.value):
        fine = isinstance(part, (*ELEMENTWISE, ast.Argument, ast.String)) or (
            isinstance(part, ast.Call) and functions.is_elementwise(part.function)
        )
        scalar = isinstance(part, (ast.Local, ast.Binding)) and ev.evaluate(part, scope).shape == ()
        if not (fine or scalar) or (isinstance(part, ast.Binary) and part.op == "@"):
            raise UnsupportedError(
                "under a mask in a compiled function the value is a scalar or element-wise in '_'"
            ).locate(part.span)
    return place.unknown()


def _plan_assert(statement, scope):
    scope.begin()
    with arithmetic.planning(scope.traced) as found:
        check_assertion(statement, scope)
    return AssertStep(statement, found.doubtful)


def check_assertion(statement, scope):
    """Raises where the assertion's value is known, and not all entries hold."""
    value = ev.evaluate(statement.condition, scope)
    if value.dtype != "bool":
        raise DTypeError(f"an assertion is a boolean, found {value.dtype}").locate(statement.condition.span)
    if scope.traced and not value.weak:
        raise UnsupportedError(
            "an assertion about values cannot be checked inside a compiled function",
            notes=["one about shapes can, where they are known: assert shape(_) == [2, 3]"],
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
        notes.append(f"{held.size - held.sum()} of {held.size} entries do not hold, the first at {list(first)}")
    notes += _compared(condition, scope, held.shape, first)
    message = "assertion failed" + (f": {statement.message}" if statement.message else "")
    raise PatchAssertionError(message, notes=notes).locate(statement.condition.span)


def _array(value):
    return np.asarray(value.data if value.weak else tensors.to_numpy(value.data))


def _inside_all(node):
    """The condition whose entries must hold: of `all(x < 1)` the comparison."""
    if type(node) is ast.Call and node.function == "all" and len(node.arguments) == 1:
        return node.arguments[0].value
    return node


def _compared(node, scope, shape, first):
    """What the operands of a failed comparison are: whole where they are small, else where it first fails."""
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


def _plan_let(statement, scope):
    scope.begin()
    scope.locals[statement.name] = None  # poisoned while it fails
    with arithmetic.planning(scope.traced) as found:
        scope.bind(statement.name, ev.evaluate(statement.value, scope))
    return LetStep(statement, found.doubtful)


_OTHERS = {ast.Assert: _plan_assert, ast.Let: _plan_let}
