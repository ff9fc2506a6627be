"""Programs that are compiled ahead of time call no layer: a block in which nothing else ran says so."""

import warnings

import keras
import models
import numpy as np
import pytest

import kpatch

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def programs(model):
    """Functions that compute what the model does and call no layer, by how they are made."""
    x = keras.ops.convert_to_tensor(X)
    if BACKEND == "jax":
        import jax
        from jax import export

        jitted = jax.jit(model)
        return {
            "compiled": lambda: jitted.lower(x).compile(),
            "exported": lambda: export.export(jitted)(x).call,
        }
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {"concrete": lambda: tf.function(model).get_concrete_function(tf.TensorSpec.from_tensor(x))}
    if BACKEND == "torch":
        import torch

        return {
            "traced": lambda: torch.jit.trace(model, x, check_trace=False),
            "exported": lambda: torch.export.export(model, (x,)).module(),
        }
    return {"nothing": lambda: lambda x: None}


MADE = list(programs(models.dense()))


@pytest.mark.filterwarnings("ignore:torch.jit")  # it is deprecated
@pytest.mark.parametrize("name", MADE)
def test_a_block_without_a_call_says_so(name):
    model, x = models.dense(), keras.ops.convert_to_tensor(X)
    program = programs(model)[name]()
    before = program(x)
    with pytest.warns(RuntimeWarning) as caught, kpatch.intervene(model, "dense_1.output[:, 0] = 5"):
        after = program(x)
    [warning] = [each for each in caught if "kpatch" in str(each.message)]
    assert str(warning.message) == (
        "kpatch.intervene(model, 'dense_1.output[:, 0] = 5') edited no activation: none of its layers was called in "
        "the block. If the model ran, it was by a program that calls no layer (compiled ahead of time, exported, "
        "traced by torch.jit): call the model itself, or make the program in the block"
    )
    assert warning.filename == __file__
    assert before is None or np.array_equal(*map(keras.ops.convert_to_numpy, (before, after)))


@pytest.mark.filterwarnings("ignore", "error:kpatch.intervene")
@pytest.mark.parametrize("name", MADE)
def test_a_program_that_is_made_in_the_block_is_patched(name):
    model, x = models.dense(), keras.ops.convert_to_tensor(X)
    expected = models.dense()
    with kpatch.intervene(model, "dense_2.output[:, 0] = 5"):
        got = model(x) if BACKEND == "numpy" else programs(model)[name]()(x)
    want = np.array(keras.ops.convert_to_numpy(expected(x)))
    want[:, 0] = 5
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), want, rtol=1e-5)


def test_which_blocks_say_so():
    """By hand too; not one that ends by an exception, and not one that edits weights alone."""
    model = models.dense()
    with pytest.warns(RuntimeWarning, match="edited no activation") as caught:
        kpatch.intervene(model, "dense_1.output = 0").start().release()
    assert caught[0].filename == __file__
    with kpatch.intervene(model, "dense_1.output = 0"):
        with pytest.warns(RuntimeWarning, match="'dense_2.output = 0'"), kpatch.intervene(model, "dense_2.output = 0"):
            assert model is not None
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with kpatch.intervene(model, "dense_1.bias = 1"):
            assert (model.get_weights()[1] == 1).all()
        with pytest.raises(ZeroDivisionError), kpatch.intervene(model, "dense_1.output = 0"):
            raise ZeroDivisionError
