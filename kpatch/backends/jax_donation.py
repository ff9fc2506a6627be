"""Tests whether other arrays use the buffer of a jax array, which is donated only if none does.

Donating a buffer deletes every other array over it. NumPy and DLPack views are safe: jax copies a donated buffer that
has such a view. kpatch cannot detect a thread that is reading the variable: use `donate=False`.
"""

import functools
import sys
import weakref
from types import SimpleNamespace

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpatch.backends.jax_entries import concrete, on_one_device, parts_of

SMALL = 2**18  # bytes: copying so many is faster than searching the other arrays

_made: weakref.WeakValueDictionary = (
    weakref.WeakValueDictionary()
)  # by id: arrays that were created with a private buffer


def private(variable):
    """Whether only the variable refers to its buffer, so that it can be donated."""
    if _references(variable) != ALONE:
        return False
    array = variable._value
    ours = _made.get(id(array)) is array
    if on_one_device(array):
        if not ours and array.nbytes <= SMALL:
            return False
        aliases = _aliases(array, [array], ours)
        return not aliases or (
            aliases == {id(array.addressable_data(0))} and _handle_references(array) == _handle_alone()
        )
    if not ours or _shard_references(array) != _shards_alone(frozenset(array.sharding.addressable_devices)):
        return False
    return not _aliases(array, parts_of(array), ours)


def remember(array):
    """Records that an array has a private buffer, as after a write."""
    _made[id(array)] = array


def _aliases(array, parts, ours):
    """The ids of other arrays over a buffer of the parts, made for example by `device_put` or `addressable_data`.

    An array of ours was created with a private buffer, so only younger arrays are searched.
    """
    found = set()
    shape = parts[0].shape
    own = {id(part) for part in parts}
    for other in _live(parts[0]):
        if ours and other is array and _youngest_first():
            break
        if id(other) in own or other.is_deleted() or (other.shape != shape and on_one_device(other)):
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
    older, younger = concrete(np.zeros(1)), concrete(np.zeros(1))
    listed = [id(array) for array in _live(older)]
    return listed.index(id(younger)) < listed.index(id(older))


def _buffers(arrays):
    return {part.unsafe_buffer_pointer() for array in arrays for part in parts_of(array)}


def _references(variable):
    """The number of references to the variable's value, without the second one of Keras's variables for NNX."""
    count = sys.getrefcount(variable._value)
    metadata = getattr(variable, "_var_metadata", None)
    return count - 1 if metadata and metadata.get("_value") is variable._value else count


def _handle_references(array):
    """The number of references to the array that jax may cache inside an array for its only shard."""
    return sys.getrefcount(array.addressable_data(0))


@functools.cache
def _handle_alone():
    return _handle_references(concrete(np.zeros(1)))


def _shard_references(array):
    """The number of references to the list of shards, and the largest number to a shard and to a shard's array."""
    if len(array.sharding.addressable_devices) == 1:  # the array itself, already counted
        return ()
    shards = array.addressable_shards
    return (
        sys.getrefcount(shards),
        max(sys.getrefcount(shard) for shard in shards),
        max(sys.getrefcount(shard.data) for shard in shards),
    )


@functools.cache
def _shards_alone(devices):
    """The value of `_shard_references` for an array over these devices without other references."""
    sharding = NamedSharding(Mesh(np.array(list(devices)), "device"), PartitionSpec("device"))
    return _shard_references(concrete(np.zeros(len(devices), "int8"), sharding))


# The value of `_references` if only the variable refers to its value; it depends on the version of Python.
ALONE = _references(SimpleNamespace(_value=object()))
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    ALONE = -1  # without the lock counts are unreliable: always copy
