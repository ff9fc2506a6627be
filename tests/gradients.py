"""Gradients of a function on the backend of this process, and by finite differences of a NumPy derivation."""

import keras
import numpy as np
from keras import ops

from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()


def gradients(function, *arrays):
    """The gradients of `function(*tensors)`, a scalar."""
    values = [ops.convert_to_tensor(array) for array in arrays]
    if BACKEND == "jax":
        import jax

        return [to_numpy(g) for g in jax.jit(jax.grad(function, tuple(range(len(values)))))(*values)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = function(*values)
        return [to_numpy(tf.convert_to_tensor(g)) for g in tape.gradient(loss, values, unconnected_gradients="zero")]
    import torch

    leaves = [value.clone().requires_grad_() for value in values]
    found = torch.autograd.grad(function(*leaves), leaves, allow_unused=True, materialize_grads=True)
    return [to_numpy(g) for g in found]


def check_gradients(function, by_numpy, *arrays):
    """Holds the gradients of a sum of `function`, with a weight for each entry, to central differences in float64.

    Args:
        function: of tensors.
        by_numpy: the same of arrays.
        *arrays: in float32.
    """
    shape = by_numpy(*arrays).shape
    weights = np.arange(1, np.prod(shape) + 1, dtype="float32").reshape(shape) / np.prod(shape)
    scale = ops.convert_to_tensor(weights.astype("float32"))
    found = gradients(lambda *given: ops.sum(function(*given) * scale), *arrays)
    for which, gradient in enumerate(found):
        numeric = np.zeros_like(gradient, "float64")
        for place in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-4, -1e-4):
                moved = [array.astype("float64") for array in arrays]
                moved[which][place] += step
                sides.append((by_numpy(*moved) * weights).sum())
            numeric[place] = (sides[0] - sides[1]) / 2e-4
        np.testing.assert_allclose(gradient, numeric, atol=1e-5, rtol=1e-5)
