"""Measures kpatch on each backend, and says which targets are met: `python benchmarks/run.py`.

    python benchmarks/run.py --backend torch jax --only point region
    python benchmarks/run.py --quick --json figures.json
    JAX_PLATFORMS=cuda,cpu CUDA_VISIBLE_DEVICES=0 python benchmarks/run.py --backend jax torch     # on a GPU

How the ratios are formed. Absolute times say little on another machine, so each figure is held against a baseline of
the same process: kpatch and its baselines take turns of 2 ms or one call, each turn gives the mean time of a call,
the figure is that of the best turn, which other processes disturbed least. The ratio is the quotient of the two
figures of the row, from this one run. The first calls, which compile, are apart. Garbage collection stays on, as for
a user, where the row does not say otherwise. Every edit keeps its old values. A backend runs in a process of its own;
so do the benchmarks that need a fresh one (memory, shards). Where a target says "before and after", an unedited twin
runs beside, and takes out the drift. A row without a target is there for the reader. "met" is what was measured, in
this run, without any allowance.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

from measure import Row, machine
from rich.console import Console
from rich.table import Table

BACKENDS = ("numpy", "jax", "torch", "tensorflow")
SHARDS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives memory back at once, so that the peak is what was needed
ALONE = {
    "memory": {},
    "prune_memory": RETURNED,
    "first": {},
    "sharded": SHARDS,
}  # benchmarks with a process of their own, and its environment
RUNS = {"first": 3}  # benchmarks of one call, whose rows are those of the median ratio of so many processes
TITLES = {
    "point": "One entry of a float32 4096×4096 kernel",
    "flat": "Flat in the size of the variable",
    "trace": "No trace on later speed, after 1,000 edits",
    "bulk": "Many statements in one patch, against ast.parse",
    "region": "kernel[:2048, ::2] *= 0.5 of 4096×4096, against the backend's own",
    "memory": "One entry of a 1 GiB variable: added to the peak of the host's memory",
    "prune": "Magnitude pruning of ResNet50 by one glob line, against the fastest loop by hand",
    "prune_memory": "The same: added to the peak, over the largest kernel",
    "merge": "Merging two ResNet50 by one glob line, against a loop by hand",
    "clip": "Clipping ResNet50's kernels by one glob line, against loops by hand; those in blocks have the same bits",
    "mask": "Setting the small entries of ResNet50's kernels to 0 by one glob line, against loops by hand",
    "first": "The first edit of MobileNetV2 in a process and its undo, against a loop with get_weights and set_weights",
    "resolve": "Selectors in a model of 2,000 layers",
    "parse": "Parsing one statement",
    "imports": "import kpatch",
    "sharded": "A variable sharded over 8 virtual devices",
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
ONLY_ON = {"sharded": ("jax",)}


def main():
    arguments = _arguments()
    if arguments.worker:
        _work(arguments.only, arguments.seconds)
        return 0
    console, progress = Console(width=max(Console().width, 150)), Console(stderr=True)
    found = {name: [] for name in arguments.only}
    for backend in arguments.backend:
        for names, environment in _processes(arguments.only, backend):
            progress.print(f"{backend}: {', '.join(names)}", style="dim")
            for name, row in _median_of_runs(backend, names, environment, 1.5 if arguments.quick else 5):
                found[name].append((backend, row))
    for name, rows in found.items():
        if rows:
            console.print(_table(TITLES[name], rows))
    console.print(machine(), highlight=False, style="dim")
    if arguments.json:
        _save(Path(arguments.json), found)
    return int(any(row.note.startswith("failed") for rows in found.values() for _, row in rows))


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS, metavar="NAME")
    names = ", ".join(TITLES)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=tuple(TITLES), metavar="NAME", help=names)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    parser.add_argument("--quick", action="store_true", help="less time for each: noisier")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def _processes(names, backend):
    """What is run in one process, with the environment that it needs."""
    names = [name for name in names if backend in ONLY_ON.get(name, BACKENDS)]
    together = [name for name in names if name not in ALONE]
    return [(together, {})] * bool(together) + [([name], ALONE[name]) for name in names if name in ALONE]


def _median_of_runs(backend, names, environment, seconds):
    """The rows of the benchmarks; of those in `RUNS` each is the one of the median ratio."""
    runs = [_run(backend, names, environment, seconds) for _ in range(RUNS.get(names[0], 1))]
    if len({len(run) for run in runs}) > 1:  # one has failed
        return min(runs, key=len)
    return [sorted(rows, key=lambda row: row[1].ratio or 0)[len(rows) // 2] for rows in zip(*runs, strict=True)]


def _run(backend, names, environment, seconds):
    """The rows of the benchmarks, from a process of the backend; a benchmark that fails is a row that says so."""
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    variables = {**QUIET, **os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path, **environment}
    command = [sys.executable, __file__, "--worker", "--seconds", str(seconds), "--only", *names]
    process = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    rows = [(line.pop("benchmark"), Row(**line)) for line in lines]
    done = {name for name, _ in rows}
    error = (process.stderr.strip().splitlines() or ["no output"])[-1]
    return rows + [(name, _failed(error)) for name in names if name not in done]


def _failed(error):
    return Row("", None, unit="", limit=0, absolute=True, note=f"failed: {error}")


def _work(names, seconds):
    """In the backend's process: a line of JSON for each row."""
    import targets

    for name in names:
        try:
            for row in getattr(targets, name)(seconds):
                print(json.dumps({"benchmark": name, **dataclasses.asdict(row)}), flush=True)
        except Exception as error:  # noqa: BLE001 (the others are still measured, and the row says what happened)
            traceback.print_exc()
            row = _failed(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            print(json.dumps({"benchmark": name, **dataclasses.asdict(row)}), flush=True)


def _table(title, rows):
    table = Table("backend", "measure", title=title, title_justify="left", title_style="bold", min_width=110)
    for heading in ("kpatch", "baseline", "ratio", "target"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    table.add_column("note", style="dim")
    previous = None
    for backend, row in rows:
        if previous not in (None, backend):
            table.add_section()
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met]
        figures = [_number(row.kpatch, row.unit), _number(row.baseline, row.unit), _number(row.ratio, "×", "")]
        table.add_row("" if backend == previous else backend, row.measure, *figures, row.target, met, row.note)
        previous = backend
    return table


def _number(figure, unit, space=" "):
    if figure is None:
        return ""
    digits = 0 if abs(figure) >= 1000 else 1 if abs(figure) >= 100 else 2
    return f"{figure:,.{digits}f}{space}{unit}".rstrip()


def _save(path, found):
    rows = [
        {"benchmark": name, "backend": backend, **dataclasses.asdict(row), "ratio": row.ratio, "met": row.met}
        for name, results in found.items()
        for backend, row in results
    ]
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
