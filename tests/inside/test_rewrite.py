"""Models rewritten, and calls patched for a while, on the backend of this process."""

from pathlib import Path

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.layers import PatchedLayer, ScatterLayer

BACKEND = keras.backend.backend()
DIGITS = Path(__file__).parents[2] / "examples" / "digits.keras"
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
TOKENS = np.arange(10).reshape(2, 5)


def predicted(model, x):
    return np.asarray(model.predict(x, verbose=0))


def same(a, b):
    return a.tobytes() == b.tobytes()


@pytest.fixture
def dense():
    return models.dense()


@pytest.fixture
def mixed():
    model = models.mixed()
    kpatch.apply(model, "norm.moving_variance = 1")
    return model


def test_the_empty_patch_is_the_identity(dense, mixed):
    for model, x in ((dense, X), (mixed, TOKENS)):
        new = kpatch.rewrite(model, "")
        assert new is not model
        assert all(a is b for a, b in zip(new.weights, model.weights, strict=True))
        assert same(predicted(new, x), predicted(model, x))


def test_a_sequential_model(dense):
    before = predicted(dense, X)
    text = "dense_1.output[..., 0] = 0; dense_2.kernel[1] = $v; dense_2.input[:, 1] *= 2"
    new = kpatch.rewrite(dense, text, v=[1.0, 2.0])
    assert [layer.name for layer in new.layers] == [
        "dense_1",
        "dense_1_output_all_0_is_0",
        "dense_2_input_all_1_times_2",
        "dense_2",
    ]
    assert [type(layer) for layer in new.layers[1:]] == [ScatterLayer, ScatterLayer, PatchedLayer]
    kernel_1, bias_1, kernel_2, bias_2 = (np.array(w) for w in dense.get_weights())
    hidden = X @ kernel_1 + bias_1
    hidden[:, 0] = 0
    hidden[:, 1] *= 2
    kernel_2[1] = [1, 2]
    np.testing.assert_allclose(predicted(new, X), hidden @ kernel_2 + bias_2, rtol=1e-5)
    assert same(predicted(dense, X), before)


def test_weights_are_shared(dense):
    new = kpatch.rewrite(dense, "dense_1.kernel[0] = 0")
    kpatch.apply(dense, "dense_2.bias = 7; dense_1.kernel[0] = 5")
    assert all(a is b for a, b in zip(new.weights, dense.weights, strict=True))
    with kpatch.apply(dense, "dense_1.kernel[0] = 0"):
        expected = predicted(dense, X)
    np.testing.assert_allclose(predicted(new, X), expected, rtol=1e-6)


def test_activations_are_read(dense):
    text = "dense_2.output[:, 0] = mean(dense_1.output); dense_2.output[:, 1] = max(dense_2.output)"
    new = kpatch.rewrite(dense, text)
    kernel_1, bias_1, kernel_2, bias_2 = dense.get_weights()
    hidden = X @ kernel_1 + bias_1
    outputs = hidden @ kernel_2 + bias_2
    outputs[:, 0] = hidden.mean()
    outputs[:, 1] = outputs.max()
    np.testing.assert_allclose(predicted(new, X), outputs, rtol=1e-5)


def test_a_functional_model_with_models_inside(mixed, tmp_path):
    before = predicted(mixed, TOKENS)
    text = "norm.output[..., 0] = 0; inner.proj.output[:, 1] = 3; head.kernel[0] *= 0.5"
    text += "; head.output[:, 0] = sum(pool.output)"
    new = kpatch.rewrite(mixed, text)
    after = predicted(new, TOKENS)
    with kpatch.intervene(mixed, text.rpartition(";")[0]):
        assert not same(predicted(mixed, TOKENS), before)
        np.testing.assert_allclose(predicted(mixed, TOKENS)[:, 1], after[:, 1], rtol=1e-5)
    assert same(predicted(mixed, TOKENS), before)
    new.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, TOKENS), after, rtol=1e-6)


class Tied(keras.layers.Layer):
    """The usual head of a language model: it computes with the weights of the embedding."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))


def tied():
    tokens, embedding = keras.Input((5,), dtype="int32"), keras.layers.Embedding(10, 4, name="embedding")
    return models.filled(keras.Model(tokens, Tied(embedding, name="head")(embedding(tokens)))), TOKENS


def shared_by_models():
    shared = keras.layers.Dense(4, name="shared")
    inner = []
    for name in ("a", "b"):
        x = keras.Input((4,))
        inner.append(keras.Model(x, shared(x), name=name))
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Add(name="sum")([keras.Sequential([inner[0]], name="around")(x), inner[1](x)]))
    return models.filled(model), X


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (tied, "embedding.embeddings *= 2"),
        (tied, "head.embedding.embeddings[3] = 1"),
        (tied, "** *= 2; head.output += 1"),
        (shared_by_models, "shared.kernel[0] = 1"),
        (shared_by_models, "shared.output[:, 1] = 7"),
        (shared_by_models, "b.shared.input = 1; around.a.shared.bias = 2"),
    ],
)
def test_all_who_share_are_rewritten(made, text):
    model, x = made()
    before = predicted(model, x)
    with kpatch.intervene(model, text):
        patched = predicted(model, x)
    np.testing.assert_allclose(predicted(kpatch.rewrite(model, text), x), patched, rtol=1e-6)
    assert same(predicted(model, x), before)


class Idle(keras.Model):
    """A graph, and a layer that it does not call."""

    def __init__(self):
        x = keras.Input((4,))
        super().__init__(x, keras.layers.Dense(2, name="dense")(x))
        self.idle = keras.layers.Dense(2, name="idle")
        self.idle.build((None, 4))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("made", "text", "message"),
    [
        (tied, "embedding.output = 0", "'embedding.output' cannot be rewritten: it is inside of 'head', which has no"),
        (Idle, "idle.kernel = 0", "no layer of the model's graph uses 'idle.kernel'; kpatch.apply edits it"),
        (Idle, "idle.output = 0", "'idle.output' cannot be rewritten: no graph has it; kpatch.intervene patches calls"),
    ],
)
def test_what_no_graph_or_a_layer_besides_has(made, text, message):
    model = made()
    with pytest.raises(kpatch.UnsupportedError) as caught:
        kpatch.rewrite(model[0] if isinstance(model, tuple) else model, text)
    assert caught.value.message.startswith(message)


def test_shared_layers_and_several_inputs():
    shared = keras.layers.Dense(3, name="shared")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = models.filled(keras.Model([a, b], {"sum": shared(a) + shared(b), "first": shared(a)}))
    new = kpatch.rewrite(model, "shared.output[:, 0] = 1")
    got = new.predict([X, X], verbose=0)
    assert got["sum"][:, 0].tolist() == [2, 2, 2]
    assert got["first"][:, 0].tolist() == [1, 1, 1]
    two = keras.Model([a, b], keras.layers.Dense(1, name="last")(shared(a) + shared(b)))
    with pytest.raises(kpatch.ResolutionError, match=r"'shared.output' means several tensors"):
        kpatch.rewrite(two, "last.output = sum(shared.output)")


def test_lets_go_where_they_are_named(dense):
    text = """
        let m = mean(dense_1.output)
        let top = max(dense_2.kernel) / 2
        let twice = m * $factor
        dense_1.output[:, 0] = 0
        dense_1.output[:, 1] = m
        dense_2.output[:, 0] = twice
        dense_2.kernel[_ > top] = top
    """
    new = kpatch.rewrite(dense, text, factor=2)
    kernel_1, bias_1, kernel_2, bias_2 = (np.array(w) for w in dense.get_weights())
    hidden = X @ kernel_1 + bias_1
    mean = hidden.mean()
    hidden[:, 0], hidden[:, 1] = 0, mean
    top = kernel_2.max() / 2
    outputs = hidden @ np.minimum(kernel_2, top) + bias_2
    outputs[:, 0] = hidden.mean() * 2  # of what flows out of the layer, edited
    np.testing.assert_allclose(predicted(new, X), outputs, rtol=1e-5)


def test_models_handed_in_become_constants(dense, tmp_path):
    donor = models.filled(models.dense(), seed=5)
    given = [np.array(w) for w in donor.get_weights()]
    new = kpatch.rewrite(dense, "dense_2.* = $d._; dense_1.output += $d.dense_1.bias; dense_1.kernel = $k", d=donor,
                         k=donor.layers[0].kernel)  # fmt: skip
    kernel_1, bias_1, kernel_2, bias_2 = given
    expected = (X @ kernel_1 + dense.get_weights()[1] + bias_1) @ kernel_2 + bias_2
    np.testing.assert_allclose(predicted(new, X), expected, rtol=1e-5)
    kpatch.apply(donor, "** = 0")
    np.testing.assert_allclose(predicted(new, X), expected, rtol=1e-5)
    new.save(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(keras.saving.load_model(tmp_path / "model.keras"), X), expected, rtol=1e-5)


def test_names_that_are_taken(dense):
    """What a part reads gets a name; those of the patch are its own."""
    text = (
        "let present = 3; dense_2.output[:, 0] = max(dense_2.output) + present * mean(dense_1.output) * $dense_1_output"
    )
    new = kpatch.rewrite(dense, text, dense_1_output=0.5)
    kernel_1, bias_1, kernel_2, bias_2 = dense.get_weights()
    hidden = X @ kernel_1 + bias_1
    outputs = hidden @ kernel_2 + bias_2
    outputs[:, 0] = outputs.max() + 3 * hidden.mean() * 0.5
    np.testing.assert_allclose(predicted(new, X), outputs, rtol=1e-5)


def test_a_quoted_name_in_a_call():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense-1")])
    new = kpatch.rewrite(model, '"dense-1".kernel[0] = max("dense-1/kernel")')
    kernel = np.array(model.get_weights()[0])
    kernel[0] = kernel.max()
    np.testing.assert_allclose(predicted(new, X), X @ kernel, rtol=1e-5)


def test_the_summary_shows_the_patch(dense):
    lines = []
    new = kpatch.rewrite(dense, "dense_1.output[..., 0] = 0; dense_2.bias = 1")
    new.summary(print_fn=lines.append, line_length=120)
    assert "dense_1_output_all_0_is_0 (ScatterLayer)" in "\n".join(map(str, lines))
    assert repr(new.layers[1]) == "<ScatterLayer name=dense_1_output_all_0_is_0, patch='_[..., 0] = 0'>"
    assert repr(new.layers[2]) == "<PatchedLayer name=dense_2, patch='bias = 1'>"


def test_globs(dense):
    for text in ("dense_*.kernel = 0; dense_*.output += 1", "*.kernel = 0; *.output += 1"):  # inputs are left out
        new = kpatch.rewrite(dense, text)
        np.testing.assert_allclose(predicted(new, X), np.broadcast_to(dense.get_weights()[3] + 1, (3, 2)))


def test_a_glob_of_outputs_is_of_the_layers_inside(dense):
    """The output of the model is that of its last layer, which would be edited twice."""
    assert [row.path for row in kpatch.plan(dense, "**.output *= 2").rows] == ["dense_1.output", "dense_2.output"]
    new = kpatch.rewrite(dense, "**.output *= 2")
    kernel_1, bias_1, kernel_2, bias_2 = dense.get_weights()
    doubled = 2 * (2 * (X @ kernel_1 + bias_1) @ kernel_2 + bias_2)
    np.testing.assert_allclose(predicted(new, X), doubled, rtol=1e-5)
    with kpatch.intervene(dense, "**.output *= 2"):
        np.testing.assert_allclose(predicted(dense, X), doubled, rtol=1e-5)


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
def test_a_rewritten_model_trains(dense):
    new = kpatch.rewrite(dense, "dense_1.kernel[0] = 0; dense_1.output[:, 0] = 1")
    new.compile("sgd", "mse")
    before = [np.array(w) for w in dense.get_weights()]
    new.fit(X, np.ones((3, 2)), epochs=2, verbose=0)
    moved = [a != b for a, b in zip(before, dense.get_weights(), strict=True)]
    assert not moved[0][0].any()
    assert not moved[0][:, 0].any()
    assert moved[0][1:, 1:].all()
    assert moved[2].all()


def test_the_digits_classifier():
    model = keras.saving.load_model(DIGITS)
    x = np.random.default_rng(0).random((8, *model.input_shape[1:])).astype("float32")
    before = predicted(model, x)
    new = kpatch.rewrite(model, "conv1.kernel[..., 3] = 0; conv1.bias[3] = 0")
    with kpatch.apply(model, "conv1.kernel[..., 3] = 0; conv1.bias[3] = 0"):
        expected = predicted(model, x)
    np.testing.assert_allclose(predicted(new, x), expected, rtol=1e-5, atol=1e-6)
    assert same(predicted(model, x), before)
    assert same(predicted(kpatch.rewrite(model, ""), x), before)


def test_mobilenet():
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=5, alpha=0.35)
    x = np.random.default_rng(0).random((2, 32, 32, 3)).astype("float32")
    before = predicted(model, x)
    new = kpatch.rewrite(model, "block_3_expand.kernel[..., :4] = 0; out_relu.output = _ + 1")
    assert not same(predicted(new, x), before)
    assert same(predicted(kpatch.rewrite(model, ""), x), before)
    assert same(predicted(model, x), before)


# For a while ----------------------------------------------------------------------------------------------------------


def test_a_subclassed_model():
    model = models.subclassed()
    x = X[:, :3]
    before, bits = predicted(model, x), models.snapshot(model)
    with kpatch.intervene(model, "block_b.output[..., 2] = $v; block_b.input = 0; block_b.bias = 1", v=9):
        assert predicted(model, x).tolist() == [[1, 1, 9, 1]] * 3
    assert same(predicted(model, x), before)
    assert models.snapshot(model) == bits
    assert "call" not in vars(model.blocks[1])


def test_an_exception_ends_it(dense):
    with pytest.raises(ZeroDivisionError), kpatch.intervene(dense, "dense_1.output = 0; dense_1.bias = 3"):
        raise ZeroDivisionError
    assert "call" not in vars(dense.layers[0])
    assert (dense.get_weights()[1] != 3).any()


def test_activations_are_read_in_a_subclassed_model():
    model = models.subclassed()
    x = X[:, :3]
    block = model.blocks[1]
    text = "let m = mean(block_a.output); block_b.output[:, 0] = m; block_b.output[:, 1] = max(block_b.input)"
    with kpatch.intervene(model, f"block_a.output[:, 2] = 5; {text}"):
        hidden = np.array(keras.ops.convert_to_numpy(model.blocks[0](model.encoder(x))))
        assert (hidden[:, 2] == 5).all()
        expected = np.array(keras.ops.convert_to_numpy(keras.layers.Dense.call(block, hidden)))
        expected[:, 0], expected[:, 1] = hidden.mean(), hidden.max()
        np.testing.assert_allclose(predicted(model, x), expected, rtol=1e-5)
    assert "call" not in vars(model)


def test_what_cannot_be_read_in_a_call():
    model = models.subclassed()
    with kpatch.intervene(model, "block_a.output[:, 0] = mean(block_b.output)"):
        with pytest.raises(kpatch.ResolutionError) as caught:
            model(X[:, :3])
        assert str(caught.value) == (
            "'block_a' cannot read 'block_b.output': that is computed later, or in another call\n"
            "  line 1, column 29\n"
            "    block_a.output[:, 0] = mean(block_b.output)\n"
            "                                ^^^^^^^^^^^^^^"
        )
    shared = keras.layers.Dense(4, name="shared")
    twice = models.filled(keras.Sequential([keras.Input((4,)), shared, shared, keras.layers.Dense(1, name="last")]))
    message = r"'shared.output' means several tensors: 'shared' is called"
    with (
        kpatch.intervene(twice, "last.output = mean(shared.output)"),
        pytest.raises(kpatch.ResolutionError, match=message),
    ):
        twice(X)


def test_what_a_loop_computes_is_not_read(mixed):
    text = "head.output = mean(bi.forward_layer.cell.output)"
    with pytest.raises(kpatch.UnsupportedError) as caught, kpatch.intervene(mixed, text):
        pass
    assert "'lstm_cell.output' is computed in the steps of 'forward_lstm" in str(caught.value)


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED = {
    "dense_1.output[:, 3] = 0": """
        index 3 is out of range for axis 1 with 3 entries
          line 1, column 19
            dense_1.output[:, 3] = 0
                              ^
          axis 1 takes indices from -3 to 2""",
    "dense_1.output = dense_2.kernel": """
        'dense_2.kernel' is a weight; an edit of an activation can read only activations
          line 1, column 18
            dense_1.output = dense_2.kernel
                             ^^^^^^^^^^^^^^""",
    "dense_1.output[:, 0] = mean(dense_2.output)": """
        'dense_1' cannot read 'dense_2.output': that is computed later, or inside of another model
          line 1, column 29
            dense_1.output[:, 0] = mean(dense_2.output)
                                        ^^^^^^^^^^^^^^""",
    "dense_1.kernel[0] = dense_2.kernel[0, 0]": """
        'dense_2.kernel' is a weight of another layer, which 'dense_1' cannot read
          line 1, column 21
            dense_1.kernel[0] = dense_2.kernel[0, 0]
                                ^^^^^^^^^^^^^^""",
    "let m = mean(dense_1.kernel); dense_1.output = m": """
        'dense_1.kernel' is a weight; an edit of an activation can read only activations
          line 1, column 14
            let m = mean(dense_1.kernel); dense_1.output = m
                         ^^^^^^^^^^^^^^""",
    "let m = mean(dense_1.output); dense_1.kernel = m": """
        'dense_1.output' is an activation; an edit of weights can read only weights
          line 1, column 14
            let m = mean(dense_1.output); dense_1.kernel = m
                         ^^^^^^^^^^^^^^""",
    "let m = mean(dense_1.kernel); dense_2.kernel = m": """
        'dense_1.kernel' is a weight of another layer, which 'dense_2' cannot read
          line 1, column 14
            let m = mean(dense_1.kernel); dense_2.kernel = m
                         ^^^^^^^^^^^^^^""",
    "let m = dense_1.output + _; dense_2.output = m[0, 0]": """
        '_' is no variable of a model
          line 1, column 26
            let m = dense_1.output + _; dense_2.output = m[0, 0]
                                     ^
          name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit""",
    "assert all(dense_1.output == 0)": """
        'dense_1.output' is an activation, but an assertion is checked before there are activations
          line 1, column 12
            assert all(dense_1.output == 0)
                       ^^^^^^^^^^^^^^""",
    "dense_1.output[0] = 1; dense_2.kernel[0, 5] = 2": """
        index 5 is out of range for axis 1 with 2 entries
          line 1, column 42
            dense_1.output[0] = 1; dense_2.kernel[0, 5] = 2
                                                     ^
          axis 1 takes indices from -2 to 1""",
    "dense_1.output = $v": """
        no value for '$v'; pass v=...
          line 1, column 18
            dense_1.output = $v
                             ^^""",
    "_ = 0": """
        '_' is no variable of a model
          line 1, column 1
            _ = 0
            ^
          name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit""",
    "assert shape(dense_1.kernel) == [1, 2]; dense_1.output = 0": """
        assertion failed
          line 1, column 8
            assert shape(dense_1.kernel) == [1, 2]; dense_1.output = 0
                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
          shape(dense_1.kernel) is [4, 3]""",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused(dense, text):
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.rewrite(dense, text)
    assert str(caught.value) == REFUSED[text].replace("\n        ", "\n").strip("\n")


REFUSED_OF_MIXED = {
    "tokens.output = 0": """
        'tokens.output' is an input of the model, which no layer computes
          line 1, column 1
            tokens.output = 0
            ^^^^^^^^^^^^^
          edit the 'input' of the layers that take it""",
    "head.output = poool.output": """
        no activation 'poool.output'; did you mean 'pool.output'?
          line 1, column 15
            head.output = poool.output
                          ^^^^^
          the model has: embed, bi, attention, norm, pool, inner, head""",
    "sum.input = 0": """
        'sum.input' is not one tensor but a list of them: sum.input.0, sum.input.1
          line 1, column 1
            sum.input = 0
            ^^^^^^^^^""",
}


@pytest.mark.parametrize("text", REFUSED_OF_MIXED)
def test_refused_of_a_functional_model(mixed, text):
    if text.startswith("sum"):
        a = keras.Input((3,))
        mixed = keras.Model(a, keras.layers.Add(name="sum")([a, a]))
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.rewrite(mixed, text)
    assert str(caught.value) == REFUSED_OF_MIXED[text].replace("\n        ", "\n").strip("\n")


def test_a_binding_that_is_not_used(dense):
    with pytest.raises(kpatch.BindingError, match="'v' is not used"):
        kpatch.rewrite(dense, "dense_1.output = 0", v=1)


def test_refused_for_want_of_a_graph(mixed):
    with pytest.raises(kpatch.UnsupportedError, match=r"a Subclassed has no graph to rewrite; kpatch.intervene"):
        kpatch.rewrite(models.subclassed(), "first.output = 0")
    with pytest.raises(kpatch.UnsupportedError, match="it is inside of 'bi', which has no graph"):
        kpatch.rewrite(mixed, "bi.forward_layer.output = 0")


def test_rewritten_again():
    """A `PatchedLayer` has the name of its layer, which means the patched one."""
    model = models.dense()
    new = kpatch.rewrite(kpatch.rewrite(model, "dense_1.kernel[0] = 0"), "dense_1.output[:, 1] = 2")
    new = kpatch.rewrite(new, "dense_1.kernel[1] = 0; dense_2.input[:, 0] = 1")
    first, second = (layer.get_weights() for layer in model.layers)
    hidden = X[:, 2:] @ first[0][2:] + first[1]
    hidden[:, :2] = 1, 2
    np.testing.assert_allclose(new.predict(X, verbose=0), hidden @ second[0] + second[1], rtol=1e-5)
    with kpatch.intervene(new, "dense_1.output = 0"):
        expected = second[0][0] + 2 * second[0][1] + second[1]  # what follows in the graph is as before
        np.testing.assert_allclose(new.predict(X, verbose=0), np.tile(expected, (len(X), 1)), rtol=1e-5)


@pytest.mark.parametrize("functional", [False, True])
def test_the_same_patch_again(dense, functional):
    """Each layer that is put in has a name of its own."""
    model = keras.Model(dense.inputs, dense.outputs) if functional else dense
    text = "dense_2.output *= 2"
    new = kpatch.rewrite(kpatch.rewrite(kpatch.rewrite(model, text), text), text)
    names = ["dense_2", "dense_2_output_times_2", "dense_2_output_times_2_1", "dense_2_output_times_2_2"]
    assert sorted(layer.name for layer in new.layers if layer.name.startswith("dense_2")) == names
    np.testing.assert_array_equal(predicted(new, X), 8 * predicted(dense, X))


def test_a_sequential_model_that_reads_activations_keeps_its_structure():
    new = kpatch.rewrite(models.dense(), "dense_2.output += sum(dense_1.output)")
    assert (new.input_shape, new.output_shape) == ((None, 4), (None, 2))
    nested = keras.Sequential([keras.Input((4,)), new, keras.layers.Dense(1)])
    assert nested.predict(X, verbose=0).shape == (len(X), 1)
    again = kpatch.rewrite(new, "dense_1.output[:, 1] = 0")
    assert (again.input_shape, again.output_shape) == ((None, 4), (None, 2))


# Learnt values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["dense_1.output += $v", "dense_2.input = _ + $v; dense_1.output[:, $i] = _"])
def test_trainable_values(text, tmp_path):
    """Vectors that are learnt, of a model whose own weights are frozen."""
    model = models.dense()
    given = {"v": np.zeros(3), **({"i": 0} if "$i" in text else {})}
    new = kpatch.rewrite(model, text, trainable_values=True, **given)
    before = keras.ops.convert_to_numpy(model(X))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(new(X)), before)
    for layer in model.layers:
        layer.trainable = False
    [learnt] = new.trainable_variables
    learnt.assign([1.0, 2.0, 3.0])
    kernel = model.get_weights()[2]
    got = keras.ops.convert_to_numpy(new(X))
    np.testing.assert_allclose(got, before + np.array([1.0, 2.0, 3.0]) @ kernel, rtol=1e-5)
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(X)), got)
    if BACKEND != "numpy":
        new.compile(keras.optimizers.Adam(0.1), "mse")
        new.fit(X, np.zeros((len(X), 2)), verbose=0)
        assert (keras.ops.convert_to_numpy(learnt) != [1.0, 2.0, 3.0]).all()


@pytest.mark.backend_free
def test_no_value_to_train():
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.rewrite(models.dense(), "dense_1.output[:, $i] = 0", trainable_values=True, i=1)
    assert str(caught.value).splitlines()[0] == (
        "trainable_values=True, and no binding of an activation is a floating value"
    )
