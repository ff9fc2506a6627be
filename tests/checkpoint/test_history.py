"""Journals keep a history: several edits are listed, and undone one after the other."""

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.errors import FileError, UndoError
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free
NAME = "a.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros((3, 4), "float32")}, NAME)
    return Path(NAME)


def run(*args):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_several_edits_are_undone_one_after_the_other(here):
    states = []
    for patch in ("w[0] = 1", "w += 2", "w[0, 0] = 5\nw[2] = 9"):
        states.append(here.read_bytes())
        run("apply", NAME, "-e", patch, "--in-place", "--journal")
    edits = checkpoint.log(NAME)
    assert [edit.patch for edit in edits] == ["w[0, 0] = 5\nw[2] = 9", "w += 2", "w[0] = 1"]
    assert [edit.journal.name for edit in edits] == [f"{NAME}.kpatch-undo{end}" for end in ("-3", "-2", "")]
    assert edits[0].time >= edits[1].time >= edits[2].time > 1.6e9
    assert [line for line in run("log", NAME) if line.startswith("  ")] == [
        "  w[0, 0] = 5", "  w[2] = 9", "  w += 2", "  w[0] = 1",
    ]  # fmt: skip
    for state in reversed(states):
        run("undo", NAME)
        assert here.read_bytes() == state
    assert (os.listdir(), run("log", NAME)) == ([NAME], [])
    with pytest.raises(UndoError, match="an edit with a journal can be undone"):
        checkpoint.undo(NAME)


def test_an_edit_after_an_undo_takes_the_free_number(here):
    for patch in ("w = 1", "w = 2"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    checkpoint.undo(NAME)
    checkpoint.apply(NAME, "w = 3", in_place=True, journal=True)
    assert [edit.patch for edit in checkpoint.log(NAME)] == ["w = 3", "w = 1"]
    checkpoint.undo(NAME, discard=True)
    assert [edit.patch for edit in checkpoint.log(NAME)] == ["w = 1"]
    assert checkpoint.open(NAME)["w"][0, 0] == 3
    with pytest.raises(UndoError, match="has changed since the edit"):
        checkpoint.undo(NAME)


def test_the_history_of_a_file_that_was_replaced_ends(here):
    for patch in ("w = 1", "w = 2", "w = 3"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    save_file({"w": np.zeros((3, 4), "float32")}, "new")
    os.replace("new", NAME)
    Path(f"{NAME}.kpatch-undo-7").write_text("mine")
    checkpoint.apply(NAME, "w = 4", in_place=True, journal=True)
    names = {name for name in os.listdir() if "undo" in name}
    assert names == {f"{NAME}.kpatch-undo-7", f"{NAME}.kpatch-undo-8"}
    checkpoint.undo(NAME)
    assert Path(f"{NAME}.kpatch-undo-7").read_text() == "mine"


def test_a_copy_begins_a_history(here):
    for patch in ("w = 1", "w = 2"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    save_file({"w": np.ones((3, 4), "float32")}, "b.safetensors")
    checkpoint.apply("b.safetensors", "w[0] = 5", NAME, overwrite=True, journal=True)
    assert [edit.patch for edit in checkpoint.log(NAME)] == ["w[0] = 5"]
    checkpoint.undo(NAME)
    assert here.read_bytes() == Path("b.safetensors").read_bytes()


def test_a_journal_of_kpatch_0_2(here):
    before = here.read_bytes()
    checkpoint.apply(NAME, "w[1] = 7", in_place=True, journal=True)
    journal = Path(f"{NAME}.kpatch-undo")
    data = journal.read_bytes()
    start = len(b"kpatch journal 4\n")
    size, _ = struct.unpack_from("<II", data, start + 12)
    header = json.loads(data[start + 20 : start + 20 + size])["files"]
    text, rest = json.dumps(header).encode(), data[start + 20 + size :]
    end = struct.pack("<Q", start + 20 + len(text) + len(rest))
    journal.write_bytes(
        b"kpatch journal 2\n" + end + struct.pack("<III", zlib.crc32(end), len(text), zlib.crc32(text)) + text + rest
    )
    assert [(edit.patch, edit.time) for edit in checkpoint.log(NAME)] == [("", None)]
    assert "before kpatch 0.3" in run("log", NAME)[0]
    checkpoint.undo(NAME)
    assert here.read_bytes() == before


def test_a_journal_that_was_played_back_undoes_nothing_more(here, monkeypatch):
    """A kill, or the system, may leave it: the undo is done at the moment at which it becomes void."""
    for patch in ("w = 1", "w = 2"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    left, known = Path(f"{NAME}.kpatch-undo-2"), os.unlink

    def refuse(path, **options):
        if Path(path).name == left.name:
            raise PermissionError(1, "Operation not permitted")
        known(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        checkpoint.undo(NAME)
        assert (left.exists(), checkpoint.open(NAME)["w"][0, 0]) == (True, 1)
        assert [edit.patch for edit in checkpoint.log(NAME)] == ["w = 1"]
        checkpoint.undo(NAME)
        assert not checkpoint.open(NAME)["w"].any()
        with pytest.raises(UndoError, match="an edit with a journal can be undone"):
            checkpoint.undo(NAME)
    checkpoint.open(NAME)
    assert os.listdir() == [NAME]


def test_a_copy_that_fails_at_its_journal_leaves_the_file_that_it_replaced(here):
    save_file({"w": np.ones((3, 4), "float32")}, "b.safetensors")
    checkpoint.apply("b.safetensors", "w = 5", in_place=True, journal=True)
    before, known = {name: Path(name).read_bytes() for name in os.listdir()}, os.replace

    def refuse(path, target):
        if "kpatch-undo" in str(target):
            raise PermissionError(1, "Operation not permitted")
        known(path, target)

    with mock.patch.object(os, "replace", refuse), pytest.raises(FileError) as info:
        checkpoint.apply(NAME, "w = 6", "b.safetensors", overwrite=True, journal=True)
    assert str(info.value) == "cannot write 'b.safetensors': operation not permitted"
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before
    checkpoint.undo("b.safetensors")
    assert checkpoint.open("b.safetensors")["w"].tolist() == [[1] * 4] * 3


def test_an_edit_that_was_cut_off_before_it_wrote_is_swept(here):
    leftover = Path(f".{NAME}.kpatch-journal-new")
    leftover.write_bytes(b"kpatch jour")
    checkpoint.open(NAME)
    assert not leftover.exists()
    leftover.write_bytes(b"")
    checkpoint.apply(NAME, "w = 1", in_place=True)
    assert os.listdir() == [NAME]


def test_an_older_journal_that_is_damaged(here):
    """It is marked, the others are listed, and what the log says of the way out is so."""
    for patch in ("w = 1", "w = 2"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    damaged, healthy = (Path(f"{NAME}.kpatch-undo{end}") for end in ("", "-2"))
    data = damaged.read_bytes()
    for length, why in ((20, "its header is damaged"), (len(data) - 1, "it does not end like a journal")):
        os.truncate(damaged, length)
        error = f"'{damaged}', the journal of an edit of '{NAME}', is damaged: {why}"
        lines = run("log", NAME)
        assert [lines[0].endswith(f"  {healthy}  {healthy.stat().st_size:,} bytes"), *lines[1:]] == [
            True,
            "  w = 2",
            f"damaged  {damaged}  {length:,} bytes",
            f"  {error}",
            "    'kpatch undo' takes back the later edits first",
        ]
        assert json.loads("".join(run("log", NAME, "--json")))["edits"][1] == {
            "time": None,
            "patch": "",
            "size": length,
            "journal": str(damaged),
            "damage": f"{error}\n  'kpatch undo' takes back the later edits first",
        }
        damaged.write_bytes(data)
    os.truncate(damaged, 20)
    run("undo", NAME)
    way_out = f"'kpatch undo --discard {NAME}' removes the journal and does not change the file"
    assert run("log", NAME)[2:] == [f"    {way_out}"]
    assert run("undo", "--discard", NAME) == [f"removed '{damaged}'; {NAME} is unchanged"]
    assert (os.listdir(), checkpoint.open(NAME)["w"].tolist()) == ([NAME], [[1] * 4] * 3)


def test_discard_removes_the_latest_journal_and_nothing_of_others(here):
    for patch in ("w = 1", "w = 2"):
        checkpoint.apply(NAME, patch, in_place=True, journal=True)
    latest = Path(f"{NAME}.kpatch-undo-2")
    assert run("undo", "--discard", NAME) == [f"removed '{latest}'; {NAME} is unchanged"]
    latest.write_text("notes of mine")
    result = CliRunner().invoke(main, ["undo", "--discard", NAME])
    assert result.exit_code == 1
    assert result.stderr == (
        f"kpatch.FileError: '{latest}' is not removed: it does not begin like a journal\n"
        "  move it away by hand: kpatch removes only what it wrote\n"
    )
    assert latest.read_text() == "notes of mine"


def archive_of_two(path):
    """A `.keras` archive with two arrays, as Keras writes one, of a class that nobody knows."""
    with h5py.File("weights", "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.zeros((3, 4), "float32"), np.ones(4, "float32")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Unknown", "config": {}}')
        archive.write("weights", "model.weights.h5")
    os.unlink("weights")


def test_an_edit_of_an_archive_is_undone_after_one_of_other_bytes(here):
    """The archive has one checksum for all arrays: it is computed anew, not compared."""
    kernel, bias = "layers.dense.vars.0", "layers.dense.vars.1"
    archive_of_two("a.keras")
    before = Path("a.keras").read_bytes()
    for patch in (f"{kernel}[0] = 7", f"{kernel}[2] = 8; {kernel}[2, 1] = 9"):
        checkpoint.apply("a.keras", patch, in_place=True, journal=True)
    checkpoint.apply("a.keras", f"{bias}[2] = 5", in_place=True)
    for left in (7, 0):
        checkpoint.undo("a.keras")
        found = checkpoint.open("a.keras")
        assert (found[kernel][:, 1].tolist(), found[bias].tolist()) == ([left, 0, 0], [1, 1, 5, 1])
        with zipfile.ZipFile("a.keras") as archive:
            assert archive.testzip() is None
    checkpoint.apply("a.keras", f"{bias}[2] = 1", in_place=True)
    assert Path("a.keras").read_bytes() == before
    checkpoint.apply("a.keras", f"{kernel}[0] = 7", in_place=True, journal=True)
    checkpoint.apply("a.keras", f"{kernel}[0, 1] = 6", in_place=True)
    with pytest.raises(UndoError, match=r"^'a.keras' has changed since the edit that 'a.keras.kpatch-undo' undoes"):
        checkpoint.undo("a.keras")
    assert checkpoint.open("a.keras")[kernel][0].tolist() == [7, 6, 7, 7]
