"""The place, in a file, of each character of a patch."""

import ast
import io
import re
import tokenize
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

_OPENING = re.compile(r"""(?P<raw>[rR])?[uU]?(?P<quote>'''|\"\"\"|'|\")""")
_CHARACTER = re.compile(
    r"""(?P<nothing>\\\n)
      | \\ (?: [0-7]{1,3} | x[0-9a-fA-F]{2} | u[0-9a-fA-F]{4} | U[0-9a-fA-F]{8} | N\{[^}]+\} | [\\'"abfnrtv] )
      | .""",
    re.VERBOSE | re.DOTALL,
)
_RAW_CHARACTER = re.compile(r"(?P<nothing>(?!))|.", re.DOTALL)


class Extent(NamedTuple):
    """A part of a file. Lines and columns (of characters) count from 1; the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


class Lines:
    """A text with newlines converted to LF, and the offset of each line."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in self.text.split("\n"))]

    def place(self, offset: int) -> tuple[int, int]:
        """The line and the column of an offset."""
        line = bisect_right(self._starts, offset, 0, len(self._starts) - 1)
        return line, offset - self._starts[line - 1] + 1

    def offset(self, line: int, column: int) -> int:
        """The offset of a line and a column, both from 1, or of the nearest existing place."""
        line = min(max(line, 1), len(self._starts) - 1)
        return min(self._starts[line - 1] + max(column, 1) - 1, self._starts[line] - 1)

    def offset_of_byte(self, line: int, byte: int) -> int:
        """The offset of a place in the form of `ast`: a line from 1, and a byte in its UTF-8."""
        start, end = self._starts[line - 1 : line + 1]
        return start + len(self.text[start:end].encode()[:byte].decode())


@dataclass(frozen=True)
class FoundPatch:
    """A patch, and the places of its characters in the file.

    Attributes:
        text: the patch.
        of_model: whether its names are those of a model.
        activations: whether these may be activations.
        open_names: whether a `$name` may be a part of a name, as in `block_$l`.
    """

    text: str
    of_model: bool
    _lines: Lines = field(repr=False)
    _node: ast.Constant | None = field(default=None, repr=False)  # `None`: the patch is the whole file
    activations: bool = False
    open_names: bool = False

    def region(self, span: tuple[int, int]) -> Extent:
        """The region, in the file, of a span of the patch."""
        start, end = span
        if self._node is not None:
            starts, ends = self._characters
            start, end = starts[start], ends[end - 1] if end > start else starts[start]
        return Extent(*self._lines.place(start), *self._lines.place(end))

    @cached_property
    def _characters(self) -> tuple["array[int]", "array[int]"]:
        """The offsets, in the file, of the start and end of each character of a string literal.

        Adjacent literals are one string. The last start is that of the closing quote.
        """
        assert self._node is not None
        first = self._lines.offset_of_byte(self._node.lineno, self._node.col_offset)
        last = self._lines.offset_of_byte(self._node.end_lineno or 0, self._node.end_col_offset or 0)
        bracketed = Lines(f"({self._lines.text[first:last]})")
        starts, ends, close = array("L"), array("L"), first
        for token in tokenize.generate_tokens(io.StringIO(bracketed.text).readline):
            opening = _OPENING.match(token.string) if token.type == tokenize.STRING else None
            if opening is not None:
                start = first - 1 + bracketed.offset(token.start[0], token.start[1] + 1)
                length = len(token.string) - len(opening["quote"])
                form = _RAW_CHARACTER if opening["raw"] else _CHARACTER
                for character in form.finditer(token.string, opening.end(), length):
                    if character["nothing"] is None:
                        starts.append(start + character.start())
                        ends.append(start + character.end())
                close = start + length
        return array("L", [*starts, close]), ends


def patch_file(text: str) -> FoundPatch:
    """The `FoundPatch` of a patch file.

    Example:
        >>> patch_file("a.b = 1\\r\\nc.d = 2").region((8, 11))
        Extent(line=2, column=1, end_line=2, end_column=4)
    """
    lines = Lines(text.removeprefix("\ufeff"))
    return FoundPatch(lines.text, True, lines)
