"""`--json`: one object for each command, as the page says, with the data of the Python functions."""

import json
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import kpatch
from kpatch.tools.command_line import main
from kpatch.view.shown import Shown

pytestmark = pytest.mark.backend_free

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
TABLES = {
    title: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
    for title, body in re.findall(r"^##+ (.+)\n((?:(?!^#).*\n)*)", PAGE, re.MULTILINE)
}
OBJECTS = {"rows": "row", "writes": "write", "before": "values", "after": "values", "asked": "values"}
OBJECTS |= {"differences": "difference", "edits": "edit", "errors": "error"}
ONLY_SOMETIMES = {"name": {"std", "zeros", "nan", "inf"}, "error": {"written"}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kernel = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)
    save_file({"head.kernel": kernel, "head.bias": np.array([0, np.nan, np.inf], "float32")}, "a.safetensors")

    def invoke(*args, code=0):
        result = CliRunner().invoke(main, [*args, "--json"])
        assert (result.exit_code, result.stderr) == (code, "")
        return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return invoke


def check(told, table, objects):
    """That an object, and those in it, have the fields of their tables, in that order."""
    fields = [field for field in TABLES[table] if field in told or field not in ONLY_SOMETIMES.get(table, ())]
    assert list(told) == fields, table
    for name, value in told.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                check(each, objects[name], OBJECTS)


def of_command(told, table, objects=OBJECTS):
    """The fields of a command, checked."""
    assert told["schema"] == 1
    assert told["errors"] == []
    rest = {name: value for name, value in told.items() if name not in TABLES["every command"]}
    check(rest, table, objects)
    return rest


EDITS = ("-e", "head.kernel[0] = 5; head.bias[1] = 2", "-e", "head.bias *= 2")
PATCH = "head.kernel[0] = 5; head.bias[1] = 2\nhead.bias *= 2"


def test_a_plan(run):
    told = of_command(run("apply", "a.safetensors", *EDITS, "--dry-run"), "apply --dry-run")
    assert told == {**kpatch.checkpoint.plan("a.safetensors", PATCH).to_dict(), "wrote": []}
    assert told["rows"][0] == {
        "statement": "head.kernel[0] = 5",
        "path": "head.kernel",
        "shape": [4, 3],
        "dtype": "float32",
        "entries": 3,
    }


def test_what_apply_wrote(run):
    told = of_command(run("apply", "a.safetensors", *EDITS, "-o", "b.safetensors"), "apply")
    applied = kpatch.checkpoint.apply("a.safetensors", PATCH, "c.safetensors")
    assert told == {**applied.to_dict(), "wrote": ["b.safetensors"]}
    assert told["patch"] == PATCH
    before, after = [told["writes"][1][name] for name in ("before", "after")]
    assert before == {"min": "NaN", "mean": "NaN", "max": "NaN", "values": ["NaN"]}
    assert after == {"min": 2.0, "mean": 2.0, "max": 2.0, "values": [2.0]}


def test_a_model_that_must_be_loaded_has_the_same_fields(run, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    model.save("plain.keras")
    with zipfile.ZipFile("plain.keras") as plain, zipfile.ZipFile("small.keras", "w", zipfile.ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    one, other = [
        of_command(run("apply", name, "-e", "head.bias = 1", "-o", f"new_{name}"), "apply")
        for name in ("plain.keras", "small.keras")
    ]
    assert one["writes"] == other["writes"]
    assert other["writes"] == kpatch.apply(model, "head.bias = 1").to_dict()["writes"]


def test_an_edit_in_memory_says_what_was_asked_for():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False, name="d")])
    model.get_layer("d").kernel.assign([[1.0, 2.0], [-0.5, 4.0]])
    model.get_layer("d").quantize("int8")
    [write] = kpatch.apply(model, "d.kernel[0, 0] = 0.1").to_dict()["writes"]
    check(write, "write", OBJECTS)
    assert write["asked"]["values"] == [float(np.float32(0.1))]
    assert write["after"]["values"] != write["asked"]["values"]


def test_whatever_shows_itself_is_data_too():
    pending, found = [Shown], set()
    while pending:
        below = [each for each in pending.pop().__subclasses__() if each.__module__.startswith("kpatch.")]
        pending += below
        found |= set(below)
    assert len(found) > 5
    assert [each for each in found if each.to_dict is Shown.to_dict] == []


def test_a_sweep():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")])
    swept = kpatch.sweep(model, "d.bias[$i] = $v", metric=lambda: float("nan"), axes={"i": [0, 1], "v": [0.5]})
    assert json.loads(json.dumps(swept.to_dict(), allow_nan=False)) == {
        "patch": "d.bias[$i] = $v",
        "axes": {"i": [0, 1], "v": [0.5]},
        "values": [["NaN"], ["NaN"]],
    }


def test_what_is_not_known_of_an_activation_is_null():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(2, name="head")

        def call(self, x):
            return self.head(x)

    model = Net()
    model(np.ones((1, 3), "float32"))
    [row] = kpatch.plan(model, "head.output[0] = 1").to_dict()["rows"]
    check(row, "row", OBJECTS)
    assert (row["shape"], row["dtype"], row["entries"]) == (None, None, None)


def test_names(run):
    for options in ([], ["--stats"]):
        told = of_command(run("show", "a.safetensors", *options), "show", {"rows": "name"})
        assert told == kpatch.show(Path("a.safetensors"), stats=bool(options)).to_dict()
    assert {row["path"]: (row["zeros"], row["nan"], row["inf"]) for row in told["rows"]} == {
        "head.bias": (1, 1, 1),
        "head.kernel": (0, 0, 0),
    }


def test_a_difference(run):
    kpatch.checkpoint.apply("a.safetensors", "head.bias[2] = 7", "b.safetensors")
    told = of_command(run("diff", "a.safetensors", "b.safetensors", "-o", "c.kpatch", code=1), "diff")
    assert told == {**kpatch.diff("a.safetensors", "b.safetensors").to_dict(), "wrote": ["c.kpatch"]}
    assert told["patch"] == Path("c.kpatch").read_text(encoding="utf-8").partition("\n")[2] == "head.bias[2] = 7.0\n"
    assert of_command(run("diff", "a.safetensors", "a.safetensors"), "diff")["equal"] is True
    assert run("diff", "a.safetensors", "none.safetensors", code=2)["errors"][0]["code"] == "FileError"


def test_undo_and_log(run):
    kpatch.checkpoint.apply("a.safetensors", "head.bias = 7", in_place=True, journal=True)
    told = of_command(run("log", "a.safetensors"), "log")
    assert told["edits"] == [each.to_dict() for each in kpatch.checkpoint.log("a.safetensors")]
    assert told["edits"][0]["patch"] == "head.bias = 7"
    assert of_command(run("undo", "a.safetensors"), "undo") == {
        "file": "a.safetensors", "restored": True, "removed": None,
    }  # fmt: skip
    kpatch.checkpoint.apply("a.safetensors", "head.bias = 7", in_place=True, journal=True)
    assert of_command(run("undo", "--discard", "a.safetensors"), "undo") == {
        "file": "a.safetensors", "restored": False, "removed": "a.safetensors.kpatch-undo",
    }  # fmt: skip


def test_all_errors_of_a_patch_are_in_the_object(run):
    told = run("apply", "a.safetensors", "-e", "head.bais = 0", "-e", "head.bias[9] = 0", "--dry-run", code=1)
    assert list(told) == TABLES["every command"]
    for error in told["errors"]:
        check(error, "error", OBJECTS)
    assert [(error["code"], error["line"], error["column"]) for error in told["errors"]] == [
        ("ResolutionError", 1, 6),
        ("SubscriptError", 2, 11),
    ]
    assert told["errors"][1]["notes"][-1] == "that is line 1 of -e 'head.bias[9] = 0'"


def test_a_wrong_call_is_told_as_text():
    result = CliRunner().invoke(main, ["show", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Missing argument 'MODEL'" in result.stderr


def test_quiet_prints_errors_alone(run):
    runner = CliRunner()
    for command in (
        ["apply", "a.safetensors", "-e", "head.bias = 1", "-o", "b.safetensors", "--journal"],
        ["apply", "a.safetensors", "-e", "head.bias = 1", "--dry-run"],
        ["undo", "b.safetensors"],
    ):
        assert runner.invoke(main, [*command, "-q"]).output == ""
    kpatch.checkpoint.apply("a.safetensors", "head.bias[2] = 7", "c.safetensors")
    found = runner.invoke(main, ["diff", "a.safetensors", "c.safetensors", "--quiet"])
    assert (found.exit_code, found.output) == (1, "")
    failed = runner.invoke(main, ["apply", "a.safetensors", "-e", "head.bais = 1", "--dry-run", "-q"])
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.startswith("kpatch.ResolutionError: no variable 'head.bais'")


def test_notes_are_in_the_object_too(run, monkeypatch):
    Path("nothing_much.py").write_text("", encoding="utf-8")
    told = run("show", "a.safetensors", "--import", "nothing_much")
    assert told["notes"] == ["note: running the code of the module nothing_much"]
