"""Denormal numbers: one text selects the same entries on every backend and by each way in which it runs."""

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import kpatch
import kpatch.layers
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
COMPILES = BACKEND in ("jax", "tensorflow")
FEW = ("_ == 0", "_ <= 0")
NUMPY = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16")}
TINY = {"float32": 1e-40, "bfloat16": 1e-39, "float16": 1e-7}
MASKS = {
    "_ == 0": lambda w: w == 0,
    "_ != 0": lambda w: w != 0,
    "_ > 0": lambda w: w > 0,
    "_ < 0": lambda w: w < 0,
    "_ <= 0": lambda w: w <= 0,
    "not (_ >= 0)": lambda w: ~(w >= 0),
    "0 < _ < 1": lambda w: (w > 0) & (w < 1),
    "_ == _[0]": lambda w: w == w[0],
    "_ < _[2]": lambda w: w < w[2],
    "_ >= 1e-42": lambda w: w >= w.dtype.type(1e-42),
    "_ > inf": lambda w: w > np.inf,
    "_ != nan": lambda w: np.ones(w.shape, bool),
    'cast(_, "bool")': lambda w: w != 0,
}


def sample(dtype):
    tiny = TINY[dtype]
    return np.array([tiny, -tiny, 0, -0.0, 1, -1, np.inf, -np.inf, np.nan], "float64").astype(NUMPY[dtype])


def by_apply(text, w):
    layer = keras.layers.Layer(name="holder", dtype=w.dtype.name)
    layer.w = layer.add_weight(shape=w.shape, name="w", dtype=w.dtype.name)
    layer.built = True
    layer.w.assign(w)
    kpatch.apply(layer, text.replace("_", "w", 1))
    return to_numpy(layer.w.value)


def by_predict(text, w):
    model = keras.Sequential(
        [keras.Input(batch_shape=w.shape, dtype=w.dtype.name), kpatch.layers.ScatterLayer(text, dtype=w.dtype.name)]
    )
    return np.asarray(model.predict(w, verbose=0, batch_size=len(w)))


WAYS = {
    "apply": by_apply,
    "edit": lambda text, w: to_numpy(kpatch.edit(ops.convert_to_tensor(w), text)),
    "predict": by_predict,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", NUMPY)
def test_a_mask_selects_what_it_does_in_numpy(dtype, way):
    w = sample(dtype)
    every = dtype == "float32" and (way == "edit" or not COMPILES)
    for text in MASKS if every else FEW:
        with np.errstate(all="ignore"):
            expected = np.where(MASKS[text](w), w.dtype.type(5), w)[:-1]  # a NaN may get other bits
        for form in (f"_[{text}] = 5", f"_ = where({text}, 5, _)") if way == "edit" else (f"_[{text}] = 5",):
            assert WAYS[way](form, w)[:-1].tobytes() == expected.tobytes(), form


def test_float64():
    if BACKEND == "jax":
        pytest.skip("jax has float64 only where that is switched on")
    w = np.array([5e-324, -1e-310, 0, 1])
    assert by_apply("_[_ == 0] = 5", w).tolist() == [5e-324, -1e-310, 5, 1]
    edited = kpatch.edit(ops.convert_to_tensor(w, "float64"), "_ = where(_ == 0, 5, _)")
    assert to_numpy(edited).tolist() == [5e-324, -1e-310, 5, 1]


def test_counts_of_what_is_not_zero():
    w = sample("float32")[:4]
    text = "_ = where(any(_ != 0) and all(_[:2]), count_nonzero(_), 7)"
    assert by_apply(text, w).tolist() == [2, 2, 2, 2]
    assert WAYS["edit"](text, w).tolist() == [2, 2, 2, 2]


def test_a_mask_with_arithmetic_is_the_same_by_blocks_and_by_operators():
    """Arithmetic takes denormals for zeros where the backend does; then a mask of a variable's memory does as well."""
    w = sample("float32")[:5]
    for text in ("_ * 1 == 0", "_ - 1e-40 < 0", "maximum(_, 0) > 0", "square(_) + _ > 0"):
        assert by_apply(f"_[{text}] = 5", w).tobytes() == WAYS["edit"](f"_ = where({text}, 5, _)", w).tobytes(), text
