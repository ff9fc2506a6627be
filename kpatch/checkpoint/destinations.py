"""Where the result of an edit goes: into the file itself, into a copy, or into a new folder."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kpatch.checkpoint import editor, formats, journal, outputs, recovery
from kpatch.checkpoint.arrays import Array
from kpatch.checkpoint.copying import copy_of
from kpatch.checkpoint.disk import Source, failing
from kpatch.checkpoint.editor import Editor
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import FileError, UnsupportedError

IN_FOLDERS = (formats.FOLDER, formats.INDEX)  # formats whose results are folders


def check_output(
    out: "str | os.PathLike[str]", model: "str | os.PathLike[str]", inputs: dict[Any, str], overwrite: bool
) -> None:
    """Raises a `FileError` if the result of editing a model may not go to `out`.

    Args:
        out: the file or, of a folder or of sharded safetensors, the new folder.
        model: the path of the model.
        inputs: what else is read, as `outputs.check` takes it.
        overwrite: whether `out` may be replaced.
    """
    kind = formats.kind(model)
    if kind in IN_FOLDERS:
        if os.path.basename(out).endswith(".json"):
            raise FileError(
                f"'{out}' has the name of a file; the result is a new folder, with its index and its shards"
            )
        outputs.check_folder(Path(out))
        return
    if not os.path.basename(out).endswith(formats.suffix(model)):
        raise FileError(f"'{out}' does not end in {formats.suffix(model)}")
    if kind == formats.SHARDED:
        _check_new(out)
    outputs.check([outputs.Output(Path(out), overwrite=overwrite)], {**inputs, model: outputs.MODEL})


def editor_of(
    opened: Checkpoint,
    out: "str | os.PathLike[str] | None",
    arrays: list[Array],
    keep: str | None,
    overwrite: bool,
    donors: list[Source],
) -> contextlib.AbstractContextManager[Editor]:
    """The `Editor` of a checkpoint, as a block at whose end the result is in its place.

    Args:
        opened: the checkpoint.
        out: the path of the result; `None` is the checkpoint itself.
        arrays: the arrays that will be written to.
        keep: the text of the patch, if a journal is kept for `undo`, else `None`.
        overwrite: whether `out` may be replaced.
        donors: the `Source`s of what else is read.
    """
    changed = list(dict.fromkeys(array.file for array in arrays))
    decoded = [array for array in arrays if array.packed]
    if out is None:
        _check_in_place(opened, changed, donors)
        return editor.in_place(opened.real, opened.files, opened.entry, keep, donors)
    out = Path(out)
    inputs = {**dict.fromkeys(opened.sources, outputs.MODEL), **dict.fromkeys(donors, outputs.READ)}
    check_output(out, opened.path, inputs, overwrite)
    unchanged = [*opened.sources, *donors]
    if opened.kind in IN_FOLDERS:
        return _folder(opened, out, changed, keep, unchanged, decoded)
    if opened.kind == formats.SHARDED:
        return _shards(opened, out, keep, inputs, unchanged, decoded)
    if os.path.exists(out):
        recovery.recover(Source(out).real)  # a journal of an edit that was cut off would be of the file replaced
    results = {opened.files[0]: outputs.Output(out, overwrite=overwrite)}
    return editor.aside(results, opened.entry, keep, [], inputs, unchanged, decoded)


def _check_in_place(opened: Checkpoint, changed: list[Source], donors: list[Source]) -> None:
    for donor in donors:
        if any(donor.is_same(source) for source in opened.files):
            raise UnsupportedError(
                f"'{donor}' is edited in place, and handed in as well",
                notes=["with an output of its own the file stays as it was"],
            )
    for source in changed:
        with failing(f"cannot write '{source}'"):
            names = os.stat(source).st_nlink
        if names > 1:
            raise FileError(
                f"'{source}' has a second name (a hard link), and an edit in place would change the file under both",
                notes=["with an output of its own the file stays as it was"],
            )
        if source.real.parent != opened.real.parent:
            raise FileError(
                f"'{source}' is a link to a file in another folder, and is not edited in place",
                notes=["with an output of its own the file stays as it was"],
            )


# Sharded weights of Keras


def _shards(
    opened: Checkpoint,
    out: Path,
    keep: str | None,
    inputs: dict[Any, str],
    unchanged: list[Source],
    decoded: list[Array],
) -> Any:
    base = out.name.removesuffix(formats.SHARDED)
    results = {
        file: outputs.Output(out.with_name(f"{base}_{number:05}.weights.h5"))
        for number, file in enumerate(opened.files)
    }
    for result in results.values():
        _check_new(result.path)
    texts = [(outputs.Output(out), _renamed(opened, results))]
    return editor.aside(results, None, keep, texts, inputs, unchanged, decoded)


def _check_new(path: "str | os.PathLike[str]") -> None:
    """Several files cannot take the places of others at one moment."""
    if os.path.lexists(path):
        raise FileError(f"'{path}' exists; the shards of a result need new names")


def _renamed(opened: Checkpoint, results: dict[Source, outputs.Output]) -> str:
    """The map of shards, with the names of the new ones."""
    new = {source.path.name: result.path.name for source, result in results.items()}
    with opened.sources[0].open() as file:
        content = json.loads(file.read().decode("utf-8"))
    content["weight_map"] = {
        path: new[names] if isinstance(names, str) else [new[name] for name in names]
        for path, names in content["weight_map"].items()
    }
    return json.dumps(content, indent=4)


# Folders


@contextlib.contextmanager
def _folder(
    opened: Checkpoint,
    out: Path,
    changed: list[Source],
    keep: str | None,
    unchanged: list[Source],
    decoded: list[Array],
) -> Iterator[Any]:
    """An `Editor` of a new folder, which gets its name when it is complete."""
    files = {source: source.path.name for source in opened.sources}
    with outputs.folder(out, unchanged) as made:
        for name, source in _files(opened, files):
            target = made / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source in opened.files and source not in changed and _linked(source, target):
                continue
            if source in changed:
                target.touch()  # the editor copies it
            else:
                copy_of(source, target) if source in files else shutil.copyfile(source, target)
            shutil.copymode(source, target)
            if source in changed:
                target.chmod(target.stat().st_mode | 0o200)  # until it is edited
        copies = {source: made / files[source] for source in opened.files if source in changed}
        results = {source: (files[source], made / files[source]) for source in opened.files}
        log = journal.done(made / opened.real.name)
        with editor.of_copies(copies, opened.entry, results, keep, log, decoded) as found:
            yield found
        for source, copy in copies.items():
            shutil.copymode(source, copy)


def _files(opened: Checkpoint, parsed: dict[Source, str]) -> Iterator[tuple[str, Source]]:
    """The files that a result is made of, and their names in it."""
    yield from ((name, source) for source, name in parsed.items())
    if opened.kind != formats.FOLDER:
        return
    for folder, names, files in os.walk(opened.path):
        for name in names:
            if os.path.islink(os.path.join(folder, name)):
                raise FileError(f"'{os.path.join(folder, name)}' is a link to a folder, and is not copied")
        names[:] = [name for name in names if not name.startswith(".kpatch-")]
        for name in files:
            path = Path(folder, name)
            relative = str(path.relative_to(opened.path))
            if relative not in parsed.values() and not name.endswith((".kpatch-journal", ".kpatch-undo")):
                yield relative, Source(path)


def _linked(source: Source, target: Path) -> bool:
    """Whether the system gives a file a second name. It stays one file, so edits in place refuse it."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return True
    return False
