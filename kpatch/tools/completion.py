"""What the Tab key completes: names of a model, in a selector and in statements, and files.

Names are those that are known without Keras: of weights files, and of `.keras` files that a command has read before.
"""

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

# The beginning of a name at the end of a text, or the place for one; not behind `$` or digits.
_NAME = re.compile(r'(?<![$\w."])[A-Za-z_"][\w."-]*$|(?<![$\w."\])])$')


def selectors(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The variables whose names begin with a text."""
    return [CompletionItem(name) for name in _names(ctx) if name.startswith(incomplete)]


def statements(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A text of statements, with the name at its end completed."""
    match = _NAME.search(incomplete)
    if match is None:
        return []
    before, begun = incomplete[: match.start()], match[0]
    return [CompletionItem(before + name) for name in _names(ctx) if name.startswith(begun)]


def files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever files the shell finds."""
    return [CompletionItem(incomplete, type="file")]


def _names(ctx: click.Context) -> list[str]:
    """The names in the file MODEL; none if it cannot be read, as an error has no place in a completion."""
    from kpatch.checkpoint import commands
    from kpatch.errors import PatchError

    model = ctx.params.get("model") or next(iter(ctx.args), None)  # click leaves it there behind an unfinished -e
    try:
        return commands.known_names(Path(model)) if model else []
    except (PatchError, OSError):
        return []
