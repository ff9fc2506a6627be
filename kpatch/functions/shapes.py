"""Which shape a function's result has: pure rules on shapes, in which `None` is a length not known yet."""

import math
from collections.abc import Callable
from typing import Any

from kpatch.errors import FunctionError, ShapeError, UnsupportedError


def normal_axis(axis, count, name="axis"):
    """A normalised axis."""
    if not -count <= axis < count:
        axes = f"{count} ax{'i' if count == 1 else 'e'}s"
        raise ShapeError(f"axis {axis} is out of range for {axes}", argument=name)
    return axis % count


def normal_axes(axis, count, name="axis"):
    """Normalised axes, all different; all of them for `None`."""
    if axis is None:
        return tuple(range(count))
    axes = tuple(normal_axis(a, count, name) for a in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{list(axis)} names one axis twice", argument=name)
    return axes


def widens(shape, target):
    """Whether a shape broadcasts to another one, as far as the lengths are known."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) or None in (a, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def one_axis(axis, count):
    if isinstance(axis, tuple):
        raise FunctionError("'axis' is one integer here, not a list", argument="axis")
    return normal_axis(axis, count)


def reduced(shape, axes, keepdims):
    if keepdims:
        return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


def differ(a, b):
    return a != b and None not in (a, b)


# Each rule takes a shape and the arguments of the function of that name, checks them, and gives the result's shape
# and the arguments, normalised, as NumPy and `keras.ops` take them by position.


def _reshape_rule(shape, newshape):
    new = newshape if isinstance(newshape, tuple) else (newshape,)
    free = [place for place, length in enumerate(new) if length == -1]
    if any(length < -1 for length in new) or len(free) > 1:
        raise ShapeError(f"a shape has lengths and at most one -1: {list(new)}", argument="newshape")
    fixed = math.prod(length for length in new if length != -1)
    if None in shape:
        return tuple(None if length == -1 else length for length in new), (new,)
    size = math.prod(shape)
    if (size % fixed if free and fixed else size != fixed) or (free and not fixed):
        raise ShapeError(f"{size} entries of shape {shape} do not fill the shape {list(new)}", argument="newshape")
    filled = tuple(size // fixed if length == -1 else length for length in new)
    return filled, (filled,)


def _ravel_rule(shape):
    return ((None,), ((-1,),)) if None in shape else ((math.prod(shape),), ((math.prod(shape),),))


def _transpose_rule(shape, axes):
    if axes is None:
        order = tuple(reversed(range(len(shape))))
    else:
        order = normal_axes(_flat(axes), len(shape), "axes")
        if len(order) != len(shape):
            raise ShapeError(f"'axes' names {len(order)} of {len(shape)} axes", argument="axes")
    return tuple(shape[axis] for axis in order), (order,)


def _flat(axes):
    """A list of integers, where a list of lists is allowed elsewhere."""
    if isinstance(axes, int):
        return (axes,)
    if any(isinstance(axis, list) for axis in axes):
        raise FunctionError("'axes' is a list of integers here", argument="axes")
    return tuple(axes)


def _swapaxes_rule(shape, axis1, axis2):
    a, b = normal_axis(axis1, len(shape), "axis1"), normal_axis(axis2, len(shape), "axis2")
    order = list(range(len(shape)))
    order[a], order[b] = b, a
    return tuple(shape[axis] for axis in order), (a, b)


def _moveaxis_rule(shape, source, destination):
    sources, targets = normal_axes(source, len(shape), "source"), normal_axes(destination, len(shape), "destination")
    if len(sources) != len(targets):
        raise ShapeError("'source' and 'destination' name as many axes", argument="destination")
    order = [axis for axis in range(len(shape)) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return tuple(shape[axis] for axis in order), (sources, targets)


def _squeeze_rule(shape, axis):
    if axis is None:
        if None in shape:
            raise UnsupportedError("squeeze() with an unknown length needs 'axis'")
        axes = tuple(place for place, length in enumerate(shape) if length == 1)
    else:
        axes = normal_axes(axis, len(shape))
    long = next((place for place in axes if shape[place] not in (1, None)), None)
    if long is not None:
        raise ShapeError(f"axis {long} has length {shape[long]}, not 1", argument="axis")
    return reduced(shape, axes, False), (axes,)


def _expand_rule(shape, axis):
    count = len(shape) + (len(axis) if isinstance(axis, tuple) else 1)
    axes = normal_axes(axis, count)
    lengths = iter(shape)
    return tuple(1 if place in axes else next(lengths) for place in range(count)), (axes,)


def _broadcast_rule(old, shape):
    if not widens(old, shape):
        raise ShapeError(f"the shape {old} does not broadcast to {shape}", argument="shape")
    return shape, (shape,)


def _repeat_rule(shape, repeats, axis):
    if axis is None:
        shape, place = _ravel_rule(shape)[0], 0
    else:
        place = one_axis(axis, len(shape))
    counts = repeats if isinstance(repeats, tuple) else (repeats,)
    if any(count < 0 for count in counts):
        raise ShapeError("a number of repeats cannot be negative", argument="repeats")
    length = shape[place]
    if len(counts) == 1:
        repeats, total = counts[0], None if length is None else length * counts[0]
    elif length is not None and len(counts) != length:
        raise ShapeError(f"{len(counts)} repeats for {length} entries", argument="repeats")
    else:
        total = sum(counts)
    return (*shape[:place], total, *shape[place + 1 :]), (repeats, axis if axis is None else place)


def _tile_rule(shape, repeats):
    counts = repeats if isinstance(repeats, tuple) else (repeats,)
    if any(count < 0 for count in counts):
        raise ShapeError("a number of repeats cannot be negative", argument="repeats")
    width = max(len(shape), len(counts))
    shape, counts = (1,) * (width - len(shape)) + shape, (1,) * (width - len(counts)) + counts
    pairs = zip(shape, counts, strict=True)
    return tuple(None if length is None else length * count for length, count in pairs), (counts,)


def _flip_rule(shape, axis):
    return shape, (normal_axes(axis, len(shape)),)


def _roll_rule(shape, shift, axis):
    shifts = shift if isinstance(shift, tuple) else (shift,)
    if axis is None:
        if len(shifts) != 1:
            raise ShapeError("several shifts need as many axes", argument="shift")
        return shape, (_within(shifts[0], _size(shape)), None)
    axes = normal_axes(axis, len(shape))
    if len(shifts) not in (1, len(axes)) or not shifts:
        raise ShapeError(f"{len(shifts)} shifts for {len(axes)} axes", argument="shift")
    if not axes:
        return shape, (0, None)
    shifts = shifts * (len(axes) // len(shifts))
    pairs = zip(shifts, axes, strict=True)
    return shape, (tuple(_within(amount, shape[place]) for amount, place in pairs), axes)


def _within(shift, length):
    return shift % length if length else 0 if length == 0 else max(-(2**31), min(shift, 2**31 - 1))


def _size(shape):
    return None if None in shape else math.prod(shape)


def _triangle_rule(shape, k):
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {shape}", argument="x")
    rows, columns = (2**30 if length is None else length for length in shape[-2:])
    return shape, (max(-rows, min(k, columns)),)


def _clamped(k):
    return max(-(2**30), min(k, 2**30))


def _diagonal_rule(shape, offset, axis1, axis2):
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {shape}", argument="x")
    a, b = normal_axis(axis1, len(shape), "axis1"), normal_axis(axis2, len(shape), "axis2")
    if a == b:
        raise ShapeError("a diagonal needs two different axes", argument="axis2")
    rows, columns = shape[a], shape[b]
    length = None
    if rows is not None and columns is not None:
        length = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    kept = tuple(shape[axis] for axis in range(len(shape)) if axis not in (a, b))
    return (*kept, length), (_clamped(offset), a, b)


def _diag_rule(shape, k):
    if len(shape) == 2:
        return _diagonal_rule(shape, k, 0, 1)[0], (_clamped(k),)
    if len(shape) != 1:
        raise ShapeError(f"diag() takes a vector or a matrix, found the shape {shape}", argument="x")
    length = None if shape[0] is None else shape[0] + abs(k)
    return (length, length), (k,)


RULES: dict[str, Callable[..., Any]] = {
    "reshape": _reshape_rule,
    "ravel": _ravel_rule,
    "transpose": _transpose_rule,
    "swapaxes": _swapaxes_rule,
    "moveaxis": _moveaxis_rule,
    "squeeze": _squeeze_rule,
    "expand_dims": _expand_rule,
    "broadcast_to": _broadcast_rule,
    "repeat": _repeat_rule,
    "tile": _tile_rule,
    "flip": _flip_rule,
    "roll": _roll_rule,
    "tril": _triangle_rule,
    "triu": _triangle_rule,
    "diagonal": _diagonal_rule,
    "diag": _diag_rule,
}
