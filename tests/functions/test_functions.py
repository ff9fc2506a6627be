"""The table of functions: names and arguments as in `keras.ops`, values as NumPy's, on every backend."""

import inspect
import math
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from available import FLOATS, INTEGERS
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import kpatch
from kpatch.errors import DTypeError, FunctionError, LimitError, PatchError, ShapeError, UnsupportedError
from kpatch.functions import TABLE, call
from kpatch.functions.parameters import METHODS
from kpatch.functions.registry import REQUIRED
from kpatch.run.evaluate import Scope, evaluate
from kpatch.syntax import parse
from kpatch.values import arithmetic, dtypes
from kpatch.values.dtypes import NUMPY, Value, literal, tensor

JAX = keras.backend.backend() == "jax"


def make(values, dtype="float32"):
    return tensor(ops.convert_to_tensor(np.asarray(values).astype(NUMPY[dtype]), dtype=dtype))


def numbers(value):
    """The data as a NumPy array (TensorFlow's scalars of bfloat16 do not convert by themselves)."""
    if value.weak:
        return value.data
    data = ops.cast(value.data, "float32") if value.dtype == "bfloat16" else value.data
    array = np.asarray(ops.convert_to_numpy(data))
    assert value.dtype == "bfloat16" or array.dtype == NUMPY[value.dtype]
    assert keras.backend.standardize_dtype(value.data.dtype) == value.dtype
    assert array.shape == value.shape
    return array.astype(NUMPY[value.dtype])


def given_as(argument):
    """An argument of `call` from a Python object."""
    if isinstance(argument, str | Value):
        return argument
    if isinstance(argument, np.ndarray):
        return make(argument, argument.dtype.name)
    if isinstance(argument, list) and any(isinstance(item, np.ndarray | Value) for item in argument):
        return [given_as(item) for item in argument]
    return literal(argument)


def run(name, *args, **kwargs):
    value = call(name, [given_as(a) for a in args], {k: given_as(a) for k, a in kwargs.items()})
    return numbers(value)


def fails(kind, name, *args, **kwargs):
    with pytest.raises(kind) as caught:
        run(name, *args, **kwargs)
    return str(caught.value), caught.value.argument


def attempt(function, *args):
    """The result and no error, or nothing and the `PatchError`."""
    try:
        return function(*args), None
    except PatchError as error:
        return None, error


def expression(text, implied, other):
    """The value of an expression in which `_` and `x` are given."""
    node = parse(f"let x = 0\n_ = {text}").statements[1].value
    return evaluate(node, Scope(look_up=None, implied=implied, locals={"x": other}))


# -- the table ---------------------------------------------------------------------------------------------------------


NOT_IN_KERAS = ("bernoulli", "permutation", "logcumsumexp")  # docs/language.md says so


@pytest.mark.parametrize("function", TABLE.values(), ids=TABLE)
def test_names_and_arguments_are_those_of_keras(function):
    if function.name in NOT_IN_KERAS:
        return
    theirs = getattr(ops, function.name, None) or getattr(keras.random, function.name)
    keras_parameters = inspect.signature(theirs).parameters
    if function.name == "einsum":
        assert list(keras_parameters)[:2] == ["subscripts", "operands"]
        return
    for name, parameter in function.parameters.items():
        assert name in keras_parameters
        if parameter.default is not REQUIRED:
            assert keras_parameters[name].default == parameter.default
        elif function.name != "where" and name != "seed":  # with one argument it gives positions; seeds are required
            assert keras_parameters[name].default is inspect.Parameter.empty


@pytest.mark.parametrize("function", TABLE.values(), ids=TABLE)
def test_entries_are_complete(function):
    assert function.description
    assert function.name + "(" in function.example
    assert parse(f"_ = {function.example}")


WITH_ARGUMENTS = {
    "log": "log(abs(_))", "rsqrt": "rsqrt(_ + 0.001)", "arccosh": "arccosh(1 + abs(_))", "round": "round(_, 2)",
    "gelu": "gelu(_, approximate=false)", "clip": "clip(_, -1, 1)", "where": "where(_ > 0, _, 0)",
    "cast": 'cast(_, "int8")', "sum": "sum(_, axis=0)", "norm": "norm(_, axis=0)", "quantile": "quantile(_, 0.9)",
    "any": "any(_ > 0)", "all": "all(_ > 0)", "logical_and": "logical_and(_ > 0, _ < 1)",
    "logical_or": "logical_or(_ < 0, _ > 1)", "logical_xor": "logical_xor(_ < 0, _ > 1)",
    "logical_not": "logical_not(_ > 0)", "zeros": "zeros([2, 3])", "ones": "ones([2, 3])", "eye": "eye(3)",
    "full": "full([2, 3], 0.5)", "full_like": "full_like(_, 0.5)", "arange": "arange(10)",
    "linspace": "linspace(0, 1, 11)", "reshape": "reshape(_, [-1])", "swapaxes": "swapaxes(_, 0, 1)",
    "moveaxis": "moveaxis(_, 0, -1)", "expand_dims": "expand_dims(_, 0)", "repeat": "repeat(_, 2, axis=0)",
    "broadcast_to": "broadcast_to(_, [2, 3])", "tile": "tile(_, [2, 1])", "flip": "flip(_, axis=0)",
    "roll": "roll(_, 1, axis=0)", "concatenate": "concatenate([x, x], axis=0)", "stack": "stack([x, x])",
    "tensordot": "tensordot(_, x, axes=1)", "vdot": "vdot(_, x)", "einsum": 'einsum("ij,jk->ki", _, x)',
    "top_k": "top_k(_, 2)", "take": "take(_, [0, -1], axis=0)",
    "take_along_axis": "take_along_axis(_, [[0], [1], [-1]], axis=1)",
    "cholesky": "cholesky(_ @ transpose(_) + [[4, 0, 0], [0, 4, 0], [0, 0, 4]])", "normal": "normal([3], seed=1)",
    "uniform": "uniform([3], seed=1)", "randint": "randint([3], 0, 9, seed=1)",
    "bernoulli": "bernoulli([3], 0.5, seed=1)", "permutation": "permutation(5, seed=1)",
}  # fmt: skip


def sample_call(function):
    """A call with tensors `_` and `x`: those that are not in the list above take nothing else."""
    taken = ("x", "x1", "x2", "a", "b")
    names = [p for p in function.parameters if p in taken]
    others = ["_", "2" if function.group.startswith("Arithmetic") else "x"]
    return WITH_ARGUMENTS.get(function.name) or f"{function.name}({', '.join(others[: len(names)])})"


CASES = ("float32",) if JAX else ("bool", *INTEGERS, *FLOATS)
SAMPLE = np.array([[0.25, 1, 2], [1, 0.5, 3], [0.75, 2, 0]])


@pytest.mark.parametrize("function", TABLE.values(), ids=lambda function: function.name)
def test_planning_and_running_agree(function):
    """A call, planned with no data and run, has one dtype and shape, or the same error."""
    for dtype in CASES:
        x = make(SAMPLE if function.name != "broadcast_to" else SAMPLE[:1], dtype)
        hidden = Value(dtype, x.shape)
        planned, refused = attempt(expression, sample_call(function), hidden, hidden)
        found, failed = attempt(expression, sample_call(function), x, x)
        assert str(failed) == str(refused)
        if failed:
            continue
        assert (planned.dtype, planned.shape, planned.weak) == (found.dtype, found.shape, found.weak)
        numbers(found)


@pytest.mark.parametrize("function", TABLE.values(), ids=lambda function: function.name)
def test_unknown_lengths_stay_unknown(function):
    sample = SAMPLE if function.name != "broadcast_to" else SAMPLE[:1]
    found = expression(sample_call(function), make(sample), make(sample))
    for shape in ((None, 3), (None, None)):
        unknown = Value("float32", shape)
        if function.name == "squeeze":
            with pytest.raises(UnsupportedError, match=r"^squeeze\(\) with an unknown length needs 'axis'$"):
                expression(sample_call(function), unknown, unknown)
            continue
        planned = expression(sample_call(function), unknown, unknown)
        assert (planned.dtype, len(planned.shape)) == (found.dtype, len(found.shape))
        assert all(a in (b, None) for a, b in zip(planned.shape, found.shape, strict=True))


@pytest.mark.parametrize("function", TABLE.values(), ids=lambda function: function.name)
def test_literals_give_what_tensors_give(function):
    if function.name in ("equal", "not_equal"):  # lists compare to one boolean
        return
    sample = SAMPLE if function.name != "broadcast_to" else SAMPLE[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = expression(sample_call(function), literal(sample), literal(sample))
    found = expression(sample_call(function), make(sample), make(sample))
    assert folded.shape == found.shape
    np.testing.assert_allclose(numbers(folded), numbers(found), rtol=1e-5, atol=1e-6)


def test_integers_fold_to_integers():
    assert call("max", [literal([1, 2**63])]).data == 2**63
    assert call("sum", [literal([2**53, 1])]).data == 2**53 + 1
    assert call("sum", [literal([True, True])]).data == 2
    assert call("abs", [literal(-3)]).dtype == "int"
    assert call("sqrt", [literal(4)]).dtype == "float"
    assert call("maximum", [literal(1), literal(0.5)]).dtype == "float"
    with pytest.raises(LimitError, match=r"^the integer 18446744073709551616 does not fit 64 bits$"):
        call("sum", [literal([2**63, 2**63])])


# -- values ------------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 4, 5)).astype("float32")
Y = RANDOM.standard_normal((3, 4, 5)).astype("float32")
P = np.abs(X) + 0.1
_erf = np.vectorize(math.erf)
ORACLES = {
    "exp": (np.exp, X), "exp2": (np.exp2, X), "expm1": (np.expm1, X), "log": (np.log, P), "log2": (np.log2, P),
    "log10": (np.log10, P), "log1p": (np.log1p, P), "sqrt": (np.sqrt, P), "rsqrt": (lambda x: 1 / np.sqrt(x), P),
    "cbrt": (np.cbrt, X), "reciprocal": (np.reciprocal, P), "sin": (np.sin, X), "cos": (np.cos, X),
    "tan": (np.tan, X / 3), "arcsin": (np.arcsin, np.tanh(X)), "arccos": (np.arccos, np.tanh(X)),
    "arctan": (np.arctan, X), "sinh": (np.sinh, X), "cosh": (np.cosh, X), "tanh": (np.tanh, X),
    "arcsinh": (np.arcsinh, X), "arccosh": (np.arccosh, P + 1), "arctanh": (np.arctanh, np.tanh(X)),
    "deg2rad": (np.deg2rad, X), "rad2deg": (np.rad2deg, X), "erf": (_erf, X), "arctan2": (np.arctan2, X, Y),
    "hypot": (np.hypot, X, Y), "logaddexp": (np.logaddexp, X, Y), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), X),
    "silu": (lambda x: x / (1 + np.exp(-x)), X), "softplus": (lambda x: np.log1p(np.exp(x)), X),
    "softsign": (lambda x: x / (1 + np.abs(x)), X), "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), X),
    "gelu": (lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))), X),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.2 * x), X),
    "softmax": (lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), X),
    "log_softmax": (lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), X),
    "logsumexp": (lambda x: np.log(np.exp(x).sum()), X), "norm": (lambda x: np.linalg.norm(x.ravel()), X),
    "sum": (np.sum, X), "mean": (np.mean, X), "prod": (np.prod, X), "var": (np.var, X), "std": (np.std, X),
    "cumsum": (np.cumsum, X), "cumprod": (np.cumprod, X),
    "logcumsumexp": (lambda x: np.logaddexp.accumulate(x.ravel()), X), "median": (np.median, X),
    "dot": (np.dot, X, Y[0].T), "tensordot": (np.tensordot, X, Y.transpose(1, 2, 0)), "outer": (np.outer, X[0], Y[0]),
}  # fmt: skip
EXACT = {
    "abs": (np.abs, X), "sign": (np.sign, X), "square": (np.square, X), "floor": (np.floor, X), "ceil": (np.ceil, X),
    "trunc": (np.trunc, X), "round": (np.round, X), "maximum": (np.maximum, X, Y), "minimum": (np.minimum, X, Y),
    "max": (np.max, X), "min": (np.min, X), "argmax": (np.argmax, X), "argmin": (np.argmin, X), "sort": (np.sort, X),
    "argsort": (np.argsort, X), "any": (np.any, X > 2), "all": (np.all, X > -9), "ravel": (np.ravel, X),
    "count_nonzero": (np.count_nonzero, np.round(X)), "negative": (np.negative, X), "add": (np.add, X, Y),
    "relu": (lambda x: np.maximum(x, 0), X), "relu6": (lambda x: np.clip(x, 0, 6), X * 4),
    "clip": (np.clip, X, -Y**2, Y**2), "where": (np.where, X > 0, X, Y), "logical_xor": (np.logical_xor, X > 0, Y > 0),
    "zeros_like": (np.zeros_like, X), "ones_like": (np.ones_like, X), "transpose": (np.transpose, X),
    "heaviside": (np.heaviside, np.round(X), Y),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
def test_values_within_a_tolerance(name):
    oracle, *args = ORACLES[name]
    expected = oracle(*(a.astype("float64") for a in args))
    np.testing.assert_allclose(run(name, *args), expected, rtol=2e-6, atol=2e-6)
    for dtype in () if JAX else ("float16", "bfloat16"):
        rounded = [a.astype(NUMPY[dtype]) for a in args]
        expected = oracle(*(a.astype("float64") for a in rounded)).astype(NUMPY[dtype]).astype("float32")
        found = run(name, *rounded)
        assert found.dtype == NUMPY[dtype]
        tolerance = 2.0 ** (1 - dtypes.DIGITS[dtype])
        np.testing.assert_allclose(found.astype("float32"), expected, rtol=tolerance, atol=tolerance / 8)


@pytest.mark.parametrize("name", EXACT)
def test_values_to_the_bit(name):
    oracle, *args = EXACT[name]
    np.testing.assert_array_equal(run(name, *args), oracle(*args))


@pytest.mark.skipif("float64" not in FLOATS, reason="no float64")
@pytest.mark.parametrize("name", ORACLES)
def test_float64_stays_float64(name):
    oracle, *args = ORACLES[name]
    args = [a.astype("float64") for a in args]
    found = run(name, *args)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, oracle(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "var", "argmin", "all", "logsumexp", "norm"])
def test_reductions_take_any_axes(name):
    x = X > -1 if name == "all" else X
    for axis in (0, -1, [0, 2], [1, 2], [0, 1, 2]):
        if isinstance(axis, list) and name == "argmin":
            continue
        for keepdims in (False, True):
            found = run(name, x, axis=axis, keepdims=keepdims)
            axes = tuple(axis) if isinstance(axis, list) else axis
            if name in ("logsumexp", "norm"):
                inner = np.exp(x.astype("float64")) if name == "logsumexp" else x.astype("float64") ** 2
                whole = np.sum(inner, axis=axes, keepdims=keepdims)
                expected = np.log(whole) if name == "logsumexp" else np.sqrt(whole)
            else:
                expected = getattr(np, name)(x, axis=axes, keepdims=keepdims)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_running_logarithms_of_sums_are_those_of_numpy(dtype):
    """Near -1000 as well, though the largest is 1000; infinities and NaN go on to the entries after them."""
    inf, nan = math.inf, math.nan
    lines = [[-1000, -1000, 1000, -1000], [1, nan, 2, 3], [-inf, -inf, 1, -inf], [1, inf, -inf, inf], [inf, nan, 1, 2]]
    for x in (np.array(lines), np.array(lines).T, np.linspace(-9, 9, 11).reshape(1, 11), np.ones((1, 1))):
        x = x.astype(NUMPY[dtype])
        for axis in (0, 1, -1):
            expected = np.logaddexp.accumulate(x.astype("float64"), axis=axis).astype(NUMPY[dtype])
            found = run("logcumsumexp", x, axis=axis)
            tolerance = 2.0 ** (2 - dtypes.DIGITS[dtype])
            np.testing.assert_allclose(found.astype("float64"), expected.astype("float64"), tolerance, tolerance)
    assert run("logcumsumexp", np.ones((2, 0), dtype="float32"), axis=1).shape == (2, 0)


def test_a_permutation_of_a_length_that_is_not_known_is_planned():
    size = Value("int", (), None, weak=True)  # that of a tensor of unknown length, but in tensorflow's graphs
    with arithmetic.planning(traced=True):
        planned = call("permutation", [size], {"seed": literal(1)}, traced=True)
    assert (planned.dtype, planned.shape, planned.range) == ("int32", (None,), None)


def test_norms():
    for order, expected in ((1, np.abs(X).sum(0)), (2, np.sqrt((X**2).sum(0))), (math.inf, np.abs(X).max(0))):
        np.testing.assert_allclose(run("norm", X, order, 0), expected, rtol=1e-6)
    np.testing.assert_allclose(run("norm", X, ord=-math.inf, axis=0), np.abs(X).min(0), rtol=1e-6)
    assert fails(FunctionError, "norm", X[0, 0], 3) == ("'ord' of norm() of vectors is 1, 2, inf or -inf, not 3", 1)
    text = "'ord' of norm() is for one axis or two, found 3"
    assert fails(ShapeError, "norm", X, ord=1) == (text, "ord")


@pytest.mark.parametrize("order", ["fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf])
def test_norms_of_matrices(order):
    for axis, keepdims in (([0, 2], False), ([2, 0], True), ([-2, -1], True)):
        for dtype in CASES[CASES[0] == "bool" :]:
            x = (X * 3).astype(NUMPY[dtype]) if dtype not in dtypes.INTEGERS else np.abs(X * 3).astype(dtype)
            found = run("norm", x, order, axis, keepdims)
            expected = np.linalg.norm(x.astype("float64"), order, tuple(axis), keepdims)
            assert found.dtype == NUMPY[dtype if dtype in FLOATS else "float32"]
            tolerance = max(1e-5, 2.0 ** (1 - dtypes.DIGITS.get(dtype, 24)))
            np.testing.assert_allclose(found.astype("float64"), expected, rtol=tolerance, atol=1e-5)
        planned = call("norm", [Value("float32", (None, 4, None)), *map(given_as, (order, axis, keepdims))])
        assert len(planned.shape) == expected.ndim
    matrix = X[0]
    np.testing.assert_allclose(run("norm", matrix.tolist(), order), np.linalg.norm(matrix, order), rtol=1e-5)
    np.testing.assert_allclose(run("norm", matrix, order), np.linalg.norm(matrix, order), rtol=1e-5)


def test_norms_of_matrices_that_have_none():
    text = "no ord 'frob' of norm(); did you mean 'fro'?\n  ords: fro nuc"
    assert fails(FunctionError, "norm", X[0], "frob") == (text, 1)
    text = "'ord' of norm() of matrices is fro, nuc, 1, -1, 2, -2, inf or -inf, not 3"
    assert fails(FunctionError, "norm", X[0], 3) == (text, 1)
    assert fails(FunctionError, "norm", X[0, 0], "fro")[1] == 1
    assert fails(ShapeError, "norm", X[0, :0], 2) == ("norm() of no entries: the shape is (0, 5)", 0)
    assert run("norm", X[0, :0], "nuc") == 0
    text = "norm() of a matrix with nan or infinite entries\n  nan_to_num(x) replaces them by numbers"
    assert fails(FunctionError, "norm", np.full((2, 2), NAN, "float32"), 2) == (text, 0)
    assert np.isnan(run("norm", np.full((2, 2), NAN, "float32"), 1))


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_running_sums_in_a_dtype(name):
    for source in CASES[CASES[0] == "bool" :]:
        for dtype in ("float32", "int8") if JAX else (*INTEGERS, *FLOATS):
            x = np.array([[1, 2, 3], [5, 9, 11]]).astype(NUMPY[source])
            wide = getattr(np, name)(x.astype("float64"), axis=1)
            expected = wide.astype("int64" if dtype in dtypes.INTEGERS else NUMPY[dtype]).astype(NUMPY[dtype])
            found = run(name, x, axis=1, dtype=dtype)
            assert found.dtype == NUMPY[dtype]
            np.testing.assert_array_equal(found, expected, err_msg=f"{source} {dtype}")
    assert run(name, [100, 100], dtype="int8").tolist() == getattr(np, name)([100, 100], dtype="int8").tolist()
    many = np.ones(4096, "float32")
    assert run("cumsum", many, dtype="float16")[-1] == 4096  # one by one in float16 it would stay at 2048
    with arithmetic.planning(traced=False):
        planned = call(name, [Value("int", (3,), None, True)], {"dtype": "int8"})
    assert (planned.dtype, planned.shape, planned.weak) == ("int8", (3,), False)


def test_running_sums_in_a_dtype_follow_the_rules_of_assignments():
    text = '0.5 at [0] has a fraction, which int8 cannot hold\n  cast(..., "int8") truncates it'
    assert fails(DTypeError, "cumsum", [0.5], dtype="int8") == (text, 0)
    assert fails(DTypeError, "cumsum", np.array([0.5], "float32"), dtype="int8")[1] == 0
    assert fails(DTypeError, "cumsum", np.array([300], "int32"), dtype="int8")[1] == 0
    text = "cumsum() makes numbers, not booleans"
    assert fails(DTypeError, "cumsum", np.array([1], "int32"), dtype="bool") == (text, "dtype")


@pytest.mark.parametrize("name", ["max", "min"])
def test_best_entries_with_an_initial_one(name):
    oracle = getattr(np, name)
    for dtype in CASES[CASES[0] == "bool" :]:
        x = np.array([[1, 7, 3], [5, 9, 11]]).astype(NUMPY[dtype])
        for axis, keepdims in ((0, False), (1, True), ([0, 1], False)):
            for initial in (0, 4, 100):
                expected = oracle(
                    x.astype("float64"), axis=tuple(np.atleast_1d(axis)), keepdims=keepdims, initial=initial
                )
                found = run(name, x, axis, keepdims, initial)
                assert found.dtype == NUMPY[dtype]
                np.testing.assert_array_equal(found.astype("float64"), expected)
                folded = call(name, list(map(given_as, (x.tolist(), axis, keepdims, initial))))
                np.testing.assert_array_equal(folded.data, expected)
        assert run(name, x[:0], 0, initial=1).tolist() == [1, 1, 1]
        assert run(name, x[:, :0], 1, True, 1).tolist() == [[1], [1]]
    assert run(name, [1, 2], initial=1.5) == oracle([1, 2], initial=1.5)
    assert np.isnan(run(name, np.array([1, NAN], "float32"), initial=2))
    assert np.isnan(run(name, np.array([1], "float32"), initial=NAN))
    assert fails(DTypeError, name, np.array([1], "int32"), initial=0.5)[1] == "initial"
    assert fails(DTypeError, name, np.array([1], "int8"), initial=300)[1] == "initial"


@pytest.mark.parametrize("dtype", [d for d in INTEGERS if not JAX or d in ("int8", "uint32")])
def test_sums_of_integers_wrap_in_32_bits_at_least(dtype):
    low, high = dtypes.RANGES[dtype]
    x = np.array([high, high, high - 1, low, low, 3] * 50, dtype=dtype)
    wide = dtype if NUMPY[dtype].itemsize >= 4 else "int32"
    for name in ("sum", "prod", "cumsum", "cumprod"):
        found = run(name, x)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found, getattr(np, name)(x, dtype=wide))
        assert found.dtype == wide
    assert run("max", x).dtype == run("sort", x).dtype == dtype
    np.testing.assert_array_equal(run("argsort", x), np.argsort(x, kind="stable"))
    np.testing.assert_allclose(run("mean", x), x.astype("float64").mean(), rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(run("sign", x), np.sign(x))


def test_booleans_are_counted():
    x = np.array([True, True, False, True])
    assert run("sum", x) == run("count_nonzero", x) == 3
    assert run("mean", x) == np.float32(0.75)
    assert run("argmax", ~x) == 2
    assert run("argmin", x) == 2
    assert run("cumsum", run("cast", x, "int8")).tolist() == [1, 2, 2, 3]
    text = 'max() takes numbers, not booleans; write cast(..., "float32") or where(..., 1, 0)'
    assert fails(DTypeError, "max", x) == (text, 0)
    assert fails(DTypeError, "exp", x=x)[1] == "x"
    assert fails(DTypeError, "where", x, True, 1)[0] == (
        "booleans and an integer do not go together; write cast(...) or where(...)"
    )


# -- what backends disagree on -----------------------------------------------------------------------------------------


def test_sums_do_not_drift():
    x = np.random.default_rng(1).random(2**24, dtype="float32")
    exact = math.fsum(x.tolist())
    tall, long = x.reshape(-1, 2), x.reshape(2, -1)
    assert run("sum", x) == pytest.approx(exact, rel=2e-7)
    assert run("mean", x) == pytest.approx(exact / 2**24, rel=3e-7)
    columns = [math.fsum(tall[:, i].tolist()) for i in range(2)]
    np.testing.assert_allclose(run("sum", tall, axis=0), columns, rtol=3e-7)
    np.testing.assert_allclose(run("sum", long, axis=1), [math.fsum(row) for row in long.tolist()], rtol=3e-7)
    middle = x.reshape(2, -1, 4)[:, : 2**21 - 997]
    np.testing.assert_allclose(run("sum", middle, axis=1), middle.astype("float64").sum(1), rtol=3e-7)


def test_the_norm_and_the_deviation_do_not_drift():
    x = np.random.default_rng(2).random((2**20, 3), dtype="float32") + 1000
    wide = x.astype("float64")
    np.testing.assert_allclose(run("std", x, axis=0), wide.std(0), rtol=1e-3)
    np.testing.assert_allclose(run("norm", x, axis=0), np.sqrt((wide**2).sum(0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_accumulate_in_float32(dtype):
    x = np.full(1000, 0.8).astype(NUMPY[dtype])
    assert run("mean", x) == x[0]
    assert run("sum", x) == np.array(x.astype("float32").sum()).astype(NUMPY[dtype])
    assert run("cumsum", x)[-1] == run("sum", x)
    big = np.array([60000, 60000, -60000], "float16")
    assert run("sum", big) == np.float16(60000)
    assert run("mean", big).dtype == np.float16
    many = np.random.default_rng(3).random(5000).astype(NUMPY[dtype])
    assert float(run("std", many)) == pytest.approx(many.astype("float64").std(), rel=2.0**-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_digits_far_from_zero_and_infinities(dtype):
    x = np.array([-1, -3, -5], NUMPY[dtype])
    digits = {"float16": 0.1, "bfloat16": 0.02, "float32": 2e-6, "float64": 1e-13}[dtype]  # the smallest are denormal
    exact = [0.5 * float(each) * math.erfc(-float(each) / 2**0.5) for each in x]
    np.testing.assert_allclose(run("gelu", x, approximate=False).astype("float64"), exact, digits)
    steep = [float(e) / (1 + math.exp((8 / math.pi) ** 0.5 * -(float(e) + 0.044715 * float(e) ** 3))) for e in x]
    np.testing.assert_allclose(run("gelu", x).astype("float64"), steep, digits)
    ends = np.array([math.inf, -math.inf, math.inf, 3, -5], NUMPY[dtype])
    others = np.array([math.inf, 1, NAN, -math.inf, 12], NUMPY[dtype])
    assert run("hypot", ends, others).astype("float64").tolist() == pytest.approx([math.inf] * 4 + [13])
    assert run("erf", ends[:2]).astype("float64").tolist() == [1, -1]
    assert run("median", ends[[0, 3]]) == run("median", [1.0, math.inf]) == math.inf
    assert np.isnan(run("median", ends[:2]).astype("float64"))
    assert run("median", ends[[1, 4, 1, 3]]) == -math.inf


NAN = math.nan
ODD = np.array([3, NAN, 1, -math.inf, NAN, 2, 1, -0.0, 0.0, math.inf], "float32")


@pytest.mark.parametrize("dtype", FLOATS)
def test_sorting_is_stable_with_nan_last(dtype):
    x = ODD.astype(NUMPY[dtype])
    expected = np.argsort(x.astype("float64"), kind="stable")
    np.testing.assert_array_equal(run("argsort", x), expected)
    found = run("sort", x).astype("float64")
    np.testing.assert_array_equal(found, x[expected].astype("float64"))
    np.testing.assert_array_equal(np.signbit(found)[:-2], np.signbit(x[expected].astype("float64"))[:-2])
    ties = np.tile([1, 2, 2, 1], 100).astype(NUMPY[dtype])
    np.testing.assert_array_equal(run("argsort", ties), np.argsort(ties.astype("float64"), kind="stable"))


def test_sorting_takes_any_axis():
    for axis in (0, 1, -1):
        np.testing.assert_array_equal(run("sort", X, axis), np.sort(X, axis))
        np.testing.assert_array_equal(run("argsort", X, axis=axis), np.argsort(X, axis, kind="stable"))
    assert run("sort", X[0, 0, 0]).shape == (1,)
    assert run("sort", np.array([True, False])).tolist() == [False, True]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_nan_is_the_extreme(dtype):
    x = ODD.astype(NUMPY[dtype])
    assert run("argmax", x) == run("argmin", x) == 1
    assert run("argmax", x[[0, 9, 9]]) == 1
    assert run("argmin", x[[8, 7, 0]]) == run("argmax", x[[7, 8, 7]]) == 0
    for name in ("max", "min"):
        assert np.isnan(run(name, x).astype("float32"))
        rows = np.stack([x[:2], x[2:4], x[5:7]])
        expected = getattr(np, name)(rows.astype("float32"), axis=1)
        np.testing.assert_array_equal(run(name, rows, axis=1).astype("float32"), expected)
    many = np.concatenate([np.ones(1000), [NAN], np.full(1000, 3)]).astype(NUMPY[dtype])
    assert np.isnan(run("max", many).astype("float32"))
    assert run("argmax", many) == run("argmin", many) == 1000


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_stays_nan(dtype):
    x = ODD.astype(NUMPY[dtype])
    wide = ODD.astype("float64")
    calls = (("sign",), ("maximum", 1.0), ("minimum", 1.0), ("clip", 0.0, 2.0), ("relu",), ("abs",), ("heaviside", 0.5))
    for name, *others in calls:
        expected = {"clip": np.clip, "relu": lambda a: np.maximum(a, 0)}.get(name) or getattr(np, name)
        np.testing.assert_array_equal(run(name, x, *others).astype("float64"), expected(wide, *others), err_msg=name)
    assert not np.signbit(run("sign", x).astype("float32"))[7]
    for name in ("isnan", "isinf", "isfinite"):
        np.testing.assert_array_equal(run(name, x), getattr(np, name)(wide))
        assert run(name, np.array([1, 2])).tolist() == [name == "isfinite"] * 2 if "int64" in INTEGERS else True


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_heaviside_is_that_of_numpy(dtype):
    """NaN counts of x2 only where x1 is 0; integers are computed in float32, and booleans refused."""
    steps = ODD if dtype in FLOATS else np.array([3, 0, 1])
    x = steps.astype(NUMPY[dtype])
    for other in (0.5, -0.0, 7, math.inf, NAN):
        expected, found = np.heaviside(steps.astype("float64"), other), run("heaviside", x, other)
        assert found.dtype == NUMPY[dtype if dtype in FLOATS else "float32"]
        np.testing.assert_array_equal(found.astype("float64"), expected)
        np.testing.assert_array_equal(np.signbit(found)[expected == 0], np.signbit(expected)[expected == 0])
    assert fails(DTypeError, "heaviside", x, np.array([True]))[1] == 1


def test_replacing_nan():
    expected = np.nan_to_num(ODD, nan=7, posinf=8, neginf=-8)
    np.testing.assert_array_equal(run("nan_to_num", ODD, nan=7, posinf=8.0, neginf=-8), expected)
    np.testing.assert_array_equal(run("nan_to_num", ODD), np.nan_to_num(ODD))
    assert fails(DTypeError, "nan_to_num", ODD.astype("float16"), nan=1e6)[1] == "nan"


def test_rounding():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1234.5678, 1e30, math.inf, NAN], "float32")
    for decimals in (0, 2, -2):
        np.testing.assert_allclose(run("round", x, decimals), np.round(x, decimals), rtol=1e-6)
    np.testing.assert_array_equal(run("round", x, 300), x)
    assert run("floor", np.array([3], "int8")).dtype == np.int8


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_rounded_to_tens(dtype):
    low, high = dtypes.RANGES[dtype]
    values = [n for n in (*range(-70, 111), -1250, 1250, 12349, 10**9 + 5) if low <= n <= high and n < 2**53]
    for decimals in (-1, -2, -3, -30):
        exact = [round(n, decimals) for n in values]
        fitting = [(n, e) for n, e in zip(values, exact, strict=True) if low <= e <= high]
        found = run("round", np.array([n for n, _ in fitting], dtype), decimals)
        assert (found.dtype, found.tolist()) == (np.dtype(dtype), [e for _, e in fitting])
    folded = call("round", [literal(values), literal(-1)])
    assert (folded.dtype, folded.data.tolist()) == ("int", [round(n, -1) for n in values])


def test_closeness():
    x, y = np.array([1, NAN, math.inf, 1, 0], "float32"), np.array([1.000001, NAN, math.inf, 1.1, 0], "float32")
    for equal in (False, True):
        np.testing.assert_array_equal(run("isclose", x, y, equal_nan=equal), np.isclose(x, y, equal_nan=equal))
    assert not run("allclose", x, y)
    assert run("allclose", np.ones(3, "float16"), 1)
    assert run("allclose", np.ones(3, "int8"), [1.0, 1.0, 1.0])


def test_quantiles():
    x = np.random.default_rng(4).standard_normal((7, 5)).astype("float32")
    for method in METHODS:
        for q in (0, 0.1, 0.5, 0.9, 1, [0.25, 0.75]):
            for axis, keepdims in ((None, False), (0, True), (1, False)):
                expected = np.quantile(x, q, axis=axis, method=method, keepdims=keepdims)
                options = {} if axis is None else {"axis": axis}
                found = run("quantile", x, q, method=method, keepdims=keepdims, **options)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=f"{method} {q} {axis}")
        if JAX:
            break
    for axis, keepdims in (([0, 2], False), ([2, 0], True), ([0, 1, 2], True), ([], False)):
        for q in (0.3, [0.25, 0.75]):
            expected = np.quantile(X, q, axis=tuple(axis), keepdims=keepdims) if axis else np.stack([X] * np.size(q))
            expected = expected if axis or isinstance(q, list) else X
            found = run("quantile", X, q, axis, keepdims=keepdims)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run("median", x, axis=0), np.median(x, axis=0), rtol=1e-6)
    assert np.isnan(run("median", ODD))
    assert run("median", np.array([1, 2], "int8")) == np.float32(1.5)
    assert fails(FunctionError, "quantile", x, 1.5) == ("'q' of quantile() must be between 0 and 1: 1.5", 1)
    text = "no method 'linea' of quantile(); did you mean 'linear'?\n  methods: linear lower higher midpoint nearest"
    assert fails(FunctionError, "quantile", x, 0.5, method="linea") == (text, "method")


# -- where, cast, creation ---------------------------------------------------------------------------------------------


def test_where_meets_literals():
    mask = np.array([True, False])
    assert run("where", mask, 1, 0).dtype == np.int32
    assert run("where", mask, 1.5, 0).tolist() == [1.5, 0]
    assert run("where", mask, 1.5, 0).dtype == np.float32
    assert run("where", mask, True, False).tolist() == [True, False]
    assert run("where", mask, np.array([1, 2], "int8"), 0).dtype == np.int8
    assert run("where", True, np.array([1, 2], "bfloat16"), 0.5).dtype == ml_dtypes.bfloat16
    text = "the condition of where() is boolean, not int8; write '!= 0'"
    assert fails(DTypeError, "where", np.array([1], "int8"), 1, 0) == (text, 0)
    assert fails(DTypeError, "where", mask, np.array([1, 2], "int8"), 200)[1] == 2


def test_casts():
    x = np.array([1.9, -1.9, 300.7, NAN, math.inf, 1e10], "float32")
    assert run("cast", x, "int8").tolist() == [1, -1, 44, 0, 0, 0]
    assert run("cast", x.tolist(), "int8").tolist() == [1, -1, 44, 0, 0, 0]
    assert run("cast", 300, dtype="uint8") == 44
    assert run("cast", [0, 2], "bool").tolist() == [False, True]
    assert run("cast", 70000, "float16") == math.inf
    text = (
        "no dtype 'int33'; did you mean 'int32'?\n"
        "  dtypes: bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
    )
    assert fails(DTypeError, "cast", x, "int33") == (text, 1)
    text = "'dtype' of cast() is a string, not an integer\n  cast(x, dtype)"
    assert fails(FunctionError, "cast", x, dtype=8) == (text, "dtype")


def test_creation():
    assert run("zeros", 3).dtype == np.float32
    assert run("ones", [2, 0], "int8").shape == (2, 0)
    assert run("full", [2], 0.1, dtype="bfloat16")[0] == ml_dtypes.bfloat16(0.1)
    assert run("full", [2, 2], np.array([1, 2], "int8")).tolist() == [[1, 2], [1, 2]]
    assert run("full", [2], True).tolist() == [True, True]
    np.testing.assert_array_equal(run("eye", 3, 4, 1), np.eye(3, 4, 1))
    np.testing.assert_array_equal(run("eye", 2, k=-1, dtype="int8"), np.eye(2, k=-1))
    for args in ((5,), (2, 7), (1, 10, 3), (10, 0, -4), (0,), (5, 2), (0, 1, 0.1), (1.5, 4)):
        found = run("arange", *args)
        expected = np.arange(*args)
        assert found.dtype == ("int32" if expected.dtype == np.int64 else "float32")
        np.testing.assert_array_equal(found, expected.astype(found.dtype))
    for args in ((0, 1, 11), (1, 0, 4), (0, 1, 1), (0, 1, 0), (-1, 1)):
        np.testing.assert_allclose(run("linspace", *args), np.linspace(*args), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(run("linspace", 0, 1, 4, endpoint=False), np.linspace(0, 1, 4, endpoint=False))
    assert run("linspace", 0, 0.1, 3)[-1] == np.float32(0.1)
    assert run("full_like", np.ones((2, 3), "int8"), 7).tolist() == [[7] * 3] * 2
    assert call("zeros_like", [literal([1, 2])]).weak


SUM, ZEROS = "\n  sum(x, axis=None, keepdims=False)", "\n  zeros(shape, dtype=None)"
WRAPS, TRUNCATES = '\n  cast(..., "int8") wraps it', '\n  cast(..., "int8") truncates it'
INTEGER_LIST = "is a constant integer or a list of them"


@pytest.mark.parametrize(
    ("kind", "name", "args", "text", "argument"),
    [
        (FunctionError, "zeros", ([1.5],), "'shape' of zeros() is an integer or a list of them, not a list" + ZEROS, 0),
        (ShapeError, "zeros", ([2, -1],), "a length cannot be negative: -1", 0),
        (FunctionError, "zeros", (np.ones(2, "int32"),),
         "'shape' of zeros() is an integer or a list of them, not a tensor of int32" + ZEROS, 0),
        (FunctionError, "arange", (0, 1, 0), "arange() needs finite bounds and a step that is not 0", 2),
        (DTypeError, "arange", (300, 301, 1, "int8"), '300 does not fit int8 (-128 to 127)' + WRAPS, None),
        (ShapeError, "full", ([2], np.ones(3, "float32")), "a value of shape (3,) does not broadcast to (2,)", 1),
        (DTypeError, "full", ([2], 0.5, "int8"), '0.5 has a fraction, which int8 cannot hold' + TRUNCATES, 1),
        (DTypeError, "linspace", (0, 1, 3, True, "int8"), "linspace() makes floats, not int8", 4),
    ],
)  # fmt: skip
def test_creation_errors(kind, name, args, text, argument):
    found, at = fails(kind, name, *args)
    assert found.replace(" at [0]", "") == text
    assert at == argument


# -- shapes ------------------------------------------------------------------------------------------------------------

lengths = st.lists(st.integers(0, 3), max_size=4).map(tuple)
small = st.integers(-4, 4)
axes = small | st.lists(small, max_size=3)
GIVEN = {
    "reshape": st.tuples(st.lists(st.integers(-1, 6), max_size=3) | small),
    "transpose": st.tuples() | st.tuples(st.lists(small, max_size=4)),
    "swapaxes": st.tuples(small, small),
    "moveaxis": st.tuples(axes, axes),
    "squeeze": st.tuples() | st.tuples(axes),
    "expand_dims": st.tuples(axes),
    "broadcast_to": st.tuples(st.lists(st.integers(0, 3), max_size=4)),
    "repeat": st.tuples(st.integers(0, 3)) | st.tuples(st.integers(0, 3) | st.lists(st.just(2), max_size=3), small),
    "tile": st.tuples(st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=4)),
    "flip": st.tuples() | st.tuples(axes),
    "roll": st.tuples(small | st.just(10**12)) | st.tuples(axes, axes),
    "ravel": st.tuples(),
    "tril": st.tuples(small | st.just(10**12)),
    "triu": st.tuples(small),
    "diagonal": st.tuples(small, small, small),
    "diag": st.tuples(small),
    "trace": st.tuples(small, small, small),
    "sum": st.tuples(axes),
    "max": st.tuples(axes),
    "sort": st.tuples(small),
}  # fmt: skip


def numpy_result(name, array, args):
    """What NumPy makes of it, or `None` where it raises."""
    args = [tuple(a) if isinstance(a, list) and name != "transpose" else a for a in args]
    try:
        if name == "sum":
            return np.sum(array, *args, dtype="int32")
        return getattr(np, name)(array, *args)
    except (ValueError, TypeError, IndexError):
        return None


def jax_or(fast, slow):
    return slow if JAX else fast


@settings(max_examples=jax_or(300, 25))
@given(st.sampled_from(sorted(GIVEN)).flatmap(lambda name: st.tuples(st.just(name), GIVEN[name])), lengths)
def test_shape_functions_agree_with_numpy(case, shape):
    name, args = case
    array = np.arange(math.prod(shape), dtype="int32").reshape(shape)
    expected = numpy_result(name, array, args)
    try:
        found = run(name, array, *args)
    except PatchError:
        assert expected is None or differs_on_purpose(name, shape, args), (name, args, shape)
        return
    assert expected is not None or differs_on_purpose(name, shape, args), (name, args, shape, found)
    if expected is None:
        return
    np.testing.assert_array_equal(found, expected)
    planned = call(name, [Value("int32", shape), *map(given_as, args)])
    assert (planned.dtype, planned.shape) == (str(found.dtype), found.shape)
    dtype = "bool" if name not in ("sum", "max", "trace") else "bfloat16"
    again = call(name, [make(array % 2, dtype), *map(given_as, args)])
    assert (again.dtype, again.shape) == (dtype, found.shape)
    folded = call(name, [literal(array.astype("int64")), *map(given_as, args)])
    assert folded.weak
    np.testing.assert_array_equal(folded.data, expected)


def differs_on_purpose(name, shape, args):
    """NumPy takes a vector for a matrix, one axis twice in `roll`, the first axis of what has none, and -2 for -1."""
    if name in ("tril", "triu"):
        return len(shape) == 1
    if name == "roll" and len(args) == 2:
        return True
    if name == "reshape":
        return np.min(args[0], initial=0) < -1
    if name in ("sort", "squeeze", "sum", "max") or (name == "repeat" and len(args) == 2 and not shape):
        return not shape
    return name == "repeat" and isinstance(args[0], list) and len(args[0]) <= 1


@pytest.mark.parametrize("dtype", [d for d in ("bool", *INTEGERS, *FLOATS) if not JAX or d in ("bool", "bfloat16")])
def test_moving_entries_keeps_their_bits(dtype):
    array = np.arange(24).reshape(2, 3, 4)
    array = (array % 2).astype(bool) if dtype == "bool" else array.astype(NUMPY[dtype])
    if dtype in FLOATS:
        array[0, 0, :3] = [np.inf if dtype == "bfloat16" else np.nan, -0.0, np.inf]  # the way here changes its NaN
    for name, *args in (
        ("transpose",), ("flip", 1), ("roll", 1, 2), ("repeat", 2, 0), ("tile", [2, 1, 1]), ("reshape", [4, 6]),
        ("broadcast_to", [2, 2, 3, 4]), ("swapaxes", 0, 2), ("tril",), ("diagonal",),
    ):  # fmt: skip
        found, expected = run(name, array, *args), getattr(np, name)(array, *args)
        bits = f"u{found.itemsize}"
        np.testing.assert_array_equal(found.view(bits), np.ascontiguousarray(expected).view(bits))
    joined = run("concatenate", [array, array], axis=1)
    np.testing.assert_array_equal(joined.astype("float64"), np.concatenate([array, array], 1).astype("float64"))


def test_many_axes():
    array = np.arange(256, dtype="float32").reshape((2,) * 8)
    np.testing.assert_array_equal(run("transpose", array), array.T)
    np.testing.assert_allclose(run("sum", array, axis=[0, 2, 4, 6]), array.sum((0, 2, 4, 6)))
    np.testing.assert_array_equal(run("argmax", array, axis=3), array.argmax(3))
    np.testing.assert_array_equal(run("sort", -array, axis=1), np.sort(-array, 1))
    np.testing.assert_array_equal(run("flip", array), np.flip(array))
    np.testing.assert_array_equal(run("cumsum", array, axis=0), array.cumsum(0))
    np.testing.assert_array_equal(run("where", array > 9, array[:1], array[:, :1]).shape, array.shape)
    assert fails(LimitError, "expand_dims", array, 0)[0] == "a result has at most 8 axes, this one would have 9"


def test_sizes():
    assert call("shape", [Value("int8", (2, 3))]).data.tolist() == [2, 3]
    assert call("shape", [Value("int8", (2, 3))]).is_list
    assert call("size", [make(X)]).data == 60
    assert call("ndim", [Value("int8", (None, 3))]).data == 2
    unknown = call("shape", [Value("int8", (None, 3))])
    assert (unknown.weak, unknown.shape, unknown.data, unknown.is_list) == (True, (2,), None, True)
    with pytest.raises(UnsupportedError, match=r"^'shape' of zeros\(\) is not known before the patch runs$"):
        call("zeros", [unknown])


def test_joining():
    a, b = np.ones((2, 3), "float32"), np.zeros((1, 3), "int8")
    assert run("concatenate", [a, b]).dtype == np.float32
    assert run("concatenate", [a, b]).shape == (3, 3)
    assert run("stack", [a, a], axis=-1).shape == (2, 3, 2)
    assert run("stack", [np.float32(1) * a[0, 0], 2]).tolist() == [1, 2]
    assert run("concatenate", [[1, 2], [3, 4]]).tolist() == [1, 2, 3, 4]
    text = "tensors of the shapes (2, 3) and (1, 3) cannot be stacked"
    assert fails(ShapeError, "stack", [a, b]) == (text, 0)
    text = "tensors of the shapes (2, 3) and (3,) cannot be joined"
    assert fails(ShapeError, "concatenate", [a, a[0]]) == (text, 0)
    text = "'xs' of concatenate() is a list of tensors, not a tensor of float32\n  concatenate(xs, axis=0)"
    assert fails(FunctionError, "concatenate", a) == (text, 0)
    assert fails(DTypeError, "concatenate", [a, np.array([[True] * 3])])[1] == 0
    unknown = call("concatenate", [[Value("int8", (None, 3)), make(b, "int8")]])
    assert unknown.shape == (None, 3)


def test_products():
    a, b = X[0], Y[0]
    over = [[0, 2], [0, 2]]
    np.testing.assert_allclose(run("tensordot", X, Y, over), np.tensordot(X, Y, over), rtol=1e-4)
    np.testing.assert_allclose(run("tensordot", a, b, 0), np.tensordot(a, b, 0), rtol=1e-6)
    np.testing.assert_allclose(run("dot", a[0], b[0]), np.dot(a[0], b[0]), rtol=1e-5)
    turned = Y.transpose(0, 2, 1)
    np.testing.assert_allclose(run("dot", X, turned), np.dot(X, turned), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run("dot", a, 2.0), a * 2)
    np.testing.assert_allclose(run("matmul", a, b.T), a @ b.T, rtol=1e-5, atol=1e-6)
    x = np.array([100, 100], "int8")
    np.testing.assert_array_equal(run("outer", x, x), np.outer(x, x))
    assert run("dot", x, x) == np.dot(x, x)
    text = "shapes (4, 5) and (4, 5) do not multiply over these axes"
    assert fails(ShapeError, "dot", a, b) == (text, 1)
    assert fails(ShapeError, "tensordot", a, b, 3) == ("tensors of 2 and 2 axes cannot be contracted over 3", 2)


# -- errors and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "args", "kwargs", "text", "argument"),
    [
        (FunctionError, "sqr", (1,), {}, "no function 'sqr'; did you mean 'sqrt'?", None),
        (FunctionError, "__import__", ("os",), {}, "no function '__import__'", None),
        (FunctionError, "f" * 100, (1,), {}, f"no function '{'f' * 57}...'", None),
        (FunctionError, "sum", (X,), {"axes": 0}, "sum() has no argument 'axes'; did you mean 'axis'?" + SUM, "axes"),
        (FunctionError, "sum", (), {}, "sum() needs 'x'" + SUM, None),
        (FunctionError, "clip", (X,), {}, "clip() needs 'x_min' and 'x_max'\n  clip(x, x_min, x_max)", None),
        (FunctionError, "exp", (1, 2), {}, "exp() takes 1 argument, 2 given\n  exp(x)", 1),
        (FunctionError, "sum", (X, 0), {"axis": 1}, "sum() got 'axis' twice" + SUM, "axis"),
        (FunctionError, "sum", (X,), {"axis": "all"}, f"'axis' of sum() {INTEGER_LIST}, not a string" + SUM, "axis"),
        (FunctionError, "sum", (X, 1.5), {}, f"'axis' of sum() {INTEGER_LIST}, not a float" + SUM, 1),
        (FunctionError, "sum", (X, 0, 1), {}, "'keepdims' of sum() is true or false, not an integer" + SUM, 2),
        (FunctionError, "exp", ("x",), {}, "'x' of exp() is a tensor or a number, not a string\n  exp(x)", 0),
        (ShapeError, "sum", (X, 3), {}, "axis 3 is out of range for 3 axes", 1),
        (ShapeError, "sum", (X,), {"axis": [0, -3]}, "[0, -3] names one axis twice", "axis"),
        (FunctionError, "argmax", (X, [0, 1]), {}, "'axis' is one integer here, not a list", 1),
        (ShapeError, "max", (X[:0],), {}, "max() of no entries: the shape is (0, 4, 5)", 0),
        (ShapeError, "maximum", (X, Y[:2]), {}, "shapes (3, 4, 5) and (2, 4, 5) do not broadcast together", 1),
        (ShapeError, "reshape", (X, [7]), {}, "60 entries of shape (3, 4, 5) do not fill the shape [7]", 1),
        (ShapeError, "reshape", (X, [-1, -1]), {}, "a shape has lengths and at most one -1: [-1, -1]", 1),
        (ShapeError, "transpose", (X,), {"axes": [0, 1]}, "'axes' names 2 of 3 axes", "axes"),
        (ShapeError, "squeeze", (X, 0), {}, "axis 0 has length 3, not 1", 1),
        (ShapeError, "broadcast_to", (X, [2, 4, 5]), {}, "the shape (3, 4, 5) does not broadcast to (2, 4, 5)", 1),
        (ShapeError, "tril", (X[0, 0],), {}, "a matrix has at least 2 axes, found the shape (5,)", 0),
        (DTypeError, "maximum", (np.array([1], "int8"), 200), {}, '200 does not fit int8 (-128 to 127)' + WRAPS, 1),
        (DTypeError, "logical_xor", (X, True), {}, "'logical_xor()' takes booleans, not float32; write '!= 0'", 0),
    ],
)  # fmt: skip
def test_errors(kind, name, args, kwargs, text, argument):
    found = fails(kind, name, *args, **kwargs)
    assert found == (text, argument)


@pytest.mark.parametrize(
    "text",
    [
        "zeros([1000000000000])", "ones([100000, 100000])", "full(1000000000000, 1)", "eye(1000000)",
        "arange(1000000000000)", "arange(0, 1, 1e-300)", "linspace(0, 1, 1000000000000)", "outer(x, x)",
        "tile(x, 1000000)", "repeat(x, 1000000)", "broadcast_to(x, [100000, 100000])", "x[:, :] + zeros([1, 100000])",
        "diag(ravel(x))", "diag([1.5], 1000000000000)", "tensordot(x, x, 0)", "tile([1], 1000000000000)",
        "where(x > 0, zeros([1, 100000]), 0)", "hypot(x, zeros([1, 100000]))", "maximum(x, zeros([1, 100000]))",
    ],
)  # fmt: skip
def test_results_are_bounded(text):
    x = make(np.zeros((100000, 1)))
    with pytest.raises(LimitError):
        expression(text, x, x)


def test_results_without_entries_are_not_bounded():
    assert run("zeros", [0, 10**12, 2]).shape == (0, 10**12, 2)


def test_the_message_of_a_bound():
    text = "a result has at most 268435456 entries, this one would have 1000000000000"
    assert fails(LimitError, "zeros", [10**12])[0] == text


VALUES = [
    literal(0), literal(-1), literal(2), literal(2.5), literal(math.nan), literal(True), literal([]), literal([0, 1]),
    literal([[1.5, 2]]), literal(10**15), literal(-(10**15)), "int8", "nonsense",
]  # fmt: skip


BY_VALUES = (
    "is an error", "does not fit", "is out of range for axis", "singular", "positive definite", "nan or infinite",
)  # fmt: skip


@st.composite
def calls(draw):
    name = draw(st.sampled_from(list(TABLE)))
    parameters = list(TABLE[name].parameters)
    tensors = st.sampled_from(["bool", "int8", "uint8", "float32", "bfloat16"]).flatmap(
        lambda dtype: st.sampled_from([(), (3,), (2, 2), (0, 2)]).map(lambda shape: (dtype, shape))
    )
    argument = st.sampled_from(VALUES) | tensors | st.lists(tensors, min_size=1, max_size=2)
    args = draw(st.lists(argument, min_size=1, max_size=len(parameters)))
    return name, args


def realised(argument, planning):
    if isinstance(argument, list):
        return [realised(item, planning) for item in argument]
    if isinstance(argument, tuple):
        dtype, shape = argument
        return Value(dtype, shape) if planning else make(np.arange(math.prod(shape)).reshape(shape), dtype)
    return argument


@settings(max_examples=jax_or(300, 25))
@given(calls())
def test_any_call_gives_a_value_or_a_patch_error(case):
    name, args = case
    planned, refused = attempt(call, name, [realised(argument, True) for argument in args])
    found, failed = attempt(call, name, [realised(argument, False) for argument in args])
    if failed and not refused:  # found by looking at values
        assert any(why in failed.message for why in BY_VALUES)
        return
    assert str(failed) == str(refused)
    if failed:
        assert failed.argument == refused.argument
        return
    assert (planned.dtype, planned.shape, planned.weak) == (found.dtype, found.shape, found.weak)
    numbers(found)


@pytest.mark.parametrize("bounds", ["-0.05, 0.05", "1, 2", "5, -5", "0.0, 1", "-1, inf", "nan, 1"])
def test_clip_has_the_bits_of_its_bounds_in_turn(bounds):
    x = np.random.default_rng(0).integers(0, 2**32, 3000, "uint32").view("float32")
    x[:9] = 0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 0.05, -0.05, 1e-40
    low, high = bounds.split(", ")
    once = kpatch.edit(x, f"_ = clip(_, {low}, {high})")
    in_turn = kpatch.edit(x, f"_ = minimum(maximum(_, {low}), {high})")
    assert keras.ops.convert_to_numpy(once).tobytes() == keras.ops.convert_to_numpy(in_turn).tobytes()
