"""Calls of functions: `clip(x, 0, x_max=1)`."""

from kpatch.errors import PatchSyntaxError
from kpatch.syntax.ast import Argument, Call, Node, String
from kpatch.syntax.lexer import shorten
from kpatch.syntax.pratt import Parser


def read_call(p: Parser, name: str, start: int) -> Call:
    opened = p.start
    p.advance()
    arguments, names = [], set()
    height = 1
    while p.kind != ")":
        argument = read_argument(p)
        if argument.name is None and names:
            raise PatchSyntaxError("a positional argument follows a named one", span=argument.span)
        if argument.name in names:
            raise PatchSyntaxError(f"the argument '{shorten(argument.name)}' is given twice", span=argument.span)
        if argument.name is not None:
            names.add(argument.name)
        arguments.append(argument)
        height = max(height, p.height)
        if p.kind != ",":
            break
        p.advance()
    p.close(")", opened)
    p.height = height
    p.grow()
    return Call(name, tuple(arguments), (start, p.end))


def read_argument(p: Parser) -> Argument:
    kind, name, start, stop = p.kind, p.value, p.start, p.stop
    value = read_passed(p)
    if p.kind == "=":
        if kind != "name" or p.end != stop:
            raise p.fail("only a name can precede the '=' of an argument; '==' compares")
        p.advance()
        value = read_passed(p)
    else:
        name = None
    p.grow()
    return Argument(name, value, (start, p.end))


def read_passed(p: Parser) -> Node:
    """The value of an argument. A string alone is a `String`, not a quoted name."""
    kind, text, span = p.kind, p.value, (p.start, p.stop)
    if kind == "string" and not text:
        p.advance()
        p.height = 1
        return String(text, span)
    value = p.expression()
    return String(text, span) if kind == "string" and p.end == span[1] else value
