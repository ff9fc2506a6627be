"""The bar of long work: on a terminal alone, after a second, with rate and time left; the time is a number here."""

import functools
import io
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import h5py
import models
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint import copying
from kpatch.run import steps
from kpatch.tools import printing
from kpatch.view import progress

pytestmark = pytest.mark.backend_free


class Clock:
    """A clock that each look moves on."""

    def __init__(self, step=0.0):
        self.now, self.step = 100.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def terminal(**options):
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, **options)


def test_a_slow_source():
    console, clock = terminal(), Clock()
    with progress.shown("editing m.keras", console, clock):
        progress.expect(1000 * 10**6)
        progress.advance(100 * 10**6)
        clock.now += 0.9
        progress.advance(100 * 10**6)
        assert console.file.getvalue() == ""
        clock.now += 1.1
        progress.advance(200 * 10**6)
        text = console.file.getvalue()
        for told in ("editing m.keras", " 40% ", " 200.0 MB/s, 0:00:03 left"):
            assert told in text
        clock.now += 0.05
        progress.advance(10**6)
        assert console.file.getvalue() == text  # not for each block
        clock.now += 1
        progress.advance(599 * 10**6)
        assert "100%" in console.file.getvalue()[len(text) :]
    assert console.file.getvalue().endswith("\x1b[2K")  # it is gone
    text = console.file.getvalue()
    progress.advance(1)
    progress.expect(1)
    assert console.file.getvalue() == text


def test_a_phase_without_a_rate():
    """The bar appears while the work waits, with the count so far and no rate; a short phase shows nothing."""
    console, clock, drawn, threads = terminal(), Clock(), threading.Event(), threading.active_count()
    with progress.shown("editing m.keras", console, clock):
        progress.expect(100)
        progress.advance(100)
        with progress.phase("writing to disk"):
            pass
        assert console.file.getvalue() == ""
        clock.now += 5
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(progress.Bar, "_draw", _telling(drawn))
            with progress.phase("writing to disk"):
                assert drawn.wait(60)
        text = console.file.getvalue()
        assert "100% writing to disk" in text
        assert "/s" not in text
        clock.now += 1
        progress.advance(0)
        assert "16 bytes/s" in console.file.getvalue()[len(text) :]
    assert threading.active_count() == threads
    with progress.phase("writing to disk"):  # no bar is shown
        assert threading.active_count() == threads


def _telling(drawn, draw=progress.Bar._draw):
    def telling(self, told):
        draw(self, told)
        drawn.set()

    return telling


def test_what_takes_less_than_a_second():
    console, clock = terminal(), Clock()
    with progress.shown("reading", console, clock):
        for _ in range(9):
            clock.now += 0.1
            progress.advance(1)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("console", [Console(file=io.StringIO(), width=80), terminal(quiet=True)])
def test_no_terminal_or_quiet(console):
    clock = Clock(step=10)
    with progress.shown("reading", console, clock):
        progress.expect(5)
        progress.advance(5)
    assert clock.now == 100.0  # nobody looked at it
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_name_leaves_room_for_the_numbers(width):
    console = terminal()
    console.width = width
    with progress.shown("editing " + 200 * "x", console, Clock(step=4000)):
        progress.expect(10**12)
        progress.advance(10**9)
    assert " 0% 250.0 kB/s, 46 days, 6:00:00 left" in console.file.getvalue()
    assert "editing" in console.file.getvalue()


def test_an_error_ends_the_bar():
    console = terminal()

    def work():
        with progress.shown("reading", console, Clock(step=2)):
            progress.advance(5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert console.file.getvalue().endswith("\x1b[2K")
    assert progress._shown.get(None) is None


@pytest.fixture
def counted(monkeypatch):
    """What is expected, and what is done."""
    found = {"expect": 0, "advance": 0}
    for name in found:
        monkeypatch.setattr(progress, name, lambda count, name=name: found.update({name: found[name] + count}))
    return found


@pytest.mark.parametrize("small", [0, 2**24])
@pytest.mark.parametrize(
    "patch", ["", "a[0] = 1", "a *= 2", "**[abs(_) < 1] = 0; b = a[0, 0]; a[5] = 1", "a = _ - mean(_)", "a[5] = b[:9]"]
)
def test_all_that_is_expected_is_done(tmp_path, counted, monkeypatch, patch, small):
    monkeypatch.setattr(copying, "SMALL", small)
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones((300, 9), "float32"), "b": np.ones(70_000, "float32")}, path)
    checkpoint.apply(path, patch, tmp_path / "o.safetensors")
    assert counted["advance"] == counted["expect"] >= path.stat().st_size
    counted.update(expect=0, advance=0)
    checkpoint.apply(path, patch, in_place=True)
    assert counted["advance"] == counted["expect"]
    counted.update(expect=0, advance=0)
    str(kpatch.show(path))
    assert counted["advance"] == counted["expect"] > 0


def test_what_the_last_phases_are(tmp_path, monkeypatch):
    """An edit waits for the disk; arrays that h5py encodes are packed again before."""
    phases, known = [], progress.phase
    monkeypatch.setattr(progress, "phase", lambda what: phases.append(what) or known(what))
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file.create_dataset("a", data=np.ones((300, 9), "float32"), chunks=(100, 9), compression="gzip")
        file["b"] = np.ones(5, "float32")
    apply = functools.partial(checkpoint.apply, tmp_path / "m.weights.h5")
    apply("a *= 2", tmp_path / "o.weights.h5")
    assert list(dict.fromkeys(phases)) == ["writing to disk", "packing"]
    assert phases[-1] == "writing to disk"
    phases.clear()
    apply("b *= 2", in_place=True)
    assert phases == ["writing to disk"]


def test_the_commands_have_a_bar(tmp_path, monkeypatch):
    """`apply`, `diff` and `show`, on a terminal that is slow."""
    from click.testing import CliRunner

    from kpatch.tools.command_line import main

    consoles, known = [], progress.shown

    def shown(what, console):
        consoles.append(terminal(quiet=console.quiet))
        return known(what, consoles[-1], Clock(step=2))

    monkeypatch.setattr(printing.progress, "shown", shown)
    path, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"a": np.ones((300, 9), "float32")}, path)
    runs = (["apply", path, "-e", "a *= 2", "-o", out], ["diff", path, out], ["show", path])
    for arguments in runs:
        CliRunner().invoke(main, [str(each) for each in arguments])
        assert "100%" in consoles[-1].file.getvalue()
    CliRunner().invoke(main, ["apply", "-q", str(path), "-e", "a *= 2", "--in-place"])
    assert consoles[-1].file.getvalue() == ""
    assert [len(consoles), progress._shown.get(None)] == [4, None]


# Calls of the library -------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Every edit takes long; gives a function that says what standard error is."""
    monkeypatch.setattr(steps, "LARGE", 0)
    monkeypatch.setattr(progress, "SECONDS", -1)
    monkeypatch.setattr(progress, "EVERY", 0)

    def stderr(console):
        monkeypatch.setattr(progress, "Console", lambda stderr: console)
        return console.file

    return stderr


PATCH = "dense_1.bias = 1; ** *= 2; assert all(dense_1.bias == 2); dense_2.kernel[abs(_) > 0.1] = 0"


@pytest.mark.every_backend
def test_an_edit_of_a_model_on_a_terminal(slow):
    model, alone = models.dense(), models.dense()
    kpatch.apply(alone, PATCH)
    file = slow(terminal())
    applied = kpatch.apply(model, PATCH)
    assert "applying the patch" in file.getvalue()
    assert " 81% " in file.getvalue()  # 104 of 128 bytes; the last statement writes the rest
    assert file.getvalue().endswith("\x1b[2K")
    for a, b in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    plan, size = kpatch.plan(model, "** += 1"), len(file.getvalue())
    plan.apply(undo=False)
    assert len(file.getvalue()) > size
    assert applied.writes[0].after.tolist() == [1, 1, 1]


@pytest.mark.parametrize("console", [Console(file=io.StringIO(), width=80), terminal(quiet=True)])
def test_an_edit_without_a_terminal(slow, console, capsys):
    file = slow(console)
    kpatch.apply(models.dense(), PATCH)
    assert (file.getvalue(), capsys.readouterr()) == ("", ("", ""))


def test_a_dumb_terminal_has_no_bar(slow, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = slow(terminal())
    kpatch.apply(models.dense(), PATCH)
    assert file.getvalue() == ""


def test_the_bar_can_be_switched_off(slow, monkeypatch):
    monkeypatch.setenv("KPATCH_PROGRESS", "off")
    file = slow(terminal())
    kpatch.apply(models.dense(), PATCH)
    assert file.getvalue() == ""


def test_an_edit_in_a_thread_has_no_bar(slow):
    file = slow(terminal())
    thread = threading.Thread(target=kpatch.apply, args=(models.dense(), PATCH))
    thread.start()
    thread.join()
    assert file.getvalue() == ""


def test_an_edit_in_a_block_uses_the_bar_of_the_block(slow):
    """So is the quiet of a command the quiet of what it calls."""
    file, other = slow(terminal()), terminal()
    with progress.shown("editing", terminal(quiet=True)):
        kpatch.apply(models.dense(), PATCH)
    with progress.shown("editing", other):
        kpatch.apply(models.dense(), PATCH)
    assert file.getvalue() == ""
    assert "editing" in other.file.getvalue()


def test_an_edit_in_a_notebook(slow, monkeypatch):
    pages = []

    class Handle:
        def update(self, data, raw):
            pages.append(data)

    def display(data, raw, display_id):
        pages.append(data)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    slow(Console(file=io.StringIO(), force_jupyter=True))
    kpatch.apply(models.dense(), PATCH)
    assert pages[0]["text/plain"] == "applying the patch 9%"
    assert pages[0]["text/html"].startswith('applying the patch <progress max="1" value="0.094"></progress> 9% ')
    assert pages[-1] == {"text/plain": "", "text/html": ""}


@pytest.mark.parametrize("failure", [OSError, ValueError])
def test_a_terminal_that_is_gone_does_not_end_an_edit(slow, failure, monkeypatch):
    slow(terminal())
    monkeypatch.setattr(progress.Bar, "_draw", mock.Mock(side_effect=failure))
    assert len(kpatch.apply(models.dense(), PATCH).writes) == 6


def test_an_interrupt_while_the_bar_is_drawn(slow, monkeypatch):
    file, model = slow(terminal()), models.dense()
    before = model.get_weights()
    monkeypatch.setattr(progress.Bar, "_told", mock.Mock(side_effect=["", KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):
        kpatch.apply(model, PATCH)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert file.getvalue().endswith("\x1b[2K")


def test_a_point_edit_asks_nobody(monkeypatch):
    monkeypatch.setattr(progress, "of_call", mock.Mock(side_effect=AssertionError))
    kpatch.apply(models.dense(), "dense_1.kernel[0, 0] = 1")
