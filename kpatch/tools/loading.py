"""Models that a command loads by Keras, the backend that it does so on, and the modules that it imports before."""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from kpatch.checkpoint import keras_files
from kpatch.errors import FileError
from kpatch.tools import printing

EMBEDDED = "numpy"  # the backend if none is configured: the lightest, and always installed
PACKAGES = {"numpy": "numpy", "jax": "jax", "torch": "torch", "tensorflow": "tensorflow", "openvino": "openvino"}


def load(path: Path, *, with_training_state: bool = False) -> keras_files.LoadedFile:
    """The model of a file, in memory."""
    with printing.current().status(f"loading {path}"):
        choose_backend()
        loaded = keras_files.load(path, with_training_state=with_training_state)
    for warning in loaded.warnings:
        printing.current().warn(warning)
    return loaded


def opened_or_loaded(path: Path) -> Any:
    """The `Checkpoint` of a file or, if its weights are compressed, the model."""
    from kpatch.checkpoint import commands

    opened = commands.opened(path)
    return load(path).model if opened is None else opened


def choose_backend() -> None:
    """Sets KERAS_BACKEND before Keras is imported: to the configured backend if it is installed, else to NumPy.

    At its first import, Keras writes a keras.json that names TensorFlow, even if that is not installed.
    """
    if "keras" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    wanted = os.environ.get("KERAS_BACKEND")
    if not wanted:
        configured = _configured()
        os.environ["KERAS_BACKEND"] = configured if configured and _installed(configured) else EMBEDDED
    elif wanted not in PACKAGES:
        raise click.UsageError(f"KERAS_BACKEND={wanted} is not a backend of Keras; there are {', '.join(PACKAGES)}.")
    elif not _installed(wanted):
        raise click.UsageError(f"KERAS_BACKEND={wanted}, but {PACKAGES[wanted]} is not installed.")


def _configured() -> str | None:
    """The backend in Keras's configuration file."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        backend = json.loads(Path(home, "keras.json").read_bytes())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) else None


def _installed(backend: str) -> bool:
    return backend in PACKAGES and importlib.util.find_spec(PACKAGES[backend]) is not None


def import_modules(names: tuple[str, ...]) -> None:
    """Imports modules for the classes that they register, on the backend of the commands on files."""
    if not names:
        return
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = EMBEDDED
    sys.path.insert(0, here := os.getcwd())
    try:
        for name in names:
            printing.current().note(f"running the code of the module {name}")
            _import_module(name)
    finally:
        sys.path.remove(here)


def _import_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise FileError(f"cannot import '{name}': {type(error).__name__}: {error}") from error
