"""The words and operators of the language, and the spelling of names and strings."""

import re

KEYWORDS = frozenset({"let", "assert", "except", "for", "and", "or", "not", "true", "false"})
CONSTANTS = frozenset({"inf", "nan", "pi", "e"})
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
ASSIGNMENTS = ("=", "+=", "-=", "*=", "/=", "**=")

# The binding powers, loosest first: for the parser, and for the parentheses of `str`.
LEVELS = (
    ("or",),
    ("and",),
    ("not x",),
    COMPARISONS,
    ("+", "-"),
    ("*", "/", "//", "%", "@"),
    ("-x",),
    ("**",),  # right-associative; its right operand can be a unary minus
    ("[",),
)
BINDING_POWER = {operator: power for power, level in enumerate(LEVELS, 1) for operator in level}
ATOM = BINDING_POWER["["]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGITS = re.compile(r"[0-9]+")
_ESCAPES = {ord(char): "\\" + letter for char, letter in zip('\\"\a\b\f\n\r\t\v', '\\"abfnrtv', strict=True)}


def is_name(text):
    """Whether the text is an identifier of the language: ASCII letters, digits and `_`."""
    return _NAME.fullmatch(text) is not None


def is_digits(text):
    """Whether the text is decimal digits alone, which are a part of a selector without quotes."""
    return _DIGITS.fullmatch(text) is not None


def quote(text):
    """The text as a string of the language."""
    return f'"{text.translate(_ESCAPES)}"'
