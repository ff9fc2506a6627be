"""Files as donors, for models in memory and for files, and models that need classes of one's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from models import dense, filled

import kpatch
from kpatch import checkpoint
from kpatch.errors import BindingError, FileError, PatchError
from kpatch.tools.command_line import main

once = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled(dense(), seed=1).save("b.keras")
    return tmp_path


def weights(model):
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}


@pytest.mark.parametrize("kind", [str, Path, checkpoint.open])
def test_a_file_is_a_donor_of_a_model_in_memory(kind):
    model, other = filled(dense(), seed=2), keras.saving.load_model("b.keras")
    before = weights(model)
    patch = "**.kernel = 0.5 * _ + 0.5 * $b._; dense_1.bias = $b.dense_2.bias[0]"
    expected = filled(dense(), seed=2)
    kpatch.apply(expected, patch, b=other)
    applied = kpatch.apply(model, patch, b=kind("b.keras"))
    for one, two in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, two)))
    applied.undo()
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_a_file_is_a_donor_of_a_tensor():
    x = kpatch.edit(keras.ops.zeros((2,)), "_ += $b.dense_1.bias[:2]", b="b.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), checkpoint.open("b.keras")["dense_1.bias"][:2])


@once
def test_what_is_wrong_with_a_file_that_is_a_donor():
    model = filled(dense())
    for given, patch, error in (
        ("none.keras", "dense_1.bias = $b._", "cannot read 'none.keras': no such file or directory"),
        ("b.keras", "dense_1.bias = $b", "'$b' is a checkpoint; name an array of it, or write '$b._'"),
        ("b.keras", "dense_1.bias = $b.dense_9.bias", "no variable '$b.dense_9.bias'"),
        ("text", "dense_1.bias = $b._", "'$b' is a str; a binding is"),
    ):
        with pytest.raises(PatchError) as info:
            kpatch.apply(model, patch, b=given)
        assert info.value.message.replace("'dense_9", "'$b.dense_9").startswith(error)


@once
def test_a_path_is_a_donor_of_a_file():
    for donor in ("b.keras", Path("b.keras")):
        filled(dense(), seed=2).save("a.keras")
        checkpoint.apply("a.keras", "** = $b._", in_place=True, bindings={"b": donor})
        assert kpatch.diff("a.keras", "b.keras").text == ""
    with pytest.raises(BindingError, match="'b' is not used"):
        checkpoint.apply("a.keras", "dense_1.bias = 0", in_place=True, b="b.keras")


# The command line


def run(*args):
    return CliRunner().invoke(main, list(map(str, args)))


@once
def test_safetensors_are_merged_on_the_command_line():
    from safetensors.numpy import save_file

    for name, value in (("a", 1), ("b", 3)):
        save_file({f"{k}.w": np.full((2, 2), value, "float32") for k in "xy"}, f"{name}.safetensors")
    Path("folder").mkdir()
    os.rename("b.safetensors", "folder/b.safetensors")
    merged = ("apply", "a.safetensors", "-e", "**.w = 0.5 * _ + 0.5 * $b._", "--bind", "b=@folder/b.safetensors")
    result = run(*merged, "-o", "c.safetensors")
    assert result.exit_code == 0, result.output
    assert checkpoint.open("c.safetensors")["y.w"].tolist() == [[2, 2], [2, 2]]
    assert run(*merged, "-o", "folder/b.safetensors", "--overwrite").exit_code == 1
    one = run("apply", "a.safetensors", "-e", "x.w = $b", "--bind", "b=@folder/b.safetensors:y.w", "--in-place")
    assert one.exit_code == 0, one.output
    keyed = run("apply", "a.safetensors", "-e", "x.w[0, 0] = $b[0]", "--bind", "b=@b.keras:dense_1.bias", "--in-place")
    assert keyed.exit_code == 0, keyed.output
    assert checkpoint.open("a.safetensors")["x.w"][0, 0] == checkpoint.open("b.keras")["dense_1.bias"][0]


# Classes of one's own

MODULE = """
import keras

@keras.saving.register_keras_serializable("mine")
class Scaled(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale
"""


@once
def test_a_module_with_a_class_is_imported(here):
    Path("my_layers.py").write_text(MODULE)
    Path("make.py").write_text(
        "import keras, my_layers\n"
        "keras.Sequential([keras.Input((3,)), my_layers.Scaled(name='mine')]).save('mine.keras')\n"
    )
    environ = {**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": str(Path(kpatch.__file__).parent.parent)}

    def python(*args):
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environ)

    python("make.py")
    edit = ("-m", "kpatch", "apply", "mine.keras", "-e", "mine.scale[1] = 5", "--in-place")
    failed = python(*edit)
    assert (failed.returncode, "no variable 'mine.scale'" in failed.stderr) == (1, True)
    done = python(*edit, "--import", "my_layers")
    assert (done.returncode, done.stderr) == (0, "note: running the code of the module my_layers\n")
    shutil.copy("mine.keras", "donor.keras")
    merge = ("-m", "kpatch", "apply", "mine.keras", "-e", "mine.scale = $b._ + 1", "--bind", "b=@donor.keras")
    assert python(*merge, "--in-place", "--import", "my_layers").returncode == 0
    difference = python("-m", "kpatch", "diff", "donor.keras", "mine.keras", "--import", "my_layers").stdout
    assert difference == "mine.scale = [2.0, 6.0, 2.0]\n"
    shown = python("-m", "kpatch", "show", "mine.keras", "--import", "nothing_here")
    assert shown.returncode == 1
    assert "cannot import 'nothing_here': ModuleNotFoundError" in shown.stderr


@once
def test_custom_objects():
    class Scaled(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

        def call(self, x):
            return x * self.scale

    keras.Sequential([keras.Input((3,)), Scaled(name="mine")]).save("mine.keras")
    own = {"Scaled": Scaled}
    with pytest.raises(PatchError, match=r"no variable 'mine.scale'"):
        checkpoint.apply("mine.keras", "mine.scale = 2", in_place=True)
    checkpoint.apply("mine.keras", "mine.scale[0] = 2", in_place=True, custom_objects=own)
    assert checkpoint.plan("mine.keras", "mine.scale[:2] = 2", custom_objects=own).rows[0].entries == 2
    assert checkpoint.open("mine.keras", custom_objects=own)["mine.scale"].tolist() == [2, 1, 1]
    with pytest.raises(FileError):
        checkpoint.open("none.keras", custom_objects=own)
    shutil.copy("mine.keras", "donor.keras")
    checkpoint.apply("mine.keras", "mine.scale = 7", in_place=True, custom_objects=own)
    checkpoint.apply("mine.keras", "** = $b._ + 1", in_place=True, custom_objects=own, b="donor.keras")
    opened = checkpoint.open("mine.keras", custom_objects=own)
    assert opened["mine.scale"].tolist() == [3, 2, 2]
    checkpoint.apply(opened, "mine.scale = $b.mine.scale", in_place=True, b=Path("donor.keras"))
    assert opened["mine.scale"].tolist() == [2, 1, 1]
