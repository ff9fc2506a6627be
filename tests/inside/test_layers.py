"""Layers and initializers that hold a patch, on the backend of this process."""

import functools

import keras
import numpy as np
import pytest
from gradients import check_gradients, gradients
from keras import ops

import kpatch
from kpatch import indexing
from kpatch.constraints import PatchConstraint
from kpatch.initializers import PatchedInitializer
from kpatch.layers import PatchedLayer, ScatterLayer
from kpatch.values import grids, tensors
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
X = (np.round(np.random.default_rng(0).normal(size=(3, 4, 5)) * 8) / 8 + 1 / 32).astype("float32")
V = np.array([0.5, -1.5], "float32")


# What flows through ---------------------------------------------------------------------------------------------------

# statement → what it does to `a`, with the value `v`, and where the gradient of `a` is zero
FORMS = {
    "_[..., 3] = 0": lambda a, v: a.__setitem__((..., 3), 0),
    "_[:, 1:3] = 2": lambda a, v: a.__setitem__((slice(None), slice(1, 3)), 2),
    "_[:, ::2, -1] *= 3": lambda a, v: a.__setitem__(np.s_[:, ::2, -1], a[:, ::2, -1] * 3),
    "_[..., [0, 3]] = $v": lambda a, v: a.__setitem__(np.s_[..., [0, 3]], v),
    "_[:, ::-1] = _ * 2": lambda a, v: a.__setitem__(np.s_[:, ::-1], a[:, ::-1] * 2),
    "_[:, [2, 0], [1, 1]] += $v": lambda a, v: a.__setitem__(np.s_[:, [2, 0], [1, 1]], a[:, [2, 0], [1, 1]] + v),
    "_[:, [1, 1], 2] = $v": lambda a, v: a.__setitem__(np.s_[:, 1, 2], v[1]),
    "_[abs(_) > 1] = 0.5": lambda a, v: a.__setitem__(abs(a) > 1, 0.5),
    "_[_ < 0] *= 0.25": lambda a, v: a.__setitem__(a < 0, a[a < 0] * np.float32(0.25)),
    "_[:, 0] = _ ** 2 - $v[0]": lambda a, v: a.__setitem__(np.s_[:, 0], a[:, 0] ** 2 - v[0]),
    "_ = _ * $v[1] + 1": lambda a, v: a.__setitem__(..., a * v[1] + 1),
    "_[:, 0] = mean(_)": lambda a, v: a.__setitem__(np.s_[:, 0], a[:, 0].mean()),
    "_[:, 1] /= $v[1]; _[:, 0] **= 2": lambda a, v: (a[:, 1].__itruediv__(v[1]), a[:, 0].__ipow__(2)),
    "let m = mean(_); _[..., 1] -= m": lambda a, v: a.__setitem__((..., 1), a[..., 1] - a.mean()),
    "_ = where(_ > 0, _, tanh(_) * $v[0])": lambda a, v: a.__setitem__(..., np.where(a > 0, a, np.tanh(a) * v[0])),
    "_[..., :2] = _[..., :2] @ [[1, 2], [3, 4]]": lambda a, v: a.__setitem__(
        np.s_[..., :2], a[..., :2] @ np.array([[1, 2], [3, 4]], a.dtype)
    ),
    "_[..., 0] = 0; _[..., :2] += 1": lambda a, v: (a[..., 0].fill(0), a[..., :2].__iadd__(1)),
}


def by_numpy(text, x, v):
    a = x.copy()
    FORMS[text](a, v)
    return a


def layer_of(text):
    """The layer, and a function of the tensor and the value `v`, handed in as a further input where it is named."""
    layer = ScatterLayer(text)
    return layer, (lambda x, v: layer([x, v])) if "$v" in text else (lambda x, v: layer(x))


@pytest.mark.parametrize("text", FORMS)
def test_it_does_what_numpy_does(text):
    x = ops.convert_to_tensor(X.copy())
    _, function = layer_of(text)
    np.testing.assert_allclose(to_numpy(function(x, ops.convert_to_tensor(V))), by_numpy(text, X, V), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(x), X)


@pytest.mark.parametrize("text", FORMS)
def test_unknown_lengths(text):
    """A functional model with free batch and sequence axes; on tensorflow its graph has them too."""
    second = any(part in text for part in (":, ::2, -1", "[2, 0]", "[1, 1]", ":, 0]", ":, 1]"))
    shape = (4 if second else None, 5)  # with an index on the second axis only the batch is free
    layer = ScatterLayer(text)
    inputs = [keras.Input(shape), keras.Input(batch_shape=(2,))][: 1 + ("$v" in text)]
    model = keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))
    assert model.output_shape == (None, *shape)
    function = model.__call__
    if BACKEND == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec(i.shape) for i in inputs]
        function = tf.function(lambda *args: model(list(args)), input_signature=signature)
        got = function(*[X, V][: len(inputs)])
    else:
        got = function([X, V][: len(inputs)])
    np.testing.assert_allclose(to_numpy(got), by_numpy(text, X, V), rtol=1e-6)


@trains
@pytest.mark.parametrize("text", FORMS)
def test_gradients_are_those_of_finite_differences(text):
    _, function = layer_of(text)
    check_gradients(function, functools.partial(by_numpy, text), X, V)


@trains
def test_gradients_of_order_statistics():
    """Outside of compiled functions, too: of a tensor that gradients are taken of, memory is not read past them."""
    x = np.array([3, 1, 2, 5, 4], "float32")
    for text, function in {
        "_ -= median(_)": lambda x: x - np.median(x),
        "_ *= quantile(_, [0.2, 0.7])[1]": lambda x: x * np.quantile(x, 0.7),
        "_ = median(reshape(_[:4], [2, 2]), axis=0)[0] * _": lambda x: np.median(x[:4].reshape(2, 2), 0)[0] * x,
    }.items():
        check_gradients(ScatterLayer(text), function, x)


@pytest.mark.skipif(BACKEND in ("numpy", "jax"), reason="no gradients, or no float64")
def test_gradients_of_a_conversion_to_half_precision():
    x = ops.convert_to_tensor(np.array([1.5, -0.0, 1 + 2**-11 + 2**-40, 1e9], "float32"))

    def function(x):
        halves = kpatch.edit(ops.cast(x, "float64"), '_ = cast(cast(_, "float16"), "float64")')
        return ops.sum(ops.cast(halves, "float32")[:3] * 3)

    assert gradients(function, x)[0].tolist() == [3, 3, 3, 0]


def holders_of_constants():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="d")])
    return {
        "scatter": lambda v: ScatterLayer("_ += $v", bindings={"v": v})(ops.ones((1, 3))),
        "patched": lambda v: PatchedLayer(model.layers[0], "kernel += $v", bindings={"v": v})(ops.ones((1, 3))),
        "rewrite": lambda v: kpatch.rewrite(model, "d.output += $v", v=v)(ops.ones((1, 3))),
        "rewrite weights": lambda v: kpatch.rewrite(model, "d.kernel += $v", v=v)(ops.ones((1, 3))),
        "initializer": lambda v: PatchedInitializer("_ += $v", bindings={"v": v})((1, 3), "float32"),
        "constraint": lambda v: PatchConstraint("_ += $v", bindings={"v": v})(ops.ones((1, 3))),
    }


@trains
@pytest.mark.parametrize("kind", holders_of_constants())
def test_a_constant_that_is_differentiated_is_an_error(kind):
    """It would have a gradient of zero in silence."""
    function = holders_of_constants()[kind]
    with pytest.raises(kpatch.BindingError) as info:
        gradients(lambda v: ops.sum(function(v)), np.ones(3, "float32"))
    assert str(info.value) == (
        "'$v' is a tensor that is traced or differentiated, and a binding here is a constant\n"
        "  kpatch.edit keeps its gradient, and so does kpatch.intervene in activations\n"
        "  a ScatterLayer takes it as a further input: layer([x, v])\n"
        "  keras.ops.stop_gradient makes a constant of known values"
    )
    function(ops.stop_gradient(ops.ones(3)))


@trains
@pytest.mark.parametrize("text", ["_[..., 3] = 0", "_[:, ::2, 1] = inf", "_[..., [0, 3]] = nan", "_[_ > 1] = 7"])
def test_gradients_of_overwritten_entries_are_exactly_zero(text):
    layer = ScatterLayer(text)
    [gradient] = gradients(lambda x: ops.sum(layer(x) * 2.0), X)
    changed = X.copy()
    exec(text.replace("_", "a").replace("inf", "np.inf").replace("nan", "np.nan"), {"a": changed, "np": np})  # noqa: S102
    overwritten = changed != X
    assert (gradient[overwritten] == 0).all()
    assert (gradient[~overwritten] == 2).all()


GRIDS = [
    np.s_[..., 3, :],
    np.s_[1:, 2],
    np.s_[::-1, 1:4:2],
    np.s_[:, [0, 2], [1, 1]],
    np.s_[:, [0, 2, 0], :, [1, 1, 1]],
    np.s_[..., [True, False]],
    np.s_[-2:, :, [[0, 1], [1, 1]]],
    np.s_[-1:0:-2, 3:0:-1],
    np.s_[:, 2:2],
    np.s_[5:9],
]


@pytest.mark.parametrize("place", range(len(GRIDS)))
@pytest.mark.parametrize("unknown", [(0,), (0, 1), (2,)])
def test_grids_are_numpys_selections(place, unknown):
    given = GRIDS[place] if isinstance(GRIDS[place], tuple) else (GRIDS[place],)
    items = tuple(np.array(item) if isinstance(item, list) else item for item in given)
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype("float32")
    shape = tuple(None if axis in unknown else length for axis, length in enumerate(x.shape))

    def grid_of(x):
        return indexing.select(shape, items) or grids.layout(x, items, {}, ())[0]

    np.testing.assert_array_equal(to_numpy(take(ops.convert_to_tensor(x), grid_of, shape)), x[items])
    full = np.random.default_rng(1).normal(size=x[items].shape).astype("float32")
    for values in (np.float32(7), full, full[:1]):
        after = x.copy()
        after[items] = values

        def edit(x, values):
            return tensors.replace(x, grid_of(x), values)

        if BACKEND == "tensorflow":
            import tensorflow as tf

            edit = tf.function(edit, input_signature=[tf.TensorSpec(shape), tf.TensorSpec(np.shape(values))])
        got = edit(ops.convert_to_tensor(x.copy()), ops.convert_to_tensor(values))
        np.testing.assert_array_equal(to_numpy(got), after)


def take(x, grid_of, shape):
    def run(x):
        return tensors.take(x, grid_of(x))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        run = tf.function(run, input_signature=[tf.TensorSpec(shape)])
    return run(x)


def test_a_mask_of_rows():
    got = to_numpy(ScatterLayer("_[_[:, 0] > 0] = 9")(ops.convert_to_tensor(np.array([[1, 2], [-1, 3]], "float32"))))
    np.testing.assert_array_equal(got, [[9, 9], [-1, 3]])


def test_a_mask_of_everything_or_nothing():
    layer = ScatterLayer("_[any(_ > 3)] *= 2; _[all(_ > 0)] = 1")
    got = [to_numpy(layer(ops.convert_to_tensor(np.array(x, "float32")))) for x in ([[1, 2]], [[-1, 4]])]
    np.testing.assert_array_equal(got, [[[1, 1]], [[-2, 8]]])


# text → the result for an unknown batch of [[0, 1, 2], [3, 4, 5]], or why tensorflow refuses it, whose graphs
# never know that length
LENGTHS = {
    "_ = _ / shape(_)[0]": [[0, 0.5, 1], [1.5, 2, 2.5]],
    "_ = _ * size(_)": [[0, 6, 12], [18, 24, 30]],
    "let n = shape(_); _ = _ + n[0] * n[1]": [[6, 7, 8], [9, 10, 11]],
    "_ = zeros([shape(_)[1]])": [[0, 0, 0], [0, 0, 0]],
    "assert shape(_)[1] == 3; _ = 1": [[1, 1, 1], [1, 1, 1]],
    "_ = zeros(shape(_))": r"'shape' of zeros\(\) is an integer or a list of them, not a tensor of int32",
    "_ = median(_, axis=0)": r"median\(\) of a tensor with an axis of unknown length is not supported",
    "_ = take(_, [1], axis=0)": r"take\(\) of a tensor with an axis of unknown length is not supported",
    '_ = einsum("bi,bj->bj", _, _)': [[0, 3, 6], [36, 48, 60]],
    "assert shape(_)[0] == 2": "an assertion about values cannot be checked inside a compiled function",
}


@pytest.mark.parametrize("text", LENGTHS)
def test_lengths_that_are_not_known_when_the_layer_is_built(text):
    expected, layer = LENGTHS[text], ScatterLayer(text)
    if isinstance(expected, str):
        if BACKEND == "tensorflow":
            with pytest.raises(kpatch.PatchError, match=expected):
                layer.build((None, 3))
        else:
            keras.Sequential([keras.Input((3,)), layer])(np.ones((2, 3)))
        return
    model = keras.Sequential([keras.Input((3,)), layer])
    function = model.__call__
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, input_signature=[tf.TensorSpec((None, 3))])
    np.testing.assert_allclose(to_numpy(function(np.arange(6, dtype="float32").reshape(2, 3))), expected)


def test_assertions():
    with pytest.raises(kpatch.PatchAssertionError):
        ScatterLayer("assert shape(_)[1] == 4").build((None, 3))
    with pytest.raises(kpatch.UnsupportedError) as caught:
        ScatterLayer("assert all(_ > 0)").build((None, 3))
    assert str(caught.value) == (
        "an assertion about values cannot be checked inside a compiled function\n"
        "  line 1, column 8\n"
        "    assert all(_ > 0)\n"
        "           ^^^^^^^^^^\n"
        "  an assertion about known shapes can: assert shape(_) == [2, 3]"
    )


def test_a_value_with_a_length_of_its_own_on_an_axis_of_unknown_length():
    layers = [ScatterLayer("_ = $v"), ScatterLayer("_[:, 0] = [1, 2]"), ScatterLayer("_ = [1, 2]")]
    for layer, batch, given in zip(layers, (None, None, 1), ([[1.0], [2.0]], None, None), strict=True):
        inputs = keras.Input((None,), batch_size=batch)
        others = [] if given is None else [keras.ops.convert_to_tensor(given)]
        model = keras.Model(inputs, layer([inputs, *others] if others else inputs))
        model(np.ones((batch or 2, 2)))
        for shape in ((3, 2), (1, 3)):
            with pytest.raises(kpatch.ShapeError, match="does not fit the selection"):
                model(np.ones(shape if batch is None else (1, 3)))


def test_integers_are_integers():
    layer = ScatterLayer("_[..., 0] = 0.5")
    with pytest.raises(kpatch.DTypeError):
        layer(np.ones((2, 3), "int32"))
    assert not layer.built
    assert to_numpy(ScatterLayer("_[..., 0] += 4")(np.ones((2, 3), "int32"))).tolist() == [[5, 1, 1]] * 2


def test_what_is_given():
    """The number of inputs, and their kind, are those of the patch."""
    two = r"the layer takes the tensor and '\$v', in a list. Received: 1 input"
    with pytest.raises(kpatch.BindingError, match=two):
        ScatterLayer("_ += $v").build((None, 3))
    with pytest.raises(kpatch.BindingError, match=r"the layer takes one tensor. Received: 2 inputs"):
        ScatterLayer("_ += 1")([X, X])
    with pytest.raises(kpatch.BindingError, match=r"the layer takes a tensor, or a list of them. Received: a dict"):
        ScatterLayer("_ += 1")({"x": X})


# As a citizen of Keras ------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    layers = [
        ScatterLayer("_[..., $i] = $v; _[_ > 9] = $s", bindings={"i": [0, 2], "v": V, "s": 1.5}, trainable_values=True),
        PatchedLayer(keras.layers.Dense(2), "kernel[0] = $row; bias += 1", bindings={"row": np.array([1.0, 2.0])}),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    assert [tuple(w.shape) for w in layers[0].weights] == [(2,), ()]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(model(x)))


def test_masks_pass_through():
    layer, mask = ScatterLayer("_[..., 0] = 0"), ops.convert_to_tensor([[True, False]])
    assert layer.supports_masking
    assert layer.compute_mask(None, mask) is mask
    if BACKEND != "numpy":  # whose arrays hold no mask
        model = keras.Sequential([keras.layers.Embedding(5, 3, mask_zero=True), layer])
        assert to_numpy(model(np.array([[1, 2, 0]]))._keras_mask).tolist() == [[True, True, False]]


def test_mixed_precision():
    layer = ScatterLayer("_[..., 0] = $v", bindings={"v": 0.1}, trainable_values=True, dtype="mixed_float16")
    got = layer(np.ones((2, 3), "float32"))
    assert keras.backend.standardize_dtype(got.dtype) == "float16"
    assert layer.weights[0].dtype == "float32"
    assert to_numpy(got)[0, 0] == np.float16(0.1)
    seen = PatchedLayer(keras.layers.Dense(1, dtype="mixed_float16"), "kernel = 0.5; bias = 0")
    assert to_numpy(seen(np.ones((1, 4), "float32"))).tolist() == [[2.0]]


def test_patched_layer_sees_and_keeps():
    dense = keras.layers.Dense(2)
    layer = PatchedLayer(dense, "kernel[0, 0] = 1.0; bias = sum(kernel)")
    dense.build((None, 3))
    before = [np.array(w) for w in dense.get_weights()]
    x = np.ones((1, 3), "float32")
    kernel = before[0].copy()
    kernel[0, 0] = 1
    np.testing.assert_allclose(to_numpy(layer(x)), x @ kernel + kernel.sum(), rtol=1e-6)
    assert all((a == b).all() for a, b in zip(before, dense.get_weights(), strict=True))


def test_patched_layer_updates_its_state():
    layer = PatchedLayer(keras.layers.BatchNormalization(momentum=0.5), "gamma[0] = 0")
    x = np.array([[1.0, 2.0], [3.0, 6.0]], "float32")
    got = to_numpy(layer(x, training=True))
    assert (got[:, 0] == 0).all()
    np.testing.assert_allclose(to_numpy(layer.layer.moving_mean.value), [1, 2])


def test_patched_layer_updates_the_entries_that_the_patch_leaves_alone():
    layer = PatchedLayer(keras.layers.BatchNormalization(momentum=0.5), "moving_mean[0] = 5")
    x = np.array([[1.0, 2.0], [3.0, 6.0]], "float32")
    for mean in (2, 3, 3.5):
        layer(x, training=True)
        assert to_numpy(layer.layer.moving_mean.value).tolist() == [0, mean]
    assert (to_numpy(layer(x))[:, 0] < 0).all()  # as with a mean of 5


def test_patched_layer_goes_on_from_its_states_and_seeds():
    """As the same layer, edited by hand, does from call to call."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    hand, inner = (keras.layers.LSTM(2, stateful=True, dropout=0.5, seed=1, name="rnn") for _ in range(2))
    for layer in (hand, inner):
        layer.build(x.shape)
    inner.set_weights(hand.get_weights())
    kpatch.apply(hand, "cell.kernel[0] = 1")
    patched = PatchedLayer(inner, "cell.kernel[0] = 1")
    for _ in range(2):
        got, expected = (to_numpy(layer(x, training=True)) for layer in (patched, hand))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for got, expected in zip((*inner.states, *inner.variables[3:]), (*hand.states, *hand.variables[3:]), strict=True):
        np.testing.assert_allclose(to_numpy(got.value), to_numpy(expected.value), rtol=1e-5, atol=1e-6)
        assert np.any(to_numpy(got.value))


@trains
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND != "torch" else [False])
def test_training_moves_what_is_not_overwritten(jit_compile):
    dense = keras.layers.Dense(2, kernel_regularizer="l2")
    scatter = ScatterLayer("_[:, 1] = $v", bindings={"v": 0.5}, trainable_values=True)
    model = keras.Sequential([keras.Input((4,)), scatter, PatchedLayer(dense, "kernel[0, 0] = 1.0")])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    before = np.array(dense.get_weights()[0])
    dense.kernel_regularizer = None
    dense.kernel.regularizer = None
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(16, 4)), rng.normal(size=(16, 2)), epochs=2, verbose=0)
    moved = dense.get_weights()[0] != before
    assert not moved[0, 0]
    assert moved.sum() == 7
    assert scatter.get_weights()[0] != 0.5


class Counted(ScatterLayer):
    """Counts how often it is called, which in a compiled function is how often that is traced."""

    called = 0

    def call(self, inputs):
        Counted.called += 1
        return super().call(inputs)


def steps(kind, **compiled):
    """A function that trains by so many steps of one row: what flows through, weights, and entries held."""
    head = keras.layers.Dense(1, name="head")
    patched = PatchedLayer(keras.layers.Dense(3), "kernel[0] = 0")
    model = keras.Sequential([keras.Input((4,)), kind("_[..., 0] = 0; _[_ > 1] = 1"), patched, head])
    model.compile("sgd", "mse", **compiled)
    kpatch.hold(model, "head.kernel[0] = 1")

    def train(count):
        model.fit(np.ones((count, 4)), np.ones((count, 1)), batch_size=1, verbose=0)
        assert head.get_weights()[0][0, 0] == 1

    return train


@trains
@pytest.mark.skipif(BACKEND == "torch", reason="torch has a test of its own")
def test_a_hundred_steps_compile_once():
    train = steps(Counted)
    train(3)
    before = Counted.called
    train(100)
    assert Counted.called == before


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
def test_a_hundred_steps_compile_once_by_dynamo(monkeypatch):
    import torch
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    train = steps(ScatterLayer, jit_compile=True)
    train(3)
    before = counter.frame_count
    train(100)
    assert counter.frame_count == before > 0


def test_plans_are_made_once():
    layer = ScatterLayer("_[..., 0] = 0")
    for batch in (1, 2, 3):
        keras.Sequential([keras.Input((4,)), layer])(np.ones((batch, 4)))
    assert len(layer.patch._plans) == 1


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
def test_torch_compile():
    import torch

    layer = ScatterLayer("_[..., 1] = $v; _[_ > 1] *= 0.5", bindings={"v": 3.0}, trainable_values=True)
    patched = PatchedLayer(keras.layers.Dense(2), "kernel[0] = 0")
    model = keras.Sequential([keras.Input((4,)), layer, patched])
    x = torch.ones((2, 4))
    compiled = torch.compile(model, backend="aot_eager")
    np.testing.assert_allclose(to_numpy(compiled(x)), to_numpy(model(x)), rtol=1e-6)
    torch._dynamo.reset()
    for part in (layer, patched):  # in one graph each
        torch.compile(part, backend="eager", fullgraph=True)(x)


# Initializers ---------------------------------------------------------------------------------------------------------


def test_initializer():
    layer = keras.layers.Dense(3, kernel_initializer=PatchedInitializer("_[0, 0] = $v; _[1:] *= 0", bindings={"v": 7}))
    layer.build((None, 3))
    kernel = layer.get_weights()[0]
    assert kernel[0, 0] == 7
    assert kernel[0, 1] != 0
    assert (kernel[1:] == 0).all()
    again = keras.layers.Dense.from_config(layer.get_config())
    again.build((None, 3))
    assert again.get_weights()[0][0, 0] == 7


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED = {
    "_[..., 4] = 0": """
        index 4 is out of range for axis 1 with 4 entries
          line 1, column 8
            _[..., 4] = 0
                   ^
          axis 1 takes indices from -4 to 3""",
    "dense.kernel = 0": """
        no variable 'dense.kernel': a ScatterLayer knows one tensor, '_'
          line 1, column 1
            dense.kernel = 0
            ^^^^^^^^^^^^""",
    "_[_ > 0] = sum(_)": """
        under a mask in a compiled function the value must be a scalar or element-wise in '_'
          line 1, column 12
            _[_ > 0] = sum(_)
                       ^^^^^^""",
    "_[:, :2] = [1, 2, 3]": """
        value of shape (3,) does not fit the selection of shape (None, 2)
          line 1, column 12
            _[:, :2] = [1, 2, 3]
                       ^^^^^^^^^
          axis 1 of the selection has length 2: the value's must be 2 or 1, not 3""",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_at_build(text):
    with pytest.raises(kpatch.PatchError) as caught:
        ScatterLayer(text).build((None, 4))
    assert str(caught.value) == REFUSED[text].replace("\n        ", "\n").strip("\n")


def test_bindings_are_checked():
    with pytest.raises(kpatch.BindingError, match="'v' is not used"):
        ScatterLayer("_ = 0", bindings={"v": 1})
    with pytest.raises(kpatch.BindingError, match="no value for '\\$v'"):
        PatchedInitializer("_ = $v")
    with pytest.raises(kpatch.BindingError, match="no binding is a floating value"):
        ScatterLayer("_[..., $i] = 0", bindings={"i": 0}, trainable_values=True)
    with pytest.raises(kpatch.ResolutionError, match="no variable 'kernal'"):
        PatchedLayer(keras.layers.Dense(2), "kernal = 0").build((None, 3))
