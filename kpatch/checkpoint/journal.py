"""The undo journal of an edit in place: the old bytes, on the disk before they are replaced.

* `.NAME.kpatch-journal` beside a file is the journal of an edit in progress. If it is left behind, the next command
  that opens the file restores the old bytes. (`.NAME.kpatch-journal-new` is one without records; it means nothing.)
* After the edit it is renamed to `NAME.kpatch-undo` for `kpatch undo`, that of the next edit to `NAME.kpatch-undo-2`,
  and so on.

A journal consists of:

* a mark;
* the offset of the end of its complete records, with a checksum;
* the length and the checksum of a JSON header, and the header: name, size and inode of each file, the patch, the time;
* the records: number of the file, offset, length, checksum of the new bytes, checksum of the new bytes in the first
  sector, the old bytes, checksum of the record.

The journal gets its name when its first records are on the disk. As in SQLite, later records are on the disk before the
end is updated, and the file is written after that. So the bytes of a record behind the end are not replaced yet, and a
missing record before the end is damage. A damaged journal is never played back, nor any journal into a file that
another program has changed.
"""

import contextlib
import functools
import json
import operator
import os
import re
import shlex
import stat
import struct
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from kpatch.checkpoint import disk
from kpatch.checkpoint.disk import BINARY, close, dress, sync, write_all
from kpatch.checkpoint.outputs import Output, begins
from kpatch.errors import FileError

MAGIC = b"kpatch journal 4\n"  # not 3, which is one bit from 2
BEFORE = b"kpatch journal 2\n"  # of kpatch 0.2: its header is the list of files alone
_END = struct.Struct("<QI")  # the end of the complete records, and its checksum
_HEADER = struct.Struct("<II")  # the header's length and checksum
_RECORD = struct.Struct("<HQIII")  # the file's number, the offset, the length, the checksums of the new bytes
_SUM = struct.Struct("<I")
MARKS = (MAGIC, BEFORE)
LARGEST_HEADER = 2**24
BY_HAND = "move it away by hand: kpatch removes only what it wrote"
FOREIGN, CUT = "it does not begin like a journal", "it does not end like a journal"
LONGEST_PATCH = 2**16  # characters of a patch that are kept
SECTOR = 512  # bytes that the disk writes atomically


def begun(path):
    """The path of the journal of a file's edit in progress."""
    return path.with_name(f".{path.name}.kpatch-journal")


def fresh(path):
    """The path of the journal of an edit that has not written yet."""
    return path.with_name(f".{path.name}.kpatch-journal-new")


def done(path, number=1):
    """The path of the journal of a file's finished edit, for `undo`; the last has the highest number."""
    return path.with_name(f"{path.name}.kpatch-undo" + (f"-{number}" if number > 1 else ""))


def history(path):
    """The journals of a file's finished edits by their numbers, the earliest first."""
    ours = re.compile(re.escape(done(path).name) + r"(?:-([1-9]\d{0,8}))?")
    with os.scandir(path.parent) as entries:
        found = [match for entry in entries if (match := ours.fullmatch(entry.name))]
    return {number: done(path, number) for number in sorted(int(match[1] or 1) for match in found)}


def output(path, number=1):
    """The `Output` of the journal of a file's finished edit."""
    return Output(done(path, number), own=begins(MAGIC[: MAGIC.rindex(b" ")]), of=path)


class Journal:
    """A journal that is being written.

    Args:
        path: its path. A durable journal gets it with its first records, another journal immediately.
        files: pairs of the name and the `os.stat_result` of each file.
        patch: the text of the patch.
        place: where it is until its first records are on the disk; `None` is `path`, and then `add` does not wait for
            the disk.
        void: it undoes nothing once it is complete: it takes the place of a journal that was played back, so that
            both end at one moment.
    """

    def __init__(self, path, files, patch="", place=None, void=False):
        self.path = path
        self._durable = place is not None
        self._place = place or path
        self._descriptor = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
        self._at = 0
        try:
            self._begin(files, patch, void)
        except BaseException:
            self.close()
            self._place.unlink()
            raise

    def _begin(self, files, patch, void):
        mode = functools.reduce(operator.and_, (state.st_mode for _, state in files), 0o666)
        dress(self._place, files[0][1], mode)
        described = [{"name": name, "size": s.st_size, "inode": s.st_ino} for name, s in files]
        header = {"files": described, "patch": patch[:LONGEST_PATCH], "time": time.time(), "void": void}
        text = json.dumps(header).encode()
        self._write(MAGIC + _end(0) + _HEADER.pack(len(text), zlib.crc32(text)) + text)

    @property
    def _named(self):
        return self._place == self.path

    def _write(self, data):
        write_all(self._descriptor, data, self._at)
        self._at += len(data)

    def add(self, replacements):
        """Adds replacements: tuples of the file's number, the offset, the old bytes and the new bytes."""
        for number, offset, old, new in replacements:
            head = _RECORD.pack(number, offset, len(old), zlib.crc32(new), zlib.crc32(new[: first(offset)]))
            self._write(b"".join((head, old, _SUM.pack(zlib.crc32(old, zlib.crc32(head))))))
        if self._durable:
            self._count()

    def _count(self):
        """Updates the end of the complete records, once they are on the disk."""
        if self._named:
            os.fsync(self._descriptor)
        write_all(self._descriptor, _end(self._at), len(MAGIC))
        os.fsync(self._descriptor)
        if not self._named:
            self._rename(self.path)

    def keep(self, path=None):
        """Completes the journal after the edit, and renames it to `path` if one is given."""
        if not self._durable or not self._named:
            self._count()
        if path is not None:
            self._rename(path)

    def _rename(self, path):
        if not disk.RENAMES_OPEN:
            self.close()
        taken = path.exists()  # by the journal that is played back: there is no way back once this one has its name
        disk.replace(self._place, path)
        self._place = self.path = path
        if not disk.RENAMES_OPEN:
            self._descriptor = os.open(path, os.O_RDWR | BINARY)
        with contextlib.suppress(OSError) if taken else contextlib.nullcontext():
            sync(path.parent)

    def drop(self):
        """Removes the journal."""
        if not disk.RENAMES_OPEN:
            self.close()
        self._place.unlink(missing_ok=True)
        sync(self.path.parent)

    def take_back(self, descriptors):
        """Restores the old bytes of the files, given as `{number: descriptor}`, and removes the journal."""
        if self._named:  # else no byte was replaced
            with os.fdopen(os.dup(self._descriptor), "rb") as file:  # by descriptor: the name may be gone
                file.seek(0)
                play(file, _contents(file).records, descriptors)
        self.drop()

    def close(self):
        close(self._descriptor)
        self._descriptor = -1


def first(offset):
    """The number of bytes from an offset to the end of its sector."""
    return SECTOR - offset % SECTOR


def _end(at):
    """The packed end of the complete records."""
    number = struct.pack("<Q", at)
    return number + _SUM.pack(zlib.crc32(number))


def described(path, sources, descriptors):
    """The `files` of a `Journal`: pairs of the name beside `path` and the `stat` of each file."""
    names = [path.name if source.real == path else source.path.name for source in sources]
    return list(zip(names, map(os.fstat, descriptors), strict=True))


class File(NamedTuple):
    """A file of a journal."""

    name: str
    size: int
    inode: int


class Replacement(NamedTuple):
    """A replacement read from a journal: checksums of its new bytes, and the place `at` of the old ones."""

    file: int
    offset: int
    length: int
    new_sum: int
    first_sum: int
    at: int


class Head(NamedTuple):
    """The header of a journal: its files, the patch, the time of the edit in seconds, and whether it undoes nothing."""

    files: list
    patch: str
    time: float | None
    void: bool


class Contents(NamedTuple):
    """The contents of a journal: its files, its records, and whether it is complete (`whole`)."""

    files: list
    records: list
    whole: bool


def read(journal, path):
    """The `Contents` of the journal of an edit of a file; every byte is checked.

    Raises:
        FileError: the journal is damaged.
    """
    return _checked(journal, path, _contents)


def head(journal, path):
    """The `Head` of the journal of an edit of a file; raises as `read` does."""
    return _checked(journal, path, _head)


def head_of_whole(journal, path):
    """The `Head` of the journal of a finished edit; also raises if its length is another, and does not read it all."""
    return _checked(journal, path, functools.partial(_head, is_whole=True))


def _head(file, is_whole=False):
    _check_mark(file)
    end = file.read(_END.size)
    found = _header(file)
    if is_whole and end != _end(os.fstat(file.fileno()).st_size):
        raise ValueError(CUT)
    return found


def check_removable(journal):
    """Raises a `FileError` if a file that has the name of a journal is none, so that it is not removed."""
    try:
        _reading(journal, _check_begun)
    except ValueError as error:
        raise FileError(f"'{journal}' is not removed: {error}", notes=[BY_HAND]) from error


def _check_begun(file):
    """Raises a `ValueError` if a file, as far as it goes, does not begin like a journal."""
    if not _is_begun(file.read(len(MAGIC))):
        raise _ForeignError(FOREIGN)


def _checked(journal, path, reads):
    try:
        return _reading(journal, reads)
    except ValueError as error:
        raise damaged(journal, path, error) from error


def _reading(journal, reads):
    if not stat.S_ISREG(journal.stat().st_mode):
        raise _ForeignError("it is not a regular file")
    with journal.open("rb") as file:
        return reads(file)


class _ForeignError(ValueError):
    """The reason why a file that has the name of a journal is none."""


def damaged(journal, path, why):
    note = BY_HAND if isinstance(why, _ForeignError) else way_out(path)
    return FileError(f"'{journal}', the journal of an edit of '{path}', is damaged: {why}", notes=[note])


def way_out(path):
    """The note on what to do with a journal that cannot be played back."""
    return f"'kpatch undo --discard {quoted(path)}' removes the journal and does not change the file"


def quoted(path):
    """A path as the system's shell takes it."""
    if disk.RENAMES_OPEN:
        return shlex.quote(str(path))
    import subprocess

    return subprocess.list2cmdline([str(path)])


def _contents(file):
    size = os.fstat(file.fileno()).st_size
    _check_mark(file)
    end = file.read(_END.size)
    files, records = _header(file).files, []
    number, at = _END.unpack(end)[0], file.tell()
    while (record := _record(file, files, size)) is not None:
        records.append(record)
        at = file.tell()
    counted = end == _end(number)  # else the process died while it wrote the end, after all records
    if counted and at < number:
        raise ValueError("one of its records is damaged or missing")
    return Contents(files, records, counted and at == number == size)


def _check_mark(file):
    start = file.read(len(MAGIC))
    if not start:
        raise ValueError("it is empty")
    if start not in MARKS:
        raise (ValueError if _is_begun(start) else _ForeignError)(FOREIGN)


def _is_begun(start):
    return any(mark.startswith(start) for mark in MARKS)


def _header(file):
    head = file.read(_HEADER.size)
    length, sum_ = _HEADER.unpack(head) if len(head) == _HEADER.size else (0, None)
    text = file.read(min(length, LARGEST_HEADER))
    if zlib.crc32(text) != sum_:
        raise ValueError("its header is damaged")
    try:
        found = json.loads(text)
        found = found if isinstance(found, dict) else {"files": found, "patch": "", "time": None}
        files = [File(**each) for each in found["files"]]
        good = files and all(_is_name(each.name) and each.size + each.inode >= 0 for each in files)
        told = str(found["patch"]), found["time"] and float(found["time"]), found.get("void") is True
    except (ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise ValueError("its header does not name its files")
    return Head(files, *told)


def _is_name(name):
    return Path(name).name == name and name not in ("", "..")


def _record(file, files, size):
    """The next complete record, or `None`."""
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
        raise ValueError("one of its records lies outside the file")
    return Replacement(number, offset, length, new_sum, first_sum, at)


def play(file, records, descriptors):
    """Writes the old bytes of records from an open journal, the last record first."""
    for record in reversed(records):
        file.seek(record.at)
        write_all(descriptors[record.file], file.read(record.length), record.offset)
    for descriptor in descriptors.values():
        os.fsync(descriptor)
