"""Every variable of Keras's layers is edited by its selector, and undone; and names that last, in any tree."""

import keras
import ml_dtypes
import models
import numpy as np
import pytest
from test_resolve import TABLE, quick

import kpatch
from kpatch.names.index import index
from kpatch.values.tensors import to_numpy

layers = keras.layers
BACKEND = keras.backend.backend()


def made(kind, dtype):
    keras.utils.clear_session(free_memory=False)  # names are counted anew
    keras.config.set_dtype_policy(dtype)
    try:
        make, shape = TABLE[kind]
        layer = make()
        layer.build(*shape) if isinstance(shape, list) else layer.build(shape)
    finally:
        keras.config.set_dtype_policy("float32")
    return keras.Sequential([layer], name="model")


def edit_each(model):
    """Edits each variable by its canonical selector and undoes it; gives how many there were."""
    entries = index(model).entries
    start = models.snapshot(model)
    for entry in entries:
        before = to_numpy(entry.variable.value).copy()
        one = before.dtype.type(1)
        expected = before.copy()
        expected[(0,) * before.ndim] = one
        expected = expected + one
        with kpatch.apply(
            model, f"{entry.path}[{', '.join('0' * before.ndim) or '...'}] = 1; {entry.path} += 1"
        ) as applied:
            found = to_numpy(entry.variable.value)
            assert found.dtype == before.dtype
            np.testing.assert_array_equal(found, expected, err_msg=entry.path)
            assert [row.path for row in applied.plan.rows] == [entry.path] * 2
            others = [other for other in entries if other is not entry]
            changed = [other.path for other in others if bits(other) != start_of(other, start, model)]
            assert not changed
        assert models.snapshot(model) == start
    return len(entries)


def bits(entry):
    return np.array(keras.ops.convert_to_numpy(entry.variable)).tobytes()


def start_of(entry, start, model):
    [number] = [i for i, variable in enumerate(model.variables) if variable is entry.variable]
    return start[number]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TABLE)
def test_every_variable_of_a_layer_is_edited_and_undone(kind, dtype):
    model = made(kind, dtype)
    models.filled(model)
    count = edit_each(model)
    assert count == len(model.variables)
    assert count > 0


@pytest.mark.parametrize("kind", ["Dense", "LSTM", "MultiHeadAttention", "BatchNormalization", "RNN of cells"])
def test_a_glob_over_a_layer(kind):
    model = models.filled(made(kind, "float32"))
    before = [to_numpy(variable.value).copy() for variable in model.weights]
    with kpatch.apply(model, "** = _ * 2 - 1", expect=len(model.weights)):
        for variable, old in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(to_numpy(variable.value), old * 2 - 1)
    for variable, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable.value), old)


# Names that last ------------------------------------------------------------------------------------------------------


class Decoder(layers.Layer):
    """As keras_hub's: sub-layers under attributes with an underscore, made in `build`."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        policy = self.dtype_policy
        attention = quick(layers.MultiHeadAttention, 2, self.width // 2, name="self_attention", dtype=policy)
        self._self_attention_layer = attention
        self._self_attention_layer.build(shape, shape)
        self._feedforward_dense = quick(layers.Dense, self.width, name="feedforward_dense", dtype=policy)
        self._feedforward_dense.build(shape)
        self._norm = quick(layers.LayerNormalization, name="layer_norm", dtype=policy)
        self._norm.build(shape)
        self.built = True

    def call(self, x):
        return self._norm(x + self._feedforward_dense(self._self_attention_layer(x, x)))


class Untracked(keras.Model):
    """As keras_hub's models, which set their attributes past Keras and torch, before `super().__init__()` too."""

    def __setattr__(self, name, value):
        if isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)


class Backbone(Untracked):
    """As keras_hub's: a subclass that is built as a functional model in `__init__`, with its layers as attributes."""

    def __init__(self, vocabulary=11, width=4, depth=3, dtype=None, **kwargs):
        self.token_embedding = quick(layers.Embedding, vocabulary, width, name="token_embedding", dtype=dtype)
        self.transformer_layers = [Decoder(width, name=f"transformer_layer_{i}", dtype=dtype) for i in range(depth)]
        self.layer_norm = quick(layers.LayerNormalization, name="final_norm", dtype=dtype)
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        x = self.token_embedding(tokens)
        for layer in self.transformer_layers:
            x = layer(x)
        super().__init__(inputs=tokens, outputs=self.layer_norm(x), **kwargs)
        self.depth = depth


class Classifier(Untracked):
    """A task model around a backbone, again functional in `__init__`."""

    def __init__(self, backbone, **kwargs):
        self.backbone = backbone
        self.output_dense = quick(layers.Dense, 2, name="logits")
        inputs = backbone.input
        super().__init__(inputs=inputs, outputs=self.output_dense(backbone(inputs)[:, 0]), **kwargs)


def same(model, names):
    """Each name means its variable, to `apply`."""
    for text, variable in names.items():
        [step] = kpatch.plan(model, f"{text}[...] = 0", expect=1).edits
        assert step.place.variable is variable, text
        before = to_numpy(variable.value).copy()
        with kpatch.apply(model, f"{text} = 2"):
            assert (to_numpy(variable.value).astype("float32") == 2).all()
        assert to_numpy(variable.value).tobytes() == before.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_backbone_of_keras_hub(dtype):
    model = Backbone(dtype=dtype, name="backbone")
    first, second, _ = model.transformer_layers
    attention = second._self_attention_layer
    same(
        model,
        {
            "token_embedding.embeddings": model.token_embedding.embeddings,
            "transformer_layers.0.feedforward_dense.kernel": first._feedforward_dense.kernel,
            "transformer_layers.1._self_attention_layer.query.kernel": attention._query_dense.kernel,
            "transformer_layer_1.self_attention._output_dense.bias": attention._output_dense.bias,
            "transformer_layers.transformer_layer_0.layer_norm.gamma": first._norm.gamma,
            "layers[0].embeddings": model.token_embedding.embeddings,
            "layers[1].layers[1].kernel": first._feedforward_dense.kernel,
            "layers[-1].beta": model.layer_norm.beta,
            "layer_norm.beta": model.layer_norm.beta,
            "final_norm.gamma": model.layer_norm.gamma,
            '"backbone/transformer_layer_0/layer_norm/beta"': first._norm.beta,
        },
    )
    applied = kpatch.apply(model, "transformer_layers.*.self_attention.*.kernel = 0", expect=3 * 4)
    applied.undo()
    kpatch.apply(model, "transformer_layer_?.**.kernel = 0; layers[2].** = 1", expect=3 * 5 + 7)
    assert to_numpy(second._norm.beta.value).astype("float32").tolist() == [1] * 4
    assert to_numpy(first._norm.beta.value).astype("float32").tolist() == [0] * 4


def test_a_task_around_a_backbone():
    model = Classifier(Backbone(name="inner"), name="classifier")
    donor = models.filled(Backbone(name="other"), seed=4)
    same(
        model,
        {
            "backbone.token_embedding.embeddings": model.backbone.token_embedding.embeddings,
            "inner.token_embedding.embeddings": model.backbone.token_embedding.embeddings,
            "token_embedding.embeddings": model.backbone.token_embedding.embeddings,
            "output_dense.kernel": model.output_dense.kernel,
            "logits.bias": model.output_dense.bias,
            "backbone.transformer_layers.2.layer_norm.gamma": model.backbone.transformer_layers[2]._norm.gamma,
        },
    )
    kpatch.apply(model, "backbone.** = $donor._", donor=donor, expect=len(donor.weights))
    for mine, other in zip(model.backbone.weights, donor.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(mine.value), to_numpy(other.value))
    back = Backbone(name="third")
    kpatch.apply(back, "** = $model._", model=model, expect=len(donor.weights))
    assert models.snapshot(back) == models.snapshot(donor)


class Tower(keras.Model):
    """Layers in attributes, lists and dicts, with a functional model inside, and recurrent and wrapped layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        inputs = keras.Input((4,))
        self.dense1 = quick(layers.Dense, 4)
        self.inner = keras.Model(inputs, quick(layers.Dense, 4, name="projection")(inputs))
        self.blocks = [quick(layers.Dense, 4), quick(layers.LayerNormalization)]
        self.heads = {"class": quick(layers.Dense, 2), "box": quick(layers.Dense, 4)}
        self.rnn = layers.RNN([quick(layers.GRUCell, 3), quick(layers.LSTMCell, 2)])
        self.bi = layers.Bidirectional(quick(layers.LSTM, 3, return_sequences=True))
        self.attention = quick(layers.MultiHeadAttention, 2, 3)
        self.each = layers.TimeDistributed(quick(layers.Dense, 3))
        self.temperature = self.add_weight(name="temperature", shape=(), initializer="ones")

    def build(self, shape):
        for layer in (self.dense1, *self.blocks, *self.heads.values()):
            layer.build((None, 4))
        for layer in (self.rnn, self.bi, self.each):
            layer.build((None, 5, 4))
        self.attention.build((None, 5, 4), (None, 5, 4))
        self.built = True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_names_that_last(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = Tower(name="tower")
        model.build((None, 4))
    finally:
        keras.config.set_dtype_policy("float32")
    models.filled(model)
    cells = model.rnn.cell.cells
    same(
        model,
        {
            "dense1.kernel": model.dense1.kernel,
            "layers[0].kernel": model.dense1.kernel,
            "inner.projection.kernel": model.inner.get_layer("projection").kernel,
            "blocks.0.kernel": model.blocks[0].kernel,
            "blocks.1.gamma": model.blocks[1].gamma,
            "heads.class.bias": model.heads["class"].bias,
            'heads."box".kernel': model.heads["box"].kernel,
            "rnn.cell.cells.0.recurrent_kernel": cells[0].recurrent_kernel,
            "rnn.cell.cells.1.bias": cells[1].bias,
            "bi.forward_layer.cell.kernel": model.bi.forward_layer.cell.kernel,
            "bi.backward_layer.cell.bias": model.bi.backward_layer.cell.bias,
            "bi.layers[1].cell.recurrent_kernel": model.bi.backward_layer.cell.recurrent_kernel,
            "attention.query.kernel": model.attention._query_dense.kernel,
            "attention.attention_output.bias": model.attention._output_dense.bias,
            "each.layer.kernel": model.each.layer.kernel,
            "temperature": model.temperature,
        },
    )
    assert edit_each(model) == len(model.variables)
    kpatch.apply(model, "blocks.** = 1; heads.*.bias = 2; bi.*.cell.kernel = 3; rnn.**.bias = 4", expect=4 + 2 + 2 + 2)
    assert (to_numpy(model.heads["box"].bias.value).astype("float32") == 2).all()
    assert to_numpy(model.temperature.value).dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else "float32")


def test_names_survive_another_process():
    """Attributes and positions do: layers that Keras numbers have other numbers in a second model, and it is found."""
    texts = ["dense1.kernel", "blocks.0.bias", 'heads."class".kernel', "layers[0].bias", "inner.projection.bias"]
    one, other = Tower(), Tower()
    for model in (one, other):
        model.build((None, 4))
    assert one.dense1.name != other.dense1.name
    for text in texts:
        found = [kpatch.plan(model, f"{text} = 1").edits[0].place.variable for model in (one, other)]
        assert [one.weights[i] is found[0] for i in range(len(one.weights))] == [
            other.weights[i] is found[1] for i in range(len(one.weights))
        ]


def test_saved_and_loaded(tmp_path):
    model = models.filled(
        keras.Sequential([keras.Input((4,)), quick(layers.Dense, 3), quick(layers.Dense, 2)], name="m")
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    kpatch.apply(loaded, "layers[1].kernel = 5; ** = $original._ + 1", original=model)
    for mine, other in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(mine.value), to_numpy(other.value) + 1)
