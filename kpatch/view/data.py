"""Numbers and values as data that JSON can hold."""

import math
from typing import Any

import numpy as np

FEW = 3  # values that are given one by one


def number(value: Any) -> int | float | bool | str:
    """A number as JSON has it; what JSON has no number for is a text: `"NaN"`, `"Infinity"`, `"-Infinity"`.

    Example:
        >>> number(np.float32(0.5)), number(np.int8(3)), number(np.inf)
        (0.5, 3, 'Infinity')
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def numbers(values: Any) -> Any:
    """Nested lists of numbers as JSON has them.

    Example:
        >>> numbers([[1.5, float("nan")]])
        [[1.5, 'NaN']]
    """
    return [numbers(each) for each in values] if isinstance(values, list) else number(values)


def summary(values: Any) -> dict[str, Any]:
    """The range and mean of values, and the values if they are few.

    Example:
        >>> summary(np.array([1, 2], "int32"))
        {'min': 1, 'mean': 1.5, 'max': 2, 'values': [1, 2]}
    """
    values = np.asarray(values).ravel()
    if not values.size:
        return {**measured(None, None, None), "values": []}
    wide = values if values.dtype.kind in "biu" else values.astype("float64")
    with np.errstate(all="ignore"):
        found = measured(wide.min(), wide.mean(dtype="float64"), wide.max())
    return {**found, "values": [number(value) for value in values] if values.size <= FEW else None}


def measured(low: Any, mean: Any, high: Any) -> dict[str, Any]:
    """A range and a mean; `None` stays."""
    return {
        name: None if each is None else number(each) for name, each in (("min", low), ("mean", mean), ("max", high))
    }
