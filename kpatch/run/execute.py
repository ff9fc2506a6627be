"""Runs the steps of a patch on a store (a model's variables, a tensor, or a file), and counts the entries to write."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kpatch import backends, indexing
from kpatch.errors import PatchError
from kpatch.names.meanings import Place
from kpatch.run import evaluate as ev
from kpatch.run import interpret, semantics
from kpatch.run.batch import BatchStep
from kpatch.run.steps import AssertStep, EditStep, LetStep
from kpatch.syntax import ast
from kpatch.values import arithmetic, tensors
from kpatch.values.budget import Budget
from kpatch.values.dtypes import Value, tensor

MAX_COUNTED = 2**18  # parts of expressions that `counts` computes, so that a dry run ends soon


def run(checked, store):
    """Runs the steps in order; `store` holds the values of the places.

    Sizes that planning did not know are counted now, so that a `LimitError` comes before the memory is asked for.
    """
    if not checked.open or checked.traced:
        _run(checked, store, None)
        return
    budget = Budget()
    with arithmetic.metered(budget):
        _run(checked, store, budget)


def _run(checked, store, budget):
    scope = None
    if not checked.plain or store.stream is not None:
        source, unproved = checked.patch.source, checked.unproved
        read = store.look_up, store.read, store.reduced
        scope = ev.Scope(*read, traced=checked.traced, budget=budget, unproved=unproved, source=source)
    try:
        for number, step in enumerate(checked.steps):
            if store.hears:
                store.begin(number)
            if scope is None:
                _write(step, store, None)
                continue
            scope.begin(step.place, step.stream, step.block)
            scope.implied, scope.whole = _implied(step, store)
            if type(step) is LetStep:
                scope.bind(step.statement.name, _let(step, scope))
            elif type(step) is AssertStep:
                semantics.check_assertion(step.statement, scope)
            else:
                _write(step, store, scope)
    except PatchError as error:
        raise _located(error, step, checked.patch) from error.__cause__


def _implied(step, store):
    """`_` in a `let` or an assertion: the value of the tensor that the patch is of, or the place of a block's match."""
    if type(step) not in (LetStep, AssertStep):
        return None, None
    return (store.implied, None) if step.place is None else (None, step.place)


def _located(error, step, patch):
    """The error with the span of its statement and, for a glob, a note on the match."""
    if type(step) is not BatchStep:
        semantics.in_match(error, step.statement, step.place, step.stream, step.block)
    return error.locate(step.statement.span, patch.source)


def _let(step, scope):
    """The value of a `let`, which later writes in place do not change."""
    made = None if step.value is None else step.value.value(scope)
    return _held(ev.evaluate(step.statement.value, scope)) if made is None else tensor(made)


def _held(value):
    """A copy of a value."""
    ops = backends.current().ops
    return value if value.weak else replace(value, data=ops.copy(value.data))


def _write(step, store, scope):
    if store.stream is not None and store.stream(step, scope):
        return
    if step.value is not None and store.lets_go and store.overwrite(step, scope):
        return
    if step.fresh:
        store.replace(step, _value(step, step.selection, store.value(step.place), scope, step.value))
        return
    selection = step.selection if step.selection is not None else dynamic_selection(step, store, scope)
    last = _last(selection)
    target = selection if last is None else indexing.Positions(selection.flat[last], last.shape)
    old = store.open(step, selection, target, last)
    if step.constant is not None:
        constant = step.constant
        if step.selection is None or step.open_ended:
            constant = semantics.fitted_constant(step, _shape(selection, old) if step.open_ended else selection.shape)
        store.write_constant(step, target, picked(_fitting(step, constant, old), selection.shape, last))
    elif step.operand is None or not store.update(step, target, old):
        values = _fitting(step, _computed(step, selection, old, store, scope), old)
        store.write(step, target, values if last is None else picked(values, selection.shape, last))


def _last(selection):
    """If entries are selected more than once, the index of the last occurrence of each, which wins; else `None`."""
    if not isinstance(selection, indexing.Positions):
        return None
    last = indexing.last_wins(selection.flat)
    return None if len(last) == selection.size else last


def picked(values, shape, last):
    """The values of the last occurrences; all values if no entry repeats (`last` is `None`)."""
    if last is None:
        return values
    if isinstance(values, np.ndarray):
        return np.broadcast_to(values, shape).ravel()[last]
    ops = backends.current().ops
    return ops.take(ops.reshape(ops.broadcast_to(values, shape), (-1,)), last, axis=0)


def _computed(step, selection, old, store, scope):
    """The values to write, of the place's dtype and of a shape that fits."""
    whole = isinstance(selection, indexing.Mask)  # under a mask the value is a scalar or, if traced, element-wise
    return _value(step, selection, store.value(step.place) if whole else old, scope)


def _value(step, selection, data, scope, program=None):
    """The values to write; a program computes them, if there is one and it can."""

    def evaluate(data, scope):
        implied = tensor(data)
        value = semantics.evaluate_side(step.statement, scope, implied)
        shape = _shape(selection, implied)
        values = semantics.assigned_value(step.statement, value, implied, step.place, shape, scope.traced).data
        return values if value.exists is None else _where_existing(value.exists, values, implied)

    return interpret.value(step, data, scope, evaluate, program)


def _where_existing(exists, values, implied):
    """The values; an entry keeps its present value if its new one was computed from an index out of range."""
    ops = backends.current().ops
    surplus = max(0, len(exists.shape) - len(implied.shape))  # leading axes of length 1, as the values had
    return backends.current().where(
        ops.squeeze(exists, tuple(range(surplus))) if surplus else exists, values, implied.data
    )


def _fitting(step, values, old):
    """The values; broadcast to the shape of the entries if only the running graph can check that they fit."""
    if not step.open_ended or None not in old.shape:
        return values
    ops = backends.current().ops
    lengths, own = ops.shape(old), ops.shape(values)
    for back in range(1, len(own) + 1):
        fits = ops.logical_or(ops.equal(own[-back], 1), ops.equal(own[-back], lengths[-back]))
        backends.current().require(fits, "the value does not fit the selection")
    return ops.broadcast_to(values, lengths)


def _shape(selection, old):
    """The shape of the selection, with the lengths that were unknown while planning."""
    return tuple(old.shape) if None in selection.shape else selection.shape


def dynamic_selection(step, store, scope):
    """The entries of an index that depends on values."""
    nodes, place = step.statement.target.index, step.place
    data, view = store.value(place), None if step.mask is None else store.view(place)

    def compute(data, scope):
        scope = scope.with_implied(tensor(data))
        return ev.index_items(nodes, scope) if view is None else step.mask.mask(view, scope)

    items = interpret.index(step, data, scope, compute)
    if view is not None:
        return _masked(items, step)
    if scope.traced:
        if type(items[0]) is Value and items[0].dtype == "bool":  # the only item: the plan allows no other mask
            return indexing.Mask(_over_rows(_existing_mask(items[0]), len(place.shape)), place.shape)
        return ev.traced_selection(data, items, nodes, scope)
    if not semantics.is_mask(items, place.shape):
        return ev.select(place.shape, items, nodes)
    return _masked(items[0].data, step)


def _existing_mask(mask):
    """The mask, false for entries computed from an index out of range."""
    ops = backends.current().ops
    return mask.data if mask.exists is None else ops.logical_and(mask.data, mask.exists)


def _over_rows(mask, axes):
    """The mask with trailing axes of length 1, to broadcast to `axes` axes."""
    ops = backends.current().ops
    missing = axes - len(mask.shape)
    return ops.expand_dims(mask, tuple(range(-missing, 0))) if missing else mask


def _masked(mask, step):
    """Offsets if few entries are selected or each gets its own value; else the mask, which is smaller."""
    held = np.ravel(tensors.to_numpy(mask))
    count = int(np.count_nonzero(held))
    offsets, whole = count * (8 + 4), held.size * (1 + 4)  # bytes, of a journal of 4-byte entries
    if step.scalar and offsets > whole:
        return indexing.Mask(mask, step.place.shape, count)
    flat = np.flatnonzero(held)
    return indexing.Positions(flat, flat.shape)


# Counting -------------------------------------------------------------------------------------------------------------


def counts(checked, store):
    """The number of entries that each writing step would write now.

    It is `None` if it depends on earlier statements, or if `MAX_COUNTED` parts of expressions were computed before it.
    Values are read if a step's entries depend on them; nothing is written.
    """
    scope = ev.Scope(store.look_up, store.read)
    dynamic = [position for position, step in enumerate(checked.steps) if _is_dynamic(step)]
    written, stale, left = set(), set(), MAX_COUNTED  # places, and locals whose values depend on what is written
    parts: dict[int, list] = {}  # of each statement, which globs repeat
    for position, step in enumerate(checked.steps):
        if isinstance(step, AssertStep):
            continue
        if isinstance(step, LetStep):
            name, value = step.statement.name, step.statement.value
            stale.discard(name)  # of the match before
            found = _parts(step, value, parts)
            left -= len(found)
            if left < 0 or _depends(found, checked, step.place or checked.names.implied, written, stale):
                stale.add(name)
            elif dynamic and position < dynamic[-1]:
                scope.begin(step.place, step.stream, step.block)
                scope.implied, scope.whole = _implied(step, store)
                scope.bind(name, _call_located(step, checked.patch, ev.evaluate, value, scope))
            continue
        if not _is_dynamic(step):
            yield static_count(step)
        else:
            found = _parts(step, step.statement.target, parts)
            left -= len(found)
            known = left >= 0 and not _depends(found, checked, step.place, written, stale)
            yield _dynamic_count(step, store, scope, checked.patch) if known else None
        written.update(map(id, step.place.parts))


def static_count(step):
    """The number of entries that each statement of the step writes; `None` if it depends on values."""
    if isinstance(step, BatchStep):
        return 1
    return step.size if step.selection is None else step.selection.size


def entries(selection):
    """The number of entries in a selection."""
    if not isinstance(selection, indexing.Mask):
        return selection.size
    return int(np.count_nonzero(tensors.to_numpy(selection.mask))) if selection.count is None else selection.count


def _is_dynamic(step):
    return isinstance(step, EditStep) and static_count(step) is None


def _parts(step, node, known):
    """The parts of an expression of the step's statement; those of the others are `known`."""
    if id(step.statement) not in known:
        known[id(step.statement)] = list(ast.walk(node))
    return known[id(step.statement)]


def _depends(parts, checked, implied, written, stale):
    """Whether the parts of an expression read a place that is written, or a stale local."""
    names = {part.name for part in parts if isinstance(part, ast.Local)}
    return bool(names & stale or _reads(parts, checked, implied) & written)


def _reads(parts, checked, implied):
    """The ids of the places that the parts of an expression read."""
    named = [part for part in parts if isinstance(part, ast.Reference | ast.Binding)]
    places = [checked.names.meaning(part, implied) for part in named]
    places += [implied] * any(isinstance(part, ast.Implied) for part in parts)
    return {id(part) for place in places if isinstance(place, Place) for part in place.parts}


def _dynamic_count(step, store, scope, patch):
    scope.begin(step.place, step.stream, step.block)
    return entries(_call_located(step, patch, dynamic_selection, step, store, scope))


def _call_located(step, patch, function, *args):
    """Calls a function for the step; its errors get the span of the statement."""
    try:
        return function(*args)
    except PatchError as error:
        raise _located(error, step, patch) from error.__cause__


# Stores ---------------------------------------------------------------------------------------------------------------


class Named:
    """A store's lookup of names, by its methods `value(place)` and `taken(place, selection)`."""

    names: Any
    value: Callable
    taken: Callable
    reduced: Callable | None = None

    def look_up(self, node, target):
        """The value of a name; that of `_` is the target's."""
        meaning = target if type(node) is ast.Implied else self.names.meaning(node, target)
        return tensor(self.value(meaning)) if isinstance(meaning, Place) else meaning

    def read(self, node, target, selection):
        meaning = self.names.meaning(node, target)
        if isinstance(meaning, Place):
            return tensor(self.taken(meaning, selection))
        return ev.entries(meaning, selection)
