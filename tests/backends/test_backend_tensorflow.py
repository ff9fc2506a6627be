"""What only TensorFlow's module knows: tensors that NumPy reduces, and those that are left to TensorFlow."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tensorflow's own", allow_module_level=True)

import tensorflow as tf

import kpatch
from kpatch import backends
from kpatch.backends import host, present
from kpatch.values.tensors import to_numpy

X = np.random.default_rng(0).standard_normal((300, 7)).astype("float32")
TEXTS = """
_ - sum(_)
_ - sum(_, axis=0)
_ - mean(_, axis=1, keepdims=true)
_ + prod(where(_ > 0, 1.5, 0.5), axis=1, keepdims=true)
_ - max(_)
_ - min(_, axis=0)
_ * var(_)
_ * std(_, axis=0)
where(any(_ > 3, axis=0) or all(_ < 2), _, 1)
_ * (0.5 + count_nonzero(_ > 0))
_ + sum(_ > 1)
_ + logsumexp(_)
_ + argmax(_)
"""


def by_numpy(text):
    with backends.using(present.load("numpy")):
        return np.asarray(kpatch.edit(X, f"_ = {text}"))


@pytest.fixture
def reduced(monkeypatch):
    """The tensors that NumPy reduces, as they come."""
    found, taken = [], host.Reducer.taken
    monkeypatch.setattr(host.Reducer, "taken", lambda reducer, x: found.append(x) or taken(reducer, x))
    return found


@pytest.mark.parametrize("text", TEXTS.strip().splitlines())
def test_reductions_have_the_bits_of_numpy(text, reduced):
    x = tf.constant(X)
    result = kpatch.edit(x, f"_ = {text}")
    assert reduced
    if "log" in text or "std" in text:  # whose other operations are TensorFlow's
        np.testing.assert_allclose(to_numpy(result), by_numpy(text), rtol=1e-5)
    else:
        assert to_numpy(result).tobytes() == by_numpy(text).tobytes()
    layer = keras.layers.Dense(7, use_bias=False)
    layer.build((None, 300))
    layer.kernel.assign(x)
    kpatch.apply(layer, f"kernel = {text}")
    assert to_numpy(layer.kernel.value).tobytes() == to_numpy(result).tobytes()


@pytest.mark.parametrize("special", [[1e-40, -1e-40, -1.0], [-0.0, -1.0, -2.0], [0.0, -0.0, -1.0]])
@pytest.mark.parametrize("name", ["max", "min"])
def test_the_best_of_denormal_numbers_and_zeros_is_that_of_tensorflow(name, special):
    x = np.array(special, "float32") * (1 if name == "max" else -1)
    found = kpatch.edit(tf.zeros(()), f"_ = {name}($x)", bindings={"x": tf.constant(x)})
    assert to_numpy(found).tobytes() == getattr(keras.ops, name)(tf.constant(x)).numpy().tobytes()


def test_what_a_tape_watches_and_what_is_large_is_left_to_tensorflow(reduced, monkeypatch):
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = kpatch.edit(x, "_ = _ - mean(_)")
    assert not np.asarray(tape.gradient(result, x)).any()
    tf.function(lambda x: kpatch.edit(x, "_ = _ - mean(_)"))(x)
    monkeypatch.setattr(host, "REDUCED", X.nbytes - 1)
    kpatch.edit(x, "_ = _ - mean(_)")
    assert not reduced


@pytest.mark.parametrize("text", ["_[0] = sum(_ * 2)", "_ = _ - mean(_)", "_ *= sum(_)"])
def test_tangents_are_those_of_a_tape(text, reduced):
    x = tf.constant([1.0, 2.0, 6.0])
    with tf.autodiff.ForwardAccumulator(x, tf.constant([1.0, 0.0, 0.0])) as forward:
        tangent = forward.jvp(kpatch.edit(x, text))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found = tf.unstack(kpatch.edit(x, text))
    np.testing.assert_allclose(tangent, [tape.gradient(each, x)[0] for each in found], rtol=1e-6)
    assert not reduced


@pytest.mark.parametrize(
    "text", ["_ = _ - mean(_)", "_[_ > max(_) / 2] = sum(_)", "_ = clip(_, min(_) / 2, quantile(_, 0.9))"]
)
def test_a_variable_of_tensorflow_is_edited_as_its_tensor(text):
    variable = tf.Variable(X)
    assert kpatch.edit(variable, text).numpy().tobytes() == kpatch.edit(tf.constant(X), text).numpy().tobytes()
    with tf.GradientTape() as tape:
        edited = kpatch.edit(variable, text)
    with tf.GradientTape() as other:
        other.watch(x := tf.constant(X))
        expected = kpatch.edit(x, text)
    np.testing.assert_array_equal(tape.gradient(edited, variable), other.gradient(expected, x))


def test_what_a_reduction_gives_shares_no_memory():
    x = tf.constant(X)
    found = kpatch.edit(x, "_ = sum(_, axis=[])")
    assert found.numpy().tobytes() == X.tobytes()
    assert not np.shares_memory(np.asarray(memoryview(found)), np.asarray(memoryview(x)))
