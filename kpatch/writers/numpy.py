"""Entries of variables on the numpy backend; and of plain arrays, for whoever needs them.

A variable's array may be in other hands: `variable.value` hands it out, `keras.Variable(other)` shares it. It is
written in place where the reference count says that the variable alone holds it, and copied once where it does not.
"""

import sys
from types import SimpleNamespace

import numpy as np

from kpatch.indexing import Mask, Point, Region

OPERATORS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide}


def read(variable, selection):
    """The selected entries in memory of their own; for a `Mask` the whole array."""
    return take(variable._value, selection)


def write(variable, selection, values, donate=True):
    """Writes values of the array's dtype, in place where nobody else holds the array."""
    array = _writable(variable, donate)
    put(array, selection, values)
    variable._value = array


def prepare(variable, selection, array):
    """The array as `write` takes it fastest."""
    array = np.asarray(array, variable._value.dtype)
    return array.reshape(())[()] if type(selection) is Point else array


def update(variable, region, op, old, operand):
    """The region becomes `old <op> operand`, computed where it is to be."""
    array = _writable(variable, donate=True)
    with np.errstate(all="ignore"):  # infinity and NaN are results, as on the other backends
        OPERATORS[op](old, np.asarray(operand, array.dtype), out=_view(array, region))
    variable._value = array


def whole(variable):
    """The whole value as an alias, to be let go before anything is written."""
    return variable._value


def exchange(variable, values):
    """The variable takes over a tensor that nobody else holds, in place of its own, which is returned."""
    old, variable._value = variable._value, np.asarray(values, order="C")
    return old


def view(tensor):
    """The tensor's memory as an array that is only read, or `None` where it cannot be reached."""
    return tensor if tensor.flags.c_contiguous else None


def settle(variable):
    """Waits for the variable's value: it is there."""


def sync(model):
    """Gives a model's variables their present values: they have them."""


def is_tracing():
    """Whether a function is being traced at this moment: never, here."""
    return False


def take(array, selection):
    """A copy of the selected entries of an array; for a `Mask` of all."""
    kind = type(selection)
    if kind is Point:
        return array[selection.index]  # a NumPy scalar: nobody can change it, and it takes 40 ns
    if kind is Region:
        return _view(array, selection).copy()
    if kind is Mask:
        return array.copy()
    entries, places = _places(array, selection)
    return entries[places].reshape(selection.shape)


def put(array, selection, values):
    """Writes values of the array's dtype to the selected entries of an array."""
    kind = type(selection)
    if kind is Point:
        array[selection.index] = values
    elif kind is Region:
        array[selection.slices] = values
    elif kind is Mask:
        np.copyto(array, np.asarray(values, array.dtype), where=selection.mask)
    else:
        entries, places = _places(array, selection)
        entries[places] = np.broadcast_to(values, selection.shape).reshape(-1)


def _view(array, region):
    index = (*region.slices, ...)  # with `...`, integers alone too give an array
    return array[index]


def _places(array, positions):
    """A view of the array, and an index into it that means the positions."""
    if array.flags.c_contiguous:
        return array.reshape(-1), positions.flat
    return array, positions.coordinates(array.shape)


def _writable(variable, donate):
    """The variable's own array where nobody else can see it; else a copy, to be set when it is complete."""
    if donate and _references(variable) == ALONE:
        array = variable._value
        flags = array.flags
        if array.base is None and flags.owndata and flags.writeable:
            return array
    return np.array(variable._value, order="C")


def _references(variable):
    return sys.getrefcount(variable._value)


# What `_references` counts in this Python for an array that the variable alone holds.
ALONE = _references(SimpleNamespace(_value=np.empty(1)))
