"""Tokens to tree: a Pratt parser. The binding powers are in `kpatch.syntax.words.LEVELS`.

    patch      = { statement ( NEWLINE | ";" ) }
    statement  = edit | assertion | local | block
    edit       = target ( "=" | "+=" | "-=" | "*=" | "/=" | "**=" ) expression [ "except" selector { "," selector } ]
    assertion  = "assert" expression [ "," string ]
    local      = "let" name "=" expression
    block      = "for" selector [ "except" selector { "," selector } ] "{" { statement ( NEWLINE | ";" ) } "}"
    target     = ( "_" | selector ) [ "[" index { "," index } [ "," ] "]" ]
    selector   = part { "." part }
    part       = name | string | digits | "layers" "[" integer "]" | glob | choice
    choice     = { letters } bracket { letters | bracket }
    bracket    = "(" ( letters | string ) { "|" ( letters | string ) } ")"
    index      = expression | [ expression ] ":" [ expression ] [ ":" [ expression ] ] | "..."

    expression = operand, and the operators of LEVELS
    operand    = number | "true" | "false" | constant | local | "_" | call | list | "(" expression ")"
               | selector | "$" name [ "." ( "_" | selector ) ] | operand "[" index { "," index } [ "," ] "]"
    list       = "[" [ expression { "," expression } [ "," ] ] "]"
    call       = name "(" [ argument { "," argument } [ "," ] ] ")"
    argument   = [ name "=" ] ( expression | string )

`layers[2]` is a part only if a "." follows. Only a target has globs and choices, whose letters are ASCII letters,
digits, `_`, `*` and `?`. Digits follow a "." directly, or begin a target. A name before "(" is a call, before "." the
start of a selector, else a local, a constant or a selector, in this order. Earlier `let` statements bind locals.
"""

import re

from kpatch.errors import LimitError, PatchSyntaxError, combine
from kpatch.syntax import faults, literals, operators  # noqa: F401 - both register their constructs
from kpatch.syntax.faults import ENDS
from kpatch.syntax.lexer import MAX_TOKENS
from kpatch.syntax.pratt import Parser
from kpatch.syntax.statements import read_statement

MAX_ERRORS = 100  # errors reported together; then the parser stops
RECOVERY = 10_000  # characters searched for the end of a faulty statement

_STOPS = ("\n", "\r\n", "\r", ";")
_LANDMARK = re.compile(r"\#[^\r\n]*|\"(?:[^\"\\\r\n]|\\.){0,999}\"|'(?:[^'\\\r\n]|\\.){0,999}'|[\[\](){};]|\r\n|[\r\n]")


def read_statements(text):
    """The statements of a text. All faults are raised together."""
    p = Parser(text)
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
    return tuple(statements)


def _statements(p, begin, statements):
    """Reads statements from `begin` on. Returns the start of the first faulty statement and its error, or `None`."""
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
    """The start of the statement after the faulty one, or `None` at the end of the text.

    It is after the first newline or `;` that follows the fault outside brackets. If a bracket is not closed nearby, it
    is the line of the fault if the fault comes first on it, else the line after the fault.
    """
    depth = 0
    fallback = None
    line = max(text.rfind(newline, begin, fault) for newline in "\r\n") + 1
    if line <= begin or text[line:fault].strip():
        line = None
    for found in _LANDMARK.finditer(text, begin, fault + RECOVERY):
        mark = found[0]
        if mark in "[({":
            depth += 1
        elif mark in "])}":
            depth -= depth > 0
        elif mark in _STOPS:
            position = found.end()
            if position > fault and not depth:
                return position
            if position > fault or position == line:
                fallback = fallback or position
    return fallback
