"""The arrays of an HDF5 file as Keras writes it, and their places; every link and number is checked."""

import io
import math

from kpatch.checkpoint import heaps, legacy, packed
from kpatch.checkpoint.arrays import BY_NAME, Array
from kpatch.checkpoint.packed import ERRORS, Packed, Window
from kpatch.errors import FileError

MAX_DEPTH = 64  # groups in groups
MAX_OBJECTS = 2**20


def arrays(source, file, start=0, length=None):
    """The `Array`s of an HDF5 file, or of a part of a file that is one.

    Args:
        source: the `Source` of the file.
        file: the open file.
        start, length: the place of the part.

    Raises:
        FileError: the file is damaged or has links.
    """
    import h5py

    length = file.seek(0, io.SEEK_END) - start if length is None else length
    try:
        with Window(file, start, length) as window, h5py.File(window, "r") as opened:
            found = sorted(_walk(opened, source, start, length), key=_order)
            if legacy.is_one(opened):
                heaps.check(source, file, start, length)
                legacy.name(opened, found)
            return found
    except FileError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())
        raise FileError(f"'{source}' holds no readable HDF5 data: {reason}") from error


def _order(array):
    """The sort key: by name, numbers by value (`vars/2` before `vars/10`)."""
    return [(not key.isdecimal(), int(key) if key.isdecimal() else 0, key) for key in array.keys]


def _walk(file, path, start, length):
    import h5py

    stack: list[tuple] = [((), file)]
    seen = set()
    found: dict = {}  # by address: a dataset may have several names
    while stack:
        keys, group = stack.pop()
        for name in group:
            kind = group.get(name, getclass=True, getlink=True)
            shown = "/".join((*keys, name))
            if kind is not h5py.HardLink:
                raise FileError(f"'{path}' is refused: '{shown}' is a link to another place")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in found:
                _add_name(found[address], (*keys, name))
                continue
            if address in seen:
                raise FileError(f"'{path}' is refused: '{shown}' is in the file twice, or holds itself")
            seen.add(address)
            if len(keys) >= MAX_DEPTH or len(seen) > MAX_OBJECTS:
                raise FileError(f"'{path}' is refused: it holds more groups than a model has")
            if isinstance(item, h5py.Group):
                stack.append(((*keys, name), item))
            elif isinstance(item, h5py.Dataset) and (dtype := _dtype(item)) is not None:
                found[address] = _array((*keys, name), item, dtype, path, start, length)
    return found.values()


def _add_name(array, keys):
    """Gives an array a further name, of which the first in the order of names is its own."""
    array.keys, *others = sorted([keys, *array.chains])
    array.others = tuple(others)


def _dtype(dataset):
    """The dtype's name; `None` for strings and the like, and for a dataset without values.

    HDF5 has no bfloat16: Keras stores two bytes of no kind, and an attribute, whose text need not be read.
    """
    if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2 and "dtype" in dataset.attrs:
        return "bfloat16"
    return dataset.dtype.name if dataset.dtype.name in BY_NAME and dataset.shape is not None else None


def _array(keys, dataset, dtype, path, start, length):
    shape, offset = tuple(map(int, dataset.shape)), dataset.id.get_offset()
    nbytes = math.prod(shape) * BY_NAME[dtype].itemsize
    shown = "/".join(keys)
    if dataset.external or dataset.is_virtual:
        raise FileError(f"'{path}' is refused: '{shown}' keeps its values in other files")
    if offset is not None and offset + nbytes > length:
        raise FileError(f"'{path}' is damaged: '{shown}' {shape} {dtype} would reach beyond its end")
    if offset is None and nbytes > max(2**20, 1000 * dataset.id.get_storage_size()):
        raise FileError(f"'{path}' is refused: '{shown}' {shape} {dtype} is {nbytes} bytes large, with none stored")
    if not nbytes or (offset is not None and dataset.dtype.byteorder != ">"):
        return Array(keys, path, start + (offset or 0), shape, dtype)
    place = Packed(start, length, shown, dtype, _told(dataset))
    return Array(keys, path, None, shape, dtype, packed.refusal(dataset), packed=place)


def _told(dataset):
    """How an array is stored that h5py must decode."""
    if dataset.chunks:
        return "compressed or in chunks"
    return "in the byte order of another machine" if dataset.dtype.byteorder == ">" else "in the header of a dataset"
