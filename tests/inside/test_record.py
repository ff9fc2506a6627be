"""Recordings: what is in them on each route, their place in patches, and that nothing outlives their block."""

import contextlib
import time

import keras
import models
import numpy as np
import pytest
from keras import layers, ops

import kpatch
from kpatch.inside.recording import _Recorder

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
SEQUENCE = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32")


def host(x):
    return np.array(ops.convert_to_numpy(x))


def unpatched(model):
    return not any(vars(layer).keys() & {"call", "quantized_call"} for layer in [model, *model._flatten_layers()])


def hidden(model, x=X):
    """What flows out of the first layer of `models.dense()`."""
    return host(model.get_layer("dense_1")(x))


def model_of(layer, shape=(5, 4)):
    inputs = keras.Input(shape)
    return models.filled(keras.Model(inputs, layer(inputs)))


@pytest.fixture
def dense():
    return models.dense()


# What is recorded -----------------------------------------------------------------------------------------------------


def fit(model):
    model.fit(X, np.zeros((3, 2), "float32"), batch_size=2, shuffle=False, verbose=0)


ROUTES = {
    "call": (lambda model: model(X), 1),
    "predict": (lambda model: model.predict(X, verbose=0), 1),
    "batches": (lambda model: model.predict(X, batch_size=2, verbose=0), 2),
    "on a batch": (lambda model: model.predict_on_batch(X), 1),
}
TRAINING = {
    "evaluate": (lambda model: model.evaluate(X, np.zeros((3, 2), "float32"), batch_size=2, verbose=0), 2),
    "fit": (fit, 2),
}
if BACKEND != "numpy":
    ROUTES |= TRAINING


@pytest.mark.parametrize("compiled", ["before", "in the block"])
@pytest.mark.parametrize("route", ROUTES)
def test_routes(dense, route, compiled):
    run, calls = ROUTES[route]
    dense.compile(keras.optimizers.SGD(0.0), "mse")
    if compiled == "before":
        run(dense)
    with kpatch.record(dense, ["dense_1.output", "dense_2.input"]) as clean:
        run(dense)
    run(dense)  # which is not recorded
    assert list(clean) == ["dense_1.output", "dense_2.input"]
    found = [host(x) for x in (clean["dense_1.output"] if calls > 1 else [clean["dense_1.output"]])]
    assert len(found) == calls
    np.testing.assert_allclose(np.concatenate(found), hidden(dense), rtol=1e-6)
    assert all(type(x) is type(ops.convert_to_tensor(X)) for x in clean.call(0).values())
    assert np.array_equal(host(clean.call(-1)["dense_2.input"]), found[-1])
    assert unpatched(dense)


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy compiles nothing")
def test_a_model_compiled_as_a_whole(dense):
    dense.compile("sgd", "mse", jit_compile=True)
    dense.predict(X, verbose=0)
    with kpatch.record(dense, "dense_1.output", host=True) as clean:
        dense.predict(X, verbose=0)
    assert dense.jit_compile
    assert type(clean["dense_1.output"]) is np.ndarray
    np.testing.assert_allclose(clean["dense_1.output"], hidden(dense), rtol=1e-6)


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras exports nothing from numpy")
def test_no_export_in_a_block(dense, tmp_path):
    if BACKEND == "jax":
        pytest.importorskip("tensorflow")
    path, kind = tmp_path / "exported.pt2", "torch" if BACKEND == "torch" else "tf_saved_model"
    refused = RuntimeError if BACKEND == "torch" else kpatch.UnsupportedError  # of Keras, around ours
    with pytest.raises(refused) as caught, kpatch.record(dense, "dense_1.output"):
        dense.export(path, format=kind, verbose=False)
    told = "a model is not exported in a block of kpatch.record\n  export it before the block, or after it"
    assert told in str(caught.value)
    assert unpatched(dense)
    dense.export(path, format=kind, verbose=False)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere XLA hands out values")
def test_a_function_compiled_by_xla(dense):
    import tensorflow as tf

    function = tf.function(lambda x: dense(x), jit_compile=True)
    before = host(function(X))
    with pytest.raises(kpatch.UnsupportedError) as caught, kpatch.record(dense, "dense_1.output"):
        function(X)
    assert str(caught.value) == (
        "a function of jit_compile=True hands out no activations: XLA has no operation for that\n"
        "  compile it without jit_compile=True for the block of kpatch.record"
    )
    assert np.array_equal(host(function(X)), before)


@pytest.mark.parametrize("earlier", [True, False], ids=["compiled before", "compiled in the block"])
def test_generate(earlier):
    model = models.generator()
    if earlier:
        model.generate(X)
    with kpatch.record(model, "b.output", stack=True) as clean:
        last = model.generate(X)
    model.generate(X)
    assert host(clean["b.output"]).shape == (3, 3, 4)
    assert np.array_equal(host(clean["b.output"])[-1], last)


def test_other_models_that_share_the_layers(dense):
    features = keras.Model(dense.inputs, dense.get_layer("dense_1").output)
    features.predict(X, verbose=0)
    with kpatch.record(dense, "dense_1.output") as clean:
        features.predict(X, verbose=0)
    np.testing.assert_allclose(host(clean["dense_1.output"]), hidden(dense), rtol=1e-6)


class Loop(keras.layers.Layer):
    """Calls a layer three times, twice of them in a loop of the graph."""

    def __init__(self):
        super().__init__(name="loop")
        self.inner = layers.Dense(4, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return ops.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, self.inner(x)), (0, self.inner(x)))[1]


@pytest.mark.parametrize("route", ["call", "predict"])
def test_loops_of_a_graph(route, monkeypatch):
    """In order, also if the first call takes its time: TensorFlow orders no operation with a loop after it."""
    take = _Recorder.take

    def slow(recorder, *handed):
        if not recorder.taken:
            time.sleep(0.05)
        take(recorder, *handed)

    monkeypatch.setattr(_Recorder, "take", slow)
    model = model_of(Loop(), (4,))
    with kpatch.record(model, ["loop.inner.input", "loop.output"]) as clean:
        ROUTES[route][0](model)
    expected = X
    inner = model.get_layer("loop").inner
    assert len(clean["loop.inner.input"]) == 3
    for x in clean["loop.inner.input"]:
        np.testing.assert_allclose(host(x), expected, rtol=1e-5)
        expected = host(inner(expected))
    np.testing.assert_allclose(host(clean["loop.output"]), expected, rtol=1e-5)


@pytest.mark.parametrize("route", ["call", "predict"])
def test_layers_that_give_several_tensors(route):
    model = model_of(layers.LSTM(3, return_state=True, name="lstm"))
    with kpatch.record(model, "lstm.output") as clean:
        outputs = getattr(model, "__call__" if route == "call" else "predict")(SEQUENCE)
    assert list(clean) == ["lstm.output.0", "lstm.output.1", "lstm.output.2"]
    for number, output in enumerate(outputs):
        np.testing.assert_allclose(host(clean[f"lstm.output.{number}"]), host(output), rtol=1e-6)
    assert clean["lstm.output"] is clean["lstm.output.0"]  # what it gives without states


class Pair(keras.layers.Layer):
    def call(self, x):
        return {"low": x - 1, "high": [x + 1, x + 2]}


def test_tensors_in_lists_and_dicts():
    model = model_of(Pair(name="pair"), (4,))
    with kpatch.record(model, "pair.output") as clean:
        model(X)
    assert list(clean) == ["pair.output.low", "pair.output.high.0", "pair.output.high.1"]
    assert np.array_equal(host(clean["pair.output.high.1"]), X + 2)
    with pytest.raises(kpatch.ResolutionError) as caught:
        clean["pair.output"]
    assert str(caught.value) == (
        "'pair.output' means 3 tensors: "
        "pair.output.low, pair.output.high.0, pair.output.high.1\n"
        "  line 1, column 1\n    pair.output\n    ^^^^^^^^^^^"
    )


def test_attention():
    mha = layers.MultiHeadAttention(2, 3, name="mha")
    inputs = keras.Input((5, 4))
    model = models.filled(keras.Model(inputs, mha(inputs, inputs, return_attention_scores=True)))
    with kpatch.record(model, ["mha.output", "mha.input", "mha.input.value"]) as clean:
        outputs, scores = model(SEQUENCE)
    assert np.array_equal(host(clean["mha.input.value"]), SEQUENCE)
    assert np.array_equal(host(clean["mha.output"]), host(outputs))
    assert np.array_equal(host(clean["mha.output.1"]), host(scores))
    assert np.array_equal(host(clean["mha.input"]), SEQUENCE)


@pytest.mark.parametrize("route", ["call", "predict"])
def test_of_a_glob_those_that_are_called(route):
    model = models.mixed()
    tokens = np.array([[1, 2, 3, 4, 5]])
    with kpatch.record(model, "**.output") as clean:
        getattr(model, "__call__" if route == "call" else "predict")(tokens)
    for name in ["embed", "bi", "bi.forward_layer", "attention", "norm", "pool", "inner.proj", "inner", "head"]:
        assert f"{name}.output" in clean
    assert not [name for name in clean if "cell" in name or "tokens" in name]


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("route", ["call", "predict"])
def test_dtypes(dtype, route):
    model = models.dense(dtype)
    with kpatch.record(model, "dense_1.output") as clean, kpatch.record(model, "dense_1.output", host=True) as arrays:
        ROUTES[route][0](model)
    kind = dtype.removeprefix("mixed_")
    assert ops.dtype(clean["dense_1.output"]) == arrays["dense_1.output"].dtype.name == kind
    assert host(clean["dense_1.output"]).tobytes() == arrays["dense_1.output"].tobytes()


def test_a_quantised_layer(dense):
    dense.quantize("int8")
    with kpatch.record(dense, "*.output") as clean:
        output = host(dense(X))
    assert np.array_equal(host(clean["dense_2.output"]), output)
    assert unpatched(dense)


def test_what_the_caller_changes_afterwards(dense):
    x = X.copy()
    with kpatch.record(dense, "dense_1.input") as clean:
        dense(x)
        x[:] = 0
    assert np.array_equal(host(clean["dense_1.input"]), X)


def test_what_flows_on_is_recorded_in_any_order(dense):
    plain = hidden(dense)
    what = ["dense_1.output", "dense_2.input"]
    edit = kpatch.intervene(dense, "dense_1.output[:, 0] = 5; dense_2.input[:, 1] = 6")
    with kpatch.record(dense, what) as around, edit, kpatch.record(dense, what) as inside:
        dense(X)
    expected = plain.copy()
    expected[:, 0] = 5
    for clean in (around, inside):
        np.testing.assert_allclose(host(clean["dense_1.output"]), expected, rtol=1e-6)
        assert (host(clean["dense_2.input"])[:, :2] == [5, 6]).all()


def test_stacked(dense):
    with kpatch.record(dense, "dense_1.output", stack=True) as clean:
        dense(X)
        dense(X + 1)
    assert np.array_equal(host(clean["dense_1.output"]), np.stack([hidden(dense), hidden(dense, X + 1)]))
    with kpatch.record(dense, "dense_1.output", stack=True, host=True) as clean:
        dense(X)
        dense(X[:1])
    with pytest.raises(kpatch.ShapeError) as caught:
        clean["dense_1.output"]
    assert str(caught.value) == (
        "the calls of 'dense_1.output' cannot be stacked: their shapes are (3, 3), (1, 3)\n"
        "  without stack=True they are a list, for keras.ops.concatenate"
    )


def test_shapes_alone_are_not_recorded(dense):
    with kpatch.record(dense, "*.output") as clean:
        outer = keras.Sequential([keras.Input((4,)), dense])
        keras.Model(dense.inputs, dense.get_layer("dense_2")(dense.get_layer("dense_1").output))
        dense.compute_output_spec(keras.KerasTensor((2, 4)))
        assert len(clean) == 0
        outer(X)
    assert repr(clean) == "<Recording of 1 call: dense_1.output (3, 3) float32, dense_2.output (3, 2) float32>"


def test_as_a_mapping(dense):
    with kpatch.record(dense, "**.output") as clean:
        dense(X)
        dense(X)
    assert "dense_1.output" in clean
    assert "layers[0].output" in clean
    assert "dense_1.input" not in clean
    assert 3 not in clean
    assert len(clean["layers[0].output"]) == 2
    assert clean.get("dense_9.output") is None
    assert list(clean.call(1)) == list(clean)
    with pytest.raises(kpatch.ResolutionError) as caught:
        clean.call(2)
    assert str(caught.value) == "there is no call 2: the recording has 2 calls"
    with pytest.raises(kpatch.ResolutionError) as caught:
        clean["dense_1.input"]
    assert str(caught.value) == (
        "'dense_1.input' was not recorded\n  line 1, column 1\n    dense_1.input\n    ^^^^^^^^^^^^^\n"
        "  recorded: dense_1.output, dense_2.output"
    )


# In patches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["call", "predict"])
@pytest.mark.parametrize("recorded", ["call", "predict"])
def test_all_of_a_run_patched_into_another(route, recorded):
    """To the bit: what the one run gave is what the other gives."""
    model = models.mixed()
    model.get_layer("norm").moving_variance.assign(np.ones(8))
    one, other = np.array([[1, 2, 3, 4, 5]]), np.array([[5, 4, 3, 2, 1]])
    run = {"call": lambda x: host(model(x)), "predict": lambda x: np.array(model.predict(x, verbose=0))}
    with kpatch.record(model, "*.output") as clean:
        expected = run[recorded](one)
    with kpatch.intervene(model, "*.output = $clean._", clean=clean):
        assert run[route](other).tobytes() == expected.tobytes()
    assert run[route](other).tobytes() != expected.tobytes()


def test_a_position_and_a_name(dense):
    with kpatch.record(dense, "*.output") as clean:
        dense(X)
    text = "dense_1.output[:, 1] = $clean._[:, 1]; dense_2.output[:, 0] += mean($clean.dense_2.output)"
    with kpatch.intervene(dense, text, clean=clean), kpatch.record(dense, "*.output") as patched:
        output = host(dense(X + 1))
    expected = hidden(dense, X + 1)
    expected[:, 1] = hidden(dense)[:, 1]
    np.testing.assert_allclose(host(patched["dense_1.output"]), expected, rtol=1e-6)
    rest = host(dense.get_layer("dense_2")(expected))
    np.testing.assert_allclose(output[:, 0], rest[:, 0] + host(clean["dense_2.output"]).mean(), rtol=1e-5)


def test_a_recording_of_another_model(dense):
    other = keras.models.clone_model(dense)
    with kpatch.record(dense, "dense_1.output") as clean:
        dense(X)
    edit = kpatch.intervene(other, "dense_1.output = $clean._", clean=clean)
    with edit, kpatch.record(other, "dense_1.output") as patched:
        other.predict(X, verbose=0)
    assert np.array_equal(host(patched["dense_1.output"]), hidden(dense))


def test_the_first_tensor_where_it_is_alone(dense):
    with kpatch.record(dense, "dense_1.output") as clean:
        dense(X)
    assert np.array_equal(host(clean["dense_1.output.0"]), hidden(dense))


@pytest.mark.parametrize("kind", ["host", "stacked", "one call"])
def test_what_a_binding_can_be(dense, kind):
    with kpatch.record(dense, "*.output", stack=kind == "stacked", host=kind == "host") as clean:
        dense(X)
        if kind == "one call":
            dense(X + 1)
    given = clean.call(0) if kind == "one call" else clean
    index = "[0]" if kind == "stacked" else ""
    edited = kpatch.edit(np.zeros((3, 3), "float32"), f"_ = $clean.dense_1.output{index}", clean=given)
    assert np.array_equal(host(edited), hidden(dense))
    kpatch.apply(dense, f"dense_1.bias = mean($clean.dense_1.output{index}, axis=0)", clean=given)


def test_errors_of_bindings(dense):
    with kpatch.record(dense, "dense_1.output") as clean:
        dense(X)
        dense(X)
    one, line = clean.call(0), "\n  line 1, column 18\n    dense_1.output = "
    tensor = "'$c' is a recording, not a tensor; name an activation of it, as in '$c.dense_1.output'"
    own = "\n  '$c._' is the activation at the target's own place"
    several = "'$c._' was recorded in 2 calls; bind one of them, such as c.call(0)"
    missing, given = "'dense_2.output' was not recorded", "\n  recorded: dense_1.output"
    for text, recording, message in [
        ("$c", clean, f"{tensor}{line}$c\n{' ' * 21}^^{own}"),
        ("$c._", clean, f"{several}{line}$c._\n{' ' * 21}^^^^"),
        ("$c.dense_2.output", one, f"{missing}{line}$c.dense_2.output\n{' ' * 21}{'^' * 17}{given}"),
    ]:
        with pytest.raises(kpatch.PatchError) as caught:
            kpatch.intervene(dense, f"dense_1.output = {text}", c=recording)
        assert str(caught.value) == message
    with pytest.raises(kpatch.ResolutionError, match=r"^'\$c' has no activation at 'dense_2.output'\n"):
        kpatch.intervene(dense, "dense_2.output = $c._", c=one)
    with pytest.raises(kpatch.BindingError, match="and here no activation is the target"):
        kpatch.apply(dense, "dense_1.bias = $c._", c=one)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("dense_1.kernel", "'dense_1.kernel' is a weight; kpatch.record records activations"),
        ("dense_9.output", "no activation 'dense_9.output'"),
        ("dense_1.output[0]", "an activation is named by a selector, 'dense_1.output'. Received: 'dense_1.output[0]'"),
        ("_", "an activation is named by a selector, 'dense_1.output'. Received: '_'"),
        ("", "an activation is named by a selector, 'dense_1.output'. Received: ''"),
        ("dense_1.output=1", "an activation is named by a selector, 'dense_1.output'. Received: 'dense_1.output=1'"),
        (3, "an activation is named by a text, 'dense_1.output'. Received: 3"),
        ("dense_1.output; x", "an activation is named by a selector, 'dense_1.output'. Received: 'dense_1.output; x'"),
        ("((", "expected '|' or ')' after an alternative, found '('"),
    ],
)
def test_what_cannot_be_recorded(dense, what, error):
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.record(dense, ["dense_2.output", what])
    assert caught.value.message.startswith(error)


@pytest.mark.parametrize("what", [3, None, b"dense_1.output", []])
def test_what_is_no_activation(dense, what):
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.record(dense, what)
    told = f"kpatch.record takes one activation or several, 'dense_1.output'. Received: {what!r}"
    assert str(caught.value) == told


def test_steps_of_recurrent_layers():
    model = model_of(layers.LSTM(3, name="lstm"))
    with pytest.raises(kpatch.UnsupportedError) as caught:
        kpatch.record(model, "lstm.cell.output")
    assert caught.value.message == "'lstm_cell.output' is computed in the steps of 'lstm', once for each"


def test_what_is_not_called(dense):
    dense.add(layers.Dropout(0.5, name="drop"))
    with pytest.raises(kpatch.ResolutionError) as caught, kpatch.record(dense, ["dense_1.output", "drop.output"]):
        dense.get_layer("dense_1")(X)
    assert str(caught.value) == (
        "nothing was recorded of 'drop.output': it was not computed in the block\n"
        "  the model took another way, or a function was compiled before the block"
    )
    with pytest.raises(ZeroDivisionError), kpatch.record(dense, "drop.output"):
        raise ZeroDivisionError
    assert unpatched(dense)


@pytest.mark.backend_free
@pytest.mark.parametrize("limit", [None, -1, 1.5])
def test_a_limit_is_a_number_of_bytes(dense, limit):
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.record(dense, "*.output", limit=limit)
    assert str(caught.value) == f"limit is a number of bytes. Received: limit={limit!r}"


@pytest.mark.parametrize("route", ["call", "batches"])
def test_the_limit(dense, route):
    clean = kpatch.record(dense, "*.output", limit=40)
    with pytest.raises(kpatch.LimitError) as caught, clean:
        ROUTES[route][0](dense)
    assert str(caught.value) == (
        "the recording needs more than 40 bytes\n  record fewer activations or calls, or allow more by limit=..."
    )
    assert len(clean) == 0
    assert unpatched(dense)
    size = 3 * (3 + 2) * 4
    with kpatch.record(dense, "*.output", limit=size) as clean:
        ROUTES[route][0](dense)
    assert len(clean) == 2


# The block ------------------------------------------------------------------------------------------------------------


def test_one_block(dense):
    clean = kpatch.record(dense, "dense_1.output")
    assert repr(clean) == "<Recording of 0 calls: nothing>"
    with clean as entered:
        dense(X)
        assert entered is clean
        assert len(clean) == 1
        with pytest.raises(kpatch.UnsupportedError) as caught:
            clean.__enter__()
        assert str(caught.value) == "a recording has one block; kpatch.record makes another one"
    clean.__exit__(None, None, None)  # once more, which changes nothing
    assert unpatched(dense)


def test_blocks_end_in_any_order(dense):
    one, other = kpatch.record(dense, "dense_1.output"), kpatch.record(dense, "*.output")
    one.__enter__()
    other.__enter__()
    dense.predict(X, verbose=0)
    one.__exit__(None, None, None)
    dense.predict(X, verbose=0)
    other.__exit__(None, None, None)
    dense.predict(X, verbose=0)
    assert repr(one).startswith("<Recording of 1 call:")
    assert repr(other).startswith("<Recording of 2 calls:")
    assert unpatched(dense)


def test_entered_by_hand_and_dropped(dense):
    with pytest.warns(RuntimeWarning) as caught:
        kpatch.record(dense, "dense_1.output").__enter__()
    messages = [str(each.message) for each in caught if each.category is RuntimeWarning]
    assert messages == ["kpatch.record(model, 'dense_1.output') was not left by its block; it ends now"]
    assert unpatched(dense)


def test_an_interrupt_while_the_block_begins(dense, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("kpatch.inside.traces.Traces.patched", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kpatch.record(dense, "dense_1.output").__enter__()
    assert unpatched(dense)


def test_nothing_of_a_recording_is_kept(dense):
    with contextlib.ExitStack() as stack:
        clean = stack.enter_context(kpatch.record(dense, "*.output"))
        dense.predict(X, verbose=0)
    before = repr(clean)
    dense.predict(X, verbose=0)
    dense(X)
    assert repr(clean) == before


@pytest.mark.skipif(BACKEND != "torch", reason="only torch keeps gradients beside tensors")
def test_gradients_with_respect_to_activations(dense):
    import torch

    with kpatch.record(dense, "dense_1.output") as clean:
        loss = (dense(X)[:, 0] ** 2).sum()
    [gradient] = torch.autograd.grad(loss, [clean["dense_1.output"]])
    kernel = host(dense.get_layer("dense_2").kernel)
    output = host(dense(X))
    np.testing.assert_allclose(gradient.numpy(), 2 * output[:, :1] * kernel[:, 0], rtol=1e-5)


def test_a_recording_shows_itself():
    model = models.dense()
    with kpatch.record(model, "**.output") as found:
        model(np.ones((2, 4), "float32"))
        model(np.ones((3, 4), "float32"))
        model.get_layer("dense_2")(np.ones((3, 3), "float32"))
    rows = found.to_dict()["rows"]
    assert {"path": "dense_1.output", "shape": None, "dtype": "float32", "calls": 2} in rows
    assert {"path": "dense_2.output", "shape": None, "dtype": "float32", "calls": 3} in rows
    assert {"path": "dense_1.output", "shape": [3, 3], "dtype": "float32", "calls": 1} in found.call(1).to_dict()[
        "rows"
    ]
    page = found._repr_html_()
    assert "<code>dense_2.output</code>" in page
    assert "<td>several</td>" in page
    assert str(found) == repr(found)
    assert str(found).startswith("<Recording of 3 calls: ")
