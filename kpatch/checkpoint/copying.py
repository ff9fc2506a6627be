"""Copies of large files, made while a patch runs: what the patch writes over is never copied, and the disk never waits.

A copy of a small file is made at once. Of a large one

* a part is copied when it is asked for, or at the end; a part that is written over as a whole is not copied at all, so
  that it is written to the disk once, not twice;
* holes stay holes;
* a thread writes while the patch computes, and the system brings to the disk what is written meanwhile.
"""

import contextlib
import errno
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kpatch.checkpoint.disk import BINARY, Source, close, read_at, start_sync, write_all
from kpatch.errors import FileError
from kpatch.view import progress

SMALL = 2**24  # bytes: smaller files are copied at once, and written without threads
CHUNK = 2**24  # bytes copied at a time
WAITING = 2  # blocks that wait to be written
UNSYNCED = 2**24  # bytes written before the system is asked to bring them to the disk
END = 2**63  # beyond every file
NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)  # a file system without copies


class Copy:
    """A copy of a file, of which parts may be absent.

    Args:
        source: the file.
        target: the path of the copy.

    Attributes:
        descriptor: the copy, open for reading and writing.
    """

    def __init__(self, source: Source, target: Any) -> None:
        self._name = str(source)
        with contextlib.ExitStack() as stack:
            self._source = stack.enter_context(source.open())
            self.descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
            stack.callback(close, self.descriptor)
            size = os.fstat(self._source.fileno()).st_size
            os.ftruncate(self.descriptor, size)
            self._absent = [(0, size)] if size else []
            self._unsynced = 0
            progress.expect(size)
            self.behind: Behind | None = None
            if size > SMALL and hasattr(os, "pread") and hasattr(os, "pwrite"):  # else threads share one position
                self.behind = Behind()
                stack.callback(self.behind.close)
            if size <= SMALL:
                self.ensure(0, size)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def finish(self) -> None:
        """Ends what runs beside; raises what failed."""
        if self.behind is not None:
            self.behind.finish()

    def read(self, count: int, offset: int) -> bytes:
        """The bytes as they are in the copy, or will be."""
        parts = self._parts(offset, offset + count)
        if parts == [(offset, offset + count)]:
            return read_at(self._source.fileno(), count, offset)
        self.settle(offset, offset + count)
        return read_at(self.descriptor, count, offset)

    def settle(self, start: int, stop: int) -> None:
        """Copies what is absent of a part, and writes what waits."""
        self.ensure(start, stop)
        if self.behind is not None:
            self.behind.drain()

    def ensure(self, start: int, stop: int) -> None:
        """Copies what is absent of a part."""
        for part in self._parts(start, stop):
            left = part[1] - part[0]
            for low, high in _filled(self._source.fileno(), *part):
                while low < high:
                    done = self._copy(low, min(high - low, CHUNK))
                    low, left = low + done, left - done
                    progress.advance(done)
            progress.advance(left)  # holes
        self._drop(start, stop)

    def claim(self, start: int, stop: int) -> None:
        """Notes that a part need not be copied: it will be written over."""
        progress.advance(sum(high - low for low, high in self._parts(start, stop)))
        self._drop(start, stop)

    def _drop(self, start: int, stop: int) -> None:
        """Notes that a part is no longer absent."""
        rest = []
        for low, high in self._absent:
            rest += [(low, min(high, start)), (max(low, stop), high)]
        self._absent = [(low, high) for low, high in rest if low < high]

    def _parts(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The absent parts from `start` to `stop`."""
        found = [(max(low, start), min(high, stop)) for low, high in self._absent]
        return [(low, high) for low, high in found if low < high]

    def _copy(self, offset: int, count: int) -> int:
        done = self._copied(offset, count)
        if done == 0:
            raise FileError(f"'{self._name}' became shorter while it was copied")
        if self.behind is not None:
            self.behind.put(functools.partial(self.count, done))
        return done

    def count(self, count: int) -> None:
        """Notes that `count` bytes are written, in the thread that writes: the system begins to sync them."""
        self._unsynced += count
        if self._unsynced >= UNSYNCED:
            self._unsynced = 0
            start_sync(self.descriptor)

    def _copied(self, offset: int, count: int) -> int:
        """Copies in the kernel if it can: `copy_file_range` shares blocks if the file system supports it."""
        source = self._source.fileno()
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, self.descriptor, count, offset, offset)
            except OSError as error:
                if error.errno not in NO_COPY:
                    raise
        data = read_at(source, min(count, 2**20), offset)
        write_all(self.descriptor, data, offset)
        return len(data)


def _filled(descriptor: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of a file from `start` to `stop` that are no holes, as far as the system tells."""
    try:
        while hasattr(os, "SEEK_DATA") and start < stop:
            low = os.lseek(descriptor, start, os.SEEK_DATA)
            high = os.lseek(descriptor, low, os.SEEK_HOLE)
            if low < stop:
                yield low, min(high, stop)
            start = high
    except OSError as error:
        if error.errno == errno.ENXIO and os.fstat(descriptor).st_size >= stop:
            return  # all the rest is a hole
    if start < stop:
        yield start, stop


def copy_of(source: Source, target: Any) -> None:
    """Copies a file."""
    copy = Copy(source, target)
    with contextlib.closing(copy):
        copy.settle(0, END)
        copy.finish()


class Behind:
    """A thread that does what is handed in, in order.

    A failure is raised by the next call from the thread that hands in.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Has a job done after those before it."""
        self._raise()
        self._jobs.put(job)

    def drain(self) -> None:
        """Waits until all is done."""
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Ends the thread. What waits is not done after a failure."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def finish(self) -> None:
        """Ends the thread after all is done; raises what failed."""
        self.drain()
        self.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                if self._error is None:
                    job()
            except BaseException as error:  # noqa: BLE001 (raised in the other thread)
                self._error = error
            finally:
                self._jobs.task_done()
