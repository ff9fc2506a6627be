"""Operations of tensorflow that the formats of Keras's exports lack or compute otherwise, by operations that they have.

* tf2onnx makes products and sums of a choice of floats, in which infinities become NaN, unless a test for NaN chooses.
* openvino takes each tensor of the graph that nothing reads for an output of the model.
"""

import importlib

import keras
import tensorflow as tf

from kpatch.backends.exporting import Exporting
from kpatch.errors import UnsupportedError


class NoUpdates:
    """litert has no `TensorStridedSliceUpdate`."""

    def replaces_slices(self):
        return False

    def made(self, call, values):
        return call(*values)


class Converted(NoUpdates, Exporting):
    """onnx and openvino have no `Bitcast` either."""


class ConvertedToOnnx(Converted):
    def largest_in_segments(self, values, segments, count):
        """By sorting; duplicates are gathered in an entry more, which is dropped: in a scatter any could win."""
        several = tf.cast(tf.shape(values)[0], "int64")
        keys, _ = tf.math.top_k(tf.cast(segments, "int64") * several + tf.cast(values, "int64"), tf.shape(values)[0])
        found, best = keys // several, keys % several
        first = tf.concat([found[:1] >= 0, found[1:] < found[:-1]], 0)
        places = tf.where(first, found, tf.cast(count, "int64"))
        empty = tf.fill([tf.cast(count, "int32") + 1], tf.constant(-1, "int32"))
        return tf.tensor_scatter_nd_update(empty, places[:, None], tf.cast(best, "int32"))[:-1]

    def where(self, mask, x, y):
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(getattr(y, "dtype", "int32"))):
            return super().where(mask, x, y)
        y = tf.convert_to_tensor(y)
        dtype = y.dtype if y.dtype == "float64" else tf.float32
        x, y, kept = tf.cast(x, dtype), tf.cast(y, dtype), y.dtype
        zero = tf.minimum(tf.cast(tf.math.is_nan(y), dtype), 0)  # which nothing finds out before the graph runs
        chosen = tf.math.is_nan(0 / (1 - tf.cast(mask, dtype) + zero))  # `~` of `>` would be made `<=`, also of NaN
        return tf.cast(tf.where(chosen, x, y), kept)

    def made(self, call, values):
        graph = tf.compat.v1.get_default_graph()
        known = {operation.name for operation in graph.get_operations()}
        result = call(*values)
        new = {operation.type for operation in graph.get_operations() if operation.name not in known}
        if lacking := sorted(_without_onnx(new)):
            message = f"this patch cannot be exported to onnx, which has nothing for {', '.join(lacking)} of tensorflow"
            raise UnsupportedError(message)
        return result


class ConvertedToOpenvino(Converted):
    """openvino takes NaN for large."""

    def ordered(self, compare, x, y):
        found = compare(x, y)
        if not y.dtype.is_floating:
            return found
        return found & ~tf.math.is_nan(x) & ~tf.math.is_nan(y)

    def largest_in_segments(self, values, segments, count):
        """openvino's runtime crashes in it, and in other ways to the same."""
        message = "this patch cannot be exported to openvino: the places of its index are known when the model runs"
        raise UnsupportedError(
            message, notes=["a mask selects there too: _[argmax(_, axis=-1, keepdims=true) == arange(4)]"]
        )

    def made(self, call, values):
        """In a function of its own, of which tensors that nothing reads are no outputs."""
        return tf.function(call, autograph=False).get_concrete_function(*values)(*values)


def _without_onnx(kinds):
    """The operations that tf2onnx does not convert, and would write as they are, or that fail once converted."""
    try:
        importlib.import_module("tf2onnx.convert")  # registers what it converts
        registered = importlib.import_module("tf2onnx.handler").tf_op.get_opsets()
    except ImportError:  # of which Keras will tell
        return set()
    converted = {kind for opsets in registered.values() for each in opsets for kind in each}
    return kinds - converted - {"Assert"} | kinds & {"Roll", "UnsortedSegmentMax"}
