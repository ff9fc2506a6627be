"""The file that was parsed is the file that is written: a file that is replaced or rewritten at any call of an edit."""

import json
import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest
from calls import at_each_call
from click.testing import CliRunner
from models import dense, filled
from safetensors.numpy import load_file, save_file

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint import editor
from kpatch.errors import FileError
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free

CHANGED = "'{}' has changed since kpatch opened it; run the command again, or in Python open the file again"
REPLACED = "'{}' was replaced or removed while kpatch edited it; the edit was not made"


def arrays(seed, extra=0):
    rng = np.random.default_rng(seed)
    shapes = {"a0": (7 + extra,), "w": (40, 3), "z": (5,)}  # what stands first moves the others
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def save_safetensors(path, seed, extra=0):
    save_file(arrays(seed, extra), path)


def save_h5(path, seed, extra=0):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["first"] = np.zeros(7 + extra, "float32")
        file["w"] = rng.normal(size=(40, 3)).astype("float32")
        file["z"] = rng.normal(size=(5,)).astype("float32")


def save_keras(path, seed, extra=0):
    model = filled(dense(), seed=seed)
    model.compile("adam" if extra else "sgd")
    model.save(path)


def save_shards(path, seed, extra=0):
    names = [path.name.replace(".weights.json", f"_{n:05}.weights.h5") for n in range(2)]
    for number, name in enumerate(names):
        with h5py.File(path.with_name(name), "w") as file:
            file["first"] = np.zeros(7 + extra, "float32")
            file["wz"[number]] = np.random.default_rng(seed + number).normal(size=(40, 3)).astype("float32")
    path.write_text(json.dumps({"weight_map": {"/all": names}}), encoding="utf-8")


KINDS = {
    "a.safetensors": (save_safetensors, "w[1:9] *= 2; z = 3"),
    "a.weights.h5": (save_h5, "w[1:9] *= 2; z = 3"),
    "a.keras": (save_keras, "dense_1.kernel[1:3] *= 2; dense_2.bias = 3"),
    "a.weights.json": (save_shards, "w[1:9] *= 2; z[0] = 3"),
}


class Lab:
    """A file, another one that will take its place, and what the patch makes of each."""

    def __init__(self, tmp_path, name):
        self.save, self.patch = KINDS[name]
        self.step = 3 if name.endswith(".json") else 1  # three files make three times the calls
        self.stem = name.partition(".")[0]
        self.work = tmp_path / "work"
        self.path = self.work / name
        self.out = self.work / name.replace("a.", "out.")
        self.old, self.other = (self._made(tmp_path / which, number) for number, which in enumerate(("old", "other")))
        self.old_patched, self.other_patched = self._patched(self.old), self._patched(self.other)

    def _made(self, folder, number):
        folder.mkdir()
        self.save(folder / self.path.name, number, 2 * number)
        return folder

    def _patched(self, folder):
        to = folder.with_name(f"{folder.name}-patched")
        shutil.copytree(folder, to)
        checkpoint.apply(to / self.path.name, self.patch, in_place=True)
        return to

    def reset(self):
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.old, self.work)
        self.release()
        # the old files, whatever their names mean by then
        self.open = {name: (self.work / name).open("rb") for name in self.names(self.work)}

    def release(self):
        for file in getattr(self, "open", {}).values():
            file.close()

    def held(self):
        """The bytes of the files that had the names at first."""
        for file in self.open.values():
            file.seek(0)
        return {name: file.read() for name, file in self.open.items()}

    def names(self, folder):
        return sorted(name for name in os.listdir(folder) if name.startswith(f"{self.stem}"))

    def replace(self):
        for name in self.names(self.other):
            shutil.copy(self.other / name, self.work / "new")
            os.replace(self.work / "new", self.work / name)

    def rewrite(self):
        """Another file's bytes in the same file, as h5py and `cp` write them."""
        for name in self.names(self.other):
            data = (self.other / name).read_bytes()
            if (self.work / name).read_bytes() == data:
                continue  # the map of shards
            (self.work / name).write_bytes(data)
            os.utime(self.work / name, ns=(1, 1))  # a clock may be too coarse for a test

    def bytes(self, folder):
        return {name: (folder / name).read_bytes() for name in self.names(folder) if not name.endswith("-undo")}

    def is_clean(self):
        left = {name for name in os.listdir(self.work) if "kpatch" in name and not name.endswith(".kpatch-undo")}
        return not left


@pytest.fixture(params=KINDS)
def lab(tmp_path, request):
    made = Lab(tmp_path, request.param)
    yield made
    made.release()


def texts(lab):
    paths = [lab.work / name for name in lab.names(lab.old)]
    return {text.format(path) for path in paths for text in (CHANGED, REPLACED)}


@pytest.mark.parametrize("journal", [False, True])
def test_a_file_that_is_replaced_during_an_edit_in_place(lab, journal, monkeypatch):
    monkeypatch.setattr(editor, "GATHERED", 64)  # several records are on the disk before the end
    refused = []
    for call, error in at_each_call(
        lambda: checkpoint.apply(lab.path, lab.patch, in_place=True, journal=journal), lab.replace, lab.reset, lab.step
    ):
        now, held = lab.bytes(lab.work), lab.held()
        if error is None:  # the new file was parsed, or the edit was done before
            assert (now, held) in (
                (lab.bytes(lab.other_patched), lab.bytes(lab.old)),
                (lab.bytes(lab.other), lab.bytes(lab.old_patched)),
            ), call
        else:
            assert str(error) in texts(lab), call
            assert (now, held) == (lab.bytes(lab.other), lab.bytes(lab.old)), call
            refused.append(str(error))
        assert lab.is_clean(), call
        checkpoint.open(lab.path)
    assert len(refused) > 10
    assert {error.partition("' ")[2] for error in refused} == {text.partition("' ")[2] for text in (CHANGED, REPLACED)}


@pytest.mark.parametrize(
    ("name", "change"),
    [*((name, "replace") for name in KINDS), ("a.safetensors", "rewrite")],
)
def test_a_file_that_changes_while_a_copy_is_edited(tmp_path, name, change):
    lab, refused = Lab(tmp_path, name), 0
    edit, change = lambda: checkpoint.apply(lab.path, lab.patch, lab.out, journal=True), getattr(lab, change)
    for call, error in at_each_call(edit, change, lab.reset, lab.step):
        assert lab.bytes(lab.work) == lab.bytes(lab.other), call
        made = sorted(name for name in os.listdir(lab.work) if name.startswith("out"))
        if error is None:
            names = [name for name in made if not name.endswith((".kpatch-undo", ".json"))]  # the map names the shards
            found = [(lab.work / name).read_bytes() for name in names]
            assert found in [
                [(of / name.replace("out", "a")).read_bytes() for name in names]
                for of in (lab.old_patched, lab.other_patched)
            ], call
        else:
            assert str(error) in texts(lab), call
            assert made == [], call
            refused += 1
        assert lab.is_clean(), call
    assert refused > 10


def test_a_file_that_is_rewritten_before_the_first_byte_of_an_edit_in_place(lab):
    """Afterwards there is no telling it from the edit itself."""
    lab.reset()
    opened = checkpoint.open(lab.path)
    lab.rewrite()
    with pytest.raises(FileError) as info:
        checkpoint.apply(opened, lab.patch, in_place=True)
    assert str(info.value) in texts(lab)
    assert lab.bytes(lab.work) == lab.bytes(lab.other)
    assert lab.is_clean()


def test_a_file_that_is_replaced_during_undo(lab):
    def reset():
        lab.reset()
        checkpoint.apply(lab.path, lab.patch, in_place=True, journal=True)

    refused = 0
    for call, error in at_each_call(lambda: checkpoint.undo(lab.path), lab.replace, reset, lab.step):
        now, held = lab.bytes(lab.work), lab.held()
        assert now == lab.bytes(lab.other), call
        if error is None:
            assert held == lab.bytes(lab.old), call
        else:
            undone = f"'{lab.path.name}.kpatch-undo' is of another file than '{lab.path.name}' is now"
            assert str(error) in texts(lab) or undone in str(error).replace(f"{lab.work}{os.sep}", ""), call
            assert held == lab.bytes(lab.old_patched), call
            refused += 1
        assert lab.is_clean(), call
    assert refused > 10


def test_a_link_that_is_pointed_elsewhere(tmp_path):
    """`latest.safetensors`, while a training run goes on."""
    first, second, latest = (tmp_path / f"{name}.safetensors" for name in ("step_1", "step_2", "latest"))
    save_safetensors(first, 1)
    save_safetensors(second, 2)
    latest.symlink_to(first)
    opened, data = checkpoint.open(latest), (first.read_bytes(), second.read_bytes())
    latest.unlink()
    latest.symlink_to(second)
    for place in ({"in_place": True}, {"out": tmp_path / "out.safetensors"}):
        with pytest.raises(FileError) as info:
            checkpoint.apply(opened, "z = 3", **place)
        assert str(info.value) == CHANGED.format(latest)
    assert (first.read_bytes(), second.read_bytes()) == data
    assert sorted(os.listdir(tmp_path)) == ["latest.safetensors", "step_1.safetensors", "step_2.safetensors"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_donor_that_changes(tmp_path, in_place):
    path, donor, out = (tmp_path / f"{name}.safetensors" for name in ("a", "donor", "out"))
    where = {"in_place": True} if in_place else {"out": out}
    texts = {CHANGED.format(donor), f"'{donor}' was there when kpatch opened it: no such file or directory"}

    def reset():
        out.unlink(missing_ok=True)
        save_safetensors(path, 0)
        save_safetensors(donor, 1)

    def replace():
        save_safetensors(tmp_path / "new", 2, 2)
        os.replace(tmp_path / "new", donor)

    reset()
    old, wanted = path.read_bytes(), set()
    for seed, extra in ((1, 0), (2, 2)):
        save_safetensors(donor, seed, extra)
        checkpoint.apply(path, "w = 0.5 * _ + $d.w", out, overwrite=True, d=checkpoint.open(donor))
        wanted.add(out.read_bytes())
    refused = 0
    for call, error in at_each_call(
        lambda: checkpoint.apply(path, "w = 0.5 * _ + $d.w", d=checkpoint.open(donor), **where), replace, reset
    ):
        if error is None:
            assert (path if in_place else out).read_bytes() in wanted, call
        else:
            assert error.message in texts, call
            assert path.read_bytes() == old, call
            assert not out.exists(), call
            refused += 1
    assert refused > 10


def test_a_comparison_of_files_that_change(tmp_path):
    a, b, to = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "to.kpatch"

    def reset():
        for path in (to, to.with_suffix(".safetensors")):
            path.unlink(missing_ok=True)
        save_safetensors(a, 0)
        save_safetensors(b, 1)

    def replace():
        save_safetensors(tmp_path / "new", 2)
        os.replace(tmp_path / "new", b)

    both, refused = [arrays(1), arrays(2)], 0
    for call, error in at_each_call(lambda: checkpoint.diff(a, b).save(to), replace, reset):
        if error is None:
            values = load_file(to.with_suffix(".safetensors"))["w"].tobytes()
            assert values in [both[0]["w"].tobytes(), both[1]["w"].tobytes()], call
        else:
            assert str(error) == CHANGED.format(b), call
            assert not to.exists(), call
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("place", [["--in-place"], ["-o", "out.keras"]])
def test_a_model_that_is_replaced_while_it_is_loaded_and_saved_again(tmp_path, monkeypatch, place):
    """Its weights are compressed."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(_saved(tmp_path / "plain.keras")) as plain, zipfile.ZipFile(path, "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    apply, other = kpatch.apply, (tmp_path / "plain.keras").read_bytes()

    def replacing(*args, **kwargs):
        os.replace("plain.keras", "a.keras")
        return apply(*args, **kwargs)

    monkeypatch.setattr(kpatch, "apply", replacing)
    result = CliRunner().invoke(main, ["apply", "a.keras", "-e", "dense_1.bias = 7", *place])
    assert (result.exit_code, result.stderr) == (1, f"kpatch.FileError: {CHANGED.format('a.keras')}\n")
    assert path.read_bytes() == other
    assert os.listdir() == ["a.keras"]


def _saved(path):
    filled(dense()).save(path)
    return path
