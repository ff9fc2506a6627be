"""Gradients of a loss with respect to what a patch puts into a model, against finite differences.

`KERAS_BACKEND=jax JAX_ENABLE_X64=1 python tests/attribution.py 200` draws so many patches, on jax, torch or tensorflow.
"""

import sys
from typing import NamedTuple

import keras
import models
import numpy as np
from keras import layers, ops

import kpatch
from kpatch.values.tensors import to_numpy

BATCH, TIME = 2, 3
SHAPES = {
    "a.output": (BATCH, TIME, 4),
    "attention.output": (BATCH, TIME, 4),
    "attention.scores": (BATCH, 2, TIME, TIME),
    "attention.heads": (BATCH, TIME, 2, 3),
    "middle.input": (BATCH, TIME, 4),
    "b.output": (BATCH, TIME, 2),
}
INDICES = ("", "[0]", "[:, 1]", "[..., 0]", "[..., :2]", "[:, ::2]", "[:, [1, 0]]", "[1, ..., -1]", "[..., [0, 1, 0]]")
VALUES = (
    "$v",
    "2 * $v + 1",
    "_ * $v",
    "tanh($v)",
    "$v ** 2 - _",
    "where(_ > 0, $v, _)",
    "sigmoid(_ + $v)",
    "sum($v) + _",
    "$v * sum(a.output)",
)


class Case(NamedTuple):
    """A patch, and a value for its `$v`."""

    text: str
    v: np.ndarray


def network():
    """Of layers that keep float64 on each backend: most activations of Keras do not, nor does fused attention."""

    def dense(width, name):
        return layers.EinsumDense("btd,de->bte", (TIME, width), bias_axes="e", name=name)

    inputs = keras.Input((TIME, 4))
    x = dense(4, "a")(inputs)
    x = layers.MultiHeadAttention(2, 3, dropout=0.5, name="attention")(x, x, use_causal_mask=True)
    return models.filled(keras.Model(inputs, dense(2, "b")(dense(4, "middle")(x))))


def draw(rng):
    """A random `Case`."""
    target = rng.choice(list(SHAPES))
    index, value = rng.choice(INDICES), rng.choice(VALUES)
    if value.endswith("a.output)") and target == "a.output":
        value = "$v"
    operator = rng.choice(["=", "+=", "-=", "*="])
    selected = eval(f"x{index}", {"x": np.zeros(SHAPES[target])})  # noqa: S307 - of the constants above
    shape = selected.shape[-1:] if rng.random() < 0.7 else ()
    return Case(f"{target}{index} {operator} {value}", rng.normal(size=shape) * 0.5)


def check(model, case, rng, step, tolerance):
    """Holds the gradient of a loss with respect to `$v`, in a random direction, to a central difference."""
    dtype = keras.config.floatx()
    x = ops.convert_to_tensor(rng.normal(size=(BATCH, TIME, 4)).astype(dtype))
    weights = ops.convert_to_tensor(rng.normal(size=(BATCH, TIME, 2)).astype(dtype))

    def loss(v):
        with kpatch.intervene(model, case.text, v=v):
            return ops.sum(model(x) * weights)

    def at(v):
        return float(to_numpy(loss(ops.convert_to_tensor(np.asarray(v, dtype)))))

    direction = rng.normal(size=case.v.shape)
    gradient = models.gradient(loss, ops.convert_to_tensor(case.v.astype(dtype)))
    difference = (at(case.v + step * direction) - at(case.v - step * direction)) / (2 * step)
    np.testing.assert_allclose(
        (gradient * direction).sum(), difference, rtol=tolerance, atol=tolerance, err_msg=str(case)
    )


def run(count, seed=0, step=1e-5, tolerance=1e-6):
    """Draws and checks cases; returns how many."""
    rng = np.random.default_rng(seed)
    model = network()
    for _ in range(count):
        check(model, draw(rng), rng, step, tolerance)
    return count


if __name__ == "__main__":
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    count = run(int(sys.argv[1]))
    sys.stdout.write(f"{keras.backend.backend()}: {count} gradients agree with finite differences\n")
