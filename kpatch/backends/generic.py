"""Entries of variables by `keras.ops` alone: for other backends, and as the reference in tests of the four.

It converts the whole variable to NumPy, edits it there, and assigns it. This is slow but right on every backend.
`ops.scatter_update` and `ops.slice_update` are not: numpy's write into their argument, jax's change the NaN payloads of
other bfloat16 entries. Bits are exact if Keras converts exactly. Keras converts torch's bfloat16 through float32, so
bfloat16 is moved as integers; if `ops.view` cannot do that (openvino's takes no scalars), NaN payloads are lost. Keras
cannot convert float8 on torch.
"""

import functools

import ml_dtypes
import numpy as np
from keras import ops

from kpatch.backends.base import Backend
from kpatch.backends.numpy import put, take
from kpatch.indexing import Mask

OPERATORS = {"+": ops.add, "-": ops.subtract, "*": ops.multiply, "/": ops.true_divide}


class Generic(Backend):
    """A backend without a class of its own: the defaults of `Backend`, and entries by way of NumPy.

    The exceptions were found on openvino, Keras's fifth backend, which computes 64-bit dtypes and uint32 in 32 bits and
    saturates small integers.
    """

    ops = ops
    computes_in = frozenset(("bool", "int32", "float16", "float32"))

    def __init__(self, name):
        self.name = name

    def read(self, variable, selection):
        return _to_tensor(np.asarray(take(_to_numpy(variable.value), selection)))

    def write(self, variable, selection, values, donate=True):
        """Never writes in place, so `donate` has no effect."""
        array = np.array(_to_numpy(variable.value))
        if type(selection) is Mask:
            selection = Mask(_to_numpy(selection.mask), selection.shape)
        put(array, selection, _values(values, array.dtype))
        variable.assign(_to_tensor(array))

    def prepare(self, variable, selection, array):
        return array

    def update(self, variable, region, op, old, operand):
        dtype = _to_numpy(old).dtype
        self.write(variable, region, OPERATORS[op](old, _to_tensor(_values(operand, dtype))))

    def whole(self, variable):
        return ops.stop_gradient(ops.convert_to_tensor(variable.value))

    def sync(self, model):
        """Drops openvino's compiled graph of `predict`, which holds the weights as constants.

        Keras keeps this graph even if weights are set.
        """
        if getattr(model, "ov_compiled_model", None) is not None:
            model.ov_compiled_model = None

    def refusal(self, dtype):
        if dtype in self.computes_in:
            return None
        return f"kpatch computes in {', '.join(sorted(self.computes_in))} on the {self.name} backend, not in {dtype}"

    def largest_in_segments(self, values, segments, count):
        """Uses a scatter: openvino's `segment_max` takes no tensor as the count."""
        empty = ops.arange(count, dtype="int32") * 0 - 1
        return ops.scatter_update(empty, ops.expand_dims(segments, 1), values, reduction="max")

    def move_axes(self, x, source, destination):
        """Uses `transpose`: openvino's `moveaxis` of several axes is wrong."""
        rank = len(x.shape)
        source, destination = ([axis % rank for axis in np.ravel(axes).tolist()] for axes in (source, destination))
        order = [axis for axis in range(rank) if axis not in source]
        for place, axis in sorted(zip(destination, source, strict=True)):
            order.insert(place, axis)
        return ops.transpose(x, tuple(order))


def _values(values, dtype):
    if isinstance(values, (bool, int, float, np.ndarray, np.generic)):
        return np.asarray(values, dtype)
    return _to_numpy(values)


def _to_numpy(tensor):
    if ops.dtype(tensor) == "bfloat16" and _views_bfloat16():
        return _plain(ops.view(tensor, "int16")).view(ml_dtypes.bfloat16)
    return _plain(tensor)


def _plain(tensor):
    """The tensor as an array, without computing on it: openvino is not exact in every dtype."""
    try:
        return np.asarray(ops.convert_to_numpy(tensor))
    except ValueError:  # TensorFlow's scalars of bfloat16 and float8 do not become arrays
        return np.asarray(ops.convert_to_numpy(ops.reshape(tensor, (1,)))).reshape(())


def _to_tensor(array):
    if array.dtype == ml_dtypes.bfloat16 and _views_bfloat16():
        return ops.view(ops.convert_to_tensor(array.view("int16")), "bfloat16")
    return ops.convert_to_tensor(array, str(array.dtype))


@functools.cache
def _views_bfloat16():
    """Whether `ops.view` converts integers to bfloat16, scalars included."""
    try:
        ops.view(ops.convert_to_tensor(np.zeros((), "int16")), "bfloat16")
    except (AttributeError, NotImplementedError):
        return False
    return True
