"""A model in memory with the listing of a `Checkpoint`."""

import math

import numpy as np

from kpatch.checkpoint.arrays import in_blocks
from kpatch.names.index import index
from kpatch.run.encoding import of_variable
from kpatch.values.tensors import to_numpy


class Held:
    """A variable with the part of `Array`'s interface that a listing needs."""

    def __init__(self, entry):
        self.path = entry.path
        self.shape = tuple(entry.shape)
        self.dtype = str(entry.dtype)
        self.told = entry.weight.told if entry.weight is not None else None
        self._entry = entry

    @property
    def size(self):
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.view(), dtype)

    def view(self):
        weight = self._entry.weight
        return to_numpy(self._entry.variable) if weight is None else weight.values(of_variable)

    def blocks(self):
        yield from in_blocks(self.view())


class ModelArrays:
    """A model with the part of `Checkpoint`'s interface that a listing needs."""

    def __init__(self, model):
        self.index = index(model)

    def find_all(self, selector):
        return self.index.find_all(selector)

    def array(self, entry):
        return Held(entry)

    meant = array

    def named(self):
        return [(entry.path, Held(entry)) for entry in self._entries()]

    def stored(self):
        return [(entry.stored.path, Held(entry.stored)) for entry in self._entries()]

    def _entries(self):
        return [*self.index.entries, *self.index.optimizer_entries()]
