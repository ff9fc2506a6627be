"""The one place that touches a backend's memory: entries of a variable, read and written in place.

Each backend has one small module, with the same four functions as `generic`, which does by `keras.ops` alone what the
others do fast: `read`, `write`, `prepare` and `update`. What they take for granted was checked before: a selection in
normal form for the variable's shape, values of the variable's dtype that broadcast to it, no entry twice.
"""

import functools
import importlib

BACKENDS = ("numpy", "jax", "torch", "tensorflow")


def current():
    """The writer of Keras's present backend; `generic` for one that this version does not know."""
    import keras

    return _load(keras.backend.backend())


@functools.cache
def _load(backend):
    return importlib.import_module(f"kpatch.writers.{backend if backend in BACKENDS else 'generic'}")
