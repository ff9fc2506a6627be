"""Whole new values that are computed in the variable's own memory: held to the generic way, to the bit."""

import contextlib
import os
import re
import threading
import warnings

import keras
import numpy as np
import pytest

import kpatch
from kpatch import backends
from kpatch.run import blocks, live
from kpatch.values.tensors import to_numpy

pytestmark = pytest.mark.usefixtures("compiled")
BACKEND = keras.backend.backend()
MASK = "*.kernel[abs(_) < 1] = 0"
DTYPES = ["float32"] if BACKEND == "jax" else ["float32", "float64"]

TEXTS = """
*.kernel *= 0.7
*.kernel = 0.7 * _ + 0.3 * $donor._
*.kernel = -(_ * 1e-9) * _ - ($donor._ - _) * ($donor._ + 0.1)
*.kernel += ($donor._ * 0.1 - _) * (_ - 0.5 * ($donor._ - 3 * (_ + $donor._)))
*.kernel -= max(abs(_)) * 1e-30 * _
*.kernel = $donor._ * 1e-20 * 1e-20
*.kernel = clip(_, -0.5, 1e-30)
*.kernel = clip(clip(_, -1, 1) + $donor._, $donor._, abs(_) + 1)
*.kernel = maximum(_, 0.5) * minimum($donor._, _) + maximum(-2, _)
*.kernel = where(abs(_) < 1e-3, 0, _ * 2)
*.kernel = where(_ > $donor._ and not isnan(_), -_, $donor._ / 3) - where(isfinite(_), 1, _) * $donor._
*.kernel = where(_ == 0 or _ != $donor._, 5, _)
*.kernel = (_ - $donor._ / 3) / (_ + max(abs($donor._[0])))
*.kernel = square(_) - _ ** 2 + abs(_) / $donor._
*.kernel[abs(_) < quantile(abs($donor._), 0.5)] = -0.0
*.kernel[not (-1e-10 < _ <= 1) or isnan(_)] = nan
*.kernel[_ * 1 == 0] = max(abs($donor._))
*.kernel[$donor._ - _ > 1e-10] = 1e-40
*.kernel[_ > inf] = 1
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks so short that an array has several on each thread; no old value is kept that need not be."""
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(blocks, "SHARE", 40)
    monkeypatch.setattr(blocks, "THREADS", 3)
    monkeypatch.setattr(live, "KEPT", 0)
    monkeypatch.setattr(blocks._kept, "scratch", np.empty(64, "u8"), raising=False)


def chain(dtype="float32", seed=0):
    """A kernel of less than a block, and one of many blocks; among the numbers are the largest and the smallest."""
    rng = np.random.default_rng(seed)
    built = [keras.layers.Dense(n, use_bias=False, dtype=dtype, name=f"of_{n}") for n in (3, 41)]
    model = keras.Sequential([keras.Input((5,)), *built])
    for variable in model.variables:
        values = rng.standard_normal(variable.shape) * 10.0 ** rng.integers(-30, 20, variable.shape)
        variable.assign(values.astype(dtype))
    special = np.resize([1e-40, -1e-39, np.inf, -np.inf, 0.0, -0.0, 1e-30, 3e38], (5, 3)).astype(dtype)
    special[4, 1:] = np.nan, -np.nan
    model.layers[0].kernel.assign(special)
    kpatch.apply(model, "*.kernel[0, 0] = 7", undo=False)  # leaves memory that NumPy may share
    return model


def values(model):
    return [np.array(to_numpy(variable.value)) for variable in model.variables]


def address(variable):
    """Where the variable's memory begins."""
    backend = backends.current()
    value = backend.whole(variable)
    return value.unsafe_buffer_pointer() if BACKEND == "jax" else backend.view(value).__array_interface__["data"][0]


def bits(array, text):
    """As integers. Arithmetic makes one NaN of another, which the processor chooses; a mask leaves it alone."""
    plain = array if text.startswith("*.kernel[") else np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return plain.reshape(-1).view(f"u{array.itemsize}")


def one_by_one(text):
    """The statement with its value in a `let` outside of blocks, which is evaluated; so is a mask with undo."""
    target, op, value = re.fullmatch(r"(\*\.kernel(?:\[.*\])?) (\S*=) (.*)", text).groups()
    if op != "=":
        value = f"_ {op[:-1]} ({value})"
    named = value.replace("$donor._", "$donor.NAME.kernel")
    named = re.sub(r"(?<![\w.])_(?!\w)", "NAME.kernel", named)
    statement = f"let v_NAME = {named}; {target.replace('*.kernel', 'NAME.kernel')} = v_NAME"
    return "; ".join(statement.replace("NAME", name) for name in ("of_3", "of_41"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", TEXTS.strip().splitlines())
def test_the_bits_are_those_of_one_operation_after_the_other(text, dtype):
    whole, other, donor = chain(dtype), chain(dtype), chain(dtype, seed=1)
    given = {"donor": donor} if "$donor" in text else {}
    before = values(donor)
    addresses = [address(variable) for variable in whole.variables]
    counts = [row.entries for row in kpatch.apply(whole, text, undo=False, **given).plan.rows]
    generic = kpatch.apply(other, one_by_one(text), **given)
    for found, expected in zip(values(whole), values(other), strict=True):
        assert [*map(hex, bits(found, text))] == [*map(hex, bits(expected, text))]
    assert counts == [row.entries for row in generic.plan.rows]
    assert [v.tobytes() for v in values(donor)] == [v.tobytes() for v in before]
    assert [address(variable) for variable in whole.variables] == addresses, "no memory was made"


LETS = """
let t = abs(_); _ = where(t < 1e-3, 0, t * 2)
let t = _ * 2 - $donor._; let u = clip(t, -1, 1); _ = where(u == t, $donor._, u)
let t = _; _ = $donor._ * 2; _ += t
let t = -_; _[t > 0] = 1; _ -= t
"""


@pytest.mark.parametrize("text", LETS.strip().splitlines())
def test_a_let_of_a_block_is_computed_in_one_pass_and_keeps_its_values(text):
    found, expected, donor = chain(), chain(), chain(seed=1)
    given = {"donor": donor} if "$donor" in text else {}
    kpatch.apply(found, f"for *.kernel {{ {text} }}", undo=False, **given)
    named = re.sub(r"(?<![\w.])_(?![\w\[])", "NAME.kernel", text.replace("$donor._", "$donor.NAME.kernel"))
    named = named.replace("_[", "NAME.kernel[")
    for name in ("of_3", "of_41"):
        kpatch.apply(expected, named.replace("NAME", name), **given)
    for x, y in zip(values(found), values(expected), strict=True):
        assert [*map(hex, bits(x, text))] == [*map(hex, bits(y, text))]


def test_old_values_that_are_kept_and_those_that_are_not_lead_to_the_same_bits():
    kept, let_go = chain(), chain()
    for _ in range(3):
        applied = kpatch.apply(kept, "*.kernel = 0.9 * _ - 0.1 * (_ - 1)")
        kpatch.apply(let_go, "*.kernel = 0.9 * _ - 0.1 * (_ - 1)", undo=False)
    assert [v.tobytes() for v in values(kept)] == [v.tobytes() for v in values(let_go)]
    applied.undo()


def test_an_edit_that_keeps_old_values_leaves_memory_that_the_next_one_writes_in_place():
    model = chain()
    kpatch.apply(model, "*.kernel *= 2")
    addresses = [address(variable) for variable in model.variables]
    kpatch.apply(model, "*.kernel *= 2", undo=False)
    assert [address(variable) for variable in model.variables] == addresses


def test_what_is_let_go_is_waited_for_once(monkeypatch):
    """And what was written in place not at all before the end: a backend can compute while Python goes on."""
    model = chain()
    kpatch.apply(model, "*.kernel *= 2", undo=False)
    waited, settle = [], live.Live._settle
    monkeypatch.setattr(
        live.Live, "_settle", lambda edit, given: settle(edit, waited.append(list(given)) or waited[-1])
    )
    shared = model.layers[1].kernel.value if BACKEND != "torch" else model.layers[1].kernel.value.detach()
    kpatch.apply(model, "*.kernel *= 2; *.kernel *= 3; of_3.kernel[0] = 1; *.kernel *= 4", undo=False)
    *before, last = [[str(record.step.place) for record in records] for records in waited]
    assert len(last) == 7
    assert sum(map(len, before)) == sum(len(set(names)) for names in before) <= 3
    del shared


def test_what_somebody_else_holds_keeps_its_values():
    model = chain()
    held, before = [backends.current().whole(variable) for variable in model.variables], values(model)
    kpatch.apply(model, "*.kernel *= 2", undo=False)
    assert [np.array(to_numpy(x)).tobytes() for x in held] == [v.tobytes() for v in before]
    with np.errstate(over="ignore"):
        assert (values(model)[1] == 2 * before[1]).all()


def test_a_donor_that_is_the_model_itself():
    model, before = chain(), values(chain())
    kpatch.apply(model, "*.kernel = _ + 2 * $donor._", donor=model, undo=False)
    np.testing.assert_array_equal(values(model)[1], before[1] + np.float32(2) * before[1])


def test_a_variable_that_is_read_in_other_threads():
    """With `donate=False` the memory that they read stays as it was."""
    model = chain()
    variable = model.layers[1].kernel
    at, before = address(variable), values(model)[1]
    kpatch.apply(model, "*.kernel *= 2", undo=False, donate=False)
    assert BACKEND == "tensorflow" or address(variable) != at
    np.testing.assert_array_equal(values(model)[1], 2 * before)


def test_an_edit_that_can_still_fail_keeps_old_values():
    model, before = chain(), values(chain())
    with pytest.raises(kpatch.PatchAssertionError):
        kpatch.apply(model, "*.kernel *= 2; assert all(of_3.kernel == 7)", undo=False)
    assert [v.tobytes() for v in values(model)] == [v.tobytes() for v in before]


@pytest.mark.parametrize("text", ["*.kernel *= 2", MASK])
@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_a_failure_in_the_middle_is_told(kind, text, monkeypatch):
    if BACKEND == "jax":
        pytest.skip("one compiled call writes the whole")
    model, run = chain(), blocks._run

    def failing(operations, arrays, numbers, out):
        if out.size > 20:
            raise kind
        run(operations, arrays, numbers, out)

    monkeypatch.setattr(blocks, "_run", failing)
    with pytest.raises((kpatch.ExecutionError, KeyboardInterrupt)) as caught:
        kpatch.apply(model, text, undo=False)
    assert caught.value.written == ((text, "of_3.kernel"), (text, "of_41.kernel"))
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert f"    '{text}' in of_3.kernel\n    '{text}' in of_41.kernel, perhaps in part\n" in told


def test_a_mask_keeps_what_an_earlier_edit_can_take_back():
    """That must know which entries were written since."""
    model, before = chain(), values(chain())
    kept = kpatch.apply(model, "*.kernel[abs(_) > 1] *= 2")
    kpatch.apply(model, MASK, undo=False)
    kept.undo()
    expected = [np.where(np.abs(v) < 1, np.float32(0), v) for v in before]
    np.testing.assert_array_equal(
        np.concatenate([*map(np.ravel, values(model))]), np.concatenate([*map(np.ravel, expected)])
    )
    again = kpatch.apply(model, "*.kernel = _ + 1")
    kpatch.apply(model, MASK, undo=False)
    with pytest.raises(kpatch.UndoError):
        again.undo()


@pytest.mark.parametrize("text", ["*.kernel *= 2", MASK])
def test_old_values_of_small_variables_are_kept(text, monkeypatch):
    """As an interrupt shows, after which all are there again."""
    if BACKEND == "jax":
        pytest.skip("one compiled call writes the whole")
    monkeypatch.setattr(live, "KEPT", 2**22)
    model, before, run = chain(), values(chain()), blocks.run

    def failing(*args):
        run(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        kpatch.apply(model, text, undo=False)
    assert [v.tobytes() for v in values(model)] == [v.tobytes() for v in before]


WAITING = """
*.kernel *= 2; *.kernel = _ + of_3.kernel[0, 0]
*.kernel = 2 * _ - of_41.kernel[0, 0]; of_3.kernel[1] = 3; *.kernel *= 2
of_3.kernel *= 2; of_3.kernel *= 3; let t = of_3.kernel[0, 0]; *.kernel = _ * t
*.kernel *= 2; of_3.kernel[0] *= 2; assert all(of_3.kernel[0, 0] == 28); *.kernel *= 2
*.kernel[_ > 0] = 1; *.kernel[_ < of_3.kernel[0, 0]] = 2; of_41.kernel = clip(_, of_3.kernel[0, 1], 2)
"""


@pytest.mark.parametrize("text", WAITING.strip().splitlines())
def test_writes_that_wait_are_made_before_their_variables_are_read(text):
    found, expected = chain(), chain()
    kpatch.apply(found, text, undo=False)
    kpatch.apply(expected, text)  # of which nothing waits
    for x, y in zip(values(found), values(expected), strict=True):
        assert [*map(hex, bits(x, "_"))] == [*map(hex, bits(y, "_"))]


def test_a_donor_that_shares_a_variable_with_what_is_written_before():
    """The second kernel takes from the first one, whose write waits, and the first one from the second."""
    layers = [keras.layers.Dense(4, use_bias=False, name=name) for name in ("a", "b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    donor = keras.Sequential([keras.Input((4,)), *layers[::-1]])
    before = values(model)
    kpatch.apply(model, "a.kernel = _ + 2 * $d.b.kernel; b.kernel = _ - $d.a.kernel", d=donor, undo=False)
    first = before[0] + np.float32(2) * before[1]
    np.testing.assert_array_equal(values(model)[0], first)
    np.testing.assert_array_equal(values(model)[1], before[1] - first)


def test_a_mask_of_no_entry_has_written_nothing():
    model, before = chain(), values(chain())
    text = "*.kernel[_ == 12345] = 0"
    assert [row.entries for row in kpatch.apply(model, text, undo=False).plan.rows] == [0, 0]
    assert [v.tobytes() for v in values(model)] == [v.tobytes() for v in before]


def test_a_new_tensor_with_gradients_is_computed_by_torch():
    """NumPy fills one without."""
    if BACKEND != "torch":
        pytest.skip("torch's own")
    x = keras.ops.convert_to_tensor(np.ones((3, 4), "float32")).detach()
    assert kpatch.edit(x, "_ = 2 * _ - 0.5 * (_ * _)").tolist() == [[1.5] * 4] * 3
    x.requires_grad_()
    kpatch.edit(x, "_ = 2 * _ - 0.5 * (_ * _)").sum().backward()
    assert x.grad.tolist() == [[1.0] * 4] * 3


def test_gradients_of_a_graph_that_holds_the_parameter_are_refused():
    """As after any write in place: torch notices it by the tensor's version."""
    if BACKEND != "torch":
        pytest.skip("torch's own")
    model = chain()
    kernel = model.layers[1].kernel._value
    loss = (kernel * kernel).sum()
    kpatch.apply(model, "*.kernel *= 2", undo=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Threads --------------------------------------------------------------------------------------------------------------


def doubled(size, function=np.multiply):
    """`size` ones, doubled in place on several threads."""
    x = np.ones(size, "float32")
    operation = blocks.Operation("*", function, ((blocks.ARRAY, 0), (blocks.NUMBER, 0)), np.dtype("float32"), 0)
    blocks.run([blocks.Job((operation,), [x], [np.float32(2)], x)])
    return x


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 79, 80, 81, 96, 97, 1000])
@pytest.mark.backend_free
def test_each_entry_is_computed_once(size):
    assert (doubled(size) == 2).all()


@pytest.mark.backend_free
def test_an_error_of_a_thread_is_raised():
    def failing(x, y, out):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return np.multiply(x, y, out=out)

    with pytest.raises(MemoryError):
        doubled(1000, failing)


@pytest.mark.backend_free
def test_an_interrupt_waits_for_the_threads():
    begun, ended = threading.Semaphore(0), []

    def slow(x, y, out):
        if threading.current_thread() is threading.main_thread():
            begun.acquire()
            raise KeyboardInterrupt
        begun.release()
        np.multiply(x, y, out=out)
        ended.append(x.size)
        return out

    with pytest.raises(KeyboardInterrupt):
        doubled(1000, slow)
    assert sum(ended) == 1000 - 336, "what the other threads had to do is done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.backend_free
def test_a_process_that_was_forked_has_threads_of_its_own():
    doubled(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that are running
        child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)  # which ends a child that waits for threads it has not
        os._exit(0 if (doubled(1000) == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.backend_free
def test_denormal_numbers_are_zeros_in_threads_that_flush():
    if not blocks.can_flush():
        pytest.skip("the flags are elsewhere on this system")
    small, out = np.full(100, 1e-39, "float32"), np.empty(100, "float32")
    operation = blocks.Operation("+", np.add, ((blocks.ARRAY, 0), (blocks.ARRAY, 0)), np.dtype("float32"), 0)
    blocks.run([blocks.Job((operation,), [small, small], [], out)], flushes=True)
    assert not out.any()
    blocks.run([blocks.Job((operation,), [small, small], [], out)])
    assert (out > 0).all()


@pytest.mark.backend_free
def test_the_callers_thread_flushes_nothing_afterwards():
    """Also if it is interrupted."""
    small, out = np.full(100, 1e-39, "float32"), np.empty(100, "float32")

    def interrupted(x, y, out):
        np.add(x, y, out=out)
        raise KeyboardInterrupt

    for function in (np.add, interrupted):
        operation = blocks.Operation("+", function, ((blocks.ARRAY, 0), (blocks.ARRAY, 0)), np.dtype("float32"), 0)
        with contextlib.suppress(KeyboardInterrupt):
            blocks.run([blocks.Job((operation,), [small, small], [], out)], flushes=True)
        assert out.any() != blocks.can_flush()
        assert (small + small > 0).all()


@pytest.mark.backend_free
def test_results_take_the_memory_of_those_that_are_used_up():
    text = "((_ + 1) * (_ - 1) - (_ + 2) * (_ - 2)) * ((_ + 3) * (_ - 3))"
    [step] = kpatch.plan(chain(), f"of_3.kernel = {text}").edits
    assert max(op.target for op in step.value.operations) == 2


@pytest.mark.backend_free
def test_a_result_that_one_operation_takes_twice():
    """Its scratch is free once, and not for two results at a time."""
    two, three = (blocks.NUMBER, 0), (blocks.NUMBER, 1)
    wanted = [
        ("*", np.multiply, ((blocks.ARRAY, 0), two)),
        ("*", np.multiply, ((blocks.RESULT, 0), (blocks.RESULT, 0))),
        ("*", np.multiply, ((blocks.ARRAY, 0), three)),
        ("+", np.add, ((blocks.RESULT, 1), (blocks.RESULT, 2))),
    ]
    operations = [blocks.Operation(*each, np.dtype("float32"), target) for target, each in enumerate(wanted)]
    x = np.arange(100, dtype="float32")
    out = np.empty_like(x)
    blocks.run([blocks.Job(blocks.placed(operations), [x], [np.float32(2), np.float32(3)], out)])
    np.testing.assert_array_equal(out, 4 * x * x + 3 * x)
