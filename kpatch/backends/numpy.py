"""The numpy backend, and reads and writes of plain arrays.

Other objects can refer to a variable's array: `variable.value` returns it, `keras.Variable(other)` shares it. By the
reference count it is written in place if only the variable refers to it, else copied once.
"""

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from kpatch.backends.base import Backend, intervals
from kpatch.backends.numpy_ops import ArrayOps
from kpatch.indexing import Mask, PackedMask, Point, Region

OPERATORS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide}


class Numpy(Backend):
    """Keras's numpy backend: its tensors are arrays. It needs Keras for few functions, and loads it for these."""

    name = "numpy"
    ops = ArrayOps()
    arrays_are_tensors = True
    sorts_nan_last = True
    lengths_stay_unknown = False

    def read(self, variable, selection):
        return take(variable._value, selection)

    def snapshot(self, x):
        return np.array(x)

    def write(self, variable, selection, values, donate=True):
        array = _writable(variable, donate, whole=type(selection) is Region and selection.full)
        put(array, selection, values)
        variable._value = array

    def prepare(self, variable, selection, array):
        array = np.asarray(array, variable._value.dtype)
        return array.reshape(())[()] if type(selection) is Point else array

    def update(self, variable, region, op, old, operand):
        array = _writable(variable, donate=True)
        with np.errstate(all="ignore"):  # infinity and NaN are valid results, as on the other backends
            OPERATORS[op](old, np.asarray(operand, array.dtype), out=_view(array, region))
        variable._value = array

    def whole(self, variable):
        return variable._value

    def take_over(self, variable, values):
        old, variable._value = variable._value, np.asarray(values, order="C")
        return old

    def give_back(self, variable, values):
        """Only if nothing else refers to the array. While a record does, too, the next edit writes into a copy."""
        if _references_to(values) != GIVEN or not _owns(values):
            return None
        variable._value = values
        return values

    def view(self, tensor):
        return tensor if tensor.flags.c_contiguous else None

    def memory(self, variable):
        array = variable._value if _is_private(variable) else None
        return array.reshape(-1) if array is not None and array.flags.c_contiguous else None

    def holds(self, condition):
        return bool(condition())

    def distinguish(self, key):
        """Nothing is compiled."""
        return True

    def wide(self, name, dtype):
        return formula(name)

    def erfc(self, x):
        return np.vectorize(math.erfc, otypes=["float64"])(x).astype(x.dtype)

    def power(self, x, y):
        """NumPy takes the square root if the exponent is 0.5: NaN of −infinity, and −0 of −0."""
        return np.where(x == -np.inf, np.abs(x), x**y + x.dtype.type(0)) if np.ndim(y) == 0 and y == 0.5 else x**y

    def first_best(self, how, x):
        """Not Keras's function, which orders −0 before 0."""
        return np.asarray(getattr(np, "arg" + how)(x, axis=1)).astype("int32")

    def sort(self, x, dtype):
        """`None` for bfloat16, in which NumPy does not sort NaN last."""
        return None if dtype == "bfloat16" else np.sort(x, axis=1, kind="stable")

    def order(self, x):
        """Not Keras's function, which is not stable."""
        return np.argsort(x, axis=1, kind="stable").astype("int32")

    def smallest_at(self, x, places):
        return np.partition(x, places, axis=-1)[..., places]

    def where(self, mask, x, y):
        """Not Keras's function, which narrows 64 bits to 32."""
        return np.where(mask, x, y)

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        result = np.array(tensor)
        result[intervals(starts, counts)] = values
        return result


def formula(name):
    """The function `name` of NumPy arrays, for literals and for float64 on the numpy backend; or `None`."""
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
    """A copy of the selected entries of an array; for a `Mask`, of all entries."""
    kind = type(selection)
    if kind is Point:
        return array[selection.index]  # a NumPy scalar: immutable, and made in 40 ns
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
    elif kind is PackedMask:
        array[selection.mask] = values
    else:
        entries, places = _places(array, selection)
        entries[places] = np.broadcast_to(values, selection.shape).reshape(-1)


def _view(array, region):
    index = (*region.slices, ...)  # with `...`, integers alone give an array too
    return array[index]


def _places(array, positions):
    """A view of the array, and the index of the positions in it."""
    if array.flags.c_contiguous:
        return array.reshape(-1), positions.flat
    return array, positions.coordinates(array.shape)


def _writable(variable, donate, whole=False):
    """The variable's own array if it is private, else a copy, which the caller sets when it is complete.

    If all of it is written, as `whole` says, the new array is empty.
    """
    if donate and _is_private(variable):
        return variable._value
    array = variable._value
    return np.empty(array.shape, array.dtype) if whole else np.array(array, order="C")


def _is_private(variable):
    if _references(variable) != ALONE:
        return False
    return _owns(variable._value)


def _owns(array):
    """Whether the array's memory is its own, and may be written."""
    return array.base is None and array.flags.owndata and array.flags.writeable


def _references(variable):
    return sys.getrefcount(variable._value)


def _references_to(values):
    return sys.getrefcount(values)


class _Probe:
    def give_back(self, variable, values):
        return _references_to(values)


# The value of `_references` if only the variable refers to the array; it depends on the version of Python.
ALONE = _references(SimpleNamespace(_value=np.empty(1)))
_record = SimpleNamespace(before=np.empty(1))
GIVEN = _Probe().give_back(None, _record.before)  # that of `_references_to` if only a record refers to the array
