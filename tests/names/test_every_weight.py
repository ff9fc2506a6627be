"""Each layer of Keras and keras_hub that overrides how a weight is used, edited by one patch.

What the model predicts is what the plain layer predicts, made by hand with the weights that kpatch reads. The live edit
is the edit of the saved file, and `undo()` restores every bit.
"""

import keras
import numpy as np
import pytest
from hub import keras_hub
from keras import layers, ops

import kpatch
from kpatch import checkpoint
from kpatch.values.tensors import to_numpy

try:
    from keras.quantizers import Int4QuantizationConfig
except ImportError:
    pytest.skip("this Keras has no quantisation configs", allow_module_level=True)

MODES = {
    "int8": lambda layer: quantize(layer, "int8"),
    "int4": lambda layer: quantize(layer, "int4", Int4QuantizationConfig(block_size=-1)),
    "int4 in blocks": lambda layer: quantize(layer, "int4", Int4QuantizationConfig(block_size=4)),
    "float8": lambda layer: quantize(layer, "float8"),
    "LoRA": lambda layer: hasattr(layer, "enable_lora") and layer.enable_lora(2),
    "plain": lambda layer: None,
}


def quantize(layer, mode, config=None):
    if type(layer).quantize is not layers.Layer.quantize:
        layer.quantize(mode, type_check=False, config=config)


def units(*shape):
    return np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)


def reversed_of(embedding):
    """A model that embeds, and takes the reverse of the embedding, as language models do."""
    tokens = keras.Input((3,), dtype="int32")
    return keras.Model(tokens, [embedding(tokens), embedding(keras.ops.one_hot(tokens, 6), reverse=True)])


def sequential(make, *shape, dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), make()], name="m")


def attention():
    x = keras.Input((2, 4))
    return keras.Model(x, layers.MultiHeadAttention(2, 3, name="d")(x, x))


def hub_embedding():
    return reversed_of(keras_hub().layers.ReversibleEmbedding(7, 6, tie_weights=False, name="d"))


TOKENS = np.arange(6, dtype="int32").reshape(2, 3)
LAYERS = {  # a model with the layer `d`, an input, and the modes
    "Dense": (lambda: sequential(lambda: layers.Dense(5, name="d"), 6), units(6), "int8 int4 blocks float8 LoRA"),
    "EinsumDense": (
        lambda: sequential(lambda: layers.EinsumDense("abc,cde->abde", (2, 3, 5), bias_axes="e", name="d"), 2, 6),
        units(2, 6),
        "int4 LoRA",
    ),
    "Embedding": (
        lambda: sequential(lambda: layers.Embedding(7, 5, name="d"), 3, dtype="int32"),
        TOKENS,
        "int8 blocks LoRA",
    ),
    "ReversibleEmbedding": (
        lambda: reversed_of(layers.ReversibleEmbedding(7, 6, name="d")),
        TOKENS,
        "int8 LoRA",
    ),
    "keras_hub's": (hub_embedding, TOKENS, "int4"),
    "Conv1D": (lambda: sequential(lambda: layers.Conv1D(4, 2, name="d"), 6, 3), units(6, 3), "LoRA"),
    "MultiHeadAttention": (attention, np.ones((1, 2, 4), "float32"), "int8"),
    "SpectralNormalization": (
        lambda: sequential(lambda: layers.SpectralNormalization(layers.Dense(3, name="d"), name="sn"), 4),
        units(4),
        "plain",
    ),
    "Normalization": (
        lambda: sequential(lambda: layers.Normalization(name="d", mean=None), 4),
        units(4),
        "plain",
    ),
    "mixed precision": (
        lambda: sequential(lambda: layers.Dense(5, name="d", dtype="mixed_bfloat16"), 6),
        units(6),
        "int8 LoRA",
    ),
}
KINDS = [
    (kind, next(mode for mode in MODES if word in mode))
    for kind, (*_, modes) in LAYERS.items()
    for word in modes.split()
]


def built(kind, mode):
    """A model with random weights, in a mode; the factors of LoRA are not zero."""
    keras.utils.clear_session(free_memory=False)
    model, rng = LAYERS[kind][0](), np.random.default_rng(0)
    for variable in model.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(rng.uniform(0.2, 1, variable.shape) * rng.choice([-1, 1], variable.shape))
    if kind == "Normalization":
        model.layers[0].adapt(rng.normal(size=(8, 4)).astype("float32") + 1)
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.Model):
            MODES[mode](layer)
    for variable in model.weights:
        if "lora" in variable.name:
            variable.assign(rng.normal(size=variable.shape) / 2)
        elif mode == "float8" and variable.name == "kernel_scale":
            variable.assign(0.01)
    model.run_eagerly = mode != "plain"  # to compile each takes long
    return model


def predicted(model, kind, predict=False):
    found = model.predict(LAYERS[kind][1], verbose=0) if predict else model(LAYERS[kind][1])
    found = keras.tree.map_structure(to_numpy, found)
    return [np.array(part, "float32") for part in (found if isinstance(found, list) else [found])]


def stored(model):
    return [to_numpy(variable.value).tobytes() for variable in model.variables]


def weights(model):
    """What kpatch reads, by name."""
    return {
        row.path: to_numpy(kpatch.edit(ops.zeros(row.shape), f"_ = $m.{row.path}", m=model)).astype("float32")
        for row in kpatch.plan(model, "** = 0").rows
        if row.shape
    }


def by_hand(model, kind):
    """The plain model with the weights that kpatch reads of another one."""
    plain = built(kind, "plain")
    read = weights(model)
    for name, weight in read.items():
        [step] = kpatch.plan(plain, f"{name} = 0").edits
        step.place.variable.assign(weight)
    for layer in plain.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()
    return predicted(plain, kind)


ROUNDED = {  # what the layer rounds beside its weights: biases and activations
    "float8": 5e-3,
    "mixed precision": 2e-2,
    ("MultiHeadAttention", "int8"): 2e-2,
}
TEXT = "**[abs(_) < 0.4] = 0; **[0] *= 0.5"


@pytest.mark.parametrize(("kind", "mode"), KINDS, ids=lambda part: part)
def test_an_edit_is_what_the_model_computes_with(kind, mode, tmp_path):
    model = built(kind, mode)
    digits = {"atol": ROUNDED.get((kind, mode), ROUNDED.get(kind, ROUNDED.get(mode, 2e-5)))}
    start, before, read = stored(model), predicted(model, kind, True), weights(model)
    for found, expected in zip(before, by_hand(model, kind), strict=True):
        np.testing.assert_allclose(found, expected, **digits)
    model.save(tmp_path / "a.keras")

    text = TEXT.replace("**", "d.(mean|variance)") if kind == "Normalization" else TEXT
    applied = kpatch.apply(model, text)
    after = predicted(model, kind, True)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    for found, expected in zip(after, by_hand(model, kind), strict=True):
        np.testing.assert_allclose(found, expected, **digits)
    for name, weight in weights(model).items():
        wanted = np.where(abs(read[name]) < 0.4, 0, read[name])
        wanted[0] *= 0.5
        step = 0 if mode in ("plain", "LoRA") and kind != "mixed precision" else 0.12 if "int4" in mode else 0.04
        np.testing.assert_allclose(weight, wanted, atol=max(step, 1e-6), err_msg=name)

    edited = stored(model)
    applied.undo()
    assert stored(model) == start
    for found, expected in zip(predicted(model, kind, True), before, strict=True):
        np.testing.assert_array_equal(found, expected)

    if kind == "MultiHeadAttention" and mode != "plain":
        return  # Keras 3.15.1 cannot load what it saves of these
    checkpoint.apply(tmp_path / "a.keras", text, tmp_path / "b.keras")
    loaded = keras.saving.load_model(tmp_path / "b.keras")
    if mode != "LoRA":  # of which the file holds the sum
        assert sorted(stored(loaded)) == sorted(edited)  # in another order, if Keras makes variables as it loads
    for found, expected in zip(predicted(loaded, kind), after, strict=True):
        np.testing.assert_allclose(found, expected, **digits)
