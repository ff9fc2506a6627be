"""Axes and lengths, on shapes alone; `None` is an unknown length."""

import math

from kpatch.errors import ShapeError


def normal_axis(axis, count, name="axis"):
    """The axis as a non-negative number."""
    if not -count <= axis < count:
        axes = f"{count} ax{'i' if count == 1 else 'e'}s"
        raise ShapeError(f"axis {axis} is out of range for {axes}", argument=name)
    return axis % count


def normal_axes(axis, count, name="axis"):
    """The axes as distinct non-negative numbers; all axes for `None`."""
    if axis is None:
        return tuple(range(count))
    axes = tuple(normal_axis(a, count, name) for a in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{list(axis)} names one axis twice", argument=name)
    return axes


def widens(shape, target):
    """Whether a shape broadcasts to `target`; an unknown length fits every length."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) or None in (a, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def reduced(shape, axes, keepdims=False):
    if keepdims:
        return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


def differ(a, b):
    return a != b and None not in (a, b)


def size(shape):
    """The number of entries, or `None` if a length is unknown."""
    return None if None in shape else math.prod(shape)
