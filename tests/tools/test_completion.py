"""What the Tab key completes."""

import numpy as np
import pytest
from click.shell_completion import ShellComplete, get_completion_class
from safetensors.numpy import save_file

from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free


@pytest.fixture
def completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({name: np.zeros(2) for name in ("head.kernel", "head.bias", "conv-1.bias")}, "a.safetensors")

    def complete(*words):
        *args, incomplete = words
        found = ShellComplete(main, {}, "kpatch", "_KPATCH_COMPLETE").get_completions(args, incomplete)
        return [item.value if item.type == "plain" else item.type for item in found]

    return complete


def test_a_selector(completed):
    assert completed("show", "a.safetensors", "head.") == ["head.bias", "head.kernel"]
    assert completed("show", "--stats", "a.safetensors", '"con') == ['"conv-1".bias']
    assert completed("show", "a.safetensors", "tail") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ['"conv-1".bias', "head.bias", "head.kernel"]),
        ("head.k", ["head.kernel"]),
        ("head.bias[0] = 1; head.k", ["head.bias[0] = 1; head.kernel"]),
        ("head.bias = 2 * head.k", ["head.bias = 2 * head.kernel"]),
        ("head.bias = mean(head.k", ["head.bias = mean(head.kernel"]),
        ("head.bias = $donor.head.k", []),
        ("head.bias = $", []),
        ("head.bias = 1.", []),
        ('"conv-1".b', ['"conv-1".bias']),
        ("head.bias[0]", []),
    ],
)
def test_the_name_at_the_end_of_statements(completed, text, expected):
    assert completed("apply", "a.safetensors", "-e", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head.kernel = $", ["head.kernel = $b", "head.kernel = $v"]),
        ("head.kernel = $b.he", ["head.kernel = $b.head.bias", "head.kernel = $b.head.kernel"]),
        ("head.kernel = $b.", [f"head.kernel = $b.{name}" for name in ('"conv-1".bias', "head.bias", "head.kernel")]),
        ("head.kernel = $v.", []),
        ("head.kernel = $c.", []),
        (
            "head.kernel = $b.head.kernel + hea",
            [f"head.kernel = $b.head.kernel + {n}" for n in ("head.bias", "head.kernel")],
        ),
    ],
)
def test_names_behind_a_binding(completed, text, expected):
    assert completed("apply", "a.safetensors", "--bind", "b=@a.safetensors", "--bind", "v=3", "-e", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["scale=", "other="]),
        ("o", ["other="]),
        ("other=", []),
        ("other=3", []),
        ("other=@", ["other=@a.safetensors", "other=@sub/", "other=@v.npz"]),
        ("other=@a", ["other=@a.safetensors"]),
        ("other=@sub/", ["other=@sub/b.keras"]),
        ("other=@none/", []),
        ("other=@v.npz:", ["other=@v.npz:one", "other=@v.npz:two"]),
        ("other=@a.safetensors:c", ["other=@a.safetensors:conv-1.bias"]),
        ("other=@sub/b.keras:c", []),
        ("other=@notes.txt:c", []),
    ],
)
def test_bindings(completed, tmp_path, text, expected):
    np.savez("v.npz", one=1, two=2)
    (tmp_path / "sub").mkdir()
    for name in ("sub/b.keras", "notes.txt"):
        (tmp_path / name).write_text("no")
    (tmp_path / "p.kpatch").write_text("head.bias = $scale * $other + $known")
    assert completed("apply", "a.safetensors", "p.kpatch", "--bind", "known=1", "--bind", text) == expected
    assert completed("apply", "a.safetensors", "--bind", "known=1", "p.kpatch", "--bind", text) == expected


@pytest.mark.parametrize(
    ("line", "current", "expected"),
    [
        ("kpatch apply a.safetensors --bind v=@a.safetensors:head.b", "head.b", ["plain,head.bias"]),
        (
            "kpatch apply a.safetensors --bind 'v=@a.safetensors:head.b",
            "v=@a.safetensors:head.b",
            ["plain,v=@a.safetensors:head.bias"],
        ),
        ("kpatch apply a.safetensors --bind v=@", "", ["plain,a.safetensors"]),
        ("kpatch apply a.safetensors --bind v=@a", "a", ["plain,a.safetensors"]),
        (
            "kpatch apply a.safetensors -e 'head.bias = max(0, hea",
            "head.bias = max(0, hea",
            ["plain,head.bias = max(0, head.bias", "plain,head.bias = max(0, head.kernel"],
        ),
        ("kpatch apply a.safetensors -e head.bias=conv", "conv", []),
        ("kpatch apply a.safetensors -e head.bias=head.k", "head.k", ["plain,head.kernel"]),
        ("kpatch show a.safetensors ", "", ['plain,"conv-1".bias', "plain,head.bias", "plain,head.kernel"]),
        ("kpatch sh", "sh", ["plain,show"]),
        ("kpatch show a.s", "a.s", ["file,a.s"]),
    ],
)
def test_bash_cuts_words(completed, monkeypatch, line, current, expected):
    """What bash replaces is its own last word, which begins behind `=`, `@` or `:`."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_CURRENT", current)
    assert get_completion_class("bash")(main, {}, "kpatch", "_KPATCH_COMPLETE").complete().splitlines() == expected


def test_files(completed):
    assert completed("apply", "a.") == ["file"]
    assert completed("apply", "a.safetensors", "pru") == ["file"]
    assert completed("check", "sr") == ["file"]
    assert completed("apply", "a.safetensors", "-e", "head.bias = 0", "-o", "b") == ["file"]


def test_commands_and_options(completed):
    assert completed("u") == ["undo"]
    assert "--json" in completed("apply", "--j")


def test_what_cannot_be_read_has_no_names(completed, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    for name in ("missing.safetensors", "damaged.safetensors", "."):
        assert completed("show", name, "head") == []
        assert completed("apply", name, "-e", "head") == []


def test_no_code_runs(completed, tmp_path):
    (tmp_path / "own_module.py").write_text("open('ran', 'w').close()", encoding="utf-8")
    assert completed("show", "--import", "own_module", "a.safetensors", "head.b") == ["head.bias"]
    assert not (tmp_path / "ran").exists()


def test_an_edit_that_was_cut_off_is_left_to_commands(completed, tmp_path):
    """A completion writes nothing: it plays back no journal."""
    cut_off = tmp_path / ".a.safetensors.kpatch-journal"
    cut_off.write_bytes(b"of an edit")
    assert completed("show", "a.safetensors", "head.b") == ["head.bias"]
    assert cut_off.read_bytes() == b"of an edit"
