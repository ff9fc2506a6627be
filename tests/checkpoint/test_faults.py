"""A disk that is full or fails, and files that are replaced, at each call of each way of writing, over each format.

`KPATCH_FAULTS=1` tries every call of every scene; else it is some calls of some scenes.
"""

import errno
import os
import shutil
from pathlib import Path

import pytest
from crash import at_call, differing
from scenes import Scene, names, small_blocks

from kpatch.errors import FileError

pytestmark = [pytest.mark.backend_free, pytest.mark.skipif(not hasattr(os, "pwrite"), reason="asks for POSIX's calls")]
ALL = "KPATCH_FAULTS" in os.environ
SCENES = [name for name in names() if not name.endswith((" log", " show"))][:: 1 if ALL else 7]
STEP = 1 if ALL else 17
FULL, FAILS = "no space left on device", "input/output error"


@pytest.fixture(params=range(len(SCENES)), ids=SCENES)
def scene(request, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    made = Scene(SCENES[request.param], tmp_path)
    made.first = request.param % STEP
    return made


def numbers(scene):
    return range(scene.first, 10_000, STEP)


def run(scene, number, action, last=None):
    """Runs the command with a fault; gives whether it was met, and the error."""
    with at_call(number, action, last) as met:
        try:
            scene.run()
        except FileError as error:
            return met, error
    return met, None


def check(scene, states, error):
    """The files are those before the command, or those after it if there was no error; nothing is left over."""
    scene.recover()
    state = scene.state()
    if scene.how == "over" and error is None:  # journals of the file that was replaced may stay, and undo nothing
        state = {name: data for name, data in state.items() if not name.endswith((".kpatch-undo", ".kpatch-undo-2"))}
    assert state in states, [differing(each, state) for each in states]
    assert not scene.left()
    if scene.how != "recover":  # which was done now
        assert (error is None) == (state == states[-1])


def fail(name, call, args, kwargs):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_disk_that_fails_once(scene):
    states = scene.whole_states()
    for number in numbers(scene):
        scene.reset()
        met, error = run(scene, number, fail)
        if not met:
            break
        assert error is None or error.message.endswith(FAILS), (met, error)
        check(scene, states, error)


def test_a_disk_that_is_full(scene):
    """From some call on nothing more can be written, but into the files that were there before."""
    states = scene.whole_states()
    for number in numbers(scene):
        scene.reset()
        there = {path.stat().st_ino for path in scene.work.rglob("*") if path.is_file()}

        def full(name, call, args, kwargs, there=there):
            new = name in ("mkdir", "link", "io.open") or (name == "open" and len(args) > 1 and args[1] & os.O_CREAT)
            if name in ("pwrite", "copy_file_range", "sendfile"):
                new = os.fstat(args[name == "copy_file_range"]).st_ino not in there
            if new:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        met, error = run(scene, number, full, last=10_000)
        if not met:
            break
        assert error is None or error.message.endswith(FULL), (met, error)
        check(scene, states, error)


SOURCES = (" copy", " copy-one", " copy-journal", " streamed", " diff", " page", " over")


@pytest.mark.parametrize("name", [name for name in SCENES if name.endswith(SOURCES)])
def test_files_that_are_replaced(name, tmp_path, monkeypatch):
    """All that is read, the donor too, becomes another at once: the result is of the old ones, of the new, or none."""
    small_blocks(monkeypatch)
    scene = Scene(name, tmp_path)
    results = []
    for source in (scene.old, scene.other):
        scene.reset(source)
        before = scene.state()
        scene.run()
        results.append({n: data for n, data in scene.state().items() if data != before.get(n)})
    read = [Path(each) for each in scene.state(scene.old)]

    def replace(name, call, args, kwargs):
        for path in read:
            shutil.copy(scene.other / path, scene.folder / "new")
            os.replace(scene.folder / "new", scene.work / path)
        return call(*args, **kwargs)

    for number in range(SCENES.index(name) % STEP, 10_000, STEP):
        scene.reset()
        before = scene.state()
        met, error = run(scene, number, replace)
        if not met:
            break
        scene.recover()
        assert not scene.left()
        found = {n: data for n, data in scene.state().items() if n not in map(str, read) and data != before.get(n)}
        if error is None:
            assert found in results, (met, differing(found, results[0]), differing(found, results[1]))
        else:
            assert "changed since" in error.message or "was there when" in error.message, error
            assert not found, (met, error)
