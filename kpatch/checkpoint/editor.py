"""Bytes of files replaced, so that whatever happens each file is the old one or the new one.

`aside` edits a copy, which then takes the place of the output. `in_place` writes into the file itself, each byte once
its old value is in the journal.
"""

import contextlib
import itertools
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np

from kpatch.checkpoint import journal
from kpatch.checkpoint.archive import Checksum
from kpatch.checkpoint.arrays import BLOCK
from kpatch.errors import FileError, reason
from kpatch.files import sync

GAP = 2**12  # bytes between two changed entries from which they are two replacements
CHUNK = 2**26  # bytes copied at a time
GATHERED = 2**24  # bytes that wait for the journal together, as each wait for the disk takes milliseconds


class Editor:
    """Replaces entries of arrays in files that are open.

    Args:
        files: the path that arrays know → the path that is written to.
        entry: the `archive.Entry` that the arrays lie in, or `None`.
        log: the `journal.Journal`, or `None`.
    """

    def __init__(self, files, entry, log):
        self.paths = files
        self.log = log
        self._entry = entry
        self._sum = self._old_sum = None
        self._descriptors = {}
        self._waiting = []
        self._size = 0

    def __enter__(self):
        for known, path in self.paths.items():
            self._descriptors[known] = os.open(path, os.O_RDWR)
        if self._entry is not None:  # as it is now: the file may have been edited since it was opened
            [file] = self.paths
            self._old_sum = os.pread(self._descriptors[file], 4, self._entry.fields[0])
            self._sum = Checksum(struct.unpack("<I", self._old_sum)[0], self._entry.length)
        return self

    def __exit__(self, *exception):
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, array, start, count):
        """Entries in a row."""
        size = array.numpy.itemsize
        data = os.pread(self._descriptors[array.file], count * size, array.offset + start * size)
        if len(data) < count * size:
            raise FileError(f"'{array.file}' is shorter than it says")
        return np.frombuffer(data, array.numpy)

    def put(self, array, flat, values):
        """Writes values to entries by their offsets, which ascend.

        What lies near each other is one replacement: as many as there are blocks at most, and few for one block.
        """
        size = array.numpy.itemsize
        gap, block = GAP // size, BLOCK // size
        start = 0
        while start < len(flat):
            stop = int(np.searchsorted(flat, flat[start] + block))
            breaks = start + 1 + np.flatnonzero(np.diff(flat[start:stop]) > gap)
            edges = [start, *(breaks if len(breaks) < block // gap else ()), stop]
            made = [self._replacement(array, flat[a:b], values[a:b]) for a, b in itertools.pairwise(edges)]
            self._replace(made)
            start = stop

    def _replacement(self, array, flat, values):
        first = int(flat[0])
        old = self.read(array, first, int(flat[-1]) - first + 1)
        new = old.copy()
        new[flat - first] = values
        return array.file, array.offset + first * array.numpy.itemsize, old.tobytes(), new.tobytes()

    def put_row(self, array, start, old, new):
        """Writes entries in a row, of which the old ones are known."""
        self._replace([(array.file, array.offset + start * array.numpy.itemsize, old.tobytes(), new.tobytes())])

    def restore(self, file, offset, old):
        """Writes bytes back that an earlier edit replaced."""
        new = os.pread(self._descriptors[file], len(old), offset)
        self._replace([(file, offset, new, old)])
        self.flush()  # an earlier record may be of the same bytes

    def _replace(self, made):
        self._waiting += made
        self._size += sum(len(old) for _, _, old, _ in made)
        if self.log is None or self._size > GATHERED:
            self.flush()

    def flush(self):
        """Writes what waits: before anything that may have changed is read."""
        if self._waiting:
            self._write(self._changed())

    def _changed(self):
        """What waits and is a change, taken into the checksum."""
        made = [each for each in self._waiting if each[2] != each[3]]
        self._waiting, self._size = [], 0
        if self._sum is not None:
            for _, offset, old, new in made:
                self._sum.replace(offset - self._entry.start, old, new)
        return made

    def _write(self, made):
        if self.log is not None and made:
            self.log.add([(self.paths[file], *rest) for file, *rest in made])
        for file, offset, _, new in made:
            journal.write_all(self._descriptors[file], new, offset)

    def finish(self):
        """Writes what waits and the archive's checksum, and waits until everything is on the disk."""
        made = self._changed()
        if self._sum is not None:
            [file], new = self.paths, struct.pack("<I", self._sum.value)
            made += [(file, place, self._old_sum, new) for place in self._entry.fields if new != self._old_sum]
        self._write(made)
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)


@contextlib.contextmanager
def aside(outputs, entry, keep, texts=None):
    """An `Editor` of copies of files, which take the places of the outputs at the end; on an exception nothing does.

    Args:
        outputs: the path of each file → where its copy goes. What stands there keeps its permissions; of a link it is
            what it points to.
        entry: the `archive.Entry`, or `None`.
        keep: a journal is kept beside the last output.
        texts: the text of each further output; they take their places last.
    """
    targets = {file: Path(os.path.realpath(output)) for file, output in outputs.items()}
    last = [*targets.values(), *map(Path, texts or ())][-1]
    with _failing(f"cannot write '{last}'"):
        made = Path(tempfile.mkdtemp(prefix=".kpatch-", dir=last.parent))
    try:
        with _failing(f"cannot write '{last}'"):
            copies = {file: made / target.name for file, target in targets.items()}
            for file, copy in copies.items():
                _copy(file, copy)
                if targets[file].exists():
                    copy.chmod(targets[file].stat().st_mode & 0o7777)
            log = journal.Journal(made / "journal", list(copies.values()), durable=False) if keep else None
            with Editor(copies, entry, log) as editor:
                yield editor
                editor.finish()
            moves = [(copies[file], target) for file, target in targets.items()]
            moves += [(_written(made / output.name, text), output) for output, text in (texts or {}).items()]
            if log is not None:
                log.close()
                sync(log.path)
                moves.insert(0, (log.path, journal.done(last)))
            for source, target in moves:
                os.replace(source, target)
            sync(last.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _written(path, text):
    path.write_text(text, encoding="utf-8")
    sync(path)
    return path


@contextlib.contextmanager
def in_place(path, files, entry, keep):
    """An `Editor` of files where they are; on an exception the old bytes are put back.

    Args:
        path: the file that the journal stands beside.
        files: the files that are written to.
        entry: the `archive.Entry`, or `None`.
        keep: the journal is kept when the edit is done.
    """
    begun = journal.begun(path)
    with journal.lock(path):
        try:
            with _failing(f"cannot write '{path}'"):
                for file in files:
                    os.close(os.open(file, os.O_RDWR))  # before there is a journal
                log = journal.Journal(begun, files, durable=True)
                with contextlib.closing(log), Editor({file: file for file in files}, entry, log) as editor:
                    yield editor
                    editor.finish()
                os.replace(begun, journal.done(path)) if keep else begun.unlink()
                sync(path.parent)
        except BaseException:
            if begun.exists():
                journal.roll_back(path)
            raise


@contextlib.contextmanager
def _failing(what):
    try:
        yield
    except OSError as error:
        raise FileError(f"{what}: {reason(error)}") from error


def _copy(source, target):
    """A copy by the kernel, which never passes through this process where the system can do that."""
    with open(source, "rb") as read, open(target, "wb") as write:
        left, copy = os.fstat(read.fileno()).st_size, _copier(read.fileno(), write.fileno())
        while left > 0:
            done = copy(min(left, CHUNK))
            if done == 0:
                raise FileError(f"'{source}' became shorter while it was copied")
            left -= done


def _copier(source, target):
    """A function that copies the next bytes; `copy_file_range` shares them where the file system can."""
    if hasattr(os, "copy_file_range"):
        return lambda count: os.copy_file_range(source, target, count)
    return lambda count: os.write(target, os.read(source, min(count, BLOCK)))
