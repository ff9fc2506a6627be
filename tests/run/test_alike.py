"""Steps that are copied for another shape are those that would be planned for it."""

import sys

import keras
import numpy as np
import pytest

import kpatch
from kpatch.names.bindings import Bindings
from kpatch.names.index import index
from kpatch.names.meanings import ModelNames
from kpatch.run import alike, planner
from kpatch.run.steps import EditStep
from kpatch.values.budget import Budget

pytestmark = pytest.mark.backend_free
SHAPES = [(3, 4), (5,), (2, 3, 2), (3, 4), (1,), (1, 7), (2, 1, 2, 2), (6, 2), (), (64, 3)]
DTYPES = ["float32", "float32", "float64", "float16", "bfloat16"]

FINE = """
** *= 2
** = 0
** = 3 * _ - mean(_) / (1 + max(abs(_)))
** = clip(_, -1, 0.5)
** = where(_ > 0.5 and not isnan(_), 0, -_) + quantile(_, 0.25)
** += $donor._ * 2 - max($donor._)
** = $donor._
**[abs(_) < 0.5] = 0
**[not _ >= $donor._] = median(_)
**[_ == max(_)] *= 3
**[isnan(_)] = 1 / 3
** = $number * _
** = size(_)
** = exp(sqrt(abs(_))) ** 2
"""
FAILING = """
** = 3 * _ - mean(_) / (1 + max(abs(_)))
**[_ == max(_)] *= 3
**[_ < 2**40] = 1e40
**[_] = 0
**[0] = 0
** = _[..., 0:1]
** = _ @ _
** = uniform(0, 1)
** = _ - $donor.v0
** = sum(_, -1)
"""


class Weights(keras.layers.Layer):
    """Variables of many shapes and dtypes; the odd ones are an empty one and integers."""

    def __init__(self, seed, odd):
        super().__init__(name="all")
        draw = np.random.default_rng(seed)
        shapes, dtypes = SHAPES + [(4, 0)] * odd, DTYPES + ["int32"] * odd
        for at, shape in enumerate(shapes * 2):
            dtype = dtypes[(at * 7 + at // len(shapes)) % len(dtypes)]
            values = (draw.standard_normal(shape) * 3).astype("int32" if dtype == "int32" else "float32")
            setattr(self, f"v{at}", self.add_weight(shape, dtype=dtype, name=f"v{at}", initializer="zeros"))
            getattr(self, f"v{at}").assign(values)
        self.built = True


def model(seed=0, odd=False):
    model = keras.Model()
    model.all = Weights(seed, odd)
    return model


def planned(text, odd, monkeypatch, scales):
    """What planning gives: the steps and the cost, or the errors."""
    given = {"donor": model(1, odd)} if "$donor" in text else {"number": 0.3} if "$number" in text else {}
    suits, made = alike.suits_any_shape, []
    monkeypatch.setattr(alike, "suits_any_shape", suits if scales else lambda node: False)
    monkeypatch.setattr(planner, "Budget", lambda length: made.append(Budget(length)) or made[-1])
    try:
        checked = planner.make(kpatch.parse(text), ModelNames(index(model(0, odd)), Bindings(given)))
    except kpatch.PatchError as error:
        return str(error)
    finally:
        monkeypatch.undo()
    return [fields(step) for step in checked.steps], made[0].cost()


def fields(step):
    """All that tells one step from another."""
    found = {name: getattr(step, name) for name in EditStep.__slots__}
    found["place"], found["operand"] = step.place.path, step.operand and (step.operand.dtype, step.operand.data)
    for name in ("mask", "value"):
        program = found[name]
        found[name] = program and (program.operations, program.scalars, program.dtype, program.result, program.counts)
    constant = found["constant"]
    found["constant"] = None if constant is None else (constant.shape, constant.dtype, constant.tobytes())
    selection = found["selection"]
    found["selection"] = selection and (type(selection), selection.size, vars_of(selection))
    return {name: repr(value) for name, value in found.items()}


def vars_of(selection):
    return [getattr(selection, name) for name in getattr(selection, "__slots__", ())]


@pytest.mark.parametrize("text", FINE.strip().splitlines())
def test_the_steps_and_the_cost_are_those_of_planning_each_match(text, monkeypatch):
    steps, cost = planned(text, False, monkeypatch, scales=False)
    assert planned(text, False, monkeypatch, scales=True) == (steps, cost)


@pytest.mark.parametrize("text", FAILING.strip().splitlines())
def test_the_errors_are_those_of_planning_each_match(text, monkeypatch):
    expected = planned(text, True, monkeypatch, scales=False)
    assert isinstance(expected, str)
    assert planned(text, True, monkeypatch, scales=True) == expected


@pytest.mark.parametrize("value", ["= $donor._", "+= $donor._ * 2", "= where($donor._ > 6, 1, _)"])
def test_a_tensor_under_a_mask_fits_rows_alone(value, monkeypatch):
    """So that two rows tell nothing of a matrix."""
    monkeypatch.setattr(sys.modules[__name__], "SHAPES", [(3,), (4,), (2, 3)])
    monkeypatch.setattr(sys.modules[__name__], "DTYPES", ["float32"])
    with pytest.raises(kpatch.ShapeError) as caught:
        kpatch.plan(model(), f"**[_ > 0] {value}", donor=model(1))
    assert caught.value.notes[-1] == "2 of the 6 matches fail"


def test_most_matches_are_not_planned(monkeypatch):
    plan, made = planner.plan_edit, []
    monkeypatch.setattr(planner, "plan_edit", lambda *args: made.append(args[1].shape) or plan(*args))
    layers = [keras.layers.Dense(n, name=f"of_{n}") for n in range(1, 30)]
    kpatch.apply(keras.Sequential([keras.Input((3,)), *layers]), "**.kernel = clip(_, -1, 1)").undo()
    assert len(made) == 2
