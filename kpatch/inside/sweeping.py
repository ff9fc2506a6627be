"""`sweep`: an intervention for every combination of some values, and a number measured in the block of each."""

import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kpatch import backends
from kpatch.errors import BindingError, FileError, PatchSyntaxError
from kpatch.inside.intervening import Intervention
from kpatch.names import keywords
from kpatch.names.bindings import foreign
from kpatch.names.patches import as_patch, bound, together
from kpatch.names.paths import as_path
from kpatch.syntax import Patch, ast
from kpatch.values.tensors import to_numpy
from kpatch.view.data import number, numbers
from kpatch.view.overview import Column, Overview
from kpatch.view.pictures import Map, heat_map, nearest_to_zero
from kpatch.view.shown import Shown

if TYPE_CHECKING:
    import keras

NUMBER = "{:.4g}".format


@keywords.checked("kpatch.sweep")
def sweep(
    model: "keras.Layer",
    patch: str,
    /,
    *,
    metric: Callable[[], Any],
    axes: Mapping[str, Sequence[Any]] | None = None,
    resume: "str | os.PathLike[str] | Sweep | None" = None,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> "Sweep":
    """Measures something under a patch, for every combination of the values of its axes.

    Each combination is a block of `kpatch.intervene`, in which `metric()` is called. Those of one text are compiled
    twice at most. All are checked before the first runs.

    Args:
        model: a built Keras model or layer.
        patch: a text. In a name `$l` is a part of the name, `block_$l.output` or `block_${l}_conv.output`; elsewhere it
            is a `$name` as in any patch.
        metric: a function without arguments that runs the model, and returns a number, or an array of one shape.
        axes: `{name: values}`, in the order of the axes of the result; those of keywords come after.
        resume: the path of a file, which keeps what has been measured. If it exists, only the rest is measured. Or an
            earlier `Sweep` of the same patch and bindings: what it measured of the same values is taken from it. That
            the model and the metric are the same is not looked at.
        expect: how many variables and activations the patch must match, each time.
        bindings: the values of the patch's other `$names`.
        **named: a `range` is an axis, `l=range(12)`; anything else the value of a `$name`.

    Returns:
        A `Sweep`, an array with names for its axes.

    Raises:
        PatchError: for anything wrong with the patch, for any combination; an axis is not used; `resume` is of another
            sweep.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> x = keras.ops.ones((1, 4))
        >>> kpatch.sweep(
        ...     model, "dense_1.output[:, $n] = $v", metric=lambda: model(x)[0, 1], n=range(3), axes={"v": [5.0, 7.0]}
        ... ).values[:, 1].tolist()
        [5.0, 7.0]
    """
    backends.current().refuse_in_dynamo("kpatch.sweep")
    if not callable(metric):
        raise BindingError(f"metric= is a function that runs the model. Received: metric={metric!r}")
    swept = together(axes, {name: value for name, value in named.items() if isinstance(value, range)}, "axes")
    values = together(bindings, {name: value for name, value in named.items() if not isinstance(value, range)})
    runs = _Runs(model, patch, {name: _listed(name, each) for name, each in swept.items()}, values, expect)
    runs.check()
    result = Sweep(runs.axes, patch, {name: _key_of(value) for name, value in values.items()})
    if isinstance(resume, Sweep):
        result._take(resume)
    path = None if resume is None or isinstance(resume, Sweep) else as_path(resume)
    if path is not None and path.exists():
        result._load(path)
    left = [place for place in runs.places() if place not in result._done]
    for place in _shown(left):
        with runs.intervention(place):
            result._enter(place, metric())
        if path is not None:
            result._save(path)
    return result


class Sweep(Shown):
    """What a sweep measured. `kpatch.sweep` makes it.

    Attributes:
        axes: the values of each axis, `{name: values}`.
        values: a float64 array, with an axis for each of `axes`, and those of what `metric` returned.
    """

    def __init__(self, axes: dict[str, list[Any]], patch: str, bindings: dict[str, str]) -> None:
        self.axes = axes
        self.values = np.full([len(values) for values in axes.values()], np.nan)
        self._patch = patch
        self._bindings = bindings  # a key of each value
        self._done: set[tuple[int, ...]] = set()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)

    def __repr__(self) -> str:
        shape = " x ".join(f"{name}: {len(values)}" for name, values in self.axes.items())
        return f"<Sweep of {shape}>"

    def to_dict(self) -> dict[str, Any]:
        """The patch, the values of each axis (as texts if they are no numbers), and what was measured, as lists."""
        axes = {name: [_plain(value) for value in values] for name, values in self.axes.items()}
        return {"patch": self._patch, "axes": axes, "values": numbers(self.values.tolist())}

    def overview(self) -> Overview:
        columns = (*(Column(name, right=index > 0) for index, name in enumerate(self.axes)), Column("value", True))
        places = itertools.product(*map(range, map(len, self.axes.values())))
        rows = [(*self._labels(place), self._told(self.values[place])) for place in places]
        return Overview(columns, rows)

    def _labels(self, place: tuple[int, ...]) -> list[str]:
        return [str(values[index]) for index, values in zip(place, self.axes.values(), strict=True)]

    def _told(self, value: Any) -> str:
        return NUMBER(value) if np.ndim(value) == 0 else f"{NUMBER(np.min(value))} … {NUMBER(np.max(value))}"

    def plot(self) -> Any:
        """A figure of matplotlib: a heat map of two axes, or a line of one.

        Raises:
            BindingError: there are more axes.
            ModuleNotFoundError: matplotlib is not installed.
        """
        return heat_map(self.axes, self._flat("plot() draws"))

    def _flat(self, what: str) -> np.ndarray:
        if self.values.ndim != len(self.axes) or self.values.ndim > 2:
            raise BindingError(
                f"{what} one axis or two; this is an array of shape {self.values.shape}: take a part of it"
            )
        return self.values

    def _repr_html_(self) -> str:
        html = super()._repr_html_()
        if self.values.ndim != len(self.axes) or self.values.ndim > 2:
            return html
        picture = Map((1, *self.values.shape)[-2:])
        values = self.values.reshape(-1)
        picture.add(np.arange(values.size), np.nan_to_num(values - nearest_to_zero(values)))
        told = f"{NUMBER(np.nanmin(self.values))} to {NUMBER(np.nanmax(self.values))}"
        return picture.html(" by ".join(self.axes), told) + html

    def _enter(self, place: tuple[int, ...], measured: Any) -> None:
        import keras

        try:
            value = np.asarray(keras.ops.convert_to_numpy(measured) if keras.ops.is_tensor(measured) else measured)
        except ValueError:  # lists of several lengths
            value = np.array(None)
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            raise BindingError(f"metric= returns a number, or an array of numbers. Received: {measured!r}")
        shape = self.values.shape[: len(self.axes)]
        if not self._done:
            self.values = np.full((*shape, *value.shape), np.nan)
        if self.values.shape != (*shape, *value.shape):
            known = self.values.shape[len(shape) :]
            raise BindingError(f"metric= returned an array of shape {value.shape}, and one of shape {known} before")
        self.values[place] = value
        self._done.add(place)

    def _key(self) -> str:
        axes = {name: list(map(_key_of, values)) for name, values in self.axes.items()}
        return json.dumps([self._patch, axes, self._bindings], sort_keys=True)

    def _take(self, earlier: "Sweep") -> None:
        """Takes what an earlier sweep has measured of the same values."""
        ours, theirs = ((each._patch, each._bindings, list(each.axes)) for each in (self, earlier))
        if ours != theirs:
            raise BindingError("resume= is another sweep: its patch, its bindings, or the names of its axes, differ")
        known = [{_key_of(value): at for at, value in enumerate(values)} for values in earlier.axes.values()]
        there = [
            [at.get(_key_of(value)) for value in values] for at, values in zip(known, self.axes.values(), strict=True)
        ]
        for place in itertools.product(*map(range, map(len, there))):
            old: Any = tuple(at[index] for at, index in zip(there, place, strict=True))
            if old in earlier._done:
                self._enter(place, earlier.values[old])

    def _save(self, path: Path) -> None:
        """Replaces the file, in one step."""
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, key=np.array(self._key()), values=self.values, done=np.array(sorted(self._done)))
            Path(written).replace(path)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                key, values, done = str(file["key"]), file["values"], file["done"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise FileError(f"'{path}' is not the file of a sweep: {error}") from None
        if key != self._key():
            raise BindingError(
                f"'{path}' is of another sweep: its patch, bindings or axes differ; resume= takes another path"
            )
        self.values, self._done = values, set(map(tuple, done.tolist()))


class _Runs:
    """The interventions of a sweep."""

    def __init__(
        self, model: Any, text: str, axes: dict[str, list[Any]], bindings: dict[str, Any], expect: int | None
    ) -> None:
        given: Any = text
        if not isinstance(given, str):
            raise BindingError(f"kpatch.sweep takes a text, with '$l' in names. Received: {type(given).__name__}")
        self._model = model
        self._text = text
        self._bindings = bindings
        self._expect = expect
        self._in_names = [name for name in axes if _in_name(name).search(text)]
        self.axes = axes
        self._patches: dict[tuple, Patch] = {}
        if not axes:
            raise BindingError("kpatch.sweep has no axis; a range is one, as in l=range(12), or axes={'scale': [1, 2]}")
        if empty := next((name for name, values in axes.items() if not values), None):
            raise BindingError(f"the axis '{empty}' has no values")

    def places(self) -> Iterator[tuple[int, ...]]:
        """The combinations; those of one text one after another, as they are compiled together."""
        order = sorted(self.axes, key=lambda name: name not in self._in_names)
        for indices in itertools.product(*(range(len(self.axes[name])) for name in order)):
            at = dict(zip(order, indices, strict=True))
            yield tuple(at[name] for name in self.axes)

    def check(self) -> None:
        for place in self.places():
            self.intervention(place).dismiss()

    def intervention(self, place: tuple[int, ...]) -> Intervention:
        at = {name: values[index] for index, (name, values) in zip(place, self.axes.items(), strict=True)}
        patch = self._patch(at)
        named = {node.name for node in ast.walk(patch) if type(node) is ast.Binding}
        for name in self.axes:
            if name not in named and name not in self._in_names:
                raise BindingError(f"the axis '{name}' is not used: '${name}' is nowhere in the patch")
        values = {name: value for name, value in at.items() if name in named}
        return Intervention(self._model, *bound(patch, together(self._bindings, values)), self._expect)

    def _patch(self, at: dict[str, Any]) -> Patch:
        key = tuple(str(at[name]) for name in self._in_names)
        if key not in self._patches:
            text = self._text
            for name, value in zip(self._in_names, key, strict=True):
                text = value.join(_in_name(name).split(text))
            try:
                self._patches[key] = as_patch(text)
            except PatchSyntaxError as error:
                if begun := re.fullmatch(r"\$(\w+)", text[slice(*error.span or (0, 0))]):
                    hint = f"a name that begins so is written '${{{begun[1]}}}', with axes={{'{begun[1]}': [...]}}"
                    error.notes = (*error.notes, hint)
                raise
        return self._patches[key]


def _in_name(name: str) -> re.Pattern:
    """Where `$name` is a part of a name: in braces, behind a letter, a digit or a dot, or in `layers[$name]`."""
    name = re.escape(name)
    return re.compile(rf"\$\{{{name}\}}|(?<=[\w.*?])\${name}(?!\w)|(?<=layers\[)\${name}(?=\])")


def _shown(places: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The combinations, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return iter(places)
    from rich.console import Console
    from rich.progress import track

    return iter(track(places, "sweep", console=Console(stderr=True), transient=True))


def _listed(name: str, values: Any) -> list[Any]:
    """The values of an axis."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise BindingError(f"the axis '{name}' is a range or a list of values. Received: {values!r}")
    return list(values)


def _key_of(value: Any) -> str:
    """A value as a text that no other value has, unless it is an object that says little of itself."""
    import keras

    if isinstance(value, keras.Layer):
        return str([_key_of(each) for each in value.weights])
    if isinstance(value, Mapping):  # a recording
        return str({name: _key_of(value[name]) for name in value})
    if isinstance(value, (list, tuple)):
        return str(list(map(_key_of, value)))
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = value.value if isinstance(value, keras.Variable) else value
        array = to_numpy(value) if keras.ops.is_tensor(value) else foreign(value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    return repr(value)


def _plain(value: Any) -> Any:
    """A value of an axis as JSON has it."""
    return number(value) if isinstance(value, (bool, int, float, np.generic)) else str(value)
