"""Entries under a mask, or at positions, in the memory of a CPU: by NumPy, whatever the backend.

A function of torch or TensorFlow takes longer to start, and to wake its threads, than NumPy to write a tensor that is
not large.
"""

from typing import Any

import numpy as np

from kpatch.backends import numpy as arrays
from kpatch.backends.base import Backend, Selection
from kpatch.indexing import Mask, PackedMask, Positions

LISTED = (Mask, PackedMask, Positions)  # selections for which `put` is asked
LARGEST = 2**22  # entries of a variable; of more of them several threads are faster


def kept(backend: Backend, variable: Any, selection: Selection) -> np.ndarray | None:
    """A copy of the entries at `Positions`; or `None`, and the caller reads them."""
    if _size(variable) > LARGEST:
        return None
    view = backend.view(backend.whole(variable))
    return None if view is None else arrays.take(view, selection)


def put(backend: Backend, variable: Any, selection: Selection, values: Any, donate: bool) -> bool:
    """Writes values into the variable's own memory; `False` if the caller must write them."""
    if not donate or not isinstance(values, np.ndarray | np.generic):
        return False
    if type(selection) is Mask and not isinstance(selection.mask, np.ndarray):
        return False
    memory = backend.memory(variable) if _size(variable) <= LARGEST else None
    if memory is None:
        return False
    arrays.put(memory.reshape(tuple(variable.shape)), selection, values)
    return True


def _size(variable):
    return int(np.prod(tuple(variable.shape)))
