"""Symbolic lengths, which jax and torch use while they export a function for any length."""

from kpatch import backends


def lengths(shape):
    """A tensor's shape as a tuple, with `None` for each symbolic length."""
    shape = tuple(shape)
    if all(type(length) is int for length in shape):
        return shape
    return tuple(map(backends.current().known_length, shape))
