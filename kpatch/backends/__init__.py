"""All that differs between Keras's backends: one object for each, a `Backend`. Other code never asks for its name."""

from kpatch.backends.base import Backend


def current() -> Backend:
    """The object of the backend that Keras runs on; only its module is imported, at the first call."""
    from kpatch.backends.present import backend  # Python keeps the module, and dynamo can trace an import

    return backend
