"""Arrays of HDF5 files that are not stored as they are in memory: compressed, in chunks, in another byte order.

h5py decodes and encodes them. A patch edits a decoded copy of such an array, its twin; then each chunk that has changed
is encoded again. The memory of one row of chunks is enough, of which each chunk is decoded once.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpatch.checkpoint import archive, heaps
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
            found = opened[self.path]
            _check_chunks(found, self.length)
            yield found

    def whole(self, file: Any) -> np.ndarray:
        """All values, from an open file."""
        with self.dataset(file) as dataset:
            return _decoded(dataset[()], self.dtype)

    @contextlib.contextmanager
    def reader(self, file: Any) -> Iterator["Reader"]:
        """A block with the `Reader` of an open file."""
        with self.dataset(file) as dataset:
            yield Reader(dataset, self.dtype)


def _check_chunks(dataset: Any, length: int) -> None:
    """Raises a `ValueError` if a chunk is not in the file, or so short that libhdf5 would crash."""
    least = 5 if dataset.fletcher32 else 1

    def check(chunk: Any) -> None:
        if chunk.size < least or chunk.byte_offset + chunk.size > length:
            raise ValueError(f"a chunk of '{dataset.name[1:]}' is not in it")

    if dataset.chunks:
        dataset.id.chunk_iter(check)


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
    return least * max(1, BLOCK // max(1, nbytes))


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

    The HDF5 file is written anew from what it holds, since libhdf5 crashes if it writes into a damaged one.

    Args:
        path: the file, or a copy of it.
        entry: the `archive.Member` that contains the arrays, or `None`.
        twins: the arrays and their twins.

    Raises:
        FileError: h5py cannot encode them.
    """
    import h5py

    name = next(iter(twins)).file
    fresh, whole = (path.with_name(f".kpatch-{part}") for part in ("weights", "archive"))
    start, length = (0, path.stat().st_size) if entry is None else (entry.start, entry.length)
    try:
        with path.open("rb") as file:
            heaps.check(name, file, start, length)
            with Window(file, start, length) as window, h5py.File(window, "r") as old, h5py.File(fresh, "x") as new:
                _copy(old, new)
                for array, twin in twins.items():
                    _write(new[array.packed.path], twin)
        if entry is not None:
            archive.rewrite(path, fresh, whole)
        os.replace(fresh if entry is None else whole, path)
    except FileError:
        raise
    except ERRORS as error:
        if number := getattr(error, "errno", None):  # a full disk, say
            raise OSError(number, os.strerror(number)) from error
        raise FileError(f"cannot encode the arrays of '{name}' again: {' '.join(str(error).split())}") from error
    finally:
        for each in (fresh, whole):
            each.unlink(missing_ok=True)


def _copy(old: Any, new: Any) -> None:
    """Copies all that an open HDF5 file holds to another. Chunks are not decoded; what has several names keeps them."""
    import h5py

    copied: dict[int, Any] = {}  # by address
    groups = [(old, new)]
    _copy_attributes(old, new)
    while groups:
        group, target = groups.pop()
        for name in group:
            item, key = group[name], name.encode("utf-8", "surrogateescape")
            address = h5py.h5o.get_info(item.id).addr
            if address in copied:
                target[name] = copied[address]
                continue
            if isinstance(item, h5py.Group):
                made = h5py.h5g.create(target.id, key, gcpl=_created(item))
                groups.append((item, h5py.Group(made)))
                _copy_attributes(item, groups[-1][1])
            elif isinstance(item, h5py.Dataset):
                _copy_dataset(item, target, key)
            else:
                target[name] = item.dtype
            copied[address] = target[name]


def _created(item: Any) -> Any:
    """How an object was created, without the time, so that a patch makes the same bytes each time."""
    created = item.id.get_create_plist()
    created.set_obj_track_times(False)
    return created


def _copy_dataset(old: Any, target: Any, key: bytes) -> None:
    """Copies a dataset to a group: its chunks as they are stored, other values by rows."""
    import h5py

    if old.external or old.is_virtual:
        raise FileError(f"'{old.name}' keeps its values in other files")
    new = h5py.Dataset(h5py.h5d.create(target.id, key, old.id.get_type().copy(), old.id.get_space(), _created(old)))
    _copy_attributes(old, new)
    if old.chunks:
        places: list[Any] = []
        old.id.chunk_iter(places.append)
        for place in places:
            mask, data = old.id.read_direct_chunk(place.chunk_offset)
            new.id.write_direct_chunk(place.chunk_offset, data, mask)
    elif old.shape == ():
        new[()] = old[()]
    elif old.shape:  # else it has no values
        for start in range(0, old.shape[0], step := _rows(old)):
            new[start : start + step] = old[start : start + step]


def _copy_attributes(old: Any, new: Any) -> None:
    for name, value in old.attrs.items():
        known = old.attrs.get_id(name)
        new.attrs.create(name, value, shape=known.shape, dtype=known.dtype)


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
