"""Edits of variables in place, with a journal of what was there: on any failure every bit is restored.

The order of things makes that hold for an interrupt too, which can come between any two lines: a write is in the
journal before it is made, and restoring twice is the same as restoring once.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np

from kpatch import backends, indexing
from kpatch.backends.numpy import packed
from kpatch.run import agreeing, derived, encoding, execute, resetting, steps
from kpatch.run.execute import Named, picked
from kpatch.run.failures import failed, failed_undo, interrupt_among
from kpatch.run.programs import IN_BLOCKS
from kpatch.run.records import Record, enter, latest_link, with_inherited
from kpatch.run.undo import AppliedPatch
from kpatch.values import tensors
from kpatch.values.dtypes import NUMPY, tensor
from kpatch.values.numerics import from_numpy, is_traced

KEPT = 2**22  # bytes of old values that an edit with `undo=False` keeps to its end, so that a small one is atomic
AT_ONCE = 2**26  # bytes that wait to be written together, so that an interrupt or a bar need not wait long


class Live(Named):
    """The places are variables, written in place, with a journal of what was there.

    With `keep=False` old values are kept until no step is left that may fail on the values that it meets, and from then
    on until more than `KEPT` bytes are written; or `to_the_end`. What is let go has a record without `before`.

    Attributes:
        records: a `Record` for each write, in order.
        counts: how many entries were written, by the step, if that depended on values.
        lets_go: old values are not for `undo`.
        hears: `begin` is called for each step.
        ended: after a failure all was restored that could be.
        waiting: writes that are made together at last: record and job, by the variable's id; or `None`.
    """

    stream = None
    waiting: Any = None
    _awaited = 0  # bytes that wait
    _bar: Any = None

    def __init__(self, checked, writer, donate=True, keep=True, to_the_end=False):
        self._checked = checked
        self.names = checked.names
        self.writer = writer
        self.donate = donate
        self.hears = self.lets_go = not keep
        self.ended = False
        self.records = []
        self.counts = {}
        self._doubtful = len(checked.steps) if to_the_end else checked.doubtful if self.lets_go else None
        self._keeps_all = True
        self._size = 0  # bytes of what was written
        self._spent = False  # some were let go
        self._gone = 0  # how many records were let go
        self._decoded = {}  # weights that are stored as something else, by place, until the next write

    def sync(self):
        """Brings the variables' values where they can be edited (on jax, inside `fit`, they live in the trainer)."""
        for model in self._checked.models:
            self.writer.sync(model)

    def derive(self):
        """Has layers derive tensors anew from the variables that were written."""
        if self._checked.derives:
            derived.derive(self.records)

    # Reading

    @property
    def implied(self):
        """`_` in a `let` or an `assert`: the variable, if the patch is of one alone."""
        return None if self.names.implied is None else tensor(self.value(self.names.implied))

    def value(self, place):
        """The whole variable, as an alias: it is let go before anything is written."""
        self._expect(place.variable)
        return self.writer.whole(place.variable) if place.weight is None else from_numpy(self._weight(place))

    def view(self, place):
        """The place's memory as an array of NumPy that is only read, or `None`; let go before anything is written."""
        return self.writer.view(self.value(place)) if place.weight is None else self._weight(place)

    def taken(self, place, selection):
        self._expect(place.variable)
        if place.weight is None:
            return self.writer.read(place.variable, selection)
        return from_numpy(encoding.taken(place, selection, self._stored))

    def _weight(self, place):
        if place not in self._decoded:
            self._decoded[place] = encoding.whole(place, self._stored)
        return self._decoded[place]

    def _stored(self, variable, flat=None):
        """Entries of a stored variable as an array of NumPy, by their flat offsets; or all of them."""
        self._expect(variable)
        if flat is None:
            return tensors.to_numpy(self.writer.whole(variable))
        return tensors.to_numpy(self.writer.read(variable, indexing.Positions(flat, flat.shape)))

    # Writing

    def writing(self):
        """The block in which the steps run."""
        return self.writer.writing(self._checked.variables) if self.donate else nullcontext()

    def begin(self, number):
        """A step begins."""
        if self._bar is not None and number:
            self._advance(steps.nbytes(self._checked.steps[number - 1]))
        if not self.lets_go:
            return
        if getattr(self._checked.steps[number], "value", None) is None:
            self.flush()
        self._keeps_all = number <= self._doubtful
        if not self._keeps_all and self._size > KEPT:
            self._let_go()

    def tell(self, bar):
        """Has each step told to a bar."""
        self._bar, self.hears = bar, True

    def _advance(self, count):
        """Tells the bar of a step, when what it wrote is there."""
        if self.records and self.records[-1].done:
            self.writer.settle(self.records[-1].step.place.variable)
        self._bar.advance(count)

    def open(self, step, selection, target, last):
        """Enters a write into the journal; gives the old values of the selection, if they are needed."""
        if step.selection is None:
            self.counts[step] = execute.entries(selection)
        if step.place.weight is not None:  # the journal has what is stored: `write` enters it
            whole = step.constant is not None or isinstance(target, indexing.Mask)
            return None if whole else self.taken(step.place, selection)
        masked = type(target) is indexing.Mask and isinstance(target.mask, np.ndarray)
        keeps = self._keeps_all or self._has_room(step, target)
        if masked:
            self._enter(step, target, self._masked(step.place, target.mask) if keeps else None)
            return None
        if step.constant is not None and not keeps:
            self._enter(step, target, None)
            return None
        read = self.writer.read if step.constant is None else self.writer.keep
        old = read(step.place.variable, selection)
        self._enter(step, target, old if last is None else picked(old, selection.shape, last))
        return old

    def overwrite(self, step, scope):
        """Has the whole new value computed in the place's own memory, if its old values are let go; says whether so.

        Such writes wait for those that follow: threads that start once for many variables cost less.
        """
        if self._overwrites(step, scope):
            return True
        self.flush()
        return False

    def _overwrites(self, step, scope):
        place, program = step.place, step.value
        if self._keeps_all or not self.donate or place.weight is not None or program.dtype not in IN_BLOCKS:
            return False
        if program.counts and latest_link(place.variable) is not None:  # which asks for the entries
            return False
        self._expect(place.variable)
        given = lambda: program.given(scope.with_implied(tensor(self.value(place))))  # noqa: E731 (no alias before)
        job = self.writer.overwriting(place.variable, program, given)
        if job is None and self.waiting:  # perhaps those that wait hold its memory
            self.flush()
            job = self.writer.overwriting(place.variable, program, given)
        if job is None:
            return False
        whole = indexing.whole(place.shape) if program.counts else step.selection
        before = self.writer.keep(place.variable, whole) if self._has_room(step, whole) else None
        self.waiting = self.waiting or {}
        self.waiting[id(place.variable)] = self._enter(step, whole, before), job
        self._awaited += _bytes(step, whole)
        if self._awaited > AT_ONCE:
            self.flush()
        return True

    def _expect(self, variable):
        """Has the variable written that is about to be read or written, if it waits."""
        if self.waiting and id(variable) in self.waiting:
            self.flush()

    def flush(self):
        """Makes the writes that wait."""
        if not self.waiting:
            return
        records, jobs = zip(*self.waiting.values(), strict=True)
        self.waiting, self._awaited = None, 0

        def begin(at):
            records[at].begun = True

        for record, count in zip(records, jobs[0].run(jobs, begin), strict=True):
            if record.step.value.counts:
                self.counts[record.step], record.begun = count, count > 0
            record.done = True

    def replace(self, step, values):
        """The place takes over a new tensor as it is, where it can."""
        if step.place.weight is not None:
            self._write_weight(step, step.selection, values)
            return
        record = self._enter(step, step.selection, self.value(step.place))
        record.begun = True
        if self.writer.take_over(step.place.variable, values) is not None:
            record.after = None if self.lets_go else self.writer.written(step.place.variable, values)
            record.done = True
            return
        self.records.pop()  # with its alias of the variable's memory
        del record
        self.open(step, step.selection, step.selection, None)
        self.write(step, step.selection, values)

    def write_constant(self, step, target, constant):
        if step.place.weight is not None:
            self._write_weight(step, target, constant)
            return
        values = step.prepared
        if values is None:
            values = constant
            if step.selection is not None:  # the same entries each time, so that preparing pays
                values = self.writer.prepare(step.place.variable, target, values)
                if not is_traced(values):
                    step.prepared = values
        self._write(step, target, values, constant)

    def write(self, step, target, values):
        if step.place.weight is not None:
            self._write_weight(step, target, values)
        else:
            self._write(step, target, values, values)

    def _write_weight(self, step, target, values):
        """Writes a weight as its layer stores it: each stored variable is a write of its own in the journal."""
        for stored, selection, new in encoding.writes(step, target, values, self._stored, shown=not self.lets_go):
            keeps = self._keeps_all or self._has_room(stored, selection)
            self._enter(stored, selection, self.writer.keep(stored.place.variable, selection) if keeps else None)
            self._write(stored, selection, new, new)

    def reset(self, step, selection, start):
        """Writes to a slot of an optimizer what it starts from: one number, or an array of the slot's shape."""
        place = step.place
        if isinstance(selection, indexing.PackedMask):
            selection = indexing.Mask(selection.mask, place.shape, selection.count)
        if start.shape and type(selection) is indexing.Mask:
            flat = np.flatnonzero(tensors.to_numpy(selection.mask))
            selection = indexing.Positions(flat, flat.shape)
        if type(selection) is indexing.Mask:
            before = self._masked(place, tensors.to_numpy(selection.mask))
        else:
            before = self.writer.keep(place.variable, selection)
        if start.shape:
            start = start.reshape(-1)[tensors.positions(selection, place.shape).flat].reshape(selection.shape)
        self._enter(step, selection, before)
        self._write(step, selection, start, start)

    def _write(self, step, target, values, after):
        record = self.records[-1]
        if self.writer.is_spread(values) and not self.writer.is_spread(record.before):
            values = after = self.writer.gathered(values)  # so that what is written to a part can be looked at
        record.after = None if self.lets_go else lambda: after
        record.begun = True
        self.writer.write(step.place.variable, target, values, self.donate)
        record.done = True

    def update(self, step, target, old):
        """Writes `old op operand` in one pass where the writer can; says whether it did."""
        op = step.statement.op[:-1]
        if step.place.weight is not None:
            return False
        if op not in ("+", "-", "*", "/") or not isinstance(target, indexing.Region) or not self.donate:
            return False
        record = self.records[-1]
        record.begun = True
        self.writer.update(step.place.variable, target, op, old, step.operand.data)
        record.done = True
        return True

    # The journal

    def _masked(self, place, mask):
        view = self.view(place)
        return packed(tensors.to_numpy(self.value(place)) if view is None else view, mask)

    def _enter(self, step, selection, before):
        self._decoded.clear()
        if self.lets_go:
            self._size += _bytes(step, selection)
            if before is None and selection.size and latest_link(step.place.variable) is None:
                selection = None
        if type(selection) is indexing.Mask and isinstance(selection.mask, np.ndarray):
            selection = indexing.PackedMask(selection.mask, selection.count)
        record = Record(step, selection, before)
        self.records.append(record)
        return record

    def _has_room(self, step, target):
        """Whether old values are kept where values can no longer be at fault: while they are few in all."""
        return not self._spent and self._size + _bytes(step, target) <= KEPT

    def _let_go(self):
        """Drops old values, which then nothing can bring back."""
        if not self._spent:
            self.flush()
        since = self.records[self._gone :]
        self._settle(record for record in since if record.before is not None)
        self._spent = True
        for record in since:
            record.before = None
            if _has_entries(record) and latest_link(record.step.place.variable) is None:
                record.selection = None
        self._gone = len(self.records)
        self._size = 0

    def settle(self):
        """Waits until what was written is there, if the backend computes while Python goes on."""
        self._settle(self.records)

    def _settle(self, records):
        for record in records:
            if record.done and type(record.selection) is not indexing.Point:
                self.writer.settle(record.step.place.variable)

    def put_back(self):
        """Writes every old value back, the last write first.

        Returns:
            The records whose writes stay, in order, and the exceptions that were raised meanwhile.
        """
        try:
            return self._put_back()
        except BaseException as cut:  # noqa: BLE001 (an interrupt between two records, which the caller raises)
            stays, failures = self._put_back()
            return stays, [cut, *failures]

    def _put_back(self):
        self.waiting = None
        failures, stays = [], set()
        for owner, record in with_inherited(self.records):
            if record.begun and _has_entries(record) and not self._put_back_one(record, failures):
                stays.add(id(owner))
        return [record for record in self.records if id(record) in stays], failures

    def _put_back_one(self, record, failures):
        """Says whether it could; one that fails does not keep the others from it."""
        if record.before is None:
            return False
        for _ in range(2):  # an interrupt is over once it is raised
            try:
                self._write_back(record)
            except BaseException as error:  # noqa: BLE001 (the caller raises it, when the rest is restored)
                failures.append(error)
            else:
                return True
        return False

    def _give_back(self, record):
        """Gives a variable that was replaced as a whole its former tensor, where tensors are immutable."""
        if not isinstance(record.selection, indexing.Region) or not record.selection.full:
            return False
        kept = self.writer.give_back(record.step.place.variable, record.before)
        if kept is not None:
            record.before = kept
        return kept is not None

    def _write_back(self, record):
        if self._give_back(record):
            return
        variable, selection, before = record.step.place.variable, record.selection, record.before
        if record.bits is not None:  # of a byte that holds two codes, the other one keeps its bits
            now = tensors.to_numpy(self.writer.read(variable, selection))
            before = now & ~record.bits | tensors.to_numpy(before) & record.bits
        try:
            self.writer.write(variable, selection, before, self.donate)
            if type(selection) is not indexing.Point:
                self.writer.settle(variable)
        except Exception:
            whole = isinstance(selection, indexing.Region) and selection.full
            if not whole or self.writer.take_over(variable, before) is None:  # which takes no memory
                raise

    def link(self, stays):
        """The history of the variables after a failure: what could not be put back is an edit as any other."""
        for record in self.records:
            if record.link is not None:
                record.link.undone = record not in stays
            elif record in stays and record.selection is not None:
                enter(record)

    def undo(self):
        """Restores every old value; gives an interrupt that came meanwhile, or `None`."""
        self.writer.refuse_traces("undo()")
        self.sync()
        stays, failures = self.put_back()
        if stays:
            raise failed_undo(stays, failures, self._checked.patch)
        self.derive()
        return interrupt_among(failures)


def _bytes(step, selection):
    return execute.entries(selection) * NUMPY[step.place.dtype].itemsize


def _has_entries(record):
    return record.selection is None or record.selection.size > 0


def apply_with_bar(checked, donate=True, keep=True, optimizers=()):
    """`apply` of steps that may take long, with a progress bar if somebody watches."""
    from kpatch.view import progress

    bar = progress.of_call("applying the patch", checked.nbytes)
    try:
        return apply(checked, donate, keep, optimizers, bar)
    finally:
        if bar is not None:
            bar.close()


def apply(checked, donate=True, keep=True, optimizers=(), bar=None):
    """Executes steps on variables: all of them, or on any failure none.

    Args:
        keep: the old values, for `undo`.
        optimizers: those whose slots are reset for what is written.
        bar: a `progress.Bar`, or `None`.

    Raises:
        PatchError: everything is as it was, or the error says what is not. So it is with an interrupt.
    """
    live = Live(checked, backends.current(), donate, keep, to_the_end=len(optimizers) > 0)
    if bar is not None:
        live.tell(bar)
    live.sync()
    agreeing.agree(checked, donate, keep, len(optimizers))
    try:
        try:
            if len(checked.steps) == 1:  # the commonest edit
                execute.run(checked, live)
                if live.waiting:
                    live.flush()
            else:
                with live.writing():
                    execute.run(checked, live)
                    live.flush()
            if optimizers:
                resetting.reset(live, optimizers)
            live.settle()
            live.derive()
            if bar is not None:
                bar.close()
            return AppliedPatch(checked, live)
        except BaseException as error:  # noqa: BLE001 (it is raised, or what says more)
            raise _ended(live, error, checked.patch)  # noqa: B904 (it has its cause)
    except BaseException as error:
        if live.ended:
            raise
        raise _ended(live, error, checked.patch)  # noqa: B904 (an interrupt cut the first attempt off)


def counts(checked):
    """How many entries each writing step would write at present; `None` if unknown before it runs."""
    live = Live(checked, backends.current(), donate=False)
    if checked.dynamic:
        live.sync()
    return tuple(execute.counts(checked, live))


def _ended(live, error, patch):
    """Restores what can be restored; gives the exception that says how an edit ended."""
    stays, failures = live.put_back()
    try:
        live.derive()
    except Exception as failure:  # noqa: BLE001 (perhaps the very error that ended the edit)
        failures.append(failure)
    live.link(stays)
    error = failed(error, stays, failures, patch)
    live.ended = True
    return error
