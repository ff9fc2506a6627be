"""Every command at every width, without colours, in ASCII, and in a pipe: no name is cut, no line is too long."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import kpatch
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free

NAMES = ("encoder.block_with_a_long_name.attention.query.kernel", "encoder.block_with_a_long_name.bias", "head.kernel")
PATCH = "; ".join(f"{name}[0] = 7" for name in NAMES)
COMMANDS = {
    "show": ["show", "a.safetensors", "--stats"],
    "plan": ["apply", "a.safetensors", "-e", PATCH, "--dry-run"],
    "apply": ["apply", "a.safetensors", "-e", PATCH, "-o", "c.safetensors"],
    "diff": ["diff", "a.safetensors", "b.safetensors"],
    "summary": ["diff", "a.safetensors", "b.safetensors", "--summary"],
    "log": ["log", "b.safetensors"],
    "undo": ["undo", "b.safetensors"],
    "error": ["show", "a.safetensors", "nothing"],
    "check": ["check", "a.kpatch"],
}
SILENT_ON_NAMES = ("undo", "error", "check")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    save_file({name: np.linspace(-1, 1, 12).reshape(4, 3) for name in NAMES}, "a.safetensors")
    kpatch.checkpoint.apply("a.safetensors", PATCH, "b.safetensors", journal=True)
    Path("a.kpatch").write_text("head.bias = ", encoding="utf-8")

    def invoke(command, charset="utf-8", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        result = CliRunner(charset=charset).invoke(main, COMMANDS[command])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def lines_of(text):
    """The lines without codes of the terminal; those of a spinner are on standard error."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_are_whole_on_a_terminal_of_any_width(run, command, width):
    told = lines_of(run(command, FORCE_COLOR="1", COLUMNS=str(width)).stdout)
    for name in () if command in SILENT_ON_NAMES else NAMES:
        assert any(name in line for line in told)
    texts = () if command in ("diff", "log") else told  # these print patches, which are not broken
    longest = max(map(len, NAMES)) + len("  variable: ")
    assert all(len(line.rstrip()) <= max(width, longest) for line in texts)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_colours_without_colours(run, command):
    coloured = r"\x1b\[[0-9;]*3[0-7]m"
    result = run(command, FORCE_COLOR="1", NO_COLOR="1")
    assert not re.search(coloured, result.stdout + result.stderr)
    assert "\x1b" not in run(command, FORCE_COLOR="", NO_COLOR="").output  # nothing at all in a pipe


def test_errors_are_red_on_a_terminal(run):
    assert re.search(r"\x1b\[1;31m", run("error", FORCE_COLOR="1").stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_ascii(run, command):
    """A terminal of ASCII gets characters of its own, in columns that are straight."""
    result = run(command, charset="ascii")
    told = result.stdout_bytes.decode("ascii")
    assert "\\u" not in told
    for name in () if command in SILENT_ON_NAMES else NAMES:
        assert name in told
    if command in ("show", "apply", "plan", "summary"):
        assert "---" in told
        assert len({len(line) for line in told.splitlines() if line.startswith("  ")}) == 1


@pytest.mark.parametrize(("charset", "column"), [("ascii", 17), ("utf-8", 10)])
def test_the_caret_under_a_name_of_wide_characters(run, charset, column):
    Path("a.kpatch").write_text('"é积" 1', encoding="utf-8")
    assert lines_of(run("check", charset=charset).stdout)[2] == " " * column + "^"
    applied = CliRunner(charset=charset).invoke(main, ["apply", "b.safetensors", "a.kpatch", "--dry-run"])
    assert applied.stderr.splitlines()[3] == " " * column + "^"


def test_the_places_of_differences_in_ascii(run):
    told = run("summary", charset="ascii").stdout
    [row] = [line for line in told.splitlines() if line.startswith("  head.kernel")]
    assert "@@@" in row


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_has_a_line_for_each_row(run, command):
    """Without a terminal a table is as wide as it needs to be."""
    told = run(command, COLUMNS="30").stdout.splitlines()
    for name in NAMES if command in ("show", "plan", "apply", "summary") else ():
        [row] = [line for line in told if name in line]
        assert row.split()[-1] != name
