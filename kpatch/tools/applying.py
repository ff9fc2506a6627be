"""The work of `kpatch apply`: its patch, put together, and applied to the file or to the model loaded from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpatch.checkpoint import disk, keras_files, outputs
from kpatch.errors import FileError, PatchError
from kpatch.names import patches
from kpatch.run.plan import EMPTY
from kpatch.syntax import Patch, parse
from kpatch.tools import binding, printing
from kpatch.tools.loading import load, opened_or_loaded


@dataclass(frozen=True)
class Order:
    """What `kpatch apply` is asked to do.

    Attributes:
        model: the file.
        patch: the patch file, `-` for standard input, or `None`.
        edits: the statements after those of the patch file.
        out: the file to write; `None` to edit in place.
        overwrite, dry_run, journal, expect: as the options.
        binds: the bindings, `name=value`.
    """

    model: Path
    patch: str | None
    edits: tuple[str, ...]
    out: Path | None
    overwrite: bool
    dry_run: bool
    journal: bool
    binds: tuple[str, ...]
    expect: int | None


def run(order: Order) -> None:
    told = printing.current()
    sources = ([_read(order.patch)] if order.patch is not None else []) + [(f"-e {e!r}", e) for e in order.edits]
    try:
        patch = parse("\n".join(text for _, text in sources))
        if not patch.statements and not order.dry_run:
            told.note(EMPTY)
        if order.out is not None:
            _check_output(order.out, order)
        if not _apply_to_file(order, patch):
            _apply_to_model(order, patch)
    except PatchError as error:
        raise _with_origins(error, sources) from None


def _read(name: str) -> tuple[str, str]:
    """A patch's name for errors, and its text."""
    try:
        return ("standard input" if name == "-" else name), patches.read_text(name)
    except FileError as error:
        if "=" in name:
            error.notes = (f"if it is a statement and no file: -e {name!r}",)
        raise


def _check_output(out: Path, order: Order) -> None:
    """Raises, before any work is done, if the output is a file that the command reads."""
    from kpatch.checkpoint import destinations

    read = [*([] if order.patch in (None, "-") else [order.patch]), *binding.paths(order.binds)]
    destinations.check_output(out, order.model, dict.fromkeys(read, outputs.READ), order.overwrite)


def _apply_to_file(order: Order, patch: Patch) -> bool:
    """Edits the file without loading the model if possible; returns whether it did."""
    from kpatch import checkpoint
    from kpatch.checkpoint import commands

    opened = commands.opened(order.model)
    if opened is None:
        return False
    told = printing.current()
    given = {**commands.sidecar(order.patch, patch), **binding.read(order.binds, lambda p: opened_or_loaded(Path(p)))}
    if order.dry_run:
        told.show(checkpoint.plan(opened, patch, expect=order.expect, bindings=given))
    else:
        with told.progress(f"editing {order.model.name}"):
            applied = checkpoint.apply(
                opened,
                patch,
                order.out,
                in_place=order.out is None,
                journal=order.journal,
                overwrite=order.overwrite,
                expect=order.expect,
                bindings=given,
            )
        told.show(applied)
    if opened.note:
        told.note(opened.note)
    _tell_written(order)
    return True


def _apply_to_model(order: Order, patch: Patch) -> None:
    """Loads the model, applies the patch, and saves the model."""
    if order.journal:
        raise FileError(
            f"the weights in '{order.model}' are compressed, so an edit cannot have a journal; leave out --journal"
        )
    loaded = load(order.model, with_training_state=order.out is None and not order.dry_run)
    import kpatch

    given: list[keras_files.LoadedFile] = []

    def donor(name: str) -> Any:
        given.append(load(Path(name)))
        return given[-1].model

    bindings = binding.read(order.binds, donor)
    told = printing.current()
    if order.dry_run:
        told.show(kpatch.plan(loaded.model, patch, expect=order.expect, bindings=bindings))
    else:
        with told.progress("applying the patch"):
            applied = kpatch.apply(loaded.model, patch, expect=order.expect, bindings=bindings)
        with told.status(f"saving {order.out or order.model}"):
            _save(order, loaded, [each.source for each in (loaded, *given)])
        told.show(applied)
    _tell_written(order)


def _save(order: Order, loaded: keras_files.LoadedFile, sources: list[Any]) -> None:
    if order.out is None:
        with disk.failing(f"cannot write '{order.model}'"), disk.lock(loaded.source.real):
            keras_files.save(loaded.model, outputs.Output(order.model, overwrite=True), {}, sources)
    else:
        inputs = {**dict.fromkeys(sources, outputs.READ), loaded.source: outputs.MODEL}
        keras_files.save(loaded.model, outputs.Output(order.out, overwrite=order.overwrite), inputs, sources)


def _tell_written(order: Order) -> None:
    written = [] if order.dry_run else [order.model if order.out is None else order.out]
    for path in written:
        printing.current().tell(f"wrote {path}")
    printing.current().add(wrote=[str(path) for path in written])


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
