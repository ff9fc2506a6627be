"""The language's cases, kept as data: a patch, the tensor before, and the tensor after or the start of the error."""

import json
import pathlib

import keras
import ml_dtypes
import numpy as np
import pytest

import kpatch
from kpatch.values.tensors import to_numpy

CASES = json.loads((pathlib.Path(__file__).parent / "conformance" / "edits.json").read_text())


def array(values, dtype):
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.array(values, "bool" if dtype == "bool" else "float64").astype(dtype)


def holder(before, dtype):
    layer = keras.layers.Layer(name="holder")
    layer.t = layer.add_weight(shape=before.shape, dtype=dtype, name="t", initializer="zeros", trainable=False)
    layer.built = True
    layer.t.assign(before)
    return layer


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['patch']} ({case['dtype']})")
def test_edit(case):
    before = array(case["before"], case["dtype"])
    x = keras.ops.convert_to_tensor(before, dtype=case["dtype"])
    if "error" in case:
        with pytest.raises(kpatch.PatchError) as caught:
            kpatch.edit(x, case["patch"])
        assert str(caught.value).startswith(case["error"])
        assert to_numpy(x).tobytes() == before.tobytes()
    else:
        after = array(case["after"], case["dtype"])
        assert to_numpy(kpatch.edit(x, case["patch"])).tobytes() == after.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['patch']} ({case['dtype']})")
def test_apply(case):
    """The same with a variable: `_` as a target becomes its name, and stands for it in `let` and `assert`."""
    if case["patch"].startswith(("let", "assert")):
        pytest.skip("a model has no implied tensor")
    before = array(case["before"], case["dtype"])
    layer = holder(before, case["dtype"])
    text = "; ".join("t" + part[1:] for part in case["patch"].split("; "))
    if "error" in case:
        with pytest.raises(kpatch.PatchError):
            kpatch.apply(layer, text)
    else:
        applied = kpatch.apply(layer, text)
        assert to_numpy(layer.t.value).tobytes() == array(case["after"], case["dtype"]).tobytes()
        applied.undo()
    assert to_numpy(layer.t.value).tobytes() == before.tobytes()
