"""The weights in a `.keras` archive: their place and that of their checksum."""

import os
import re
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from kpatch.errors import FileError

WEIGHTS = "model.weights.h5"
LARGEST_CONFIG = 2**26  # bytes of a config.json
LARGEST_UNPACKED = 2**28  # bytes of any entry, or else
LARGEST_RATIO = 100  # times its compressed bytes
VERIFIED = (
    2**24
)  # bytes: the checksum of weights up to this size is verified; a wrong one of larger weights stays wrong
COPIED = 2**20  # bytes copied at a time

_DRIVE = re.compile("[A-Za-z]:")  # a place on another drive of Windows
_LOCAL, _CENTRAL, _DESCRIPTOR = b"PK\3\4", b"PK\1\2", b"PK\7\x08"


@dataclass(frozen=True)
class Member:
    """A stored entry of an archive.

    Attributes:
        start, length: the place of its bytes in the file.
        crc: its checksum.
        fields: the offsets of the checksum in the file.
    """

    start: int
    length: int
    crc: int
    fields: tuple


def read(path, file):
    """The text of an archive's config.json, and the `Member` of its weights.

    Args:
        path: the archive's path, for errors.
        file: the open archive.

    Raises:
        FileError: the archive is damaged or dangerous, or its weights are compressed or encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            check(path, infos)
            known = {info.filename: info for info in infos}
            if "config.json" not in known or WEIGHTS not in known:
                raise FileError(f"'{path}' is not a Keras model: the archive lacks its config.json or its {WEIGHTS}")
            if known["config.json"].file_size > LARGEST_CONFIG:
                raise FileError(
                    f"'{path}' is refused: its config.json would unpack to more than {LARGEST_CONFIG} bytes"
                )
            config = archive.read("config.json").decode("utf-8")
            entry = _entry(path, file, archive.start_dir, known[WEIGHTS], infos)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise FileError(f"'{path}' is damaged: {' '.join(str(error).split())}") from error
    if entry.length <= VERIFIED:
        _verify(path, file, entry)
    return config, entry


def is_plain(path):
    """Whether the weights of an archive are stored uncompressed, so that they can be edited in place. Also true if the
    archive cannot be read; `read` then raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            known = {info.filename: info for info in archive.infolist()}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return True
    plain = WEIGHTS in known and known[WEIGHTS].compress_type == zipfile.ZIP_STORED
    return plain or not known.keys() & {WEIGHTS, "model.weights.npz"}


def check(path, infos):
    """Raises a `FileError` if entries of an archive lead out of it, are there twice, or unpack to far more."""
    names = [info.filename for info in infos]
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or _DRIVE.match(name):
            raise FileError(f"'{path}' is refused: its entry '{name}' leads out of the archive")
    if len(set(names)) < len(names):
        raise FileError(f"'{path}' is refused: it holds two entries of one name")
    for info in infos:
        if info.file_size > max(LARGEST_UNPACKED, LARGEST_RATIO * info.compress_size):
            raise FileError(f"'{path}' is refused: its {info.filename} would unpack to {info.file_size} bytes")


def _entry(path, file, directory, info, infos):
    """The `Member` of the weights in an open archive; `directory` is the offset of the archive's directory."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise FileError(
            f"the weights in '{path}' are compressed or encrypted, so they cannot be edited in place",
            notes=["Keras stores them plain: load the model and save it again"],
        )
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != _LOCAL:
        raise FileError(f"'{path}' is damaged: the header of {WEIGHTS} is not where the archive says")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    end = start + info.file_size
    if end > directory:
        raise FileError(f"'{path}' is damaged: {WEIGHTS} would reach beyond its place")
    fields = [_in_directory(path, file, directory, infos, info)]
    if info.flag_bits & 8:  # the checksum follows the bytes, with or without a signature before it
        file.seek(end)
        fields.append(end + 4 * (file.read(4) == _DESCRIPTOR))
    else:
        fields.append(info.header_offset + 14)
    for place in fields:
        file.seek(place)
        if file.read(4) != struct.pack("<I", info.CRC):
            raise FileError(f"'{path}' is damaged: it gives two checksums for {WEIGHTS}")
    return Member(start, info.file_size, info.CRC, tuple(fields))


def _in_directory(path, file, at, infos, wanted):
    """The offset of an entry's checksum in the archive's directory."""
    for info in infos:
        file.seek(at)
        header = file.read(46)
        if header[:4] != _CENTRAL:
            break
        if info is wanted:
            return at + 16
        at += 46 + sum(struct.unpack("<HHH", header[28:34]))
    raise FileError(f"'{path}' is damaged: its directory does not list {WEIGHTS}")


def _verify(path, file, entry):
    file.seek(entry.start)
    if zlib.crc32(file.read(entry.length)) != entry.crc:
        raise FileError(f"'{path}' is damaged: the checksum of {WEIGHTS} is wrong")


def rewrite(path, weights, out):
    """Writes an archive with the entries of another, and other weights."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "x") as new:
        new.comment = old.comment
        for info in old.infolist():
            entry = zipfile.ZipInfo(info.filename, info.date_time)
            for name in ("compress_type", "comment", "create_system", "external_attr", "internal_attr"):
                setattr(entry, name, getattr(info, name))
            with weights.open("rb") if info.filename == WEIGHTS else old.open(info) as source:
                entry.file_size = os.path.getsize(weights) if info.filename == WEIGHTS else info.file_size
                with new.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, COPIED)


class Checksum:
    """The CRC-32 of bytes, updated for replacements without reading the other bytes: the sum is linear.

    Example:
        >>> import zlib
        >>> old, new = b"the old bytes, and more", b"the new bytes, and more"
        >>> checksum = Checksum(zlib.crc32(old), len(old))
        >>> checksum.replace(4, b"old", b"new")
        >>> checksum.value == zlib.crc32(new)
        True
    """

    def __init__(self, value, length):
        self._value = value
        self._length = length
        self._difference, self._at = 0, 0  # the sum of the changes up to `_at`, not yet shifted to the end

    @property
    def value(self):
        return self._value ^ _shifted(self._difference, self._length - self._at)

    def replace(self, at, old, new):
        self.change(at, len(old), linear(np.frombuffer(old, "uint8") ^ np.frombuffer(new, "uint8")))

    def change(self, at, count, difference):
        """Updates the sum for `count` bytes: `difference` is the linear sum of the exclusive or of old and new ones."""
        end = at + count
        if end < self._at:  # backwards: the changes so far are shifted to the end of the bytes
            self._value, self._difference, self._at = self.value, 0, end
        self._difference = _shifted(self._difference, end - self._at) ^ difference
        self._at = end


def linear(data):
    """The sum without CRC-32's initial and final inversion, so that it is linear."""
    return zlib.crc32(data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def _times(a, b):
    """The product of two polynomials over GF(2) modulo CRC-32's polynomial; the highest power is in the lowest bit."""
    product, bit = 0, 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
        bit >>= 1
    return product


_POWERS = [0x00800000]  # x to the 8, 16, 32, ...: a shift by 1, 2, 4, ... bytes
while len(_POWERS) < 64:
    _POWERS.append(_times(_POWERS[-1], _POWERS[-1]))


def _shifted(value, count):
    """The sum of the same bytes followed by `count` zeros."""
    for power in _POWERS:
        if not count:
            break
        if count & 1:
            value = _times(power, value)
        count >>= 1
    return value
