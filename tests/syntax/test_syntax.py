"""The language: its cases as data, and what holds of every text and every tree."""

import ast as python
import copy
import itertools
import json
import pathlib
import pickle
import sys

import pytest
import strategies
from counting import steps
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kpatch import syntax
from kpatch.errors import LimitError, PatchError, PatchSyntaxError
from kpatch.syntax import (
    MAX_DEPTH,
    Argument,
    Binary,
    Boolean,
    Call,
    Choice,
    Compare,
    Float,
    Integer,
    List,
    Local,
    Name,
    Patch,
    Reference,
    Selector,
    String,
    Subscript,
    Unary,
    children,
    nearest,
    parse,
    walk,
)
from kpatch.syntax import lexer as lexer_module
from kpatch.syntax import patch as patch_module
from kpatch.syntax.ast import letters

pytestmark = pytest.mark.backend_free

CASES = json.loads((pathlib.Path(__file__).parents[1] / "conformance" / "syntax.json").read_text("utf-8"))
LETS = "let m = 0; let layers = 1; let e_ = 2; "
slow_to_draw = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@pytest.mark.parametrize("case", CASES, ids=[case["source"][:40] for case in CASES])
def test_conformance(case):
    if "text" in case:
        patch = parse(case["source"])
        assert str(patch) == case["text"]
        assert parse(case["text"]) == patch
    else:
        with pytest.raises(PatchError) as caught:
            parse(case["source"])
        assert f"{type(caught.value).__name__}: {caught.value}" == case["error"]


# Trees


@slow_to_draw
@given(strategies.patches())
def test_canonical_text_parses_to_the_same_tree(patch):
    text = str(patch)
    parsed = parse(text)
    assert parsed == patch
    assert hash(parsed) == hash(patch)
    assert str(parsed) == text


@st.composite
def spaced(draw):
    """A patch, and its text with other spaces, newlines and comments in it."""
    patch = draw(strategies.patches())
    text = str(patch)
    parts = []
    end = depth = 0
    found = list(itertools.takewhile(lambda token: token[0], lexer_module.tokens(text)))
    for place, (kind, _, start, stop) in enumerate(found):
        fillings = [" ", "\t ", "  "] if start > end else [""]
        depth -= kind in ("]", ")")
        touching = "digits" in [each[0] for each in found[place : place + 2]]  # the dot and what is before it
        if depth and not touching:
            fillings += [filling + "\r\n # ]\n" for filling in fillings]
        depth += kind in ("[", "(", "choice")
        parts += draw(st.sampled_from(fillings)), text[start:stop]
        end = stop
    return patch, "".join(parts)


def _alone(text, node, name):
    """Parses a node's text where such a node may stand."""
    if name in ("Edit", "Assert", "Let", "For"):
        bound = name == "Let" and node.name in strategies.LOCALS
        return parse(text if bound else LETS + text).statements[-1]
    if name in ("Target", "Selector", "Name", "Glob", "Choice") or name == "Implied":
        target = parse(f"{LETS}{text} = 0").statements[-1].target
        by_name = {"Target": target, "Selector": target.selector, "Implied": target.selector}
        return by_name[name] if name in by_name else target.selector.parts[0]
    if name == "Position":
        return parse(f"{text}.x = 0").statements[0].target.selector.parts[0]
    if name in ("Slice", "Ellipsis_"):
        return parse(f"{LETS} x = y[{text}]").statements[-1].value.index[0]
    argument = parse(f"{LETS} x = f({text})").statements[-1].value.arguments[0]
    if name in ("Argument", "String"):
        return argument if name == "Argument" else argument.value
    return argument.value.reference if type(argument.value) is String else argument.value


@slow_to_draw
@given(spaced())
def test_spaces_change_nothing_and_spans_are_exact(drawn):
    patch, text = drawn
    parsed = parse(text)
    assert parsed == patch
    alternatives = {id(each) for node in walk(parsed) if type(node) is Choice for each in children(node)}
    for node in walk(parsed):
        name = type(node).__name__
        if id(node) in alternatives:  # no part by itself, such as the `1x` of `(1x|2)`
            assert text[slice(*node.span)] in (letters(node), str(node))
            continue
        inner = text[slice(*node.span)]
        if name == "Patch":
            assert inner == text
            continue
        assert inner == inner.strip()
        if name in ("Selector", "Name", "Position") and "\n" in inner:
            continue  # legal inside brackets only
        assert _alone(inner, node, name) == node


def test_span_of_parenthesised_operands():
    source = "x = (1 + 2) * (3)"
    product = parse(source).statements[0].value
    texts = [source[slice(*node.span)] for node in (product, product.left, product.right)]
    assert texts == ["(1 + 2) * (3)", "1 + 2", "3"]


def test_offsets_count_the_bom():
    patch = parse("\ufeffa = 1")
    assert patch.source == "\ufeffa = 1"
    assert patch.source[slice(*patch.statements[0].span)] == "a = 1"


@slow_to_draw
@given(strategies.patches())
def test_pickle_copy_and_repr(patch):
    parsed = parse(str(patch))
    again = pickle.loads(pickle.dumps(parsed))
    assert again == parsed
    assert hash(again) == hash(parsed)
    assert [node.span for node in walk(again)] == [node.span for node in walk(parsed)]
    assert again.source == parsed.source
    assert copy.deepcopy(parsed) == parsed
    assert copy.copy(parsed) == parsed
    assert repr(again) == repr(parsed)


def test_literals_of_different_types_differ():
    assert len({Integer(1), Float(1.0), Boolean(True)}) == 3
    assert parse("x = 1") != parse("x = 1.0")
    assert parse("x = 1") == parse("x  = (0x1)  # one")
    assert hash(parse("x = 1")) == hash(parse(" x=1"))


def test_nodes_are_frozen_and_small():
    node = Integer(1)
    with pytest.raises(AttributeError):
        node.value = 2
    assert not hasattr(node, "__dict__")
    assert repr(Argument("axis", Integer(-1), (3, 5))) == "Argument(name='axis', value=Integer(value=-1))"


def test_scope_is_static():
    first, _, third = parse("x = m\nlet m = 1\nx = m + m.kernel + f(m=m)").statements
    assert first.value == Reference(Selector((Name("m"),)))
    assert third.value.left.left == Local("m")
    assert third.value.left.right == Reference(Selector((Name("m"), Name("kernel"))))
    assert third.value.right == Call("f", (Argument("m", Local("m")),))


def test_a_string_is_a_reference_where_a_function_takes_none():
    string = parse('x = mean("a/b")').statements[0].value.arguments[0].value
    assert string == String("a/b")
    assert string.reference == parse('x = ("a/b")').statements[0].value
    assert string.reference.span == string.span == (9, 14)


# Python's own parser knows Python's precedence

BINARY = {"Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "FloorDiv": "//", "Mod": "%", "MatMult": "@", "Pow": "**"}
COMPARE = {"Eq": "==", "NotEq": "!=", "Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">="}


def _from_python(node):
    """The kpatch tree of a Python expression, or a KeyError or TypeError where kpatch has none."""
    match node:
        case python.Constant():
            return Integer(node.value)
        case python.Name():
            return Local(node.id)
        case python.List():
            return List(tuple(map(_from_python, node.elts)))
        case python.UnaryOp(op=python.USub(), operand=python.Constant()):
            return Integer(-node.operand.value)
        case python.UnaryOp():
            return Unary({"USub": "-", "Not": "not"}[type(node.op).__name__], _from_python(node.operand))
        case python.BinOp():
            op = BINARY[type(node.op).__name__]
            return Binary(op, _from_python(node.left), _from_python(node.right))
        case python.BoolOp():
            first, *others = map(_from_python, node.values)
            for other in others:
                first = Binary(type(node.op).__name__.lower(), first, other)
            return first
        case python.Compare():
            operands = [node.left, *node.comparators]
            ops = tuple(COMPARE[type(op).__name__] for op in node.ops)
            return Compare(ops, tuple(map(_from_python, operands)))
        case python.Subscript():
            return Subscript(_from_python(node.value), (_from_python(node.slice),))
    raise TypeError(node)


TOKENS = ("a", "b", "1", "2", "not", "and", "or", "(", ")", "[", "]", "-", "-", *BINARY.values(), *COMPARE.values())


@settings(max_examples=500)
@given(st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join))
@example("2 ** - 1 ** 2")
@example("not a == b and a < b == 1")
@example("- a [ 1 ] ** 2 * b")
@example("a == not b")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_expressions_as_python_reads_them(text):
    try:
        expected = _from_python(python.parse(text, mode="eval").body)
    except SyntaxError:
        expected = None
    except (KeyError, TypeError):
        return  # a call of a value, a unary plus, a tuple
    if "- (" in text or "@ =" in text:
        return  # -(1) is no literal here
    try:
        found = parse(f"let a = 0\nlet b = 0\nx = {text}").statements[2].value
    except PatchError:
        found = None
    assert found == expected


# Any text


def _attempt(text):
    try:
        return parse(text), ()
    except PatchError as error:
        return None, error.errors


@settings(max_examples=400)
@given(strategies.texts())
def test_any_text_is_a_patch_or_a_patch_error(text):
    patch, errors = _attempt(text)
    if patch is not None:
        assert parse(str(patch)) == patch
        assert patch.source == text
    else:
        spans = [error.span for error in errors]
        assert spans == sorted(spans)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert all(error.source == text and str(error) for error in errors)


@pytest.mark.parametrize("text", [None, b"a = 1", 1, ["a = 1"]], ids=repr)
def test_only_strings_are_parsed(text):
    with pytest.raises(PatchSyntaxError, match="Received: text="):
        parse(text)


def test_a_string_of_a_subclass_is_parsed():
    class Text(str):
        __slots__ = ()
        __hash__ = None

    assert parse(Text("a = 1")) == parse("a = 1")


DEEP = {
    "parentheses": ("(", "1", ")"),
    "lists": ("[", "1", "]"),
    "minus": ("-", "x", ""),
    "not": ("not ", "x", ""),
    "sum": ("1+", "1", ""),
    "power": ("2**", "2", ""),
    "subscripts": ("", "x", "[0]"),
    "indices": ("y[", "1", "]"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_depth_is_bounded(kind):
    before, leaf, after = DEEP[kind]
    for levels in (MAX_DEPTH + 1, 10_000, 1_000_000):
        with pytest.raises(LimitError, match=r"^the expression is more than 100 levels deep\n"):
            parse(f"x = {before * levels}{leaf}{after * levels}")
    levels = MAX_DEPTH - 1
    patch = parse(f"x = {before * levels}{leaf}{after * levels}")
    assert parse(str(patch)) == patch
    assert pickle.loads(pickle.dumps(patch)) == copy.deepcopy(patch)
    assert repr(patch)


@pytest.mark.parametrize("unit", ["f({})", "f(a={})", "y[1:{}]", "-({} + 1)", "[{}, 1][0]", "not ({} == 1)"])
def test_the_deepest_trees_survive_little_stack(unit):
    text = "k"
    patch = None
    for _ in range(MAX_DEPTH):
        try:
            patch = parse(f"x = {text}")
        except LimitError:
            break
        text = unit.format(text)

    def work(frames):
        if frames:
            return work(frames - 1)
        patch_module._parse(patch.source)
        return hash(patch), str(patch), repr(patch), pickle.loads(pickle.dumps(patch)) == patch

    assert work(sys.getrecursionlimit() // 3)[-1]
    assert parse(str(patch)) == patch


GARBAGE = [
    "[",
    "(",
    "*",
    "?",
    "-",
    "a.",
    "1_",
    "'",
    "\\'",
    "a[\n",
    "(]\n",
    "\ud800",
    "é",
    "#\n",
    ";",
    "a-",
    "x = 'y\n",
    "1x",
]


@pytest.mark.parametrize("unit", GARBAGE)
def test_garbage_takes_linear_time(unit):
    """At most 143 steps a character, of nested brackets that are never closed; most units take fewer than 20."""
    for length in (2_000, 32_000):
        assert steps(_attempt, unit * (length // len(unit))) < 200 * length
    _, errors = _attempt(unit * (100_000 // len(unit)))
    assert not errors or len(str(errors[0])) < 20_000


def test_length_is_bounded():
    with pytest.raises(LimitError) as caught:
        parse("#" * (2**24 + 1))
    assert str(caught.value) == "the patch has 16,777,217 characters; at most 16,777,216 are read"
    assert parse("#" * 2**24) == Patch(())


def test_tokens_are_bounded(monkeypatch):
    monkeypatch.setattr(lexer_module, "MAX_TOKENS", 1000)
    with pytest.raises(LimitError, match=r"^the patch has more than 6,000,000 tokens$"):
        patch_module._parse("a = 1;" * 1000)


def test_all_errors_are_reported_up_to_a_limit():
    with pytest.raises(PatchSyntaxError) as caught:
        parse("a = \nb = 1\nc = 1..2\n[\nlet pi = 3\nd[0 = 1")
    assert [error.line for error in caught.value.errors] == [1, 3, 4, 5, 6]
    with pytest.raises(PatchSyntaxError) as caught:
        parse("a = \n" * 1000)
    assert len(caught.value.errors) == syntax.MAX_ERRORS


def test_the_example_of_the_error_page():
    with pytest.raises(PatchSyntaxError) as caught:
        parse("dense.kernel[0 = 1")
    assert (caught.value.line, caught.value.column, caught.value.span) == (1, 16, (15, 16))


# Time, counted in steps


def test_parsing_is_cached_for_short_texts_only():
    assert parse("cached.kernel = 1") is parse("cached.kernel = 1")
    text = "a = 1\n" * patch_module.MAX_CACHED
    assert parse(text) is not parse(text)


def test_time_is_linear_in_the_statements():
    small, large = (steps(parse, "dense_1.kernel[123,456] = 0.123456\n" * statements) for statements in (500, 2_000))
    assert large < 4.1 * small
    assert large < 500 * 2_000


# Spelling


@pytest.mark.parametrize(
    ("word", "candidates", "expected"),
    [
        ("kernal", ["bias", "kernel"], "kernel"),
        ("Kernel", ["kernal", "kernel"], "kernel"),
        ("kernel", ["bias", "gamma"], None),
        ("kernel", [], None),
        ("", ["a"], None),
        ("x" * 1000, ["x" * 999], None),
    ],
)
def test_nearest(word, candidates, expected):
    assert nearest(word, iter(candidates)) == expected


def test_nearest_among_many():
    names = [f"dense_{i}.kernel" for i in range(20_000)]
    assert nearest("dense_7777.kernal", names) == "dense_7777.kernel"
    assert steps(nearest, "dense_7777.kernal", names) < 20 * len(names)


def test_nearest_is_bounded_in_time():
    """Few candidates are compared at length, however many there are."""
    few, many = (steps(nearest, "ab" * 50, ["ba" * 50 + str(i) for i in range(count)]) for count in (200, 20_000))
    assert many < 1.1 * few


# The house


def test_syntax_knows_nothing_of_keras():
    allowed = {
        "re",
        "gc",
        "difflib",
        "heapq",
        "itertools",
        "math",
        "functools",
        "dataclasses",
        "collections",
        "typing",
        "kpatch",
    }
    for file in pathlib.Path(syntax.__file__).parent.glob("*.py"):
        for node in python.walk(python.parse(file.read_text("utf-8"))):
            if isinstance(node, python.Import):
                assert {alias.name for alias in node.names} <= allowed, file
            if isinstance(node, python.ImportFrom):
                assert node.module.split(".")[0] in allowed, file
                assert not node.module.startswith("kpatch") or node.module.startswith(
                    ("kpatch.syntax", "kpatch.errors", "kpatch.view")
                )
