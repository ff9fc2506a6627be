"""The differences between Keras's backends: one `Backend` object for each. Other code never asks for the name."""

from kpatch.backends.base import Backend


def current() -> Backend:
    """The object of Keras's current backend. The first call imports its module, and no other backend's."""
    from kpatch.backends.present import backend  # Python caches the module, and dynamo can trace an import

    return backend
