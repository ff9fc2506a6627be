"""`.safetensors` files: the header's length in eight bytes, a JSON header, and the arrays one after the other.

The library `safetensors` does not give the offsets of the arrays, which an edit needs; so the format is read here.
"""

import hashlib
import json
import math
import os
import struct

from kpatch.checkpoint.arrays import BY_NAME, Array, Opaque
from kpatch.errors import FileError

LARGEST_HEADER = 100_000_000  # bytes; the library's limit
DTYPES = {
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    **{
        f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
UNKNOWN = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}  # bits
METADATA = "__metadata__"  # the header's key of the metadata
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def arrays(source, file):
    """The `Array`s of a file. The header is checked as strictly as the library `safetensors` checks it.

    Args:
        source: the `Source` of the file.
        file: the open file.

    Raises:
        FileError: the file is damaged.
    """
    length = os.fstat(file.fileno()).st_size
    start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    if size is None or size > min(LARGEST_HEADER, length - 8):
        raise FileError(f"'{source}' is not a .safetensors file, or is truncated")
    text = file.read(size)
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with a brace")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
        if METADATA in header and header[METADATA] is not None:
            _check_metadata(header[METADATA])
        found = [_array(source, name, item, 8 + size) for name, item in header.items() if name != METADATA]
        _check_places(found, 8 + size, length)
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"'{source}' is damaged: its header is invalid") from error
    return found


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries of one name")
    return found


def _no_number(text):
    raise ValueError(f"{text} is not JSON")


def _check_metadata(found):
    if type(found) is not dict or not all(type(value) is str for value in found.values()):
        raise ValueError("metadata are texts")


def _check_places(found, start, length):
    """Raises a `FileError` if the arrays do not fill the file one after the other."""
    at, before = start, None
    for array in sorted(found, key=lambda array: (array.offset, array.nbytes)):
        if array.offset < at:
            raise FileError(f"'{array.file}' is damaged: '{before}' and '{array.label}' overlap")
        if array.offset > at:
            raise FileError(f"'{array.file}' is damaged: there is a gap before '{array.label}'")
        at, before = at + array.nbytes, array.label
        if at > length:
            raise FileError(f"'{array.file}' is damaged: '{before}' {array.shape} {array.dtype} does not fit its place")
    if at != length:
        raise ValueError("bytes that belong to no array")


def metadata(path):
    """The metadata of a file; empty if it has none or is damaged."""
    try:
        with open(path, "rb") as file:
            [size] = struct.unpack("<Q", file.read(8))
            found = json.loads(file.read(size))[METADATA] if size <= LARGEST_HEADER else {}
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _array(source, name, item, data):
    dtype, shape = item["dtype"], tuple(item["shape"])
    start, end = item["data_offsets"]
    if type(dtype) is not str or type(item["shape"]) is not list or any(_is_no_size(n) for n in (start, end, *shape)):
        raise ValueError(name)
    keys, known = _keys(name), DTYPES.get(dtype)
    bits = 8 * BY_NAME[known].itemsize if known else UNKNOWN.get(dtype)
    if start > end or (bits is not None and 8 * (end - start) != math.prod(shape) * bits):
        raise FileError(f"'{source}' is damaged: '{name}' {shape} {known or dtype} does not fit its place")
    if known is None:
        return Opaque(keys, source, data + start, shape, dtype, label=name, length=end - start)
    return Array(keys, source, data + start, shape, known, label=name)


def _is_no_size(number):
    return type(number) is not int or not 0 <= number < 2**64


def _keys(name):
    """The chain of names: the parts between the slashes, or the dots; the whole name if one of them is empty."""
    parts = tuple(name.split("/" if "/" in name else "."))
    return parts if all(parts) else (name,)


def write(path, named, mark):
    """Writes arrays, given in blocks, and returns a digest of their bytes.

    Args:
        path: the file.
        named: tuples of a name, a dtype, a shape and the blocks.
        mark: the metadata, a dict of strings, to which the digest is added.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(_header(named, {**mark, "digest": shortened(digest)}))
        for *_, blocks in named:
            for _, block in blocks:
                digest.update(data := block.tobytes())
                file.write(data)
        file.seek(0)
        file.write(_header(named, {**mark, "digest": shortened(digest)}))  # of the same length
    return shortened(digest)


def shortened(digest):
    """The first 16 digits of a digest, enough to distinguish files."""
    return digest.hexdigest()[:16]


def _header(named, mark):
    header, at = {METADATA: mark}, 0
    for name, dtype, shape, _ in named:
        size = math.prod(shape) * BY_NAME[dtype].itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
