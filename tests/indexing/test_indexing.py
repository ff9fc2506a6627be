"""Indexing against NumPy as the oracle: `x = np.arange(size).reshape(shape)`, so that each entry is its own offset."""

import ast
import math
import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kpatch import indexing
from kpatch.errors import LimitError, PatchError, ShapeError, SubscriptError
from kpatch.indexing import (
    Mask,
    Point,
    Positions,
    Region,
    Unknown,
    broadcast,
    fit,
    infer,
    last_wins,
    overlap,
    select,
    subscript,
)
from kpatch.indexing import whole as whole_of

pytestmark = pytest.mark.backend_free

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
LENGTHS = st.integers(0, 5)
SHAPES = st.lists(LENGTHS, max_size=5).map(tuple)
BOUNDS = st.none() | st.integers(-8, 8) | st.sampled_from([2**70, -(2**70), 2**63, -(2**63)])
SLICES = st.builds(
    slice, BOUNDS, BOUNDS, st.none() | st.integers(-4, 4).filter(bool) | st.sampled_from([2**70, -(2**70)])
)


def numbered(shape):
    return np.arange(math.prod(shape)).reshape(shape)


def entries(selection, shape):
    """What the selection names, by its own fields alone."""
    x = numbered(shape)
    if isinstance(selection, Point):
        return x[selection.index]
    if isinstance(selection, Region):
        return x[selection.slices]
    return x.reshape(-1)[selection.flat].reshape(selection.shape)


def outcome(function, *arguments):
    """The result, or the error, of PatchErrors and of NumPy's."""
    try:
        return function(*arguments)
    except (PatchError, IndexError, ValueError, OverflowError) as error:
        return error


# Strategies. `indices` mostly fit the shape, `wild` ones mostly do not.


@st.composite
def integer_arrays(draw, length, block):
    """An index array for an axis of that length, whose shape broadcasts to `block`."""
    shape = tuple(draw(st.sampled_from([n, 1])) for n in block[draw(st.integers(0, len(block))) :])
    dtype = draw(st.sampled_from(INTEGERS))
    low = 0 if dtype.startswith("u") else -length
    if not length:
        shape = (0,) if 0 in block or not block else (*shape[:-1], 0)
    values = draw(
        st.lists(st.integers(low, max(low, length - 1)), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    return np.array(values, dtype).reshape(shape)


@st.composite
def masks(draw, shape, count):
    """A mask of that shape; where it can, it holds `count` times, so that it broadcasts with the other arrays."""
    size = math.prod(shape)
    if draw(st.booleans()) and count <= size:
        holding = draw(st.permutations(range(size)))[:count]
    else:
        holding = [place for place in range(size) if draw(st.booleans())]
    mask = np.zeros(size, bool)
    mask[holding] = True
    return mask.reshape(shape)


@st.composite
def indices(draw, shape):
    """A subscript that mostly fits: an item for each of the first axes, or for some on both sides of a `...`."""
    block = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    basic = draw(st.integers(0, 2)) == 0
    kinds = ["integer", "slice"] if basic else ["integer", "slice", "array", "array", "mask", "0-d mask"]
    items, axis, ellipsis = [], 0, False
    while axis < len(shape) and draw(st.integers(0, 9)) > 0:
        if not ellipsis and draw(st.integers(0, 4)) == 0:
            items.append(...)
            axis, ellipsis = draw(st.integers(axis, len(shape))), True
            continue
        kind, length, taken = draw(st.sampled_from(kinds)), shape[axis], 1
        if kind == "integer" and length:
            number = draw(st.integers(-length, length - 1))
            items.append(draw(st.sampled_from([number, np.array(number), np.int8(number)])))
        elif kind == "array":
            items.append(draw(integer_arrays(length, block)))
        elif kind == "mask":
            taken = draw(st.integers(1, len(shape) - axis))
            items.append(draw(masks(shape[axis : axis + taken], block[-1] if block else 1)))
        elif kind == "0-d mask":
            taken = 0
            items.append(draw(st.sampled_from([True, np.array(False), np.True_])))
            if len(items) > 8:
                break
        else:
            items.append(draw(SLICES))
        axis += taken
    if ellipsis and axis < len(shape):  # the `...` must then reach as far as was meant
        items += [slice(None)] * (len(shape) - axis)
    elif not ellipsis and draw(st.integers(0, 4)) == 0:
        items.append(...)
    return tuple(items)


WILD = st.one_of(
    st.integers(-6, 6),
    st.sampled_from([2**70, -(2**70), 2**63]),
    SLICES,
    st.just(slice(None, None, 0)),
    st.just(...),
    st.builds(np.array, st.lists(st.integers(-4, 4), min_size=1, max_size=3)),
    st.builds(lambda n: np.zeros((n, 0), np.int64), st.integers(0, 2)),
    st.builds(np.array, st.lists(st.booleans(), min_size=1, max_size=3)),
    st.builds(lambda shape: np.ones(shape, bool), st.lists(st.integers(0, 3), max_size=3)),
    st.sampled_from([np.array([], np.float32), np.array([1.0]), np.array(1.0), 1.5, "a", np.array(["a"])]),
)
SUBSCRIPTS = SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), indices(shape)))
WILD_SUBSCRIPTS = st.tuples(st.lists(st.integers(0, 4), max_size=3).map(tuple), st.lists(WILD, max_size=4).map(tuple))


# select


def check(shape, items):
    """Select does what NumPy does, and raises where NumPy raises; the exceptions are stated here, and no other."""
    ours, theirs = outcome(select, shape, items), outcome(numbered(shape).__getitem__, items)
    if isinstance(theirs, Exception):
        assert isinstance(ours, SubscriptError), (ours, theirs)
        assert 0 <= ours.argument < len(items)
    elif isinstance(ours, Exception):
        # NumPy forgives an index out of range where the index arrays broadcast to nothing, and a mask with an empty
        # axis on an axis that is not empty. A patch does not: what is wrong for some lengths is wrong.
        assert isinstance(ours, SubscriptError)
        item = items[ours.argument]
        assert theirs.size == 0
        assert "out of range" in ours.message or (ours.message.startswith("mask") and 0 in item.shape)
    else:
        np.testing.assert_array_equal(entries(ours, shape), theirs, strict=True)
        assert (ours.shape, ours.size) == (theirs.shape, theirs.size)
        check_kind(ours, shape, items)


def check_kind(selection, shape, items):
    arrays = any(
        isinstance(i, (bool, np.bool_)) or (isinstance(i, np.ndarray) and (i.ndim or i.dtype == bool)) for i in items
    )
    if arrays:
        assert isinstance(selection, Positions)
        assert selection.flat.dtype == np.int64
        assert selection.flat.ndim == 1
        at = selection.coordinates(shape)
        assert len(at) == len(shape)
        np.testing.assert_array_equal(numbered(shape)[at] if shape else np.zeros(selection.size), selection.flat)
    elif shape and selection.shape == () and not any(isinstance(i, slice) for i in items):
        assert isinstance(selection, Point)
        assert all(0 <= index < length for index, length in zip(selection.index, shape, strict=True))
    else:
        check_region(selection, shape)


def check_region(region, shape):
    assert isinstance(region, Region)
    assert all(type(number) is int for field in (region.starts, region.counts, region.steps) for number in field)
    for axis, (start, count, step) in enumerate(zip(region.starts, region.counts, region.steps, strict=True)):
        taken = [start + k * step for k in range(count)]
        assert set(taken) <= set(range(shape[axis]))
        assert count > 1 or step == 1
        assert count > 0 or start == 0
    in_order = region.shape == shape and np.array_equal(entries(region, shape), numbered(shape))
    plain = region.counts == shape and max(map(abs, region.starts), default=0) == 0 and set(region.steps) <= {1}
    assert region.full == (in_order and (region.size > 0 or plain))  # nothing, taken backwards, is not the whole


@settings(max_examples=400)
@given(SUBSCRIPTS)
def test_select_is_numpys(subscript):
    check(*subscript)


@settings(max_examples=400)
@given(WILD_SUBSCRIPTS)
def test_select_refuses_what_numpy_refuses(subscript):
    check(*subscript)


def test_most_subscripts_of_the_strategy_fit():
    """Else the tests above would be tests of errors."""
    fits = []

    @settings(max_examples=200, database=None, derandomize=True)
    @given(SUBSCRIPTS)
    def collect(subscript):
        fits.append(not isinstance(outcome(select, *subscript), Exception))

    collect()
    assert np.mean(fits) > 0.6


A, B = np.array([0, 1]), np.array([[0], [1], [0]])
TWO = np.array([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(
    ("shape", "items"),
    [
        ((4, 3, 5), (A, slice(None), A)),  # divided by a slice: in front
        ((4, 3, 5), (slice(None), A, A)),
        ((4, 3, 5), (slice(None), A, ..., A)),  # divided by a `...` that stands for nothing
        ((4, 3, 5), (0, slice(None), A)),  # the integer is of the block, and divided from the rest of it
        ((4, 3, 5), (slice(None), 0, A)),
        ((4, 3, 5), (np.array(0), slice(None), A)),
        ((4, 3, 5), (..., A, B)),
        ((4, 2, 3), (slice(1, 3), TWO)),
        ((2, 3, 4), (TWO, np.array([0, 3, 2]))),
        ((4, 2, 3), (0, TWO)),
        ((4, 3), (True, A)),
        ((4, 3), (slice(None), True, A)),
        ((4, 3), (False,)),
        ((), (True,)),
        ((), (...,)),
        ((), (np.array(True), np.array(False))),
        ((3,), (np.array([2, -1, 0], np.int8),)),
        ((300,), (np.array([200, 255], np.uint8),)),
        ((200,), (np.array([100, -100], np.int8),)),
        ((3,), (np.array([], np.int64),)),
        ((0, 3), (np.array([], np.int64), slice(None, None, -1))),
        ((5, 4), (slice(None, None, -1), slice(3, None, -2))),
        ((5, 4), (slice(-2, 0, -1), slice(3, 0, -2))),
        ((5, 4), (slice(None, None, -2), np.array([[3, 0]]))),
        ((5, 4), (np.arange(10)[::-3] % 5,)),  # not contiguous
        ((2, 3), (np.asfortranarray(TWO),)),
    ],
)
def test_cases_worth_naming(shape, items):
    assert not isinstance(outcome(numbered(shape).__getitem__, items), Exception)
    check(shape, items)


def test_kinds():
    assert select((4, 6), (-1, 0)) == Point((3, 0))
    assert select((4, 6), (np.array(-1), np.uint8(2))) == Point((3, 2))
    assert select((4, 6), (..., 1, 2)) == Point((1, 2))
    assert select((4, 6), (1,)) == Region((1, 0), (1, 6), (1, 1), (0,))
    assert select((4, 6), (slice(None, None, -1), slice(5, 1, -2))) == Region((3, 5), (4, 2), (-1, -2))
    assert select((4, 6), (slice(3, 1), slice(5, 1, -9))) == Region((0, 5), (0, 1), (1, 1))
    assert select((4, 6), ()) == select((4, 6), (...,)) == select((4, 6), (slice(None),)) == whole_of((4, 6))
    assert select((), ()) == select((), (...,)) == whole_of([]) == Region((), (), (), (), True)
    assert whole_of((4, 6)) == Region((0, 0), (4, 6), (1, 1), (), True)
    assert select((5, 4, 3), (slice(None, None, -2), slice(2, 2), 1)).slices == (slice(4, None, -2), slice(0, 0, 1), 1)
    assert not select((1, 6), (0,)).full  # all entries, but not the tensor's shape


def test_selections_are_values():
    assert {select((3,), (1,)), Point((1,)), select((3, 3), (1,)), whole_of((3,))} == {
        Point((1,)),
        Region((1, 0), (1, 3), (1, 1), (0,)),
        whole_of((3,)),
    }
    for selection in (select((3, 3), (1,)), select((3,), (1,)), Unknown((3,), "int32")):
        assert pickle.loads(pickle.dumps(selection)) == selection
        with pytest.raises(FrozenInstanceError):
            setattr(selection, fields(selection)[0].name, ())
    positions = select((3,), (A,))
    assert positions == positions  # by identity: comparing arrays would be an error
    assert positions != select((3,), (A,))
    mask = Mask(np.ones((2, 3), bool), (2, 3))
    assert mask.size == 6


def test_nothing_grows_with_the_variable():
    shape = (2**30, 2**20, 7)
    positions = select(shape, (np.array([2**30 - 1, -1]), 2**20 - 1, slice(None, None, 3)))
    last = 2**50 * 7 - 7
    assert positions.flat.tolist() == [last, last + 3, last + 6] * 2
    assert select(shape, (slice(None, None, -1),)).size == 2**50 * 7
    at = positions.coordinates(shape)
    assert [axis.tolist() for axis in at] == [[2**30 - 1] * 6, [2**20 - 1] * 6, [0, 3, 6] * 2]


def test_select_does_not_change_or_keep_the_items():
    index = np.array([1, -1, 0])
    positions = select((3,), (index,))
    index[:] = 0
    assert positions.flat.tolist() == [1, 2, 0]
    assert select((3,), (np.array([1, -1]),)).flat.flags.writeable


def test_select_needs_values():
    with pytest.raises(TypeError, match="select needs the values of item 1; infer does not"):
        select((3, 3), (0, Unknown((2,), "int32")))


# infer


def compatible(inferred, actual):
    return len(inferred) == len(actual) and all(a in (None, b) for a, b in zip(inferred, actual, strict=True))


def hide(draw, value):
    """An array of which nothing, only its values, or also some of its lengths are hidden."""
    if isinstance(value, (bool, np.generic)):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or draw(st.booleans()):
        return value
    return Unknown(tuple(n if draw(st.integers(0, 3)) else None for n in value.shape), str(value.dtype))


@settings(max_examples=200)
@given(SUBSCRIPTS | WILD_SUBSCRIPTS)
def test_infer_agrees_with_select(subscript):
    selected, inferred = outcome(select, *subscript), outcome(infer, *subscript)
    if isinstance(selected, Exception):
        assert (type(inferred), str(inferred), inferred.argument) == (type(selected), str(selected), selected.argument)
    else:
        assert inferred == selected.shape


@settings(max_examples=300)
@given(st.data(), SUBSCRIPTS)
def test_infer_of_less_says_nothing_wrong(data, subscript):
    shape, items = subscript
    selected = outcome(select, shape, items)
    assume(not isinstance(selected, Exception))
    hidden = tuple(n if data.draw(st.integers(0, 3)) else None for n in shape)
    assert compatible(infer(hidden, tuple(hide(data.draw, item) for item in items)), selected.shape)


@pytest.mark.parametrize(
    ("shape", "items", "expected"),
    [
        ((None, 4), (slice(1, 2),), (None, 4)),
        ((None, 4), (7,), (4,)),
        ((None, 4), (..., -1), (None,)),
        ((None, 4), (7, 3), ()),
        ((None, 4), (np.array([[7, 9]]), slice(0, 2)), (1, 2, 2)),
        ((None, 4), (np.ones((6, 4), bool),), (24,)),
        ((3, 4), (Unknown((3,), "bool"), Unknown((5, 1), "uint8")), (5, None)),
        ((3, 4), (Unknown((), "bool"), 1), (None, 4)),
        ((3, 4), (Unknown((), "int64"), slice(0, 2)), (2,)),
        ((3, 4, 5), (Unknown((), "int64"), slice(0, 2), Unknown((6,), "int8")), (6, 2)),
        ((3, 4), (Unknown((None, 2), "int32"), np.array([0, 1])), (None, 2)),
        ((3, 4), (Unknown((None,), "int32"), np.array([0, 1])), (2,)),
        ((3, 4), (Unknown((None, 4), "bool"),), (None,)),
    ],
)
def test_infer(shape, items, expected):
    assert infer(shape, items) == expected


@pytest.mark.parametrize(
    ("shape", "items", "argument", "message"),
    [
        ((3, None), (3, 0), 0, "index 3 is out of range for axis 0 with 3 entries"),
        ((None, 4), (slice(None), np.array([4])), 1, "index 4 is out of range for axis 1 with 4 entries"),
        ((None, 4), (0, 0, 0), 2, "too many indices for shape (None, 4)"),
        ((3,), (Unknown((3, 1), "bool"),), 0, "too many indices for shape (3,)"),
        (
            (None, 4),
            (Unknown((None, 3), "bool"),),
            0,
            "mask of shape (None, 3) does not fit axes 0 to 1 of shape (None, 4)",
        ),
        ((3,), (Unknown((4,), "bool"),), 0, "mask of shape (4,) does not fit axis 0 with 3 entries"),
        (
            (3, 3),
            (Unknown((4,), "int32"), Unknown((None, 3), "int8")),
            1,
            "index arrays of shapes (4,) and (None, 3) do not broadcast together",
        ),
        (
            (3,),
            (Unknown((2,), "bfloat16"),),
            0,
            "an index is an integer, a slice, '...', an array of integers or a boolean mask, not bfloat16",
        ),
        ((None,), (slice(None, None, 0),), 0, "a slice's step cannot be 0"),
    ],
)
def test_infer_checks_what_it_can(shape, items, argument, message):
    with pytest.raises(SubscriptError) as caught:
        infer(shape, items)
    assert (caught.value.message, caught.value.argument) == (message, argument)


# Error texts

NOT_AN_INDEX = "an index is an integer, a slice, '...', an array of integers or a boolean mask, not "


@pytest.mark.parametrize(
    ("shape", "items", "argument", "text"),
    [
        (
            (64, 32),
            (64, 0),
            0,
            "index 64 is out of range for axis 0 with 64 entries\n  axis 0 takes indices from -64 to 63",
        ),
        ((3, 1), (..., -2), 1, "index -2 is out of range for axis 1 with 1 entry\n  axis 1 takes indices from -1 to 0"),
        ((0,), (0,), 0, "index 0 is out of range for axis 0 with 0 entries\n  axis 0 is empty"),
        (
            (3,),
            (2**70,),
            0,
            (
                "index 1180591620717411303424 is out of range for axis 0 with 3 entries\n"
                "  axis 0 takes indices from -3 to 2"
            ),
        ),
        (
            (3,),
            (-(10**5000),),
            0,
            (
                "index of more than 128 bits is out of range for axis 0 with 3 entries\n"
                "  axis 0 takes indices from -3 to 2"
            ),
        ),
        (
            (4, 3),
            (slice(None), np.array([[0, 1], [2, -4]], np.int8)),
            1,
            (
                "index -4 is out of range for axis 1 with 3 entries\n"
                "  it is the entry [1, 1] of the index array\n"
                "  axis 1 takes indices from -3 to 2"
            ),
        ),
        (
            (3,),
            (np.array([0, 2**64 - 1], np.uint64),),  # NumPy wraps it, to -1
            0,
            (
                "index 18446744073709551615 is out of range for axis 0 with 3 entries\n"
                "  it is the entry [1] of the index array\n"
                "  axis 0 takes indices from -3 to 2"
            ),
        ),
        (
            (5, 3),
            (np.array([9]), np.array([], np.int64)),  # NumPy forgives it
            0,
            (
                "index 9 is out of range for axis 0 with 5 entries\n"
                "  it is the entry [0] of the index array\n"
                "  axis 0 takes indices from -5 to 4"
            ),
        ),
        ((5, 3), (0, 0, 0), 2, "too many indices for shape (5, 3)\n  the index takes 3 axes, the tensor has 2"),
        ((5, 3), (0, ..., TWO), 2, "too many indices for shape (5, 3)\n  the index takes 3 axes, the tensor has 2"),
        ((), (0,), 0, "too many indices for shape ()\n  the index takes 1 axis, the tensor has 0"),
        ((5, 3), (..., 0, ...), 2, "an index holds at most one '...'"),
        ((5, 3), (0, slice(None, None, 0)), 1, "a slice's step cannot be 0"),
        ((5, 3), (0, slice(1.5)), 1, "a slice's start, stop and step are integers"),
        (
            (5, 3),
            (np.ones(3, bool),),
            0,
            (
                "mask of shape (3,) does not fit axis 0 with 5 entries\n"
                "  a mask must have the shape of the axes that it covers"
            ),
        ),
        (
            (4, 2, 4),
            (0, TWO),
            1,
            (
                "mask of shape (2, 3) does not fit axes 1 to 2 of shape (2, 4)\n"
                "  a mask must have the shape of the axes that it covers"
            ),
        ),
        (
            (5, 3),
            (np.zeros(0, bool),),  # NumPy forgives it
            0,
            (
                "mask of shape (0,) does not fit axis 0 with 5 entries\n"
                "  a mask must have the shape of the axes that it covers"
            ),
        ),
        (
            (5, 3, 3),
            (A, np.array([0]), np.array([0, 1, 2])),
            2,
            (
                "index arrays of shapes (2,) and (3,) do not broadcast together\n"
                "  a mask counts as an array of as many entries as it selects"
            ),
        ),
        ((3,), (np.array([], np.float32),), 0, NOT_AN_INDEX + 'float32\n  cast(x, "int32") converts it to integers'),
        ((3,), (1.5,), 0, NOT_AN_INDEX + 'float\n  cast(x, "int32") converts it to integers'),
        ((3,), (None,), 0, NOT_AN_INDEX + "NoneType"),
        ((3,), ([0, 1],), 0, NOT_AN_INDEX + "list"),
    ],
)
def test_subscript_errors(shape, items, argument, text):
    with pytest.raises(SubscriptError) as caught:
        select(shape, items)
    assert str(caught.value) == text
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("shape", "items", "argument", "text"),
    [
        (
            (10, 10),
            (np.zeros((1, 2**15), np.int8), np.zeros((2**15, 1), np.int8)),
            0,
            "the index selects 1,073,741,824 entries, more than 268,435,456",
        ),
        ((1, 2**28), (slice(None), slice(None), np.zeros(5, np.int8)), None, None),
        (
            (1, 2**28),
            (..., np.zeros(5, np.int8), slice(None)),
            1,
            "the index selects 1,342,177,280 entries, more than 1,073,741,824",
        ),
        (
            (2**40, 2**40),
            (np.array([1]), 1),
            0,
            "a tensor of shape (1099511627776, 1099511627776) is too large for an index array",
        ),
        (
            (2**40, 2**40, 0),
            (A,),
            0,
            "a tensor of shape (1099511627776, 1099511627776, 0) is too large for an index array",
        ),
        ((1,) * 10, (slice(None), np.zeros((1,) * 60, np.int8)), 1, "the selection has 69 axes, more than 64"),
    ],
)
def test_limits(shape, items, argument, text):
    expected = LimitError if text else SubscriptError
    for function in (select, infer):
        with pytest.raises(expected) as caught:
            function(shape, items)
        assert text is None or (str(caught.value), caught.value.argument) == (text, argument)


def test_a_selection_may_be_up_to_four_times_a_large_variable(monkeypatch):
    monkeypatch.setattr(subscript, "MAX_REPEATED", 8)
    assert select((5, 2), (np.zeros(20, int),)).size == 40
    with pytest.raises(LimitError, match=r"^the index selects 42 entries, more than 40$"):
        select((5, 2), (np.zeros(21, int),))
    assert select((1,), (np.zeros(8, int),)).size == 8


# fit and broadcast

DIMENSIONS = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@settings(max_examples=300)
@given(DIMENSIONS, DIMENSIONS, st.data())
def test_fit_is_numpys_assignment(value, target, data):
    if data.draw(st.booleans()):  # one that mostly fits
        value = (1,) * data.draw(st.integers(0, 2)) + tuple(data.draw(st.sampled_from([1, n])) for n in target)
    fitted = outcome(fit, value, target)
    theirs = outcome(np.empty(target).__setitem__, ..., np.empty(value))
    if theirs is None:
        assert len(fitted) <= len(target)
        assert value == (1,) * (len(value) - len(fitted)) + fitted
        assert len(fitted) == min(len(value), len(target))
        hidden = [tuple(n if data.draw(st.booleans()) else None for n in shape) for shape in (value, target)]
        assert compatible(fit(*hidden), fitted)
    else:
        assert isinstance(fitted, ShapeError)
        assert len(fitted.notes) == 1


@pytest.mark.parametrize(
    ("value", "target", "text"),
    [
        (
            (3,),
            (2, 10),
            (
                "value of shape (3,) does not fit the selection of shape (2, 10)\n"
                "  axis 1 of the selection has length 10: the value's must be 10 or 1, not 3"
            ),
        ),
        (
            (5, 1, 3),
            (1, 3),
            (
                "value of shape (5, 1, 3) does not fit the selection of shape (1, 3)\n"
                "  the value has 1 axis too many; only leading axes of length 1 are dropped"
            ),
        ),
        (
            (3, None),
            (1, None),
            (
                "value of shape (3, None) does not fit the selection of shape (1, None)\n"
                "  axis 0 of the selection has length 1: the value's must be 1, not 3"
            ),
        ),
        (
            (1, 0),
            (2,),
            (
                "value of shape (1, 0) does not fit the selection of shape (2,)\n"
                "  axis 0 of the selection has length 2: the value's must be 2 or 1, not 0"
            ),
        ),
    ],
)
def test_fit_errors(value, target, text):
    with pytest.raises(ShapeError) as caught:
        fit(value, target)
    assert str(caught.value) == text


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=3).map(tuple), max_size=3), st.data())
def test_broadcast_is_numpys(shapes, data):
    merged, theirs = outcome(broadcast, shapes), outcome(np.broadcast_shapes, *shapes)
    if isinstance(theirs, Exception):
        assert isinstance(merged, ShapeError)
        np.broadcast_shapes(*shapes[: merged.argument])  # no fault before the one that is named
        with pytest.raises(ValueError, match="broadcast"):
            np.broadcast_shapes(*shapes[: merged.argument + 1])
    else:
        assert merged == theirs
        assert compatible(
            broadcast([tuple(n if data.draw(st.booleans()) else None for n in s) for s in shapes]), theirs
        )


def test_broadcast_error():
    with pytest.raises(ShapeError) as caught:
        broadcast([[1], (2, 3), (1,), [4]])
    assert str(caught.value) == "shapes (2, 3) and (4,) do not broadcast together"
    assert caught.value.argument == 3


# overlap and last_wins


def selections(shape):
    def made(items):
        return outcome(select, shape, items)

    some = indices(shape).map(made).filter(lambda selection: not isinstance(selection, Exception))
    boxes = st.tuples(*(SLICES | st.integers(0, max(0, n - 1)) for n in shape)).map(made)
    boxes = boxes.filter(lambda selection: not isinstance(selection, Exception))
    return some | boxes | masks(shape, 1).map(lambda mask: Mask(mask, shape))


def offsets(selection, shape):
    if isinstance(selection, Mask):
        return set(np.flatnonzero(selection.mask).tolist())
    return set(entries(selection, shape).reshape(-1).tolist())


@settings(max_examples=400)
@given(st.lists(LENGTHS, max_size=3).map(tuple).flatmap(lambda s: st.tuples(st.just(s), selections(s), selections(s))))
def test_overlap_is_that_of_sets(case):
    shape, a, b = case
    expected = bool(offsets(a, shape) & offsets(b, shape))
    assert overlap(a, b, shape) is expected
    assert overlap(b, a, shape) is expected


PROGRESSIONS = st.builds(slice, st.integers(0, 60), st.integers(0, 60), st.integers(-25, 25).filter(bool))


@settings(max_examples=400)
@given(PROGRESSIONS, PROGRESSIONS)
@example(slice(0, None, 6), slice(59, None, -15))
def test_overlap_of_progressions(a, b):
    expected = not set(range(60)[a]).isdisjoint(range(60)[b])
    assert overlap(select((60,), (a,)), select((60,), (b,)), (60,)) is expected


SCATTERED = st.lists(st.integers(0, 59), min_size=1, max_size=6).map(lambda items: np.array(items))


@settings(max_examples=400)
@given(SCATTERED, SCATTERED | PROGRESSIONS)
@example(np.array([5]), slice(4, 8, 2))
@example(np.array([50, 7, 20]), np.array([1, 20, 3, 5]))
def test_overlap_of_positions(a, b):
    x = np.arange(60)
    expected = not set(x[a].tolist()).isdisjoint(x[b].tolist())
    assert overlap(select((60,), (a,)), select((60,), (b,)), (60,)) is expected


def test_overlap_is_arithmetic():
    shape = (2**40, 2**40)
    a, b = select(shape, (slice(None, None, 6), slice(None))), select(shape, (slice(3, None, 10**9 + 7), slice(5, 6)))
    assert overlap(a, b, shape)
    assert not overlap(a, select(shape, (slice(3, None, 10**9 + 8), slice(5, 6))), shape)
    assert not overlap(a, select(shape, (1, 5)), shape)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 9), max_size=30), st.booleans())
def test_last_wins_is_numpys_assignment(flat, ordered):
    flat = np.array(sorted(flat) if ordered else flat, np.int64)
    expected, actual = np.full(10, -1), np.full(10, -1)
    expected[flat] = np.arange(len(flat))
    kept = last_wins(flat)
    actual[flat[kept]] = kept
    np.testing.assert_array_equal(actual, expected)
    assert flat[kept].tolist() == sorted(set(flat.tolist()))
    assert kept.dtype == np.int64


def test_imports_neither_keras_nor_a_backend():
    modules = set()
    for path in Path(indexing.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in modules if not name.startswith("kpatch.indexing")}
    assert foreign == {"math", "dataclasses", "functools", "numpy", "kpatch.errors"}
