"""Tests whether other arrays use the buffer of a jax array, which is donated only if none does.

Donating a buffer deletes every other array over it. NumPy and DLPack views are safe: jax copies a donated buffer that
has such a view. kpatch cannot detect a thread that is reading the variable: use `donate=False`.
"""

import contextlib
import functools
import sys
import threading
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpatch.backends.jax_entries import concrete, on_one_device, parts_of

SMALL = 2**18  # bytes: copying so many is faster than searching the other arrays

_made: weakref.WeakValueDictionary = (
    weakref.WeakValueDictionary()
)  # by id: arrays that were created with a private buffer


class _Look(NamedTuple):
    """What one look through all arrays found.

    Attributes:
        alone: by id, the arrays over whose buffers there was no other.
        since: the array that was made just before: all that were made later are younger.
    """

    alone: Any
    since: Any


_thread = threading.local()  # with the look that is valid in this thread


@contextlib.contextmanager
def looking_once(variables):
    """Within the block, `private` looks for these variables only at arrays that are made in it."""
    before = getattr(_thread, "look", None)
    _thread.look = _look(variables)
    try:
        yield
    finally:
        _thread.look = before


def _look(variables):
    """The `_Look` for the variables' arrays; `None` if there are less than two."""
    arrays = [variable._value for variable in variables]
    arrays = [x for x in arrays if _is_living(x) and on_one_device(x) and x.nbytes > SMALL]
    clients = set(map(_client, arrays))
    if len(arrays) < 2 or len(clients) > 1 or not _youngest_first():
        return None
    since = concrete(np.zeros(1, "int8"), arrays[0].sharding)
    shapes = {array.shape for array in arrays}
    holders: Counter = Counter()
    for other in _live(since):
        if (other.shape in shapes or not on_one_device(other)) and _is_living(other):
            holders.update(_buffers([other]))
    alone = [array for array in arrays if holders[array.unsafe_buffer_pointer()] == 1]
    return _Look(weakref.WeakValueDictionary({id(array): array for array in alone}), since)


def private(variable):
    """Whether only the variable refers to its buffer, so that it can be donated."""
    if not is_referred_to_once(variable):
        return False
    array = variable._value
    since = _since(array)
    if on_one_device(array):
        return (since is not None or array.nbytes > SMALL) and _is_alone(array, since)
    if since is None or _shard_references(array) != _shards_alone(frozenset(array.sharding.addressable_devices)):
        return False
    return not _aliases(array, parts_of(array), since)


def is_referred_to_once(variable):
    """Whether nothing but the variable refers to its array; others may refer to the same buffer."""
    return _references(variable) == ALONE


def alone(arrays):
    """The ids of those arrays, each on one device, to whose buffers no other array refers: by one look for all."""
    since = {id(array): _since(array) for array in arrays}
    shared, places, worth = {}, {}, sum(array.nbytes for array in arrays) > SMALL
    for array in arrays:
        if worth or since[id(array)] is not None:
            places[array.unsafe_buffer_pointer()] = array
    shapes, left = {array.shape for array in arrays}, {id(x) for x in since.values() if x is not None}
    searched = all(since[id(array)] is not None for array in places.values()) and _youngest_first()
    for other in _live(arrays[0]) if places else ():
        if (other.shape in shapes or not on_one_device(other)) and not other.is_deleted():
            found = [places[place] for place in _buffers([other]) & places.keys()]
            shared |= {id(array): array for array in found if array is not other}
        left.discard(id(other))
        if searched and not left:  # all others are older
            break
    return {id(array) for array in places.values() if id(array) not in shared or _is_alone(array, since[id(array)])}


def remember(array):
    """Records that an array has a private buffer, as after a write."""
    _made[id(array)] = array


def _is_alone(array, since):
    aliases = _aliases(array, [array], since)
    return not aliases or (aliases == {id(array.addressable_data(0))} and _handle_references(array) == _handle_alone())


def _since(array):
    """The array that is older than any alias of this one can be; or `None`."""
    look = getattr(_thread, "look", None)
    if look is not None and look.alone.get(id(array)) is array:
        return look.since
    return array if _made.get(id(array)) is array else None  # one of ours was created with a private buffer


def _aliases(array, parts, since):
    """The ids of other arrays over a buffer of the parts, made for example by `device_put` or `addressable_data`.

    Those older than the array `since` are not searched.
    """
    found = set()
    shape = parts[0].shape
    own = {id(part) for part in parts}
    for other in _live(parts[0]):
        if since is not None and other is since and _youngest_first():
            break
        if id(other) in own or (other.shape != shape and on_one_device(other)) or other.is_deleted():
            continue
        if other is not array and _buffers([other]) & _buffers(parts):
            found.add(id(other))
    return found


def _is_living(x):
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not x.is_deleted()


def _live(array):
    """All arrays of the array's platform."""
    return _client(array).live_arrays()


def _client(array):
    return next(iter(array.devices())).client


@functools.cache
def _youngest_first():
    """Whether this jax lists younger arrays before older ones."""
    older, younger = concrete(np.zeros(1)), concrete(np.zeros(1))
    listed = [id(array) for array in _live(older)]
    return listed.index(id(younger)) < listed.index(id(older))


def _buffers(arrays):
    parts = [part for array in arrays for part in ([array] if on_one_device(array) else parts_of(array))]
    return {part.unsafe_buffer_pointer() for part in parts}


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
