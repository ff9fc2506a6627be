"""Broadcasting of shapes, and of a value to a selection; lengths can be unknown."""

from kpatch.errors import ShapeError


def fit(value_shape, selection_shape):
    """The value's shape without surplus leading axes of length 1; `ShapeError` if it does not broadcast.

    `None`, an unknown length, fits every length.

    Example:
        >>> fit((1, 1, 3), (2, 3))
        (1, 3)
    """
    value_shape, selection_shape = tuple(value_shape), tuple(selection_shape)
    if not value_shape or value_shape == selection_shape:
        return value_shape
    surplus = max(0, len(value_shape) - len(selection_shape))
    kept = value_shape[surplus:]
    fits = all(length in (1, None) for length in value_shape[:surplus]) and all(
        length in (1, None, target) or target is None
        for length, target in zip(kept, selection_shape[len(selection_shape) - len(kept) :], strict=True)
    )
    if fits:
        return kept
    message = f"value of shape {value_shape} does not fit the selection of shape {selection_shape}"
    raise ShapeError(message, notes=_why_unfit(value_shape, selection_shape))


def broadcast(shapes):
    """The shape to which the shapes broadcast; `None` is an unknown length.

    Raises:
        ShapeError: the shapes do not broadcast; `argument` is the index of the first shape that does not fit an
            earlier one.

    Example:
        >>> broadcast([(3, 1), (None,), (3, 4)])
        (3, 4)
        >>> broadcast([(1,), (None,)])
        (None,)
    """
    result = ()
    for place, shape in enumerate(shapes):
        shape = tuple(shape)
        if shape == result:
            continue
        merged = _merge(result, shape)
        if merged is None:
            other = next(tuple(earlier) for earlier in shapes if _merge(tuple(earlier), shape) is None)
            raise ShapeError(f"shapes {other} and {shape} do not broadcast together", argument=place)
        result = merged
    return result


def _merge(a, b):
    """The shape to which two shapes broadcast, or `None`."""
    if len(a) < len(b):
        a, b = b, a
    surplus = len(a) - len(b)
    merged = list(a[:surplus])
    for m, n in zip(a[surplus:], b, strict=True):
        if m == n or n == 1:
            merged.append(m)
        elif m == 1 or m is None:
            merged.append(n)
        elif n is None:
            merged.append(m)
        else:
            return None
    return tuple(merged)


def _why_unfit(value_shape, selection_shape):
    surplus = max(0, len(value_shape) - len(selection_shape))
    if any(length not in (1, None) for length in value_shape[:surplus]):
        return [f"the value has {counted(surplus, 'axis', 'axes')} too many; only leading axes of length 1 are dropped"]
    for back in range(1, len(value_shape) - surplus + 1):
        length, target = value_shape[-back], selection_shape[-back]
        if length not in (1, None, target) and target is not None:
            axis = len(selection_shape) - back
            right = f"{target} or 1" if target != 1 else "1"
            return [f"axis {axis} of the selection has length {target}: the value's must be {right}, not {length}"]
    raise AssertionError("the value fits")


def counted(number, singular, plural):
    return f"{number} {singular if number == 1 else plural}"
