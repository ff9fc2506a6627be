"""Errors are part of the interface: their whole texts; and any text at all ends in a result or in a `PatchError`."""

import copy
import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import keras
import models
import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpatch

MISTAKES = json.loads((Path(__file__).parents[1] / "conformance" / "errors.json").read_text())
DIGITS = Path(__file__).parents[2] / "examples" / "digits.keras"
TEXTS = {
    "dense_1.kernel[0, 0] = 1\ndense_1.bias = 0\ndense_1.kernal[0, 0] = 1.0": """
no variable 'dense_1.kernal'; did you mean 'dense_1.kernel'?
  line 3, column 9
    dense_1.kernal[0, 0] = 1.0
            ^^^^^^
  dense_1 has: kernel (4, 3) float32, bias (3,) float32
""",
    "kernel[0] = 1": """
'kernel' is ambiguous: 2 variables have that name
  line 1, column 1
    kernel[0] = 1
    ^^^^^^
  dense_1.kernel (4, 3) float32
  dense_2.kernel (3, 2) float32
""",
    "dense_1.kernel[4] = 0": """
index 4 is out of range for axis 0 with 4 entries
  line 1, column 16
    dense_1.kernel[4] = 0
                   ^
  axis 0 takes indices from -4 to 3
""",
    "dense_1.kernel[:, [0, 5]] = 0": """
index 5 is out of range for axis 1 with 3 entries
  line 1, column 19
    dense_1.kernel[:, [0, 5]] = 0
                      ^^^^^^
  it is the entry [1] of the index array
  axis 1 takes indices from -3 to 2
""",
    "dense_1.bias = [1, 2]": """
value of shape (2,) does not fit the selection of shape (3,)
  line 1, column 16
    dense_1.bias = [1, 2]
                   ^^^^^^
  axis 0 of the selection has length 3: the value's must be 3 or 1, not 2
""",
    "dense_1.bias = sqr(_)": """
no function 'sqr'; did you mean 'sqrt'?
  line 1, column 16
    dense_1.bias = sqr(_)
                   ^^^^^^
""",
    "dense_1.bias = sum(_, axes=0)": """
sum() has no argument 'axes'; did you mean 'axis'?
  line 1, column 23
    dense_1.bias = sum(_, axes=0)
                          ^^^^^^
  sum(x, axis=None, keepdims=False)
""",
    "dense_1.bias = 1e39": """
1e+39 does not fit float32 (at most 3.40282e+38)
  line 1, column 16
    dense_1.bias = 1e39
                   ^^^^
  cast(..., "float32") makes it infinite
""",
    "dense_1.bias = (_ > 0) + 1": """
'+' is not defined on booleans; write cast(..., "float32") or where(..., 1, 0)
  line 1, column 17
    dense_1.bias = (_ > 0) + 1
                    ^^^^^
""",
    "dense_1.kernel[0.5] = 1": """
an index is made of integers or booleans, not of float
  line 1, column 16
    dense_1.kernel[0.5] = 1
                   ^^^
  cast(x, "int32") converts it to integers
""",
    "assert all(dense_1.bias > 100), 'too small'": """
assertion failed: too small
  line 1, column 8
    assert all(dense_1.bias > 100), 'too small'
           ^^^^^^^^^^^^^^^^^^^^^^^
  3 of 3 entries are false, the first at [0]
  dense_1.bias is [-2.375, -0.25, -1.25]
""",
    "assert shape(dense_1.kernel) == [4, 4], 'wrong head'": """
assertion failed: wrong head
  line 1, column 8
    assert shape(dense_1.kernel) == [4, 4], 'wrong head'
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  shape(dense_1.kernel) is [4, 3]
""",
    "_ = 0": """
'_' is no variable of a model
  line 1, column 1
    _ = 0
    ^
  name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit
""",
    "let a = _": """
'_' means nothing here: there is no implied tensor
  line 1, column 9
    let a = _
            ^
  in an edit of a model '_' stands for the entries being assigned; name a variable instead
""",
    "dense_1.bias = 1 / 0": """
'/' of integers by zero is an error
  line 1, column 20
    dense_1.bias = 1 / 0
                       ^
  with a float on either side the result would be infinite or nan
""",
    "dense_1.bias = sum(zeros([1000000000000]))": """
a result has at most 268435456 entries, this one would have 1000000000000
  line 1, column 20
    dense_1.bias = sum(zeros([1000000000000]))
                       ^^^^^^^^^^^^^^^^^^^^^^
""",
    "dense_1.bias = 9**9**9**9": """
9 ** 387420489 does not fit 64 bits
  line 1, column 19
    dense_1.bias = 9**9**9**9
                      ^^^^^^^
""",
}

NEXT_ISSUE = ["**.kernel = 0", "dense_?.bias = 0", "dense_1.bias = $x"]


@pytest.mark.parametrize("text", TEXTS)
def test_whole_text(text):
    model = models.dense()
    before = models.snapshot(model)
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.apply(model, text)
    assert str(caught.value) == TEXTS[text].strip("\n")
    assert models.snapshot(model) == before
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.backend_free
def test_attributes():
    with pytest.raises(kpatch.ResolutionError) as caught:
        kpatch.apply(models.dense(), "dense_1.bias = 0\n  dense_1.kernal = 1")
    error = caught.value
    assert (error.line, error.column, error.span) == (2, 11, (27, 33))
    assert error.statement == "  dense_1.kernal = 1"
    assert error.errors == (error,)


def test_first_fractional_value_into_an_integer_is_shown():
    layer = keras.layers.Layer(name="holder")
    steps = layer.add_weight(shape=(4,), dtype="int32", name="steps", initializer="zeros", trainable=False)
    scale = layer.add_weight(shape=(4,), name="scale", initializer="ones")
    layer.built = True
    scale.assign([1.0, 2.0, 2.5, float("nan")])
    with pytest.raises(kpatch.DTypeError) as caught:
        kpatch.apply(layer, "steps = scale")
    assert str(caught.value) == (
        "2.5 at [2] has a fraction, which int32 cannot hold\n"
        "  line 1, column 9\n"
        "    steps = scale\n"
        "            ^^^^^\n"
        '  cast(..., "int32") truncates it'
    )
    kpatch.apply(layer, 'steps = cast(scale, "int32")')
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(steps), [1, 2, 2, 0])


# Any text at all ------------------------------------------------------------------------------------------------------

HOSTILE = [
    "\0",
    "﻿",
    "(" * 10_000,
    "dense_1.bias = " + "[" * 10_000,
    "dense_1.bias = " + "+".join(["1"] * 100_000),
    "dense_1.bias = " + "-" * 10_000 + "1",
    "dense_1.bias = zeros([10**12])",
    "dense_1.bias = sum(outer(ones(100000), ones(100000)))",
    "dense_1.bias = sum(tile(dense_1.kernel, [100000, 100000]))",
    "dense_1.bias = 1e400",
    "dense_1.kernel[99999999999999999999999] = 1",
    "dense_1.kernel[::0] = 1",
    "dense_1.kernel[[[0], [1, 2]]] = 1",
    "dense_1.bias = mean(zeros([0]))",
    "dense_1.bias = max(zeros([0]))",
    "dense_1.bias = reshape(_, [2, -1])",
    "dense_1.bias = __import__('os')",
    "dense_1.bias = dense_1.kernel @ dense_1.kernel",
    'dense_1.bias = cast(_, "complex64")',
    "dense_1.bias[dense_1.kernel > 0] = 1",
    "; ".join(f"let a{i} = zeros([134217728])" for i in range(100)),
    "dense_1.bias = sum(concatenate([" + "zeros([134217728]), " * 50 + "]))",
    "dense_1.bias = " + " + ".join(["sum(zeros([134217728]))"] * 30),
    "a" * 1_000_000,
    "dense_1." * 100_000,
    '"' + "x/" * 100_000 + '" = 1',
    "; " * 1_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30].encode("unicode_escape").decode())
def test_hostile_text_ends_soon_in_a_patch_error_or_a_result(text):
    model = models.dense()
    message = ""
    try:
        kpatch.apply(model, text)
    except kpatch.PatchError as error:
        message = str(error)
    assert len(message) < 20_000


@pytest.fixture(scope="module")
def shared_model():
    return models.dense()


BUILTINS = {
    "PatchSyntaxError": ValueError,
    "ResolutionError": LookupError,
    "BindingError": ValueError,
    "SubscriptError": IndexError,
    "ShapeError": ValueError,
    "DTypeError": TypeError,
    "FunctionError": ValueError,
    "PatchAssertionError": AssertionError,
    "UndoError": RuntimeError,
    "LimitError": ValueError,
    "UnsupportedError": RuntimeError,
    "ExecutionError": RuntimeError,
    "FileError": OSError,
}


def raising(name, model, tmp_path):
    """Makes kpatch raise the error of this name."""
    patches = {
        "PatchSyntaxError": "dense_1.bias = ",
        "ResolutionError": "nowhere = 0",
        "BindingError": "dense_1.bias = $x",
        "SubscriptError": "dense_1.bias[9] = 0",
        "ShapeError": "dense_1.bias = [1, 2]",
        "DTypeError": "dense_1.bias = _ + true",
        "FunctionError": "dense_1.bias = sqr(_)",
        "PatchAssertionError": "assert all(dense_1.bias == 5)",
        "LimitError": "dense_1.bias = sum(zeros([1000000000000]))",
        "UnsupportedError": "dense_1.output = 0",
    }
    if name in patches:
        kpatch.apply(model, patches[name])
    elif name == "UndoError":
        applied = kpatch.apply(model, "dense_1.bias = 1")
        applied.undo()
        applied.undo()
    elif name == "ExecutionError":
        raise kpatch.ExecutionError("the backend failed", notes=["every variable was put back as it was"])
    else:
        kpatch.checkpoint.open(tmp_path / "missing.keras")


@pytest.mark.backend_free
@pytest.mark.parametrize("name", [name for name in kpatch.__all__ if name.endswith("Error") and name != "PatchError"])
def test_each_error_is_the_builtin_that_fits_too(name, tmp_path):
    cls = getattr(kpatch, name)
    with pytest.raises(BUILTINS[name]) as caught:
        raising(name, models.dense(), tmp_path)
    error = caught.value
    assert type(error) is cls
    assert cls.__bases__ == (kpatch.PatchError, BUILTINS[name])
    assert str(error).startswith(error.message)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), again.span, again.notes) == (cls, str(error), error.span, error.notes)
    assert f"kpatch.{name}: {error}" in "".join(traceback.format_exception_only(error))


def test_keras_does_not_swallow_the_error_of_a_layer():
    """A `NotImplementedError` would leave the model unbuilt without a word."""
    layer = kpatch.layers.PatchedLayer(keras.layers.Dense(2), "kernel[:, 5] = 0")
    with pytest.raises(kpatch.SubscriptError, match="index 5 is out of range"):
        keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(kpatch.UnsupportedError):
        keras.Sequential([keras.Input((3,)), kpatch.layers.ScatterLayer("_[_[0, 0] > 0] = 1; assert all(_ > 0)")])
    with pytest.raises(kpatch.DTypeError, match="not defined on booleans"):
        keras.Sequential([keras.Input((3,)), kpatch.layers.ScatterLayer("_ = _ + true")])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=strategies.texts() | st.text(max_size=60))
def test_any_text(shared_model, text):
    before = models.snapshot(shared_model)
    try:
        kpatch.plan(shared_model, text)
        kpatch.apply(shared_model, text).undo()
    except kpatch.PatchError as error:
        if isinstance(error, kpatch.ExecutionError):  # something went into the backend unchecked
            raise
    assert models.snapshot(shared_model) == before


WORDS = ["dense_1", "kernel", "bias", ".", "[", "]", "0", "1", ":", "...", "_", "=", "*=", "+", "-", "*", "/", ">"]
WORDS += ["(", ")", ",", "abs", "sum", "where", "zeros", "let", "assert", "a", "\n", "1.5", "true", "2", "[0, 1]", "@"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(WORDS), max_size=14), st.sampled_from(["dense_1.kernel", "dense_1.bias", ""]))
def test_any_words_of_the_language(shared_model, words, head):
    before = models.snapshot(shared_model)
    try:
        kpatch.apply(shared_model, head + "".join(words)).undo()
    except kpatch.PatchError as error:
        if isinstance(error, kpatch.ExecutionError):  # something went into the backend unchecked
            raise
    assert models.snapshot(shared_model) == before


WITHOUT_BACKEND = """
import sys

sys.modules["tensorflow"] = None  # as if it were not installed
import kpatch

try:
    {call}
except ModuleNotFoundError as error:
    print(str(error).partition(", which ")[2])
"""


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "call",
    [
        "kpatch.edit([1.0], '_[0] = 2')",
        "kpatch.layers",
        "import kpatch.callbacks",
        f"list(kpatch.checkpoint.open({str(DIGITS)!r}))",
    ],
)
def test_a_backend_that_is_missing(call, tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "KERAS_HOME": str(tmp_path)}
    code = WITHOUT_BACKEND.format(call=call)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout == (
        "Keras's backend needs; set the environment variable KERAS_BACKEND to one that is installed, such as numpy, "
        "and restart Python\n"
    )


@pytest.fixture(scope="module")
def three():
    layers = [keras.layers.Dense(3, name=name) for name in ("head", "dense_1", "dense_2")]
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.backend_free
@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case['kind']}: {case['source']}")
def test_common_mistakes(three, case):
    """What people write who know Python, NumPy or Keras: each error names the mistake, and the right form."""
    with pytest.raises(kpatch.PatchError) as info:
        kpatch.plan(three, case["source"])
    assert f"{type(info.value).__name__}: {info.value}" == case["error"]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ('"卷积".kernel = 1 2', "utf-8", ['"卷积".kernel = 1 2', 18 * " " + "^"]),  # two columns each
        ('"cafe\u0301".kernel = 1 2', "utf-8", ['"cafe\u0301".kernel = 1 2', 18 * " " + "^"]),  # a combining mark: none
        ('"क्षि".kernel = 1 2', "utf-8", ['"क्षि".kernel = 1 2', 16 * " " + "^"]),
        ('a = "é", 2', "utf-8", ['a = "é", 2', 7 * " " + "^"]),
        ('a = b("卷", )) 2', "utf-8", ['a = b("卷", )) 2', 13 * " " + "^"]),
        ('"卷积".kernel = 1 2', "ascii", [r'"\u5377\u79ef".kernel = 1 2', 26 * " " + "^"]),
        ('"cafe\u0301".kernel = 1 2', "ascii", [r'"cafe\u0301".kernel = 1 2', 24 * " " + "^"]),
        ('"café 积".kernel = 1 2', "latin-1", [r'"café \u79ef".kernel = 1 2', 25 * " " + "^"]),
        ("b = 'é", "ascii", [r"b = '\xe9", 4 * " " + "^" * 5]),
        ("a" * 120 + " = '积", "ascii", ["..." + "a" * 95 + r" = '\u79ef", 101 * " " + "^" * 7]),
    ],
)
def test_the_caret_stands_under_its_column(text, encoding, shown):
    with pytest.raises(kpatch.PatchSyntaxError) as info:
        kpatch.parse(text)
    assert info.value.details(encoding)[:2] == ["    " + line for line in shown]
