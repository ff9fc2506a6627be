"""Edits as pure functions, which return a new tensor."""

import reprlib

import numpy as np

from kpatch import backends, indexing
from kpatch.errors import PatchError, UnsupportedError
from kpatch.names.meanings import Place
from kpatch.run import checking, encoding, execute
from kpatch.values import tensors
from kpatch.values.dtypes import tensor
from kpatch.values.numerics import from_numpy, is_traced


def edit(x, patch, bindings):
    """A new tensor with the edits of a `Patch`; see `kpatch.edit`."""
    from keras import KerasTensor, ops

    if isinstance(x, KerasTensor):
        raise UnsupportedError("a symbolic tensor is edited by a layer: kpatch.layers.ScatterLayer(patch)(x)")
    x = _as_tensor(x)
    if any(length is None for length in x.shape):
        raise UnsupportedError(f"kpatch.edit needs a known shape. Received: x.shape={tuple(x.shape)}")
    value = tensor(x)
    checked = checking.check_edit(patch, ("_", value.shape, value.dtype), bindings, is_traced(x))
    store = Pure(x, checked.names)
    execute.run(checked, store)
    return ops.copy(x) if store.tensor is x else store.tensor


class Pure:
    """The store of one tensor, which each write replaces."""

    read = reduced = stream = None
    hears = lets_go = False

    def __init__(self, value, names):
        self.tensor = value
        self.names = names

    def look_up(self, node, target):
        """The value of a binding. Planning has refused all other names."""
        meaning = self.names.meaning(node, target)
        return tensor(encoding.tensor_of(meaning)) if isinstance(meaning, Place) else meaning

    @property
    def implied(self):
        return tensor(self.tensor)

    def value(self, place):
        return self.tensor

    def view(self, place):
        return None

    def put(self, place, value):
        self.tensor = value

    def replace(self, step, values):
        self.put(step.place, values)

    def open(self, step, selection, target, last):
        whole = step.constant is not None or isinstance(selection, indexing.Mask)
        return None if whole and not step.open_ended else tensors.take(self.value(step.place), selection)

    def write_constant(self, step, target, constant):
        self.write(step, target, constant)

    def update(self, step, target, old):
        return False

    def write(self, step, target, values):
        self.put(step.place, tensors.replace(self.value(step.place), target, values))


def _as_tensor(x):
    import keras

    if isinstance(x, np.ndarray | np.generic):
        return from_numpy(x)
    if isinstance(x, keras.Variable):
        return tensors.of_variable(x)
    if keras.ops.is_tensor(x) and backends.current().arrays_are_tensors:
        return x
    try:
        return backends.current().converted(x)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PatchError(f"kpatch.edit takes a tensor; Received: {reprlib.repr(x)} (of type {type(x)})") from error
