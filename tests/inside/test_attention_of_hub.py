"""`att.scores` and `att.heads` of each class of attention in Keras and keras_hub: recorded, edited and put back."""

import importlib

import keras
import numpy as np
import pytest
from hub import here, keras_hub
from keras import layers, ops

import kpatch

keras_hub()

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 8)).astype("float32")
IMAGE = RANDOM.normal(size=(2, 2, 3, 8)).astype("float32")
QKV = RANDOM.normal(size=(3, 2, 4, 5, 2)).astype("float32")
RELATIVE = RANDOM.normal(size=(1, 8, 8)).astype("float32")
MASK = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
BIAS = RANDOM.normal(size=(2, 4, 5, 5)).astype("float32")
ONES, ZEROS = np.ones((2, 5), bool), np.zeros((2, 5), bool)
UNTURNED = np.ones((5, 4), "float32"), np.zeros((5, 4), "float32")  # cosines and sines
FLAT = np.ones((1, 1, 6, 4), "float32"), np.zeros((1, 1, 6, 4), "float32")
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
GEMMA = {"head_dim": 4, **GROUPED}
T5GEMMA = dict.fromkeys(("query_pre_attn_scalar", "num_attention_heads", "head_dim"), 4)
T5GEMMA |= {"hidden_size": 8, "num_key_value_heads": 2, "attention_bias": False}
SMOL = (8, 4, 2, False, 0.0, [True], ["full_attention"], 0)
CHANNELS = {"channel_axis": -1, "data_format": "channels_last"}


class Case:
    """A class by its module and name, its arguments, and what a layer of it is called with.

    Attributes:
        scores: the shape of its scores; the heads are on axis 1.
        heads: whether it has `heads`, too.
    """

    def __init__(self, path, *args, call=(X,), build=None, scores=(2, 4, 5, 5), has_heads=True, called=None, **kwargs):
        self.path, self.args, self.kwargs, self.shape = path, args, kwargs, build
        self.call, self.called = call, called or {}
        self.scores, self.heads = scores, has_heads

    def layer(self):
        module, _, name = self.path.rpartition(".")
        found = importlib.import_module(f"keras_hub.src.models.{module}") if module else layers
        layer = getattr(found, name)(*self.args, **self.kwargs)
        if self.shape is not None:
            layer.build(self.shape)
        return layer


def masked(path, *args, mask="attention_mask", value=MASK, **kwargs):
    return Case(path, *args, called={mask: value}, **kwargs)


BY_A_FUNCTION = [
    Case("Attention", call=([X, X],), scores=(2, 5, 5), has_heads=False),
    Case("AdditiveAttention", call=([X, X],), called={"use_causal_mask": True}, scores=(2, 5, 5), has_heads=False),
    masked("t5.t5_multi_head_attention.T5MultiHeadAttention", True, 8, 2, 4, 0.0, True, mask="mask"),
    Case("d_fine.d_fine_attention.DFineMultiheadAttention", 8, 4),
    Case("gemma3.gemma3_vision_encoder.Gemma3VisionAttention", 8, 4),
    Case("gemma3n.gemma3n_attention.Gemma3nTextAttention", 8, 4, 2, 4, 0.0, False, 1e-6, call=(X, MASK)),
    Case(
        "gemma3n.gemma3n_attention.Gemma3nAudioAttention",
        *(8, 4, 2, 0, 3, 50.0),
        call=(X, ZEROS),
        scores=(2, 4, 3, 2, 4),
        has_heads=False,
    ),
    Case(
        "gemma4.gemma4_audio_encoder.Gemma4AudioAttention",
        *(8, 4, 2, 3, 0),
        call=(X, ONES, np.ones((2, 4), bool)),
        scores=(2, 4, 3, 2, 4),
        has_heads=False,
    ),
    masked("gpt_oss.gpt_oss_attention.GptOssAttention", **GROUPED, scores=(2, 4, 5, 6)),
    Case("mit.mit_layers.SegFormerMultiheadAttention", 8, 4, 1, call=(X[:, :4],), scores=(2, 4, 4, 4)),
    Case(
        "mobilenetv5.mobilenetv5_attention.MultiQueryAttention2d",
        *(8, 4),
        **CHANNELS,
        call=(IMAGE,),
        scores=(2, 4, 6, 6),
        has_heads=False,
    ),
    Case(
        "mobilenetv5.mobilenetv5_attention.Attention2d",
        *(8, 4),
        **CHANNELS,
        call=(IMAGE,),
        scores=(2, 4, 6, 6),
        has_heads=False,
    ),
    Case("pali_gemma.pali_gemma_vit.PaliGemmaVitAttention", 8, 4),
    Case("qwen3_5.qwen3_5_vision_encoder.Qwen3_5VisionAttention", 8, 2, call=(X[0], UNTURNED), scores=(1, 2, 5, 5)),
    Case("sam.sam_layers.MultiHeadAttentionWithDownsampling", 4, 2, call=(X, X, X)),
    Case(
        "swin_transformer.swin_transformer_layers.WindowAttention", 8, 4, None, 2, call=(X[:, :4],), scores=(2, 4, 4, 4)
    ),
    masked("video_prism.video_prism_layers.VideoPrismAttention", 4, 2, 8, call=(X, X), value=ONES),
    Case("vit_det.vit_layers.MultiHeadAttentionWithRelativePE", 4, 2, call=(IMAGE,), scores=(2, 4, 6, 6)),
    Case("flux.flux_maths.FluxRoPEAttention", call=(*QKV, np.ones((2, 5, 1, 2), "float32")), has_heads=False),
    Case("dinov3.dinov3_layers.DINOV3Attention", 8, 4),
    masked("roformer_v2.roformer_v2_attention.RoformerAttention", 4, 2, value=ONES),
    masked("esm.esm_attention.EsmSelfAttention", heads=4, head_size=2, value=ONES),
    masked("sam3.sam3_layers.SAM3Attention", 8, 4, call=(X, X, X), value=MASK[:, None]),
    masked("sam3.sam3_layers.SAM3Attention", 8, 4, call=(X, X, X), mask="attention_bias", value=BIAS),
    Case("sam3.sam3_layers.SAM3RoPEAttention", 8, 2, call=(IMAGE, FLAT), scores=(2, 2, 6, 6)),
]
BY_A_LAYER = [
    masked("bloom.bloom_attention.BloomAttention", 4),
    masked("deberta_v3.disentangled_self_attention.DisentangledSelfAttention", 4, 8, 8, 4, call=(X, RELATIVE)),
    masked("falcon.falcon_attention.FalconAttention", 4, 0.0, call=(X, np.zeros((2, 4, 1, 5), "float32"))),
    masked("gemma.gemma_attention.CachedGemmaAttention", **GEMMA),
    masked("gemma3.gemma3_attention.CachedGemma3Attention", **GEMMA),
    masked("gemma4.gemma4_attention.Gemma4TextAttention", **GEMMA),
    masked("gpt_neo_x.gpt_neo_x_attention.GPTNeoXAttention", 2, 8, rotary_percentage=1.0, scores=(2, 2, 5, 5)),
    masked("llama.llama_attention.LlamaAttention", **GROUPED),
    masked("mistral.mistral_attention.CachedMistralAttention", **GROUPED),
    masked("mixtral.mixtral_attention.CachedMixtralAttention", **GROUPED),
    masked("phi3.phi3_attention.Phi3Attention", **GROUPED),
    masked("qwen.qwen_attention.QwenAttention", **GROUPED),
    masked("qwen_moe.qwen_moe_attention.QwenMoeAttention", **GROUPED),
    masked("qwen3.qwen3_attention.Qwen3Attention", **GEMMA),
    masked("qwen3_5.qwen3_5_attention.Qwen3_5Attention", **GEMMA, partial_rotary_factor=1.0),
    masked("qwen3_moe.qwen3_moe_attention.Qwen3MoeAttention", **GEMMA),
    masked("smollm3.smollm3_layers.SmolLM3Attention", *SMOL, build=[X.shape]),
    Case("t5gemma.t5gemma_attention.T5GemmaAttention", **T5GEMMA),
    Case("t5gemma2.t5gemma2_attention.T5Gemma2Attention", **T5GEMMA),
    Case(
        "t5gemma2.t5gemma2_attention.T5Gemma2MergedAttention",
        **T5GEMMA,
        build=[X.shape],
        call=(X, X),
        scores=(2, 4, 5, 10),
    ),
    Case("vae.vae_layers.Conv2DMultiHeadAttention", 8, 4, call=(IMAGE,), scores=(2, 6, 6), has_heads=False),
    Case("whisper.whisper_cached_multi_head_attention.WhisperCachedMultiHeadAttention", 4, 2, call=(X, X)),
]


def run(layer, case):
    output = layer(*case.call, **case.called)
    return host(output[0] if isinstance(output, (list, tuple)) else output)


def host(x):
    return np.array(ops.convert_to_numpy(x))


# A function in the layer's own method; in a function of its module; `dot_product_attention`; heads in the batch.
ON_JAX = ("T5MultiHeadAttention", "FluxRoPEAttention", "SAM3Attention", "MultiHeadAttentionWithRelativePE")
BY_A_FUNCTION = here(BY_A_FUNCTION, [case for case in BY_A_FUNCTION if case.path.endswith(ON_JAX)])


@pytest.mark.parametrize("case", BY_A_FUNCTION, ids=lambda case: case.path.split(".")[-1])
def test_softmax_by_a_function(case):
    if case.path.endswith("RoformerAttention") and keras.backend.backend() == "numpy":
        pytest.skip("keras_hub's RoFormer does not run on numpy")
    holds(case)


@pytest.mark.parametrize(
    "case",
    here(BY_A_LAYER, [case for case in BY_A_LAYER if case.path.endswith("LlamaAttention")]),
    ids=lambda case: case.path.split(".")[-1],
)
def test_softmax_by_a_layer(case):
    holds(case)


def holds(case):
    """The layer gives the same in a block that sees its scores, and they are what an edit of them silences."""
    keras.utils.set_random_seed(1)
    layer = case.layer()
    plain = run(layer, case)
    with kpatch.record(layer, "scores") as clean:
        unfused = run(layer, case)
    np.testing.assert_allclose(unfused, plain, rtol=1e-4, atol=1e-5)
    scores = host(clean["scores"])
    assert scores.shape == case.scores
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    patch = "scores = $clean._; scores[:, 1] = 0"
    with (
        kpatch.intervene(layer, patch, clean=clean),
        kpatch.record(layer, ["scores", *["heads"] * case.heads]) as edited,
    ):
        silenced = run(layer, case)
    scores[:, 1] = 0
    assert np.array_equal(host(edited["scores"]), scores)
    assert not np.allclose(silenced, unfused)
    if case.heads:
        heads = host(edited["heads"])
        assert heads.shape[:3] == (scores.shape[0], scores.shape[2], scores.shape[1])
        assert [head for head in range(heads.shape[2]) if not heads[:, :, head].any()] == [1]
    assert np.array_equal(run(layer, case), plain)


SMOL_CACHE = {
    "self_attention_cache": np.zeros((2, 2, 5, 2, 2), "float32"),
    "self_attention_cache_update_index": np.array(0),
}
FIRST_ALONE = [
    masked("llama.llama_attention.LlamaAttention", **GROUPED),  # asked for no cache, it gives one tensor
    Case("smollm3.smollm3_layers.SmolLM3Attention", *SMOL, build=[X.shape], called=SMOL_CACHE),
    Case("pali_gemma.pali_gemma_vit.PaliGemmaVitAttention", 8, 4),
    Case("d_fine.d_fine_attention.DFineMultiheadAttention", 8, 4, called={"output_attentions": True}),
    Case("gemma4.gemma4_attention.Gemma4VisionAttention", **GEMMA),
]


@pytest.mark.parametrize("case", here(FIRST_ALONE, FIRST_ALONE[:1]), ids=lambda case: case.path.split(".")[-1])
def test_the_output_alone_is_the_first_tensor(case):
    layer = case.layer()
    run(layer, case)
    with kpatch.intervene(layer, "output = 3"):
        assert (run(layer, case) == 3).all()
