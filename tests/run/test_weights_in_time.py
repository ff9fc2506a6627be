"""Edits of weights whose layers store something else, ended late, in another order, or after the layer has changed."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import kpatch

if not hasattr(keras.quantizers, "Int4QuantizationConfig"):
    pytest.skip("this Keras has no quantisation configs", allow_module_level=True)

LEFT = "float8", "int8", "int4"


def model_of(mode=None, block_size=-1):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="d"), layers.Dense(2, name="e")])
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    if mode is not None:
        quantize(model, mode, block_size)
    return model


def quantize(model, mode, block_size=-1):
    config = keras.quantizers.Int4QuantizationConfig(block_size=block_size) if mode == "int4" else None
    model.get_layer("d").quantize(mode, config=config)


def values(x):
    return np.array(keras.ops.convert_to_numpy(x))


def stored(model):
    return [values(v).tobytes() for v in model.variables]


# Two codes in one byte ------------------------------------------------------------------------------------------------


def test_codes_in_one_byte_are_undone_in_any_order():
    model = model_of("int4")
    before = stored(model)
    for order in ((0, 1), (1, 0)):
        edits = [kpatch.apply(model, f"d.kernel[0, {column}] = 0") for column in range(2)]
        edits[order[0]].undo()
        assert stored(model) != before
        edits[order[1]].undo()
        assert stored(model) == before


def test_an_undo_keeps_the_later_edit_of_the_other_code():
    model, other = model_of("int4"), model_of("int4")
    first = kpatch.apply(model, "d.kernel[0, 0] = 0")
    kpatch.apply(model, "d.kernel[0, 1] = 0")
    first.undo()
    kpatch.apply(other, "d.kernel[0, 1] = 0")
    assert stored(model) == stored(other)


@pytest.mark.parametrize("second", ["d.kernel[0, :2] = 0", "d.kernel.stored[0, 0] = 0", "d.kernel *= 2"])
def test_what_shares_a_code_overlaps(second):
    model = model_of("int4")
    before = stored(model)
    edits = kpatch.apply(model, "d.kernel[0, 1] = 0"), kpatch.apply(model, second)
    with pytest.raises(kpatch.UndoError, match=r"a later edit of 'd\.kernel' overlaps this one; undo that first"):
        edits[0].undo()
    edits[1].undo()
    edits[0].undo()
    assert stored(model) == before


# Blocks that end in another order -------------------------------------------------------------------------------------

TEXTS = ["d.kernel[0, 0] = 0", "d.kernel[0, 1] = 0", "d.kernel[:, 0] *= 2", "d.kernel *= 3", "d.kernel_scale[1] *= 2"]


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_blocks_of_one_weight_end_in_any_order(mode):
    model = model_of(mode)
    before = stored(model)
    orders = itertools.cycle([(2, 0, 1), (0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0)])
    for texts, order in zip(itertools.permutations(TEXTS, 3), orders, strict=False):
        blocks = [kpatch.intervene(model, text) for text in texts]
        for block in blocks:
            block.__enter__()
        for position in order:
            blocks[position].__exit__(None, None, None)
        assert stored(model) == before, (texts, order)


def test_a_weight_is_kept_until_the_later_block_ends():
    model = model_of("int8")
    before = stored(model)
    first, second = (kpatch.intervene(model, text) for text in ("d.kernel *= 2; e.bias = 7", "d.kernel[0, 0] = 0"))
    first.__enter__()
    second.__enter__()
    between = stored(model)
    first.__exit__(None, None, None)
    assert stored(model)[:-1] == between[:-1]
    assert stored(model)[-1] == before[-1]
    second.__exit__(None, None, None)
    assert stored(model) == before


def test_an_edit_in_a_block_keeps_the_codes_and_says_so():
    model = model_of("int8")
    bias = values(model.get_layer("e").bias)
    with pytest.raises(kpatch.UndoError) as info, kpatch.intervene(model, "d.kernel *= 2; e.bias = 7"):
        kpatch.apply(model, "d.kernel[0, 0] = 0")
    assert info.value.message == "the edit of 'd.kernel' stays: a later edit of its codes was not undone before"
    assert info.value.notes == ("the later edit: d.kernel[0, 0] = 0", "this edit: d.kernel *= 2")
    np.testing.assert_array_equal(values(model.get_layer("e").bias), bias)


def test_an_edit_before_two_blocks_is_undone_after_them():
    model = model_of("int4")
    before = stored(model)
    edit = kpatch.apply(model, "d.kernel[:, 3] = 0")
    first, second = (kpatch.intervene(model, text) for text in ("d.kernel *= 2", "d.kernel[0, 0] = 0"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(kpatch.UndoError, match=r"the later edit: d\.kernel \*= 2"):
        edit.undo()
    second.__exit__(None, None, None)
    edit.undo()
    assert stored(model) == before


# The layer changes meanwhile ------------------------------------------------------------------------------------------

QUANTISED = "the edit of 'd.kernel' cannot be undone: since then 'd' was quantised to {}, and has other variables"


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_an_edit_from_before_the_layer_was_quantised(mode):
    model = model_of()
    applied = kpatch.apply(model, "e.bias = 1; d.kernel[0, 0] = 7")
    quantize(model, mode)
    before = stored(model)
    with pytest.raises(kpatch.UndoError) as info:
        applied.undo()
    assert info.value.message == QUANTISED.format(mode)
    assert info.value.notes == ("this edit: d.kernel[0, 0] = 7",)
    assert stored(model) == before
    with pytest.raises(kpatch.UndoError), kpatch.apply(model, "e.kernel[0, 0] = 0"):
        model.get_layer("e").quantize(mode)


def test_a_block_in_which_the_layer_is_quantised():
    model = model_of()
    x = np.ones((1, 6), "float32")
    bias = values(model.get_layer("e").bias)
    block = kpatch.intervene(model, "e.bias = 1; d.kernel[0, 0] = 7; e.output[:, 0] = 5")
    block.__enter__()
    quantize(model, "int8")
    assert model(x)[0, 0] == 5
    with pytest.raises(kpatch.UndoError) as info:
        block.__exit__(None, None, None)
    assert info.value.message == QUANTISED.format("int8")
    np.testing.assert_array_equal(values(model.get_layer("e").bias), bias)
    assert not {"call", "quantized_call"} & vars(model.get_layer("e")).keys()


def test_an_activation_is_edited_once_however_the_layer_is_quantised():
    model = model_of()
    x = np.ones((1, 6), "float32")
    before = values(model.get_layer("d")(x))
    for mode in (None, "int8"):
        if mode is not None:
            quantize(model, mode)
            before = values(model.get_layer("d")(x))
        with kpatch.intervene(model, "d.output += 1"):
            np.testing.assert_array_equal(values(model.get_layer("d")(x)), before + 1)
        np.testing.assert_array_equal(values(model.get_layer("d")(x)), before)
    with kpatch.intervene(model, "e.output += 1"):
        inside = values(model.get_layer("e")(before))
        model.get_layer("e").quantize("int8")
        quantised = values(model.get_layer("e")(before))
    np.testing.assert_array_equal(values(model.get_layer("e")(before)) + 1, quantised)
    assert inside.shape == quantised.shape


@pytest.mark.parametrize("change", ["float8", "lora"])
def test_an_edit_is_undone_if_the_layer_keeps_its_variable(change):
    model = model_of()
    layer = model.get_layer("d")
    before = values(layer._kernel)
    applied = kpatch.apply(model, "d.kernel[0, 0] = 7")
    layer.enable_lora(2) if change == "lora" else layer.quantize("float8")
    applied.undo()
    np.testing.assert_array_equal(values(layer._kernel), before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("float8", "its scale trains on"), ("int8", None)],
)
def test_a_hold_from_before_the_layer_was_changed(change, reason):
    model = model_of()
    layer = model.get_layer("d")
    kernel = layer._kernel
    held = kpatch.hold(model, "d.kernel[0] = 1; d.bias = 0; e.kernel = _")
    with pytest.raises(ValueError, match="kernel constraints"):  # Keras takes care of that
        layer.enable_lora(2)
    layer.quantize(change)
    if reason is None:
        held.release()
    else:
        with pytest.raises(kpatch.UndoError) as info:
            held.release()
        assert info.value.message == f"'d.kernel' was not held to the end: since 'd' was changed, {reason}"
    assert kernel.constraint is None
    assert layer.kernel_constraint is None
    assert model.get_layer("e").kernel.constraint is None
    held.release()
