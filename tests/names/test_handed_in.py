"""Whatever is handed in as a model, a patch or a path ends in a result or in a `PatchError`."""

from pathlib import Path

import keras
import numpy as np
import pytest

import kpatch
import kpatch.callbacks
import kpatch.constraints
import kpatch.initializers
import kpatch.layers

PATCH = "d.bias = 0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("handed")


@pytest.fixture(scope="module")
def model(folder):
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")], name="net")
    made.save(folder / "net.keras")
    return made


def odd_ones(model):
    array = np.ones((2, 3), "float32")
    tensor = keras.ops.convert_to_tensor(array)
    return [
        None, 3, 2.5, True, float("inf"), float("nan"), 1j, b"d.bias = 0", bytearray(b"x"), array, np.ones(()), tensor,
        keras.KerasTensor((2, 3)), object(), int, len, range(3), {"x"}, [3], [None], {"a": 3}, {1: model}, [[model]],
        {"a": {"b": model}}, model.weights[0], keras.layers.Dense(3), keras.layers.Dense, keras.metrics.Mean(),
        keras.optimizers.SGD(), kpatch.plan(model, PATCH), (each for each in "ab"), Path("no such file"), Path(), "",
    ]  # fmt: skip


def in_a_block(model, patch):
    with kpatch.intervene(model, patch):
        pass


FUNCTIONS = {
    "apply to": lambda model, file, x: kpatch.apply(x, PATCH),
    "apply": lambda model, file, x: kpatch.apply(model, x).undo(),
    "apply, bindings": lambda model, file, x: kpatch.apply(model, PATCH, bindings=x).undo(),
    "apply, expect": lambda model, file, x: kpatch.apply(model, PATCH, expect=x).undo(),
    "apply, a binding": lambda model, file, x: kpatch.apply(model, "d.bias = $x", x=x).undo(),
    "plan of": lambda model, file, x: kpatch.plan(x, PATCH),
    "plan": lambda model, file, x: kpatch.plan(model, x),
    "edit of": lambda model, file, x: kpatch.edit(x, "_ = 0"),
    "edit": lambda model, file, x: kpatch.edit(np.ones(3), x),
    "parse": lambda model, file, x: kpatch.parse(x),
    "Patch": lambda model, file, x: kpatch.Patch(x),
    "load": lambda model, file, x: kpatch.load(x),
    "rewrite of": lambda model, file, x: kpatch.rewrite(x, PATCH),
    "rewrite": lambda model, file, x: kpatch.rewrite(model, x),
    "intervene in": lambda model, file, x: in_a_block(x, PATCH),
    "intervene": lambda model, file, x: in_a_block(model, x),
    "hold of": lambda model, file, x: kpatch.hold(x, PATCH).release(),
    "hold": lambda model, file, x: kpatch.hold(model, x).release(),
    "diff from": lambda model, file, x: kpatch.diff(x, model),
    "diff to": lambda model, file, x: kpatch.diff(model, x),
    "diff, tolerance": lambda model, file, x: kpatch.diff(model, model, tolerance=x),
    "diff, save": lambda model, file, x: kpatch.diff(model, model).save(x),
    "checkpoint.apply to": lambda model, file, x: kpatch.checkpoint.apply(x, PATCH, "out.keras"),
    "checkpoint.apply": lambda model, file, x: kpatch.checkpoint.apply(file, x, "out.keras", overwrite=True),
    "checkpoint.apply, out": lambda model, file, x: kpatch.checkpoint.apply(file, PATCH, x),
    "checkpoint.plan of": lambda model, file, x: kpatch.checkpoint.plan(x, PATCH),
    "checkpoint.plan": lambda model, file, x: kpatch.checkpoint.plan(file, x),
    "checkpoint.open": lambda model, file, x: kpatch.checkpoint.open(x),
    "checkpoint.undo": lambda model, file, x: kpatch.checkpoint.undo(x),
    "ScatterLayer": lambda model, file, x: kpatch.layers.ScatterLayer(x),
    "ScatterLayer, bindings": lambda model, file, x: kpatch.layers.ScatterLayer("_ = $x", bindings=x),
    "PatchedLayer of": lambda model, file, x: kpatch.layers.PatchedLayer(x, "bias = 0"),
    "PatchedLayer": lambda model, file, x: kpatch.layers.PatchedLayer(keras.layers.Dense(3), x),
    "PatchedInitializer": lambda model, file, x: kpatch.initializers.PatchedInitializer("zeros", x),
    "PatchConstraint": lambda model, file, x: kpatch.constraints.PatchConstraint(x),
    "PatchCallback": lambda model, file, x: kpatch.callbacks.PatchCallback(x),
    "PatchCallback of": lambda model, file, x: kpatch.callbacks.PatchCallback({1: x}),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_result_or_a_patch_error(model, folder, function, monkeypatch):
    monkeypatch.chdir(folder)
    before = [np.array(weight) for weight in model.get_weights()]
    refused = 0
    for x in odd_ones(model):
        try:
            FUNCTIONS[function](model, folder / "net.keras", x)
        except kpatch.PatchError:
            refused += 1
    assert refused >= 14
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def message(function, *args, **options):
    with pytest.raises(kpatch.PatchError) as info:
        function(*args, **options)
    return "\n".join([info.value.message, *info.value.notes])


@pytest.mark.backend_free
def test_errors_say_what_was_meant(model):
    patch = "a patch is a str, a kpatch.Patch, a pathlib.Path, a kpatch.checkpoint.Diff, or a list of these. Received: "
    assert message(kpatch.apply, model, None) == f"{patch}patch=None (of type <class 'NoneType'>)"
    assert message(kpatch.parse, 3) == "a patch is a string. Received: text=3 of type int"
    second = "the patch comes second, as in kpatch.apply(model, patch) and kpatch.edit(x, patch)"
    for function in (kpatch.apply, kpatch.plan, kpatch.hold, kpatch.rewrite, kpatch.intervene, kpatch.edit):
        assert message(function, PATCH, model).endswith(f")\n{second}")
    assert message(kpatch.edit, "_ = 0", np.ones(3)).endswith(f")\n{second}")
    assert message(kpatch.apply, model, b"bias = 0") == (
        f"{patch}patch=b'bias = 0' (of type <class 'bytes'>)\npatch.decode() makes a text of bytes"
    )
    assert message(kpatch.apply, model, {"a": 1}) == (
        f"{patch}patch={{'a': 1}} (of type <class 'dict'>)\n"
        "the values of a patch's $names are handed in by bindings={...}"
    )
    assert message(kpatch.apply, model, "dir/p.kpatch") == (
        "this is the name of a patch file, not a patch; kpatch.load reads the file (on the command line: no -e)"
    )
    assert message(kpatch.apply, model, Path("bias = 0")) == (
        "cannot read 'bias = 0': no such file or directory\nit may be a patch, which is a text and no path"
    )
    examples = "examples are conv1, conv1.kernel, layers[0].bias. Received: "
    assert message(kpatch.show, "head", model).startswith(f"a selector is a text behind the model; {examples}")
    expected = "expected a Keras model or layer; Received: "
    file = "(of type <class 'str'>)\nkpatch.checkpoint.apply edits a file"
    assert message(kpatch.apply, "m.keras", PATCH) == f"{expected}'m.keras' {file}"
    array = "(of type <class 'numpy.ndarray'>)\nkpatch.edit makes an edited copy of a tensor or an array"
    assert message(kpatch.apply, np.ones(1), "_ = 0") == f"{expected}array([1.]) {array}"
    symbol = message(kpatch.hold, keras.KerasTensor((2,)), "_ = 0")
    assert symbol.endswith("\nkpatch.layers.ScatterLayer edits a tensor of a graph")
    path = "a path is a str or a pathlib.Path. Received: None (of type <class 'NoneType'>)"
    for function in (kpatch.load, kpatch.checkpoint.open, kpatch.checkpoint.undo, kpatch.diff(model, model).save):
        assert message(function, None) == path
    sides = "kpatch.diff compares paths, kpatch.checkpoint.Checkpoints, and Keras models or layers. Received: "
    assert message(kpatch.diff, model, 3) == f"{sides}3 (of type <class 'int'>)"
    assert (
        message(kpatch.diff, model, model, tolerance=-1) == "tolerance is a number of 0 or more. Received: tolerance=-1"
    )
    wrapped = "kpatch.layers.PatchedLayer wraps a Keras layer: PatchedLayer(layer, patch). Received: 3"
    assert message(kpatch.layers.PatchedLayer, 3, "bias = 0") == wrapped


@pytest.mark.backend_free
def test_a_diff_says_which_model_lacks_what(model):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d", use_bias=False)], name="small")
    lacks = "the {} model ('small') has no 'd.bias', which the {} model ('net') has\n"
    lacks += "common=True (--common) compares what both have"
    assert message(kpatch.diff, model, other) == lacks.format("second", "first")
    assert message(kpatch.diff, other, model) == lacks.format("first", "second")
