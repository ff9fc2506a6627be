"""Files on the disk. The file that is written is the file that was read, and one process writes it at a time.

As in Git's index and SQLite's pager, the file's `stat` is compared, under a lock, before a byte is written, and a new
file is complete before it is renamed.
"""

import contextlib
import functools
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kpatch.errors import FileError, PatchError, reason

BINARY = getattr(os, "O_BINARY", 0)  # else Windows changes the ends of lines
TRIES, PAUSE = 10, 0.1  # of a renaming on Windows, and seconds between two of them
RENAMES_OPEN = os.name != "nt"  # whether a file that is open or mapped can be renamed, replaced and removed
_SYNC_FILE_RANGE_WRITE = 2
TO_DISK = "writing to disk"  # what the progress bar says while the system does it
State = tuple[int, ...]  # device, inode, size, time of modification

MAX_EDITS = 2**10
_edits: dict[State, State] = {}  # the latest edits in place of this process: a file's state before → after


class Source:
    """A file that was parsed, and its `stat` at that time.

    An edit in place by this process does not count as a change, because it moves no array.

    Attributes:
        path: the given path, possibly a link.
        real: the path of the file itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.real = Path(os.path.realpath(path)) if self.path.is_symlink() else self.path
        self._state: State | None = None

    def __fspath__(self) -> str:
        return str(self.real)

    def __str__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def parsed(self) -> Iterator[IO[bytes]]:
        """A block with the open file, to parse it; raises `FileError` if the file changes meanwhile."""
        check_regular(self.real)
        with self.real.open("rb") as file:
            self._state = _state(os.fstat(file.fileno()))
            try:
                yield file
            except PatchError:
                self.check(file.fileno())  # apparent damage can be a file that is being written
                raise
            self.check(file.fileno())
        self.check()

    def edited(self, descriptor: int) -> None:
        """Records the present state as the parsed one, after an edit by this process."""
        with contextlib.suppress(OSError):  # the edit is done; an error here does not matter
            self._now(_state(os.fstat(descriptor)))

    def closed(self) -> None:
        """Records the state again once the edited file is closed: only then Windows sets its time."""
        with contextlib.suppress(OSError):
            now = _state(os.stat(self.real))
            if not RENAMES_OPEN and self._state is not None and now[:3] == self._state[:3]:
                self._now(now)

    def _now(self, state: State) -> None:
        before, self._state = self._state, state
        if before is not None and before != state:
            _edits[before] = state
        while len(_edits) > MAX_EDITS:
            del _edits[next(iter(_edits))]

    def is_same(self, other: "Source") -> bool:
        """Whether both were the same file when they were parsed."""
        return self._state is not None and other._state is not None and self._state[:2] == other._state[:2]

    def open(self) -> IO[bytes]:
        """Opens the parsed file again; raises `FileError` if it has changed."""
        check_regular(self.real)
        file = self.real.open("rb")
        try:
            self.check(file.fileno())
        except FileError:
            file.close()
            raise
        return file

    def check(self, descriptor: int | None = None) -> None:
        """Raises `FileError` if the open file, or the file that now has the path, is not the parsed one."""
        try:
            now = os.stat(self.path) if descriptor is None else os.fstat(descriptor)
        except OSError as error:
            raise FileError(f"'{self}' was there when kpatch opened it: {reason(error)}") from error
        if _after_edits(self._state, _state(now)) != _state(now):
            raise FileError(
                f"'{self}' has changed since kpatch opened it; run the command again, or in Python open the file again"
            )

    def check_named(self, descriptor: int) -> None:
        """Raises `FileError` if the path now names another file than the open one."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                return
        raise FileError(f"'{self}' was replaced or removed while kpatch edited it; the edit was not made")


def check_regular(path: "str | os.PathLike[str]") -> None:
    """Raises `FileError` if a path names a pipe, a socket or a device: to open one may wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # an error of what opens it
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileError(f"'{path}' is not a regular file or a folder")


def _after_edits(before: State | None, wanted: State) -> State | None:
    """The state after this process's edits, followed up to `wanted`."""
    for _ in range(len(_edits)):
        if before is None or before == wanted or before not in _edits:
            break
        before = _edits[before]
    return before


def _state(state: os.stat_result) -> State:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks a file for one edit at a time, if the system has locks; `FileError` if another process holds the lock."""
    check_regular(path)
    try:
        import fcntl
    except ImportError:
        with _lock_of_windows(path):
            yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path) from None
        yield


@contextlib.contextmanager
def _lock_of_windows(path: Path) -> Iterator[None]:
    """Locks a file beside the file: on Windows nobody else can read bytes that are locked."""
    try:
        import msvcrt
    except ImportError:  # a system without locks
        yield
        return
    beside = path.with_name(f".{path.name}.kpatch-lock")
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | BINARY, 0o600)
    try:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            raise _busy(path) from None
        yield
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(beside)  # fails if another process has it open


def _busy(path: Path) -> FileError:
    return FileError(f"'{path}' is being edited by another process")


def replace(path: Path, target: Path) -> None:
    """Renames a file, and replaces what has the name.

    Windows replaces no file that is read-only, nor one that a scanner of viruses looks at for a moment.
    """
    for left in reversed(range(1 if RENAMES_OPEN else TRIES)):
        try:
            with contextlib.nullcontext() if RENAMES_OPEN else _writable(target):
                os.replace(path, target)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(PAUSE)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """A block in which a file, if it is there, is not read-only; an error in it leaves the file as it was."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not mode & stat.S_IWRITE:
        path.chmod(mode | stat.S_IWRITE)
    try:
        yield
    except BaseException:
        if mode is not None:
            path.chmod(mode)
        raise


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it, as far as the system allows that."""
    shutil.rmtree(folder, ignore_errors=True)
    if not RENAMES_OPEN and folder.is_dir():  # Windows removes no file that is read-only
        for each in folder.rglob("*"):
            with contextlib.suppress(OSError):
                each.chmod(stat.S_IMODE(each.stat().st_mode) | stat.S_IWRITE)
        shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until the file or the directory is on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # only POSIX systems open directories
    try:
        descriptor = os.open(path, os.O_RDONLY if RENAMES_OPEN else os.O_RDWR | BINARY)  # a result may be read-only
    except PermissionError:
        if RENAMES_OPEN:
            raise
        return  # Windows does not flush what is read-only
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_sync(descriptor: int) -> None:
    """Has the system begin to bring what is written to the disk. `fsync` waits for it, and tells what failed."""
    if _sync_file_range() is not None:
        _sync_file_range()(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Any:
    """The function of Linux, which Python lacks; `None` elsewhere."""
    if sys.platform != "linux":
        return None
    import ctypes

    found = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from an offset on; fewer at the end of the file. Not for two threads at once on Windows."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)


def write_all(descriptor: int, data: Any, offset: int) -> None:
    """Writes all bytes at an offset, or raises `OSError`."""
    data = memoryview(data)
    while data:
        written = _write_at(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _write_at(descriptor: int, data: Any, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


def close(descriptor: int) -> None:
    """Closes a file whose data is already on the disk, so that a failure does not matter."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def dress(path: Path, like: os.stat_result, mask: int = 0o7777) -> None:
    """Gives a file the mode of another file, and its owner if permitted.

    Args:
        path: the file.
        like: the `stat` of the other file.
        mask: the bits of the mode to copy.
    """
    mode = stat.S_IMODE(like.st_mode) & mask
    if hasattr(os, "chown"):
        for owner, group in ((-1, like.st_gid), (like.st_uid, -1)):
            with contextlib.suppress(OSError):
                os.chown(path, owner, group)
    if path.stat().st_gid != like.st_gid:
        mode &= ~0o070  # these bits were meant for another group
    path.chmod(mode)


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turns an `OSError` of the block into a `FileError` that begins with `what`."""
    try:
        yield
    except FileError:
        raise  # it already names the failed action
    except OSError as error:
        raise FileError(f"{what}: {reason(error)}") from error
