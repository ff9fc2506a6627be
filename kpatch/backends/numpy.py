"""Entries of variables on the numpy backend; and of plain arrays, for whoever needs them.

A variable's array may be in other hands: `variable.value` hands it out, `keras.Variable(other)` shares it. It is
written in place where the reference count says that the variable alone holds it, and copied once where it does not.
"""

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from kpatch.backends.base import Backend, intervals
from kpatch.indexing import Mask, Point, Region

OPERATORS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide}


class Numpy(Backend):
    """Keras's numpy backend: its tensors are arrays."""

    name = "numpy"
    arrays_are_tensors = True
    sorts_nan_last = True
    lengths_stay_unknown = False

    def read(self, variable, selection):
        return take(variable._value, selection)

    def write(self, variable, selection, values, donate=True):
        array = _writable(variable, donate)
        put(array, selection, values)
        variable._value = array

    def prepare(self, variable, selection, array):
        array = np.asarray(array, variable._value.dtype)
        return array.reshape(())[()] if type(selection) is Point else array

    def update(self, variable, region, op, old, operand):
        array = _writable(variable, donate=True)
        with np.errstate(all="ignore"):  # infinity and NaN are results, as on the other backends
            OPERATORS[op](old, np.asarray(operand, array.dtype), out=_view(array, region))
        variable._value = array

    def whole(self, variable):
        return variable._value

    def take_over(self, variable, values):
        old, variable._value = variable._value, np.asarray(values, order="C")
        return old

    def view(self, tensor):
        return tensor if tensor.flags.c_contiguous else None

    def holds(self, condition):
        return bool(condition())

    def wide(self, name, dtype):
        return formula(name)

    def first_best(self, how, x):
        """Not by Keras, which counts −0 as less than 0."""
        return np.asarray(getattr(np, "arg" + how)(x, axis=1)).astype("int32")

    def sort(self, x, dtype):
        """Not of bfloat16: ml_dtypes sorts NaN anywhere."""
        return None if dtype == "bfloat16" else np.sort(x, axis=1, kind="stable")

    def order(self, x):
        """Not by Keras, which asks for no stable order."""
        return np.argsort(x, axis=1, kind="stable").astype("int32")

    def smallest_at(self, x, places):
        return np.partition(x, places, axis=-1)[..., places]

    def where(self, mask, x, y):
        """Not by Keras, which narrows 64 bits to 32."""
        return np.where(mask, x, y)

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        result = np.array(tensor)
        result[intervals(starts, counts)] = values
        return result


def formula(name):
    """The function on NumPy arrays: for literals, and for float64 on the numpy backend."""
    return _FORMULAS.get(name) or getattr(np, name, None)


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _erf(x):
    return np.vectorize(math.erf, otypes=["float64"])(x)


_FORMULAS: dict[str, Callable[..., Any]] = {
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": _erf,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
}


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
