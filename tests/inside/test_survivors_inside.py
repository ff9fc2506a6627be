"""Behaviour of layers and patches inside of models that mutants of the code had shown to be untested."""

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.initializers import PatchedInitializer
from kpatch.inside import tensor_patch
from kpatch.inside.tensor_patch import TensorPatch
from kpatch.values.tensors import to_numpy


def test_a_patch_is_planned_anew_for_another_dtype():
    initializer = PatchedInitializer("_[0] = 0.1; _[1] = _ + 0.1", base="zeros")
    for dtype in ("float32", "float16", "bfloat16", "float32"):
        made = initializer((2,), dtype=dtype)
        assert keras.backend.standardize_dtype(made.dtype) == dtype
        held = to_numpy(made)
        assert held.tolist() == [held.dtype.type(0.1)] * 2
    with pytest.raises(kpatch.DTypeError, match=r"^0\.1 has a fraction, which int32 cannot hold"):
        initializer((2,), dtype="int32")


def test_a_patch_keeps_its_latest_plans_only():
    patch = TensorPatch("_[0] = 1")
    for length in range(1, tensor_patch.MAX_PLANS + 4):
        patch((), keras.ops.zeros((length,)))
    known = [specs["_"][0] for specs, _ in patch._plans]
    assert known == [(length,) for length in range(4, tensor_patch.MAX_PLANS + 4)]


def two_dense():
    layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")]
    return models.filled(keras.Sequential([keras.Input((4,)), *layers]))


def test_two_layers_share_a_binding():
    """Each part of a patch is a patch of its own, and each gets the value."""
    model, x = two_dense(), np.ones((2, 4), "float32")
    vector = np.array([1.0, 2.0, 4.0], "float32")
    held = keras.ops.convert_to_tensor(vector)
    right = keras.ops.convert_to_numpy(model.layers[1](model.layers[0](x) + held) * held)
    text = "a.output += $v\nb.output *= $v"
    rewritten = kpatch.rewrite(model, text, v=vector)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(rewritten(x)), right, rtol=1e-6)
    with kpatch.intervene(model, text, v=vector):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), right, rtol=1e-6)


def test_weights_of_two_layers_share_a_binding():
    model, vector = two_dense(), np.array([1.0, 2.0, 4.0], "float32")
    rewritten = kpatch.rewrite(model, "a.bias = $v\nb.bias = -$v", v=vector)
    x = np.ones((2, 4), "float32")
    right = np.ones((2, 4)) @ keras.ops.convert_to_numpy(model.layers[0].kernel) + vector
    right = right @ keras.ops.convert_to_numpy(model.layers[1].kernel) - vector
    np.testing.assert_allclose(keras.ops.convert_to_numpy(rewritten(x)), right, rtol=1e-6)
