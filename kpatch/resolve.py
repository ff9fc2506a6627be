"""Selector → variable: an index of a model's tree of layers, kept until the model changes.

The tree is Keras's own bookkeeping (`_layers`, `_trainable_variables`, ...), not `Variable.path`, which depends on
where a layer was first built and may repeat. A layer is known to its parent by

* its `name`, and each attribute that holds it (`encoder`, `_query_dense`);
* where a list, tuple or dict holds it, the attribute and then its index, key or name: `blocks."0"`, `towers.left`;
* `layers[i]`, counted as Keras tracks them, input layers left out.

A variable is known to its layer by its Keras name and by its attributes, lists and dicts likewise. Where two variables
of a layer share a name, and no attribute tells them apart, `"weights[1]"` is the layer's second variable.

Each layer is one `Node`, however many routes lead to it, so shared layers and cycles cost nothing; each variable is
one `Entry`. A matcher of globs walks the graph from `ModelIndex.root`.
"""

import re
import reprlib
from collections import defaultdict
from functools import cache
from itertools import accumulate, chain
from operator import is_, itemgetter

import keras

from kpatch.errors import PatchError, ResolutionError, UnsupportedError
from kpatch.syntax.ast import Glob, Name, Position
from kpatch.syntax.spelling import nearest

MAX_LISTED = 8  # candidates shown in an error
MAX_SUGGESTED = 20  # errors of one use that look for the nearest spelling: milliseconds each, in a large model
MAX_NESTED = 8  # lists in lists that hold layers
MAX_WATCHED = 64  # items up to which a list without layers is watched item by item

LAYER, GROUP, METRIC, SEED = "layer", "list or dict", "metric", "seed generator"

# Which of its names is an item's canonical one, best first. Keras numbers names anew in each process, so attributes
# come before those; the names of variables are given by the layer's code.
_VARIABLE, _PUBLIC, _GIVEN, _LISTED, _NUMBERED, _PRIVATE = range(6)

_KEPT = "_kpatch_index"  # where a model holds its index: the two die together, and `copy` and `save` pass it by
_COMPILED = ("_loss_tracker", "_compile_metrics", "_compile_loss")
_BY_NUMBER = re.compile(r"(weights|metrics)\[(\d{1,9})\]")
_ACTIVATIONS = ("output", "input")
_CONTAINERS = (list, tuple, dict)


class Entry:
    """A variable of a model.

    Attributes:
        variable: the `keras.Variable`.
        hidden: a seed generator's state or a metric's variable, which only its full chain of names reaches.
        order: its position in `ModelIndex.entries`.
    """

    __slots__ = ("_path", "hidden", "order", "owner", "routes", "variable")

    def __init__(self, variable, owner, order):
        self.variable = variable
        self.owner = owner  # the node that it was first found in
        self.order = order
        self.hidden = True
        self.routes = []  # (rank, node, name)
        self._path = None

    @property
    def path(self):
        """A selector that means exactly this variable, such as `encoder.dense_1.kernel`."""
        if self._path is None:
            node, name = self.label()
            self._path = _spelled([*node.keys(), name])
        return self._path

    def label(self):
        for _, node, name in sorted(self.routes, key=itemgetter(0)):
            activation = name in _ACTIVATIONS and (node.kind == GROUP or node.parent)
            if len(node.variables[name]) == 1 and _is_speakable(name) and not activation:
                return node, name
        return self.owner, f"weights[{self.owner.own.index(self)}]"

    @property
    def shape(self):
        return tuple(self.variable.shape)

    @property
    def dtype(self):
        return self.variable.dtype

    def __repr__(self):
        return f"{self.path} {self.shape} {self.dtype}"


class Node:
    """A layer with the names of what it holds; also a list or dict of layers, a metric, a seed generator.

    Attributes:
        item: the layer, metric or seed generator; `None` for a list or dict.
        kind: LAYER, GROUP, METRIC or SEED.
        children: the nodes of each name.
        variables: the entries of each name.
        layers: what `layers[i]` counts.
        metrics: the metrics and seed generators.
        own: the entries in Keras's order.
    """

    __slots__ = ("children", "item", "kind", "layers", "metrics", "own", "parent", "routes", "scope", "variables")

    def __init__(self, item, kind, parent, scope=None):
        self.item = item
        self.kind = kind
        self.parent = parent  # where it was first found: these links form a tree, whatever the graph is
        self.scope = scope or self  # a container's layer
        self.children = {}
        self.variables = {}
        self.layers = []
        self.metrics = []
        self.own = []
        self.routes = []  # (rank, node, name)

    def keys(self):
        """The canonical chain of names from the root: strings, and integers for `layers[i]`."""
        keys, node = [], self
        while node.parent is not None:
            node, key = node.label()
            keys.append(key)
        return keys[::-1]

    def label(self):
        for _, node, name in sorted(self.routes, key=itemgetter(0)):
            if len(node.children[name]) == 1 and _is_speakable(name):
                return node, name
        if self in self.parent.layers:
            return self.parent, self.parent.layers.index(self)
        return self.parent, f"metrics[{self.parent.metrics.index(self)}]"


class ModelIndex:
    """The names of a model's variables. `index(model)` gives it: the same object as long as nothing changes.

    Attributes:
        root: the `Node` of the model.
        entries: each variable once, in the order of `model.weights`, the hidden ones between.
    """

    def __init__(self, root):
        vars(root).setdefault(_KEPT, None)  # before the attributes are counted
        walk = _Walk(root)
        self.root = walk.root
        self.nodes = walk.nodes
        self.entries = walk.entries
        self._watch = walk.watch
        self._nodes = defaultdict(list)  # by each of their names
        self._variables = defaultdict(list)
        for node in walk.nodes:
            for name, nodes in node.children.items():
                self._nodes[name] += nodes
            for name, entries in node.variables.items():
                self._variables[name] += entries
        self._successor = None
        self._walked = True
        self._suggestions = MAX_SUGGESTED

    def begin(self):
        """Whether the model is still as it was; a new use of the index begins."""
        self._walked = False
        self._suggestions = MAX_SUGGESTED
        return self._successor is None and self._watch.holds()

    def find(self, selector):
        """The entry of the one variable that a selector means.

        Raises:
            ResolutionError: it means none or several; with the candidates, the nearest spelling, and the span of the
                part at fault.
            UnsupportedError: it is a glob or an activation.
        """
        if self._successor is not None:
            return self._successor.find(selector)
        keys = _keys(selector)
        self._refuse_activation(selector, keys)
        found = self._match(selector, keys)
        if len(found) == 1:
            return found[0]
        if not found and not self._walked:
            return self._find_anew(selector, keys)
        raise _Failure(self, selector, keys).error(found)

    def _find_anew(self, selector, keys):
        """Looks once more, in a new index: an attribute may have been bound in a way that `_Watch` does not see."""
        fresh = ModelIndex(self.root.item)
        fresh._suggestions = self._suggestions
        if fresh._match(selector, keys):
            self._successor = vars(self.root.item)[_KEPT] = fresh
        self._walked = True
        return self.find(selector)

    def _match(self, selector, keys):
        """The entries that the selector means: by a full chain of names, else by the end of one."""
        for form in self.forms(selector, keys):
            if found := _variables(_descend([self.root], form[:-1]), form[-1]):
                return found
        for form in self.forms(selector, keys):
            if found := [entry for entry in self.entries_ending(form) if not entry.hidden]:
                return found
        if _is_keras_path(selector) and len(selector.parts) == 1:
            return [entry for entry in self.entries if entry.variable.path == selector.parts[0].value]
        return []

    def forms(self, selector, keys):
        """The chain of names that the selector spells; a Keras path may begin with the model's own name."""
        if _is_keras_path(selector) and keys[0] == self.root.item.name and len(keys) > 1:
            return [keys, keys[1:]]
        return [keys]

    def entries_ending(self, keys):
        """The entries with a chain of names that ends so, hidden ones too."""
        if len(keys) == 1:
            return _distinct(self._variables.get(keys[0], ()))
        return _variables(self.nodes_ending(keys[:-1]), keys[-1])

    def nodes_ending(self, keys):
        """The nodes with a chain of names that ends so. A leading `layers[i]` counts from the model, nowhere else."""
        if type(keys[0]) is int:
            return _descend([self.root], keys)
        return _descend(_distinct(self._nodes.get(keys[0], ())), keys[1:])

    def _refuse_activation(self, selector, keys):
        if keys[-1] not in _ACTIVATIONS or len(keys) == 1:
            return
        if any(node.kind == LAYER for form in self.forms(selector, keys) for node in self.nodes_ending(form[:-1])):
            message = f"'{selector}' is an activation, and editing those needs kpatch.rewrite, of a later version"
            raise UnsupportedError(message).locate(selector.parts[-1].span)

    def layer_names(self):
        return self._nodes.keys()

    def variable_names(self):
        return self._variables.keys()

    def may_suggest(self):
        """Whether another error may look for the nearest spelling."""
        self._suggestions -= 1
        return self._suggestions >= 0


def index(root):
    """The index of a model's variables, made at the first call, and anew when the model has changed.

    Args:
        root: a Keras model or layer.

    Returns:
        The `ModelIndex`; the same object as long as no name, layer or variable changes.

    Raises:
        PatchError: if `root` is something else.

    Example:
        >>> import keras
        >>> from kpatch.resolve import index
        >>> from kpatch.syntax import parse
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> index(model).entries
        [head.kernel (4, 3) float32, head.bias (3,) float32]
        >>> index(model).find(parse("kernel = 0").statements[0].target.selector)
        head.kernel (4, 3) float32
    """
    try:
        known = root.__dict__[_KEPT]
    except (AttributeError, KeyError):
        known = None
    if known is not None and known.root.item is root and known.begin():
        return known
    if not isinstance(root, keras.Layer):
        raise PatchError(f"expected a Keras model or layer; Received: {reprlib.repr(root)} (of type {type(root)})")
    known = ModelIndex(root)
    root.__dict__[_KEPT] = known
    return known


# Chains of names -----------------------------------------------------------------------------------------------------


def _keys(selector):
    """The selector's parts as strings, and integers for `layers[i]`; a Keras path is several."""
    keys: list[str | int] = []
    for part in selector.parts:
        if type(part) is Name:
            keys += part.value.split("/") if "/" in part.value else (part.value,)
        elif type(part) is Position:
            keys.append(part.index)
        else:
            assert type(part) is Glob
            raise UnsupportedError("globs are not executed yet: they come with the next version").locate(part.span)
    return keys


def _is_keras_path(selector):
    first = selector.parts[0]
    return type(first) is Name and "/" in first.value


def _descend(nodes, keys):
    for key in keys:
        found = []
        for node in nodes:
            if type(key) is not int:
                found += node.children.get(key) or _numbered(node.metrics, key, "metrics")
            elif -len(node.layers) <= key < len(node.layers):
                found.append(node.layers[key])
        nodes = found if len(found) < 2 else _distinct(found)
        if not nodes:
            break
    return nodes


def _variables(nodes, key):
    found = []
    for node in nodes:
        if type(key) is not int:
            found += node.variables.get(key) or _numbered(node.own, key, "weights")
    return found if len(found) < 2 else _distinct(found)


def _is_number(name):
    """Whether the name is taken: it counts what a layer holds, whatever a variable or layer may be called."""
    return name[-1:] == "]" and _BY_NUMBER.fullmatch(name) is not None


def _numbered(items, key, word):
    """The item that `"weights[1]"` or `"metrics[1]"` names, as a list."""
    match = _BY_NUMBER.fullmatch(key)
    return items[int(match[2]) : int(match[2]) + 1] if match and match[1] == word else []


def _distinct(items):
    if len(items) < 2:
        return list(items)
    return list({id(item): item for item in items}.values())


def _spelled(keys):
    return ".".join([str(Position(key) if type(key) is int else Name(key)) for key in keys])


def _is_speakable(name):
    """Whether a quoted part can hold the name."""
    return bool(name) and "/" not in name and name.isprintable()


# Walking a model -----------------------------------------------------------------------------------------------------


class _Walk:
    """Visits a model's layers depth first, so that the entries come in the order of `model.weights`."""

    def __init__(self, root):
        self.watch = _Watch()
        self.root = Node(root, LAYER, None)
        self.nodes = [self.root]
        self.entries = []
        self._by_id = {id(root): self.root}
        self._entry_by_id = {}
        self._seen = set()  # lists in the attributes of the present layer
        visits = {LAYER: self._visit_layer, METRIC: self._visit_metric, SEED: self._visit_seed}
        visited, stack = set(), [self.root]
        while stack:  # no recursion: a model may be nested deeper than Python's stack
            node = stack.pop()
            if node not in visited:
                visited.add(node)
                stack += visits[node.kind](node)[::-1]

    def _visit_layer(self, node):
        state = vars(node.item)
        if not {"name", "_layers"} <= state.keys():
            raise PatchError(f"a {type(node.item).__name__} of the model was made without 'super().__init__()'")
        seeds, metrics = state["_seed_generators"], self._metrics_of_layer(state)
        variables = [*state["_trainable_variables"], *state["_non_trainable_variables"]]
        layers = state["_layers"]
        for name in ("_trainable_variables", "_non_trainable_variables", "_layers", "_metrics", "_seed_generators"):
            self.watch.sequence(state[name])
        known = set(map(id, chain(variables, layers, seeds, metrics)))
        held = self._held(node, state, known)
        # Keras overlooks `self.blocks[0] = layer`; what it tracks comes first, in its own order.
        items = [item for _, item in held if id(item) not in known]
        variables = _distinct(variables + [item for item in items if isinstance(item, keras.Variable)])
        layers = _distinct([*layers, *[item for item in items if isinstance(item, keras.Layer)]])

        for variable in variables:
            self._add_variable(node, variable, hidden=False)
        node.metrics = [self._add_node(node, seed, SEED) for seed in seeds]
        node.metrics += [self._add_node(node, metric, METRIC) for metric in metrics]
        found = [self._add_node(node, layer, LAYER) for layer in layers]
        node.layers = [child for child in found if not isinstance(child.item, keras.layers.InputLayer)]
        if operations := state.get("_operations"):  # the order of a functional model's own `layers`
            order = {id(operation): position for position, operation in enumerate(operations)}
            node.layers.sort(key=lambda child: order.get(id(child.item), len(order)))
        self._add_attributes(node, held)
        return node.metrics + found

    def _visit_metric(self, node):
        state = vars(node.item)
        variables, metrics = state["_variables"], state["_metrics"]
        self.watch.sequence(variables)
        self.watch.sequence(metrics)
        metrics = _distinct([*metrics, *getattr(node.item, "metrics", ())])  # of `compile`, which tracks nothing
        held = self._held(node, state, set(map(id, chain(variables, metrics))))
        for variable in _distinct(variables):
            self._add_variable(node, variable, hidden=True)
        node.metrics = [self._add_node(node, metric, METRIC) for metric in metrics]
        self._add_attributes(node, held)
        return node.metrics[:]

    def _visit_seed(self, node):
        state = vars(node.item)
        self.watch.name(state)
        self.watch.attributes(state, ["state"], grows=False)
        entry = self._add_variable(node, state["state"], hidden=True)
        self._name_variable(node, "state", entry, _PUBLIC)
        return []

    def _metrics_of_layer(self, state):
        """The metrics that a layer tracks, and before them those of `compile`."""
        loss, metrics, losses = map(state.get, _COMPILED)
        found = [metric for metric in (loss, metrics) if metric is not None]
        if losses is not None:
            self.watch.sequence(losses.metrics)  # one of each output
            found += losses.metrics
        return _distinct(found + state["_metrics"])

    def _add_variable(self, node, variable, hidden):
        entry = self._entry_by_id.get(id(variable))
        if entry is None:
            entry = self._entry_by_id[id(variable)] = Entry(variable, node, len(self.entries))
            self.entries.append(entry)
        entry.hidden = entry.hidden and hidden
        node.own.append(entry)
        name = variable.name
        self._name_variable(node, name, entry, _NUMBERED if _is_automatic(name, "Variable") else _VARIABLE)
        return entry

    def _add_node(self, parent, item, kind):
        node = self._by_id.get(id(item))
        if node is None:
            node = self._by_id[id(item)] = Node(item, kind, parent)
            self.nodes.append(node)
        rank = _NUMBERED if _is_automatic(item.name, type(item).__name__) else _GIVEN
        self._name_node(parent, item.name, node, rank)
        return node

    @staticmethod
    def _name_variable(node, name, entry, rank):
        if _is_number(name):
            return
        entries = node.variables.setdefault(name, [])
        if entry not in entries:
            entries.append(entry)
        if entry.owner is node.scope:
            entry.routes.append((rank, node, name))

    @staticmethod
    def _name_node(parent, name, node, rank):
        if _is_number(name):
            return
        nodes = parent.children.setdefault(name, [])
        if node not in nodes:
            nodes.append(node)
        if node.parent is parent.scope:
            node.routes.append((rank, parent, name))

    # Attributes

    def _held(self, node, state, known):
        """Which attributes hold what: pairs of a chain of names, (`blocks`, `0`), and a layer, variable or metric."""
        ours = type(node.item).__module__.startswith("keras.") and type(node.item) is not keras.Layer
        modules = state.get("_modules", {})  # where torch keeps the attributes that are layers
        base, tracker, held = _base_attributes(), state["_tracker"], []
        self._seen.clear()
        names = [name for name in state if name not in base]
        for name, value in chain([(name, state[name]) for name in names], modules.items()):
            if id(value) in known:
                held.append(((name,), value))
            elif isinstance(value, _CONTAINERS):
                self._hold((name,), value, known, tracker, ours, held)
        if ours:
            holding = {chain_[0] for chain_, _ in held}
            names = [name for name in names if name in holding]
        self._watch_attributes(node, names, ours)
        return held

    def _hold(self, names, container, known, tracker, ours, held):
        """Adds what a list, tuple or dict holds."""
        tracked = getattr(container, "tracker", None) is tracker
        if not tracked and len(names) == 1 and not isinstance(container, tuple):
            return  # kept from Keras's eyes
        before = len(held)
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if id(value) in known or (tracked and isinstance(value, (keras.Layer, keras.Variable))):
                held.append(((*names, str(key)), value))
            elif isinstance(value, _CONTAINERS) and len(names) < MAX_NESTED and id(value) not in self._seen:
                self._seen.add(id(value))  # a list may hold itself
                self._hold((*names, str(key)), value, known, tracker, ours, held)
        if len(held) > before or (not ours and len(container) <= MAX_WATCHED):
            self.watch.container(container)

    def _watch_attributes(self, node, names, ours):
        """Watches what may come to hold another layer or variable; of a layer of Keras's own, what holds one now."""
        state = vars(node.item)
        self.watch.name(state)
        grows = not ours or isinstance(node.item, (keras.Model, keras.metrics.Metric))
        if not grows and not state["_layers"]:
            return
        stores = [name for name in ("_layers", "_variables", *_COMPILED) if name in state]
        self.watch.attributes(state, [*stores, *names], grows)
        if "_modules" in state:
            self.watch.container(state["_modules"])

    def _add_attributes(self, node, held):
        for names, item in held:
            rank = _PRIVATE if names[0].startswith("_") else _PUBLIC if len(names) == 1 else _LISTED
            holder = node
            for name in names[:-1]:
                holder = self._group(holder, name, rank)
            if isinstance(item, keras.Variable):
                self._name_variable(holder, names[-1], self._entry_by_id[id(item)], rank)
                continue
            child = self._by_id[id(item)]
            self._name_node(holder, names[-1], child, rank)
            if holder is not node:
                self._name_node(holder, item.name, child, _PRIVATE)

    def _group(self, holder, name, rank):
        for child in holder.children.get(name, ()):
            if child.kind == GROUP and child.scope is holder.scope:
                return child
        group = Node(None, GROUP, holder, holder.scope)
        self.nodes.append(group)
        holder.children.setdefault(name, []).append(group)
        group.routes.append((rank, holder, name))
        return group


def _is_automatic(name, kind):
    """Whether Keras made up the name, `dense_7` of a `Dense`."""
    return name.rstrip("0123456789").replace("_", "") == kind.lower()


@cache
def _base_attributes():
    """The attributes that every layer, model or metric has: where they hold layers, they do not name them."""
    made = keras.Layer(name="layer"), keras.Model(name="model"), keras.metrics.Metric(name="metric")
    made[0].inner = keras.Layer(name="inner")  # tensorflow adds its own only now
    return frozenset(chain(*map(vars, made), [_KEPT])) - {"inner", *_COMPILED}


# Noticing changes ----------------------------------------------------------------------------------------------------


class _Watch:
    """What a model looked like: names, lists of layers and variables, and attributes, compared by identity.

    The check runs at each use of an index, so it is kept to about 0.07 µs a layer of Keras's own. Not seen is an
    attribute of such a layer that changes from something else to one of the layer's own variables, and a change
    inside a long list without layers; `ModelIndex.find` looks again before it says that there is no such name.
    """

    def __init__(self):
        self._empty = []
        self._ones = []
        self._twos = []
        self._longer = []
        self._named = []
        self._names = []
        self._attributes = []
        self._values = []
        self._growing = []
        self._sizes = []

    def name(self, state):
        self._named.append(state)
        self._names.append(state["name"])

    def sequence(self, items):
        """Watches the items of a list."""
        size = len(items)
        if size == 0:
            self._empty.append(items)
        elif size == 1:
            self._ones.append((items, *items))
        elif size == 2:
            self._twos.append((items, *items))
        else:
            self._longer.append((items, tuple(items)))

    def container(self, items):
        """Watches the items of a list, tuple or dict."""
        if not items or isinstance(items, list):
            self.sequence(items)
        elif isinstance(items, dict):
            self.attributes(items, list(items), grows=True)

    def attributes(self, state, names, grows):
        """Watches values of a dict; with `grows`, also that none is added."""
        get = itemgetter(*names, names[-1])  # of two names or more, to get a tuple
        self._attributes.append((get, state))
        self._values.append(get(state))
        if grows:
            self._growing.append(state)
            self._sizes.append(len(state))

    def holds(self):
        try:
            return self._lists_hold() and self._attributes_hold()
        except (ValueError, KeyError):  # another number of items; an attribute that is gone
            return False

    def _lists_hold(self):
        if any(self._empty) or [*map(_name_of, self._named)] != self._names:
            return False
        for items, same in self._longer:
            if len(items) != len(same) or not all(map(is_, items, same)):
                return False
        for items, first in self._ones:
            (now,) = items
            if now is not first:
                return False
        for items, first, second in self._twos:
            now, then = items
            if now is not first or then is not second:
                return False
        return True

    def _attributes_hold(self):
        if [*map(len, self._growing)] != self._sizes:
            return False
        values = [get(state) for get, state in self._attributes]
        return all(map(is_, _flat(values), _flat(self._values))) or self._only_plain(values)

    def _only_plain(self, values):
        """Whether no more than counters and flags have changed, which are noted."""
        for now, then in zip(_flat(values), _flat(self._values), strict=True):
            if now is not then and not (_is_plain(now) and _is_plain(then)):
                return False
        self._values = values
        return True


_flat = chain.from_iterable
_name_of = itemgetter("name")


def _is_plain(value):
    """Whether the value neither is nor holds a layer or variable."""
    named = (keras.Layer, keras.Variable, keras.metrics.Metric, keras.random.SeedGenerator)
    return not isinstance(value, (*named, *_CONTAINERS))


# Errors --------------------------------------------------------------------------------------------------------------


class _Failure:
    """Says why a selector means no variable, or several, and what is near."""

    def __init__(self, index, selector, keys):
        self.index = index
        self.selector = selector
        self.keys = keys
        self.spans = [span for part in selector.parts for span in _spans(part)]  # of each key

    def error(self, found):
        if found:
            message = f"'{self.selector}' is ambiguous: {len(found)} variables have that name"
            return ResolutionError(message, span=self.selector.span, notes=_shortened(map(repr, found)))
        if all(entry.hidden for entry in self.index.entries):
            return self._no_variables()
        return self._layer() or self._hidden() or self._missing()

    def _no_variables(self):
        unbuilt = any(node.kind == LAYER and not node.item.built for node in self.index.nodes)
        message = f"no variable '{self.selector}': the model has no variables"
        return ResolutionError(message + " until it is built or called" * unbuilt, span=self.selector.span)

    def _layer(self):
        for form in self.index.forms(self.selector, self.keys):
            for node in self.index.nodes_ending(form) or _descend([self.index.root], form):
                message = f"'{self.selector}' is a {node.kind}, not a variable"
                return ResolutionError(message, span=self.spans[-1], notes=[_contents(node, _spelled(form))])
        return None

    def _hidden(self):
        for form in self.index.forms(self.selector, self.keys):
            for entry in self.index.entries_ending(form):
                message = f"no variable '{self.selector}'; did you mean '{entry.path}'?"
                note = "a seed generator's state and a metric's variables are reached by their full names only"
                return ResolutionError(message, span=self.selector.span, notes=[note])
        return None

    def _missing(self):
        forms = self.index.forms(self.selector, self.keys)
        form = max(forms, key=lambda form: self._followed(form)[1] - len(form))  # the one whose fault comes last
        nodes, at = self._followed(form)
        holder = _spelled(form[:at]) or "the model"
        message, notes = f"no variable '{self.selector}'", [_contents(nodes[0], holder)]
        if type(form[at]) is int:
            message += f": {holder} has {len(nodes[0].layers)} layer{'s' * (len(nodes[0].layers) != 1)}"
        elif self.index.may_suggest():
            found, name = self._near(form, nodes, at)
            if len(found) == 1:
                message += f"; did you mean '{name or found[0].path}'?"
            elif found:
                message += f"; did you mean '{name}'?" * (name is not None)
                paths = ", ".join(_shortened([entry.path for entry in found]))
                notes.append(f"variables named '{found[0].variable.name}': {paths}")
        return ResolutionError(message, span=self.spans[at - len(form)], notes=notes)

    def _followed(self, form):
        """The nodes that the names lead to, and the position of the first name that leads no further."""
        nodes, at = [self.index.root], 0
        while at < len(form) - 1:
            following = self._next(nodes, form[at], at)
            if not following:
                break
            nodes, at = following, at + 1
        return nodes, at

    def _next(self, nodes, key, at):
        return (at == 0 and self.index.nodes_ending([key])) or _descend(nodes, [key])

    def _near(self, form, nodes, at):
        """The entries that may have been meant, and the spelling that means them; `None` for their own paths."""
        keys = form[:at]
        for key in form[at:-1]:
            if type(key) is str:
                key = _nearest(key, self.index.layer_names() if not keys else _names(nodes, "children"))
            nodes = self._next(nodes, key, len(keys)) if key is not None else []
            if not nodes:
                return self._below(self._followed(form)[0][0], form[-1]), None
            keys.append(key)
        last = _nearest(form[-1], _names(nodes, "variables") if keys else self.index.variable_names())
        if last is None:
            return self._below(nodes[0], form[-1]), None
        keys.append(last)
        found = _variables(nodes, last) if len(keys) > 1 else self.index.entries_ending(keys)
        return [entry for entry in found if not entry.hidden], _spelled(keys)

    def _below(self, node, name):
        """The variables of a name, somewhere below a node."""
        below, stack = set(), [node]
        while stack:
            node = stack.pop()
            if node not in below:
                below.add(node)
                stack += chain.from_iterable(node.children.values())
        return [entry for entry in self.index.entries_ending([name]) if not entry.hidden and entry.owner in below]


def _spans(part):
    """Where the part stands; of a Keras path, where each of its parts does."""
    if type(part) is not Name or "/" not in part.value:
        return [part.span]
    start, end = part.span
    names = part.value.split("/")
    if end - start != len(part.value) + 2:  # it is written with escapes
        return [part.span] * len(names)
    starts = accumulate([start + 1, *[len(name) + 1 for name in names[:-1]]])
    return [(start, start + len(name)) for start, name in zip(starts, names, strict=True)]


def _names(nodes, which):
    return list(dict.fromkeys(chain.from_iterable(getattr(node, which) for node in nodes)))


def _nearest(key, names):
    return key if key in names else nearest(key, names)


def _contents(node, name):
    """What a layer holds: `dense_1 has: kernel (64, 32) float32, bias (32,) float32`."""
    entries = {}
    for key, found in node.variables.items():
        for entry in found:
            if not entry.hidden or node.kind in (METRIC, SEED):
                entries.setdefault(id(entry), f"{_spelled([key])} {entry.shape} {entry.dtype}")
    items = list(entries.values()) + _child_names(node)
    if items:
        return f"{name} has: {', '.join(_shortened(items))}"
    built = node.kind != LAYER or node.item.built
    return f"{name} has no variables{'' if built else ' until it is built or called'}"


def _child_names(node):
    names = {}
    for key, children in node.children.items():
        for child in children:
            if child.kind in (LAYER, GROUP) and not isinstance(child.item, keras.layers.InputLayer):
                holder, label = child.label() if child.parent is node else (node, key)
                if holder is node:
                    names.setdefault(id(child), _spelled([label]))
    return list(names.values())


def _shortened(items):
    items = list(items)
    more = len(items) - MAX_LISTED
    return items[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])
