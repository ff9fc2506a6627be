"""Runs element-wise operations on arrays of NumPy in blocks that stay in the processor's cache, on several threads.

A plain expression makes a new array for each operation, and the system clears the pages of each: that takes longer than
the arithmetic. Here results lie in scratch that each thread keeps.
"""

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

BLOCK = 2**18  # entries computed at a time: of shorter blocks threads wait more for the interpreter than they compute
SHARE = 2**20  # entries that are worth a thread: of fewer the start of one takes as long as it saves
THREADS = min(8, os.cpu_count() or 1)
NAMES = "kpatch-blocks"  # what the names of its threads begin with

ARRAY, NUMBER, RESULT = range(3)  # the kinds of operands


class Operation(NamedTuple):
    """One operation, on operands that are pairs of a kind and a place among these.

    Attributes:
        name: the operator or function.
        compute: its function of NumPy, which takes `out`.
        operands: the operands.
        dtype: NumPy's dtype of the result.
        target: the place of the result among the results; operations that follow may take it again.
    """

    name: str
    compute: Callable
    operands: tuple[tuple[int, int], ...]
    dtype: Any
    target: int


def placed(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The operations, whose targets count up, with targets that are taken again once a result is used up."""
    last = {place: at for at, op in enumerate(operations) for kind, place in op.operands if kind == RESULT}
    made: list[Operation] = []
    free: list[int] = []
    count = 0
    for at, op in enumerate(operations):
        operands = tuple((kind, made[place].target if kind == RESULT else place) for kind, place in op.operands)
        used_up = {place for kind, place in op.operands if kind == RESULT and last[place] == at}
        ended = [made[place] for place in used_up]
        free += [each.target for each in ended if each.dtype == op.dtype]  # NumPy computes in place
        if not free:
            free.append(count)
            count += 1
        target = free.pop()
        free += [each.target for each in ended if each.dtype != op.dtype]
        made.append(op._replace(operands=operands, target=target))
    return tuple(made)


class Job(NamedTuple):
    """Operations that are `placed`, and what they compute; the result of the last one goes to `out`.

    Attributes:
        operations: the operations.
        arrays: flat arrays, as long as `out`; one may be `out` itself.
        numbers: scalars of NumPy.
        out: a flat array.
    """

    operations: Sequence[Operation]
    arrays: list
    numbers: list
    out: np.ndarray

    def part(self, entries: slice) -> "Job":
        """The job of some entries alone."""
        return self._replace(arrays=[x[entries] for x in self.arrays], out=self.out[entries])


def run(jobs: Sequence[Job], flushes: bool = False) -> None:
    """Computes jobs, of which none needs the result of another, on threads that start once for all.

    An interrupt ends it after all threads have ended; a part of each `out` may be written then.

    Args:
        jobs: the jobs.
        flushes: take denormal numbers for zeros; only if `can_flush()`.
    """
    tasks = [functools.partial(_run_share, share) for share in _shares(jobs)]
    futures = [_pool(flushes).submit(task) for task in tasks[1:]]
    try:
        for task in tasks[:1]:
            _run_flushing(task) if flushes else task()
    finally:
        _wait(futures)


def _shares(jobs):
    """The jobs, cut at blocks so that each thread has about as many entries to compute."""
    total = sum(job.out.size for job in jobs)
    threads = max(1, min(THREADS, total // SHARE))
    length = -(-total // (threads * BLOCK)) * BLOCK
    shares, left = [], 0
    for job in jobs:
        start = 0
        while start < job.out.size:
            if left <= 0:
                shares.append([])
                left = length
            part = slice(start, min(job.out.size, start + -(-left // BLOCK) * BLOCK))
            shares[-1].append(job.part(part))
            left -= part.stop - start
            start = part.stop
    return shares


def _run_share(share):
    with np.errstate(all="ignore"):
        for job in share:
            _run(*job)


def _wait(futures: list[Future]) -> None:
    """Also if it is interrupted: the threads write into memory that the caller may put back."""
    try:
        wait(futures)
    except BaseException:
        wait(futures)
        raise
    for future in futures:
        future.result()


def _run(operations, arrays, numbers, out):
    scratch = _scratch(1 + max(op.target for op in operations)) if len(operations) > 1 else []
    length = len(scratch[0]) if scratch else max(1, out.size)  # one operation keeps no result in between
    for start in range(0, out.size, length):
        block = slice(start, start + length)
        _run_block(operations, ([x[block] for x in arrays], numbers), scratch, out[block])


def _run_block(operations, given, scratch, out):
    results = [None] * len(scratch)
    lists = (*given, results)
    *firsts, last = operations
    for op in firsts:
        result = scratch[op.target].view(op.dtype)[: out.size]
        results[op.target] = op.compute(*[lists[kind][place] for kind, place in op.operands], out=result)
    last.compute(*[lists[kind][place] for kind, place in last.operands], out=out)


# Threads --------------------------------------------------------------------------------------------------------------

_kept = threading.local()


def _scratch(count):
    """So many pieces of memory for blocks of 8-byte entries, which the thread keeps; more of them are shorter."""
    if not hasattr(_kept, "scratch"):
        _kept.scratch = np.empty(4 * BLOCK, "u8")
    length = min(BLOCK, len(_kept.scratch) // count)
    return [_kept.scratch[at * length : (at + 1) * length] for at in range(count)]


def is_own(thread: threading.Thread) -> bool:
    """Whether that is one of the threads that are kept here, and wait while nothing is computed."""
    return thread.name.startswith(NAMES)


@functools.cache
def _pool(flushes):
    """One thread less than compute, as the caller's own is one: each keeps scratch."""
    return ThreadPoolExecutor(max(1, THREADS - 1), NAMES, _flush_denormals if flushes else None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # where its threads do not run


@functools.cache
def can_flush() -> bool:
    """Whether threads can be told to take denormal numbers for zeros, as those of XLA and TensorFlow do."""
    small, found = np.full(64, 2.0**-130, np.float32), np.ones((2, 64), np.float32)
    _pool(True).submit(lambda: (np.multiply(small, np.float32(2), found[0]), np.add(small, small, found[1]))).result()
    return not found.any()


def _run_flushing(task):
    """Runs a task in this thread, which takes denormal numbers for zeros meanwhile."""
    before = _environment()
    try:
        _flush_denormals()
        task()
    finally:  # one call of C code, so that no interrupt comes in between
        if _LIBRARY is not None:
            _LIBRARY.fesetenv(before)


def _flush_denormals():
    """Sets the flags of the thread's floating-point unit, where these lie as glibc has them in its `fenv_t`."""
    if _LIBRARY is not None:
        environment = _environment()
        environment[_PLACE] |= _FLUSH
        _LIBRARY.fesetenv(environment)


def _environment():
    """That of the thread's floating-point unit."""
    found = (ctypes.c_uint32 * 16)()
    if _LIBRARY is not None:
        _LIBRARY.fegetenv(found)
    return found


# The word with the flags, and those that flush the results and the operands.
_FLAGS = {("glibc", "x86_64"): (7, 0x8040), ("glibc", "aarch64"): (0, 1 << 24)}
_PLACE, _FLUSH = _FLAGS.get((platform.libc_ver()[0], platform.machine()), (0, 0))
_LIBRARY = ctypes.CDLL(None) if _FLUSH else None
