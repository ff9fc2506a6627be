"""The patch between two checkpoints: applied to the one it makes the other, to the bit, and it is readable."""

import tempfile
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from checkpoints import MODELS, bits
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import dense, filled
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.errors import FileError
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free

DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "int32", "uint8", "int64", "bool"]


def array_of(draw, dtype, shape):
    """Any bits: NaN with messages, -0.0, infinities."""
    size = int(np.prod(shape))
    if dtype == "bool":
        return np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool).reshape(shape)
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    data = draw(st.binary(min_size=size * kind.itemsize, max_size=size * kind.itemsize))
    return np.frombuffer(data, kind).reshape(shape)


@st.composite
def pairs(draw):
    """Two files' arrays: some the same, some changed in entries, in a slice, or throughout."""
    old, new = {}, {}
    for number in range(draw(st.integers(1, 3))):
        dtype, shape = draw(st.sampled_from(DTYPES)), tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        a, b = array_of(draw, dtype, shape), array_of(draw, dtype, shape)
        how = draw(st.sampled_from(["same", "slice", "one value", "all"]))
        index = tuple(slice(*sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape)
        c = np.array(b if how == "all" else a)
        if how == "slice":
            c[index] = b[index]
        if how == "one value" and b.size:
            c[index] = b.reshape(-1)[0]
        old[f"layer.{number}.w"], new[f"layer.{number}.w"] = np.array(a), c
    return old, new


@settings(max_examples=150)
@given(pairs())
def test_the_patch_leads_from_one_to_the_other_to_the_bit(pair):
    with tempfile.TemporaryDirectory() as directory:
        a, b, c, patch = (
            Path(directory, name) for name in ("a.safetensors", "b.safetensors", "c.safetensors", "p.kpatch")
        )
        save_file(pair[0], a)
        save_file(pair[1], b)
        found = checkpoint.diff(a, b)
        checkpoint.apply(a, found.text, c, **found.bindings)
        assert c.read_bytes() == b.read_bytes()
        assert not checkpoint.diff(b, c).text
        found.save(patch)
        beside = patch.with_suffix(".safetensors")
        given = {array.path: array for array in checkpoint.open(beside).arrays} if beside.exists() else {}
        checkpoint.apply(a, patch.read_text(encoding="utf-8"), c, overwrite=True, **given)
        assert c.read_bytes() == b.read_bytes()


@pytest.mark.every_backend
@pytest.mark.parametrize("name", ["mixed", "trained", "int8", "mixed_bfloat16", "seeded"])
def test_models(name, tmp_path):
    a, b, c = (tmp_path / f"{letter}.keras" for letter in "abc")
    MODELS[name]().save(a)
    patch = "**.kernel *= 0.5; **.kernel[0, 1] = 0; **.bias[-1] = 7"
    checkpoint.apply(a, patch, b)
    found = checkpoint.diff(a, b)
    checkpoint.apply(a, found.text, c, **found.bindings)
    assert c.read_bytes() == b.read_bytes()
    model = keras.saving.load_model(a)
    kpatch.apply(model, found.text, **found.values)
    assert bits(model) == bits(keras.saving.load_model(b))


def test_layers_that_keras_numbered_otherwise(tmp_path):
    for letter in "ab":
        layer = keras.layers.Dense(3, kernel_initializer="ones" if letter == "a" else "zeros")
        keras.Sequential([keras.Input((4,)), layer]).save(tmp_path / f"{letter}.keras")
    opened = checkpoint.open(tmp_path / "a.keras")
    found = checkpoint.diff(opened, tmp_path / "b.keras")
    assert found.text == f"{next(iter(opened))} = 0.0\n"


@pytest.mark.every_backend
def test_a_model_and_a_file(tmp_path):
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(700, name="large")])
    model.save(tmp_path / "a.keras")
    found = checkpoint.diff(tmp_path / "a.keras", model)
    assert found.text == ""
    kpatch.apply(model, "large.kernel[299, 699] = 0.5")
    assert checkpoint.diff(tmp_path / "a.keras", model).text == "large.kernel[299, 699] = 0.5\n"


@pytest.mark.every_backend
def test_models_in_memory():
    a, b = filled(dense()), filled(dense(), seed=1)
    found = checkpoint.diff(a, b)
    kpatch.apply(a, found.text, **found.values)
    assert bits(a) == bits(b)


def test_what_it_looks_like(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    old = {
        "few": np.zeros((4, 5), "float32"),
        "row": np.arange(20, dtype="float32").reshape(4, 5),
        "column": np.ones((40, 50), "float16"),
        "block": np.zeros((3, 4, 5), "int8"),
        "flag": np.array([True, False, True]),
        "whole": np.zeros(1000, "float32"),
        "scalar": np.array(1.0),
        "same": np.ones(3, "float32"),
    }
    new = {name: value.copy() for name, value in old.items()}
    new["few"][[0, 3], [1, 2]] = [0.1, -np.inf]
    new["row"][2] = [1, 2.5, 3, 4, 5e20]
    new["column"][:, 3] = 0.3
    new["block"][1:, :, 2:4] = -7
    new["flag"][1] = True
    new["whole"] += np.arange(1000, dtype="float32")
    new["scalar"] = np.array(np.nan)
    save_file(old, a)
    save_file(new, b)
    found = checkpoint.diff(a, b)
    assert sorted(found.text.splitlines()) == [
        "block[1:, :, 2:4] = -7",
        "column[:, 3] = 0.3",
        "few[0, 1] = 0.1",
        "few[3, 2] = -inf",
        "flag[1] = true",
        "row[2] = [1.0, 2.5, 3.0, 4.0, 5e+20]",
        "scalar = nan",
        "whole[1:] = $whole",
    ]
    assert list(found.values) == ["whole"]
    far = checkpoint.diff(a, b, tolerance=1e30).text.splitlines()
    assert sorted(far) == ["few[3, 2] = -inf", "flag[1] = true", "scalar = nan"]


def test_files_that_a_patch_cannot_lead_between(tmp_path):
    paths = [tmp_path / f"{letter}.safetensors" for letter in "abcd"]
    save_file({"w": np.zeros(3, "float32")}, paths[0])
    save_file({"w": np.zeros(4, "float32")}, paths[1])
    save_file({"w": np.zeros(3, "float32"), "v": np.zeros(3)}, paths[2])
    for a, b, message in (
        (0, 1, "'w' is (3,) float32 and (4,) float32: a patch keeps shapes and dtypes"),
        (0, 2, f"'{paths[0]}' has no 'v', which '{paths[2]}' has"),
        (2, 0, f"'{paths[0]}' has no 'v', which '{paths[2]}' has"),
    ):
        with pytest.raises(FileError) as info:
            checkpoint.diff(paths[a], paths[b])
        assert str(info.value) == f"{message}\n  common=True (--common) compares what both have"


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled(dense()).save("a.keras")
    model = filled(dense(), seed=1)
    model.layers[0].bias.assign([1.0, 2.0, 3.0])
    model.save("b.keras")

    def run(*args):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == (args[:3] == ("diff", "a.keras", "b.keras")), result.output
        return result

    monkeypatch.setattr("kpatch.checkpoint.wording.FEW", 8)
    result = run("diff", "a.keras", "b.keras", "-o", "change.kpatch", "--html", "map.html")
    assert result.stdout == "wrote change.kpatch\nwrote change.safetensors\n"
    assert (
        Path("change.kpatch")
        .read_text()
        .partition("\n")[2]
        .startswith("dense_1.kernel = $dense_1_kernel\ndense_1.bias = [1.0, 2.0, 3.0]\n")
    )
    assert "<code>dense_1.kernel</code>" in (page := Path("map.html").read_text(encoding="utf-8"))
    assert page.count("<img") == 4
    assert "dense_1.kernel   (4, 3)   float32" in run("diff", "a.keras", "b.keras", "--summary").stdout
    result = run("diff", "a.keras", "b.keras")
    assert result.stderr == "note: $dense_1_kernel: -o keeps the values too\n"
    run("apply", "a.keras", "change.kpatch", "-o", "c.keras")
    assert run("diff", "b.keras", "c.keras").stdout == ""


def lines(old, new, folder, **options):
    """The patch between two arrays, which must lead from the one to the other to the bit."""
    a, b, c = (folder / f"{letter}.safetensors" for letter in "abc")
    save_file({"w": old}, a)
    save_file({"w": new}, b)
    found = checkpoint.diff(a, b, **options)
    checkpoint.apply(a, found, c, overwrite=True)
    assert c.read_bytes() == b.read_bytes()
    found.save(folder / "p.kpatch")
    checkpoint.apply(a, kpatch.load(folder / "p.kpatch"), c, overwrite=True)
    assert c.read_bytes() == b.read_bytes()
    return found.text.splitlines()


ROWS = {
    "[7]": np.s_[7],
    "[:, 3]": np.s_[:, 3],
    "[2:9]": np.s_[2:9],
    "[::4]": np.s_[::4],
    "[1:35:3, 5:60]": np.s_[1:35:3, 5:60],
    "[[3, 4, 17]]": np.s_[[3, 4, 17]],
    "[:, [0, 8, 9, 30]]": np.s_[:, [0, 8, 9, 30]],
}


MOSTLY = ("[7]", "[:, 3]", "[2:9]", "[::4]")  # lists and blocks are exact
HOW = [(text, how) for text in ROWS for how in ("values", "one value", *["most"] * (text in MOSTLY))]


@pytest.mark.parametrize(("text", "how"), HOW)
def test_a_region_is_one_statement(text, how, tmp_path):
    rng = np.random.default_rng(0)
    old = rng.normal(size=(40, 70)).astype("float32")
    new, index = old.copy(), ROWS[text]
    new[index] = 0.5 if how == "one value" else rng.normal(size=new[index].shape)
    if how == "most":
        keep = rng.random(new[index].shape) < 0.2
        new[index] = np.where(keep, old[index], new[index])
    [line] = lines(old, new, tmp_path)
    few = text == "[:, 3]" and how != "one value"
    assert line.startswith(f"w{text} = [" if few else f"w{text} = 0.5" if how == "one value" else f"w{text} = $w")


def test_a_filter_is_one_statement(tmp_path):
    old = np.zeros((3, 3, 16, 8), "float16")
    new = old.copy()
    new[..., 3] = np.random.default_rng(0).normal(size=(3, 3, 16))
    assert lines(old, new, tmp_path) == ["w[:, :, :, 3] = $w"]
    assert checkpoint.open(tmp_path / "p.safetensors")["w"].shape == (3, 3, 16)


def test_scattered_entries_are_written_out(tmp_path):
    new = np.zeros((9, 9), "float32")
    new[[0, 4, 8], [1, 7, 2]] = [1, 2, 3]
    assert lines(np.zeros_like(new), new, tmp_path) == ["w[0, 1] = 1.0", "w[4, 7] = 2.0", "w[8, 2] = 3.0"]
    new[0, [3, 8]] = 5
    assert lines(np.zeros_like(new), new, tmp_path)[:3] == ["w[0, 1] = 1.0", "w[0, 3] = 5.0", "w[0, 8] = 5.0"]


@settings(max_examples=100)
@given(st.data())
def test_regions_of_any_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    axes = [data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)) for n in shape]
    old = np.random.default_rng(0).normal(size=shape).astype("float32")
    new = old.copy()
    new[np.ix_(*axes)] = np.random.default_rng(1).normal(size=tuple(map(len, axes)))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        patched.setattr("kpatch.checkpoint.wording.FEW", data.draw(st.sampled_from([0, 4, 64])))
        lines(old, new, Path(directory))


def test_parts_of_a_model_in_memory():
    a, b = filled(dense()), filled(dense(), seed=1)
    b.layers[0].kernel.assign(keras.ops.convert_to_tensor(a.layers[0].kernel))
    kpatch.apply(b, "dense_1.kernel[1] *= 3; dense_1.bias = $a._; dense_2.** = $a._", a=a)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kpatch.checkpoint.wording.FEW", 0)
        found = checkpoint.diff(a, b)
        assert found.text == "dense_1.kernel[1] = $dense_1_kernel\n"
        kpatch.apply(a, found)
    assert bits(a) == bits(b)


def test_what_two_files_have_in_common(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, more = filled(dense()), filled(dense())
    more.compile("sgd", "mse")
    more.optimizer.build(more.trainable_variables)
    kpatch.apply(more, "dense_1.bias[1] = 5")
    plain.save("a.keras")
    more.save("b.keras")
    found = checkpoint.diff("a.keras", "b.keras", common=True)
    *rest, last = found.text.splitlines()
    assert (last, found.equal, [f"# {line}" for line in found.rest]) == ("dense_1.bias[1] = 5.0", False, rest)
    assert "# 'a.keras' has no 'optimizer.iterations', which 'b.keras' has" in rest

    def run(*args):
        return CliRunner().invoke(main, ["diff", *args])

    assert run("a.keras", "b.keras").exit_code == 2
    result = run("a.keras", "b.keras", "--common")
    assert (result.exit_code, result.stdout) == (1, found.text)
    assert "'a.keras' has no 'optimizer." in run("a.keras", "b.keras", "--common", "--summary").stdout
    same = run("a.keras", "a.keras")
    assert (same.exit_code, same.stdout) == (0, "")
    assert run("a.keras", "a.keras", "--common").exit_code == 0
    assert run("none.keras", "a.keras").exit_code == 2


def test_shapes_and_dtypes_that_are_not_in_common(tmp_path):
    import json
    import struct

    save_file({"w": np.zeros(3, "float32"), "x": np.ones(2)}, tmp_path / "a.safetensors")
    save_file({"w": np.zeros(4, "float32"), "x": np.zeros(2)}, tmp_path / "b.safetensors")
    found = checkpoint.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", common=True)
    assert found.rest == ("'w' is (3,) float32 and (4,) float32: a patch keeps shapes and dtypes",)
    assert found.text.splitlines()[1:] == ["x = 0.0"]
    for letter, data in (("a", b"12345678"), ("b", b"12345679")):
        header = json.dumps({"c": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}).encode()
        (tmp_path / f"{letter}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    with pytest.raises(FileError, match="'c' differs: C64 is not part of the language"):
        checkpoint.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not checkpoint.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", common=True).equal
    assert checkpoint.diff(tmp_path / "a.safetensors", tmp_path / "a.safetensors").equal
