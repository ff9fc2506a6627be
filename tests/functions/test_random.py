"""Random numbers: the same bits on every backend, and distributed as they say."""

import math
from statistics import NormalDist

import keras
import numpy as np
import pytest
from keras import ops
from test_functions import FLOATS, INTEGERS, fails, given_as, numbers, run

import kpatch
from kpatch.errors import DTypeError, FunctionError, LimitError, ShapeError, UnsupportedError
from kpatch.functions import call, randoms
from kpatch.values.arithmetic import planning
from kpatch.values.dtypes import NUMPY, RANGES, literal

MANY = 200_000


def drawn(name, *args, stream=0, **kwargs):
    given = {key: given_as(value) for key, value in kwargs.items()}
    return numbers(call(name, [given_as(a) for a in args], given, stream=stream))


# -- the bits ----------------------------------------------------------------------------------------------------------


def test_the_words_are_those_of_philox():
    """Known answers of Random123: the counter 0 with the key 0. NumPy counts up first, from the largest counter."""
    generator = np.random.Philox(key=np.zeros(2, "uint64"), counter=np.full(4, 2**64 - 1, "uint64"))
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert generator.random_raw(4).tolist() == expected
    [block] = randoms.words(1, -1, 2, 3)
    key, counter = np.array([2**64 - 1, 2], "uint64"), np.array([0, 0, 0, 1], "uint64")
    assert block.tolist() == np.random.Philox(key=key, counter=counter).random_raw(3).tolist()


BITS = {"float16": "uint16", "bfloat16": "uint16", "float32": "uint32", "float64": "uint64"}
TEN, THREE = (("mean", 10), ("stddev", 0.25)), (("minval", -3), ("maxval", 0.1))
GOLDEN_BITS = {
    ("normal", "float16", ()): ["0x32c4", "0x3b6c", "0x3ee0", "0xb979"],
    ("normal", "bfloat16", ()): ["0x3e59", "0x3f6d", "0x3fdc", "0xbf2f"],
    ("normal", "float32", ()): ["0x3e588696", "0x3f6d70c7", "0x3fdbf985", "0xbf2f1491"],
    ("normal", "float64", ()): ["0x3fcb10d2b0eb1d6f", "0x3fedae18d49b7311", "0x3ffb7f30a99332f9", "0xbfe5e2922aa57e04"],
    ("normal", "float16", TEN): ["0x4907", "0x491e", "0x4937", "0x48ea"],
    ("normal", "bfloat16", TEN): ["0x4121", "0x4124", "0x4127", "0x411d"],
    ("normal", "float32", TEN): ["0x4120d887", "0x4123b5c3", "0x4126dfcc", "0x411d43ae"],
    ("normal", "float64", TEN):
        ["0x40241b10d2b0eb1d", "0x402476b863526dcc", "0x4024dbf9854c9998", "0x4023a875b7556a08"],
    ("uniform", "float16", ()): ["0x3b9a", "0x3b60", "0x3b5c", "0x3b14"],
    ("uniform", "bfloat16", ()): ["0x3f73", "0x3f6c", "0x3f6b", "0x3f63"],
    ("uniform", "float32", ()): ["0x3f733b92", "0x3f6bf96b", "0x3f6b79a9", "0x3f628d61"],
    ("uniform", "float64", ()):
        ["0x3fee6772394a148d", "0x3fed7f2d58b80508", "0x3fed6f352d22d2b7", "0x3fec51ac14562815"],
    ("uniform", "float16", THREE): ["0xaafd", "0xb08f", "0xb0c1", "0xb41b"],
    ("uniform", "bfloat16", THREE): ["0xbd60", "0xbe12", "0xbe18", "0xbe83"],
    ("uniform", "float32", THREE): ["0xbd5fa88e", "0xbe11eb3a", "0xbe181b65", "0xbe836042"],
    ("uniform", "float64", THREE):
        ["0xbfabf511b33f37c0", "0xbfc23d674d7c8e60", "0xbfc3036c9d1cfe50", "0xbfd06c084eb6a118"],
}  # fmt: skip
GOLDEN_INTEGERS = {
    "randint": [[27, 87, 6], [33, 49, 45]],
    "streamed": [2, 4, 2],
    "bernoulli": [True, False, True, True, True, True, True, False, False, False],
    "permutation": [7, 5, 1, 3, 8, 4, 2, 0, 9, 6],
}


@pytest.mark.parametrize("case", GOLDEN_BITS, ids=str)
def test_floats_to_the_bit(case):
    name, dtype, options = case
    if dtype not in FLOATS:
        pytest.skip("not available")
    found = drawn(name, 4, dtype=dtype, seed=7, **dict(options))
    assert [hex(x) for x in found.view(BITS[dtype]).tolist()] == GOLDEN_BITS[case]


def test_integers_to_the_bit():
    assert drawn("randint", [2, 3], 0, 100, seed=7).tolist() == GOLDEN_INTEGERS["randint"]
    assert drawn("randint", 3, -5, 5, dtype="int8", seed=-7, stream=3).tolist() == GOLDEN_INTEGERS["streamed"]
    assert drawn("bernoulli", 10, 0.3, seed=7).tolist() == GOLDEN_INTEGERS["bernoulli"]
    assert drawn("permutation", 10, seed=7).tolist() == GOLDEN_INTEGERS["permutation"]
    assert run("permutation", 10, seed=7).dtype == np.int32


def test_seeds_are_64_bits():
    draws = [drawn("uniform", 4, seed=seed).tolist() for seed in (-1, 2**64 - 1, 0, 2**63, -(2**63), 1)]
    assert draws[0] == draws[1]
    assert draws[3] == draws[4]
    assert len({tuple(draw) for draw in draws}) == 4


@pytest.mark.parametrize("name", ["normal", "uniform", "randint", "bernoulli"])
def test_a_smaller_shape_is_the_beginning_of_a_larger_one(name):
    args = {"randint": (0, 1000), "bernoulli": (0.5,)}.get(name, ())
    count = 2 * randoms.BLOCK + 100
    whole = drawn(name, count, *args, seed=3)
    for shape in ([], [1], [3], [2, 5], [randoms.BLOCK], [randoms.BLOCK + 1]):
        found = drawn(name, shape, *args, seed=3)
        assert found.shape == tuple(shape)
        np.testing.assert_array_equal(found.ravel(), whole[: found.size])
    for shape in ([0], [3, 0]):
        assert drawn(name, shape, *args, seed=3).shape == tuple(shape)


def test_blocks_do_not_show(monkeypatch):
    calls = [
        ("normal", 1000),
        ("uniform", 1000),
        ("randint", 1000, 0, 7),
        ("bernoulli", 1000, 0.5),
        ("permutation", 1000),
    ]
    before = [drawn(*arguments, seed=1) for arguments in calls]
    monkeypatch.setattr(randoms, "BLOCK", 7)
    for arguments, expected in zip(calls, before, strict=True):
        np.testing.assert_array_equal(drawn(*arguments, seed=1), expected)


def test_streams_and_functions_are_independent():
    size = 50_000
    draws = [drawn("normal", size, seed=1, stream=stream) for stream in range(3)]
    draws += [drawn("normal", size, seed=2), drawn("uniform", size, seed=1), drawn("bernoulli", size, 0.5, seed=1)]
    draws += [drawn("randint", size, 0, 100, seed=1), drawn("permutation", size, seed=1)]
    correlations = np.corrcoef([draw.astype("float64") for draw in draws]) - np.eye(len(draws))
    assert np.abs(correlations).max() < 5 / math.sqrt(size)
    shifted = [np.corrcoef(draws[0][:-lag], draws[0][lag:])[0, 1] for lag in range(1, 9)]
    assert np.abs(shifted).max() < 5 / math.sqrt(size)


# -- the distributions -------------------------------------------------------------------------------------------------


def kolmogorov_smirnov(sample, distribution):
    """The largest distance between the sample's distribution function and the other, in units of 1 / sqrt(n)."""
    sample = np.sort(sample.astype("float64"))
    n = len(sample)
    expected = distribution(sample)
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    return max(above.max(), below.max()) * math.sqrt(n)


def test_normal_is_normal():
    erf = np.vectorize(math.erf)
    for seed in range(3):
        x = drawn("normal", MANY, seed=seed).astype("float64")
        assert kolmogorov_smirnov(x, lambda x: (1 + erf(x / math.sqrt(2))) / 2) < 1.95  # exceeded once in a thousand
        assert abs(x.mean()) < 4 / math.sqrt(MANY)
        assert abs(x.var() - 1) < 4 * math.sqrt(2 / MANY)
        assert abs((x**3).mean()) < 4 * math.sqrt(15 / MANY)
        assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / MANY)
    x = drawn("normal", MANY, -3, 0.5, seed=9)
    assert abs(x.mean() + 3) < 2 / math.sqrt(MANY)
    assert abs(x.std() - 0.5) < 0.005
    assert drawn("normal", 3, 2.5, 0, seed=1).tolist() == [2.5] * 3


def test_uniform_is_uniform():
    for seed in range(3):
        x = drawn("uniform", MANY, -2, 6, seed=seed)
        assert kolmogorov_smirnov(x, lambda x: (x + 2) / 8) < 1.95
        assert x.min() >= -2
        assert x.max() < 6


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_stays_below_its_bound(dtype):
    for low, high in ((0, 1), (0.1, 0.3), (-1, -0.99)):
        x = drawn("uniform", 20_000, low, high, dtype=dtype, seed=5)
        assert (x >= NUMPY[dtype].type(low)).all()
        assert (x < NUMPY[dtype].type(high)).all()
    top = np.array([2**64 - 1], "uint64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randoms, "words", lambda *_: iter([top]))
        assert drawn("uniform", 1, seed=1, dtype=dtype)[0] < 1
        assert drawn("bernoulli", 1, 1, seed=1)[0]


def test_randint_is_even():
    for low, high in ((0, 6), (-50, 51), (0, 1)):
        x = drawn("randint", MANY, low, high, seed=high)
        counts = np.bincount(x - low, minlength=high - low)
        expected = MANY / (high - low)
        freedom = high - low - 1
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - freedom) <= 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_randint_takes_the_whole_range(dtype):
    low, high = RANGES[dtype]
    for bounds in ((low, high), (high - 1, high), (low, low + 1)):
        x = drawn("randint", 1000, *bounds, dtype=dtype, seed=2)
        assert x.dtype == dtype
        assert int(x.min()) >= bounds[0]
        assert int(x.max()) < bounds[1]
    if dtype != "uint64":
        assert len(set(drawn("randint", 1000, low, high + 1, dtype=dtype, seed=2).tolist())) > 200


def test_scaled_words_are_exact():
    words = np.random.default_rng(1).integers(0, 2**64, 500, dtype="uint64")
    for count in (1, 2, 6, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 + 12345, 2**64 - 1, 2**64):
        assert randoms.scaled(words, count).tolist() == [word * count >> 64 for word in words.tolist()]


def test_bernoulli_and_permutation():
    for p in (0, 0.3, 1, 1e-3):
        x = drawn("bernoulli", MANY, p, seed=4)
        assert x.dtype == bool
        assert abs(x.mean() - p) <= 4 * math.sqrt(p * (1 - p) / MANY)
    for n in (0, 1, 2, 1000):
        assert sorted(drawn("permutation", n, seed=4).tolist()) == list(range(n))
    firsts = np.bincount([drawn("permutation", 4, seed=seed)[0] for seed in range(400)], minlength=4)
    assert (np.abs(firsts - 100) < 45).all()


# -- the arithmetic ----------------------------------------------------------------------------------------------------


def test_the_tails_of_the_normal_distribution():
    beyond = np.concatenate([2.0 ** -np.arange(2, 55), np.linspace(1e-6, 0.4999, 5000)])
    words = np.floor(beyond * 2.0**53).astype("uint64") << np.uint64(12)
    shares = (np.floor(beyond * 2.0**53) + 0.5) * 2.0**-53
    expected = np.array([NormalDist().inv_cdf(p) for p in shares.tolist()])
    np.testing.assert_allclose(randoms.deviates(words), expected, rtol=1e-14)
    np.testing.assert_array_equal(randoms.deviates(words | np.uint64(1)), -randoms.deviates(words))
    extreme = randoms.deviates(np.array([0, 1, 2**64 - 1, 2**64 - 2], "uint64"))
    assert np.isfinite(extreme).all()
    assert np.abs(extreme).max() < randoms.FARTHEST


def test_the_logarithm():
    x = np.concatenate(
        [2.0 ** -np.linspace(0, 54, 5000), np.linspace(0.5, 2, 5001), 10.0 ** np.linspace(-300, 300, 999)]
    )
    expected = np.array([math.log(v) for v in x.tolist()])
    np.testing.assert_allclose(randoms.logarithm(x), expected, rtol=4e-16)


def test_rounding_happens_once():
    x = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 2**-8, -(1 + 2**-8 + 2**-40), 0.0, 1 + 3 * 2**-8])
    expected = [1 + 2**-7, 1, 1, -(1 + 2**-7), 0, 1 + 2**-6]
    assert randoms.rounded(x, "bfloat16").astype("float64").tolist() == expected
    for dtype in FLOATS:
        wide, found = drawn("normal", 1000, seed=1, dtype="float32"), drawn("normal", 1000, seed=1, dtype=dtype)
        assert found.dtype == NUMPY[dtype]
        np.testing.assert_allclose(found.astype("float64"), wide, rtol=2.0**-7)


# -- errors ------------------------------------------------------------------------------------------------------------

NORMAL = "\n  normal(shape, mean=0.0, stddev=1.0, dtype=None, *, seed)"
RANDINT = '\n  randint(shape, minval, maxval, dtype="int32", *, seed)'
NEEDED = "needs 'seed'; the same seed gives the same numbers everywhere: seed=1"


@pytest.mark.parametrize(
    ("kind", "name", "args", "kwargs", "text", "argument"),
    [
        (FunctionError, "normal", ([3],), {"seed": None}, f"normal() {NEEDED}" + NORMAL, None),
        (FunctionError, "permutation", (3,), {"seed": None},
         f"permutation() {NEEDED}\n  permutation(n, *, seed)", None),
        (FunctionError, "permutation", (3, 1), {"seed": None},
         "permutation() takes 1 argument, 2 given; 'seed' is given by name: seed=1\n  permutation(n, *, seed)", 1),
        (FunctionError, "normal", ([3],), {"seed": 1.5},
         "'seed' of normal() is a constant integer, not a float" + NORMAL, "seed"),
        (FunctionError, "normal", ([3],), {"seed": np.array(1, "int32")},
         "'seed' of normal() is a constant integer, not a tensor of int32" + NORMAL, "seed"),
        (FunctionError, "normal", ([3], 0, -1), {}, "'stddev' of normal() cannot be negative: -1", 2),
        (FunctionError, "normal", ([3], math.inf), {}, "'mean' of normal() is finite, not inf", 1),
        (FunctionError, "normal", ([3],), {"stddev": math.nan}, "'stddev' of normal() is finite, not nan", "stddev"),
        (DTypeError, "normal", ([3],), {"dtype": "int8"}, "normal() makes floats, not int8; randint() makes integers",
         "dtype"),
        (DTypeError, "normal", ([3],), {"stddev": 10000, "dtype": "float16"},
         "numbers up to 85000 do not fit float16 (at most 65504)", "stddev"),
        (FunctionError, "uniform", ([3], 1, 1), {},
         "'minval' of uniform() must be less than 'maxval' in float32: found 1 and 1", 2),
        (FunctionError, "uniform", ([3], 1, 1.0001), {"dtype": "bfloat16"},
         "'minval' of uniform() must be less than 'maxval' in bfloat16: found 1 and 1.0001", 2),
        (FunctionError, "uniform", ([3],), {"maxval": math.inf}, "'maxval' of uniform() is finite, not inf", "maxval"),
        (DTypeError, "uniform", ([3], -70000, 1, "float16"), {}, "-70000 does not fit float16 (at most 65504)", 1),
        (FunctionError, "randint", ([3], 5, 5), {},
         "'minval' of randint() must be less than 'maxval' in int32: found 5 and 5", 2),
        (DTypeError, "randint", ([3], -200, 5, "int8"), {},
         "'minval' of randint() is at least -128 for int8, not -200", 1),
        (DTypeError, "randint", ([3], 0, 129, "int8"), {},
         "'maxval' of randint() is at most 128 for int8, not 129", 2),
        (DTypeError, "randint", ([3], 0, 2, "float32"), {},
         "randint() makes integers, not float32; uniform() makes floats", 3),
        (FunctionError, "randint", ([3], 0.5, 2), {},
         "'minval' of randint() is a constant integer, not a float" + RANDINT, 1),
        (FunctionError, "bernoulli", ([3], 1.5), {}, "'p' of bernoulli() must be between 0 and 1: 1.5", 1),
        (FunctionError, "bernoulli", ([3], math.nan), {}, "'p' of bernoulli() must be between 0 and 1: nan", 1),
        (ShapeError, "permutation", (-1,), {}, "a length cannot be negative: -1", 0),
        (ShapeError, "normal", ([2, -1],), {}, "a length cannot be negative: -1", 0),
        (LimitError, "normal", ([10**12],), {},
         "a result has at most 268435456 entries, this one would have 1000000000000", None),
        (LimitError, "permutation", (10**12,), {},
         "a result has at most 268435456 entries, this one would have 1000000000000", None),
    ],
)  # fmt: skip
def test_errors(kind, name, args, kwargs, text, argument):
    kwargs = {key: value for key, value in {"seed": 1, **kwargs}.items() if value is not None}
    assert fails(kind, name, *args, **kwargs) == (text, argument)


def test_dtypes_that_a_backend_lacks():
    for dtype in {"float64", "int64", "uint64"} - {*FLOATS, *INTEGERS}:
        name = "normal" if dtype == "float64" else "randint"
        args = ([3],) if name == "normal" else ([3], 0, 9)
        assert "no" in fails(UnsupportedError, name, *args, dtype=dtype, seed=1)[0]


# -- in patches --------------------------------------------------------------------------------------------------------


def holder(values, dtype="float32"):
    layer = keras.layers.Layer(name="holder")
    layer.k = layer.add_weight(shape=np.shape(values), dtype=dtype, name="k", initializer="zeros", trainable=False)
    layer.built = True
    layer.k.assign(np.asarray(values, dtype))
    return layer


def read(layer):
    return np.asarray(ops.convert_to_numpy(layer.k.value))


def test_entries_chosen_at_random_become_random():
    layer = holder(np.full((20, 30), 9.0))
    kpatch.apply(layer, "k[bernoulli(shape(_), 0.3, seed=1)] = normal(shape(_), stddev=0.05, seed=2)")
    mask = drawn("bernoulli", [20, 30], 0.3, seed=1)
    expected = np.full((20, 30), 9.0, "float32")
    expected[mask] = drawn("normal", int(mask.sum()), stddev=0.05, seed=2)
    np.testing.assert_array_equal(read(layer), expected)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("zeros(shape(_))", 0), ("ones(shape(_)) * 2", 2), ("full(shape(_), 5)", 5), ("full(size(_), 6)", 6),
        ("broadcast_to(7, shape(_))", 7), ("broadcast_to([8], shape(_))", 8), ("broadcast_to(_, shape(_)) + 1", [3, 4]),
        ("cast(permutation(size(_), seed=1), \"float32\")", [0, 1]), ("full(shape(_), [3, 4])", [3, 4]),
    ],
)  # fmt: skip
def test_lengths_under_a_mask_are_known_when_the_patch_runs(text, values):
    layer = holder([1.0, 2.0, 3.0])
    plan = kpatch.plan(layer, f"k[_ > 1] = {text}")
    assert plan.rows
    kpatch.apply(layer, f"k[_ > 1] = {text}")
    expected = np.array([1.0, 2.0, 3.0], "float32")
    expected[expected > 1] = values
    np.testing.assert_array_equal(read(layer), expected)


def test_lengths_that_turn_out_wrong():
    layer = holder([1.0, 2.0, 3.0])
    for text, error in (
        ("k[_ > 1] = full(shape(_), [1, 2, 3])", "a value of shape (3,) does not broadcast to (2,)"),
        ("k[_ > 1] = broadcast_to([1, 2, 3], shape(_))", "the shape (3,) does not broadcast to (2,)"),
        ("k[_ > 1] = normal(size(_) - 3, seed=1)", "a length cannot be negative: -1"),
    ):
        with pytest.raises(ShapeError) as caught:
            kpatch.apply(layer, text)
        assert caught.value.message == error
        np.testing.assert_array_equal(read(layer), [1, 2, 3])


def test_unknown_lengths_are_for_planning_only():
    from kpatch.values.dtypes import Value

    unknown = call("shape", [Value("float32", (None, 3))])
    text = "'shape' of normal() is not known before the patch runs"
    assert fails(UnsupportedError, "normal", unknown, seed=1) == (text, 0)
    with planning():
        for name, *others in (("zeros",), ("ones",), ("full", literal(1))):
            assert call(name, [unknown, *others]).shape == (None, None)
        assert call("normal", [unknown], {"seed": literal(1)}).shape == (None, None)
        assert call("broadcast_to", [literal(1), unknown]).shape == (None, None)
        assert call("eye", [call("size", [Value("float32", (None,))])]).shape == (None, None)


def test_inside_compiled_functions():
    text = "_ += normal(shape(_), seed=3) + where(bernoulli(shape(_), 0.5, seed=3), 1, 0)"
    x = np.zeros((3, 4), "float32")
    expected = np.asarray(ops.convert_to_numpy(kpatch.edit(ops.convert_to_tensor(x), text)))
    backend = keras.backend.backend()
    compiled = None
    if backend == "jax":
        import jax

        compiled = jax.jit(lambda x: kpatch.edit(x, text))
    if backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: kpatch.edit(x, text))
    if compiled:
        np.testing.assert_array_equal(np.asarray(ops.convert_to_numpy(compiled(ops.convert_to_tensor(x)))), expected)
