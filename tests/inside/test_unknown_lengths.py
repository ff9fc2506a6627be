"""Indices that meet an axis of unknown length, or that nothing proves to be in range: the scatter layer.

Entries that exist are NumPy's, with gradients. One that does not is an error if its index can be looked at; a graph of
TensorFlow fails when it runs; and where neither is possible (`jax.jit`, XLA), it changes nothing.
"""

import functools

import keras
import numpy as np
import pytest
from gradients import check_gradients, gradients
from keras import ops

import kpatch
from kpatch.layers import ScatterLayer
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
JITS = [False, True] if BACKEND in ("jax", "tensorflow") else [False]
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
X = (np.random.default_rng(0).permutation(60).reshape(3, 4, 5) / 8 - 3 + 1 / 32).astype("float32")

ROWS, COLUMNS, VALUES = np.array([0, 1, -1]), np.array([0, 2, 3]), np.array([1.0, 2.0, 3.0], "float32")
BOUND = {"rows": ROWS, "columns": COLUMNS, "values": VALUES}


def _set(a, index, value):
    a[index] = value


# text → what it does to `a` of shape (batch, sequence, 5), both lengths unknown
FORMS = {
    "_[0, 0] = 1.0": lambda a: _set(a, (0, 0), 1),
    "_[0, 0, 0] = 1.0": lambda a: _set(a, (0, 0, 0), 1),
    "_[[0, 1], [0, 2]] = [[1.0], [2.0]]": lambda a: _set(a, ([0, 1], [0, 2]), [[1], [2]]),
    "_[[0, 1], [0, 2], 4] = [1.0, 2.0]": lambda a: _set(a, ([0, 1], [0, 2], 4), [1, 2]),
    "_[$rows, $columns, 0] = $values": lambda a: _set(a, (ROWS, COLUMNS, 0), VALUES),
    "_[0, 0] = 1; _[1, 2] = 2": lambda a: (_set(a, (0, 0), 1), _set(a, (1, 2), 2)),
    "; ".join(f"_[{i % 3}, {i % 4}, {i % 5}] = {i}" for i in range(9)): lambda a: [
        _set(a, (i % 3, i % 4, i % 5), i) for i in range(9)
    ],
    "_[:, -1] = 0": lambda a: _set(a, np.s_[:, -1], 0),
    "_[:, 0, 0] = 7": lambda a: _set(a, np.s_[:, 0, 0], 7),
    "_[-1, ::-1] = [1, 2, 3, 4, 5]": lambda a: _set(a, np.s_[-1, ::-1], [1, 2, 3, 4, 5]),
    "_[:, [0, 1], [0, 1]] = 0": lambda a: _set(a, np.s_[:, [0, 1], [0, 1]], 0),
    "_[:, [0, 0], 1] = [1, 2]": lambda a: _set(a, np.s_[:, [0, 0], 1], [1, 2]),
    "_[[2, 0], 1:] *= 2": lambda a: _set(a, np.s_[[2, 0], 1:], a[[2, 0], 1:] * 2),
    "_[1] -= 1": lambda a: _set(a, 1, a[1] - 1),
    "_[[true, false, true], 1] = 0": lambda a: _set(a, ([True, False, True], 1), 0),
    "let x = _; _[0, 0] = x[1, -1] * x[[2], 3, 0]": lambda a: _set(a, (0, 0), a[1, -1] * a[2, 3, 0]),
    "let x = _; _[:, 0] = x[:, 3] + x[0, [1]]": lambda a: _set(a, np.s_[:, 0], a[:, 3] + a[0, [1]]),
    "_[arange(shape(_)[0]), 0, argmax(_[:, 0], axis=1)] = 0": lambda a: _set(
        a, (np.arange(3), 0, a[:, 0].argmax(1)), 0
    ),
    "_[:, 0, 1] = [1, 2, 3]": lambda a: _set(a, np.s_[:, 0, 1], [1, 2, 3]),
    "_[:, [0, 1]] = _[:, ::-1] * 2": lambda a: _set(a, np.s_[:, [0, 1]], a[:, [1, 0]] * 2),
}


def layer_of(text):
    return ScatterLayer(text, bindings=BOUND if "$rows" in text else None)


def by_numpy(text, x):
    a = x.copy()
    FORMS[text](a)
    return a


def compiled(function, *shapes, dtypes=()):
    """The function by each compiler of the backend, with lengths that are `None`; and which of them drop assertions."""
    if BACKEND == "jax":
        import jax

        return [(jax.jit(function), True)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec(s, d) for s, d in zip(shapes, dtypes or ["float32"] * len(shapes), strict=True)]
        return [(tf.function(function, input_signature=signature, jit_compile=xla), xla) for xla in (False, True)]
    if BACKEND == "torch":
        import torch

        torch._dynamo.reset()
        return [(function, False), (torch.compile(function, fullgraph=True, backend="aot_eager"), False)]
    return [(function, False)]


# What exists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMS)
def test_it_does_what_numpy_does(text):
    layer = layer_of(text)
    layer.build((None, None, 5))
    for function, _ in compiled(layer, (None, None, 5)):
        np.testing.assert_allclose(to_numpy(function(ops.convert_to_tensor(X.copy()))), by_numpy(text, X), rtol=1e-6)


@trains
@pytest.mark.parametrize("text", FORMS)
def test_gradients_are_those_of_finite_differences(text):
    layer = layer_of(text)
    layer.build((None, None, 5))
    for function, _ in compiled(layer, (None, None, 5)):
        check_gradients(function, functools.partial(by_numpy, text), X)


BEHIND_A_DENSE = {
    "_[0, 0] = 1.0": lambda a: _set(a, (0, 0), 1),
    "_[[0, 1], [0, 2]] = [1.0, 2.0]": lambda a: _set(a, ([0, 1], [0, 2]), [1, 2]),
    "_[$rows, $columns] = $values": lambda a: _set(a, (ROWS, COLUMNS), VALUES),
    "_[0, 0] = 1; _[1, 2] = 2": lambda a: (_set(a, (0, 0), 1), _set(a, (1, 2), 2)),
}


@pytest.mark.parametrize("jit_compile", JITS)
@pytest.mark.parametrize("text", BEHIND_A_DENSE)
def test_behind_a_dense(text, jit_compile, tmp_path):
    """With an unknown batch, in `predict` and `fit`, after saving and loading; the last batch is smaller."""
    dense = keras.layers.Dense(10, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((5,)), dense, layer_of(text)])
    x = np.random.default_rng(1).normal(size=(7, 5)).astype("float32")
    model.compile("sgd", "mse", jit_compile=jit_compile)
    expected = x @ np.ones((5, 10), "float32")
    for start in (0, 4):
        BEHIND_A_DENSE[text](expected[start : start + 4])
    np.testing.assert_allclose(model.predict(x, batch_size=4, verbose=0), expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, batch_size=4, verbose=0), model.predict(x, batch_size=4, verbose=0))
    if BACKEND != "numpy":
        before = model.get_weights()
        model.fit(x, np.zeros((7, 10)), batch_size=4, verbose=0)
        assert not np.array_equal(model.get_weights()[0], before[0])


@trains
def test_the_entries_overwritten_do_not_train():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, use_bias=False), ScatterLayer("_[0, 0] = 1.0; _[1, 0] = 1.0")]
    )
    before = model.get_weights()[0]
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 2)), np.ones((2, 3)), batch_size=2, verbose=0)
    after = model.get_weights()[0]
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert (after[:, 1:] != before[:, 1:]).all()


@pytest.mark.parametrize("index", ["$n", "clip($n, 0, 3)"])
def test_the_last_real_token(index, tmp_path):
    inputs = [keras.Input((None, 5)), keras.Input((), dtype="int32")]
    model = keras.Model(inputs, ScatterLayer(f"_[arange(shape(_)[0]), {index}] = 0")(inputs))
    n = np.array([1, 3, 0], "int32")
    expected = X.copy()
    expected[np.arange(3), n] = 0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict([X, n], verbose=0), expected)
    for function, _ in compiled(lambda x, n: model([x, n]), (None, None, 5), (None,), dtypes=("float32", "int32")):
        np.testing.assert_array_equal(to_numpy(function(ops.convert_to_tensor(X), ops.convert_to_tensor(n))), expected)


# What does not exist --------------------------------------------------------------------------------------------------

N = np.array([1, 9, -5], "int32")  # of four: 9 and -5 do not exist
INSIDE = np.array([True, False, False])
W = np.array([10.0, 20.0, 30.0], "float32")


def _where_inside(a, values, op=None):
    rows = np.arange(3)[INSIDE]
    places = (rows, N[INSIDE], 0)
    values = np.broadcast_to(values, 3)[INSIDE]
    a[places] = values if op is None else op(a[places], values)


def _read_inside(a):
    a[INSIDE, 0, 1] = a[np.arange(3)[INSIDE], N[INSIDE], 0] * 2


# text → what is left of it by the entries that do not exist; the index is an input
MISSING = {
    "_[arange(shape(_)[0]), $n, 0] = $w": lambda a: _where_inside(a, W),
    "_[arange(shape(_)[0]), $n, 0] = 7": lambda a: _where_inside(a, 7),
    "_[arange(shape(_)[0]), $n, 0] += $w": lambda a: _where_inside(a, W, np.add),
    "_[arange(shape(_)[0]), $n, 0] = 1 / (_ - _)": lambda a: _where_inside(a, np.inf),
    "let x = _; _[:, 0, 1] = x[arange(shape(_)[0]), $n, 0] * 2": _read_inside,
    "let x = _[arange(shape(_)[0]), $n, 0]; _[:, 0, 1] = x * 2": _read_inside,
    "_[:, 0, 1] = sum(_[$n])": lambda a: None,  # one of what is summed does not exist
    "let x = _; _[_ > x[0, $n[1], 0]] = 0": lambda a: None,
    "let x = _; _[_ > x[0, $n[0], 0]] = 0": lambda a: _set(a, a > a[0, 1, 0], 0),
    "_[0, argmax(_[0, 0]) * 0 + $n[1]] = 0": lambda a: None,
    "_[$n[0], $n[0]] = 0": lambda a: _set(a, (1, 1), 0),
    "_[$n[0], $n[2]] = 0": lambda a: None,
    "_[[0, 1, 2, 1], 1, $n[[0, 0, 1, 0]]] = [1, 2, 3, 4]": lambda a: (_set(a, (0, 1, 1), 1), _set(a, (1, 1, 1), 4)),
}
ALL_INSIDE = ("let x = _; _[_ > x[0, $n[0], 0]] = 0", "_[$n[0], $n[0]] = 0")


def _called(text):
    """The layer on inputs in the order of its names, as a function of `x`, `n` and `w`."""
    layer = ScatterLayer(text)
    order = layer.patch.free
    return lambda x, n, w: layer([x, *({"n": n, "w": w}[name] for name in order)])


def _graphs(text):
    return compiled(_called(text), (None, None, 5), (None,), (None,), dtypes=("float32", "int32", "float32"))


@pytest.mark.parametrize("text", MISSING)
def test_of_entries_that_do_not_exist(text):
    given = [ops.convert_to_tensor(array.copy()) for array in (X, N, W)]
    expected = X.copy()
    with np.errstate(all="ignore"):
        MISSING[text](expected)
    if text not in ALL_INSIDE:
        with pytest.raises(kpatch.SubscriptError, match="is out of range for axis"):
            _called(text)(*given)
    for function, drops in _graphs(text):
        if drops or text in ALL_INSIDE:
            np.testing.assert_allclose(to_numpy(function(*given)), expected, rtol=1e-6)
        else:
            with pytest.raises(Exception, match=r"names an entry that does not exist|is out of range for axis"):
                function(*given)


@pytest.mark.skipif(BACKEND not in ("jax", "tensorflow"), reason="the others look at the index")
@pytest.mark.parametrize("text", [text for text in MISSING if "$w" in text or "x * 2" in text or "1 / (_" in text])
def test_gradients_of_entries_that_do_not_exist(text):
    function = next(function for function, drops in _graphs(text) if drops)
    n = ops.convert_to_tensor(N)
    dx, dw = gradients(lambda x, w: ops.sum(function(x, n, w) * 2.0), X, W)
    written = np.zeros(X.shape, bool)
    written[0, 1, 0] = "_[arange" in text[:9]
    written[INSIDE, 0, 1] = "x * 2" in text
    reads = np.zeros(X.shape)
    reads[0, 1, 0] = 4 if "x * 2" in text else 0
    if "1 / (_ - _)" not in text:  # where the entry exists, its gradient is NaN, as by hand
        np.testing.assert_array_equal(dx, np.where(written & ("+=" not in text), 0, 2 + reads))
    assert np.isfinite(dx[1:]).all()
    np.testing.assert_array_equal(dw, 2 * INSIDE if "$w" in text else [0, 0, 0])


LATE = {  # an index that the first axis lacks once its length is known → the error
    "_[7] = 1": """
        index 7 is out of range for axis 0 with 3 entries
          line 1, column 3
            _[7] = 1
              ^
          axis 0 takes indices from -3 to 2""",
    "_[0] = 0; _[[0, 7], [1, 1]] += 1": """
        index 7 is out of range for axis 0 with 3 entries
          line 1, column 13
            _[0] = 0; _[[0, 7], [1, 1]] += 1
                        ^^^^^^
          it is the entry [1] of the index array
          axis 0 takes indices from -3 to 2""",
    "_[[true, false]] = 0": """
        mask of shape (2,) does not fit axis 0 with 3 entries
          line 1, column 3
            _[[true, false]] = 0
              ^^^^^^^^^^^^^
          a mask must have the shape of the axes that it covers""",
    "let x = _; _[0] = x[-4]": """
        index -4 is out of range for axis 0 with 3 entries
          line 1, column 21
            let x = _; _[0] = x[-4]
                                ^^
          axis 0 takes indices from -3 to 2""",
}


@pytest.mark.parametrize("text", LATE)
def test_a_length_that_turns_out_too_short(text):
    layer = ScatterLayer(text)
    layer.build((None, None, 5))
    x = ops.convert_to_tensor(X.copy())
    with pytest.raises(kpatch.SubscriptError) as caught:
        layer(x)
    assert str(caught.value) == LATE[text].replace("\n        ", "\n").strip("\n")
    if BACKEND == "tensorflow":
        graph, xla = (function for function, _ in compiled(layer, (None, None, 5)))
        place = LATE[text].split("\n")[2].strip()
        with pytest.raises(Exception, match=rf"index .* \({place}\) names an entry that does not exist"):
            graph(x)
        expected = X.copy()
        if text.startswith("_[0]"):
            expected[0] = 0
            expected[0, 1] += 1
        np.testing.assert_array_equal(to_numpy(xla(x)), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph that knows no length")
def test_a_value_that_does_not_fit_when_the_graph_runs():
    import tensorflow as tf

    for text, fits, does_not in (
        ("_[:, 0, 1] = [1, 2, 3]", 3, 2),
        ("_[:, 0, 1] = [1, 2, 3]", 3, 1),
        ("_[:2, 0, 1] = [1, 2]", 3, 1),
        ("_[:2, 0, 1] *= [1, 2]", 3, 1),
    ):
        layer = ScatterLayer(text)
        for xla in (False, True):
            function = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 5))], jit_compile=xla)
            function(tf.ones((fits, 2, 5)))
            with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError)):
                function(tf.ones((does_not, 2, 5)))


def test_an_index_that_never_exists_is_refused_at_build():
    with pytest.raises(kpatch.SubscriptError) as caught:
        ScatterLayer("_[:, argmax(_[0]) + 4] = 0").build((None, 4))
    assert str(caught.value) == (
        "this index is out of range for axis 1 with 4 entries, whatever the tensors hold\n"
        "  line 1, column 6\n"
        "    _[:, argmax(_[0]) + 4] = 0\n"
        "         ^^^^^^^^^^^^^^^^\n"
        "  its entries lie between 4 and 7"
    )


def test_indices_of_wide_dtypes_do_not_wrap_into_range():
    for dtype, index in (("int64", 2**32), ("uint32", 2**32 - 1), ("int64", -(2**32))):
        if BACKEND == "jax" and dtype == "int64":
            continue  # there are none without x64
        n = np.array([index, 0], dtype)
        with pytest.raises(kpatch.SubscriptError, match="is out of range for axis 1 with 5 entries"):
            ScatterLayer("_[0, $n] = 0")([ops.convert_to_tensor(X[0]), ops.convert_to_tensor(n, dtype)])
        for function, drops in compiled(
            lambda x, n: ScatterLayer("_[0, $n] = 0")([x, n]), (None, 5), (None,), dtypes=("float32", dtype)
        ):
            if drops:
                got = to_numpy(function(ops.convert_to_tensor(X[0]), ops.convert_to_tensor(n, dtype)))
                expected = X[0].copy()
                expected[0, 0] = 0
                np.testing.assert_array_equal(got, expected)


def test_plans_of_a_layer_are_bounded():
    from kpatch.inside import tensor_patch as patches

    layer = ScatterLayer("_[0, 0] = 1.0")
    for batch in range(1, 3 * patches.MAX_PLANS):
        layer(ops.ones((batch, 2)))
    assert len(layer.patch._plans) <= patches.MAX_PLANS
