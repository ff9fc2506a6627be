"""The output of a command: tables and lines for a reader, or one JSON object for a program."""

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from kpatch.errors import PatchError
from kpatch.view import progress

SCHEMA = 1  # of the objects that --json prints; docs/json.md describes them


class Printer:
    """Prints the output of one command.

    Attributes:
        json: whether it is one JSON object, which `finish` prints.
        quiet: whether it is nothing but errors.
        code: how the command ends if there is no error.
    """

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.code = 0
        self._data: dict[str, Any] = {}
        self._notes: list[str] = []

    def show(self, shown: Any) -> None:
        """Prints a table: as wide as the terminal or, without a terminal, as wide as needed."""
        if self.json:
            self._data.update(shown.to_dict())
        elif not self.quiet:
            console = Console()
            if not console.is_terminal:
                unbounded = console.options.update(max_width=10**6)
                console.width = max(1, console.measure(shown, options=unbounded).maximum)
            console.print(shown, crop=False)

    def tell(self, text: str, end: bool = True) -> None:
        """Prints a text, and the end of the line; a program reads the same in a field."""
        if not (self.json or self.quiet):
            click.echo(text, nl=end)

    def add(self, **data: Any) -> None:
        """Adds fields to the object."""
        self._data.update(data)

    def note(self, text: str) -> None:
        self._aside(f"note: {text}")

    def warn(self, text: str) -> None:
        self._aside(f"warning: {text}", "yellow")

    def _aside(self, text: str, style: str | None = None) -> None:
        self._notes.append(text)
        if not (self.json or self.quiet):
            Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    def status(self, what: str) -> Any:
        """A block with a spinner on a terminal."""
        return Console(stderr=True, quiet=self.quiet).status(Text(what))

    def progress(self, what: str) -> Any:
        """A block whose work has a progress bar on a terminal, if it takes long."""
        return progress.shown(what, Console(stderr=True, quiet=self.quiet))

    def fail(self, error: PatchError) -> None:
        """Shows an error, without a traceback."""
        if self.json:
            self.finish(error.errors)
        else:
            console = Console(stderr=True)
            text = Text.assemble((f"kpatch.{type(error).__name__}: ", "bold red"), error.shown(console.encoding))
            console.print(text, soft_wrap=True)

    def finish(self, errors: "tuple[PatchError, ...]" = ()) -> None:
        """Prints the JSON object, if it is asked for: of the command's own fields only if nothing failed."""
        if self.json:
            told = {"schema": SCHEMA, "notes": self._notes, "errors": [error.to_dict() for error in errors]}
            click.echo(json.dumps(told if errors else {**told, **self._data}, indent=2))


def current() -> Printer:
    """The output of the command that runs."""
    return click.get_current_context().ensure_object(Printer)


def make_encodable() -> None:
    """Lets every line be printed on a terminal without Unicode."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
