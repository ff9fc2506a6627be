"""Names that count up: `dense_1` is the second `Dense` of a model that has no layer of that name."""

import re

import h5py
import keras
import numpy as np
import pytest

import kpatch
from kpatch.errors import PatchError
from kpatch.names.index import index
from kpatch.syntax import parse

pytestmark = pytest.mark.backend_free
layers = keras.layers


def dense(units=2, **options):
    return layers.Dense(units, kernel_initializer="zeros", **options)


def stack(*inner):
    return keras.Sequential([keras.Input((2,)), *inner])


@pytest.fixture(scope="module", autouse=True)
def _numbers_of_keras_are_others():
    for _ in range(20):
        dense()


def path(model, text):
    [row] = kpatch.plan(model, f"{text} = 0").rows
    return row.path


def failure(model, text):
    with pytest.raises(PatchError) as info:
        kpatch.plan(model, f"{text} = 0")
    return str(info.value)


class Blocks(keras.Model):
    def __init__(self):
        super().__init__()
        self.stem = dense()
        self.blocks = [dense(), layers.LayerNormalization(), dense()]
        self.towers = {"left": dense(), "right": dense()}
        self.pair = (dense(), dense())
        self.inner = stack(dense(), dense())

    def call(self, x):
        for layer in (self.stem, *self.blocks, *self.towers.values(), *self.pair, self.inner):
            x = layer(x)
        return x


class TwoDense(layers.Layer):
    def __init__(self):
        super().__init__()
        self.both = [dense(), dense()]

    def call(self, x):
        return self.both[1](self.both[0](x))


def shared():
    inputs = keras.Input((2,))
    twice = dense()
    x = dense()(twice(inputs))
    x = keras.ops.relu(twice(x))
    return keras.Model(inputs, stack(dense(), dense(name="named"))(x))


def subclassed():
    model = Blocks()
    model(np.zeros((1, 2), "float32"))
    return model


MODELS = {
    "sequential": lambda: stack(dense(), layers.ReLU(), dense(), dense(name="named"), layers.BatchNormalization()),
    "shared and nested": shared,
    "subclassed": subclassed,
    "layers in layers": lambda: stack(TwoDense(), dense(), TwoDense()),
}


IN_FILES = ("sequential", "shared and nested")  # the code of the others is not known to a file


@pytest.mark.parametrize(("kind", "saved"), [*((kind, False) for kind in MODELS), *((kind, True) for kind in IN_FILES)])
def test_each_name_of_the_weights_file_means_that_array(kind, saved, tmp_path):
    model = MODELS[kind]()
    for number, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, number))
    model.save_weights(tmp_path / "model.weights.h5")
    model.save(tmp_path / "model.keras")
    arrays = {}
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    checked = set()
    for name, values in arrays.items():
        chain, number = re.fullmatch(r"(.+?)/vars/(\d+)", name).groups()
        keys = [key for key in chain.split("/") if key != "layers"]
        variable = "kernel" if number == "0" and keys[-1].startswith("dense") else None
        nested = kind in ("shared and nested", "subclassed") and len(keys) == 1
        if variable is None or nested:
            continue
        checked.add(name)
        text = ".".join([*keys, variable])
        if saved:
            found = kpatch.checkpoint.open(tmp_path / "model.keras")[text]
        else:
            entry = index(model).find(parse(f"{text} = 0").statements[0].target.selector)
            found = keras.ops.convert_to_numpy(entry.variable)
        np.testing.assert_array_equal(found, values, text)
    assert len(checked) >= 2


def test_a_cell_that_is_run_twice():
    patch = "dense.kernel[0, 0] = 1; dense_1.bias[:] = 2; let m = max(dense_1.bias); dense.bias = m"
    for names in ({}, {}, {"name": "dense"}):
        model = stack(dense(**names), dense(**{key: f"{name}_1" for key, name in names.items()}))
        kpatch.apply(model, patch)
        first, bias, _, second = model.get_weights()
        assert first.tolist() == [[1, 0], [0, 0]]
        assert bias.tolist() == second.tolist() == [2, 2]


def test_the_real_name_comes_first_and_is_the_one_shown():
    first, second, third = dense(name="dense_1"), dense(name="other"), dense(name="dense_7")
    model = stack(first, second, third)
    assert path(model, "dense_1.bias") == "dense_1.bias"  # a layer is called so, though the second is 'other'
    assert path(model, "dense.bias") == "dense_1.bias"
    assert path(model, "dense_2.bias") == "dense_7.bias"
    assert [row.path for row in kpatch.plan(model, "**.dense_2.* = 0").rows] == ["dense_7.kernel", "dense_7.bias"]
    assert path([model], "dense.bias") == "[0].dense_1.bias"
    assert path({"a": model}, "a.dense.bias") == path({"a": model}, "*.dense.bias") == "a.dense_1.bias"
    assert path(model, '"dense/bias"') == "dense_1.bias"
    assert "dense_7.bias" in str(kpatch.plan(model, "dense_2.bias = 0"))
    kpatch.apply(model, "dense_2.bias = $donor.dense.bias + 1", donor=model)
    assert model.get_weights()[5].tolist() == [1, 1]


def test_errors():
    model = stack(dense(name="a"), dense(name="b"))
    assert failure(model, "dense_1.kernal") == (
        "no variable 'dense_1.kernal'; did you mean 'dense_1.kernel'?\n"
        "  line 1, column 9\n"
        "    dense_1.kernal = 0\n"
        "            ^^^^^^\n"
        "  dense_1 has: kernel (2, 2) float32, bias (2,) float32"
    )
    assert failure(model, "dense") == (
        "'dense' is a layer, not a variable\n"
        "  line 1, column 1\n"
        "    dense = 0\n"
        "    ^^^^^\n"
        "  dense has: kernel (2, 2) float32, bias (2,) float32"
    )
    assert failure(model, "dense_2.kernel") == (
        "no variable 'dense_2.kernel'\n"
        "  line 1, column 1\n"
        "    dense_2.kernel = 0\n"
        "    ^^^^^^^\n"
        "  the model has: a, b\n"
        "  variables named 'kernel': a.kernel, b.kernel"
    )
    assert failure(model, "dense.**.kernal").startswith(
        "no variable matches 'dense.**.kernal'; did you mean 'dense.**.kernel'?\n"
    )


def test_a_name_that_two_models_count_is_ambiguous():
    """In the first run of a cell `dense` could be the inner one, in the second the outer one."""
    inner = stack(dense(name="c"), dense(name="d"))
    model = keras.Sequential([keras.Input((2,)), inner, dense(name="a")])
    inner.name = "inner"
    assert path(model, "dense_1.kernel") == "inner.d.kernel"
    assert path(model, "sequential.dense.kernel") == "inner.c.kernel"
    assert failure(model, "dense.kernel") == (
        "'dense.kernel' is ambiguous: 2 variables have that name\n"
        "  line 1, column 1\n"
        "    dense.kernel = 0\n"
        "    ^^^^^^^^^^^^\n"
        "  a.kernel (2, 2) float32\n"
        "  inner.c.kernel (2, 2) float32"
    )


def test_a_layer_anywhere_in_the_model_that_is_called_so_comes_first():
    inner = stack(dense(name="dense"), dense(name="d"))
    model = keras.Sequential([keras.Input((2,)), dense(name="a"), inner])
    assert path(model, "dense.kernel") == f"{inner.name}.dense.kernel"
    assert path(model, "dense.kernel[0]").endswith(".dense.kernel")


def test_activations_and_layers_that_are_exchanged():
    model = stack(dense(name="a"), dense(name="b"))
    inputs = np.ones((1, 2), "float32")
    with kpatch.intervene(model, "dense_1.output = 5"):
        assert keras.ops.convert_to_numpy(model(inputs)).tolist() == [[5, 5]]
    assert path(model, "dense_1.kernel") == "b.kernel"
    model.pop()
    model.add(layers.ReLU())
    model.add(dense(name="c"))
    assert path(model, "dense_1.kernel") == "c.kernel"
