"""The commands `apply` and `diff` on files."""

import os
import sys
from pathlib import Path

from kpatch.backends.present import without_keras
from kpatch.checkpoint import archive, comparing, formats, remembered, safetensors, saving
from kpatch.checkpoint.disk import Source
from kpatch.checkpoint.names import FileIndex
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import FileError
from kpatch.syntax import ast
from kpatch.view import progress


def opened(path):
    """The `Checkpoint`, or `None` if the weights of an archive are compressed, so that the model must be loaded."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "numpy"  # no training backend is needed here
    if formats.kind(path) == formats.ARCHIVE and not archive.is_plain(path):
        return None
    return Checkpoint(path)


def known_names(path):
    """The names in a file as far as they are known without Keras; nothing is played back or written.

    Raises:
        FileError, OSError: the file cannot be read.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "numpy"
    kind = formats.kind(path)
    source = Source(formats.main(path))
    with source.parsed() as file:
        found = formats.read(source, file, kind, path if kind == formats.FOLDER else None)
    if found.config is None:
        return [entry.path for entry in FileIndex(found.arrays).entries]
    place = remembered.place(found.config, found.arrays) if without_keras() else None
    kept = remembered.read(place, found.arrays) if place is not None else None
    return [] if kept is None else [entry.path for entry in (*kept[0].entries, *kept[0].optimizer_entries())]


def sidecar(patch_file, patch):
    """The arrays of the `.safetensors` beside a patch file that the patch names as `$name`.

    Raises:
        FileError: `kpatch diff` did not write the two files together.
    """
    beside = Path(patch_file).with_suffix(".safetensors") if patch_file not in (None, "-") else None
    if beside is None or not beside.is_file():
        return {}
    asked = {node.name for statement in patch.statements for node in ast.walk(statement) if type(node) is ast.Binding}
    found = {array.path: array for array in Checkpoint(beside).arrays if array.path in asked}
    digest = saving.digest_of_arrays(patch.source)
    if found and digest is not None and safetensors.metadata(beside).get("digest") != digest:
        raise FileError(f"'{beside}' was not written together with '{patch_file}'; run kpatch diff again")
    return found


def difference(old, new, tolerance, common):
    """The `Diff` of two files."""
    pair = []
    for path in (old, new):
        checkpoint = opened(path)
        if checkpoint is None:
            raise FileError(f"the weights in '{path}' are compressed: load the model and save it again")
        pair.append(checkpoint)
    progress.expect(sum(array.nbytes for array in pair[0].arrays))
    return comparing.diff(*pair, tolerance=tolerance, common=common, progress=progress.advance)
