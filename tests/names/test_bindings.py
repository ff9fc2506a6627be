"""Values handed in from Python: read once, checked before the first write, and never aliased."""

import gc
import importlib.util
import operator
import re
import weakref

import keras
import ml_dtypes
import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpatch
from kpatch.run import planner
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "bfloat16", "float32", "float64"]
LITERALS = ("bool", "int64", "uint64", "float64")
KINDS = "a binding is a number, a list, an array, a tensor, a variable, a model, a recording, or a file of weights"


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@pytest.fixture
def model():
    return models.dense()


def bias(model):
    return to_numpy(model.get_layer("dense_1").bias.value).tolist()


def edited(start, dtype, text, **bindings):
    return to_numpy(kpatch.edit(keras.ops.convert_to_tensor(start, dtype), text, **bindings))


def as_tensor(array):
    return keras.ops.convert_to_tensor(array, array.dtype.name)


# Kinds of values ------------------------------------------------------------------------------------------------------


def variable(array):
    return keras.Variable(array, dtype="float32", name="given")


KINDS_OF_VALUES = {
    "an integer": (2, [2, 2, 2]),
    "a float": (0.5, [0.5, 0.5, 0.5]),
    "a boolean": (True, [1, 1, 1]),
    "a list": ([1, 2, 3], [1, 2, 3]),
    "a tuple": ((1.5, 2.5, 3.5), [1.5, 2.5, 3.5]),
    "a list of NumPy's numbers": ([np.float32(1.5), np.int8(2), 3], [1.5, 2, 3]),
    "a NumPy scalar": (np.float16(0.5), [0.5, 0.5, 0.5]),
    "NumPy's integer": (np.int64(3), [3, 3, 3]),
    "NumPy's boolean": (np.bool_(True), [1, 1, 1]),
    "an array of shape ()": (np.array(0.25), [0.25, 0.25, 0.25]),
    "an array": (np.array([1.0, 2.0, 3.0]), [1, 2, 3]),
    "a reversed view": (np.arange(3.0)[::-1], [2, 1, 0]),
    "a read-only array": (np.broadcast_to(np.float32(4), (3,)), [4, 4, 4]),
    "big-endian": (np.array([1, 2, 3], ">f4"), [1, 2, 3]),
    "a tensor": (lambda: keras.ops.convert_to_tensor([1.0, 2.0, 3.0]), [1, 2, 3]),
    "a Keras variable": (lambda: variable([1.0, 2.0, 3.0]), [1, 2, 3]),
}


@pytest.mark.parametrize("kind", KINDS_OF_VALUES)
def test_kinds(model, kind):
    given_, expected = KINDS_OF_VALUES[kind]
    value = given_() if callable(given_) else given_
    before = models.snapshot(model)
    applied = kpatch.apply(model, "dense_1.bias = $value", value=value)
    assert bias(model) == expected
    applied.undo()
    assert models.snapshot(model) == before
    assert edited([0, 0, 0], "float32", "_ = $value", value=value).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16", "int32", "int8"])
def test_arrays_of_every_dtype(dtype, target):
    array = np.array([[1, 0, 1], [0, 1, 0]]).astype(numpy_dtype(dtype))
    result = edited(np.zeros((2, 3)), target, "_ = $v", v=array)
    assert result.dtype == numpy_dtype(target)
    np.testing.assert_array_equal(result.astype("float64"), array.astype("float64"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_which_arrays_are_literals(dtype):
    """float64 is NumPy's default, and says nothing: such an array takes the dtype of the tensor beside it."""
    rng = np.random.default_rng(0)
    start, array = rng.normal(size=200).astype("float16"), rng.normal(size=200).astype(dtype)
    if dtype == "float64":
        expected = start * array.astype("float16")
    else:
        expected = (start.astype(dtype) * array).astype("float16")
    np.testing.assert_array_equal(edited(start, "float16", "_ = _ * $v", v=array), expected)


def test_integers_that_are_literals_are_checked_for_the_dtype_that_they_meet():
    assert edited([1, 2], "int8", "_ = _ + $v", v=np.array([1, 1])).tolist() == [2, 3]
    with pytest.raises(kpatch.DTypeError) as caught:
        edited([1, 2], "int8", "_ = _ + $v", v=np.array([1, 300]))
    assert str(caught.value).startswith("300 at [1] does not fit int8 (-128 to 127)\n  line 1, column 9\n")
    wide = edited([1, 2], "int8", "_ = cast((_ + $v) // 4, 'int8')", v=np.array([1, 300], "int32"))
    assert wide.tolist() == [0, 75]  # in int32, as the array says


@pytest.mark.parametrize("value", [2**63, np.uint64(2**63 + 5), np.int64(-(2**63)), np.array([2**63], "uint64")])
def test_integers_of_64_bits(value):
    assert edited([0.0], "float32", "_ = $v", v=value).tolist() == [np.float32(np.ravel(value)[0])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_bits_of_arrays_and_tensors_arrive(dtype):
    raw = np.random.default_rng(1).integers(0, 256, (64, numpy_dtype(dtype).itemsize), dtype="uint8")
    array = np.ascontiguousarray(raw).view(numpy_dtype(dtype)).reshape(-1)
    for value in (array, as_tensor(array)):
        result = edited(np.zeros(64), dtype, "_ = $v", v=value)
        np.testing.assert_array_equal(result, array)  # NaN is NaN: of some, Keras's own conversion moves the payload
        np.testing.assert_array_equal(np.signbit(result), np.signbit(array))


@needs_torch
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "requires_grad", "parameter", "int64", "transposed"])
def test_tensors_of_torch_on_every_backend(kind):
    import torch

    made = {
        "float32": lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "bfloat16": lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16),
        "requires_grad": lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        "parameter": lambda: torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        "int64": lambda: torch.tensor([[1, 2], [3, 4]]),
        "transposed": lambda: torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T,
    }
    value = made[kind]()
    result = kpatch.edit(keras.ops.zeros((2, 2)), "_ = $v", v=value)
    assert to_numpy(result).tolist() == [[1, 2], [3, 4]]
    if BACKEND != "torch":  # where it is a tensor of the backend, and may have a gradient
        layer = kpatch.layers.ScatterLayer("_ = $v", {"v": value})
        assert to_numpy(layer(keras.ops.zeros((2, 2)))).tolist() == [[1, 2], [3, 4]]


def test_variables_by_their_present_value(model):
    given_ = variable([1.0, 2.0, 3.0])
    text = "dense_1.bias = $v"
    kpatch.apply(model, text, v=given_)
    given_.assign([4.0, 5.0, 6.0])
    kpatch.apply(model, text, v=given_)
    assert bias(model) == [4, 5, 6]


def test_the_target_itself(model):
    kernel = model.get_layer("dense_1").kernel
    before = to_numpy(kernel.value).copy()
    applied = kpatch.apply(model, "dense_1.kernel[1:] = $k[:-1]; dense_1.kernel = dense_1.kernel + $k", k=kernel)
    expected = before.copy()
    expected[1:] = before[:-1]
    np.testing.assert_array_equal(to_numpy(kernel.value), expected + expected)
    applied.undo()
    np.testing.assert_array_equal(to_numpy(kernel.value), before)
    kpatch.apply(model, "dense_1.kernel = $k", k=kernel)
    kpatch.apply(model, "dense_1.kernel = $k._", k=model)
    np.testing.assert_array_equal(to_numpy(kernel.value), before)


def test_models_and_layers(model):
    donor = models.filled(models.dense(), seed=5)
    kpatch.apply(model, "dense_1.bias = $d.dense_1.bias; dense_2.kernel = $l.kernel", d=donor, l=donor.layers[1])
    for mine, other in zip(model.weights[1:3], donor.weights[1:3], strict=True):
        np.testing.assert_array_equal(to_numpy(mine.value), to_numpy(other.value))
    result = kpatch.edit(keras.ops.zeros((3,)), "_ = $d.dense_1.bias * 2", d=donor)
    np.testing.assert_array_equal(to_numpy(result), to_numpy(donor.weights[1].value) * 2)


def test_as_index():
    x = np.arange(12.0).reshape(3, 4)
    mask = x % 3 == 0
    for text, bindings, key in [
        ("_[$i] = 9", {"i": 1}, 1),
        ("_[$i, $j] = 9", {"i": -1, "j": [0, 2]}, (-1, [0, 2])),
        ("_[$i] = 9", {"i": np.array([2, 0], "uint8")}, [2, 0]),
        ("_[$i] = 9", {"i": np.int64(-3)}, -3),
        ("_[:$n] = 9", {"n": 2}, slice(2)),
        ("_[$m] = 9", {"m": mask}, mask),
        ("_[$m] = 9", {"m": [True, False, True]}, [True, False, True]),
        ("_[$m] = 9", {"m": as_tensor(mask)}, mask),
        ("_[:, $t] = 9", {"t": keras.ops.convert_to_tensor([1, 3], "int32")}, (slice(None), [1, 3])),
    ]:
        expected = x.copy()
        expected[key] = 9
        np.testing.assert_array_equal(edited(x, "float32", text, **bindings), expected)


@settings(max_examples=60)
@given(st.data())
def test_any_array_is_what_numpy_assigns(data):
    dtype = data.draw(st.sampled_from(["float32", "float16", "int8", "int32"]))
    source = data.draw(st.sampled_from(["int8", "int64", "bool", dtype]))
    shape = data.draw(st.sampled_from([(), (4,), (1, 4), (3, 1), (3, 4)]))
    values = data.draw(st.lists(st.integers(0, 100), min_size=12, max_size=12))
    array = np.resize(np.array(values), shape).astype(source)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    expected = np.zeros((3, 4), dtype)
    expected[...] = array
    np.testing.assert_array_equal(edited(np.zeros((3, 4)), dtype, "_[:] = $v", v=array), expected)


# Errors ---------------------------------------------------------------------------------------------------------------

ragged, missing, itself = [1, [2, 3]], [1, None], []
itself.append(itself)

WRONG = {
    "None": (None, f"'$v' is a NoneType; {KINDS}"),
    "text": ("text", f"'$v' is a str; {KINDS}"),
    "bytes": (b"text", f"'$v' is a bytes; {KINDS}"),
    "a dict": ({"a": 1}, f"'$v' is a dict; {KINDS}"),
    "a range": (range(3), f"'$v' is a range; {KINDS}"),
    "complex": (1j, f"'$v' is a complex; {KINDS}"),
    "symbolic": (keras.Input((3,)), f"'$v' is a KerasTensor; {KINDS}"),
    "a class": (keras.layers.Dense, f"'$v' is a type; {KINDS}"),
    "a list in itself": (itself, f"'$v' is a list; {KINDS}"),
    "ragged": (ragged, "'$v': the items of a list must all have the same length"),
    "a list with a hole": (missing, "'$v': a list holds numbers, and this one a NoneType"),
    "booleans and numbers": ([True, 2], "'$v': a list holds booleans or numbers, not both"),
    "objects": (np.array([None, 1]), "'$v': an array of object is not part of the language"),
    "texts": (np.array(["a"]), "'$v': an array of <U1 is not part of the language"),
    "complex numbers": (np.ones(3, "complex128"), "'$v': an array of complex128 is not part of the language"),
    "dates": (np.zeros(3, "M8[s]"), "'$v': an array of datetime64[s] is not part of the language"),
    "masked": (
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        "'$v': a masked array leaves entries without a value; 'filled()' gives them one",
    ),
    "huge": (10**30, "'$v': the integer about 2**99 does not fit 64 bits"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_value(model, kind):
    value, expected = WRONG[kind]
    before = models.snapshot(model)
    for function in (kpatch.apply, kpatch.plan):
        with pytest.raises(kpatch.BindingError) as caught:
            function(model, "dense_2.bias = 1; dense_1.bias = $v", v=value)
        assert str(caught.value) == expected
    with pytest.raises(kpatch.BindingError):
        kpatch.edit(keras.ops.zeros((3,)), "_ = $v", v=value)
    assert models.snapshot(model) == before


def test_lists_deeper_than_the_stack(model):
    deep = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.apply(model, "dense_1.bias = $v", v=deep)
    assert str(caught.value) == f"'$v' is a list; {KINDS}"
    while isinstance(deep, list):  # or Python frees it by recursion
        deep = deep[0]


def test_tensors_without_entries():
    made = []
    if BACKEND == "torch":
        import torch

        made = [torch.ones(3, device="meta"), torch.ones(3).to_sparse(), torch.ones(3, dtype=torch.complex64)]
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        made = [tf.constant(["a"]), tf.ragged.constant([[1], [1, 2]]), tf.sparse.from_dense([1.0, 0.0, 2.0])]
    elif BACKEND == "jax":
        import jax

        made = [jax.random.key(0), jax.ShapeDtypeStruct((3,), "float32"), jax.numpy.ones(3, "complex64")]
    for value in made:
        with pytest.raises(kpatch.BindingError, match=r"^'\$v'"):
            kpatch.edit(keras.ops.zeros((3,)), "_ = $v", v=value)


TEXTS = {
    ("dense_1.bias = $v", ()): """
no value for '$v'; pass v=...
  line 1, column 16
    dense_1.bias = $v
                   ^^
""",
    ("dense_1.bias = $vector", ("vectr",)): """
no value for '$vector'; did you mean '$vectr'?
  line 1, column 16
    dense_1.bias = $vector
                   ^^^^^^^
  given: vectr
""",
    ("dense_1.bias = $undo", ()): """
no value for '$undo'; pass bindings={"undo": ...}
  line 1, column 16
    dense_1.bias = $undo
                   ^^^^^
""",
    ("dense_1.bias = 1", ("row",)): """
'row' is not used: '$row' is nowhere in the patch
""",
    ("dense_1.bias[:2] = $vector", ("vector", "vecotr")): """
'vecotr' is not used; did you mean 'vector'?
""",
    ("dense_1.bias = $a.kernel", ("a",)): """
'$a' is no model, so it has no '.kernel'
  line 1, column 16
    dense_1.bias = $a.kernel
                   ^^^^^^^^^
""",
    ("dense_1.bias = 2 * $donor", ("donor",)): """
'$donor' is a model, not a tensor; name a variable of it, as in '$donor.dense_1.kernel'
  line 1, column 20
    dense_1.bias = 2 * $donor
                       ^^^^^^
  '$donor._' is the variable at the target's own place
""",
    ("dense_1.bias = $donor.dense_1.bais", ("donor",)): """
no variable 'dense_1.bais'; did you mean 'dense_1.bias'?
  line 1, column 31
    dense_1.bias = $donor.dense_1.bais
                                  ^^^^
  in the model that '$donor' stands for
  dense_1 has: kernel (4, 3) float32, bias (3,) float32
""",
    ("let a = sum($donor._)", ("donor",)): """
'$donor._' is the variable at the target's place, and here is no target
  line 1, column 13
    let a = sum($donor._)
                ^^^^^^^^
""",
    ("dense_1.kernel[1, $seven] = 1", ("seven",)): """
index 7 is out of range for axis 1 with 3 entries
  line 1, column 19
    dense_1.kernel[1, $seven] = 1
                      ^^^^^^
  axis 1 takes indices from -3 to 2
""",
    ("dense_1.kernel[$vector] = 1", ("vector",)): """
index 9 is out of range for axis 0 with 4 entries
  line 1, column 16
    dense_1.kernel[$vector] = 1
                   ^^^^^^^
  it is the entry [1] of the index array
  axis 0 takes indices from -4 to 3
""",
    ("dense_1.kernel[$mask] = 1", ("mask",)): """
mask of shape (2,) does not fit axis 0 with 4 entries
  line 1, column 16
    dense_1.kernel[$mask] = 1
                   ^^^^^
  a mask must have the shape of the axes that it covers
""",
    ("dense_1.bias[$half] = 1", ("half",)): """
an index is made of integers or booleans, not of float
  line 1, column 14
    dense_1.bias[$half] = 1
                 ^^^^^
  cast(x, "int32") converts it to integers
""",
    ("dense_1.bias = $vector", ("vector",)): """
value of shape (2,) does not fit the selection of shape (3,)
  line 1, column 16
    dense_1.bias = $vector
                   ^^^^^^^
  axis 0 of the selection has length 3: the value's must be 3 or 1, not 2
""",
    ("**.kernel[2] = 0; **.kernel[3] = $row", ("row",)): """
index 3 is out of range for axis 0 with 3 entries
  line 1, column 29
    **.kernel[2] = 0; **.kernel[3] = $row
                                ^
  axis 0 takes indices from -3 to 2
  for dense_2.kernel (3, 2) float32, match 2 of '**.kernel'
""",
    ("**.bias = $large", ("large",)): """
1e+39 does not fit float32 (at most 3.40282e+38)
  line 1, column 11
    **.bias = $large
              ^^^^^^
  cast(..., "float32") makes it infinite
  for dense_1.bias (3,) float32, match 1 of '**.bias'
  2 of the 2 matches fail
""",
}
VALUES = {"seven": 7, "vector": [0, 9], "vectr": [0], "vecotr": [0], "mask": [True, False], "half": 0.5, "row": 1}
VALUES |= {"a": 1, "large": 1e39}


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: f"{case[0]} {','.join(case[1])}")
def test_whole_error_texts(model, case):
    text, names = case
    before = models.snapshot(model)
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.apply(model, f"{text}", **{name: models.dense() if name == "donor" else VALUES[name] for name in names})
    assert str(caught.value) == TEXTS[case].strip("\n")
    assert models.snapshot(model) == before


def test_a_name_that_is_used_only_where_planning_fails_is_no_second_error(model):
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.apply(model, "dense_1.bais = $v\ndense_1.bias[9] = $w", v=1, w=1)
    assert [type(error).__name__ for error in caught.value.errors] == ["ResolutionError", "SubscriptError"]


def test_bindings_are_checked_before_the_first_write(model):
    before = models.snapshot(model)
    for text, bindings in [
        ("dense_1.bias = 7; dense_1.kernel[$i] = 1", {"i": [0, 4]}),
        ("dense_1.bias = 7; dense_1.kernel[$i] = 1", {"i": as_tensor(np.array([0, 4], "int32"))}),
        ("dense_1.bias = 7; dense_1.kernel = $v", {"v": np.ones((3, 4), "float32")}),
        ("dense_1.bias = 7; dense_2.bias = $v", {"v": np.array([np.nan, 1e300])}),
        ("dense_1.bias = 7; dense_2.bias = 1; assert $ok", {"ok": False}),
    ]:
        with pytest.raises(kpatch.PatchError):
            kpatch.apply(model, text, **bindings)
        assert models.snapshot(model) == before


def test_the_names_of_options_are_the_options(model):
    with pytest.raises(kpatch.ResolutionError, match=r"^the patch matches 1 variable, not 3\n"):
        kpatch.apply(model, "dense_1.bias = 1", expect=3)


def test_free_names(model):
    kpatch.apply(model, "dense_1.bias = $patch + $model + $x", patch=1, model=2, x=3)
    assert bias(model) == [6, 6, 6]
    assert edited([0.0], "float32", "_ = $x + $patch", x=1, patch=2).tolist() == [3]


# Keywords of other functions ------------------------------------------------------------------------------------------

FILE, COPY = "kpatch.checkpoint.apply writes a file", "kpatch.rewrite makes a new model"
MEMORY = "edits a model in memory and takes no"
FOREIGN = {
    ("apply", "out"): f"kpatch.apply {MEMORY} 'out'; {FILE}",
    ("apply", "output"): f"kpatch.apply {MEMORY} 'output'; {FILE}",
    ("apply", "inplace"): f"kpatch.apply {MEMORY} 'inplace'; it always edits in place; {COPY}",
    ("apply", "dry_run"): f"kpatch.apply {MEMORY} 'dry_run'; kpatch.plan is the dry run",
    ("apply", "journal"): f"kpatch.apply {MEMORY} 'journal'; kpatch.checkpoint.apply takes it",
    ("apply", "bindings"): "bindings is a dict of names and values. Received: bindings=True",
    ("apply", "model"): "kpatch.apply takes 'model' and 'patch' by position: kpatch.apply(model, patch)",
    ("plan", "out"): f"kpatch.plan writes nothing and takes no 'out'; {FILE}",
    ("plan", "in_place"): "kpatch.plan writes nothing and takes no 'in_place'; kpatch.apply edits a model in place",
    ("plan", "dry_run"): "kpatch.plan writes nothing and takes no 'dry_run'; it is the dry run itself",
    ("plan", "undo"): "kpatch.plan writes nothing and takes no 'undo'; kpatch.apply takes it",
    ("plan", "patch"): "kpatch.plan takes 'model' and 'patch' by position: kpatch.plan(model, patch)",
    ("edit", "out"): "kpatch.edit returns a new tensor and takes no 'out'; x = kpatch.edit(x, patch) keeps it",
    ("edit", "inplace"): "kpatch.edit returns a new tensor and takes no 'inplace'; kpatch.apply edits a model in place",
    ("edit", "dry_run"): "kpatch.edit returns a new tensor and takes no 'dry_run'; x stays as it is",
    ("edit", "expect"): "kpatch.edit returns a new tensor and takes no 'expect'; the one tensor is all that it edits",
    ("edit", "model"): "kpatch.edit takes 'x' and 'patch' by position: kpatch.edit(x, patch)",
    ("edit", "x"): "kpatch.edit takes 'x' and 'patch' by position: kpatch.edit(x, patch)",
    ("rewrite", "output"): (
        "kpatch.rewrite returns a new model and takes no 'output'; "
        "kpatch.rewrite(model, patch).save(path) writes a file"
    ),
    ("rewrite", "inplace"): (
        "kpatch.rewrite returns a new model and takes no 'inplace'; kpatch.apply edits a model in place"
    ),
    ("rewrite", "dry_run"): "kpatch.rewrite returns a new model and takes no 'dry_run'; the old one stays as it is",
    ("intervene", "out"): f"kpatch.intervene patches a model for a 'with' block and takes no 'out'; {FILE}",
    ("intervene", "inplace"): f"kpatch.intervene patches a model for a 'with' block and takes no 'inplace'; {COPY}",
    ("intervene", "dry_run"): (
        "kpatch.intervene patches a model for a 'with' block and takes no 'dry_run'; its call only checks the patch"
    ),
    ("hold", "out"): f"kpatch.hold {MEMORY} 'out'; {FILE}",
    ("hold", "in_place"): f"kpatch.hold {MEMORY} 'in_place'; it always edits in place",
    ("hold", "dry_run"): f"kpatch.hold {MEMORY} 'dry_run'; kpatch.plan is the dry run",
    ("checkpoint.apply", "output"): "kpatch.checkpoint.apply edits a file and takes no 'output'; its keyword is 'out'",
    ("checkpoint.apply", "inplace"): (
        "kpatch.checkpoint.apply edits a file and takes no 'inplace'; its keyword is 'in_place'"
    ),
    ("checkpoint.apply", "dry_run"): (
        "kpatch.checkpoint.apply edits a file and takes no 'dry_run'; kpatch.checkpoint.plan is the dry run"
    ),
    ("checkpoint.apply", "path"): (
        "kpatch.checkpoint.apply takes 'path' and 'patch' by position: kpatch.checkpoint.apply(path, patch)"
    ),
    ("checkpoint.plan", "out"): f"kpatch.checkpoint.plan writes nothing and takes no 'out'; {FILE}",
    ("checkpoint.plan", "in_place"): (
        "kpatch.checkpoint.plan writes nothing and takes no 'in_place'; kpatch.checkpoint.apply edits a file in place"
    ),
    ("checkpoint.plan", "dry_run"): (
        "kpatch.checkpoint.plan writes nothing and takes no 'dry_run'; it is the dry run itself"
    ),
}


@pytest.mark.parametrize("case", FOREIGN, ids=".".join)
def test_keywords_of_other_functions(model, tmp_path, case):
    name, keyword = case
    target, text, before = model, "dense_1.bias = 1", models.snapshot(model)
    if name.startswith("checkpoint"):
        target = tmp_path / "model.keras"
        model.save(target)
        before = target.read_bytes()
    elif name == "edit":
        target, text = keras.ops.zeros((3,)), "_ = 1"
    with pytest.raises(kpatch.BindingError) as caught:
        operator.attrgetter(name)(kpatch)(target, text, **{keyword: True})
    assert str(caught.value) == FOREIGN[case]
    assert (target.read_bytes() if name.startswith("checkpoint") else models.snapshot(model)) == before


def test_models_and_patches_are_given_by_position(model):
    by_position = "kpatch.apply takes 'model' and 'patch' by position: kpatch.apply(model, patch)"
    text = "dense_1.bias = 1"
    for args, named in [((), {"model": model, "patch": text}), ((model,), {"patch": text})]:
        with pytest.raises(kpatch.BindingError) as caught:
            kpatch.apply(*args, **named)
        assert str(caught.value) == by_position
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'patch'"):
        kpatch.apply(model, out="model.keras")


def test_keywords_of_other_functions_are_bindings_where_the_patch_has_them(model):
    kpatch.apply(model, "let a = $model; dense_1.bias[0] = $out + a; dense_1.bias[1] = $inplace", out=1, model=2,
                 inplace=3)  # fmt: skip
    assert bias(model)[:2] == [3, 3]
    with kpatch.intervene(model, "dense_1.output = $dry_run", dry_run=5):
        pass
    with pytest.raises(kpatch.PatchSyntaxError):
        kpatch.apply(model, "dense_1.bias = = 0", out="model.keras")


# Compiled functions ---------------------------------------------------------------------------------------------------


def compiled(function):
    """The function as the backend compiles it."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    import torch

    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy compiles nothing")
def test_traced_bindings():
    x, v, m = np.arange(6.0).reshape(2, 3), np.array([7.0, 8.0, 9.0]), np.array([[1, 0, 1], [0, 0, 1]], bool)
    tensors = [keras.ops.convert_to_tensor(a, d) for a, d in ((x, "float32"), (v, "float32"), (m, "bool"))]
    run = compiled(lambda x, v, m: kpatch.edit(x, "_[1] = $v * $k; _[$m] = _ + 1; _[:, $j] -= 1", v=v, m=m, k=2, j=[0]))
    expected = x.copy()
    expected[1] = v * 2
    expected[m] += 1
    expected[:, [0]] -= 1
    np.testing.assert_array_equal(to_numpy(run(*tensors)), expected)
    if BACKEND == "jax":
        run = compiled(lambda v: kpatch.edit(np.zeros((2, 3), "float32"), "_[1] = $v", v=v))  # only the value is traced
        np.testing.assert_array_equal(to_numpy(run(tensors[1])), [[0, 0, 0], v])


@pytest.mark.skipif(BACKEND in ("numpy", "torch"), reason="compiled, and without dynamo's wrapping of errors")
def test_what_a_traced_binding_cannot_be():
    for text, message in [
        ("_ = take(_, $i)", "a compiled function cannot check that this index is in range for axis 0 with 3 entries"),
        ("_ = cast(_, 'int8') // $i", "compiled"),
    ]:
        run = compiled(lambda x, i, text=text: kpatch.edit(x, text, i=i))
        with pytest.raises(Exception, match=re.escape(message)):
            run(keras.ops.zeros((3,)), keras.ops.convert_to_tensor(1, "int32"))


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy has no gradients")
def test_gradients_reach_a_binding():
    x, v = keras.ops.zeros((2, 2)), keras.ops.convert_to_tensor([3.0, 4.0])

    def loss(v):
        return keras.ops.sum(keras.ops.square(kpatch.edit(x, "_[0] = $v", v=v)))

    if BACKEND == "jax":
        import jax

        gradient = jax.grad(loss)(v)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(v)
            value = loss(v)
        gradient = tape.gradient(value, v)
    else:
        v = v.clone().requires_grad_()
        loss(v).backward()
        gradient = v.grad
    assert to_numpy(gradient).tolist() == [6, 8]


# Never aliased --------------------------------------------------------------------------------------------------------

WHOLE = ["dense_1.kernel = $v", "dense_1.kernel[...] = $v", "dense_1.kernel[:] = $v", "let a = $v; dense_1.kernel = a"]
WHOLE += ["dense_1.kernel = $v * 1", "dense_1.kernel = $v + 0", "dense_1.kernel = _ * 0 + $v", "*_1.kernel = $v"]


def given_values():
    array = np.arange(12, dtype="float32").reshape(4, 3)
    yield array
    yield array.astype("float64")
    yield as_tensor(array)
    yield keras.Variable(array, name="given")
    if HAS_TORCH:
        import torch

        yield torch.from_numpy(array.copy())


@pytest.mark.parametrize("text", WHOLE)
def test_later_edits_do_not_reach_what_was_handed_in(text):
    for value in given_values():
        model, before = models.dense(), read(value)
        first = kpatch.apply(model, text, v=value)
        np.testing.assert_array_equal(to_numpy(model.get_layer("dense_1").kernel.value), before)
        kpatch.apply(model, "dense_1.kernel[0, 0] = 99")
        kpatch.apply(model, "dense_1.kernel *= 2").undo()
        kpatch.apply(model, "dense_1.kernel[_ > 3] = 55; dense_1.kernel[1] = 4; dense_1.kernel[:, ::2] = 5")
        np.testing.assert_array_equal(read(value), before)
        np.testing.assert_array_equal(first.writes[0].after.reshape(4, 3), before)


@pytest.mark.parametrize("text", WHOLE)
def test_what_happens_to_a_value_later_does_not_reach_the_model(text):
    for value in given_values():
        model, before = models.dense(), read(value)
        start = models.snapshot(model)
        applied = kpatch.apply(model, text, v=value)
        overwrite(value)
        np.testing.assert_array_equal(to_numpy(model.get_layer("dense_1").kernel.value), before)
        np.testing.assert_array_equal(applied.writes[0].after.ravel(), before.ravel())
        applied.undo()
        assert models.snapshot(model) == start


def read(value):
    if isinstance(value, keras.Variable):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.copy()
    return np.array(value.detach().cpu()) if hasattr(value, "detach") else np.array(to_numpy(value))


def overwrite(value):
    """Changes a value in place, as far as it can be."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = -77
    elif isinstance(value, keras.Variable):
        value.assign(np.full(value.shape, -77, "float32"))
        kpatch.edit(value, "_ = -78")
    elif hasattr(value, "fill_"):
        value.detach().fill_(-77)


def test_edit_never_gives_back_what_was_handed_in():
    array = np.ones((2, 3), "float32")
    for value in (array, as_tensor(array)):
        result = kpatch.edit(keras.ops.zeros((2, 3)), "_ = $v", v=value)
        overwrite(value)
        assert to_numpy(result).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_one_donor_serves_many_edits_and_is_never_written(model):
    donor = models.filled(models.dense(), seed=5)
    before = models.snapshot(donor)
    kpatch.apply(model, "** = $donor._", donor=donor)
    assert models.snapshot(model) == before
    kpatch.apply(model, "** += 1")
    kpatch.apply(model, "** = 0.5 * _ + 0.5 * $donor._", donor=donor)
    kpatch.apply(model, "**.kernel[_ > 0] = 0; **.bias[[0, 1, 0]] += $donor._[[0, 1, 0]]", donor=donor)
    assert models.snapshot(donor) == before


def test_a_variable_edited_while_it_is_handed_in(model):
    """Both ways at once: the target is also a value, and an earlier statement changes it."""
    kernel = model.get_layer("dense_1").kernel
    kpatch.apply(model, "dense_1.kernel = 3; dense_1.bias = sum($k, axis=0)", k=kernel)
    assert bias(model) == [12, 12, 12]


def test_plans_with_bindings_are_not_mixed_up(model):
    for value in (1, 2.5, [1, 2, 3], np.array([4, 5, 6], "float32")):
        kpatch.apply(model, "dense_1.bias = $v", v=value)
        assert bias(model) == np.broadcast_to(np.array(value, "float32"), 3).tolist()


# Plans with models handed in are kept.


@pytest.fixture
def planned(monkeypatch):
    """How often a patch was planned."""
    made, make = [], planner.make
    monkeypatch.setattr(planner, "make", lambda patch, *args: made.append(patch) or make(patch, *args))
    return made


MERGES = ("**.kernel = 0.5 * _ + $donor._", "** += $donor.dense_1.kernel[0, 0]", "dense_1.kernel.stored = $donor._")


@pytest.mark.parametrize("text", MERGES)
def test_a_plan_with_models_is_kept(text, planned):
    model, twin, donors = models.dense(), models.dense(), [models.dense(), models.dense()]
    kpatch.apply(donors[1], "** = 2")
    for turn in range(4):
        kpatch.apply(model, text, donor=donors[turn % 2])
        kpatch.apply(twin, text + " + 0 * $zero", donor=donors[turn % 2], zero=0)  # planned each time
        assert models.snapshot(model) == models.snapshot(twin)
    assert len(planned) == 2 + 4 + 1


def test_a_plan_that_is_kept_follows_the_models_handed_in(planned):
    model, donor = models.dense(), models.dense()
    text = "dense_1.kernel = $donor.dense_1.kernel + $other._"
    apply = lambda: kpatch.apply(model, text, donor=donor, other=model, expect=1)  # noqa: E731
    apply(), apply()
    assert len(planned) == 1
    with pytest.raises(kpatch.PatchError, match="the patch matches 1 variable, not 2"):
        kpatch.apply(model, text, donor=donor, other=model, expect=2)
    donor.get_layer("dense_1").name = "other"
    with pytest.raises(kpatch.PatchError, match="do not broadcast"):
        apply()
    donor.get_layer("other").name = "dense_1"
    apply()
    plan = kpatch.plan(model, text, donor=donor, other=model)
    donor.get_layer("dense_1").name = "other"
    with pytest.raises(kpatch.PatchError, match="do not broadcast"):
        kpatch.plan(model, text, donor=donor, other=model)
    donor.get_layer("other").name = "dense_1"
    plan.apply(), apply()


def test_a_plan_of_a_donor_that_is_quantised():
    model, donor, twin = models.dense(), models.dense(), models.dense()
    text = "dense_1.kernel = $donor._"
    kpatch.apply(model, text, donor=donor)
    donor.get_layer("dense_1").quantize("int8")
    for each in (model, twin):
        kpatch.apply(each, text, donor=donor)
    assert models.snapshot(model) == models.snapshot(twin)


def test_no_plan_keeps_a_model_alive():
    model, donor = models.dense(), models.dense()
    kpatch.apply(model, "**.kernel = 0.5 * _ + $donor._", donor=donor, undo=False)
    kpatch.apply(donor, "**.kernel = 0.5 * _ + $donor._", donor=model, undo=False)
    held = weakref.ref(donor)
    del donor
    gc.collect()
    assert held() is None
    held, donor = weakref.ref(model), models.dense()
    kpatch.apply(model, "**.kernel = 0.5 * _ + $donor._", donor=donor, undo=False)
    del model
    gc.collect()
    assert held() is None
