"""The differences between Keras's backends: one `Backend` object for each. Other code never asks for the name."""

from kpatch.backends.base import Backend

_current: Backend | None = None  # kept here, as the statement `import` takes half a microsecond each time


def current() -> Backend:
    """The object of Keras's current backend. The first call imports its module, and no other backend's."""
    global _current
    if _current is None:
        from kpatch.backends.present import backend

        _current = backend
    return _current
