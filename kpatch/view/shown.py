"""`Shown`: the base of what shows itself."""

from typing import Any

from kpatch.view import html, tables
from kpatch.view.overview import Overview


class Shown:
    """The base of what shows itself as rows: as text, on a terminal by `rich`, and as HTML in a notebook."""

    __slots__ = ()

    def overview(self) -> Overview:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The same as data that `json.dumps` takes; `--json` prints it on the command line."""
        raise NotImplementedError

    def __rich_console__(self, console: Any, options: Any) -> Any:
        return tables.rendered(self.overview(), console, options)

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        return tables.measured(self.overview(), console, options)

    def __str__(self) -> str:
        return tables.as_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return html.fragment(self.overview())
