"""A whole patch: `parse` makes it from a text, `join` from several patches."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from kpatch.errors import BindingError, LimitError, PatchSyntaxError, boundary
from kpatch.syntax import habits
from kpatch.syntax.ast import Edit, Node, Selector
from kpatch.syntax.lexer import shorten
from kpatch.syntax.parser import read_statements

MAX_SOURCE = 16 * 2**20  # characters in the text of a patch
MAX_CACHED = 2**14  # characters in a text whose tree is cached; the cache holds 128 trees


@dataclass(frozen=True, slots=True, repr=False)
class Patch(Node):
    """A whole patch: `kpatch.parse` makes it from a text, `kpatch.load` from a file. `a + b` joins two patches.

    Attributes:
        statements: the statements; `Patch(text)` parses a text.
        source: the text.
        bindings: default values of the patch's `$names`; the bindings given to a function override them.

    Example:
        >>> import kpatch
        >>> kpatch.Patch("head.bias=0") + "head.kernel *= 2"
        Patch('head.bias = 0\\nhead.kernel *= 2')
    """

    statements: tuple
    source: str = ""
    span: tuple = field(default=(0, 0), compare=False, repr=False)
    bindings: dict = field(default_factory=dict)
    _hash: int = field(default=0, init=False)  # computed once: the plan cache looks patches up by it

    def __post_init__(self) -> None:
        given: Any = self.statements
        if isinstance(given, str):
            patch = parse(given)
            for name in ("statements", "source", "span"):
                object.__setattr__(self, name, getattr(patch, name))
        elif type(given) is not tuple or not all(isinstance(each, Node) for each in given):
            raise PatchSyntaxError(f"kpatch.Patch(text) takes a text. Received: {shorten(repr(given))}")

    def __add__(self, other: "str | Patch") -> "Patch":
        if not isinstance(other, (str, Patch)):
            return NotImplemented
        return join([self, parse(other) if isinstance(other, str) else other])

    def __repr__(self) -> str:
        return f"Patch({str(self)!r})"

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        from kpatch.view import html

        return html.code(str(self))

    def __hash__(self) -> int:
        if not self._hash:
            object.__setattr__(self, "_hash", hash(self.statements) or 1)
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Patch:
            return NotImplemented
        if hash(self) != hash(other) or self.statements != other.statements:
            return False
        mine, others = self.bindings, other.bindings  # compared by identity: comparing arrays costs too much
        return mine.keys() == others.keys() and all(value is others[name] for name, value in mine.items())


@boundary
def parse(text: str) -> Patch:
    """The tree of a patch.

    Args:
        text: the source, a string.

    Returns:
        A `Patch`. The trees of short texts are cached.

    Raises:
        PatchSyntaxError: the text is not a patch, or not a text. Its `errors` holds all faults.
        LimitError: the text has more than `MAX_SOURCE` characters or `MAX_TOKENS` tokens, or an expression is deeper
            than `MAX_DEPTH`.

    Example:
        >>> from kpatch.syntax import parse
        >>> patch = parse("dense.kernel[0,0]=1 ; dense.bias *= (2)")
        >>> print(patch)
        dense.kernel[0, 0] = 1
        dense.bias *= 2
        >>> patch.statements[0].target.index
        (Integer(value=0), Integer(value=0))
    """
    if type(text) is not str:
        given: Any = text
        if not isinstance(given, str):
            kind = type(given).__name__
            raise PatchSyntaxError(f"a patch is a string. Received: text={shorten(repr(given))} of type {kind}")
        text = str.__str__(given)
    return _parse_once(text) if len(text) <= MAX_CACHED else _parse_long(text)


def parse_selector(text: str) -> Selector | None:
    """The selector that is all of a text; `None` if the text is something else.

    Raises:
        PatchSyntaxError: there is a mistake in the text.
    """
    try:
        statements = parse(f"{text} = 0").statements
    except PatchSyntaxError as error:
        if error.span is None or error.span[1] > len(text) or set(text) & set(";#\r\n"):
            return None  # the fault is in the assignment that is added here, or the statement ends before it
        error.source = text
        raise
    if len(statements) != 1 or not isinstance(statements[0], Edit):
        return None
    target = statements[0].target
    return target.selector if target.index is None and isinstance(target.selector, Selector) else None


def join(patches: Iterable[Patch]) -> Patch:
    """One patch with the statements of all patches in order, and all their bindings.

    Raises:
        PatchSyntaxError: two patches bind the same local.
        BindingError: two patches have different values for one `$name`.
    """
    bindings: dict = {}
    for patch in patches:
        for name, value in patch.bindings.items():
            if bindings.setdefault(name, value) is not value:
                raise BindingError(f"'${name}' has different values in two of the patches")
    return replace(parse("\n".join(map(_text, patches))), bindings=bindings)


def _text(patch: Patch) -> str:
    """The source of a patch, so that errors show it; its canonical text if the source has other statements."""
    return patch.source if parse(patch.source).statements == patch.statements else str(patch)


def _parse(text: str) -> Patch:
    if len(text) > MAX_SOURCE:
        raise LimitError(f"the patch has {len(text):,} characters; at most {MAX_SOURCE:,} are read")
    try:
        return Patch(read_statements(text), text, (0, len(text)))
    except PatchSyntaxError as error:
        told = habits.file(text)
        if told is None:
            raise
        raise PatchSyntaxError(told, span=(0, len(text)), source=text) from error


def _parse_long(text: str) -> Patch:
    """Parses without garbage collection, which would scan all nodes repeatedly and free none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse(text)
    finally:
        if enabled:
            gc.enable()


_parse_once = lru_cache(maxsize=128)(_parse)
