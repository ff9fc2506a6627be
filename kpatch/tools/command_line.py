"""The commands: `kpatch apply`, `check`, `show`, `diff`, `undo` and `log`.

Keras is imported in the commands that load a model, after the backend is chosen. `kpatch check` without a model never
imports it.
"""

from pathlib import Path
from typing import Any

import click

from kpatch.checkpoint import formats, remembered
from kpatch.errors import PatchError
from kpatch.tools import applying, completion, loading, printing
from kpatch.tools.check import check_files, expanded, show_report

AT_FAULT = {"diff": 2}  # how a command ends on an error; others end with 1


class _Commands(click.Group):
    """Shows a `PatchError` as its text, without a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """On Windows click would take stars in patches for names of files, and `$name` for a variable of the system."""
        return super().main(*args, **{"windows_expand_args": False, **options})

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if not args[0].endswith(formats.SUFFIXES):
                raise
            first = f"A command comes first: kpatch apply {args[0]} PATCH, or kpatch show {args[0]}."
            raise click.UsageError(f"{error.message} {first}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        printing.make_encodable()
        told = ctx.ensure_object(printing.Printer)
        try:
            super().invoke(ctx)
            told.finish()
        except PatchError as error:
            told.fail(error)
            told.code = AT_FAULT.get(ctx.invoked_subcommand or "", 1)
        ctx.exit(told.code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kpatch")
@click.option("--no-cache", is_flag=True, help="Neither read nor keep names of .keras files in the user's cache.")
@click.pass_context
def main(ctx: click.Context, no_cache: bool) -> None:
    """Edits the weights of Keras models by patches, such as 'dense_1.kernel[0, 0] = 1.0'."""
    if no_cache:
        ctx.with_resource(remembered.switched_off())


class _Path(click.Path):
    """A path that is not empty, which would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path cannot be empty; '.' is the current folder.", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)


def _set(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        setattr(ctx.ensure_object(printing.Printer), str(option.name), True)


def _import(ctx: click.Context, option: click.Parameter, names: tuple[str, ...]) -> None:
    if not ctx.resilient_parsing:  # a completion runs no code
        loading.import_modules(names)


MODEL = click.argument("model", type=PATH)
JSON = click.option(
    "--json",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set,
    help="Print one JSON object; errors are in it.",
)
QUIET = click.option(
    "-q", "--quiet", is_flag=True, is_eager=True, expose_value=False, callback=_set, help="Print nothing but errors."
)
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
@click.argument("patch", required=False, shell_complete=completion.files)
@click.option(
    "-e",
    "--edit",
    "edits",
    multiple=True,
    metavar="EDIT",
    help="Statements; repeatable, after PATCH's.",
    shell_complete=completion.statements,
)
@click.option("-o", "--output", "out", type=PATH, metavar="OUT.keras", help="The file to write.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.keras if it exists.")
@click.option("--in-place", is_flag=True, help="Overwrite MODEL.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@click.option("--journal", is_flag=True, help="Keep the old bytes beside the result, for 'kpatch undo'.")
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="NAME=VALUE",
    help="The value of $NAME; repeatable.",
    shell_complete=completion.bindings,
)
@click.option("--expect", type=click.IntRange(min=0), metavar="N", help="Fail unless the patch matches N variables.")
@IMPORT
@JSON
@QUIET
def apply(
    model: Path,
    patch: str | None,
    edits: tuple[str, ...],
    out: Path | None,
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
    if out is not None and in_place:
        raise click.UsageError("-o and --in-place exclude each other.")
    if overwrite and out is None:
        raise click.UsageError("--overwrite needs -o OUT.keras.")
    if out is None and not in_place and not dry_run:
        hint = f" A statement comes behind -e: -e {patch!r}." if "=" in (patch or "") else ""
        raise click.UsageError(f"Give the output: -o OUT.keras or --in-place; or --dry-run to see the plan.{hint}")
    if patch is None and not edits:
        missing = "MODEL is missing" if formats.is_like_a_patch(model) else "Nothing to apply"
        raise click.UsageError(f"{missing}: give a PATCH file behind MODEL, or statements by -e.")
    applying.run(applying.Order(model, patch, edits, out, overwrite, dry_run, journal, binds, expect))


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=completion.files)
@click.option("--model", type=PATH, metavar="MODEL.keras", help="Also check the names in this model.")
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
    report = check_files(expanded(paths), None if model is None else loading.load(model).model)
    show_report(report, form)
    printing.current().code = int(bool(report.findings))


@main.command()
@MODEL
@click.argument("selector", required=False, shell_complete=completion.selectors)
@click.option("--stats", is_flag=True, help="Also show the standard deviation, and count zeros, NaN and infinities.")
@click.option("--activations", is_flag=True, help="List the activations, and no variables.")
@IMPORT
@JSON
def show(model: Path, selector: str | None, stats: bool, activations: bool) -> None:
    """Lists every name in MODEL that a patch can address.

    For each it shows shape, dtype, and the range of values. With SELECTOR, it lists only the matching variables, or
    those of the layer that SELECTOR names.

    With --activations it lists what kpatch.rewrite, kpatch.intervene and kpatch.record can address. MODEL is then a
    .keras file, or a folder with a config.json; Keras builds the model, without its values.

    \b
    Examples:
      kpatch show digits.keras
      kpatch show digits.keras conv1
      kpatch show digits.keras conv1.kernel
      kpatch show digits.keras 'conv*.**' --stats
      kpatch show digits.keras '**.kernel'
      kpatch show digits.keras --activations
    """
    from kpatch.checkpoint import listing

    if selector is not None:
        try:
            listing.selector_of(selector)
        except PatchError as error:
            raise click.UsageError(error.message) from None
        if selector.endswith(formats.SUFFIXES) and not model.exists():
            raise click.UsageError(f"MODEL comes before SELECTOR: kpatch show {selector} {model}")
    told = printing.current()
    source = loading.opened_or_loaded(model)
    with told.progress(f"reading {model.name}"):
        found = listing.show(source, selector, stats=stats, activations=activations)
        found.overview()  # reads the values
    told.show(found)
    if note := getattr(source, "note", None):
        told.note(note)


@main.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@click.option("-o", "--output", "out", type=PATH, metavar="OUT.kpatch", help="The patch file to write.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.0, help="Entries that differ by at most this much are equal."
)
@click.option("--common", is_flag=True, help="Compare what both have, and list the rest.")
@click.option("--summary", is_flag=True, help="Show a table of the differences.")
@click.option("--html", type=PATH, metavar="OUT.html", help="Write a map of the differences.")
@IMPORT
@JSON
@QUIET
def diff(
    old: Path, new: Path, out: Path | None, tolerance: float, common: bool, summary: bool, html: Path | None
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

    told = printing.current()
    saving.check(out, html, old, new)
    with told.progress("comparing"):
        found = commands.difference(old, new, tolerance, common)
    written = saving.write(found, out, html, f"{old} → {new}")
    if summary or told.json:
        told.show(found)
    for line in found.rest if summary else ():
        told.tell(line)
    for path in written:
        told.tell(f"wrote {path}")
    told.add(wrote=[str(path) for path in written])
    if out is None and not summary:
        told.tell(found.text, end=False)
        if found.bindings:
            told.note(f"{', '.join(f'${name}' for name in found.bindings)}: -o keeps the values too")
    told.code = int(not found.equal)


@main.command()
@MODEL
@click.option("--discard", is_flag=True, help="Remove the journal; do not change MODEL.")
@JSON
@QUIET
def undo(model: Path, discard: bool) -> None:
    """Undoes the latest edit of MODEL.

    That is one that was made with --journal; run again, the one before it.

    With --discard the journal is removed instead: that of an interrupted edit that cannot be rolled back, because the
    journal is damaged or MODEL was replaced, or else that of the latest edit.

    \b
    Examples:
      kpatch apply digits.keras -e 'head.bias = 0' --in-place --journal
      kpatch undo digits.keras
      kpatch undo --discard digits.keras
    """
    from kpatch import checkpoint

    removed = checkpoint.undo(model, discard=discard)
    printing.current().tell(f"removed '{removed}'; {model} is unchanged" if discard else f"restored {model}")
    printing.current().add(file=str(model), restored=not discard, removed=None if removed is None else str(removed))


@main.command()
@MODEL
@JSON
def log(model: Path) -> None:
    """Lists what 'kpatch undo' can take back, latest first.

    \b
    Examples:
      kpatch log digits.keras
    """
    from kpatch import checkpoint

    told = printing.current()
    edits = checkpoint.log(model)
    for edit in edits:
        told.tell(f"{edit.when}  {edit.journal.name}  {edit.size:,} bytes")
        for line in (edit.damage or edit.patch).splitlines():
            told.tell(f"  {line}")
    told.add(file=str(model), edits=[edit.to_dict() for edit in edits])
