"""The patch from one checkpoint to another, as a person would write it if possible.

For each array the patch has

* nothing, if all bits are equal;
* the entries, if few differ;
* a slice, if the differing entries are a row, a column or a block; its values are `$name`, in a `.safetensors` beside
  the patch, if they are many;
* otherwise `$name`: the whole new array. So are values that a text cannot give to the bit (NaN payloads).

The files are read in blocks.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kpatch.checkpoint import saving, wording
from kpatch.checkpoint.arrays import Array, Opaque, as_bits, reuse_blocks
from kpatch.checkpoint.disk import Source
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import FileError, PatchError, boundary
from kpatch.names.bindings import OPTIONS
from kpatch.names.paths import as_path
from kpatch.syntax import Patch, parse
from kpatch.view.data import number
from kpatch.view.overview import Column, Overview, shape
from kpatch.view.pictures import Map, figure
from kpatch.view.shown import Shown

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
        sidecar: the name, in the sidecar, of the values that the statement needs, or `None`.
        values: those values: the new array, or a part of it.
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
    values: Any = None
    map: Map = field(init=False)

    def __post_init__(self) -> None:
        self.map = Map(self.new.shape if not isinstance(self.new, Opaque) else (self.new.size,))

    def picture(self) -> Map:
        return self.map

    def to_dict(self) -> dict[str, Any]:
        """The difference as data that `json.dumps` takes."""
        return {
            "path": self.name,
            "shape": list(self.new.shape),
            "dtype": self.new.dtype,
            "entries": self.count,
            "largest": number(self.largest),
            "statements": self.statements,
            "binding": self.sidecar,
        }

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
        rest: of `common=True`, a line for each array that was not compared, or that a patch cannot change.
    """

    def __init__(self, differences: list[Difference], sources: Sequence[Source] = (), rest: Sequence[str] = ()) -> None:
        self.differences = differences
        self.sources = sources
        self.rest = tuple(rest)

    @property
    def equal(self) -> bool:
        """Whether nothing differs, and nothing was left out."""
        return not self.differences and not self.rest

    @property
    def text(self) -> str:
        lines = [*(f"# {line}" for line in self.rest), *(line for each in self.differences for line in each.statements)]
        return "".join(f"{line}\n" for line in lines)

    @property
    def bindings(self) -> dict[str, Array]:
        return {each.sidecar: each.values for each in self.differences if each.sidecar}

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
            Column("variable", pictured=True),
            Column("shape", drop=2),
            Column("dtype", drop=3),
            Column("entries", right=True),
            Column("part"),
            Column("largest"),
            Column("where", drop=1, drawn=True),
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "patch": self.text,
            "differences": [each.to_dict() for each in self.differences],
            "rest": list(self.rest),
        }

    def plot(self) -> Any:
        """A figure of matplotlib with a picture for each array that differs, as `AppliedPatch.plot` has it.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return figure([(each.name, each.picture) for each in self.differences])


def heat(difference: Difference) -> str:
    """The places where an array differs, as a row of bars."""
    return "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(part * 8))] for part in difference.parts())


@boundary
def diff(
    a: Any,
    b: Any,
    /,
    *,
    tolerance: float = 0.0,
    common: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Diff:
    """The patch that turns checkpoint or model `a` into `b`.

    Args:
        a, b: paths, `Checkpoint`s, or Keras models.
        tolerance: entries that differ by at most this much count as equal; with 0 the result is equal to the bit.
        common: compare what both have, and list the rest in `rest`; else a difference of names is an error.
        progress: called with the number of bytes of each block read.

    Returns:
        A `Diff`: `.text` is the patch, `.bindings` its arrays; `.save` writes both.

    Raises:
        FileError: the names, shapes or dtypes of the arrays differ, a dtype is not part of the language, or a file
            cannot be read.
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
    pairs, left = _pairs(one, two, common)
    found, names = [], set()
    for name, old, new in pairs:
        each = Difference(name, old, new)
        changed = _compare(each, tolerance, progress or (lambda count: None))
        if each.count:
            if isinstance(new, Opaque):
                left.append(_refused(f"'{name}' differs: {new.dtype} is not part of the language", common))
                continue
            each.statements, index, each.values = wording.statements(name, new, changed)
            if not each.statements:
                each.sidecar = _free(name, names)
                each.statements = [f"{name}{wording.indexed(index)} = ${each.sidecar}"]
            found.append(each)
    for source in (sources := [*sources, *more]):
        source.check()
    return Diff(found, sources, left)


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


def _pairs(a: Sequence[Any], b: Sequence[Any], common: bool) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Triples of the name in `a`, the old array and the new array; and a line for each array that has no partner.

    Two files are matched by the names in them, which do not depend on Keras's numbering of layers in the process. What
    two files have in common is matched by the names that a model gives first.
    """
    (first, old, of_files), (second, new, also) = a, b
    by_file = of_files and also
    by_key = {array.path if by_file else name: (name, array) for name, array in new}
    by_name = {name: array.path if by_file else name for name, array in new} if common else {}
    pairs, left = [], []
    for name, array in old:
        key = by_name.get(name, array.path if by_file else name)
        _, other = by_key.pop(key, (name, None))
        if other is None:
            left.append(_refused(f"{second} has no '{name}', which {first} has", common))
        elif (other.shape, other.dtype) != (array.shape, array.dtype):
            shapes = f"{array.shape} {array.dtype} and {other.shape} {other.dtype}"
            left.append(_refused(f"'{name}' is {shapes}: a patch keeps shapes and dtypes", common))
        else:
            pairs.append((name, array, other))
    left += [_refused(f"{first} has no '{name}', which {second} has", common) for name, _ in by_key.values()]
    return pairs, left


def _refused(message: str, common: bool) -> str:
    """The message; raised if only what both have is not enough."""
    if not common:
        raise FileError(message, notes=["common=True (--common) compares what both have"])
    return " ".join(message.split())


def _compare(each: Difference, tolerance: float, progress: Callable[[int], object]) -> np.ndarray | None:
    """Counts the entries that differ; returns their offsets, or `None` if they are more than `KEPT`."""
    offsets: list | None = []
    size = each.new.size
    reuse_blocks()
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
