"""Basic slices of a tensor replaced purely, by what is fastest in each backend: a copy, and a write into it.

`keras.ops.slice_update` writes into its argument on numpy, and has no gradient on tensorflow. By `where` the same
costs three times as much as a copy on most backends.
"""

import sys

import numpy as np


def replace(tensor, spans, values):
    """A new tensor with the entries that the spans take replaced.

    Args:
        spans: a `grids.Span` for each axis, with steps of 1 and -1.
        values: a tensor with as many axes, that broadcasts to the entries.
    """
    from keras import backend

    return _REPLACE.get(backend.backend(), _by_copy)(tensor, spans, values)


def suits(spans):
    """Whether the entries are slices that the compiler knows: XLA's have no steps, and a length that is a number."""
    from keras import backend

    tensorflow = backend.backend() == "tensorflow"
    for span in spans:
        if span.step not in (1, -1) or not (span.static or span.whole or type(span.item) is int or tensorflow):
            return False
    return not (tensorflow and _for_litert())


def fills(spans, values):
    """Whether `fill` can do it: one number, which torch writes into slices without making a tensor of it."""
    from keras import backend

    return (
        isinstance(values, np.ndarray)
        and values.size == 1
        and backend.backend() == "torch"
        and values.dtype != np.uint64  # of which torch takes only half
        and None not in spans
        and suits(spans)
    )


def fill(tensor, spans, values):
    """A new tensor with the entries that the spans take replaced by one number, in torch."""
    result = tensor.clone()
    result[_index(spans, [_first(span) for span in spans])] = values.item()
    return result


def _forward(spans, values):
    """The values, turned to the order of the axes; and where each span begins in that order."""
    from keras import ops

    turned = tuple(axis for axis, span in enumerate(spans) if span.step < 0 and values.shape[axis] != 1)
    return ops.flip(values, axis=turned) if turned else values, [_first(span) for span in spans]


def _first(span):
    return span.start if span.step > 0 else span.start - span.count + 1


def _index(spans, starts):
    return tuple(slice(start, start + span.count) for span, start in zip(spans, starts, strict=True))


def _by_copy(tensor, spans, values):
    from keras import ops

    values, starts = _forward(spans, values)
    result = ops.copy(tensor)
    result[_index(spans, starts)] = values
    return result


def _in_jax(tensor, spans, values):
    import jax.numpy as jnp
    from jax import lax

    values, starts = _forward(spans, values)
    return lax.dynamic_update_slice(tensor, jnp.broadcast_to(values, [span.count for span in spans]), starts)


def _in_tensorflow(tensor, spans, values):
    import tensorflow as tf

    values, starts = _forward(spans, values)
    counts = [span.count for span in spans]
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=tensor,
        begin=_packed(starts),
        end=_packed([start + count for start, count in zip(starts, counts, strict=True)]),
        strides=[1] * len(spans),
        value=tf.broadcast_to(values, _packed(counts)),
    )


def _for_litert():
    """Whether Keras exports to LiteRT, whose interpreter lacks the operation: only the stack tells."""
    import tensorflow as tf

    frame = None if tf.executing_eagerly() else sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "keras.src.export.litert":
        frame = frame.f_back
    return frame is not None


def _packed(numbers):
    """Numbers, some of which may be tensors, as one tensor of int32."""
    import tensorflow as tf

    known = all(isinstance(number, int) for number in numbers)
    return tf.constant(numbers, "int32") if known else tf.stack([tf.cast(number, "int32") for number in numbers])


_REPLACE = {"jax": _in_jax, "tensorflow": _in_tensorflow}
