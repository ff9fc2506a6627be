"""All or nothing, whatever fails and whenever: every call of a backend, every line, and what an error then says."""

import contextlib
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest

import kpatch
from kpatch import backends
from kpatch.names.index import index
from kpatch.run import live, semantics
from kpatch.values import arithmetic

pytestmark = pytest.mark.usefixtures("compiled")
BACKEND = keras.backend.backend()
CALLS = ("read", "write", "update", "prepare", "take_over", "whole", "view", "settle")
FAILURES = {"interrupt": KeyboardInterrupt, "memory": MemoryError, "backend": RuntimeError}

# Statements that write every way there is, and of which none depends on what another writes.
STATEMENTS = (
    "dense_1.kernel[0, 0] = 9",
    "dense_1.kernel[1:3, ::-2] *= 3",
    "dense_1.kernel[3, [0, 2]] = [7, 8]",
    "dense_1.bias = _ * 2 + 1",
    "dense_2.kernel[_ == _] = 5",
    "dense_2.bias[_ < 99] = _ + 1",
    "third.kernel = 3",
    "third.bias[1:] = third.bias[:1] + 4",
)
TEXT = "; ".join(STATEMENTS)


@functools.cache
def _built():
    names = {"dense_1": 3, "dense_2": 2, "third": 4}
    layers = [keras.layers.Dense(units, name=name) for name, units in names.items()]
    return keras.Sequential([keras.Input((4,)), *layers], name="net")


def network(model=None):
    """Three layers without a zero, so that each statement changes what it writes; one model, with its values anew."""
    model = model or _built()
    index(model).plans.clear()  # which hold prepared constants
    for number, variable in enumerate(model.variables):
        variable.assign(np.arange(1, 1 + np.prod(variable.shape)).reshape(variable.shape) / 4 + number)
    return model


@pytest.fixture
def model():
    return network()


class Failing:
    """A double around the backend, which fails at its n-th call: before it is made, or when it is done.

    Args:
        failure: the class of the exception.
        at: the number of the call, counted from 0.
        late: the call is made all the same.
        on: it goes on failing from then on.
    """

    def __init__(self, failure, at, late=False, on=False):
        self.failure, self.at, self.late, self.on = failure, at, late, on
        self.calls = 0
        self.failed = False

    def __enter__(self):
        writer = backends.current()
        self._stack = contextlib.ExitStack()
        for name in CALLS:
            self._stack.enter_context(mock.patch.object(writer, name, self._failing(getattr(writer, name))))
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def _failing(self, function):
        def call(*args, **kwargs):
            number, self.calls = self.calls, self.calls + 1
            fails = number == self.at or (self.on and number > self.at)
            self.failed = self.failed or fails
            result = None if fails and not self.late else function(*args, **kwargs)
            if fails:
                raise self.failure() if self.failure is KeyboardInterrupt else self.failure("the disk is on fire")
            return result

        return call


def each_failure(failure, **options):
    """A double for each call that there is."""
    for late in (False, True):
        for at in range(1000):
            double = Failing(failure, at, late, **options)
            yield double
            if not double.failed:
                break
        assert at > 5


def bits(model):
    """The bits of all entries, in one row."""
    return np.concatenate([np.array(keras.ops.convert_to_numpy(v)).view("int32").ravel() for v in model.variables])


@functools.cache
def made(*statements):
    """The bits of a model of which these statements were made."""
    model = network(_built.__wrapped__())  # not the one of the tests, which is perhaps in the middle of something
    kpatch.apply(model, "; ".join(statements))
    return bits(model)


def is_made(statement, found):
    """Whether a statement was made: of its entries all, or none, else `None`."""
    entries = made(statement) != made()
    new, old = found[entries] == made(statement)[entries], found[entries] == made()[entries]
    return True if new.all() else False if old.all() else None


def unchanged(model):
    return (bits(model) == made()).all()


def text_of(error):
    return str(error) if isinstance(error, (kpatch.PatchError, KeyboardInterrupt)) else ""


def check_told(error, model):
    """The model is as it was, or as the statements make it that the error names; and it says which of the two."""
    text, written, found = text_of(error), getattr(error, "written", ()), bits(model)
    if not written:
        assert unchanged(model)
        assert "stay" not in text
        assert "every variable was put back as it was" in text or type(error) is not kpatch.ExecutionError
        return
    assert "every variable" not in text
    lines = [line.strip() for line in text.splitlines()]
    for statement in STATEMENTS:
        named = [line for line in lines if line.startswith(f"'{statement}' in ")]
        assert len(named) == [text for text, _ in written].count(statement)
        if not named:
            assert is_made(statement, found) is False
        elif named[0].endswith(", perhaps in part"):
            assert is_made(statement, found) is not None  # the doubles fail before a call, or after it
        else:
            assert is_made(statement, found) is True


def raised(function, *args, **options):
    """What the call raises, or `None`."""
    try:
        function(*args, **options)
    except BaseException as error:  # noqa: BLE001 (also an interrupt)
        return error
    return None


@pytest.mark.parametrize("budget", [live.KEPT, 30, 0])
@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_at_each_call(kind, undo, budget, monkeypatch):
    monkeypatch.setattr(live, "KEPT", budget)
    told = 0
    for double in each_failure(FAILURES[kind]):
        model = network()
        with double:
            error = raised(kpatch.apply, model, TEXT, undo=undo)
        assert type(error) is (KeyboardInterrupt if kind == "interrupt" else kpatch.ExecutionError) or (
            error is None and not double.failed
        )
        if error is not None:
            check_told(error, model)
            told += bool(getattr(error, "written", ()))
    assert bool(told) == (not undo and budget < 100)


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_backend_that_fails_from_then_on(kind, undo):
    """What cannot be put back either is named."""
    told = 0
    for double in each_failure(FAILURES[kind], on=True):
        model = network()
        with double:
            error = raised(kpatch.apply, model, TEXT, undo=undo)
        if error is not None:
            check_told(error, model)
            told += bool(getattr(error, "written", ()))
    assert told


ASSERTED = f"{TEXT}; assert all(third.kernel == 2)"


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_while_old_values_are_written_back(kind, on):
    """After an assertion that fails. One that passes is tried again; an interrupt is raised, when all is restored."""
    with Failing(RuntimeError, -1) as counted:
        assert type(raised(kpatch.apply, network(), ASSERTED)) is kpatch.PatchAssertionError
    kinds = set()
    for late, at in itertools.product((False, True), range(counted.calls)):
        model = network()
        with Failing(FAILURES[kind], at, late, on):
            error = raised(kpatch.apply, model, ASSERTED)
        check_told(error, model)
        kinds.add(type(error))
    if kind == "interrupt":
        assert kinds == {KeyboardInterrupt}
    else:
        assert kinds == ({kpatch.ExecutionError} if on else {kpatch.ExecutionError, kpatch.PatchAssertionError})


# undo() and `with` ----------------------------------------------------------------------------------------------------


def leave(applied):
    with applied:
        pass


@pytest.mark.parametrize("use", [kpatch.AppliedPatch.undo, leave])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_in_undo_that_passes(kind, use):
    for double in each_failure(FAILURES[kind]):
        model = network()
        applied = kpatch.apply(model, TEXT)
        with double:
            error = raised(use, applied)
        assert type(error) is (KeyboardInterrupt if double.failed and kind == "interrupt" else type(None))
        assert unchanged(model)
        with pytest.raises(kpatch.UndoError, match="undone already"):
            applied.undo()


@pytest.mark.parametrize("kind", FAILURES)
def test_an_undo_that_fails_can_be_tried_again(kind):
    """It names what is not restored."""
    told = 0
    for double in each_failure(FAILURES[kind], on=True):
        model = network()
        applied = kpatch.apply(model, TEXT)
        with double:
            error = raised(applied.undo)
        assert type(error) in (KeyboardInterrupt if kind == "interrupt" else kpatch.ExecutionError, type(None))
        if getattr(error, "written", ()):
            told += 1
            assert "  undo() can be called again" in str(error).splitlines()
            check_told(error, model)
            applied.undo()
        assert unchanged(model)
    assert told


def test_the_texts(model, monkeypatch):
    monkeypatch.setattr(live, "KEPT", 0)
    writer, write = backends.current(), backends.current().write
    text = "dense_1.bias = 0\ndense_1.kernel[0] = 7\ndense_2.bias = 1"

    def failing(variable, *args):
        if variable is model.layers[1].bias:
            raise failure("out of memory")
        write(variable, *args)

    for failure in (MemoryError, KeyboardInterrupt):
        with mock.patch.object(writer, "write", failing), pytest.raises(BaseException) as caught:  # noqa: PT011
            kpatch.apply(model, text, undo=False)
        lines = [
            "  what stays written (undo=False keeps few old values):",
            "    'dense_1.bias = 0' in dense_1.bias",
            "    'dense_1.kernel[0] = 7' in dense_1.kernel",
            "    'dense_2.bias = 1' in dense_2.bias, perhaps in part",
            "  everything else was put back as it was",
        ]
        if failure is MemoryError:
            lines.insert(0, "the backend failed while the patch ran: out of memory")
        assert caught.value.written == (
            ("dense_1.bias = 0", "dense_1.bias"),
            ("dense_1.kernel[0] = 7", "dense_1.kernel"),
            ("dense_2.bias = 1", "dense_2.bias"),
        )
        if failure is MemoryError:
            assert str(caught.value) == "\n".join(lines)
        else:  # it had a text of its own
            assert caught.value.__notes__ == ["\n".join(["an edit was cut off", *lines])]
    plain = KeyboardInterrupt()
    with mock.patch.object(writer, "write", side_effect=plain), pytest.raises(KeyboardInterrupt) as caught:
        kpatch.apply(model, "dense_1.bias = 0", undo=False)
    assert str(caught.value) == (
        "an edit was cut off\n"
        "  what stays written (undo=False keeps few old values):\n"
        "    'dense_1.bias = 0' in dense_1.bias, perhaps in part\n"
        "  everything else was put back as it was"
    )


def test_many_writes_are_counted(model):
    text = "\n".join(f"dense_1.kernel[{i % 4}, {i % 3}] = {i}" for i in range(30))
    failing = mock.patch.object(backends.current(), "write", side_effect=RuntimeError("the disk is on fire"))
    with failing, pytest.raises(kpatch.ExecutionError) as caught:
        kpatch.apply(model, text)
    assert len(caught.value.written) == 30
    lines = str(caught.value).splitlines()
    assert lines[1] == "  what stays written (writing back failed: the disk is on fire):"
    assert lines[2] == "    'dense_1.kernel[0, 0] = 0' in dense_1.kernel, perhaps in part"
    assert lines[-2:] == ["    and 10 more", "  everything else was put back as it was"]


def test_what_stays_written_is_an_edit_as_any_other(model, monkeypatch):
    monkeypatch.setattr(live, "KEPT", 0)
    first = kpatch.apply(model, "dense_1.bias[0] = 1")
    apart = kpatch.apply(model, "dense_2.kernel[0] = 1")
    writer, write = backends.current(), backends.current().write

    def failing(variable, *args):
        if variable is model.layers[1].bias:
            raise MemoryError
        write(variable, *args)

    with mock.patch.object(writer, "write", failing), pytest.raises(kpatch.ExecutionError):
        kpatch.apply(model, "dense_1.bias = 0; dense_2.bias[0] = 1", undo=False)
    with pytest.raises(kpatch.UndoError, match=r"^a later edit of 'dense_1\.bias' overlaps"):
        first.undo()
    apart.undo()


def test_what_was_put_back_is_no_later_edit(model):
    first = kpatch.apply(model, "dense_1.bias[0] = 1")
    with Failing(KeyboardInterrupt, 6), pytest.raises(KeyboardInterrupt):
        kpatch.apply(model, TEXT)
    first.undo()
    assert unchanged(model)


def test_an_exit_is_raised_as_it_is(model):
    with mock.patch.object(backends.current(), "write", side_effect=SystemExit(3)), pytest.raises(SystemExit) as caught:
        kpatch.apply(model, "dense_1.bias = 0")
    assert caught.value.code == 3
    assert unchanged(model)


# Between any two lines ------------------------------------------------------------------------------------------------

FILES = {
    str(Path(module.__file__)) for module in (live, sys.modules["kpatch.run.undo"], sys.modules["kpatch.run.execute"])
}
FILES |= {str(path) for path in Path(backends.__file__).parent.glob(f"{BACKEND}*.py")}


def _is_beginning(frame):
    """Whether this is the `try:` that a block begins or ends with, before which nothing can be done."""
    code = frame.f_code
    return code.co_name in ("__enter__", "__exit__") and frame.f_lineno == code.co_firstlineno + 1


class Interrupted:
    """Raises an interrupt at the n-th line that runs in the files above."""

    def __init__(self, at):
        self.at = at
        self.lines = 0
        self.raised = False

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._called)

    def __exit__(self, *exception):
        sys.settrace(self._before)

    def _called(self, frame, event, arg):
        code = frame.f_code  # Python itself passes over what is raised where a weak reference dies, in a lambda
        return self._line if code.co_filename in FILES and code.co_name != "<lambda>" else None

    def _line(self, frame, event, arg):
        if event == "line" and not _is_beginning(frame):
            self.lines += 1
            if self.lines == self.at + 1:
                self.raised = True
                raise KeyboardInterrupt
        return self._line


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_interrupt_at_each_line(statement, undo):
    earlier = "dense_1.kernel[0, 1] = 77; dense_1.bias = _ + 0; third.kernel = _ + 0; dense_2.kernel = _ + 0"
    kpatch.apply(network(), statement, undo=undo)  # what is compiled and loaded once
    for at in range(10_000):
        model = network()
        before = kpatch.apply(model, earlier)
        snapshot, interrupted = bits(model), Interrupted(at)
        with interrupted:
            error = raised(kpatch.apply, model, statement, undo=undo)
        assert type(error) is (KeyboardInterrupt if interrupted.raised else type(None))
        if error is None:
            break
        assert not hasattr(error, "written")
        np.testing.assert_array_equal(bits(model), snapshot)
        before.undo()
        assert unchanged(model)
    assert at > 20


def test_an_interrupt_at_each_line_of_undo():
    """Nothing is restored, and it can be called again, or everything."""
    text = "; ".join(STATEMENTS[2:6])
    for at in range(10_000):
        model, interrupted = network(), Interrupted(at)
        applied = kpatch.apply(model, text)
        edited = bits(model)
        with interrupted:
            error = raised(applied.undo)
        if error is None:
            assert not interrupted.raised
            break
        assert type(error) is KeyboardInterrupt
        if (bits(model) == edited).all():
            applied.undo()
        assert unchanged(model)
    assert at > 60


def ablate(model, text, interrupted):
    applied = kpatch.apply(model, text)
    with interrupted, applied:
        pass


@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_interrupt_at_each_line_of_a_block(statement):
    """In the beginning and the end of `with`, which is as safe as `undo`."""
    for at in range(10_000):
        model, interrupted = network(), Interrupted(at)
        error = raised(ablate, model, statement, interrupted)
        assert type(error) is (KeyboardInterrupt if interrupted.raised else type(None))
        assert unchanged(model)
        if error is None:
            break
    assert at > 20


@pytest.mark.parametrize("first", [AssertionError, KeyboardInterrupt])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_interrupt_at_each_line_after_a_failure(statement, first):
    """Also after another interrupt."""
    text = f"{statement}; assert all(third.kernel > 99)"
    check = semantics.check_assertion

    def failing(statement, scope):
        if first is KeyboardInterrupt and not arithmetic.is_planning():
            raise KeyboardInterrupt
        check(statement, scope)

    for at in range(10_000):
        model, interrupted = network(), Interrupted(at)
        with mock.patch.object(semantics, "check_assertion", failing), interrupted:
            error = raised(kpatch.apply, model, text)
        assert isinstance(error, KeyboardInterrupt if interrupted.raised else first)
        assert unchanged(model)
        if not interrupted.raised:
            break
    assert at > 20


# Real failures --------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = """
import gc, resource, sys
import keras, numpy as np
import kpatch

SIDE = 4096  # 64 MiB
IN_PLACE = ("a.kernel = _ * 2 - 1", "a.kernel *= 1")  # if old values are let go; both keep what is 1
TEXTS = [*IN_PLACE, "a.kernel = _ ** 3 + 1", "a.kernel[:, ::2] = a.kernel[:, 1::2] * 3", "a.kernel[_ > 0] = _ * 3"]


def kernel(name, side):
    layer = keras.layers.Dense(side, use_bias=False, name=name, kernel_initializer="ones")
    layer.build((None, side))
    return layer


model = keras.Sequential([kernel("s", 4), kernel("a", SIDE)])
model.built = True
for text in TEXTS:  # what is compiled and loaded once
    kpatch.apply(model, "s.kernel = 5; " + text).undo()
    kpatch.apply(model, "s.kernel = 5; " + text, undo=False)
    kpatch.apply(model, "a.kernel = 1; s.kernel = 1", undo=False)
for text in TEXTS:
    for undo in (True, False):
        gc.collect()
        size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, before[1]))
        try:
            kpatch.apply(model, "s.kernel = 5; " + text, undo=undo)
            if undo or text not in IN_PLACE:
                sys.exit(f"there was enough memory for {text}")
            model.get_layer("s").kernel.assign(np.ones((4, 4)))
        except kpatch.ExecutionError as error:
            if not undo and text in IN_PLACE:
                raise
            assert not error.written, error
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        for variable in model.weights:
            assert (np.asarray(keras.ops.convert_to_numpy(variable.value)) == 1).all(), (text, undo)
        with kpatch.apply(model, "a.kernel[0, 0] = 5"):
            assert np.asarray(keras.ops.convert_to_numpy(variable.value))[0, 0] == 5
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow takes again what it had before, whatever the limit")
def test_out_of_memory():
    """In truth: on jax it is found out when the statement has long been run."""
    path = os.pathsep.join([str(Path(kpatch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}  # so that memory is given back
    command = [sys.executable, "-c", OUT_OF_MEMORY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
