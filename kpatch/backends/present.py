"""Keras's current backend.

Keras is not loaded for it if the environment says `KERAS_BACKEND=numpy`: on NumPy most patches of files need no Keras.
"""

import functools
import os
import sys
from importlib import import_module
from typing import Any

from kpatch.backends.base import Backend

CLASSES = {"numpy": "Numpy", "jax": "Jax", "torch": "Torch", "tensorflow": "TensorFlow"}


def without_keras() -> bool:
    """Whether the backend is numpy, and Keras is not loaded."""
    return "keras" not in sys.modules and os.environ.get("KERAS_BACKEND") == "numpy"


@functools.cache
def load(name: str) -> Backend:
    """The object of a backend by its name; a `Generic` if it has no class of its own."""
    if name not in CLASSES:
        from kpatch.backends.generic import Generic

        return Generic(name)
    return getattr(import_module(f"kpatch.backends.{name}"), CLASSES[name])()


def _of_keras() -> Backend:
    import keras

    return load(keras.backend.backend())


def __getattr__(name: str) -> Any:
    """`backend`: kept once Keras is loaded, since its backend is settled then."""
    if name != "backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if without_keras():
        return load("numpy")
    globals()["backend"] = found = _of_keras()
    return found


if "keras" in sys.modules:
    backend: Backend = _of_keras()
