"""A backend that kpatch does not know: live edits, `edit` and layers at inference, on the generic object alone.

On the four backends that kpatch knows the generic object takes the place of their own. Keras's fifth, openvino, has no
other.
"""

import re

import keras
import models
import numpy as np
import pytest
from keras import ops

import kpatch
from kpatch import backends
from kpatch.backends.generic import Generic
from kpatch.layers import PatchedLayer, ScatterLayer
from kpatch.values import tensors

BACKEND = keras.backend.backend()
X = (np.arange(12, dtype="float32").reshape(3, 4) - 5) / 4
COMPUTES_IN = "kpatch computes in bool, float16, float32, int32 on the {} backend, not in {}"
TEXTS = [
    "_[0, 0] = 5",
    "_[-1] = 0",
    "_[:, 1:3] = 2",
    "_[::2, ::-1] *= 2",
    "let x = _; _[::-1] = x",
    "_[[0, 2], [1, 1]] = 7",
    "_[[0, 2, 0], 1] = [7, 8, 9]",
    "_[:, [true, false, true, true]] += 1",
    "_[_ < 0] = 0",
    "_[_ != 16777217] = 3",
    "_[0:0] = 1",
    "_ = 2 * _ + 1",
    "let x = _; _[1] = 2 * x[0] + 1",
    "_[:, 1] = [1, 2, 3]",
    "_ += mean(_, axis=0)",
    "_[argmax(_, axis=0), arange(4)] = 9",
    "_[argmin(_[:, 0])] *= 0.5",
    "_[[0, 1, 1], argmax(_, axis=1)] = [4, 5, 6]",
    "_[0] = [inf, nan, -inf, 1]; _ = sort(_, axis=1)",
    "_[0] = [inf, nan, -0.0, 1]; _ = argsort(_, axis=1) * 1.0",
    "_[abs(_) < quantile(abs(_), 0.5)] = 0",
    "_ = moveaxis(reshape(moveaxis(reshape(_, [2, 3, 2]), [1, 2], [0, 1]), [4, 3]), 0, 1)",
    "let a = max(_); _[_ == a] = -a",
]


@pytest.fixture(autouse=True)
def generic(monkeypatch):
    generic = Generic(BACKEND)
    monkeypatch.setattr("kpatch.backends._current", generic)
    assert backends.current() is generic
    return generic


def by_numpy(text, x):
    """What the patch makes of an array, by NumPy."""

    names = {"_": x.copy(), "true": True, "false": False, **vars(np), "abs": abs}
    for statement in re.split("; *", re.sub(r"let (.*?)(?=;)", r"\1 * 1", text)):
        whole = re.fullmatch(r"_ ([-+*/]?)= (.*)", statement)
        exec(f"_[...] = {'_ ' + whole[1] if whole[1] else ''} ({whole[2]})" if whole else statement, names)  # noqa: S102
    return names["_"]


@pytest.mark.parametrize("text", TEXTS)
def test_edit(text):
    x = ops.convert_to_tensor(X)
    found = kpatch.edit(x, text)
    assert ops.is_tensor(found)
    np.testing.assert_allclose(ops.convert_to_numpy(found), by_numpy(text, X), rtol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), X)


@pytest.mark.parametrize("text", TEXTS)
def test_scatter_layer(text):
    found = ScatterLayer(text)(ops.convert_to_tensor(X))
    np.testing.assert_allclose(ops.convert_to_numpy(found), by_numpy(text, X), rtol=1e-6)


@pytest.mark.parametrize("text", [text.replace("_", "lay.w") for text in TEXTS if "_ +=" not in text])
def test_live_edits_and_undo(text):
    layer = keras.layers.Layer(name="lay")
    layer.w = layer.add_weight(shape=X.shape, name="w", initializer=lambda shape, dtype: ops.convert_to_tensor(X))
    layer.built = True
    model = keras.Sequential([layer], name="net")
    applied = kpatch.apply(model, text)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.w), by_numpy(text.replace("lay.w", "_"), X), rtol=1e-6)
    applied.undo()
    assert ops.convert_to_numpy(layer.w).tobytes() == X.tobytes()


@pytest.mark.parametrize("text", ["_[:, 1:3] = 2", "_[..., 0] *= 2", "_[_ < 0] = 0", "let x = _; _[:, 1] = x[:, 0]"])
def test_layers_in_predict(text):
    """Of a batch of any size, a length that the generic object takes for one that is never known."""
    model = keras.Sequential([keras.Input((4,)), ScatterLayer(text)])
    for rows in (3, 2):
        found = model.predict(X[:rows], verbose=0)
        np.testing.assert_allclose(found, by_numpy(text, X[:rows]), rtol=1e-6)


def test_patched_layer():
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), PatchedLayer(dense, "kernel[:, 0] = 0; kernel[0] *= 2")])
    np.testing.assert_allclose(model.predict(X, verbose=0), X @ [[0, 2], [0, 1], [0, 1], [0, 1]], atol=0.02)
    assert (ops.convert_to_numpy(dense.kernel) == 1).all()


def test_predict_sees_the_edit_and_its_undo():
    """Keras's trainer on openvino compiles the weights in as constants."""
    model = models.dense()
    before = model.predict(X, verbose=0)
    with kpatch.apply(model, "dense_2.kernel = 0; dense_2.bias = [1, 2]"):
        np.testing.assert_array_equal(model.predict(X, verbose=0), [[1, 2]] * 3)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)


def test_a_failure_puts_everything_back(generic, monkeypatch):
    model = models.dense()
    before, write, calls = models.snapshot(model), generic.write, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("out of memory")
        write(*arguments)

    monkeypatch.setattr(generic, "write", failing)
    with pytest.raises(kpatch.ExecutionError, match="out of memory"):
        kpatch.apply(model, "dense_1.kernel[0] = 1; dense_1.bias = 2")
    assert len(calls) == 4  # the second write and two that put back
    assert models.snapshot(model) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "uint8", "int64", "int16"])
def test_other_dtypes_are_edited_live_and_not_computed_with(dtype):
    if BACKEND == "jax" and dtype == "int64":
        pytest.skip("jax has no int64 here")
    layer = keras.layers.Layer(name="lay")
    layer.w = layer.add_weight(shape=(2, 3), name="w", dtype=dtype, initializer="zeros", trainable=False)
    layer.built = True
    kpatch.apply(layer, "w[0, 0] = 1; w[1] = [2, 3, 4]; w[:, 1] = 5")
    assert ops.convert_to_numpy(layer.w).astype("float32").tolist() == [[1, 5, 0], [2, 5, 4]]
    for text in ("w[0] += 1", "w[_ == 0] = 1", "w = 2 * w", "w[0] = cast(cast(_[1], 'float32'), '" + dtype + "')"):
        with pytest.raises(kpatch.UnsupportedError) as caught:
            kpatch.apply(layer, text)
        assert caught.value.message == COMPUTES_IN.format(BACKEND, dtype)
    if (BACKEND, dtype) == ("numpy", "int64"):
        return  # which `edit` narrows
    for text in ("_[0] = 1", "_[0, 1] = 1", "_[[0, 1], 1] = 1"):
        with pytest.raises(kpatch.UnsupportedError) as caught:
            kpatch.edit(tensors.of_variable(layer.w), text)
        assert caught.value.message == COMPUTES_IN.format(BACKEND, dtype)


@pytest.mark.parametrize("count", [4, "tensor"])
def test_largest_in_segments(generic, count):
    count = 4 if count == 4 else ops.convert_to_tensor(np.int32(4))
    values, segments = (ops.convert_to_tensor(np.array(x, "int32")) for x in ([0, 1, 2, 3, 4], [3, 1, 3, 0, 1]))
    assert ops.convert_to_numpy(generic.largest_in_segments(values, segments, count)).tolist() == [3, 4, -1, 2]


@pytest.mark.parametrize("axes", [(0, -1), (-1, 0), ((0, 1), (1, 2)), ((1, 2), (-2, -1)), ((0, 3), (2, 0)), ((), ())])
def test_move_axes(generic, axes):
    x = np.arange(120).reshape(2, 3, 4, 5).astype("float32")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(generic.move_axes(ops.convert_to_tensor(x), *axes)), np.moveaxis(x, *axes)
    )


@pytest.mark.parametrize("values", [np.float32(7), np.arange(4, dtype="float32").reshape(2, 2)])
def test_replace_slices(generic, values):
    x, expected = ops.convert_to_tensor(X.copy()), X.copy()
    expected[1:3, 2:4] = values
    found = generic.replace_slices(x, [1, 2], [2, 2], ops.convert_to_tensor(values))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(x), X)


def test_entries_of_a_batch_of_unknown_length():
    for text, index in (("_[2, 1] = 7", (2, 1)), ("_[[0, 2], [1, 3]] = 7", ([0, 2], [1, 3])), ("_[-1] = 7", -1)):
        expected = X.copy()
        expected[index] = 7
        model = keras.Sequential([keras.Input((4,)), ScatterLayer(text)])
        np.testing.assert_array_equal(model.predict(X, verbose=0), expected)


@pytest.mark.skipif(BACKEND != "openvino", reason="the others know the length, or their graphs end with an error")
def test_an_entry_that_does_not_exist_is_left_out():
    model = keras.Sequential([keras.Input((4,)), ScatterLayer("_[5] = 7; _[1:] += 1")])
    np.testing.assert_array_equal(model.predict(X, verbose=0), X + np.array([[0], [1], [1]]))
