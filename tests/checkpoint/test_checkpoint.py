"""A patch on a file is the patch on the model in it, bit by bit; and what is not edited is the same bytes."""

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from checkpoints import MODELS, Encoder, bits, subclassed
from hypothesis import given
from hypothesis import strategies as st
from models import dense, filled
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint.archive import Checksum
from kpatch.errors import BindingError, FileError, PatchError, ResolutionError, UndoError, UnsupportedError

pytestmark = pytest.mark.backend_free


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.keras"
    filled(dense()).save(path)
    return path


def load(path):
    return keras.saving.load_model(path, compile=False, custom_objects={"Encoder": Encoder})


def first_float(model):
    """The selector of the model's first floating-point variable of an axis or more."""
    from kpatch.names.index import index

    return next(e.path for e in index(model).entries if not e.hidden and "float" in e.dtype and e.shape)


def patched_alike(path, patch, out):
    """Checks that the file patched and then loaded is the file loaded and then patched."""
    patched_like(load(path), path, patch, out)


def patched_like(loaded, path, patch, out):
    """Checks that the file patched and then loaded is the model that was loaded from it, while it is patched."""
    applied = checkpoint.apply(path, patch, out)
    assert applied.note is None
    with kpatch.apply(loaded, patch):
        assert bits(load(out)) == bits(loaded)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None


@pytest.mark.every_backend
@pytest.mark.parametrize("name", MODELS)
def test_architectures(name, tmp_path):
    path, model = tmp_path / "model.keras", MODELS[name]()
    model.save(path)
    selector, loaded = first_float(model), load(path)
    patches = [
        f"{selector}[..., -1] = [0.25]; {selector} *= 0.5",
        f"{selector}[0] = 1.5",
        f"{selector}[abs(_) < 0.5] = 0",
        f"let m = max({selector}); {selector} = where(_ > 0, _, -_); {selector}[0] = m",
        f"{selector}[::-1] = _; {selector}[[0, 0]] += 0.5; {selector}[_ > 0] *= 2",
    ]
    for number, patch in enumerate(patches[:1] if name == "mobilenet" else patches):  # it takes long to load
        patched_like(loaded, path, patch, tmp_path / f"{number}.keras")


@pytest.mark.every_backend
def test_a_registered_class_of_the_process_is_known(tmp_path):
    path = tmp_path / "model.keras"
    subclassed().save(path)
    with keras.saving.custom_object_scope({"Encoder": Encoder}):
        patched_alike(path, "encoder.first.kernel[0] = 1; blocks.1.bias = 2; **.kernel *= 2", tmp_path / "out.keras")


def test_a_class_that_is_not_known_leaves_the_names_in_the_file(tmp_path):
    path = tmp_path / "model.keras"
    subclassed().save(path)
    before = load(path).encoder.get_layer("first").kernel
    applied = checkpoint.apply(path, "encoder.layers.dense.vars.0[0, 0] = 7", tmp_path / "out.keras")
    assert applied.note == (
        "it needs the custom class 'Encoder', which is not known here; "
        "the names are those in the file, as in 'blocks.dense.vars.0'"
    )
    expected = np.array(keras.ops.convert_to_numpy(before))
    expected[0, 0] = 7
    np.testing.assert_array_equal(load(tmp_path / "out.keras").encoder.get_layer("first").kernel, expected)
    with pytest.raises(ResolutionError) as info:
        checkpoint.plan(path, "first.kernel = 0")
    assert info.value.notes[-1] == applied.note


@pytest.mark.every_backend
def test_the_optimizer_is_reached_by_its_names_in_the_file(tmp_path):
    path = tmp_path / "model.keras"
    MODELS["trained"]().save(path)
    checkpoint.apply(path, "optimizer.vars.2 = 3; dense_1.bias = 1", in_place=True)
    loaded = keras.saving.load_model(path)
    assert np.all(np.asarray(keras.ops.convert_to_numpy(loaded.optimizer.variables[2])) == 3)


@pytest.mark.parametrize("in_place", [False, True])
def test_only_the_bytes_that_change_change(saved, in_place):
    before = saved.read_bytes()
    out = saved if in_place else saved.with_name("out.keras")
    checkpoint.apply(saved, "dense_1.kernel[1, 2] = 100", None if in_place else out, in_place=in_place)
    differ = np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(out.read_bytes(), "u1"))
    assert 1 <= len(differ) <= 4 + 2 * 4  # the entry, and the checksum in its two places
    assert sorted(os.listdir(saved.parent)) == sorted({saved.name, out.name})


# Weights files


def weights_file(tmp_path, name):
    model = filled(dense())
    path = tmp_path / name
    if name.endswith(".json"):
        model.save_weights(path, max_shard_size=6e-8)
    else:
        model.save_weights(path)
    return model, path


@pytest.mark.every_backend
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["a.weights.h5", "a.weights.json"])
def test_weights_alone(tmp_path, name, in_place):
    model, path = weights_file(tmp_path, name)
    out = path if in_place else tmp_path / name.replace("a.", "b.")
    patch = '"layers/dense/vars/0"[0, 0] = 7; layers.dense_1.vars.1 += 1; **.1[0] = 3'
    checkpoint.apply(path, patch, None if in_place else out, in_place=in_place)
    kpatch.apply(model, "dense_1.kernel[0, 0] = 7; dense_2.bias += 1; **.bias[0] = 3")
    other = dense()
    other.load_weights(out)
    assert bits(other) == bits(model)


def test_a_result_in_shards_needs_new_names(tmp_path):
    _, path = weights_file(tmp_path, "a.weights.json")
    shutil.copy(path, tmp_path / "b.weights.json")
    with pytest.raises(FileError, match=r"b.weights.json' exists; the shards of a result need new names$"):
        checkpoint.apply(path, "**.0 = 0", tmp_path / "b.weights.json")


@pytest.mark.every_backend
def test_safetensors(tmp_path):
    from safetensors.numpy import load_file

    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    rng = np.random.default_rng(0)
    tensors = {
        "model.layers.0.weight": rng.normal(size=(4, 3)).astype("float32"),
        "model.layers.0.bias": np.arange(3, dtype="float16"),
        "counts": np.arange(5, dtype="int64"),
        "flags": np.array([True, False]),
    }
    save_file(tensors, path, {"format": "np"})
    patch = "model.layers.0.weight[1] = 2; counts[::2] = 9; flags[1] = true; *.layers.*.bias += 1"
    checkpoint.apply(path, patch, out)
    tensors["model.layers.0.weight"][1] = 2
    tensors["counts"][::2] = 9
    tensors["flags"][1] = True
    tensors["model.layers.0.bias"] += 1
    found = load_file(out)
    assert {name: value.tobytes() for name, value in found.items()} == {n: v.tobytes() for n, v in tensors.items()}


# What is handed in


@pytest.mark.every_backend
def test_many_integers_on_both_sides_of_2_to_the_63_keep_their_digits(tmp_path):
    numbers = [9146768446304732933, 17463254299980620035] * 4
    save_file({"x": np.zeros(8, "uint64")}, one := tmp_path / "one.safetensors")
    text = "; ".join(f"x[{place}] = {number}" for place, number in enumerate(numbers))
    checkpoint.apply(one, text, two := tmp_path / "two.safetensors")
    checkpoint.apply(one, checkpoint.diff(one, two), three := tmp_path / "three.safetensors")
    assert checkpoint.open(two)["x"].tolist() == checkpoint.open(three)["x"].tolist() == numbers


def test_values_and_checkpoints_are_handed_in(saved):
    donor = saved.with_name("donor.keras")
    filled(dense(), seed=1).save(donor)
    patch = "**.kernel = 0.5 * _ + 0.5 * $donor._; dense_1.bias = $donor.dense_1.bias; dense_2.bias = $row"
    model = load(saved)
    kpatch.apply(model, patch, donor=load(donor), row=[1, 2])
    out = saved.with_name("out.keras")
    checkpoint.apply(saved, patch, out, donor=checkpoint.open(donor), row=[1, 2], expect=4)
    assert bits(load(out)) == bits(model)
    with pytest.raises(BindingError, match=r"^'more' is not used"):
        checkpoint.plan(saved, "dense_1.bias = 0", more=checkpoint.open(donor))
    with pytest.raises(ResolutionError, match=r"^the patch matches 1 variable, not 2\n"):
        checkpoint.apply(saved, "dense_1.bias = 0", out, overwrite=True, expect=2)


def test_a_donor_that_is_the_file_itself_keeps_its_values(saved):
    model, out = load(saved), saved.with_name("out.keras")
    patch = "dense_1.bias = 2 * _; dense_2.bias = $d.dense_2.bias + $d.dense_1.bias[:2]"
    kpatch.apply(model, patch, d=load(saved))
    checkpoint.apply(saved, patch, out, d=checkpoint.open(saved))
    assert bits(load(out)) == bits(model)
    data = saved.read_bytes()
    with pytest.raises(UnsupportedError) as info:
        checkpoint.apply(saved, patch, in_place=True, d=checkpoint.open(saved))
    assert info.value.message == f"'{saved}' is edited in place, and handed in as well"
    assert saved.read_bytes() == data


def test_a_file_is_listed_and_read(saved):
    opened = checkpoint.open(saved)
    assert list(opened) == ["dense_1.kernel", "dense_1.bias", "dense_2.kernel", "dense_2.bias"]
    np.testing.assert_array_equal(opened["layers[0].kernel"], load(saved).layers[0].kernel)
    assert checkpoint.plan(opened, "dense_1.kernel[_ > 0] = 0").rows[0].entries == (opened["dense_1.kernel"] > 0).sum()


def test_a_plan_of_a_file_is_a_snapshot(saved):
    """And the plan of an edit is what was written."""
    opened, text = (
        checkpoint.open(saved),
        "dense_1.kernel[_ > 0] = 0; dense_1.bias[:2] = 1; dense_1.kernel[_ == 0] = -1",
    )
    positive = int((opened["dense_1.kernel"] > 0).sum())
    zeros = positive + int((opened["dense_1.kernel"] == 0).sum())
    plan, unseen = checkpoint.plan(opened, text), checkpoint.plan(opened, text)
    assert [row.entries for row in plan.rows] == [positive, 2, None]
    applied = checkpoint.apply(opened, text, in_place=True)
    assert [row.entries for row in applied.plan.rows] == [positive, 2, zeros]
    later = checkpoint.plan(opened, text)
    checkpoint.apply(opened, "dense_1.kernel = 1", in_place=True)
    assert [row.entries for row in later.rows] == [0, 2, None]
    assert [row.entries for row in plan.rows] == [row.entries for row in unseen.rows] == [positive, 2, None]
    assert [row.entries for row in applied.plan.rows] == [positive, 2, zeros]


def test_an_open_file_is_edited_again_and_again(saved):
    opened = checkpoint.open(saved)
    for number in range(3):
        checkpoint.apply(opened, f"dense_1.bias[{number}] = {number + 1}", in_place=True)
        with zipfile.ZipFile(saved) as archive:
            assert archive.testzip() is None
    assert opened["dense_1.bias"].tolist() == [1, 2, 3]


# All or nothing


@pytest.mark.parametrize("in_place", [False, True])
def test_a_patch_that_fails_leaves_everything(saved, in_place):
    before, names = saved.read_bytes(), sorted(os.listdir(saved.parent))
    out = None if in_place else saved.with_name("out.keras")
    for patch in ("dense_1.bias = 7; assert all(dense_1.bias == 0)", "dense_1.kernel[9, 0] = 1", "dense_1.bias = [1"):
        with pytest.raises(PatchError):
            checkpoint.apply(saved, patch, out, in_place=in_place)
    assert (saved.read_bytes(), sorted(os.listdir(saved.parent))) == (before, names)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.weights.json"])
def test_undo(tmp_path, name, in_place):
    if name == "a.keras":
        filled(dense()).save(tmp_path / name)
    else:
        weights_file(tmp_path, name)
    path, out = tmp_path / name, tmp_path / (name if in_place else name.replace("a.", "b."))
    before = [checkpoint.open(path)[array] for array in checkpoint.open(path)]
    data = path.read_bytes()
    first = next(iter(checkpoint.open(path)))
    patch = f"{first}[1] = 3; {first}[0:2] += 1; {first} *= 2"
    checkpoint.apply(path, patch, None if in_place else out, in_place=in_place, journal=True)
    assert checkpoint.open(out)[first].tobytes() != before[0].tobytes()
    checkpoint.undo(out)
    after = [checkpoint.open(out)[array] for array in checkpoint.open(out)]
    assert [a.tobytes() for a in after] == [b.tobytes() for b in before]
    if name != "a.weights.json":
        assert out.read_bytes() == data
    with pytest.raises(
        UndoError, match=r"^there is no '.*kpatch-undo' beside '.*'; an edit with a journal can be undone$"
    ):
        checkpoint.undo(out)


def test_undo_of_a_file_that_has_changed_since(saved):
    checkpoint.apply(saved, "dense_1.bias = 7", in_place=True, journal=True)
    checkpoint.apply(saved, "dense_1.bias[1] = 8", in_place=True)
    data = saved.read_bytes()
    with pytest.raises(UndoError, match="has changed since the edit that"):
        checkpoint.undo(saved)
    assert saved.read_bytes() == data


def test_permissions_and_links(saved):
    saved.chmod(0o640)
    link = saved.with_name("link.keras")
    link.symlink_to(saved)
    checkpoint.apply(link, "dense_1.bias = 7", in_place=True)
    assert link.is_symlink()
    out = saved.with_name("out.keras")
    out.write_bytes(b"")
    out.chmod(0o604)
    to = saved.with_name("to.keras")
    to.symlink_to(out)
    checkpoint.apply(link, "dense_1.bias = 8", to, overwrite=True)
    assert (to.is_symlink(), out.stat().st_mode & 0o777, saved.stat().st_mode & 0o777) == (True, 0o604, 0o640)
    assert checkpoint.open(out)["dense_1.bias"].tolist() == [8, 8, 8]


def test_compressed_arrays_are_read_and_left_as_they_are_in_place(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("packed", data=np.arange(1000, dtype="float32"), compression="gzip")
        file["plain"] = np.zeros(3, "float32")
    checkpoint.apply(path, "plain = packed[1:4]", in_place=True)
    assert checkpoint.open(path)["plain"].tolist() == [1, 2, 3]
    with pytest.raises(UnsupportedError) as info:
        checkpoint.apply(path, "packed[0] = 1", in_place=True)
    assert info.value.message.startswith("'packed' is not edited in place, since it is stored compressed or in chunks;")


def test_keras_is_not_imported_where_it_is_not_needed(tmp_path):
    _, path = weights_file(tmp_path, "a.weights.h5")
    code = (
        "import sys; from kpatch import checkpoint\n"
        f"checkpoint.apply({str(path)!r}, '\"layers/dense/vars/0\"[0, 0] = 1; **.1 = 2', in_place=True)\n"
        "assert not {'keras', 'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@given(st.integers(1, 2000), st.randoms(use_true_random=False))
def test_the_checksum_follows_replacements_in_any_order(length, random):
    data = bytearray(random.randbytes(length))
    checksum = Checksum(zlib.crc32(data), length)
    for _ in range(random.randrange(1, 9)):
        at = random.randrange(length)
        new = random.randbytes(random.randrange(length - at + 1))
        old, data[at : at + len(new)] = bytes(data[at : at + len(new)]), new
        checksum.replace(at, old, new)
        if random.random() < 0.3:
            assert checksum.value == zlib.crc32(data)
    assert checksum.value == zlib.crc32(data)


def test_a_journal_of_another_file_is_not_played_back(saved):
    from kpatch.checkpoint import journal

    log = journal.Journal(journal.begun(saved), [(saved.name, saved.stat())], place=journal.fresh(saved))
    log.add([(0, 10, saved.read_bytes()[10:20], b"x" * 10)])
    log.close()
    data = saved.read_bytes()
    saved.unlink()
    saved.write_bytes(data + b"more")
    with pytest.raises(FileError) as info:
        checkpoint.open(saved)
    assert str(info.value) == (
        f"'{journal.begun(saved)}' is the journal of an interrupted edit, and '{saved}' has changed since\n"
        "  if the file is as you want it: "
        f"'kpatch undo --discard {saved}' removes the journal and does not change the file"
    )


def test_whole_values_go_through_in_blocks(saved, monkeypatch):
    """Merging two files never holds an array, whatever is computed from sums and products."""
    donor = saved.with_name("donor.keras")
    filled(dense(), seed=1).save(donor)
    monkeypatch.setattr("kpatch.checkpoint.store.BLOCK", 8)
    patch = "**.kernel = 0.75 * _ + 0.25 * $donor._; dense_1.bias = 2 - _ * dense_1.bias; dense_2.bias += dense_2.bias"
    model, out = load(saved), saved.with_name("out.keras")
    kpatch.apply(model, patch, donor=load(donor))
    checkpoint.apply(saved, patch, out, donor=checkpoint.open(donor))
    assert bits(load(out)) == bits(model)
