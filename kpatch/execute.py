"""Running a plan: on live variables with a journal, so that a failure or `undo()` restores every bit; or purely."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kpatch import evaluate as ev
from kpatch import indexing, planner, tensors
from kpatch.errors import ExecutionError, PatchError, UndoError
from kpatch.planner import AssertStep, EditStep, LetStep
from kpatch.resolve.names import Place
from kpatch.values import numerics
from kpatch.values.dtypes import Value, tensor


def run(planned, store, traced=False):
    """Runs the steps in order. `store` is where the places' values are: `Live` or `Pure`."""
    scope = ev.Scope(store.look_up, store.read, traced=traced, unproved=planned.unproved, source=planned.patch.source)
    try:
        for number, step in enumerate(planned.steps):
            if store.lets_go:
                store.begin(number)
            scope.begin(step.place, step.stream)
            scope.implied = store.implied
            if type(step) is LetStep:
                scope.bind(step.statement.name, _held(ev.evaluate(step.statement.value, scope)))
            elif type(step) is AssertStep:
                planner.check_assertion(step.statement, scope)
            else:
                _write(step, store, scope)
    except PatchError as error:
        if type(step) is EditStep:
            planner.in_match(error, step.statement, step.place, step.stream)
        raise error.locate(step.statement.span, planned.patch.source) from error.__cause__


def _held(value):
    """A `let` holds a value, not a view: later writes in place do not change it."""
    from keras import ops

    return value if value.weak else replace(value, data=ops.copy(value.data))


def _write(step, store, scope):
    if store.stream is not None and store.stream(step, scope):
        return
    if step.fresh:
        store.replace(step, _whole(step, store, scope))
        return
    selection = step.selection if step.selection is not None else dynamic_selection(step, store, scope)
    last = _last(selection)
    target = selection if last is None else indexing.Positions(selection.flat[last], last.shape)
    old = store.open(step, selection, target, last)
    if step.constant is not None:
        constant = step.constant
        if step.selection is None or step.open_ended:
            constant = planner.fitted_constant(step, _shape(selection, old) if step.open_ended else selection.shape)
        store.write_constant(step, target, _picked(_fitting(step, constant, old), selection.shape, last))
    elif step.operand is None or not store.update(step, target, old):
        values = _fitting(step, _computed(step, selection, old, store, scope), old)
        store.write(step, target, values if last is None else _picked(values, selection.shape, last))


def _whole(step, store, scope):
    """The new value of a whole place."""
    if step.value is None:
        return _computed(step, step.selection, store.value(step.place), store, scope)
    return step.value.value(scope.with_implied(tensor(store.value(step.place))))


def _last(selection):
    """Where entries are selected more than once: the last of each, which wins; else `None`."""
    if not isinstance(selection, indexing.Positions):
        return None
    last = indexing.last_wins(selection.flat)
    return None if len(last) == selection.size else last


def _picked(values, shape, last):
    """The values of the last of repeated entries; the constant itself where none repeats."""
    if last is None:
        return values
    if isinstance(values, np.ndarray):
        return np.broadcast_to(values, shape).ravel()[last]
    from keras import ops

    return ops.take(ops.reshape(ops.broadcast_to(values, shape), (-1,)), last, axis=0)


def _computed(step, selection, old, store, scope):
    """The values to write, of the place's dtype and of a shape that fits."""
    whole = isinstance(selection, indexing.Mask)  # under a mask the value is a scalar, or element-wise when traced
    implied = tensor(store.value(step.place) if whole else old)
    value = planner.evaluate_side(step.statement, scope, implied)
    shape = _shape(selection, implied)
    values = planner.assigned_value(step.statement, value, implied, step.place, shape, scope.traced).data
    return values if value.exists is None else _where_existing(value.exists, values, implied)


def _where_existing(exists, values, implied):
    """The values that were made of entries that exist; in place of the others the entry stays what it is."""
    from keras import ops

    surplus = max(0, len(exists.shape) - len(implied.shape))  # leading axes of length 1, which the values had as well
    return ops.where(ops.squeeze(exists, tuple(range(surplus))) if surplus else exists, values, implied.data)


def _fitting(step, values, old):
    """The values; spread to the shape of the entries if only the running graph knows whether they fit."""
    if not step.open_ended or None not in old.shape:
        return values
    from keras import ops

    lengths, own = ops.shape(old), ops.shape(values)
    for back in range(1, len(own) + 1):
        fits = ops.logical_or(ops.equal(own[-back], 1), ops.equal(own[-back], lengths[-back]))
        numerics.require(fits, "the value does not fit the selection")
    return ops.broadcast_to(values, lengths)


def _shape(selection, old):
    """The shape of the selection, with the lengths that were not known when it was planned."""
    return tuple(old.shape) if None in selection.shape else selection.shape


def dynamic_selection(step, store, scope):
    """The entries of an index that depends on values."""
    nodes, place = step.statement.target.index, step.place
    if step.mask is not None and (view := store.view(place)) is not None:
        return _masked(step.mask.mask(view, scope.with_implied(tensor(store.value(place)))), step)
    items = ev.index_items(nodes, scope.with_implied(tensor(store.value(place))))
    if scope.traced:
        if type(items[0]) is Value and items[0].dtype == "bool":  # the only item: the plan allows no other mask
            return indexing.Mask(_over_rows(_held_by(items[0]), len(place.shape)), place.shape)
        return ev.traced_selection(store.value(place), items, nodes, scope)
    if not planner.is_mask(items, place.shape):
        return ev.select(place.shape, items, nodes)
    return _masked(items[0].data, step)


def _held_by(mask):
    """A mask, without entries that were made of what does not exist."""
    from keras import ops

    return mask.data if mask.exists is None else ops.logical_and(mask.data, mask.exists)


def _over_rows(mask, axes):
    """The mask with axes of length 1 after its own, to be broadcast."""
    from keras import ops

    missing = axes - len(mask.shape)
    return ops.expand_dims(mask, tuple(range(-missing, 0))) if missing else mask


def _masked(mask, step):
    """Offsets where few entries are meant or each gets its own value, else the mask itself, which is smaller."""
    held = np.ravel(tensors.to_numpy(mask))
    offsets, whole = np.count_nonzero(held) * (8 + 4), held.size * (1 + 4)  # bytes, of a journal of 4-byte entries
    if step.scalar and offsets > whole:
        return indexing.Mask(mask, step.place.shape)
    flat = np.flatnonzero(held)
    return indexing.Positions(flat, flat.shape)


class Pure:
    """The place is one tensor, replaced at each write; nothing outside changes."""

    read = stream = None
    lets_go = False

    def __init__(self, value, names):
        self.tensor = value
        self.names = names

    def look_up(self, node, target):
        """What was handed in: there are no other variables of a model, planning saw to it that none is named."""
        from kpatch.writers import generic

        meaning = self.names.meaning(node, target)
        return tensor(generic.whole(meaning.variable)) if isinstance(meaning, Place) else meaning

    @property
    def implied(self):
        return tensor(self.tensor)

    def value(self, place):
        return self.tensor

    def view(self, place):
        return None

    def put(self, place, value):
        self.tensor = value

    def replace(self, step, values):
        self.put(step.place, values)

    def open(self, step, selection, target, last):
        whole = step.constant is not None or isinstance(selection, indexing.Mask)
        return None if whole and not step.open_ended else tensors.take(self.value(step.place), selection)

    def write_constant(self, step, target, constant):
        self.write(step, target, constant)

    def update(self, step, target, old):
        return False

    def write(self, step, target, values):
        self.put(step.place, tensors.replace(self.value(step.place), target, values))


class Record:
    """One write of a journal: what was there before (`None` where it was not kept), and what came after that.

    `after` is `None` where it follows from `before`. With a `PackedMask`, `before` is those entries in a row.
    """

    __slots__ = ("after", "before", "link", "selection", "step")

    def __init__(self, step, selection, before):
        self.step = step
        self.selection = selection
        self.before = before
        self.after = None
        self.link = None


class Named:
    """What a store does for the names of an expression, by its `value(place)` and `taken(place, selection)`."""

    names: Any
    value: Callable
    taken: Callable

    def look_up(self, node, target):
        meaning = self.names.meaning(node, target)
        return tensor(self.value(meaning)) if isinstance(meaning, Place) else meaning

    def read(self, node, target, selection):
        meaning = self.names.meaning(node, target)
        if isinstance(meaning, Place):
            return tensor(self.taken(meaning, selection))
        return ev.entries(meaning, selection)


class Live(Named):
    """The places are variables, written in place, with a journal of what was there."""

    implied = stream = None

    def __init__(self, planned, writer, donate, undo=True):
        self.names = planned.names
        self.writer = writer
        self.donate = donate
        self.lets_go = not undo
        self.keeps = True  # the old values of what is written now
        self.records = []
        self._planned = planned

    def begin(self, number):
        """Without undo old values are kept until no step is left that may fail, and then let go."""
        self.keeps = number < self._planned.doubtful
        if number > self._planned.doubtful:
            self.let_go()

    def let_go(self):
        """Drops the old values, which then nothing can bring back."""
        for record in self.records:
            record.before = record.after = None

    def value(self, place):
        """The whole variable, as an alias: it is let go before anything is written."""
        return self.writer.whole(place.variable)

    def view(self, place):
        """The place's memory as an array of NumPy that is only read, or `None`; let go before anything is written."""
        return self.writer.view(self.value(place))

    def replace(self, step, values):
        """The place takes over a new tensor as it is, where it can."""
        old = self.writer.exchange(step.place.variable, values)
        if old is None:
            self.open(step, step.selection, step.selection, None)
            self.write(step, step.selection, values)
        else:
            self._enter(step, step.selection, old)
            self._came(values)

    def taken(self, place, selection):
        return self.writer.read(place.variable, selection)

    def open(self, step, selection, target, last):
        """Enters the old values of the target into the journal; gives those of the selection, if they are needed."""
        if type(target) is indexing.Mask and isinstance(target.mask, np.ndarray):
            self._enter(step, target, self._masked(step.place, target.mask) if self.keeps else None)
            return None
        if step.constant is not None and not self.keeps:
            self._enter(step, target, None)
            return None
        old = self.writer.read(step.place.variable, selection)
        self._enter(step, target, old if last is None else _picked(old, selection.shape, last))
        return old

    def _masked(self, place, mask):
        view = self.view(place)
        return (tensors.to_numpy(self.value(place)) if view is None else view)[mask]

    def _enter(self, step, selection, before):
        """A record of a write; none where nothing is kept, and no earlier edit is left that would be in its way."""
        if not self.keeps:
            if latest_link(step.place.variable) is None:
                return
            before = None
        if type(selection) is indexing.Mask and isinstance(selection.mask, np.ndarray):
            selection = indexing.PackedMask(selection.mask)
        self.records.append(Record(step, selection, before))

    def _came(self, after):
        if self.keeps:
            self.records[-1].after = after

    def write_constant(self, step, target, constant):
        self._came(constant)
        values = step.prepared
        if values is None:
            values = constant
            if step.selection is not None:  # the same entries each time, so that preparing pays
                values = step.prepared = self.writer.prepare(step.place.variable, target, values)
        self.writer.write(step.place.variable, target, values, self.donate)

    def update(self, step, target, old):
        """Writes `old op operand` in one pass where the writer can; says whether it did."""
        op = step.statement.op[:-1]
        if op not in ("+", "-", "*", "/") or not isinstance(target, indexing.Region) or not self.donate:
            return False
        self.writer.update(step.place.variable, target, op, old, step.operand.data)
        return True

    def write(self, step, target, values):
        self._came(values)
        self.writer.write(step.place.variable, target, values, self.donate)

    def roll_back(self):
        """Writes every old value back, the last write first; one that fails does not keep the others from it."""
        failure = None
        for record in reversed(self.records):
            try:
                self._restore(record)
            except Exception as error:  # noqa: BLE001 (raised when the rest is restored)
                failure = failure or error
        if failure is not None:
            raise ExecutionError(f"the backend failed while old values were written back: {failure}") from failure

    def _restore(self, record):
        inherited = () if record.link is None else record.link.inherited
        for each in (record, *inherited):
            self._write_back(each)

    def _write_back(self, record):
        selection, before = record.selection, record.before
        if before is None:
            return
        if isinstance(selection, indexing.PackedMask):
            mask = selection.mask
            selection, entries = indexing.Mask(mask, mask.shape), before
            before = np.zeros(mask.shape, entries.dtype)
            before[mask] = entries
        self.writer.write(record.step.place.variable, selection, before, self.donate)


class Link:
    """One edit in the history of a variable. Each points to the next, so that an edit that can still be undone, and
    only such a one, keeps alive what is needed to see whether a later one overlaps it."""

    __slots__ = ("__weakref__", "inherited", "next", "selection", "statement", "undone")

    def __init__(self, statement, selection):
        self.statement = statement  # not the step, which would keep the variable alive
        self.selection = selection
        self.undone = False
        self.next = None
        self.inherited = ()  # records of earlier edits that were withdrawn: what this one restores after its own


_latest: dict = {}  # id of a variable → [weak reference to it, and one to its latest link]


def _enter(variable, link):
    """Adds a link to the history of a variable."""
    key = id(variable)
    history = _latest.get(key)
    if history is None:
        _latest[key] = [weakref.ref(variable, _forgetter(key, _latest)), weakref.ref(link)]
    else:
        latest = history[1]()  # gone, if no edit is left that could be undone
        if latest is not None:
            latest.next = link
        history[1] = weakref.ref(link)


def latest_link(variable):
    """The variable's latest edit, or `None` where none is left that could be undone."""
    history = _latest.get(id(variable))
    return history[1]() if history is not None else None


def _forgetter(key, latest):
    """Drops the history of a variable that is gone; holds the dictionary, as the module may be gone by then too."""
    return lambda _: latest.pop(key, None)


def _hand_on(record):
    """Gives the old values of entries that later edits have written to the first of these; the record keeps the rest.

    A later edit that nobody can undo any more takes them with it.
    """
    shape = record.step.place.shape
    for each in (record, *record.link.inherited):
        later = record.link
        while (later := later.next) is not None:
            if later.undone or not indexing.overlap(each.selection, later.selection, shape):
                continue
            mask, old = tensors.mask_of(each.selection, shape), _spread(each, shape)
            theirs = mask & tensors.mask_of(later.selection, shape)
            later.inherited += (Record(each.step, indexing.PackedMask(theirs), old[theirs]),)
            mine = mask & ~theirs
            each.selection, each.before = indexing.PackedMask(mine), old[mine]


def _spread(record, shape):
    """The old values of a record in an array of the variable's shape, each at its place."""
    before = tensors.to_numpy(record.before)
    if isinstance(record.selection, indexing.Mask) and not isinstance(record.selection, indexing.PackedMask):
        return before
    values = np.zeros(shape, before.dtype)
    if isinstance(record.selection, indexing.PackedMask):
        values[record.selection.mask] = before
    else:
        values.reshape(-1)[tensors.positions(record.selection, shape).flat] = before.ravel()
    return values


class AppliedPatch:
    """Edits that were made, and can be undone.

    As a context manager it undoes them on leaving, also by an exception.

    Attributes:
        plan: the `Plan` that was executed.
        writes: a `Write` for each statement and variable: path, entries, values before and after; none with
            `undo=False`.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.apply(model, "dense_1.bias[1] = 5") as applied:
        ...     print(applied.writes[0].path, applied.writes[0].before, applied.writes[0].after)
        dense_1.bias [0.] [5.]
        >>> model.get_weights()[1][1].item()
        0.0
    """

    __slots__ = ("__weakref__", "_live", "_model", "_undone", "plan")

    def __init__(self, planned, live, model):
        self.plan = planned
        self._live = live
        self._model = model
        self._undone = False
        for record in live.records:
            record.link = Link(record.step.statement, record.selection)
            _enter(record.step.place.variable, record.link)

    @property
    def writes(self):
        from kpatch.report import writes

        return writes(() if self._live.lets_go else self._live.records, self.plan.patch)

    def undo(self):
        """Restores every bit that the edits changed.

        Raises:
            UndoError: when undone before, when a later edit of the same entries was not undone first, or when the
                edit was made with `undo=False`.
        """
        self._check_kept()
        if self._undone:
            raise UndoError("this edit has been undone already")
        self._check_order()
        self._restore()

    def _restore(self):
        prepare_models(self._live.writer, self._model)
        self._live.roll_back()
        self._undone = True
        for record in self._live.records:
            record.link.undone = True

    def _withdraw(self):
        """Undoes the edits, if need be out of order: entries that a later edit has written keep its values.

        When the later edit is undone, it restores what was there before both.
        """
        if not self._undone:
            for record in self._live.records:
                _hand_on(record)
            self._restore()

    def _check_order(self):
        last = {id(record.step.place): record for record in self._live.records}
        for record in self._live.records:
            link = last[id(record.step.place)].link.next
            while link is not None:
                if not link.undone and indexing.overlap(record.selection, link.selection, record.step.place.shape):
                    raise UndoError(
                        f"a later edit of '{record.step.place.path}' overlaps this one; undo that first",
                        notes=[f"the later edit: {link.statement}", f"this edit: {record.step.statement}"],
                    )
                link = link.next

    def _check_kept(self):
        if self._live.lets_go:
            raise UndoError("this edit was made with undo=False, and kept no old values")

    def __enter__(self):
        self._check_kept()
        return self

    def __exit__(self, *exception):
        if not self._undone:
            self.undo()

    def __repr__(self):
        state = "undone" if self._undone else "applied"
        return f"<AppliedPatch {len(self._live.records)} writes, {state}>"

    def __rich__(self):
        from kpatch.report import writes_table

        return writes_table(self.writes)

    def __str__(self):
        from kpatch.report import as_text

        return as_text(self.__rich__())


def prepare_models(writer, *models):
    """Brings the variables' values where they can be edited (on jax, inside `fit`, they live in the trainer)."""
    sync = getattr(writer, "sync", None)
    if sync is not None:
        for model in models:
            sync(model)


def apply(planned, writer, model, donate=True, undo=True):
    """Executes a plan on the model's variables: all of it, or on any failure nothing."""
    prepare_models(writer, model, *planned.names.bindings.models)
    live = Live(planned, writer, donate, undo)
    try:
        run(planned, live)
    except BaseException as error:
        live.roll_back()
        if isinstance(error, PatchError) or not isinstance(error, Exception):
            raise
        raise ExecutionError(
            f"the backend failed while the patch ran: {error}", notes=["every variable was put back as it was"]
        ) from error
    if not undo:
        live.let_go()
    return AppliedPatch(planned, live, model)
