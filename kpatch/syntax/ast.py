"""The tree of a patch: frozen nodes.

The last field of every node is `span`, the offsets of its text in the source; `==` ignores it. `str(node)` is canonical
source: parsing it gives an equal node.

The parser limits the tree to `MAX_DEPTH` levels, so `hash`, `==`, `repr`, `str` and `pickle` can recurse.
"""

from dataclasses import dataclass  # noqa: I001 - in one import, all nodes are found here

from kpatch.syntax.parts import (
    Choice as Choice,
    Glob as Glob,
    Key as Key,
    Name as Name,
    Node as Node,
    Position as Position,
    Selector as Selector,
    alternatives_of as alternatives_of,
    letters as letters,
    no_span,
)
from kpatch.syntax.words import ATOM, BINDING_POWER, is_digits, quote

MAX_DEPTH = 100  # levels of nested operators, brackets, lists and calls in an expression


# Targets


@dataclass(frozen=True, slots=True)
class Implied(Node):
    """`_`: the implied tensor, or the current value of the target or of the indexed tensor."""

    span: tuple = no_span()

    def __str__(self):
        return "_"


@dataclass(frozen=True, slots=True)
class Target(Node):
    """The left side of an edit. `index` is `None` for a whole tensor."""

    selector: Selector | Implied
    index: tuple | None = None
    span: tuple = no_span()

    def __str__(self):
        return f"{self.selector}{_brackets(self.index)}" if self.index is not None else str(self.selector)


# Statements


@dataclass(frozen=True, slots=True)
class Edit(Node):
    """`target op value except exclusions`, where `op` is one of ASSIGNMENTS; the exclusions are `Selector`s."""

    target: Target
    op: str
    value: Node
    exclusions: tuple = ()
    span: tuple = no_span()

    def __str__(self):
        return f"{self.target} {self.op} {self.value}{_except(self.exclusions)}"


@dataclass(frozen=True, slots=True)
class Assert(Node):
    """`assert condition, "message"`; the message may be `None`."""

    condition: Node
    message: str | None = None
    span: tuple = no_span()

    def __str__(self):
        return f"assert {self.condition}" + (f", {quote(self.message)}" if self.message is not None else "")


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name = value`."""

    name: str
    value: Node
    span: tuple = no_span()

    def __str__(self):
        return f"let {self.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class For(Node):
    """`for selector except exclusions { statements }`: the statements for each match, which is their `_`."""

    selector: Selector
    exclusions: tuple
    statements: tuple
    span: tuple = no_span()

    def __str__(self):
        return f"for {self.selector}{_except(self.exclusions)} {{ {'; '.join(map(str, self.statements))} }}"


# Literals and names in an expression


@dataclass(frozen=True, slots=True)
class Integer(Node):
    """`64`, `-1`: includes a minus sign directly before it."""

    value: int
    span: tuple = no_span()

    def __str__(self):
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Float(Node):
    """`0.5`, `1e-3`; never negative, infinite or NaN."""

    value: float
    span: tuple = no_span()

    def __str__(self):
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    """`true`, `false`."""

    value: bool
    span: tuple = no_span()

    def __str__(self):
        return "true" if self.value else "false"


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """`inf`, `nan`, `pi`, `e`."""

    name: str
    span: tuple = no_span()

    def __str__(self):
        return self.name


@dataclass(frozen=True, slots=True)
class List(Node):
    """`[[1, 2], [3, 4]]`: the nested literals are rectangular."""

    items: tuple
    span: tuple = no_span()

    def __str__(self):
        return f"[{', '.join(map(str, self.items))}]"


@dataclass(frozen=True, slots=True)
class Local(Node):
    """A name bound by an earlier `let`."""

    name: str
    span: tuple = no_span()

    def __str__(self):
        return self.name


@dataclass(frozen=True, slots=True)
class Reference(Node):
    """Another variable, by a selector without globs. A single part is printed in quotes, to differ from a local."""

    selector: Selector
    span: tuple = no_span()

    def __str__(self):
        first, *rest = self.selector.parts
        quoted = not rest or (isinstance(first, Name) and is_digits(first.value))  # else a local, or a number
        return ".".join([quote(first.value) if quoted else str(first), *map(str, rest)])


@dataclass(frozen=True, slots=True)
class Binding(Node):
    """`$x`, `$donor.dense.kernel`, `$donor._`: a bound value, or a variable of a bound model."""

    name: str
    path: Selector | Implied | None = None
    span: tuple = no_span()

    def __str__(self):
        return f"${self.name}" if self.path is None else f"${self.name}.{self.path}"


# Operators


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """`-x`, `not x`."""

    op: str
    operand: Node
    span: tuple = no_span()

    def __str__(self):
        if self.op == "not":
            return f"not {_operand(self.operand, BINDING_POWER['not x'])}"
        if type(self.operand) is Integer and self.operand.value >= 0:
            return f"-({self.operand})"  # without parentheses it would be a negative literal
        return f"-{_operand(self.operand, BINDING_POWER['-x'])}"


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """`a + b`, `a and b`, and so on."""

    op: str
    left: Node
    right: Node
    span: tuple = no_span()

    def __str__(self):
        power = BINDING_POWER[self.op]
        left, right = (ATOM, BINDING_POWER["-x"]) if self.op == "**" else (power, power + 1)
        return f"{_operand(self.left, left)} {self.op} {_operand(self.right, right)}"


@dataclass(frozen=True, slots=True)
class Compare(Node):
    """`a < b`, and chained as in Python: `a < b <= c`."""

    ops: tuple
    operands: tuple
    span: tuple = no_span()

    def __str__(self):
        first, *others = [_operand(operand, BINDING_POWER["<"] + 1) for operand in self.operands]
        return " ".join([first, *(f"{op} {operand}" for op, operand in zip(self.ops, others, strict=True))])


@dataclass(frozen=True, slots=True)
class String(Node):
    """A string as the argument of a call: `cast(x, "int8")`."""

    value: str
    span: tuple = no_span()

    def __str__(self):
        return quote(self.value)

    @property
    def reference(self):
        """The string as a quoted name, for a parameter that takes no strings: `mean("encoder/kernel")`."""
        return Reference(Selector((Name(self.value, self.span),), self.span), self.span)


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """One argument of a call; `name` is `None` if it is positional."""

    name: str | None
    value: Node
    span: tuple = no_span()

    def __str__(self):
        text = str(self.value)
        if type(self.value) is Reference and len(self.value.selector.parts) == 1:
            text = f"({text})"  # a quoted name alone would be a string
        return text if self.name is None else f"{self.name}={text}"


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`clip(x, 0, 1)`."""

    function: str
    arguments: tuple
    span: tuple = no_span()

    def __str__(self):
        return f"{self.function}({', '.join(map(str, self.arguments))})"


# Subscripts


@dataclass(frozen=True, slots=True)
class Subscript(Node):
    """`x[0, 1:]`: entries of a value."""

    value: Node
    index: tuple
    span: tuple = no_span()

    def __str__(self):
        return _operand(self.value, ATOM) + _brackets(self.index)


@dataclass(frozen=True, slots=True)
class Slice(Node):
    """`start:stop:step` in an index; each may be `None`."""

    start: Node | None
    stop: Node | None
    step: Node | None = None
    span: tuple = no_span()

    def __str__(self):
        start, stop, step = ["" if part is None else str(part) for part in (self.start, self.stop, self.step)]
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


@dataclass(frozen=True, slots=True)
class Ellipsis_(Node):
    """`...` in an index."""

    span: tuple = no_span()

    def __str__(self):
        return "..."


def children(node):
    """The nodes directly below a node, in the order of the source.

    Example:
        >>> from kpatch.syntax import parse
        >>> [str(child) for child in children(parse("bias[0] = 1").statements[0])]
        ['bias[0]', '1']
    """
    for name in node.__match_args__:
        value = getattr(node, name)
        if isinstance(value, Node):
            yield value
        elif type(value) is tuple:
            for item in value:
                if isinstance(item, Node):
                    yield item
                elif type(item) is tuple:  # of a `Choice`
                    yield from item


def walk(node):
    """The node and all nodes below it, in the order of the source.

    Example:
        >>> from kpatch.syntax import parse
        >>> [type(found).__name__ for found in walk(parse("bias = pi"))]
        ['Patch', 'Edit', 'Target', 'Selector', 'Name', 'Constant']
    """
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(list(children(node))))


def mapped(node, change):
    """The tree with each node replaced by `change(node)`, leaves first."""

    def new(value):
        if isinstance(value, Node):
            return mapped(value, change)
        return tuple(map(new, value)) if type(value) is tuple else value

    return change(type(node)(*[new(getattr(node, name)) for name in node.__match_args__]))


def _operand(node, power):
    """The node's text, in parentheses if its binding power is below `power`."""
    return str(node) if _power(node) >= power else f"({node})"


def _power(node):
    if type(node) is Binary:
        return BINDING_POWER[node.op]
    if type(node) is Compare:
        return BINDING_POWER["<"]
    if type(node) is Unary:
        return BINDING_POWER["not x" if node.op == "not" else "-x"]
    if type(node) is Integer and node.value < 0:
        return BINDING_POWER["-x"]
    return ATOM


def _except(exclusions):
    return f" except {', '.join(map(str, exclusions))}" if exclusions else ""


def _brackets(index):
    return f"[{', '.join(map(str, index))}]"
