"""`kpatch.backends.numpy_ops` against `keras.ops`: the same bits, by each of its functions and through the language."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from functions.test_functions import expression, sample_call

from kpatch import backends
from kpatch.backends import numpy_ops
from kpatch.errors import PatchError
from kpatch.functions import TABLE
from kpatch.syntax import parse
from kpatch.values.dtypes import DTYPES, NUMPY, tensor

pytestmark = pytest.mark.skipif(keras.backend.backend() != "numpy", reason="NumPy's own")

OPS = numpy_ops.ArrayOps()
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38, 1.0, -1.0, 0.5, -2.5, 1e-3, 7.25, -0.3, 2.0]
X = np.resize(np.array(SPECIAL), (4, 6))
FLOATS = ("float32", "float16")  # Keras narrows 64 bits, and kpatch asks NumPy itself
TWO_ARRAYS = ["arctan2", "hypot", "logaddexp", "maximum", "minimum", "logical_and", "logical_or", "equal"]
ONE_ARRAY = [*(name for name in numpy_ops.OF_FLOATS if name not in TWO_ARRAYS), "reciprocal", "round", "abs"]
ONE_ARRAY += ["square", "isnan", "isinf", "isfinite", "logical_not", "copy", "transpose", "stop_gradient"]
ONE_ARRAY += ["convert_to_numpy", "convert_to_tensor", "tril", "triu"]
ONE_AXIS = ["any", "all", "max", "min", "sum", "prod", "cumsum", "sort", "argsort", "flip", "expand_dims"]
PLACES = np.array([[1, 0, 2, 1, 0, 3]])

CASES = {  # functions of the object with the functions and of an array
    **{name: lambda ops, x, name=name: getattr(ops, name)(x) for name in ONE_ARRAY},
    **{name: lambda ops, x, name=name: getattr(ops, name)(x, axis=1) for name in ONE_AXIS},
    **{name: lambda ops, x, name=name: getattr(ops, name)(x, x[::-1, ::-1]) for name in TWO_ARRAYS},
    "cast": lambda ops, x: [ops.cast(x, name) for name in ("float16", "bfloat16", "float32", "float64", "bool")],
    "is_tensor": lambda ops, x: [ops.is_tensor(x), ops.is_tensor(x[0, 0]), ops.is_tensor([1])],
    "shape": lambda ops, x: [ops.shape(x), ops.shape(x[0, 0])],
    "where": lambda ops, x: [ops.where(x > 0, x, -x), ops.where(x > 0, x, x[0, 3]), ops.where(x > 0, x, 0)],
    "concatenate": lambda ops, x: ops.concatenate([x, x[:1]], axis=0),
    "stack": lambda ops, x: ops.stack([x, -x], axis=-1),
    "take": lambda ops, x: [ops.take(x, [1, -1], axis=1), ops.take(x, PLACES, axis=0)],
    "take_along_axis": lambda ops, x: ops.take_along_axis(x, PLACES, axis=0),
    "reshape": lambda ops, x: [ops.reshape(x, (-1,)), ops.reshape(x, [2, 2, 6])],
    "broadcast_to": lambda ops, x: ops.broadcast_to(x, (2, 4, 6)),
    "moveaxis": lambda ops, x: ops.moveaxis(x, (0, 1), (1, 0)),
    "swapaxes": lambda ops, x: ops.swapaxes(x, 0, 1),
    "squeeze": lambda ops, x: ops.squeeze(x[None, :, None], (0, 2)),
    "roll": lambda ops, x: [ops.roll(x, 2, axis=1), ops.roll(x, (1, 2), axis=(0, 1))],
    "tile": lambda ops, x: ops.tile(x, [2, 1]),
    "repeat": lambda ops, x: ops.repeat(x, 2, axis=0),
    "full_like": lambda ops, x: ops.full_like(x, 3),
    "pad": lambda ops, x: ops.pad(x, [(1, 2), (0, 1)]),
    "clip": lambda ops, x: ops.clip(x, -1, 2),
    "view": lambda ops, x: ops.view(x, f"int{8 * x.itemsize}"),
    "arange": lambda ops, x: ops.arange(5, dtype="int32"),
    "zeros": lambda ops, x: [ops.zeros((2, 3), "int32"), ops.zeros((), x.dtype)],
    "eye": lambda ops, x: ops.eye(3, 4, k=1, dtype="int32"),
}


def bits(result):
    """What is compared: dtypes, shapes and bytes."""
    results = result if isinstance(result, (list, tuple)) else [result]
    return [(type(each).__name__ in ("bool", "tuple", "int") and each) or described(each) for each in results]


def described(array):
    array = np.asarray(array)
    return array.dtype.name, array.shape, array.tobytes()


def test_every_function_has_a_case():
    assert set(CASES) == set(vars(OPS))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_of_keras(name, dtype):
    with np.errstate(all="ignore"):
        x = X.astype(dtype)
        assert bits(CASES[name](OPS, x)) == bits(CASES[name](keras.ops, x))
        turned = np.repeat(x, 2, axis=1)[::-1, ::-2]  # not without gaps in memory
        assert bits(CASES[name](OPS, turned)) == bits(CASES[name](keras.ops, turned))


WHOLE_NUMBERS = ("int8", "uint8", "int64")
WHOLE = ("sum", "prod", "max", "min", "any", "all", "sort", "cumsum", "where", "maximum", "clip", "concatenate", "flip")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint16"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_bits_of_integers_are_those_of_keras(name, dtype):
    x = np.arange(24).reshape(4, 6).astype(dtype)
    assert bits(CASES[name](OPS, x)) == bits(CASES[name](keras.ops, x))


def test_nothing_shares_memory_that_keras_would_copy():
    x = X.astype("float32")
    for name in ("cast", "convert_to_tensor"):
        assert not np.shares_memory(getattr(OPS, name)(x, "float32"), x)


EXPRESSIONS = {
    **{name: sample_call(function) for name, function in TABLE.items()},
    **{op: f"_ {op} x" for op in ("+", "-", "*", "/", "//", "%", "**", "@", "==", "!=", "<", "<=", ">", ">=")},
    **{f"{op} literal": f"_ {op} 1.5" for op in ("+", "-", "*", "/", "//", "%", "**", "==", "<", ">=")},
    "broadcast_to": "broadcast_to(_[:1], [3, 3])", "backwards": "exp(_[::-1]) + arctan2(_[:, ::-1], x)",
    "negative sign": "-_", "not": "not _ > 0", "and": "_ > 0 and x > 0", "or": "_ > 0 or x > 0",
    "subscripts": "_[1:, ::-1][[0, 1], 0]", "chained": "0 < _ <= 1", "list": "[_[0, 0], 2, x[1, 1]]",
    **{f"cast to {name}": f'cast(_, "{name}")' for name in DTYPES},
}  # fmt: skip


def outcome(text, x, y):
    try:
        value = expression(text, tensor(x), tensor(y))
    except PatchError as error:
        return str(error)
    return value.dtype, value.shape, np.asarray(value.data).tobytes()


@pytest.mark.parametrize("text", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_the_language_has_one_meaning(text, monkeypatch):
    data = [X[:3, :3], np.resize(SPECIAL[7:], (3, 3)), np.array([[1, 2, 0], [3, 1, 2], [2, 0, 1]])]
    with np.errstate(all="ignore"):
        floats = [x.astype(NUMPY[dtype]) for x in data for dtype in (*FLOATS, "bfloat16", "float64")]
        inputs = [(x, x.T) for x in floats] + [(data[2].astype(d), 1 + data[2].T.astype(d)) for d in WHOLE_NUMBERS]
        own = [outcome(text, x, y) for x, y in inputs]
        monkeypatch.setattr(backends.current(), "ops", keras.ops)
        assert own == [outcome(text, x, y) for x, y in inputs]
    assert parse(f"let x = 0\n_ = {text}")
    assert any(isinstance(each, tuple) for each in own)


def test_keras_is_loaded_for_a_function_that_is_not_here():
    code = (
        "import os, sys; os.environ['KERAS_BACKEND'] = 'numpy'\n"
        "from kpatch import backends\n"
        "import numpy as np\n"
        "ops = backends.current().ops\n"
        "assert ops.exp(np.ones(2, 'float32'))[0] > 2 and 'keras' not in sys.modules\n"
        "assert ops.erf(np.zeros(2, 'float32'))[0] == 0 and 'keras' in sys.modules\n"
        "assert backends.current().name == 'numpy' and backends.current() is backends.current()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
