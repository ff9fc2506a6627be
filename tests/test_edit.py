"""The pure form: inside compiled functions and under gradients, on the backend of this process."""

import keras
import numpy as np
import pytest

import kpatch
from kpatch.tensors import to_numpy

BACKEND = keras.backend.backend()
TEXT = """
_[0, :] *= 2
_[abs(_) < 3] = 0
_[..., 1] += 1
_[abs(_) > 4] *= 0.5
_[[0, 1], [2, 2]] = [7, 8]
_[::-1, ::2] = _
"""
X = np.arange(6, dtype="float32").reshape(2, 3)
Y = np.array([[0, 1, 7], [3, 2.5, 8]], "float32")
GRADIENT = np.array([[0, 0, 0], [6, 2.5, 0]], "float32")  # of the sum of squares


def test_concrete():
    x = keras.ops.convert_to_tensor(X.copy())
    np.testing.assert_array_equal(to_numpy(kpatch.edit(x, TEXT)), Y)
    np.testing.assert_array_equal(to_numpy(x), X)


@pytest.mark.parametrize("text", ["", "_[5:] = 1", "let a = _[0, 0]", "_ = _"])
def test_the_result_is_never_the_argument(text):
    x = keras.ops.convert_to_tensor(X.copy())
    y = kpatch.edit(x, text)
    np.testing.assert_array_equal(to_numpy(y), X)
    if BACKEND in ("numpy", "torch"):
        y[0, 0] = 9
        assert to_numpy(x)[0, 0] == 0


def test_assert_and_let_mean_the_tensor():
    assert float(kpatch.edit(keras.ops.ones((2,)), "let m = sum(_); assert m == 2; _ = m")[0]) == 2
    with pytest.raises(kpatch.PatchAssertionError):
        kpatch.edit(keras.ops.ones((2,)), "_[0] = 5; assert all(_ < 5)")


def compiled(function):
    """The function as each compiler of the backend makes it."""
    if BACKEND == "jax":
        import jax

        return [jax.jit(function)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return [tf.function(function), tf.function(function, jit_compile=True)]
    if BACKEND == "torch":
        import torch

        return [torch.compile(function, fullgraph=full, backend="aot_eager") for full in (False, True)]
    return []


def test_compiled():
    for function in compiled(lambda x: kpatch.edit(x, TEXT)):
        np.testing.assert_array_equal(to_numpy(function(keras.ops.convert_to_tensor(X))), Y)


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy has no gradients")
def test_gradient():
    x = keras.ops.convert_to_tensor(X)
    if BACKEND == "jax":
        import jax

        gradient = jax.jit(jax.grad(lambda x: (kpatch.edit(x, TEXT) ** 2).sum()))(x)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(kpatch.edit(x, TEXT) ** 2)
        gradient = tape.gradient(loss, x)
    else:
        import torch

        for function in (lambda x: kpatch.edit(x, TEXT), *compiled(lambda x: kpatch.edit(x, TEXT))):
            leaf = x.clone().requires_grad_()
            (function(leaf) ** 2).sum().backward()
            np.testing.assert_array_equal(leaf.grad.cpu().numpy(), GRADIENT)
        gradient = torch.func.grad(lambda x: (kpatch.edit(x, TEXT) ** 2).sum())(x)
    np.testing.assert_array_equal(to_numpy(gradient), GRADIENT)


REFUSED = {
    "_ = take(_, cast(_, 'int32'))": (
        "a compiled function cannot check that this index is in range for axis 0 with 3 entries\n"
        "  line 1, column 13\n"
        "    _ = take(_, cast(_, 'int32'))\n"
        "                ^^^^^^^^^^^^^^^^\n"
        "  nothing is known of its entries, but that they are int32\n"
        "  clip(..., 0, 2) is in range, and so is ... % 3"
    ),
    "_[_ > 1] = sum(_)": (
        "under a mask in a compiled function the value is a scalar or element-wise in '_'\n"
        "  line 1, column 12\n"
        "    _[_ > 1] = sum(_)\n"
        "               ^^^^^^"
    ),
}


@pytest.mark.skipif(BACKEND in ("numpy", "torch"), reason="compiled, and without dynamo's wrapping of errors")
@pytest.mark.parametrize("text", REFUSED)
def test_refused_in_a_compiled_function(text):
    for function in compiled(lambda x: kpatch.edit(x, text)):
        with pytest.raises(Exception, match="compiled function") as caught:  # tf.function wraps it, and indents it
            function(keras.ops.ones((3,)))
        if BACKEND == "jax":
            assert isinstance(caught.value, kpatch.UnsupportedError)
        shown = [line.strip() for line in str(caught.value).splitlines() if line.strip()]
        expected = [line.strip() for line in REFUSED[text].splitlines()]
        assert shown[-len(expected) :] == expected or expected[0] in shown[-len(expected)]


def test_no_variables_here():
    with pytest.raises(kpatch.ResolutionError) as caught:
        kpatch.edit(keras.ops.ones((3,)), "_ = dense.kernel")
    assert str(caught.value) == (
        "no variable 'dense.kernel': kpatch.edit knows one tensor, '_'\n"
        "  line 1, column 5\n"
        "    _ = dense.kernel\n"
        "        ^^^^^^^^^^^^"
    )


def test_symbolic_tensor():
    with pytest.raises(kpatch.UnsupportedError):
        kpatch.edit(keras.Input((3,)), "_ = 0")
