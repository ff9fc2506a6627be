"""Statements: edits, `let` and `assert`."""

from kpatch.syntax import faults
from kpatch.syntax.ast import Assert, Edit, For, Implied, Let, Selector, Target
from kpatch.syntax.choices import read_part
from kpatch.syntax.faults import ENDS
from kpatch.syntax.lexer import shorten
from kpatch.syntax.pratt import PARTS, Parser
from kpatch.syntax.selectors import read_implied, read_selector
from kpatch.syntax.subscripts import read_index
from kpatch.syntax.words import ASSIGNMENTS, CONSTANTS


def read_statement(p: Parser) -> Edit | Let | Assert | For:
    kind = p.kind
    start = p.start
    if kind == "let":
        return read_let(p, start)
    if kind == "assert":
        return read_assertion(p, start)
    if kind == "for" or (kind == "text" and p.value == "for"):
        return read_block(p, start)
    target = read_target(p)
    op = p.kind
    if op not in ASSIGNMENTS:
        raise faults.no_assignment(p)
    p.advance()
    value = p.expression()
    exclusions = read_exclusions(p, target.selector) if p.kind == "except" else ()
    return Edit(target, op, value, exclusions, (start, p.end))


def read_exclusions(p: Parser, selector: Selector | Implied) -> tuple[Selector, ...]:
    """The selectors after `except`, of variables that the selector of a target should not mean."""
    if isinstance(selector, Implied) or not selector.is_glob:
        raise p.fail("an exclusion needs a target that can mean several variables, with a glob or alternatives")
    exclusions: list[Selector] = []
    while not exclusions or p.kind == ",":
        p.advance()
        if p.kind not in PARTS:
            raise faults.no_exclusion(p)
        start = p.start
        exclusion, index = read_selector(p, read_part(p), start)
        if index is not None or p.kind == "[":
            raise p.fail("an exclusion names whole variables; it has no index")
        exclusions.append(exclusion)
    return tuple(exclusions)


def read_block(p: Parser, start: int) -> For:
    if p.block:
        raise p.fail("a block cannot hold another block")
    p.advance()
    if p.kind in (".", "[") or p.kind in ASSIGNMENTS:
        raise faults.keyword("for", (start, p.end))
    if p.kind not in PARTS:
        raise p.fail(f"a selector is missing after 'for', found {p.found()}", faults.BLOCK)
    first = p.start
    selector, index = read_selector(p, read_part(p), first)
    if index is not None or p.kind == "[":
        raise p.fail("a block is for whole variables; inside it '_' takes an index")
    exclusions = read_exclusions(p, selector) if p.kind == "except" else ()
    if p.kind != "{":
        raise p.fail(f"expected '{{' after the selector of 'for', found {p.found()}", faults.BLOCK)
    known, p.block = set(p.locals), True
    try:
        statements = read_inside(p)
    finally:
        p.locals, p.block = known, False
    return For(selector, exclusions, statements, (start, p.end))


def read_inside(p: Parser) -> tuple[Edit | Let | Assert | For, ...]:
    """The statements of a block, whose targets are `_`."""
    opened = p.start
    p.advance()
    statements = []
    while p.kind != "}":
        if p.kind == "":
            raise faults.unclosed(p, opened, "")
        if p.kind == "end":
            p.advance()
            continue
        statements.append(read_statement(p))
        if p.kind not in (*ENDS, "}"):
            raise faults.unexpected(p)
    if not statements:
        raise p.fail("the block has no statement")
    p.advance()
    return tuple(statements)


def read_let(p: Parser, start: int) -> Let:
    p.advance()
    name = p.value
    if p.kind != "name" or name in CONSTANTS or name in p.locals:
        raise faults.no_local(p, name)
    p.advance()
    if p.kind != "=":
        raise p.fail(f"expected '=' after 'let {shorten(name)}', found {p.found()}")
    p.advance()
    value = p.expression()
    p.locals.add(name)
    return Let(name, value, (start, p.end))


def read_assertion(p: Parser, start: int) -> Assert:
    p.advance()
    if p.kind == "." or p.kind in ASSIGNMENTS:
        raise faults.keyword("assert", (start, p.end))
    condition = p.expression()
    message = None
    if p.kind == ",":
        p.advance()
        if p.kind != "string":
            raise p.fail(f"an assertion's message is a string, found {p.found()}")
        message = p.value
        p.advance()
    return Assert(condition, message, (start, p.end))


def read_target(p: Parser) -> Target:
    start = p.start
    if p.block and p.kind in PARTS:
        raise p.fail("inside a block the target is '_', the variable of the match")
    index: tuple | None = None
    selector: Selector | Implied
    if p.kind == "_":
        p.advance()
        selector = read_implied(p, (start, p.end))
    elif p.kind in PARTS:
        selector, index = read_selector(p, read_part(p), start)
    else:
        raise faults.no_target(p)
    if p.kind == "[":
        if index is None:
            index = read_index(p)
        if p.kind == "[":
            raise p.fail("a target has one index; write x[0, 1] for x[0][1]")
    return Target(selector, index, (start, p.end))
