"""What a kill leaves is removed by the next command, and what a process works in is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.checkpoint import workplaces
from kpatch.errors import FileError

pytestmark = [pytest.mark.backend_free, pytest.mark.skipif(os.name != "posix", reason="signals")]

KILLED = """
import os, signal, sys
from kpatch import checkpoint
from kpatch.checkpoint import editor
editor.Editor.finish = lambda self: (print("ready", flush=True), sys.stdin.read(), None)[-1]
checkpoint.apply("a.safetensors", "w = 1", **eval(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros(5, "float32")}, "a.safetensors")
    return tmp_path


def started(**options):
    """A process in the middle of an edit."""
    code = [sys.executable, "-c", KILLED, repr(options)]
    environ = {**os.environ, "KERAS_BACKEND": "numpy"}
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process, how):
    if how == "killed":
        process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_copy_that_was_killed():
    process = started(out="b.safetensors")
    [folder] = Path().glob(".kpatch-*")
    checkpoint.open("a.safetensors")
    assert folder.is_dir(), "somebody works in it"
    ended(process, "killed")
    assert folder.is_dir()
    checkpoint.open("a.safetensors")
    assert os.listdir() == ["a.safetensors"]


def test_two_processes_take_turns():
    process = started(in_place=True)
    with pytest.raises(FileError, match="is being edited by another process"):
        checkpoint.apply("a.safetensors", "w = 2", in_place=True)
    ended(process, "let go")
    assert process.returncode == 0
    checkpoint.apply("a.safetensors", "w[0] = 2", in_place=True)
    assert (checkpoint.open("a.safetensors")["w"][0], os.listdir()) == (2, ["a.safetensors"])


def test_folders_of_others_stay(here):
    names = [".kpatch-notes", ".kpatch-ABCDEFGH", ".kpatch-abcdefgh.d", "kpatch-abcdefgh"]
    for name in names:
        (here / name).mkdir()
    (here / ".kpatch-12345678").write_text("a file")
    (here / ".kpatch-87654321").symlink_to(here / names[0])
    before = sorted(os.listdir())
    checkpoint.open("a.safetensors")
    assert sorted(os.listdir()) == before


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(here, monkeypatch):
    locked, made = workplaces._lock, []

    def slow(folder):
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()
        return locked(folder)

    monkeypatch.setattr(workplaces, "_lock", slow)
    with workplaces.workplace(here) as folder:
        assert (folder, folder.is_dir()) == (made[1], True)
    assert os.listdir() == ["a.safetensors"]


def test_a_system_without_locks_removes_old_folders(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name, age in ((".kpatch-aaaaaaaa", 1), (".kpatch-bbbbbbbb", 2 * workplaces.DAY)):
        (here / name).mkdir()
        os.utime(here / name, (time.time() - age,) * 2)
    workplaces.sweep(here)
    assert sorted(os.listdir()) == [".kpatch-aaaaaaaa", "a.safetensors"]
