"""Saves a `Diff`: the patch, its arrays beside it, and an HTML page of the differences."""

import hashlib
from pathlib import Path

from kpatch.checkpoint import outputs, safetensors
from kpatch.checkpoint.formats import SUFFIXES
from kpatch.errors import FileError
from kpatch.names.paths import as_path
from kpatch.view import html

MARK = "# written by kpatch diff: text "  # the beginning of a saved patch
GENERATOR = "kpatch diff"  # of a page
LONGEST_LINE = 2**10  # bytes
COMPARED = "is one of the files compared; name another output"


def check(patch, page, old, new):
    """Raises `FileError` if the patch and the page (each can be `None`) of two files must not be written."""
    outputs.check([*_patch(patch), *_page(page)], dict.fromkeys((old, new), COMPARED))


def write(found, patch, page=None, title=""):
    """Writes a `Diff` as a patch, a page, or both; returns the paths of the patch.

    Args:
        found: the `Diff`.
        patch, page: the paths; each can be `None`.
        title: the title of the page.
    """
    pages, parts = _page(page), _patch(patch)
    inputs = dict.fromkeys(found.sources, COMPARED)
    outputs.check([*pages, *parts], inputs)
    parts = parts if found.bindings else parts[1:]
    with outputs.written([*pages, *parts], inputs, found.sources) as files:
        for file in files[: len(pages)]:
            file.write_text(html.page(found.overview(), title, GENERATOR), encoding="utf-8", newline="\n")
        if parts:
            _write_patch(found, *files[len(pages) :])
    return [output.path for output in reversed(parts)]


def _write_patch(found, *files):
    """Writes the sidecar, if there is one, and the text.

    The text contains the digest of the arrays, to detect a text and a sidecar of different runs: the sidecar is put in
    place first, and the process can be killed before the text is.
    """
    *beside, place = files
    arrays = ""
    for file in beside:
        named = [(name, array.dtype, array.shape, array.blocks()) for name, array in found.bindings.items()]
        arrays = f", arrays {safetensors.write(file, named, {'kpatch': 'diff'})}"
    place.write_text(f"{MARK}{_digest(found.text)}{arrays}\n{found.text}", encoding="utf-8", newline="\n")


def _page(path):
    return [] if path is None else [outputs.Output(Path(path), own=outputs.begins(html.head(GENERATOR).encode()))]


def _patch(path):
    """The `Output`s of the sidecar and the text."""
    if path is None:
        return []
    path = as_path(path)
    if not path.name:
        raise FileError(f"'{path}' is a directory")
    if path.name.endswith(SUFFIXES):
        raise FileError(f"'{path}' has the name of a model; a patch ends in .kpatch")
    beside = path.with_suffix(".safetensors")
    return [outputs.Output(beside, own=_is_sidecar), outputs.Output(path, own=_is_text)]


def _is_sidecar(path):
    return safetensors.metadata(path).get("kpatch") == "diff"


def _is_text(path):
    """Whether a file is a patch written by `Diff.save` and not edited since."""
    with path.open("rb") as file:
        if file.read(len(MARK)) != MARK.encode():
            return False
        line, text = file.readline(LONGEST_LINE), file.read()
    return line.decode("utf-8", "replace").split(",")[0].strip() == _digest(text)


def _digest(text):
    data = text if isinstance(text, bytes) else text.encode()
    return safetensors.shortened(hashlib.sha256(data))


def digest_of_arrays(text):
    """The digest of the arrays saved with a patch, or `None` if the text has none."""
    line = text.partition("\n")[0]
    return line.rpartition(", arrays ")[2].strip() if line.startswith(MARK) and ", arrays " in line else None
