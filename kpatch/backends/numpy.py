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

BLOCK = 2**15  # entries that stay in the processor's cache
BITS = {4: np.int32, 8: np.int64}  # integers by the bytes of a number
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
        _put_under(array, selection.mask, np.asarray(values, array.dtype))
    elif kind is PackedMask:
        _put_packed(array, selection.mask, values)
    else:
        entries, places = _places(array, selection)
        entries[places] = np.broadcast_to(values, selection.shape).reshape(-1)


def packed(array, mask):
    """The entries under a mask, in a row."""
    if not _is_mixed(array, mask):
        return array[mask]
    flat, at, found = array.reshape(-1), 0, np.empty(np.count_nonzero(mask), array.dtype)
    for part, places in _places_under(mask):
        found[at : at + len(places)] = flat[part][places]
        at += len(places)
    return found


def _put_packed(array, mask, values):
    if not _is_mixed(array, mask):
        array[mask] = values
        return
    flat, at = array.reshape(-1), 0
    for part, places in _places_under(mask):
        flat[part][places] = values[at : at + len(places)]
        at += len(places)


def _is_mixed(array, mask):
    """Whether indices are faster than a mask, at which the processor guesses wrong if it is neither sparse nor full."""
    return _lies_as(array, mask) and 0.05 < np.count_nonzero(mask) / max(1, mask.size) < 0.85


def _places_under(mask):
    """Slices of a mask that stay in the cache, and where it is true in each."""
    flat = mask.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        part = slice(start, start + BLOCK)
        yield part, np.flatnonzero(flat[part])


def _put_under(array, mask, values):
    """One number by logic on bits, unless it is for few entries: NumPy's own way jumps at each of them."""
    bits = values.ndim == 0 and array.itemsize in BITS and _lies_as(array, mask)
    if not bits or np.count_nonzero(mask) * 64 <= array.size:
        np.copyto(array, values, where=mask)
        return
    flat, flags = array.reshape(-1), mask.reshape(-1)
    memory = [np.empty(min(BLOCK, flat.size), np.int64) for _ in range(2)]
    for start in range(0, flat.size, BLOCK):
        part = slice(start, start + BLOCK)
        choose(flags[part], values[()], flat[part], flat[part], memory)


def choose(mask, x, y, out, memory):
    """`x` where the mask is true, else `y`, by logic on bits, which is three times as fast as NumPy's choice.

    Args:
        mask: a flat array of booleans.
        x: a number or a flat array; so is `y`.
        out: a flat array of their dtype, of 4 or 8 bytes; it may be one of the operands.
        memory: two arrays of 64-bit integers, as long as `out` or longer.
    """
    whole, flags = BITS[out.itemsize], mask.view(np.int8)
    chosen, other = (each.view(whole)[: out.size] for each in memory)
    x, y, result = x.view(whole), y.view(whole), out.view(whole)
    if not np.ndim(x) and not x:  # no bit is set
        np.copyto(chosen, np.subtract(flags, 1))
        np.bitwise_and(chosen, y, out=result)
    else:
        np.copyto(chosen, np.negative(flags))
        np.bitwise_and(chosen, np.bitwise_xor(x, y, out=other), out=chosen)
        np.bitwise_xor(chosen, y, out=result)
    return out


def _lies_as(array, mask):
    """Whether entries of the array and of a mask of booleans lie in one order, without gaps."""
    return mask.dtype == bool and mask.shape == array.shape and mask.flags.c_contiguous and array.flags.c_contiguous


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
