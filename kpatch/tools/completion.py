"""What the Tab key completes: names of a model, in a selector and in statements; bindings and files.

Names are those that are known without Keras: of weights files, and of `.keras` files that a command has read before.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from kpatch.tools import binding

# The beginning of a name at the end of a text, or the place for one; not behind `$` or digits.
_NAME = re.compile(r'(?<![$\w."])[A-Za-z_"][\w."-]*$|(?<![$\w."\])])$')
_BOUND = re.compile(r'\$(?:([A-Za-z_]\w*)(?:(\.)([\w."-]*))?)?$')  # of a `$name`: its name, and one in its model
_ASKED = re.compile(r"\$([A-Za-z_]\w*)")


def selectors(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The variables whose names begin with a text."""
    return _begun("", incomplete, _names(_model(ctx)))


def statements(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A text of statements, with the name at its end completed: of the model, or behind a `$name` of its model."""
    if bound := _BOUND.search(incomplete):
        name, dot, inner = bound.groups(default="")
        if dot:
            return _begun(incomplete[: bound.start(3)], inner, _names(_donors(ctx).get(name)))
        return _begun(incomplete[: bound.start() + 1], name, _bound(ctx))
    match = _NAME.search(incomplete)
    return [] if match is None else _begun(incomplete[: match.start()], match[0], _names(_model(ctx)))


def bindings(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`NAME=` of each `$NAME` that the patch asks for; behind `@` files; behind a file and `:` the keys in it."""
    name, equals, value = incomplete.partition("=")
    if not equals:
        return _begun("", name, [f"{each}=" for each in _asked(ctx) if each not in _bound(ctx)])
    path, colon, key = value[1:].rpartition(":")
    if not value.startswith("@"):
        return []
    if colon and os.path.isfile(path):
        return _begun(f"{name}=@{path}:", key, _readable(lambda: binding.keys(path) or _names(path)))
    return _begun(f"{name}=@", value[1:], _readable(lambda: _files(value[1:])))


def files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever files the shell finds."""
    return [CompletionItem(incomplete, type="file")]


def _begun(before: str, begun: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(before + name) for name in names if name.startswith(begun)]


def _readable(read: Callable[[], list[str]]) -> list[str]:
    """What is read; nothing if it cannot be, since an error has no place in a completion."""
    from kpatch.errors import PatchError

    try:
        return read()
    except (PatchError, OSError, ValueError):
        return []


def _names(path: Any) -> list[str]:
    """The names in a file."""
    from kpatch.checkpoint import commands

    return _readable(lambda: commands.known_names(Path(path))) if path else []


def _files(begun: str) -> list[str]:
    """The directories, and the files that a binding reads, whose paths begin with a text."""
    folder = os.path.dirname(begun)
    paths = [(os.path.join(folder, each.name), each.is_dir()) for each in os.scandir(folder or ".")]
    return sorted(path + "/" * is_dir for path, is_dir in paths if is_dir or binding.is_file(path))


def _model(ctx: click.Context) -> Any:
    return ctx.params.get("model") or next(iter(ctx.args), None)  # click leaves it there behind an unfinished -e


def _asked(ctx: click.Context) -> list[str]:
    """The `$names` in the patch, as far as it has been typed."""
    patch = ctx.params.get("patch") or next(iter(ctx.args[1:]), None)
    texts = list(ctx.params.get("edits") or ())
    if patch and os.path.isfile(patch):
        texts += _readable(lambda: [Path(patch).read_text(encoding="utf-8")])
    return list(dict.fromkeys(name for text in texts for name in _ASKED.findall(text)))


def _bound(ctx: click.Context) -> list[str]:
    """The names of the bindings before the one that is typed."""
    return [text.partition("=")[0].strip() for text in ctx.params.get("binds") or ()]


def _donors(ctx: click.Context) -> dict[str, str]:
    """The files that are bound, by name."""
    pairs = [text.partition("=") for text in ctx.params.get("binds") or ()]
    return {name.strip(): value.strip()[1:] for name, _, value in pairs if value.strip().startswith("@")}


@add_completion_class
class Bash(BashComplete):
    """Completion in bash, which cuts words at `=`, `@` and `:`, as those of `--bind`; here they are whole."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_CURRENT="$2" %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
            [[ $value == *[=/] ]] && compopt -o nospace
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
    _cut = ""  # the part of the last word that bash leaves as it is

    def get_completion_args(self) -> tuple[list[str], str]:
        *words, last = split_arg_string(os.environ["COMP_LINE"] + _END)
        incomplete, current = last.removesuffix(_END), os.environ["COMP_CURRENT"]
        self._cut = incomplete[: len(incomplete) - len(current)] if incomplete.endswith(current) else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self._cut)}"


_END = "\1"  # marks the end of the line, so that the last word is known also if it is empty or in an open quote
