"""The commands: `kpatch apply`, `check`, `show`, `diff` and `undo`.

Keras is imported in the commands that load a model, after the backend is chosen. `kpatch check` without a model never
imports it.
"""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from kpatch.checkpoint import disk, keras_files, outputs, remembered
from kpatch.errors import FileError, PatchError
from kpatch.names import patches
from kpatch.syntax import Patch, parse
from kpatch.tools import binding
from kpatch.tools.check import check_files, show_report

EMBEDDED = "numpy"  # the backend if none is configured: the lightest, and always installed
PACKAGES = {"numpy": "numpy", "jax": "jax", "torch": "torch", "tensorflow": "tensorflow", "openvino": "openvino"}


class _Commands(click.Group):
    """Shows a `PatchError` as its text, without a traceback, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # shows every line on a terminal without Unicode
        try:
            return super().invoke(ctx)
        except PatchError as error:
            _show_error(error)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kpatch")
@click.option("--no-cache", is_flag=True, help="Neither read nor keep names of .keras files in the user's cache.")
@click.pass_context
def main(ctx: click.Context, no_cache: bool) -> None:
    """Edits the weights of Keras models by patches, such as 'dense_1.kernel[0, 0] = 1.0'."""
    if no_cache:
        ctx.with_resource(remembered.switched_off())


MODEL = click.argument("model", type=click.Path(path_type=Path))


def _import(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> None:
    """Imports modules for the classes that they register, on the backend of the commands on files."""
    if not names:
        return
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = EMBEDDED
    sys.path.insert(0, here := os.getcwd())
    try:
        for name in names:
            click.echo(f"note: running the code of the module {name}", err=True)
            _import_module(name)
    finally:
        sys.path.remove(here)


def _import_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise FileError(f"cannot import '{name}': {type(error).__name__}: {error}") from error


IMPORT = click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    callback=_import,
    expose_value=False,
    help="Run the code of a Python module first, for the custom classes that it registers; repeatable.",
)


@main.command()
@MODEL
@click.argument("patch", required=False)
@click.option("-e", "--edit", "edits", multiple=True, metavar="EDIT", help="Statements; repeatable, after PATCH's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.keras", help="The file to write.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.keras if it exists.")
@click.option("--in-place", is_flag=True, help="Overwrite MODEL.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@click.option("--journal", is_flag=True, help="Keep the old bytes beside the result, for 'kpatch undo'.")
@click.option("--bind", "binds", multiple=True, metavar="NAME=VALUE", help="The value of $NAME; repeatable.")
@click.option("--expect", type=click.IntRange(min=0), metavar="N", help="Fail unless the patch matches N variables.")
@IMPORT
def apply(
    model: Path,
    patch: str | None,
    edits: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    in_place: bool,
    dry_run: bool,
    journal: bool,
    binds: tuple[str, ...],
    expect: int | None,
) -> None:
    """Edits the weights in MODEL by a patch.

    MODEL is a .keras, .weights.h5, .weights.json, .safetensors or Keras 2's .h5 file, a .safetensors.index.json, or a
    folder with one of these inside. It is edited without loading the model; bytes that the patch does not change are
    the same in the result. The result of a folder, or of an index, is a new folder.

    The patch consists of the statements in the file PATCH (- is standard input) and then those of each -e.
    The result is written to a temporary file, which then replaces OUT.keras; on an error nothing is written.
    OUT.keras must not be a file that the command reads; if it exists, --overwrite is needed.

    VALUE is a number, a list, or @ and a file: @v.npy, @w.safetensors:KEY, @arrays.npz:KEY, or @donor.keras, a file of
    weights, whose variables are $NAME.dense_1.kernel, or $NAME._ for the counterpart of the target.

    \b
    Examples:
      kpatch apply digits.keras -e 'conv1.kernel[..., 3] = 0' -o patched.keras
      kpatch apply digits.keras prune.kpatch --dry-run
      kpatch apply digits.keras prune.kpatch -e 'head.bias = 0' --in-place
      echo 'dense_1.bias *= 0.5' | kpatch apply digits.keras - -o patched.keras
      kpatch apply a.keras -e '**.kernel = 0.5 * _ + 0.5 * $b._' --bind b=@b.keras --expect 12 -o mean.keras
    """
    if output is not None and in_place:
        raise click.UsageError("-o and --in-place exclude each other.")
    if overwrite and output is None:
        raise click.UsageError("--overwrite needs -o OUT.keras.")
    if output is None and not in_place and not dry_run:
        raise click.UsageError("Give the output: -o OUT.keras or --in-place; or --dry-run to see the plan.")
    if patch is None and not edits:
        raise click.UsageError("Nothing to apply: give a PATCH file, or statements by -e.")
    sources = ([_read(patch)] if patch is not None else []) + [(f"-e {text!r}", text) for text in edits]
    try:
        parsed = parse("\n".join(text for _, text in sources))
        if output is not None:
            _check_output(output, model, patch, binds, overwrite)
        if not _apply_to_file(model, parsed, output, overwrite, dry_run, binds, expect, journal, patch):
            _apply(model, parsed, output, overwrite, dry_run, binds, expect, journal)
    except PatchError as error:
        raise _with_origins(error, sources) from None


def _check_output(output: Path, model: Path, patch: str | None, binds: tuple[str, ...], overwrite: bool) -> None:
    """Raises, before any work is done, if the output is a file that the command reads."""
    from kpatch.checkpoint import destinations

    read = [*([] if patch in (None, "-") else [patch]), *binding.paths(binds)]
    destinations.check_output(output, model, dict.fromkeys(read, outputs.READ), overwrite)


def _apply_to_file(
    path: Path,
    patch: Patch,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    binds: tuple[str, ...],
    expect: int | None,
    journal: bool,
    source: str | None,
) -> bool:
    """Edits the file without loading the model if possible; returns whether it did."""
    from kpatch import checkpoint
    from kpatch.checkpoint import commands

    opened = commands.opened(path)
    if opened is None:
        return False
    given = {**commands.sidecar(source, patch), **binding.read(binds, _donor)}
    if dry_run:
        _print(checkpoint.plan(opened, patch, expect=expect, bindings=given))
        _note(opened)
        return True
    with _status(f"editing {path}"):
        applied = checkpoint.apply(
            opened,
            patch,
            output,
            in_place=output is None,
            journal=journal,
            overwrite=overwrite,
            expect=expect,
            bindings=given,
        )
    _print(applied)
    _note(opened)
    click.echo(f"wrote {path if output is None else output}")
    return True


def _donor(path: str) -> Any:
    """A bound model: the file, if it can be read without loading the model."""
    from kpatch.checkpoint import commands

    opened = commands.opened(Path(path))
    return _load(Path(path)).model if opened is None else opened


def _note(opened: Any) -> None:
    if opened.note:
        click.echo(f"note: {opened.note}", err=True)


def _apply(
    path: Path,
    patch: Patch,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    binds: tuple[str, ...],
    expect: int | None,
    journal: bool,
) -> None:
    """Loads the model, applies the patch, and saves the model."""
    if journal:
        raise FileError(
            f"the weights in '{path}' are compressed, so an edit cannot have a journal; leave out --journal"
        )
    loaded = _load(path, with_training_state=output is None and not dry_run)
    import kpatch

    given: list[keras_files.LoadedFile] = []

    def donor(name: str) -> Any:
        given.append(_load(Path(name)))
        return given[-1].model

    bindings = binding.read(binds, donor)
    if dry_run:
        _print(kpatch.plan(loaded.model, patch, expect=expect, bindings=bindings))
        return
    with _status("applying the patch"):
        applied = kpatch.apply(loaded.model, patch, expect=expect, bindings=bindings)
    target = path if output is None else output
    sources = [each.source for each in (loaded, *given)]
    with _status(f"saving {target}"):
        if output is None:
            with disk.failing(f"cannot write '{path}'"), disk.lock(loaded.source.real):
                keras_files.save(loaded.model, outputs.Output(path, overwrite=True), {}, sources)
        else:
            inputs = {**dict.fromkeys(sources, outputs.READ), loaded.source: outputs.MODEL}
            keras_files.save(loaded.model, outputs.Output(output, overwrite=overwrite), inputs, sources)
    _print(applied)
    click.echo(f"wrote {target}")


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="MODEL.keras", help="Also check the names in this model."
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "github"]), default="text", help="The form of the errors."
)
def check(paths: tuple[str, ...], model: Path | None, form: str) -> None:
    """Checks the patches in files, without applying them.

    A PATH is a patch file, a Python file, or a directory with such files (*.kpatch, *.py); - is a patch on standard
    input. In a Python file, the strings passed to kpatch's functions are checked.

    \b
    Examples:
      kpatch check prune.kpatch
      kpatch check src/ tests/
      kpatch check src/ --model digits.keras
      kpatch check . --format github
    """
    report = check_files(paths, None if model is None else _load(model).model)
    show_report(report, form)
    if report.findings:
        sys.exit(1)


@main.command()
@MODEL
@click.argument("selector", required=False)
@click.option("--stats", is_flag=True, help="Also show the standard deviation, and count zeros, NaN and infinities.")
@IMPORT
def show(model: Path, selector: str | None, stats: bool) -> None:
    """Lists every name in MODEL that a patch can address.

    For each it shows shape, dtype, and the range of values. With SELECTOR, it lists only the matching variables, or
    those of the layer that SELECTOR names.

    \b
    Examples:
      kpatch show digits.keras
      kpatch show digits.keras conv1
      kpatch show digits.keras conv1.kernel
      kpatch show digits.keras 'conv*.**' --stats
      kpatch show digits.keras '**.kernel'
    """
    from kpatch.checkpoint import commands, listing

    if selector is not None:
        try:
            listing.selector_of(selector)
        except PatchError as error:
            raise click.UsageError(error.message) from None
    opened = commands.opened(model)
    with _status(f"reading {model}"):
        found = listing.show(_load(model).model if opened is None else opened, selector, stats=stats)
        found.overview()  # reads the values
    _print(found)
    if opened is not None:
        _note(opened)


@main.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.kpatch", help="The patch file to write.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.0, help="Entries that differ by at most this much are equal."
)
@click.option("--common", is_flag=True, help="Compare what both have, and list the rest.")
@click.option("--summary", is_flag=True, help="Show a table of the differences.")
@click.option("--html", type=click.Path(path_type=Path), metavar="OUT.html", help="Write a map of the differences.")
@IMPORT
def diff(
    old: Path, new: Path, output: Path | None, tolerance: float, common: bool, summary: bool, html: Path | None
) -> None:
    """Makes the patch from OLD to NEW.

    Ends with 0 if nothing differs, with 1 if something does, and with 2 on an error.

    Few differing entries are written out; a row, a column or a block is one statement. Many values go to a
    .safetensors beside the patch, where 'kpatch apply' finds it. OUT.kpatch, its .safetensors and OUT.html must be
    new files, or files that 'kpatch diff' wrote.

    \b
    Examples:
      kpatch diff old.keras new.keras
      kpatch diff old.keras new.keras -o change.kpatch
      kpatch diff old.keras new.keras --summary --tolerance 1e-6
      kpatch diff plain.keras with_more_layers.keras --common
    """
    from kpatch.checkpoint import commands, saving

    try:
        saving.check(output, html, old, new)
        found = commands.difference(old, new, tolerance, common)
        written = saving.write(found, output, html, f"{old} → {new}")
    except PatchError as error:
        _show_error(error)
        click.get_current_context().exit(2)
    if summary:
        _print(found)
        for line in found.rest:
            click.echo(line)
    for path in written:
        click.echo(f"wrote {path}")
    if output is None and not summary:
        click.echo(found.text, nl=False)
        if found.bindings:
            click.echo(f"note: {', '.join(f'${name}' for name in found.bindings)}: -o keeps the values too", err=True)
    click.get_current_context().exit(int(not found.equal))


@main.command()
@MODEL
@click.option("--discard", is_flag=True, help="Remove the journal; do not change MODEL.")
def undo(model: Path, discard: bool) -> None:
    """Undoes the latest edit of MODEL that was made with --journal; run again, the one before it.

    With --discard the journal is removed instead: that of an interrupted edit that cannot be rolled back, because the
    journal is damaged or MODEL was replaced, or else that of the latest edit.

    \b
    Examples:
      kpatch apply digits.keras -e 'head.bias = 0' --in-place --journal
      kpatch undo digits.keras
      kpatch undo --discard digits.keras
    """
    from kpatch import checkpoint

    checkpoint.undo(model, discard=discard)
    click.echo(f"removed the journal of {model}; the file is unchanged" if discard else f"restored {model}")


@main.command()
@MODEL
def log(model: Path) -> None:
    """Lists the edits of MODEL that 'kpatch undo' can take back, the latest first.

    \b
    Examples:
      kpatch log digits.keras
    """
    import time

    from kpatch import checkpoint

    for edit in checkpoint.log(model):
        when = (
            "before kpatch 0.3" if edit.time is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(edit.time))
        )
        click.echo(f"{when}  {edit.journal.name}  {edit.size:,} bytes")
        for line in edit.patch.splitlines():
            click.echo(f"  {line}")


def _read(name: str) -> tuple[str, str]:
    """A patch's name for errors, and its text."""
    try:
        return ("standard input" if name == "-" else name), patches.read_text(name)
    except FileError as error:
        if "=" in name:
            error.notes += (f"if it is a statement and no file: -e {name!r}",)
        raise


def _load(path: Path, *, with_training_state: bool = False) -> keras_files.LoadedFile:
    with _status(f"loading {path}"):
        _choose_backend()
        loaded = keras_files.load(path, with_training_state=with_training_state)
    for warning in loaded.warnings:
        Console(stderr=True).print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return loaded


def _choose_backend() -> None:
    """Sets KERAS_BACKEND before Keras is imported: to the configured backend if it is installed, else to NumPy.

    At its first import, Keras writes a keras.json that names TensorFlow, even if that is not installed.
    """
    if "keras" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    wanted = os.environ.get("KERAS_BACKEND")
    if not wanted:
        configured = _configured()
        os.environ["KERAS_BACKEND"] = configured if configured and _installed(configured) else EMBEDDED
    elif wanted not in PACKAGES:
        raise click.UsageError(f"KERAS_BACKEND={wanted} is not a backend of Keras; there are {', '.join(PACKAGES)}.")
    elif not _installed(wanted):
        raise click.UsageError(f"KERAS_BACKEND={wanted}, but {PACKAGES[wanted]} is not installed.")


def _configured() -> str | None:
    """The backend in Keras's configuration file."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        backend = json.loads(Path(home, "keras.json").read_bytes())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) else None


def _installed(backend: str) -> bool:
    return backend in PACKAGES and importlib.util.find_spec(PACKAGES[backend]) is not None


def _with_origins(error: PatchError, sources: list[tuple[str, str]]) -> PatchError:
    """The error, with notes on the origin of each error if the patch has several sources."""
    if len(sources) > 1:
        for each in error.errors:
            if each.line is not None:
                name, line = _origin(each.line, sources)
                each.notes += (f"that is line {line} of {name}",)
    return error


def _origin(line: int, sources: list[tuple[str, str]]) -> tuple[str, int]:
    """The source of a line of the joined text, and its line number there."""
    for name, text in sources[:-1]:
        lines = 1 + text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
        if line <= lines:
            return name, line
        line -= lines
    return sources[-1][0], line


def _show_error(error: PatchError) -> None:
    text = Text.assemble((f"kpatch.{type(error).__name__}: ", "bold red"), str(error))
    Console(stderr=True).print(text, soft_wrap=True)


def _status(what: str) -> Any:
    """A spinner on a terminal."""
    return Console(stderr=True).status(Text(what))


def _print(renderable: Any) -> None:
    """Prints a table: as wide as the terminal or, without a terminal, as wide as needed."""
    console = Console()
    if not console.is_terminal:
        console.width = max(1, console.measure(renderable, options=console.options.update(max_width=10**6)).maximum)
    console.print(renderable, crop=False)
