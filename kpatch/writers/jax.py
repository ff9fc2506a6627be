"""Entries of variables on the jax backend.

An array of jax never changes; what makes an edit cheap is donation: a compiled call takes the variable's buffer over,
and its result is that buffer with the new entries in it. That deletes every other array over the same buffer, so it is
done only where nobody else has one (`_private`); where somebody may, the variable gets a copy, once. Views by NumPy or
DLPack need no care: jax itself copies a donated buffer that they hold. Another thread that reads the variable at that
moment is seen by nobody: hence `donate=False`.

Nothing is computed on a whole array that is sharded, so nothing is ever gathered: each device's shard is an array of
its own, read and written like any other.
"""

import functools
import itertools
import math
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from keras.src.backend.common.stateless_scope import in_stateless_scope

from kpatch import indexing
from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Positions, Region

OPERATORS: dict[str, Callable] = {"+": jnp.add, "-": jnp.subtract, "*": jnp.multiply, "/": jnp.true_divide}
SMALL = 2**18  # bytes that are copied faster than other arrays are looked through
LARGEST = 2**31 - 1  # of an index: without x64, jax has no wider ones


def read(variable, selection):
    """The selected entries in memory of their own; for a `Mask` the whole tensor."""
    array = _array(variable)
    if not selection.size:
        return jnp.zeros(selection.shape, array.dtype)
    return _present(_take(array, selection) if _on_one_device(array) else _take_sharded(array, selection))


def write(variable, selection, values, donate=True):
    """Writes values of the variable's dtype, in place where nobody else holds the array.

    With `donate=False` the variable gets a new array each time, and the old one stays as it is.
    """
    if not selection.size:
        return
    array = _writable(variable, donate)
    _replace(variable, array, selection, _present(values))


def prepare(variable, selection, array):
    """The array as `write` takes it fastest: on the variable's device; for shards and positions on the host."""
    current = _array(variable)
    array = np.asarray(array, current.dtype)
    if type(selection) is Positions or not _on_one_device(current):
        return array
    return _concrete(array.copy(), current.sharding if current._committed else None)


def update(variable, region, op, old, operand, donate=True):
    """The region becomes `old <op> operand`, computed in the pass that writes it where that is one over the region."""
    if not region.size:
        return
    array = _writable(variable, donate)
    if _on_one_device(array) and not _is_converted(array.dtype):
        _become(variable, array, _region_call(array, region, old, operand, op=op))
        return
    operand = operand if isinstance(operand, jax.Array) else np.asarray(operand, array.dtype)
    _replace(variable, array, region, _present(OPERATORS[op](old, operand)))


def whole(variable):
    """The whole value as an alias, to be let go before anything is written."""
    return _array(variable)


def exchange(variable, values):
    """The variable takes over an array that nobody else holds, in place of its own, which is returned."""
    old = _array(variable)
    if in_stateless_scope():
        raise _untouchable(variable)
    if old.sharding != values.sharding or old._committed != values._committed:
        return None
    _set(variable, values)
    return old


def settle(variable):
    """Waits for the variable's value. jax computes while Python goes on: for want of memory it fails only then."""
    _array(variable).block_until_ready()


def _present(values):
    """The values; large ones when they are computed, so that none that failed is written over what is there."""
    if isinstance(values, jax.Array) and values.nbytes > SMALL and not isinstance(values, jax.core.Tracer):
        values.block_until_ready()
    return values


def view(tensor):
    """The array's memory as one of NumPy that is only read, or `None` where it cannot be reached.

    DLPack would do as well, but jax then goes on counting a holder of the buffer until its garbage is collected.
    """
    if not _on_one_device(tensor) or tensor.dtype not in (np.float32, np.float64):
        return None
    return np.asarray(tensor) if next(iter(tensor.devices())).platform == "cpu" else None


def is_tracing():
    """Whether a function is being traced at this moment, so that what is computed here is not known yet."""
    if _IS_CLEAN is not None and _IS_CLEAN():
        return False
    return isinstance(jnp.zeros(()), jax.core.Tracer)  # under `grad` or `vmap` alone it is a value


def _clean_state():
    """jax's own test whether no transformation is at work, or `None`: it is private. Without it edits are slower."""
    try:
        from jax._src.core import trace_state_clean
    except ImportError:
        return None
    return trace_state_clean


_IS_CLEAN = _clean_state()


def sync(model):
    """Gives the variables of a model that is in `fit`, `evaluate` or `predict` their present values.

    There Keras holds them in its trainer, and `variable.value` is none. It takes them from the variables again before
    the next step, so that an edit made in a callback takes effect. Anything but a trainer is left alone.
    """
    bring = getattr(model, "jax_state_sync", None)
    if bring is not None:
        bring()


def _array(variable):
    array = variable._value
    if array is None:
        raise UnsupportedError(
            f"variable '{variable.path}' has no value at present",
            notes=[
                "inside fit, evaluate and predict the model that runs holds the values: apply the patch to that one,",
                "as in kpatch.apply(callback.model, ...)",
            ],
        )
    return array


def _writable(variable, donate):
    """The array for a function that donates it: the variable's own, or a copy where others may see that."""
    private = donate and _private(variable)
    array = _array(variable)
    if in_stateless_scope():
        raise _untouchable(variable)
    if private:
        return array
    if _on_one_device(array):
        return _untraced(variable, _copy(array))
    return _rebuilt(array, [_untraced(variable, _copy(part)) for part in _parts(array)])


def _replace(variable, array, selection, values):
    """Puts the values into the array, which is donated, and makes the variable's value of the result."""
    if _on_one_device(array):
        _become(variable, array, _put_call(array, selection, values))
        return
    parts = _parts(array)
    try:
        _put_sharded(parts, array, selection, values)
    finally:  # also if a shard failed: those before it are deleted
        _set(variable, _rebuilt(array, parts))


def _become(variable, array, call):
    """The variable's value becomes what a call that donates the array makes of it."""
    _call_into(functools.partial(setattr, variable), "_value", call)
    new = variable._value
    if isinstance(new, jax.core.Tracer):  # then nothing was donated
        variable._value = array
        raise _untouchable(variable)
    _made[id(new)] = new


def _call_into(setter, key, call):
    """Calls `setter(key, result)` with the result of a call, `(function, *arguments)`, that donates an array.

    The call deletes the array, and an interrupt before the result is kept would lose both. So C code does the two,
    and Python, which raises interrupts between its own instructions, has none between them.
    """
    function, *arguments = call
    any(map(setter, (key,), itertools.starmap(function, (arguments,))))


def _set(variable, array):
    """Sets the value without `assign`, whose checks and conversions it does not need: only entries have changed."""
    variable._value = _untraced(variable, array)
    _made[id(array)] = array


def _untraced(variable, array):
    if isinstance(array, jax.core.Tracer):
        raise _untouchable(variable)
    return array


def _untouchable(variable):
    return UnsupportedError(
        f"variable '{variable.path}' cannot be edited inside a function that jax traces, or a StatelessScope",
        notes=["kpatch.edit makes a new tensor, and works there"],
    )


def _on_one_device(array):
    return type(array.sharding) is SingleDeviceSharding


# Who else sees a buffer.

_made: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by id: arrays that had their buffer to themselves


def _private(variable):
    """Whether the variable alone sees its buffer, so that donating it takes nothing from anybody."""
    if _references(variable) != ALONE:
        return False
    array = variable._value
    ours = _made.get(id(array)) is array
    if _on_one_device(array):
        if not ours and array.nbytes <= SMALL:
            return False
        aliases = _aliases(array, [array], ours)
        return not aliases or (
            aliases == {id(array.addressable_data(0))} and _handle_references(array) == _handle_alone()
        )
    if not ours or _shard_references(array) != _shards_alone(frozenset(array.sharding.device_set)):
        return False
    return not _aliases(array, [shard.data for shard in array.addressable_shards], ours)


def _aliases(array, parts, ours):
    """The ids of other arrays over the buffer of one of the parts, such as `device_put` and `addressable_data` make.

    One of our own had its buffer to itself when it was new, so there only younger arrays are looked at.
    """
    found = set()
    shape = parts[0].shape
    own = {id(part) for part in parts}
    for other in _live(parts[0]):
        if ours and other is array and _youngest_first():
            break
        if id(other) in own or other.is_deleted() or (other.shape != shape and _on_one_device(other)):
            continue
        if other is not array and _buffers([other]) & _buffers(parts):
            found.add(id(other))
    return found


def _live(array):
    """All arrays of the array's platform."""
    return next(iter(array.devices())).client.live_arrays()


@functools.cache
def _youngest_first():
    """Whether this jax lists younger arrays before older ones."""
    older, younger = _concrete(np.zeros(1)), _concrete(np.zeros(1))
    listed = [id(array) for array in _live(older)]
    return listed.index(id(younger)) < listed.index(id(older))


def _concrete(array, sharding=None):
    """The array on a device, also while jax traces a function, which would otherwise trace this as well."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(array, sharding)


def _buffers(arrays):
    return {shard.data.unsafe_buffer_pointer() for array in arrays for shard in array.addressable_shards}


def _references(variable):
    """The references to the variable's value; the second one that Keras's variables for NNX keep is not counted."""
    count = sys.getrefcount(variable._value)
    metadata = getattr(variable, "_var_metadata", None)
    return count - 1 if metadata and metadata.get("_value") is variable._value else count


def _handle_references(array):
    """The references to the second array that jax may keep within one, over the same buffer, for its only shard."""
    return sys.getrefcount(array.addressable_data(0))


@functools.cache
def _handle_alone():
    return _handle_references(_concrete(np.zeros(1)))


def _shard_references(array):
    """The most references to the list of the shards, to one of them, and to the array of one."""
    shards = array.addressable_shards
    if len(shards) == 1:  # the array itself, already counted
        return ()
    return (
        sys.getrefcount(shards),
        max(sys.getrefcount(shard) for shard in shards),
        max(sys.getrefcount(shard.data) for shard in shards),
    )


@functools.cache
def _shards_alone(devices):
    """What `_shard_references` counts for an array over these devices whose shards nobody holds."""
    sharding = NamedSharding(Mesh(np.array(list(devices)), "device"), PartitionSpec("device"))
    return _shard_references(_concrete(np.zeros(len(devices), "int8"), sharding))


# What `_references` counts in this Python for a value that the variable alone holds.
ALONE = _references(SimpleNamespace(_value=object()))
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    ALONE = -1  # without the lock a count tells nothing: always copy


# One array on one device. Starts and indices are arguments of the compiled functions, so that all share one; counts and
# steps are part of them. What writes donates its first argument.
#
# On CPUs XLA moves bfloat16 and float8 by converting, the whole array where it moves within it, and NaNs lose bits.
# As integers they are moved as they are; but then only an element-wise function, and an update of one entry, are in
# place.

_donating = functools.partial(jax.jit, donate_argnums=0)


def _take(array, selection):
    kind = type(selection)
    if kind is Point:
        return _take_point(array, _index(array, selection.index))
    if kind is Region:
        starts, steps, backward = _ascending(selection)
        return _region_taker(selection.counts, steps, backward, selection.dropped)(array, np.array(starts, np.int32))
    if kind is Mask:
        return _copy(array)
    taken = np.asarray(_take_positions(array, _padded_places(array, selection)))[: selection.size]
    return jax.device_put(taken.reshape(selection.shape), array.sharding if array._committed else None)


def _put_call(array, selection, values):
    """What puts values into an array, which it donates: `(function, *arguments)`."""
    kind = type(selection)
    if kind is Point:
        return _put_point, array, _index(array, selection.index), _placed(values, array)
    if kind is Region:
        return _region_call(array, selection, values)
    if kind is Mask:
        return _put_mask, array, _placed(selection.mask, array, bool), _placed(values, array)
    places = _padded_places(array, selection)
    values = np.asarray(values, array.dtype)
    if values.ndim:
        padded = np.zeros(places.shape[1], array.dtype)
        padded[: selection.size] = np.broadcast_to(values, selection.shape).reshape(-1)
        values = padded
    return _put_positions, array, places, values


def _region_call(array, region, *values, op=None):
    starts, steps, backward = _ascending(region)
    counts = None if _is_converted(array.dtype) else region.counts
    put = _region_putter(counts, steps, backward, region.dropped, op)
    return put, array, np.array((starts, region.counts), np.int32), *(_placed(part, array) for part in values)


def _placed(values, array, dtype=None):
    """The values as an argument beside the array that leaves the result where the array is."""
    if isinstance(values, jax.Array):
        if not values._committed or (array._committed and values.sharding == array.sharding):
            return values
        values = np.asarray(values)
    return np.asarray(values, dtype or array.dtype)


def _index(array, index):
    """The index as an argument: on the default device, if the array is free to be there too, else from the host."""
    return np.array(index, np.int32) if array._committed else _device_index(index)


@functools.lru_cache(maxsize=64)
def _device_index(index):
    return _concrete(np.array(index, np.int32))


def _ascending(region):
    """The region's lowest entries, its steps without their sign, and the axes on which the sign was negative."""
    if min(region.steps, default=1) > 0:
        return region.starts, region.steps, ()
    axes = zip(region.starts, region.counts, region.steps, strict=True)
    starts = tuple(start if step > 0 else start + (count - 1) * step for start, count, step in axes)
    return starts, tuple(map(abs, region.steps)), tuple(a for a, step in enumerate(region.steps) if step < 0)


def _padded_places(array, positions):
    """Flat offsets, or coordinates where those are too large, padded by places outside so that few lengths occur."""
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


def _is_converted(dtype):
    return dtype.name.startswith(("bfloat16", "float8"))


def _bits(array):
    if not _is_converted(array.dtype):
        return array
    return lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")


def _from_bits(bits, dtype):
    return lax.bitcast_convert_type(bits, dtype) if _is_converted(dtype) else bits


_copy = jax.jit(jnp.copy)


@jax.jit
def _take_point(array, index):
    entry = lax.dynamic_slice(_bits(array), list(index), (1,) * array.ndim)
    return _from_bits(entry.reshape(()), array.dtype)


@_donating
def _put_point(array, index, value):
    entry = _bits(value)
    if array.ndim and _one_by_one(array, 1):
        return _put_each(array, index[:, None], entry.reshape(1))
    bits = lax.dynamic_update_slice(_bits(array), entry.reshape((1,) * array.ndim), list(index))
    return _from_bits(bits, array.dtype)


@functools.lru_cache(maxsize=256)
def _region_taker(counts, steps, backward, dropped):
    @jax.jit
    def take(array, starts):
        bits = lax.dynamic_slice(_bits(array), list(starts), _spans(counts, steps))
        bits = lax.rev(lax.slice(bits, (0,) * array.ndim, bits.shape, steps), backward)
        return _from_bits(lax.squeeze(bits, dropped), array.dtype)

    return take


@functools.lru_cache(maxsize=256)
def _region_putter(counts, steps, backward, dropped, op):
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
    """How long a stretch of each axis a region covers."""
    return tuple((count - 1) * step + 1 for count, step in zip(counts, steps, strict=True))


def _update_region(array, starts, steps, values):
    """Updates a slice; with steps, the slice that the region covers, filled up with what is there."""
    if max(steps, default=1) > 1:
        spans = _spans(values.shape, steps)
        spread = lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, step - 1) for step in steps])
        grids = [lax.broadcasted_iota("int32", spans, axis) % step == 0 for axis, step in enumerate(steps)]
        held = functools.reduce(jnp.logical_and, grids)
        values = lax.select(held, spread, lax.dynamic_slice(array, starts, spans))
    return lax.dynamic_update_slice(array, values, starts)


def _where_region(array, starts, counts, steps, values):
    """Decides entry by entry whether the region holds it: a pass over the whole array, and in place."""
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
def _put_mask(array, mask, values):
    return _from_bits(jnp.where(mask, _bits(values), _bits(array)), array.dtype)


@jax.jit
def _take_positions(array, places):
    entries, places = _entries(_bits(array), places)
    return _from_bits(entries.at[places].get(mode="clip"), array.dtype)


@_donating
def _put_positions(array, places, values):
    count = places.shape[1]
    values = jnp.broadcast_to(_bits(values), (count,))
    if _one_by_one(array, count):
        return _put_each(array, places, values)
    entries, places = _entries(_bits(array), places)
    entries = entries.at[places].set(values, mode="drop", unique_indices=True)
    return _from_bits(entries.reshape(array.shape), array.dtype)


def _one_by_one(array, count):
    """Whether so few entries are cheaper than turning the whole array into integers and back."""
    few = count <= max(1, math.isqrt(array.size) // 8)
    return few and _is_converted(array.dtype) and jax.default_backend() == "cpu"


def _put_each(array, places, bits):
    """A loop of updates in place. Each passes over the array, but skips rows that it has nothing to do with: hence the
    array gets about as many rows as columns."""
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
    """The divisor of the size next below its square root."""
    return next(columns for columns in range(math.isqrt(size), 0, -1) if size % columns == 0)


def _entries(array, places):
    """The array, flat where the places are offsets, and the index into it."""
    return (array.reshape(-1) if len(places) != array.ndim else array), tuple(places)


# Sharded arrays. What is selected of a shard is an ordinary selection of its own array; the values meet on the host.


def _take_sharded(array, selection):
    parts = _parts(array)
    kind = type(selection)
    if kind is Point:
        number, index = _owners(selection.index, array.sharding, array.shape)[0]
        return jnp.asarray(np.asarray(_take_point(parts[number], index)))
    if kind is Mask or (kind is Region and selection.full):
        return _rebuilt(array, [_copy(part) for part in parts])
    taken = np.empty(_lengths(selection), array.dtype)
    for number, local, places in _split(selection, array.sharding, array.shape, replicas=False):
        taken[places] = np.asarray(_take(parts[number], local))
    return jnp.asarray(taken.reshape(selection.shape))


def _put_sharded(parts, array, selection, values):
    """Puts values into the shards, `parts`, of which each is replaced in the list as soon as it is donated."""
    kind = type(selection)

    def put(number, *call):
        _call_into(parts.__setitem__, number, call)

    if kind is Point:
        values = np.asarray(values, array.dtype)
        for number, index in _owners(selection.index, array.sharding, array.shape):
            put(number, _put_point, parts[number], index, values)
    elif kind is Mask:
        pieces = zip(parts, _pieces(selection.mask, array), _pieces(values, array), strict=True)
        for number, (part, mask, piece) in enumerate(pieces):
            put(number, *_put_call(part, Mask(mask, mask.shape), piece))
    elif kind is Region and selection.full:
        for number, (part, piece) in enumerate(zip(parts, _pieces(values, array), strict=True)):
            put(number, *_put_call(part, indexing.whole(part.shape), piece))
    else:
        values = np.broadcast_to(np.asarray(values, array.dtype), selection.shape).reshape(_lengths(selection))
        for number, local, places in _split(selection, array.sharding, array.shape):
            put(number, *_put_call(parts[number], local, values[places]))


def _parts(array):
    if not array.is_fully_addressable:
        raise UnsupportedError("a variable whose shards are spread over several processes cannot be edited")
    return [shard.data for shard in array.addressable_shards]


def _rebuilt(array, parts):
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def _pieces(values, array):
    """For each shard its own of the values, which broadcast to the array."""
    if np.ndim(values) == 0:
        return [np.asarray(values)] * len(array.addressable_shards)
    if values.shape != array.shape:
        values = np.broadcast_to(np.asarray(values), array.shape)
    return _parts(jax.device_put(values, array.sharding))


def _lengths(selection):
    """The shape in which the values of a selection are divided among the shards."""
    return (selection.size,) if type(selection) is Positions else selection.shape


@functools.lru_cache(maxsize=64)
def _owners(index, sharding, shape):
    """The shards that hold an entry: their numbers, and its index in each."""
    return [
        (number, np.array([i - low for i, (low, _) in zip(index, bounds, strict=True)], np.int32))
        for number, bounds in enumerate(_bounds(sharding, shape))
        if all(low <= i < high for i, (low, high) in zip(index, bounds, strict=True))
    ]


def _split(selection, sharding, shape, replicas=True):
    """For each shard that a selection meets: its number, what is selected of it, and the index of the values for it."""
    coordinates = selection.coordinates(shape) if type(selection) is Positions else None
    every = _bounds(sharding, shape)
    for number, bounds in enumerate(every):
        if replicas or every.index(bounds) == number:
            within = (
                _region_within(selection, bounds) if coordinates is None else _positions_within(coordinates, bounds)
            )
            if within:
                yield number, *within


@functools.lru_cache(maxsize=256)
def _bounds(sharding, shape):
    """Where each shard begins and ends on each axis."""
    indices = sharding.addressable_devices_indices_map(shape).values()
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
