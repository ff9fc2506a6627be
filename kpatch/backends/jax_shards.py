"""Entries of a sharded jax array, without gathering it: each shard is an array of its own.

The part of a selection in a shard is an ordinary selection of the shard's array; the values are joined on the host.

An array can be *spread*: each of several processes holds some of its shards. Then all of them run the same patch. Each
process writes to its own shards, which needs no other. To read entries the processes add what they hold up, so that
all of them get the same values.
"""

import functools

import jax
import numpy as np
from jax import numpy as jnp

from kpatch import indexing
from kpatch.backends import jax_entries as entries
from kpatch.backends.jax_entries import parts_of
from kpatch.backends.jax_processes import gathered, is_spread, joined
from kpatch.indexing import Mask, Point, Positions, Region


def take(array, selection):
    parts, kind = parts_of(array), type(selection)
    if kind is Mask or (kind is Region and selection.full):
        return rebuilt(array, [entries.copy(part) for part in parts])
    told = _told(array.sharding, array.shape)
    taken = np.zeros(_lengths(selection), array.dtype)
    if kind is Point:
        for number, index in _owners(selection.index, array.sharding, array.shape):
            if number in told:
                taken[()] = np.asarray(entries.take_point(parts[number], index))
    else:
        for number, local, places in _split(selection, array.sharding, array.shape):
            if number in told:
                taken[places] = np.asarray(entries.take(parts[number], local))
    return jnp.asarray(joined(taken, array).reshape(selection.shape))


def put(parts, array, selection, values):
    """Puts values into the shards `parts`; each is replaced in the list as soon as it is donated."""
    kind = type(selection)

    def put(number, *call):
        entries.call_into(parts.__setitem__, number, call)

    if kind is Point:
        values = np.asarray(gathered(values), array.dtype)
        for number, index in _owners(selection.index, array.sharding, array.shape):
            put(number, entries.put_point, parts[number], index, values)
    elif kind is Mask:
        pieces = zip(parts, _pieces(selection.mask, array), _pieces(values, array), strict=True)
        for number, (part, mask, piece) in enumerate(pieces):
            put(number, *entries.put_call(part, Mask(mask, mask.shape), piece))
    elif kind is Region and selection.full:
        for number, (part, piece) in enumerate(zip(parts, _pieces(values, array), strict=True)):
            put(number, *entries.put_call(part, indexing.whole(part.shape), piece))
    else:
        values = np.broadcast_to(np.asarray(gathered(values), array.dtype), selection.shape)
        values = values.reshape(_lengths(selection))
        for number, local, places in _split(selection, array.sharding, array.shape):
            put(number, *entries.put_call(parts[number], local, values[places]))


def rebuilt(array, parts):
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def _pieces(values, array):
    """The part of the values for each shard; the values broadcast to the array."""
    if np.ndim(values) == 0:
        return [np.asarray(gathered(values))] * len(parts_of(array))
    if values.shape != array.shape:
        values = np.broadcast_to(np.asarray(gathered(values)), array.shape)
    if array.is_fully_addressable or is_spread(values):
        return parts_of(jax.device_put(values, array.sharding))
    values = np.asarray(values)  # the same in every process, which `device_put` would have them compare
    return [values[index] for index in array.sharding.addressable_devices_indices_map(array.shape).values()]


def _lengths(selection):
    """The shape of a selection's values before they are split among the shards."""
    return (selection.size,) if type(selection) is Positions else selection.shape


@functools.lru_cache(maxsize=64)
def _owners(index, sharding, shape):
    """The shards that hold an entry: the number of each, and the entry's index in it."""
    return [
        (number, np.array([i - low for i, (low, _) in zip(index, bounds, strict=True)], np.int32))
        for number, bounds in enumerate(_bounds(sharding, shape))
        if all(low <= i < high for i, (low, high) in zip(index, bounds, strict=True))
    ]


def _split(selection, sharding, shape):
    """For each shard with selected entries: its number, its local selection, and the index of its values."""
    coordinates = selection.coordinates(shape) if type(selection) is Positions else None
    for number, bounds in enumerate(_bounds(sharding, shape)):
        within = _region_within(selection, bounds) if coordinates is None else _positions_within(coordinates, bounds)
        if within:
            yield number, *within


@functools.lru_cache(maxsize=256)
def _bounds(sharding, shape):
    """The `(start, stop)` of each shard on each axis."""
    return _limits(sharding.addressable_devices_indices_map(shape).values(), shape)


def _limits(indices, shape):
    return [tuple(part.indices(length)[:2] for part, length in zip(index, shape, strict=True)) for index in indices]


def _region_within(region, bounds):
    starts, counts, places = [], [], []
    for axis, (low, high) in enumerate(bounds):
        start, count, step = region.starts[axis], region.counts[axis], region.steps[axis]
        first, last = (low, high - 1) if step > 0 else (high - 1, low)
        begin, end = max(0, -((start - first) // step)), min(count, (last - start) // step + 1)
        if begin >= end:
            return None
        starts.append(start + begin * step - low)
        counts.append(end - begin)
        if axis not in region.dropped:
            places.append(slice(begin, end))
    return Region(tuple(starts), tuple(counts), region.steps, region.dropped), tuple(places)


def _positions_within(coordinates, bounds):
    within = [(low <= axis) & (axis < high) for axis, (low, high) in zip(coordinates, bounds, strict=True)]
    places = np.flatnonzero(np.logical_and.reduce(within))
    if not len(places):
        return None
    local = tuple(axis[places] - low for axis, (low, _) in zip(coordinates, bounds, strict=True))
    flat = np.ravel_multi_index(local, tuple(high - low for low, high in bounds))
    return Positions(flat, places.shape), places


@functools.lru_cache(maxsize=256)
def _told(sharding, shape):
    """The numbers of the shards from which this process tells entries: of shards that are alike the first alone."""
    own = sharding.addressable_devices_indices_map(shape)
    every = own if sharding.is_fully_replicated else sharding.devices_indices_map(shape)
    first = dict(reversed(list(zip(_limits(every.values(), shape), every, strict=True))))
    return {number for number, device in enumerate(own) if device in first.values()}
