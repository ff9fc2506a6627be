"""Behaviour of the language that mutants of the code had shown to be untested."""

from dataclasses import is_dataclass

import keras
import pytest

from kpatch.errors import LimitError, PatchSyntaxError
from kpatch.syntax import ast, parse
from kpatch.syntax.lexer import odd_name

pytestmark = pytest.mark.skipif(keras.backend.backend() != "numpy", reason="needs no backend: tested once")

DEEPEST = [  # what stands before and after a leaf, and how often it may
    ("(", "1", ")", 100),
    ("[", "1", "]", 99),
    ("-", "w", "", 99),
    ("not ", "w", "", 99),
    ("", "w", " + 1", 99),
    ("", "w", " and w", 99),
    ("w ** ", "w", "", 99),
    ("w[", "0", "]", 99),
    ("", "w", "[0]", 99),
    ("f(", "1", ")", 49),  # a call and its argument are two levels
    ("f(x=", "1", ")", 49),
    ("(", "w", ") < 1", 50),  # parentheses around an operator's side, and the comparison
    ("f([", "w", "])", 33),
]


@pytest.mark.parametrize(("before", "leaf", "after", "count"), DEEPEST)
def test_an_expression_has_at_most_100_levels(before, leaf, after, count):
    assert parse(f"x = {before * count}{leaf}{after * count}")
    with pytest.raises(LimitError, match=r"^the expression is more than 100 levels deep\n"):
        parse(f"x = {before * (count + 1)}{leaf}{after * (count + 1)}")


# Errors

A = "a" * 39

MESSAGES = [
    # a name is shown whole up to 40 characters
    (f"let {A} = 1; let {A} = 2", f"the local '{A}' is already bound; 'let' needs another name"),
    (f"let {A}b = 1; let {A}b = 2", f"the local '{A}b' is already bound; 'let' needs another name"),
    (f"let {A}bc = 1; let {A}bc = 2", f"the local '{A}…' is already bound; 'let' needs another name"),
    # an odd name begins with a letter and ends with a letter or a digit
    ("conv-1 = 2", "the name 'conv-1' must be quoted: \"conv-1\""),
    ("conv-1- = 2", "expected an index or '=' after the target, found '-'"),
    ("c- = 2", "expected an index or '=' after the target, found '-'"),
    # keywords and constants where they cannot stand
    ("x = 1 + or 2", "'or' is a keyword; quote it to use it as a name: \"or\""),
    ("x = 1 + not 2", "'not' binds more loosely than the operator before it; write '(not x)'"),
    ('let "pi" = 1', "the name of a local is not quoted"),
    ("let pi = 1", "'pi' is a constant; 'let' needs another name"),
    # words that other languages have, and names that are like them
    ("x = 1 for", "an expression has no loops; operators and functions work on whole tensors"),
    ("x = 1 $for", "expected the end of the statement, found '$for'"),
    ("x = 1 'for'", "expected the end of the statement, found ''for''"),
    ("x = 1 if", "there is no 'if'; 'where(condition, a, b)' chooses element by element"),
    ("x = 1 'if'", "expected the end of the statement, found ''if''"),
]


@pytest.mark.parametrize(("text", "message"), MESSAGES)
def test_the_message_of_an_error(text, message):
    with pytest.raises(PatchSyntaxError) as caught:
        parse(text)
    assert caught.value.message == message


def test_a_name_that_needs_quotes_is_marked_up_to_200_characters_on_each_side():
    assert odd_name("conv-1 = 2", 4) == (0, 6)
    assert odd_name("x + conv-1 = 2", 8) == (4, 10)
    assert odd_name("c-" + "a" * 300, 1) == (0, 201)
    assert odd_name("ccc-" + "a" * 300, 3) == (0, 203)
    assert odd_name("a" * 300 + "-1", 300) == (100, 302)
    assert odd_name("-conv-1", 0) is None
    assert odd_name("conv-1-", 6) is None
    assert odd_name("1conv-a", 5) is None


# Trees

KINDS = [cls for cls in vars(ast).values() if isinstance(cls, type) and issubclass(cls, ast.Node) and is_dataclass(cls)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_nodes_are_small_and_cannot_be_changed(kind):
    """A patch has up to a million of them; and patches that are kept share theirs."""
    assert len(KINDS) > 20
    assert kind.__dictoffset__ == 0  # no `__dict__`
    assert kind.__dataclass_params__.frozen
    assert kind.__hash__ is not None


def test_depth_counts_again_after_each_item_of_a_list():
    deep = f"x = {'(' * 60}[1, 1, 1, {'(' * 60}1{')' * 60}]{')' * 60}"
    with pytest.raises(LimitError, match=r"^the expression is more than 100 levels deep\n"):
        parse(deep)


TEXTS = [
    "x = 0 ** 2",
    "x = 0 + 1",
    "x = (-1) ** 2",
    'x = "zeta"[0]',
    "x = layers[0].k",
    "let zeta = [1, 2]\nx = zeta[0]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_tree_is_printed_as_it_is_written(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize("name", ["x", "xx"])
def test_the_line_after_an_unclosed_bracket_is_checked_too(name):
    with pytest.raises(PatchSyntaxError) as caught:
        parse(f"{name} = (1\ny = = 2")
    assert [(error.message, error.line) for error in caught.value.errors] == [
        ("expected ')', found 'y'", 2),
        ("a value is missing after '=', found '='", 2),
    ]


@pytest.mark.parametrize("rows", ["[1, 2], [1, 2, 3]", "[1, 2, 3], [1, 2]", "[[w], [w]], [[w], [w], [w]]", "1, [w]"])
def test_rows_of_a_list_have_one_shape(rows):
    with pytest.raises(PatchSyntaxError, match=r"^the list is ragged; all rows of a list have the same shape"):
        parse(f"x = [{rows}]")
