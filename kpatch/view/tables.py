"""Plans and edits as tables of `rich` and as text."""

import numpy as np

WIDTH = 120  # columns of a table printed as text
MAX_ROWS = 40  # rows of a table; further rows are only counted


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
    rounds = any(w.asked.tobytes() != w.after.tobytes() for w in found)
    table = table_of("statement", "variable", "shape", "entries", "before", *["asked"] * rounds, "after")
    rows = [
        (
            *(w.statement, w.path, shape(w.shape), f"{w.entries:,}", sample(w.before)),
            *[sample(w.asked)] * rounds,
            sample(w.after),
        )
        for w in found
    ]
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
    """The values if they are few, else their range and mean."""
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
    """The text that `rich` prints, without colours."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
