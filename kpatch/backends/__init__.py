"""The differences between Keras's backends: one `Backend` object for each. Other code never asks for the name."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from kpatch.backends.base import Backend

_current: Backend | None = None  # kept here, as the statement `import` takes half a microsecond each time
_instead: ContextVar[Backend | None] = ContextVar("instead", default=None)
_blocks: list[object] = []  # those of `using` that last, in all threads; dynamo cannot trace a `ContextVar`


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[None]:
    """A block in which this thread computes by another backend."""
    token = _instead.set(backend)
    _blocks.append(token)
    try:
        yield
    finally:
        _blocks.remove(token)
        _instead.reset(token)


def current() -> Backend:
    """The object of Keras's current backend. The first call imports its module, and no other backend's."""
    global _current
    if _blocks and (instead := _instead.get()) is not None:
        return instead
    if _current is None:
        from kpatch.backends.present import backend

        _current = backend
    return _current
