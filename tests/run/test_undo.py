"""What an edit leaves behind: nothing where it fails, every bit where it is undone, no old values with `undo=False`."""

import copy
import gc
import pickle
import weakref
from unittest import mock

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch import backends
from kpatch.run import live
from kpatch.values.tensors import to_numpy

pytestmark = pytest.mark.usefixtures("compiled")
BACKEND = keras.backend.backend()
BITS = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000, 0x3F800000], "uint32").view("float32")

FORMS = [
    "dense_1.kernel[0, 0] = 9",
    "dense_1.kernel[:, 1] *= 2",
    "dense_1.kernel[1:, ::-2] = 3",
    "dense_1.bias[dense_1.bias < 100] = 7",
    "dense_1.kernel[[0, 0, 1]] += 1",
    "dense_1.kernel[abs(_) < 0.6] = 0",
    "dense_1.kernel[abs(_) < 0.6] = _ * 2",
    "dense_1.kernel[_ == _] = 5",
    "dense_1.kernel = 1",
    "dense_1.kernel = _ * 2 + 1",
    "dense_1.kernel *= 0.5",
    "**.kernel = 0.7 * _ + 0.3 * $donor._",
    "** = $donor._",
    "**.kernel[abs(_) < quantile(abs(_), 0.5)] = 0",
    "let a = dense_1.kernel; dense_1.kernel = 0; dense_1.kernel[0] = a[1]",
    "\n".join(f"dense_1.kernel[{i % 4}, {i % 3}] = {i}" for i in range(12)),
    "**.bias = normal(shape(_), seed=1)",
]


@pytest.fixture
def model():
    return models.dense()


def options(text):
    return {"donor": models.filled(models.dense(), seed=8)} if "$donor" in text else {}


def bits(model):
    """Fills the model with NaNs of all kinds, infinities, −0.0 and numbers."""
    for variable in model.variables:
        variable.assign(np.resize(BITS, variable.shape))


# undo=False -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMS, ids=lambda text: text[:40])
def test_the_same_values_are_written(model, text):
    other, given = models.dense(), options(text)
    kpatch.apply(model, text, **given)
    applied = kpatch.apply(other, text, undo=False, **given)
    assert models.snapshot(other) == models.snapshot(model)
    assert models.snapshot(other) != models.snapshot(models.dense())
    assert len(applied.writes) == 0


def test_nothing_is_undone(model):
    applied = kpatch.apply(model, "dense_1.bias = 1", undo=False)
    after = models.snapshot(model)
    for use in (applied.undo, applied.__enter__):
        with pytest.raises(kpatch.UndoError) as caught:
            use()
        assert str(caught.value) == "this edit was made with undo=False, and kept no old values"
    with pytest.raises(kpatch.UndoError), applied:
        pytest.fail("the block runs")
    assert models.snapshot(model) == after
    assert "applied" in repr(applied)
    str(applied)


@pytest.mark.parametrize("text", ["dense_1.kernel[0, 0] = 2", "dense_1.kernel *= 2", "**.kernel = _ + 1 * $k"])
def test_an_earlier_edit_that_it_overlaps_cannot_be_undone(model, text):
    given = {"k": 1.0} if "$k" in text else {}
    first = kpatch.apply(model, "dense_1.kernel[0] = 1")
    apart = kpatch.apply(model, "dense_1.bias = 1")
    kpatch.apply(model, text, undo=False, **given)
    after = models.snapshot(model)
    with pytest.raises(kpatch.UndoError, match=r"^a later edit of 'dense_1.kernel' overlaps this one; undo that first"):
        first.undo()
    assert models.snapshot(model) == after
    apart.undo()


def test_an_earlier_edit_of_other_entries_can_be_undone(model):
    before = to_numpy(model.layers[0].kernel.value).copy()
    first = kpatch.apply(model, "dense_1.kernel[0] = 1")
    kpatch.apply(model, "dense_1.kernel[1] = 2", undo=False)
    first.undo()
    before[1] = 2
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), before)


FAILING = """
assert all(dense_1.kernel < -100), 'no'
dense_2.kernel[cast(dense_2.kernel[0, 0] * 0 + 7, 'int32')] = 1
dense_2.kernel[[0, 1], cast(dense_2.bias * 0 + 7, 'int32')] += 1
counts.w = dense_2.kernel[0, :1] * 0 + 0.5
half.w = dense_2.kernel[0, :1] * 0 + 1e6
dense_1.bias[:2] = solve(dense_2.kernel[:2] * 0, dense_2.bias)
dense_2.kernel[dense_2.kernel == dense_2.kernel] = [1, 2, 3, 4, 5]
dense_2.kernel[dense_2.kernel == dense_2.kernel] = dense_2.kernel[0]
dense_2.kernel[dense_2.kernel == dense_2.kernel] += [1, 2, 3, 4, 5]
dense_2.kernel[dense_2.bias == dense_2.bias, 0] = [1, 2, 3, 4]
dense_2.kernel[:2] = inv(dense_2.kernel[:2] * 0)
dense_2.kernel[:2] = cholesky(dense_2.kernel[:2] * 0)
dense_2.kernel[:2] = qr(dense_2.kernel[:2] * nan)
dense_2.bias = svd(dense_2.kernel * inf)
dense_2.bias = eigh(dense_2.kernel[:2] * nan)
dense_2.bias = det(dense_2.kernel[:2] * nan)
dense_2.bias = take(dense_2.bias, cast(dense_2.bias * 0 + 7, 'int32'))
dense_2.bias[:1] = take_along_axis(dense_2.bias, cast(dense_2.bias[:1] * 0 - 7, 'int32'), axis=0)
counts.w = counts.w // counts.w
counts.w = counts.w % counts.w
counts.w //= counts.w
counts.w = 2 ** (counts.w - 1)
counts.w = cast(counts.w, 'uint8') * 0 - 1 + cast(counts.w, 'int16') * 300 + dense_2.bias[0] * nan
let x = dense_2.bias[cast(dense_2.bias * 0 + 7, 'int32')]
let x = 3 // counts.w
**.bias[cast(_[0] * 0 + 2, 'int32')] = 4
"""


class One(keras.layers.Layer):
    """A layer with a variable of one entry."""

    def __init__(self, name, dtype):
        super().__init__(name=name)
        self.w = self.add_weight(name="w", shape=(1,), dtype=dtype, initializer="zeros", trainable=False)
        self.built = True

    def call(self, x):
        return x


def with_counts():
    made = [keras.layers.Dense(3, name="dense_1"), keras.layers.Dense(2, name="dense_2")]
    made += [One("counts", "int32"), One("half", "float16")]
    model = models.filled(keras.Sequential([keras.Input((4,)), *made], name="net"))
    model.layers[0].kernel.assign(np.resize(BITS, (4, 3)))
    return model


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("failing", FAILING.strip().splitlines())
@pytest.mark.parametrize("text", FORMS[::6], ids=lambda text: text[:40])
def test_a_failure_in_a_later_statement_restores_every_bit(text, failing, undo):
    model = with_counts()
    before, given = models.snapshot(model), options(text)
    if given:
        text = text.replace("** =", "dense*.* =")  # the donor has those alone
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.apply(model, f"{text}\n{failing}\n{text if 'let' not in text else ''}", undo=undo, **given)
    assert not isinstance(caught.value, kpatch.ExecutionError)
    assert models.snapshot(model) == before


@pytest.mark.parametrize("at", range(3))
def test_a_failure_of_the_backend_where_values_decide(model, at, monkeypatch):
    """With `undo=False` and statements that could still fail, old values are kept that long."""
    before, writer, calls = models.snapshot(model), backends.current(), []
    write = writer.write

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise RuntimeError("the disk is on fire")
        return write(*args, **kwargs)

    monkeypatch.setattr(writer, "write", failing)
    text = "dense_1.bias = 1; dense_1.kernel[0] = 2; dense_2.bias = 3; assert all(dense_1.bias == 1)"
    with pytest.raises(kpatch.ExecutionError, match="the disk is on fire"):
        kpatch.apply(model, text, undo=False)
    assert models.snapshot(model) == before


def test_no_old_values_are_kept(model):
    """Neither after a patch that cannot fail, nor after one that could: no record of the journal is left."""

    def left():
        gc.collect()
        return sum(type(held) is live.Record for held in gc.get_objects())

    before = left()
    for text in ("dense_1.kernel *= 2", "dense_1.kernel = 3; assert any(dense_1.kernel != 7)"):
        applied = kpatch.apply(model, text, undo=False)
        assert left() == before
        undoable = kpatch.apply(model, text)
        assert left() == before + 1
        del applied, undoable


def begun(text, model, budget):
    """Which of the records hold old values at the beginning of each step."""
    seen, begin = [], live.Live.begin

    def watched(self, number):
        begin(self, number)
        seen.append([record.before is not None for record in self.records])

    with mock.patch.object(live.Live, "begin", watched), mock.patch.object(live, "KEPT", budget):
        kpatch.apply(model, text, undo=False)
    return seen


STEPS = "dense_1.kernel *= 2; assert any(dense_1.kernel != 7); dense_2.kernel *= 2; dense_1.bias = 1; dense_2.bias = 1"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0, [[], [True], [False], [False, False], [False] * 3]),
        (4 * 12, [[], [True], [True], [False] * 2, [False] * 3]),
        (4 * 23, [[], [True], [True], [True] * 2, [True] * 3]),
    ],
)
def test_old_values_are_kept_as_long_as_they_are_few(model, budget, expected):
    """Those before the assertion in any case; then no more than the budget, and none once some were let go."""
    assert begun(STEPS, model, budget) == expected


def test_memory_of_a_large_variable_is_not_kept():
    """More than the budget: it is not even read, and what is replaced is let go with the next statement."""
    side = 1 + int((live.KEPT / 4) ** 0.5)
    model = keras.Sequential([keras.Input((side,)), keras.layers.Dense(side, name="d", kernel_initializer="zeros")])
    for text in ("d.kernel = _ * 2 + 1", "d.kernel[abs(_) < 5] = 3", "d.kernel = 0", "d.kernel *= 2"):
        assert begun(f"{text}; d.bias[0] = 0", model, live.KEPT)[-1] == [False]
    with mock.patch.object(backends.current(), "read", side_effect=AssertionError("it is read")):
        kpatch.apply(model, "d.kernel = 0; d.kernel[:, 1:] = 2", undo=False)


# Values taken over ----------------------------------------------------------------------------------------------------

WHOLE = ["dense_1.kernel = _ * 2 + 1", "dense_1.kernel = 0.7 * _ + 0.3 * $v", "dense_1.kernel = $v - dense_1.kernel"]
WHOLE += ["dense_1.kernel **= 2", "dense_1.kernel += $v", "dense_1.kernel -= _ * $v"]


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("text", WHOLE)
def test_a_new_tensor_is_taken_over(model, text, undo):
    given = np.arange(12, dtype="float32").reshape(4, 3) if "$v" in text else None
    bindings = {} if given is None else {"v": given}
    kernel = model.layers[0].kernel
    old = to_numpy(kernel.value).copy()
    two, one, s, t = (np.float32(x) for x in (2, 1, 0.7, 0.3))
    expected = {
        WHOLE[0]: lambda: old * two + one,
        WHOLE[1]: lambda: s * old + t * given,
        WHOLE[2]: lambda: given - old,
        WHOLE[3]: lambda: old**two,
        WHOLE[4]: lambda: old + given,
        WHOLE[5]: lambda: old - old * given,
    }[text]()
    value, assign = kernel.value, kernel.assign
    applied = kpatch.apply(model, text, undo=undo, **bindings)
    np.testing.assert_allclose(to_numpy(kernel.value), expected, rtol=1e-6)
    shown = to_numpy(value)  # docs/memory.md
    np.testing.assert_array_equal(shown, old if BACKEND in ("numpy", "jax") else to_numpy(kernel.value))
    assert kernel.assign == assign
    kpatch.apply(model, "dense_1.kernel[0, 0] = 77; dense_1.kernel[1] *= 2; dense_1.kernel[_ == 77] = 78").undo()
    np.testing.assert_allclose(to_numpy(kernel.value), expected, rtol=1e-6)
    if undo:
        np.testing.assert_array_equal(applied.writes[0].before.reshape(4, 3), old)
        np.testing.assert_allclose(applied.writes[0].after.reshape(4, 3), expected, rtol=1e-6)
        applied.undo()
        assert to_numpy(kernel.value).tobytes() == old.tobytes()


@pytest.mark.parametrize("text", FORMS, ids=lambda text: text[:40])
def test_what_others_hold_keeps_its_values(model, text):
    """Copies to NumPy, what was given to `assign`, and what another variable shares, as docs/memory.md says."""
    kernel, given = model.layers[0].kernel, keras.ops.convert_to_tensor(np.arange(12, dtype="float32").reshape(4, 3))
    kernel.assign(given)
    value = {"torch": lambda v: v.detach(), "tensorflow": lambda v: v.read_value()}.get(BACKEND, lambda v: v)
    twin = keras.Variable(value(kernel.value), name="twin")
    copies = [kernel.numpy(), model.get_weights()[0]]
    expected = np.arange(12, dtype="float32").reshape(4, 3)
    bindings = options(text)
    applied = kpatch.apply(model, text, **bindings)
    kpatch.apply(model, text, undo=False, **bindings)
    for held in (*copies, to_numpy(given), to_numpy(twin.value)):
        np.testing.assert_array_equal(held, expected)
    del applied


@pytest.mark.parametrize("first", WHOLE[:4:3])
@pytest.mark.parametrize("second", ["dense_1.kernel = _ * 3 - 1", "dense_1.kernel[2] = 5", "dense_1.kernel[_ > 1] = 0"])
def test_undo_in_order_and_out_of_order(model, first, second):
    bits(model)
    before = models.snapshot(model)
    one = kpatch.apply(model, first)
    between = models.snapshot(model)
    two = kpatch.apply(model, second)
    with pytest.raises(kpatch.UndoError):
        one.undo()
    two.undo()
    assert models.snapshot(model) == between
    one.undo()
    assert models.snapshot(model) == before


def test_undo_of_many_edits_in_turn(model):
    bits(model)
    snapshots, applied = [], []
    for text in FORMS:
        snapshots.append(models.snapshot(model))
        applied.append(kpatch.apply(model, text, **options(text)))
    for edit, before in zip(reversed(applied), reversed(snapshots), strict=True):
        edit.undo()
        assert models.snapshot(model) == before


def test_two_statements_that_both_take_over(model):
    bits(model)
    before = models.snapshot(model)
    applied = kpatch.apply(model, "dense_1.kernel = _ * 2 + 1; dense_1.kernel = 3 - _ * 0; dense_1.kernel = _ + _")
    np.testing.assert_array_equal(
        applied.writes[-1].after.ravel()[-1:], to_numpy(model.layers[0].kernel.value).ravel()[-1:]
    )
    applied.undo()
    assert models.snapshot(model) == before


def test_two_variables_do_not_come_to_share(model):
    kpatch.apply(model, "let a = dense_1.bias * 2; dense_1.bias = a; dense_1.bias = a + 0; dense_1.kernel[0] = a")
    kpatch.apply(model, "dense_1.bias[0] = 55")
    assert to_numpy(model.layers[0].kernel.value)[0, 0] != 55


@pytest.mark.skipif(BACKEND != "torch", reason="only torch shares memory between processes")
@pytest.mark.parametrize(
    "text", ["dense_1.kernel = _ * 2 + 1", "dense_1.kernel[abs(_) < 9] = 4", "dense_1.kernel *= 2"]
)
def test_shared_memory_stays_shared(model, text):
    parameter = model.layers[0].kernel._value
    parameter.data.share_memory_()
    alias, before = parameter.data, to_numpy(parameter).copy()
    for undo in (True, False):
        applied = kpatch.apply(model, text, undo=undo)
        assert parameter.data.is_shared()
        assert parameter.data_ptr() == alias.data_ptr()
        np.testing.assert_array_equal(alias.numpy(), to_numpy(model.layers[0].kernel.value))
        if undo:
            applied.undo()
            np.testing.assert_array_equal(alias.numpy(), before)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's parameters")
def test_the_parameter_stays_the_same_object(model):
    parameter = model.layers[0].kernel._value
    kpatch.apply(model, "dense_1.kernel = _ * 2 + 1")
    assert model.layers[0].kernel._value is parameter
    assert any(parameter is other for other in model.parameters())
    assert parameter.requires_grad


def test_donate_false_takes_nothing_over_that_others_read(model):
    kernel = model.layers[0].kernel
    old = to_numpy(kernel.value).copy()
    held = kernel.value.detach() if BACKEND == "torch" else kernel.value
    applied = kpatch.apply(model, "dense_1.kernel = _ * 2 + 1; dense_1.kernel[0] = 1", donate=False)
    if BACKEND != "tensorflow":  # whose `.value` is the variable
        np.testing.assert_array_equal(to_numpy(held), old)
    applied.undo()
    np.testing.assert_array_equal(to_numpy(kernel.value), old)


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
def test_an_edit_can_be_looked_at_after_training(model):
    """jax deletes arrays then, and torch trains in the memory that the new values came in."""
    before = to_numpy(model.layers[0].kernel.value).ravel().copy()
    applied = kpatch.apply(model, "dense_1.kernel = _ * 2 + 1; dense_2.bias[0] = 3")
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 4), "float32"), np.zeros((2, 2), "float32"), verbose=0)
    kernel, bias = applied.writes
    np.testing.assert_array_equal(kernel.before, before)
    np.testing.assert_array_equal(bias.after, [3])
    if BACKEND != "torch":
        np.testing.assert_array_equal(kernel.after, before * 2 + 1)
        return
    assert "not known" in str(applied)
    assert applied.to_dict()["writes"][0]["after"] is None
    with pytest.raises(kpatch.UnsupportedError) as caught:
        kernel.after  # noqa: B018 (which raises)
    assert str(caught.value) == (
        "the values that came to 'dense_1.kernel' are not known: it was written to since, by training say"
    )
    assert kernel.map().note == f"not drawn: {caught.value}"
    assert "not known" in applied._repr_html_()


@pytest.mark.parametrize("undo", [True, False])
def test_a_large_edit_keeps_no_model_alive(undo):
    model = models.dense()
    donor = models.dense()
    applied = kpatch.apply(model, "** = 0.5 * _ + 0.5 * $donor._", donor=donor, undo=undo)
    if undo:
        applied.undo()
    gone = [weakref.ref(variable) for variable in (*model.weights, *donor.weights)]
    del model, donor, applied
    keras.utils.clear_session()
    gc.collect()
    assert [variable() for variable in gone] == [None] * len(gone)


@pytest.mark.backend_free
def test_an_edit_has_no_copies():
    """A copy of it would undo the edit twice, or undo it in other variables."""
    model = models.dense()
    applied = kpatch.apply(model, "dense_1.bias[0] = 1")
    assert copy.copy(applied) is applied
    for copies in (copy.deepcopy, pickle.dumps):
        with pytest.raises(kpatch.UnsupportedError) as caught:
            copies([applied])
        assert str(caught.value) == (
            "an AppliedPatch undoes an edit of the variables that it was made in; it has no deep copy and no pickle\n"
            "  copy.copy gives the AppliedPatch itself"
        )
    copy.copy(applied).undo()
    with pytest.raises(kpatch.UndoError) as again:
        applied.undo()
    assert str(again.value) == "this edit has been undone already"
