"""Activations by name, as `record` takes them: a mapping, and a value for `$names`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kpatch import backends
from kpatch.errors import BindingError, PatchError, ResolutionError, ShapeError
from kpatch.inside.outputs import Keys
from kpatch.names.bindings import Lender
from kpatch.names.tree import LayerNode
from kpatch.syntax import ast, parse_selector
from kpatch.values.dtypes import Value, dtype_name, tensor
from kpatch.values.numerics import from_numpy
from kpatch.view.overview import Column, Overview, shape
from kpatch.view.shown import Shown

SHOWN = 8  # activations that a text or an error lists


class Spot(NamedTuple):
    """A tensor that is recorded: of which layer, of its "input" or "output", and which of several."""

    layer: int  # its id
    kind: str
    keys: Keys


class Tape:
    """What was recorded.

    Attributes:
        names: the place of each name, in the order of the calls.
        taken: what each place gave, in the order of the calls.
        first: the places that the name of the layer's output alone means, though it has others.
        stack: the calls of a place are given as one tensor.
    """

    def __init__(self, stack: bool = False) -> None:
        self.names: dict[str, Spot] = {}
        self.taken: dict[Spot, list[Any]] = {}
        self.first: set[Spot] = set()
        self.stack = stack

    def finish(self) -> None:
        """Completes what was recorded, before it is looked at."""

    def given(self, place: Spot, name: str) -> Any:
        """What the calls gave: a tensor, or a list of several."""
        taken = self.taken[place]
        if self.stack:
            return _stacked(taken, name)
        return taken[0] if len(taken) == 1 else list(taken)

    def of_layer(self, layer: Any, kind: str, inner: Keys = ()) -> list[Spot]:
        """The places of an activation: the one with the keys, the first one by convention, or all below the keys."""
        found = [p for p in self.taken if p[:2] == (id(layer), kind) and p.keys[: len(inner)] == inner]
        if not found and inner == ("0",):
            found = [p for p in self.taken if p == Spot(id(layer), kind, ())]  # which the layer gave alone
        return [p for p in found if p.keys == inner or (not inner and p in self.first)] or found

    def call(self, number: int) -> "Tape":
        """One call of each layer that was called so often."""
        one = Tape()
        one.first = self.first
        for name, place in self.names.items():
            taken = self.taken[place]
            if -len(taken) <= number < len(taken):
                one.names[name], one.taken[place] = place, [taken[number]]
        return one

    def listed(self, places: Iterable[Spot]) -> str:
        held = set(places)
        return _shortened([name for name, place in self.names.items() if place in held])

    def calls(self, place: Spot | None = None) -> str:
        """How many calls there were, of one place or of the one with the most."""
        count = max(map(len, self.taken.values()), default=0) if place is None else len(self.taken[place])
        return f"{count} call{'s' * (count != 1)}"


class Recorded(Shown, Mapping[str, Any]):
    """Activations by name: what `Recording.call` returns, and what a `Recording` is.

    A name is a selector, and a layer that gives several tensors has a name for each, `lstm.output.1`. Another
    selector that means one of them will do as well.
    """

    def __init__(self, index: Any, tape: Tape) -> None:
        self._index = index
        self._tape = tape

    def __getitem__(self, name: str) -> Any:
        self._tape.finish()
        place = self._tape.names.get(name)
        if place is None:
            selector = selector_of(name)
            try:
                place = self._meant(selector)
            except PatchError as error:
                raise error.locate(selector.span, name) from None
        return self._tape.given(place, name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except ResolutionError:
            return default

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        self._tape.finish()
        return iter(list(self._tape.names))

    def __len__(self) -> int:
        self._tape.finish()
        return len(self._tape.names)

    def _rows(self) -> Iterator[tuple[str, list[int] | None, str, int]]:
        """Of each name the shape, if all calls gave the same, the dtype and the number of calls."""
        self._tape.finish()
        for name, place in self._tape.names.items():
            taken = self._tape.taken[place]
            shapes = {tuple(x.shape) for x in taken}
            yield name, list(shapes.pop()) if len(shapes) == 1 else None, dtype_name(taken[0].dtype), len(taken)

    def overview(self) -> Overview:
        columns = Column("name"), Column("shape"), Column("dtype"), Column("calls", right=True)
        rows = []
        for name, lengths, dtype, calls in self._rows():
            rows.append((name, "several" if lengths is None else shape(lengths), dtype, f"{calls:,}"))
        return Overview(columns, rows)

    def to_dict(self) -> dict[str, Any]:
        """What was recorded, without the values, as data that `json.dumps` takes; the shape is null if it differs."""
        names = "path", "shape", "dtype", "calls"
        return {"rows": [dict(zip(names, row, strict=True)) for row in self._rows()]}

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        self._tape.finish()
        told = [f"{name} {_told(self._tape.taken[place])}" for name, place in self._tape.names.items()]
        return f"<{type(self).__name__} of {self._tape.calls()}: {_shortened(told)}>"

    def __kpatch_lender__(self, name: str) -> Lender:
        """What a `$name` is that stands for this recording."""
        self._tape.finish()
        return _Lent(name, self)

    def _meant(self, selector: ast.Selector) -> Spot:
        """The one place that a selector means."""
        if str(selector) in self._tape.names:
            return self._tape.names[str(selector)]
        nodes, kind, inner = self._index.activations(selector)
        found = [place for node in nodes for place in self._tape.of_layer(node.item, kind, inner)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ResolutionError(f"'{selector}' means {len(found)} tensors: {self._tape.listed(found)}")
        raise ResolutionError(
            f"'{selector}' was not recorded", notes=[f"recorded: {self._tape.listed(self._tape.taken)}"]
        )

    def _counterparts(self, node: LayerNode, kind: str, inner: Keys) -> list[Spot]:
        """The places of an activation of the model that is patched: of the same layer, or of one of the same path."""
        if found := self._tape.of_layer(node.item, kind, inner):
            return found
        path = node.keys()
        others = [other for other in self._index.nodes if other.item is not None and other.keys() == path]
        return [place for other in others for place in self._tape.of_layer(other.item, kind, inner)]


class _Lent(Lender):
    """A recording under a `$name`."""

    def __init__(self, name: str, recorded: Recorded) -> None:
        self._name = name
        self._recorded = recorded
        self._values: dict[Spot, Value] = {}

    def place(self, node: Any, target: Any) -> Value:
        path = node.path
        if path is None:
            message = f"'${self._name}' is a recording, not a tensor; name an activation of it, as in '${self._name}."
            message += f"{next(iter(self._recorded), 'dense_1.output')}'"
            raise BindingError(message, notes=[f"'${self._name}._' is the activation at the target's own place"])
        place = self._own(target) if isinstance(path, ast.Implied) else self._recorded._meant(path)
        if place not in self._values:
            self._values[place] = self._value(place, f"${self._name}.{path}")
        return self._values[place]

    def _own(self, target: Any) -> Spot:
        node, kind = getattr(target, "node", None), getattr(target, "kind", None)
        if node is None or kind is None:
            message = f"'${self._name}._' is the activation at the target's place, and here no activation is the target"
            raise BindingError(message)
        found = self._recorded._counterparts(node, kind, target.inner)
        if len(found) != 1:
            tape = self._recorded._tape
            count = f"{len(found)} tensors" if found else "no activation"
            notes = [f"recorded: {tape.listed(found or tape.taken)}"]
            raise ResolutionError(f"'${self._name}' has {count} at '{target.path}'", notes=notes)
        return found[0]

    def _value(self, place: Spot, name: str) -> Value:
        import keras

        tape = self._recorded._tape
        if len(tape.taken[place]) > 1 and not tape.stack:
            message = f"'{name}' was recorded in {tape.calls(place)}; bind one of them, such as {self._name}.call(0)"
            raise ResolutionError(message)
        value = tape.given(place, name)
        return tensor(value if keras.ops.is_tensor(value) else from_numpy(value))


def selector_of(text: str) -> ast.Selector:
    """The selector that is all of a text.

    Raises:
        PatchSyntaxError: the text is something else.
    """
    if not isinstance(text, str):
        raise BindingError(f"an activation is named by a text, 'dense_1.output'. Received: {text!r}")
    selector = parse_selector(text)
    if selector is None:
        raise BindingError(f"an activation is named by a selector, 'dense_1.output'. Received: {text!r}")
    return selector


def _told(taken: list[Any]) -> str:
    shapes = list(dict.fromkeys(tuple(x.shape) for x in taken))
    shown = str(shapes[0]) if len(shapes) == 1 else f"of {len(shapes)} shapes"
    return f"{shown} {dtype_name(taken[0].dtype)}"


def _stacked(taken: list[Any], name: str) -> Any:
    import keras

    shapes = list(dict.fromkeys(tuple(x.shape) for x in taken))
    if len(shapes) > 1:
        message = f"the calls of '{name}' cannot be stacked: their shapes are {', '.join(map(str, shapes[:SHOWN]))}"
        raise ShapeError(message, notes=["without stack=True they are a list, for keras.ops.concatenate"])
    host = isinstance(taken[0], np.ndarray) and not backends.current().arrays_are_tensors
    return np.stack(taken) if host else keras.ops.stack(taken)


def _shortened(items: list[str]) -> str:
    return ", ".join([*items[:SHOWN], *[f"{len(items) - SHOWN} more"] * (len(items) > SHOWN)]) or "nothing"
