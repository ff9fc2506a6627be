"""`keras.ops` on NumPy arrays, without Keras: what masks, arithmetic, reductions and moved entries need.

Keras takes seconds to load, and its functions on the numpy backend are those of NumPy. Each function here gives the
bits of Keras's own, for the arguments that kpatch passes: arrays of one dtype, and Python's numbers beside them; but it
keeps 64 bits, which Keras narrows. Every other function, and every other kind of argument, is left to Keras.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

ARRAYS = (np.ndarray, np.generic)
_SUMMED = {"bool": "int32", "int8": "int32", "int16": "int32", "uint8": "uint32", "uint16": "uint32"}  # Keras's rule

OF_FLOATS = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "sin", "cos", "tan", "arcsin", "arccos",
    "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "arctan2", "hypot", "logaddexp", "floor", "ceil",
)  # fmt: skip
SAME_AS_NUMPY = (
    "reciprocal", "round", "abs", "square",
    "isnan", "isinf", "isfinite", "logical_and", "logical_or", "logical_not", "equal",
    "any", "all", "max", "min", "sort", "take", "take_along_axis",
    "reshape", "broadcast_to", "copy", "moveaxis", "swapaxes", "transpose", "squeeze", "expand_dims", "flip", "roll",
    "tile", "repeat", "tril", "triu", "full_like", "pad",
)  # fmt: skip


class ArrayOps:
    """The functions of `keras.ops`, as attributes. Asked for one that is not here, it imports Keras."""

    def __init__(self) -> None:
        vars(self).update({name: getattr(np, name) for name in SAME_AS_NUMPY}, **_OTHERS)
        vars(self).update({name: _of_floats(getattr(np, name)) for name in OF_FLOATS})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Python itself asks for such
            raise AttributeError(name)
        return getattr(_keras(), name)


def _keras():
    from keras import ops

    return ops


def _of_floats(function):
    """The function of arrays without gaps in memory, as Keras has them: with gaps NumPy computes other bits."""
    return lambda *arrays: function(*(x if x.flags.forc else np.array(x) for x in arrays))


def _cast(x, dtype):
    if not isinstance(x, ARRAYS):
        return _keras().cast(x, dtype)
    with np.errstate(all="ignore"):  # infinity is a valid result
        return np.array(x, dtype)


def _convert_to_tensor(x, dtype=None, sparse=None, ragged=None):
    if isinstance(x, ARRAYS) and not (sparse or ragged):
        return np.array(x, dtype)
    return _keras().convert_to_tensor(x, dtype, sparse, ragged)


def _choosing(name):
    """A function of two arrays of one dtype, or of one and a Python number, that takes its dtype."""
    numpy_function = getattr(np, name)

    def function(*arguments):
        *condition, x, y = arguments
        dtypes = {each.dtype for each in (x, y) if isinstance(each, ARRAYS)}
        if len(dtypes) != 1 or any(isinstance(each, float) for each in (x, y) if not isinstance(each, ARRAYS)):
            return getattr(_keras(), name)(*arguments)
        (dtype,) = dtypes
        return numpy_function(*condition, np.asarray(x, dtype), np.asarray(y, dtype))

    return function


def _joining(name):
    """A function of a list of arrays of one dtype."""
    numpy_function = getattr(np, name)

    def function(arrays, axis=0):
        if len({getattr(x, "dtype", type(x)) for x in arrays}) != 1:
            return getattr(_keras(), name)(arrays, axis=axis)
        return numpy_function(arrays, axis=axis)

    return function


def _sum(x, axis=None):
    return np.sum(x, axis=axis).astype(_SUMMED.get(x.dtype.name, x.dtype))


def _prod(x, axis=None):
    return np.prod(x, axis=axis, dtype=_SUMMED.get(x.dtype.name, x.dtype))


_OTHERS: dict[str, Callable[..., Any]] = {
    "cast": _cast,
    "convert_to_tensor": _convert_to_tensor,
    "convert_to_numpy": np.array,
    "is_tensor": lambda x: isinstance(x, ARRAYS),
    "stop_gradient": lambda x: x,
    "shape": lambda x: x.shape if isinstance(x, ARRAYS) else _keras().shape(x),
    "where": _choosing("where"),
    "maximum": _choosing("maximum"),
    "minimum": _choosing("minimum"),
    "concatenate": _joining("concatenate"),
    "stack": _joining("stack"),
    "sum": _sum,
    "prod": _prod,
    "cumsum": lambda x, axis: np.cumsum(x, axis=axis, dtype=x.dtype),
    "argsort": lambda x, axis=-1: np.argsort(x, axis=axis).astype("int32"),
    "clip": lambda x, low, high: np.clip(x, low, high).astype(x.dtype),
    "view": lambda x, dtype: np.array(x).view(dtype),
    "arange": lambda stop, dtype: np.arange(stop, dtype=dtype),
    "zeros": lambda shape, dtype: np.zeros(shape, dtype),
    "eye": lambda rows, columns=None, k=0, dtype="float32": np.eye(rows, columns, k=k, dtype=dtype),
}
