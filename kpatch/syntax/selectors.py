"""Selectors, and the operands that begin with a name: `encoder.layers[0].kernel`, `x`, `$donor.head.bias`, `_`."""

import math

from kpatch.errors import LimitError, PatchSyntaxError
from kpatch.syntax import faults, habits
from kpatch.syntax.ast import (
    Binding,
    Choice,
    Constant,
    Glob,
    Implied,
    Integer,
    Local,
    Name,
    Node,
    Position,
    Reference,
    Selector,
    Subscript,
)
from kpatch.syntax.calls import read_call
from kpatch.syntax.choices import read_part
from kpatch.syntax.pratt import PARTS, Parser, prefix
from kpatch.syntax.subscripts import read_index
from kpatch.syntax.words import CONSTANTS

MAX_ALTERNATIVES = 1024  # selectors that one with alternatives stands for


def read_selector(p: Parser, part: Name | Glob | Choice, start: int) -> tuple[Selector, tuple | None]:
    """The selector that starts with `part`, and the index after it if it was read to recognise `layers[i]`."""
    selector, index = read_parts(p, part, start)
    if selector.is_glob:
        pieces = [piece for part in selector.parts if type(part) is Choice for piece in part.pieces]
        if math.prod(map(len, pieces)) > MAX_ALTERNATIVES:
            raise LimitError(f"a selector has at most {MAX_ALTERNATIVES:,} alternatives", span=selector.span)
    return selector, index


def read_parts(p: Parser, part: Name | Glob | Choice, start: int) -> tuple[Selector, tuple | None]:
    parts: list[Name | Glob | Choice | Position] = [part]
    while True:
        if p.kind == "[" and type(part) is Name and part.value == "layers" and p.text[part.span[0]] == "l":
            index = read_index(p)
            if p.kind != ".":
                return Selector(tuple(parts), (start, part.span[1])), index
            parts[-1] = read_position(p, part.span[0], index)
        if p.kind != ".":
            return Selector(tuple(parts), (start, p.end)), None
        p.advance()
        if p.kind not in PARTS or (p.kind == "digits" and p.start > p.end):
            raise faults.no_part(p)
        part = read_part(p)
        parts.append(part)


def read_position(p: Parser, start: int, index: tuple) -> Position:
    if len(index) != 1 or type(index[0]) is not Integer:
        span = (index[0].span[0], index[-1].span[1])
        raise PatchSyntaxError("layers[...] takes one integer literal", span=span)
    return Position(index[0].value, (start, p.end))


def read_implied(p: Parser, span: tuple) -> Implied:
    if p.kind == ".":
        if instead := habits.of_placeholder(p.text[p.stop : p.stop + 200]):
            raise PatchSyntaxError(f"'_' has no parts; {instead}", span=span)
        raise PatchSyntaxError("'_' has no parts", span=span, notes=['a layer named _ is quoted: "_"'])
    return Implied(span)


@prefix("name")
def read_name(p: Parser) -> Node:
    name, start, stop = p.value, p.start, p.stop
    p.advance()
    kind = p.kind
    if kind == "(":
        return read_call(p, name, start)
    if kind == "." or (kind == "[" and name == "layers"):
        local = Local(name, (start, stop)) if name in p.locals else None
        return read_reference(p, Name(name, (start, stop)), start, local)
    if name in p.locals:
        return Local(name, (start, stop))
    if name in CONSTANTS:
        return Constant(name, (start, stop))
    span = (start, stop)
    return Reference(Selector((Name(name, span),), span), span)


@prefix("string")
def read_string(p: Parser) -> Node:
    start = p.start
    part = read_part(p)
    if p.kind == "(":
        raise PatchSyntaxError("a function's name is not quoted", span=part.span)
    return read_reference(p, part, start)


def read_reference(p: Parser, part: Name | Glob | Choice, start: int, local: Local | None = None) -> Node:
    """The reference that starts with `part`, or `local` if no further part follows; with its index if it has one."""
    selector, index = read_selector(p, part, start)
    node = local if local and len(selector.parts) == 1 else Reference(selector, selector.span)
    if index is None:
        return node
    p.grow()
    return Subscript(node, index, (start, p.end))


@prefix("_")
def read_placeholder(p: Parser) -> Implied:
    span = (p.start, p.stop)
    p.advance()
    return read_implied(p, span)


@prefix("binding")
def read_binding(p: Parser) -> Node:
    name, start = p.value[1:], p.start
    if name == "_":
        raise p.fail("'_' is reserved; a binding needs a name, such as '$x'")
    p.advance()
    if p.kind != ".":
        return Binding(name, None, (start, p.end))
    p.advance()
    first = p.start
    if p.kind == "_":
        p.advance()
        return Binding(name, read_implied(p, (first, p.end)), (start, p.end))
    if p.kind not in PARTS:
        raise faults.no_part(p)
    path, index = read_selector(p, read_part(p), first)
    node = Binding(name, path, (start, path.span[1]))
    if index is None:
        return node
    p.grow()
    return Subscript(node, index, (start, p.end))
