"""Hypothesis strategies: random patches of the whole language, as trees and as text.

`patches()` draws trees whose canonical text parses back to them; `texts()` draws text that need not parse.
"""

from hypothesis import strategies as st

from kpatch.syntax import (
    Argument,
    Assert,
    Binary,
    Binding,
    Boolean,
    Call,
    Choice,
    Compare,
    Constant,
    Edit,
    Ellipsis_,
    Float,
    For,
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
)

LOCALS = ("m", "layers", "e_")  # bound at the start of each patch
OPERATORS = ("+", "-", "*", "/", "//", "%", "@", "**", "and", "or")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=", "**=")

identifiers = st.sampled_from(
    ["kernel", "bias", "dense_1", "a", "mean", "e", "pi", "x", "newaxis_", "_a", "layers", "m"]
)
strange_names = st.sampled_from(
    [
        "conv-1",
        "café",
        "0",
        "12",
        "007",
        "1_0",
        "٣",
        "_",
        "let",
        "except",
        "for",
        "not",
        "a/b/c",
        "a.b",
        "*",
        "1x1",
        "層",
        'q"\\',
        "\n\t",
        "'",
    ]
)
names = st.builds(
    Name, identifiers | strange_names | st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
)
positions = st.builds(Position, st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 3))
globs = st.builds(Glob, st.sampled_from(["*", "?", "**", "conv*", "*_1", "b?ock", "_*", "let*", "x*y?z"]))
_texts = st.sampled_from(["a", "0", "2_x", "conv", "let", "_"]).map(Name)
_options = st.lists(_texts | st.sampled_from(["a*", "?", "*_1"]).map(Glob), min_size=2, max_size=3).map(tuple)
_letters = _texts.filter(lambda name: name.value != "let")
choices = st.builds(
    Choice,
    st.lists(names | globs, min_size=2, max_size=3).map(lambda options: (tuple(options),))
    | st.tuples(_letters.map(lambda name: (name,)), _options)
    | st.tuples(_options, _letters.map(lambda name: (name,)), _options)
    | st.tuples(_options, st.lists(_letters, min_size=2, max_size=2).map(tuple)),
)
strings = st.text(st.characters(exclude_categories=["Cc", "Cs"])) | st.sampled_from(["int8", "\a\b\f\n\r\t\v\"'\\", ""])


@st.composite
def selectors(draw, with_globs=False):
    middle = st.one_of(names, positions, globs, choices) if with_globs else names | positions
    last = st.one_of(names, globs, choices) if with_globs else names
    return Selector((*draw(st.lists(middle, max_size=3)), draw(last)))


integers = st.builds(Integer, st.integers(-(2**63), 2**64 - 1) | st.integers(-9, 9))
floats = st.builds(Float, st.floats(min_value=0, allow_infinity=False, allow_nan=False).map(abs))
booleans = st.builds(Boolean, st.booleans())
constants = st.builds(Constant, st.sampled_from(["inf", "nan", "pi", "e"]))
locals_ = st.builds(Local, st.sampled_from(LOCALS))
implied = st.just(Implied())
references = st.builds(Reference, selectors())
bindings = st.builds(Binding, identifiers, st.none() | implied | selectors())
leaves = st.one_of(integers, floats, booleans, constants, locals_, implied, references, bindings)


def _unaries(operands):
    return st.builds(Unary, st.sampled_from(["-", "not"]), operands)


def _compares(operands):
    ops = st.lists(st.sampled_from(COMPARISONS), min_size=1, max_size=3)
    return ops.flatmap(lambda ops: st.builds(Compare, st.just(tuple(ops)), st.tuples(*[operands] * (len(ops) + 1))))


def _lists(items):
    flat = st.lists(items.filter(lambda item: type(item) is not List), max_size=3)
    row = st.lists(integers, min_size=2, max_size=2).map(tuple).map(List)
    return st.builds(List, (flat | st.lists(row, max_size=3)).map(tuple))


@st.composite
def _calls(draw, values):
    positional = draw(st.lists(st.builds(Argument, st.none(), values | st.builds(String, strings)), max_size=3))
    words = draw(st.lists(identifiers, unique=True, max_size=2))
    named = [Argument(word, draw(values | st.builds(String, strings))) for word in words]
    return Call(draw(identifiers), (*positional, *named))


@st.composite
def indices(draw, values):
    """The items of an index, with at most one `...`."""
    bounds = st.none() | values
    items = draw(st.lists(values | st.builds(Slice, bounds, bounds, bounds), min_size=1, max_size=3))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), Ellipsis_())
    return tuple(items)


def _branches(children):
    return st.one_of(
        _unaries(children),
        st.builds(Binary, st.sampled_from(OPERATORS), children, children),
        _compares(children),
        _lists(children),
        _calls(children),
        st.builds(Subscript, children, indices(children)),
    )


expressions = st.recursive(leaves, _branches, max_leaves=8)
targets = st.builds(Target, st.one_of(implied, selectors(with_globs=True)), st.none() | indices(expressions))
exclusions = st.lists(selectors(with_globs=True), max_size=2).map(tuple)


@st.composite
def edits(draw):
    target = draw(targets)
    several = type(target.selector) is Selector and target.selector.is_glob
    return Edit(target, draw(st.sampled_from(ASSIGNMENTS)), draw(expressions), draw(exclusions) if several else ())


@st.composite
def blocks(draw):
    selector = draw(selectors(with_globs=True))
    inner = st.builds(Edit, st.builds(Target, implied, st.none() | indices(expressions)), st.just("="), expressions)
    statements = draw(st.lists(inner | assertions, min_size=1, max_size=2))
    if draw(st.booleans()):
        statements.append(Let("inside", draw(expressions)))
    return For(selector, draw(exclusions) if selector.is_glob else (), tuple(statements))


assertions = st.builds(Assert, expressions, st.none() | strings)


@st.composite
def patches(draw):
    statements = [Let(name, Integer(place)) for place, name in enumerate(LOCALS)]
    statements += draw(st.lists(st.one_of(edits(), assertions, blocks()), max_size=3))
    if draw(st.booleans()):
        statements.append(Let("last", draw(expressions)))
    return Patch(tuple(statements))


_FRAGMENTS = (
    *(
        "a",
        "kernel",
        "conv-1",
        "é",
        "_",
        "let ",
        "assert ",
        "layers",
        "not ",
        "and ",
        "true",
        "e",
        "$x",
        "$",
        "*",
        "**",
    ),
    *("?", ".", "...", "[", "]", "(", ")", ",", ":", "=", "==", "+=", "**=", "+", "-", "/", "//", "<", "!", "&", "\\"),
    *("0", "1", "1.", ".5", "1e", "0x", "1_", "9" * 20, '"', "'", '"s"', "\\n", "#", ";", "\n", "\r", " ", "\t", "\0"),
    *("\ufeff", "\ud800", "\u2028"),
)


@st.composite
def texts(draw):
    """Text that may or may not be a patch: noise, fragments of the language, or a patch with a wound."""
    kind = draw(st.sampled_from(["noise", "fragments", "wounded"]))
    if kind == "noise":
        return draw(st.text())
    if kind == "fragments":
        return "".join(draw(st.lists(st.sampled_from(_FRAGMENTS), max_size=30)))
    text = str(draw(patches()))
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(len(text), start + 5)))
    return text[:start] + draw(st.sampled_from(("", *_FRAGMENTS))) + text[stop:]
