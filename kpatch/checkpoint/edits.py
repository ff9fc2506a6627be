"""A patch applied to a file, and taken back."""

import json
from pathlib import Path

from kpatch import execute, planner
from kpatch.api import check_expected
from kpatch.checkpoint import editor, journal
from kpatch.checkpoint.names import FileNames, Given
from kpatch.checkpoint.opened import Checkpoint, kind
from kpatch.checkpoint.store import Stored
from kpatch.errors import ExecutionError, FileError, PatchError, UndoError, UnsupportedError
from kpatch.syntax import as_patch


class Applied:
    """A patch that was applied to a file. Printed, it is a table of what was written.

    Attributes:
        plan: the `Plan` that was executed, with the entries that each statement wrote.
        path: the file that holds the result.
        changes: a `Change` for each statement and array.
        note: why the names were those in the file, or `None`.
    """

    def __init__(self, checked, path, changes, note):
        written = {change.step: change.entries for change in changes}
        counts = ((step, execute.static_count(step)) for step in checked.edits)
        self.plan = checked.plan(written.get(step, 0) if known is None else known for step, known in counts)
        self.path = path
        self.changes = changes
        self.note = note

    def __rich__(self):
        from kpatch.report import filled, shape, table_of

        source = self.plan.patch.source
        rows = [
            (
                source[slice(*c.statement.span)],
                c.step.place.path,
                shape(c.step.place.shape),
                f"{c.entries:,}",
                str(c.before),
                str(c.after),
            )
            for c in self.changes
        ]
        return filled(table_of("statement", "variable", "shape", "entries", "before", "after"), rows)

    def __str__(self):
        from kpatch.report import as_text

        return as_text(self.__rich__())

    def __repr__(self):
        return f"<Applied {len(self.changes)} writes to {self.path}>"


def plan(path, patch, /, *, expect=None, **bindings):
    """What a patch would do to a file: checked, and nothing written.

    Args:
        path: a `.keras`, `.weights.h5`, `.weights.json` or `.safetensors` file, or a `Checkpoint`.
        patch: a `Patch`, or its text.
        expect: how many variables the patch must match.
        bindings: the values of the patch's `$names`.

    Returns:
        A `Plan`; printed, it is a table.
    """
    checked = _check(_opened(path), as_patch(patch), expect, bindings)
    return checked.plan(execute.counts(checked, Stored(checked.names)))


def apply(path, patch, out=None, /, *, in_place=False, journal=False, expect=None, **bindings):
    """Edits a file of weights without loading the model: all statements of the patch, or on any failure none.

    Args:
        path: a `.keras`, `.weights.h5`, `.weights.json` or `.safetensors` file.
        patch: a `Patch`, or its text.
        out: where the result goes: a copy is edited, which then takes that place.
        in_place: edit the file itself; the old bytes are on the disk before they are replaced, and are put back by
            whoever opens the file next where the edit was cut off.
        journal: keep the old bytes beside the result, so that `undo` can put them back.
        expect: how many variables the patch must match; another number is an error, with nothing written.
        bindings: the values of the patch's `$names`, as for `kpatch.apply`; also a `Checkpoint`, whose arrays are
            reached as a model's are.

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
    opened = _opened(path)
    checked = _check(opened, as_patch(patch), expect, bindings)
    with _editor(opened, out, journal) as made:
        store = Stored(checked.names, made)
        try:
            execute.run(checked, store)
        except (PatchError, OSError):
            raise
        except Exception as error:
            raise ExecutionError(
                f"the backend failed while the patch ran: {error}", notes=["the file is as it was"]
            ) from error
    return Applied(checked, opened.path if out is None else Path(out), store.changes, opened.note)


def undo(path):
    """Takes back the latest edit of a file that was made with `journal=True`.

    Raises:
        UndoError: there is none, or the file has changed since.
    """
    opened = Checkpoint(path)
    kept = journal.done(opened.real)
    if not kept.exists():
        raise UndoError(f"there is no '{kept.name}' beside '{path}'; an edit with a journal can be undone")
    with editor.in_place(opened.real, opened.files, None, False) as made:
        for file, offset, old in journal.replacements(opened.real, kept):
            made.restore(file, offset, old)
    kept.unlink()


def _opened(path):
    return path if isinstance(path, Checkpoint) else Checkpoint(path)


def _check(opened, patch, expect, bindings):
    names = FileNames(opened, Given(bindings))
    checked = planner.make(patch, names)
    names.bindings.check_used()
    if expect is not None:
        check_expected(checked, expect)
    for step in checked.edits:
        if step.place.variable.refusal is not None:
            message = f"'{step.place.path}' cannot be edited in the file: {step.place.variable.refusal}"
            raise UnsupportedError(message).locate(step.statement.target.span, patch.source)
    return checked


def _editor(opened, out, keep):
    if out is None:
        return editor.in_place(opened.real, opened.files, opened.entry, keep)
    out = Path(out)
    check_output(out, opened)
    if opened.kind != ".weights.json":
        return editor.aside({opened.real: out}, opened.entry, keep)
    base = out.name.removesuffix(".weights.json")
    outputs = {file: out.with_name(f"{base}_{number:05}.weights.h5") for number, file in enumerate(opened.files)}
    for each in (out, *outputs.values()):
        if each.exists():
            raise FileError(f"'{each}' exists; the shards of a result need new names")
    return editor.aside(outputs, None, keep, {out: _renamed(opened, outputs)})


def _renamed(opened, outputs):
    """The map of shards, with the names of the new ones."""
    content, new = json.loads(opened.real.read_text(encoding="utf-8")), {a.name: b.name for a, b in outputs.items()}
    content["weight_map"] = {
        path: new[names] if isinstance(names, str) else [new[name] for name in names]
        for path, names in content["weight_map"].items()
    }
    return json.dumps(content, indent=4)


def check_output(out, opened):
    """Raises a `FileError` where a result cannot go to `out`."""
    if kind(out) != opened.kind:
        raise FileError(f"'{out}' does not end in {opened.kind}")
    if out.is_dir():
        raise FileError(f"'{out}' is a directory")
    if not out.parent.is_dir():
        raise FileError(f"'{out.parent}' is no directory")
    if out.exists() and out.samefile(opened.path):
        raise FileError(f"'{out}' is the file itself; in_place=True says that it may be edited")
