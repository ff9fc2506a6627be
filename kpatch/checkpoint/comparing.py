"""The patch from one checkpoint to another, as a person would write it if possible.

For each array the patch has

* nothing, if all bits are equal;
* the entries, if few differ;
* a slice, if the differing entries are a block with one new value;
* otherwise `$name`: the whole new array is in a `.safetensors` beside the patch. So are values that a text cannot give
  to the bit (NaN payloads).

The files are read in blocks.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kpatch.checkpoint import saving
from kpatch.checkpoint.arrays import BY_NAME, Array, as_bits
from kpatch.checkpoint.disk import Source
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import FileError, PatchError
from kpatch.names.bindings import OPTIONS
from kpatch.names.paths import as_path
from kpatch.syntax import Patch, parse
from kpatch.values.dtypes import DTYPES
from kpatch.view.overview import Column, Overview, shape
from kpatch.view.pictures import Map, figure
from kpatch.view.shown import Shown

FEW = 64  # the most entries of an array that are written out
KEPT = 2**20  # the most offsets of differing entries that are kept, to find a slice
BINS = 16  # parts of an array in the map of differences


@dataclass
class Difference:
    """The difference of one array.

    Attributes:
        name: its selector.
        old, new: the `Array`s.
        count: the number of entries that differ.
        largest: the largest absolute difference; 0 for booleans.
        bins: the number of entries that differ in each of `BINS` equal parts of the flat array.
        statements: the lines that change it.
        sidecar: its name in the sidecar, or `None`.
        map: where it differs, and by how much, as a picture.
    """

    name: str
    old: Array
    new: Array
    count: int = 0
    largest: float = 0.0
    bins: np.ndarray = field(default_factory=lambda: np.zeros(BINS, "int64"))
    statements: list = field(default_factory=list)
    sidecar: str | None = None
    map: Map = field(init=False)

    def __post_init__(self) -> None:
        self.map = Map(self.new.shape)

    def picture(self) -> Map:
        return self.map

    def parts(self) -> np.ndarray:
        """The share of entries that differ in each of `BINS` equal parts of the flat array."""
        sizes = np.diff(np.linspace(0, self.new.size, BINS + 1).astype("int64"))
        return np.minimum(1.0, self.bins / np.maximum(sizes, 1))


class Diff(Shown):
    """The patch from one checkpoint to another, made by `kpatch.diff`.

    Attributes:
        differences: a `Difference` for each array that differs.
        text: the patch.
        bindings: the arrays of its `$names`, for `kpatch.checkpoint.apply`.
        sources: the `Source`s of the files compared.
    """

    def __init__(self, differences: list[Difference], sources: Sequence[Source] = ()) -> None:
        self.differences = differences
        self.sources = sources

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for each in self.differences for line in each.statements)

    @property
    def bindings(self) -> dict[str, Array]:
        return {each.sidecar: each.new for each in self.differences if each.sidecar}

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The bindings as NumPy arrays."""
        return {name: array.view() for name, array in self.bindings.items()}

    def save(self, path: "str | os.PathLike[str]") -> list[Path]:
        """Writes the patch, and a `.safetensors` beside it if needed; returns the paths written.

        Both names are reserved for the patch. An existing file is replaced only if `save` wrote it.

        Raises:
            FileError: one of the names is that of a compared file or of a file that `save` did not write, or the files
                cannot be written.
        """
        return saving.write(self, as_path(path))

    def __kpatch__(self) -> Patch:
        """The `Patch` with its bindings, for functions that take a patch."""
        return replace(parse(self.text), bindings=self.bindings)

    def __str__(self) -> str:
        return self.text

    def overview(self) -> Overview:
        columns = (
            Column("variable"),
            Column("shape", drop=2),
            Column("dtype", drop=3),
            Column("entries", right=True),
            Column("part"),
            Column("largest"),
            Column("where", drop=1),
        )
        rows = [
            (
                each.name,
                shape(each.new.shape),
                each.new.dtype,
                f"{each.count:,}",
                f"{each.count / each.new.size:.2%}",
                f"{each.largest:.4g}",
                heat(each),
            )
            for each in self.differences
        ]
        return Overview(columns, rows, pictures=[each.picture for each in self.differences])

    def plot(self) -> Any:
        """A figure of matplotlib with a picture for each array that differs, as `AppliedPatch.plot` has it.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return figure([each.name for each in self.differences], [each.map for each in self.differences])


def heat(difference: Difference) -> str:
    """The places where an array differs, as a row of bars."""
    return "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(part * 8))] for part in difference.parts())


def diff(a: Any, b: Any, /, *, tolerance: float = 0.0, progress: Callable[[int], object] | None = None) -> Diff:
    """The patch that turns checkpoint or model `a` into `b`.

    Args:
        a, b: paths, `Checkpoint`s, or Keras models, with the same names, shapes and dtypes.
        tolerance: entries that differ by at most this much count as equal; with 0 the result is equal to the bit.
        progress: called with the number of bytes of each block read.

    Returns:
        A `Diff`: `.text` is the patch, `.bindings` its arrays; `.save` writes both.

    Raises:
        FileError: the names, shapes or dtypes of the arrays differ, or a file cannot be read.
        PatchError: the tolerance is not a number of 0 or more.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> a, b = (Path(tempfile.mkdtemp(), "small.keras") for _ in "ab")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]).save(a)
        >>> applied = kpatch.checkpoint.apply(a, "head.kernel[1] = 0.5; head.bias[2] = 3", b)
        >>> print(kpatch.diff(a, b).text, end="")
        head.kernel[1] = 0.5
        head.bias[2] = 3.0
    """
    given: Any = tolerance
    number = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not number or not 0 <= given < math.inf:
        raise PatchError(f"tolerance is a number of 0 or more. Received: tolerance={reprlib.repr(tolerance)}")
    (*one, sources), (*two, more) = _side(a, "first"), _side(b, "second")
    pairs = _pairs(one, two)
    found, names = [], set()
    for name, old, new in pairs:
        each = Difference(name, old, new)
        changed = _compare(each, tolerance, progress or (lambda count: None))
        if each.count:
            each.statements = _statements(each, changed) if changed is not None else []
            if not each.statements:
                each.sidecar = _free(name, names)
                each.statements = [f"{name} = ${each.sidecar}"]
            found.append(each)
    for source in (sources := [*sources, *more]):
        source.check()
    return Diff(found, sources)


def _side(side: Any, place: str) -> tuple[str, list[tuple[str, Any]], bool, list[Source]]:
    """The side's name for errors, pairs of names and arrays, whether it is a file, and its `Source`s."""
    if isinstance(side, (str, os.PathLike)):
        side = Checkpoint(side)
    if isinstance(side, Checkpoint):
        return f"'{side.path}'", side.stored(), True, side.sources
    import keras

    if not isinstance(side, keras.Layer):
        message = "kpatch.diff compares paths, kpatch.checkpoint.Checkpoints, and Keras models or layers. Received: "
        raise FileError(f"{message}{reprlib.repr(side)} (of type {type(side)})")
    from kpatch.checkpoint.loaded import ModelArrays

    return f"the {place} model ('{side.name}')", ModelArrays(side).stored(), False, []


def _pairs(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[str, Any, Any]]:
    """Triples of the name in `a`, the old array and the new array.

    Two files are matched by the names in them, which do not depend on Keras's numbering of layers in the process.
    """
    (first, old, of_files), (second, new, also) = a, b
    by_key = {array.path if of_files and also else name: (name, array) for name, array in new}
    pairs = []
    for name, array in old:
        _, other = by_key.pop(array.path if of_files and also else name, (name, None))
        if other is None:
            raise FileError(f"{second} has no '{name}', which {first} has")
        if (other.shape, other.dtype) != (array.shape, array.dtype):
            shapes = f"{array.shape} {array.dtype} and {other.shape} {other.dtype}"
            raise FileError(f"'{name}' is {shapes}: a patch keeps shapes and dtypes")
        pairs.append((name, array, other))
    for name, _ in by_key.values():
        raise FileError(f"{first} has no '{name}', which {second} has")
    return pairs


def _compare(each: Difference, tolerance: float, progress: Callable[[int], object]) -> np.ndarray | None:
    """Counts the entries that differ; returns their offsets, or `None` if they are more than `KEPT`."""
    offsets: list | None = []
    size = each.new.size
    for (start, old), (_, new) in zip(each.old.blocks(), each.new.blocks(), strict=True):
        progress(old.nbytes)
        differ = as_bits(old) != as_bits(new)
        if not differ.any():
            continue
        change = _change(old, new, differ)
        if each.new.dtype != "bool":
            if tolerance:
                differ &= ~(np.abs(change) <= tolerance)
            each.largest = float(np.maximum(each.largest, np.max(np.abs(change[differ]), initial=0.0)))
        flat = np.flatnonzero(differ) + start
        each.map.add(flat, change[differ])
        each.count += len(flat)
        each.bins += np.bincount(np.minimum(flat * BINS // size, BINS - 1), minlength=BINS)
        offsets = None if offsets is None or each.count > KEPT else [*offsets, flat]
    return None if offsets is None else np.concatenate([*offsets, []]).astype("int64")


def _change(old: np.ndarray, new: np.ndarray, differ: np.ndarray) -> np.ndarray:
    change = np.zeros(old.shape, "float64")
    with np.errstate(all="ignore"):
        change[differ] = new[differ].astype("float64") - old[differ].astype("float64")
    return change


def _statements(each: Difference, flat: np.ndarray) -> list[str]:
    """The lines that change an array; none if it goes into the sidecar."""
    if each.new.dtype not in DTYPES:
        return []
    values, region = each.new.view().reshape(-1)[flat], _region(each, flat)
    if region is not None and (as_bits(values) == as_bits(values[:1])).all():
        return _written([(region, values[0])], each)
    if len(flat) > FEW:
        return []
    if region is not None:
        return _list(each, region, flat, values)
    indices = zip(*np.unravel_index(flat, each.new.shape), strict=True)
    return _written([(", ".join(map(str, index)), value) for index, value in zip(indices, values, strict=True)], each)


def _region(each: Difference, flat: np.ndarray) -> str | None:
    """The index of the block that the entries fill, or `None` if they fill none."""
    shape = each.new.shape
    if not shape:
        return ""
    axes = np.unravel_index(flat, shape)
    lows, highs = [int(a.min()) for a in axes], [int(a.max()) + 1 for a in axes]
    if np.prod([high - low for low, high in zip(lows, highs, strict=True)]) != len(flat):
        return None
    items = []
    for low, high, length in zip(lows, highs, shape, strict=True):
        whole = (low, high) == (0, length)
        items.append(
            ":" if whole and length > 1 else str(low) if high - low == 1
            else f"{low or ''}:{'' if high == length else high}"
        )  # fmt: skip
    while items and items[-1] == ":":
        items.pop()
    return ", ".join(items)


def _list(each: Difference, region: str, flat: np.ndarray, values: np.ndarray) -> list[str]:
    """One statement with the numbers of a block, nested by its shape."""
    axes = np.unravel_index(flat, each.new.shape)
    lengths = [int(a.max() - a.min()) + 1 for a in axes]
    texts = [_literal(value, each.new.dtype) for value in values]
    if None in texts:
        return []
    nested = np.array(texts, object).reshape([n for n in lengths if n > 1]).tolist()
    return [f"{each.name}{_index(region)} = {_brackets(nested)}"]


def _brackets(nested: Any) -> str:
    return nested if isinstance(nested, str) else "[" + ", ".join(map(_brackets, nested)) + "]"


def _index(region: str) -> str:
    return f"[{region}]" if region else ""


def _written(pairs: Iterable[tuple[str, Any]], each: Difference) -> list[str]:
    texts = [(index, _literal(value, each.new.dtype)) for index, value in pairs]
    if any(text is None for _, text in texts):
        return []
    return [f"{each.name}{_index(index)} = {text}" for index, text in texts]


def _literal(value: Any, dtype: str) -> str | None:
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


def _free(name: str, taken: set[str]) -> str:
    """An unused name for the sidecar."""
    base = re.sub(r"\W+", "_", name).strip("_") or "x"
    base = f"x_{base}" if base[0].isdigit() else base
    free, number = base, 1
    while free in taken or free in OPTIONS:
        number += 1
        free = f"{base}_{number}"
    taken.add(free)
    return free
