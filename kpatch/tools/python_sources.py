"""The patch strings in Python code.

Code is parsed by Python's `ast` and never run. Names are looked up as in Python: in the imports and assignments of the
nearest scope that binds them. The functions that take a patch are found by their signatures.
"""

import ast
import codecs
import contextlib
import inspect
import io
import re
import sys
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import kpatch
from kpatch.errors import FileError
from kpatch.names.patches import decode
from kpatch.tools.places import FoundPatch, Lines

MAX_PYTHON = 4 * 2**20  # bytes of a Python file; its tree takes a hundred times as much memory
PARSERS = ("kpatch.parse", "kpatch.Patch", "kpatch.load")
PATHS = ("pathlib.Path", "kpatch.load")  # of a text, the patch file of that name
RAISES = ("raises", "assertRaises", "assertRaisesRegex")  # of pytest and unittest
IGNORE = re.compile(r"#\s*kpatch:\s*ignore\b")
NAMES = ("patch", "patches", "text")  # of the parameters that are patches
OF_WEIGHTS = (
    "kpatch.apply",
    "kpatch.hold",
    "kpatch.callbacks.PatchCallback",
)  # in others' patches activations are named too


class Parameter(NamedTuple):
    """The parameter of a function that is a patch, and the meaning of the patch's names.

    Attributes:
        position, name: of the parameter.
        of_model: whether the names are those of a model.
        activations: whether these may be activations.
        open_names: whether a `$name` may be a part of a name.
    """

    position: int
    name: str
    of_model: bool
    activations: bool = False
    open_names: bool = False


@cache
def takers() -> dict[str, Parameter]:
    """The public functions and classes that take a patch: those with a parameter of one of the `NAMES`, and `Patch`.

    Example:
        >>> takers()["kpatch.apply"]
        Parameter(position=1, name='patch', of_model=True, activations=False, open_names=False)
    """
    found = {"kpatch.Patch": Parameter(0, "statements", of_model=False)}
    for path, names in _signatures():
        for name in filter(names.__contains__, NAMES):
            of_model = names[0] == "model" or path.startswith("kpatch.callbacks.")
            activations = of_model and path not in OF_WEIGHTS
            found[path] = Parameter(names.index(name), name, of_model, activations, path == "kpatch.sweep")
    return found


def _signatures() -> Iterator[tuple[str, list[str]]]:
    """The names of the public functions and classes, with the names of their parameters."""
    for package in (kpatch, kpatch.checkpoint):
        for name in package.__all__:
            thing = getattr(package, name)
            if inspect.isfunction(thing):
                yield f"{package.__name__}.{name}", list(inspect.signature(thing).parameters)
    for module in kpatch.EXTENSIONS:  # importing them would import Keras
        tree = ast.parse(Path(kpatch.__path__[0], f"{module}.py").read_bytes())
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    yield f"kpatch.{module}.{node.name}", [each.arg for each in method.args.args[1:]]


# Scopes --------------------------------------------------------------------------------------------------------------

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*_FUNCTIONS, *_COMPREHENSIONS, ast.ClassDef)
_OUTSIDE = ("decorator_list", "bases", "keywords", "returns")  # parts of a definition that are not in its scope


class _Scope:
    """A module, class, function or comprehension, with the values bound to each of its names.

    A value is an expression, the dotted name of an import, or `None` for anything else, such as a loop variable.
    """

    def __init__(self, node: ast.AST, parent: "_Scope | None" = None) -> None:
        self.node = node
        self.parent = parent
        self.bound: dict[str, list[ast.expr | str | None]] = {}
        self.imports: dict[str, set[str]] = {}
        self.elsewhere: dict[str, list[_Scope]] = {}  # the scopes of its `global` and `nonlocal` names

    def outward(self) -> "Iterator[_Scope]":
        scope: _Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def bind(self, name: str, value: ast.expr | str | None = None) -> None:
        for scope in self.elsewhere.get(name, [self]):
            scope.bound.setdefault(name, []).append(value)
            if isinstance(value, str):
                scope.imports.setdefault(name, set()).add(value)

    def holder(self, name: str) -> "_Scope":
        """The nearest scope that binds the name; methods do not see the names of their class."""
        scopes = (scope for scope in self.outward() if scope is self or not isinstance(scope.node, ast.ClassDef))
        return next((scope for scope in scopes if name in scope.bound), self)

    def path(self, node: ast.AST) -> str:
        """The dotted name of an expression, such as `kpatch.apply`, or the empty string if it was not imported."""
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        # Other values of the name do not count: `except ImportError: kpatch = None`.
        origins = self.holder(node.id).imports.get(node.id, ()) if isinstance(node, ast.Name) else ()
        return ".".join([*origins, *reversed(attributes)]) if len(origins) == 1 else ""

    def value(self, node: ast.expr) -> ast.expr:
        """The expression bound to a name if it is bound exactly once, else the node itself."""
        values = self.holder(node.id).bound.get(node.id, ()) if isinstance(node, ast.Name) else ()
        return values[0] if len(values) == 1 and isinstance(values[0], ast.expr) else node


class _Walk:
    """One pass over a module, without recursion, for the values of all names, the calls and the `with` statements.

    Calls are looked up afterwards: a function can use names that the module binds further down.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.calls: list[tuple[ast.Call, _Scope]] = []
        self.withs: list[tuple[ast.With | ast.AsyncWith, _Scope]] = []
        self._values: dict[ast.AST, ast.expr | None] = {}  # targets that are single names → the value
        stack: list[tuple[ast.AST, _Scope]] = [(tree, _Scope(tree))]
        while stack:
            node, scope = stack.pop()
            self._visit(node, scope)
            stack.extend(reversed(list(_children(node, scope))))

    def _visit(self, node: ast.AST, scope: _Scope) -> None:
        match node:
            case ast.Call():
                self.calls.append((node, scope))
            case ast.With() | ast.AsyncWith():
                self.withs.append((node, scope))
            case ast.Assign():
                self._values.update(dict.fromkeys(node.targets, node.value))
            case ast.AnnAssign() | ast.NamedExpr():
                self._values[node.target] = node.value
            case ast.Import() | ast.ImportFrom():
                _import(node, scope)
            case ast.Global() | ast.Nonlocal():
                # The function that binds a `nonlocal` name is not determined: the name counts as bound in all.
                *functions, module = scope.outward()
                scopes = [module] if isinstance(node, ast.Global) else functions[1:]
                scope.elsewhere.update(dict.fromkeys(node.names, scopes))
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                self._assign(node, name, scope)
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.arg(arg=name)
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
            ):
                scope.bind(name)

    def _assign(self, node: ast.Name, name: str, scope: _Scope) -> None:
        value = self._values.get(node)
        if value is not None:  # `:=` binds outside of comprehensions
            scope = next(each for each in scope.outward() if not isinstance(each.node, _COMPREHENSIONS))
        if value is not None or node not in self._values:  # `name: int` alone binds nothing
            scope.bind(name, value)


def _import(node: ast.Import | ast.ImportFrom, scope: _Scope) -> None:
    for alias in node.names:
        if isinstance(node, ast.Import):
            top = alias.name.partition(".")[0]
            scope.bind(alias.asname or top, alias.name if alias.asname else top)
            continue
        module = "." * node.level + (node.module or "")
        public = [path.removeprefix(f"{module}.") for path in takers()] if alias.name == "*" else [alias.name]
        for name in public:
            if "." not in name:
                scope.bind(alias.asname or name, f"{module}.{name}")


def _children(node: ast.AST, scope: _Scope) -> Iterator[tuple[ast.AST, _Scope]]:
    """The child nodes of a node, with the scope of each."""
    inner = _Scope(node, scope) if isinstance(node, _SCOPES) else scope
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child, scope if name in _OUTSIDE else inner


# Patch strings -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The patches in a file, in order.

    Attributes:
        patches: the patches.
        computed: the number of computed patches, which are not among them.
        files: the names of patch files.
    """

    patches: list[FoundPatch]
    computed: int = 0
    files: tuple[str, ...] = ()


def find(text: str) -> Found:
    """The patch strings in Python code: the string literals passed to one of the `takers`.

    A name counts as its literal if it is bound only to that. These patches are left out:

    * those meant to fail, in the body of a `with pytest.raises(kpatch.PatchError)`;
    * those on a line with `# kpatch: ignore`.

    Args:
        text: the code of a module.

    Returns:
        A `Found`. A literal that is used twice is one patch.

    Raises:
        FileError: the text is not Python.

    Example:
        >>> found = find("import kpatch\\nkpatch.apply(model, 'dense.bias = 1')")
        >>> found.patches[0].text, found.patches[0].region((0, 10))
        ('dense.bias = 1', Extent(line=2, column=22, end_line=2, end_column=32))
    """
    lines = Lines(text)
    walk = _Walk(_parse(lines))
    ignored = _ignored(lines.text)
    failing = {id(node) for each, scope in walk.withs if _meant_to_fail(each, scope) for node in _body(each)}
    literals: dict[ast.Constant, list[Parameter]] = {}
    computed = 0
    files: dict[str, None] = {}
    for call, scope in walk.calls:
        if id(call) in failing or _is_ignored(ignored, call.lineno, call.lineno):
            continue
        path = scope.path(call.func)
        parameter = takers().get(path)
        if path == "kpatch.load" and (name := _file(call, scope)) is not None:
            files[name] = None
        if parameter is None:
            continue
        for node in _arguments(call, parameter, scope):
            if _is_ignored(ignored, node.lineno, node.end_lineno or node.lineno):
                continue
            if isinstance(node, ast.Constant):
                literals.setdefault(node, []).append(parameter)
            elif (name := _file(node, scope)) is not None:
                files[name] = None
            else:
                computed += 1
    ordered = sorted(literals.items(), key=lambda item: (item[0].lineno, item[0].col_offset))
    return Found([_patch(node, lines, taken) for node, taken in ordered], computed, tuple(files))


def _patch(node: ast.Constant, lines: Lines, taken: list[Parameter]) -> FoundPatch:
    """The patch in a literal that is handed in as some parameters; one of them that takes weights alone decides."""
    of_model = [each for each in taken if each.of_model]
    activations = bool(of_model) and all(each.activations for each in of_model)
    return FoundPatch(str(node.value), bool(of_model), lines, node, activations, any(each.open_names for each in taken))


def _file(node: ast.expr, scope: _Scope) -> str | None:
    """The name in `pathlib.Path("prune.kpatch")` and `kpatch.load("prune.kpatch")`."""
    match node:
        case ast.Call(func=function, args=[given], keywords=[]) if scope.path(function) in PATHS:
            match scope.value(given):
                case ast.Constant(value=str(name)):
                    return name
                case ast.Call(func=inner, args=[ast.Constant(value=str(name))]) if scope.path(inner) in PATHS:
                    return name  # kpatch.load(Path("prune.kpatch"))
    return None


def _meant_to_fail(node: ast.With | ast.AsyncWith, scope: _Scope) -> bool:
    """Whether the statement is a `with pytest.raises(...)`, or unittest's, of an error of kpatch."""
    for item in node.items:
        match item.context_expr:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[expected, *_]) if name in RAISES:
                classes = expected.elts if isinstance(expected, ast.Tuple) else [expected]
                if any(re.fullmatch(r"kpatch\..*Error", scope.path(each)) for each in classes):
                    return True
    return False


def _body(node: ast.With | ast.AsyncWith) -> Iterator[ast.AST]:
    for statement in node.body:
        yield from ast.walk(statement)


def _arguments(call: ast.Call, parameter: Parameter, scope: _Scope) -> Iterator[ast.expr]:
    """The patches passed to a call, of a list or dict each: a string literal, or the expression that computes it.

    There are none if there is nothing to check: the patch is missing, is not a string (type checkers report that), or
    is the result of one of the `PARSERS`, whose argument is checked instead.
    """
    stack, seen = [_given(call, parameter)], set()
    while stack:
        given = stack.pop()
        node = None if given is None else scope.value(given)
        if id(node) in seen:  # p = [p]
            continue
        seen.add(id(node))
        match node:
            case ast.Constant(value=value):
                yield from [node] if isinstance(value, str) else []
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Dict(values=items):
                stack.extend(reversed(items))
            case ast.Call(func=function) if scope.path(function) in PARSERS:
                pass
            case ast.Call(func=function) if scope.path(function) in PATHS:
                yield node
            case ast.expr():
                assert given is not None
                yield given


def _given(call: ast.Call, parameter: Parameter) -> ast.expr | None:
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == parameter.name]
    by_place = call.args[: parameter.position + 1]
    starred: list[ast.expr] = [argument for argument in by_place if isinstance(argument, ast.Starred)]
    starred_names = [keyword.value for keyword in call.keywords if keyword.arg is None]
    last = [] if starred else by_place[parameter.position :]
    return next(iter([*by_name, *last, *starred, *starred_names]), None)


def _ignored(text: str) -> list[int]:
    """The lines that end in `# kpatch: ignore`."""
    lines: list[int] = []
    if IGNORE.search(text) is not None:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = (each for each in tokens if each.type == tokenize.COMMENT)
        with contextlib.suppress(tokenize.TokenError, SyntaxError):  # `tokenize` reports some ends of a file as faults
            lines.extend(each.start[0] for each in comments if IGNORE.match(each.string))
    return lines


def _is_ignored(ignored: list[int], first: int, last: int) -> bool:
    return bisect_left(ignored, first) < bisect_right(ignored, last)


# Reading -------------------------------------------------------------------------------------------------------------


def decode_python(data: bytes, name: str) -> str:
    """The text of a Python file, in the encoding that it declares (PEP 263).

    Example:
        >>> decode_python("# coding: latin-1\\nx = 'é'".encode("latin-1"), "a.py")
        "# coding: latin-1\\nx = 'é'"
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        raise FileError(f"'{name}' cannot be read as Python: {error.msg}") from error
    with _without_warnings():
        return decode(data.removeprefix(codecs.BOM_UTF8), name, encoding.removesuffix("-sig"))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """A block without Python's warnings (unknown escapes, ...), which other tools report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _parse(lines: Lines) -> ast.Module:
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        with _without_warnings():
            if sys.version_info < (3, 11):  # `ast.parse` crashes on a tree that `compile` reports as too deep
                compile(lines.text, "the code", "exec", dont_inherit=True)
            return ast.parse(lines.text)
    except SyntaxError as error:
        fault = FileError(f"cannot be read as {python}: {error.msg}")
        if error.lineno is None:
            raise fault from error
        start = lines.offset(error.lineno, error.offset or 1)
        raise fault.locate((start, start + 1), lines.text) from error
    except (RecursionError, MemoryError) as error:
        raise FileError(f"cannot be read as {python}: it is nested too deeply") from error
    except ValueError as error:  # null bytes, lone surrogates
        raise FileError(f"cannot be read as {python}: {error}") from error
