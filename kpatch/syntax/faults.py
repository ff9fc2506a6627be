"""The errors of the parser: each names the mistake at the current token and the right form."""

import re

from kpatch.errors import LimitError, PatchSyntaxError
from kpatch.syntax import habits
from kpatch.syntax.ast import MAX_DEPTH
from kpatch.syntax.lexer import misnamed, odd_name, shorten
from kpatch.syntax.words import ASSIGNMENTS, CONSTANTS, KEYWORDS, quote

BLOCK = "a block is 'for **.kernel { _ *= 2 }'"
ENDS = ("end", "")  # the kinds of token that end a statement
_RUN = re.compile(r"[\w.$]+|[-+*/=<>!]+|\S")


def keyword(word, span):
    return PatchSyntaxError(f"'{word}' is a keyword; quote it to use it as a name: {quote(word)}", span=span)


def too_deep(p):
    span = (p.start, p.stop) if p.kind not in ENDS else (p.end, p.end)
    return LimitError(f"the expression is more than {MAX_DEPTH} levels deep", span=span)


def no_target(p):
    kind = p.kind
    if kind in KEYWORDS:
        return keyword(kind, (p.start, p.stop))
    if kind.endswith("=") and kind.startswith("*"):
        return p.fail(f"the target before '{shorten(kind)}' is missing", "to edit all variables, put a space: '** = 2'")
    if kind in ASSIGNMENTS:
        return p.fail(f"the target before '{kind}' is missing")
    if kind == "binding":
        return p.fail("a binding is a value; it cannot be assigned to")
    note = ["alternatives are written (a|b).bias"] if kind == "{" else []
    return p.fail(f"a statement begins with a target, 'let', 'assert' or 'for', found {p.found()}", *note)


def no_assignment(p):
    kind = p.kind
    said = before(p)[1:-1]
    if said in habits.STATEMENTS and kind not in ENDS:
        return PatchSyntaxError(habits.STATEMENTS[said], span=(p.end - len(said), p.end))
    if kind in ENDS:
        return p.fail(habits.assignment(p.text[: p.end]) or "the '=' is missing; an edit is 'target = value'")
    if kind == ":":
        return p.fail(_colon(p))
    if kind in "+-" and p.text.startswith(kind, p.stop):
        return p.fail(f"there is no '{kind}{kind}'; write '{kind}= 1'")
    if kind == "==":
        return p.fail("'==' compares; write '=' to assign")
    if kind in ("(", "choice"):
        return p.fail("a call cannot be assigned to; an index stands in square brackets, as in 'x[0, 0] = 1'")
    if kind == "except":
        return misplaced(p)
    if kind == "glob" or kind.startswith("**"):
        note = "'k *= 2' multiplies, 'k* = 2' sets all variables whose name begins with k"
        return p.fail(f"unexpected {p.found()}", note)
    if kind.endswith("="):
        op = shorten(kind[:-1])
        return p.fail(f"there is no operator '{shorten(kind)}'; write 'x = _ {op} ...'")
    span = odd_name(p.text, p.start)
    if span:
        return misnamed(p.text[slice(*span)], span)
    if kind == ".":
        return p.fail("only 'layers[i]' has an index before a '.'")
    joined = kind == "name" or p.text.startswith("->", p.start)
    notes = ["the parts of a name are joined by '.'"] if joined else []
    return p.fail(f"expected an index or '=' after the target, found {p.found()}", *notes)


def _colon(p):
    if p.text.startswith("=", p.stop):
        return "there is no ':='; write '='"
    if p.text[p.stop : p.stop + 1].isdigit():
        return f"a name has no ':{p.text[p.stop]}' at its end; write the part before the ':'"
    return "a ':' stands only in an index, as in 'x[:, 0] = 1'"


def no_part(p):
    kind = p.kind
    if kind in KEYWORDS:
        return keyword(kind, (p.start, p.stop))
    if kind == "_":
        return p.fail("'_' is reserved; quote it to use it as a name: \"_\"")
    if kind in ("*", "**"):
        return p.fail("a glob is allowed only in a target; a reference means exactly one variable")
    if kind == "number" and p.start == p.end:
        return misnamed(p.value, (p.start, p.stop))
    if kind == "(":
        return p.fail("alternatives are allowed only in a target; a reference means exactly one variable")
    if kind in ("number", "digits"):
        return p.fail(f"a name is missing after '.', found {p.found()}", "digits follow the '.' directly: 'blocks.0'")
    return p.fail(f"a name is missing after '.', found {p.found()}")


def no_alternative(p, opened):
    """The alternatives that the bracket opens are followed by the current token."""
    if p.kind == "":
        return unclosed(p, opened, "")
    span = odd_name(p.text, p.start)
    if span:
        return misnamed(p.text[slice(*span)], span)
    if p.kind == ",":
        return p.fail("alternatives are separated by '|'")
    if p.kind in ("|", ")"):
        return p.fail(f"an alternative is missing before '{p.kind}'")
    return p.fail(f"expected '|' or ')' after an alternative, found {p.found()}", "an alternative is one name or glob")


def no_whole_part(span):
    return PatchSyntaxError("'**' stands for whole parts; inside a name write '*'", span=span)


def no_exclusion(p):
    if p.kind in KEYWORDS:
        return keyword(p.kind, (p.start, p.stop))
    if p.kind == "_":
        return p.fail("an exclusion names variables; '_' is the tensor that is edited")
    return p.fail(f"a selector is missing after {before(p)}, found {p.found()}")


def no_local(p, name):
    kind = p.kind
    if kind in (".", "[") or kind in ASSIGNMENTS:
        return keyword("let", (p.end - 3, p.end))
    if kind == "_":
        return p.fail("'_' is reserved; 'let' needs another name")
    if kind in KEYWORDS:
        return p.fail(f"'{kind}' is a keyword; 'let' needs another name")
    if kind == "name" and name in CONSTANTS:
        return p.fail(f"'{name}' is a constant; 'let' needs another name")
    if kind == "name":
        return p.fail(f"the local '{shorten(name)}' is already bound; 'let' needs another name")
    if kind == "string":
        return p.fail("the name of a local is not quoted")
    return p.fail(f"expected a name after 'let', found {p.found()}")


def no_value(p):
    kind = p.kind
    if kind in ENDS:
        return p.fail(f"a value is missing after {before(p)}")
    if kind == "not":
        return p.fail("'not' binds more loosely than the operator before it; write '(not x)'")
    if kind in KEYWORDS:
        return keyword(kind, (p.start, p.stop))
    if kind in ("*", "**"):
        return p.fail("a glob is allowed only in a target; a reference means exactly one variable")
    if kind == "+":
        return p.fail("there is no unary '+'; leave it out, or write '+=' to add")
    if kind == "...":
        return p.fail("'...' is allowed only in an index, alone")
    if kind == ":":
        return p.fail("a slice is allowed only in an index")
    note = ["a value that is handed in is '$' and a name, as in '$x'"] if kind == "@" else []
    return p.fail(f"a value is missing after {before(p)}, found {p.found()}", *note)


def unexpected(p):
    """The statement could end before the current token."""
    kind = p.kind
    if kind in (")", "]"):
        return p.fail(f"no bracket is open for '{kind}'")
    if kind == "}":
        return p.fail("no block is open for '}'")
    if kind == ",":
        return p.fail("there are no tuples; a list is written '[1, 2]'")
    return misplaced(p) or p.fail(
        f"expected the end of the statement, found {p.found()}", "statements end at a newline or ';'"
    )


def unclosed(p, opened, expected):
    opening = p.text[opened]
    if p.kind == "":
        return PatchSyntaxError(f"'{opening}' is never closed", span=(opened, opened + 1))
    error = misplaced(p) if p.kind != "=" else None
    error = error or p.fail(f"expected {expected}, found {p.found()}")
    line = PatchSyntaxError("", span=(opened, opened + 1), source=p.text).line
    if line != error.locate(source=p.text).line:
        error.notes += (f"the '{opening}' of line {line} is still open",)
    return error


def misplaced(p):
    """The error of a common mistake after a value, or `None`."""
    kind = p.kind
    if kind == ".":
        return p.fail("a value has no attributes; call a function on it, as in 'mean(x)'")
    if kind == "except":
        return p.fail("'except' stands once, at the end of an edit; a ',' separates its selectors")
    if kind == "(":
        return p.fail(habits.call(p.text[: p.end]) or "only a function's name can be called")
    if kind == "=":
        return p.fail("a second '=' in the statement; '==' compares")
    if kind == ":":
        return p.fail("a slice is allowed only in an index")
    if kind == "name" and before(p) == "'lambda'":
        return p.fail("there is no 'lambda'; operators and functions work on whole tensors")
    if kind == "name" and p.value in habits.OPERATORS:
        return p.fail(habits.OPERATORS[p.value])
    if kind == "string" and before(p).lower() in ("'f'", "'r'", "'b'"):
        return p.fail("a string has no prefix; in Python, make the whole patch an f-string, or write $x and pass x=")
    if kind == "for":
        return p.fail("an expression has no loops; operators and functions work on whole tensors")
    return None


def ragged(item):
    message = "the list is ragged; all rows of a list have the same shape"
    return PatchSyntaxError(message, span=item.span)


def before(p):
    """The token before the current one, for a message."""
    return f"'{shorten(_RUN.findall(p.text[max(0, p.end - 200) : p.end])[-1])}'"
