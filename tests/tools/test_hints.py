"""What the commands say to somebody who swapped, forgot or mistook an argument."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free

MODEL_FILE = "this is the name of a model file, not a patch; the model comes before the patch"
PATCH_FILE = "this is the name of a patch file, not a patch; kpatch.load reads the file (on the command line: no -e)"
NO_MODEL = "does not end in .keras, .weights.h5, .weights.json, .safetensors or .h5\n"
NO_MODEL += "  it looks like a patch, which comes after the model\n"
WITHOUT_E = "  if it is a statement and no file: -e 'head.bias = 0'\n"
NO_OUTPUT = "Give the output: -o OUT.keras or --in-place; or --dry-run to see the plan."
COMMAND = "A command comes first: kpatch apply a.safetensors PATCH, or kpatch show a.safetensors.\n"
IS_MODEL = "kpatch.FileError: 'a.safetensors' is a model, not a patch; the model comes before the patch\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"head.bias": np.ones(2)}, "a.safetensors")
    Path("p.kpatch").write_text("head.bias = 0\n", encoding="utf-8")
    Path("e.kpatch").write_text("# nothing\n", encoding="utf-8")

    def invoke(*args):
        result = CliRunner().invoke(main, args)
        return result.stderr.rpartition("\n\nError: ")[2]  # without the usage, of a wrong call

    return invoke


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["apply", "p.kpatch", "a.safetensors", "--in-place"], IS_MODEL),
        (["apply", "a.safetensors", "a.safetensors", "--in-place"], IS_MODEL),
        (["apply", "-e", "head.bias = 0", "p.kpatch", "--in-place"], f"kpatch.FileError: 'p.kpatch' {NO_MODEL}"),
        (["apply", "x = 0", "p.kpatch", "--in-place"], f"kpatch.FileError: 'x = 0' {NO_MODEL}"),
        (
            ["apply", "a.safetensors", "head.bias = 0", "--in-place"],
            "kpatch.FileError: cannot read 'head.bias = 0': no such file or directory\n" + WITHOUT_E,
        ),
        (
            ["apply", "a.safetensors", "head.bias = 0"],
            f"{NO_OUTPUT} A statement comes behind -e: -e 'head.bias = 0'.\n",
        ),
        (
            ["apply", "a.safetensors", "-e", "p.kpatch", "--in-place"],
            f"kpatch.PatchSyntaxError: {PATCH_FILE}\n  line 1, column 1\n    p.kpatch\n    ^^^^^^^^\n",
        ),
        (
            ["apply", "p.kpatch", "-e", "./a.safetensors", "--in-place"],
            f"kpatch.PatchSyntaxError: {MODEL_FILE}\n  line 1, column 1\n    ./a.safetensors\n    {'^' * 15}\n",
        ),
        (
            ["apply", "p.kpatch", "--in-place"],
            "MODEL is missing: give a PATCH file behind MODEL, or statements by -e.\n",
        ),
        (
            ["apply", "head.bias = 0", "--in-place"],
            "MODEL is missing: give a PATCH file behind MODEL, or statements by -e.\n",
        ),
        (
            ["apply", "a.safetensors", "--in-place"],
            "Nothing to apply: give a PATCH file behind MODEL, or statements by -e.\n",
        ),
        (
            ["a.safetensors", "head.bias = 0"],
            f"No such command 'a.safetensors'. {COMMAND}",
        ),
        (["show", "head", "a.safetensors"], "MODEL comes before SELECTOR: kpatch show a.safetensors head\n"),
        (["show", "p.kpatch"], f"kpatch.FileError: 'p.kpatch' {NO_MODEL}"),
        (["diff", "a.safetensors", "p.kpatch"], f"kpatch.FileError: 'p.kpatch' {NO_MODEL}"),
        (["undo", "p.kpatch"], f"kpatch.FileError: 'p.kpatch' {NO_MODEL}"),
    ],
)
def test_arguments_that_are_swapped_or_forgotten(run, command, expected):
    before = Path("a.safetensors").read_bytes()
    assert run(*command) == expected
    assert Path("a.safetensors").read_bytes() == before


def test_check_says_what_a_path_may_be(run):
    output = CliRunner().invoke(main, ["check", "head.bias = 0", "a.safetensors"]).output
    assert output == (
        "head.bias = 0: FileError: cannot read 'head.bias = 0': no such file or directory\n"
        "  it may be a patch, which is a text and no path\n"
        "a.safetensors: FileError: 'a.safetensors' is a model, not a patch; "
        "--model MODEL.keras looks names up in a model\n"
        "0 patches in 2 files, 2 errors\n"
    )


def test_an_empty_patch_is_told(run):
    """It is no error: `kpatch diff` of two equal files writes one."""
    for patch in (["e.kpatch"], ["-e", ""]):
        shutil.copy("a.safetensors", "b.safetensors")
        assert run("apply", "b.safetensors", *patch, "--in-place") == "note: the patch is empty: it has no statements\n"
        assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    planned = CliRunner().invoke(main, ["apply", "a.safetensors", "e.kpatch", "--dry-run"])
    assert (planned.exit_code, planned.stderr) == (0, "")
    assert planned.stdout.endswith("warning: the patch is empty: it has no statements\n")


EMPTY_PATH = "a path cannot be empty; '.' is the current folder"


@pytest.mark.parametrize(
    "command",
    [
        ["apply", "", "-e", "b = 1", "--in-place"],
        ["apply", "a.safetensors", "-e", "b = 1", "-o", ""],
        ["show", ""],
        ["diff", "", "a.safetensors"],
        ["diff", "a.safetensors", ""],
        ["diff", "a.safetensors", "a.safetensors", "-o", ""],
        ["diff", "a.safetensors", "a.safetensors", "--html", ""],
        ["undo", ""],
        ["log", ""],
        ["check", "--model", "", "e.kpatch"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(run, command):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith(f": {EMPTY_PATH}.")


def test_an_empty_path_of_a_patch(run):
    assert run("apply", "a.safetensors", "", "--dry-run") == f"kpatch.FileError: {EMPTY_PATH}\n"
    output = CliRunner().invoke(main, ["check", ""]).output
    assert output == f"'': FileError: {EMPTY_PATH}\n0 patches in 1 file, 1 error\n"


def test_a_model_that_is_not_there(run):
    assert run("show", "missing") == "kpatch.FileError: cannot read 'missing': no such file or directory\n"
