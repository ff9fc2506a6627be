"""`Plan.apply`: a plan that is kept does what `kpatch.apply` does, and looks only at what the patch names."""

import counting
import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.errors import ResolutionError, UnsupportedError


def bits(model):
    return [np.array(keras.ops.convert_to_numpy(each)).tobytes() for each in model.weights]


TEXTS = (
    "head.kernel[0, 1] = 2",
    "**.kernel *= 0.5; head.bias += 1",
    "**.kernel[abs(_) < quantile(abs(_), 0.5)] = 0",
    "let m = mean(head.kernel); inner.proj.bias = m",
    "for **.kernel { let t = max(_); _ = _ - t }",
    "attention.**.kernel = embed.embeddings[0, 0]",
    "bi.**.recurrent_kernel = normal(shape(_), seed=1)",
)


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_a_kept_plan_edits_as_apply_does(text, undo):
    one, two = models.mixed(), models.mixed()
    start, plan = bits(one), kpatch.plan(one, text)
    assert bits(one) == start
    applied = []
    for _ in range(3):
        applied.append(plan.apply(undo=undo))
        kpatch.apply(two, text, undo=undo)
        assert bits(one) == bits(two)
    if undo:
        for edit in reversed(applied):
            edit.undo()
        assert bits(one) == start


def test_variables_lists_dicts_and_donors():
    model, donor = models.dense(), models.dense()
    kpatch.apply(donor, "**.kernel = 3")
    for target, text, bindings in (
        (model.layers[0].bias, "_ += 1", {}),
        ([model, donor], "dense_1.bias += 1", {}),
        ({"a": model, "b": donor}, "a.dense_1.bias = b.dense_1.bias * 2", {}),
        (model, "**.kernel = $d._ + $x", {"d": donor, "x": 2.0}),
    ):
        plan = kpatch.plan(target, text, bindings=bindings)
        edits = [plan.apply(), plan.apply()]
        planned = bits(model)
        edits[1].undo(), edits[0].undo()
        [kpatch.apply(target, text, bindings=bindings) for _ in range(2)]
        assert bits(model) == planned


def test_the_time_does_not_grow_with_the_model():
    def applied(layers):
        wide = keras.Sequential([keras.Input((2,)), *[keras.layers.Dense(2, name=f"d{i}") for i in range(layers)]])
        plan = kpatch.plan(wide, "d1.kernel[0, 0] = 1")
        plan.apply()
        return counting.steps(plan.apply)

    assert applied(60) == applied(3)


def test_a_model_that_grew_elsewhere_is_checked_anew_and_edited():
    model = models.dense()
    plan = kpatch.plan(model, "dense_1.bias = 1")
    model.add(keras.layers.Dense(2, name="dense_3"))
    plan.apply()
    assert model.get_layer("dense_1").get_weights()[1].tolist() == [1, 1, 1]


def test_a_plan_of_variables_that_the_model_has_no_longer_is_refused():
    model = models.dense()
    plan = kpatch.plan(model, "dense_2.kernel = 1")
    model.pop()
    model.add(keras.layers.Dense(2, name="dense_2"))
    before = bits(model)
    with pytest.raises(ResolutionError) as caught:
        plan.apply()
    assert caught.value.message == "the model has changed since this plan was made: its names mean other variables now"
    assert caught.value.notes == ("make a new plan: kpatch.plan(model, patch)",)
    assert bits(model) == before


def test_a_layer_that_was_quantised_has_other_variables():
    model = models.dense()
    plan = kpatch.plan(model, "dense_1.kernel[0, 0] = 1")
    model.quantize("int8")
    with pytest.raises(ResolutionError, match="has changed since this plan was made"):
        plan.apply()


@pytest.mark.skipif(keras.backend.backend() == "numpy", reason="Keras cannot enable LoRA there")
def test_under_lora_the_weight_of_now_is_edited():
    model = models.dense()
    plan = kpatch.plan(model, "dense_1.kernel = 1")
    layer = model.get_layer("dense_1")
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape, "float32"))
    plan.apply()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer.kernel), 1, rtol=1e-6)


def test_what_a_plan_cannot_apply_is_said(tmp_path):
    model = models.mixed()
    model.save_weights(path := tmp_path / "m.weights.h5")
    applied = kpatch.apply(model, "head.bias = 0")
    tells = "this plan tells about a file, or about edits that were made; it applies nothing"
    for plan, message in (
        (applied.plan, tells),
        (kpatch.checkpoint.plan(path, "**.vars.0[0] *= 0"), tells),
        (
            kpatch.plan(model, "head.output[0] = 0"),
            "this plan edits activations, which kpatch.intervene does while a block lasts",
        ),
    ):
        with pytest.raises(UnsupportedError) as caught:
            plan.apply()
        assert caught.value.message == message
