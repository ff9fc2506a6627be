"""The one law: `target[index] = value` does what NumPy does to an array of the same shape and dtype, bit for bit."""

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpatch
from kpatch.values.tensors import to_numpy

SHAPES = [(), (5,), (3, 4), (2, 3, 4), (1, 6), (4, 0)]
DTYPES = ["float32", "float16", "bfloat16", "int8", "int32", "bool"]
# of one to ten statements each: above two thousand statements on numpy, and on jax, which compiles for each, fewer
EXAMPLES = {"numpy": 400, "jax": 60}.get(keras.backend.backend(), 150)


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Holder(keras.layers.Layer):
    """A layer with one variable, `t`."""

    def __init__(self, array):
        super().__init__(name="holder")
        dtype = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.name
        self.t = self.add_weight(shape=array.shape, dtype=dtype, name="t", initializer="zeros", trainable=False)
        self.t.assign(array)
        self.built = True


def bits(array):
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), f"uint{8 * array.itemsize}")


@st.composite
def start_array(draw, shape, dtype):
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.startswith("int"):
        return np.asarray(rng.integers(-100, 100, shape), dtype)
    return np.asarray(np.round(rng.normal(size=shape) * 16) / 4).astype(numpy_dtype(dtype))


def text_of(value):
    """A literal of the language for a Python value."""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(text_of(item) for item in value) + "]"
    return repr(value)


@st.composite
def item(draw, length):
    """One index item for an axis, as text and as NumPy takes it."""
    kinds = ["slice"] + (["int", "list", "list2"] if length else ["list"])
    kind = draw(st.sampled_from(kinds))
    if kind == "int":
        i = draw(st.integers(-length, length - 1))
        return str(i), i
    if kind == "slice":
        bound = st.none() | st.integers(-length - 2, length + 2)
        start, stop, step = draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 3, -1, -2]))
        text = ":".join("" if part is None else str(part) for part in (start, stop, step))
        return text, slice(start, stop, step)
    size = draw(st.integers(0, 3)) if length else 0
    entries = draw(st.lists(st.integers(-length, length - 1), min_size=size, max_size=size)) if length else []
    if kind == "list2" and entries:
        nested = [entries, entries[::-1]]
        return text_of(nested), np.array(nested)
    return text_of(entries), np.array(entries, "int64")


@st.composite
def index(draw, array):
    """An index of the array, as text and as NumPy takes it; `None` for the whole tensor."""
    kind = draw(st.sampled_from(["whole", "items", "items", "items", "mask", "partial"]))
    if kind == "whole":
        return None, ...
    if kind == "mask":
        threshold = draw(st.sampled_from([-1, 0, 1]))
        if array.dtype == bool:
            return "_", array.copy()
        return f"_ > {threshold}", np.asarray(array > array.dtype.type(threshold))
    if kind == "partial" and array.ndim:
        mask = draw(st.lists(st.booleans(), min_size=array.shape[0], max_size=array.shape[0]))
        if mask:
            return text_of(mask), np.array(mask)
    count = draw(st.integers(0, array.ndim))
    parts = [draw(item(length)) for length in array.shape[:count]]
    if count < array.ndim and draw(st.booleans()):
        at = draw(st.integers(0, count))
        tail = [draw(item(length)) for length in array.shape[array.ndim - (count - at) :]] if count > at else []
        parts = [*parts[:at], ("...", ...), *tail]
    if not parts:
        return None, ...
    return ", ".join(text for text, _ in parts), tuple(key for _, key in parts)


@st.composite
def statement(draw, array):
    """A statement, as text, and the array that NumPy makes of it, or `None` where NumPy refuses."""
    text, key = draw(index(array))
    target = "_" if text is None else f"_[{text}]"
    try:
        selected = array[key]
    except IndexError:
        return None
    floating = array.dtype.kind not in "bi"
    number = st.sampled_from([0.5, -2.0, 3.0, 0.0]) if floating else st.integers(-3, 3)
    if array.dtype == bool:
        number = st.booleans()
    shape = draw(st.sampled_from([(), selected.shape, selected.shape[-1:], (1, *selected.shape)]))
    size = int(np.prod(shape))
    values = np.array(draw(st.lists(number, min_size=size, max_size=size)) if shape else draw(number)).reshape(shape)
    operator = draw(st.sampled_from(["=", "=", "+=", "-=", "*="])) if array.dtype != bool else "="
    source = text_of(values.tolist())
    if size == 0 and shape:
        source, values = "0" if array.dtype != bool else "false", np.array(0)
    if operator == "=" and draw(st.integers(0, 4)) == 0 and array.dtype != bool:
        source, values = "_ * 2 - 1", selected * array.dtype.type(2) - array.dtype.type(1)
    values = values.astype(array.dtype)
    after = array.copy()
    with np.errstate(all="ignore"):
        if operator != "=":
            values = {"+=": np.add, "-=": np.subtract, "*=": np.multiply}[operator](selected, values)
        surplus = max(0, values.ndim - selected.ndim)  # language.md: dropped always, by NumPy only now and then
        try:
            after[key] = values.reshape(values.shape[surplus:])
        except ValueError:
            return None
    return f"{target} {operator} {source}", after


@st.composite
def programs(draw):
    """Statements in a row, with the array before and after them."""
    dtype = draw(st.sampled_from(DTYPES))
    before = draw(start_array(draw(st.sampled_from(SHAPES)), dtype))
    after, lines = before, []
    for _ in range(draw(st.integers(1, 10))):
        made = draw(statement(after))
        if made is not None:
            lines.append(made[0])
            after = made[1]
    return before, "\n".join(lines), after


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_edit_does_what_numpy_does(program):
    before, text, after = program
    x = keras.ops.convert_to_tensor(before)
    result = to_numpy(kpatch.edit(x, text))
    np.testing.assert_array_equal(bits(result), bits(after), err_msg=text)
    np.testing.assert_array_equal(bits(to_numpy(x)), bits(before), err_msg=text)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_apply_does_what_numpy_does_and_undo_restores(program):
    before, text, after = program
    layer = Holder(before)
    # a model has no implied tensor: name the variable where the text says `_` as a target
    live = "\n".join("t" + line[1:] for line in text.splitlines())
    applied = kpatch.apply(layer, live)
    np.testing.assert_array_equal(bits(to_numpy(layer.t.value)), bits(after), err_msg=live)
    applied.undo()
    np.testing.assert_array_equal(bits(to_numpy(layer.t.value)), bits(before), err_msg=live)


@pytest.mark.parametrize("text", ["_[9] = 1", "_[0, 0] = 1", "_[[1, 7]] = 1", "_ = [1, 2]", "_[0:2] = [1, 2, 3]"])
def test_what_numpy_refuses_is_refused(text):
    x = keras.ops.ones((3,))
    with pytest.raises(kpatch.PatchError):
        kpatch.edit(x, text)
