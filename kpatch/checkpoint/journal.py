"""The bytes that an edit replaces, on the disk before it replaces them: what undoes an edit, begun or finished.

`.NAME.kpatch-journal` beside a file is an edit that has begun. It is read by the next command that opens the file, and
the old bytes are put back; renamed to `NAME.kpatch-undo` it is an edit that is done, and `kpatch undo` takes it back.

A journal is:

* a mark;
* where its whole records end, with a checksum of that number;
* the length and the checksum of a header of JSON, and the header: name, size and inode of each file;
* the records: number of the file, offset, how many bytes, the checksum of the new ones and of those in the first
  sector, the old ones, a checksum of all of that.

A journal gets its name with its first records in it. Later records are on the disk before the number that counts them,
as in SQLite, and the file is written after that. So a record behind the end is one whose bytes are untouched, and one
that is missing before the end is damage. Nothing is played back from a journal that is damaged, or into a file that
somebody else has written to.
"""

import functools
import json
import operator
import os
import shlex
import stat
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

from kpatch.checkpoint.disk import close, dress, sync, write_all
from kpatch.checkpoint.outputs import Output, begins
from kpatch.errors import FileError

MAGIC = b"kpatch journal 2\n"
_END = struct.Struct("<QI")  # where the whole records end, and the checksum of that
_HEADER = struct.Struct("<II")  # the header's length and checksum
_RECORD = struct.Struct("<HQIII")  # the file's number, the offset, the length, the checksums of the new bytes
_SUM = struct.Struct("<I")
LARGEST_HEADER = 2**24
SECTOR = 512  # bytes that are written as a whole, or not at all


def begun(path):
    """Where the journal of an edit of a file stands that has begun."""
    return path.with_name(f".{path.name}.kpatch-journal")


def done(path):
    """Where the journal of an edit stands that can be undone."""
    return path.with_name(f"{path.name}.kpatch-undo")


def output(path):
    """The `Output` that the kept journal of an edit of a file is."""
    return Output(done(path), own=begins(MAGIC), of=path)


class Journal:
    """A journal that is being written.

    Args:
        path: where it is to be: a durable one is there with its first records, another at once.
        files: pairs of the name and the `os.stat_result` of each file.
        durable: records are on the disk before `add` returns.
    """

    def __init__(self, path, files, durable):
        self.path = path
        self._durable = durable
        if durable:
            self._descriptor, aside = tempfile.mkstemp(prefix=".kpatch-", dir=path.parent)
            self._place = Path(aside)
        else:
            self._descriptor, self._place = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), path
        self._at = 0
        try:
            self._begin(files)
        except BaseException:
            self.close()
            self._place.unlink()
            raise

    def _begin(self, files):
        mode = functools.reduce(operator.and_, (state.st_mode for _, state in files), 0o666)
        dress(self._place, files[0][1], mode)
        header = json.dumps([{"name": name, "size": s.st_size, "inode": s.st_ino} for name, s in files]).encode()
        self._write(MAGIC + _end(0) + _HEADER.pack(len(header), zlib.crc32(header)) + header)

    @property
    def _named(self):
        return self._place == self.path

    def _write(self, data):
        write_all(self._descriptor, data, self._at)
        self._at += len(data)

    def add(self, replacements):
        """Enters replacements: tuples of the file's number, an offset, the old bytes and the new ones."""
        for number, offset, old, new in replacements:
            head = _RECORD.pack(number, offset, len(old), zlib.crc32(new), zlib.crc32(new[: first(offset)]))
            self._write(b"".join((head, old, _SUM.pack(zlib.crc32(old, zlib.crc32(head))))))
        if self._durable:
            self._count()

    def _count(self):
        """Says where the records end that are on the disk."""
        if self._named:
            os.fsync(self._descriptor)
        write_all(self._descriptor, _end(self._at), len(MAGIC))
        os.fsync(self._descriptor)
        if not self._named:
            os.replace(self._place, self.path)
            self._place = self.path
            sync(self.path.parent)

    def keep(self, path=None):
        """The edit is done: the journal is whole, and gets the name by which it is undone."""
        if not self._durable or not self._named:
            self._count()
        if path is not None:
            os.replace(self.path, path)
            self._place = self.path = path
            sync(path.parent)

    def drop(self):
        """Removes the journal: nothing is left to be undone."""
        self._place.unlink(missing_ok=True)
        sync(self.path.parent)

    def take_back(self, descriptors):
        """Puts the old bytes back in the files whose numbers and descriptors are given, and removes the journal."""
        if self._named:  # else no byte was replaced
            with os.fdopen(os.dup(self._descriptor), "rb") as file:  # which may have lost its name already
                file.seek(0)
                play(file, _contents(file).records, descriptors)
        self.drop()

    def close(self):
        close(self._descriptor)


def first(offset):
    """How many bytes from an offset on lie in its sector."""
    return SECTOR - offset % SECTOR


def _end(at):
    """The number that says where the whole records end."""
    number = struct.pack("<Q", at)
    return number + _SUM.pack(zlib.crc32(number))


def described(path, sources, descriptors):
    """Pairs as a `Journal` takes them: the name beside the path, and the state, of each file."""
    names = [path.name if source.real == path else source.path.name for source in sources]
    return list(zip(names, map(os.fstat, descriptors), strict=True))


class File(NamedTuple):
    """A file that a journal is about."""

    name: str
    size: int
    inode: int


class Record(NamedTuple):
    """A replacement, read back: the checksums of its new bytes, and the place of the old ones in the journal."""

    file: int
    offset: int
    length: int
    new_sum: int
    first_sum: int
    at: int


class Contents(NamedTuple):
    """What a journal says: its files, its records, and whether it ends with the last of them."""

    files: list
    records: list
    whole: bool


def read(journal, path):
    """The `Contents` of a journal of an edit of a file, of which every byte was checked.

    Raises:
        FileError: the journal is damaged.
    """
    try:
        if not stat.S_ISREG(journal.stat().st_mode):
            raise ValueError("it is no regular file")
        with journal.open("rb") as file:
            return _contents(file)
    except ValueError as error:
        raise damaged(journal, path, error) from error


def damaged(journal, path, why):
    return FileError(f"'{journal}', the journal of an edit of '{path}', is damaged: {why}", notes=[way_out(path)])


def way_out(path):
    """What to do about a journal that cannot be played back."""
    return f"'kpatch undo --discard {shlex.quote(str(path))}' removes the journal, and leaves the file as it is"


def _contents(file):
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise ValueError("it is empty")
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as a journal does")
    end = file.read(_END.size)
    files, records = _header(file), []
    number, at = _END.unpack(end)[0], file.tell()
    while (record := _record(file, files, size)) is not None:
        records.append(record)
        at = file.tell()
    counted = end == _end(number)  # else the process died while it wrote the number, with all of the records there
    if counted and at < number:
        raise ValueError("a record of it is damaged or missing")
    return Contents(files, records, counted and at == number == size)


def _header(file):
    head = file.read(_HEADER.size)
    length, sum_ = _HEADER.unpack(head) if len(head) == _HEADER.size else (0, None)
    text = file.read(min(length, LARGEST_HEADER))
    if zlib.crc32(text) != sum_:
        raise ValueError("its header is damaged")
    try:
        files = [File(**each) for each in json.loads(text)]
        good = files and all(_is_name(each.name) and each.size + each.inode >= 0 for each in files)
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise ValueError("its header does not say which files it is of")
    return files


def _is_name(name):
    return Path(name).name == name and name not in ("", "..")


def _record(file, files, size):
    """The next record, or `None` where the whole ones end."""
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    number, offset, length, new_sum, first_sum = _RECORD.unpack(head)
    at = file.tell()
    if at + length + _SUM.size > size:
        return None
    sum_, left = zlib.crc32(head), length
    while left and (part := file.read(min(left, 2**20))):
        sum_, left = zlib.crc32(part, sum_), left - len(part)
    if file.read(_SUM.size) != _SUM.pack(sum_):
        return None
    if number >= len(files) or offset + length > files[number].size:
        raise ValueError("a record of it lies outside of the file")
    return Record(number, offset, length, new_sum, first_sum, at)


def play(file, records, descriptors):
    """Writes the old bytes of records, the last first, from an open journal."""
    for record in reversed(records):
        file.seek(record.at)
        write_all(descriptors[record.file], file.read(record.length), record.offset)
    for descriptor in descriptors.values():
        os.fsync(descriptor)
