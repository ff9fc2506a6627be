"""Where an array lies in a file."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError
from kpatch.values.dtypes import NUMPY

BLOCK = 2**19  # bytes that are read, looked at and written at a time: what stays in the processor's cache

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
BY_NAME = {**NUMPY, **{name: np.dtype(getattr(ml_dtypes, name)) for name in _FLOAT8}}


@dataclass(eq=False)
class Array:
    """An array in a file: the `variable` of a `Place`.

    Attributes:
        keys: its chain of names in the file.
        file: the `Source` that it is in.
        offset: of its first byte, or `None` where its bytes are not in a row as they are.
        shape, dtype: of the array; the dtype by its name.
        refusal: why it cannot be edited, or `None`.
        reader: gives the array of an open file where `offset` is `None`.
    """

    keys: tuple
    file: Source
    offset: int | None
    shape: tuple
    dtype: str
    refusal: str | None = None
    reader: Any = field(default=None, repr=False)

    @property
    def sources(self):
        return [self.file]

    @property
    def name(self):
        return self.keys[-1]

    @property
    def path(self):
        return "/".join(self.keys)

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
        """The array, read as its entries are looked at; from another open file of the same layout if one is given."""
        if self.offset is not None and not self.size:
            return np.empty(self.shape, self.numpy)
        try:
            with file or self.file.open() as opened:
                if self.offset is None:
                    return self.reader(opened)
                return np.memmap(opened, self.numpy, "r", self.offset, self.shape).view(np.ndarray)
        except FileError:
            raise
        except (OSError, ValueError) as error:
            raise FileError(f"cannot read '{self.file}': {error}") from error

    def blocks(self):
        """The array's entries in a row, a block at a time, each with the number of its first entry."""
        if self.offset is None:
            yield from in_blocks(self.view())
            return
        step = BLOCK // self.numpy.itemsize
        with self.file.open() as file:
            for start in range(0, self.size, step):
                count = min(step, self.size - start) * self.numpy.itemsize
                data = os.pread(file.fileno(), count, self.offset + start * self.numpy.itemsize)
                if len(data) < count:
                    raise FileError(f"'{self.file}' is shorter than it says")
                yield start, np.frombuffer(data, self.numpy)
            self.file.check()


def in_blocks(values):
    """The entries of an array in memory, as `Array.blocks` gives those of a file."""
    flat = np.ascontiguousarray(values).reshape(-1)
    step = BLOCK // flat.dtype.itemsize
    for start in range(0, flat.size, step):
        yield start, flat[start : start + step]


def as_bits(array):
    """The same memory as unsigned integers: equal where every bit is, NaN included."""
    return array.view(f"u{array.dtype.itemsize}")
