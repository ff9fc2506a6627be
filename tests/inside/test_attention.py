"""`att.scores` and `att.heads`: recorded and edited, fused or not, with masks, on each route."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.ops import softmax as renamed

import kpatch
from kpatch.names import softmaxes

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


class Own(layers.Layer):
    """As users write it, and T5 of keras_hub: a function computes the softmax."""

    def build(self, shape):
        self.num_heads = 4
        self.projection = layers.Dense(24, name="projection")
        self.projection.build(shape)
        self.o_proj = layers.Dense(8, name="o_proj")
        self.o_proj.build(shape)
        self.gate = layers.Activation("softmax", name="gate")

    def call(self, x):
        q, k, v = self.qkv(x)
        return x + self.gate(self.o_proj(ops.reshape(self.attend(q, k, v), (-1, x.shape[1], 8))))

    qkv = Fused.qkv


def logits(q, k):
    return ops.einsum("btnh,bsnh->bnts", q, k)


def mixed(scores, v):
    return ops.einsum("bnts,bsnh->btnh", scores, v)


def in_batches(self, q, k, v):
    q, k, v = (ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, x.shape[1], 2)) for x in (q, k, v))
    heads = keras.ops.nn.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1)))) @ v
    return ops.transpose(ops.reshape(heads, (-1, 4, q.shape[1], 2)), (0, 2, 1, 3))


def in_branches(self, q, k, v):
    def inner():
        return renamed(logits(q, k), axis=-1)

    return mixed(inner() if q is not k else ops.nn.softmax(logits(q, k)), v)


def apart(q, k, v):
    return mixed(keras.activations.softmax(logits(q, k)), v)


GROUP = 1 if keras.backend.backend() == "numpy" else 2  # heads to a key; Keras cannot group them on numpy
WAYS = {  # methods of an `Own`
    "plain": lambda self, q, k, v: mixed(ops.softmax(logits(q, k)), v),
    "in_batches": in_batches,
    "in_branches": in_branches,
    "in_a_function": lambda self, q, k, v: apart(q, k, v),
    "fused": lambda self, q, k, v: ops.dot_product_attention(q, k, v, scale=1.0),
    "fused_grouped_masked": lambda self, q, k, v: ops.dot_product_attention(
        q, k[:, :, ::GROUP], v[:, :, ::GROUP], mask=MASK[:1, None], scale=1.0
    ),
    "fused_causal": lambda self, q, k, v: ops.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True),
}
MASKS = {"fused_grouped_masked": MASK[:1, None], "fused_causal": np.tril(np.ones((5, 5), bool))}


def of_way(way):
    return type("OwnAttention", (Own,), {"attend": way, "__module__": __name__})


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


@pytest.mark.parametrize("route", ["predict"] if keras.backend.backend() == "jax" else ROUTES)  # eager jax is slow
def test_softmax_by_a_function(route):
    """Layers call another function in the place of Keras's: these layers, in their own code, while the block lasts."""
    keras.utils.set_random_seed(3)
    kinds = {name: of_way(way) for name, way in WAYS.items()}
    own = {name: kind(name=name) for name, kind in kinds.items()}
    model = keras.Sequential([keras.Input((5, 8)), *own.values(), kinds["plain"](name="other")])
    plain = ROUTES[route](model)
    patch = "(plain|fused*|in_*).scores[:, 2] = 0"
    with kpatch.intervene(model, patch), kpatch.record(model, ["**.scores", "**.heads", "**.input"]) as edited:
        silenced = ROUTES[route](model)
    assert {name for name in edited if name.endswith("scores")} == {f"{name}.scores" for name in (*own, "other")}
    for name, layer in own.items():
        q, k, v = (host(x) for x in layer.qkv(ops.convert_to_tensor(edited[f"{name}.input"])))
        if "grouped" in name:
            k, v = (np.repeat(x[:, :, ::GROUP], GROUP, 2) for x in (k, v))
        scores = np.exp(np.where(MASKS.get(name, True), np.einsum("btnh,bsnh->bnts", q, k), -1e9))
        scores /= scores.sum(-1, keepdims=True)
        scores[:, 2] = 0
        heads = np.einsum("bnts,bsnh->btnh", scores, v)
        np.testing.assert_allclose(host(edited[f"{name}.scores"]), scores, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(host(edited[f"{name}.heads"]), heads, rtol=1e-4, atol=1e-6)
        assert not vars(layer).keys() & {"attend", "call"}
    assert host(edited["other.scores"])[:, 2].all()
    assert not np.allclose(silenced, plain, rtol=1e-6)
    assert np.array_equal(ROUTES[route](model), plain)


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


class OtherAttention(layers.Layer):
    """Attends without a softmax of Keras."""

    def call(self, x):
        weights = ops.exp(x @ ops.transpose(x, (0, 2, 1)))
        return weights @ x


class TwiceAttention(layers.Layer):
    def _first(self, x):
        return ops.softmax(x)

    def _second(self, x):
        return keras.activations.softmax(x)

    def call(self, x):
        return self._second(self._first(x))


def message(function, *args):
    with pytest.raises(kpatch.PatchError) as caught:
        function(*args)
    return str(caught.value)


def test_errors():
    inputs = keras.Input((5, 8))
    x = layers.Dense(8, name="dense")(OtherAttention(name="single")(TwiceAttention(name="twice")(inputs)))
    x = layers.MultiHeadAttention(4, 2, name="one")(x, x)
    model = keras.Model(inputs, layers.MultiHeadAttention(4, 2, name="two")(x, x))
    assert message(kpatch.intervene, model, "single.scores[:, 0] = 0") == (
        "'single', a OtherAttention, has no 'scores': it calls no softmax of Keras\n"
        "  line 1, column 1\n    single.scores[:, 0] = 0\n    ^^^^^^^^^^^^^"
    )
    assert message(kpatch.record, model, "single.heads").splitlines()[0] == (
        "'single', a OtherAttention, has no 'heads': it projects no heads"
    )
    assert message(kpatch.record, model, "twice.scores").splitlines()[0] == (
        "'twice', a TwiceAttention, has no 'scores': it computes several softmaxes, in '_first' and '_second'"
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


def test_of_a_layer_that_is_handed_in():
    """Its scores alone, as its output alone."""
    mha = layers.MultiHeadAttention(4, 2)
    mha(X, X)
    with kpatch.intervene(mha, "scores[:, 2] = 0"), kpatch.record(mha, ["scores", "heads", "output"]) as edited:
        output = host(mha(X, X))
    assert host(edited["scores"]).any((0, 2, 3)).tolist() == [True, True, False, True]
    assert host(edited["heads"]).any((0, 1, 3)).tolist() == [True, True, False, True]
    assert np.array_equal(host(edited["output"]), output)
    assert kpatch.show(mha, activations=True).paths[:3] == ("output", "scores", "heads")
    assert message(kpatch.record, mha.query_dense, "scores").splitlines()[0] == "no variable 'scores'"


@pytest.mark.backend_free
def test_the_copy_of_a_method():
    """dynamo caches by code objects, and reads globals of the module that they name: it would mix the two up."""
    method = WAYS["in_a_function"]
    copy = softmaxes.copy_of(method, lambda function: None)
    assert copy.__code__ is not method.__code__
    assert "__name__" not in copy.__globals__
    assert copy.__globals__["apart"].__globals__["keras"].activations.softmax is None
    assert keras.activations.softmax is not None
    assert softmaxes.copy_of(logits, lambda function: None) is logits
