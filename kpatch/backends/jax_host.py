"""Entries of one jax array by NumPy, until compiling a function for them pays.

jax compiles a function for each shape, which takes tens of milliseconds; most patches are applied once. In the memory
of a CPU NumPy reads entries, and writes them into a copy of the array, at once and with the same bits. Each copy costs
time that grows with the array, so the work of one shape is compiled after a few times, and of large arrays at once.
"""

import contextlib
import functools
import itertools
import threading

import jax
import numpy as np

from kpatch.backends import numpy as arrays
from kpatch.backends.base import OtherBitsError
from kpatch.backends.host import REDUCED
from kpatch.backends.jax_entries import on_one_device
from kpatch.backends.jax_fused import NUMBER
from kpatch.backends.numpy_ops import ArrayOps
from kpatch.indexing import Mask, Point, Positions, Region

BUDGET = 2**26  # bytes that are copied before work of one shape is compiled: about the time that this takes
OVERHEAD = 2**20  # bytes that could be copied in the time that any call takes
OFTEN = 8  # edits that NumPy makes before one call is compiled for all their variables: that takes as long as fifty
BLOCK = 2**15  # entries that stay in the processor's cache
ALIGNMENT = 64  # bytes, of memory that jax takes over
SMALL = 2**12  # bytes that are copied in no time
REMEMBERED = 2**12  # kinds of work whose copies are counted

_copied: dict = {}  # bytes by the kind of work
_done: dict = {}  # by the kind of work the last edit that did it, and how many did
_edits = itertools.count()
_thread = threading.local()  # with the number of the edit that is under way


def serves(array, selection, *values):
    """Whether NumPy reads the entries, or writes the values; counts what it copies."""
    kind = type(selection)
    detail = None if kind is Point else _detail(selection)
    return pays((kind, detail, len(values)), array) and not any(isinstance(x, jax.core.Tracer) for x in values)


def pays(work, array):
    """Whether work on the array is done by NumPy rather than compiled; counts what it copies."""
    work = array.shape, array.dtype, work
    copied = _copied.get(work, 0)
    if copied > BUDGET or not is_on_host(array):
        return False
    if len(_copied) >= REMEMBERED:
        _copied.clear()
    copies = array.nbytes + OVERHEAD
    _copied[work] = copied + copies
    return copies <= BUDGET


@contextlib.contextmanager
def editing():
    """A block that is one edit; outside of such blocks each write is one."""
    _thread.edit = next(_edits)
    try:
        yield
    finally:
        _thread.edit = None


def comes_again(work, array):
    """Whether `OFTEN` edits before this one did that work, so that it is compiled; that of large arrays is at once."""
    if array.nbytes + OVERHEAD > BUDGET or not is_on_host(array):
        return True
    work = array.shape, array.dtype, work
    edit = getattr(_thread, "edit", None)
    last, times = _done.get(work, (None, 0))
    if last != edit or edit is None:
        if len(_done) >= REMEMBERED:
            _done.clear()
        times += 1
        _done[work] = edit, times
    return times > OFTEN


def reduces(x):
    """Whether NumPy reduces the tensor."""
    suits = isinstance(x, jax.Array) and x.dtype in (np.float32, np.int32, bool)
    return suits and is_on_host(x) and x.nbytes <= REDUCED


def take(array, selection):
    """The selected entries, for a `Mask` all entries: a new array."""
    return placed(taken(array, selection), array)


def taken(array, selection):
    """The same as an array of NumPy."""
    return np.asarray(arrays.take(np.asarray(array), selection))


def put(array, selection, values):
    """A new array, with values in the selected entries."""
    new = _own(array)
    if type(selection) is Mask:
        selection = Mask(np.asarray(selection.mask, bool), selection.shape)
    arrays.put(new, selection, np.asarray(values, new.dtype))
    return placed(new, array)


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


EXACT: tuple[str, ...] = ("+", "-", "*", "negative", "square", "abs", "where", "isnan", "isinf", "isfinite")
EXACT += ("logical_not", "logical_and", "logical_or", "==", "!=", "<", "<=", ">", ">=")
CHOICES = ("maximum", "minimum", "clip")  # of numbers, but not of zeros: of these with different signs XLA has its own


def agrees(operations, numbers):
    """Whether threads of NumPy that flush denormal numbers compute the bits of XLA, whatever the arrays hold."""

    def is_one(operand):
        kind, place = operand
        return kind == NUMBER and abs(numbers[place]) >= np.finfo(numbers[place].dtype).tiny

    def is_exact(op):
        bounds = op.operands[1:] if op.name == "clip" else op.operands
        checked = all if op.name == "clip" else any
        return op.name in EXACT or (op.name in CHOICES and checked(map(is_one, bounds)))

    return all(map(is_exact, operations))


class _Ops(ArrayOps):
    """NumPy's functions; of zeros with different signs XLA has its own choice."""

    def __init__(self):
        super().__init__()
        self.maximum, self.minimum = _choice(np.maximum), _choice(np.minimum)
        self.max, self.min = _best(np.max), _best(np.min)
        self.clip = lambda x, low, high: self.minimum(self.maximum(x, low), high)


def _choice(function):
    def choose(x, y):
        if not (_is_one(x) or _is_one(y)) and np.any((x == 0) & (y == 0) & (np.signbit(x) != np.signbit(y))):
            raise OtherBitsError("")
        return function(x, y)

    return choose


def _is_one(number):
    """Whether that is one number, and not zero."""
    return np.ndim(number) == 0 and number != 0


def _best(function):
    def best(x, axis=None):
        found = function(x, axis=axis)
        if np.any(found == 0) and len(np.unique(np.signbit(x[x == 0]))) > 1:
            raise OtherBitsError("")
        return found

    return best


class Interpreter(arrays.Numpy):
    """NumPy in place of compiled operations.

    XLA computes other bits for denormals and NaN: then it is left to compute.
    """

    ops = _Ops()

    def taken(self, x):
        """A tensor of jax as an array that is only read."""
        if isinstance(x, np.ndarray | np.generic):
            return x
        if not is_on_host(x):
            raise OtherBitsError("")
        return self.accepted(np.asarray(x))

    def accepted(self, x):
        if x.dtype.kind not in "biuf" or x.dtype == np.float16 or (x.dtype.kind == "f" and not _is_normal(x)):
            raise OtherBitsError("")
        return x


INTERPRETER = Interpreter()


def _is_normal(values):
    """Whether no entry is denormal, infinite or NaN."""
    flat, limits = values.reshape(-1), np.finfo(values.dtype)
    sizes, flags = np.empty(min(BLOCK, flat.size), flat.dtype), np.empty(min(BLOCK, flat.size), bool)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        size, flag = np.abs(block, out=sizes[: block.size]), flags[: block.size]
        few = np.count_nonzero(np.less(size, limits.tiny, out=flag))
        if few and few != np.count_nonzero(np.equal(size, 0, out=flag)):
            return False
        if not size.max() <= limits.max:
            return False
    return True


def _detail(selection):
    """What else of a selection a function is compiled for."""
    if type(selection) is Region:
        return selection.counts, selection.steps, selection.dropped
    return selection.size.bit_length() if type(selection) is Positions else None


def is_on_host(array):
    """Whether that is one array in the memory of a CPU."""
    return not isinstance(array, jax.core.Tracer) and on_one_device(array) and _platform(array) == "cpu"


def _platform(array):
    return next(iter(array.devices())).platform


def placed(values, array):
    """An array of NumPy as one of jax, where `array` is."""
    if values.nbytes > SMALL and _address(values) % ALIGNMENT:
        values = _own(values)
    put = _put()
    if put is not None and values.dtype == array.dtype and is_on_host(array):
        return put(
            _abstract(values.shape, values.dtype), array.sharding, [values], [*array.devices()], array._committed
        )
    return jax.device_put(values, array.sharding if array._committed else None)


@functools.cache
def _put():
    """What `device_put` calls in the end, without 50 µs of checks; or `None` if this jax has it otherwise."""
    try:
        from jax._src.lib import xla_client

        put = xla_client.batched_device_put
        values, like = _empty(np.zeros(SMALL, np.float32)), jax.device_put(np.zeros(1, np.float32))
        values[...] = 1
        made = put(_abstract(values.shape, values.dtype), like.sharding, [values], [*like.devices()], False)
        same = (made.shape, made.dtype, made.sharding) == (values.shape, values.dtype, like.sharding)
        return put if same and not (made._committed or made.weak_type) and bool((np.asarray(made) == 1).all()) else None
    except (ImportError, AttributeError, TypeError):
        return None


@functools.lru_cache(REMEMBERED)
def _abstract(shape, dtype):
    return jax.core.ShapedArray(shape, dtype)


def blank(array):
    """A new array of jax like another, and its memory to write; or `None` if jax copied it."""
    memory = _empty(array)
    new = placed(memory, array)
    return (new, memory) if new.unsafe_buffer_pointer() == _address(memory) else None


def _own(array):
    """A copy that jax takes over as it is, in the memory of a CPU: jax copies what is not aligned, more slowly."""
    new = _empty(array)
    new[...] = array
    return new


def _empty(array):
    """Aligned memory for an array like another."""
    dtype = np.dtype(array.dtype)
    memory = np.empty(array.size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -_address(memory) % ALIGNMENT
    return memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)


def _address(array):
    return array.__array_interface__["data"][0]
