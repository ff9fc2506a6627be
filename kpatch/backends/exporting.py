"""What stands in for a backend while Keras exports to a format that lacks operations, or computes some otherwise."""

import sys
from types import FrameType
from typing import Any

import keras

from kpatch.backends.base import Backend

FORMATS = ("saved_model", "onnx", "openvino", "litert", "torch")  # by the modules of Keras that export to them


def format_of(formats):
    """The one of the formats to which Keras is exporting, or `None`; only the stack shows it."""
    names = {f"keras.src.export.{name}": name for name in formats}
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if (module := frame.f_globals.get("__name__")) in names:
            return names[module]
        frame = frame.f_back
    return None


def is_exporting():
    """Whether Keras is exporting, to any format."""
    return format_of(FORMATS) is not None


class Ops:
    """`keras.ops` with other functions in place of some.

    Example:
        >>> ops = Ops(abs=lambda x: "another")
        >>> ops.abs(-1), ops.size is keras.ops.size
        ('another', True)
    """

    def __init__(self, **instead: Any) -> None:
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(keras.ops, name)


def _is_float(x):
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))


class Exporting(Backend):
    """Mixed into a backend: what runtimes of onnx and openvino compute otherwise, by operations on which they agree."""

    sorts_nan_last = True

    def __init__(self) -> None:
        best = {"max": self.largest, "min": self.smallest, "maximum": self.maximum, "minimum": self.minimum}
        moving = {
            "sort": self.in_order,
            "argsort": self.argsort,
            "tril": self.tril,
            "triu": self.triu,
            "roll": self.roll,
        }
        self.ops = Ops(where=self.where, **best, **moving)

    def reads_bits(self):
        return False

    def first_best(self, how, x):
        return None

    def order(self, x):
        return keras.ops.cast(self.argsort(x, 1), "int32")

    def in_order(self, x, axis=-1):
        return self.ops.take_along_axis(x, self.argsort(x, axis), axis=axis)

    def argsort(self, x, axis=-1):
        """NaN last: they are parted from the others, and taken for infinities then."""
        if not _is_float(x):
            return self.places_in_order(x, axis)
        nan = keras.ops.isnan(x)
        apart = self.places_in_order(keras.ops.cast(nan, "int32"), axis)
        filled = self.where(nan, keras.ops.full_like(x, float("inf")), x)
        places = self.places_in_order(self.ops.take_along_axis(filled, apart, axis=axis), axis)
        return self.ops.take_along_axis(apart, places, axis=axis)

    def places_in_order(self, x, axis):
        """The indices that sort numbers; the first of equal ones comes first."""
        return keras.ops.argsort(x, axis=axis)

    def roll(self, x, shift, axis=None):
        ops = self.ops
        if axis is None:
            return ops.reshape(self.roll(ops.reshape(x, (-1,)), shift, 0), ops.shape(x))
        for amount, place in [(shift, axis)] if isinstance(axis, int) else zip(shift, axis, strict=True):
            length = ops.shape(x)[place]
            whole = abs(amount) * length - amount  # no place is negative then
            x = ops.take(x, (ops.arange(length, dtype="int32") + whole) % length, axis=place)
        return x

    def tril(self, x, k=0):
        rows, columns = self._places(x)
        return self.where(columns <= rows + k, x, keras.ops.zeros_like(x))

    def triu(self, x, k=0):
        rows, columns = self._places(x)
        return self.where(columns >= rows + k, x, keras.ops.zeros_like(x))

    def _places(self, x):
        rows, columns = keras.ops.shape(x)[-2:]
        return keras.ops.arange(rows, dtype="int32")[:, None], keras.ops.arange(columns, dtype="int32")

    def where(self, mask, x, y):
        """A choice of booleans is computed by logic: runtimes of onnx have no kernel for it."""
        if not hasattr(y, "dtype") or keras.backend.standardize_dtype(y.dtype) != "bool":
            return keras.ops.where(mask, x, y)
        return keras.ops.logical_or(keras.ops.logical_and(mask, x), keras.ops.logical_and(~mask, y))

    def largest(self, x, axis=None, keepdims=False):
        return self._best("max", x, axis, keepdims)

    def smallest(self, x, axis=None, keepdims=False):
        return self._best("min", x, axis, keepdims)

    def _best(self, how, x, axis, keepdims):
        """NaN if an entry is; the runtimes take no notice of it."""
        best = getattr(keras.ops, how)(x, axis=axis, keepdims=keepdims)
        if not _is_float(x):
            return best
        nan = keras.ops.any(keras.ops.isnan(x), axis=axis, keepdims=keepdims)
        return self.where(nan, keras.ops.full_like(best, float("nan")), best)

    def maximum(self, x, y):
        return self._better("maximum", x, y)

    def minimum(self, x, y):
        return self._better("minimum", x, y)

    def _better(self, how, x, y):
        better = getattr(keras.ops, how)(x, y)
        if not _is_float(better):
            return better
        for each in (x, y):
            each = keras.ops.convert_to_tensor(each, better.dtype)
            better = self.where(keras.ops.isnan(each), each, better)
        return better

    def floor_divide(self, x, y):
        """In onnx the quotient of integers is rounded towards zero."""
        quotient = x // y
        return quotient - keras.ops.cast(self._is_above(x, y, quotient), quotient.dtype)

    def remainder(self, x, y):
        if _is_float(x):
            return super().remainder(x, y)
        return x - self.floor_divide(x, y) * y

    def _is_above(self, x, y, quotient):
        rest = x - quotient * y
        return keras.ops.logical_and(rest != 0, keras.ops.logical_xor(rest < 0, y < 0))
