"""Indices: `x[0, 1:, ...]`."""

from kpatch.errors import PatchSyntaxError
from kpatch.syntax.ast import Ellipsis_, Node, Reference, Slice, Subscript
from kpatch.syntax.pratt import Parser, infix

_NEW_AXIS = ("newaxis", "None", "np.newaxis")


def read_index(p: Parser) -> tuple[Node, ...]:
    opened = p.start
    p.advance()
    items: list[Node] = []
    height = 1
    ellipsis = False
    while p.kind != "]":
        if p.kind == "...":
            if ellipsis:
                raise p.fail("an index has at most one '...'")
            ellipsis = True
            p.advance()
            items.append(Ellipsis_((p.end - 3, p.end)))
        else:
            items.append(read_item(p))
            if p.height > height:
                height = p.height
        if p.kind != ",":
            break
        p.advance()
    if p.kind == ":":
        raise p.fail("a slice has at most a start, a stop and a step")
    p.close("]", opened)
    if not items:
        raise PatchSyntaxError("an index needs an item; '[...]' is everything", span=(opened, p.end))
    p.height = height
    return tuple(items)


def read_item(p: Parser) -> Node:
    start = p.start
    p.height = 1
    first: Node | None = None
    if p.kind != ":":
        first = p.expression()
    if first is not None and p.kind != ":":
        if type(first) is Reference and p.text[start : p.end] in _NEW_AXIS:
            message = "there is no newaxis; 'expand_dims' and 'reshape' make axes"
            raise PatchSyntaxError(message, span=(start, p.end))
        return first
    height = p.height
    p.advance()
    stop, step = read_bound(p), None
    height = max(height, p.height)
    if p.kind == ":":
        p.advance()
        step = read_bound(p)
    p.grow(height)
    return Slice(first, stop, step, (start, p.end))


def read_bound(p: Parser) -> Node | None:
    """The stop or the step of a slice, which may be missing."""
    if p.kind not in (":", ",", "]"):
        return p.expression()
    p.height = 1
    return None


@infix("[")
def read_subscript(p: Parser, value: Node, start: int) -> Subscript:
    height = p.height
    index = read_index(p)
    p.grow(height)
    return Subscript(value, index, (start, p.end))
