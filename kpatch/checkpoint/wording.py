"""The statements that change an array: a row, a column, a filter or a block that changed is one statement."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kpatch.checkpoint.arrays import BY_NAME, Array, as_bits, in_blocks
from kpatch.values.dtypes import DTYPES

FEW = 64  # the most entries of an array that are written out


@dataclass
class Block:
    """A block of an array, or several rows or columns.

    Attributes:
        text: its index as text; empty is the whole array.
        index: its index for NumPy.
        shape: its shape by the text.
    """

    text: str
    index: tuple
    shape: tuple[int, ...]


class HeldBlock:
    """A region of an array of a model in memory, as a listing and a file of arrays take it."""

    def __init__(self, whole: Any, region: Block) -> None:
        self.dtype, self.shape = whole.dtype, region.shape
        self.size = math.prod(region.shape)
        self._whole, self._index = whole, region.index

    def view(self) -> np.ndarray:
        return np.ascontiguousarray(self._whole.view()[self._index]).reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.view(), dtype)

    def blocks(self) -> Any:
        yield from in_blocks(self.view())


def statements(name: str, new: Any, flat: np.ndarray | None) -> tuple[list[str], str, Any]:
    """The lines that change an array, or the index and the values of the one line that needs values in a file.

    Args:
        name: the array's selector.
        new: the new array.
        flat: the offsets of the entries that differ, or `None` if they are too many to be kept.
    """
    if flat is None or new.dtype not in DTYPES:
        return [], "", new
    values = new.view()
    region = _region(flat, new.shape)
    if region is not None:
        inside = values[region.index].reshape(-1)
        if (as_bits(inside) == as_bits(inside[:1])).all():
            lines = _lines(name, [(region.text, inside[0])], new.dtype)
        else:
            lines = _list(name, region, inside, new.dtype) if inside.size <= FEW else []
        return lines, region.text, new if region.shape == new.shape else _part(new, region)
    if len(flat) > FEW:
        return [], "", new
    indices = zip(*np.unravel_index(flat, new.shape), strict=True)
    entries = [(", ".join(map(str, index)), values[index]) for index in indices]
    return _lines(name, entries, new.dtype), "", new


def _part(new: Any, region: Block) -> Any:
    if not isinstance(new, Array):
        return HeldBlock(new, region)

    def read(file: Any) -> np.ndarray:
        return np.ascontiguousarray(new.view(file)[region.index]).reshape(region.shape)

    return replace(new, offset=None, shape=region.shape, refusal="it is a part of an array", reader=read, packed=None)


def _region(flat: np.ndarray, shape: tuple[int, ...]) -> Block | None:
    """The region that the entries fill: all of it, or half of rows or columns; `None` if there is none."""
    if not shape:
        return Block("", (), ())
    exact = [np.unique(axis) for axis in np.unravel_index(flat, shape)]
    filled = [np.arange(n) if 2 * len(axis) > n else axis for axis, n in zip(exact, shape, strict=True)]
    for places, least in ((exact, 1.0), (filled, 0.5)):
        steps = [_step(axis) for axis in places]
        if None not in steps and len(flat) >= least * math.prod(map(len, places)):
            return _spelled(places, steps, shape)
    steps = [_step(axis) for axis in exact]
    rows = any(len(axis) == n > 1 for axis, n in zip(exact, shape, strict=True))
    if len(flat) == math.prod(map(len, exact)) and steps.count(None) == 1 and (rows or len(flat) > FEW):
        return _spelled(exact, steps, shape)
    return None


def _step(places: np.ndarray) -> int | None:
    """The distance between places that are equally far apart, else `None`; three are needed to see that."""
    steps = np.unique(np.diff(places))
    if len(places) == 1 or steps.tolist() == [1]:
        return 1
    return int(steps[0]) if len(steps) == 1 and len(places) > 2 else None


def _spelled(places: list[np.ndarray], steps: list[int | None], shape: tuple[int, ...]) -> Block:
    listed = None in steps  # NumPy moves the axis of a list, if single places stand beside it
    texts: list[str] = []
    index: list[Any] = []
    lengths: list[int] = []
    for axis, step, length in zip(places, steps, shape, strict=True):
        first, last = int(axis[0]), int(axis[-1])
        if step is None:
            texts.append(str(axis.tolist()))
            index.append(axis)
        elif first == last and length > 1 and not listed:
            texts.append(str(first))
            index.append(slice(first, last + 1))
            continue
        else:
            stop = "" if last + step >= length else last + 1
            texts.append(f"{first or ''}:{stop}" + (f":{step}" if step > 1 else ""))
            index.append(slice(first, last + 1, step))
        lengths.append(len(axis))
    while texts and texts[-1] == ":":
        texts.pop()
    return Block(", ".join(texts), tuple(index), tuple(lengths))


def _list(name: str, region: Block, values: np.ndarray, dtype: str) -> list[str]:
    """One statement with the numbers of a region, nested by its shape."""
    texts = [literal(value, dtype) for value in values]
    if None in texts:
        return []
    return [f"{name}{indexed(region.text)} = {_brackets(np.array(texts, object).reshape(region.shape).tolist())}"]


def _brackets(nested: Any) -> str:
    return nested if isinstance(nested, str) else "[" + ", ".join(map(_brackets, nested)) + "]"


def indexed(region: str) -> str:
    return f"[{region}]" if region else ""


def _lines(name: str, pairs: list[tuple[str, Any]], dtype: str) -> list[str]:
    texts = [(index, literal(value, dtype)) for index, value in pairs]
    if any(text is None for _, text in texts):
        return []
    return [f"{name}{indexed(index)} = {text}" for index, text in texts]


def literal(value: Any, dtype: str) -> str | None:
    """The text that gives the value to the bit, or `None`."""
    if dtype == "bool":
        return "true" if value else "false"
    if value.dtype.kind in "iu":
        return str(int(value))
    number = float(value)
    text = repr(number)
    back = np.asarray(float(text)).astype(BY_NAME[dtype])
    if not (as_bits(back.reshape(1)) == as_bits(np.asarray(value).reshape(1))).all():
        return None
    shorter = _shorter(number, value, dtype)
    return shorter if shorter and len(shorter) < len(text) else text  # -100.0, not -1e+02


def _shorter(number: float, value: Any, dtype: str) -> str | None:
    """The shortest decimal that rounds to the value in its dtype, or `None`."""
    for digits in range(1, 17):
        text = f"{number:.{digits}g}"
        if "n" in text:
            return None
        if not re.search(r"[.e]", text):
            text += ".0"
        with np.errstate(all="ignore"):
            back = np.asarray(float(text)).astype(BY_NAME[dtype])
        if back.tobytes() == np.asarray(value).tobytes():
            return text
    return None
