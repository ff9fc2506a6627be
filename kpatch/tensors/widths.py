"""What `keras.ops` narrows from 64 bits to 32 on some backends, done in the tensors' own dtype."""

import numpy as np


def as_tensor(values):
    """The values as a tensor: a NumPy array in its own dtype, a tensor as it is."""
    from keras import backend, ops

    if not isinstance(values, (np.ndarray, np.generic)):
        return values if ops.is_tensor(values) else ops.convert_to_tensor(values)
    if backend.backend() == "numpy":
        return values
    return ops.convert_to_tensor(values, dtype=values.dtype.name)


def where(mask, x, y):
    """The entries of `x` where the mask holds, else those of `y`; both of one dtype."""
    from keras import backend, ops

    if backend.backend() == "numpy":
        return np.where(mask, x, y)
    if backend.backend() == "tensorflow" and y.dtype == "uint64":
        import tensorflow as tf

        return tf.where(mask, x, y)
    return ops.where(mask, x, y)
