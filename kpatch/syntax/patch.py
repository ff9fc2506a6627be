"""A whole patch: `parse` makes it of a text, `join` of several patches."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from kpatch.errors import BindingError, LimitError
from kpatch.syntax.ast import Node
from kpatch.syntax.lexer import shorten
from kpatch.syntax.parser import read_statements

MAX_SOURCE = 16 * 2**20  # characters in the text of a patch
MAX_CACHED = 2**14  # characters in a text whose tree is kept: at most 128 of these


@dataclass(frozen=True, slots=True, repr=False)
class Patch(Node):
    """A whole patch: `kpatch.parse` makes it of a text, `kpatch.load` of a file. `a + b` is one patch of both.

    Attributes:
        statements: the statements; `Patch(text)` parses.
        source: the text.
        bindings: values that come with the patch, for its `$names`; those that a function is given come before them.

    Example:
        >>> import kpatch
        >>> kpatch.Patch("head.bias=0") + "head.kernel *= 2"
        Patch('head.bias = 0\\nhead.kernel *= 2')
    """

    statements: tuple
    source: str = ""
    span: tuple = field(default=(0, 0), compare=False, repr=False)
    bindings: dict = field(default_factory=dict)
    _hash: int = field(default=0, init=False)  # computed once: plans are looked up by it

    def __post_init__(self) -> None:
        given: Any = self.statements
        if isinstance(given, str):
            patch = parse(given)
            for name in ("statements", "source", "span"):
                object.__setattr__(self, name, getattr(patch, name))
        elif type(given) is not tuple:
            raise TypeError(f"kpatch.Patch(text) takes a text. Received: {given!r}")

    def __add__(self, other: "str | Patch") -> "Patch":
        if not isinstance(other, (str, Patch)):
            return NotImplemented
        return join([self, parse(other) if isinstance(other, str) else other])

    def __repr__(self) -> str:
        return f"Patch({str(self)!r})"

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))

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
        mine, others = self.bindings, other.bindings  # the same objects: to compare arrays would cost too much
        return mine.keys() == others.keys() and all(value is others[name] for name, value in mine.items())


def parse(text: str) -> Patch:
    """The tree of a patch.

    Args:
        text: the source, a string.

    Returns:
        A `Patch`. Short texts are parsed once and then remembered.

    Raises:
        PatchSyntaxError: the text is not a patch. All faults are reported together, in the `errors` of the first.
        LimitError: the text is longer than `MAX_SOURCE`, or an expression deeper than `MAX_DEPTH`.

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
        if not isinstance(text, str):
            raise TypeError(f"a patch is a string. Received: text={shorten(repr(text))} of type {type(text).__name__}")
        text = str.__str__(text)
    return _parse_once(text) if len(text) <= MAX_CACHED else _parse_long(text)


def join(patches: Iterable[Patch]) -> Patch:
    """One patch of several: their statements in a row, and their bindings together.

    Raises:
        PatchSyntaxError: together they are no patch: a local is bound twice.
        BindingError: two of them bring different values for one `$name`.
    """
    bindings: dict = {}
    for patch in patches:
        for name, value in patch.bindings.items():
            if bindings.setdefault(name, value) is not value:
                raise BindingError(f"'${name}' has different values in two of the patches")
    return replace(parse("\n".join(map(_text, patches))), bindings=bindings)


def _text(patch: Patch) -> str:
    """The source of a patch, for which errors are shown, or its own text if it is a part of another."""
    return patch.source if parse(patch.source).statements == patch.statements else str(patch)


def _parse(text: str) -> Patch:
    if len(text) > MAX_SOURCE:
        raise LimitError(f"the patch has {len(text):,} characters; at most {MAX_SOURCE:,} are read")
    return Patch(read_statements(text), text, (0, len(text)))


def _parse_long(text: str) -> Patch:
    """Without garbage collection: it would go over all nodes again and again, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse(text)
    finally:
        if enabled:
            gc.enable()


_parse_once = lru_cache(maxsize=128)(_parse)
