"""Reports as HTML: a fragment for a notebook, and a page."""

import html

from kpatch.view.overview import Column, Overview

# Colours are the reader's own, so that light and dark themes both work. The class stands twice to come before the
# rules that notebooks have for tables.
STYLE = """
.kpatch { overflow-x: auto }
.kpatch.kpatch table { border-collapse: collapse; font-size: 13px }
.kpatch.kpatch th, .kpatch.kpatch td { padding: 3px 10px; text-align: left; vertical-align: top; white-space: nowrap }
.kpatch.kpatch th { border-bottom: 1px solid rgba(128,128,128,.6) }
.kpatch.kpatch td { border-bottom: 1px solid rgba(128,128,128,.2) }
.kpatch.kpatch td.breaks { white-space: normal; min-width: 9em }
.kpatch.kpatch .right { text-align: right; font-variant-numeric: tabular-nums }
.kpatch.kpatch code { background: none; color: inherit; padding: 0; white-space: pre-wrap }
.kpatch-map { image-rendering: pixelated; border: 1px solid rgba(128,128,128,.6) }
.kpatch.kpatch .warning { margin: 4px 10px }
"""


def fragment(overview: Overview) -> str:
    """The overview as a table. A row with a picture shows where its entries lie, and by how much they changed."""
    pictured = any(overview.pictures)
    shown = [n for n, column in enumerate(overview.columns) if not (pictured and column.drawn)]
    at = next((place + 1 for place, n in enumerate(shown) if overview.columns[n].pictured), len(shown))
    heads = [_cell("th", overview.columns[n], html.escape(overview.columns[n].name)) for n in shown]
    heads[at:at] = ["<th>change</th>"] * pictured
    rows = []
    for group in overview.groups():
        name = f"<code>{html.escape(group.name)}</code>"
        for cells, picture in group.rows:
            texts = [name, *map(html.escape, cells)]
            drawn = picture() if picture is not None else None
            parts = [_cell("td", overview.columns[n], texts[n]) for n in shown]
            parts[at:at] = ["<td>" + (drawn.html() if drawn is not None else "") + "</td>"] * pictured
            rows.append(f"<tr>{''.join(parts)}</tr>")
            name = ""
        if group.more:
            rows.append(f'<tr><td></td><td colspan="{len(shown)}">... and {group.more:,} more</td></tr>')
    warnings = "".join(f'<p class="warning">⚠ {html.escape(text)}</p>' for text in overview.warnings)
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return (
        f'<div class="kpatch"><style>{STYLE}</style><table>{head}<tbody>{"".join(rows)}</tbody></table>{warnings}</div>'
    )


def page(overview: Overview, title: str, generator: str) -> str:
    """The overview as a page of its own."""
    return (
        f"{head(generator)}<title>{html.escape(title)}</title>\n"
        '<meta name="color-scheme" content="light dark"><style>body { font: 14px sans-serif; margin: 2em }</style>\n'
        f"<h1>{html.escape(title)}</h1>\n<p>In a picture of a change, the last axis runs to the right and the others "
        "run down; each filter of a convolution is a tile. Orange is more, blue is less, the stronger the more.</p>\n"
        f"{fragment(overview)}\n"
    )


def code(text: str) -> str:
    """A patch in colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter

    from kpatch.view.highlighting import PatchLexer, PatchStyle

    return highlight(
        text,
        PatchLexer(stripnl=False),
        HtmlFormatter(noclasses=True, nobackground=True, style=PatchStyle, prestyles="font-family: monospace"),
    )


def head(generator: str) -> str:
    """How a page of a generator begins."""
    return f'<!doctype html><meta charset="utf-8"><meta name="generator" content="{generator}">'


def _cell(tag: str, column: Column, content: str) -> str:
    kinds = " ".join(["right"] * column.right + ["breaks"] * column.breaks)
    return f'<{tag} class="{kinds}">{content}</{tag}>' if kinds else f"<{tag}>{content}</{tag}>"
