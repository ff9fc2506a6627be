"""Checks, conversions, moves and joins of operands, shared by several groups of functions."""

import contextlib

import numpy as np

from kpatch.errors import DTypeError, FunctionError, PatchError, ShapeError, UnsupportedError
from kpatch.functions.axes import differ, normal_axis
from kpatch.values import arithmetic, dtypes, numerics
from kpatch.values.arithmetic import compute, fold
from kpatch.values.dtypes import RANGES, Value


@contextlib.contextmanager
def blaming(argument):
    """Errors of the block name this argument as faulty: a parameter, or a position among the tensors."""
    try:
        yield
    except PatchError as error:
        error.argument = argument
        raise


def need_numbers(name, *values):
    for place, value in enumerate(values):
        if value.dtype == "bool":
            message = f'{name}() takes numbers, not booleans; write cast(..., "float32") or where(..., 1, 0)'
            raise DTypeError(message, argument=place)


def need_lengths(name, *operands):
    """Raises if lengths are unknown and stay so; while planning, they can become known later."""
    unknown = any(None in value.shape for value in operands)
    if unknown and (all(value.data is not None for value in operands) or arithmetic.stays_unknown()):
        raise UnsupportedError(f"{name}() of a tensor with an axis of unknown length is not supported", argument=0)


def float_of(*values):
    """The float dtype in which operands are computed; float32 for integers and literals."""
    dtype = dtypes.common(values)
    return dtype if dtype in dtypes.FLOATS else "float32"


def as_floats(value):
    """A literal in double precision."""
    data = None if value.data is None else value.data.astype("float64")
    return Value("float", value.shape, data, True, value.is_list)


def strong(*literals):
    """Literals as tensors, if no operand is a tensor: float32, int32 (int64 if needed) or bool."""
    dtype = {"float": "float32", "int": "int32"}.get(dtypes.common(literals), "bool")
    if dtype == "int32":
        low, high = RANGES["int32"]
        if any(x.data is not None and ((x.data < low) | (x.data > high)).any() for x in literals):
            dtype = "int64"
    dtypes.check_available(dtype)
    known = [x.data is not None for x in literals]  # or planned, as the number of entries under a mask
    return [arithmetic.prepared(x, dtype) if k else Value(dtype, x.shape) for x, k in zip(literals, known, strict=True)]


def moved(name, x, shape, *options):
    """The `Value` of a function of NumPy and `keras.ops` that moves entries.

    Args:
        shape: the result's shape.
        options: the positional arguments after `x`.
    """
    dtypes.check_size(shape, x)
    if x.weak and None in shape:
        return Value(x.dtype, shape, None, True, x.is_list)  # `broadcast_to(0, shape(_))`, planned under a mask
    if x.weak:
        return fold(shape, lambda a: getattr(np, name)(a, *options), x, dtype=x.dtype, moves=True)
    return compute(x.dtype, shape, lambda a: numerics.move(name, a, options, x.dtype), x)


def join(name, values, axis):
    """`concatenate` or `stack` of tensors, converted to one dtype."""
    if not values:
        raise FunctionError(f"{name}() of no tensors", argument=0)
    if any(isinstance(value, str) for value in values):
        raise FunctionError("a list holds tensors and numbers, not strings", argument=0)
    if any(len(value.shape) != len(values[0].shape) for value in values):
        _refuse_shapes(name, [value.shape for value in values])
    if name == "stack":
        axis = normal_axis(axis, len(values[0].shape) + 1)
        values = [moved("expand_dims", x, (*x.shape[:axis], 1, *x.shape[axis:]), (axis,)) for x in values]
    if not values[0].shape:
        raise ShapeError("numbers have no axis to be joined along; write stack(...)", argument=0)
    axis = normal_axis(axis, len(values[0].shape))
    rests = [value.shape[:axis] + value.shape[axis + 1 :] for value in values]
    rest = rests[0]
    for other in rests:
        if any(map(differ, rest, other)):
            _refuse_shapes(name, rests if name == "stack" else [value.shape for value in values])
        rest = tuple(b if a is None else a for a, b in zip(rest, other, strict=True))
    lengths = [value.shape[axis] for value in values]
    shape = (*rest[:axis], None if None in lengths else sum(lengths), *rest[axis:])
    dtypes.check_size(shape, *values)
    dtype = dtypes.common(values)
    if all(value.weak for value in values):
        return fold(shape, lambda *arrays: np.concatenate(arrays, axis=axis), *values, dtype=dtype, moves=True)
    return compute(dtype, shape, lambda *x: numerics.concatenate(x, axis, dtype), *values, to=dtype)


def _refuse_shapes(name, found):
    first, other = found[0], next(shape for shape in found if shape != found[0])
    verb = "joined" if name == "concatenate" else "stacked"
    raise ShapeError(f"tensors of the shapes {first} and {other} cannot be {verb}", argument=0)
