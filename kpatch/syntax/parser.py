"""Tokens to tree: a Pratt parser, by the table of binding powers in `kpatch.syntax.words.LEVELS`.

    patch      = { statement ( NEWLINE | ";" ) }
    statement  = edit | assertion | local
    edit       = target ( "=" | "+=" | "-=" | "*=" | "/=" | "**=" ) expression
    assertion  = "assert" expression [ "," string ]
    local      = "let" name "=" expression
    target     = ( "_" | selector ) [ "[" index { "," index } [ "," ] "]" ]
    selector   = part { "." part }
    part       = name | string | "layers" "[" integer "]" | glob
    index      = expression | [ expression ] ":" [ expression ] [ ":" [ expression ] ] | "..."

    expression = operand, and the operators of LEVELS
    operand    = number | "true" | "false" | constant | local | "_" | call | list | "(" expression ")"
               | selector | "$" name [ "." ( "_" | selector ) ] | operand "[" index { "," index } [ "," ] "]"
    list       = "[" [ expression { "," expression } [ "," ] ] "]"
    call       = name "(" [ argument { "," argument } [ "," ] ] ")"
    argument   = [ name "=" ] ( expression | string )

`layers[2]` is a part only where a "." follows. Globs stand only in a target. A name is a call before "(", the start of
a selector before ".", and else a local, a constant or a selector, in this order; which names are local is known from
the `let` statements before.
"""

import gc
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from kpatch.errors import BindingError, LimitError, PatchSyntaxError, combine
from kpatch.syntax import faults, literals, operators  # noqa: F401 - these two register what they read
from kpatch.syntax.ast import Patch
from kpatch.syntax.faults import ENDS
from kpatch.syntax.lexer import MAX_TOKENS, shorten
from kpatch.syntax.pratt import Parser
from kpatch.syntax.statements import read_statement

MAX_SOURCE = 16 * 2**20  # characters in the text of a patch
MAX_ERRORS = 100  # errors reported together; then the parser stops
MAX_CACHED = 2**14  # characters in a text whose tree is kept: at most 128 of these
RECOVERY = 10_000  # characters looked through for the end of a faulty statement

_STOPS = ("\n", "\r\n", "\r", ";")
_LANDMARK = re.compile(r"\#[^\r\n]*|\"(?:[^\"\\\r\n]|\\.){0,999}\"|'(?:[^'\\\r\n]|\\.){0,999}'|[\[\]();]|\r\n|[\r\n]")


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


def _text(patch):
    """The source of a patch, for which errors are shown, or its own text if it is a part of another."""
    return patch.source if parse(patch.source).statements == patch.statements else str(patch)


def _parse(text):
    if len(text) > MAX_SOURCE:
        raise LimitError(f"the patch has {len(text):,} characters; at most {MAX_SOURCE:,} are read")
    return _patch(Parser(text))


def _parse_long(text):
    """Without garbage collection: it would go over all nodes again and again, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse(text)
    finally:
        if enabled:
            gc.enable()


_parse_once = lru_cache(maxsize=128)(_parse)


def _patch(p):
    statements, errors = [], []
    begin: int | None = 1 if p.text.startswith("\ufeff") else 0
    while begin is not None:
        begin, error = _statements(p, begin, statements)
        if error is None:
            break
        errors.append(error.locate(source=p.text))
        begin = _recover(p.text, begin, error.span[0]) if len(errors) < MAX_ERRORS else None
    if errors:
        raise combine(errors)
    return Patch(tuple(statements), p.text, (0, len(p.text)))


def _statements(p, begin, statements):
    """Reads statements from `begin` on. Returns where the first faulty one begins, and its fault, or `None`."""
    try:
        p.restart(begin)
        while p.kind:
            if p.kind == "end":
                p.advance()
                continue
            begin = p.start
            statements.append(read_statement(p))
            if p.kind not in ENDS:
                raise faults.unexpected(p)
    except StopIteration:
        statements.clear()
        raise LimitError(f"the patch has more than {MAX_TOKENS:,} tokens", source=p.text) from None
    except (PatchSyntaxError, LimitError) as error:
        return begin, error
    return begin, None


def _recover(text, begin, fault):
    """Where the statement after the faulty one begins, or `None` at the end of the text.

    That is after the first newline or `;` behind the fault and outside brackets. Where a bracket is not closed
    nearby, it is the line of the fault if the fault is the first on it, else the line after the fault.
    """
    depth = 0
    fallback = None
    line = max(text.rfind(newline, begin, fault) for newline in "\r\n") + 1
    if line <= begin or text[line:fault].strip():
        line = None
    for found in _LANDMARK.finditer(text, begin, fault + RECOVERY):
        mark = found[0]
        if mark in "[(":
            depth += 1
        elif mark in "])":
            depth -= depth > 0
        elif mark in _STOPS:
            position = found.end()
            if position > fault and not depth:
                return position
            if position > fault or position == line:
                fallback = fallback or position
    return fallback
