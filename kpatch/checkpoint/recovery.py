"""Journals played back: edits that were cut off, edits that are undone, and journals that are discarded.

Nothing is played back from a journal that is damaged, or into a file that somebody else has written to. Then the user
decides: `discard` removes the journal.
"""

import contextlib
import itertools
import os
import zlib

from kpatch.checkpoint.disk import close, failing, lock, sync
from kpatch.checkpoint.journal import begun, damaged, described, done, first, play, read, way_out
from kpatch.errors import FileError, UndoError


def recover(path):
    """Puts the old bytes back where an edit of the file was cut off; says whether there was one.

    Raises:
        FileError: the journal is damaged or of another file, or the edit is still going on.
    """
    if not begun(path).exists():
        return False
    with failing(f"cannot put back an edit of '{path}' that was cut off"), lock(path):
        return roll_back(path)


def roll_back(path):
    """The same for a caller who holds the lock."""
    journal = begun(path)
    if not journal.exists():  # the edit ended just now
        return False
    contents = read(journal, path)
    _check_names(journal, path, contents.files)
    with contextlib.ExitStack() as stack:
        numbers = sorted({record.file for record in contents.records})
        descriptors = {n: _descriptor(stack, journal, path, contents.files[n]) for n in numbers}
        file = stack.enter_context(journal.open("rb"))
        for record in _apart(contents.records):
            if not _is_of_the_edit(file, record, descriptors[record.file]):
                raise _changed(journal, path, path.parent / contents.files[record.file].name)
        play(file, contents.records, descriptors)
    journal.unlink()
    sync(path.parent)
    return True


def _check_names(journal, path, files):
    names = [each.name for each in files]
    if names != [path.name] and not path.name.endswith(".weights.json"):
        raise FileError(f"'{journal}' is the journal of '{names[0]}', not of '{path.name}'", notes=[way_out(path)])


def _descriptor(stack, journal, path, each):
    """The file of a journal, if it is still the one that was edited."""
    name = path.parent / each.name
    try:
        descriptor = os.open(name, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        state = None
    else:
        stack.callback(close, descriptor)
        state = os.fstat(descriptor)
    if state is None or (state.st_size, state.st_ino) != (each.size, each.inode):
        raise _changed(journal, path, name)
    return descriptor


def _apart(records):
    """The records that share no byte with another: of a byte that was replaced twice there is no saying what it is."""
    ordered = sorted(records, key=lambda record: (record.file, record.offset))
    end = (0, 0)
    for record, following in itertools.zip_longest(ordered, ordered[1:]):
        start, stop = (record.file, record.offset), (record.file, record.offset + record.length)
        if start >= end and (following is None or (following.file, following.offset) >= stop):
            yield record
        end = max(end, stop)


def _is_of_the_edit(journal, record, descriptor):
    """Whether a file has the old or the new bytes of a record, as far as they were replaced at one moment."""
    count = min(first(record.offset), record.length)
    journal.seek(record.at)
    now = os.pread(descriptor, count, record.offset)
    return now == journal.read(count) or zlib.crc32(now) == record.first_sum


def _changed(journal, path, file):
    message = f"'{journal}' is of an edit that was cut off, and '{file}' has changed since"
    return FileError(message, notes=[f"if the file is as you want it: {way_out(path)}"])


def replacements(path, sources, editor):
    """What undoes the latest edit of a file: tuples of a `Source`, an offset and the old bytes, the last first.

    The journal is checked as a whole, then each record when its turn comes.

    Args:
        path: the file.
        sources: the files that it consists of.
        editor: an `Editor` of these files.

    Raises:
        FileError: the journal is damaged.
        UndoError: it is of other files, or the bytes are no longer those that the edit wrote.
    """
    journal = done(path)
    contents = read(journal, path)
    if not contents.whole:
        raise damaged(journal, path, "it does not end as a journal does")
    now = described(path, sources, map(editor.descriptor, sources))
    if contents.files != [(name, state.st_size, state.st_ino) for name, state in now]:
        raise UndoError(f"'{journal}' is of another file than '{path}' is now", notes=[way_out(path)])
    with journal.open("rb") as log:
        for record in reversed(contents.records):
            source = sources[record.file]
            if zlib.crc32(editor.bytes(source, record.offset, record.length)) != record.new_sum:
                raise UndoError(f"'{path}' has changed since the edit that '{journal}' undoes", notes=[way_out(path)])
            log.seek(record.at)
            yield source, record.offset, log.read(record.length)


def discard(path):
    """Removes the journal that stands in the way, of an edit that was cut off, else of one that is done; gives it.

    Raises:
        UndoError: there is none.
        FileError: the file is being edited.
    """
    with failing(f"cannot remove the journal of '{path}'"), lock(path):
        for journal in (begun(path), done(path)):
            if os.path.lexists(journal):
                journal.unlink()
                sync(path.parent)
                return journal
    raise UndoError(f"'{path}' has no journal")
