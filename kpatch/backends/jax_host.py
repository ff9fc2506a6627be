"""Entries of one jax array by NumPy, until compiling a function for them pays.

jax compiles a function for each shape, which takes tens of milliseconds; most patches are applied once. In the memory
of a CPU NumPy reads entries, and writes them into a copy of the array, at once and with the same bits. Each copy costs
time that grows with the array, so the work of one shape is compiled after a few times, and of large arrays at once.
"""

import jax
import numpy as np

from kpatch.backends import numpy as arrays
from kpatch.backends.jax_entries import on_one_device
from kpatch.indexing import Mask, Point, Positions, Region

BUDGET = 2**26  # bytes that are copied before work of one shape is compiled: about the time that this takes
OVERHEAD = 2**20  # bytes that could be copied in the time that any call takes
REMEMBERED = 2**12  # kinds of work whose copies are counted

_copied: dict = {}  # bytes by the kind of work


def serves(array, selection, *values):
    """Whether NumPy reads the entries, or writes the values; counts what it copies."""
    kind = type(selection)
    detail = None if kind is Point else _detail(selection)
    work = array.shape, array.dtype, kind, detail, len(values)
    copied = _copied.get(work, 0)
    if copied > BUDGET or not _is_on_host(array) or any(isinstance(each, jax.core.Tracer) for each in values):
        return False
    if len(_copied) >= REMEMBERED:
        _copied.clear()
    copies = array.nbytes + OVERHEAD
    _copied[work] = copied + copies
    return copies <= BUDGET


def take(array, selection):
    """The selected entries, for a `Mask` all entries: a new array."""
    return _placed(np.asarray(arrays.take(np.asarray(array), selection)), array)


def put(array, selection, values):
    """A new array, with values in the selected entries."""
    new = np.array(array, order="C")
    if type(selection) is Mask:
        selection = Mask(np.asarray(selection.mask, bool), selection.shape)
    arrays.put(new, selection, np.asarray(values, new.dtype))
    return _placed(new, array)


def operated(op, old, operand):
    """`old <op> operand`; `None` if XLA may compute other bits.

    They are others for denormals and NaN, in dtypes that XLA converts, and in a division by a number: XLA multiplies.
    """
    old = np.asarray(old)
    if op == "/" or old.dtype not in (np.float32, np.float64):
        return None
    operand = np.asarray(operand, old.dtype)
    with np.errstate(all="ignore"):
        new = arrays.OPERATORS[op](old, operand)
    return new if all(map(_is_normal, (old, operand, new))) else None


def _is_normal(values):
    size, limits = np.abs(values), np.finfo(values.dtype)
    return np.all((size >= limits.tiny) & (size <= limits.max) | (size == 0))


def _detail(selection):
    """What else of a selection a function is compiled for."""
    if type(selection) is Region:
        return selection.counts, selection.steps, selection.dropped
    return selection.size.bit_length() if type(selection) is Positions else None


def _is_on_host(array):
    return not isinstance(array, jax.core.Tracer) and on_one_device(array) and _platform(array) == "cpu"


def _platform(array):
    return next(iter(array.devices())).platform


def _placed(values, array):
    return jax.device_put(values, array.sharding if array._committed else None)
