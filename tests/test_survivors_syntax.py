"""Behaviour of the language that mutants of the code had shown to be untested."""

import keras
import pytest

from kpatch.errors import LimitError
from kpatch.syntax import parse

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
