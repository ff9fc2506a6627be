"""Arrays of HDF5 files that are not stored as they are in memory: compressed, in chunks, in another byte order.

h5py decodes and encodes them. A patch edits a decoded copy of such an array, its twin; then each chunk that has changed
is encoded again. The memory of one row of chunks is enough, of which each chunk is decoded once.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpatch.checkpoint import archive
from kpatch.checkpoint.arrays import BLOCK, BY_NAME, Array, as_bits
from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError

# By their numbers, which libhdf5 registers: gzip, shuffle, fletcher32, szip, bzip2, lzf, blosc, lz4, bitshuffle, zstd
LOSSLESS = (1, 2, 3, 4, 307, 32000, 32001, 32004, 32008, 32015)
ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # h5py's forms of libhdf5's errors


class Window(io.RawIOBase):
    """A part of an open file as a file: an uncompressed entry of an archive."""

    def __init__(self, file, start, length):
        self._file = file
        self._start, self._length, self._at = start, length, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(frozen=True)
class Packed:
    """The place of an array that h5py decodes.

    Attributes:
        start, length: the place of the HDF5 file in its file.
        path: the dataset's name in it.
        dtype: the dtype's name.
        told: how the array is stored, for errors.
    """

    start: int
    length: int
    path: str
    dtype: str
    told: str

    @contextlib.contextmanager
    def dataset(self, file: Any) -> Iterator[Any]:
        """A block with the dataset in an open file."""
        import h5py

        with Window(file, self.start, self.length) as window, h5py.File(window, "r") as opened:
            yield opened[self.path]

    def whole(self, file: Any) -> np.ndarray:
        """All values, from an open file."""
        with self.dataset(file) as dataset:
            return _decoded(dataset[()], self.dtype)

    @contextlib.contextmanager
    def reader(self, file: Any) -> Iterator["Reader"]:
        """A block with the `Reader` of an open file."""
        with self.dataset(file) as dataset:
            yield Reader(dataset, self.dtype)


class Reader:
    """Flat entries of a dataset. It keeps the last row of chunks, so that reading in order decodes each chunk once."""

    def __init__(self, dataset: Any, dtype: str) -> None:
        self._dataset, self._dtype = dataset, dtype
        self._step = _rows(dataset)
        self._count = self._step * math.prod(dataset.shape[1:])
        self._row, self._values = -1, np.empty(0)

    def __call__(self, start: int, count: int) -> np.ndarray:
        """`count` entries from `start` on."""
        found = []
        while count:
            row, at = divmod(start, self._count)
            found.append(part := self._of_row(row)[at : at + count])
            start, count = start + len(part), count - len(part)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _of_row(self, row: int) -> np.ndarray:
        if row != self._row:
            index = slice(row * self._step, (row + 1) * self._step) if self._dataset.shape else ()
            self._values = np.empty(0)  # not two rows at a time
            self._values, self._row = _decoded(self._dataset[index], self._dtype).reshape(-1), row
        return self._values


def _rows(dataset: Any) -> int:
    """How many entries of the first axis are read at a time: those of whole chunks, of about a block."""
    if not dataset.shape:
        return 1
    least = dataset.chunks[0] if dataset.chunks else 1
    nbytes = least * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return least * max(1, BLOCK // nbytes)


def _decoded(values: Any, dtype: str) -> np.ndarray:
    values = np.asarray(values)
    return values.view(BY_NAME[dtype]) if dtype == "bfloat16" else values.astype(BY_NAME[dtype], copy=False)


def refusal(dataset: Any) -> str | None:
    """Why a dataset cannot be encoded again, or `None`."""
    import h5py

    created = dataset.id.get_create_plist()
    for number in range(created.get_nfilters()):
        code, _, _, name = created.get_filter(number)
        told = name.decode("utf-8", "replace") or code
        if code not in LOSSLESS:
            return f"its filter '{told}' does not keep every value"
        writes = h5py.h5z.FILTER_CONFIG_ENCODE_ENABLED
        if not h5py.h5z.filter_avail(code) or not h5py.h5z.get_filter_info(code) & writes:
            return f"its filter '{told}' cannot be written here"
    return None


@contextlib.contextmanager
def unpacked(arrays: Sequence[Array], folder: Path | None) -> Iterator[dict[Array, Array]]:
    """A block with the twin of each array, an `Array` of its values as they are in memory, in a file of the folder.

    Without arrays there need be no folder.
    """
    with contextlib.ExitStack() as stack:
        twins = {}
        for number, array in enumerate(arrays):
            assert folder is not None
            path = folder / f".kpatch-unpacked-{number}"
            stack.callback(path.unlink, missing_ok=True)
            with path.open("xb") as file:
                for _, block in array.blocks():
                    file.write(block.tobytes())
            source = Source(path)
            with source.parsed():
                twins[array] = Array(array.keys, source, 0, array.shape, array.dtype)
        yield twins


def repack(path: Path, entry: archive.Member | None, twins: Mapping[Array, Array]) -> None:
    """Encodes what has changed in twins of arrays of a file.

    Args:
        path: the file, or a copy of it.
        entry: the `archive.Member` that contains the arrays, or `None`.
        twins: the arrays and their twins.

    Raises:
        FileError: h5py cannot encode them.
    """
    with contextlib.nullcontext(path) if entry is None else archive.weights_of(path, entry) as weights:
        _encode(weights, twins)


def _encode(path: Path, twins: Mapping[Array, Array]) -> None:
    import h5py

    for array, twin in twins.items():
        assert array.packed is not None
        try:
            with h5py.File(path, "r+") as opened:
                _write(opened[array.packed.path], twin)
        except FileError:
            raise
        except ERRORS as error:
            reason = " ".join(str(error).split())
            raise FileError(f"cannot write '{array.path}' as '{array.file}' stores it: {reason}") from error


def _write(dataset: Any, twin: Array) -> None:
    """Writes the chunks of a dataset that differ from its twin."""
    with twin.flat(twin.file.real.open("rb")) as read:
        if not dataset.shape:
            _write_part(dataset, (), read(0, 1).reshape(()))
            return
        step, entries = _rows(dataset), math.prod(dataset.shape[1:])
        for start in range(0, dataset.shape[0], step):
            stop = min(start + step, dataset.shape[0])
            values = read(start * entries, (stop - start) * entries).reshape(stop - start, *dataset.shape[1:])
            for index in _chunks(dataset, start, stop):
                rows = slice(index[0].start - start, index[0].stop - start)
                inner = (rows, *index[1:])
                _write_part(dataset, index, values[inner])


def _chunks(dataset: Any, start: int, stop: int) -> Any:
    """The chunks from one entry of the first axis to another, as tuples of slices."""
    rows = (slice(start, stop), *(slice(0, length) for length in dataset.shape[1:]))
    return dataset.iter_chunks(rows) if dataset.chunks else [rows]


def _write_part(dataset: Any, index: tuple, values: np.ndarray) -> None:
    old = _decoded(dataset[index], values.dtype.name)
    if (as_bits(old) != as_bits(values)).any():
        dataset[index] = values.view(dataset.dtype) if dataset.dtype.kind == "V" else values
