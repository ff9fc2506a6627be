"""The parser's state: the current token, the loop over operators, and the limits of depth.

Each construct is a function in a module of this package. It takes the `Parser` at the first token of the construct,
reads to its end, and returns its node. Constructs of expressions register themselves: `prefix` by the kind of their
first token, `infix` by the operator that follows a left operand.
"""

from collections.abc import Callable
from typing import Any

from kpatch.errors import PatchSyntaxError
from kpatch.syntax import faults
from kpatch.syntax.ast import MAX_DEPTH, Node
from kpatch.syntax.faults import ENDS
from kpatch.syntax.lexer import shorten, tokens
from kpatch.syntax.words import BINDING_POWER

NOT = BINDING_POWER["not x"]
PARTS = frozenset({"name", "string", "digits", "glob", "choice", "text"})  # the tokens that begin a selector

PREFIX: dict[str, Callable[..., Node]] = {}
INFIX: dict[str, tuple[int, Callable[..., Node]]] = {}


def prefix(*kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function `(parser)` for operands that begin with a token of these kinds."""

    def register(function):
        PREFIX.update(dict.fromkeys(kinds, function))
        return function

    return register


def infix(*operators: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function `(parser, left, start)` for these operators, with their powers from `BINDING_POWER`."""

    def register(function):
        INFIX.update({operator: (BINDING_POWER[operator], function) for operator in operators})
        return function

    return register


class Parser:
    """The current token is in `kind`, `value`, `start` and `stop`; `end` is the end of the token before it.

    Two counts limit the depth: `depth` the parser's recursion, `height` the levels of the last node read. Both are
    needed: a sum of a million terms is a deep tree, but needs no recursion here.

    Attributes:
        text: the source.
        locals: the names that `let` has bound so far.
        block: a `for` block is read.
        shape: the shape of the last list read.
    """

    __slots__ = ("block", "depth", "end", "height", "kind", "locals", "next", "shape", "start", "stop", "text", "value")

    def __init__(self, text):
        self.text = text
        self.locals = set()
        self.block = False
        self.depth = 0
        self.height = 1
        self.shape = ()

    def restart(self, position):
        self.depth = 0
        self.stop = position
        self.next = tokens(self.text, position).__next__
        self.advance()

    def advance(self):
        self.end = self.stop
        self.kind, self.value, self.start, self.stop = self.next()

    def expression(self, power=0):
        """Reads an operand, and the operators after it that bind more tightly than `power`."""
        self.depth = depth = self.depth + 1
        if depth > MAX_DEPTH + 1:  # one more, for the parentheses around a leaf
            raise faults.too_deep(self)
        start = self.start
        self.height = 1
        prefix = PREFIX.get(self.kind)
        if prefix is None or (power > NOT and self.kind == "not"):
            raise faults.no_value(self)
        node = prefix(self)
        while True:
            infix = INFIX.get(self.kind)
            if infix is None or infix[0] <= power:
                break
            node = infix[1](self, node, start)
        self.depth = depth - 1
        return node

    def grow(self, height=0):
        """Sets the height to one level above the last node read and above `height`."""
        self.height = height = max(height, self.height) + 1
        if height > MAX_DEPTH:
            raise faults.too_deep(self)

    def close(self, closing, opened, expected=None):
        if self.kind != closing:
            raise faults.unclosed(self, opened, expected or f"',' or '{closing}'")
        self.advance()

    def fail(self, message, *notes):
        """An error at the current token."""
        if self.kind in ENDS:  # an invisible token: the caret goes after the token before it
            return PatchSyntaxError(message, span=(self.end, self.end), notes=notes)
        return PatchSyntaxError(message, span=(self.start, self.stop), notes=notes)

    def found(self):
        if self.kind in ENDS:
            return "the end of the text" if self.kind == "" else "the end of the statement"
        return f"'{shorten(self.text[self.start : self.stop])}'"
