"""`Array`: an array in a file, and its place."""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kpatch.checkpoint import disk
from kpatch.checkpoint.disk import Source, read_at
from kpatch.errors import FileError
from kpatch.values.dtypes import NUMPY

BLOCK = 2**19  # bytes read, processed and written at a time, to stay in the processor's cache

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
BY_NAME = {**NUMPY, **{name: np.dtype(getattr(ml_dtypes, name)) for name in _FLOAT8}}


@dataclass(eq=False)
class Array:
    """An array in a file: the `variable` of a `Place`.

    Attributes:
        keys: its chain of names in the file.
        file: its `Source`.
        offset: the offset of its first byte, or `None` if its bytes are not stored contiguously in native form.
        shape, dtype: its shape, and the name of its dtype.
        refusal: the reason why it cannot be edited, or `None`.
        reader: the function that reads it from an open file if `offset` and `packed` are `None`.
        packed: its `packed.Packed` if h5py must decode it, else `None`.
        label: its name in the file as one text; else its keys are joined by `/`.
        called: a chain of names that is preferred to `keys`, or `None`.
        others: further chains of names.
        hidden: only a full chain of names means it, such as a slot of an optimizer.
    """

    keys: tuple
    file: Source
    offset: int | None
    shape: tuple
    dtype: str
    refusal: str | None = None
    reader: Any = field(default=None, repr=False)
    packed: Any = None
    label: str | None = None
    called: tuple | None = None
    others: tuple = ()
    hidden: bool = False

    @property
    def sources(self):
        return [self.file]

    @property
    def name(self):
        return self.keys[-1]

    @property
    def path(self):
        return self.label or "/".join(self.keys)

    @property
    def chains(self):
        """All chains of names, the preferred one first."""
        return (*([self.called] if self.called else []), self.keys, *self.others)

    @property
    def numpy(self):
        return BY_NAME[self.dtype]

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.numpy.itemsize

    def __array__(self, dtype=None, copy=None):
        return np.array(self.view(), dtype)

    def view(self, file=None):
        """The array, memory-mapped if its bytes are contiguous; read from `file`, of the same layout, if given."""
        if self.offset is not None and not self.size:
            return np.empty(self.shape, self.numpy)
        with self._failing(), file or self.file.open() as opened:
            if self.offset is None:
                return (self.reader or self.packed.whole)(opened)
            if disk.RENAMES_OPEN:
                return np.memmap(opened, self.numpy, "r", self.offset, self.shape).view(np.ndarray)
            values = np.fromfile(opened, self.numpy, self.size, offset=self.offset - opened.tell())
            return values.reshape(self.shape)

    @contextlib.contextmanager
    def _failing(self):
        try:
            yield
        except FileError:
            raise
        except (OSError, ValueError) as error:
            raise FileError(f"cannot read '{self.file}': {error}") from error

    def blocks(self):
        """The flat entries, one block at a time, as pairs of the number of the block's first entry and the block."""
        if self.offset is None and self.packed is None:
            yield from in_blocks(self.view())
            return
        step = BLOCK // self.numpy.itemsize
        with self.flat() as read:
            for start in range(0, self.size, step):
                yield start, read(start, min(step, self.size - start))

    @contextlib.contextmanager
    def flat(self, file=None):
        """A block with a function of a start and a count, which reads flat entries, fastest in their order.

        They are read from `file`, of the same layout, if given; else the file is checked at the end.
        """
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(file or self.file.open())
            with self._failing():
                packed = self.packed and stack.enter_context(self.packed.reader(opened))
            plain = self._reader(opened.fileno())

            def decoded(start, count):
                with self._failing():
                    return packed(start, count)

            yield plain if packed is None else decoded
            if file is None:
                self.file.check()

    def _reader(self, descriptor):
        size = self.numpy.itemsize

        def read(start, count):
            data = read_at(descriptor, count * size, self.offset + start * size)
            if len(data) < count * size:
                raise FileError(f"'{self.file}' is shorter than its header says")
            return np.frombuffer(data, self.numpy)

        return read


@dataclass(eq=False)
class Opaque(Array):
    """An array of a dtype that kpatch does not know, as its bytes. `dtype` is the format's own name.

    Attributes:
        length: the number of its bytes, which `size` counts: an entry may be less than a byte.
    """

    length: int = 0

    @property
    def numpy(self):
        return np.dtype("uint8")

    @property
    def size(self):
        return self.length

    def view(self, file=None):
        return Array(self.keys, self.file, self.offset, (self.length,), "uint8").view(file)


def reuse_blocks():
    """Has the C library keep the memory of a freed block for the next one.

    glibc gives large pieces back to the system, which then clears each page anew: a third of the time of a prune. It
    keeps pieces up to the largest one that was freed; the pages of this one are never touched.
    """
    _ = bytes(8 * BLOCK)


def in_blocks(values):
    """The entries of an array in memory, in the form of `Array.blocks`."""
    flat = np.ascontiguousarray(values).reshape(-1)
    step = BLOCK // flat.dtype.itemsize
    for start in range(0, flat.size, step):
        yield start, flat[start : start + step]


def as_bits(array):
    """The same memory as unsigned integers, which are equal if all bits are, NaN included."""
    return array.view(f"u{array.dtype.itemsize}")
