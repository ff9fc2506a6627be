"""Text to tokens.

A token is a tuple `(kind, value, start, end)`. The kind is

* the text itself for punctuation, operators, keywords and `_`;
* "name", "glob", "digits", "number", "string" or "binding" for tokens with a value;
* "choice" for the bracket that opens alternatives, and "text" for the letters in and around it;
* "end" for the end of a statement, "" for the end of the text.

Each of five modes has one regular expression. A statement starts in mode TARGET, in which `*` and `?` make globs.
`let`, `assert` and assignment operators switch to LINE, an open bracket to BRACKET, in which newlines are space, and
one that opens alternatives to CHOICE. `except` leads back to TARGET; after its commas newlines are space (AFTER_COMMA).
Every repeated group has a bound, so time and memory are linear in the text.
"""

import re
from itertools import repeat

from kpatch.errors import PatchSyntaxError
from kpatch.syntax.words import KEYWORDS, quote

CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff"  # and lone surrogates, which UTF-8 cannot hold
MAX_TOKENS = 6_000_000  # in a patch; a tree takes about 200 bytes a token
MAX_QUOTED = 40  # characters of the source quoted in a message
MAX_NAME = 200  # characters searched on either side for a name that needs quotes

_DIGITS = r"[0-9]+(?:_[0-9]+){0,99}"
_NUMBER = (
    rf"0[xX](?:_?[0-9a-fA-F]){{1,99}}|0[bB](?:_?[01]){{1,99}}|0[oO](?:_?[0-7]){{1,99}}"
    rf"|(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?"
)
_STRING = rf""" "[^"\\\r\n{CONTROL}]*" | '[^'\\\r\n{CONTROL}]*' """
_LETTERS = r"[A-Za-z0-9_*?]* (?: [A-Za-z0-9_?] | \*(?![*=]) ) (?!\w)"  # a star before `=` is an operator
_CHOICE = rf"\( [ \t\r\n]* (?: [\#|] | (?: [A-Za-z0-9_*?]+ | {_STRING} ) [ \t\r\n]* [|)\#] )"
_NO_GLOB = rf"(?! \w | \? | \*+(?![*=]) | {_CHOICE} )"
_TARGET = rf"""
    (?P<lead> (?:(?<!\.)(?:let|assert)) (?![\w*?]) | (?:\*+|[-+/])= | =(?!=) )
  | (?P<text> (?<=\)) {_LETTERS} )
  | (?P<name> [A-Za-z_][A-Za-z0-9_]* {_NO_GLOB} )
  | (?P<digits> [0-9]+ {_NO_GLOB} )
  | (?P<beside> [A-Za-z0-9_*?]+ (?={_CHOICE}) )
  | (?P<choice> (?<![\w*?"'\]]) \( | (?={_CHOICE}) \( )
  | (?P<glob> (?= \w* [*?]) {_LETTERS} )
  | (?P<symbol> \. | == | //=? | [%@]= | [-+/%@,:{{}}] )
"""
_EXPRESSION = r"""
    (?P<name> [A-Za-z_][A-Za-z0-9_]* (?!\w) )
  | (?P<digits> (?<=\.) [0-9]+ (?!\w) )
  | (?P<symbol> \.\.\. | \*\* | // | [=!<>]= | \.(?![0-9]) | (?<=[\w"'\])]) \. | [-+*/%@<>=,:] )
"""
_ALTERNATIVE = r"""
    (?P<text> [A-Za-z0-9_*?]+ (?!\w) )
  | (?P<symbol> [|.,:=/+-] )
"""
_COMMON = rf"""
  | (?P<number> (?:{_NUMBER}) (?![\w.]) )
  | (?P<open> [\[(] )
  | (?P<close> [\])] )
  | (?P<string> {_STRING} )
  | (?P<escaped> "[^"\\\r\n{CONTROL}]*\\ | '[^'\\\r\n{CONTROL}]*\\ )
  | (?P<binding> \$[A-Za-z_][A-Za-z0-9_]* (?!\w) )
  | (?P<comment> \#[^\r\n{CONTROL}]* )
  | (?P<eof> \Z )
"""
_END = r"| (?P<end> [;\r\n][;\r\n\t ]* )"


def _mode(space, alternatives):
    return re.compile(rf"[{space}]* (?: {alternatives} | (?P<fault> .) )", re.VERBOSE | re.DOTALL).match


TARGET = _mode(r" \t", _TARGET + _END + _COMMON)
AFTER_COMMA = _mode(r" \t\r\n", _TARGET + _END + _COMMON)
LINE = _mode(r" \t", _EXPRESSION + r"| (?P<block> \} )" + _END + _COMMON)
BRACKET = _mode(r" \t\r\n", _EXPRESSION + _COMMON)
CHOICE = _mode(r" \t\r\n", _ALTERNATIVE + _COMMON)

_SPECIAL = {word: word for word in (*KEYWORDS, "_")}


def tokens(text, position=0):
    """The tokens from `position` on, then the token of the end of the text repeatedly; MAX_TOKENS in all."""
    match = outer = TARGET
    depth = 0
    for _ in repeat(None, MAX_TOKENS):
        found = match(text, position)
        kind = found.lastgroup
        start, position = found.span(kind)
        value = found[kind]
        if match is AFTER_COMMA and kind != "comment":
            match = TARGET
        if kind == "name":
            kind = _SPECIAL.get(value, kind)
            if kind == "except" and match is LINE:
                match = TARGET
        elif kind == "symbol":
            kind = value
            if value == "," and match is TARGET:
                match = AFTER_COMMA
        elif kind in ("open", "choice"):
            if not depth:
                match, outer = (BRACKET if kind == "open" else CHOICE), match
            depth += 1
            kind = value if kind == "open" else kind
        elif kind == "beside":
            kind = "text"
        elif kind == "close":
            depth -= depth > 0
            if not depth:
                match = outer
            kind = value
        elif kind == "lead":
            match = LINE
            kind = value
        elif kind == "end":
            match = TARGET
        elif kind == "block":
            match = TARGET
            kind = value
        elif kind == "string":
            value = value[1:-1]
        elif kind == "escaped":
            kind = "string"
            value, position = _unescape(text, start)
        elif kind == "comment":
            continue
        elif kind == "eof":
            kind = ""
        elif kind == "fault":
            raise _fault(text, start, match in (TARGET, CHOICE))
        yield kind, value, start, position


_ESCAPES = dict(zip("\\'\"abfnrtv", "\\'\"\a\b\f\n\r\t\v", strict=True))
_STRING_PART = re.compile(rf"[^\"'\\\r\n{CONTROL}]+|\\[^\r\n{CONTROL}]|[\"']|")


def _unescape(text, start):
    """The value and the end of the string with escapes that starts at `start`."""
    parts = []
    position = start + 1
    while True:
        part = text[position : _end(_STRING_PART, text, position)]
        if not part:
            raise _broken_string(text, start, position)
        if part == text[start]:
            return "".join(parts), position + 1
        if part[0] == "\\":
            if part[1] not in _ESCAPES:
                known = " ".join("\\" + letter for letter in _ESCAPES)
                raise PatchSyntaxError(
                    f"unknown escape '{part}' in a string; write '\\\\' for a backslash",
                    span=(position, position + 2),
                    notes=[f"the escapes are {known}"],
                )
            part = _ESCAPES[part[1]]
            position += 1
        parts.append(part)
        position += len(part)


_CONTROL_CHARACTER = re.compile(f"[{CONTROL}]")
_STRING_INSIDE = {mark: re.compile(rf"[^{mark}\r\n{CONTROL}]*") for mark in "\"'"}
_WORD = re.compile(r"\w*")
_TARGET_WORD = re.compile(r"\w*(?:[-+/]\w+){0,99}")
_FIRST_PART = re.compile(r"([0-9]+)\.[A-Za-z_]")
_NUMBER_LIKE = re.compile(r"[\w.]*")
_NAME_LIKE = re.compile(r"[\w/+-]*")
_INSTEAD = {
    "&": "write 'and'",
    "|": "write 'or'; alternatives stand in a target only",
    "~": "write 'not'",
    "!": "write 'not'",
    "^": "a power is written '**'",
    "?": "a glob is allowed only in a target",
    "$": "a binding is '$' and a name, as in '$x'",
    "{": "a list is written '[1, 2]', alternatives '(a|b)'",
    "…": "write '...'",
    "\\": "a statement runs over lines only inside brackets",
    "`": "a name is quoted by \" or '",
    ";": "close the bracket before it",
    "\u00a0": "write a plain space",
    **dict.fromkeys("“”‘’", "quotes are \" or '"),
}


def _fault(text, start, in_target):
    """The error if no token starts at `start`."""
    char = text[start]
    if _CONTROL_CHARACTER.match(char):
        return _control_character(text, start)
    if char in "\"'":
        return _broken_string(text, start, _end(_STRING_INSIDE[char], text, start + 1))
    if in_target or not (char.isdecimal() or char == ".") or text[start - 1 : start] == ".":
        end = _end(_TARGET_WORD if in_target else _WORD, text, start)
        if end > start:
            return misnamed(text[start:end], (start, end))
        return PatchSyntaxError(f"unexpected {describe(char)}{_instead(char)}", span=(start, start + 1))
    end = _end(_NUMBER_LIKE, text, start)
    notes = ["a number cannot be followed by a letter, a digit, '_' or '.'"]
    name, first = odd_name(text, start), _FIRST_PART.match(text, start)
    if name:
        notes = [f"if it is part of a name, quote the name: {quote(text[slice(*name)])}"]
    elif first:
        notes = [f"a name of digits that begins an expression is quoted: {quote(first[1])}"]
    return PatchSyntaxError(f"'{shorten(text[start:end])}' is not a number", span=(start, end), notes=notes)


def _end(pattern, text, start):
    """The end of the match that starts at `start`; the patterns always match, at least the empty string."""
    return pattern.match(text, start).end()


def _instead(char):
    return f"; {_INSTEAD[char]}" if char in _INSTEAD else ""


def _control_character(text, position):
    what = "lone surrogate" if "\ud800" <= text[position] <= "\udfff" else "control character"
    return PatchSyntaxError(f"{what} U+{ord(text[position]):04X} in the text", span=(position, position + 1))


def _broken_string(text, start, position):
    """The error of a string that starts at `start` and breaks off at `position`."""
    if position < len(text) and _CONTROL_CHARACTER.match(text[position]):
        return _control_character(text, position)
    return PatchSyntaxError(f"the string is not closed; a {text[start]} is missing", span=(start, position))


def odd_name(text, position):
    """The span of a name that needs quotes around `position`, such as conv-1; or `None`."""
    begin = max(0, position - MAX_NAME)
    start = position - _end(_NAME_LIKE, text[begin:position][::-1], 0)
    end = min(_end(_NAME_LIKE, text, position), position + MAX_NAME)
    if start < position < end and (text[start].isalpha() or text[start] == "_") and text[end - 1].isalnum():
        return start, end
    return None


def misnamed(name, span):
    return PatchSyntaxError(f"the name '{shorten(name)}' must be quoted: {quote(shorten(name))}", span=span)


def describe(char):
    """A character in a message: itself, or its code point if it is not visible."""
    return f"character '{char}'" if char.isprintable() and char != " " else f"character U+{ord(char):04X}"


def shorten(text):
    """The text, cut to `MAX_QUOTED` characters."""
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"
