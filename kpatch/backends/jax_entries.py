"""Reads and writes entries of a jax array on one device by compiled functions.

Starts and indices are arguments of the functions, so calls share them; counts and steps are compiled in. A function
that writes donates its first argument.

On CPUs XLA converts bfloat16 and float8 to move them, often the whole array, and NaN payloads are lost. As integers
they keep their bits, but then only element-wise functions and updates of one entry work in place.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.sharding import SingleDeviceSharding

from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Region

OPERATORS: dict[str, Callable] = {"+": jnp.add, "-": jnp.subtract, "*": jnp.multiply, "/": jnp.true_divide}
LARGEST = 2**31 - 1  # the largest index: without x64, jax has no wider indices


def on_one_device(array):
    return type(array.sharding) is SingleDeviceSharding


def parts_of(array):
    """The shards of an array that this process holds, each as an array on one device.

    jax 0.10 raises for `addressable_shards` if it is one copy of those in several processes.
    """
    if not array.is_fully_addressable and len(array.sharding.addressable_devices) == 1:
        return [array.addressable_data(0)]
    return [shard.data for shard in array.addressable_shards]


def concrete(array, sharding=None):
    """The array on a device, as a value even in a trace."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(array, sharding)


_donating = functools.partial(jax.jit, donate_argnums=0)


def take(array, selection):
    kind = type(selection)
    if kind is Point:
        return take_point(array, _index(array, selection.index))
    if kind is Region:
        starts, steps, backward = _ascending(selection)
        return region_taker(selection.counts, steps, backward, selection.dropped)(array, np.array(starts, np.int32))
    if kind is Mask:
        return copy(array)
    taken = np.asarray(take_positions(array, _padded_places(array, selection)))[: selection.size]
    return jax.device_put(taken.reshape(selection.shape), array.sharding if array._committed else None)


def put_call(array, selection, values):
    """The call `(function, *arguments)` that puts values into an array and donates it."""
    kind = type(selection)
    if kind is Point:
        return put_point, array, _index(array, selection.index), _placed(values, array)
    if kind is Region:
        return region_call(array, selection, values)
    if kind is Mask:
        return put_mask, array, _placed(selection.mask, array, bool), _placed(values, array)
    places = _padded_places(array, selection)
    values = np.asarray(values, array.dtype)
    if values.ndim:
        padded = np.zeros(places.shape[1], array.dtype)
        padded[: selection.size] = np.broadcast_to(values, selection.shape).reshape(-1)
        values = padded
    return put_positions, array, places, values


def region_call(array, region, *values, op=None):
    starts, steps, backward = _ascending(region)
    counts = None if is_converted(array.dtype) else region.counts
    put = region_putter(counts, steps, backward, region.dropped, op)
    return put, array, np.array((starts, region.counts), np.int32), *(_placed(part, array) for part in values)


def call_into(setter, key, call):
    """Calls `setter(key, result)` with the result of a call `(function, *arguments)` that donates an array.

    The call deletes the array; an interrupt before the result is stored would lose both. So C code does both steps:
    Python raises interrupts only between its own instructions.
    """
    function, *arguments = call
    any(map(setter, (key,), itertools.starmap(function, (arguments,))))


def extend_by(results, call):
    """Appends all results of a call that gives several; as above, no interrupt comes before they are kept."""
    function, *arguments = call
    results.extend(itertools.chain.from_iterable(itertools.starmap(function, (arguments,))))


def _placed(values, array, dtype=None):
    """The values as an argument that keeps the result on the array's device."""
    if isinstance(values, jax.Array):
        if not values._committed or (array._committed and values.sharding == array.sharding):
            return values
        values = np.asarray(values)
    return np.asarray(values, dtype or array.dtype)


def _index(array, index):
    """The index as an argument: on the host if the array is committed to a device, else on the default device."""
    return np.array(index, np.int32) if array._committed else _device_index(index)


@functools.lru_cache(maxsize=64)
def _device_index(index):
    return concrete(np.array(index, np.int32))


def _ascending(region):
    """The lowest index on each axis, the absolute steps, and the axes with negative steps."""
    if min(region.steps, default=1) > 0:
        return region.starts, region.steps, ()
    axes = zip(region.starts, region.counts, region.steps, strict=True)
    starts = tuple(start if step > 0 else start + (count - 1) * step for start, count, step in axes)
    return starts, tuple(map(abs, region.steps)), tuple(a for a, step in enumerate(region.steps) if step < 0)


def _padded_places(array, positions):
    """Flat offsets, or coordinates if offsets are too large, padded with places out of range to one of few lengths."""
    size, count = array.size, positions.size
    length = max(16, 1 << (count - 1).bit_length())
    if size + length <= LARGEST:
        axes, outside = (positions.flat,), size
    elif max(array.shape) + length <= LARGEST:
        axes, outside = positions.coordinates(array.shape), array.shape[0]
    else:
        raise UnsupportedError(f"jax has no index for an axis as long as in shape {array.shape}")
    places = np.zeros((len(axes), length), np.int32)
    for row, axis in zip(places, axes, strict=True):
        row[:count] = axis
    places[0, count:] = np.arange(outside, outside + length - count)
    return places


def is_converted(dtype):
    return dtype.name.startswith(("bfloat16", "float8"))


def _bits(array):
    if not is_converted(array.dtype):
        return array
    return lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")


def _from_bits(bits, dtype):
    return lax.bitcast_convert_type(bits, dtype) if is_converted(dtype) else bits


copy = jax.jit(jnp.copy)


@jax.jit
def take_point(array, index):
    entry = lax.dynamic_slice(_bits(array), list(index), (1,) * array.ndim)
    return _from_bits(entry.reshape(()), array.dtype)


@_donating
def put_point(array, index, value):
    entry = _bits(value)
    if array.ndim and _one_by_one(array, 1):
        return _put_each(array, index[:, None], entry.reshape(1))
    bits = lax.dynamic_update_slice(_bits(array), entry.reshape((1,) * array.ndim), list(index))
    return _from_bits(bits, array.dtype)


@functools.lru_cache(maxsize=256)
def region_taker(counts, steps, backward, dropped):
    @jax.jit
    def take(array, starts):
        bits = lax.dynamic_slice(_bits(array), list(starts), _spans(counts, steps))
        bits = lax.rev(lax.slice(bits, (0,) * array.ndim, bits.shape, steps), backward)
        return _from_bits(lax.squeeze(bits, dropped), array.dtype)

    return take


@functools.lru_cache(maxsize=256)
def region_putter(counts, steps, backward, dropped, op):
    @_donating
    def put(array, place, *operands):
        values = OPERATORS[op](*operands) if op else operands[0]
        values = values.reshape((1,) * (array.ndim - len(dropped) - values.ndim) + values.shape)
        values = jnp.expand_dims(_bits(values), dropped)
        values = lax.rev(values, [axis for axis in backward if values.shape[axis] > 1])
        if counts is None:
            return _from_bits(_where_region(_bits(array), place[0], place[1], steps, values), array.dtype)
        return _update_region(array, list(place[0]), steps, jnp.broadcast_to(values, counts))

    return put


def _spans(counts, steps):
    """The length that a region covers on each axis."""
    return tuple((count - 1) * step + 1 for count, step in zip(counts, steps, strict=True))


def _update_region(array, starts, steps, values):
    """Updates a slice; with steps, the slice that the region covers, filled up with its present entries."""
    if max(steps, default=1) > 1:
        spans = _spans(values.shape, steps)
        spread = lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, step - 1) for step in steps])
        grids = [lax.broadcasted_iota("int32", spans, axis) % step == 0 for axis, step in enumerate(steps)]
        held = functools.reduce(jnp.logical_and, grids)
        values = lax.select(held, spread, lax.dynamic_slice(array, starts, spans))
    return lax.dynamic_update_slice(array, values, starts)


def _where_region(array, starts, counts, steps, values):
    """Tests each entry for membership in the region: one pass over the whole array, in place."""
    held, places = True, []
    for axis, step in enumerate(steps):
        offset = lax.broadcasted_iota("int32", array.shape, axis) - starts[axis]
        place = offset // step
        inside = (offset >= 0) & (place < counts[axis]) & (place * step == offset)
        held = held & inside
        places.append(jnp.where(inside, place, 0) if values.shape[axis] > 1 else 0)
    entries = values.reshape(()) if values.size == 1 else values.at[tuple(places)].get(mode="promise_in_bounds")
    return jnp.where(held, entries, array)


@_donating
def put_mask(array, mask, values):
    return _from_bits(jnp.where(mask, _bits(values), _bits(array)), array.dtype)


@jax.jit
def take_positions(array, places):
    entries, places = _entries(_bits(array), places)
    return _from_bits(entries.at[places].get(mode="clip"), array.dtype)


@_donating
def put_positions(array, places, values):
    count = places.shape[1]
    values = jnp.broadcast_to(_bits(values), (count,))
    if _one_by_one(array, count):
        return _put_each(array, places, values)
    entries, places = _entries(_bits(array), places)
    entries = entries.at[places].set(values, mode="drop", unique_indices=True)
    return _from_bits(entries.reshape(array.shape), array.dtype)


def _one_by_one(array, count):
    """Whether updating entries one by one is cheaper than converting the whole array to integers and back."""
    few = count <= max(1, math.isqrt(array.size) // 8)
    return few and is_converted(array.dtype) and jax.default_backend() == "cpu"


def _put_each(array, places, bits):
    """A loop of updates in place. Each update scans the rows but skips those it does not change, so the array is
    reshaped to about as many rows as columns."""
    grid = array
    inside = places[0] < (array.shape[0] if len(places) == array.ndim else array.size)
    if array.size <= LARGEST:
        flat = places[0]
        for axis, length in zip(places[1:], array.shape[1:], strict=False):
            flat = flat * length + axis
        grid = array.reshape(-1, _columns(array.size))
        places = jnp.unravel_index(flat, grid.shape)

    def put(k, grid):
        entry = bits[k].reshape((1,) * grid.ndim)
        return _from_bits(lax.dynamic_update_slice(_bits(grid), entry, [axis[k] for axis in places]), grid.dtype)

    return lax.fori_loop(0, jnp.sum(inside), put, grid).reshape(array.shape)


def _columns(size):
    """The largest divisor of the size that is at most its square root."""
    return next(columns for columns in range(math.isqrt(size), 0, -1) if size % columns == 0)


def _entries(array, places):
    """The array, flattened if the places are offsets, and the index into it."""
    return (array.reshape(-1) if len(places) != array.ndim else array), tuple(places)
