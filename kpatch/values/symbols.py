"""Lengths of axes that are symbols: jax and torch have such while they export a function for any length."""

from kpatch import backends


def lengths(shape):
    """A tensor's shape, with `None` for the symbols of jax and torch that stand for any length while they export."""
    shape = tuple(shape)
    if all(type(length) is int for length in shape):
        return shape
    return tuple(map(backends.current().known_length, shape))
