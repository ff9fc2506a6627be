"""The formats that people have: each is recognised, listed, edited in a copy and in place, and compared."""

import json
import os
import struct
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from models import dense, filled

import kpatch
from kpatch import checkpoint
from kpatch.errors import FileError, PatchError

pytestmark = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(function, *args, **options):
    with pytest.raises(PatchError) as info:
        function(*args, **options)
    return str(info.value)


def header(items, data=b"", path="a.safetensors"):
    """A safetensors file with a header as it is given."""
    text = items if isinstance(items, bytes) else json.dumps(items).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    return path


def item(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# HDF5, new and old


def keras_2(path, number=":0"):
    """A whole model as Keras 2 wrote it."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.12.0"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"dense_1", b"inner", b"norm"]
        weights = {
            "dense_1": [f"dense_1/kernel{number}", f"dense_1/bias{number}"],
            "inner": [f"proj/kernel{number}", f"lstm/lstm_cell/kernel{number}"],
            "norm": [f"net/norm/gamma{number}"],
        }
        for layer, names in weights.items():
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[layer][name] = np.ones((2, 3), "float32")
        file["optimizer_weights/Adam/dense_1/kernel/m:0"] = np.zeros((2, 3), "float32")


def test_a_whole_model_of_keras_2():
    keras_2("old.h5")
    names = [
        "dense_1.bias", "dense_1.kernel", "inner.lstm.lstm_cell.kernel", "inner.proj.kernel", "norm.gamma",
        'optimizer_weights.Adam.dense_1.kernel."m:0"',
    ]  # fmt: skip
    assert list(checkpoint.open("old.h5")) == names
    checkpoint.apply("old.h5", "dense_1.kernel[0] = 5; **.kernel[1, 1] = 2", "new.h5", expect=3)
    with h5py.File("new.h5") as file:
        np.testing.assert_array_equal(file["model_weights/dense_1/dense_1/kernel:0"], [[5, 5, 5], [1, 2, 1]])
        np.testing.assert_array_equal(file["model_weights/inner/lstm/lstm_cell/kernel:0"], [[1, 1, 1], [1, 2, 1]])
        assert not np.any(file["optimizer_weights/Adam/dense_1/kernel/m:0"])
    checkpoint.apply("new.h5", '"model_weights/inner/proj/kernel:0" = 1; dense_1.kernel = 1', in_place=True)
    checkpoint.apply("new.h5", "inner.lstm.lstm_cell.kernel = 1", in_place=True)
    assert kpatch.diff("old.h5", "new.h5").text == ""
    assert Path("old.h5").read_bytes() == Path("new.h5").read_bytes()


def test_weights_of_keras_2_whose_list_is_split():
    with h5py.File("w.h5", "w") as file:
        for number, layer in enumerate(("a", "b")):
            file.attrs[f"layer_names{number}"] = [layer.encode()]
            file.create_group(layer).attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
            file[layer][f"{layer}/kernel:0"] = np.ones(2, "float32")
    assert list(checkpoint.open("w.h5")) == ["a.kernel", "b.kernel"]


def test_a_heap_of_names_that_does_not_end():
    """libhdf5 would read it for ever."""
    keras_2("old.h5")
    data = bytearray(Path("old.h5").read_bytes())
    at, damaged = data.find(b"GCOL"), 0
    while at >= 0:  # the free space behind the texts has the number 0, and leads nowhere
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        place = at + 16
        while place + 16 <= at + size and (number := data[place]):
            place += 16 + (data[place + 8] + 7) // 8 * 8
        if place + 16 <= at + size and not number:
            data[place + 8 : place + 16] = bytes(8)
            damaged += 1
        at = data.find(b"GCOL", at + 4)
    assert damaged
    Path("old.h5").write_bytes(data)
    assert message(checkpoint.open, "old.h5") == "'old.h5' is damaged: a heap of texts in it does not end"


@pytest.mark.parametrize("names", [5, "x", [b"\xff"], ["/"], [""], ["a", "a"], ["a/kernel:0"]])
def test_lists_of_layers_that_lie(names):
    with h5py.File("w.h5", "w") as file:
        file["a/kernel"] = np.ones(2, "float32")
        file.attrs["layer_names"] = names
        file["a"].attrs["weight_names"] = names
    assert list(checkpoint.open("w.h5")) == ["a.kernel"]


def test_what_keras_writes_as_h5_is_loaded_as_it_was_patched():
    model = filled(dense())
    model.save("model.h5")
    checkpoint.apply("model.h5", "dense_2.kernel[0] = 7; **.bias = 3", "out.h5")
    kpatch.apply(model, "dense_2.kernel[0] = 7; **.bias = 3")
    for loaded, live in zip(keras.saving.load_model("out.h5").weights, model.weights, strict=True):
        np.testing.assert_array_equal(loaded, live)


@pytest.mark.parametrize("name", ["weights", "a.hdf5", "a.h5", "a.ckpt", "a.keras"])
def test_hdf5_is_known_by_its_content(name):
    with h5py.File(name, "w") as file:
        file["a/w"] = np.zeros(3, "float32")
    out = f"out{os.path.splitext(name)[1]}"
    checkpoint.apply(name, "a.w[1] = 4", out)
    assert checkpoint.open(out)["a.w"].tolist() == [0, 4, 0]


def test_a_tied_dataset_is_one_array_with_several_names():
    with h5py.File("tied.h5", "w") as file:
        file["b/w"] = np.ones(3, "float32")
        file["a/w"] = file["b/w"]
        file["b/v"] = np.ones(2, "float32")
    assert list(checkpoint.open("tied.h5")) == ["a.w", "b.v"]
    checkpoint.apply("tied.h5", "b.w[0] = 2; a.w[1] = 3; **.w[2] = 4", "out.h5", expect=1)
    assert checkpoint.open("out.h5")["b.w"].tolist() == [2, 3, 4]


# Folders


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_unzipped_model(here):
    from keras.src.saving import saving_lib

    model = filled(dense())
    saving_lib.save_model(model, "folder", zipped=False)
    (here / "folder" / "assets").mkdir()
    (here / "folder" / "assets" / "words.txt").write_text("a b")
    before = (here / "folder" / "model.weights.h5").read_bytes()
    checkpoint.apply("folder", "dense_2.kernel[0] = 7", "out", journal=True)
    kpatch.apply(model, "dense_2.kernel[0] = 7")
    for loaded, live in zip(keras.saving.load_model("out").weights, model.weights, strict=True):
        np.testing.assert_array_equal(loaded, live)
    assert (here / "out" / "assets" / "words.txt").read_text() == "a b"
    checkpoint.undo("out")
    assert (here / "out" / "model.weights.h5").read_bytes() == before
    checkpoint.apply("out", "dense_2.bias = 7", in_place=True)
    assert kpatch.diff("folder", "out").text == "dense_2.bias = 7.0\n"


def test_a_result_in_a_folder_needs_a_new_name(here):
    sharded(here / "hf")
    (here / "there").mkdir()
    assert message(checkpoint.apply, "hf", "a.w = 1", "there", overwrite=True) == (
        "'there' exists; the result is a folder, which needs a new name"
    )
    assert message(checkpoint.apply, "hf", "a.w = 1", "no/there") == "'no' is not a directory"
    assert message(checkpoint.apply, "hf/model.safetensors.index.json", "a.w = 1", "x.safetensors.index.json") == (
        "'x.safetensors.index.json' has the name of a file; the result is a new folder, with its index and its shards"
    )


# Sharded safetensors


def sharded(folder, **weight_map):
    from safetensors.numpy import save_file

    folder.mkdir()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a.w": np.ones((3, 2), "float32"), "a.b": np.ones(2, "float32")}, folder / shards[0])
    save_file({"b.w": np.ones((3, 2), "float32")}, folder / shards[1])
    where = {"a.w": shards[0], "a.b": shards[0], "b.w": shards[1], **weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return shards


@pytest.mark.parametrize("given", ["hf", "hf/model.safetensors.index.json"])
def test_a_result_shares_the_shards_that_stay(here, given):
    first, second = sharded(here / "hf")
    before = contents(here / "hf")
    checkpoint.apply(given, "a.w[0] = 5; a.b *= 2", "out", journal=True)
    assert checkpoint.open("out")["a.w"].tolist() == [[5, 5], [1, 1], [1, 1]]
    assert kpatch.diff(given, "out").text == "a.b = 2.0\na.w[0] = 5.0\n"
    assert contents(here / "hf") == before
    assert (here / "out" / "config.json").exists() == (given == "hf")
    if os.name == "posix":
        assert os.path.samefile(here / "hf" / second, here / "out" / second)
        assert not os.path.samefile(here / "hf" / first, here / "out" / first)
        assert message(checkpoint.apply, "out", "b.w = 1", in_place=True) == (
            f"'{here.joinpath('out', second).relative_to(here)}' has a second name (a hard link), and an edit in place"
            " would change the file under both\n  with an output of its own the file stays as it was"
        )
    checkpoint.undo("out")
    assert kpatch.diff(given, "out").text == ""


def test_shards_in_place(here):
    sharded(here / "hf")
    before = contents(here / "hf")
    checkpoint.apply("hf", "**.w[1] = 3", in_place=True, journal=True, expect=2)
    assert checkpoint.open("hf/model-00002-of-00002.safetensors")["b.w"].tolist() == [[1, 1], [3, 3], [1, 1]]
    checkpoint.undo("hf/model.safetensors.index.json")
    assert contents(here / "hf") == before


def test_an_index_that_lies(here):
    sharded(here / "hf", **{"c.w": "model-00001-of-00002.safetensors"})
    index = here.joinpath("hf", "model.safetensors.index.json").relative_to(here)
    assert message(checkpoint.open, "hf") == (
        f"'{index}' is damaged: its shard 'model-00001-of-00002.safetensors' lacks 'c.w'"
    )
    sharded(here / "other", **{"c.w": "../hf/model-00001-of-00002.safetensors"})
    assert "is not a file beside it" in message(checkpoint.open, "other")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_shards_in_another_folder_are_edited_in_a_copy(here):
    """As Hugging Face keeps them: the names of a snapshot are links to blobs."""
    sharded(here / "hf")
    (here / "snapshot").mkdir()
    (here / "blobs").mkdir()
    for number, path in enumerate(sorted((here / "hf").iterdir())):
        path.rename(here / "blobs" / str(number))
        (here / "snapshot" / path.name).symlink_to(f"../blobs/{number}")
    checkpoint.apply("snapshot", "a.w = 2", "out")
    assert checkpoint.open("out")["a.w"].tolist() == [[2, 2]] * 3
    assert not any(path.is_symlink() for path in (here / "out").iterdir())


# Names and dtypes of safetensors


def test_names_with_empty_parts_and_signs():
    names = ["a..b", "/abs", ".lead", "end.", "a.b", "a/b", "x.output", "n\nl", "ä"]
    header({n: item("F32", [1], 4 * i, 4 * i + 4) for i, n in enumerate(names)}, bytes(36))
    shown = ['"a..b"', '"/abs"', '".lead"', '"end."', '"a.b"', '"a/b"', "x.output", '"n\\nl"', '"ä"']
    assert list(checkpoint.open("a.safetensors")) == shown
    for name in shown:
        checkpoint.apply("a.safetensors", f"{name} = 1", in_place=True)
        assert kpatch.diff("a.safetensors", "a.safetensors").text == ""
    assert [checkpoint.open("a.safetensors")[name].tolist() for name in shown] == [[1.0]] * 9


def test_dtypes_that_kpatch_does_not_know():
    items = {"q": item("F8_E8M0", [3], 0, 3), "f": item("F4", [2, 3], 3, 6), "n": item("NEW", [7], 6, 8)}
    data = bytes(range(12))
    header({**items, "w": item("F32", [1], 8, 12)}, data)
    checkpoint.apply("a.safetensors", "w = 1", "b.safetensors")
    assert (Path("b.safetensors").read_bytes()[-12:-4], checkpoint.open("b.safetensors")["w"]) == (data[:8], [1.0])
    assert kpatch.diff("a.safetensors", "b.safetensors").text == "w = 1.0\n"
    donor = checkpoint.open("b.safetensors")
    for patch, given in (("q = 1", {}), ("w = $b.q", {"b": donor})):
        said = message(checkpoint.apply, "a.safetensors", patch, in_place=True, bindings=given)
        assert "q' is of F8_E8M0, which is not part of the language" in said
    assert "is of" in message(checkpoint.plan, "a.safetensors", "* = 1")


def test_headers_are_checked_as_the_library_checks_them():
    """Random headers, one or two things in each changed: kpatch refuses what the library refuses, and nothing else."""
    from safetensors import SafetensorError, safe_open

    good = {"a": item("F32", [2, 2], 0, 16), "b": item("BF16", [3], 16, 22), "__metadata__": {"x": "y"}}
    changes = [
        lambda h: h["a"].update(shape=[2, 3]), lambda h: h["a"].update(data_offsets=[0, 12]),
        lambda h: h["b"].update(data_offsets=[14, 20]), lambda h: h["b"].update(data_offsets=[17, 23]),
        lambda h: h["a"].update(dtype="F64"), lambda h: h["b"].update(dtype="F16"), lambda h: h["a"].pop("shape"),
        lambda h: h["b"].update(extra=1), lambda h: h["__metadata__"].update(x=1), lambda h: h.update(c=h["b"]),
        lambda h: h.update(c=item("F32", [0], 22, 22)), lambda h: h.update(c=item("F32", [0], 5, 5)),
        lambda h: h.update(__metadata__=None), lambda h: h["a"].update(shape=[2.0, 2]), lambda h: h.pop("a"),
        lambda h: h["a"].update(shape=[True, 4]), lambda h: h["b"].update(dtype="I16"), lambda h: h.pop("__metadata__"),
        lambda h: h["a"].update(data_offsets=[0, 16, 3]), lambda h: h["b"].update(shape=[-3]),
        lambda h: h.update(c=item("C64", [1], 22, 30)), lambda h: h.update(c=item("F4", [4], 22, 24)),
        lambda h: h.update(c=item("F6_E2M3", [4], 22, 25)), lambda h: h.update(c=item("F4", [3], 22, 24)),
    ]  # fmt: skip
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        made = json.loads(json.dumps(good))
        for number in rng.integers(0, len(changes), rng.integers(1, 3)):
            try:
                changes[number](made)
            except (KeyError, AttributeError):
                continue
        length = int(rng.choice([22, 22, 22, 21, 23, 24, 25, 30]))
        header(made, bytes(length))
        try:
            with safe_open("a.safetensors", "numpy") as file:
                refused = file is None
        except SafetensorError:
            refused = True
        try:
            checkpoint.open("a.safetensors")
            assert not refused, (made, length)
        except FileError:
            assert refused, (made, length)
        seen.add(refused)
    assert seen == {True, False}


ONE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{{"a":{ONE},"a":{ONE}}}', "its header is invalid"),
        (f' {{"a":{ONE}}}', "its header is invalid"),
        (f'{{"a":{ONE}}}'.replace("1]}", "NaN]}"), "its header is invalid"),
        (f'{{"a":{ONE},"b":{ONE}}}', "'a' and 'b' overlap"),
    ],
)
def test_headers_that_are_two_things(text, said):
    assert message(checkpoint.open, header(text.encode(), b"x")) == f"'a.safetensors' is damaged: {said}"


# Formats of others


BY = "convert it: safetensors."
CONVERTERS = {
    "PyTorch": f"{BY}torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')",
    "NumPy": f"{BY}numpy.save_file(dict(numpy.load(path)), 'model.safetensors')",
    "GGUF": "convert it: transformers' from_pretrained(folder, gguf_file=name), and save_pretrained(folder)",
}


@pytest.mark.parametrize(
    ("name", "data", "of"),
    [("x.pt", b"\x80\x02abc", "PyTorch"), ("x.npz", b"PK\3\4", "NumPy"), ("model", b"GGUF\3\0", "GGUF")],
)
def test_files_of_others_name_a_converter(here, name, data, of):
    (here / name).write_bytes(data)
    expected = f"'{name}' is a file of {of}, which kpatch does not read\n  {CONVERTERS[of]}"
    assert message(checkpoint.open, name) == expected


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("saved_model.pb", "'x' is a file of TensorFlow, which kpatch does not read"),
        ("_CHECKPOINT_METADATA", "'x' is a file of Orbax, which kpatch does not read"),
        ("readme", "'x' is a directory without weights that kpatch reads"),
    ],
)
def test_folders_of_others(here, inside, said):
    (here / "x").mkdir()
    (here / "x" / inside).write_bytes(b"")
    assert message(checkpoint.open, "x").splitlines()[0] == said
