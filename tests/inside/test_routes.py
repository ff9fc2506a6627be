"""Each way in which a model is run × where a block lies: inside it is patched, outside it is not, bit for bit."""

import contextlib

import keras
import models
import numpy as np
import pytest

import kpatch

pytestmark = [
    pytest.mark.usefixtures("programs"),
    pytest.mark.filterwarnings("error:kpatch.intervene"),  # no false alarm, however the model is run
]

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).integers(-3, 4, (4, 4)).astype("float32")  # all results are exact, in any order of sums
Y = np.zeros((4, 4), "float32")
TEXTS = {"a": "a.output[:, 0] = 5", "b": "b.input[:, 1] = -7; a.output *= 2"}


class Run:
    """A model and its relatives, each with one way to run it."""

    def __init__(self):
        self.model = models.generator().backbone
        self.compiled = compiled(self.model)
        self.layers = compiled(lambda x: self.model.get_layer("b")(self.model.get_layer("a")(x)))
        self.outer = keras.Sequential([keras.Input((4,)), self.model])
        self.features = keras.Model(self.model.inputs, self.model.get_layer("b").output)
        self.generator = models.Generator(self.model)
        self.generator(X)
        self.model.compile(keras.optimizers.SGD(0.0), squares)

    def call(self):
        return self.model(X)

    def call_of_a_compiled_function(self):
        return self.compiled(keras.ops.convert_to_tensor(X))

    def call_of_compiled_layers(self):
        return self.layers(keras.ops.convert_to_tensor(X))

    def call_of_an_outer_model(self):
        return self.outer(X)

    def predict(self):
        return self.model.predict(X, verbose=0)

    def predict_of_features(self):
        return self.features.predict(X, verbose=0)

    def predict_of_an_outer_model(self):
        return self.outer.predict(X, verbose=0)

    def evaluate(self):
        return self.model.evaluate(X, Y, verbose=0)

    def fit(self):
        return self.model.fit(X, Y, verbose=0).history["loss"][0]

    def generate(self):
        return self.generator.generate(X)


def squares(y_true, y_pred):
    return keras.ops.sum(keras.ops.square(y_pred - y_true), axis=-1)


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if BACKEND == "torch":
        import torch

        return torch.compile(function, backend="eager")
    return function


def expected(route, patched):
    """The same by NumPy."""
    a, a_bias, b, b_bias = models.generator().get_weights()
    x = X
    for _ in range(3 if route == "generate" else 1):
        hidden = x @ a + a_bias
        for name in patched:  # in the order of the blocks
            if name == "a":
                hidden[:, 0] = 5
            else:
                hidden = hidden * 2
        if "b" in patched:
            hidden[:, 1] = -7
        x = hidden @ b + b_bias
    return (x**2).sum(-1).mean() if route in ("evaluate", "fit") else x


ROUTES = [name for name in vars(Run) if not name.startswith("_")]


@pytest.mark.parametrize("route", ROUTES)
def test_a_block_is_seen_in_it_alone(route):
    if BACKEND == "numpy" and route == "fit":
        pytest.skip("Keras cannot train on numpy")
    run = Run()

    def check(patched, where):
        got = np.array(keras.ops.convert_to_numpy(getattr(run, route)()), "float32")
        want = np.asarray(expected(route, patched), "float32")
        assert got.tobytes() == want.tobytes(), f"{where}: {got} is not {want}"

    one, other = (kpatch.intervene(run.model, TEXTS[name]) for name in "ab")
    with one:
        check("a", "first called inside")
    check("", "after the block in which it was first called")
    with other:
        check("b", "called before")
    check("", "after a block, called before")
    with one:
        with other:
            check("ab", "nested")
        check("a", "after the inner block")
    one.start()
    other.start()
    check("ab", "two blocks")
    one.release()
    check("b", "when the first of two blocks has ended first")
    other.release()
    check("", "after two blocks, ended out of order")
    with contextlib.suppress(ZeroDivisionError), one:
        check("a", "once more")
        raise ZeroDivisionError
    check("", "after an exception")
    if route.startswith("call"):  # Keras's trainer on jax loses the weights
        with contextlib.suppress(kpatch.PatchError), kpatch.intervene(run.model, "a.output[:, 9] = 0"):
            getattr(run, route)()
        check("", "after an exception in the patched call")
