"""What the names of a patch mean: variables of the model, the implied tensor `_`, and what was handed in."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kpatch.errors import LimitError, ResolutionError
from kpatch.functions import TABLE
from kpatch.names.index import find_every
from kpatch.names.misses import excludes_nothing, leave_nothing
from kpatch.names.sums import narrow
from kpatch.syntax import ast, habits
from kpatch.values.dtypes import Value, dtype_name

MAX_MATCHES = 2**18  # variables that the globs of a patch match, all statements together
MAX_WALK = 2**20  # layers that its globs are looked up in, times their parts; each glob is looked up once


@dataclass(eq=False, slots=True)
class Place:
    """A tensor that a statement can read or write: a variable, or the implied tensor `_`.

    Attributes:
        path: what it is called in tables and errors.
        entry: the `resolve.Entry` of a variable of the model; `None` for others.
        weight: the `codecs.Weight` that the variable stores, of which shape and dtype are; `None` if it is the tensor.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    variable: Any = None
    entry: Any = None
    weight: Any = None

    @property
    def parts(self):
        """What makes the value: the variables, or the place itself if it is none of a model."""
        if self.weight is not None:
            return self.weight.variables
        return (self,) if self.variable is None else (self.variable,)

    def unknown(self):
        """The place's value while planning."""
        return unknown(self.path, self.dtype, self.shape)

    def __repr__(self):
        return f"{self.path} {self.shape} {self.dtype}"


def place_of(variable, path, entry=None):
    """The `Place` of a Keras variable, of the dtype that it holds: jax keeps int64 as int32, torch uint32 as int64."""
    held = getattr(variable, "_value", None)
    dtype = variable.dtype if held is None else dtype_name(held.dtype)
    return Place(path, tuple(variable.shape), dtype, variable, entry)


def place_of_entry(entry, path):
    """The `Place` of a variable of a model: of the weight that its layer computes with."""
    return place_of_weight(entry.variable, path, entry, entry.weight)


def place_of_weight(variable, path, entry=None, weight=None):
    """The `Place` of the weight that a Keras variable stores; without one, of the variable, its float8 as float32."""
    weight = weight or narrow(variable)
    if weight is None:
        return place_of(variable, path, entry)
    return Place(path, weight.shape, weight.dtype, variable, entry, weight)


def unknown(path, dtype, shape):
    """The value of a tensor while planning; each length that is not known has a name of its own."""
    axes = tuple((path, axis) if length is None else None for axis, length in enumerate(shape))
    return Value(dtype, shape, axes=axes if None in shape else ())


class Names:
    """What a name of a patch means. `value` serves references and bindings alike.

    Args:
        bindings: the `bindings.Bindings` of this use.

    Attributes:
        implied: the `Place` that `_` is, or `None`.
    """

    implied: Place | None = None

    def __init__(self, bindings):
        self.bindings = bindings

    @property
    def models(self) -> Sequence[Any]:
        """The models whose variables are named."""
        return ()

    @property
    def named(self) -> Iterable[Place]:
        """The variables of models that were looked up so far, those of models handed in among them."""
        return self.bindings.named

    def given(self, bindings):
        """The same names, with other values handed in."""
        names = copy.copy(self)
        names.bindings = bindings
        return names

    def place(self, selector):
        """The one `Place` of a selector without globs, or of `None` for the implied tensor."""
        raise NotImplementedError

    def places(self, selector):
        """All `Place`s of a target's selector."""
        return [self.place(selector)]

    def matches(self, selector, exclusions=()):
        """Pairs of a number and a `Place`, of all that a target means without what is excluded; numbered before that.

        Raises:
            ResolutionError: an exclusion takes nothing from the target, or all of them leave nothing of it.
        """
        return list(enumerate(self.places(selector)))

    def count(self, matches):
        """Counts further matches of globs; `LimitError` if they are too many."""

    def meaning(self, node, target):
        """What a `Reference` or a `Binding` stands for: a `Place`, or a `Value`.

        Args:
            target: the `Place` that the statement writes to, which `$donor._` depends on, or `None`.
        """
        if type(node) is ast.Reference:
            return self._referred(node)
        return self.bindings.meaning(node, target)

    def _referred(self, node):
        """The place that a name in an expression means; an error says what its writer may have meant."""
        try:
            return self.place(node.selector)
        except ResolutionError as error:
            parts = [part.value for part in node.selector.parts if isinstance(part, ast.Name)]
            if "did you mean" not in error.message and len(parts) == len(node.selector.parts):
                habits.explain(error, parts, TABLE)
            raise


class ModelNames(Names):
    """The names of a model. One variable is one place, however it is named."""

    def __init__(self, index, bindings):
        super().__init__(bindings)
        self.index = index
        self._by_selector = {}
        self._by_glob = {}
        self._by_variable = {}
        self._matches = self._walk = 0

    @property
    def models(self):
        return self.index.models

    @property
    def named(self):
        return [*self._by_variable.values(), *self.bindings.named]

    def place(self, selector):
        place = self._by_selector.get(selector)
        if place is None:
            if selector is None:
                raise ResolutionError(
                    "'_' is no variable of a model",
                    notes=["name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit"],
                )
            place = self._by_selector[selector] = self.of_entry(self.index.find(selector))
        return place

    def places(self, selector):
        if selector is None or not selector.is_glob:
            return [self.place(selector)]
        places = self._of_glob(selector)
        self.count(len(places))
        return places

    def count(self, matches):
        self._matches += matches
        if self._matches > MAX_MATCHES:
            raise LimitError(f"the globs of a patch match at most {MAX_MATCHES} variables, all statements together")

    def _of_glob(self, selector):
        places = self._by_glob.get(selector)
        if places is None:
            found = map(self.of_entry, self._entries(selector))
            places = self._by_glob[selector] = list(dict.fromkeys(found))
        return places

    def _entries(self, selector):
        self._walk += len(self.index.nodes) * selector.walks * len(selector.parts)
        if self._walk > MAX_WALK:
            raise LimitError(f"the globs of a patch take at most {MAX_WALK} steps, in all layers for all their parts")
        return find_every(self.index, selector)

    def matches(self, selector, exclusions=()):
        matches = super().matches(selector)
        taken = self._excluded(selector, exclusions) if exclusions else ()
        return [match for match in matches if match[1] not in taken] if taken else matches

    def _excluded(self, selector, exclusions):
        """The places that exclusions take from those of a target's selector."""
        places = self._of_glob(selector)
        taken = set()
        for each in ast.alternatives_of(exclusions):
            self.count(len(places))
            entries = self._excluding(each)
            variables = {id(self.variable_of(entry)) for entry in entries}
            every = getattr(each.parts[-1], "pattern", None) in ("*", "**")  # means scales and factors, too
            found = {place for place in places if self._is_of(place, variables, every)}
            if not found:
                raise excludes_nothing(each, selector, entries)
            taken |= found
        if len(taken) == len(places):
            raise leave_nothing(selector, exclusions)
        return taken

    def _excluding(self, exclusion):
        try:
            return self._entries(exclusion)
        except ResolutionError as error:
            if not exclusion.is_glob:
                error.notes = (*error.notes, f"'{exclusion}.**' excludes all variables of a layer")
            raise error.locate(exclusion.span) from None

    def _is_of(self, place, variables, every):
        weight = place.entry.part_of if every else None
        return id(place.variable) in variables or (weight is not None and id(self.variable_of(weight)) in variables)

    def variable_of(self, entry):
        """What the place of an entry has as its variable."""
        return entry.variable

    def of_entry(self, entry):
        """The `Place` of a variable of the model."""
        key = id(entry.variable), entry.weight is None  # `.stored` is a place of its own
        if key not in self._by_variable:
            self._by_variable[key] = place_of_entry(entry, self.index.path(entry))
        return self._by_variable[key]


class TensorNames(Names):
    """The one name of `kpatch.edit`, of a variable, and of what holds a patch of one tensor, the `owner`: `_`."""

    def __init__(self, implied, bindings, owner="kpatch.edit"):
        super().__init__(bindings)
        self.implied = implied
        self.owner = owner

    def place(self, selector):
        if selector is not None:
            raise ResolutionError(f"no variable '{selector}': {self.owner} knows one tensor, '_'", span=selector.span)
        return self.implied
