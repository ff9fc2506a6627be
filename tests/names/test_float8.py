"""Variables and arrays of float8: read as float32, and rounded once when they are written."""

import json
import struct

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import kpatch
from kpatch import checkpoint
from kpatch.values.tensors import to_numpy

FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
STORES = keras.backend.backend() in ("jax", "torch")
W = np.array([1, -2, 0, 0.5], "float32")
EDITS = {  # what each does to an array of float32
    "w[0] = 1.06": lambda w: w.__setitem__(0, 1.06),
    "w[[3, 1]] = [0.3, -7]": lambda w: w.__setitem__([3, 1], [0.3, -7]),
    "w[_ < 0.4] = 3.3": lambda w: w.__setitem__(w < 0.4, 3.3),
    "w += 0.11": lambda w: w.__iadd__(np.float32(0.11)),
    "w = sort(_) * 1.3": lambda w: w.__setitem__(np.s_[:], np.sort(w) * np.float32(1.3)),
    "let top = max(w); w[1:] = top / 3": lambda w: w.__setitem__(np.s_[1:], w.max() / np.float32(3)),
}


def of(dtype, array):
    return np.asarray(array, "float32").astype(getattr(ml_dtypes, dtype))


def holder(dtype):
    layer = keras.layers.Layer(name="holder")
    layer.w = layer.add_weight(shape=(4,), name="w", dtype=dtype, initializer="zeros", trainable=False)
    layer.k = layer.add_weight(shape=(2,), name="k", initializer="ones")
    layer.built = True
    kpatch.apply(layer, "w = $w", w=W)
    return layer


def file_of(path, dtype):
    """A safetensors file with `w` of float8, and `k`."""
    arrays = {"w": (FLOAT8[dtype], of(dtype, W)), "k": ("F32", np.ones(2, "float32"))}
    header, data = {}, b""
    for name, (kind, array) in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def expected(dtype, text):
    w = W.copy()
    EDITS[text](w)
    return of(dtype, w)


@pytest.mark.skipif(not STORES, reason="Keras makes no variables of float8 on this backend")
@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_variable(dtype):
    layer = holder(dtype)
    before = to_numpy(layer.w.value).tobytes()
    assert to_numpy(layer.w.value).dtype == getattr(ml_dtypes, dtype)
    for text in EDITS:
        applied = kpatch.apply(layer, text)
        assert to_numpy(layer.w.value).tobytes() == expected(dtype, text).tobytes(), text
        applied.undo()
        assert to_numpy(layer.w.value).tobytes() == before
    [write] = kpatch.apply(layer, "w[0] = 1.06").writes
    assert (write.asked.tolist(), write.after.tolist()) == ([np.float32(1.06)], [of(dtype, 1.06).astype("float32")])
    kpatch.apply(layer, "** = 1; k = w[:2] + 0.5; k[0] += $v[3]", v=layer.w)
    assert to_numpy(layer.k.value).tolist() == [2.5, 1.5]
    kpatch.apply(layer.w, "_[1:3] = 9")
    assert to_numpy(layer.w.value).astype("float32").tolist() == [1, 9, 9, 1] if dtype.endswith("fn") else [1, 8, 8, 1]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_an_array_in_a_file(dtype, tmp_path):
    path, out = file_of(tmp_path / "a.safetensors", dtype), tmp_path / "b.safetensors"
    for text in EDITS:
        checkpoint.apply(path, text, out, overwrite=True)
        assert checkpoint.open(out)["w"].tobytes() == expected(dtype, text).tobytes(), text
        found = kpatch.diff(path, out)
        checkpoint.apply(path, found.text, tmp_path / "c.safetensors", overwrite=True, **found.bindings)
        assert (tmp_path / "c.safetensors").read_bytes() == out.read_bytes()
    checkpoint.apply(path, "** = 1; k = w[:2] * 3", out, overwrite=True)
    assert checkpoint.open(out)["k"].tolist() == [3, 3]
    x = kpatch.edit(ops.zeros(4), "_ = $f.w", f=checkpoint.open(path))
    assert to_numpy(x).tolist() == W.tolist()


def test_what_does_not_fit_is_an_error(tmp_path):
    path = file_of(tmp_path / "a.safetensors", "float8_e4m3fn")
    for text, value in (("w[1] = 500", "500 at [1]"), ("w = inf", "inf at [0]")):
        with pytest.raises(kpatch.DTypeError) as info:
            checkpoint.apply(path, text, in_place=True)
        assert info.value.message == f"'w': {value} does not fit float8_e4m3fn (at most 448)"
    checkpoint.apply(path, "w[0] = nan; w[1] = 460", in_place=True)
    assert checkpoint.open(path)["w"].astype("float32").tolist()[1:] == [448, 0, 0.5]
    assert np.isnan(checkpoint.open(path)["w"].astype("float32")[0])


def test_a_tensor_of_float8_is_handed_in():
    array = of("float8_e5m2", [1, 2.5])
    assert to_numpy(kpatch.edit(ops.zeros(2), "_ = $v * 2", v=array)).tolist() == [2, 5]
    with pytest.raises(kpatch.PatchError, match="float8_e5m2"):
        kpatch.edit(ops.cast(ops.ones(2), "float8_e5m2"), "_[0] = 1")
