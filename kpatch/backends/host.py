"""Entries under a mask, or at positions, and reductions in the memory of a CPU: by NumPy, whatever the backend.

A function of torch or TensorFlow takes longer to start, and to wake its threads, than NumPy to write a tensor that is
not large. A reduction starts ten of them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kpatch.backends import numpy as arrays
from kpatch.backends.base import Backend, OtherBitsError, Selection
from kpatch.backends.numpy_ops import ArrayOps
from kpatch.indexing import Mask, PackedMask, Positions

LISTED = (Mask, PackedMask, Positions)  # selections for which `put` is asked
REDUCED = 2**26  # bytes of the largest tensor that NumPy reduces
LARGEST = 2**22  # entries of a variable; of more of them several threads are faster


def kept(backend: Backend, variable: Any, selection: Selection) -> np.ndarray | None:
    """A copy of the entries at `Positions`; or `None`, and the caller reads them."""
    if _size(variable) > LARGEST:
        return None
    view = backend.view(backend.whole(variable))
    return None if view is None else arrays.take(view, selection)


def put(backend: Backend, variable: Any, selection: Selection, values: Any, donate: bool) -> bool:
    """Writes values into the variable's own memory; `False` if the caller must write them."""
    if not donate or not suits(variable, selection, values):
        return False
    memory = backend.memory(variable)
    if memory is None:
        return False
    arrays.put(memory.reshape(tuple(variable._value.shape)), selection, values)
    return True


def suits(variable: Any, selection: Selection, values: Any) -> bool:
    """Whether NumPy can write the values, and is faster."""
    return is_known(selection, values) and _size(variable) <= LARGEST


def is_known(selection: Selection, values: Any) -> bool:
    """Whether the values and the entries are arrays of NumPy."""
    known = type(selection) is not Mask or isinstance(selection.mask, np.ndarray)
    return known and isinstance(values, np.ndarray | np.generic)


def _size(variable):
    return math.prod(variable._value.shape)  # Keras makes the shape of a variable anew


# Reductions -----------------------------------------------------------------------------------------------------------


class Reducer(arrays.Numpy):
    """NumPy in place of a backend that flushes denormal numbers, for reductions.

    Sums have NumPy's roundings. The best of some entries is left to the backend if it is a zero or a denormal number:
    which zero is found, and whether a denormal number is one, is the backend's choice.

    Args:
        view: gives a tensor's memory as an array.
    """

    def __init__(self, view: Callable) -> None:
        self.ops = _ReducerOps()
        self._view = view

    def taken(self, x):
        return x if isinstance(x, np.ndarray | np.generic) else self._view(x)


class _ReducerOps(ArrayOps):
    def __init__(self) -> None:
        super().__init__()
        self.max, self.min = _best(np.max), _best(np.min)


def _best(function):
    def best(x, axis=None):
        found = function(x, axis=axis)
        if found.dtype.kind == "f" and np.any(np.abs(found) < np.finfo(found.dtype).tiny):
            raise OtherBitsError("")
        return found

    return best
