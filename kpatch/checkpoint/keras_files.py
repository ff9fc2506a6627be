"""`.keras` files: loads them with errors that name the fault, and saves them aside and renames them."""

import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kpatch.checkpoint.archive import check
from kpatch.checkpoint.disk import Source
from kpatch.checkpoint.outputs import Inputs, Output, written
from kpatch.errors import FileError, reason

SHOWN = 300  # characters shown of a message of Keras
WEIGHTS = ("model.weights.h5", "model.weights.npz")


class LoadedFile(NamedTuple):
    """A model from a file, Keras's warnings, and the file."""

    model: Any
    warnings: tuple[str, ...]
    source: Source


def load(path: str | os.PathLike[str], *, with_training_state: bool = False) -> LoadedFile:
    """Loads a model by `keras.saving.load_model`, in safe mode, with the state of its optimizer.

    If loss, metrics or optimizer cannot be restored (because they are custom, for example), the model is loaded without
    them, with a warning.

    Args:
        path: the file.
        with_training_state: raise an error instead of loading the model without them.

    Raises:
        FileError: the file is missing, not a Keras model, damaged, or needs code that this process lacks.
    """
    path = Path(path)
    source = Source(path)
    saved_by = _saved_by(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model, lost = _load(path, saved_by, with_training_state)
    source.check()
    said = (_short(item.message) for item in caught if item.category is UserWarning)
    return LoadedFile(model, tuple(dict.fromkeys((*lost, *said))), source)


def _load(path: Path, saved_by: str, with_training_state: bool) -> tuple[Any, list[str]]:
    import keras

    try:
        return keras.saving.load_model(path), []
    except Exception as error:
        failed = failure(path, error, saved_by)
        if with_training_state:
            raise failed from error
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception:  # noqa: BLE001
            raise failed from error  # the first failure says more
        return model, [f"{failed.message.partition(': ')[2]}; the model was loaded without its training state"]


def _saved_by(source: Source) -> str:
    """The version of Keras that wrote the file; `FileError` if the file is not a Keras model."""
    path = source.path
    try:
        with source.parsed() as file, zipfile.ZipFile(file) as archive:
            check(path, archive.infolist())
            names = archive.namelist()
            if "config.json" not in names or not any(name in names for name in WEIGHTS):
                raise FileError(f"'{path}' is not a Keras model: the archive lacks its config.json or its weights")
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read '{path}': {reason(error)}") from error
    except zipfile.BadZipFile as error:
        raise FileError(f"'{path}' is not a .keras file: {_kind(path)}") from error
    except (ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise FileError(f"'{path}' is damaged: {_short(error)}") from error
    return str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""


def _kind(path: Path) -> str:
    """A description of a file that is not a zip archive."""
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return "it is an HDF5 file, of weights alone or of Keras 2; load it in Python and save the model as .keras"
    return "it is empty" if not start else "it is not a zip archive, or is damaged"


def failure(path: Path, error: Exception, saved_by: str) -> FileError:
    """The `FileError` for an exception of Keras, for a user who has only the file."""
    import keras

    text = str(error)
    if missing := re.search(r"Could not (?:locate|deserialize) (class|function) '([^']+)'", text):
        name = missing[2].rpartition(">")[2]  # without the package that it is registered under
        return FileError(
            f"cannot load '{path}': it needs the custom {missing[1]} '{name}', which is not known here",
            notes=["--import MODULE imports the code that has it; in Python, custom_objects={...} hands it in"],
        )
    if "safe_mode" in text and "lambda" in text:
        return FileError(
            f"cannot load '{path}': it holds a Python lambda, which is code that loading would run",
            notes=["if you trust it: keras.saving.load_model(path, safe_mode=False) in Python, and kpatch.apply there"],
        )
    notes = []
    if saved_by and saved_by != keras.version():
        notes = [f"the file was saved by Keras {saved_by}; this is Keras {keras.version()}"]
    return FileError(f"cannot load '{path}': {_short(error)}", notes=notes)


def _short(error: Any) -> str:
    """The sentence of Keras's message that names the fault, on one line, without configurations."""
    text = str(error).strip()
    text = text.rpartition("Exception encountered: ")[2] or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def save(model: Any, output: Output, inputs: Inputs, unchanged: Iterable[Source]) -> None:
    """Saves a model to a temporary file, which replaces the output once it is complete and on the disk.

    Args:
        model: the Keras model.
        output, inputs, unchanged: as for `outputs.written`.

    Raises:
        FileError: the model could not be saved; the output is unchanged.
    """
    with written([output], inputs, unchanged) as [file]:
        try:
            model.save(file)
        except Exception as error:
            said = reason(error) if isinstance(error, OSError) else _short(error)
            raise FileError(f"cannot write '{output.path}': {said}") from error
