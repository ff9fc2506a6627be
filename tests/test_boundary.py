"""Errors end at the line that called kpatch: no frames inside it, unless KPATCH_TRACEBACK asks for them."""

import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import keras
import numpy as np
import pytest

import kpatch
import kpatch.callbacks
import kpatch.constraints
import kpatch.initializers
import kpatch.layers
from kpatch import backends

pytestmark = pytest.mark.backend_free


FAULTS = {
    "apply": lambda model: kpatch.apply(model, "head.bais = 0"),
    "a keyword": lambda model: kpatch.apply(model, "head.bias = 0", out="x"),
    "plan": lambda model: kpatch.plan(model, "head.bias = [1, 2]"),
    "edit": lambda model: kpatch.edit(np.ones(2), "_[2] = 0"),
    "hold": lambda model: kpatch.hold(model, "head.bais = 0"),
    "rewrite": lambda model: kpatch.rewrite(model, "head.outpt = 0"),
    "intervene": lambda model: kpatch.intervene(model, "heat.output = 0"),
    "record": lambda model: kpatch.record(model, "heat.output"),
    "parse": lambda model: kpatch.parse("head.bias = "),
    "load": lambda model: kpatch.load("missing"),
    "show": lambda model: kpatch.show(model, "heat"),
    "diff": lambda model: kpatch.diff(model, "missing.keras"),
    "open": lambda model: kpatch.checkpoint.open("missing.keras"),
    "checkpoint.apply": lambda model: kpatch.checkpoint.apply("missing.keras", "a.b = 0", in_place=True),
    "checkpoint.plan": lambda model: kpatch.checkpoint.plan("missing.keras", "a.b = 0"),
    "checkpoint.undo": lambda model: kpatch.checkpoint.undo("missing.keras"),
    "checkpoint.log": lambda model: kpatch.checkpoint.log("missing.keras"),
    "ScatterLayer": lambda model: kpatch.layers.ScatterLayer("_[0 = 1"),
    "PatchedLayer": lambda model: kpatch.layers.PatchedLayer(model.layers[0], "kernal = 0"),
    "PatchedInitializer": lambda model: kpatch.initializers.PatchedInitializer("_[0 = 1"),
    "PatchConstraint": lambda model: kpatch.constraints.PatchConstraint("_ = $missing"),
    "PatchCallback": lambda model: kpatch.callbacks.PatchCallback({0: "head.bias = "}),
    "undo": lambda model: (applied := kpatch.apply(model, "head.bias = 1")).undo() or applied.undo(),
}


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_has_one_frame_inside_kpatch(model, name, monkeypatch):
    monkeypatch.setenv("KPATCH_TRACEBACK", "")
    with pytest.raises(kpatch.PatchError) as info:
        FAULTS[name](model)
    inside = [frame for frame, _ in traceback.walk_tb(info.value.__traceback__) if frame.f_code.co_filename != __file__]
    assert [Path(frame.f_code.co_filename).name for frame in inside] in (["errors.py"], ["keywords.py"])
    assert inside[0].f_locals["__tracebackhide__"]  # notebooks and pytest do not show this one either
    told = "".join(traceback.format_exception(info.value))
    assert told.count("Traceback") == 1  # the error that caused it is not shown
    assert told.endswith(f"kpatch.{type(info.value).__name__}: {info.value}\n")


class Shell:
    """Stands for IPython's: returns the frames that it is to show."""

    @property
    def InteractiveTB(self):  # noqa: N802
        return self

    def structured_traceback(self, kind, error, frames):
        return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(frames)]


def cell(model):
    __tracebackhide__ = "__ipython_bottom__"  # as IPython marks the frame that runs a cell
    kpatch.apply(model, "head.bais = 0")


def test_a_notebook_shows_the_frames_of_the_caller(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=Shell))
    for mode, inside in (("", 0), ("full", 4)):
        monkeypatch.setenv("KPATCH_TRACEBACK", mode)
        with pytest.raises(kpatch.ResolutionError) as info:
            cell(model)
        test, own, *rest = info.value._render_traceback_()
        assert test == own == __file__
        assert len(rest) == 0 if not inside else len(rest) > inside


def test_without_a_notebook_a_rendered_traceback_is_pythons(model, monkeypatch):
    monkeypatch.setenv("KPATCH_TRACEBACK", "")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    with pytest.raises(kpatch.ResolutionError) as info:
        kpatch.apply(model, "head.bais = 0")
    assert "keywords.py" not in "".join(info.value._render_traceback_())
    never_raised = kpatch.PatchError("a fault")
    assert never_raised._render_traceback_() == ["kpatch.PatchError: a fault\n"]


def test_all_frames_are_shown_on_demand(model, monkeypatch):
    monkeypatch.setenv("KPATCH_TRACEBACK", "full")
    with pytest.raises(kpatch.ResolutionError) as info:
        kpatch.apply(model, "head.bais = 0")
    assert len(traceback.extract_tb(info.value.__traceback__)) > 4
    with pytest.raises(kpatch.FileError) as info:
        kpatch.load("missing")
    assert type(info.value.__cause__) is FileNotFoundError


def test_the_cause_is_kept_as_context(monkeypatch):
    monkeypatch.setenv("KPATCH_TRACEBACK", "")
    with pytest.raises(kpatch.FileError) as info:
        kpatch.load("missing")
    assert info.value.__cause__ is None
    assert type(info.value.__context__) is FileNotFoundError


def test_the_error_of_a_backend_is_shown(model, monkeypatch):
    monkeypatch.setenv("KPATCH_TRACEBACK", "")
    failing = mock.patch.object(backends.current(), "write", side_effect=[MemoryError("out of memory"), None])
    with failing, pytest.raises(kpatch.ExecutionError) as info:
        kpatch.apply(model, "head.kernel[0] *= 2 + head.bias")
    assert type(info.value.__cause__) is MemoryError
    assert traceback.extract_tb(info.value.__cause__.__traceback__)
