"""A system as Windows is.

No `pread`, no `fcntl`, no open directories; files that are open keep their names, and so do the folders that hold them;
only what is open for writing is flushed; the time of a file is that at which it was closed.
"""

import errno
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scenes
from models import dense, filled
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint import disk, journal, recovery
from kpatch.errors import FileError

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which files are open"),
]


@pytest.fixture(autouse=True)
def windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pread", "pwrite", "copy_file_range", "O_DIRECTORY", "chown"):
        monkeypatch.delattr(os, name, raising=False)
    locked = {}

    def locking(descriptor, mode, count):
        state = os.fstat(descriptor)
        for other, known in locked.items():
            if known == state.st_ino and other in open_files() and other != descriptor:
                raise OSError(errno.EACCES, "Permission denied")
        locked[descriptor] = state.st_ino

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(disk, "RENAMES_OPEN", False)
    for name in ("replace", "rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, closed(getattr(os, name)))
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # else names are relative to descriptors
    monkeypatch.setattr(os, "open", only_files(os.open))
    monkeypatch.setattr(os, "fsync", only_writers(os.fsync))
    written = set()
    monkeypatch.setattr(os, "write", noted(os.write, written))
    monkeypatch.setattr(os, "close", dated(os.close, written))
    return tmp_path


def open_files():
    found = {}
    for each in os.listdir("/proc/self/fd"):
        try:
            found[int(each)] = os.readlink(f"/proc/self/fd/{each}")
        except OSError:
            continue
    return found


def closed(call):
    """The call, which fails for files that this process has open or mapped."""

    def checked(*paths, **options):
        mapped = [line.partition("/") for line in Path("/proc/self/maps").read_text().splitlines()]
        held = {*open_files().values(), *("/" + path for _, _, path in mapped)}
        for path in map(os.path.realpath, paths):
            if any(f"{each}/".startswith(f"{path}/") for each in held):
                raise PermissionError(errno.EACCES, "The process cannot access the file", path)
        if call.__name__ == "rename" and os.path.lexists(paths[1]):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", paths[1])
        return call(*paths, **options)

    return checked


def only_files(call):
    def checked(path, *args, **options):
        if os.path.isdir(path) and not (args and args[0] & os.O_TMPFILE == os.O_TMPFILE):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return call(path, *args, **options)

    return checked


def only_writers(call):
    def checked(descriptor):
        if flags(descriptor) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return call(descriptor)

    return checked


def flags(descriptor):
    return int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()[3], 8)


def noted(call, written):
    def writing(descriptor, data):
        written.add(descriptor)
        return call(descriptor, data)

    return writing


def dated(call, written):
    """Closing a file that was written to sets its time."""

    def closing(descriptor):
        if descriptor in written:
            state = os.fstat(descriptor)
            os.utime(descriptor, ns=(state.st_atime_ns, state.st_mtime_ns + 100))
            written.remove(descriptor)
        return call(descriptor)

    return closing


@pytest.fixture(params=["a.safetensors", "a.keras", "a.h5", "hf"])
def saved(request):
    name = request.param
    weights = {"w": np.arange(12, dtype="float32").reshape(3, 4), "v": np.ones(3, "float32")}
    if name == "a.keras":
        filled(dense()).save(name)
    elif name == "a.h5":
        import h5py

        with h5py.File(name, "w") as file:
            for key, value in weights.items():
                file[key] = value
    elif name == "hf":
        import json

        os.mkdir(name)
        save_file(weights, "hf/one.safetensors")
        where = dict.fromkeys(weights, "one.safetensors")
        Path("hf/model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        save_file(weights, name)
    return name


def test_files_are_edited_and_undone(saved):
    out = f"out{Path(saved).suffix}"
    first = next(iter(checkpoint.open(saved)))
    before = checkpoint.open(saved)[first]
    patch = f"{first}[0] = 7; ** = clip(_, -1, 5); {first} += 1"
    checkpoint.apply(saved, patch, out, journal=True)
    for number in (2, 3):
        checkpoint.apply(saved, f"{first} = {number}", in_place=True, journal=True)
    assert kpatch.diff(saved, out).differences
    checkpoint.undo(saved)
    assert (checkpoint.open(saved)[first] == 2).all()
    checkpoint.undo(saved)
    checkpoint.undo(out)
    for path in (saved, out):
        np.testing.assert_array_equal(checkpoint.open(path)[first], before)
    kpatch.diff(saved, out).save("p.kpatch")
    assert not [path for path in Path().rglob("*") if "kpatch-" in path.name]


@pytest.mark.parametrize("name", list(scenes.names())[:: 1 if "KPATCH_FAULTS" in os.environ else 5])
def test_every_way_of_writing(name, tmp_path, monkeypatch):
    """With the result that it has elsewhere, and nothing left."""
    made = scenes.Scene(name, tmp_path / "here")
    made.run_from_start()
    found = made.state()
    assert not made.left()
    monkeypatch.undo()
    other = scenes.Scene(name, tmp_path / "there")
    other.run_from_start()
    assert found == other.state()


def test_an_opened_file_stays_the_same_through_edits_of_this_process():
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    opened = checkpoint.open("a.safetensors")
    for number in range(3):
        checkpoint.apply(opened, f"w[{number}] = 1", in_place=True)
    Path("a.safetensors").write_bytes(Path("a.safetensors").read_bytes())
    with pytest.raises(FileError, match="has changed since"):
        checkpoint.apply(opened, "w = 2", in_place=True)


def test_an_edit_that_fails_is_taken_back(monkeypatch):
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    data = Path("a.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.Journal, "keep", full)
    with pytest.raises(FileError, match="cannot write"):
        checkpoint.apply("a.safetensors", "w = 1", in_place=True, journal=True)
    assert (Path("a.safetensors").read_bytes(), os.listdir()) == (data, ["a.safetensors"])


def test_a_lock_keeps_a_second_process_out():
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    with disk.lock(Path("a.safetensors")), pytest.raises(FileError, match="is being edited by another process"):
        recovery.discard(Path("a.safetensors"))
    assert os.listdir() == ["a.safetensors"]
    checkpoint.apply("a.safetensors", "w = 1", in_place=True)


def test_a_system_without_any_locks(monkeypatch):
    monkeypatch.setitem(sys.modules, "msvcrt", None)
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    checkpoint.apply("a.safetensors", "w = 1", in_place=True)
    assert checkpoint.open("a.safetensors")["w"].tolist() == [1] * 5
