"""`$donor._`: the counterpart, in another model, of a variable.

The first of these rules that finds a variable decides:

1. by order: both models have the same variables, by name and shape, in the same order, however they are nested. One of
   them can be a layer: the donor against one layer of the model, or the model against one layer of the donor (a
   backbone inside a classifier);
2. by name: the chains of names are equal, or one ends in the other. A chain with a name numbered by Keras (`dense_7`)
   does not count;
3. by position: the same `layers[i]` at each level, through layers of the same class with equally many sub-layers.

The variable found must have the same shape. The counterpart of an optimizer's slot is that slot of the counterpart.
"""

from functools import cached_property

from kpatch.errors import ResolutionError
from kpatch.names.optimizers import OptimizerEntry
from kpatch.names.tree import LAYER, StoredEntry, descend, distinct, is_automatic, variables_of


class Counterparts:
    """The counterparts, in one donor, of a model's variables.

    Args:
        name: the donor's name, without `$`.
        index: the donor's `ModelIndex`.
    """

    def __init__(self, name, index):
        self.name = name
        self.index = index
        self._found = {}
        self._of_target = {}  # by the id of the target's root: its `_Parts`
        self._aligned = {}  # by the id of a node of the target: the donor's entries in the order of the node's

    @cached_property
    def _parts(self):
        return _Parts(self.index.entries)

    def of(self, entry):
        """The donor's `Entry` for an `Entry` of the model.

        Raises:
            ResolutionError: there is no counterpart, or several, or it has another shape.
        """
        if isinstance(entry, StoredEntry):
            return self.of(entry.of).stored
        if isinstance(entry, OptimizerEntry):
            return self._of_optimizer(entry)
        found = self._found.get(entry)
        if found is None:
            found = self._found[entry] = self._known(entry)
        return found

    def _known(self, entry):
        """What was found before, in another use of the donor's index; each entry is told by its number in its model."""
        numbers = self.index.counterparts.setdefault(_root(entry.owner), {})
        if entry.order not in numbers:
            numbers[entry.order] = self._find(entry).order
        return self.index.entries[numbers[entry.order]]

    def _of_optimizer(self, entry):
        """The slot of the counterpart, or the variable of the same name."""
        own = self.index.optimizer()
        of = None if entry.of is None else self.of(entry.of)
        found = None if own is None else own.counterpart(entry, of)
        if found is None:
            raise ResolutionError(f"'${self.name}' has no counterpart of '{entry.path}'")
        return found

    def _find(self, entry):
        found = self._by_order(entry) or self._by_name(entry) or self._by_position(entry)
        if len(found) == 1 and found[0].shape == entry.shape:
            return found[0]
        count = f"{len(found)} counterparts" if len(found) > 1 else "no counterpart"
        message = f"'${self.name}' has {count} of '{entry.path}' {entry.shape}"
        notes = [f"found {other!r}" for other in found[:8]]
        notes.append(f"name a variable by its path, as in '${self.name}.{self._example()}'")
        raise ResolutionError(message, notes=notes)

    def _example(self):
        return next((entry.path for entry in self.index.entries if not entry.hidden), "dense_1.kernel")

    def _by_order(self, entry):
        nodes = _ancestors(entry.owner)
        root = nodes[-1]
        if id(root) not in self._of_target:
            self._of_target[id(root)] = _Parts(_entries_of(root))
        parts = self._of_target[id(root)]
        found = []
        for node in nodes:
            if id(node) not in self._aligned:
                self._aligned[id(node)] = self._align(parts, node, root)
            if entry in parts.below(node):
                found += [entries[parts.below(node).index(entry)] for entries in self._aligned[id(node)]]
        return distinct(found)

    def _align(self, parts, node, root):
        """The lists of the donor's entries that match the entries below the node, by name and shape."""
        wanted = parts.signature(node)
        if self._parts.signature(self.index.root) == wanted:
            return [self._parts.below(self.index.root)]
        if node is not root:
            return []
        alike = [other for other in self._parts.nodes() if self._parts.signature(other) == wanted]
        return [self._parts.below(other) for other in alike]

    def _by_name(self, entry):
        keys = _stable_keys(entry)
        if keys is None:
            return []
        root = self.index.root
        for start in range(len(keys)):
            whole = variables_of(descend([root], keys[start:-1]), keys[-1])
            found = whole or (self.index.entries_ending(keys) if start == 0 else [])
            if found := [other for other in found if not other.hidden and (start < len(keys) - 1 or len(keys) == 1)]:
                return found
        return []

    def _by_position(self, entry):
        place, node = [], entry.owner
        while node.parent is not None:
            holder = node.parent.scope
            if node not in holder.layers:
                return []
            place.append((holder.layers.index(node), len(holder.layers), _class(node.item)))
            node = holder
        other = self.index.root
        for position, count, kind in reversed(place):
            if len(other.layers) != count or _class(other.layers[position].item) != kind:
                return []
            other = other.layers[position]
        at = entry.owner.own.index(entry)
        if len(other.own) == len(entry.owner.own) and _name(other.own[at]) == _name(entry):
            return [other.own[at]]
        mine, found = ([e for e in node.own if _name(e) == _name(entry)] for node in (entry.owner, other))
        return found if len(mine) == len(found) == 1 else []  # a quantised layer has scales beside


class _Parts:
    """The entries below each node of a model, in order, and their names and shapes."""

    def __init__(self, entries):
        self._below = {}
        self._signatures = {}
        for entry in entries:
            if not entry.hidden and entry.part_of is None:
                for node in _ancestors(entry.owner):
                    self._below.setdefault(node, []).append(entry)

    def nodes(self):
        return self._below.keys()

    def below(self, node):
        return self._below.get(node, [])

    def signature(self, node):
        if node not in self._signatures:
            self._signatures[node] = [(_name(entry), entry.shape) for entry in self.below(node)]
        return self._signatures[node]


def _root(node):
    while node.parent is not None:
        node = node.parent
    return node


def _ancestors(node):
    """The layers from the node up to the model; the node itself if it is a layer."""
    found = []
    while node is not None:
        if node.kind == LAYER:
            found.append(node)
        node = node.parent
    return found


def _entries_of(root):
    """All entries below a root, in the model's order."""
    entries, stack, seen = [], [root], set()
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            entries += node.own
            stack += [child for children in node.children.values() for child in children]
    return sorted(distinct(entries), key=lambda entry: entry.order)


def _class(item):
    """The name of the item's class: in a file, what stands for a layer has a class of that name."""
    return type(item).__module__, type(item).__qualname__


def _name(entry):
    name = entry.variable.name
    return "variable" if is_automatic(name, "Variable") else name


def _stable_keys(entry):
    """The chain of names, or `None` if Keras made up one of them."""
    node, name = entry.label()
    keys = [*node.keys(), name]
    if any(type(key) is int for key in keys) or is_automatic(name, "Variable"):
        return None
    while node.parent is not None:
        holder, key = node.label()
        if node.kind == LAYER and is_automatic(key, type(node.item).__name__):
            return None
        node = holder
    return keys
