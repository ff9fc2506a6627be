"""`att.scores` and `att.heads`: recorded and edited, fused or not, with masks, on each route."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kpatch

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
MASK = np.random.default_rng(1).random((2, 5, 5)) < 0.7


def fused_attention_op_available():
    """As keras_hub's: whether this machine has a fused kernel."""
    return True


class Fused(layers.Layer):
    """As keras_hub's Llama (`groups=1`, joined heads) and Gemma (heads in groups): it asks for a fused kernel."""

    def __init__(self, groups=1, joined=False, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.groups, self.joined = 4, groups, joined
        if groups > 1:
            self.num_key_value_heads = 4 // groups

    def build(self, shape):
        self.projection = layers.Dense(24, name="projection")
        self.projection.build(shape)
        self.softmax = layers.Softmax(dtype="float32")
        inputs, kernel = ("btd", "de") if self.joined else ("btnh", "nhe")
        self.output_dense = layers.EinsumDense(f"{inputs},{kernel}->bte", (None, shape[-1]), name="attention_output")
        self.output_dense.build((None, None, 8) if self.joined else (None, None, 4, 2))

    def _fuses(self, *, at_all=True):
        return fused_attention_op_available() and at_all

    def _compute_attention(self, q, k, v):
        if self._fuses():
            return ops.dot_product_attention(q, k, v, scale=1.0)
        q, k, v = (ops.reshape(x, (-1, x.shape[1], 4 // self.groups, self.groups, 2)) for x in (q, k, v))
        logits = ops.einsum("btkgh,bskgh->bkgts", q, k)
        scores = self.softmax(logits if self.groups > 1 else ops.reshape(logits, (-1, 4, *logits.shape[-2:])))
        scores = ops.reshape(scores, ops.shape(logits))
        return ops.reshape(ops.einsum("bkgts,bskgh->btkgh", scores, v), (-1, q.shape[1], 4, 2))

    def qkv(self, x):
        return [ops.reshape(each, (-1, x.shape[1], 4, 2)) for each in ops.split(self.projection(x), 3, axis=-1)]

    def call(self, x):
        heads = self._compute_attention(*self.qkv(x))
        return self.output_dense(ops.reshape(heads, (-1, x.shape[1], 8)) if self.joined else heads)


def host(x):
    return np.array(ops.convert_to_numpy(x))


def model_of(layer, **kwargs):
    inputs = keras.Input((5, 8))
    keras.utils.set_random_seed(3)
    return keras.Model(inputs, layer(inputs) if isinstance(layer, Fused) else layer(inputs, inputs, **kwargs))


LAYERS = {
    "multi-head": lambda: layers.MultiHeadAttention(4, 2, name="att"),
    "grouped": lambda: layers.GroupQueryAttention(2, 4, 2, name="att"),
    "dropout": lambda: layers.MultiHeadAttention(4, 2, dropout=0.5, name="att"),
}
CALLS = {"plain": {}, "causal": {"use_causal_mask": True}, "masked": {"attention_mask": MASK}}
ROUTES = {"call": lambda model: host(model(X)), "predict": lambda model: model.predict(X, verbose=0)}
ON_EACH = [
    *((layer, call, "call") for layer in LAYERS for call in CALLS),
    *((layer, "causal", "predict") for layer in LAYERS),
]


@pytest.mark.parametrize(("layer", "call", "route"), ON_EACH)
def test_scores_and_heads_of_keras(layer, call, route):
    """They are those of the unfused way, to the bit, and so is the model's output."""
    layer = LAYERS[layer]()
    model = model_of(layer, **CALLS[call])
    output, scores = layer(X, X, return_attention_scores=True, **CALLS[call])
    with kpatch.record(model, ["att.scores", "*.heads"]) as recorded:
        result = ROUTES[route](model)
    assert list(recorded) == ["att.scores", "att.heads"]
    assert np.array_equal(result, host(output))
    assert np.array_equal(host(recorded["att.scores"]), host(scores))
    value = host(layer._value_dense(ops.convert_to_tensor(X)))
    value = np.repeat(value, 4 // value.shape[2], axis=2)
    heads = np.einsum("bnts,bsnh->btnh", host(scores), value)
    np.testing.assert_allclose(host(recorded["att.heads"]), heads, rtol=1e-4, atol=1e-6)
    assert not vars(layer).keys() & {"_compute_attention", "call"}


@pytest.mark.parametrize("route", ROUTES)
def test_edits(route):
    model = model_of(layers.MultiHeadAttention(4, 2, name="att"))
    with kpatch.record(model, "att.scores") as plain:
        unfused = ROUTES[route](model)
    uniform, alone = "att.scores[:, 1] = 0.2; att.heads[..., 2, :] = 9", "att.heads[:, :, 3] = 0"
    with kpatch.intervene(model, uniform), kpatch.record(model, ["att.scores", "att.heads"]) as edited:
        ROUTES[route](model)
    scores = host(plain["att.scores"])
    scores[:, 1] = 0.2
    assert np.array_equal(host(edited["att.scores"]), scores)
    assert (host(edited["att.heads"])[:, :, 2] == 9).all()
    value = host(model.get_layer("att")._value_dense(ops.convert_to_tensor(X)))
    mean = np.repeat(value[:, :, 1].mean(1, keepdims=True), 5, 1)
    np.testing.assert_allclose(host(edited["att.heads"])[:, :, 1], mean, rtol=1e-4, atol=1e-6)
    with kpatch.intervene(model, "att.scores = $plain._", plain=plain):
        assert np.array_equal(ROUTES[route](model), unfused)
    with kpatch.intervene(model, alone):
        ablated = ROUTES[route](model)  # heads need no other way than the fused one
    kernel, bias = (host(w) for w in model.get_layer("att")._output_dense.weights)
    with kpatch.record(model, "att.heads") as fused:
        ROUTES[route](model)
    heads = host(fused["att.heads"])
    heads[:, :, 3] = 0
    np.testing.assert_allclose(ablated, np.einsum("btnh,nhd->btd", heads, kernel) + bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"joined": True}, {"groups": 2}, {"groups": 2, "joined": True}], ids=str)
def test_as_in_keras_hub(options, monkeypatch):
    """The layer's own unfused way; each head has its place on one axis, however the layer arranges them."""
    layer = Fused(name="att", **options)
    model = model_of(layer)
    with kpatch.record(model, ["att.scores", "att.heads"]) as recorded:
        result = model.predict(X, verbose=0)
    with kpatch.intervene(model, "att.scores[:, 2] = 0"), kpatch.record(model, "att.heads") as edited:
        model(X)
    q, k, v = (host(x) for x in layer.qkv(ops.convert_to_tensor(X)))
    scores = np.exp(np.einsum("btnh,bsnh->bnts", q, k))
    scores /= scores.sum(-1, keepdims=True)
    heads = np.einsum("bnts,bsnh->btnh", scores, v)
    np.testing.assert_allclose(host(recorded["att.scores"]), scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(host(recorded["att.heads"]), heads, rtol=1e-4, atol=1e-6)
    heads[:, :, 2] = 0
    np.testing.assert_allclose(host(edited["att.heads"]), heads, rtol=1e-4, atol=1e-6)
    assert fused_attention_op_available()
    monkeypatch.setitem(globals(), "fused_attention_op_available", lambda: False)
    assert np.array_equal(keras.Model(model.inputs, model.outputs).predict(X, verbose=0), result)


def test_blocks_end_in_any_order():
    layer = layers.MultiHeadAttention(4, 2, name="att")
    model = model_of(layer)
    fused = host(model(X))
    first = kpatch.intervene(model, "att.scores[:, 0] = 0").start()
    second = kpatch.intervene(model, "att.scores[:, 1] = 0").start()
    first.release()
    with kpatch.record(model, "att.scores") as recorded:
        model(X)
    second.release()
    assert [(host(recorded["att.scores"])[:, head] == 0).all() for head in range(3)] == [False, True, False]
    assert not vars(layer).keys() & {"_compute_attention", "call"}
    assert np.array_equal(host(model(X)), fused)


def test_in_bfloat16():
    model = model_of(layers.MultiHeadAttention(4, 2, name="att", dtype="mixed_bfloat16"))
    with kpatch.intervene(model, "att.scores[..., 0] = 0.5"), kpatch.record(model, "att.scores") as recorded:
        model(X)
    assert keras.backend.standardize_dtype(recorded["att.scores"].dtype) == "bfloat16"
    assert (host(recorded["att.scores"]).astype("float32")[..., 0] == 0.5).all()


class Named(layers.MultiHeadAttention):
    """Has a weight of the name."""

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.scores = self.add_weight(shape=(3,), name="scores", initializer="zeros")


def test_the_name_of_a_weight_comes_first():
    layer = Named(4, 2, name="att")
    model = model_of(layer)
    kpatch.apply(model, "att.scores[1] = 5")
    assert host(layer.scores).tolist() == [0, 5, 0]


def message(function, *args):
    with pytest.raises(kpatch.PatchError) as caught:
        function(*args)
    return str(caught.value)


def test_errors():
    inputs = keras.Input((5, 8))
    x = layers.Dense(8, name="dense")(layers.Attention(name="single")([inputs, inputs]))
    x = layers.MultiHeadAttention(4, 2, name="one")(x, x)
    model = keras.Model(inputs, layers.MultiHeadAttention(4, 2, name="two")(x, x))
    assert message(kpatch.intervene, model, "single.scores[:, 0] = 0") == (
        "'single', a Attention, has no 'scores': it computes no softmax by a layer of its own\n"
        "  line 1, column 1\n    single.scores[:, 0] = 0\n    ^^^^^^^^^^^^^"
    )
    assert message(kpatch.record, model, "single.heads").splitlines()[0] == (
        "'single', a Attention, has no 'heads': it projects no heads"
    )
    assert message(kpatch.apply, model, "one.scores = 0").splitlines()[0] == (
        "'one.scores' is an activation; kpatch.rewrite and kpatch.intervene edit those"
    )
    assert message(kpatch.rewrite, model, "one.heads[:, :, 0] = 0") == (
        "'one.heads' cannot be rewritten: 'heads' are computed inside of 'one'; kpatch.intervene patches calls\n"
        "  line 1, column 1\n    one.heads[:, :, 0] = 0\n    ^^^^^^^^^"
    )
    assert message(kpatch.rewrite, model, "dense.output = sum(single.output) + sum(one.heads)").splitlines()[0] == (
        "'dense.output' cannot be rewritten: 'heads' are computed inside of 'one'; kpatch.intervene patches calls"
    )
    assert message(kpatch.intervene, model, "dense.scores = 0").splitlines()[0].startswith("no variable 'dense.scores'")
    with kpatch.record(model, "**.scores") as recorded:
        model(X)
    assert list(recorded) == ["one.scores", "two.scores"]
