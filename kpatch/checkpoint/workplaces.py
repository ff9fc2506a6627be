"""Temporary folders beside a result, `.kpatch-` and eight characters. The next command removes those that a kill left.

A process locks its folders, so a folder that can be locked is one that nobody works in.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kpatch.checkpoint.disk import remove

PREFIX = ".kpatch-"
DAY = 86_400  # seconds: on a system without locks a folder is left behind if it is older
_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
_own: set[Path] = set()  # the folders that this process works in: some system may have refused a lock


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A new folder, which is removed at the end of the block."""
    sweep(parent)
    folder, lock = _new(parent)
    _own.add(folder)
    try:
        yield folder
    finally:
        _own.discard(folder)
        remove(folder)
        _release(lock)


def sweep(parent: Path) -> None:
    """Removes the folders that a kill left in a folder, as far as the system allows that."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        found = [Path(entry) for entry in entries if _NAME.fullmatch(entry.name) and _is_ours(entry)]
        for folder in filter(lambda each: each not in _own, found):
            lock = _lock(folder)
            if lock is not None or _is_old(folder):
                remove(folder)
                _release(lock)


def _new(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = _lock(folder)
        if folder.is_dir():  # nobody took it for one that was left behind
            return folder, lock
        _release(lock)


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the lock of a folder; `None` if somebody else has it, or if there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir(follow_symlinks=False):
        return False
    return not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _is_old(folder: Path) -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return time.time() - folder.stat().st_mtime > DAY
    return False
