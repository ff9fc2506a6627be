"""Operators and parentheses."""

from kpatch.errors import PatchSyntaxError
from kpatch.syntax.ast import Binary, Compare, Integer, Node, Unary
from kpatch.syntax.pratt import NOT, Parser, infix, prefix
from kpatch.syntax.words import BINDING_POWER, COMPARISONS

MINUS = BINDING_POWER["-x"]
COMPARE = BINDING_POWER["<"]


@infix("or", "and", "+", "-", "*", "/", "//", "%", "@", "**")
def read_binary(p: Parser, left: Node, start: int) -> Binary:
    op = p.kind
    height = p.height
    p.advance()
    right = p.expression(MINUS if op == "**" else BINDING_POWER[op])
    p.grow(height)
    return Binary(op, left, right, (start, p.end))


@infix(*COMPARISONS)
def read_compare(p: Parser, left: Node, start: int) -> Compare:
    ops, operands = [], [left]
    height = p.height
    while p.kind in COMPARISONS:
        ops.append(p.kind)
        p.advance()
        operands.append(p.expression(COMPARE))
        height = max(height, p.height)
    p.grow(height)
    return Compare(tuple(ops), tuple(operands), (start, p.end))


@prefix("-")
def read_minus(p: Parser) -> Integer | Unary:
    start = p.start
    p.advance()
    literal = p.kind == "number"
    operand = p.expression(MINUS)
    span = (start, p.end)
    if literal and type(operand) is Integer:
        if operand.value > 2**63:
            raise PatchSyntaxError(f"-{operand.value} does not fit 64 bits; the least is {-(2**63)}", span=span)
        return Integer(-operand.value, span)
    p.grow()
    return Unary("-", operand, span)


@prefix("not")
def read_negation(p: Parser) -> Unary:
    start = p.start
    p.advance()
    operand = p.expression(NOT)
    p.grow()
    return Unary("not", operand, (start, p.end))


@prefix("(")
def read_parenthesis(p: Parser) -> Node:
    opened = p.start
    p.advance()
    if p.kind == ")":
        raise PatchSyntaxError("there are no tuples; an empty list is '[]'", span=(opened, p.stop))
    node = p.expression()
    if p.kind == ",":
        raise p.fail("there are no tuples; a list is written '[1, 2]', two indices 'x[0, 1]'")
    p.close(")", opened, "')'")
    if p.height > 1:
        p.grow()
    return node
