"""Architectures of keras_hub, with random weights: read, put into another run, ablated, steered while they generate."""

import keras
import numpy as np
import pytest
from keras import ops

import kpatch

BACKEND = keras.backend.backend()
BLOCK = {"num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
TEXT = {"vocabulary_size": 20, **BLOCK}
GROUPED = {"num_query_heads": 2, "num_key_value_heads": 1}
TOKENS = np.array([[[1, 5, 7, 2], [3, 4, 9, 9]], [[8, 8, 6, 1], [2, 7, 0, 11]]])
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 32, 32, 3)).astype("float32")


def tokens(number, *more):
    ones = np.ones_like(TOKENS[number])
    return {"token_ids": TOKENS[number], "padding_mask": ones, **dict.fromkeys(more, 0 * ones)}


def hub(name, **config):
    return getattr(pytest.importorskip("keras_hub").models, name)(**config)


# A model, its input in two runs, and the attention that loses a head.
ARCHITECTURES = {
    "BERT": (
        lambda: hub("BertBackbone", **TEXT, num_heads=2, max_sequence_length=4),
        lambda run: tokens(run, "segment_ids"),
        "transformer_layer_1.self_attention_layer",
    ),
    "GPT-2": (
        lambda: hub("GPT2Backbone", **TEXT, num_heads=2, max_sequence_length=4),
        tokens,
        "transformer_layer_1.self_attention",
    ),
    "Llama": (lambda: hub("LlamaBackbone", **TEXT, **GROUPED), tokens, "transformer_layer_1.self_attention"),
    "Gemma": (lambda: hub("GemmaBackbone", **TEXT, **GROUPED, head_dim=4), tokens, "decoder_block_1.attention"),
    "T5": (
        lambda: hub("T5Backbone", **TEXT, num_heads=2, key_value_dim=4),
        lambda run: {f"{side}_{key}": x for side in ("encoder", "decoder") for key, x in tokens(run).items()},
        "transformer_decoder_layer_1.self_attention",
    ),
    "ViT": (
        lambda: hub(
            "ViTBackbone", num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, image_shape=(32, 32, 3), patch_size=16
        ),
        lambda run: IMAGES[run],
        "transformer_block_2.mha",
    ),
}


def host(x):
    return [np.array(ops.convert_to_numpy(each)) for each in keras.tree.flatten(x)]


def same(some, others):
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


# On jax some: each block compiles each operation anew there.
@pytest.mark.parametrize("name", ["GPT-2", "Llama"] if BACKEND == "jax" else ARCHITECTURES)
def test_an_architecture(name):
    """All activations of one run, put into another, give the first one's output; a head that is ablated is missed."""
    make, data, attention = ARCHITECTURES[name]
    keras.utils.set_random_seed(2)
    model = make()
    with kpatch.record(model, "**.output") as clean:
        first = host(model(data(0)))
    second = host(model(data(1)))
    assert not same(first, second)
    once = [path for path in clean if not isinstance(clean[path], list) and not path.startswith("output")]
    assert len(once) > 20
    with kpatch.intervene(model, "; ".join(f"{path} = $clean._" for path in once), clean=clean):
        assert same(host(model(data(1))), first)
    with kpatch.intervene(model, f"{attention}.scores[:, 1] = 0"), kpatch.record(model, f"{attention}.heads") as edited:
        ablated = host(model(data(1)))
    assert not same(ablated, second)
    assert host(edited[f"{attention}.heads"])[0].any((0, 1, 3)).tolist() == [True, False]
    assert same(host(model(data(1))), second)


@pytest.mark.backend_free
def test_generate_with_a_cache():
    """Scores of each step, and a tuple of caches for each layer. keras_hub itself fails without the images."""
    config = {"image_size": 16, "vision_encoder": None, "head_dim": 4}
    lm = hub("Gemma3CausalLM", backbone=hub("Gemma3Backbone", **TEXT, **GROUPED, **config), preprocessor=None)
    lm.compile(sampler="greedy")
    empty = {"images": np.zeros((2, 0, 16, 16, 3)), "vision_indices": np.zeros((2, 0), int)}
    prompt = {**tokens(0), **empty, "vision_mask": 0 * TOKENS[0]}
    prompt["padding_mask"] = np.array([[1, 1, 0, 0]] * 2)
    before = lm.generate(dict(prompt), stop_token_ids=None)["token_ids"]
    steering = kpatch.intervene(lm, "decoder_block_1.output[..., :] += $v", v=np.arange(8.0))
    with steering, kpatch.record(lm, "decoder_block_0.attention.scores") as steps:
        steered = lm.generate(dict(prompt), stop_token_ids=None)["token_ids"]
    scores = steps["decoder_block_0.attention.scores"]
    assert [each.shape for each in scores] == [(2, 2, 4, 4), (2, 2, 1, 4), (2, 2, 1, 4)]
    assert not np.array_equal(steered, before)
    assert np.array_equal(lm.generate(dict(prompt), stop_token_ids=None)["token_ids"], before)
