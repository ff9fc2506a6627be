"""Replaces bytes of files atomically: whatever fails, each file is the old one or the new one.

`aside` edits a copy, which then replaces the output. `in_place` writes into the file itself, after the old bytes are in
the journal. Both refuse a file that is no longer the parsed one.
"""

import contextlib
import functools
import itertools
import os
import struct

import numpy as np

from kpatch.checkpoint import journal, packed, recovery
from kpatch.checkpoint.archive import Checksum, linear
from kpatch.checkpoint.arrays import BLOCK, as_bits
from kpatch.checkpoint.copying import END, Copy
from kpatch.checkpoint.disk import BINARY, TO_DISK, Source, close, failing, lock, read_at, write_all
from kpatch.checkpoint.outputs import check, written
from kpatch.errors import FileError, reason
from kpatch.view import progress

GAP = 2**12  # bytes: entries farther apart are separate replacements
FEW = 2**8  # entries of a block that mostly tell whether it changes
GATHERED = 2**24  # bytes gathered for one write of the journal, since each sync of the disk takes milliseconds


class Editor:
    """Replaces entries of arrays in open files.

    Args:
        files: the `Source` of the arrays → the path to write to: its own or that of a copy.
        entry: the `archive.Member` of the first file that contains the arrays, or `None`.
        twins: arrays that h5py must decode → what is read and written for them: their decoded copies in other files.

    Raises:
        FileError: a file written in place is no longer the parsed one.

    Attributes:
        log: the `journal.Journal` of the replacements, or `None`.
        numbers: the number of each file in the journal.
    """

    def __init__(self, files, entry, twins=None):
        self._twins = twins or {}
        self.paths = {**files, **{twin.file: twin.file.real for twin in self._twins.values()}}
        self._main = next(iter(files), None)
        self.numbers = {file: number for number, file in enumerate(files)}
        self.log = None
        self._entry = entry
        self._sum = self._old_sum = None
        self._descriptors = {}
        self._copies = {}
        self._waiting = []
        self._size = 0
        self._spans = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            for known, path in self.paths.items():
                self._descriptors[known] = self._opened(known, path, stack)
            if self._entry is not None:  # read now: this process may have edited the file since it was parsed
                self._old_sum = self.bytes(self._main, self._entry.fields[0], 4)
                self._sum = Checksum(struct.unpack("<I", self._old_sum)[0], self._entry.length)
            self._stack = stack.pop_all()
        return self

    def _opened(self, known, path, stack):
        if path != known.real:
            copy = self._copies[known] = Copy(known, path)
            stack.callback(copy.close)
            return copy.descriptor
        descriptor = os.open(path, os.O_RDWR | BINARY)
        stack.callback(close, descriptor)
        known.check(descriptor)
        known.check()
        return descriptor

    def __exit__(self, *exception):
        self._stack.close()
        for file in self.paths.keys() - self._copies.keys():
            file.closed()

    def descriptor(self, file):
        return self._descriptors[file]

    def view(self, array):
        """The values of an array of any file; of one that is written to, as they are now."""
        array = self._twins.get(array, array)
        return array.view(self._file(array))

    def _file(self, array):
        """The file that is written to, opened to read an array, even if its path now names another file.

        `None` is the array's own file: it is of another file, or h5py decodes it, and it stays in the copy as it was.
        """
        if array.file not in self._descriptors or (array.file in self._copies and array.offset is None):
            return None
        self.flush()
        self._settle(array)
        if hasattr(os, "pread"):
            return os.fdopen(os.dup(self._descriptors[array.file]), "rb")
        return open(self.paths[array.file], "rb")  # a position of its own; on Windows the name of an open file stays

    def _settle(self, array):
        """Has an array in the copy, as it is written so far."""
        if array.file in self._copies:
            self._copies[array.file].settle(array.offset, array.offset + array.nbytes)

    def bytes(self, file, offset, count):
        """`count` bytes from `offset` on, with pending replacements written."""
        low, high = self._spans.get(file, (0, 0))
        if offset < high and low < offset + count:
            self.flush()
        read = self._copies[file].read if file in self._copies else functools.partial(read_at, self._descriptors[file])
        data = read(count, offset)
        if len(data) < count:
            raise FileError(f"'{file}' is shorter than its header says")
        return data

    def read(self, array, start, count):
        """`count` flat entries from `start` on, of an array of a file that is written to."""
        array = self._twins.get(array, array)
        size = array.numpy.itemsize
        return np.frombuffer(self.bytes(array.file, array.offset + start * size, count * size), array.numpy)

    def reader(self, array):
        """A function of a start and a count that reads flat entries of an array of any file.

        That a donor stays as it is, is checked before the edit ends, and no more when the file is closed.
        """
        array = self._twins.get(array, array)
        if array.file in self._descriptors and array.offset is not None:
            return functools.partial(self.read, array)
        return self._stack.enter_context(array.flat(self._file(array) or array.file.open()))

    def put(self, array, flat, values):
        """Writes values to entries at ascending flat offsets.

        Nearby entries are joined to one replacement, so that there are few replacements for each block.
        """
        array = self._twins.get(array, array)
        self._settle(array)
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

    def put_row(self, array, start, old, new, changed=None):
        """Writes consecutive entries whose old values are known, and maybe `changed`, the exclusive or of the bits."""
        array = self._twins.get(array, array)
        offset, copy = array.offset + start * array.numpy.itemsize, self._copies.get(array.file)
        if copy is None or copy.behind is None or self.log is not None:
            self._replace([(array.file, offset, old.tobytes(), new.tobytes())])
            return
        if _is_same(old, new):
            copy.ensure(offset, offset + new.nbytes)  # holes stay holes
            return
        copy.claim(offset, offset + new.nbytes)
        if self._sum is not None:  # here, where the bytes are in the processor's cache
            changed = as_bits(old) ^ as_bits(new) if changed is None else changed
            self._sum.change(offset - self._entry.start, new.nbytes, linear(changed))
        copy.behind.put(functools.partial(self._overwrite, array.file, offset, new))

    def _overwrite(self, file, offset, new):
        """Writes over a part of a copy, which may be absent."""
        write_all(self._descriptors[file], np.ascontiguousarray(new).view("u1"), offset)
        self._copies[file].count(new.nbytes)

    def restore(self, file, offset, old):
        """Restores bytes that an earlier edit replaced."""
        self._replace([(file, offset, self.bytes(file, offset, len(old)), old)])

    def _replace(self, made):
        self._waiting += made
        for file, offset, old, _ in made:
            self._size += len(old)
            low, high = self._spans.get(file, (offset, offset))
            self._spans[file] = min(low, offset), max(high, offset + len(old))
        if self.log is None or self._size > GATHERED:
            self.flush()

    def flush(self):
        """Writes pending replacements; called before reading bytes that they change."""
        if self._waiting:
            self._write(self._changed())

    def _changed(self):
        """The pending replacements that change bytes; the checksum is updated."""
        made = [each for each in self._waiting if each[2] != each[3]]
        self._waiting, self._size, self._spans = [], 0, {}
        if self._sum is not None:
            for file, offset, old, new in made:
                if file is self._main:
                    self._sum.replace(offset - self._entry.start, old, new)
        return made

    def _write(self, made):
        if self.log is not None and made:
            self.log.add([(self.numbers[file], *rest) for file, *rest in made])
        for file, offset, _, new in made:
            if file in self._copies:
                self._copies[file].claim(offset, offset + len(new))
            write_all(self._descriptors[file], new, offset)

    def finish(self):
        """Writes pending replacements and the archive's checksum, and waits until all is on the disk."""
        for copy in self._copies.values():
            copy.settle(0, END)
        made = self._changed()
        if self._sum is not None:
            new = struct.pack("<I", self._sum.value)
            made += [(self._main, place, self._old_sum, new) for place in self._entry.fields if new != self._old_sum]
        self._write(made)
        for copy in self._copies.values():
            copy.finish()
        with progress.phase(TO_DISK):
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)


def _is_same(old, new):
    """Whether two blocks have the same bits; mostly the first few tell."""
    old, new = as_bits(old), as_bits(new)
    return (old[:FEW] == new[:FEW]).all() and (old == new).all()


@contextlib.contextmanager
def aside(outputs, entry, keep, texts, inputs, unchanged, decoded):
    """An `Editor` of copies of files, which replace the outputs at the end; on an exception no output changes.

    Args:
        outputs: the `Source` of each file → the `Output` of its copy.
        entry: the `archive.Member`, or `None`.
        keep: the text of the patch, if a journal is kept beside the last output, else `None`.
        texts: pairs of a further `Output` and its text, which are put in place last.
        inputs: as for `outputs.written`.
        unchanged: the `Source`s that must not change up to the end.
        decoded: as for `of_copies`.
    """
    results = [*outputs.values(), *(output for output, _ in texts)]
    main = Source(results[-1].path).real
    kept = _journals(main) if keep is not None else []
    check(kept, {})
    last = [kept[-1]._replace(of=results[-1].path)] if kept else []  # what it undoes is there before it
    with written([*results, *last], inputs, unchanged) as files:
        copies = dict(zip(outputs, files, strict=False))
        names = (os.path.basename(os.path.realpath(output.path)) for output in outputs.values())
        named = {source: (name, copy) for name, (source, copy) in zip(names, copies.items(), strict=True)}
        with of_copies(copies, entry, named, keep, files[-1], decoded) as editor:
            yield editor
        for (_, text), file in zip(texts, files[len(copies) : len(results)], strict=True):
            file.write_text(text, encoding="utf-8", newline="\n")
    if kept:
        recovery.forget(main, kept[-1].path)


def _journals(path):
    """The `Output`s of the journal of a file's next finished edit: the first name, and the one that it gets."""
    number = max(journal.history(path), default=0) + 1
    return [journal.output(path, each) for each in sorted({1, number})]


@contextlib.contextmanager
def of_copies(copies, entry, results, keep, log, decoded):
    """An `Editor` of copies of files, which writes all that is pending at the end.

    Args:
        copies: the `Source` of each file that changes → the path of its copy.
        entry: the `archive.Member`, or `None`.
        results: the `Source` of each file of the result → the name that it will have, and its path now.
        keep: the text of the patch, if a journal is kept, else `None`.
        log: the path of that journal.
        decoded: the arrays that change and that h5py must decode; a journal cannot have such changes.
    """
    folder = next((path.parent for path in copies.values()), None)
    with packed.unpacked(decoded, folder) as twins:
        with Editor(copies, entry, twins) as editor, contextlib.ExitStack() as stack:
            if keep is not None:
                described = [(name, os.stat(path)) for name, path in results.values()]
                editor.log = stack.enter_context(contextlib.closing(journal.Journal(log, described, keep)))
                editor.numbers = {source: number for number, source in enumerate(results)}
            yield editor
            editor.finish()
            if keep is not None:
                editor.log.keep()
        for source, path in copies.items():
            if of_file := {array: twin for array, twin in twins.items() if array.file is source}:
                with progress.phase("packing"):
                    packed.repack(path, entry, of_file)


@contextlib.contextmanager
def in_place(path, sources, entry, keep, unchanged, undoes=None):
    """An `Editor` of files in place; on an exception the old bytes are restored.

    Args:
        path: the file whose journal is written beside it.
        sources: the `Source`s to write to.
        entry: the `archive.Member`, or `None`.
        keep: the text of the patch, if the journal is kept after the edit for `undo`, else `None`.
        unchanged: the other `Source`s that must not change up to the end.
        undoes: the path of the journal that the edit plays back, which ends with it.
    """
    with failing(f"cannot write '{path}'"), lock(path):
        kept = _journals(path) if keep is not None else []
        check(kept, {})
        recovery.roll_back(path)  # an edit that was interrupted since the file was opened
        with Editor({source: source.real for source in sources}, entry) as editor:
            described = journal.described(path, sources, map(editor.descriptor, sources))
            place = journal.fresh(path)
            editor.log = log = journal.Journal(journal.begun(path), described, keep or "", place, undoes is not None)
            with contextlib.closing(log):
                try:
                    yield editor
                    editor.finish()
                    for source in unchanged:
                        source.check()
                    for source in sources:
                        source.check_named(editor.descriptor(source))
                    check(kept, {})
                    _end(log, kept[-1].path if kept else undoes)
                except BaseException as error:
                    _take_back(path, sources, editor, error)
                    raise
                finally:
                    for source in sources:
                        source.edited(editor.descriptor(source))
        if kept:
            recovery.forget(path, kept[-1].path)


def _end(log, path):
    """Ends an edit, in one step of the system: its journal gets the name, or is removed."""
    if path is None:
        log.drop()
    else:
        log.keep(path)


def _take_back(path, sources, editor, cause):
    descriptors = {number: editor.descriptor(source) for number, source in enumerate(sources)}
    try:
        editor.log.take_back(descriptors)
    except FileError:
        raise
    except (OSError, ValueError) as error:
        said = reason(error) if isinstance(error, OSError) else error
        raise FileError(
            f"cannot write '{path}' or restore its old bytes: {said}",
            notes=["they are in the journal beside it; kpatch tries again when it next opens the file"],
        ) from cause
