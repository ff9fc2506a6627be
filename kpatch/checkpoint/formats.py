"""Which format a file has, by its content and its name, and what it holds."""

import contextlib
import json
import os
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpatch.checkpoint import archive, hdf5, safetensors, shards
from kpatch.checkpoint.arrays import Array
from kpatch.checkpoint.disk import Source, check_regular
from kpatch.errors import FileError

ARCHIVE, HDF5, SAFETENSORS = ".keras", ".h5", ".safetensors"
SHARDED, INDEX, FOLDER = ".weights.json", ".safetensors.index.json", "folder"
SUFFIXES = (ARCHIVE, ".weights.h5", SHARDED, INDEX, SAFETENSORS, HDF5, ".hdf5")  # a longer one before its end
NAMED = f"{ARCHIVE}, .weights.h5, {SHARDED}, {SAFETENSORS} or {HDF5}"

_CONFIG = "config.json"
_MAIN = (archive.WEIGHTS, f"model{SHARDED}", f"model{INDEX}")  # the files that a folder can have
_LARGEST_MAP = 2**26  # bytes of a map of shards
_HDF5_MARK = b"\x89HDF\r\n\x1a\n"
_TORCH = (
    "PyTorch",
    "convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')",
)
_NUMPY = ("NumPy", "convert it: safetensors.numpy.save_file(dict(numpy.load(path)), 'model.safetensors')")
_GGUF = ("GGUF", "convert it: transformers' from_pretrained(folder, gguf_file=name), and save_pretrained(folder)")
_TENSORFLOW = (
    "TensorFlow",
    "load it by the code that made it, or by tf_keras.models.load_model, and save it by model.save('model.keras')",
)
_ORBAX = ("Orbax", "restore it by orbax.checkpoint, and save it by model.save or by safetensors.flax.save_file")
_ONNX = ("ONNX", "edit the model that it was exported from, and export that again")
_FOREIGN = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _TORCH),
    **dict.fromkeys((".npz", ".npy"), _NUMPY),
    **dict.fromkeys((".pb", ".tflite", ".index", ".data-00000-of-00001"), _TENSORFLOW),
    ".gguf": _GGUF,
    ".onnx": _ONNX,
}
_FOREIGN_MARKS = {b"GGUF": _GGUF, b"\x93NUM": _NUMPY}
_FOREIGN_FOLDERS = {
    "saved_model.pb": _TENSORFLOW,
    "checkpoint": _TENSORFLOW,
    "_CHECKPOINT_METADATA": _ORBAX,
    "_METADATA": _ORBAX,
    "manifest.ocdbt": _ORBAX,
}


@dataclass
class Content:
    """What a file, or a folder, holds.

    Attributes:
        files: the `Source`s that contain the arrays.
        arrays: the arrays.
        config: the text of the model's configuration, or `None`.
        entry: the `archive.Member` that contains the arrays of an archive, or `None`.
        others: the other `Source`s that were parsed.
    """

    files: list[Source]
    arrays: list[Array]
    config: str | None = None
    entry: Any = None
    others: list[Source] = field(default_factory=list)


def suffix(path: "str | os.PathLike[str]") -> str:
    """The end of a file's name that tells its format, which the name of a result shares."""
    name = Path(path).name
    return next((each for each in SUFFIXES if name.endswith(each)), Path(path).suffix)


def kind(path: "str | os.PathLike[str]") -> str:
    """The format of a file or a folder: by its first bytes if these tell it, else by its name.

    Raises:
        FileError: kpatch does not read that format; the error names a converter, if there is one.
    """
    if os.path.isdir(path):
        return _kind_of_folder(Path(path))
    check_regular(path)
    start, end = _start(path), suffix(path)
    if start == _HDF5_MARK:
        return HDF5
    if end in SUFFIXES:
        return HDF5 if end in (".weights.h5", ".hdf5") else end
    if start.startswith(b"PK\3\4"):
        names = _names(path)
        if _CONFIG in names:
            return ARCHIVE
        for inner, foreign in (("data.pkl", _TORCH), (".npy", _NUMPY)):
            if any(name.endswith(inner) for name in names):
                raise _foreign(path, foreign)
    by_name = _FOREIGN.get(end.lower()) if start else None
    if told := _FOREIGN_MARKS.get(start[:4], by_name):
        raise _foreign(path, told)
    notes = ["it looks like a patch, which comes after the model"] if is_like_a_patch(path) else []
    if not notes and not os.path.lexists(path):
        raise FileError(f"cannot read '{path}': no such file or directory")
    raise FileError(f"'{path}' does not end in {NAMED}", notes=notes)


def is_like_a_patch(path: "str | os.PathLike[str]") -> bool:
    """Whether what was given as a model has the name of a patch file, or is a statement."""
    return os.fspath(path).endswith(".kpatch") or ("=" in os.fspath(path) and not os.path.exists(path))


def _start(path: "str | os.PathLike[str]") -> bytes:
    """The first bytes of a regular file; empty if there is none to read, which is an error of what opens it."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                return file.read(8)
    return b""


def _names(path: "str | os.PathLike[str]") -> list[str]:
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.namelist()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return []


def _foreign(path: "str | os.PathLike[str]", foreign: tuple[str, str]) -> FileError:
    return FileError(f"'{path}' is a file of {foreign[0]}, which kpatch does not read", notes=[foreign[1]])


def _kind_of_folder(path: Path) -> str:
    if main(path) != path:
        return FOLDER
    for name, foreign in _FOREIGN_FOLDERS.items():
        if (path / name).exists():
            raise _foreign(path, foreign)
    raise FileError(
        f"'{path}' is a directory without weights that kpatch reads",
        notes=[f"it reads {_MAIN[0]} or {_MAIN[1]} beside a {_CONFIG}, and {_MAIN[2]}"],
    )


def main(path: "str | os.PathLike[str]") -> Path:
    """The file that stands for a checkpoint: its journal and its lock have that name."""
    path = Path(path)
    found = (path / name for name in _MAIN) if path.is_dir() else ()
    return next(filter(Path.is_file, found), path)


def read(source: Source, file: Any, kind: str, folder: Path | None) -> Content:
    """What an open file holds.

    Args:
        source: its `Source`.
        file: the open file.
        kind: its format.
        folder: the folder that was given, if it is the main file of one.

    Raises:
        FileError: it is damaged or dangerous.
    """
    if kind == FOLDER:
        assert folder is not None
        found = read(source, file, _kind_in_folder(source), None)
        found.config, config = _config(folder)
        found.others += config
        return found
    if kind == ARCHIVE:
        config, entry = archive.read(source, file)
        return Content([source], hdf5.arrays(source, file, entry.start, entry.length), config, entry)
    if kind in (SHARDED, INDEX):
        files, arrays = shards.read(source, file, _LARGEST_MAP)
        return Content(files, arrays, others=[source])
    return Content([source], (hdf5 if kind == HDF5 else safetensors).arrays(source, file))


def _kind_in_folder(source: Source) -> str:
    return next((each for each in (SHARDED, INDEX) if source.path.name.endswith(each)), HDF5)


def _config(folder: Path) -> tuple[str | None, list[Source]]:
    """The configuration of a Keras model in a folder, and the file that it was read from; `None` for others."""
    if not (folder / _CONFIG).is_file():
        return None, []
    source = Source(folder / _CONFIG)
    with source.parsed() as file:
        data = file.read(archive.LARGEST_CONFIG + 1)
    if len(data) > archive.LARGEST_CONFIG:
        raise FileError(f"'{source}' is refused: it is longer than {archive.LARGEST_CONFIG} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise FileError(f"'{source}' is damaged: it is not JSON") from None
    is_keras = isinstance(found, dict) and "class_name" in found
    return (data.decode("utf-8"), [source]) if is_keras else (None, [])
