"""The executor's store of arrays in files, which runs steps block by block if possible.

Only one block is in memory for: a number under a mask, a number, `*=` with a number, a bound array, and sums and
products of arrays. Other steps need memory for all values that they compute.
"""

import mmap
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kpatch import backends, indexing
from kpatch.backends.numpy import OPERATORS, take
from kpatch.checkpoint import reducing
from kpatch.checkpoint.arrays import BLOCK, Array, as_bits, reuse_blocks
from kpatch.checkpoint.effects import Change
from kpatch.names.meanings import Place
from kpatch.run import encoding, execute
from kpatch.run.batch import BatchStep
from kpatch.run.programs import IN_BLOCKS
from kpatch.run.steps import EditStep
from kpatch.syntax import ast
from kpatch.values import tensors
from kpatch.values.dtypes import check_available, tensor
from kpatch.view import progress


def nbytes(step):
    """The bytes of the arrays that a step edits, as the progress bar counts them."""
    return sum(array.nbytes for array in step.place.parts)


class Made(NamedTuple):
    """The new values of a block, and what was computed on the way.

    Attributes:
        new: the values.
        changed: the exclusive or of old and new bits, or `None`.
        mask: which entries were written, or `None` for all.
        chosen: the old values under the mask, with zeros beside it.
    """

    new: np.ndarray
    changed: np.ndarray | None = None
    mask: np.ndarray | None = None
    chosen: np.ndarray | None = None


class Stored(execute.Named):
    """The store of arrays in files.

    Args:
        names: the plan's `FileNames`.
        editor: the `Editor` that writes, or `None` if nothing is written.
    """

    implied = None
    hears = lets_go = False

    def __init__(self, names, editor=None):
        self.names = names
        self.editor = editor
        self.changes = []
        self._own = {id(array) for array in names.index.arrays}

    # Reading

    def array(self, place):
        """The values of a place as a NumPy array, memory-mapped if the place is in a file."""
        return self._stored(place.variable) if place.weight is None else encoding.whole(place, self._stored)

    def _stored(self, array, flat=None):
        """Entries of an array of a file, or of a variable, by their flat offsets; or all of them."""
        if not isinstance(array, Array):
            return encoding.of_variable(array, flat)
        values = array.view() if self.editor is None else self.editor.view(array)
        return values if flat is None else values.reshape(-1)[flat]

    def value(self, place):
        return _as_tensor(self.array(place))

    def view(self, place):
        return self.array(place)

    def taken(self, place, selection):
        return _as_tensor(_taken(self.array(place), selection))

    def open(self, step, selection, target, last):
        if step.constant is not None or isinstance(selection, indexing.Mask):
            return None
        return _as_tensor(_taken(self.array(step.place), selection))

    # Writing

    def stream(self, step, scope):
        """Runs a step block by block if possible; returns whether it did."""
        compute = self._blockwise(step, scope)
        if compute is None:
            progress.advance(nbytes(step))
            return False
        change, array = self._change(step), step.place.variable
        reuse_blocks()
        for start in range(0, array.size, count := BLOCK // array.numpy.itemsize):
            old = self.editor.read(array, start, min(count, array.size - start))
            with np.errstate(all="ignore"):
                made = compute(start, old)
                if made.mask is None:
                    change.add(old, made.new)
                else:
                    change.add_chosen(old, made.mask, made.chosen, step.constant.reshape(()))
            self.editor.put_row(array, start, old, made.new, made.changed)
            progress.advance(old.nbytes)
        return True

    def _blockwise(self, step, scope):
        """A function of a block's start and old values that returns what is `Made` of them, or `None`."""
        if type(step) is not EditStep or step.place.weight is not None:
            return None
        number = step.constant if step.constant is not None and step.constant.size == 1 else None
        if step.mask is not None and number is not None:
            return _masked(step, self._numbers(step, step.mask, scope), number.reshape(()))
        if not isinstance(step.selection, indexing.Region) or not step.selection.full:
            return None
        if number is not None:
            return lambda start, old: Made(np.full_like(old, number.reshape(())))
        if step.operand is not None and step.statement.op[:-1] in OPERATORS:
            function, operand = (
                OPERATORS[step.statement.op[:-1]],
                np.asarray(step.operand.data, step.place.variable.numpy),
            )
            return lambda start, old: Made(function(old, operand).astype(old.dtype, copy=False))
        return self._copied(step) or self._computed(step, scope)

    def _numbers(self, step, program, scope):
        """The numbers of a program, computed once: means and the like in blocks, literals without the array."""
        known = dict(scope.locals)

        def replaced(node):
            value = self.reduced(node, replace(scope, locals=known, whole=step.place))
            if value is None:
                return node
            known[f"\0{len(known)}"] = value
            return ast.Local(f"\0{len(known) - 1}", node.span)

        scalars = [
            (node, number)
            if number is not None or any(type(part) is ast.Subscript for part in ast.walk(node))
            else (ast.mapped(node, replaced), None)
            for node, number in program.scalars
        ]
        unknown = [node for node, number in scalars if number is None]
        asked = any(type(part) is ast.Implied for node in unknown for part in ast.walk(node))
        implied = tensor(self.value(step.place)) if asked else step.place.unknown()
        return replace(program, scalars=tuple(scalars)).numbers(replace(scope, locals=known, implied=implied))

    def reduced(self, node, scope):
        """The value of a call that reduces an array, computed in blocks, or `None`."""
        return None if self.editor is None else reducing.reduced(node, scope, self.names, self._reader)

    def _computed(self, step, scope):
        """A function for a whole new value, such as `0.7 * _ + 0.3 * $donor._`; or `None`."""
        program = step.value
        if program is None or program.dtype not in IN_BLOCKS or any(type(x) is ast.Local for x in program.arrays):
            return None
        places = [
            None if type(node) is ast.Implied else self.names.meaning(node, step.place) for node in program.arrays
        ]
        if not all(place is None or (isinstance(place, Place) and place is not step.place) for place in places):
            return None
        readers = [place and self._reader(place) for place in places]
        numbers = self._numbers(step, program, scope)

        def compute(start, old):
            blocks = [old if read is None else read(start, len(old)) for read in readers]
            return Made(program.compute(blocks, numbers))

        return compute

    def _copied(self, step):
        """A function that copies an array of another file with the same shape and dtype; or `None`."""
        node = step.statement.value
        if step.statement.op != "=" or type(node) is not ast.Binding:
            return None
        place = self.names.meaning(node, step.place)
        if not isinstance(place, Place) or not isinstance(place.variable, Array) or place.weight is not None:
            return None
        if (place.shape, place.dtype) != (step.place.shape, step.place.dtype) or id(place.variable) in self._own:
            return None
        read = self._reader(place)
        return lambda start, old: Made(read(start, len(old)))

    def _reader(self, place):
        """A function of a start and a count that reads flat entries; from a file, without memory for all of them."""
        array = place.variable
        if place.weight is None and isinstance(array, Array):
            return self.editor.reader(array)
        values = self.array(place).reshape(-1)
        return lambda start, count: values[start : start + count]

    def replace(self, step, values):
        self.write(step, step.selection, values)

    def write_constant(self, step, target, constant):
        self.write(step, target, constant)

    def update(self, step, target, old):
        return False

    def write(self, step, target, values):
        if step.place.weight is not None:
            self._write_weight(step, target, values)
            return
        array, change = step.place.variable, self._change(step)
        values = np.asarray(_own(tensors.to_numpy(values)), array.numpy)
        if isinstance(target, indexing.Mask):
            mask = tensors.to_numpy(target.mask)
            flat = np.flatnonzero(mask)
            values = np.broadcast_to(values, mask.shape).reshape(-1)[flat]
        else:
            flat = tensors.positions(target, array.shape).flat
            values = np.broadcast_to(values, target.shape).reshape(-1)
        if len(flat) > 1 and (np.diff(flat) < 0).any():
            order = np.argsort(flat)
            flat, values = flat[order], values[order]
        if isinstance(step, BatchStep):
            self._enter_batch(step)
            self.changes.remove(change)
        else:
            change.add(self.array(step.place).reshape(-1)[flat], values)
        self.editor.put(array, flat, values)

    def _write_weight(self, step, target, values):
        """Writes a weight as the file stores it."""
        change = self._change(step)
        for stored, selection, new in encoding.writes(step, target, values, self._stored):
            if stored.shown is not None:
                change.add(*stored.shown[:2])
            flat = tensors.positions(selection, stored.place.shape).flat
            order = np.argsort(flat)
            self.editor.put(stored.place.variable, flat[order], new.reshape(-1)[order])

    def _enter_batch(self, step):
        """Adds one change for each statement, as if they ran one after the other."""
        values = dict(zip(step.offsets.tolist(), self.array(step.place).reshape(-1)[step.offsets], strict=True))
        for statement, offset, number in zip(step.statements, step.offsets.tolist(), step.numbers, strict=True):
            self.changes.append(change := Change(step, statement))
            change.add(np.asarray(values[offset]).reshape(1), np.asarray(number).reshape(1))
            values[offset] = number

    def _change(self, step):
        self.changes.append(change := Change(step, step.statement))
        return change


def _masked(step, numbers, number):
    scratch = np.empty(BLOCK // step.place.variable.numpy.itemsize, as_bits(np.empty(0, number.dtype)).dtype)
    fresh = as_bits(number)

    def compute(start, old):
        mask = step.mask.compute([old] * len(step.mask.arrays), numbers)
        mask = np.ascontiguousarray(np.broadcast_to(mask, old.shape))
        bits = as_bits(old)
        ones = scratch[: len(bits)]  # new arrays would cost more than all the arithmetic
        np.copyto(ones, mask.view("u1"))
        np.negative(ones, out=ones)  # all ones in the mask; `where` is 8 times slower
        chosen = changed = bits & ones
        if fresh:
            changed = np.bitwise_and(ones, bits ^ fresh)
        return Made((bits ^ changed).view(old.dtype), changed, mask, chosen.view(old.dtype))

    return compute


def _taken(array, selection):
    if isinstance(selection, indexing.Mask):
        return array.copy()
    return np.asarray(take(array, selection))


def _own(values):
    """The values, copied if they are memory-mapped, so that they do not change with the file."""
    base = values
    while base is not None:
        if isinstance(base, mmap.mmap):
            return values.copy()
        base = getattr(base, "base", None)
    return values


def _as_tensor(array):
    """The array as a tensor of the backend; unchanged on numpy."""
    if backends.current().arrays_are_tensors:
        return array
    ops = backends.current().ops
    check_available(array.dtype.name)
    return ops.convert_to_tensor(np.array(array), dtype=array.dtype.name)
