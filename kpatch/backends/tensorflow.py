"""The tensorflow backend.

TensorFlow's sparse assignments write in place, but leave the variable in copy-on-read mode, in which every dense read
copies it. `DisableCopyOnRead` ends that mode.

The runtime protects other tensors: if a tensor shares the variable's buffer, an assignment first copies the buffer,
under the variable's lock. So a tensor read earlier keeps its values, also in another thread, and `donate=False` changes
nothing. (The runtime does not protect foreign memory that reached the variable by DLPack.)

If TensorFlow has no kernel (most of float8, more than seven axes), `Generic` does the work.
"""

import ctypes
import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

try:
    from tensorflow.python import pywrap_tfe as _tapes
except ImportError:
    _tapes = None
try:
    from tensorflow.python.ops import control_flow_util as _control_flow
except ImportError:
    _control_flow = None

from kpatch import indexing
from kpatch.backends import host, tensorflow_exports
from kpatch.backends import numpy as arrays
from kpatch.backends.base import Backend, Cell, unpacked
from kpatch.backends.exporting import format_of
from kpatch.backends.generic import Generic
from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Positions, Region

raw = tf.raw_ops
SLOW = Generic("tensorflow")
OPERATORS = {"+": raw.AddV2, "-": raw.Sub, "*": raw.Mul, "/": raw.RealDiv}
BLOCK = 2**18  # entries written at a time under a mask
COPIED = 2**18  # entries of a tensor that is copied as fast as it is asked for its memory
IN_XLA = getattr(_control_flow, "GraphOrParentsInXlaContext", None)  # whether XLA is to compile a graph
# Whether a `GradientTape` or a `ForwardAccumulator` watches one of some tensors: 0 if none does.
GRADIENTS = getattr(_tapes, "TFE_Py_TapeSetPossibleGradientTypes", None)
VIEWED = (tf.float32, tf.float64)  # dtypes of tensors whose memory NumPy reads and writes
REDUCED = (tf.float32, tf.int32, tf.uint8, tf.bool)  # dtypes of tensors that NumPy reduces
NO_KERNEL = (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnimplementedError)


class TensorFlow(Backend):
    """Keras's tensorflow backend, eager and in graphs."""

    name = "tensorflow"
    ops = keras.ops
    takes_tensors_as_bounds = True
    flushes_denormals = True
    xla_hands_out = False

    def read(self, variable, selection):
        try:
            return _take(_components(variable)[0], selection)
        except NO_KERNEL:
            return SLOW.read(variable, selection)

    def keep(self, variable, selection):
        """At positions an array of NumPy, in the memory of a CPU."""
        kept = host.kept(self, variable, selection) if type(selection) is Positions else None
        return self.read(variable, selection) if kept is None else kept

    def write(self, variable, selection, values, donate=True):
        if not selection.size:
            return
        if type(selection) in host.LISTED:
            if self._copied(variable, selection, values) or host.put(self, variable, selection, values, donate):
                return
            selection, values = unpacked(selection, values)
        try:
            values = _constant(values, variable._value.dtype)
            for component in _components(variable):
                _put(component, selection, values)
        except NO_KERNEL:
            SLOW.write(variable, selection, values)

    def _copied(self, variable, selection, values):
        """Has NumPy write into a copy of a small tensor, which becomes the variable's; `False` if it did not.

        What `memory` takes costs as much, and for each shape TensorFlow makes kernels for it, in up to 1 ms.
        """
        component, *others = _components(variable)
        few = not others and component.dtype in VIEWED and math.prod(component.shape) <= COPIED
        if not few or not host.is_known(selection, values):
            return False
        copy = raw.DeepCopy(x=self.whole(variable))
        view = self.view(copy)
        if view is None:
            return False
        arrays.put(_writable(view).reshape(view.shape), selection, values)
        raw.AssignVariableOp(resource=component.handle, value=copy)
        return True

    def prepare(self, variable, selection, array):
        return _constant(array, variable._value.dtype)

    def update(self, variable, region, op, old, operand):
        dtype = variable._value.dtype
        self.write(variable, region, OPERATORS[op](x=_constant(old, dtype), y=_constant(operand, dtype)))

    def whole(self, variable):
        component = _components(variable)[0]
        return raw.ReadVariableOp(resource=component.handle, dtype=component.dtype)

    def take_over(self, variable, values):
        components = _components(variable)
        if len(components) > 1:
            return None
        (component,) = components
        old = self.whole(variable)  # keeps the variable's old buffer
        raw.AssignVariableOp(resource=component.handle, value=_constant(values, component.dtype))
        return old

    def view(self, tensor):
        plain = isinstance(tensor, tf.Tensor) and tensor.dtype in VIEWED
        if not plain or not tensor.device.endswith("CPU:0"):
            return None
        return np.asarray(memoryview(tensor))

    def memory(self, variable):
        """By a scatter of no rows, for which the runtime copies the buffer if a tensor shares it."""
        components = _components(variable)
        component = components[0]
        shape = tuple(component.shape)
        if len(components) > 1 or component.dtype not in VIEWED or not shape:
            return None
        none = _nothing(component.dtype, shape[1:])
        raw.ResourceScatterUpdate(resource=component.handle, indices=_vector(()), updates=none)
        raw.DisableCopyOnRead(resource=component.handle)
        view = self.view(self.whole(variable))
        return None if view is None else _writable(view)

    def reducer(self, x):
        """A sum takes TensorFlow ten operations, of 10 to 100 µs each, and NumPy is as fast in the memory of a CPU."""
        return REDUCER if _is_reduced(x) and not self.is_differentiated(x) else None

    def placed(self, array, like):
        return tf.convert_to_tensor(np.asarray(array))

    def converted(self, x):
        """Keras returns a variable of TensorFlow as it is."""
        return tf.convert_to_tensor(self.ops.convert_to_tensor(x))

    def tensor_of(self, variable):
        """Uses TensorFlow's function: Keras's `convert_to_tensor` returns the variable itself."""
        return tf.convert_to_tensor(variable.value)

    def is_traced(self, data):
        return tf.is_symbolic_tensor(data)

    def is_differentiated(self, data):
        return GRADIENTS is None or GRADIENTS([data]) != 0

    def untraced(self):
        return tf.init_scope()

    def is_tracing(self):
        return not tf.executing_eagerly()

    def distinguish(self, key):
        """By the context that is a part of the key of every cache of a `tf.function`.

        TensorFlow has nothing public that enters it, so the function that makes it is replaced while the key is not
        empty.
        """
        if _CONTEXTS is None:
            return False
        _CONTEXTS.make_function_context = functools.partial(_context, key) if key else _made_context
        return True

    def records_gradients(self):
        return _could_record()

    def cell(self, value):
        return VariableCell(value)

    def hand_out(self, take, x):
        """XLA has no such operation. If TensorFlow does not say that it is for XLA, the error that comes names it.

        TensorFlow orders no such operations, nor one and a loop with one in it: `_turn` does.
        """
        if not tf.is_symbolic_tensor(x):
            take(x)
            return x
        if IN_XLA is not None and IN_XLA(tf.compat.v1.get_default_graph()):
            message = "a function of jit_compile=True hands out no activations: XLA has no operation for that"
            hint = "compile it without jit_compile=True for the block of kpatch.record"
            raise UnsupportedError(message, notes=[hint])
        turn = _turn()
        with tf.control_dependencies([raw.ReadVariableOp(resource=turn, dtype=tf.int32)]):
            out = tf.py_function(take, [x], [], name="kpatch_record_in_XLA_needs_jit_compile_False")
        with tf.control_dependencies([out]):
            done = raw.AssignAddVariableOp(resource=turn, value=tf.constant(1))
        with tf.control_dependencies([done]):
            return tf.identity(x)

    def exported(self, call, values, free, using):
        target = None if tf.executing_eagerly() else format_of(FORMATS)
        if target is None:
            return call(*values)
        with using(FORMATS[target]):
            return FORMATS[target].made(call, values)

    def nbytes(self, x):
        return math.prod(x.shape) * (x.dtype.itemsize if isinstance(x, np.ndarray) else x.dtype.size)

    def equal(self, x, y):
        return tf.equal(x, y) if tf.is_tensor(x) else x == y  # `==` forgets the rank

    def require(self, holds, message):
        """Works in TensorFlow's graphs; XLA drops assertions."""
        tf.debugging.Assert(tf.reduce_all(holds), [message])

    def wide(self, name, dtype):
        """Only for uint64: for other dtypes Keras uses TensorFlow's functions."""
        if (name, dtype) == ("erf", "float64"):
            return _erf
        return getattr(tf, name, None) if dtype == "uint64" else None

    def bits(self, x, dtype):
        """Not Keras's function, which needs the length of the last axis."""
        return tf.bitcast(x, dtype)

    def erfc(self, x):
        return tf.math.erfc(x)

    def where(self, mask, x, y):
        """Not Keras's function for uint64, which it narrows."""
        return (tf.where if y.dtype == "uint64" else keras.ops.where)(mask, x, y)

    def keeps_scalars(self):
        """Creating a scalar takes at least 20 µs; a scalar created in a trace belongs to the graph."""
        return tf.executing_eagerly()

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        """Not `keras.ops.slice_update`, which has no gradient."""
        return raw.TensorStridedSliceUpdate(
            input=tensor,
            begin=_packed(starts),
            end=_packed([start + count for start, count in zip(starts, counts, strict=True)]),
            strides=[1] * len(starts),
            value=tf.broadcast_to(values, _packed(counts)),
        )


class TensorFlowToLitert(tensorflow_exports.NoUpdates, TensorFlow):
    """In exports to litert."""


class TensorFlowToOnnx(tensorflow_exports.ConvertedToOnnx, TensorFlow):
    """In exports to onnx."""


class TensorFlowToOpenvino(tensorflow_exports.ConvertedToOpenvino, TensorFlow):
    """In exports to openvino."""


FORMATS: dict[str, Any] = {
    "litert": TensorFlowToLitert(),
    "onnx": TensorFlowToOnnx(),
    "openvino": TensorFlowToOpenvino(),
}


class VariableCell(Cell):
    """A variable, which Keras does not know."""

    def __init__(self, value):
        self._variable = tf.Variable(value, trainable=False)

    def get(self):
        return self._variable.read_value()

    def put(self, value):
        self._variable.assign(value)


def _recording():
    """TensorFlow's private test whether a tape records, or one that always says so."""
    try:
        from tensorflow.python.eager.record import could_possibly_record
    except ImportError:
        return lambda: True
    return could_possibly_record


_could_record = _recording()


def _contexts():
    """The module with TensorFlow's private function that makes the context of a trace, and the function, or `None`s."""
    try:
        from tensorflow.python.eager.polymorphic_function import function_context, tracing_compilation

        made = function_context.make_function_context
        alike = tracing_compilation.function_context is function_context and made("kpatch").scope_type == "kpatch"
    except (ImportError, AttributeError, TypeError):
        return None, None
    return (function_context, made) if alike else (None, None)


_CONTEXTS, _made_context = _contexts()


def _context(key, scope_type=None):
    return _made_context((scope_type, key))


def _erf(x):
    """Of float64 infinities TensorFlow's is NaN; at 30 it has been 1, and its gradient 0, for long."""
    return tf.math.erf(tf.clip_by_value(x, -30.0, 30.0))


def _packed(numbers):
    """Numbers or scalar tensors as one int32 tensor."""
    known = all(isinstance(number, int) for number in numbers)
    return tf.constant(numbers, "int32") if known else tf.stack([tf.cast(number, "int32") for number in numbers])


@functools.cache
def _turn():
    """A number that is read and written by all that hands out values: TensorFlow keeps the order of what does so."""
    with tf.init_scope(), tf.device("CPU"):
        turn = raw.VarHandleOp(dtype=tf.int32, shape=(), shared_name="kpatch_turn")
        raw.AssignVariableOp(resource=turn, value=tf.constant(0))
    return turn


def _is_reduced(x):
    """Whether that is a tensor in the memory of a CPU that NumPy reduces; a variable is none."""
    eager = isinstance(x, tf.Tensor) and not tf.is_symbolic_tensor(x)
    if not eager or x.dtype not in REDUCED or not x.device.endswith("CPU:0"):
        return False
    return math.prod(x.shape) * x.dtype.size <= host.REDUCED


REDUCER = host.Reducer(lambda x: np.asarray(memoryview(x)))


def _components(variable):
    """The variables that hold the value: one for each replica under a distribution strategy."""
    value = variable._value
    return value.values if isinstance(value, tf.distribute.DistributedValues) else (value,)


def _take(component, selection):
    tensor = raw.ReadVariableOp(resource=component.handle, dtype=component.dtype)  # shares the variable's buffer
    kind = type(selection)
    if kind is Point and selection.index:
        return raw.StridedSlice(input=tensor, **_bounds(selection))
    shape = tuple(component.shape)
    if kind is Positions:
        flat = raw.Reshape(tensor=tensor, shape=_vector((-1,)))
        taken = raw.GatherV2(params=flat, indices=selection.flat, axis=0)
        return raw.Reshape(tensor=taken, shape=_vector(selection.shape))
    if kind is Mask or not shape or (kind is Region and selection.full):
        return raw.DeepCopy(x=tensor)
    rows = _rows(selection, shape)
    if rows is None:
        return raw.StridedSlice(input=tensor, **_bounds(selection))
    taken = raw.GatherV2(params=tensor, indices=rows, axis=0)  # a strided slice of whole rows would share the buffer
    return raw.Reshape(tensor=taken, shape=_vector(selection.shape))


def _put(component, selection, values):
    handle, kind = component.handle, type(selection)
    if kind is Point and selection.index:
        _assign(handle, selection, values)
        return
    shape = tuple(component.shape)
    if kind is Mask and shape and values.shape.rank == 0 and selection.size > BLOCK:
        _put_mask_by_parts(component, selection.mask, values)
        return
    if kind is Mask:
        tensor = raw.ReadVariableOp(resource=handle, dtype=component.dtype)
        values = raw.SelectV2(condition=selection.mask, t=values, e=tensor)
    elif values.shape != selection.shape:
        values = raw.BroadcastTo(input=values, shape=_vector(selection.shape))
    if kind is Mask or not shape or (kind is Region and selection.full):  # the tensor becomes the variable's buffer
        raw.AssignVariableOp(resource=handle, value=raw.Reshape(tensor=values, shape=_vector(shape)))
        return
    rows = None if kind is Positions else _rows(selection, shape)
    if kind is Region and rows is None:
        _assign(handle, selection, values)
        return
    try:
        if rows is None:
            places = np.stack(selection.coordinates(shape), axis=-1)
            values = raw.Reshape(tensor=values, shape=_vector((-1,)))
            raw.ResourceScatterNdUpdate(ref=handle, indices=places, updates=values)
        else:
            values = raw.Reshape(tensor=values, shape=_vector((-1, *shape[1:])))
            raw.ResourceScatterUpdate(resource=handle, indices=rows, updates=values)
    finally:
        raw.DisableCopyOnRead(resource=handle)


def _assign(handle, selection, values):
    try:
        raw.ResourceStridedSliceAssign(ref=handle, value=values, **_bounds(selection))
    finally:
        raw.DisableCopyOnRead(resource=handle)


@functools.lru_cache(maxsize=1024)
def _nothing(dtype, shape):
    with tf.init_scope():
        return tf.constant(np.empty((0, *shape), dtype.as_numpy_dtype))


def _writable(view):
    """A flat array over the memory of an array that is only read."""
    memory = (ctypes.c_char * view.nbytes).from_address(view.__array_interface__["data"][0])
    memory.of = view  # which keeps it alive
    return np.frombuffer(memory, view.dtype)


def _put_mask_by_parts(component, mask, value):
    """Writes one value under a large mask part by part, to need little memory."""
    mask = np.asarray(mask)
    for region in indexing.parts(mask.shape, BLOCK):
        old = _take(component, region)
        _put(component, region, raw.SelectV2(condition=mask[region.slices], t=value, e=old))


def _rows(selection, shape):
    """The indices on the first axis if the other axes are selected whole, else `None`: rows move much faster."""
    if type(selection) is Point or selection.counts[1:] != shape[1:] or any(selection.starts[1:]):
        return None
    start, count, step = selection.starts[0], selection.counts[0], selection.steps[0]
    return np.arange(count) * step + start


@functools.lru_cache(maxsize=1024)
def _bounds(selection):
    """The selection as arguments of the strided operations."""
    if type(selection) is Point:
        begin = _vector(selection.index)
        ones = _vector((1,) * len(selection.index))
        return {"begin": begin, "end": begin, "strides": ones, "shrink_axis_mask": (1 << len(selection.index)) - 1}
    axes = list(zip(selection.starts, selection.counts, selection.steps, strict=True))
    ends = tuple(start + count * step for start, count, step in axes)
    return {
        "begin": _vector(selection.starts),
        "end": _vector(ends),
        "strides": _vector(selection.steps),
        "end_mask": sum(1 << axis for axis, end in enumerate(ends) if end < 0),  # -1 would be the last entry
        "shrink_axis_mask": sum(1 << axis for axis in selection.dropped),
    }


@functools.lru_cache(maxsize=1024)
def _vector(integers):
    with tf.init_scope():  # a tensor that can be cached, even in a trace
        return tf.constant(integers, "int64", shape=(len(integers),))


def _constant(values, dtype):
    """The values as a tensor; Python scalars by way of an array, because TensorFlow caches 0.0 and -0.0 as one."""
    if isinstance(values, tf.Tensor):
        return values
    if isinstance(values, (bool, int, float)):
        values = np.asarray(values, dtype.as_numpy_dtype)
    return tf.convert_to_tensor(values, dtype)
