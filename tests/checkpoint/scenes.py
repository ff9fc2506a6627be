"""Every way in which kpatch writes, over every format: for tests of what happens at each call to the system.

A scene makes files in a directory and runs a command there. `states` are the sets of files that a reader may meet:
those before the command, those after it, and those between the files that it puts in place one after the other.
"""

import contextlib
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.checkpoint import copying, editor, journal, saving
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import PatchError, UndoError

SHAPES = {"a.w": (40, 30), "a.v": (300,), "b.w": (30, 20), "b.v": (40,)}
PATCH = (
    "let t = a.w[0, 0]; *.w[1:3] = 7; a.v[::2] *= 3; *.w[abs(_) < 0.5] = 0; *.v[[5, 9]] += t;a.w = 0.5 * _ + 0.5 * $d._"
)
EARLIER = ("a.w[5] = 1; b.v = 2", "a.w[5, :3] = 8; b.w *= 2", "b.v += 1")


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


def save_h5(path, values):
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name.replace(".", "/")] = value


def save_packed(path, values):
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file.create_dataset(name.replace(".", "/"), data=value, chunks=True, compression="gzip")


def save_keras_2(path, values):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"a", b"b"]
        for name, value in values.items():
            layer, weight = name.split(".")
            file.require_group(layer).attrs["weight_names"] = [f"{layer}/{each}:0".encode() for each in "wv"]
            file[layer][f"{layer}/{weight}:0"] = value


def save_archive(path, values):
    inner = path.with_name("model.weights.h5")
    save_h5(inner, values)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("config.json", b"{}"), (inner.name, inner.read_bytes())):
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time of day
    inner.unlink()


def save_folder(path, values):
    (path / "assets").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "assets" / "words.txt").write_text(f"{values['a.v'][0]}")
    save_h5(path / "model.weights.h5", values)


def halves(values):
    return [{name: value for name, value in values.items() if name.startswith(part)} for part in "ab"]


def save_index(path, values):
    path.mkdir()
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    parts = halves(values)
    for name, part in zip(names, parts, strict=True):
        save_file(part, path / name)
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "config.json").write_text(json.dumps({"x": float(values["a.v"][0])}))


def save_shards(path, values):
    names = [path.name.replace(".weights.json", f"_{number:05}.weights.h5") for number in (0, 1)]
    for name, part in zip(names, halves(values), strict=True):
        save_h5(path.with_name(name), part)
    path.write_text(json.dumps({"weight_map": dict(zip(("/a", "/b"), names, strict=True))}))


KINDS = {
    "keras": (".keras", save_archive),
    "weights": (".weights.h5", save_h5),
    "packed": (".weights.h5", save_packed),
    "legacy": (".h5", save_keras_2),
    "safetensors": (".safetensors", lambda path, values: save_file(values, path)),
    "folder": ("", save_folder),
    "index": ("", save_index),
    "shards": (".weights.json", save_shards),
}
FILES = ("keras", "weights", "packed", "legacy", "safetensors")  # whose results replace other files
OF_PACKED = ("copy", "copy-one", "streamed", "diff")  # these arrays are not edited in place, and have no journal
HOWS = (
    "in-place", "journal", "recover", "undo", "undo-all", "discard", "log", "show",
    "copy", "copy-one", "copy-journal", "streamed", "over", "diff", "page",
)  # fmt: skip


def names():
    """The scenes: a kind of file and what is done with it."""
    for kind in KINDS:
        for how in HOWS:
            if kind == "packed":
                possible = how in OF_PACKED
            elif how in ("diff", "page"):
                possible = kind in ("safetensors", "folder")
            else:
                possible = how != "over" or kind in FILES
            if possible:
                yield f"{kind} {how}"


class Scene:
    """Files in a directory and a command; the directory is made anew by `reset`."""

    def __init__(self, name, folder):
        self.name = name
        self.kind, self.how = name.split()
        self.end, save = KINDS[self.kind]
        self.folder = Path(folder)
        self.old, self.other = (self.folder / which for which in ("old", "other"))
        for number, place in enumerate((self.old, self.other)):
            place.mkdir(parents=True)
            save(place / f"a{self.end}", arrays(3 * number))
            save_file(arrays(3 * number + 1), place / "d.safetensors")
            if self.how in ("diff", "page"):
                save(place / f"b{self.end}", arrays(3 * number + 2))
        self.work = self.folder / "work"
        self.path, self.out = self.work / f"a{self.end}", self.work / f"out{self.end}"

    def opened(self, path=None):
        opened = Checkpoint(path or self.path)
        vars(opened)["_model"] = None  # how names are made is not what is tried here
        return opened

    def apply(self, patch, *to, **options):
        donors = {"d": self.work / "d.safetensors"} if "$d" in patch else {}
        checkpoint.apply(self.opened(), patch, *to, **options, bindings=donors)

    # The command

    def reset(self, source=None):
        """Makes the files as they are before the command."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(source or self.old, self.work)
        if self.how in ("journal", "recover", "undo", "undo-all", "discard", "log"):
            for patch in EARLIER:
                self.apply(patch, in_place=True, journal=True)
        if self.how == "recover":
            self._cut_off()
        if self.how == "over":
            self.apply(EARLIER[0], self.out)
            for patch in EARLIER[1:]:
                checkpoint.apply(self.opened(self.out), patch, in_place=True, journal=True)
        if self.how in ("diff", "page"):
            checkpoint.apply(self.path, EARLIER[1], self.work / f"c{self.end}")
            self._diff("c")

    def _cut_off(self):
        """Leaves the journal of an edit as a kill does."""

        class Killed(BaseException):
            pass

        with (
            mock.patch.object(editor, "_end", side_effect=Killed),
            mock.patch.object(editor, "_take_back"),
            contextlib.suppress(Killed),
        ):
            self.apply(PATCH, in_place=True)
        assert self.left()

    def steps(self):
        """The commands, of which each is done or is not done."""
        how = self.how
        return {
            "in-place": [lambda: self.apply(PATCH, in_place=True)],
            "journal": [lambda: self.apply(PATCH, in_place=True, journal=True)],
            "recover": [self.recover],
            "copy": [lambda: self.apply(PATCH, self.out)],
            "copy-one": [lambda: self.apply("a.w *= 0.5", self.out)],
            "copy-journal": [lambda: self.apply(PATCH, self.out, journal=True)],
            "streamed": [self._streamed],
            "over": [lambda: self.apply(PATCH, self.out, overwrite=True, journal=True)],
            "undo": [lambda: checkpoint.undo(self.path)],
            "undo-all": [lambda: checkpoint.undo(self.path)] * len(EARLIER),
            "discard": [lambda: checkpoint.undo(self.path, discard=True)] * 2,
            "log": [lambda: checkpoint.log(self.path)],
            "show": [lambda: str(checkpoint.open(self.path))],
            "diff": [lambda: self._diff("b")],
            "page": [lambda: self._diff("b")],
        }[how]

    def _diff(self, other):
        found = checkpoint.diff(self.opened(), self.opened(self.work / f"{other}{self.end}"))
        saving.write(found, self.work / "to.kpatch", self.work / "to.html" if self.how == "page" else None, "x")

    def _streamed(self):
        """As a large file is copied: while the patch runs, by threads."""
        known, copying.SMALL = copying.SMALL, 0
        try:
            self.apply(PATCH, self.out)
        finally:
            copying.SMALL = known

    def run_from_start(self):
        self.reset()
        self.run()

    def run(self):
        for step in self.steps():
            step()

    # The files

    def state(self, folder=None):
        """Every file that a reader may meet → a digest of its bytes; of a journal the patch."""
        folder, found = folder or self.work, {}
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                found["/".join(parts)] = self._patch_of(path) if ".kpatch-undo" in path.name else digest(path)
        return found

    @staticmethod
    def _patch_of(path):
        try:
            whole = journal.read(path, path).whole
            return journal.head(path, path).patch if whole else "torn"
        except PatchError as error:
            return str(error)

    def states(self):
        """The states that may be found after a kill; the last one is that after the command."""
        found = self.whole_states()
        before, after = found[0], found[-1]
        ordered = [name for name in self.order() if before.get(name) != after.get(name)]
        for count in range(1, len(ordered)):
            done = {name: after.get(name) for name in ordered[:count]}
            found.insert(count, {name: data for name, data in {**before, **done}.items() if data is not None})
        return found

    def whole_states(self):
        """The states before the command, after each of its steps, and so after it."""
        self.reset()
        found = [self.state()]
        for step in self.steps():
            step()
            if self.state() != found[-1]:
                found.append(self.state())
        return found

    def order(self):
        """The files that are put in place one after the other."""
        if self.end == "":  # a folder, which is renamed as a whole
            return ["to.html", "to.safetensors", "to.kpatch"]
        journals = [f"{self.out.name}.kpatch-undo{end}" for end in ("-3", "", "-2")]  # a new one; old ones go
        shards = [f"out_{number:05}.weights.h5" for number in (0, 1)]
        return ["to.html", "to.safetensors", "to.kpatch", *shards, self.out.name, *journals]

    def left(self):
        """What kpatch has left of its own that nobody needs."""
        found = (path.relative_to(self.work) for path in self.work.rglob("*"))
        return [str(path) for path in found if any(part.startswith(".") for part in path.parts)]

    def recover(self):
        """What the next command does first."""
        Checkpoint(self.path)

    def undone(self):
        """What there is once all is taken back that can be, and what it must be then."""
        in_place = self.how in ("journal", "recover", "undo", "undo-all")
        with contextlib.suppress(UndoError):
            while True:
                checkpoint.undo(self.path if in_place else self.out)
        return (self.state(), self.state(self.old)) if in_place else (self._data("out"), self._data("a"))

    def _data(self, stem):
        """What a file, a folder or the shards of a map hold."""
        path = self.work / f"{stem}{self.end}"
        if path.is_dir():
            return self.state(path)
        files = sorted(self.work.glob(f"{stem}_*.weights.h5")) or [path]
        return {number: digest(file) for number, file in enumerate(files)}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def small_blocks(monkeypatch=None):
    """Has blocks and chunks be small, so that small files are edited as large ones are."""
    values = [(editor, "GATHERED", 2**9), (copying, "CHUNK", 2**12), (copying, "UNSYNCED", 2**11)]
    for module, name, value in values:
        setattr(module, name, value) if monkeypatch is None else monkeypatch.setattr(module, name, value)
