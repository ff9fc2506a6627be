"""Edits that are killed: at each call that writes, half of its sectors written, and at random moments by SIGKILL.

`python tests/checkpoint/crash.py DIRECTORY COUNT [MODE ...]` prints the result. Each file must then be the old
one or the new one: at once where a copy was edited, and once the file has been opened where it was edited in place.
"""

import os
import random
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

from kpatch import checkpoint
from kpatch.checkpoint.opened import Checkpoint

PATCH = '**.0[1:3] = 7; "layers/a/vars/1"[::2] *= 3; "layers/a/vars/0" *= 0.5; **.1[[5, 9]] += 1'
SHAPES = {"layers/a/vars/0": (400, 300), "layers/a/vars/1": (3000,), "layers/b/vars/0": (300, 200), "b/vars/1": (40,)}
CALLS = ("pwrite", "fsync", "replace", "copy_file_range", "mkdir", "open")


class Lab:
    """A file in a directory, and an edit of it."""

    def __init__(self, directory, mode):
        self.mode = mode
        self.root = Path(directory, mode.replace(" ", "-"))
        kind, self.how = mode.split()
        self.old = self.root / "old"
        self.old.mkdir(parents=True)
        self.path = self.root / "work" / {"keras": "a.keras", "h5": "a.weights.h5", "shards": "a.weights.json"}[kind]
        self._make(kind)
        self.reset()
        if self.how == "undo":
            checkpoint.apply(self.opened(), PATCH, in_place=True, journal=True)
            shutil.rmtree(self.old)
            shutil.copytree(self.path.parent, self.old)
        self.before = self.state()
        self.edit()
        self.after = self.state()
        assert self.before != self.after

    def _make(self, kind):
        rng = np.random.default_rng(0)
        names = (
            [self.old / f"a_{n:05}.weights.h5" for n in range(2)] if kind == "shards" else [self.old / "a.weights.h5"]
        )
        where = {}
        for number, (name, shape) in enumerate(SHAPES.items()):
            with h5py.File(names[number % len(names)], "a") as file:
                file[name] = rng.normal(size=shape).astype("float32")
            where["/" + name.rpartition("/")[0]] = [each.name for each in names]
        if kind == "shards":
            import json

            (self.old / "a.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        if kind == "keras":
            with zipfile.ZipFile(self.old / "a.keras", "w") as archive:
                archive.writestr("config.json", "{}")
                archive.write(names[0], "model.weights.h5")
            names[0].unlink()

    def reset(self):
        if self.how == "undo" and self.path.parent.exists():
            self._write_back()
            return
        if self.path.parent.exists():
            shutil.rmtree(self.path.parent)
        shutil.copytree(self.old, self.path.parent)
        if self.how == "copy":
            shutil.copy(self.path, self.out)

    def _write_back(self):
        """The old bytes in the same files: a journal that is kept is of those alone."""
        for path in self.path.parent.iterdir():
            if not (self.old / path.name).exists():
                path.unlink() if path.is_file() else shutil.rmtree(path)
        for path in self.old.iterdir():
            (self.path.parent / path.name).write_bytes(path.read_bytes())

    @property
    def out(self):
        return self.path.with_name("out" + self.path.name[1:])

    def opened(self):
        opened = Checkpoint(self.path)
        vars(opened)["_model"] = None  # names are not what is tried here
        return opened

    def edit(self):
        if self.how == "undo":
            checkpoint.undo(self.path)
        elif self.how == "copy":
            checkpoint.apply(self.opened(), PATCH, self.out, overwrite=True)
        else:
            checkpoint.apply(self.opened(), PATCH, in_place=True)

    def state(self):
        """The bytes of every file that a reader may meet."""
        files = sorted(path for path in self.path.parent.iterdir() if path.is_file() and "kpatch" not in path.name)
        return {path.name: path.read_bytes() for path in files}

    def check(self):
        """Whether the files are the old ones; raises where they are neither the old nor the new ones."""
        if self.how == "copy":
            old, new = self.before[self.out.name], self.after[self.out.name]
            assert self.path.read_bytes() == old, "the source has changed"
            found = self.out.read_bytes()
        else:
            Checkpoint(self.path)  # recovers
            found, old, new = self.state(), self.before, self.after
        assert found in (old, new), f"{self.mode}: neither the old file nor the new one"
        return found == old


def forked(function):
    """Runs a function in a child process, and gives its id."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def at_each_call(lab):
    """Dies at the first call that writes, then at the second, until the edit gets through; gives how often it died."""
    for number in range(100_000):
        lab.reset()
        _, status = os.waitpid(forked(lambda number=number: _dying(lab, number)), 0)
        old = lab.check()
        if os.WEXITSTATUS(status) != 9:
            assert not old, "the edit fails"
            return number
    raise AssertionError("the edit does not end")


def _dying(lab, number):
    left = [number]

    def wrapped(name, call):
        def counted(*args, **kwargs):
            if left[0] == 0:
                if name == "pwrite":
                    descriptor, data, offset = args
                    whole = (offset + len(data) // 2) // 512 * 512 - offset  # a sector is written as a whole
                    call(descriptor, bytes(data)[: max(0, whole)], offset)
                os._exit(9)
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    lab.edit()


def at_random(lab, count, rng):
    """Kills the edit at random moments; gives how often the old file was found."""
    lab.reset()
    start = time.perf_counter()
    os.waitpid(forked(lab.edit), 0)
    longest = 1.2 * (time.perf_counter() - start)
    old = 0
    for _ in range(count):
        lab.reset()
        child = forked(lab.edit)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        old += lab.check()
    return old


MODES = tuple(f"{kind} {how}" for kind in ("keras", "h5", "shards") for how in ("in-place", "copy", "undo"))


def main(directory, count, modes=MODES):
    rng = random.Random(0)
    for mode in modes:
        if mode == "shards copy":
            continue  # needs new names: nothing is replaced
        lab = Lab(directory, mode)
        calls = at_each_call(lab)
        old = at_random(lab, count, rng)
        print(f"{mode}: {calls} calls, {count} kills, old {old}, new {count - old}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:]) or MODES)
