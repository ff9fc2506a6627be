"""Entries of variables by `keras.ops` alone: for backends without a writer of their own, and as the measure of those.

It takes the whole variable to NumPy, edits it there, and assigns it: slow, and right on every backend, where
`ops.scatter_update` and `ops.slice_update` differ (numpy's write into their argument, jax's change the NaN payloads of
other entries in bfloat16). Bits are exact wherever Keras converts exactly. torch's bfloat16 passes through float32 on
that way, so bfloat16 is moved as integers; a Keras without `ops.view` may there lose the payload of a NaN. float8 on
torch is beyond Keras.
"""

import ml_dtypes
import numpy as np
from keras import ops

from kpatch.indexing import Mask
from kpatch.writers.numpy import put, take

OPERATORS = {"+": ops.add, "-": ops.subtract, "*": ops.multiply, "/": ops.true_divide}


def read(variable, selection):
    """The selected entries in memory of their own; for a `Mask` the whole tensor."""
    return _to_tensor(np.asarray(take(_to_numpy(variable), selection)))


def write(variable, selection, values, donate=True):
    """Writes values of the variable's dtype. Nothing is ever written in place, so `donate` makes no difference."""
    array = np.array(_to_numpy(variable))
    if type(selection) is Mask:
        selection = Mask(_to_numpy(selection.mask), selection.shape)
    put(array, selection, _values(values, array.dtype))
    variable.assign(_to_tensor(array))


def prepare(variable, selection, array):
    """The array as `write` takes it fastest: as it is."""
    return array


def update(variable, region, op, old, operand, donate=True):
    """The region becomes `old <op> operand`."""
    dtype = _to_numpy(old).dtype
    write(variable, region, OPERATORS[op](old, _to_tensor(_values(operand, dtype))))


def whole(variable):
    """The whole value as an alias, to be let go before anything is written."""
    value = variable.value
    return value if isinstance(value, np.ndarray) else ops.stop_gradient(ops.convert_to_tensor(value))


def exchange(variable, values):
    """`None`: no value is taken over."""


def view(tensor):
    """`None`: the tensor's memory is out of reach."""


def settle(variable):
    """Waits for the variable's value: it is there."""


def sync(model):
    """Gives a model's variables their present values: they have them."""


def is_tracing():
    """Whether a function is being traced at this moment: never, here."""
    return False


def _values(values, dtype):
    if isinstance(values, (bool, int, float, np.ndarray, np.generic)):
        return np.asarray(values, dtype)
    return _to_numpy(values)


def _to_numpy(tensor):
    flat = ops.reshape(tensor, (-1,))  # TensorFlow's scalars of bfloat16 and float8 do not become arrays
    if ops.dtype(flat) == "bfloat16" and hasattr(ops, "view"):
        array = ops.convert_to_numpy(ops.view(flat, "int16")).view(ml_dtypes.bfloat16)
    else:
        array = ops.convert_to_numpy(flat)
    return array.reshape(ops.shape(tensor))


def _to_tensor(array):
    if array.dtype == ml_dtypes.bfloat16 and hasattr(ops, "view"):
        return ops.view(ops.convert_to_tensor(array.view("int16")), "bfloat16")
    return ops.convert_to_tensor(array, str(array.dtype))
