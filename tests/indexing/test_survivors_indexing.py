"""Behaviour of indexing that mutants of the code had shown to be untested."""

import itertools
import math
from dataclasses import is_dataclass

import keras
import numpy as np
import pytest

from kpatch import indexing
from kpatch.indexing import kinds

pytestmark = pytest.mark.skipif(keras.backend.backend() != "numpy", reason="needs no backend: tested once")

KINDS = [cls for cls in vars(kinds).values() if is_dataclass(cls)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_selections_are_small_and_cannot_be_changed(kind):
    assert len(KINDS) > 6
    assert kind.__dictoffset__ == 0  # no `__dict__`
    assert kind.__dataclass_params__.frozen
    assert kind.__hash__ is not None


SHAPES = [(7,), (1,), (2, 5), (3, 4, 2), (2, 1, 3), (0,), (3, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 8, 11, 24, 30])
def test_parts_cover_each_entry_once_in_order_and_are_as_large_as_allowed(shape, size):
    array = np.arange(math.prod(shape)).reshape(shape)
    found = [(region, array[region.slices].ravel().tolist()) for region in kinds.parts(shape, size)]
    assert [entry for _, held in found for entry in held] == array.ravel().tolist()
    for region, held in found:
        assert len(held) == region.size <= size
        assert region.full == (len(held) == array.size or not array.size)
        assert region.shape == array[region.slices].shape
    row = next((math.prod(shape[axis:]) for axis in range(len(shape)) if math.prod(shape[axis:]) <= size), 1)
    assert len(found) <= -(-array.size // max(1, row))  # at least whole rows


def test_parts_are_of_as_many_whole_rows_as_fit():
    assert [region.size for region in kinds.parts((3, 4, 2), 20)] == [16, 8]
    assert [region.size for region in kinds.parts((3, 4, 2), 7)] == [6, 2] * 3
    assert [region.size for region in kinds.parts((2, 3), 0)] == [1] * 6


def spread():
    """Selections of a (4, 6) tensor of every kind, each with the offsets that it holds."""
    slices = [slice(None), slice(1, 3), slice(None, None, 2), slice(1, None, 2), slice(None, None, -3), slice(5, 0, -2)]
    items = [(a, b) for a in slices[:5] for b in slices]
    items += [(0, 1), (3, 5), (1, slice(1, None, 4)), (slice(2, 3), 3), (np.array([0, 3]), np.array([1, 4]))]
    items += [(np.array([2]), np.array([3])), (np.array([3, 1, 1]), np.array([5, 0, 2]))]
    numbers = np.arange(24).reshape(4, 6)
    for item in items:
        yield indexing.select((4, 6), item), set(np.ravel(numbers[item]).tolist())
    for mask in (numbers % 5 == 1, numbers > 20, numbers == 7):
        yield indexing.Mask(mask, (4, 6), int(mask.sum())), set(numbers[mask].tolist())


def test_two_selections_overlap_if_they_hold_an_entry_in_common():
    selections = list(spread())
    for (a, held), (b, others) in itertools.product(selections, repeat=2):
        assert indexing.overlap(a, b, (4, 6)) == bool(held & others), (a, b)


def test_steps_of_any_length_meet_where_numbers_say():
    cases = [(start, count, step) for start in (0, 1, 5) for count in (1, 2, 6) for step in (1, 2, 3, 4, 6)]
    for a, b in itertools.product(cases, repeat=2):
        mine, theirs = (range(start, start + count * step, step) for start, count, step in (a, b))
        one, other = (indexing.Region((s,), (c,), (t,), (), False) for s, c, t in (a, b))
        assert indexing.overlap(one, other, (60,)) == bool({*mine} & {*theirs}), (a, b)
        back = indexing.Region((mine[-1],), (a[1],), (-a[2],), (), False)
        assert indexing.overlap(back, other, (60,)) == bool({*mine} & {*theirs}), (a, b)


def test_indices_beside_an_axis_of_unknown_length_are_offsets_into_the_others():
    grid = indexing.select((None, 4, 5), (slice(None), np.array([0, 1, 3]), np.array([4, 2, 1])))
    assert grid.flat.tolist() == [4, 7, 16]
    assert grid.shape == (None, 3)
    grid = indexing.select((None, 4, 5), (slice(None), 2, np.array([4, 0])))
    assert grid.flat.tolist() == [14, 10]
