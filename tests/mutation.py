"""Mutation testing: a random sample of cosmic-ray's mutants of each room, and whether the room's tests fail for each.

    python tests/mutation.py [ROOM ...] [--session FILE] [--only TEXT]

cosmic-ray makes the mutants and keeps the results (`cr-report FILE` and `cr-html FILE` read them). Its own runner
starts a Python with Keras for each mutant; here each is a fork of one process that has imported Keras, and gets the
mutated module from memory, so that no file changes.
"""

import argparse
import ast
import collections
import contextlib
import difflib
import gc
import importlib.util
import io
import os
import pathlib
import pickle
import random
import re
import signal
import sys
import tempfile
import time
import types
from importlib.machinery import SourceFileLoader

os.environ.update(
    KERAS_BACKEND="numpy", TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu", CI="1"
)  # CI: one Hypothesis seed
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hypothesis  # noqa: F401 (imported once, for all forks)
import keras  # noqa: F401
import pytest
import tomllib
from cosmic_ray import mutating, plugins
from cosmic_ray.commands import init
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

CRASHED = 70  # the exit status of a fork that ended by an exception
CONFIGURATION = pathlib.Path(__file__).with_suffix(".toml")


class Tests:
    """A pytest plugin that measures tests: the seconds of each, and the functions of the room that it calls."""

    def __init__(self, modules):
        self.files = {os.path.abspath(module) for module in modules}
        self.seconds = {}
        self.calls = {}
        self.failed = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        called = self.calls[item.nodeid] = set()

        def note(frame, event, argument):
            code = frame.f_code
            if code.co_filename in self.files:
                called.add((code.co_filename, code.co_firstlineno))

        sys.settrace(note)
        yield
        if sys.gettrace() is not note:  # the test traces by itself: nobody knows what it called
            called.add(None)
        sys.settrace(None)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)


class Chosen:
    """A pytest plugin that runs the given tests alone, in their order, and notes the first that fails."""

    def __init__(self, tests, file):
        self.order = {test: place for place, test in enumerate(tests)}
        self.file = file

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order), key=lambda item: self.order[item.nodeid]
        )

    def pytest_runtest_logreport(self, report):
        if report.failed:
            pathlib.Path(self.file).write_text(report.nodeid)


class Mutated(SourceFileLoader):
    """Finds and loads one module, from a text in memory."""

    def __init__(self, path, source):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        super().__init__(name, os.path.abspath(path))
        self.source = source

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec", dont_inherit=True)

    def install(self, definition, imported):
        """Gives the mutated function its new code; without one, forgets what was `imported`, to import the mutant."""
        if definition is not None:
            new = next(code for code in _codes(self.get_code(self.name)) if _place(code) == definition)
            found = [f for f in gc.get_objects() if type(f) is types.FunctionType and _place(f.__code__) == definition]
            for function in found:
                function.__code__ = new
            if found:
                return
        sys.meta_path.insert(0, self)
        for name in imported:
            del sys.modules[name]


def _place(code):
    return code.co_filename, code.co_firstlineno, code.co_name


def _codes(code):
    """The code of a module, and of everything that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def forked(function, timeout):
    """The exit status of `function()` in a fork whose output goes nowhere; `None` if it took too long."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = CRASHED
        try:
            status = int(function())
        finally:
            os._exit(status)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def tested(tests, plugin, *options):
    return pytest.main(["-q", "-p", "no:cacheprovider", *options, *tests], plugins=[plugin] if plugin else [])


def imports(tests):
    """Imports test files, for all forks; gives the names of this project's modules."""
    with contextlib.redirect_stdout(io.StringIO()):
        tested(tests, None, "--collect-only")
    own = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    return [name for name, file in own.items() if name != "__main__" and file.startswith(f"{ROOT}{os.sep}")]


def measured(tests, options, modules, longest):
    """The seconds of each test, and the functions that it calls; without slow tests, and those that fail anyway."""
    with tempfile.NamedTemporaryFile() as file:

        def measure():
            plugin = Tests(modules)
            tested(tests, plugin, *options)
            pathlib.Path(file.name).write_bytes(pickle.dumps((plugin.seconds, plugin.calls, plugin.failed)))
            return 0

        forked(measure, 3600)
        seconds, calls, failed = pickle.loads(pathlib.Path(file.name).read_bytes())
    for test in sorted(failed):
        print(f"left out, as it fails without a mutant: {test}", flush=True)
    return {test: (seconds[test], calls[test]) for test in seconds if test not in failed and seconds[test] < longest}


def functions_around(module, line):
    """The functions that hold a line, from the outermost on: their nodes, and the lines where they begin."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= node.end_lineno:
                yield node, first


def definition_of(mutation):
    """The file, line and name of the outermost function whose body is mutated, or `None`."""
    line = mutation.start_pos[0]
    for node, first in functions_around(mutation.module_path, line):
        return (os.path.abspath(mutation.module_path), first, node.name) if line >= node.body[0].lineno else None
    return None


def tests_of(mutation, known, kills):
    """The tests that call the mutated function, or all if it is in none: first what killed most, then the quickest."""
    path, line = os.path.abspath(mutation.module_path), mutation.start_pos[0]
    functions = {(path, first) for _, first in functions_around(mutation.module_path, line)}
    chosen = [test for test, (_, calls) in known.items() if not functions or calls & {*functions, None}]
    return sorted(chosen, key=lambda test: (-kills[mutation.module_path, test], known[test][0]))


def sample(room, configuration, path):
    """The session of a room: its file has all mutants, the work is a random part of them."""
    modules = sorted(file for pattern in room["modules"] for file in pathlib.Path().glob(pattern))
    work = WorkDB(path, WorkDB.Mode.create)
    init(modules, work, {})
    skipped = re.compile("|".join(configuration["skipped_operators"]))
    items = [item for item in work.work_items if not skipped.fullmatch(item.mutations[0].operator_name)]
    items.sort(key=_identity)
    random.Random(configuration["seed"]).shuffle(items)
    chosen = items[: room["sample"]]
    work.clear()
    work.add_work_items(chosen)
    return work, chosen, len(items)


def _identity(item):
    [mutation] = item.mutations
    return str(mutation.module_path), mutation.operator_name, mutation.occurrence


def mutant(mutation):
    """The mutated module, and the lines that differ."""
    old = mutation.module_path.read_text()
    operator = plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    new = mutating.mutate_code(old, operator, mutation.occurrence)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return new, [line for line in lines if not line.startswith(("---", "+++"))]


def run(name, configuration, session, only):
    room = configuration["rooms"][name]
    files = [test for test in room["tests"] if pathlib.Path(test).exists()]
    work, chosen, count = sample(room, configuration, f"{session}-{name}.sqlite")
    imported = imports(files)
    modules = {item.mutations[0].module_path for item in chosen}
    known = measured(files, room.get("options", ()), modules, configuration["longest"])
    print(f"{name}: {len(chosen)} of {count} mutants, {len(known)} tests", flush=True)
    survived, kills = 0, collections.Counter()
    for number, item in enumerate(chosen):
        mutation = item.mutations[0]
        source, diff = mutant(mutation)
        if only and not any(only in line for line in diff):
            continue
        start = time.monotonic()
        tests = tests_of(mutation, known, kills)
        lives, killer = survives(mutation, source, tests, imported, configuration["timeout"])
        kills[mutation.module_path, killer] += 1
        survived += lives
        outcome = TestOutcome.SURVIVED if lives else TestOutcome.KILLED
        work.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, diff="\n".join(diff), test_outcome=outcome))
        seconds = time.monotonic() - start
        print(f"{number:3} {seconds:4.1f} s {mutation.module_path}: {outcome.value} by {len(tests)} tests")
        if lives:
            print(*diff, sep="\n")
        sys.stdout.flush()
    print(f"{name}: {survived} of {len(chosen)} survived", flush=True)


def survives(mutation, source, tests, imported, timeout):
    """Whether the tests pass with the mutant, and the test that failed."""
    if not tests:
        return True, None
    with tempfile.NamedTemporaryFile("r") as file:

        def mutated():
            Mutated(mutation.module_path, source).install(definition_of(mutation), imported)
            files = sorted({test.partition("::")[0] for test in tests})
            return tested(files, Chosen(tests, file.name), "-x")

        status = forked(mutated, timeout)
        if status in (CRASHED, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise RuntimeError(f"the tests of a mutant did not run: {mutation}")
        return status == 0, file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*")
    parser.add_argument("--session", default=os.path.join(tempfile.gettempdir(), "kpatch-mutants"))
    parser.add_argument("--only", help="only the mutants of the sample whose lines hold this text")
    arguments = parser.parse_args()
    configuration = tomllib.loads(CONFIGURATION.read_text())
    for name in arguments.rooms or configuration["rooms"]:
        run(name, configuration, arguments.session, arguments.only)


if __name__ == "__main__":
    main()
