"""`bindings={...}` and `expect=`: accepted by everything that takes a patch, with the same errors."""

import dataclasses
import functools
import inspect

import keras
import models
import numpy as np
import pytest

import kpatch
import kpatch.callbacks
import kpatch.constraints
import kpatch.initializers
import kpatch.layers
from kpatch.names.keywords import FUNCTIONS, OPTIONS

BACKEND = keras.backend.backend()


@pytest.fixture
def model():
    made = models.dense()
    made.get_layer("dense_1").bias.assign(np.zeros(3))
    return made


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def bias(model):
    return model.get_weights()[1].tolist()


def function(name):
    found = getattr(kpatch.checkpoint if "checkpoint" in name else kpatch, name.rpartition(".")[2])
    return functools.partial(found, metric=lambda: 0, axes={"k": [0]}) if name == "kpatch.sweep" else found


def target_of(name, model, path):
    return path if "checkpoint" in name else keras.ops.zeros((3,)) if name == "kpatch.edit" else model


# Bindings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_bindings_and_names(name):
    parameters = inspect.signature(function(name)).parameters
    assert parameters["bindings"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["bindings"].default is None
    assert parameters["named"].kind is inspect.Parameter.VAR_KEYWORD
    assert ("expect" in parameters) == (name != "kpatch.edit")
    assert parameters.keys() - {"model", "x", "path", "patch", "named"} <= OPTIONS


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_names_of_options_are_bound(model, path, tmp_path, name):
    text, given = f"dense_1.bias[${name}] = 2 * $v", {name: 1}
    kpatch.apply(model, text, bindings=given, v=1.5)
    assert bias(model) == [0, 3, 0]
    assert kpatch.plan(model, text, bindings=given, v=1).rows[0].entries == 1
    assert keras.ops.convert_to_numpy(
        kpatch.edit(keras.ops.zeros((3,)), f"_[${name}] = 2 * $v", v=1.5, bindings=given)
    ).tolist() == [0, 3, 0]
    assert kpatch.checkpoint.plan(path, text, bindings=given, v=1).rows[0].entries == 1
    kpatch.checkpoint.apply(path, text, tmp_path / "out.keras", bindings=given, v=1.5)
    assert kpatch.checkpoint.open(tmp_path / "out.keras")["dense_1.bias"].tolist() == [0, 3, 0]
    with kpatch.intervene(model, f"dense_1.bias[${name}] = 7", bindings=given):
        assert bias(model) == [0, 7, 0]
    kpatch.hold(model, f"dense_1.bias[${name}] = 4", bindings=given).release()
    assert bias(model) == [0, 4, 0]
    rewritten = kpatch.rewrite(model, f"dense_2.output[..., ${name}] = 9", bindings=given)
    assert keras.ops.convert_to_numpy(rewritten(np.ones((1, 4), "float32")))[0, 1] == 9


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_layers_and_their_like_bind_names_of_options(name):
    given, x = {name: 1}, keras.ops.zeros((3,))
    layer = kpatch.layers.ScatterLayer(f"_[${name}] = 5", bindings=given)
    assert keras.ops.convert_to_numpy(layer(x)).tolist() == [0, 5, 0]
    constraint = kpatch.constraints.PatchConstraint(f"_[${name}] = 5", bindings=given)
    assert keras.ops.convert_to_numpy(constraint(x)).tolist() == [0, 5, 0]
    initializer = kpatch.initializers.PatchedInitializer(f"_[${name}] = 5", "zeros", bindings=given)
    assert keras.ops.convert_to_numpy(initializer((3,))).tolist() == [0, 5, 0]
    patched = kpatch.layers.PatchedLayer(keras.layers.Dense(3), f"bias[${name}] = 5", bindings=given)
    assert keras.ops.convert_to_numpy(patched(np.zeros((1, 4), "float32"))).tolist() == [[0, 5, 0]]


def test_bindings_is_a_name_as_well(model):
    kpatch.apply(model, "dense_1.bias = $bindings", bindings={"bindings": 2})
    assert bias(model) == [2, 2, 2]


def test_those_given_come_before_those_of_the_patch(model):
    donor = models.filled(models.dense(), seed=1)
    diff = kpatch.diff(model, donor, tolerance=0)
    kpatch.apply(model, diff.text, bindings=diff.values)
    assert models.snapshot(model) == models.snapshot(donor)
    patch = kpatch.Patch("dense_1.bias = $v") + "dense_1.bias += $w"
    patch = dataclasses.replace(patch, bindings={"v": 1, "w": 1})
    kpatch.apply(model, patch, bindings={"v": 5})
    assert bias(model) == [6, 6, 6]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_name_given_both_ways_is_one_error(model, path, name):
    text = "_ = $v" if name == "kpatch.edit" else "dense_1.bias = $v"
    more = {"in_place": True} if name == "kpatch.checkpoint.apply" else {}
    before, bits = models.snapshot(model), path.read_bytes()
    with pytest.raises(kpatch.BindingError) as caught:
        function(name)(target_of(name, model, path), text, v=1, bindings={"v": 1}, **more)
    assert str(caught.value) == "'v' is given twice, as v=... and in bindings={\"v\": ...}; one of them is enough"
    assert (models.snapshot(model), path.read_bytes()) == (before, bits)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("given", [[("v", 1)], 5, {1: 2}])
def test_bindings_of_another_kind(model, path, name, given):
    text = "_ = $v" if name == "kpatch.edit" else "dense_1.bias = $v"
    more = {"in_place": True} if name == "kpatch.checkpoint.apply" else {}
    with pytest.raises(kpatch.BindingError) as caught:
        function(name)(target_of(name, model, path), text, bindings=given, **more)
    assert str(caught.value) == f"bindings is a dict of names and values. Received: bindings={given!r}"


def test_layers_say_the_same_of_bindings_of_another_kind():
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.layers.ScatterLayer("_ = $v", bindings=5)
    assert str(caught.value) == "bindings is a dict of names and values. Received: bindings=5"


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_that_is_not_bound_says_how(model, path, name):
    text = f"dense_1.bias = ${name}"
    message = f"no value for '${name}'; pass bindings={{\"{name}\": ...}}"
    calls = [lambda: kpatch.apply(model, text), lambda: kpatch.checkpoint.plan(path, text),
             lambda: kpatch.edit(keras.ops.zeros((3,)), f"_ = ${name}")]  # fmt: skip
    for call in calls:
        with pytest.raises(kpatch.BindingError) as caught:
            call()
        assert caught.value.message == message
        assert caught.value.notes == ()


@pytest.mark.skipif(BACKEND != "torch", reason="of torch.compile")
def test_bindings_in_dynamo():
    import torch

    @torch.compile(backend="eager")
    def edited(x):
        return kpatch.edit(x, "_[$undo] = $v", bindings={"undo": 1}, v=2.0)

    assert edited(torch.zeros(3)).tolist() == [0, 2, 0]


# The number expected --------------------------------------------------------------------------------------------------

EXPECTING = [name for name in FUNCTIONS if name not in ("kpatch.edit", "kpatch.sweep")]  # a sweep needs an axis


@pytest.mark.parametrize("name", EXPECTING)
def test_expect(model, path, name):
    more = {"in_place": True} if name == "kpatch.checkpoint.apply" else {}
    before, bits = models.snapshot(model), path.read_bytes()
    text = "dense_1.* = 1; dense_1.kernel[0] = 2"
    with pytest.raises(kpatch.ResolutionError) as caught:
        function(name)(target_of(name, model, path), text, expect=3, **more)
    assert (
        str(caught.value)
        == """\
the patch matches 2 variables, not 3
  dense_1.kernel (4, 3) float32
  dense_1.bias (3,) float32"""
    )
    assert (models.snapshot(model), path.read_bytes()) == (before, bits)
    done = function(name)(target_of(name, model, path), text, expect=2, **more)
    if name == "kpatch.intervene":
        with done:
            pass


@pytest.mark.parametrize("name", EXPECTING)
@pytest.mark.parametrize("expect", ["1", 1.0, True])
def test_expect_of_another_kind(model, path, name, expect):
    more = {"in_place": True} if name == "kpatch.checkpoint.apply" else {}
    with pytest.raises(kpatch.BindingError) as caught:
        function(name)(target_of(name, model, path), "dense_1.bias = 1", expect=expect, **more)
    message = f"expect is the number of variables that the patch matches. Received: expect={expect!r}"
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["kpatch.rewrite", "kpatch.intervene"])
def test_expect_counts_activations(model, name):
    text = "dense_1.bias = 1; dense_1.output[..., 0] = 2; dense_1.output[..., 1] = 2"
    with pytest.raises(kpatch.ResolutionError) as caught:
        function(name)(model, text, expect=3)
    assert (
        str(caught.value)
        == """\
the patch matches 1 variable and 1 activation, not 3
  dense_1.bias (3,) float32
  dense_1.output"""
    )
    done = function(name)(model, text, expect=2)
    if name == "kpatch.intervene":
        with done:
            pass


# Callbacks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [{"0": "a = 1"}, {0.5: "a = 1"}, {range(2, 2): "a = 1"}, {-1: "a = 1"}])
def test_a_callback_says_what_it_takes(patches):
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.callbacks.PatchCallback(patches)
    assert str(caught.value) == (
        'a PatchCallback takes a patch, or {number: patch}, as in {0: "head.bias = 0"}; the number is that of '
        f"the epoch or step, from 0 on, or a range of them. Received: patches={patches!r}"
    )


def test_a_callback_counts(model):
    callback = kpatch.callbacks.PatchCallback({np.int64(0): "dense_1.bias = $undo"}, bindings={"undo": 3}, expect=2)
    callback.set_model(model)
    with pytest.raises(kpatch.ResolutionError, match=r"^the patch matches 1 variable, not 2"):
        callback.on_epoch_begin(0)
    callback.expect = 1
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0)
    assert bias(model) == [3, 3, 3]
