"""A progress bar for long work, on a terminal or in a notebook.

What does the work counts bytes, and who calls it shows the bar.

Without a bar the counts go nowhere, so that the work need not know whether one is shown.
"""

import contextlib
import datetime
import html
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from rich import filesize
from rich.console import Console

SECONDS = 1.0  # shorter work has no bar
EVERY = 0.1  # seconds between two pictures of the bar
SWITCH = "KPATCH_PROGRESS"  # the environment variable: with "off", calls of the library have no bar
BAR, NUMBERS = 20, 34  # columns of the bar, and of what is told beside it

_shown: ContextVar["Bar | None"] = ContextVar("bar")  # not set: nobody has decided whether there is one


def expect(count: int) -> None:
    """Tells that `count` bytes more are to be done."""
    if (bar := _shown.get(None)) is not None:
        bar.total += count


def advance(count: int) -> None:
    """Tells that `count` bytes are done."""
    if (bar := _shown.get(None)) is not None:
        bar.advance(count)


def phase(what: str) -> contextlib.AbstractContextManager[None]:
    """A block of work without a rate, such as waiting for the disk: the bar says what it is."""
    bar = _shown.get(None)
    return contextlib.nullcontext() if bar is None else bar.phase(what)


@contextlib.contextmanager
def shown(what: str, console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """A block whose work has a bar, if the console is a terminal or a notebook, and the work takes over a second.

    Args:
        what: the work, in words.
        console: where the bar is shown; it is gone at the end.
        clock: a function that tells the time in seconds.
    """
    bar = _made(what, console, clock)
    token = _shown.set(bar)
    try:
        yield
    finally:
        _shown.reset(token)
        if bar is not None:
            bar.close()


def of_call(what: str, count: int, clock: Callable[[], float] = time.monotonic) -> "Bar | None":
    """The bar of a function that somebody waits for, of `count` bytes; the caller closes it.

    It is that of the block around the call. Without one it is the call's own if standard error is a terminal, or in a
    notebook; not in a thread beside the main one, and not if `KPATCH_PROGRESS` is "off".
    """
    try:
        bar = _shown.get()
    except LookupError:
        wanted = os.environ.get(SWITCH) != "off" and threading.current_thread() is threading.main_thread()
        bar = _made(what, Console(stderr=True), clock) if wanted else None
    if bar is not None:
        bar.total += count
    return bar


def _made(what: str, console: Console, clock: Callable[[], float]) -> "Bar | None":
    if console.quiet:
        return None
    if console.is_jupyter:
        return NotebookBar(what, console, clock)
    return Bar(what, console, clock) if console.is_terminal and not console.is_dumb_terminal else None


class Bar:
    """The bar of one block of work, which appears after a second.

    Attributes:
        total: the number of bytes to be done, as far as it is known.
    """

    def __init__(self, what: str, console: Console, clock: Callable[[], float]) -> None:
        self.total = 0
        self._what, self._console, self._clock = what, console, clock
        self._done, self._start = 0, clock()
        self._next = self._start + SECONDS
        self._progress: Any = None

    def advance(self, count: int) -> None:
        self._done += count
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY
        self._show(self._told(now))

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """As the function: a timer draws the bar, since the work itself tells nothing."""
        timer = threading.Timer(max(0.0, self._next - self._clock()), self._show, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _show(self, told: str) -> None:
        try:
            self._draw(told)
        except (OSError, ValueError):  # a terminal that is gone does not end the work
            self._next = math.inf

    def _draw(self, told: str) -> None:
        started = self._progress is not None
        if not started:
            self._progress = self._made()
        self._progress.update(self._task, completed=self._done, total=self._whole, told=told)
        self._progress.refresh() if started else self._progress.start()

    @property
    def _whole(self) -> int:
        return max(self.total, self._done)

    def _told(self, now: float) -> str:
        """The rate, and the time left at that rate."""
        rate = self._done / (now - self._start)
        left = datetime.timedelta(seconds=round((self._whole - self._done) / rate)) if rate else "-"
        return f"{filesize.decimal(int(rate))}/s, {left} left"

    def _made(self) -> Any:
        from rich import progress

        columns = [
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(BAR),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[told]}"),
        ]
        made = progress.Progress(
            *columns, console=self._console, transient=True, auto_refresh=False, get_time=self._clock
        )
        room = max(8, self._console.width - NUMBERS - BAR)
        what = self._what if len(self._what) <= room else f"{self._what[: room - 1]}…"
        self._task = made.add_task(what, told="")
        return made

    def close(self) -> None:
        """Takes the bar away, for good."""
        self._next = math.inf
        with contextlib.suppress(OSError, ValueError):
            self._clear()

    def _clear(self) -> None:
        made, self._progress = self._progress, None
        if made is not None:
            made.stop()


class NotebookBar(Bar):
    """The same in the output of a notebook's cell, which is empty at the end."""

    _handle: Any = None

    def _draw(self, told: str) -> None:
        share = self._done / max(1, self._whole)
        what, told = html.escape(self._what), html.escape(f"{share:.0%} {told}")
        self._put(f"{self._what} {share:.0%}", f'{what} <progress max="1" value="{share:.3f}"></progress> {told}')

    def _put(self, text: str, page: str) -> None:
        data = {"text/plain": text, "text/html": page}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def _clear(self) -> None:
        if self._handle is not None:
            self._put("", "")
