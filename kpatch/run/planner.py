"""Patch + names → steps. Makes all checks that are possible before the first write; writes nothing.

There is one step for each statement and variable. Consecutive statements that each set one entry to a number become one
step for each variable, so that ten thousand of them cost one write.
"""

import contextlib
import functools
import math

from kpatch import functions, indexing
from kpatch.errors import PatchError, UnsupportedError, combine
from kpatch.functions import ranges
from kpatch.functions.quoted import with_names
from kpatch.names.meanings import Place
from kpatch.run import evaluate as ev
from kpatch.run import semantics
from kpatch.run.alike import Alike
from kpatch.run.batch import batches, sets_one_entry
from kpatch.run.programs import compile_choice, compile_mask, compile_value
from kpatch.run.steps import AssertStep, Checked, EditStep, LetStep
from kpatch.syntax import MAX_ERRORS, ast
from kpatch.values import arithmetic
from kpatch.values.budget import Budget
from kpatch.values.dtypes import Value, is_floating


def make(patch, names, implied=None, traced=False):
    """Checks a patch against names and returns its steps as `Checked`; all errors are raised together.

    Args:
        patch: the `Patch`.
        names: the `Names` of the patch.
        implied: the `Value` of `_` in `let` and `assert`, or `None`.
        traced: the patch runs in a compiled function, whose values are unknown.
    """
    budget = Budget(len(patch.source))
    scope = ev.Scope(functools.partial(_unknown, names), implied=implied, traced=traced, budget=budget)
    steps, errors, edits = [], [], []
    for statement in (*patch.statements, None):
        if _enough(errors, scope):
            break
        if isinstance(statement, ast.Edit):
            edits.append(statement)
            continue
        steps += _edits(edits, names, scope, errors)
        edits = []
        if statement is not None:
            steps += _plan_other(with_names(statement), names, scope, errors)
    if errors:
        raise combine([error.locate(None, patch.source) for error in errors])
    return Checked(patch, tuple(steps), names, frozenset(scope.unproved), traced, budget.open)


def _enough(errors, scope):
    """Whether further statements need not be planned, because of the errors of those before."""
    return len(errors) >= MAX_ERRORS or (bool(errors) and scope.budget.spent)


def _unknown(names, node, target):
    """The value of a name without data."""
    meaning = names.meaning(node, target)
    return _read(meaning) if isinstance(meaning, Place) else meaning


def _read(place):
    """The value of a place without data."""
    if place.weight is not None and place.weight.unreadable:
        message = f"'{place.path}' cannot be read: {place.weight.unreadable}"
        raise UnsupportedError(message, notes=[f"'{place.entry.stored.path}' names what is stored"])
    return place.unknown()


def _edits(edits, names, scope, errors):
    """The steps of consecutive writing statements, batched if possible."""
    steps, run = [], []
    for statement in (*edits, None):
        if _enough(errors, scope):
            break
        if statement is not None and sets_one_entry(statement):
            run.append(statement)
            continue
        batched = batches(run, names)
        if batched is None:
            batched = [step for s in run if not _enough(errors, scope) for step in _plan_edits(s, names, scope, errors)]
        steps += batched
        run = []
        if statement is not None:
            steps += _plan_edits(with_names(statement), names, scope, errors)
    return steps


def _collect(errors, function, statement, *args):
    """A list of the step of one statement; empty if it fails, with the error in `errors`."""
    try:
        return [function(statement, *args)]
    except ev.PoisonedError:
        return []
    except PatchError as error:
        errors.append(error.locate(statement.span))
        return []


def _plan_edits(statement, names, scope, errors):
    """The steps of a writing statement: one for each variable that its target matches."""
    [matches] = _collect(errors, _matches, statement, names, scope) or [()]
    steps, failed, alike = [], [], Alike(statement, names, len(matches) > 1, scope.traced)
    for stream, place in matches:
        steps += _collect(failed, _plan_match, statement, place, stream, alike, scope)
        if failed and scope.budget.spent:
            break
    if failed:
        errors.append(_of_matches(failed, len(matches)))
    return steps


def _plan_match(statement, place, stream, alike, scope):
    """The step of one match: a copy of the step of a match that is alike, if there is one."""
    budget = scope.budget
    found = alike.copies(place, stream, budget)
    if found is not None:
        return found[0]
    if stream:
        budget.plan(alike.size)
    before = budget.cost()
    step = plan_edit(statement, place, stream, scope)
    alike.add(place, [step], budget.since(before))
    return step


def _plan_block(block, names, scope, errors):
    """The steps of a `for` block: for each match, in order, those of its statements."""
    [matches] = _collect(errors, _matches, block, names, scope) or [()]
    alike = Alike(block, names, len(matches) > 1, scope.traced)
    steps, first, failing = [], [], 0
    for stream, place in matches:
        failed: list = []
        made = _plan_block_match(block, place, stream, alike, scope, failed)
        if failed:
            first, failing = first or failed, failing + 1
            if scope.budget.spent:
                break
        steps += made
    if failing > 1:
        first[0].notes += (f"{failing} of the {len(matches)} matches fail",)
    errors += first
    return steps


def _plan_block_match(block, place, stream, alike, scope, failed):
    """The steps of a block for one match, copied if there are steps for one that is alike; errors go to `failed`."""
    budget = scope.budget
    [found] = _collect(failed, lambda _: alike.copies(place, stream, budget), block) or [[]]
    if found is not None:
        return found
    before = budget.cost()
    if stream:
        _collect(failed, lambda _: budget.plan(alike.size), block)
    made = [_collect(failed, _plan_inside, statement, block, place, stream, scope) for statement in block.statements]
    if failed:
        return []
    steps = [step for [step] in made]
    alike.add(place, steps, budget.since(before))
    return steps


def _plan_inside(statement, block, place, stream, scope):
    if isinstance(statement, ast.Edit):
        return plan_edit(statement, place, stream, scope, block)
    return _OTHERS[type(statement)](statement, scope, place, stream, block)


def _plan_other(statement, names, scope, errors):
    """The steps of a statement that is no edit."""
    if isinstance(statement, ast.For):
        return _plan_block(statement, names, scope, errors)
    return _collect(errors, _OTHERS[type(statement)], statement, scope)


def _of_matches(failed, count):
    """The first error of a statement, with a note on the number of failed matches."""
    if len(failed) > 1:
        failed[0].notes += (f"{len(failed)} of the {count} matches fail",)
    return failed[0]


def plan_edit(statement, place, stream, scope, block=None):
    scope.begin(place, stream, block)
    scope.seen = {}
    try:
        _check_written(statement, place)
        with arithmetic.planning(scope.traced, scope.budget) as found:
            step = _planned_edit(statement, place, stream, scope)
    except PatchError as error:
        raise semantics.in_match(error, statement, place, stream, block) from error.__cause__
    finally:
        scope.seen = None
    step.may_fail = found.doubtful or place.weight is not None
    step.block = block
    return step


def _check_written(statement, place):
    refusal = None if place.weight is None else place.weight.refusal
    if refusal:
        notes = [f"'{place.entry.stored.path}' names what is stored"]
        raise UnsupportedError(f"'{place.path}' cannot be written: {refusal}", notes=notes).locate(
            statement.target.span
        )


def _planned_edit(statement, place, stream, scope):
    selection, implied, masked, known = _selected(statement, place, scope)
    if masked and scope.traced:
        implied = _implied_under_mask(statement, place, scope)
    shape = implied.shape
    value = semantics.evaluate_side(statement, scope, implied)
    if None in shape and value.shape:
        arithmetic.doubt()  # whether it fits
    step = EditStep(statement, place, selection, stream=stream, open_ended=_is_open_ended(value, shape, implied))
    step.size = math.prod(shape) if known and not scope.traced else None
    if masked and not scope.traced:
        step.mask = compile_mask(statement.target.index[0], scope.seen, place)
    step.scalar = statement.op == "=" and value.shape == () and not _mentions_entries(statement.value)
    if masked and step.scalar and not scope.traced:
        step.value = compile_choice(statement.target.index[0], statement.value, scope.seen, place)
    if statement.op == "=" and value.weak:
        step.constant = semantics.assigned_value(statement, value, implied, place, shape).data
        return step
    if value.weak and value.shape == () and is_floating(place.dtype):
        step.operand = semantics.converted(statement, value, place.dtype)
    value = semantics.assigned_value(statement, value, implied, place, shape, scope.traced)
    whole = isinstance(selection, indexing.Region) and selection.full and value.shape == place.shape
    if whole and not scope.traced:
        step.value = _program(statement, value, implied, scope.seen, place)
    step.fresh = whole and (statement.op != "=" or step.value is not None or _is_computed(statement.value))
    return step


def _program(statement, value, implied, seen, place):
    """The `Program` of a whole new value, or `None`."""
    node = statement.value
    if statement.op != "=":
        node = ast.Binary(statement.op[:-1], ast.Implied(), node)
        seen.update({id(node): value, id(node.left): implied})
    program = compile_value(node, seen, place)
    return program if program is not None and program.operations else None


def _is_open_ended(value, shape, implied):
    """Whether unknown lengths decide if the value fits: those that are neither 1 nor certainly equal."""
    return any(
        None in (value.shape[-back], shape[-back])
        and value.shape[-back] != 1
        and (ranges.named(value.axes, -back) is None or value.axes[-back] != ranges.named(implied.axes, -back))
        for back in range(1, min(len(value.shape), len(shape)) + 1)
    )


def _is_computed(node):
    """Whether the expression's value is certainly a new tensor that shares no memory."""
    if isinstance(node, ast.Call):
        return node.function in ("clip", "maximum", "minimum", "where")
    return isinstance(node, ast.Binary) and node.op in ("+", "-", "*", "/")


def _matches(statement, names, scope):
    """The places that a statement writes, each with its number, which tells the stream of random numbers."""
    selector = statement.selector if isinstance(statement, ast.For) else statement.target.selector
    try:
        found = names.matches(None if isinstance(selector, ast.Implied) else selector, statement.exclusions)
        if isinstance(statement, ast.For):
            names.count(len(found) * (len(statement.statements) - 1))  # a match for each statement
        return found
    except PatchError as error:
        _explain(error, statement, selector, scope)
        raise error.locate(selector.span) from None


def _explain(error, statement, selector, scope):
    """Adds to the error of a target what its writer may have meant."""
    if str(selector) in scope.locals:
        error.notes = (f"'{selector}' is a local, which keeps its value; 'let' makes another under a new name",)
    elif getattr(statement, "op", "") == "*=" and str(selector).endswith("_"):
        error.notes += (f"'*=' multiplies; put a space to set the matches of a glob: '{selector}* = ...'",)


def _selected(statement, place, scope):
    """The selection or `None`, and the `Value` of its entries.

    Also whether it is one mask of the tensor or its rows, and whether it is known, so that it depends on no values.
    """
    nodes, whole = statement.target.index, place.unknown()
    if nodes is None:
        scope.touched(whole)
        return indexing.select(place.shape, (Ellipsis,)), whole, False, True
    items = ev.index_items(nodes, scope.with_implied(whole))
    selection, shape = _selection(place, items, nodes, scope)
    entries = Value(place.dtype, shape)
    if scope.traced:
        entries = ranges.entries(entries, whole, items)
    known = ev.known(items)
    if selection is not None or (known and not scope.traced):
        return selection, entries, False, known
    masked = semantics.is_mask(items, place.shape) or (scope.traced and semantics.is_mask_of_rows(items, place.shape))
    if not masked:
        arithmetic.doubt()
    if scope.traced and not masked and not known:
        ev.prove(whole, items, nodes, scope)
    return None, entries, masked, known


def _selection(place, items, nodes, scope):
    """The selection, or `None` if it is made when the step runs, and its shape.

    So it is if it depends on values, or if many offsets would have to be kept.
    """
    shape = ev.infer(place.shape, items, nodes)
    entries = Value(place.dtype, shape)
    scope.touched(entries, place.shape)
    listed = ev.lists(items)
    if listed:
        arithmetic.count(shape)
    if not ev.known(items) or (listed and not scope.traced and not scope.budget.keep(shape)):
        return None, shape
    return ev.select(place.shape, items, nodes), shape


def _mentions_entries(node):
    return any(isinstance(part, ast.Implied) for part in ast.walk(node))


ELEMENTWISE = (ast.Implied, ast.Integer, ast.Float, ast.Boolean, ast.Constant, ast.Unary, ast.Binary, ast.Compare)


def _implied_under_mask(statement, place, scope):
    """`_` under a mask in a compiled function, the whole tensor. The value must be a scalar or element-wise."""
    for part in ast.walk(statement.value):
        fine = isinstance(part, (*ELEMENTWISE, ast.Argument, ast.String)) or (
            isinstance(part, ast.Call) and functions.is_elementwise(part.function)
        )
        scalar = isinstance(part, (ast.Local, ast.Binding)) and ev.evaluate(part, scope).shape == ()
        if not (fine or scalar) or (isinstance(part, ast.Binary) and part.op == "@"):
            raise UnsupportedError(
                "under a mask in a compiled function the value must be a scalar or element-wise in '_'"
            ).locate(part.span)
    return place.unknown()


def _plan_assert(statement, scope, place=None, stream=0, block=None):
    scope.begin(place, stream, block)
    with _planning(statement, scope, place, stream, block) as (found, inside):
        semantics.check_assertion(statement, inside)
    return AssertStep(statement, found.doubtful, place, stream, block)


def _plan_let(statement, scope, place=None, stream=0, block=None):
    scope.begin(place, stream, block)
    scope.locals[statement.name] = None  # poisoned while it fails
    scope.seen = {}
    try:
        with _planning(statement, scope, place, stream, block) as (found, inside):
            scope.bind(statement.name, ev.evaluate(statement.value, inside))
        compiles = place is not None and place.weight is None and not scope.traced
        program = compile_value(statement.value, scope.seen, place) if compiles else None
    finally:
        scope.seen = None
    program = program if program is not None and program.operations else None
    return LetStep(statement, found.doubtful, place, stream, block, program)


@contextlib.contextmanager
def _planning(statement, scope, place, stream, block):
    """Plans a `let` or an assertion, in a block with the match as `_`; its errors name the match."""
    try:
        with arithmetic.planning(scope.traced, scope.budget) as found:
            yield found, scope if place is None else scope.with_implied(_read(place))
    except PatchError as error:
        raise semantics.in_match(error, statement, place, stream, block) from error.__cause__


_OTHERS = {ast.Assert: _plan_assert, ast.Let: _plan_let}
