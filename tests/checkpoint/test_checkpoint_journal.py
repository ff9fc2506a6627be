"""A journal is played back as it was written, or not at all; and there is a way out of each damage."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from calls import before_call
from click.testing import CliRunner
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.checkpoint import disk, editor, journal
from kpatch.errors import FileError, PatchError, UndoError
from kpatch.tools.command_line import main

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="an edit is cut off in a child process"),
]

PATCH = "w[0] = 7; w[3] *= 2; z[1:3] = 5; w[0, :2] = 8"
BEGUN, DONE = ".a.safetensors.kpatch-journal", "a.safetensors.kpatch-undo"
BY_HAND = "  move it away by hand: kpatch removes only what it wrote"
WAY_OUT = "  'kpatch undo --discard a.safetensors' removes the journal and does not change the file"


def save(path, seed=0):
    rng = np.random.default_rng(seed)
    save_file({"w": rng.normal(size=(5, 3)).astype("float32"), "z": rng.normal(size=4).astype("float32")}, path)


def cut_off(function, call="unlink"):
    """Runs an edit in a child process that dies before the last call of a kind, and says whether it did."""
    child = os.fork()
    if child == 0:
        try:
            setattr(os, call, lambda *args, **kwargs: os._exit(9))
            function()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 9 << 8


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(editor, "GATHERED", 8)  # each replacement is on the disk by itself
    save("a.safetensors")


class Scene:
    """A file and a journal, brought back before each damage; the file stays the same one."""

    def __init__(self, name):
        self.name = name
        self.path, self.journal = Path("a.safetensors"), Path(name)
        self.old = self.path.read_bytes()
        if name == BEGUN:
            assert cut_off(lambda: checkpoint.apply(self.path, PATCH, in_place=True))
        else:
            checkpoint.apply(self.path, PATCH, in_place=True, journal=True)
        self.new, self.whole = self.path.read_bytes(), self.journal.read_bytes()
        assert self.old != self.new

    def outcome(self, data):
        """What the command makes of a journal with other bytes: the new bytes of the file, or an error."""
        self.path.write_bytes(self.new)
        self.journal.write_bytes(data)
        try:
            checkpoint.open(self.path) if self.name == BEGUN else checkpoint.undo(self.path)
        except FileError as error:
            assert self.path.read_bytes() == self.new
            assert self.journal.read_bytes() == data
            self._discarded(data)
            return str(error)
        assert not self.journal.exists()
        return self.path.read_bytes()

    def _discarded(self, data):
        if is_begun(data):
            assert checkpoint.undo(self.path, discard=True) == self.journal
        else:
            with pytest.raises(FileError) as info:
                checkpoint.undo(self.path, discard=True)
            assert str(info.value) == f"'{self.name}' is not removed: {START}\n{BY_HAND}"
            assert self.journal.read_bytes() == data
            self.journal.unlink()
        assert os.listdir() == ["a.safetensors"]
        checkpoint.open(self.path)
        assert self.path.read_bytes() == self.new


def is_begun(data):
    """Whether a journal has its mark, as far as it goes: kpatch wrote it."""
    start = data[: len(journal.MAGIC)]
    return any(mark.startswith(start) for mark in journal.MARKS)


def damaged(name, why, way_out=WAY_OUT):
    return f"'{name}', the journal of an edit of 'a.safetensors', is damaged: {why}\n{way_out}"


EMPTY, START, HEADER, RECORD, END = (
    "it is empty",
    "it does not begin like a journal",
    "its header is damaged",
    "one of its records is damaged or missing",
    "it does not end like a journal",
)
OUTSIDE = "one of its records lies outside the file"
FILES = "its header does not name its files"


@pytest.fixture(params=[BEGUN, DONE])
def scene(here, request):
    return Scene(request.param)


def test_a_journal_that_is_whole(scene):
    assert scene.outcome(scene.whole) == scene.old


def test_a_journal_that_is_cut_off_at_every_byte(scene):
    texts = {damaged(scene.name, why) for why in (EMPTY, START, HEADER, RECORD)}
    found = {scene.outcome(scene.whole[:length]) for length in range(len(scene.whole))}
    assert found == texts


def test_a_journal_of_which_every_byte_is_flipped(scene):
    """Where the number that says how many records there are is damaged, the records are all there, and are used."""
    number = range(len(journal.MAGIC), len(journal.MAGIC) + 12)
    texts = {damaged(scene.name, why) for why in (HEADER, RECORD, END)} | {damaged(scene.name, START, BY_HAND)}
    for at in range(len(scene.whole)):
        for bits in (1, 0x80, 0xFF):
            data = bytearray(scene.whole)
            data[at] ^= bits
            outcome = scene.outcome(bytes(data))
            if scene.name == BEGUN and at in number:
                assert outcome == scene.old, at
            else:
                assert outcome in texts, at


@pytest.mark.parametrize("data", [b"", b"\0", b"garbage", bytes(1000), b"kpatch journal 1 [{}]\n", os.urandom(1000)])
def test_what_is_no_journal(scene, data):
    assert scene.outcome(data) == (damaged(scene.name, START, BY_HAND) if data else damaged(scene.name, EMPTY))


def test_what_follows_the_records(scene):
    """Of an edit that was cut off it is a record that was being written, whose bytes are untouched."""
    for tail in (b"x", bytes(40), scene.whole[100:150]):
        expected = scene.old if scene.name == BEGUN else damaged(scene.name, END)
        assert scene.outcome(scene.whole + tail) == expected


def made(files, records, count=True):
    """A journal with checksums that are right, whatever it says."""
    header = files if isinstance(files, bytes) else json.dumps(files).encode()
    data = struct.pack("<II", len(header), zlib.crc32(header)) + header
    for number, offset, old, new in records:
        head = struct.pack("<HQIII", number, offset, len(old), zlib.crc32(new), zlib.crc32(new[: 512 - offset % 512]))
        data += head + old + struct.pack("<I", zlib.crc32(head + old))
    end = struct.pack("<Q", len(journal.MAGIC) + 12 + len(data))
    return journal.MAGIC + end + struct.pack("<I", zlib.crc32(end)) * count + data


def test_records_that_lead_out_of_the_file(scene):
    state = os.stat(scene.path)
    files = [{"name": "a.safetensors", "size": state.st_size, "inode": state.st_ino}]
    for number, offset, length in (
        (0, 10**9, 4), (0, state.st_size, 1), (0, state.st_size - 3, 4), (0, 2**64 - 1, 4), (1, 0, 4), (65535, 0, 4),
    ):  # fmt: skip
        assert scene.outcome(made(files, [(number, offset, bytes(length), b"")])) == damaged(scene.name, OUTSIDE)


def test_headers_that_say_nothing_of_use(scene):
    state = os.stat(scene.path)
    good = {"name": "a.safetensors", "size": state.st_size, "inode": state.st_ino}
    for files in (
        [], {}, [1], "x", None, [None], [{}], [{**good, "more": 1}], [{**good, "size": "x"}], [{**good, "name": 3}],
        [{**good, "name": "../a.safetensors"}], [{**good, "name": "/etc/passwd"}], [{**good, "name": ""}],
        [{**good, "name": ".."}], b"[" * 100_000, b"\xff", b"NaN",
    ):  # fmt: skip
        assert scene.outcome(made(files, [])) == damaged(scene.name, FILES), files


def test_a_journal_of_another_file(scene):
    state = os.stat(scene.path)
    good = {"name": "a.safetensors", "size": state.st_size, "inode": state.st_ino}
    replaced = (
        f"'{BEGUN}' is the journal of an interrupted edit, and 'a.safetensors' has changed since\n"
        f"  if the file is as you want it: {WAY_OUT.strip()}"
    )
    other = f"'{BEGUN}' is the journal of 'b.safetensors', not of 'a.safetensors'\n{WAY_OUT}"
    for change, text in (
        ({"name": "b.safetensors"}, other),
        ({"inode": state.st_ino + 1}, replaced),
        ({"size": state.st_size + 1}, replaced),
    ):
        data = made([{**good, **change}], [(0, 100, b"1234", scene.new[100:104])])
        if scene.name == BEGUN:
            assert scene.outcome(data) == text
            continue
        scene.path.write_bytes(scene.new)
        scene.journal.write_bytes(data)
        with pytest.raises(UndoError) as info:
            checkpoint.undo(scene.path)
        assert str(info.value) == f"'{DONE}' is of another file than 'a.safetensors' is now\n{WAY_OUT}"
        assert (scene.path.read_bytes(), scene.journal.read_bytes()) == (scene.new, data)


def test_journals_of_two_files_that_are_swapped(here):
    """Of one name, and edited by one patch, so that the new bytes are the same."""
    for name, seed in (("one", 0), ("two", 1)):
        os.mkdir(name)
        save(f"{name}/a.safetensors", seed)
        checkpoint.apply(f"{name}/a.safetensors", "z = 3", in_place=True, journal=True)
    os.replace(f"one/{DONE}", "saved")
    os.replace(f"two/{DONE}", f"one/{DONE}")
    os.replace("saved", f"two/{DONE}")
    for name in ("one", "two"):
        data = Path(name, "a.safetensors").read_bytes()
        with pytest.raises(UndoError, match="is of another file than"):
            checkpoint.undo(f"{name}/a.safetensors")
        assert Path(name, "a.safetensors").read_bytes() == data
        assert Path(name, DONE).exists()


def test_a_file_that_has_changed_where_it_was_edited(here):
    """All of it stays as it is: also what could be undone."""
    scene = Scene(DONE)
    data = bytearray(scene.new)
    at = next(at for at, (a, b) in enumerate(zip(scene.old, scene.new, strict=True)) if a != b)  # undone last
    data[at] ^= 1
    scene.path.write_bytes(data)
    with pytest.raises(UndoError) as info:
        checkpoint.undo(scene.path)
    assert str(info.value) == f"'a.safetensors' has changed since the edit that '{DONE}' undoes\n{WAY_OUT}"
    assert (scene.path.read_bytes(), scene.journal.read_bytes()) == (bytes(data), scene.whole)
    assert sorted(os.listdir()) == ["a.safetensors", DONE]


def test_what_stands_where_a_journal_would(scene):
    scene.journal.unlink()
    for make in (os.mkdir, os.mkfifo):
        make(scene.journal)
        command = ["show", "a.safetensors"] if scene.name == BEGUN else ["undo", "a.safetensors"]
        result = CliRunner().invoke(main, command)
        why = "it is not a regular file"
        assert result.stderr == f"kpatch.FileError: {damaged(scene.name, why, BY_HAND)}\n"
        result = CliRunner().invoke(main, ["undo", "--discard", "a.safetensors"])
        assert result.stderr == f"kpatch.FileError: '{scene.name}' is not removed: {why}\n{BY_HAND}\n"
        os.rmdir(scene.journal) if scene.journal.is_dir() else scene.journal.unlink()


# The way out


def test_a_journal_that_is_discarded(here):
    """That of an edit that was cut off first: it stands in the way."""
    checkpoint.apply("a.safetensors", "z = 3", in_place=True, journal=True)
    assert cut_off(lambda: checkpoint.apply("a.safetensors", PATCH, in_place=True))
    Path(BEGUN).write_bytes(b"")
    data = Path("a.safetensors").read_bytes()

    def run(*args):
        result = CliRunner().invoke(main, [*args, "a.safetensors"])
        return result.exit_code, result.stderr or result.stdout

    for command in (["show"], ["undo"], ["apply", "-e", "z = 1", "--in-place"], ["diff", "a.safetensors"]):
        assert run(*command) == (1 + (command[0] == "diff"), f"kpatch.FileError: {damaged(BEGUN, EMPTY)}\n")
    assert run("undo", "--discard") == (0, f"removed '{BEGUN}'; a.safetensors is unchanged\n")
    assert sorted(os.listdir()) == ["a.safetensors", DONE]
    assert run("undo", "--discard") == (0, f"removed '{DONE}'; a.safetensors is unchanged\n")
    assert run("undo", "--discard") == (1, "kpatch.UndoError: 'a.safetensors' has no journal\n")
    assert Path("a.safetensors").read_bytes() == data
    assert run("apply", "-e", "z = 1", "--in-place")[0] == 0


def test_a_journal_of_an_edit_that_goes_on_is_not_discarded(here):
    Path(BEGUN).touch()
    with disk.lock(Path("a.safetensors")), pytest.raises(FileError) as info:
        checkpoint.undo("a.safetensors", discard=True)
    assert str(info.value) == "'a.safetensors' is being edited by another process"
    assert Path(BEGUN).exists()


def test_the_way_out_quotes_names(here):
    path = Path("it's a model.safetensors")
    shutil.copy("a.safetensors", path)
    journal.begun(path).touch()
    with pytest.raises(FileError) as info:
        checkpoint.open(path)
    [note] = info.value.notes
    assert note.startswith("""'kpatch undo --discard 'it'"'"'s a model.safetensors'' removes""")


# Edits that are cut off


def test_an_edit_that_was_cut_off_since_the_file_was_opened(here):
    opened, old = checkpoint.open("a.safetensors"), Path("a.safetensors").read_bytes()
    assert cut_off(lambda: checkpoint.apply("a.safetensors", PATCH, in_place=True))
    with pytest.raises(FileError, match=r"^'a.safetensors' has changed since kpatch opened it; "):
        checkpoint.apply(opened, "z = 3", in_place=True)
    assert Path("a.safetensors").read_bytes() == old
    assert os.listdir() == ["a.safetensors"]


def test_a_model_is_replaced_whose_edit_was_cut_off(here):
    """The journal of the old file does not stand in the way of the new one."""
    save("b.safetensors", 1)
    assert cut_off(lambda: checkpoint.apply("a.safetensors", PATCH, in_place=True))
    checkpoint.apply("b.safetensors", "z = 3", out="a.safetensors", overwrite=True)
    assert checkpoint.open("a.safetensors")["z"].tolist() == [3] * 4


def test_a_file_that_was_written_anew_since(here):
    """The same file of the same size, as Keras saves a model again: its bytes are not those of the edit."""
    assert cut_off(lambda: checkpoint.apply("a.safetensors", PATCH, in_place=True))
    save("b.safetensors", 1)
    other = Path("b.safetensors").read_bytes()
    Path("a.safetensors").write_bytes(other)
    with pytest.raises(FileError) as info:
        checkpoint.open("a.safetensors")
    assert str(info.value) == (
        f"'{BEGUN}' is the journal of an interrupted edit, and 'a.safetensors' has changed since\n"
        f"  if the file is as you want it: {WAY_OUT.strip()}"
    )
    assert Path("a.safetensors").read_bytes() == other
    checkpoint.undo("a.safetensors", discard=True)
    assert checkpoint.open("a.safetensors")["z"].tolist() == checkpoint.open("b.safetensors")["z"].tolist()


def test_a_shard_that_was_replaced_since(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a_00000.weights.h5", "a_00001.weights.h5"]
    for number, name in enumerate(names):
        with h5py.File(name, "w") as file:
            file[f"w{number}"] = np.zeros(3, "float32")
    Path("a.weights.json").write_text(json.dumps({"weight_map": {"/all": names}}), encoding="utf-8")
    for patch, is_refused in (("w0 = 1", False), ("w0 = 1; w1 = 1", True)):
        assert cut_off(lambda patch=patch: checkpoint.apply("a.weights.json", patch, in_place=True))
        shutil.copy(names[1], "new")
        os.replace("new", names[1])
        if not is_refused:
            assert checkpoint.open("a.weights.json")["w0"].tolist() == [0] * 3
            continue
        data = [Path(name).read_bytes() for name in names]
        with pytest.raises(FileError) as info:
            checkpoint.open("a.weights.json")
        journal = "'.a.weights.json.kpatch-journal'"
        text = f"{journal} is the journal of an interrupted edit, and '{names[1]}' has changed since"
        assert info.value.message == text
        assert [Path(name).read_bytes() for name in names] == data


@pytest.mark.parametrize("keep", [False, True])
def test_a_disk_that_fails_at_each_call(here, keep):
    """The file is the old one or the new one, or its journal is there and makes it the old one."""
    path = Path("a.safetensors")
    data, inode = path.read_bytes(), path.stat().st_ino

    def fail():
        raise OSError(5, "Input/output error")

    seen = set()
    for number in range(1000):
        path.write_bytes(data)
        opened, error = checkpoint.open(path), None
        with before_call(number, fail) as fired:
            try:
                checkpoint.apply(opened, PATCH, in_place=True, journal=keep)
            except PatchError as raised:
                error = str(raised)
        if not fired:
            break
        assert path.stat().st_ino == inode
        checkpoint.open(path)
        assert error is None or error.endswith("input/output error") or "changed" in error or "replaced" in error
        assert (path.read_bytes() == data) == (error is not None), (fired, error)
        assert os.listdir() == ["a.safetensors"] or error is None
        seen.add(error)
        Path(DONE).unlink(missing_ok=True)
    assert number > 40


def test_a_disk_that_fails_for_good(here, monkeypatch):
    """The old bytes cannot be put back now: the error says so, and the next command does it."""
    data, known = Path("a.safetensors").read_bytes(), os.pwrite
    left = [12]

    def failing(descriptor, block, offset):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        return known(descriptor, block, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(FileError) as info:
        checkpoint.apply("a.safetensors", PATCH, in_place=True)
    assert str(info.value) == (
        "cannot write 'a.safetensors' or restore its old bytes: input/output error\n"
        "  they are in the journal beside it; kpatch tries again when it next opens the file"
    )
    assert Path("a.safetensors").read_bytes() != data
    with pytest.raises(FileError) as info:
        checkpoint.open("a.safetensors")
    assert str(info.value) == "cannot put back an edit of 'a.safetensors' that was cut off: input/output error"
    monkeypatch.setattr(os, "pwrite", known)
    checkpoint.open("a.safetensors")
    assert Path("a.safetensors").read_bytes() == data
    assert os.listdir() == ["a.safetensors"]
