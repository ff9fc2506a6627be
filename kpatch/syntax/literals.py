"""Numbers, booleans and lists."""

from kpatch.errors import PatchSyntaxError
from kpatch.syntax import faults
from kpatch.syntax.ast import Boolean, Constant, Float, Integer, List, Unary
from kpatch.syntax.lexer import shorten
from kpatch.syntax.pratt import Parser, prefix

_OPEN = (...,)  # the shape of an item that is no literal: unknown


@prefix("number")
def read_number(p: Parser) -> Integer | Float:
    text, span = p.value, (p.start, p.stop)
    p.advance()
    if len(text) < 19 and text.isdigit() and (text[0] != "0" or text == "0"):
        return Integer(int(text), span)
    return _number(text, span)


def _number(text, span):
    """An integer or a float, other than a short decimal integer."""
    digits = text.replace("_", "").lower()
    base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2])
    if base is None and not digits.isdigit():
        value = float(digits)
        if value == float("inf"):
            raise PatchSyntaxError(f"'{shorten(text)}' is too large for a float; infinity is 'inf'", span=span)
        return Float(value, span)
    significant = (digits[2:] if base else digits).lstrip("0")
    if not base and significant and digits[0] == "0":
        raise PatchSyntaxError(f"a decimal integer has no leading zeros; write {shorten(significant)}", span=span)
    value = int(significant or "0", base or 10) if len(significant) <= 64 else 2**64
    if value >= 2**64:
        raise PatchSyntaxError(f"'{shorten(text)}' does not fit 64 bits; the greatest is {2**64 - 1}", span=span)
    return Integer(value, span)


@prefix("true", "false")
def read_boolean(p: Parser) -> Boolean:
    value, span = p.value, (p.start, p.stop)
    p.advance()
    if p.kind == ".":
        raise faults.keyword(value, span)
    return Boolean(value == "true", span)


@prefix("[")
def read_list(p: Parser) -> List:
    opened = p.start
    p.advance()
    items = []
    height = 1
    shape = None
    while p.kind != "]":
        item = p.expression()
        this = p.shape if type(item) is List else () if _is_scalar(item) else _OPEN
        if shape is not this:
            shape = this if shape is None else _merge(shape, this)
            if shape is None:
                raise faults.ragged(item)
        items.append(item)
        if p.height > height:
            height = p.height
        if p.kind != ",":
            break
        p.advance()
    p.close("]", opened)
    p.height = height
    p.grow()
    p.shape = (len(items), *(shape or ()))
    return List(tuple(items), (opened, p.end))


def _is_scalar(node):
    if type(node) is Unary:
        node = node.operand
    return type(node) in (Integer, Float, Boolean, Constant)


def _merge(a, b):
    """The shape that fits both, or `None`; `...` in one stands for the axes of the other."""
    if a == b:
        return a
    for m, n in zip(a, b, strict=False):
        if m is ...:
            return b
        if n is ...:
            return a
        if m != n:
            return None
    if len(a) == len(b):
        return a
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return shorter if longer[len(shorter)] is ... else None
