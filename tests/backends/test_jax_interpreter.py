"""Statements that run for the first time on jax: by NumPy, with the bits of the compiled operations, or by these."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("jax's own", allow_module_level=True)

import jax

if jax.default_backend() != "cpu":
    pytest.skip("NumPy computes of what lies in the memory of a CPU", allow_module_level=True)

import kpatch
from kpatch.backends import jax_host as host
from kpatch.run import interpret
from kpatch.run.programs import Program

ZEROS = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.5, -2.5], "float32")
TEXTS = {
    "add": "add(_, $y)",
    "subtract": "subtract(_, $y)",
    "multiply": "multiply(_, $y)",
    "negative": "negative(_)",
    "abs": "abs(_)",
    "square": "square(_)",
    "sqrt": "sqrt(abs(_))",
    "floor": "floor(_)",
    "ceil": "ceil(_)",
    "sign": "sign(_)",
    "maximum": "maximum(_, $y)",
    "minimum": "minimum(_, 0.25)",
    "clip": "clip(_, -0.5, $y)",
    "where": "where(_ < $y, _ * 0.1, 3)",
    "isnan": "where(isnan(_), 0, _)",
    "isinf": "where(isinf(_), 0, _)",
    "isfinite": "where(isfinite(_), _, 0)",
    "logical_and": "where(logical_and(_ > 0, $y > 0), 1, 2)",
    "logical_or": "where(logical_or(_ >= 0, $y == 0), 1, 2)",
    "logical_not": "where(logical_not(_ <= 0), 1, _)",
    "any": "where(any(_ > 2), _, 1)",
    "all": "where(all(_ != $y, axis=0), _, 1)",
    "max": "_ - max(_, axis=1, keepdims=true)",
    "min": "_ + min(_) * 0.1",
    "sum": "_ + sum(_, axis=0) * 0.1",
    "mean": "_ - mean(_)",
    "prod": "where(_ > 0, prod(where(abs(_) > 1, 1.5, 0.5)), _)",
    "var": "_ + var(_, axis=1, keepdims=true) * 1e-5",
    "std": "_ + std(_)",
    "quantile": "_ - quantile(abs(_), 0.9)",
    "median": "_ - median(_, axis=0)",
    "operators": "-(0.7 * _ + 0.3 * $y - 1) * 3",
    "logic": "where(not (_ < 0) and $y > 0 or _ == 2, _, $y)",
}


def arrays(zeros):
    """Numbers of many sizes; with `zeros`, also zeros of both signs, in pairs."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((24, 8)) * 10.0 ** rng.integers(-8, 8, (24, 8)) for _ in range(2))
    if zeros:
        x[:8], y[:8] = ZEROS, ZEROS[:, None]
    return x.astype("float32"), y.astype("float32")


def edited(text, x, y, monkeypatch, budget):
    """The result, and whether NumPy computed it."""
    monkeypatch.setattr(host, "BUDGET", budget)
    monkeypatch.setattr(host, "_copied", {})
    found = []
    for owner, name in ((interpret, "_interpreted"), (Program, "_in_blocks")):
        function = getattr(owner, name)
        told = lambda *args, function=function: found.append(function(*args)) or found[-1]  # noqa: E731
        monkeypatch.setattr(owner, name, told)
    result = np.asarray(kpatch.edit(x, text, bindings={"y": y} if "$y" in text else {}))
    monkeypatch.undo()
    return result, found[-1] is not None


@pytest.mark.parametrize(("name", "zeros"), [*((name, True) for name in TEXTS), ("maximum", False), ("clip", False)])
def test_numpy_gives_the_bits_of_the_compiled_operations(name, zeros, monkeypatch):
    x, y = map(keras.ops.convert_to_tensor, arrays(zeros))
    first, interpreted = edited(f"_ = {TEXTS[name]}", x, y, monkeypatch, host.BUDGET)
    compiled, otherwise = edited(f"_ = {TEXTS[name]}", x, y, monkeypatch, -1)
    assert interpreted or (zeros and name in ("maximum", "clip"))
    assert not otherwise
    assert first.tobytes() == compiled.tobytes()


def test_each_function_that_is_interpreted_is_tried():
    assert set(TEXTS) >= interpret.FUNCTIONS


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e-40])
def test_what_may_have_other_bits_is_left_to_xla(odd, monkeypatch):
    x = np.linspace(-3, 3, 12, dtype="float32").reshape(3, 4)
    y = np.full((3, 4), odd, "float32")
    for text, a, b in (("_ = sqrt(_) * $y", x, y), ("_ = floor($y) - _", y, x), ("_ = floor(_) * 1e-30 * 1e-10", x, x)):
        assert not edited(text, keras.ops.convert_to_tensor(a), b, monkeypatch, host.BUDGET)[1]
    for text in ("_ = _ / 3", "_ = exp(_)", "_ = _ ** 3", "_ = normal(shape(_), seed=1)"):
        assert not edited(text, keras.ops.convert_to_tensor(x), x, monkeypatch, host.BUDGET)[1]


SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-39, 0.0, -0.0, 1e-30, 3e38, 1.0, -2.5], "float32")
IN_BLOCKS = """
_ * 0.7 + $y * 1e-20
-(_ - $y) * (_ + 3)
clip(_, -0.5, 1e-30)
minimum(maximum(-2, _), 1e-37)
where(abs(_) < 1e-39, _ * 2, -$y)
_ ** 2 - $y
where(isnan(_) or $y >= _, square(_), 1e-40)
where(not isfinite($y) and _ != $y, abs(_), _ - 1e-39)
"""


@pytest.mark.parametrize("value", IN_BLOCKS.strip().splitlines())
def test_blocks_have_the_bits_of_the_compiled_function_whatever_numbers_there_are(value, monkeypatch):
    x, y = (np.resize(array, (12, 12)) for array in (SPECIAL, np.repeat(SPECIAL, 12)))
    x, y = map(keras.ops.convert_to_tensor, (x, y))
    first, interpreted = edited(f"_ = {value}", x, y, monkeypatch, host.BUDGET)
    compiled, otherwise = edited(f"_ = {value}", x, y, monkeypatch, -1)
    assert interpreted
    assert not otherwise
    nan = np.isnan(first) & np.isnan(compiled)  # which NaN comes of two, the processor chooses
    assert first[~nan].tobytes() == compiled[~nan].tobytes()


def test_a_choice_of_zeros_is_not_computed_in_blocks():
    [step] = kpatch.plan(keras.Variable(np.zeros((2, 3), "float32")), "_ = maximum(_, 0)").edits
    assert not host.agrees(step.value.operations, [np.float32(0)])
    assert not host.agrees(step.value.operations, [np.float32("nan")])
    assert host.agrees(step.value.operations, [np.float32(0.1)])
    [step] = kpatch.plan(keras.Variable(np.zeros((2, 3), "float32")), "_ = _ / 3").edits
    assert not host.agrees(step.value.operations, [np.float32(3)])
