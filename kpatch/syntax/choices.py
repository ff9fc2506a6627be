"""The parts of a selector: `kernel`, `0`, `"conv-1"`, `conv*`, with alternatives `(conv1|conv2)`, `block(1|2)_*`."""

import itertools
from dataclasses import replace

from kpatch.errors import PatchSyntaxError
from kpatch.syntax import faults
from kpatch.syntax.ast import Choice, Glob, Name, letters
from kpatch.syntax.pratt import Parser
from kpatch.syntax.words import ASSIGNMENTS

Piece = tuple[Name | Glob, ...]  # alternatives, or one text


def read_part(p: Parser) -> Name | Glob | Choice:
    if p.kind in ("choice", "text"):
        return read_choice(p)
    part = made_part(p.kind, p.value, (p.start, p.stop))
    p.advance()
    return part


def made_part(kind: str, value: str, span: tuple) -> Name | Glob:
    if kind == "glob" or (kind == "text" and ("*" in value or "?" in value)):
        if "**" in value and value != "**":
            raise faults.no_whole_part(span)
        return Glob(value, span)
    if not value:
        raise PatchSyntaxError("a name cannot be empty", span=span)
    return Name(value, span)


def read_choice(p: Parser) -> Name | Glob | Choice:
    """A part with brackets: these, and the letters beside them."""
    start, pieces = p.start, [read_piece(p)]
    while p.kind in ("choice", "text") and p.start == p.end:
        called, opened = p.kind == "choice", p.start
        pieces.append(read_piece(p))
        if called and len(pieces[-1]) == 1 and (p.kind == "[" or p.kind in ASSIGNMENTS):
            raise PatchSyntaxError("a call cannot be assigned to", span=(opened, opened + 1))
    if len(pieces) > 1:
        check_beside(p, pieces)
    pieces = merged(pieces)
    span = (start, p.end)
    return Choice(tuple(pieces), span) if len(pieces) > 1 or len(pieces[0]) > 1 else replace(pieces[0][0], span=span)


def read_piece(p: Parser) -> Piece:
    opened, span = p.start, (p.start, p.stop)
    if p.kind == "text":
        part = made_part("text", p.value, span)
        p.advance()
        return (part,)
    options = []
    while not options or p.kind == "|":
        p.advance()
        if p.kind not in ("text", "string"):
            raise faults.no_alternative(p, opened)
        options.append(made_part(p.kind, p.value, (p.start, p.stop)))
        p.advance()
    if p.kind != ")":
        raise faults.no_alternative(p, opened)
    p.advance()
    return tuple(options)


def check_beside(p: Parser, pieces: list[Piece]) -> None:
    """Raises for what cannot stand side by side: quoted names, and stars that would make `**`."""
    for piece in pieces:
        for part in piece:
            if p.text[part.span[0]] in "\"'":
                raise PatchSyntaxError("a quoted alternative stands for a whole part", span=part.span)
            if letters(part) == "**":
                raise faults.no_whole_part(part.span)
    for before, after in itertools.pairwise(pieces):
        ending = [part for part in before if letters(part)[-1] == "*"]
        if ending and any(letters(part)[0] == "*" for part in after):
            raise faults.no_whole_part(ending[0].span)


def merged(pieces: list[Piece]) -> list[Piece]:
    """The pieces, those of one text each joined with their neighbours: `a(1)b(2|3)` is `a1b(2|3)`."""
    made: list[Piece] = []
    for piece in pieces:
        if made and len(made[-1]) == len(piece) == 1:
            [before], [after] = made.pop(), piece
            piece = (made_part("text", letters(before) + letters(after), (before.span[0], after.span[1])),)
        made.append(piece)
    return made
