"""Interventions of one form: where functions are compiled, the same patch with other values is compiled once.

The first intervention of a form compiles its values in, as constants. If another one has the same text and values of
the same kinds, its values lie in cells, which compiled functions read when they run, and all further ones put theirs
there. What cannot lie in a cell without a change of a bit, such as a number in the middle of an expression, is a part
of the form.
"""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.backends.base import Cell
from kpatch.errors import PatchError
from kpatch.inside.splitting import Part, Split
from kpatch.inside.tensor_patch import TensorPatch, cast_as, names_in_indices, plain
from kpatch.syntax import ast
from kpatch.values.dtypes import FLOATS, NUMPY, dtype_name

KEPT = 8  # forms of a model, the latest
DIRECT = ("=", "+=", "-=", "*=")  # `_ = $v` has the bits of the literal, whatever `$v` is

Specs = dict[str, tuple[tuple, str]]  # of `_`, and of the `$names` that are tensors: shape and dtype

_taking = threading.Lock()


def form_of(split: Split) -> "Form | None":
    """The form of an intervention, among those of its model; `None` if it shares nothing.

    That is so if it has values with gradients, or edits weights of which compiled functions hold the values.
    """
    backend = backends.current()
    if not split.parts or backend.records_gradients() or (split.weights and backend.compiles_weights_in):
        return None
    values = [value for part in split.parts for value in part.live.values()]
    if any(backend.is_traced(value) for value in values if not is_variable(value)):
        return None
    key = split.patch.source, *(_signature(part) for part in split.parts)
    with _taking:
        forms: OrderedDict = vars(split.index).setdefault("interventions", OrderedDict())
        form = forms.setdefault(key, Form())
        forms.move_to_end(key)
        while len(forms) > KEPT:
            forms.popitem(last=False)[1].drop()
    return form


class Form:
    """The interventions of one form.

    Attributes:
        shared: the calls of all but the first one, with cells; `False` if the values cannot lie in cells.
    """

    def __init__(self) -> None:
        self.shared: Any = None
        self._traces: Any = None  # of the first one, which compiled its values in
        self._specs: list[list[Specs]] = []  # what its parts were called with
        self._cells: list[dict[str, Cell]] = []

    def take(self, own: Any, split: Split, make: Callable[[list[Part]], Any]) -> Any:
        """The calls for a block: `own`, with the values compiled in, or those that are shared, with the values put."""
        with _taking:
            if own.traces.seen or self.shared is False:
                return own
            if self.shared is None:
                if self._traces is None or not self._traces.seen:
                    self._traces, self._specs = own.traces, own.specs
                    return own
                self._share(split, make)
            if not self.shared or self.shared.busy or not self._fits(split):
                return own
            for number, (part, cells) in enumerate(zip(split.parts, self._cells, strict=True)):
                for name, cell in cells.items():
                    cell.put(_in_cell(part, name, self._dtype(number)))
            self.shared.busy = True
            return self.shared

    def drop(self) -> None:
        if self.shared:
            self.shared.traces.spend()

    def _dtype(self, number: int) -> str:
        """The dtype that an activation has always had, or an empty text."""
        found = {specs["_"][1] for specs in self._specs[number]}
        return found.pop() if len(found) == 1 else ""

    def _share(self, split: Split, make: Callable[[list[Part]], Any]) -> None:
        """Makes the calls with cells."""
        parts = []
        for number, part in enumerate(split.parts):
            cells = {}
            for name in _varying(part):
                value = _in_cell(part, name, self._dtype(number))
                if value is None:
                    self.shared = False
                    return
                cells[name] = backends.current().cell(value)
            constants = {name: value for name, value in part.constants.items() if name not in cells}
            parts.append(dataclasses.replace(part, constants=constants, live={**part.live, **cells}))
            self._cells.append(cells)
        self.shared = make(parts)
        if not self._can_vary(parts, split):
            self.shared = False

    def _can_vary(self, parts: list[Part], split: Split) -> bool:
        """Whether the patches can be planned for values that are unknown."""
        for number, (part, cells) in enumerate(zip(parts, self._cells, strict=True)):
            edit = TensorPatch(part.patch, part.constants, "kpatch.intervene")
            for specs in self._specs[number]:
                values = {name: _in_cell(split.parts[number], name, specs["_"][1]) for name in cells}
                known = {name: (tuple(value.shape), _dtype_of(value)) for name, value in values.items()}
                if not _plans(edit, {**specs, **known}):
                    return False
        return True

    def _fits(self, split: Split) -> bool:
        """Whether the values fit all activations that were seen: an index, for example, is in range."""
        for number, part in enumerate(split.parts):
            check = TensorPatch(part.patch, part.constants, "kpatch.intervene")
            if not all(_plans(check, specs) for specs in (*self._specs[number], *self.shared.specs[number])):
                return False
        return True


def _plans(edit: TensorPatch, specs: Specs) -> bool:
    try:
        edit.plan(specs["_"], {name: specs[name] for name in edit.free})
    except PatchError:
        return False
    return True


def _varying(part: Part) -> list[str]:
    """The `$names` whose values can lie in cells."""
    indexed = {id(node): node.name for node in _bindings(part.patch, of_indices=True)}
    elsewhere = {node.name for node in _bindings(part.patch) if id(node) not in indexed}
    direct = _direct(part.patch)
    found = [name for name, value in part.live.items() if not is_variable(value)]
    for name, value in part.constants.items():
        value = plain(name, value)
        if name in indexed.values():
            found += [name] * (_is_integer(value) and name not in elsewhere)
        elif _is_floating(value) or (name in direct and _is_number(value)):
            found.append(name)
    return found


def _in_cell(part: Part, name: str, dtype: str) -> Any:
    """The value of a `$name`, as a cell holds it for an activation of a dtype; `None` if it cannot."""
    if name in part.live:
        return part.live[name]
    value = plain(name, part.constants[name])
    if name in names_in_indices(part.patch):
        return np.asarray(value, "int32")
    if _is_floating(value):
        return cast_as(value, dtype)
    if dtype not in FLOATS:
        return None
    with np.errstate(over="ignore"):
        return np.asarray(value, "float64").astype(NUMPY[dtype])


def _signature(part: Part) -> tuple:
    """What interventions of one form have in common in a part."""
    varying = set(_varying(part))
    values = {**part.constants, **part.live}
    kinds = [(name, _kind(values[name], name in varying)) for name in sorted(values)]
    reads = [(name, id(node.item), kind, inner) for name, (node, kind, inner, _) in sorted(part.reads.items())]
    return (id(part.node.item), part.kind, part.inner, str(part.patch), *kinds, *reads)


def _kind(value: Any, varies: bool) -> Any:
    if is_variable(value):
        return id(value)
    if varies:
        listed = isinstance(value, (list, tuple))
        return "varies", np.shape(value) if listed else tuple(getattr(value, "shape", ())), _dtype_of(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.name, value.shape, value.tobytes()
    return type(value), repr(value)


def _dtype_of(value: Any) -> str:
    return dtype_name(value.dtype) if hasattr(value, "dtype") else ""


def _bindings(patch: Any, of_indices: bool = False) -> Iterator[ast.Binding]:
    for statement in patch.statements:
        for node in ast.walk(statement):
            items = node.index or () if type(node) in (ast.Target, ast.Subscript) else ()
            for each in (part for item in items for part in ast.walk(item)) if of_indices else (node,):
                if type(each) is ast.Binding:
                    yield each


def _direct(patch: Any) -> set[str]:
    """The `$names` that stand nowhere but alone on the right of an edit."""
    edits = [statement for statement in patch.statements if type(statement) is ast.Edit and statement.op in DIRECT]
    alone = [edit.value for edit in edits if type(edit.value) is ast.Binding]
    others = {node.name for node in _bindings(patch) if not any(node is each for each in alone)}
    return {node.name for node in alone} - others


def _is_floating(value: Any) -> bool:
    """Whether it is an array of floats that is no literal, as those of float64 are."""
    return isinstance(value, np.ndarray) and value.dtype.name in FLOATS and value.dtype != "float64"


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iu")


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf"
    array = np.asarray(value)
    return array.dtype.kind in "if" and not isinstance(value, bool)


def is_variable(value: Any) -> bool:
    import keras

    return isinstance(value, keras.Variable)
