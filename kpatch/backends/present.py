"""Keras's current backend, determined when this module is first imported."""

from importlib import import_module

import keras

from kpatch.backends.base import Backend
from kpatch.backends.generic import Generic

CLASSES = {"numpy": "Numpy", "jax": "Jax", "torch": "Torch", "tensorflow": "TensorFlow"}


def load(name: str) -> Backend:
    """The object of a backend by its name; a `Generic` if it has no class of its own."""
    if name not in CLASSES:
        return Generic(name)
    return getattr(import_module(f"kpatch.backends.{name}"), CLASSES[name])()


backend = load(keras.backend.backend())
