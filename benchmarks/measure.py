"""How things are measured: interleaved races, single shots, and the peak of the process's memory."""

import gc
import math
import platform
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from os import cpu_count, sched_getaffinity
from pathlib import Path

TURN = 0.002  # seconds that one contestant runs before the next has its turn: short, as then some are undisturbed
LEAST = 5  # rounds in any case
PACKAGES = {"numpy": "numpy", "jax": "jax", "torch": "torch", "tensorflow": ("tensorflow", "tensorflow_cpu")}
SCALES = {"µs": 1e6, "ms": 1e3}


@dataclass
class Row:
    """One line of a table: a figure of kpatch, what it is held against, and whether the target is met.

    `kpatch` and `baseline` are in `unit`. The ratio is `kpatch / baseline`, or its inverse where `faster` says that
    the target is a gain. `limit` bounds the ratio, or with `absolute` the figure itself; without a limit the row is
    there for the reader only.
    """

    measure: str
    kpatch: float | None
    baseline: float | None = None
    unit: str = "µs"
    limit: float | None = None
    absolute: bool = False
    faster: bool = False
    note: str = ""

    @property
    def ratio(self):
        if not self.baseline or not self.kpatch:
            return None
        return self.baseline / self.kpatch if self.faster else self.kpatch / self.baseline

    @property
    def met(self):
        if self.limit is None:
            return None
        figure = self.kpatch if self.absolute else self.ratio
        if figure is None:
            return False
        return figure >= self.limit if self.faster else figure <= self.limit

    @property
    def target(self):
        if self.limit is None:
            return ""
        bound = f"{'≥' if self.faster else '≤'} {self.limit:,.4g}"
        return f"{bound} {self.unit}" if self.absolute else f"{bound}×"


def race(contestants: dict[str, Callable], seconds: float, finish: Callable = lambda: None):
    """Seconds a call of each contestant: its best turn, of all the rounds that fit into the time.

    Each contestant is called twice before the clock first starts, and once before each of its turns, so that neither
    a compiler nor what the contestant before it left behind is counted. A turn is as many calls as fit into `TURN`, at
    least one. Another one begins each round. `finish` waits for what was only dispatched (jax), inside the clock.
    """
    calls = {name: _calls(function, finish) for name, function in contestants.items()}
    best = dict.fromkeys(contestants, math.inf)
    order, rounds, end = deque(contestants), 0, time.perf_counter() + seconds
    while rounds < LEAST or time.perf_counter() < end:
        for name in order:
            contestants[name]()
            finish()
            best[name] = min(best[name], _turn(contestants[name], calls[name], finish) / calls[name])
        order.rotate()
        rounds += 1
    return best


def _calls(function, finish):
    function()
    function()
    finish()
    return max(1, min(10_000, int(TURN / _turn(function, 1, finish))))


def _turn(function, calls, finish):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    finish()
    return time.perf_counter() - start


def figures(seconds, unit, *names):
    """Those of the contestants' times, in the unit."""
    return [seconds[name] * SCALES[unit] for name in names]


def once(function, *args):
    """The seconds that one call takes, and what it gives."""
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def added_peak(function):
    """MB that the process holds, and by how many a call raises the peak of it.

    Linux resets the peak on request; elsewhere the peak is the highest ever, which an earlier, higher one would hide:
    then there is no answer.
    """
    gc.collect()
    before = _reset_peak()
    if before is None:
        return None
    function()
    return before / 1e6, (_peak() - before) / 1e6


def _reset_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    held = _status("VmRSS")
    return held if abs(_peak() - held) < 2e6 else None


def _peak():
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine():
    """The machine in one line, for the foot of the tables."""
    parts = [_processor(), f"{len(sched_getaffinity(0))} of {cpu_count()} cores", platform.platform(terse=True)]
    parts += [f"Python {platform.python_version()}", f"keras {metadata.version('keras')}"]
    for name, distributions in PACKAGES.items():
        for distribution in (distributions,) if isinstance(distributions, str) else distributions:
            try:
                parts.append(f"{name} {metadata.version(distribution)}")
                break
            except metadata.PackageNotFoundError:
                continue
    return ", ".join(parts)


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
