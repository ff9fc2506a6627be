"""Edits of weights that their layers store as something else: planned as weights, written as what is stored."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpatch import indexing
from kpatch.errors import PatchError, UnsupportedError
from kpatch.names.meanings import Place, place_of
from kpatch.run.steps import EditStep
from kpatch.values import tensors
from kpatch.values.dtypes import NUMPY
from kpatch.values.numerics import from_numpy, is_traced


@dataclass(eq=False, slots=True)
class StoredStep:
    """What a step that writes a weight does to one of the variables that its layer stores.

    Attributes:
        step: that step.
        place: the stored variable.
        shown: of the first of them, the weight's values before and after, those asked for, and the flat offsets of
            these entries (`None` for all); else `None`.
        bits: of bytes that hold two codes, the bits of those that it writes; `None` if it writes whole entries.
    """

    step: EditStep
    place: Place
    shown: Any = None
    bits: Any = None

    selection = None
    stream = 0

    @property
    def statement(self):
        return self.step.statement

    @property
    def statements(self):
        return self.step.statements


def of_variable(variable, flat=None):
    """Entries of a Keras variable as an array of NumPy: the `read` of everything here, if nothing is written.

    Raises:
        UnsupportedError: the values are not known, inside a function that is being traced.
    """
    held = tensors.detached(variable)
    if is_traced(held):
        raise UnsupportedError("a weight that is stored as codes cannot be read inside a compiled function")
    values = tensors.to_numpy(held)
    return values if flat is None else values.reshape(-1)[flat]


def tensor_of(place):
    """The value of a variable's place as a tensor that is a constant for gradients: the weight, if it stores one."""
    return tensors.detached(place.variable) if place.weight is None else from_numpy(place.weight.values(of_variable))


def whole(place, read):
    """The weight as an array of NumPy. `read` gives entries of a stored variable, by flat offsets or `None`."""
    return place.weight.values(read)


def taken(place, selection, read):
    """The selected entries of the weight."""
    return place.weight.values(read, _offsets(selection, place.shape)).reshape(selection.shape)


def writes(step, target, values, read, shown=True):
    """What a step that writes a weight writes: a `StoredStep`, a selection and values for each stored variable.

    Args:
        step: an `EditStep`.
        target: the entries of the weight, none twice.
        values: their values.
        read: gives entries of a stored variable as an array of NumPy, by flat offsets or `None` for all.
        shown: the first step tells what is written.

    Raises:
        DTypeError: a value is beyond what can be stored.
    """
    place, weight = step.place, step.place.weight
    flat, asked = _asked(place, target, values)
    if not asked.size:
        return []
    try:
        changes = weight.changes(read, flat, asked)
    except PatchError as error:
        error.argument = None
        error.message = f"'{place.path}': {error.message}"
        raise error.locate(step.statement.value.span) from None
    told = None
    if shown:
        after = weight.values(Changed(read, changes), flat).reshape(-1)
        told = (np.array(weight.values(read, flat)).reshape(-1), after, asked, flat)
    found = []
    for change in changes:
        shape = tuple(change.variable.shape)
        every = change.flat is None
        selection = indexing.whole(shape) if every else indexing.Positions(change.flat, change.flat.shape)
        stored = StoredStep(step, _place(place, change.variable), told, change.bits)
        found.append((stored, selection, change.values))
        told = None
    return found


def stored_otherwise(entry):
    """The error of a weight that a compiled function should edit or read, and of which the layer stores no tensor."""
    return UnsupportedError(
        f"'{entry.path}' is stored as {entry.weight.told}, so no patched layer can edit or read it",
        notes=[f"kpatch.apply and kpatch.intervene can; '{entry.stored.path}' names what is stored"],
    )


class Changed:
    """Reads stored variables as they will be after some changes."""

    def __init__(self, read, changes):
        self._read = read
        self._changes = {id(change.variable): change for change in changes}

    def __call__(self, variable, flat=None):
        change = self._changes.get(id(variable))
        if change is None:
            return self._read(variable, flat)
        if change.flat is None:
            return change.values if flat is None else change.values.reshape(-1)[flat]
        new = np.array(self._read(variable, None), order="C")  # a copy in C order, whose row is a view
        new.reshape(-1)[change.flat] = change.values
        return new if flat is None else new.reshape(-1)[flat]


def _place(place, variable):
    """The place of a stored variable of a weight; in errors it is called by the weight's name."""
    return place_of(variable, place.path, place.entry)


def _asked(place, target, values):
    """The flat offsets of the target, `None` for all of the place, and the values of these entries in a row."""
    values = np.asarray(tensors.to_numpy(values), NUMPY[place.dtype])
    if isinstance(target, indexing.Mask):
        mask = tensors.to_numpy(target.mask)
        return np.flatnonzero(mask), np.broadcast_to(values, mask.shape)[mask]
    return _offsets(target, place.shape), np.broadcast_to(values, target.shape).reshape(-1)


def _offsets(selection, shape):
    if isinstance(selection, indexing.Region) and selection.full:
        return None
    flat = tensors.positions(selection, shape).flat
    every = len(flat) == math.prod(shape) and np.array_equal(flat, np.arange(len(flat)))
    return None if every else flat
