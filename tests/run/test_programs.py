"""What is compiled as it is planned is what the evaluator gives, to the bit; order statistics are those of sorting."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpatch
from kpatch.functions import ranks
from kpatch.names.meanings import Place
from kpatch.run import blocks, evaluate, live, programs
from kpatch.values.dtypes import NUMPY, Value, tensor
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
DTYPES = ["float32"] if BACKEND == "jax" else ["float32", "float64"]  # which has 64 bits only where that is switched on
SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.1, -0.1, 0.5, 2.0, 3.0, 16777216.0, 16777218.0]
SPECIAL += [1e-3, -1e-3, 3e38, -3e38, 1.5, -2.5]  # no subnormal numbers: in arithmetic some backends flush them


def filled(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < 0.5, rng.choice(SPECIAL, size), rng.normal(size=size)).astype(dtype)


def both(text, array):
    """The mask by the program, or `None` where there is none, and by the evaluator."""
    node = kpatch.parse(f"t[{text}] = 0").statements[0].target.index[0]
    place = Place("t", array.shape, str(array.dtype))
    planning = evaluate.Scope(lambda node, target: None, implied=Value(place.dtype, place.shape, None))
    program = programs.compile_mask(node, programs.evaluated(node, planning, None), place)
    scope = evaluate.Scope(lambda node, target: None, implied=tensor(keras.ops.convert_to_tensor(array, place.dtype)))
    by_evaluator = evaluate.evaluate(node, scope)
    expected = np.broadcast_to(
        np.asarray(by_evaluator.data if by_evaluator.weak else to_numpy(by_evaluator.data)), array.shape
    )
    return None if program is None else program.mask(array, scope), expected


def check(text, array):
    found, expected = both(text, array)
    assert found is not None, f"{text} is not made in blocks"
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected, err_msg=text)


# Expressions ----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(["0", "1", "-2", "3", "0.5", "0.1", "-0.1", "1e-3", "inf", "-inf", "nan", "pi", "16777216"])
SCALARS = NUMBERS | st.sampled_from(
    ["mean(where(abs(_) < 3, _, 0))", "_[0]", "max(where(isfinite(_), _, 0))", "size(_)"]
)
SCALARS |= st.sampled_from(["quantile(where(isfinite(_), _, 0), 0.5)", "sum(_[:3] * 0 + 1)", "size(_)"])


def call(parts):
    name, *arguments = parts
    return f"{name}({', '.join(arguments)})"


def floats(inner):
    return (
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner | SCALARS).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
        | st.tuples(SCALARS, st.sampled_from(["+", "-", "*"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
        | inner.map(lambda part: f"(-{part})")
        | st.tuples(st.sampled_from(["abs", "square"]), inner).map(call)
        | st.tuples(st.sampled_from(["maximum", "minimum"]), inner, inner | NUMBERS).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        )
    )


FLOATS = st.recursive(st.just("_"), floats, max_leaves=4)
OPS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
COMPARED = (
    st.tuples(FLOATS, OPS, FLOATS | SCALARS).map(" ".join)
    | st.tuples(SCALARS, OPS, FLOATS).map(" ".join)
    | st.tuples(SCALARS, OPS, FLOATS, OPS, SCALARS | FLOATS).map(" ".join)
    | st.tuples(FLOATS, OPS, FLOATS, OPS, FLOATS, OPS, NUMBERS).map(" ".join)
)
TESTS = COMPARED.map(lambda text: f"({text})") | st.tuples(st.sampled_from(["isnan", "isinf", "isfinite"]), FLOATS).map(
    lambda p: f"{p[0]}({p[1]})"
)
MASKS = st.recursive(
    TESTS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner | st.sampled_from(["true", "(_[0] > 0)"])).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        )
        | inner.map(lambda part: f"(not {part})")
        | st.tuples(st.sampled_from(["logical_and", "logical_or"]), inner, inner).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        )
        | inner.map(lambda part: f"logical_not({part})")
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=MASKS, seed=st.integers(0, 99))
def test_masks_are_those_of_the_evaluator(dtype, text, seed):
    array = filled(41, dtype, seed)
    found, expected = both(text, array)
    if found is not None:
        np.testing.assert_array_equal(found, expected, err_msg=text)


COMMON = """
_ < 0.5
abs(_) < 1e-3
abs(_) < quantile(where(isfinite(_), abs(_), 0), 0.9)
isnan(_)
not isfinite(_)
_ == 0
_ != _
-1 < _ <= 0.5
0 < abs(_) < 1 or isnan(_)
_ * _ + 1 >= 2 * _
maximum(_, 0) == 0
-_ > 0
(_ - _[0, 0]) * 2 < mean(where(abs(_) < 3, _, 0))
_ == 0.1
_ == 16777216
square(_) < 2 and _ > -1
"""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", COMMON.strip().splitlines())
def test_common_masks_are_made_in_blocks(dtype, text):
    check(text, filled(400, dtype).reshape(20, 20))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 24])
def test_sizes_around_a_block(size, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    check("abs(_) < 0.5 or isnan(_)", filled(size, "float32"))
    check("-1 <= _ < 1", filled(2 * size, "float32").reshape(2, size))


@pytest.mark.parametrize("size", [blocks.BLOCK - 1, blocks.BLOCK, blocks.BLOCK + 1, 2 * blocks.BLOCK + 3])
def test_sizes_around_the_real_block(size):
    check("abs(_) < 0.5 or isnan(_)", filled(size, "float32"))


@pytest.mark.parametrize("number", [16777217, -16777217, 33554433, 2**53 + 1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integers_that_a_float_cannot_hold(dtype, number, op):
    """Comparisons are exact: no float32 equals 16777217. Such a mask is left to the evaluator."""
    near = np.array([number, number - 2, number + 2, 0, np.nan, np.inf, -np.inf], "float64").astype(dtype)
    expected = [compare(op, value, number) for value in near]
    for text in (f"_ {op} {number}", f"(_ {op} {number})"):
        found, by_evaluator = both(text, near)
        assert by_evaluator.tolist() == expected
        assert found is None or found.tolist() == expected
    model = holder(near)
    kpatch.apply(model, f"t[_ {op} {number}] = 7")
    assert (to_numpy(model.t.value) == 7).tolist() == expected


def compare(op, value, number):
    """Exactly, as Python compares an integer with a float."""
    value = float(value)
    return {
        "==": value == number,
        "!=": value != number,
        "<": value < number,
        "<=": value <= number,
        ">": value > number,
        ">=": value >= number,
    }[op]


@pytest.mark.parametrize(
    "text", ["_ < sort(_)", "_[::-1] < 0", "cumsum(_) > 1", "exp(_) < 1", "_ / 2 > 0", "_ ** 2 < 1"]
)
def test_what_is_left_to_the_evaluator(text):
    found, _ = both(text, filled(16, "float32"))
    assert found is None


VALUES = """
_ * 2
2 * _ + 1
0.7 * _ + 0.3 * $other
_ - 0.1
_ * -_ - (1 - _)
(0.1 + 0.2) * _ - mean(_)
$other - _
_ + 3 * $other * _ - $k
max($other) * _
(_ - $other) * -pi
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", *DTYPES])
@pytest.mark.parametrize("text", VALUES.strip().splitlines())
def test_whole_values_are_those_of_the_evaluator(dtype, text):
    """To the bit: a new value of `+ - *`, compiled where it replaces a whole variable, evaluated where it is a part."""
    rng = np.random.default_rng(1)
    array, other = (rng.normal(size=(5, 7)).astype(NUMPY[dtype]) for _ in range(2))
    other = keras.Variable(other, dtype=dtype)
    bindings = {name: value for name, value in (("other", other), ("k", 0.25)) if f"${name}" in text}
    whole, part = holder(array, dtype), holder(array, dtype)
    [step] = kpatch.plan(whole, f"t = {text}", **bindings).edits
    assert step.value is not None, "it is compiled"
    kpatch.apply(whole, f"t = {text}", **bindings)
    kpatch.apply(part, f"let v = {text.replace('_', 't')}; t = v", **bindings)
    assert to_numpy(whole.t.value).tobytes() == to_numpy(part.t.value).tobytes()
    after = to_numpy(whole.t.value).copy()
    with kpatch.apply(whole, f"t = {text}; t += 1", **bindings):
        pass
    assert to_numpy(whole.t.value).tobytes() == after.tobytes()


def test_other_dtypes_are_left_to_the_evaluator():
    node = kpatch.parse("t[_ < 1] = 0").statements[0].target.index[0]
    for dtype in ("float16", "bfloat16", "int8", "int32", "bool"):
        place = Place("t", (3,), dtype)
        scope = evaluate.Scope(lambda node, target: None, implied=Value(dtype, (3,), None))
        assert programs.compile_mask(node, programs.evaluated(node, scope, None), place) is None


def holder(array, dtype=None):
    layer = keras.layers.Layer(name="holder")
    layer.t = layer.add_weight(shape=array.shape, dtype=dtype or str(array.dtype), name="t", initializer="zeros")
    layer.built = True
    layer.t.assign(array)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 40), (2, 3, 4)])
def test_a_mask_of_a_variable(dtype, shape):
    """Through `apply`: written where NumPy writes, and undone to the bit."""
    array = filled(int(np.prod(shape)), dtype, seed=3).reshape(shape)
    model, expected = holder(array), array.copy()
    where = np.abs(expected) < 1
    expected[where] = expected[where] * expected.dtype.type(2)
    nan = np.isnan(expected)
    expected[nan] = 9
    applied = kpatch.apply(model, "t[abs(_) < 1] = _ * 2; t[isnan(_)] = 9")
    np.testing.assert_array_equal(to_numpy(model.t.value), expected)
    applied.undo()
    assert to_numpy(model.t.value).tobytes() == array.tobytes()


def test_a_mask_of_memory_in_another_order():
    """A transposed parameter is not contiguous: no view of it is a row."""
    if BACKEND != "torch":
        pytest.skip("only torch's variables have strides")
    import torch

    model = holder(np.zeros((4, 3), "float32"))
    array = filled(12, "float32").reshape(3, 4)
    model.t._value.data = torch.from_numpy(array.copy()).T
    kpatch.apply(model, "t[abs(_) < 1] = 5")
    np.testing.assert_array_equal(to_numpy(model.t.value), np.where(np.abs(array.T) < 1, np.float32(5), array.T))


# Order statistics -----------------------------------------------------------------------------------------------------


def check_ranks(array, places):
    before = array.tobytes()
    found, expected = ranks.order_statistics(array, places), np.sort(array)[places]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, expected)  # NaN is NaN, whatever its sign
    assert array.tobytes() == before


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_order_statistics_are_those_of_sorting(data):
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    width = 32 if dtype == "float32" else 64
    entries = st.floats(width=width) | st.sampled_from([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1.0])
    array = np.array(data.draw(st.lists(entries, min_size=1, max_size=60)), dtype)
    places = sorted(data.draw(st.sets(st.integers(0, len(array) - 1), min_size=1, max_size=5)))
    for small in (0, ranks.SMALL):
        old, ranks.SMALL = ranks.SMALL, small
        try:
            check_ranks(array, places)
        finally:
            ranks.SMALL = old


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "bits", "ties", "equal", "nan", "infinities", "subnormal", "one sign"])
@pytest.mark.parametrize("size", [1, 2, ranks.SMALL, ranks.SMALL + 1, ranks.BLOCK, 3 * ranks.BLOCK + 5])
def test_order_statistics_of_many(dtype, kind, size):
    rng = np.random.default_rng(size)
    integers = f"uint{np.dtype(dtype).itemsize * 8}"
    array = {
        "normal": lambda: rng.normal(size=size),
        "bits": lambda: rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize) - 1, size, integers).view(dtype),
        "ties": lambda: rng.integers(-2, 3, size),
        "equal": lambda: np.full(size, -0.25),
        "nan": lambda: np.where(rng.random(size) < 0.6, rng.choice([np.nan, -np.nan], size), rng.normal(size=size)),
        "infinities": lambda: rng.choice([np.inf, -np.inf, 0.0, -0.0, 3e38], size),
        "subnormal": lambda: (
            rng.integers(1, 1000, size) * np.finfo(dtype).smallest_subnormal * rng.choice([-1, 1], size)
        ),
        "one sign": lambda: -np.abs(rng.normal(size=size)),
    }[kind]().astype(dtype)
    places = sorted({0, size // 3, size // 2, max(0, size - 2), size - 1})
    check_ranks(array, places)
    check_ranks(array, [size // 2])


def test_signed_zeros_are_in_order():
    array = np.array([0.0, -0.0] * ranks.SMALL, "float32")
    assert np.signbit(ranks.order_statistics(array, [0, ranks.SMALL - 1, ranks.SMALL])).tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(300, 100), (30000,)])
@pytest.mark.parametrize("q", ["0.9", "[0, 0.25, 1]", "0.3333"])
def test_quantiles_of_a_large_variable(shape, q):
    array = np.random.default_rng(4).normal(size=shape).astype("float32")
    expected = np.quantile(array, np.array(eval_list(q)))
    model = holder(array)
    x = keras.ops.convert_to_tensor(np.zeros(np.shape(expected), "float32"))
    found = to_numpy(kpatch.edit(x, f"_ = quantile($v, {q})", v=model.t))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-7)


def eval_list(text):
    return [float(part) for part in text.strip("[]").split(",")] if "[" in text else float(text)


@pytest.mark.backend_free
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [ranks.SMALL + 1, ranks.LARGE, ranks.LARGE + 1])
def test_each_way_to_order_statistics_gives_the_bits_of_all_digits(size, dtype, monkeypatch):
    rng = np.random.default_rng(size)
    normal = rng.standard_normal(size).astype(dtype)
    zeros, lost, odd = (
        np.where(rng.random(size) < 0.5, np.copysign(0, normal), -abs(normal)),
        normal.copy(),
        normal.copy(),
    )
    lost[5:7] = -np.nan, np.nan
    odd[5:7] = -np.inf, np.inf
    assert ranks._by_sample(normal, [size // 2]) is not None
    misleading = np.where(np.arange(size) % (size // ranks.SAMPLE) == 0, 9, normal).astype(dtype)
    assert ranks._by_sample(misleading, [size // 2]) is None
    for array in (normal, np.round(normal), zeros.astype(dtype), lost, odd, misleading, -np.sort(normal)):
        for places in ([0], [size - 1], [9 * size // 10], [size // 2, size // 2 + 1, size - 1], [size // 3, size // 2]):
            found = ranks.order_statistics(array, places)
            with monkeypatch.context() as only:
                only.setattr(ranks, "SMALL", -1)  # nothing is gathered
                expected = ranks._in_blocks(array, places)
            assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("keeps", [True, False])
def test_a_scalar_that_is_computed_of_other_numbers_alone(keeps, monkeypatch):
    monkeypatch.setattr(live, "KEPT", 0)
    variable = keras.Variable(1.5)
    kpatch.apply(variable, "_ = clip($w, -1, 0.5)", w=keras.Variable(2.0), undo=keeps)
    assert to_numpy(variable.value) == 0.5


def test_the_number_of_entries_under_a_mask_as_a_choice():
    variable = keras.Variable([-1.0, 5.0, -2.0])
    kpatch.apply(variable, "_[_ < 0] = where(_ < -1, size(_), 7)")
    assert to_numpy(variable.value).tolist() == [7, 5, 2]
