"""The lexer of Pygments for patches: `kpatch` in Sphinx, Markdown, `pygmentize` and notebooks.

It colours any text, also one that is not a patch, so it has no grammar of its own beyond words and signs.
"""

from typing import ClassVar

from pygments.lexer import RegexLexer, words
from pygments.style import Style
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

KEYWORDS = ("let", "assert", "and", "or", "not", "for", "except")  # a test compares them with the language's own
CONSTANTS = ("true", "false", "inf", "nan", "pi", "e")


class PatchStyle(Style):
    """Colours of middle brightness, which can be read on light and on dark ground."""

    styles: ClassVar = {
        Comment: "italic #808080",
        Keyword: "bold #3b82c4",
        Name.Builtin.Pseudo: "bold",
        Name.Variable: "#a05cc4",
        Number: "#c2621b",
        String: "#3f9142",
    }


class PatchLexer(RegexLexer):
    """Example:
    >>> from pygments import highlight
    >>> from pygments.formatters import NullFormatter
    >>> highlight("head.bias[7] = -100", PatchLexer(), NullFormatter())
    'head.bias[7] = -100\\n'
    """

    name = "kpatch"
    aliases: ClassVar = ["kpatch"]
    filenames: ClassVar = ["*.kpatch"]
    mimetypes: ClassVar = ["text/x-kpatch"]

    tokens: ClassVar = {
        "root": [
            (r"\s+", Text.Whitespace),
            (r"#[^\r\n]*", Comment.Single),
            (r'"(?:[^"\\\r\n]|\\.)*"|' + r"'(?:[^'\\\r\n]|\\.)*'", String),
            (r"\$[A-Za-z_]\w*", Name.Variable),
            (words(KEYWORDS, prefix=r"\b", suffix=r"\b"), Keyword),
            (words(CONSTANTS, prefix=r"(?<![\w.])", suffix=r"\b(?![.(])"), Keyword.Constant),
            (r"_\b", Name.Builtin.Pseudo),
            (r"[A-Za-z_]\w*(?=\s*\()", Name.Function),
            (r"[A-Za-z_]\w*", Name),
            (r"0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+", Number),
            (r"(?:\d[\d_]*)?\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*(?:\.(?![.\w]))?(?:[eE][-+]?\d+)?", Number),
            (r"\*\*=?|//=?|[-+*/@%<>=!]=?|\.\.\.|\|", Operator),
            (r"[\[\](){},;:.?]", Punctuation),
            (r".", Text),
        ]
    }
