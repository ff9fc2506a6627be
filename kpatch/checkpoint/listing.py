"""`show`: the names of a model or a file that a patch can address, with shapes, dtypes and values."""

import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kpatch.checkpoint.arrays import Opaque
from kpatch.checkpoint.loaded import ModelArrays
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import PatchSyntaxError, ResolutionError, UnsupportedError, boundary
from kpatch.names import attention
from kpatch.names.globs import ANY_DEPTH
from kpatch.names.index import index, keys_of
from kpatch.names.tree import LAYER, spelled
from kpatch.syntax import ast, nearest, parse_selector
from kpatch.view import progress
from kpatch.view.data import number
from kpatch.view.overview import Column, Overview, shape
from kpatch.view.shown import Shown


@boundary
def show(source: Any, selector: str | None = None, /, *, stats: bool = False, activations: bool = False) -> "Listing":
    """The names in a model or a file that a patch can address, with shape, dtype and the range of values.

    Args:
        source: a Keras model or layer, a path of a file, or a `kpatch.checkpoint.Checkpoint`.
        selector: lists only the matching variables, or those of the layer that it names: `"conv1"`, `"**.kernel"`.
        stats: also the standard deviation, and the numbers of zeros, NaN and infinities.
        activations: the activations of a model, with what its graph knows of their shapes, and no variables:
            `"conv1"`, `"**.output"`. Of a file, Keras builds the model, without values.

    Returns:
        A `Listing`. Printed, or as the last line of a notebook's cell, it is a table.

    Raises:
        PatchSyntaxError: `selector` is not a selector.
        ResolutionError: no variable, or no activation, matches it.
        FileError: the file cannot be read; or its activations are asked for, and it has no architecture.
        UnsupportedError: statistics of activations.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu", name="head")])
        >>> kpatch.show(model).paths
        ('head.kernel', 'head.bias')
        >>> kpatch.show(model, "head.b*").rows[0].shape
        (3,)
        >>> [(row.path, row.shape) for row in kpatch.show(model, activations=True).rows]
        [('head.output', (None, 3))]
    """
    wanted = None if selector is None else selector_of(selector)
    if activations:
        if stats:
            raise UnsupportedError("activations have values only while the model runs; leave out stats (--stats)")
        return Listing(_activations(source, wanted), None)
    if isinstance(source, (str, os.PathLike)):
        source = Checkpoint(source)
    if not isinstance(source, Checkpoint):
        source = ModelArrays(source)
    return Listing.of(source, selected(source, wanted), stats)


def selector_of(text: str) -> ast.Selector:
    """The selector in a text: the left side of a statement, without an index.

    Raises:
        PatchSyntaxError: the text is something else, or no text.
    """
    examples = "examples are conv1, conv1.kernel, layers[0].bias"
    given: Any = text
    if not isinstance(given, str):
        raise PatchSyntaxError(f"a selector is a text behind the model; {examples}. Received: {reprlib.repr(text)}")
    selector = parse_selector(given)
    if selector is None:
        raise PatchSyntaxError(f"not a selector: {text!r}; {examples}")
    return selector


class Listed:
    """A name, and its values, which are read when they are first asked for.

    Attributes:
        path: the name.
        shape: the lengths.
        dtype: the dtype, and what is stored if that is something else: `float32 of int8 codes`.
    """

    def __init__(self, path: str, array: Any, dtype: str) -> None:
        self.path = path
        self.shape = tuple(array.shape)
        self.dtype = dtype
        self._array = array

    @property
    def nbytes(self) -> int:
        """The bytes that are read for the statistics, from a file."""
        return getattr(self._array, "nbytes", 0)

    @cached_property
    def statistics(self) -> "Statistics":
        return Statistics(self._array)

    def to_dict(self, more: bool = False) -> dict[str, Any]:
        """The name as data; `more` adds what `stats=True` does."""
        shape = list(self.shape)
        return {"path": self.path, "shape": shape, "dtype": self.dtype, **self.statistics.to_dict(more)}


@dataclass(frozen=True)
class ListedActivation:
    """The name of an activation.

    Attributes:
        path: the name.
        shape: the lengths, `None` for one that the graph does not know; `None` if it knows nothing.
        dtype: the dtype.
    """

    path: str
    shape: tuple[int | None, ...] | None
    dtype: str

    def to_dict(self, more: bool | None = None) -> dict[str, Any]:
        return {**asdict(self), "shape": None if self.shape is None else list(self.shape)}


class Listing(Shown):
    """The names in a model or a file, made by `kpatch.show`.

    Attributes:
        rows: a `Listed` for each name; of activations a `ListedActivation`.
    """

    def __init__(self, rows: Iterable[Any], more: bool | None) -> None:
        self.rows = tuple(rows)
        self._more = more

    @classmethod
    def of(cls, source: Any, found: Iterable[tuple[str, Any]], more: bool) -> "Listing":
        return cls((Listed(name, array, _dtype(source, array)) for name, array in found), more)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(row.path for row in self.rows)

    def overview(self) -> Overview:
        if self._more is None:
            names = (Column("name"), Column("shape"), Column("dtype"))
            known = [(row.path, "?" if row.shape is None else shape(row.shape), row.dtype) for row in self.rows]
            return Overview(names, known, every=True)
        progress.expect(sum(row.nbytes for row in self.rows))
        numbers = Statistics.HEADINGS + Statistics.MORE * self._more
        columns = (Column("name"), Column("shape"), Column("dtype", drop=1), *(Column(each, True) for each in numbers))
        rows = [(row.path, shape(row.shape), row.dtype, *row.statistics.row(self._more)) for row in self.rows]
        return Overview(columns, rows, every=True)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [row.to_dict(self._more) for row in self.rows]}

    def __repr__(self) -> str:
        return str(self)


def _activations(source: Any, selector: ast.Selector | None) -> list[ListedActivation]:
    """The activations of a model, or of the model in a file: all, or those that a selector means."""
    if isinstance(source, (str, os.PathLike)):
        source = Checkpoint(source)
    from keras.layers import InputLayer

    from kpatch.inside import shapes

    names = index(source.architecture() if isinstance(source, Checkpoint) else source)
    found = []
    for node, kind, inner in _every(names, names.nodes) if selector is None else _meant(names, selector):
        if not isinstance(node.item, InputLayer):
            known, dtype = shapes.known(node.item, kind, inner) or (None, node.item.compute_dtype)
            found.append(ListedActivation(spelled([*node.keys(), kind, *inner]), known, dtype))
    return found


def _every(names: Any, nodes: Iterable[Any]) -> Iterator[tuple[Any, str, tuple]]:
    """The activations of layers; not the output of the whole model, which is that of a layer."""
    import keras

    for node in nodes:
        if node.kind == LAYER and not (node is names.root and isinstance(node.item, keras.Model)):
            sides = [kind for kind in attention.SIDES if attention.has(node.item, kind)]
            yield from ((node, kind, ()) for kind in ("output", *sides))


def _meant(names: Any, selector: ast.Selector) -> Iterable[tuple[Any, str, tuple]]:
    """The activations that a selector means; or those of the layers that it names and, without a glob, inside them."""
    found = []
    for each in selector.alternatives:
        nodes, kind, inner = names.activations(each)
        means = [(node, kind, inner) for node in nodes]
        if not nodes:
            forms = names.forms(each, keys_of(each))
            layers = [node for form in forms for node in names.nodes_before([*form, "output"])]
            if not each.is_glob:
                within = [[*node.keys(), ANY_DEPTH, "output"] for node in layers]
                layers = [node for keys in within for node in names.nodes_before(keys)]
            means = list(_every(names, layers))
        if not means:
            near = nearest(str(each), names.layer_names())
            raise ResolutionError(f"no layer or activation '{each}'" + (f"; did you mean '{near}'?" if near else ""))
        found += means
    return dict.fromkeys(found)


def selected(source: Any, selector: ast.Selector | None) -> list[tuple[str, Any]]:
    """Pairs of a name and an `Array`: all, or those that match a selector, or those of the layer that it names."""
    if selector is None:
        return source.named()
    return list(dict([pair for each in selector.alternatives for pair in _selected(source, each)]).items())


def _selected(source: Any, selector: ast.Selector) -> list[tuple[str, Any]]:
    try:
        return [(entry.path, source.meant(entry)) for entry in source.find_all(selector)]
    except ResolutionError:
        nodes = source.index.nodes_ending(keys_of(selector), counted=True)
        layers = [f".{selector}.", *[f".{spelled(node.keys())}." for node in nodes]]
        found = [pair for pair in source.named() if any(layer in f".{pair[0]}" for layer in layers)]
        if not found:
            raise
        return found


def _dtype(source: Any, array: Any) -> str:
    """The dtype of an array as `kpatch show` tells it: `float32 of int8 codes`; `int8 codes` if Keras's layers are not
    known, whose variables are int8 if they are quantised."""
    if told := getattr(array, "told", None):
        return f"{array.dtype} of {told}"
    bare = isinstance(source, Checkpoint) and source.index is source.own
    codes = bare and array.dtype == "int8" and f"/{array.path}".rpartition("/")[0].endswith("/vars")
    return f"{array.dtype} codes" if codes else array.dtype


class Statistics:
    """The range, mean and standard deviation of an array, and its numbers of 0, NaN and infinities; read in blocks."""

    HEADINGS = ("min", "mean", "max")
    MORE = ("std", "zeros", "nan", "inf")

    def __init__(self, array: Any) -> None:
        unread = isinstance(array, Opaque) or getattr(array, "is_spread", False)
        self.size = 0 if unread else array.size
        self.low: Any = np.inf
        self.high: Any = -np.inf
        self.sum = self.squares = 0.0
        self.zeros = self.nans = self.infinite = 0
        with np.errstate(all="ignore"):
            for _, block in array.blocks() if self.size else ():
                self._add(block)
                progress.advance(block.nbytes)

    def _add(self, block: np.ndarray) -> None:
        self.zeros += block.size - np.count_nonzero(block)
        wide = block if block.dtype.kind in "iub" else block.astype("float64")
        self.low, self.high = np.minimum(self.low, wide.min()), np.maximum(self.high, wide.max())
        self.sum += float(wide.sum(dtype="float64"))
        self.squares += float(np.square(wide, dtype="float64").sum())
        if wide.dtype.kind == "f":
            self.nans += int(np.isnan(wide).sum())
            self.infinite += int(np.isinf(wide).sum())

    def row(self, more: bool) -> tuple[str, ...]:
        if not self.size:
            return ("-",) * (3 + 4 * more)
        row = (f"{self.low:.6g}", f"{self.mean:.6g}", f"{self.high:.6g}")
        if not more:
            return row
        return (*row, f"{self.deviation:.6g}", f"{self.zeros:,}", f"{self.nans:,}", f"{self.infinite:,}")

    @property
    def mean(self) -> float:
        return self.sum / self.size

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return np.sqrt(max(0.0, self.squares / self.size - self.mean**2)) if np.isfinite(self.mean) else np.nan

    def to_dict(self, more: bool) -> dict[str, Any]:
        """The statistics as data; `None` for numbers of an array without entries."""
        names = self.HEADINGS + self.MORE * more
        if not self.size:
            return dict.fromkeys(names)
        values = (self.low, self.mean, self.high, self.deviation, self.zeros, self.nans, self.infinite)
        return {name: number(value) for name, value in zip(names, values, strict=False)}
