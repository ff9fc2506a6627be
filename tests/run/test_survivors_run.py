"""Behaviour of planning, running and undo that mutants of the code had shown to be untested."""

import gc

import keras
import models
import numpy as np
import pytest

import kpatch
import kpatch.layers
from kpatch.names.index import index
from kpatch.run import checking, evaluate
from kpatch.run.undo import latest_link
from kpatch.values.tensors import mask_of, to_numpy


class Weight(keras.layers.Layer):
    """A layer with one weight `w` of three entries, of any dtype."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def build(self, shape):
        self.w = self.add_weight(shape=(3,), dtype=self.held, name="w", trainable=False)

    def call(self, x):
        return x


def weights(*dtypes):
    """A model with a weight `l0.w`, `l1.w`, … of each dtype."""
    layers = [Weight(dtype, name=f"l{number}") for number, dtype in enumerate(dtypes)]
    return keras.Sequential([keras.Input((3,)), *layers])


def values(model, number=0):
    return to_numpy(model.layers[number].w.value)


# Assertions

PARTLY = """assertion failed: zero
  line 1, column 8
    assert dense_1.bias * 0 == [0, 1, 0], "zero"
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  1 of 3 entries are false, the first at [1]"""


def test_an_assertion_that_holds_for_some_entries_fails():
    with pytest.raises(kpatch.PatchAssertionError) as caught:
        kpatch.apply(models.dense(), 'assert dense_1.bias * 0 == [0, 1, 0], "zero"')
    assert str(caught.value).startswith(PARTLY)


# Batches of literal writes

OUTSIDE = [
    ("bias[", "3", "]", "index 3 is out of range for axis 0 with 3 entries", "0 takes indices from -3 to 2"),
    ("bias[", "-4", "]", "index -4 is out of range for axis 0 with 3 entries", "0 takes indices from -3 to 2"),
    ("kernel[", "4", ", 0]", "index 4 is out of range for axis 0 with 4 entries", "0 takes indices from -4 to 3"),
    ("kernel[0, ", "-4", "]", "index -4 is out of range for axis 1 with 3 entries", "1 takes indices from -3 to 2"),
]


@pytest.mark.parametrize(("before", "index", "after", "message", "right"), OUTSIDE)
def test_one_index_past_the_end_in_a_batch_is_an_error_at_that_statement(before, index, after, message, right):
    model = models.dense()
    held = models.snapshot(model)
    batch = [f"dense_1.{'bias[0]' if 'bias' in before else 'kernel[0, 0]'} = {number}" for number in range(8)]
    start = f"dense_1.{before}"
    with pytest.raises(kpatch.SubscriptError) as caught:
        kpatch.apply(model, "\n".join([*batch, f"{start}{index}{after} = 9"]))
    assert str(caught.value).splitlines() == [
        message,
        f"  line 9, column {len(start) + 1}",
        f"    {start}{index}{after} = 9",
        f"    {' ' * len(start)}{'^' * len(index)}",
        f"  axis {right}",
    ]
    assert models.snapshot(model) == held


def test_a_batch_reaches_the_first_and_the_last_entry_from_both_ends():
    model = models.dense()
    indices = [(0, 0), (3, 2), (-4, 1), (-1, -3), (0, -1), (1, 1), (2, 2), (-2, -3)]
    right = to_numpy(model.layers[0].kernel.value).copy()
    for number, entry in enumerate(indices):
        right[entry] = number + 100
    text = "\n".join(f"dense_1.kernel[{a}, {b}] = {number + 100}" for number, (a, b) in enumerate(indices))
    kpatch.apply(model, text)
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), right)


# One statement, variables of several dtypes


@pytest.mark.parametrize("text", ["**.w = 0.1", "**.w[:] = 0.1", "**.w = _ * 0 + 0.1", "**.w[_ == _] = 0.1"])
def test_a_glob_writes_each_variable_in_its_own_precision(text):
    model = weights("float32", "float64") if keras.backend.backend() != "jax" else weights("bfloat16", "float32")
    kpatch.apply(model, text)
    for layer in model.layers:
        held = to_numpy(layer.w.value)
        assert (held == held.dtype.type(0.1)).all()


def test_a_glob_is_checked_for_each_dtype():
    model = weights("float32", "int32")
    with pytest.raises(kpatch.DTypeError) as caught:
        kpatch.apply(model, "**.w = 0.5")
    assert str(caught.value) == (
        "0.5 has a fraction, which int32 cannot hold\n"
        "  line 1, column 8\n"
        "    **.w = 0.5\n"
        "           ^^^\n"
        '  cast(..., "int32") truncates it\n'
        "  for l1.w (3,) int32, match 2 of '**.w'"
    )


# What a `let` holds, and how much


@pytest.mark.parametrize("write", ["dense_1.bias[0] = 9", "dense_1.bias *= 3", "dense_1.bias = [7, 8, 9]"])
def test_a_let_keeps_the_value_from_before_a_write(write):
    model = models.dense()
    before = to_numpy(model.layers[0].bias.value).copy()
    kpatch.apply(model, f"let old = dense_1.bias\n{write}\ndense_1.kernel[0] = old")
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value)[0], before)


WIDE = f"broadcast_to(dense_1.bias, [{2**18}, 3])"  # three quarters of what a statement may grow by here


def test_what_several_lets_hold_counts_together(monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_SIZE", 2**20)
    with pytest.raises(kpatch.LimitError) as caught:
        kpatch.plan(models.dense(), f"let a = {WIDE}\nlet b = {WIDE}")
    assert str(caught.value) == (
        "the results of a statement, and of the 'let's before it, grow by over 1048576 entries\n"
        "  line 2, column 9\n"
        f"    let b = {WIDE}\n"
        f"            {'^' * len(WIDE)}"
    )


def test_what_a_statement_computes_is_gone_after_it(monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_SIZE", 2**20)
    text = f"dense_1.bias = {WIDE}[0]\n" * 2 + f"let a = {WIDE}"
    assert len(kpatch.plan(models.dense(), text).rows) == 2


# The cache of plans


def test_the_plans_of_a_model_are_bounded_and_the_oldest_goes():
    model = models.dense()
    patches = [f"dense_1.bias[0] = {number}" for number in range(checking.CACHED_PLANS + 3)]
    for text in patches:
        kpatch.apply(model, text)
    kept = index(model).plans
    assert [patch.source for patch in kept] == patches[3:]
    assert len(kept) == 64


# Bindings


def test_uint64_arrays_take_the_dtype_that_they_meet():
    wide = np.array([1, 2, 3], "uint64")
    for dtype in ("float32", "int32", "uint8"):
        model = weights(dtype)
        kpatch.apply(model, "l0.w = 1\nl0.w = (_ + $v) * $v", v=wide)
        assert values(model).tolist() == [2, 6, 12]
        assert values(model).dtype == dtype


# History


def test_an_edit_that_nobody_can_undo_leaves_no_history():
    model = models.dense()
    variable = model.layers[0].bias
    applied = kpatch.apply(model, "dense_1.bias[0] = 1")
    assert latest_link(variable).selection.size == 1
    del applied
    gc.collect()
    assert latest_link(variable) is None


FIRST = ["kernel[1:3] = 5", "kernel[:, 2] += 1", "kernel[[0, 3], [1, 2]] = 6", "kernel[_ < 9] = 7", "kernel[::-2] *= 3"]
SECOND = ["kernel[2, 1:] = 9", "kernel[0] = 9", "kernel[_ > -9] = 9", "kernel[[3, 0], [2, 0]] = 9", "kernel[2, 2] = 9"]


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("second", SECOND)
def test_edits_that_end_out_of_order_leave_what_was_there_before_both(first, second):
    """As two blocks of `intervene` do: the first to end restores what the other has not written since."""
    model = models.dense()
    before = to_numpy(model.layers[0].kernel.value).copy()
    earlier = kpatch.apply(model, f"dense_1.{first}")
    between = to_numpy(model.layers[0].kernel.value).copy()
    later = kpatch.apply(model, f"dense_1.{second}")
    after = to_numpy(model.layers[0].kernel.value).copy()
    theirs = np.zeros(before.shape, bool)
    for write in later._records:
        theirs |= mask_of(write.selection, before.shape)
    earlier._withdraw()
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), np.where(theirs, after, before))
    assert (between != before).any()
    later.undo()
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), before)


def test_an_edit_that_is_undone_takes_over_nothing():
    model = models.dense()
    before = to_numpy(model.layers[0].kernel.value).copy()
    earlier = kpatch.apply(model, "dense_1.kernel[1:3] = 5")
    later = kpatch.apply(model, "dense_1.kernel[2] = 9")
    later.undo()
    earlier._withdraw()
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), before)


# Compiled functions


def test_under_a_mask_in_a_compiled_function_values_are_element_wise():
    x = keras.ops.convert_to_tensor(np.array([[1, -2], [-3, 4]], "float32"))
    layer = kpatch.layers.ScatterLayer("_[_ < 0] = _ * 2 + 1")
    assert to_numpy(layer(x)).tolist() == [[1, -3], [-5, 4]]
    with pytest.raises(kpatch.UnsupportedError, match="element-wise in '_'"):
        kpatch.layers.ScatterLayer("_[_ < 0] = _ @ _")(x)


def test_a_mask_of_rows_beside_another_index_is_no_mask_of_the_whole():
    x = keras.ops.convert_to_tensor(np.array([[1, -2], [-3, 4]], "float32"))
    layer = kpatch.layers.ScatterLayer("_[_[:, 0] < 0] = 9")
    assert to_numpy(layer(x)).tolist() == [[1, -2], [9, 9]]
