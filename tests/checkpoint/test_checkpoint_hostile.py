"""Files that are damaged, or made to do harm, and disks that fail: one clear error, and everything as it was."""

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from models import dense, filled
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.errors import FileError, PatchError
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.keras"
    filled(dense()).save(path)
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((4, 3), "float32")
    return path


def error_of(path, patch="**[...] = 0"):
    """The message of the error that an edit ends in, both ways; nothing may have changed."""
    files = {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    messages = set()
    for place in ({"in_place": True}, {}):
        with pytest.raises(FileError) as info:
            checkpoint.apply(path, patch, None if place else path.with_name("out" + "".join(path.suffixes)), **place)
        messages.add(info.value.message)
    assert {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()} == files
    [message] = messages
    return message


def rewrite(path, compression=zipfile.ZIP_STORED, **entries):
    """The archive with other entries: `{name: bytes}`; `None` leaves one out."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | entries
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_to_itself(tmp_path):
    path = tmp_path / "loop.safetensors"
    path.symlink_to(path)
    with pytest.raises(FileError) as info:
        checkpoint.open(path)
    assert str(info.value) == f"cannot read '{path}': too many levels of symbolic links"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.parametrize("name", ["p.keras", "p.safetensors", "p.weights.h5", "p.weights.json", "p"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros(3, "float32")}, "a.safetensors")
    os.mkfifo(name)
    refused = f"'{name}' is not a regular file or a folder"
    for call in (
        lambda: kpatch.show(name),
        lambda: checkpoint.open(name),
        lambda: checkpoint.apply(name, "w = 1", in_place=True),
        lambda: checkpoint.apply("a.safetensors", "w = $b._", in_place=True, b=Path(name)),
        lambda: kpatch.diff("a.safetensors", name),
        lambda: checkpoint.undo(name),
        lambda: checkpoint.undo(name, discard=True),
        lambda: checkpoint.log(name),
    ):
        with pytest.raises(FileError) as info:
            call()
        assert str(info.value) == refused
    for command in (
        ["show", name],
        ["apply", name, "-e", "w = 1", "--in-place"],
        ["apply", "a.safetensors", "-e", "w = $b._", "--dry-run", "--bind", f"b=@{name}"],
        ["diff", name, "a.safetensors"],
    ):
        assert CliRunner().invoke(main, command).stderr == f"kpatch.FileError: {refused}\n"


def test_an_empty_path(tmp_path, monkeypatch):
    """It is not the folder one stands in."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros(3, "float32")}, "a.safetensors")
    for call in (
        lambda: kpatch.show(""),
        lambda: kpatch.show("", activations=True),
        lambda: checkpoint.open(""),
        lambda: checkpoint.apply("", "w = 1", in_place=True),
        lambda: checkpoint.apply("a.safetensors", "w = 1", ""),
        lambda: checkpoint.plan("", "w = 1"),
        lambda: kpatch.diff("a.safetensors", ""),
        lambda: kpatch.diff("a.safetensors", "a.safetensors").save(""),
        lambda: kpatch.load(""),
        lambda: checkpoint.undo(""),
        lambda: checkpoint.log(""),
    ):
        with pytest.raises(FileError) as info:
            call()
        assert str(info.value) == "a path cannot be empty; '.' is the current folder"


def test_int8_is_called_codes_only_where_keras_saves_variables(tmp_path):
    save_file({"w": np.zeros(3, "int8"), "": np.ones(2, "float32")}, tmp_path / "a.safetensors")
    assert [(row.path, row.dtype) for row in kpatch.show(tmp_path / "a.safetensors").rows] == [
        ('""', "float32"), ("w", "int8"),
    ]  # fmt: skip


# Archives


def test_names_that_are_no_format(tmp_path):
    none = tmp_path / "model.bin"
    assert error_of(none) == f"cannot read '{none}': no such file or directory"
    none.touch()
    assert error_of(tmp_path / "model.bin") == (
        f"'{tmp_path / 'model.bin'}' does not end in .keras, .weights.h5, .weights.json, .safetensors or .h5"
    )
    assert error_of(tmp_path / "none.keras") == f"cannot read '{tmp_path / 'none.keras'}': no such file or directory"
    assert error_of(tmp_path / "none.weights.h5") == (
        f"cannot read '{tmp_path / 'none.weights.h5'}': no such file or directory"
    )


def test_an_archive_whose_entry_leads_out_of_it(saved):
    for name in ("../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil", "C:evil"):
        data = saved.read_bytes()
        rewrite(saved, **{name: b"x"})
        assert (
            error_of(saved) == f"'{saved}' is refused: its entry '{name.replace(os.sep, '/')}' leads out of the archive"
        )
        saved.write_bytes(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_weights(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("model.weights.h5", b"")
    assert error_of(saved) == f"'{saved}' is refused: it holds two entries of one name"


def test_an_archive_without_weights(saved):
    rewrite(saved, **{"model.weights.h5": None})
    assert error_of(saved) == (
        f"'{saved}' is not a Keras model: the archive lacks its config.json or its model.weights.h5"
    )


def test_a_bomb(saved):
    rewrite(saved, zipfile.ZIP_DEFLATED, **{"config.json": b" " * (2**26 + 1)})
    assert error_of(saved) == f"'{saved}' is refused: its config.json would unpack to more than {2**26} bytes"


def test_a_bomb_of_weights(saved):
    """The weights of an archive that is compressed are read by Keras; the same limits hold for it."""
    from kpatch.checkpoint import keras_files

    rewrite(saved, zipfile.ZIP_DEFLATED, **{"model.weights.h5": bytes(2**28 + 1)})
    with pytest.raises(FileError) as info:
        keras_files.load(saved)
    assert str(info.value) == f"'{saved}' is refused: its model.weights.h5 would unpack to {2**28 + 1} bytes"
    rewrite(saved, zipfile.ZIP_DEFLATED, **{"model.weights.h5": b"", "../evil": b"x"})
    with pytest.raises(FileError, match="leads out of the archive"):
        keras_files.load(saved)


def test_compressed_weights(saved):
    rewrite(saved, zipfile.ZIP_DEFLATED)
    assert error_of(saved) == (
        f"the weights in '{saved}' are compressed or encrypted, so they cannot be edited in place"
    )


def test_a_wrong_checksum(saved):
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        info = archive.getinfo("model.weights.h5")
    data[info.header_offset + 30 + len(info.filename) + 5000] ^= 1
    saved.write_bytes(data)
    assert error_of(saved) == f"'{saved}' is damaged: the checksum of model.weights.h5 is wrong"


def test_two_checksums(saved):
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        data[archive.getinfo("model.weights.h5").header_offset + 14] ^= 1
    saved.write_bytes(data)
    assert error_of(saved) == f"'{saved}' is damaged: it gives two checksums for model.weights.h5"


@pytest.mark.parametrize("name", ["keras", "h5", "safetensors"])
def test_truncated(saved, weights, tmp_path, name):
    path = {"keras": saved, "h5": weights}.get(name, tmp_path / "a.safetensors")
    if name == "safetensors":
        from safetensors.numpy import save_file

        save_file({"w": np.ones(100, "float32")}, path)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        error_of(path)


@pytest.mark.parametrize("name", ["keras", "h5", "safetensors"])
def test_flipped_bits_end_in_a_patch_error_or_an_edit(saved, weights, tmp_path, name):
    path = {"keras": saved, "h5": weights}.get(name, tmp_path / "a.safetensors")
    if name == "safetensors":
        from safetensors.numpy import save_file

        save_file({"w": np.ones(100, "float32"), "v": np.ones((2, 3), "int8")}, path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 150):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            checkpoint.apply(path, "**[...] = 0", path.with_name("out" + "".join(path.suffixes)))
        except PatchError:
            assert not [each for each in os.listdir(tmp_path) if each.startswith(".kpatch")]


# HDF5


def test_a_group_that_holds_itself(weights):
    with h5py.File(weights, "a") as file:
        file["layers/again"] = file["layers"]
    assert error_of(weights) == f"'{weights}' is refused: 'layers/again' is in the file twice, or holds itself"


def test_links(weights):
    with h5py.File(weights, "a") as file:
        file["soft"] = h5py.SoftLink("/layers")
    assert error_of(weights) == f"'{weights}' is refused: 'soft' is a link to another place"
    with h5py.File(weights, "a") as file:
        del file["soft"]
        file["outside"] = h5py.ExternalLink("/etc/passwd", "/")
    assert error_of(weights) == f"'{weights}' is refused: 'outside' is a link to another place"


def test_values_in_other_files(weights):
    with h5py.File(weights, "a") as file:
        file.create_dataset("far", (3,), "float32", external=[("/etc/passwd", 0, 12)])
    assert error_of(weights) == f"'{weights}' is refused: 'far' keeps its values in other files"


def test_absurd_shapes(weights):
    with h5py.File(weights, "a") as file:
        file.create_dataset("huge", (2**40, 2**10), "float32", chunks=(1024, 1024), compression="gzip")
    assert error_of(weights) == (
        f"'{weights}' is refused: 'huge' (1099511627776, 1024) float32 is {2**52} bytes large, with none stored"
    )


# The other formats


def test_a_header_that_lies(tmp_path):
    path = tmp_path / "a.safetensors"
    for header, message in (
        (
            {"w": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}},
            "'w' (1152921504606846976,) float32 does not",
        ),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [2**40, 2**40 + 4]}}, "there is a gap before 'w'"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "its header is invalid"),
        ({"w": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, "its header is invalid"),
        ({"w": 3}, "its header is invalid"),
        ([], "its header is invalid"),
        ({"w": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, "'w' (1,) F4 does not fit its place"),
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
        assert message in error_of(path)
    path.write_bytes(struct.pack("<Q", 2**50) + b"{}")
    assert error_of(path) == f"'{path}' is not a .safetensors file, or is truncated"


def test_shards_that_lead_elsewhere(tmp_path):
    path = tmp_path / "a.weights.json"
    for names, message in (
        (["../b.weights.h5"], f"'{path}' is refused: its shard '../b.weights.h5' is not a file beside it"),
        ([3], f"'{path}' is refused: its shard 3 is not a file beside it"),
        (["none.weights.h5"], f"'{path}' lacks its shard 'none.weights.h5'"),
    ):
        path.write_text(json.dumps({"weight_map": {"/vars": names}}), encoding="utf-8")
        assert error_of(path) == message
    path.write_text("[1", encoding="utf-8")
    assert error_of(path) == f"'{path}' is not a map of sharded weights"


@pytest.mark.parametrize(("kind", "count", "parts"), [("Sequential", 20_000, 20_001), ("Functional", 60_000, 60_001)])
def test_configurations_of_very_many_layers(saved, kind, count, parts):
    """Keras would build for minutes, since it builds a Sequential anew with each layer; the file has names, too."""
    layers = [{"class_name": "Dense", "config": {"name": f"d{n}", "units": 1}} for n in range(count)]
    config = {"module": "keras", "class_name": kind, "config": {"name": "m", "layers": layers}, "registered_name": None}
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(saved.with_name("many.keras"), "w") as new:
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    applied = checkpoint.apply(saved.with_name("many.keras"), "layers.dense.vars.0[0, 0] = 7", in_place=True)
    assert applied.note == (
        f"its configuration has {parts:,} parts, which Keras would build for too long; "
        "the names are those in the file, as in 'layers.dense.vars.0'"
    )


# Places to write to


@pytest.mark.parametrize("call", ["copy_file_range", "pwrite", "fsync", "replace"])
def test_a_full_disk(weights, monkeypatch, call):
    if not hasattr(os, call):
        pytest.skip("the system has no such call")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    data, out = weights.read_bytes(), weights.with_name("out.weights.h5")
    with pytest.raises(FileError) as info:
        checkpoint.apply(weights, "**[...] = 0", out)
    assert str(info.value) == f"cannot write '{out}': no space left on device"
    monkeypatch.undo()
    assert (weights.read_bytes(), os.listdir(weights.parent)) == (data, [weights.name])


def test_a_disk_that_is_full_in_the_middle_of_an_edit_in_place(weights, monkeypatch):
    from kpatch.checkpoint import editor

    written, data = [], weights.read_bytes()

    def full(descriptor, block, offset):
        written.append(os.pwrite(descriptor, bytes(block)[:5], offset))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(editor, "write_all", full)
    with pytest.raises(FileError, match=r"no space left on device$"):
        checkpoint.apply(weights, "**[...] = 0", in_place=True)
    assert written
    assert (weights.read_bytes(), os.listdir(weights.parent)) == (data, [weights.name])


def test_outputs_that_cannot_be(saved):
    for name, message in {
        "out.h5": "'{out}' does not end in .keras",
        "out.safetensors": "'{out}' does not end in .keras",
        "none/out.keras": "'{parent}' is not a directory",
        "model.keras": "'{out}' is the model itself; in_place=True (--in-place) edits it in place",
    }.items():
        out = saved.parent / name
        with pytest.raises(FileError) as info:
            checkpoint.apply(saved, "dense_1.bias = 0", out)
        assert str(info.value) == message.format(out=out, parent=out.parent)
    with pytest.raises(FileError, match=r"^say where the result goes: either out or in_place=True$"):
        checkpoint.apply(saved, "dense_1.bias = 0")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that hold")
def test_a_file_that_is_read_only(saved):
    saved.chmod(0o400)
    with pytest.raises(FileError, match="permission denied"):
        checkpoint.apply(saved, "dense_1.bias = 0", in_place=True)


def test_two_edits_at_a_time(weights):
    from kpatch.checkpoint import disk

    with disk.lock(weights), pytest.raises(FileError) as info:
        checkpoint.apply(weights, "**[...] = 0", in_place=True)
    assert str(info.value) == f"'{weights}' is being edited by another process"


# Memory

BOUNDED = """
import resource, sys
from kpatch import checkpoint
checkpoint.apply(sys.argv[1], '**.0[0] = 1', sys.argv[2])  # everything is imported
held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 48 * 2**20,) * 2)
checkpoint.apply(sys.argv[1], sys.argv[3], sys.argv[2], overwrite=True)
checkpoint.diff(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux")
@pytest.mark.parametrize("patch", ["**.0[abs(_) < 0.5] = 0", "**.0 *= 0.5", "**.0 = 1"])
def test_a_file_larger_than_the_memory(tmp_path, patch):
    path, out = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    values = np.random.default_rng(0).normal(size=(2**12, 2**12)).astype("float32")
    with h5py.File(path, "w") as file:
        file["layers/a/vars/0"] = values
        file["layers/b/vars/0"] = values
    code = (
        BOUNDED if "abs" not in patch else "import os; os.environ['KERAS_BACKEND'] = 'numpy'; import keras\n" + BOUNDED
    )
    ran = subprocess.run([sys.executable, "-c", code, path, out, patch], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    expected = values.copy()
    if "abs" in patch:
        expected[np.abs(values) < 0.5] = 0
    else:
        expected = values * np.float32(0.5) if "*=" in patch else np.ones_like(values)
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["layers/b/vars/0"][()], expected)
