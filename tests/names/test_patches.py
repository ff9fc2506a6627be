"""Patches as objects: of a text, a file, a list, a diff; and that every function takes each of them."""

import copy
import functools
import inspect
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from models import dense, filled, snapshot
from safetensors.numpy import save_file

import kpatch
from kpatch.tools.python_sources import takers

TEXT = "dense_1.bias = [1, 2, 3]\ndense_2.bias *= 2"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "change.kpatch"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def with_arrays(tmp_path):
    """A patch file that reads `$v` of the file beside it."""
    path = tmp_path / "arrays.kpatch"
    path.write_text("_ = $v", encoding="utf-8")
    save_file({"v": np.array([5, 6, 7], "float32"), "unused": np.zeros(2)}, path.with_suffix(".safetensors"))
    return path


FORMS = {
    "text": lambda file: TEXT,
    "patch": lambda file: kpatch.parse(TEXT),
    "Patch(text)": lambda file: kpatch.Patch(TEXT),
    "loaded": lambda file: kpatch.load(file),
    "path": lambda file: file,
    "list": lambda file: TEXT.split("\n"),
    "nested": lambda file: (kpatch.parse(TEXT.split("\n")[0]), [TEXT.split("\n")[1]], []),
    "sum": lambda file: kpatch.parse(TEXT.split("\n")[0]) + TEXT.split("\n")[1],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_patch(form, file):
    patch = FORMS[form](file)
    expected, got = filled(dense()), filled(dense())
    kpatch.apply(expected, TEXT)
    x = keras.ops.ones((2, 4))
    result = keras.ops.convert_to_numpy(expected(x)).tolist()
    assert [row.entries for row in kpatch.plan(got, patch).rows] == [3, 2]
    assert keras.ops.convert_to_numpy(kpatch.rewrite(got, patch)(x)).tolist() == result
    with kpatch.intervene(got, patch):
        assert keras.ops.convert_to_numpy(got(x)).tolist() == result
    assert snapshot(got) != snapshot(expected)
    kpatch.apply(got, patch)
    assert snapshot(got) == snapshot(expected)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_on_a_file(form, file, tmp_path):
    model = filled(dense())
    model.save(tmp_path / "a.keras")
    kpatch.checkpoint.apply(tmp_path / "a.keras", FORMS[form](file), tmp_path / "b.keras")
    assert [row.entries for row in kpatch.checkpoint.plan(tmp_path / "a.keras", FORMS[form](file)).rows] == [3, 2]
    kpatch.apply(model, TEXT)
    assert snapshot(keras.saving.load_model(tmp_path / "b.keras")) == snapshot(model)


def test_the_arrays_beside_a_file_are_its_bindings(with_arrays):
    patch = kpatch.load(with_arrays)
    assert list(patch.bindings) == ["v"]
    assert np.asarray(patch.bindings["v"]).tolist() == [5, 6, 7]
    x = np.zeros(3, "float32")
    assert keras.ops.convert_to_numpy(kpatch.edit(x, with_arrays)).tolist() == [5, 6, 7]
    given = kpatch.edit(x, patch, v=np.ones(3, "float32"))  # what is given comes before
    assert keras.ops.convert_to_numpy(given).tolist() == [1, 1, 1]


def test_layers_take_the_arrays_into_their_configuration(with_arrays):
    layer = kpatch.layers.ScatterLayer(with_arrays)
    again = kpatch.layers.ScatterLayer.from_config(layer.get_config())
    with_arrays.unlink()
    with_arrays.with_suffix(".safetensors").unlink()
    for each in (layer, again):
        assert keras.ops.convert_to_numpy(each(keras.ops.zeros((2, 3)))).tolist() == [[5, 6, 7]] * 2


def test_the_arrays_beside_a_file_can_be_trained(with_arrays):
    layer = kpatch.layers.ScatterLayer(with_arrays, trainable_values=True)
    assert keras.ops.convert_to_numpy(layer(keras.ops.zeros((2, 3)))).tolist() == [[5, 6, 7]] * 2
    assert [weight.name for weight in layer.trainable_weights] == ["v"]


def test_layers_constraints_initializers_and_callbacks_take_files(file, with_arrays):
    dense_1 = keras.layers.Dense(3)
    layer = kpatch.layers.PatchedLayer(dense_1, ["bias = 1", kpatch.parse("bias[0] += 1")])
    assert keras.ops.convert_to_numpy(layer(keras.ops.zeros((1, 4)))).tolist() == [[2, 1, 1]]
    initializer = kpatch.initializers.PatchedInitializer(with_arrays, base="zeros")
    assert keras.ops.convert_to_numpy(initializer((3,))).tolist() == [5, 6, 7]
    constraint = kpatch.constraints.PatchConstraint(with_arrays)
    assert keras.ops.convert_to_numpy(constraint(keras.ops.zeros(3))).tolist() == [5, 6, 7]
    assert kpatch.callbacks.PatchCallback({0: file}).patches == {0: kpatch.parse(TEXT)}


def wide():
    return keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(8, name="dense_1"), keras.layers.Dense(2, name="dense_2")]
    )


def test_a_callback_applies_the_arrays_beside_a_file(with_arrays):
    with_arrays.write_text("dense_1.bias = $v", encoding="utf-8")
    callback, model = kpatch.callbacks.PatchCallback({0: with_arrays}), dense()
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_epoch_end(0)
    assert keras.ops.convert_to_numpy(model.layers[0].bias).tolist() == [5, 6, 7]


def test_a_diff_is_a_patch_for_models_and_files(tmp_path):
    a, b = (filled(wide(), seed) for seed in (1, 2))
    kpatch.apply(b, "dense_2.bias = $donor.dense_2.bias; dense_2.bias[0] = 7", donor=a)
    found = kpatch.diff(a, b)
    assert found.bindings
    a.save(tmp_path / "a.keras")
    applied = kpatch.apply(a, found)
    assert snapshot(a) == snapshot(b)
    applied.undo()
    kpatch.checkpoint.apply(tmp_path / "a.keras", found, tmp_path / "b.keras")
    assert snapshot(keras.saving.load_model(tmp_path / "b.keras")) == snapshot(b)
    found = kpatch.diff(tmp_path / "a.keras", tmp_path / "b.keras")
    found.save(tmp_path / "change.kpatch")
    for patch in (found, tmp_path / "change.kpatch", kpatch.load(tmp_path / "change.kpatch")):
        model = keras.saving.load_model(tmp_path / "a.keras")
        kpatch.apply(model, [patch, "dense_2.bias[1] = 8"])
        assert keras.ops.convert_to_numpy(model.layers[1].bias).tolist() == [7, 8]


@pytest.mark.backend_free
def test_errors_show_the_text_of_all_parts():
    with pytest.raises(kpatch.SubscriptError) as caught:
        kpatch.apply(dense(), kpatch.parse("dense_1.bias = 0  # first") + kpatch.parse("dense_2.bias[2] = 0"))
    assert (caught.value.line, caught.value.statement) == (2, "dense_2.bias[2] = 0")


@pytest.mark.backend_free
def test_parts_without_a_source_are_joined_by_their_own_text():
    first = kpatch.Patch(kpatch.parse("a.b = 1; c.d = 2").statements[:1], "a.b = 1; c.d = 2")
    assert first + "e.f = 3" == kpatch.parse("a.b = 1; e.f = 3")


def test_a_patch_is_compared_by_its_statements_and_the_objects_that_it_brings(with_arrays):
    one, two = kpatch.load(with_arrays), kpatch.load(with_arrays)
    assert one == one and one != two and hash(one) == hash(two)  # noqa: PT018
    assert one.statements == two.statements
    assert kpatch.Patch("_=$v") == kpatch.parse("_ = $v") != one
    assert copy.copy(one).bindings is one.bindings
    assert np.asarray(pickle.loads(pickle.dumps(one)).bindings["v"]).tolist() == [5, 6, 7]


@pytest.mark.backend_free
def test_two_values_for_one_name_cannot_be_joined(with_arrays):
    patch = kpatch.load(with_arrays)
    assert (patch + patch).bindings == patch.bindings
    with pytest.raises(kpatch.BindingError) as caught:
        patch + kpatch.load(with_arrays)
    assert str(caught.value) == "'$v' has different values in two of the patches"


@pytest.mark.backend_free
def test_a_local_cannot_be_bound_by_two_parts():
    with pytest.raises(kpatch.PatchSyntaxError, match="the local 'x' is already bound"):
        kpatch.parse("let x = 1; a = x") + kpatch.parse("let x = 2; b = x")


@pytest.mark.backend_free
def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "missing.kpatch"
    for read in (lambda: kpatch.load(path), lambda: kpatch.apply(dense(), path), lambda: kpatch.load(str(path))):
        with pytest.raises(kpatch.FileError) as caught:
            read()
        assert str(caught.value) == f"cannot read '{path}': no such file or directory"


@pytest.mark.backend_free
def test_a_byte_order_mark_is_no_part_of_a_patch(tmp_path):
    path = tmp_path / "a.kpatch"
    path.write_text("\ufeffa.b = 1", encoding="utf-8")
    assert kpatch.parse("c.d = 0") + kpatch.load(path) == kpatch.parse("c.d = 0; a.b = 1")


@pytest.mark.backend_free
@pytest.mark.parametrize("other", [None, 5, [5]])
def test_other_objects_are_no_patches(other):
    wrong = other[0] if isinstance(other, list) else other
    with pytest.raises(kpatch.PatchSyntaxError) as caught:
        kpatch.apply(dense(), other)
    assert str(caught.value) == (
        "a patch is a str, a kpatch.Patch, a pathlib.Path, a kpatch.checkpoint.Diff, or a list of these. "
        f"Received: patch={wrong!r} (of type {type(wrong)})"
    )


@pytest.mark.backend_free
def test_patch_of_no_text():
    with pytest.raises(kpatch.PatchSyntaxError, match=r"^kpatch.Patch\(text\) takes a text. Received: 5$"):
        kpatch.Patch(5)
    with pytest.raises(TypeError, match="unsupported operand"):
        kpatch.parse("a.b = 1") + 5


@pytest.mark.backend_free
def test_repr_makes_the_same_patch():
    patch = kpatch.parse("a.b[0] = 'c/d' * 2 ; e.f=1")
    assert eval(repr(patch), {"Patch": kpatch.Patch}) == patch  # noqa: S307


@pytest.mark.backend_free
def test_the_modules_that_extend_keras_are_reached_by_their_names():
    code = (
        "import sys, kpatch\n"
        "assert 'keras' not in sys.modules\n"
        "assert {'layers', 'constraints', 'initializers', 'callbacks', 'apply'} <= set(dir(kpatch))\n"
        "assert 'keras' not in sys.modules\n"
        "found = (kpatch.layers.ScatterLayer, kpatch.constraints.PatchConstraint,\n"
        "         kpatch.initializers.PatchedInitializer, kpatch.callbacks.PatchCallback)\n"
        "assert all(each.__module__.startswith('kpatch.') for each in found)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'kpatch' has no attribute 'layer'"):
        kpatch.layer  # noqa: B018


@pytest.mark.backend_free
@pytest.mark.parametrize("path", takers())
def test_each_function_that_takes_a_patch_says_its_types(path):
    function = functools.reduce(getattr, path.split(".")[1:], kpatch)
    signature = inspect.signature(function)
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
    assert inspect.isclass(function) or signature.return_annotation is not signature.empty


@pytest.mark.backend_free
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encodings_of_a_patch_file(tmp_path, encoding):
    """PowerShell writes UTF-16, with its mark."""
    (tmp_path / "a.kpatch").write_text('head.bias = 0  # "\u2026"', encoding=encoding)
    assert kpatch.load(tmp_path / "a.kpatch").source == 'head.bias = 0  # "\u2026"'
