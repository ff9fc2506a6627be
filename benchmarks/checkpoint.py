"""Measures patches on files: `python benchmarks/checkpoint.py`, with `--size` in MiB and `--directory` for the disk.

Each figure is of a whole process, the best of `--rounds`, in which kpatch and what it is held against take turns; the
start of a process is measured too, and taken off where the target does so. The disk's speed is that of `cp`, and of
`cp` with a `sync` of the copy: kpatch waits for the disk before it renames, and a plain `cp` does not. Memory is what a
process adds to its peak once Keras is imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import SCALES, Row, added_peak, machine, once
from rich.console import Console
from run import _table

ENTRY = "dense_1.kernel[5, 7] = {}"
PRUNE = "**.kernel[abs(_) < 0.01] = 0"
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
    old, new, other, copy = (directory / f"{name}.keras" for name in ("old", "new", "other", "copy"))
    _worker("make", old, size)
    _run("cp", old, other)
    commands = {
        "start": [sys.executable, "-c", "import keras, kpatch.tools.command_line"],
        "cp": ["cp", old, copy],
        "cp + sync": ["sh", "-c", f"cp {old} {copy} && sync {copy}"],
        "entry": [*KPATCH, "apply", old, "-e", ENTRY.format(1), "-o", new],
        "prune": [*KPATCH, "apply", old, "-e", PRUNE, "-o", copy],
        "cmp": ["cmp", old, other],
        "diff": [*KPATCH, "diff", old, other],
    }
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, command in commands.items():
            for path in (new, copy):
                path.unlink(missing_ok=True)
            os.sync()  # what was written before is no part of the time
            best[name] = min(best[name], once(_run, *command)[0])
    start, plain, synced = best["start"], best["cp"], best["cp + sync"]
    for name, copied in (("cp", plain), ("cp + sync", synced)):
        note = f"process of {best['entry']:.2f} s, start {start:.2f} s"
        yield Row(f"one entry, a copy, against {name}", best["entry"] - start, copied, "s", 1.5, note=note)
    work = min(_worker("in_place", other, number)["seconds"] for number in range(rounds))
    yield Row("one entry, in place: the work", work * 1e3, unit="ms", limit=50, absolute=True)
    for name, patch in (("one entry", ENTRY.format(2)), ("prune", PRUNE)):
        added = _worker("memory", old, copy, patch)["added"]
        yield Row(f"{name}: added to the peak of `import keras`", added, unit="MB", limit=50, absolute=True)
    for name, copied in (("cp", plain), ("cp + sync", synced)):
        note = f"process of {best['prune']:.2f} s"
        yield Row(f"prune, a copy, against {name}", best["prune"] - start, copied, "s", 2, note=note)
    bounded = _worker("bounded", old, copy, PRUNE)
    yield Row("prune within 64 MiB more than it holds", bounded["seconds"], unit="s", note="by RLIMIT_AS")
    _run("cp", old, other)
    note = f"process of {best['diff']:.2f} s"
    yield Row("diff of equal files, against cmp", best["diff"] - start, best["cmp"], "s", 2, note=note)


KPATCH = [sys.executable, "-c", "from kpatch.tools.command_line import main; main()"]


def _run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, env=_environment())


def _worker(*arguments):
    command = [sys.executable, __file__, "--worker", *map(str, arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
    return json.loads(found.stdout.splitlines()[-1])


def _environment():
    return {**os.environ, "KERAS_BACKEND": "numpy", "TF_CPP_MIN_LOG_LEVEL": "3"}


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
    import keras  # noqa: F401

    from kpatch import checkpoint

    return {"seconds": once(lambda: checkpoint.apply(path, ENTRY.format(value), in_place=True))[0]}


def memory(path, out, patch):
    import keras  # noqa: F401

    from kpatch import checkpoint

    found = added_peak(lambda: checkpoint.apply(path, patch, out))
    return {"added": found and found[1]}


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


WORKERS = {each.__name__: each for each in (make, in_place, memory, bounded)}

if __name__ == "__main__":
    main()
