"""`Overview`: what kpatch shows, as rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_ROWS = 40  # rows that are shown; further rows are counted
MAX_OF_GROUP = 8  # rows of one statement that are shown, if there are more than `MAX_ROWS` in all


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an overview.

    Attributes:
        name: its heading.
        right: whether its cells are aligned right, as numbers are.
        drop: columns of a higher number are left out earlier if the space is narrow; 0 is never left out.
        breaks: whether its cells may have several lines on a page.
        drawn: whether a page shows the same as a picture, and leaves it out.
        pictured: whether a page shows the picture behind it, and not at the end.
    """

    name: str
    right: bool = False
    drop: int = 0
    breaks: bool = False
    drawn: bool = False
    pictured: bool = False


@dataclass(frozen=True)
class Overview:
    """Rows under columns.

    Attributes:
        columns: the columns. The first names a row, or a group of rows with the same cell.
        rows: tuples of texts, one for each column.
        warnings: sentences after the table.
        pictures: for each row, a function that returns its `pictures.Map`, or `None`; empty if no row has a picture.
        every: every row is shown; else those of a long overview are counted.
    """

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]
    warnings: Sequence[str] = ()
    pictures: Sequence[Callable[[], Any] | None] = ()
    every: bool = False

    def groups(self) -> "list[Section]":
        """The rows that are shown, in groups with the same first cell; each group counts the rows left out of it."""
        found: list[Section] = []
        for row, picture in zip(self.rows, self.pictures or [None] * len(self.rows), strict=True):
            if not found or found[-1].name != row[0]:
                found.append(Section(row[0]))
            found[-1].rows.append((row[1:], picture))
        if self.every or len(self.rows) <= MAX_ROWS:
            return found
        for group in found:
            group.shorten()
        more = len(found) - MAX_ROWS
        return [*found[:MAX_ROWS], Section(f"... and {more:,} more")] if more > 0 else found


@dataclass
class Section:
    """Rows with the same first cell: pairs of the other cells and a picture."""

    name: str
    rows: list = field(default_factory=list)
    more: int = 0

    def shorten(self) -> None:
        if len(self.rows) > MAX_OF_GROUP:
            self.more = len(self.rows) - MAX_OF_GROUP
            del self.rows[MAX_OF_GROUP:]


def shape(lengths: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, lengths)) + ("," if len(lengths) == 1 else "") + ")"


def sample(values: Any) -> str:
    """The values if they are few, else their range and mean."""
    values = np.asarray(values)
    if values.size == 0:
        return "-"
    if values.dtype == bool or values.size <= 3:
        head = ", ".join(_number(value) for value in values[:3])
        return head + (", …" if values.size > 3 else "")
    wide = values.astype("float64")
    with np.errstate(all="ignore"):
        return f"{_number(wide.min())} … {_number(wide.max())}, mean {_number(wide.mean())}"


def _number(value: Any) -> str:
    return str(value) if isinstance(value, np.bool_) else f"{float(value):.4g}"
