"""Commands that are killed: at each call to the system that writes, half of its sectors written, and by SIGKILL.

`python tests/checkpoint/crash.py DIRECTORY COUNT [SCENE ...]` kills every scene at each such call, and COUNT times at
random moments, and prints how often; with a COUNT of 0 it kills each once. After each kill the files must be those
before the command or those after it: at once if copies are edited, and once the next command has run if files are
edited in place. Nothing may be left over, and what can be undone must lead back.
"""

import builtins
import contextlib
import io
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import scenes

CALLS = (
    "pwrite", "fsync", "fdatasync", "replace", "rename", "unlink", "rmdir", "link", "mkdir", "open", "copy_file_range",
    "ftruncate", "chmod", "sendfile",
)  # fmt: skip
WITH_JOURNAL, UNDONE = ("copy-journal", "over"), ("journal", "recover", "undo", "undo-all")
IN_PLACE = (*UNDONE, "in-place", "discard", "log", "show")


class Lab:
    """A scene, and which states of it may be found."""

    def __init__(self, name, folder):
        self.scene = scenes.Scene(name, folder)
        self.states = self.scene.states()

    def check(self):
        """The number of the state that is found; raises if it is none, or if it leads nowhere."""
        scene = self.scene
        if scene.how not in IN_PLACE:
            self.known(scene.state(), "at once")
        scene.recover()
        number = self.known(scene.state(), "after the next command")
        assert not scene.left(), f"left over: {scene.left()}"
        if scene.how in UNDONE or (scene.how in WITH_JOURNAL and number == len(self.states) - 1):
            found, expected = scene.undone()
            assert found == expected, f"undo leads elsewhere: {differing(found, expected)}"
        return number

    def known(self, state, when):
        if state in self.states:
            return self.states.index(state)
        near = min(self.states, key=lambda each: len(differing(each, state)))
        raise AssertionError(f"{self.scene.name}: a third state {when}: {differing(near, state)}")


def differing(one, other):
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def forked(function):
    """Runs a function in a child process, and gives its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child


@contextlib.contextmanager
def at_call(number, action, last=None):
    """A block in which `action(name, call, args, kwargs)` stands in for the call of that number that writes.

    It stands in for all those up to the number `last`. The block gives the calls for which it did.
    """
    known = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    lock, left, opens, met = threading.Lock(), [0], io.open, []

    def wrapped(name, call):
        def counted(*args, **kwargs):
            with lock:
                now, left[0] = number <= left[0] <= (number if last is None else last), left[0] + 1
            if now:
                met.append(name)
            return action(name, call, args, kwargs) if now else call(*args, **kwargs)

        return counted

    def opened(file, mode="r", *args, **kwargs):
        call = wrapped("io.open", opens) if set(mode) & set("wax+") else opens
        return call(file, mode, *args, **kwargs)

    for name, call in known.items():
        setattr(os, name, wrapped(name, call))
    io.open = builtins.open = opened
    try:
        yield met
    finally:
        io.open = builtins.open = opens
        for name, call in known.items():
            setattr(os, name, call)


def die(name, call, args, kwargs):
    if name == "pwrite":
        descriptor, data, offset = args
        whole = (offset + len(data) // 2) // 512 * 512 - offset  # a sector is written as a whole
        call(descriptor, bytes(data)[: max(0, whole)], offset)
    os._exit(9)


def died_at(scene, number):
    """Runs the command in a child that dies at a call; whether it did."""

    def dying():
        with at_call(number, die):
            scene.run()

    _, status = os.waitpid(forked(dying), 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"{scene.name}: the command fails"
    return code == 9


def at_each_call(lab, numbers=None):
    """Kills the command at its first call, at its second, ... until it gets through; gives how often."""
    for number in numbers or range(100_000):
        lab.scene.reset()
        died = died_at(lab.scene, number)
        try:
            found = lab.check()
        except Exception as error:
            raise AssertionError(f"{lab.scene.name}, killed at call {number}: {error}") from error
        if not died:
            assert found == len(lab.states) - 1
            return number if numbers is None else 0
    return len(numbers)


def at_random(lab, count, rng):
    """Kills the command at random moments; gives how often which state was found."""
    lab.scene.reset()
    start = time.perf_counter()
    os.waitpid(forked(lab.scene.run), 0)
    longest, found = 1.2 * (time.perf_counter() - start), [0] * len(lab.states)
    for _ in range(count):
        lab.scene.reset()
        child = forked(lab.scene.run)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found[lab.check()] += 1
    return found


def main(directory, count, wanted=()):
    scenes.small_blocks()
    rng, total, failed = random.Random(), 0, False
    for number, name in enumerate(wanted or scenes.names()):
        lab = Lab(name, Path(directory, name.replace(" ", "-")))
        try:
            calls = at_each_call(lab) if count else at_each_call(lab, [1 + number * 7 % 20])
            found = at_random(lab, count, rng)
        except AssertionError as error:
            print(f"FAILED {error}", flush=True)  # noqa: T201
            failed = True
            continue
        total += calls + count
        print(f"{name}: killed at {calls} calls and {count} moments, {found}; {total} kills", flush=True)  # noqa: T201
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:]))
