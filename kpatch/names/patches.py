"""Patches as they are handed in: a `Patch`, a text, a file, a `Diff`, or several of them."""

import codecs
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Union

from kpatch.errors import BindingError, FileError, PatchSyntaxError, boundary, reason
from kpatch.names.paths import as_path
from kpatch.syntax import Patch, join, parse

MAX_PATCH = 64 * 2**20  # bytes in a patch file: `parse` reads no more
MODELS = (".keras", ".h5", ".hdf5", ".safetensors", ".weights.json")  # the names of files that hold models


class MakesPatch(Protocol):
    """What a patch can be made of: a `kpatch.checkpoint.Diff`."""

    def __kpatch__(self) -> Patch: ...


PatchLike = Union[str, Patch, "os.PathLike[str]", MakesPatch, Sequence["PatchLike"]]


def as_patch(patch: PatchLike) -> Patch:
    """The `Patch` that is meant: by a text, a path, a `Diff`, or a list of any of these, which is one patch.

    Example:
        >>> print(as_patch(["head.bias = 0", "head.kernel *= 2"]))
        head.bias = 0
        head.kernel *= 2
    """
    if isinstance(patch, Patch):
        return patch
    if isinstance(patch, str):
        return parse(patch)
    if isinstance(patch, os.PathLike):
        return load(patch)
    if isinstance(patch, (list, tuple)):
        return join([as_patch(each) for each in patch])
    if hasattr(patch, "__kpatch__"):
        return patch.__kpatch__()
    raise PatchSyntaxError(
        "a patch is a str, a kpatch.Patch, a pathlib.Path, a kpatch.checkpoint.Diff, or a list of these. "
        f"Received: patch={reprlib.repr(patch)} (of type {type(patch)})",
        notes=_meant(patch),
    )


def _meant(given: Any) -> list[str]:
    """What somebody may have meant who hands in something else as a patch."""
    if isinstance(given, bytes):
        return ["patch.decode() makes a text of bytes"]
    if isinstance(given, Mapping):
        return ["the values of a patch's $names are handed in by bindings={...}"]
    if hasattr(given, "trainable") or hasattr(given, "shape"):  # a layer, a variable, a tensor
        return ["the patch comes second, as in kpatch.apply(model, patch) and kpatch.edit(x, patch)"]
    return []


def bound(
    patch: PatchLike, bindings: Mapping[str, Any] | None = None, named: dict[str, Any] | None = None
) -> tuple[Patch, dict[str, Any]]:
    """The `Patch` without its bindings, and the values of its `$names`: those given before those that it brings."""
    patch, given = as_patch(patch), together(bindings, named or {})
    return (replace(patch, bindings={}), {**patch.bindings, **given}) if patch.bindings else (patch, given)


def together(bindings: Mapping[str, Any] | None, named: dict[str, Any], keyword: str = "bindings") -> dict[str, Any]:
    """The values that a function is given, in `bindings={name: value}` and as keywords of their names.

    Example:
        >>> together({"undo": 1}, {"row": 0})
        {'undo': 1, 'row': 0}
        >>> together({"row": 1}, {"row": 0})
        Traceback (most recent call last):
        kpatch.BindingError: 'row' is given twice, as row=... and in bindings={"row": ...}; one of them is enough
    """
    if bindings is None:
        return named
    given: Any = bindings
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise BindingError(f"{keyword} is a dict of names and values. Received: {keyword}={reprlib.repr(bindings)}")
    for name in named:
        if name in bindings:
            raise BindingError(
                f"'{name}' is given twice, as {name}=... and in {keyword}={{\"{name}\": ...}}; one of them is enough"
            )
    return {**bindings, **named}


@boundary
def load(path: "str | os.PathLike[str]") -> Patch:
    """Reads a patch file. The arrays in the `.safetensors` beside it are the values of its `$names`.

    Args:
        path: the file; `kpatch.diff(a, b).save(path)` writes one, and so does any editor.

    Returns:
        A `Patch`, with `bindings` if there is such a `.safetensors`. They are read when they are used.

    Raises:
        FileError: a file cannot be read, or is not UTF-8.
        PatchSyntaxError: the text is not a patch.

    Example:
        >>> import kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "prune.kpatch")
        >>> _ = path.write_text("head.bias = 0")
        >>> kpatch.load(path)
        Patch('head.bias = 0')
    """
    from kpatch.checkpoint.commands import sidecar

    patch = parse(read_text(str(as_path(path))))
    return replace(patch, bindings=sidecar(path, patch))


def read_text(name: str) -> str:
    """The text of a patch file; `-` is standard input."""
    return decode(read(name), name).removeprefix("\ufeff")


def read(name: str, limit: int = MAX_PATCH, place: str = "the model comes before the patch") -> bytes:
    """The content of a file; `-` is standard input.

    Args:
        name: the file.
        limit: the most bytes.
        place: where a model belongs, which is told if the file is one.

    Raises:
        FileError: it cannot be read, or is longer than the limit.
    """
    path = as_path(name)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise unreadable(name, error) from error
    if name.endswith(MODELS):
        raise FileError(f"'{name}' is a model, not a patch; {place}")
    if len(data) > limit:
        raise FileError(f"'{name}' is too long: it has more than {limit:,} bytes")
    return data


def unreadable(name: str, error: OSError) -> FileError:
    notes = ["it may be a patch, which is a text and no path"] if "=" in name else []
    return FileError(f"cannot read '{name}': {reason(error)}", notes=notes)


def decode(data: bytes, name: str, encoding: str = "utf-8") -> str:
    """The text that the bytes of a file mean; a mark of UTF-16 decides, since PowerShell writes that.

    Example:
        >>> decode(b"a.b = 1", "a.kpatch")
        'a.b = 1'
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise FileError(f"'{name}' is not {encoding.upper()} text: byte {error.start} is 0x{byte:02x}") from error
    except (LookupError, ValueError) as error:  # codecs that are not for text, or decode by rules of their own
        raise FileError(f"'{name}' is not {encoding.upper()} text: {error}") from error
