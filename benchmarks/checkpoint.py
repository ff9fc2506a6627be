"""Measures patches on files: `python benchmarks/checkpoint.py`, with `--size` in MiB and `--directory` for the disk.

Each figure is the median of whole processes, in `--rounds` in which kpatch and what it is held against take turns. They
are held against `cp` with a `sync` of the copy: kpatch waits for the disk before it renames. Memory is the peak of the
process, libraries included. The names of the file are in kpatch's cache, as at each look but the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import SCALES, Row, machine, once
from rich.console import Console
from run import _table

ENTRY = "dense_1.kernel[5, 7] = {}"
PRUNE = "**.kernel[abs(_) < 0.01] = 0"
MERGE = "**.kernel = 0.7 * _ + 0.3 * $b._"
CENTRE = "**.kernel = _ - mean(_)"
LAYERS = 4
SCALES["s"] = 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where the files are made; on the disk to be measured")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker[0]](*arguments.worker[1:])))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        rows = list(_rows(Path(directory), arguments.size, arguments.rounds))
    console = Console(width=120)
    console.print(_table(f"A .keras file of {arguments.size} MiB", [("numpy", row) for row in rows]))
    console.print(machine())


def _rows(directory, size, rounds):
    old, other, copy = (directory / f"{name}.keras" for name in ("old", "other", "copy"))
    os.environ["KPATCH_CACHE"] = str(directory / "names")
    _worker("make", old, size)
    _run("cp", old, other)
    apply = [*KPATCH, "apply", old, "-o", copy, "-e"]
    commands = {
        "cp": ["sh", "-c", f"cp {old} {copy} && sync {copy}"],
        "read and cp": ["sh", "-c", f"cat {other} > /dev/null && cp {old} {copy} && sync {copy}"],
        "show": [*KPATCH, "show", old, "dense_1.bias"],
        "entry": [*apply, ENTRY.format(1)],
        "prune": [*apply, PRUNE],
        "centre": [*apply, CENTRE],
        "merge": [*apply, MERGE, "--bind", f"b=@{other}"],
        "cmp": ["cmp", old, other],
        "diff": [*KPATCH, "diff", old, other],
    }
    seconds, peaks = {name: [] for name in commands}, dict.fromkeys(commands, 0)
    _run(*commands["show"])  # the names are kept
    for _ in range(rounds):
        for name, command in commands.items():
            copy.unlink(missing_ok=True)
            os.sync()  # what was written before is no part of the time
            took, peak = once(_run, *command)
            seconds[name].append(took)
            peaks[name] = max(peaks[name], peak)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    note = f"start, and the names: {middle['show']:.2f} s"
    yield Row("one entry, a copy, against cp + sync", middle["entry"], middle["cp"], "s", 1.1, note=note)
    yield Row("prune, a copy, against cp + sync", middle["prune"], middle["cp"], "s", 1.3)
    yield Row("merge of two, against reading both, cp + sync", middle["merge"], middle["read and cp"], "s", 1.3)
    yield Row("_ - mean(_), a copy, against cp + sync", middle["centre"], middle["cp"], "s")
    for name in ("entry", "prune", "merge", "centre"):
        yield Row(f"{name}: the peak of the process", peaks[name], unit="MB", limit=50, absolute=True)
    work = statistics.median(_worker("in_place", other, number)["seconds"] for number in range(rounds))
    yield Row("one entry, in place: the work", work * 1e3, unit="ms", limit=20, absolute=True)
    bounded = _worker("bounded", old, copy, PRUNE)
    yield Row("prune within 64 MiB more than it holds", bounded["seconds"], unit="s", note="by RLIMIT_AS")
    yield Row("diff of equal files, against cmp", middle["diff"], middle["cmp"], "s", 2)


KPATCH = [sys.executable, "-c", "from kpatch.tools.command_line import main; main()"]


def _run(*command):
    """Runs a command; the MB of its peak."""
    arguments = [str(part) for part in command]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=_environment())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _worker(*arguments):
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
    return json.loads(found.stdout.splitlines()[-1])


def _environment():
    """That of an installed program, whose modules are compiled."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "KERAS_BACKEND": "numpy", "TF_CPP_MIN_LOG_LEVEL": "3"}


# What a process of its own does ---------------------------------------------------------------------------------------


def make(path, size):
    import keras
    import numpy as np

    width = int((int(size) * 2**20 / 4 / LAYERS) ** 0.5)
    x = inputs = keras.Input((width,))
    for number in range(LAYERS):
        x = keras.layers.Dense(width, name=f"dense_{number}")(x)
    model, rng = keras.Model(inputs, x), np.random.default_rng(0)
    for layer in model.layers[1:]:
        layer.kernel.assign(rng.standard_normal((width, width), "float32") * 0.02)
    model.save(path)


def in_place(path, value):
    from kpatch import checkpoint

    checkpoint.plan(path, ENTRY.format(value))  # everything is imported
    return {"seconds": once(lambda: checkpoint.apply(path, ENTRY.format(value), in_place=True))[0]}


def bounded(path, out, patch):
    """The patch in a process that may hold 64 MiB of addresses more than it does with everything imported."""
    import resource

    from kpatch import checkpoint

    checkpoint.plan(path, patch)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**26,) * 2)
    start = time.perf_counter()
    checkpoint.apply(path, patch, out)
    return {"seconds": time.perf_counter() - start}


WORKERS = {each.__name__: each for each in (make, in_place, bounded)}

if __name__ == "__main__":
    main()
