"""Architectures of keras_hub, with random weights: read, put into another run, ablated, steered while they generate."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from hub import here, keras_hub
from keras import ops

import kpatch

BLOCK = {"num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
TEXT = {"vocabulary_size": 20, **BLOCK}
GROUPED = {"num_query_heads": 2, "num_key_value_heads": 1}
GEMMA3 = {**TEXT, **GROUPED, "head_dim": 4, "image_size": 16, "vision_encoder": None}
POSITIONS = {**TEXT, "num_heads": 2, "max_sequence_length": 4}
TOKENS = np.array([[[1, 5, 7, 2], [3, 4, 9, 9]], [[8, 8, 6, 1], [2, 7, 0, 11]]])
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 32, 32, 3)).astype("float32")


def tokens(number, *more):
    ones = np.ones_like(TOKENS[number])
    return {"token_ids": TOKENS[number], "padding_mask": ones, **dict.fromkeys(more, 0 * ones)}


def hub(name, **config):
    return getattr(keras_hub().models, name)(**config)


class Architecture(NamedTuple):
    """One that stands for a kind.

    Attributes:
        data: the input of a run, by its number.
        attention: the layer that loses its second head, or if there is none the one that loses a channel.
    """

    kind: str
    make: object
    data: object
    attention: str


ARCHITECTURES = {
    "BERT": Architecture(
        "an encoder: attention of Keras, two outputs, a segment beside each token",
        lambda: hub("BertBackbone", **POSITIONS),
        lambda run: tokens(run, "segment_ids"),
        "transformer_layer_1.self_attention_layer",
    ),
    "GPT-2": Architecture(
        "a decoder of keras_hub's `TransformerDecoder`, as OPT, BART and Whisper: positions are learnt",
        lambda: hub("GPT2Backbone", **POSITIONS),
        tokens,
        "transformer_layer_1.self_attention",
    ),
    "Llama": Architecture(
        "a decoder with attention of its own, as Mistral, Qwen and Phi-3: positions turn, heads share keys",
        lambda: hub("LlamaBackbone", **TEXT, **GROUPED),
        tokens,
        "transformer_layer_1.self_attention",
    ),
    "Gemma": Architecture(
        "scores in groups of heads, of five axes",
        lambda: hub("GemmaBackbone", **TEXT, **GROUPED, head_dim=4),
        tokens,
        "decoder_block_1.attention",
    ),
    "Gemma 3": Architecture(
        "layers that see a window, and norms of queries and keys",
        lambda: hub("Gemma3Backbone", **GEMMA3),
        tokens,
        "decoder_block_1.attention",
    ),
    "T5": Architecture(
        "an encoder and a decoder: a function computes the softmax, and an embedding is called twice",
        lambda: hub("T5Backbone", **TEXT, num_heads=2, key_value_dim=4),
        lambda run: {f"{side}_{key}": x for side in ("encoder", "decoder") for key, x in tokens(run).items()},
        "transformer_decoder_layer_1.self_attention",
    ),
    "ViT": Architecture(
        "images in patches, and blocks of Keras's layers",
        lambda: hub(
            "ViTBackbone", num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, image_shape=(32, 32, 3), patch_size=16
        ),
        lambda run: IMAGES[run],
        "transformer_block_2.mha",
    ),
    "MobileNetV2": Architecture(
        "convolutions, of Keras itself: 153 layers, of which none is nested",
        lambda: keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classifier_activation=None),
        lambda run: IMAGES[run],
        "block_16_project",
    ),
}


def host(x):
    return [np.array(ops.convert_to_numpy(each)) for each in keras.tree.flatten(x)]


def same(some, others):
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("name", here(ARCHITECTURES, ["Llama"]))
def test_an_architecture(name):
    """All activations of one run, put into another, give the first one's output; a head that is ablated is missed."""
    _, make, data, attention = ARCHITECTURES[name]
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
    ablation, seen = f"{attention}.scores[:, 1] = 0", f"{attention}.heads"
    if name == "MobileNetV2":
        ablation, seen = f"{attention}.output[..., 1] = 0", f"{attention}.output"
    with kpatch.intervene(model, ablation), kpatch.record(model, seen) as edited:
        ablated = host(model(data(1)))
    assert not same(ablated, second)
    values = host(edited[seen])[0]
    axis = 2 if seen.endswith("heads") else -1
    kept = values.any(tuple(each for each in range(values.ndim) if each != axis % values.ndim))
    assert kept.tolist() == [each != 1 for each in range(len(kept))]
    assert same(host(model(data(1))), second)


# A language model by its class, and those of its backbone; its blocks and the last norm; the shape of scores.
GENERATE = {
    "GPT-2": ("GPT2", POSITIONS, "transformer_layer", "self_attention", "layer_norm"),
    "Llama": ("Llama", {**TEXT, **GROUPED}, "transformer_layer", "self_attention", "sequence_output_layernorm"),
    "Gemma": ("Gemma", {**TEXT, **GROUPED, "head_dim": 4}, "decoder_block", "attention", "final_normalization"),
    "Gemma 3": ("Gemma3", GEMMA3, "decoder_block", "attention", "final_normalization"),
}


@pytest.mark.parametrize("name", here(GENERATE, ["GPT-2"]))
def test_generate_with_a_cache(name):
    """Every token is steered, none after the block; scores of each step, over all keys that the cache has room for."""
    family, config, block, attention, norm = GENERATE[name]
    keras.utils.set_random_seed(2)
    lm = hub(f"{family}CausalLM", backbone=hub(f"{family}Backbone", **config), preprocessor=None)
    lm.compile(sampler="greedy")
    prompt = {**tokens(0), "padding_mask": np.array([[1, 1, 0, 0]] * 2)}
    if name == "Gemma 3":  # keras_hub itself fails without the images
        prompt |= {"images": np.zeros((2, 0, 16, 16, 3)), "vision_indices": np.zeros((2, 0), int)}
        prompt["vision_mask"] = 0 * TOKENS[0]

    def generate():
        return lm.generate(dict(prompt), stop_token_ids=None)["token_ids"]

    before = generate()
    [logits] = host(lm.backbone.token_embedding(ops.arange(8.0), reverse=True))
    sign = 1 if logits.argmax() not in before[:, 2:] else -1  # so that another token results
    scores = f"{block}_0.{attention}.scores"
    with kpatch.intervene(lm, f"{norm}.output = $v", v=sign * np.arange(8.0)), kpatch.record(lm, scores) as steps:
        steered = generate()
    assert np.array_equal(steered, np.where([1, 1, 0, 0], TOKENS[0], (sign * logits).argmax()))
    assert not np.array_equal(steered, before)
    assert [tuple(each.shape) for each in steps[scores]] == [(2, 2, 4, 4), (2, 2, 1, 4), (2, 2, 1, 4)]
    assert np.array_equal(generate(), before)
