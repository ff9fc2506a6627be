"""`.safetensors` files: the header's length in eight bytes, a JSON header, and the arrays one after the other.

The library `safetensors` does not give the offsets of the arrays, which an edit needs; so the format is read here.
"""

import hashlib
import json
import math
import os
import struct

from kpatch.checkpoint.arrays import BY_NAME, Array
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
METADATA = "__metadata__"  # the header's key of the metadata
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def arrays(source, file):
    """The `Array`s of a file.

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
    try:
        header = json.loads(file.read(size))
        return [_array(source, name, item, 8 + size, length) for name, item in header.items() if name != METADATA]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"'{source}' is damaged: its header is invalid") from error


def metadata(path):
    """The metadata of a file; empty if it has none or is damaged."""
    try:
        with open(path, "rb") as file:
            [size] = struct.unpack("<Q", file.read(8))
            found = json.loads(file.read(size))[METADATA] if size <= LARGEST_HEADER else {}
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _array(path, name, item, data, length):
    dtype, shape = DTYPES.get(item["dtype"]), tuple(item["shape"])
    start, end = item["data_offsets"]
    keys = tuple(name.split("/") if "/" in name else name.split("."))
    if dtype is None:
        raise FileError(f"'{path}' holds '{name}' of {item['dtype']}, which is not part of the language")
    if any(type(n) is not int or n < 0 for n in (start, end, *shape)):
        raise ValueError(name)
    if end - start != math.prod(shape) * BY_NAME[dtype].itemsize or data + end > length:
        raise FileError(f"'{path}' is damaged: '{name}' {shape} {dtype} does not fit its place")
    return Array(keys, path, data + start, shape, dtype)


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
