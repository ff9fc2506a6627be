"""A model in memory with the listing of a `Checkpoint`."""

import math

import numpy as np

from kpatch import backends
from kpatch.checkpoint.arrays import in_blocks
from kpatch.errors import UnsupportedError
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

    @property
    def is_spread(self):
        """Whether this process lacks values, which others hold: nothing is asked of these."""
        entry, backend = self._entry, backends.current()
        variables = [entry.variable] if entry.weight is None else entry.owner.item.variables
        return any(backend.is_spread(backend.tensor_of(variable)) for variable in variables)

    def view(self):
        if self.is_spread:
            raise UnsupportedError(
                f"the values of '{self.path}' lie in several processes",
                notes=["compare files, or models that each process holds as a whole"],
            )
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
