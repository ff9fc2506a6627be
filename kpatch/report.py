"""How plans and edits are shown: as rows, as tables of `rich`, as text."""

import math
from dataclasses import dataclass

import numpy as np

from kpatch import indexing, planner, tensors
from kpatch.batch import BatchStep
from kpatch.syntax import ast
from kpatch.values.dtypes import tensor

WIDTH = 120  # columns of a table printed as text
MAX_ROWS = 40  # rows of a table; more are counted


@dataclass(frozen=True, slots=True)
class Row:
    """One statement of a plan.

    Attributes:
        statement: its text.
        path: the variable that it writes to.
        shape, dtype: of the variable.
        entries: how many entries it writes; `None` where that depends on what earlier statements write.
    """

    statement: str
    path: str
    shape: tuple
    dtype: str
    entries: int | None


@dataclass(frozen=True, slots=True)
class Write:
    """What one statement did to one variable.

    Attributes:
        statement: its text.
        path: the variable.
        shape, dtype: of the variable.
        entries: how many entries were written.
        before, after: NumPy arrays of the values of those entries, flat, in the order of the selection.
    """

    statement: str
    path: str
    shape: tuple
    dtype: str
    entries: int
    before: np.ndarray
    after: np.ndarray


def plan_rows(plan):
    """Pairs of a statement and its row, in the order of the statements."""
    rows = [
        (statement, Row(_text(statement, plan.patch), step.place.path, step.place.shape, step.place.dtype, count))
        for step, count in zip(plan.edits, plan.counts, strict=True)
        for statement in step.statements
    ]
    return sorted(rows, key=lambda pair: pair[0].span)


def plan_warnings(rows):
    """A sentence for each statement that edits nothing, or every entry in spite of its index."""
    by_statement: dict = {}
    for statement, row in rows:
        by_statement.setdefault(id(statement), (statement, []))[1].append(row)
    return tuple(filter(None, (_warning(statement, found) for statement, found in by_statement.values())))


def _warning(statement, rows):
    counts = [row.entries for row in rows]
    if statement.target.index is None or None in counts:
        return None
    if sum(counts) == 0:
        return f"'{rows[0].statement}' edits nothing: its index selects no entry"
    narrowing = any(not (isinstance(item, ast.Ellipsis_) or _is_all(item)) for item in statement.target.index)
    if narrowing and sum(counts) == sum(math.prod(row.shape) for row in rows) > 1:
        return f"'{rows[0].statement}' edits everything: its index selects every entry"
    return None


def _is_all(item):
    return isinstance(item, ast.Slice) and (item.start, item.stop, item.step) == (None, None, None)


def _text(statement, patch):
    return patch.source[slice(*statement.span)]


def writes(records, patch):
    """A `Write` for each statement and variable, in the order of the statements."""
    found = []
    for record in records:
        batch = isinstance(record.step, BatchStep)
        found += _batch_writes(record, patch) if batch else [(record.step.statement.span, _write(record, patch))]
    return tuple(write for _, write in sorted(found, key=lambda item: item[0]))


def _write(record, patch):
    before = tensors.to_numpy(record.before)
    after = np.broadcast_to(_after(record, before), before.shape)
    if isinstance(record.selection, indexing.Mask) and not isinstance(record.selection, indexing.PackedMask):
        mask = tensors.to_numpy(record.selection.mask)
        before, after = before[mask], after[mask]
    place = record.step.place
    text = _text(record.step.statement, patch)
    return Write(text, place.path, place.shape, place.dtype, before.size, before.ravel(), after.ravel())


def _after(record, before):
    """What was written: kept, or computed again from what was there."""
    if record.after is not None:
        return tensors.to_numpy(record.after)
    value = planner.operated(record.step.statement, tensor(record.before), record.step.operand)
    return tensors.to_numpy(value.data)


def _batch_writes(record, patch):
    """The writes of a batch, one a statement; where an entry is written twice, each sees the one before."""
    step = record.step
    present = dict(zip(record.selection.flat.tolist(), tensors.to_numpy(record.before), strict=True))
    for statement, offset, number in zip(step.statements, step.offsets.tolist(), step.numbers, strict=True):
        before, present[offset] = present[offset], number
        place, text = step.place, _text(statement, patch)
        pair = np.array([before, number], step.numbers.dtype)
        yield statement.span, Write(text, place.path, place.shape, place.dtype, 1, pair[:1], pair[1:])


def plan_table(plan):
    from rich.console import Group
    from rich.text import Text

    table = table_of("statement", "variable", "shape", "dtype", "entries")
    rows = [
        (r.statement, r.path, shape(r.shape), r.dtype, "?" if r.entries is None else f"{r.entries:,}")
        for r in plan.rows
    ]
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    return Group(filled(table, rows), *warnings) if warnings else filled(table, rows)


def writes_table(found):
    table = table_of("statement", "variable", "shape", "entries", "before", "after")
    rows = [(w.statement, w.path, shape(w.shape), f"{w.entries:,}", sample(w.before), sample(w.after)) for w in found]
    return filled(table, rows)


def table_of(*columns):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column == "entries" else "left", overflow="fold")
    return table


def filled(table, rows):
    from rich.text import Text

    shown = ""
    for statement, path, *others in rows[:MAX_ROWS]:
        table.add_row(*(Text(cell) for cell in ("" if statement == shown else statement, path, *others)))
        shown = statement
    if len(rows) > MAX_ROWS:
        table.caption = f"... and {len(rows) - MAX_ROWS:,} more writes"
    return table


def shape(lengths):
    return "(" + ", ".join(map(str, lengths)) + ("," if len(lengths) == 1 else "") + ")"


def sample(values):
    """The values where they are few, else their range and mean."""
    values = np.asarray(values)
    if values.size == 0:
        return "-"
    if values.dtype == bool or values.size <= 3:
        head = ", ".join(_number(value) for value in values[:3])
        return head + (", …" if values.size > 3 else "")
    wide = values.astype("float64")
    return f"{_number(wide.min())} … {_number(wide.max())}, mean {_number(wide.mean())}"


def _number(value):
    return str(value) if isinstance(value, np.bool_) else f"{float(value):.4g}"


def as_text(renderable, width=WIDTH):
    """What `rich` would print, without colours."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
