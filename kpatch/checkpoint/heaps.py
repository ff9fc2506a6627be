"""The heaps of an HDF5 file, in which texts of any length lie.

libhdf5 reads a damaged heap for ever, so each heap is checked before a text is read.
"""

import mmap
import struct

from kpatch.errors import FileError

PIECE = 2**23  # bytes searched at a time
_MARK = b"GCOL"
_HEAD = struct.Struct("<4sB3xQ")  # the mark, the version, the size
_OBJECT = struct.Struct("<HH4xQ")  # its number, the number of references, the size


def check(source, file, start, length):
    """Raises a `FileError` if a heap of an open HDF5 file, or of a part of a file that is one, does not end.

    Args:
        source: the `Source` of the file.
        file: the open file.
        start, length: the place of the part.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = min(len(data), start + length)
        for at in _marks(data, start, end):
            if at + _HEAD.size <= end:
                _, version, size = _HEAD.unpack_from(data, at)
                if version == 1 and _HEAD.size < size <= end - at and not _ends(data, at + _HEAD.size, at + size):
                    raise FileError(f"'{source}' is damaged: a heap of texts in it does not end")


def _marks(data, start, end):
    """The places of the marks of heaps in a mapped file, of which little is held in memory at a time."""
    for piece in range(start, end, PIECE):
        stop = min(end, piece + PIECE + len(_MARK) - 1)
        at = data.find(_MARK, piece, stop)
        while at >= 0:
            yield at
            at = data.find(_MARK, at + len(_MARK), stop)
        if hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED)


def _ends(data, at, end):
    """Whether each object of a heap leads to the next one, up to the end."""
    while at + _OBJECT.size <= end:
        number, _, size = _OBJECT.unpack_from(data, at)
        step = size if number == 0 else _OBJECT.size + (size + 7) // 8 * 8
        if step == 0 or step > end - at:
            return False
        at += step
    return True
