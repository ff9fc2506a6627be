"""A patch applied to a file, and taken back."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kpatch import backends
from kpatch.checkpoint import destinations, editor, formats, journal, recovery
from kpatch.checkpoint.arrays import Array
from kpatch.checkpoint.disk import Source, check_regular, failing
from kpatch.checkpoint.given import Given
from kpatch.checkpoint.names import FileNames
from kpatch.checkpoint.opened import Checkpoint
from kpatch.checkpoint.store import Stored, nbytes
from kpatch.errors import ExecutionError, FileError, PatchError, UndoError, UnsupportedError, boundary
from kpatch.names import keywords
from kpatch.names.patches import PatchLike, bound
from kpatch.names.paths import as_path
from kpatch.run import execute, planner
from kpatch.run.checking import check_expected
from kpatch.run.plan import Plan, text_in, told
from kpatch.run.steps import Checked
from kpatch.run.writes import columns
from kpatch.syntax import Patch
from kpatch.view import progress
from kpatch.view.overview import Overview, shape
from kpatch.view.shown import Shown


class Applied(Shown):
    """A patch that was applied to a file. Printed, it is a table of what was written.

    Attributes:
        plan: the `Plan` that was executed, with the entries that each statement wrote.
        path: the file that holds the result.
        changes: a `Change` for each statement and array.
        note: why the names were those in the file, or `None`.
    """

    def __init__(self, checked: Checked, path: Path, changes: list[Any], note: str | None) -> None:
        written = {change.step: change.entries for change in changes}
        counts = ((step, execute.static_count(step)) for step in checked.edits)
        self.plan = Plan.of(checked, (written.get(step, 0) if known is None else known for step, known in counts))
        self.path = path
        self.changes = changes
        self.note = note

    def overview(self) -> Overview:
        rows = [
            (
                text_in(c.statement, self.plan.patch),
                c.step.place.path,
                shape(c.step.place.shape),
                f"{c.entries:,}",
                str(c.before),
                str(c.after),
            )
            for c in self.changes
        ]
        return Overview(columns(), rows)

    def to_dict(self) -> dict[str, Any]:
        patch = self.plan.patch
        return {
            "patch": told(patch),
            "writes": [{"statement": text_in(c.statement, patch), **c.to_dict()} for c in self.changes],
        }

    def __repr__(self) -> str:
        return f"<Applied {len(self.changes)} writes to {self.path}>"


@keywords.checked("kpatch.checkpoint.plan")
def plan(
    path: "str | os.PathLike[str] | Checkpoint",
    patch: PatchLike,
    /,
    *,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    **named: Any,
) -> Plan:
    """What a patch would do to a file: checked, and nothing written.

    Args:
        path: a file or a folder of a format that kpatch reads, or a `Checkpoint`.
        patch: as for `kpatch.apply`.
        expect: how many variables the patch must match; another number is an error.
        bindings: the values of the patch's `$names`, as for `apply`.
        custom_objects: as for `apply`.
        **named: the same as keywords, `row=0`.

    Returns:
        A `Plan`; printed, it is a table.

    Raises:
        PatchError: for every error that can be known before the first write, all of them together.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "small.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]).save(path)
        >>> kpatch.checkpoint.plan(path, "head.kernel[$undo] = 0", bindings={"undo": 1}, expect=1).rows[0].entries
        3
    """
    checked = _check(_opened(path, custom_objects), *bound(patch, bindings, named), expect)
    return Plan.of(checked, execute.counts(checked, Stored(checked.names)))


@keywords.checked("kpatch.checkpoint.apply")
def apply(
    path: "str | os.PathLike[str] | Checkpoint",
    patch: PatchLike,
    /,
    out: "str | os.PathLike[str] | None" = None,
    *,
    in_place: bool = False,
    journal: bool = False,
    overwrite: bool = False,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    **named: Any,
) -> Applied:
    """Edits a file of weights without loading the model: all statements of the patch, or on any failure none.

    Args:
        path: a file or a folder of a format that kpatch reads, or a `Checkpoint`.
        patch: as for `kpatch.apply`.
        out: where the result goes: a copy is edited, which then takes that place. Never a file that the patch reads.
            Of a folder, and of a `.safetensors.index.json` with its shards, the result is a new folder.
        in_place: edit the file itself; the old bytes are on the disk before they are replaced, and are put back by
            whoever opens the file next where the edit was cut off.
        journal: keep the old bytes beside the result, so that `undo` can put them back.
        overwrite: a file that `out` names already is replaced; else it is an error.
        expect: how many variables the patch must match; another number is an error, with nothing written.
        bindings: the values of the patch's `$names`, as for `kpatch.apply`. The arrays of a file, or of its path, are
            reached as the variables of a model.
        custom_objects: classes and functions of one's own that the model needs, by name, and a donor given by its path.
        **named: the same as keywords, `row=0`; a name that is an option here, as `out`, is bound by `bindings` alone.

    Returns:
        An `Applied`.

    Raises:
        PatchError: with every file as it was.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "small.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]).save(path)
        >>> applied = kpatch.checkpoint.apply(path, "head.bias[1] = 0.5", in_place=True)
        >>> keras.saving.load_model(path).get_weights()[1].tolist()
        [0.0, 0.5, 0.0]
    """
    if (out is None) == (not in_place):
        raise FileError("say where the result goes: either out or in_place=True")
    if overwrite and in_place:
        raise FileError("overwrite=True says that out may be replaced; in_place=True needs no out")
    if in_place:  # before the file is looked at, which the first process may be writing
        _check_first(path.path if isinstance(path, Checkpoint) else as_path(path))
    opened = _opened(path, custom_objects)
    if out is not None:
        out = as_path(out)
        destinations.check_output(out, opened.path, {}, overwrite)  # before the work is done
    checked = _check(opened, *bound(patch, bindings, named), expect)
    if in_place or journal:
        _check_rewritable(checked, in_place)
    told = checked.patch.source if journal else None
    with destinations.editor_of(opened, out, _written(checked), told, overwrite, _donors(checked)) as made:
        store = Stored(checked.names, made)
        progress.expect(sum(map(nbytes, checked.edits)))
        try:
            execute.run(checked, store)
        except (PatchError, OSError):
            raise
        except Exception as error:
            raise ExecutionError(
                f"the backend failed while the patch ran: {error}", notes=["the file is as it was"]
            ) from error
    return Applied(checked, opened.path if out is None else out, store.changes, opened.note)


@boundary
def undo(path: "str | os.PathLike[str]", *, discard: bool = False) -> Path | None:
    """Takes back the latest edit of a file that was made with `journal=True`; called again, the one before it.

    Args:
        path: the file.
        discard: remove the journal instead, and leave the file as it is: that of an edit that was cut off and cannot be
            put back, else that of the latest edit.

    Returns:
        With `discard` the path of the journal that was removed, else `None`.

    Raises:
        UndoError: there is no such edit, or the bytes that it wrote have changed since.
        FileError: the journal is damaged, or the file is being edited.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "small.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")]).save(path)
        >>> applied = kpatch.checkpoint.apply(path, "head.bias = 7", in_place=True, journal=True)
        >>> kpatch.checkpoint.undo(path)
        >>> kpatch.checkpoint.open(path)["head.bias"].tolist()
        [0.0, 0.0]
    """
    path = as_path(path)
    _check_first(path)
    if discard:
        removed: Path = recovery.discard(Source(formats.main(path)).real)
        return removed
    opened = Checkpoint(path)
    kept = (recovery.undoable(opened.real) or [None])[-1]
    if kept is None:
        missing = journal.done(opened.real).name
        raise UndoError(f"there is no '{missing}' beside '{path}'; an edit with a journal can be undone")
    with editor.in_place(opened.real, opened.files, opened.entry, keep=None, unchanged=[], undoes=kept) as made:
        for source, offset, old in recovery.replacements(kept, opened.real, opened.files, made, opened.entry):
            made.restore(source, offset, old)
    recovery.undoable(opened.real)  # removes it
    return None


def _check_first(path: Path) -> None:
    """Refuses to edit a file in all processes of a job but the first: each of them would edit it."""
    if not sys.modules.keys() & {"jax", "torch"}:  # what makes a job of processes; a backend is not imported for this
        return
    number, _ = backends.current().process()
    if number:
        raise UnsupportedError(
            f"process {number} of this job does not edit '{path}', as process 0 does: each would edit it once more",
            notes=["call it in process 0 alone, or have each process write a file of its own: out=..."],
        )


class Logged(NamedTuple):
    """An edit of a file that `undo` can take back.

    Attributes:
        time: when it was made, in seconds since 1970; `None` if kpatch 0.2 made it, or if its journal is damaged.
        patch: the text of its patch, up to 65,536 characters.
        size: the number of bytes of its journal.
        journal: the journal's path.
        damage: if its beginning or its length shows that the journal is damaged, an error that says so, else `None`.
    """

    time: float | None
    patch: str
    size: int
    journal: Path
    damage: str | None = None

    @property
    def when(self) -> str:
        """The time for a reader, in the zone of this machine."""
        if self.damage is not None:
            return "damaged"
        local = None if self.time is None else time.localtime(self.time)
        return "before kpatch 0.3" if local is None else time.strftime("%Y-%m-%d %H:%M:%S", local)

    def to_dict(self) -> dict[str, Any]:
        """The edit as data that `json.dumps` takes."""
        return {**self._asdict(), "journal": str(self.journal)}


@boundary
def log(path: "str | os.PathLike[str]") -> list[Logged]:
    """The edits of a file that `undo` can take back, the latest first; one whose journal is damaged says so.

    Raises:
        FileError: the file cannot be read.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "small.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")]).save(path)
        >>> for patch in ("head.bias = 7", "head.bias *= 2"):
        ...     applied = kpatch.checkpoint.apply(path, patch, in_place=True, journal=True)
        >>> [edit.patch for edit in kpatch.checkpoint.log(path)]
        ['head.bias *= 2', 'head.bias = 7']
    """
    main = Source(formats.main(as_path(path))).real
    with failing(f"cannot read '{path}'"):
        main.stat()
        check_regular(main)
        return [_logged(each, main) for each in reversed(recovery.undoable(main))]


def _logged(kept: Path, path: Path) -> Logged:
    size = kept.stat().st_size
    try:
        head = journal.head_of_whole(kept, path)
    except FileError as error:
        if kept != recovery.latest(path):
            error.notes = ("'kpatch undo' takes back the later edits first",)
        return Logged(None, "", size, kept, str(error))
    return Logged(head.time, head.patch, size, kept)


def _written(checked: Checked) -> list[Array]:
    """The arrays that the patch writes to."""
    return list(dict.fromkeys(array for step in checked.edits for array in step.place.parts))


def _check_rewritable(checked: Checked, in_place: bool) -> None:
    """Raises an `UnsupportedError` if the patch writes to an array that h5py encodes: no journal has such a change."""
    for step in checked.edits:
        for array in step.place.parts:
            if array.packed:
                what, way = "is not edited in place", "name an output (out=, -o OUT)"
                if not in_place:
                    what, way = "is edited without a journal", "leave out journal=True (--journal)"
                message = f"'{step.place.path}' {what}, since it is stored {array.packed.told}; {way}"
                raise UnsupportedError(message).locate(step.statement.target.span, checked.patch.source)


def _donors(checked: Checked) -> list[Source]:
    return checked.names.bindings.sources


def _opened(path: "str | os.PathLike[str] | Checkpoint", custom_objects: Mapping[str, Any] | None) -> Checkpoint:
    return path if isinstance(path, Checkpoint) else Checkpoint(path, custom_objects=custom_objects)


def _check(opened: Checkpoint, patch: Patch, bindings: dict[str, Any], expect: int | None) -> Checked:
    names = FileNames(opened, Given(bindings, opened.custom_objects))
    checked = planner.make(patch, names)
    names.bindings.check_used()
    check_expected(checked, expect)
    for step in checked.edits:
        refusal = next(filter(None, (array.refusal for array in step.place.parts)), None)
        if refusal is not None:
            message = f"'{step.place.path}' cannot be edited in the file: {refusal}"
            raise UnsupportedError(message).locate(step.statement.target.span, patch.source)
    return checked
