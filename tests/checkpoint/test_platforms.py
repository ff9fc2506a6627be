"""A system as Windows is.

No `pread`, no `fcntl`, no open directories; files that are open keep their names, and so do the folders that hold them;
only what is open for writing is flushed; the time of a file is that at which it was closed.
"""

import ast
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
        if call.__name__ in ("replace", "unlink") and is_read_only(paths[-1]):
            raise PermissionError(errno.EACCES, "Access is denied", paths[-1])
        if call.__name__ == "rename" and os.path.lexists(paths[1]):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", paths[1])
        return call(*paths, **options)

    return checked


def is_read_only(path):
    return os.path.isfile(path) and not os.stat(path).st_mode & 0o200


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


@pytest.mark.parametrize("patch", ["a = 0.5 * _ + 0.5 * b", "a = b", "a = _ + mean(b)", "a[1:] = b[1:]"])
def test_a_compressed_array_is_read_while_its_file_is_edited(patch):
    """Both read from one file, each from a position of its own."""
    import h5py

    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((900, 700), "float32") for name in "ab"}
    with h5py.File("m.weights.h5", "w") as file:
        file["a"] = values["a"]
        file.create_dataset("b", data=values["b"], chunks=(50, 70), compression="gzip")
    checkpoint.apply("m.weights.h5", patch, "copy.weights.h5")
    checkpoint.apply("m.weights.h5", patch, in_place=True)
    expected = kpatch.edit(
        values["a"], patch.replace("a[", "_[").replace("a =", "_ =").replace("b", "$b"), b=values["b"]
    )
    for name in ("copy", "m"):
        np.testing.assert_array_equal(checkpoint.open(f"{name}.weights.h5")["a"], np.asarray(expected))


def test_a_file_that_is_read_only_is_replaced(monkeypatch):
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    save_file({"w": np.ones(5, "float32")}, "b.safetensors")
    os.chmod("b.safetensors", 0o444)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", _refusing(errno.EIO))
        with pytest.raises(FileError, match=r"^cannot write 'b.safetensors': input/output error$"):
            checkpoint.apply("a.safetensors", "w = 7", "b.safetensors", overwrite=True)
    assert (os.listdir(), is_read_only("b.safetensors")) == (["a.safetensors", "b.safetensors"], True)
    checkpoint.apply("a.safetensors", "w = 7", "b.safetensors", overwrite=True)
    assert checkpoint.open("b.safetensors")["w"].tolist() == [7] * 5
    assert (sorted(os.listdir()), is_read_only("b.safetensors")) == (["a.safetensors", "b.safetensors"], True)


def _refusing(number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("times", [2, 99])
def test_a_scanner_that_holds_a_file_for_a_moment(monkeypatch, times):
    """Windows renames no file that another program looks at."""
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    known, calls, pauses = os.replace, [], []

    def held(*paths):
        calls.append(paths)
        if len(calls) <= times:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        known(*paths)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(disk.time, "sleep", pauses.append)
    if times < disk.TRIES:
        checkpoint.apply("a.safetensors", "w = 1", "b.safetensors")
        assert checkpoint.open("b.safetensors")["w"].tolist() == [1] * 5
        assert len(pauses) == times
    else:
        with pytest.raises(FileError, match=r"^cannot write 'b.safetensors': "):
            checkpoint.apply("a.safetensors", "w = 1", "b.safetensors")
        assert (len(calls), os.listdir()) == (disk.TRIES, ["a.safetensors"])


def test_a_command_that_is_told_is_one_of_this_system(monkeypatch):
    assert journal.quoted("my files/a.keras") == '"my files/a.keras"'
    monkeypatch.setattr(disk, "RENAMES_OPEN", True)
    assert journal.quoted("my files/a.keras") == "'my files/a.keras'"


def test_stars_and_dollars_of_a_patch_are_no_files_and_no_variables(monkeypatch):
    """click would expand both on Windows, whose shells leave that to the commands."""
    import click.core

    from kpatch.tools.command_line import main

    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    Path("w = $os").write_text("")
    monkeypatch.setenv("os", "Windows_NT")
    monkeypatch.setattr(click.core, "os", types.SimpleNamespace(**{**vars(os), "name": "nt"}))
    options = ["--bind", "os=3", "-o", "b.safetensors"]
    monkeypatch.setattr(sys, "argv", ["kpatch", "apply", "a.safetensors", "-e", "* = $os", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert checkpoint.open("b.safetensors")["w"].tolist() == [3] * 5


def test_the_stars_of_check_mean_files():
    from kpatch.tools.check import expanded

    for name in ("b.kpatch", "a.kpatch", "[x].kpatch"):
        Path(name).write_text("w = 1")
    assert expanded(("?.kpatch", "[x].kpatch", "*.py", "-"), windows=True) == (
        "a.kpatch", "b.kpatch", "[x].kpatch", "*.py", "-"
    )  # fmt: skip
    assert expanded(("*.kpatch",), windows=False) == ("*.kpatch",)


def test_texts_that_are_written_say_how_their_lines_end():
    """Else Windows writes other bytes, and what kpatch wrote is not known as its own."""
    texts = [call for path in Path(kpatch.__file__).parent.rglob("*.py") for call in _writing(path)]
    assert texts
    assert [call for call in texts if "newline=" not in call] == []


def _writing(path):
    source = path.read_text(encoding="utf-8")
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        text for call in calls if ".write_text(" in (text := ast.unparse(call)) and "write_text" in ast.dump(call.func)
    ]
