"""The variables of an optimizer by name: `optimizer.learning_rate`, and slots by the variable that they belong to.

`optimizer.momentum.dense_1.kernel` is the slot `momentum` of `dense_1.kernel`: after the name of the slot stands any
selector of variables of the model. An optimizer names nothing itself, so its names are these:

* of a slot: what the optimizer calls it where it makes it for a variable (`momentum`, `velocity`, `average`,
  `gradient_accumulator`), else the attribute that lists it (Adafactor's `r` and `c`);
* of another variable: its attribute, without the underscore that it may begin with, else its Keras name.

An optimizer in a `LossScaleOptimizer` has its names without more, those in a `MultiOptimizer` have their slots so.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from kpatch.errors import ResolutionError
from kpatch.names import globs
from kpatch.names.tree import Entry, LayerNode, spelled
from kpatch.syntax.ast import Glob, Name
from kpatch.syntax.spelling import nearest

NAME = KIND = "optimizer"


class OptimizerEntry(Entry):
    """A variable of an optimizer.

    Attributes:
        of: the entry of the variable that a slot belongs to; else `None`.
        keys: the chain of names: of the slot, or of the variable.
    """

    __slots__ = ("keys", "of")

    def __init__(self, variable, owner, optimizer, keys, of=None):
        self.variable, self.owner, self.order, self.routes = variable, owner, 0, []
        self.hidden = True
        self.weight = self.part_of = None
        self._stored = self
        self.keys, self.of = keys, of
        self._path = spelled([optimizer, *keys]) + ("" if of is None else f".{of.path}")


@dataclass(slots=True)
class State:
    """The variables of an optimizer.

    Attributes:
        kind: the name of its class.
        built: whether it has its slots.
        schedule: the class of its learning rate if that is no variable, else `None`.
        names: the variables that belong to no single variable of the model, by the chain of their names.
        slots: `{name: {id of a variable: its slot}}`.
    """

    kind: str
    built: bool
    schedule: str | None = None
    names: dict[tuple[str, ...], Any] = field(default_factory=dict)
    slots: dict[str, dict[int, Any]] = field(default_factory=dict)


def state_of(optimizer):
    """The `State` of an optimizer."""
    state = State(type(optimizer).__name__, optimizer.built)
    _add(state, optimizer, ())
    return state


def _add(state, optimizer, prefix):
    if inner := getattr(optimizer, "inner_optimizer", None):
        _add(state, inner, prefix)
    several = getattr(optimizer, "optimizers", None) or ()
    for number, each in enumerate(several):
        _add(state, each, (*prefix, "optimizers", str(number)))
    own = {id(variable) for variable in optimizer._variables}
    wraps = inner is not None or len(several) > 0
    if not wraps:
        own -= _add_slots(state, optimizer)
        rate = optimizer._learning_rate
        state.schedule = None if _is_variable(rate) else type(rate).__name__
    for name, value in vars(optimizer).items():
        if _is_variable(value) and id(value) in own:
            own.discard(id(value))
            if not (wraps and name == "_learning_rate"):  # those inside have theirs
                state.names.setdefault((*prefix, name.lstrip("_")), value)
    for variable in optimizer._variables:
        if id(variable) in own:
            state.names.setdefault((*prefix, variable.name), variable)


def _add_slots(state, optimizer):
    """Adds the slots; gives the ids of all that its lists hold."""
    owners, found = optimizer._trainable_variables, set()
    for attribute, slots in _lists_of_slots(optimizer):
        found |= set(map(id, slots))
        of = {id(owner): slot for owner, slot in zip(owners, slots, strict=True) if _belongs(slot, owner)}
        if of:
            state.slots.setdefault(_slot_name(attribute, slots, owners), {}).update(of)
    return found


def _lists_of_slots(optimizer):
    """The attributes of an optimizer that hold a slot, or `None`, for each of its variables."""
    owners = optimizer._trainable_variables
    for attribute, value in vars(optimizer).items():
        if attribute not in ("_trainable_variables", "_variables") and isinstance(value, list):
            known = [item for item in value if item is not None]
            if len(value) == len(owners) and known and all(map(_is_variable, known)):
                yield attribute, value


def optimizers_in(optimizer):
    """The optimizers that update variables: those inside of the ones that wrap others."""
    inner = getattr(optimizer, "optimizers", None) or [getattr(optimizer, "inner_optimizer", None)]
    return [optimizer] if inner == [None] else [each for one in inner for each in optimizers_in(one)]


def _belongs(slot, owner):
    """Adafactor holds a number in place of what it does not factor."""
    return slot is not None and (tuple(slot.shape) != () or tuple(owner.shape) == ())


def _slot_name(attribute, slots, owners):
    for slot, owner in zip(slots, owners, strict=True):
        prefix = f"{owner.path.replace('/', '_')}_"
        if slot is not None and slot.name.startswith(prefix):
            return slot.name[len(prefix) :]
    return attribute.lstrip("_")


def _is_variable(value):
    import keras

    return isinstance(value, keras.Variable)


def is_optimizer(value):
    import keras

    return isinstance(value, keras.optimizers.Optimizer)


class OptimizerNames:
    """What selectors mean that begin with an optimizer.

    Args:
        index: the `ModelIndex` of the model.
        state: the `State` of the optimizer, or `None` if the model has none.
        name: the attribute of the model that holds it.
    """

    def __init__(self, index: Any, state: State | None, name: str = NAME) -> None:
        self.index = index
        self.state: Any = state
        self.name = name
        self._node = LayerNode(None, KIND, index.root)  # the owner of its entries
        self._entries: dict[int, OptimizerEntry] = {}

    def entries(self):
        """The entries of all that has a name, slot after slot."""
        if self.state is None:
            return []
        found = [self._named(keys) for keys in self.state.names]
        return found + [self._slot(name, entry) for name in self.state.slots for entry in self._owners(name)]

    def find_all(self, selector):
        """The entries that a selector means.

        Raises:
            ResolutionError: it means none.
        """
        if self.state is None:
            raise self._error(selector, f": the model has no {self.name} until it is compiled")
        keys = tuple(part.value if type(part) is Name else part for part in selector.parts[1:])
        if keys in self.state.names:
            return [self._named(keys)]
        if not keys:
            message = f"'{selector}' is the optimizer of the model, not a variable"
            raise ResolutionError(message, span=selector.span, notes=[self._contents()])
        found = self._globbed(keys) if type(keys[0]) is Glob and len(keys) == 1 else []
        return found + self._slots(selector, keys, found)

    def _globbed(self, keys):
        matches = globs.matcher(keys[0].pattern)
        deep = keys[0] == globs.ANY_DEPTH
        return [self._named(each) for each in self.state.names if deep or (len(each) == 1 and matches(each[0]))]

    def _slots(self, selector, keys, found):
        first, rest = keys[0], selector.parts[2:]
        if first == globs.ANY_DEPTH:  # it matches the name of the slot, and goes on below
            names, rest = list(self.state.slots), (selector.parts[1], *rest)
        elif type(first) is Glob:
            matches = globs.matcher(first.pattern)
            names = [name for name in self.state.slots if matches(name)]
        else:
            names = [first] * (first in self.state.slots)
        if found and not (names and rest):
            return []
        if not names or not rest:
            raise self._no_slot(selector, first, names)
        below = replace(selector, parts=rest, span=(rest[0].span[0], selector.span[1]))
        owners = self.index.find_all(below)
        slots = [self._slot(name, entry) for name in names for entry in owners if self._has(name, entry)]
        if not slots and not found:
            shown = f"slot '{first}'" if type(first) is str else "such slot"
            raise self._error(selector, f": the optimizer has no {shown} of '{below}'")
        return slots

    def _no_slot(self, selector, first, names):
        at = selector.parts[1].span
        if names:
            example = next(iter(self._owners(names[0])), None)
            name = f"{self.name}.{names[0]}.{example.path if example else 'dense_1.kernel'}"
            message = f"'{selector}' is a slot of each variable; name the variable too, as in '{name}'"
            return ResolutionError(message, span=selector.span)
        if first == "learning_rate" and self.state.schedule and (first,) not in self.state.names:
            return self._error(
                selector, f": the learning rate is a schedule, {self.state.schedule}, and no variable", at
            )
        if not self.state.built and (first,) not in self.state.names:
            message = ": the optimizer has no slots until it is built, as its first step or its 'build' does"
            return self._error(selector, message, at, self._contents())
        if (first,) in self.state.names:
            return self._error(selector, f": '{self.name}.{first}' is one variable, with nothing below it", at)
        near = nearest(first, self._known()) if type(first) is str and self.index.may_suggest() else None
        better = spelled([self.name, near]) if near else None
        hint = f"; did you mean '{better}{''.join(f'.{part}' for part in selector.parts[2:])}'?" if near else ""
        return self._error(selector, hint, at, self._contents())

    def _known(self):
        return [*[keys[0] for keys in self.state.names], *self.state.slots]

    def _contents(self):
        own = ", ".join(spelled(keys) for keys in self.state.names)
        slots = ", ".join(spelled([name]) for name in self.state.slots)
        return f"{self.state.kind} has: {own}" + f"; and for each variable: {slots}" * bool(slots)

    def _error(self, selector, why, span=None, *notes):
        match = "matches" if selector.is_glob else ""
        message = f"no variable {match} '{selector}'{why}".replace("  ", " ")
        return ResolutionError(message, span=span or selector.span, notes=list(notes))

    def _named(self, keys):
        return self._entry(self.state.names[keys], keys)

    def _slot(self, name, of):
        return self._entry(self.state.slots[name][id(of.variable)], (name,), of)

    def _entry(self, variable, keys, of=None):
        if id(variable) not in self._entries:
            self._entries[id(variable)] = OptimizerEntry(variable, self._node, self.name, keys, of)
        return self._entries[id(variable)]

    def counterpart(self, entry, of):
        """What an `OptimizerEntry` of another optimizer is here, a slot of the variable `of`; or `None`."""
        if self.state is None:
            return None
        if of is None:
            return self._named(entry.keys) if entry.keys in self.state.names else None
        [name] = entry.keys
        return self._slot(name, of) if name in self.state.slots and self._has(name, of) else None

    def _has(self, name, entry):
        return id(entry.variable) in self.state.slots[name]

    def _owners(self, name):
        return [entry for entry in self.index.entries if self._has(name, entry)]
