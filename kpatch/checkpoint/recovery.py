"""Plays journals back, to roll back interrupted edits and to undo finished ones.

A damaged journal is never played back, nor any journal into a file that another program has changed. The user can then
remove the journal by `discard`.
"""

import contextlib
import itertools
import os
import zlib

from kpatch.checkpoint.disk import BINARY, close, failing, lock, read_at, sync
from kpatch.checkpoint.journal import (
    CUT,
    begun,
    check_removable,
    damaged,
    described,
    first,
    fresh,
    head,
    history,
    play,
    read,
    way_out,
)
from kpatch.checkpoint.workplaces import sweep
from kpatch.errors import FileError, UndoError


def recover(path):
    """Rolls back an interrupted edit of the file; returns whether there was one.

    Raises:
        FileError: the journal is damaged or belongs to another file, the file has changed, or the edit is in progress.
    """
    sweep(path.parent)
    undoable(path)
    if not begun(path).exists():
        _drop_fresh(path)
        return False
    with failing(f"cannot put back an edit of '{path}' that was cut off"), lock(path):
        return roll_back(path)


def _drop_fresh(path):
    """Removes the journal of an edit that was cut off before it wrote."""
    if fresh(path).exists():
        with contextlib.suppress(OSError, FileError), lock(path):
            fresh(path).unlink(missing_ok=True)


def roll_back(path):
    """`recover` for a caller that holds the lock."""
    journal = begun(path)
    if fresh(path).exists():
        fresh(path).unlink()
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
    if names != [path.name] and not path.name.endswith((".weights.json", ".index.json")):
        raise FileError(f"'{journal}' is the journal of '{names[0]}', not of '{path.name}'", notes=[way_out(path)])


def _descriptor(stack, journal, path, each):
    """The descriptor of a journal's file; raises if it is not the file that was edited."""
    name = path.parent / each.name
    try:
        descriptor = os.open(name, os.O_RDWR | BINARY)
    except FileNotFoundError:
        state = None
    else:
        stack.callback(close, descriptor)
        state = os.fstat(descriptor)
    if state is None or (state.st_size, state.st_ino) != (each.size, each.inode):
        raise _changed(journal, path, name)
    return descriptor


def _apart(records):
    """The records that overlap no other record: the present value of a byte replaced twice cannot be checked."""
    ordered = sorted(records, key=lambda record: (record.file, record.offset))
    end = (0, 0)
    for record, following in itertools.zip_longest(ordered, ordered[1:]):
        start, stop = (record.file, record.offset), (record.file, record.offset + record.length)
        if start >= end and (following is None or (following.file, following.offset) >= stop):
            yield record
        end = max(end, stop)


def _is_of_the_edit(journal, record, descriptor):
    """Whether a file has the old or the new bytes of a record, in its first sector, which is written atomically."""
    count = min(first(record.offset), record.length)
    journal.seek(record.at)
    now = read_at(descriptor, count, record.offset)
    return now == journal.read(count) or zlib.crc32(now) == record.first_sum


def _changed(journal, path, file):
    message = f"'{journal}' is the journal of an interrupted edit, and '{file}' has changed since"
    return FileError(message, notes=[f"if the file is as you want it: {way_out(path)}"])


def replacements(journal, path, sources, editor, entry=None):
    """The replacements that undo the latest edit of a file: tuples of a `Source`, an offset and the old bytes.

    They come in reverse order. The whole journal is checked first, then each record before it is yielded. Those of the
    checksum of an archive's weights are left out: it also changes by later edits, and the editor updates it.

    Args:
        journal: the path of the journal.
        path: the file.
        sources: the files of which it consists.
        editor: an `Editor` of these files.
        entry: the `archive.Member` that contains the arrays, or `None`.

    Raises:
        FileError: the journal is damaged.
        UndoError: the journal belongs to other files, or the bytes are no longer those that the edit wrote.
    """
    contents = read(journal, path)
    if not contents.whole:
        raise damaged(journal, path, CUT)
    now = described(path, sources, map(editor.descriptor, sources))
    if contents.files != [(name, state.st_size, state.st_ino) for name, state in now]:
        raise UndoError(f"'{journal}' is of another file than '{path}' is now", notes=[way_out(path)])
    with journal.open("rb") as log:
        for record in reversed(contents.records):
            if entry is not None and record.offset in entry.fields:
                continue
            source = sources[record.file]
            if zlib.crc32(editor.bytes(source, record.offset, record.length)) != record.new_sum:
                raise UndoError(f"'{path}' has changed since the edit that '{journal}' undoes", notes=[way_out(path)])
            log.seek(record.at)
            yield source, record.offset, log.read(record.length)


def undoable(path):
    """The journals of the edits of a file that `undo` can take back, the earliest first.

    One that was played back is void; it is removed, if it is still there.
    """
    try:
        found = list(history(path).values())
    except OSError:  # the folder cannot be read, which is an error of what is done in it
        return []
    while found and _is_void(found[-1], path):
        with contextlib.suppress(OSError):
            found[-1].unlink()
        del found[-1]
    return found


def _is_void(journal, path):
    try:
        return head(journal, path).void
    except (OSError, FileError):
        return False


def discard(path):
    """Removes the journal of an interrupted edit, else that of the latest finished edit; returns its path.

    Raises:
        UndoError: the file has no journal.
        FileError: another process is editing the file, or what has the journal's name is none.
    """
    with failing(f"cannot remove the journal of '{path}'"), lock(path):
        journal = latest(path)
        if journal is None:
            raise UndoError(f"'{path}' has no journal")
        check_removable(journal)
        journal.unlink()
        with contextlib.suppress(OSError):  # it is removed
            sync(path.parent)
        return journal


def latest(path):
    """The journal that `discard` removes, or `None`."""
    return next(filter(os.path.lexists, (begun(path), *reversed(undoable(path)))), None)


def forget(path, kept):
    """Removes the journals of a file that was replaced since, other than `kept`: they undo nothing any more."""
    try:
        stale = history(path).values()
    except OSError:  # the edit is done
        return
    for found in stale:
        with contextlib.suppress(OSError, FileError):  # one that is damaged, or of somebody else, stays
            if found != kept and not is_present(head(found, path).files, path.parent):
                found.unlink()


def is_present(files, folder):
    """Whether the files of a journal are those in the folder now."""
    for each in files:
        state = (folder / each.name).stat()
        if (state.st_size, state.st_ino) != (each.size, each.inode):
            return False
    return True
