"""Files by earlier versions of Keras, made by `files/make.py`: listed, edited as Keras edits them, undone, compared."""

import os
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from checkpoints import bits

import kpatch
from kpatch import checkpoint

FILES = Path(__file__).with_name("files")
VERSIONS = ("3.5.0", "3.8.0", "3.11.3", "3.13.0", "3.15.0")
TEXTS = (
    "**.bias[0] = 7; **.kernel[abs(_) < 0.5] = 0; embed.embeddings[3] = _ * 2; norm.gamma *= 2;"
    "optimizer.learning_rate = 0.25; optimizer.momentum.**.kernel[0] = 9"
)
IMAGES = "**.bias[0] = 7; **.kernel[abs(_) < 0.5] = 0; conv.kernel[..., 1] *= 2; norm.moving_variance = 2"

pytestmark = pytest.mark.parametrize("version", VERSIONS)
once = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def edited(name, patch):
    """A copy that is edited, once the file itself was edited alike and that edit undone."""
    shutil.copy(FILES / name, name)
    before, end = Path(name).read_bytes(), name[name.rindex(".weights.h5") if "weights" in name else name.rindex(".") :]
    checkpoint.apply(name, patch, f"out{end}")
    data = Path(f"out{end}").read_bytes()
    checkpoint.apply(name, patch, in_place=True, journal=True)
    assert Path(name).read_bytes() == data
    checkpoint.undo(name)
    assert Path(name).read_bytes() == before
    checkpoint.apply(name, kpatch.diff(name, f"out{end}"), f"again{end}")
    assert Path(f"again{end}").read_bytes() == data
    if zipfile.is_zipfile(f"out{end}"):
        with zipfile.ZipFile(f"out{end}") as archive:
            assert archive.testzip() is None
    return f"out{end}"


def all_bits(model):
    slots = getattr(getattr(model, "optimizer", None), "variables", ())
    return bits(model), [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in slots]


def loaded(path, patch):
    """The model of a file, patched when it is loaded."""
    model = keras.saving.load_model(path)
    kpatch.apply(model, patch)
    return model


def test_a_model_with_its_optimizer(version):
    """The file patched and then loaded is the file loaded and then patched."""
    out = edited(f"keras-{version}.keras", TEXTS)
    assert all_bits(keras.saving.load_model(out)) == all_bits(loaded(f"keras-{version}.keras", TEXTS))


@once
def test_a_model_in_a_folder(version):
    with zipfile.ZipFile(FILES / f"keras-{version}.keras") as archive:
        archive.extractall("folder")
    checkpoint.apply("folder", TEXTS, "out", journal=True)
    with zipfile.ZipFile("out.keras", "w") as archive:
        for name in sorted(os.listdir("folder")):
            archive.write(f"out/{name}", name)
    assert all_bits(keras.saving.load_model("out.keras")) == all_bits(loaded(FILES / f"keras-{version}.keras", TEXTS))
    checkpoint.undo("out")
    assert kpatch.diff("out", FILES / f"keras-{version}.keras").equal


@once
def test_a_model_of_codes(version):
    """`head.kernel` is the weight, which codes and a scale for each column store."""
    patch = "head.kernel[0, 0] = 0; head.kernel[:, 1] *= 3; head.bias[1] = 5"
    out = edited(f"keras-{version}-int8.keras", patch)
    assert all_bits(keras.saving.load_model(out)) == all_bits(loaded(f"keras-{version}-int8.keras", patch))
    assert list(checkpoint.open(out)) == ["head.bias", "head.kernel", "head.kernel_scale"]


@once
def test_a_model_in_hdf5(version):
    out = edited(f"keras-{version}.h5", IMAGES)
    assert bits(keras.saving.load_model(out)) == bits(loaded(f"keras-{version}.h5", IMAGES))


@once
def test_weights_alone(version):
    """Their names are the numbers that Keras gives them; whatever version wrote them, the model is one."""
    patch = "**.1[0] = 7; layers.conv2d.vars.0[..., 1] *= 2; layers.batch_normalization.vars.3 = 2"
    out = edited(f"keras-{version}.weights.h5", patch)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    twice = keras.layers.Dense(4, name="twice")
    inner = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Dense(3, name="proj")], name="inner")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(inner(twice(twice(x)))))
    model.load_weights(f"keras-{version}.weights.h5")
    kpatch.apply(
        model,
        "(conv|twice|head).bias[0] = 7; inner.proj.bias[0] = 7; norm.beta[0] = 7; conv.kernel[..., 1] *= 2;"
        "norm.moving_variance = 2",
    )
    expected = bits(model)
    model.load_weights(out)
    assert bits(model) == expected
