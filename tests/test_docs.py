"""The documents: every example in them runs, on the backend of this process, and what they say of the code holds.

* `python`: runs, one namespace a page; a `text` block right after it is what it prints, a `PatchError` included. After
  a first line `# name.py` it is the file of that name, and does not run; after `# on jax` it runs on jax alone.
* `kpatch`: after a first line `# _ is [1, 2, 3], int8` each statement alone edits that tensor, and the comment beside
  it is the result, or the error. Other blocks are applied to the page's `model` as one patch, those whose lines have
  errors beside them line by line.
* `console`: the commands of kpatch run, in a directory that holds `examples/`, and print what follows them.

* The page of functions is the table of `kpatch/functions/`, whose examples run, of literals and of tensors.

`python tests/test_docs.py` writes `docs/functions.md` anew, of the package beside it.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import kpatch
from kpatch.functions import TABLE
from kpatch.functions.operands import strong
from kpatch.functions.parameters import Numeric, Operands, Tensor, Tensors
from kpatch.run.evaluate import Scope, evaluate
from kpatch.syntax import ast as nodes
from kpatch.values.tensors import to_numpy

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGE, ARCHITECTURE, ERRORS, FUNCTIONS = (
    ROOT / "docs" / f"{name}.md" for name in ("language", "architecture", "errors", "functions")
)
PACKAGE = ROOT / "kpatch"
EXTENSIONS = ("callbacks", "constraints", "initializers", "layers")
KERAS_AT_THE_TOP = {f"kpatch.{name}" for name in ("inside.dynamo", *EXTENSIONS)}


class Block(NamedTuple):
    """A fenced block of a page. `output` is the `text` block right after it, or `None`."""

    language: str
    body: str
    line: int
    output: str | None


def blocks(text):
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for block, following in zip(found, [*found[1:], None], strict=False):
        close = following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
        line = text.count("\n", 0, block.start(2)) + 1
        yield Block(block[1], block[2], line, following[2] if close else None)


def section(text, title):
    """What stands under a heading, up to the next of its level."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def trimmed(text):
    """The text without the spaces at the ends of its lines, and without empty lines before and after."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


# Examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples(path, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    monkeypatch.chdir(tmp_path)
    namespace, failures = {}, []
    for block in blocks(path.read_text(encoding="utf-8")):
        run = RUNNERS.get(block.language, lambda *_: ())
        for got, expected in run(block, namespace):
            if got != expected:
                failures.append(f"{path.name}, line {block.line}\ngot:\n{got}\nexpected:\n{expected}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.backend_free
def test_notebooks_are_kept_without_outputs():
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path


def test_the_first_notebook(tmp_path, monkeypatch):
    """The cells run; one with the tag `raises-exception` raises a `PatchError`. `tox -e docs` runs all notebooks."""
    path = ROOT / "docs" / "notebooks" / "first_edit.ipynb"
    pytest.importorskip("matplotlib").use("Agg")
    (tmp_path / "docs" / "notebooks").mkdir(parents=True)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "digits.keras", tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "docs" / "notebooks")
    namespace = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), path.name, "exec")
            if "raises-exception" in cell["metadata"].get("tags", ()):
                with pytest.raises(kpatch.PatchError):
                    exec(code, namespace)  # noqa: S102
            else:
                exec(code, namespace)  # noqa: S102


def run_python(block, namespace):
    if file := re.match(r"# (\w+\.py)\n", block.body):
        Path(file[1]).write_text(block.body, encoding="utf-8")
        return
    if (on := re.match(r"# on (\w+)\n", block.body)) and on[1] != keras.backend.backend():
        return
    code = compile("\n" * (block.line - 1) + block.body, "the page", "exec")  # so that a traceback names the line
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, namespace)  # noqa: S102
        except kpatch.PatchError as error:
            out.write(f"kpatch.{type(error).__name__}: {error}\n")
    yield trimmed(out.getvalue()), trimmed(block.output or "")


def run_patch(block, namespace):
    first, *others = block.body.strip().splitlines()
    given = re.fullmatch(r"# _ is (.*?)(?:, (\w+))?", first)
    if given:
        for line in filter(None, others):
            yield edited(given[1], given[2] or "float32", line)
        return
    refused = [line.rpartition("  # ") for line in block.body.splitlines() if re.search(r"  # \w+Error: ", line)]
    for statement, _, expected in refused:
        yield outcome(lambda text=statement: kpatch.apply(namespace["model"], text)), expected
    if not refused:
        yield outcome(lambda: kpatch.apply(namespace["model"], block.body).undo()), None


def edited(given, dtype, line):
    """What a line of a block does to the tensor that the block gives, and what it says that it does."""
    from keras import ops

    statement, _, expected = line.rpartition("  # ")
    got = outcome(lambda: kpatch.edit(ops.convert_to_tensor(values(given), dtype), statement))
    if not isinstance(got, str):
        assert ops.dtype(got) == dtype
        same = np.array_equal(to_numpy(got), np.array(values(expected)), equal_nan=True)
        got = expected if same else to_numpy(got).tolist()
    return f"{statement.strip()}: {got}", f"{statement.strip()}: {expected}"


def run_commands(block, namespace):
    from click.testing import CliRunner

    from kpatch.tools.command_line import main

    for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        words = shlex.split(command.rpartition("&& ")[2])
        if words[0] == "kpatch":
            yield trimmed(CliRunner().invoke(main, words[1:]).output), trimmed(output)


RUNNERS = {"python": run_python, "kpatch": run_patch, "console": run_commands}


def values(text):
    return json.loads(re.sub(r"\bnan\b", "NaN", re.sub(r"\binf\b", "Infinity", text)))


def outcome(function):
    try:
        return function()
    except kpatch.PatchError as error:
        return f"{type(error).__name__}: {error.message}"


# The language --------------------------------------------------------------------------------------------------------


FUNCTIONS_HEAD = """\
# The functions

Names, arguments and meaning are those of the same functions in `keras.ops`. [The language](language.md#functions) says
how they are called, and by which [rules](language.md#types-and-numbers) they compute. `None` as a default means that
the argument was not given, and arguments after `*` are given by name.

Every example is a test on each backend, of literals and of tensors: what it `is`, it is to the bit, and where it `is
about` something, to the digits shown.
"""


def functions_page():
    """The page that the table makes."""
    groups = {}
    for function in TABLE.values():
        verb = "is" if function.exact else "is about"
        entry = f"- `{function.name}({function.signature})`: {function.description}."
        example = f"  Example: `{function.example}` {verb} `{function.result}`."
        groups.setdefault(function.group, []).append(f"{entry}\n{example}")
    return "\n".join([FUNCTIONS_HEAD, *(f"## {group}\n\n" + "\n".join(made) + "\n" for group, made in groups.items())])


@pytest.mark.backend_free
def test_the_page_of_functions_is_the_table():
    assert FUNCTIONS.read_text(encoding="utf-8") == functions_page(), "python tests/test_docs.py writes it anew"


@pytest.mark.backend_free
def test_the_language_names_the_groups_of_functions():
    text = " ".join(section(LANGUAGE.read_text(encoding="utf-8"), "Functions").split())
    groups = list(dict.fromkeys(function.group for function in TABLE.values()))
    assert f"There are these groups: {'; '.join(groups)}." in text


@pytest.mark.parametrize("of_tensors", [False, True], ids=["literals", "tensors"])
@pytest.mark.parametrize("function", TABLE.values(), ids=TABLE)
def test_examples_of_functions(function, of_tensors):
    node = kpatch.parse(f"_ = {function.example}").statements[0].value
    scope = Scope(look_up=None)
    found = evaluate(with_tensors(node, scope) if of_tensors else node, scope)
    data, expected = to_numpy(found.data), np.array(values(function.result))
    if function.exact:
        np.testing.assert_array_equal(data, expected.astype(data.dtype))
    else:
        np.testing.assert_allclose(data, expected, rtol=5e-6, atol=1e-6)


def with_tensors(call, scope):
    """The call with its lists, where it takes tensors, as locals that are tensors: int32, float32 or bool."""

    def bound(node):
        name = f"t{len(scope.locals)}"
        [scope.locals[name]] = strong(evaluate(node, scope))
        return nodes.Local(name)

    arguments, parameters = [], list(TABLE[call.function].parameters.values())
    for place, argument in enumerate(call.arguments):
        named = TABLE[call.function].parameters.get(argument.name)
        kind, value = (named or parameters[min(place, len(parameters) - 1)]).annotation, argument.value
        if kind == Tensors:
            value = nodes.List(tuple(map(bound, value.items)))
        elif kind in (Tensor, Numeric, Operands) and isinstance(value, nodes.List):
            value = bound(value)
        arguments.append(nodes.Argument(argument.name, value))
    return nodes.Call(call.function, tuple(arguments))


@pytest.mark.backend_free
def test_limits_are_those_of_the_code():
    limits = section(LANGUAGE.read_text(encoding="utf-8"), "Limits")
    rows = re.findall(r"^\| ([\d,]+) \|.*\| `([\w.]+)` \|$", limits, re.MULTILINE)
    assert len(rows) > 5
    for number, name in rows:
        module, _, constant = name.rpartition(".")
        assert getattr(import_module(module), constant) == int(number.replace(",", "")), name


@pytest.mark.backend_free
def test_each_error_has_its_section():
    headings = re.findall(r"^## (\w+)$", ERRORS.read_text(encoding="utf-8"), re.MULTILINE)
    public = [name for name in kpatch.__all__ if name.endswith("Error")]
    assert sorted(headings) == sorted(public)


# The architecture ----------------------------------------------------------------------------------------------------

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(name):
    """The modules that a module imports: pairs of a name, and whether that is inside a function."""

    def visit(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue  # it never runs
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                full = (f"{child.module}.{alias.name}" for alias in child.names)
                yield from ((each if each in MODULES else child.module, lazy) for each in full)
            else:
                yield from visit(child, lazy or isinstance(child, ast.FunctionDef))

    yield from visit(ast.parse(MODULES[name].read_text(encoding="utf-8")), False)


def drawn_order():
    """The modules in the order in which the page draws them."""
    drawing = next(blocks(section(ARCHITECTURE.read_text(encoding="utf-8"), "The modules"))).body
    paths = re.findall(r"^ *([\w/]+\.py)\b", drawing, re.MULTILINE)
    return [("kpatch/" + path)[:-3].replace("/", ".").removesuffix(".__init__") for path in paths]


@pytest.mark.backend_free
def test_every_module_is_drawn_once():
    assert sorted(drawn_order()) == sorted(MODULES)


@pytest.mark.backend_free
def test_imports_run_down_the_drawing():
    place = {name: number for number, name in enumerate(drawn_order())}
    upward = {
        (name, other)
        for name in MODULES
        for other, lazy in imported(name)
        if other in place and place[other] < place[name] and not lazy
    }
    assert not upward


@pytest.mark.backend_free
def test_imports_up_the_drawing_are_stated_and_lazy():
    place = {name: number for number, name in enumerate(drawn_order())}
    lazy = {
        f"{name} → {other}".replace("kpatch.", "")
        for name in MODULES
        for other, _ in imported(name)
        if other in place and place[other] < place[name]
    }
    stated = re.findall(r"`(\w+(?:\.\w+)* → \w+(?:\.\w+)*)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert sorted(stated) == sorted(lazy)


def test_no_imports_run_in_a_circle():
    """Neither do those inside functions."""
    graph = {name: {other for other, _ in imported(name) if other in MODULES} - {name} for name in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises a CycleError


def test_rooms_and_files_stay_small():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 20
    long = {name for name, path in MODULES.items() if path.read_text(encoding="utf-8").count("\n") > 500}
    assert not long


def test_no_two_classes_share_a_name():
    named = [
        node.name
        for path in MODULES.values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(named).items() if count > 1] == []


@pytest.mark.backend_free
def test_the_definition_shown_is_that_of_the_code():
    [shown] = [block.body for block in blocks(ARCHITECTURE.read_text(encoding="utf-8")) if block.language == "py"]
    assert shown in (PACKAGE / "functions" / "along.py").read_text(encoding="utf-8")


@pytest.mark.backend_free
def test_what_knows_nothing_of_keras():
    for name in MODULES:
        if name == "kpatch.errors" or name.startswith(("kpatch.indexing", "kpatch.syntax")):
            found = {other.partition(".")[0] for other, _ in imported(name)}
            assert not found & {"keras", "jax", "torch", "tensorflow"}, name


@pytest.mark.backend_free
def test_no_module_loads_a_backend_before_it_is_needed():
    for name in MODULES:
        eager = {other.partition(".")[0] for other, lazy in imported(name) if not lazy}
        if not name.startswith("kpatch.backends.") and name not in KERAS_AT_THE_TOP:
            assert not eager & {"keras", "jax", "torch", "tensorflow"}, name


def asks_for_the_backend(node):
    """Whether a node calls Keras's `backend()`, or compares something with a backend's name."""
    if isinstance(node, ast.Call):
        return getattr(node.func, "attr", getattr(node.func, "id", None)) == "backend"
    names = {"numpy", "jax", "torch", "tensorflow", "openvino"}
    return isinstance(node, ast.Compare | ast.MatchValue) and any(
        isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node)
    )


@pytest.mark.backend_free
def test_only_backends_ask_which_one_is_present():
    """The rest asks `backends.current()` for a fact or a function, so that a new backend is one new file."""
    asked = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        if not name.startswith("kpatch.backends")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if asks_for_the_backend(node)
    ]
    assert not asked


@pytest.mark.backend_free
def test_what_imports_a_backend_beside_their_own_files():
    """Torch alone: for what dynamo calls, and for bfloat16 tensors of torch handed in on another backend."""
    found = {
        name
        for name in MODULES
        for other, _ in imported(name)
        if other.partition(".")[0] in {"jax", "torch", "tensorflow"}
    }
    assert {name for name in found if not name.startswith("kpatch.backends.")} == {
        "kpatch.inside.dynamo",
        "kpatch.names.bindings",
    }


if __name__ == "__main__":
    FUNCTIONS.write_text(functions_page(), encoding="utf-8")
