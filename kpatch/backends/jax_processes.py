"""What the processes of a job on jax tell each other. All of them make each of these calls, in the same order."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHORTEST = 16  # words of a message, whose lengths are few: a function is compiled for each


def is_spread(x):
    """Whether this process lacks values of an array, which others hold."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and not _is_here(x)


def _is_here(array):
    return array.is_fully_addressable or array.is_fully_replicated


def gathered(x):
    """A spread array as one of NumPy, with all values; other values as they are. All processes call it."""
    return multihost_utils.process_allgather(x, tiled=True) if is_spread(x) else x


def joined(taken, array):
    """The entries with those that other processes hold; `taken` is zero there."""
    if _is_here(array):
        return taken
    size = max(SHORTEST, 1 << (-(-taken.nbytes // 4) - 1).bit_length())
    words = np.zeros((1, size), np.uint32)
    words.view(np.uint8)[0, : taken.nbytes] = np.frombuffer(taken.tobytes(), np.uint8)
    total = _met(words, array, "add")
    return total.view(np.uint8)[: taken.nbytes].view(taken.dtype).reshape(taken.shape)


def exchanged(array, message):
    """The messages of the processes that hold parts of an array, by the number of the process."""
    words = np.frombuffer(message, np.uint32)[None]
    rows = _met(words, array, "keep")
    return {number: row.tobytes() for number, row in zip(_meeting(_devices(array)).numbers, rows, strict=True)}


def _met(words, array, how):
    """The rows of words that the processes bring, in each of them: all, or their sum.

    The sum keeps bits, as of each byte one process alone has another than zero.
    """
    meeting = _meeting(_devices(array))
    shape = len(meeting.numbers), words.shape[1]
    rows = jax.make_array_from_single_device_arrays(shape, meeting.apart, [jax.device_put(words, meeting.own)])
    return np.asarray(getattr(meeting, how)(rows))


def _devices(array):
    return frozenset(array.sharding.device_set)


class _Meeting(NamedTuple):
    """One device of each process that holds shards on certain devices.

    Attributes:
        numbers: those of the processes.
        own: the device of this process.
        apart: the sharding of an array with a row for each process.
        keep: the compiled function that gives every process all rows.
        add: the same for their sum.
    """

    numbers: list
    own: Any
    apart: NamedSharding
    keep: Callable
    add: Callable


@functools.lru_cache(maxsize=16)
def _meeting(devices):
    first = {device.process_index: device for device in sorted(devices, key=lambda device: -device.id)}
    numbers = sorted(first)
    mesh = Mesh(np.array([first[number] for number in numbers]), "process")
    everywhere = NamedSharding(mesh, PartitionSpec())
    keep = jax.jit(lambda rows: rows, out_shardings=everywhere)
    add = jax.jit(lambda rows: jnp.sum(rows, axis=0, dtype=rows.dtype), out_shardings=everywhere)
    return _Meeting(numbers, first[jax.process_index()], NamedSharding(mesh, PartitionSpec("process")), keep, add)
