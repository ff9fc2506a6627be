"""The bytes that an edit replaces, on the disk before it replaces them: what undoes an edit, begun or finished.

`.NAME.kpatch-journal` beside a file is an edit that has begun. It is read by the next command that opens the file, and
the old bytes are put back; renamed to `NAME.kpatch-undo` it is an edit that is done, and `kpatch undo` takes it back.

A journal is a line of JSON that names the files, and then records: which file, at which offset, how many bytes, the
checksums of the old and of the new ones, the old ones, and a checksum of it all. A torn last record is one whose bytes
had not been touched yet.
"""

import contextlib
import json
import os
import struct
import zlib
from pathlib import Path

from kpatch.errors import FileError, UndoError
from kpatch.files import sync

MAGIC = b"kpatch journal 1 "
_HEAD = struct.Struct("<HQIII")


def begun(path):
    """Where the journal of an edit of a file stands that has begun."""
    return path.with_name(f".{path.name}.kpatch-journal")


def done(path):
    """Where the journal of an edit stands that can be undone."""
    return path.with_name(f"{path.name}.kpatch-undo")


class Journal:
    """A journal that is being written.

    Args:
        path: where it is.
        files: the paths of the files that it is about, in its directory.
        durable: each record is on the disk before `add` returns.
    """

    def __init__(self, path, files, durable):
        self.path = path
        self.files = {file: number for number, file in enumerate(files)}
        self.durable = durable
        self._file = path.open("wb")
        header = [{"name": file.name, "size": file.stat().st_size, "inode": file.stat().st_ino} for file in files]
        self._file.write(MAGIC + json.dumps(header).encode() + b"\n")
        self._listed = False

    def add(self, replacements):
        """Enters replacements: tuples of a file, an offset, the old bytes and the new ones."""
        for file, offset, old, new in replacements:
            head = _HEAD.pack(self.files[file], offset, len(old), zlib.crc32(old), zlib.crc32(new))
            self._file.write(head)
            self._file.write(old)
            self._file.write(struct.pack("<I", zlib.crc32(old, zlib.crc32(head))))
        if self.durable:
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._listed:
                sync(self.path.parent)
                self._listed = True

    def close(self):
        self._file.close()


class Record:
    """A replacement, read back."""

    def __init__(self, file, offset, length, old_sum, new_sum, at):
        self.file = file
        self.offset = offset
        self.length = length
        self.old_sum = old_sum
        self.new_sum = new_sum
        self.at = at  # where in the journal the old bytes are


def read(path):
    """What a journal says of its files, and its whole records; `(None, [])` where it was torn before the first."""
    with path.open("rb") as file:
        line = file.readline(2**24)
        if not line.startswith(MAGIC) or not line.endswith(b"\n"):
            return None, []
        files, records = json.loads(line[len(MAGIC) :]), []
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            number, offset, length, old_sum, new_sum = _HEAD.unpack(head)
            at = file.tell()
            if at + length + 4 > os.fstat(file.fileno()).st_size:
                break
            sum_, left = zlib.crc32(head), length
            while left:
                part = file.read(min(left, 2**20))
                sum_, left = zlib.crc32(part, sum_), left - len(part)
            if file.read(4) != struct.pack("<I", sum_):
                break
            records.append(Record(number, offset, length, old_sum, new_sum, at))
    return files, records


def recover(path):
    """Puts the old bytes back where an edit of the file was cut off; says whether there was one.

    Raises:
        FileError: the journal is of another file, or the edit is still going on.
    """
    journal = begun(path)
    if not journal.exists():
        return False
    with lock(path):
        if not journal.exists():  # it ended just now
            return False
        roll_back(path)
    return True


def roll_back(path):
    """Puts the old bytes back of an edit that has begun; whoever calls this holds the lock."""
    journal = begun(path)
    files, records = read(journal)
    for record in reversed(records):
        _restore(path, journal, files[record.file], record)
    for each in files if records else ():
        sync(path.parent / each["name"])
    journal.unlink()
    sync(path.parent)


def _restore(path, journal, each, record):
    file = path.parent / Path(each["name"]).name
    state = file.stat() if file.exists() else None
    if state is None or (state.st_size, state.st_ino) != (each["size"], each["inode"]):
        raise FileError(
            f"'{journal}' is of an edit that was cut off, and '{file}' has been replaced since",
            notes=["if the file is as you want it, delete the journal"],
        )
    with journal.open("rb") as source, file.open("r+b") as target:
        source.seek(record.at)
        write_all(target.fileno(), source.read(record.length), record.offset)


def replacements(path, journal):
    """What undoes an edit: tuples of a file, an offset and the old bytes, the last first, each checked as it is met.

    Raises:
        UndoError: the bytes are no longer those that the edit wrote.
    """
    files, records = read(journal)
    for record in reversed(records):
        file = path.parent / Path(files[record.file]["name"]).name
        with file.open("rb") as target, journal.open("rb") as source:
            if zlib.crc32(os.pread(target.fileno(), record.length, record.offset)) != record.new_sum:
                raise UndoError(f"'{file}' has changed since the edit that '{journal}' undoes")
            source.seek(record.at)
            yield file, record.offset, source.read(record.length)


@contextlib.contextmanager
def lock(path):
    """One edit at a time of a file, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"'{path}' is being edited by another process") from None
        yield


def write_all(descriptor, data, offset):
    """Writes bytes at an offset: all of them, or an `OSError`."""
    data = memoryview(data)
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
