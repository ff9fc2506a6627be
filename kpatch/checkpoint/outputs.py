"""The rules for every file that kpatch writes.

* An output never replaces an input.
* An existing file is replaced only if kpatch wrote it or the caller allows it.
* Outputs are written to temporary files, and renamed when all are complete.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kpatch.checkpoint import disk
from kpatch.checkpoint.disk import TO_DISK, Source, dress, failing, replace, sync
from kpatch.checkpoint.workplaces import workplace
from kpatch.errors import FileError
from kpatch.view import progress

MODEL = "is the model itself; in_place=True (--in-place) edits it in place"
READ = "is read by the patch; name another output"

Inputs = Mapping[Any, str]  # the path of each input → the rest of the error's sentence after the path


class Output(NamedTuple):
    """A file to be written.

    Attributes:
        path: its path.
        own: tests whether kpatch wrote an existing file, which can then be replaced; `None` for kinds of files in which
            kpatch puts no mark.
        overwrite: any regular file can be replaced.
        of: the path of another output, whose mode and owner this one gets, so that a journal is no more readable than
            its file.
    """

    path: Path
    own: Callable[[Path], bool] | None = None
    overwrite: bool = False
    of: Path | None = None


def check(outputs: Sequence[Output], inputs: Inputs) -> list[Path]:
    """The real paths of the outputs.

    Raises:
        FileError: an output must not be written, or two outputs are one file.
    """
    targets = [_target(output, inputs) for output in outputs]
    seen: dict[str, Path] = {}
    for output, target in zip(outputs, targets, strict=True):
        key = str(target).casefold()  # on some file systems two new names are one file
        if key in seen:
            raise FileError(f"'{seen[key]}' and '{output.path}' are one file; each output needs a name of its own")
        seen[key] = output.path
    return targets


def _target(output: Output, inputs: Inputs) -> Path:
    path, target = output.path, Path(os.path.realpath(output.path))
    if str(path) == "-":
        raise FileError("'-' is not a file name here; write './-' for a file of that name")
    with failing(f"cannot write '{path}'"):
        if not target.parent.is_dir():
            raise FileError(f"'{path.parent}' is not a directory")
        try:
            state = target.lstat()
        except FileNotFoundError:
            return target
    if stat.S_ISDIR(state.st_mode):
        raise FileError(f"'{path}' is a directory")
    if not stat.S_ISREG(state.st_mode):
        raise FileError(f"'{path}' is not a regular file, so it is not replaced")
    for given, what in inputs.items():
        if os.path.exists(given) and os.path.samefile(given, target):
            raise FileError(f"'{path}' {what}")
    with failing(f"cannot read '{path}'"):
        if output.overwrite or (output.own is not None and output.own(target)):
            return target
    if output.own is None:
        raise FileError(f"'{path}' exists; overwrite=True (--overwrite) replaces it")
    raise FileError(f"'{path}' exists and was not written by kpatch; name another output, or remove the file")


def check_folder(path: Path) -> None:
    """Raises a `FileError` if a result cannot be a new folder of that name."""
    with failing(f"cannot write '{path}'"):
        if os.path.lexists(path):
            raise FileError(f"'{path}' exists; the result is a folder, which needs a new name")
        if not path.parent.is_dir():
            raise FileError(f"'{path.parent}' is not a directory")


@contextlib.contextmanager
def folder(path: Path, unchanged: Iterable[Source]) -> Iterator[Path]:
    """A temporary folder to fill, which gets the name at the end; on an exception nothing is left.

    Raises:
        FileError: the name is taken, a source has changed, or the folder cannot be written.
    """
    check_folder(path)
    with failing(f"cannot write '{path}'"), workplace(path.parent) as around:
        made = around / path.name
        made.mkdir()
        yield made
        with progress.phase(TO_DISK):
            for each in (*sorted(made.rglob("*"), reverse=True), made):
                sync(each)
        for source in unchanged:
            source.check()
        check_folder(path)
        os.rename(made, path)
        try:
            sync(path.parent)
        except BaseException:
            os.rename(path, made)
            raise


def begins(mark: bytes) -> Callable[[Path], bool]:
    """A function that tests whether a file begins with a mark."""

    def own(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark

    return own


@contextlib.contextmanager
def written(outputs: Sequence[Output], inputs: Inputs, unchanged: Iterable[Source] = ()) -> Iterator[list[Path]]:
    """Temporary files to write to, which replace the outputs at the end, in order; on an exception no output changes.

    If one of several cannot be replaced, those before it are put back, on a file system that has hard links.

    A replaced file keeps its mode and, if permitted, its owner. A new file has no permission for group and others that
    one of the inputs lacks.

    Args:
        outputs: the outputs.
        inputs: the files that must not be replaced.
        unchanged: the files that must not have changed when the outputs are replaced.

    Raises:
        FileError: an output must not or cannot be written, or a source has changed.
    """
    targets = check(outputs, inputs)
    main = next((output.path for output in reversed(outputs) if output.of is None), None)
    folders: list[Path] = []
    with contextlib.ExitStack() as stack:
        for output, target in zip(outputs, targets, strict=True):
            with failing(f"cannot write '{output.path}'"):
                folders.append(stack.enter_context(workplace(target.parent)))
        files = [folder / output.path.name for folder, output in zip(folders, outputs, strict=True)]
        with failing(f"cannot write '{main}'"):
            yield files
            _dress(outputs, files, targets, inputs)
            with progress.phase(TO_DISK):
                for file in files:
                    sync(file)
            check(outputs, inputs)
            for source in unchanged:
                source.check()
            _take_places(files, targets)


def _take_places(files: list[Path], targets: list[Path]) -> None:
    """Renames files to their targets; on an exception the targets are what they were."""
    begun: list[tuple[Path, Callable[[], None]]] = []
    try:
        for file, target in zip(files, targets, strict=True):
            begun.append((file, _way_back(file, target)))
            replace(file, target)
        for folder in {target.parent for target in targets}:
            sync(folder)
    except BaseException:
        for file, put_back in reversed(begun):
            if not file.exists():  # it was renamed
                put_back()
        raise


def _way_back(file: Path, target: Path) -> Callable[[], None]:
    """A function that undoes the renaming of a file to a target, whose present file gets a second name for that."""
    if not target.exists():
        return target.unlink
    before = file.with_name("old" if file.name != "old" else "before")
    if not disk.RENAMES_OPEN and not target.stat().st_mode & stat.S_IWRITE:
        return lambda: None  # the name could not be removed without a change of the file
    try:
        os.link(target, before)
    except OSError:  # a file system without hard links
        return lambda: None
    return lambda: replace(before, target)


def _dress(outputs: Sequence[Output], files: list[Path], targets: list[Path], inputs: Inputs) -> None:
    named = {output.path: file for output, file in zip(outputs, files, strict=True)}
    for file, target in zip(files, targets, strict=True):
        if target.exists():
            dress(file, target.stat())
            continue
        mode = stat.S_IMODE(file.stat().st_mode)
        for given in filter(os.path.exists, inputs):
            mode &= os.stat(given).st_mode | 0o600
        file.chmod(mode)
    for output, file in zip(outputs, files, strict=True):
        if output.of is not None:
            dress(file, named[output.of].stat(), 0o666)
