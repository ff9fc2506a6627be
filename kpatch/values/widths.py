"""Conversion that keeps 64 bits: on some backends Keras narrows such tensors to 32."""

import numpy as np

from kpatch import backends


def as_tensor(values):
    """The values as a tensor: a NumPy array in its own dtype, a tensor unchanged."""
    ops = backends.current().ops
    if not isinstance(values, (np.ndarray, np.generic)):
        return values if ops.is_tensor(values) else ops.convert_to_tensor(values)
    return values if backends.current().arrays_are_tensors else ops.convert_to_tensor(values, dtype=values.dtype.name)
