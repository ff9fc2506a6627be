"""Weights that layers store as something else: quantised, under LoRA; and tensors that layers derive from variables.

The oracle knows nothing of kpatch: Keras's own layer says what a weight is, NumPy edits it, and of all codes the one
whose weight is nearest is looked for. It gives the same codes on every backend.
"""

import inspect

import keras
import ml_dtypes
import numpy as np
import pytest
import test_atomic
from keras import layers, ops

import kpatch
import kpatch.layers
from kpatch import checkpoint
from kpatch.run import encoding

try:
    from keras.quantizers import Int4QuantizationConfig, Int8QuantizationConfig
except ImportError:
    pytest.skip("this Keras has no quantisation configs", allow_module_level=True)

BLOCKS = Int4QuantizationConfig(block_size=4)
ROWS = Int4QuantizationConfig(block_size=-1)
MODES = {"int8": ("int8", None), "int4": ("int4", ROWS), "int4 in blocks": ("int4", BLOCKS)}
LIMITS = {"int8": (-127, 127), "int4": (-8, 7), "int4 in blocks": (-8, 7)}
LAYERS = {
    "dense": ((6,), lambda: layers.Dense(5, name="d")),
    "einsum": ((4, 6), lambda: layers.EinsumDense("abc,cd->abd", (4, 5), name="d")),
    "transposed": ((4, 6), lambda: layers.EinsumDense("abc,dc->abd", (4, 5), name="d")),
    "query": ((2, 6), lambda: layers.EinsumDense("abc,cde->abde", (2, 3, 5), name="d")),
    "output": ((2, 3, 5), lambda: layers.EinsumDense("abcd,cde->abe", (2, 7), name="d")),
    "embedding": ((3,), lambda: layers.Embedding(7, 5, name="d")),
}
CASES = [(name, mode) for name in LAYERS for mode in MODES]


def values(x):
    return np.array(ops.convert_to_numpy(x))


def filled(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return model


def built(name="dense", mode=None, lora=False, seed=0):
    """A model of one layer, `d`."""
    shape, make = LAYERS[name]
    dtype = "int32" if name == "embedding" else None
    model = filled(keras.Sequential([keras.Input(shape, dtype=dtype), make()]), seed)
    layer = model.get_layer("d")
    if mode is not None:
        kind, config = MODES.get(mode, (mode, None))
        layer.quantize(kind, config=config)
    if lora:
        layer.enable_lora(2)
        rng = np.random.default_rng(seed + 1)
        for variable in layer.variables:
            if "lora" in variable.name:
                variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return model


def selector(model):
    return "d.embeddings" if isinstance(model.get_layer("d"), layers.Embedding) else "d.kernel"


def stored(model):
    """The bits of every variable."""
    return [values(v).tobytes() for v in model.variables]


def weight(model):
    """The weight, as kpatch reads it."""
    zeros = np.zeros(weight_shape(model.get_layer("d")), "float32")
    return values(kpatch.edit(zeros, f"_ = $m.{selector(model)}", m=model))


def weight_shape(layer):
    if isinstance(layer, layers.Embedding):
        return layer.input_dim, layer.output_dim
    if isinstance(layer, layers.Dense):
        return layer.input_spec.axes[-1], layer.units
    return tuple(getattr(layer, "original_kernel_shape", None) or layer._kernel.shape)


def response(model):
    """What the layer gives for each unit vector: all that its weight does."""
    layer = model.get_layer("d")
    if isinstance(layer, layers.Embedding):
        return values(layer(np.arange(layer.input_dim, dtype="int32")))
    shape = model.input_shape[1:]
    units = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    bias = 0.0 if layer.bias is None else values(layer.bias)
    return values(layer(units)) - bias


def responded(model, w):
    """The same, by NumPy, of a weight."""
    layer = model.get_layer("d")
    if isinstance(layer, layers.Embedding):
        return w
    shape = model.input_shape[1:]
    units = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    return units @ w if isinstance(layer, layers.Dense) else np.einsum(layer.equation, units, w)


def codes_of(layer):
    """The codes, one for each entry of the weight."""
    return values(layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel)


def store_codes(model, codes):
    variable, layer = stored_variable(model), model.get_layer("d")
    if layer.quantization_mode == "int4":
        codes = keras.quantizers.pack_int4(codes.reshape(variable.shape[0], -1), axis=-1)[0]
    variable.assign(codes)


def stored_variable(model):
    layer = model.get_layer("d")
    return layer._embeddings if isinstance(layer, layers.Embedding) else layer._kernel


def kernel_of(layer):
    """The weight of a quantised layer, by Keras's own formulas of its gradient."""
    from keras.src.quantizers.quantizers import dequantize_with_sz_map

    embedding = isinstance(layer, layers.Embedding)
    scale = layer.embeddings_scale if embedding else layer.kernel_scale
    if layer.quantization_mode == "int8" and isinstance(layer, layers.EinsumDense):
        scale = layer._adjust_scale_for_dequant(scale)
    codes, scale = codes_of(layer).astype("float32"), values(scale)  # divided by NumPy: XLA is wrong in the last bit
    flat = codes.reshape(layer._kernel.shape[0], -1) if not embedding and layer.quantization_mode == "int4" else codes
    if layer.quantization_mode == "int4" and layer._int4_block_size not in (None, -1):
        zero = layer.embeddings_zero if embedding else layer.kernel_zero
        made = values(
            dequantize_with_sz_map(ops.convert_to_tensor(flat), scale, zero, layer.g_idx, -1 if embedding else 0)
        )
    else:
        made = flat / (scale[:, None] if embedding else scale)
    return made.reshape(codes.shape)


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_weight_is_what_the_layer_computes_with(name, mode):
    model = built(name, mode)
    w = weight(model)
    np.testing.assert_array_equal(w, kernel_of(model.get_layer("d")))
    np.testing.assert_allclose(response(model), responded(model, w), atol=2e-6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_weight_under_lora(name, mode):
    if (name == "embedding" and mode not in (None, "int8")) or (name == "transposed" and mode is not None):
        pytest.skip("Keras cannot enable LoRA there, or not compute")
    model = built(name, mode, lora=True)
    np.testing.assert_allclose(response(model), responded(model, weight(model)), atol=5e-6)


def test_a_convolution_under_lora():
    model = filled(keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3, name="d")]))
    layer = model.get_layer("d")
    layer.enable_lora(2)
    layer.lora_kernel_a.assign(np.random.default_rng(1).normal(size=layer.lora_kernel_a.shape).astype("float32"))
    layer.lora_kernel_b.assign(np.ones((2, 4), "float32"))
    applied = kpatch.apply(model, "d.kernel[..., 0] = 2")
    np.testing.assert_allclose(values(layer.kernel)[..., 0], 2, rtol=1e-6)
    applied.undo()
    np.testing.assert_allclose(applied.writes[0].before, values(layer.kernel)[..., 0].ravel(), atol=1e-6)


def test_selections_read_what_the_whole_is():
    for mode in MODES:
        model = built("query", mode, lora=mode == "int8")
        w = weight(model)
        for index, of in (
            ("[1, 2, 3]", (1, 2, 3)),
            ("[::-2, 1]", np.s_[::-2, 1]),
            ("[[4, 0], [2, 1]]", ([4, 0], [2, 1])),
        ):
            found = values(kpatch.edit(np.zeros(w[of].shape, "float32"), f"_ = $m.d.kernel{index}", m=model))
            np.testing.assert_array_equal(found, w[of])


def test_float8():
    model = built(mode="float8")
    layer = model.get_layer("d")
    layer.bias.assign(np.zeros(5))  # which the layer rounds to bfloat16
    layer.kernel_scale.assign(0.01)
    expected = values(
        keras.quantizers.quantize_and_dequantize(layer._kernel, layer.kernel_scale, "float8_e4m3fn", "float32")
    )
    np.testing.assert_array_equal(weight(model), expected)
    before = stored(model)
    applied = kpatch.apply(model, "d.kernel[0, 1] = 0.1; d.kernel[abs(_) < 0.2] *= 2")
    assert (
        applied.writes[0].after == np.float32(0.1).astype("float32")
        or applied.writes[0].after != applied.writes[0].asked
    )
    np.testing.assert_allclose(response(model), responded(model, weight(model)), atol=1e-6)
    assert values(layer._kernel)[0, 1] == applied.writes[0].after * np.float32(2)
    applied.undo()
    assert stored(model) == before
    kpatch.apply(model, "d.kernel *= 100")
    assert values(layer.kernel_scale) == np.float32(np.abs(expected * 100).max() / 448)
    np.testing.assert_allclose(weight(model), expected * 100, rtol=0.07)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_float8_under_mixed_precision(compute):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="d", dtype=f"mixed_{compute}")])
    layer = filled(model).get_layer("d")
    layer.quantize("float8")
    layer.kernel_scale.assign(0.013)
    narrow = np.dtype(compute) if compute == "float16" else ml_dtypes.bfloat16
    scale = values(layer.kernel_scale).astype(narrow)
    codes = np.clip(values(layer._kernel).astype(narrow) / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    before = stored(model)
    with kpatch.apply(model, "d.kernel[0] *= 1.5") as applied:
        assert applied.writes[0].dtype == "float32"
    assert stored(model) == before
    w = values(kpatch.edit(np.zeros((64, 64), "float32"), "_ = $m.d.kernel", m=model))
    np.testing.assert_array_equal(w, (codes.astype(narrow) * scale).astype("float32"))
    rounded = keras.quantizers.quantize_and_dequantize(
        ops.cast(layer._kernel, compute), layer.kernel_scale, "float8_e4m3fn", compute
    )
    assert (w == values(ops.cast(rounded, "float32"))).mean() > 0.99  # XLA divides 16-bit floats in 32 bits


@pytest.mark.parametrize("name", LAYERS)
def test_rows_that_are_in_other_blocks(name):
    model = built(name, "int4 in blocks")
    layer = model.get_layer("d")
    where = np.array([1, 0, 1, 1, 0] * 8)[: layer.g_idx.shape[0]].astype("float32")
    layer.g_idx.assign(where)
    w = kernel_of(layer)
    np.testing.assert_array_equal(weight(model), w)
    np.testing.assert_allclose(response(model), responded(model, w), atol=1e-5)
    before = stored(model)
    index = (0,) * w.ndim
    applied = kpatch.apply(model, f"{selector(model)}[{', '.join('0' * w.ndim)}] *= 0.5; {selector(model)} *= 3")
    np.testing.assert_array_equal(weight(model), kernel_of(layer))
    halved = w.copy()
    halved[index] = applied.writes[0].after[0]
    np.testing.assert_allclose(weight(model), halved * 3, atol=3 * np.abs(w).max() / 7)
    applied.undo()
    assert stored(model) == before


def test_a_block_that_does_not_exist():
    model = built("dense", "int4 in blocks")
    with kpatch.apply(model, "d.g_idx[1] = 1"):
        assert weight(model)[1, 0] == kernel_of(model.get_layer("d"))[1, 0]
    kpatch.apply(model, "d.g_idx[1] = 2")
    with pytest.raises(kpatch.UnsupportedError) as info:
        kpatch.apply(model, "d.kernel[0, 0] = 0")
    assert info.value.message == "'d.kernel': a weight cannot be read: its 'g_idx' names block 2, and there are 2"


# Writing --------------------------------------------------------------------------------------------------------------

WITHIN = {  # patches that keep within the present scales, and what they do to an array
    "{}[0, 0] /= 2": lambda w: w.__setitem__((0, 0), w[0, 0] / np.float32(2)),
    "{}[1:3, ..., ::-2] *= 0.3": lambda w: w.__setitem__(np.s_[1:3, ..., ::-2], w[1:3, ..., ::-2] * np.float32(0.3)),
    "{}[[2, 0], 1] = 0": lambda w: w.__setitem__(([2, 0], 1), 0),
    "{}[abs(_) < 0.3] = 0": lambda w: w.__setitem__(np.abs(w) < 0.3, 0),
    "{}[_ > 0.4] *= 0.5": lambda w: w.__setitem__(w > 0.4, w[w > 0.4] * np.float32(0.5)),
    "{}[1, 1] /= 3": lambda w: w.__setitem__((1, 1), w[1, 1] / np.float32(3)),
}


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_write_stores_the_nearest_code(name, mode):
    model = built(name, mode)
    layer, start = model.get_layer("d"), stored(model)
    for text, edit in WITHIN.items():
        before, old = weight(model), codes_of(layer)
        expected = before.copy()
        edit(expected)
        with kpatch.apply(model, text.format(selector(model))):
            after, codes = weight(model), codes_of(layer)
            np.testing.assert_allclose(response(model), responded(model, after), atol=5e-6)
        assert stored(model) == start
        changed = expected != before
        np.testing.assert_array_equal(codes[~changed], old[~changed], err_msg=text)
        apart = np.abs(after.astype("float64") - expected)
        for step in (-1, 1):  # a neighbour is no nearer
            store_codes(model, np.clip(codes + step, *LIMITS[mode]).astype("int8"))
            assert (apart <= np.abs(kernel_of(layer).astype("float64") - expected) * (1 + 1e-6)).all(), text
        store_codes(model, old)
        assert stored(model) == start


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_undo_restores_codes_and_scales(name, mode):
    model = built(name, mode)
    before = stored(model)
    s = selector(model)
    applied = kpatch.apply(
        model, f"{s}[0, 0] /= 3; {s} *= 1.5; {s}[abs(_) < 0.3] = 0; {s} = _ - 0.25; {s}.stored[0] = 1"
    )
    assert stored(model) != before
    applied.undo()
    assert stored(model) == before


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_whole_weight_is_stored_as_keras_quantises_it(name, mode):
    model, other = built(name, mode), built(name)
    w = (weight(model) * np.float32(1.01) + np.float32(0.1)).astype("float32")
    stored_variable(other).assign(w)
    kind, config = MODES[mode]
    other.get_layer("d").quantize(kind, config=config)
    kpatch.apply(model, f"{selector(model)} = $w", w=w)
    steps = kernel_of(other.get_layer("d"))
    np.testing.assert_allclose(
        weight(model), steps, atol=np.abs(w).max() * (1e-6 if mode != "int4 in blocks" else 0.15)
    )
    if mode != "int4 in blocks":  # there Keras's zero point may be no code, and kpatch's is
        assert stored(model) == stored(other)


def test_a_column_gets_a_new_scale_and_the_others_keep_their_bits():
    model = built(mode="int8")
    layer = model.get_layer("d")
    codes, scale = values(layer._kernel), values(layer.kernel_scale)
    expected = weight(model)[:, 1] * np.float32(1.01)
    kpatch.apply(model, "d.kernel[:, 1] *= 1.01")
    new = values(layer.kernel_scale)
    assert new[1] == np.float32(127) / (np.abs(expected).max() + np.float32(1e-7))
    assert new[1] != scale[1]
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(new[others], scale[others])
    np.testing.assert_array_equal(values(layer._kernel)[:, others], codes[:, others])
    np.testing.assert_allclose(weight(model)[:, 1], expected, atol=0.51 / new[1])


@pytest.mark.parametrize("text", ["{0} = 0", "{0} = _", "{0}[abs(_) < 9] = 0", "{0}[:, 1] = {0}[:, 1]"])
@pytest.mark.parametrize("mode", MODES)
def test_a_scale_that_stores_every_value_exactly_stays(mode, text):
    model = built(mode=mode)
    scale = values(model.get_layer("d").kernel_scale)
    expected = weight(model) * (0 if "= 0" in text else 1)
    kpatch.apply(model, text.format("d.kernel"))
    np.testing.assert_array_equal(values(model.get_layer("d").kernel_scale), scale)
    np.testing.assert_array_equal(weight(model), expected)


def test_entries_that_share_a_byte():
    for mode in ("int4", "int4 in blocks"):
        model = built(mode=mode)
        for column in range(5):
            expected = weight(model)
            kpatch.apply(model, f"d.kernel[2, {column}] = 0")
            expected[2, column] = 0
            np.testing.assert_array_equal(weight(model), expected)


def test_single_entries_in_a_row():
    model, other = built(mode="int8"), built(mode="int8")
    lines = [f"d.kernel[{i}, {j}] = {0.01 * i - 0.02 * j}" for i in range(6) for j in range(3)]
    kpatch.apply(model, "; ".join(lines))
    for line in lines:
        kpatch.apply(other, line)
    assert stored(model) == stored(other)


def test_predict_is_that_of_a_model_built_by_hand():
    config = Int8QuantizationConfig(activation_quantizer=None)
    model, other = built(), built()
    model.get_layer("d").quantize("int8", config=config)
    x = np.random.default_rng(3).normal(size=(4, 6)).astype("float32")
    if keras.backend.backend() == "torch":
        pytest.skip("Keras's layer multiplies no floats by int8 codes there")
    for text in ("d.kernel[0, 0] = 0.1", "d.kernel *= 1.5", "d.kernel[abs(_) < 0.5] = 0; d.bias[1] = 3"):
        kpatch.apply(model, text)
        other.get_layer("d")._kernel.assign(weight(model))
        other.get_layer("d").bias.assign(values(model.get_layer("d").bias))
        np.testing.assert_allclose(model.predict(x, verbose=0), other.predict(x, verbose=0), atol=1e-5)


def test_undo_false():
    model, other = built(mode="int4"), built(mode="int4")
    text = "d.kernel[0, 0] = 0.1; d.kernel *= 2; d.kernel[_ > 0] = 0.25"
    assert kpatch.apply(model, text, undo=False).writes == ()
    kpatch.apply(other, text)
    assert stored(model) == stored(other)


def test_a_failure_restores_codes_and_scales():
    model = built(mode="int8")
    before = stored(model)
    for undo in (True, False):
        with pytest.raises(kpatch.DTypeError):
            kpatch.apply(model, "d.kernel *= 3; d.kernel[0, 0] = 0; d.kernel[0, 0] = 1000", undo=undo)
        assert stored(model) == before


@pytest.mark.parametrize("mode", ["int8", "int4 in blocks"])
def test_an_interrupt_at_each_line(mode, monkeypatch):
    monkeypatch.setattr(test_atomic, "FILES", {*test_atomic.FILES, encoding.__file__})
    model = built(mode=mode)
    before, text = stored(model), "d.kernel[0, 0] = 0; d.kernel *= 1.5"
    for at in range(10_000):
        interrupted = test_atomic.Interrupted(at)
        try:
            with interrupted:
                applied = kpatch.apply(model, text)
        except KeyboardInterrupt:
            assert interrupted.raised
            assert stored(model) == before
        else:
            break
    assert at > 20
    assert not interrupted.raised
    applied.undo()
    assert stored(model) == before


def test_undo_in_another_order():
    model = built(mode="int4")
    before = stored(model)
    first, second = kpatch.apply(model, "d.kernel[0, 0] = 0"), kpatch.apply(model, "d.kernel[1, 0] = 0")
    first.undo()
    second.undo()
    assert stored(model) == before
    first, second = kpatch.apply(model, "d.kernel[0, 0] = 0"), kpatch.apply(model, "d.kernel *= 2")
    with pytest.raises(kpatch.UndoError, match=r"a later edit of 'd\.kernel' overlaps this one"):
        first.undo()
    second.undo()
    first.undo()
    assert stored(model) == before


def test_one_patch_of_a_weight_its_codes_and_its_scale():
    model = built(mode="int8")
    before = stored(model)
    applied = kpatch.apply(
        model, "d.kernel.stored[0] = 127; d.kernel_scale[:] = 127; d.kernel[1] = _; d.kernel[0, 1] /= 4"
    )
    np.testing.assert_allclose(weight(model)[0], [1, 0.25, 1, 1, 1], atol=0.005)
    applied.undo()
    assert stored(model) == before


def test_writes_tell_what_was_asked_and_what_is_stored():
    model = built(mode="int8")
    before = weight(model)
    [write] = kpatch.apply(model, "d.kernel[0, :2] = [0.1, 0.2]").writes
    assert (write.path, write.shape, write.dtype, write.entries) == ("d.kernel", (6, 5), "float32", 2)
    np.testing.assert_array_equal(write.before, before[0, :2])
    np.testing.assert_array_equal(write.asked, np.float32([0.1, 0.2]))
    np.testing.assert_array_equal(write.after, weight(model)[0, :2])
    assert (write.after != write.asked).all()
    [plain] = kpatch.apply(built(), "d.kernel[0, 0] = 1").writes
    np.testing.assert_array_equal(plain.asked, plain.after)


def error(model, text, **bindings):
    before = stored(model)
    with pytest.raises(kpatch.PatchError) as info:
        kpatch.apply(model, text, **bindings)
    assert stored(model) == before
    return str(info.value)


def test_errors():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False, name="d")])
    model.get_layer("d")._kernel.assign([[1.0, 2.0], [-0.5, 4.0]])
    model.get_layer("d").quantize("int8")
    assert error(model, "d.kernel[1, 0] = 1.5") == (
        "'d.kernel': 1.5 at [1, 0] is out of range: under the present scale int8 codes there reach from -1 to 1\n"
        "  line 1, column 18\n"
        "    d.kernel[1, 0] = 1.5\n"
        "                     ^^^\n"
        "  a statement that writes all 2 entries of that scale may choose a new one"
    )
    assert error(model, "d.kernel_scale = 0; d.kernel[1, 0] = 0") == (
        "'d.kernel': 0 at [1, 0] is out of range: under the present scale int8 codes there stand for no numbers\n"
        "  line 1, column 38\n"
        "    d.kernel_scale = 0; d.kernel[1, 0] = 0\n"
        "                                         ^\n"
        "  a statement that writes all 2 entries of that scale may choose a new one"
    )
    assert error(model, "d.kernel = nan") == (
        "'d.kernel': nan at [0, 0] cannot be stored in int8 codes\n"
        "  line 1, column 12\n"
        "    d.kernel = nan\n"
        "               ^^^"
    )
    kpatch.apply(model, "d.kernel[1, 0] = 1.0039")  # nearest to a code that there is
    model.get_layer("d").enable_lora(1)
    with pytest.raises(kpatch.PatchError) as info:
        kpatch.plan(model, "d.kernel[7, 0] = 1")
    assert info.value.message == "index 7 is out of range for axis 0 with 2 entries"


# What sees weights ----------------------------------------------------------------------------------------------------


def test_masks_quantiles_lets_and_asserts():
    model = built(mode="int8")
    w = weight(model)
    kpatch.apply(
        model,
        "let m = max(abs(d.kernel)); assert m < 5; d.kernel[abs(_) < quantile(abs(_), 0.5)] = 0; assert m == $m",
        m=float(np.abs(w).max()),
    )
    np.testing.assert_array_equal(weight(model) == 0, np.abs(w) < np.quantile(np.abs(w), 0.5))


def test_donors():
    quantised, plain = built(mode="int8", seed=1), built()
    w, v = weight(quantised), values(plain.get_layer("d")._kernel)
    kpatch.apply(plain, "d.kernel = 0.5 * _ + 0.5 * $q._", q=quantised)
    np.testing.assert_allclose(values(plain.get_layer("d")._kernel), 0.5 * v + 0.5 * w, rtol=1e-6)
    merged = values(plain.get_layer("d")._kernel)
    kpatch.apply(quantised, "** = $p._", p=plain)
    other = built(mode="int4 in blocks")
    kpatch.apply(other, "**.kernel = $q._", q=quantised)
    np.testing.assert_allclose(weight(quantised), merged, atol=np.abs(merged).max() / 250)
    np.testing.assert_allclose(weight(other), merged, atol=np.abs(merged).max() / 7)
    codes = built(mode="int8")
    kpatch.apply(codes, "d.kernel.stored = $q._", q=quantised)
    np.testing.assert_array_equal(*[values(m.get_layer("d")._kernel) for m in (codes, quantised)])


def test_layers_that_keras_numbered_are_counterparts():
    def made():
        return filled(keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)]))

    plain, quantised = made(), made()
    quantised.quantize("int8")
    kpatch.apply(plain, "**.kernel = $q._", q=quantised)
    for layer, other in zip(plain.layers, quantised.layers, strict=True):
        np.testing.assert_array_equal(values(layer.kernel), kernel_of(other))


def paths(model, text):
    return [row.path for row in kpatch.plan(model, text).rows]


def test_globs_match_a_weight_once():
    model = built(mode="int8")
    assert paths(model, "** = 1") == ["d.bias", "d.kernel"]
    assert paths(model, "d.k* = 1") == ["d.kernel"]
    assert paths(model, "**.kernel_scale = 1; d.*_scale = 1") == ["d.kernel_scale"] * 2
    assert paths(model, "**.stored = 1") == ["d.kernel.stored"]
    assert paths(built(lora=True), "** = 1") == ["d.kernel", "d.bias"]
    assert paths(built(lora=True), "d.lora* = 1") == ["d.lora_kernel_a", "d.lora_kernel_b"]


def test_stored():
    model = built(mode="int4")
    [row] = kpatch.plan(model, "d.kernel.stored = 1").rows
    assert (row.path, row.shape, row.dtype) == ("d.kernel.stored", (6, 3), "int8")
    assert paths(model, '"d/kernel/stored" = 1; kernel.stored = 1; d.bias.stored = 1') == [
        *["d.kernel.stored"] * 2,
        "d.bias",
    ]
    with pytest.raises(kpatch.ResolutionError, match=r"what it matches without '\.stored' is stored as it is"):
        kpatch.plan(model, "**.bias.stored = 1")


def test_stored_in_several_models():
    both = {"a": built(mode="int8"), "b": built(mode="int4"), "c": built()}
    for text, paths in {
        "*.d.kernel.stored[0, 0] = 1": ["a", "b"],
        "**.kernel.stored[0, 0] = 1": ["a", "b"],
        "a.**.stored[0, 0] = 1": ["a"],
        "?.**.stored[0, 0] = 1": ["a", "b"],
    }.items():
        applied = kpatch.apply(both, text)
        assert [write.path for write in applied.writes] == [f"{key}.d.kernel.stored" for key in paths]
        applied.undo()
    assert [row.path for row in kpatch.plan([both["a"], both["b"]], "**.kernel.stored = 0").rows] == [
        "[0].d.kernel.stored",
        "[1].d.kernel.stored",
    ]
    with pytest.raises(kpatch.ResolutionError) as info:
        kpatch.apply(both, "*.d.bias.stored = 0")
    message = "no variable matches '*.d.bias.stored': what it matches without '.stored' is stored as it is"
    assert info.value.message == message


def test_what_really_has_the_name_comes_first():
    class Holder(layers.Layer):
        def build(self, shape):
            self.stored = self.add_weight(shape=(3,), name="stored")

    layer = layers.Dense(2, name="d")
    layer.kernel_holder = Holder(name="kernel")
    layer.build((None, 4))
    layer.kernel_holder.build((None, 4))
    layer.quantize("int8")
    [row] = kpatch.plan(layer, "kernel.stored = 1").rows
    assert row.shape == (3,)


# LoRA -----------------------------------------------------------------------------------------------------------------


def test_lora_live_and_in_a_file(tmp_path):
    model = built(lora=True)
    before = stored(model)
    model.save(tmp_path / "a.keras")
    text = "d.kernel[0, 0] = 7; d.kernel[abs(_) < 0.5] = 0"
    applied = kpatch.apply(model, text)
    checkpoint.apply(tmp_path / "a.keras", text, tmp_path / "b.keras")
    np.testing.assert_allclose(
        values(model.get_layer("d").kernel), checkpoint.open(tmp_path / "b.keras")["d.kernel"], atol=1e-6
    )
    assert values(model.get_layer("d").kernel)[0, 0] == pytest.approx(7, abs=1e-6)
    np.testing.assert_allclose(applied.writes[1].after, 0, atol=1e-6)
    applied.undo()
    assert stored(model) == before


@pytest.mark.parametrize("mode", MODES)
def test_lora_on_codes(mode):
    model = built(mode=mode, lora=True)
    before, w = stored(model), weight(model)
    applied = kpatch.apply(model, "d.kernel *= 1.25")
    np.testing.assert_allclose(weight(model), w * 1.25, atol=np.abs(w).max() * (0.02 if mode == "int8" else 0.3))
    np.testing.assert_allclose(response(model), responded(model, weight(model)), atol=5e-6)
    applied.undo()
    assert stored(model) == before


# Compiled paths -------------------------------------------------------------------------------------------------------


def test_patched_layers_and_rewrite_refuse_weights():
    model = built(mode="int8")
    with pytest.raises(kpatch.PatchError) as info:
        kpatch.rewrite(model, "d.kernel[0, 0] = 1")
    assert str(info.value) == (
        "'d.kernel' is stored as int8 codes, so no patched layer can edit or read it\n"
        "  line 1, column 1\n"
        "    d.kernel[0, 0] = 1\n"
        "    ^^^^^^^^^^^^^^\n"
        "  kpatch.apply and kpatch.intervene can; 'd.kernel.stored' names what is stored"
    )
    x = np.ones((1, 6), "float32")
    with pytest.raises(kpatch.UnsupportedError, match="'kernel' is stored as int8 codes"):
        kpatch.layers.PatchedLayer(model.get_layer("d"), "kernel[0, 0] = 1")(x)
    halved = kpatch.rewrite(model, "d.kernel.stored = 0")
    np.testing.assert_array_equal(values(halved(x))[0], values(model.get_layer("d").bias))


def test_intervene():
    model = built(mode="int8")
    x = np.ones((1, 6), "float32")
    before = values(model(x))
    with kpatch.intervene(model, "d.kernel = 0; d.output[:, 0] = 5"):
        np.testing.assert_array_equal(values(model(x))[0], [5, *values(model.get_layer("d").bias)[1:]])
    np.testing.assert_array_equal(values(model(x)), before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: built(mode="int8"), "'d.kernel' is not trained, so there is nothing to hold it against"),
        (lambda: built(lora=True), "'d.kernel' cannot be held: the factors of its update train on"),
        (lambda: built(mode="float8"), "'d.kernel' cannot be held: its scale trains on"),
    ],
)
def test_hold_is_refused(model, message):
    with pytest.raises(kpatch.UnsupportedError) as info:
        kpatch.hold(model(), "d.kernel[0, 0] = 1")
    assert info.value.message == message


# GPTQ, AWQ, and the layers of others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["gptq/4/-1", "gptq/8/4", "awq/4/-1", "awq/4/4"])
@pytest.mark.parametrize("kind", ["dense", "query"])
def test_calibrated(policy, kind):
    dtype, rng = f"{policy}_from_float32", np.random.default_rng(0)
    layer = (
        layers.Dense(5, name="d", dtype=dtype)
        if kind == "dense"
        else layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="d", dtype=dtype)
    )
    model = keras.Sequential([keras.Input((6,) if kind == "dense" else (1, 9)), layer])
    for variable in layer.variables:
        if variable.dtype == "uint8":
            variable.assign(rng.integers(0, 16, variable.shape).astype("uint8"))
        elif variable.name == "g_idx":
            variable.assign((np.arange(variable.shape[0]) // (4 if policy.endswith("/4") else 99)).astype("float32"))
        else:
            variable.assign(rng.normal(size=variable.shape).astype("float32"))
    mode = policy.partition("/")[0]
    setattr(layer, f"is_{mode}_calibrated", True)
    size = 6 if kind == "dense" else 9
    w = response(model).reshape(size, -1)
    found = kpatch.edit(np.zeros((6, 5) if kind == "dense" else (9, 2, 4), "float32"), "_ = $m.d.kernel", m=model)
    np.testing.assert_allclose(values(found).reshape(size, -1), w, atol=1e-5)
    with pytest.raises(kpatch.UnsupportedError) as info:
        kpatch.apply(model, "d.kernel[0] = 1")
    expected = (
        f"'d.kernel' cannot be written: the codes of {mode.upper()} were chosen together, and are not chosen one by one"
    )
    assert (info.value.message, info.value.notes) == (expected, ("'d.kernel.stored' names what is stored",))
    applied = kpatch.apply(model, "d.kernel.stored[0, 0] = 5")
    assert values(layer.quantized_kernel)[0, 0] == 5
    applied.undo()
    np.testing.assert_allclose(response(model).reshape(size, -1), w, atol=1e-6)


class Somebodys(layers.Layer):
    """A layer that quantises in a way of its own."""

    def build(self, shape):
        self.codes = self.add_weight(shape=(3, 2), name="codes", dtype="int8", initializer="zeros", trainable=False)

    def quantized_build(self, *args):
        """Nothing more."""


def test_a_layer_that_somebody_else_quantises():
    layer = Somebodys(name="own", dtype="int8_from_float32")
    layer.build((None, 3))
    message = "kpatch does not know how a quantised Somebodys makes weights of its codes"
    for text, verb in (("codes[0] = 1", "written"), ("let x = codes", "read")):
        with pytest.raises(kpatch.UnsupportedError) as info:
            kpatch.plan(layer, text)
        assert info.value.message == f"'codes' cannot be {verb}: {message}"
    kpatch.apply(layer, "codes.stored[0] = 1")
    assert values(layer.codes)[0].tolist() == [1, 1]


def test_no_further_layer_of_keras_stores_weights_as_something_else():
    found = {
        each.__name__
        for each in vars(keras.layers).values()
        if inspect.isclass(each)
        and issubclass(each, layers.Layer)
        and (each.quantize is not layers.Layer.quantize or hasattr(each, "enable_lora"))
    }
    convolutions = {f"Conv{n}D" for n in (1, 2, 3)} | {f"Convolution{n}D" for n in (1, 2, 3)}
    assert found <= {"Dense", "EinsumDense", "Embedding", "ReversibleEmbedding", *convolutions}


@pytest.mark.parametrize("mode", MODES)
def test_both_matrices_of_a_reversible_embedding(mode):
    layer = layers.ReversibleEmbedding(7, 6, tie_weights=False, name="d")
    layer.build()
    filled(layer)
    kind, config = MODES[mode]
    layer.quantize(kind, config=config)
    units = np.eye(6, dtype="float32")
    before = stored(layer)
    applied = kpatch.apply(layer, "reverse_embeddings[1] = 0; embeddings[2, 3] = 0; reverse_embeddings *= 0.5")
    w = applied.writes[2].after.reshape(6, 7)
    np.testing.assert_allclose(values(layer(units, reverse=True)), w, atol=1e-5)
    np.testing.assert_allclose(w[1], 0, atol=1e-6)
    assert values(layer(np.array([2], "int32")))[0, 3] == 0
    applied.undo()
    assert stored(layer) == before


# Files ----------------------------------------------------------------------------------------------------------------

TEXT = (
    "d.kernel[0, 0] = 0.1; d.kernel[abs(_) < 0.3] = 0; d.kernel[:, 1] *= 1.01; **.kernel *= 0.5; d.bias[0] = 3; "
    "d.kernel[[5, 2], [3, 1]] = [0.01, 0.02]; d.kernel[::-1] = _; d.kernel.stored[0, 0] = 3"
)


@pytest.mark.parametrize("mode", [*MODES, "float8"])
def test_a_file_is_edited_as_the_model_is(mode, tmp_path):
    path, out = tmp_path / "a.keras", tmp_path / "b.keras"
    built(mode=mode).save(path)
    checkpoint.apply(path, TEXT, out)
    live, loaded = keras.saving.load_model(path), keras.saving.load_model(out)
    kpatch.apply(live, TEXT)
    assert stored(live) == stored(loaded)
    np.testing.assert_array_equal(checkpoint.open(out)["d.kernel"], weight(loaded))
    found = kpatch.diff(path, out)
    assert "d.kernel.stored" in found.text
    checkpoint.apply(path, found.text, tmp_path / "c.keras", **found.bindings)
    assert (tmp_path / "c.keras").read_bytes() == out.read_bytes()
    again = keras.saving.load_model(path)
    kpatch.apply(again, kpatch.diff(again, live))
    assert stored(again) == stored(live)


def test_donors_in_files(tmp_path):
    quantised = built(mode="int4 in blocks")
    quantised.save(tmp_path / "q.keras")
    built(seed=2).save(tmp_path / "f.keras")
    opened = checkpoint.open(tmp_path / "q.keras")
    text = "d.kernel = 0.5 * _ + 0.5 * $q._; d.bias = $q.d.bias"
    checkpoint.apply(tmp_path / "f.keras", text, tmp_path / "of_file.keras", q=opened)
    checkpoint.apply(tmp_path / "f.keras", text, tmp_path / "of_model.keras", q=quantised)
    live = keras.saving.load_model(tmp_path / "f.keras")
    kpatch.apply(live, text, q=quantised)
    for name in ("of_file", "of_model"):
        assert stored(keras.saving.load_model(tmp_path / f"{name}.keras")) == stored(live)
    checkpoint.apply(
        tmp_path / "q.keras", "d.kernel = $f._", tmp_path / "r.keras", f=checkpoint.open(tmp_path / "f.keras")
    )
    kpatch.apply(quantised, "d.kernel = $f._", f=keras.saving.load_model(tmp_path / "f.keras"))
    assert stored(keras.saving.load_model(tmp_path / "r.keras")) == stored(quantised)


def test_names_in_a_bare_file_mean_what_is_stored(tmp_path):
    model = built(mode="int8")
    model.save_weights(tmp_path / "a.weights.h5")
    checkpoint.apply(tmp_path / "a.weights.h5", "layers.dense.vars.0[0, 0] = 5", in_place=True)
    model.load_weights(tmp_path / "a.weights.h5")
    assert values(model.get_layer("d")._kernel)[0, 0] == 5


def test_show(tmp_path):
    from click.testing import CliRunner

    from kpatch.tools.command_line import main

    model = built(mode="int8")
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    shown = [CliRunner().invoke(main, ["show", str(tmp_path / name)]).output for name in ("a.keras", "a.weights.h5")]
    assert "float32 of int8 codes" in shown[0]
    assert "int8 codes" in shown[1]
    assert "float32 of" not in shown[1]


# Tensors that a layer derives -----------------------------------------------------------------------------------------


def test_what_a_layer_derives_follows_the_edit():
    norm = layers.Normalization(name="norm")
    norm.adapt(np.arange(12.0).reshape(4, 3))
    model = keras.Sequential([keras.Input((3,)), norm])
    outer = keras.Sequential([keras.Input((3,)), model])
    x = np.ones((2, 3), "float32")
    before = model.predict(x, verbose=0)
    np.testing.assert_array_equal(outer.predict(x, verbose=0), before)
    applied = kpatch.apply(model, "norm.mean = 0; norm.variance = 4")
    np.testing.assert_allclose(model.predict(x, verbose=0), 0.5, atol=1e-6)
    np.testing.assert_allclose(outer.predict(x, verbose=0), 0.5, atol=1e-6)
    applied.undo()
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    with pytest.raises(kpatch.PatchError):
        kpatch.apply(model, 'norm.mean = 0; norm.mean[cast(norm.mean[0], "int32") + 7] = 1')
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    with kpatch.intervene(model, "norm.mean = 1"):
        np.testing.assert_allclose(model.predict(x, verbose=0), 0, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)


# Everywhere else a name means the variable ----------------------------------------------------------------------------


def test_mixed_precision():
    model = filled(keras.Sequential([keras.Input((6,)), layers.Dense(5, name="d", dtype="mixed_bfloat16")]))
    model.get_layer("d").quantize("int8")
    [row] = kpatch.plan(model, "d.kernel = 0").rows
    assert row.dtype == "float32"
    kpatch.apply(model, "d.kernel[:, 0] *= 1.5; d.kernel[0, 0] = 0")
    layer = model.get_layer("d")
    np.testing.assert_array_equal(weight(model), values(layer._kernel).astype("float32") / values(layer.kernel_scale))


def test_narrow_scales():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="d", dtype="bfloat16")])
    model.get_layer("d")._kernel.assign(np.random.default_rng(0).normal(size=(6, 5)).astype("float32"))
    model.get_layer("d").quantize("int8")
    before = stored(model)
    applied = kpatch.apply(model, "d.kernel *= 1.5; d.kernel[abs(_) < 0.5] = 0; d.kernel[:, 0] = 1e-7")
    assert applied.writes[0].dtype == "bfloat16"
    assert np.isfinite(applied.writes[2].after.astype("float32")).all()
    applied.undo()
    assert stored(model) == before


def test_spectral_normalization_means_the_weight_before_the_division():
    model = keras.Sequential(
        [keras.Input((4,)), layers.SpectralNormalization(layers.Dense(3, name="inner"), name="sn")]
    )
    inner = model.get_layer("sn").layer
    kpatch.apply(model, "inner.kernel = 2")
    np.testing.assert_array_equal(values(inner.kernel), 2)


# What a stranger found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *MODES, "float8"])
def test_everything_is_the_weights_and_no_bookkeeping(mode):
    """Neither the groups of int4's rows, nor the ranges that float8 keeps, belong to `**`."""
    model = built("dense", mode)
    names = sorted(row.path for row in kpatch.plan(model, "** = 0").rows)
    assert names == ["d.bias", "d.kernel"]
    x = np.eye(6, dtype="float32")
    bias = np.array(ops.convert_to_numpy(model.get_layer("d").bias))
    before = model.predict(x, verbose=0) - bias
    kpatch.apply(model, "** *= 0.5")
    np.testing.assert_allclose(model.predict(x, verbose=0), (before + bias) / 2, rtol=2e-2, atol=1e-5)
    kpatch.apply(model, "** = 0")
    assert not model.predict(x, verbose=0).any()


@pytest.mark.parametrize("mode", [*MODES, "float8"])
@pytest.mark.parametrize("index", ["_ < 100", "abs(_) >= 0", ":, :"])
def test_an_index_that_selects_everything(mode, index):
    model, other = built("dense", mode), built("dense", mode)
    kpatch.apply(model, f"d.kernel[{index}] *= 0.5")
    kpatch.apply(other, "d.kernel *= 0.5")
    assert stored(model) == stored(other)


def test_writes_tell_what_is_stored_whatever_the_order_of_memory():
    layer = layers.Embedding(2, 4, name="e")
    layer.build()
    layer.embeddings.assign([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    layer.quantize("int4")
    [write] = kpatch.apply(layer, "embeddings[0] = 9").writes
    np.testing.assert_allclose(write.after, [9, 9, 9, 9], rtol=1e-3)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_an_activation_of_a_quantised_layer_is_rewritten(mode):
    model = built("dense", mode)
    x = np.ones((2, 6), "float32")
    expected = np.array(model.predict(x, verbose=0))
    expected[..., 0] = 0
    np.testing.assert_array_equal(kpatch.rewrite(model, "d.output[..., 0] = 0").predict(x, verbose=0), expected)
