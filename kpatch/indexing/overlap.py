"""Whether two selections share an entry, and which of repeated offsets is the last."""

import math

import numpy as np

from kpatch.indexing.kinds import Mask, Point, Positions


def overlap(a, b, shape):
    """Whether two selections of a tensor of shape `shape` share an entry. The answer is exact.

    Example:
        >>> from kpatch.indexing import select
        >>> even, odd = (select((10,), (slice(start, None, 2),)) for start in (0, 1))
        >>> overlap(even, odd, (10,)), overlap(even, select((10,), (slice(3, 5),)), (10,))
        (False, True)
    """
    if not a.size or not b.size:
        return False
    if isinstance(a, Mask) or isinstance(b, Mask):
        return _mask_overlaps(a, b) if isinstance(a, Mask) else _mask_overlaps(b, a)
    if isinstance(a, Positions) and isinstance(b, Positions):
        return _common(a.flat, b.flat)
    if isinstance(a, Positions):
        a, b = b, a
    if isinstance(b, Positions):
        return _region_holds(_progressions(a), b, shape)
    return all(_meet(*p, *q) for p, q in zip(_progressions(a), _progressions(b), strict=True))


def last_wins(flat):
    """The index in `flat` of the last occurrence of each distinct offset, in ascending order of the offsets.

    So `flat[last_wins(flat)]` is sorted without repeats, and writing `values[last_wins(flat)]` there, in any order,
    gives the result of NumPy's assignment.

    Example:
        >>> last_wins(np.array([7, 3, 7, 5]))
        array([1, 3, 2])
    """
    flat = np.asarray(flat)
    if np.all(flat[1:] > flat[:-1]):
        return np.arange(len(flat))
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    return order[np.append(ordered[1:] != ordered[:-1], True)]


def _progressions(selection):
    if type(selection) is Point:
        return [(index, 1, 1) for index in selection.index]
    return list(zip(selection.starts, selection.counts, selection.steps, strict=True))


def _meet(start, count, step, other_start, other_count, other_step):
    """Whether two non-empty arithmetic progressions share a term."""
    low, high, step = _ascending(start, count, step)
    other_low, other_high, other_step = _ascending(other_start, other_count, other_step)
    common = math.gcd(step, other_step)
    rounds, remainder = divmod(other_low - low, common)
    if remainder:
        return False
    period = other_step // common  # Chinese remainder theorem: the first term that lies on the other's grid
    first = low + step * (rounds * pow(step // common, -1, period) % period)
    least, cycle = max(low, other_low), step * period
    first += -((first - least) // cycle) * cycle  # the first such term that is not below `least`
    return first <= min(high, other_high)


def _ascending(start, count, step):
    end = start + (count - 1) * step
    return (start, end, step) if step > 0 else (end, start, -step)


def _region_holds(progressions, positions, shape):
    """Whether any of the positions lies in the region."""
    inside = np.ones(len(positions.flat), bool)
    for indices, progression in zip(positions.coordinates(shape), progressions, strict=True):
        low, high, step = _ascending(*progression)
        inside &= (indices >= low) & (indices <= high)
        if step > 1:
            inside &= (indices - low) % step == 0
    return bool(inside.any())


def _mask_overlaps(mask, other):
    array = np.asarray(mask.mask)
    if isinstance(other, Mask):
        array = array & np.asarray(other.mask)
    elif isinstance(other, Positions):
        array = array.reshape(-1)[other.flat]
    else:
        array = array[other.index if isinstance(other, Point) else other.slices]
    return bool(array.any())


def _common(a, b):
    """Whether two non-empty arrays of offsets share an offset."""
    few, many = (a, b) if len(a) < len(b) else (b, a)
    few = np.sort(few)
    places = np.searchsorted(few, many)
    return bool((few[np.minimum(places, len(few) - 1)] == many).any())
