"""Patches in files: patch files, and the patch strings in Python code with the place of each of their characters.

Python code is read by Python's own `ast`, never run. Which calls take a patch is the table `CALLS`; what a name stands
for is looked up as Python would: in the imports and assignments of the nearest scope that binds it.
"""

import ast
import codecs
import contextlib
import io
import re
import sys
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from kpatch.errors import FileError, reason

MAX_PYTHON = 4 * 2**20  # bytes in a Python file; its tree takes a hundred times as much memory
MAX_CHAIN = 10_000  # operators in a row, where Python itself has no bound
MAX_PATCH = 64 * 2**20  # bytes in a patch file: what `parse` reads takes no more


class Parameter(NamedTuple):
    """Which argument of a call is a patch, and whether the names in it are those of a model."""

    position: int
    name: str
    of_model: bool


CALLS = {
    "kpatch.parse": Parameter(0, "text", of_model=False),
    "kpatch.plan": Parameter(1, "patch", of_model=True),
    "kpatch.apply": Parameter(1, "patch", of_model=True),
    "kpatch.edit": Parameter(1, "patch", of_model=False),
    "kpatch.checkpoint.plan": Parameter(1, "patch", of_model=False),
    "kpatch.checkpoint.apply": Parameter(1, "patch", of_model=False),
    "kpatch.hold": Parameter(1, "patch", of_model=True),
    "kpatch.rewrite": Parameter(1, "patch", of_model=False),
    "kpatch.intervene": Parameter(1, "patch", of_model=False),
    "kpatch.layers.ScatterLayer": Parameter(0, "patch", of_model=False),
    "kpatch.layers.PatchedLayer": Parameter(1, "patch", of_model=False),
    "kpatch.initializers.PatchedInitializer": Parameter(0, "patch", of_model=False),
    "kpatch.constraints.PatchConstraint": Parameter(0, "patch", of_model=False),
}
RAISES = ("raises", "assertRaises", "assertRaisesRegex")  # of pytest and unittest
IGNORE = re.compile(r"#\s*kpatch:\s*ignore\b")


# Files ---------------------------------------------------------------------------------------------------------------


def read(name: str, limit: int = MAX_PATCH) -> bytes:
    """The content of a file; `-` is standard input.

    Raises:
        FileError: it cannot be read, or is longer than the limit.
    """
    try:
        if name == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(data) > limit:
        raise FileError(f"'{name}' is too long: it has more than {limit:,} bytes")
    return data


def unreadable(name: str, error: OSError) -> FileError:
    return FileError(f"cannot read '{name}': {reason(error)}")


def decode(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """The text that the bytes of a file mean.

    Example:
        >>> decode(b"a.b = 1", "a.kpatch")
        'a.b = 1'
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise FileError(f"'{name}' is not {encoding.upper()} text: byte {error.start} is 0x{byte:02x}") from error
    except (LookupError, ValueError) as error:  # codecs that are not for text, or decode by rules of their own
        raise FileError(f"'{name}' is not {encoding.upper()} text: {error}") from error


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
    """Unknown escapes and the like are for other tools to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Places --------------------------------------------------------------------------------------------------------------


class Region(NamedTuple):
    """A stretch of a file. Lines and columns count from 1, columns in characters; the end is the place after it."""

    line: int
    column: int
    end_line: int
    end_column: int


class Lines:
    """A text with its newlines made LF, and where each line starts in it."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in self.text.split("\n"))]
        self._bytes: dict[int, list[int]] = {}  # of each line asked for: where its characters start in its UTF-8

    def place(self, offset: int) -> tuple[int, int]:
        """The line and the column of an offset."""
        line = bisect_right(self._starts, offset, 0, len(self._starts) - 1)
        return line, offset - self._starts[line - 1] + 1

    def offset(self, line: int, column: int) -> int:
        """The offset of a line and a column, both from 1, or of the nearest place there is."""
        line = min(max(line, 1), len(self._starts) - 1)
        return min(self._starts[line - 1] + max(column, 1) - 1, self._starts[line] - 1)

    def offset_of_byte(self, line: int, byte: int) -> int:
        """The offset of a place as `ast` gives it: a line from 1, and a position in its UTF-8."""
        start, end = self._starts[line - 1 : line + 1]
        if self.text.isascii():
            return start + byte
        if line not in self._bytes:
            self._bytes[line] = [0, *accumulate(len(char.encode("utf-8")) for char in self.text[start : end - 1])]
        return start + bisect_left(self._bytes[line], byte)


class _Run(NamedTuple):
    """From `start` on in the patch, each character takes `width` characters of the file, from `offset` on."""

    start: int
    offset: int
    width: int


@dataclass(frozen=True)
class FoundPatch:
    """A patch, and where its characters stand in the file.

    Attributes:
        text: the patch.
        of_model: whether the names in it are those of a model, and not of `kpatch.edit`'s tensor.
    """

    text: str
    of_model: bool
    _lines: Lines = field(repr=False)
    _runs: list[_Run] = field(repr=False)

    def region(self, span: tuple[int, int]) -> Region:
        """Where the part of the patch from one offset to another stands in the file."""
        start, width = self._spot(span[0])
        end = start
        if span[1] > span[0]:
            last, width = self._spot(span[1] - 1)
            end = last + width
        return Region(*self._lines.place(start), *self._lines.place(end))

    def _spot(self, offset: int) -> tuple[int, int]:
        run = self._runs[bisect_right(self._runs, offset, key=lambda run: run.start) - 1]
        return run.offset + (offset - run.start), run.width


def patch_file(text: str) -> FoundPatch:
    """The patch that a whole file is.

    Example:
        >>> patch_file("a.b = 1\\r\\nc.d = 2").region((8, 11))
        Region(line=2, column=1, end_line=2, end_column=4)
    """
    lines = Lines(text.removeprefix("\ufeff"))
    return FoundPatch(lines.text, True, lines, [_Run(0, 0, 1)])


# Literals ------------------------------------------------------------------------------------------------------------

_LITERAL = re.compile(r"""(?P<prefix>[rRuU]?)(?P<quote>'''|\"\"\"|'|\")""")
_BETWEEN = re.compile(r"(?:[ \t\f\n]|\\\n|#[^\n]*)*")
_RAW_UNIT = re.compile(r".", re.DOTALL)
_UNIT = re.compile(
    r"""(?P<nothing>\\\n)
      | \\ (?: [0-7]{1,3} | x[0-9a-fA-F]{2} | u[0-9a-fA-F]{4} | U[0-9a-fA-F]{8} | N\{[^}]+\} | [\\'"abfnrtv] )
      | .""",
    re.VERBOSE | re.DOTALL,
)


def _runs(text: str, offset: int, end: int) -> list[_Run]:
    """Where each character of a string literal stands; of several in a row as well, which are one string."""
    runs: list[_Run] = []
    count = 0
    while offset < end:
        opening = _LITERAL.match(text, offset)
        if opening is None:
            break  # a spelling of later Pythons: what follows is placed by what came before
        close = _closing(text, opening.end(), opening["quote"])
        count = _add_runs(runs, count, text, opening.end(), close, raw=opening["prefix"] in ("r", "R"))
        offset = _end(_BETWEEN, text, close + len(opening["quote"]))
    return runs or [_Run(0, offset, 0)]


def _end(pattern: re.Pattern[str], text: str, offset: int) -> int:
    found = pattern.match(text, offset)
    return offset if found is None else found.end()


_CLOSING = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in ("'''", '"""', "'", '"')}


def _closing(text: str, offset: int, quote: str) -> int:
    """Where the quote stands that closes a literal; a backslash keeps the next character from it, raw or not."""
    for found in _CLOSING[quote].finditer(text, offset):
        if found[0] == quote:
            return found.start()
    return len(text)


def _add_runs(runs: list[_Run], count: int, text: str, start: int, close: int, *, raw: bool) -> int:
    """Adds the runs of the body of one literal, and of its closing quote; returns the characters so far."""
    _add(runs, _Run(count, start, 1))
    for unit in (_RAW_UNIT if raw else _UNIT).finditer(text, start, close):
        width = unit.end() - unit.start()
        if width == 1:
            count += 1
            continue
        if unit["nothing"] is None:
            _add(runs, _Run(count, unit.start(), width))
            count += 1
        _add(runs, _Run(count, unit.end(), 1))
    return count


def _add(runs: list[_Run], run: _Run) -> None:
    if runs and runs[-1].start == run.start:
        runs.pop()  # it was empty
    runs.append(run)


# Scopes --------------------------------------------------------------------------------------------------------------


class _Import(NamedTuple):
    path: str  # the dotted name


_Bound = ast.expr | _Import | None  # what a name is bound to: `None` is anything else, such as a loop's variable


class _Scope:
    """A module, class, function or comprehension, and what each of its names is bound to, every time."""

    def __init__(self, node: ast.AST, parent: "_Scope | None" = None) -> None:
        self.parent = parent
        self.is_class = isinstance(node, ast.ClassDef)
        self.is_comprehension = isinstance(node, _COMPREHENSIONS)
        self.bound: dict[str, list[_Bound]] = {}
        self.imported: dict[str, str | None] = {}  # what `path` found, once all is bound
        self.elsewhere: dict[str, tuple[_Scope, ...]] = {}  # the scopes of its `global` and `nonlocal` names

    def bind(self, name: str, value: _Bound = None) -> None:
        for scope in self.elsewhere.get(name, (self,)):
            scope.bound.setdefault(name, []).append(value)

    def outer(self) -> "Iterator[_Scope]":
        scope = self.parent
        while scope is not None:
            yield scope
            scope = scope.parent

    def lookup(self, name: str) -> list[_Bound]:
        """What the name is bound to in the nearest scope that binds it."""
        for scope in (self, *self.outer()):
            if name in scope.bound and (scope is self or not scope.is_class):
                return scope.bound[name]
        return []

    def path(self, node: ast.AST) -> str | None:
        """The dotted name of what an expression means, as far as the imports say."""
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        if node.id not in self.imported:
            # What else it is bound to does not count: `except ImportError: kpatch = None`.
            paths = {bound.path for bound in self.lookup(node.id) if isinstance(bound, _Import)}
            self.imported[node.id] = paths.pop() if len(paths) == 1 else None
        origin = self.imported[node.id]
        return None if origin is None else ".".join([origin, *reversed(attributes)])

    def value(self, node: ast.expr) -> ast.expr:
        """The expression that a name stands for, if it is bound exactly once; else the name."""
        bound = self.lookup(node.id) if isinstance(node, ast.Name) else ()
        return bound[0] if len(bound) == 1 and isinstance(bound[0], ast.expr) else node


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class _With:
    """A `with` statement, and the scope that it stands in."""

    node: ast.With | ast.AsyncWith
    scope: _Scope

    @cached_property
    def meant_to_fail(self) -> bool:
        """Whether it is a `with pytest.raises(...)`, or unittest's, of an error of kpatch's."""
        return any(self._expects_error(item.context_expr) for item in self.node.items)

    def _expects_error(self, node: ast.expr) -> bool:
        if not (isinstance(node, ast.Call) and node.args and _last_name(node.func) in RAISES):
            return False
        classes = node.args[0].elts if isinstance(node.args[0], ast.Tuple) else node.args[:1]
        paths = [self.scope.path(each) or "" for each in classes]
        return any(path.startswith("kpatch.") and path.endswith("Error") for path in paths)


def _last_name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


class _Context(NamedTuple):
    """Where a node stands: in which scope, and in the bodies of which `with` statements."""

    scope: _Scope
    withs: "tuple[_With, ...]" = ()


_Nodes = Iterable[tuple[ast.AST, _Context]]


class _Walk:
    """One pass over a module, without recursion: what binds each name in each scope, and every call.

    What a call means is looked up afterwards, since a function may use a name that the module binds further down.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.calls: list[tuple[ast.Call, _Context]] = []
        stack: list[tuple[ast.AST, _Context]] = [(tree, _Context(_Scope(tree)))]
        while stack:
            node, context = stack.pop()
            visit = _VISITS.get(type(node), _Walk.others)
            stack.extend(reversed(list(visit(self, node, context))))

    def others(self, node: ast.AST, context: _Context) -> _Nodes:
        return [(child, context) for child in ast.iter_child_nodes(node)]

    def call(self, node: ast.Call, context: _Context) -> _Nodes:
        self.calls.append((node, context))
        return self.others(node, context)

    def imports(self, node: ast.Import, context: _Context) -> _Nodes:
        for alias in node.names:
            top = alias.name.partition(".")[0]
            context.scope.bind(alias.asname or top, _Import(alias.name if alias.asname else top))
        return ()

    def import_from(self, node: ast.ImportFrom, context: _Context) -> _Nodes:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            names = [alias.name] if alias.name != "*" else [path.rpartition(".")[2] for path in CALLS]
            for name in names:
                path = f"{module}.{name}"
                if alias.name != "*" or path in CALLS:
                    context.scope.bind(alias.asname or name, _Import(path))
        return ()

    def name(self, node: ast.Name, context: _Context) -> _Nodes:
        if not isinstance(node.ctx, ast.Load):
            context.scope.bind(node.id)
        return ()

    def assign(self, node: ast.Assign, context: _Context) -> _Nodes:
        for target in node.targets:
            if isinstance(target, ast.Name):
                context.scope.bind(target.id, node.value)
            else:
                yield target, context
        yield node.value, context

    def annotated(self, node: ast.AnnAssign, context: _Context) -> _Nodes:
        if not isinstance(node.target, ast.Name):
            return self.others(node, context)
        if node.value is not None:
            context.scope.bind(node.target.id, node.value)
        return [(child, context) for child in (node.annotation, node.value) if child is not None]

    def named(self, node: ast.NamedExpr, context: _Context) -> _Nodes:
        scope = next(scope for scope in (context.scope, *context.scope.outer()) if not scope.is_comprehension)
        scope.bind(node.target.id, node.value)
        return [(node.value, context)]

    def caught(self, node: ast.ExceptHandler | ast.MatchAs | ast.MatchStar, context: _Context) -> _Nodes:
        if node.name is not None:
            context.scope.bind(node.name)
        return self.others(node, context)

    def mapping(self, node: ast.MatchMapping, context: _Context) -> _Nodes:
        if node.rest is not None:
            context.scope.bind(node.rest)
        return self.others(node, context)

    def declared_global(self, node: ast.Global, context: _Context) -> _Nodes:
        *_, module = context.scope, *context.scope.outer()
        context.scope.elsewhere.update(dict.fromkeys(node.names, (module,)))
        return ()

    def declared_nonlocal(self, node: ast.Nonlocal, context: _Context) -> _Nodes:
        """Whose of the functions around it the name is stays open: it counts as bound in each of them."""
        *functions, _ = context.scope.outer()
        context.scope.elsewhere.update(dict.fromkeys(node.names, tuple(functions)))
        return ()

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, context: _Context) -> _Nodes:
        inner = _Context(_Scope(node, context.scope))
        if not isinstance(node, ast.Lambda):
            context.scope.bind(node.name)
        given = node.args
        for each in (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg):
            if each is not None:
                inner.scope.bind(each.arg)
        body = node.body if isinstance(node.body, list) else [node.body]
        return self._split(node, body, context, inner)

    def class_(self, node: ast.ClassDef, context: _Context) -> _Nodes:
        context.scope.bind(node.name)
        return self._split(node, node.body, context, _Context(_Scope(node, context.scope)))

    def _split(self, node: ast.AST, body: Iterable[ast.AST], context: _Context, inner: _Context) -> _Nodes:
        """The body stands in a scope of its own; decorators, defaults and annotations stand outside."""
        inside = set(map(id, body))
        for child in ast.iter_child_nodes(node):
            yield child, inner if id(child) in inside else context

    def comprehension(self, node: ast.expr, context: _Context) -> _Nodes:
        return self.others(node, context._replace(scope=_Scope(node, context.scope)))

    def with_(self, node: ast.With | ast.AsyncWith, context: _Context) -> _Nodes:
        inner = context._replace(withs=(*context.withs, _With(node, context.scope)))
        return self._split(node, node.body, context, inner)


_VISITS: dict[type[ast.AST], Callable[..., _Nodes]] = {
    ast.Call: _Walk.call,
    ast.Import: _Walk.imports,
    ast.ImportFrom: _Walk.import_from,
    ast.Name: _Walk.name,
    ast.Assign: _Walk.assign,
    ast.AnnAssign: _Walk.annotated,
    ast.NamedExpr: _Walk.named,
    ast.ExceptHandler: _Walk.caught,
    ast.MatchAs: _Walk.caught,
    ast.MatchStar: _Walk.caught,
    ast.MatchMapping: _Walk.mapping,
    ast.Global: _Walk.declared_global,
    ast.Nonlocal: _Walk.declared_nonlocal,
    ast.FunctionDef: _Walk.function,
    ast.AsyncFunctionDef: _Walk.function,
    ast.Lambda: _Walk.function,
    ast.ClassDef: _Walk.class_,
    ast.With: _Walk.with_,
    ast.AsyncWith: _Walk.with_,
    **dict.fromkeys(_COMPREHENSIONS, _Walk.comprehension),
}


# Patch strings -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """The patches in a file, in its order, and how many more are computed."""

    patches: list[FoundPatch]
    computed: int = 0


def find(text: str) -> Found:
    """The patch strings in Python code: the literals that are given to a function of `CALLS`.

    A name counts as its literal where it is bound to that and to nothing else. Left out are patches that are meant to
    fail, in the body of a `with pytest.raises(kpatch.PatchError)`, and those on a line that says `# kpatch: ignore`.

    Args:
        text: the code, a module.

    Returns:
        A `Found`. A literal that is used twice is one patch.

    Raises:
        FileError: the text is not Python.

    Example:
        >>> found = find("import kpatch\\nkpatch.apply(model, 'dense.bias = 1')")
        >>> found.patches[0].text, found.patches[0].region((0, 10))
        ('dense.bias = 1', Region(line=2, column=22, end_line=2, end_column=32))
    """
    lines = Lines(text)
    walk = _Walk(_parse(lines))
    ignored = _ignored(lines.text)
    literals: dict[ast.Constant, bool] = {}
    computed = 0
    for call, context in walk.calls:
        parameter = CALLS.get(context.scope.path(call.func) or "")
        node = None if parameter is None else _argument(call, parameter, context.scope)
        if parameter is None or node is None or any(each.meant_to_fail for each in context.withs):
            continue
        if _is_ignored(ignored, call.lineno, call.lineno) or _is_ignored(ignored, node.lineno, _last_line(node)):
            continue
        if isinstance(node, ast.Constant):
            literals[node] = literals.get(node, False) or parameter.of_model
        else:
            computed += 1
    patches = [_found(node, of_model, lines) for node, of_model in literals.items()]
    return Found(sorted(patches, key=lambda patch: patch.region((0, 0))), computed)


def _parse(lines: Lines) -> ast.Module:
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        if sys.version_info < (3, 11) and _longest_chain(lines.text) > MAX_CHAIN:
            raise RecursionError
        with _without_warnings():
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


def _longest_chain(text: str) -> int:
    """At least how deep the trees of chains such as `1 + 1 + ...` and `f()()...` are: Python 3.10 crashes on them."""
    longest, chains = 0, [0]  # within each of the open brackets; what stands in one lies below what holds it
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                chains = [0]
            elif token.type == tokenize.OP:
                _follow(chains, token.string)
                longest = max(longest, chains[-1])
    return longest


def _follow(chains: list[int], operator: str) -> None:
    if operator in "([{":
        chains[-1] += 1
        chains.append(chains[-1])
    elif operator in ")]}":
        chains[1:] = chains[1:-1]
    elif operator in (",", ";"):
        chains[-1] = chains[-2] if len(chains) > 1 else 0
    else:
        chains[-1] += 1


def _argument(call: ast.Call, parameter: Parameter, scope: _Scope) -> ast.expr | None:
    """The patch that a call is given: a string literal, or what computes it; `None` where there is nothing to say.

    That is where it is missing, or is no string, which is for a type checker to say, and where it is what
    `kpatch.parse` returns, whose own argument is checked.
    """
    given = _given(call, parameter)
    node = given and scope.value(given)
    if isinstance(node, ast.Constant):
        return node if isinstance(node.value, str) else None
    parsed = isinstance(node, ast.Call) and scope.path(node.func) == "kpatch.parse"
    return None if parsed else given


def _given(call: ast.Call, parameter: Parameter) -> ast.expr | None:
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == parameter.name]
    by_place = call.args[: parameter.position + 1]
    starred = [argument for argument in by_place if isinstance(argument, ast.Starred)]
    starred_names = [keyword.value for keyword in call.keywords if keyword.arg is None]
    last = by_place[parameter.position :] if not starred else []
    return next(iter([*by_name, *last, *starred, *starred_names]), None)


def _ignored(text: str) -> list[int]:
    """The lines that end in `# kpatch: ignore`."""
    lines: list[int] = []
    if IGNORE.search(text) is not None:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = (each for each in tokens if each.type == tokenize.COMMENT)
        with contextlib.suppress(tokenize.TokenError, SyntaxError):  # it takes some ends of a file for faults
            lines.extend(each.start[0] for each in comments if IGNORE.match(each.string))
    return lines


def _is_ignored(ignored: list[int], first: int, last: int) -> bool:
    return bisect_left(ignored, first) < bisect_right(ignored, last)


def _last_line(node: ast.expr) -> int:
    return node.end_lineno or node.lineno


def _found(node: ast.Constant, of_model: bool, lines: Lines) -> FoundPatch:
    start = lines.offset_of_byte(node.lineno, node.col_offset)
    end = lines.offset_of_byte(_last_line(node), node.end_col_offset or 0)
    return FoundPatch(str(node.value), of_model, lines, _runs(lines.text, start, end))
