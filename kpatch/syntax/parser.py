"""Tokens to tree: a Pratt parser, by the table of binding powers in `kpatch.syntax.ast.LEVELS`.

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
from functools import lru_cache

from kpatch.errors import LimitError, PatchSyntaxError, combine
from kpatch.syntax.ast import (
    ASSIGNMENTS,
    BINDING_POWER,
    COMPARISONS,
    CONSTANTS,
    KEYWORDS,
    MAX_DEPTH,
    Argument,
    Assert,
    Binary,
    Binding,
    Boolean,
    Call,
    Compare,
    Constant,
    Edit,
    Ellipsis_,
    Float,
    Glob,
    Implied,
    Integer,
    Let,
    List,
    Local,
    Name,
    Patch,
    Position,
    Reference,
    Selector,
    Slice,
    String,
    Subscript,
    Target,
    Unary,
    quote,
)
from kpatch.syntax.lexer import MAX_TOKENS, misnamed, odd_name, shorten, tokens

MAX_SOURCE = 16 * 2**20  # characters in the text of a patch
MAX_ERRORS = 100  # errors reported together; then the parser stops
MAX_CACHED = 2**14  # characters in a text whose tree is kept: at most 128 of these
RECOVERY = 10_000  # characters looked through for the end of a faulty statement

MINUS = BINDING_POWER["-x"]
NOT = BINDING_POWER["not x"]
COMPARE = BINDING_POWER["<"]


def parse(text):
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


def as_patch(patch):
    """A `Patch`, from one or from its text."""
    if isinstance(patch, Patch):
        return patch
    if isinstance(patch, str):
        return parse(patch)
    raise TypeError(f"a patch is a str or a kpatch.Patch. Received: patch={patch!r} (of type {type(patch)})")


def _parse(text):
    if len(text) > MAX_SOURCE:
        raise LimitError(f"the patch has {len(text):,} characters; at most {MAX_SOURCE:,} are read")
    return _Parser(text).patch()


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


class _Parser:
    """The current token is in `kind`, `value`, `start` and `stop`; `end` is where the one before it ended.

    Depth is bounded on the way down, by `depth`, for the parser's own recursion, and on the way up, by `height`, the
    levels of the node read last, since a sum of a million terms is deep without any recursion here.
    """

    __slots__ = ("begin", "depth", "end", "height", "kind", "locals", "next", "shape", "start", "stop", "text", "value")

    def __init__(self, text):
        self.text = text
        self.locals = set()
        self.depth = 0
        self.height = 1
        self.shape = ()

    def patch(self):
        statements, errors = [], []
        self.begin: int | None = 1 if self.text.startswith("\ufeff") else 0
        while self.begin is not None:
            error = self.statements(statements)
            if error is None:
                break
            errors.append(error.locate(source=self.text))
            self.begin = self.recover(self.begin, error.span[0]) if len(errors) < MAX_ERRORS else None
        if errors:
            raise combine(errors)
        return Patch(tuple(statements), self.text, (0, len(self.text)))

    def statements(self, statements):
        """Reads statements from `begin` on; leaves `begin` at the first faulty one, and returns its fault."""
        try:
            self.restart(self.begin)
            while self.kind:
                if self.kind == "end":
                    self.advance()
                    continue
                self.begin = self.start
                statements.append(self.statement())
                if self.kind not in _ENDS:
                    raise self.unexpected()
        except StopIteration:
            statements.clear()
            raise LimitError(f"the patch has more than {MAX_TOKENS:,} tokens", source=self.text) from None
        except (PatchSyntaxError, LimitError) as error:
            return error
        return None

    def restart(self, position):
        self.depth = 0
        self.stop = position
        self.next = tokens(self.text, position).__next__
        self.advance()

    def advance(self):
        self.end = self.stop
        self.kind, self.value, self.start, self.stop = self.next()

    # Statements

    def statement(self):
        kind = self.kind
        start = self.start
        if kind == "let":
            return self.let(start)
        if kind == "assert":
            return self.assertion(start)
        target = self.target()
        op = self.kind
        if op not in ASSIGNMENTS:
            raise self.no_assignment()
        self.advance()
        return Edit(target, op, self.expression(), (start, self.end))

    def let(self, start):
        self.advance()
        name = self.value
        if self.kind != "name" or name in CONSTANTS or name in self.locals:
            raise self.no_local(name)
        self.advance()
        if self.kind != "=":
            raise self.fail(f"expected '=' after 'let {shorten(name)}', found {self.found()}")
        self.advance()
        value = self.expression()
        self.locals.add(name)
        return Let(name, value, (start, self.end))

    def assertion(self, start):
        self.advance()
        if self.kind == "." or self.kind in ASSIGNMENTS:
            raise self.keyword("assert", (start, self.end))
        condition = self.expression()
        message = None
        if self.kind == ",":
            self.advance()
            if self.kind != "string":
                raise self.fail(f"an assertion's message is a string, found {self.found()}")
            message = self.value
            self.advance()
        return Assert(condition, message, (start, self.end))

    def target(self):
        start = self.start
        index = None
        if self.kind == "_":
            self.advance()
            selector = self.implied((start, self.end))
        elif self.kind in _PARTS:
            selector, index = self.selector(self.part(), start)
        else:
            raise self.no_target()
        if self.kind == "[":
            if index is None:
                index = self.index()
            if self.kind == "[":
                raise self.fail("a target has one index; write x[0, 1] for x[0][1]")
        return Target(selector, index, (start, self.end))

    # Selectors

    def selector(self, part, start):
        """The selector that goes on after its first part; and the index, if one was read to tell `layers[i]` by."""
        parts = [part]
        while True:
            if self.kind == "[" and type(part) is Name and part.value == "layers" and self.text[part.span[0]] == "l":
                index = self.index()
                if self.kind != ".":
                    return Selector(tuple(parts), (start, part.span[1])), index
                parts[-1] = self.position(part.span[0], index)
            if self.kind != ".":
                return Selector(tuple(parts), (start, self.end)), None
            self.advance()
            if self.kind not in _PARTS:
                raise self.no_part()
            part = self.part()
            parts.append(part)

    def part(self):
        kind, value, span = self.kind, self.value, (self.start, self.stop)
        self.advance()
        if kind == "glob":
            if "**" in value and value != "**":
                raise PatchSyntaxError("'**' stands for whole parts; inside a name write '*'", span=span)
            return Glob(value, span)
        if not value:
            raise PatchSyntaxError("a name cannot be empty", span=span)
        return Name(value, span)

    def position(self, start, index):
        if len(index) != 1 or type(index[0]) is not Integer:
            span = (index[0].span[0], index[-1].span[1])
            raise PatchSyntaxError("layers[...] takes one integer literal", span=span)
        return Position(index[0].value, (start, self.end))

    def implied(self, span):
        if self.kind == ".":
            raise PatchSyntaxError("'_' has no parts", span=span, notes=['a layer named _ is quoted: "_"'])
        return Implied(span)

    # Subscripts

    def index(self):
        opened = self.start
        self.advance()
        items = []
        height = 1
        ellipsis = False
        while self.kind != "]":
            if self.kind == "...":
                if ellipsis:
                    raise self.fail("an index has at most one '...'")
                ellipsis = True
                self.advance()
                items.append(Ellipsis_((self.end - 3, self.end)))
            else:
                items.append(self.item())
                if self.height > height:
                    height = self.height
            if self.kind != ",":
                break
            self.advance()
        if self.kind == ":":
            raise self.fail("a slice has a start, a stop and a step, and no more")
        self.close("]", opened)
        if not items:
            raise PatchSyntaxError("an index needs an item; '[...]' is everything", span=(opened, self.end))
        self.height = height
        return tuple(items)

    def item(self):
        start = self.start
        self.height = 1
        first = None if self.kind == ":" else self.expression()
        if self.kind != ":":
            if type(first) is Reference and self.text[start : self.end] in _NEW_AXIS:
                message = "there is no newaxis; 'expand_dims' and 'reshape' make axes"
                raise PatchSyntaxError(message, span=(start, self.end))
            return first
        height = self.height
        self.advance()
        stop, step = self.bound(), None
        height = max(height, self.height)
        if self.kind == ":":
            self.advance()
            step = self.bound()
        self.grow(height)
        return Slice(first, stop, step, (start, self.end))

    def bound(self):
        """The stop or the step of a slice, which may be missing."""
        if self.kind not in (":", ",", "]"):
            return self.expression()
        self.height = 1
        return None

    def close(self, closing, opened, expected=None):
        if self.kind != closing:
            raise self.unclosed(opened, expected or f"',' or '{closing}'")
        self.advance()

    # Expressions

    def expression(self, power=0):
        """Reads operators that bind more tightly than `power`."""
        self.depth = depth = self.depth + 1
        if depth > MAX_DEPTH + 1:  # one more, for the parentheses around a leaf
            raise self.too_deep()
        start = self.start
        self.height = 1
        prefix = _PREFIX.get(self.kind)
        if prefix is None or (power > NOT and self.kind == "not"):
            raise self.no_value()
        node = prefix(self)
        while True:
            infix = _INFIX.get(self.kind)
            if infix is None or infix[0] <= power:
                break
            node = infix[1](self, node, start)
        self.depth = depth - 1
        return node

    def grow(self, height=0):
        """One level above the node read last, and above `height`."""
        self.height = height = max(height, self.height) + 1
        if height > MAX_DEPTH:
            raise self.too_deep()

    def binary(self, left, start):
        op = self.kind
        height = self.height
        self.advance()
        right = self.expression(MINUS if op == "**" else BINDING_POWER[op])
        self.grow(height)
        return Binary(op, left, right, (start, self.end))

    def compare(self, left, start):
        ops, operands = [], [left]
        height = self.height
        while self.kind in COMPARISONS:
            ops.append(self.kind)
            self.advance()
            operands.append(self.expression(COMPARE))
            height = max(height, self.height)
        self.grow(height)
        return Compare(tuple(ops), tuple(operands), (start, self.end))

    def subscript(self, value, start):
        height = self.height
        index = self.index()
        self.grow(height)
        return Subscript(value, index, (start, self.end))

    def minus(self):
        start = self.start
        self.advance()
        literal = self.kind == "number"
        operand = self.expression(MINUS)
        span = (start, self.end)
        if literal and type(operand) is Integer:
            if operand.value > 2**63:
                raise PatchSyntaxError(f"-{operand.value} does not fit 64 bits; the least is {-(2**63)}", span=span)
            return Integer(-operand.value, span)
        self.grow()
        return Unary("-", operand, span)

    def negation(self):
        start = self.start
        self.advance()
        operand = self.expression(NOT)
        self.grow()
        return Unary("not", operand, (start, self.end))

    def parenthesis(self):
        opened = self.start
        self.advance()
        if self.kind == ")":
            raise PatchSyntaxError("there are no tuples; an empty list is '[]'", span=(opened, self.stop))
        node = self.expression()
        if self.kind == ",":
            raise self.fail("there are no tuples; a list is written '[1, 2]', two indices 'x[0, 1]'")
        self.close(")", opened, "')'")
        if self.height > 1:
            self.grow()
        return node

    def list(self):
        opened = self.start
        self.advance()
        items = []
        height = 1
        shape = None
        while self.kind != "]":
            item = self.expression()
            this = self.shape if type(item) is List else () if _is_scalar(item) else _OPEN
            if shape is not this:
                shape = this if shape is None else _merge(shape, this)
                if shape is None:
                    raise self.ragged(item)
            items.append(item)
            if self.height > height:
                height = self.height
            if self.kind != ",":
                break
            self.advance()
        self.close("]", opened)
        self.height = height
        self.grow()
        self.shape = (len(items), *(shape or ()))
        return List(tuple(items), (opened, self.end))

    # Operands

    def number(self):
        text, span = self.value, (self.start, self.stop)
        self.advance()
        if len(text) < 19 and text.isdigit() and (text[0] != "0" or text == "0"):
            return Integer(int(text), span)
        return _number(text, span)

    def name(self):
        name, start, stop = self.value, self.start, self.stop
        self.advance()
        kind = self.kind
        if kind == "(":
            return self.call(name, start)
        if kind == "." or (kind == "[" and name == "layers"):
            local = Local(name, (start, stop)) if name in self.locals else None
            return self.reference(Name(name, (start, stop)), start, local)
        if name in self.locals:
            return Local(name, (start, stop))
        if name in CONSTANTS:
            return Constant(name, (start, stop))
        span = (start, stop)
        return Reference(Selector((Name(name, span),), span), span)

    def string(self):
        start = self.start
        part = self.part()
        if self.kind == "(":
            raise PatchSyntaxError("a function's name is not quoted", span=part.span)
        return self.reference(part, start)

    def reference(self, part, start, local=None):
        """What goes on after its first part; it is the local if no further part follows."""
        selector, index = self.selector(part, start)
        node = local if local and len(selector.parts) == 1 else Reference(selector, selector.span)
        if index is None:
            return node
        self.grow()
        return Subscript(node, index, (start, self.end))

    def placeholder(self):
        span = (self.start, self.stop)
        self.advance()
        return self.implied(span)

    def boolean(self):
        value, span = self.value, (self.start, self.stop)
        self.advance()
        if self.kind == ".":
            raise self.keyword(value, span)
        return Boolean(value == "true", span)

    def binding(self):
        name, start = self.value[1:], self.start
        if name == "_":
            raise self.fail("'_' is reserved; a binding has a name, as '$x' has")
        self.advance()
        if self.kind != ".":
            return Binding(name, None, (start, self.end))
        self.advance()
        first = self.start
        if self.kind == "_":
            self.advance()
            return Binding(name, self.implied((first, self.end)), (start, self.end))
        if self.kind not in _PARTS:
            raise self.no_part()
        path, index = self.selector(self.part(), first)
        node = Binding(name, path, (start, path.span[1]))
        if index is None:
            return node
        self.grow()
        return Subscript(node, index, (start, self.end))

    def call(self, name, start):
        opened = self.start
        self.advance()
        arguments, names = [], set()
        height = 1
        while self.kind != ")":
            argument = self.argument()
            if argument.name is None and names:
                raise PatchSyntaxError("a positional argument follows a named one", span=argument.span)
            if argument.name in names:
                raise PatchSyntaxError(f"the argument '{shorten(argument.name)}' is given twice", span=argument.span)
            if argument.name is not None:
                names.add(argument.name)
            arguments.append(argument)
            height = max(height, self.height)
            if self.kind != ",":
                break
            self.advance()
        self.close(")", opened)
        self.height = height
        self.grow()
        return Call(name, tuple(arguments), (start, self.end))

    def argument(self):
        kind, name, start, stop = self.kind, self.value, self.start, self.stop
        value = self.passed()
        if self.kind == "=":
            if kind != "name" or self.end != stop:
                raise self.fail("only a name stands before the '=' of an argument; '==' compares")
            self.advance()
            value = self.passed()
        else:
            name = None
        self.grow()
        return Argument(name, value, (start, self.end))

    def passed(self):
        """What a call is passed. A string alone is a string there, and not a quoted name."""
        kind, text, span = self.kind, self.value, (self.start, self.stop)
        if kind == "string" and not text:
            self.advance()
            self.height = 1
            return String(text, span)
        value = self.expression()
        return String(text, span) if kind == "string" and self.end == span[1] else value

    # Faults

    def fail(self, message, *notes):
        """An error at the current token."""
        if self.kind in _ENDS:  # nothing to see there: after the token before it
            return PatchSyntaxError(message, span=(self.end, self.end), notes=notes)
        return PatchSyntaxError(message, span=(self.start, self.stop), notes=notes)

    def found(self):
        if self.kind in _ENDS:
            return "the end of the text" if self.kind == "" else "the end of the statement"
        return f"'{shorten(self.text[self.start : self.stop])}'"

    def before(self):
        """The token before the current one, for a message."""
        return f"'{shorten(_RUN.findall(self.text[max(0, self.end - 200) : self.end])[-1])}'"

    def keyword(self, word, span):
        return PatchSyntaxError(f"'{word}' is a keyword; as a name it is quoted: {quote(word)}", span=span)

    def too_deep(self):
        span = (self.start, self.stop) if self.kind not in _ENDS else (self.end, self.end)
        return LimitError(f"the expression is more than {MAX_DEPTH} levels deep", span=span)

    def no_target(self):
        kind = self.kind
        if kind in KEYWORDS:
            return self.keyword(kind, (self.start, self.stop))
        if kind.endswith("=") and kind.startswith("*"):
            return self.fail(
                f"the target before '{shorten(kind)}' is missing", "to edit all variables, put a space: '** = 2'"
            )
        if kind in ASSIGNMENTS:
            return self.fail(f"the target before '{kind}' is missing")
        if kind == "binding":
            return self.fail("a binding is a value; it cannot be assigned to")
        return self.fail(f"a statement begins with a target, 'let' or 'assert', found {self.found()}")

    def no_assignment(self):
        kind = self.kind
        if kind in _ENDS:
            return self.fail("the '=' is missing; an edit is 'target = value'")
        if kind == "==":
            return self.fail("'==' compares; write '=' to assign")
        if kind == "(":
            return self.fail("a call cannot be assigned to")
        if kind == "glob" or kind.startswith("**"):
            return self.fail(
                f"unexpected {self.found()}", "'k *= 2' multiplies, 'k* = 2' sets all whose name begins with k"
            )
        if kind.endswith("="):
            op = shorten(kind[:-1])
            return self.fail(f"there is no operator '{shorten(kind)}'; write 'x = _ {op} ...'")
        span = odd_name(self.text, self.start)
        if span:
            return misnamed(self.text[slice(*span)], span)
        if kind == ".":
            return self.fail("a further part follows only 'layers[i]'")
        return self.fail(f"expected an index or '=' after the target, found {self.found()}")

    def no_part(self):
        kind = self.kind
        if kind in KEYWORDS:
            return self.keyword(kind, (self.start, self.stop))
        if kind == "_":
            return self.fail("'_' is reserved; as a name it is quoted: \"_\"")
        if kind in ("*", "**"):
            return self.fail("a glob stands only in a target; a reference means exactly one variable")
        if kind == "number":
            return self.fail(f"a name is missing after '.', found {self.found()}", "the i-th layer is layers[i]")
        return self.fail(f"a name is missing after '.', found {self.found()}")

    def no_local(self, name):
        kind = self.kind
        if kind in (".", "[") or kind in ASSIGNMENTS:
            return self.keyword("let", (self.end - 3, self.end))
        if kind == "_":
            return self.fail("'_' is reserved; 'let' needs another name")
        if kind in KEYWORDS:
            return self.fail(f"'{kind}' is a keyword; 'let' needs another name")
        if kind == "name" and name in CONSTANTS:
            return self.fail(f"'{name}' is a constant; 'let' needs another name")
        if kind == "name":
            return self.fail(f"the local '{shorten(name)}' is already bound; 'let' needs another name")
        if kind == "string":
            return self.fail("the name of a local is not quoted")
        return self.fail(f"expected a name after 'let', found {self.found()}")

    def no_value(self):
        kind = self.kind
        if kind in _ENDS:
            return self.fail(f"a value is missing after {self.before()}")
        if kind == "not":
            return self.fail("'not' binds more loosely than the operator before it; write '(not x)'")
        if kind in KEYWORDS:
            return self.keyword(kind, (self.start, self.stop))
        if kind in ("*", "**"):
            return self.fail("a glob stands only in a target; a reference means exactly one variable")
        if kind == "+":
            return self.fail("there is no unary '+'")
        if kind == "...":
            return self.fail("'...' stands only in an index, alone")
        if kind == ":":
            return self.fail("a slice stands only in an index")
        return self.fail(f"a value is missing after {self.before()}, found {self.found()}")

    def unexpected(self):
        """The statement could end before the current token."""
        kind = self.kind
        if kind in (")", "]"):
            return self.fail(f"no bracket is open for '{kind}'")
        if kind == ",":
            return self.fail("there are no tuples; a list is written '[1, 2]'")
        return self.misplaced() or self.fail(
            f"expected the end of the statement, found {self.found()}", "statements end at a newline or ';'"
        )

    def unclosed(self, opened, expected):
        opening = self.text[opened]
        if self.kind == "":
            return PatchSyntaxError(f"'{opening}' is never closed", span=(opened, opened + 1))
        error = self.misplaced() if self.kind != "=" else None
        error = error or self.fail(f"expected {expected}, found {self.found()}")
        line = PatchSyntaxError("", span=(opened, opened + 1), source=self.text).line
        if line != error.locate(source=self.text).line:
            error.notes += (f"the '{opening}' of line {line} is still open",)
        return error

    def misplaced(self):
        """What is often written, and stands nowhere after a value."""
        kind = self.kind
        if kind == ".":
            return self.fail("a value has no attributes; only functions are called on it, as in 'mean(x)'")
        if kind == "(":
            return self.fail("only a function's name can be called")
        if kind == "=":
            return self.fail("a second '=' in the statement; '==' compares")
        if kind == ":":
            return self.fail("a slice stands only in an index")
        if kind == "name" and self.value == "if":
            return self.fail("there is no 'if'; 'where(condition, a, b)' chooses element by element")
        if kind == "name" and self.value == "for":
            return self.fail("there are no loops; operators and functions work on whole tensors")
        return None

    def ragged(self, item):
        message = "the list is ragged; all rows of a list have the same shape"
        return PatchSyntaxError(message, span=item.span)

    def recover(self, begin, fault):
        """Where the statement after the faulty one begins, or `None` at the end of the text.

        That is after the first newline or `;` behind the fault and outside brackets. Where a bracket is not closed
        nearby, it is the line of the fault if the fault is the first on it, else the line after the fault.
        """
        depth = 0
        fallback = None
        line = max(self.text.rfind(newline, begin, fault) for newline in "\r\n") + 1
        if line <= begin or self.text[line:fault].strip():
            line = None
        for found in _LANDMARK.finditer(self.text, begin, fault + RECOVERY):
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


_OPEN = (...,)  # the shape of what is not written out: anything may follow


def _is_scalar(node):
    if type(node) is Unary:
        node = node.operand
    return type(node) in (Integer, Float, Boolean, Constant)


def _merge(a, b):
    """The shape that fits both, or `None`; where one is open, the other says more."""
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


_ENDS = ("end", "")
_STOPS = ("\n", "\r\n", "\r", ";")
_PARTS = frozenset({"name", "string", "glob"})
_NEW_AXIS = ("newaxis", "None", "np.newaxis")
_RUN = re.compile(r"[\w.$]+|[-+*/=<>!]+|\S")
_LANDMARK = re.compile(r"\#[^\r\n]*|\"(?:[^\"\\\r\n]|\\.){0,999}\"|'(?:[^'\\\r\n]|\\.){0,999}'|[\[\]();]|\r\n|[\r\n]")

_PREFIX = {
    "number": _Parser.number,
    "name": _Parser.name,
    "string": _Parser.string,
    "binding": _Parser.binding,
    "true": _Parser.boolean,
    "false": _Parser.boolean,
    "_": _Parser.placeholder,
    "[": _Parser.list,
    "(": _Parser.parenthesis,
    "-": _Parser.minus,
    "not": _Parser.negation,
}
_INFIX = {op: (power, _Parser.binary) for op, power in BINDING_POWER.items() if not op.endswith("x")}
_INFIX |= dict.fromkeys(COMPARISONS, (COMPARE, _Parser.compare))
_INFIX["["] = (BINDING_POWER["["], _Parser.subscript)
