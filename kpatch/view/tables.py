"""Reports as tables of `rich`, at any width, and as text. A name is never cut off or broken."""

from dataclasses import replace
from typing import Any

from rich.cells import cell_len

from kpatch.view.overview import Overview, Section

WIDTH = 120  # columns of a table printed as text
INDENT = "  "
_IN_ASCII = str.maketrans({"…": "...", **dict(zip("▁▂▃▄▅▆▇█", ".:-=+*#@", strict=True))})
HEAD = 3  # lines before the rows of a table: an empty one, the names of the columns, and a rule


def rendered(overview: Overview, console: Any, options: Any) -> Any:
    """The overview in the first form that fits into the width: a table; a table under each first cell, with all columns
    or with those that matter most; each cell on a line of its own."""
    from rich.text import Text

    overview = _printable(overview, options)
    yield from _fitting(overview, console, options)
    for warning in overview.warnings:
        yield Text(f"warning: {warning}", style="yellow")


def measured(overview: Overview, console: Any, options: Any) -> Any:
    """The width of the whole table, and of the narrowest form."""
    from rich.measure import Measurement

    overview = _printable(overview, options)
    rows = [row for group in overview.groups() for row in _whole_rows(group)]
    wide = _natural(_table(overview.columns, rows, options.ascii_only), console, options)
    longest = max((cell_len(cell) for row in overview.rows for cell in row), default=0)
    return Measurement(min(longest, wide), max(wide, *map(cell_len, overview.warnings or [""])))


def _printable(overview: Overview, options: Any) -> Overview:
    """The overview in the characters that the terminal has, before columns are measured."""
    if not options.ascii_only:
        return overview

    def plain(text: str) -> str:
        return text.translate(_IN_ASCII).encode("ascii", "backslashreplace").decode()

    rows = [tuple(map(plain, row)) for row in overview.rows]
    return replace(overview, rows=rows, warnings=[*map(plain, overview.warnings)])


def _fitting(overview: Overview, console: Any, options: Any) -> Any:
    groups = overview.groups()
    table = _table(overview.columns, [row for group in groups for row in _whole_rows(group)], options.ascii_only)
    if _natural(table, console, options) <= options.max_width:
        return [table]
    keep = list(range(1, len(overview.columns)))
    while keep:
        table = _table(
            [overview.columns[number] for number in keep],
            [[cells[number - 1] for number in keep] for group in groups for cells, _ in group.rows],
            options.ascii_only,
        )
        if _natural(table, console, options) + len(INDENT) <= options.max_width:
            return _under_headings(groups, console.render_lines(table, options, pad=False))
        optional = [number for number in keep if overview.columns[number].drop]
        if not optional:
            break
        keep.remove(max(optional, key=lambda number: overview.columns[number].drop))
    return [_line(line) for line in _stacked(overview, groups, options.max_width)]


def _whole_rows(group: Section) -> list[list[str]]:
    """The rows of a table with all columns: the first cell stands beside the first row."""
    rows = [["", *cells] for cells, _ in group.rows] or [[""]]
    rows[0][0] = group.name
    return rows + [["", _rest(group)]] * bool(group.more)


def _under_headings(groups: list[Section], lines: list[Any]) -> Any:
    """The lines of a table without its first column, whose cells stand on lines of their own before their rows."""
    from rich.segment import Segment, Segments

    found = [Segments([Segment(INDENT), *line, Segment.line()]) for line in lines]
    yield from found[:HEAD]
    rows = iter(found[HEAD:])
    for group in groups:
        yield _line(INDENT + group.name)
        for _ in group.rows:
            yield next(rows)
        if group.more:
            yield _line(INDENT + _rest(group))
    yield from rows


def _stacked(overview: Overview, groups: list[Section], width: int) -> Any:
    """Each first cell on a line of its own, and under it the others with their names, as many in a line as fit."""
    for group in groups:
        yield group.name
        for cells, _ in group.rows:
            named = zip(overview.columns[1:], cells, strict=True)
            yield from _packed([f"{column.name}: {cell}" for column, cell in named if cell], width)
        if group.more:
            yield INDENT + _rest(group)


def _packed(parts: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}   {part}" if lines else ""
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(INDENT + part)
    return lines


def _rest(group: Section) -> str:
    return f"... and {group.more:,} more"


def _box(ascii_only: bool) -> Any:
    """The rule under the names of the columns."""
    from rich import box

    return box.Box("    \n    \n -- \n" + 5 * "    \n", ascii=True) if ascii_only else box.SIMPLE_HEAD


def _table(columns: Any, rows: list[list[str]], ascii_only: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=_box(ascii_only))
    for column in columns:
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _line(text: str) -> Any:
    """A line that the terminal may wrap, and that `rich` does not cut."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ignore")


def _natural(table: Any, console: Any, options: Any) -> int:
    """The width that the table takes if it has all the space that it wants."""
    return console.measure(table, options=options.update(max_width=10**6)).maximum


def as_text(renderable: Any, width: int = WIDTH) -> str:
    """The text that `rich` prints, without colours."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_jupyter=False).print(renderable, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
