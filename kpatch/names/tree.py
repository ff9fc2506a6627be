"""A model as a graph of names: one `LayerNode` for each layer, by however many routes, and `Entry`s of variables.

The graph is read from Keras's own lists (`_layers`, `_trainable_variables`, ...), not from `Variable.path`, which
depends on where a layer was first built and can repeat. A layer has these names in its parent:

* its `name`, and each attribute that holds it (`encoder`, `_query_dense`);
* if a list, tuple or dict holds it, the attribute and then its index, key or name: `blocks.0`, `towers.left`;
* `layers[i]`, in Keras's order without input layers;
* the name by which a weights file counts it: its class, and a number from the second on, `dense`, `dense_1`. Keras
  counts in each model, and in each list, tuple or dict. Such a name is the last choice: see `ModelIndex`.

A variable has its Keras name and the names of its attributes, lists and dicts likewise. If two variables of a layer
share a name and no attribute distinguishes them, `"weights[1]"` is the layer's second variable.
"""

import re
from functools import cache
from itertools import chain
from operator import itemgetter

from kpatch.errors import PatchError
from kpatch.names.modules import buffers, parameters, watch_module, wraps_module
from kpatch.names.watch import CONTAINERS, StandIn, Watch
from kpatch.names.weights import weight_of
from kpatch.syntax.ast import Name, Position

MAX_NESTED = 8  # levels of nested lists that are searched for layers
MAX_WATCHED = 64  # a list without layers is watched up to so many items

LAYER, GROUP, METRIC, SEED = "layer", "list or dict", "metric", "seed generator"

# The ranks of an item's names; the best is canonical. Numbers that Keras gives differ between processes, so attributes
# rank before numbered names. The layer's code gives the names of variables.
_VARIABLE, _PUBLIC, _GIVEN, _LISTED, _NUMBERED, _PRIVATE = range(6)

KEPT = "_kpatch_index"  # the attribute of a model with its index: freed with the model, ignored by `copy` and `save`
_COMPILED = ("_loss_tracker", "_compile_metrics", "_compile_loss")
_BY_NUMBER = re.compile(r"(weights|metrics)\[(\d{1,9})\]")
ACTIVATIONS = ("output", "input")
STORED = "stored"  # the last part of a selector that means a variable as it is stored


class Entry:
    """A variable of a model.

    Attributes:
        variable: the `keras.Variable`.
        hidden: a seed generator's state or a metric's variable, which only its full chain of names matches.
        order: its position in `ModelIndex.entries`.
        weight: the `codecs.Weight` that it stores, or `None`; `shape` and `dtype` are those of that weight.
        part_of: the entry of the weight that is made with this variable, a scale or a factor of LoRA; else `None`.
        stored: the entry of `.stored`, the variable as it is stored; the same one if it stores no weight.
    """

    __slots__ = ("_path", "_stored", "hidden", "order", "owner", "part_of", "routes", "variable", "weight")

    def __init__(self, variable, owner, order):
        self.variable = variable
        self.owner = owner  # the node in which it was first found
        self.order = order
        self.hidden = True
        self.routes = []  # (rank, node, name)
        self.weight = weight_of(owner.item, variable) if owner.kind == LAYER else None
        self._path = self._stored = self.part_of = None

    @property
    def path(self):
        """A selector of exactly this variable, such as `encoder.dense_1.kernel`."""
        if self._path is None:
            node, name = self.label()
            self._path = spelled([*node.keys(), name])
        return self._path

    def label(self):
        for _, node, name in sorted(self.routes, key=itemgetter(0)):
            activation = name in ACTIVATIONS and (node.kind == GROUP or node.parent)
            if len(node.variables[name]) == 1 and is_speakable(name) and not activation:
                return node, name
        return self.owner, f"weights[{self.owner.own.index(self)}]"

    @property
    def shape(self):
        return tuple(self.variable.shape) if self.weight is None else self.weight.shape

    @property
    def dtype(self):
        return self.variable.dtype if self.weight is None else self.weight.dtype

    @property
    def stored(self):
        if self.weight is None:
            return self
        if self._stored is None:
            self._stored = StoredEntry(self)
        return self._stored

    def __repr__(self):
        return f"{self.path} {self.shape} {self.dtype}"


class StoredEntry(Entry):
    """The variable in which a layer stores a weight, as it is: codes, or the base under LoRA.

    Attributes:
        of: the entry of the weight.
    """

    __slots__ = ("of",)

    def __init__(self, of):
        self.of = of
        self.variable, self.owner, self.order, self.routes = of.variable, of.owner, of.order, of.routes
        self.hidden = True
        self.weight = self.part_of = None
        self._stored = self
        self._path = f"{of.path}.{STORED}"


class LayerNode:
    """A layer with the names of its contents; also a list or dict of layers, a metric, or a seed generator.

    Attributes:
        item: the layer, metric or seed generator; `None` for a list or dict.
        kind: LAYER, GROUP, METRIC or SEED.
        children: the nodes of each name.
        variables: the entries of each name.
        layers: the nodes that `layers[i]` indexes.
        numbered: the nodes that a weights file counts by their classes, in its order.
        metrics: the metrics and seed generators.
        own: the entries in Keras's order.
    """

    __slots__ = (
        "__weakref__", "_below", "_counted", "children", "item", "kind", "layers", "metrics", "numbered", "own",
        "parent", "routes", "scope", "variables",
    )  # fmt: skip

    def __init__(self, item, kind, parent, scope=None):
        self.item = item
        self.kind = kind
        self.parent = parent  # the node in which it was first found: these links form a tree
        self.scope = scope or self  # a container's layer
        self.children = {}
        self.variables = {}
        self.layers = []
        self.numbered = []
        self._counted = None
        self.metrics = []
        self.own = []
        self._below = None
        self.routes = []  # (rank, node, name)

    @property
    def counted(self):
        """The nodes by the names that a weights file gives them: `{"dense": node, "dense_1": node}`."""
        if self._counted is None:
            self._counted = _by_count(self.numbered)
        return self._counted

    @property
    def below(self):
        """The nodes of all children and layers, each once."""
        if self._below is None:  # the graph is complete when it is first asked for
            self._below = distinct([child for children in self.children.values() for child in children] + self.layers)
        return self._below

    def keys(self):
        """The canonical chain of names from the root: strings, and integers for `layers[i]`."""
        keys, node = [], self
        while node.parent is not None:
            node, key = node.label()
            keys.append(key)
        return keys[::-1]

    def label(self):
        for _, node, name in sorted(self.routes, key=itemgetter(0)):
            if len(node.children[name]) == 1 and is_speakable(name):
                return node, name
        if self in self.parent.layers:
            return self.parent, self.parent.layers.index(self)
        return self.parent, f"metrics[{self.parent.metrics.index(self)}]"


class Walk:
    """Visits a model's layers depth first, so that the entries come in the order of `model.weights`."""

    def __init__(self, root):
        self.watch = Watch()
        self.root = LayerNode(root, LAYER, None)
        self.nodes = [self.root]
        self.entries = []
        self._by_id = {id(root): self.root}
        self._entry_by_id = {}
        self._seen = set()  # lists in the attributes of the current layer
        self._loose = []  # (node, chain of names, variable): in attributes of which Keras tracks nothing
        visits = {LAYER: self._visit_layer, METRIC: self._visit_metric, SEED: self._visit_seed}
        visited, stack = set(), [self.root]
        while stack:  # no recursion: a model can be nested deeper than Python's stack
            node = stack.pop()
            if node not in visited:
                visited.add(node)
                stack += visits[node.kind](node)[::-1]
        for node, names, variable in self._loose:
            self._add_loose(node, names, variable)

    def _visit_layer(self, node):
        import keras

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
        if wraps_module(node.item):
            held += parameters(node.item)
            self._loose += [(node, *pair) for pair in buffers(node.item)]
            watch_module(node.item, self.watch)
        # Keras does not track `self.blocks[0] = layer`; tracked items come first, in Keras's order.
        items = [item for _, item in held if id(item) not in known]
        variables = distinct(variables + [item for item in items if isinstance(item, keras.Variable)])
        layers = distinct([*layers, *[item for item in items if isinstance(item, keras.Layer)]])

        for variable in variables:
            self._add_variable(node, variable, hidden=False)
        self._link_weights(node)
        node.metrics = [self._add_node(node, seed, SEED) for seed in seeds]
        node.metrics += [self._add_node(node, metric, METRIC) for metric in metrics]
        found = [self._add_node(node, layer, LAYER) for layer in layers]
        node.layers = [child for child in found if not isinstance(child.item, keras.layers.InputLayer)]
        if operations := state.get("_operations"):  # the order of a functional model's own `layers`
            order = {id(operation): position for position, operation in enumerate(operations)}
            node.layers.sort(key=lambda child: order.get(id(child.item), len(order)))
        if isinstance(node.item, keras.Model):
            node.numbered = node.layers
        self._add_attributes(node, held)
        return node.metrics + found

    def _visit_metric(self, node):
        state = vars(node.item)
        variables, metrics = state["_variables"], state["_metrics"]
        self.watch.sequence(variables)
        self.watch.sequence(metrics)
        metrics = distinct([*metrics, *getattr(node.item, "metrics", ())])  # of `compile`, which tracks nothing
        held = self._held(node, state, set(map(id, chain(variables, metrics))))
        for variable in distinct(variables):
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
        """The metrics of `compile`, then those that the layer tracks."""
        loss, metrics, losses = map(state.get, _COMPILED)
        found = [metric for metric in (loss, metrics) if metric is not None]
        if losses is not None:
            self.watch.sequence(losses.metrics)  # one for each output
            found += losses.metrics
        return distinct(found + state["_metrics"])

    def _add_variable(self, node, variable, hidden):
        entry = self._entry_by_id.get(id(variable))
        if entry is None:
            entry = self._entry_by_id[id(variable)] = Entry(variable, node, len(self.entries))
            self.entries.append(entry)
        entry.hidden = entry.hidden and hidden
        node.own.append(entry)
        name = variable.name
        self._name_variable(node, name, entry, _NUMBERED if is_automatic(name, "Variable") else _VARIABLE)
        return entry

    def _link_weights(self, node):
        """Has scales, factors and the layer's bookkeeping know the weight that they belong to."""
        for entry in node.own:
            parts = (*entry.weight.others, *entry.weight.bookkeeping) if entry.weight is not None else ()
            for variable in parts:
                self._entry_by_id[id(variable)].part_of = entry

    def _add_node(self, parent, item, kind):
        node = self._by_id.get(id(item))
        if node is None:
            node = self._by_id[id(item)] = LayerNode(item, kind, parent)
            self.nodes.append(node)
        rank = _NUMBERED if is_automatic(item.name, type(item).__name__) else _GIVEN
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
        """The contents of attributes: pairs of a chain of names, (`blocks`, `0`), and a layer, variable or metric."""
        import keras

        ours = type(node.item).__module__.startswith("keras.") and type(node.item) is not keras.Layer
        modules = state.get("_modules", {})  # torch keeps attributes that are layers here
        base, tracker, held, loose = _base_attributes(), state["_tracker"], [], []
        self._seen.clear()
        names = [name for name, value in state.items() if name not in base and not isinstance(value, StandIn)]
        for name, value in chain([(name, state[name]) for name in names], modules.items()):
            if id(value) in known:
                held.append(((name,), value))
            elif isinstance(value, keras.Variable):
                loose.append(((name,), value))
            elif isinstance(value, CONTAINERS):
                self._hold((name,), value, known, tracker, ours, held, loose)
        self._loose += [(node, *pair) for pair in loose]
        if ours:
            holding = {chain_[0] for chain_, _ in (*held, *loose)}
            names = [name for name in names if name in holding]
        self._watch_attributes(node, names, ours)
        return held

    def _hold(self, names, container, known, tracker, ours, held, loose):
        """Adds the contents of a list, tuple or dict."""
        import keras

        tracked = getattr(container, "tracker", None) is tracker
        hidden = not tracked and len(names) == 1 and not isinstance(container, tuple)  # not tracked by Keras
        if hidden and names[0].startswith("_"):
            return  # such as the `_operations` of a functional model; those of keras_hub's models are public
        before = len(held), len(loose)
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if id(value) in known or (tracked and isinstance(value, (keras.Layer, keras.Variable))):
                held.append(((*names, str(key)), value))
            elif isinstance(value, keras.Variable):
                loose.append(((*names, str(key)), value))
            elif isinstance(value, CONTAINERS) and len(names) < MAX_NESTED and id(value) not in self._seen:
                self._seen.add(id(value))  # a list can contain itself
                self._hold((*names, str(key)), value, known, tracker, ours, held, loose)
        if (len(held), len(loose)) > before or (not ours and not hidden and len(container) <= MAX_WATCHED):
            self.watch.container(container)

    def _watch_attributes(self, node, names, ours):
        """Watches attributes that can get another layer or variable; in Keras's own layers, those that hold one now."""
        import keras

        state = vars(node.item)
        self.watch.name(state)
        grows = not ours or isinstance(node.item, (keras.Model, keras.metrics.Metric))
        if not grows and not state["_layers"]:
            return
        stores = [name for name in ("_layers", "_variables", *_COMPILED, "optimizer") if name in state]
        self.watch.attributes(state, [*stores, *names], grows)
        if "_modules" in state:
            self.watch.container(state["_modules"])

    def _add_attributes(self, node, held):
        import keras

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
                holder.numbered.append(child)

    def _add_loose(self, node, names, variable):
        """Adds a variable that is no weight, such as the state of a recurrent layer."""
        if id(variable) not in self._entry_by_id:
            entry = self._entry_by_id[id(variable)] = Entry(variable, node, len(self.entries))
            self.entries.append(entry)
        self._add_attributes(node, [(names, variable)])

    def _group(self, holder, name, rank):
        for child in holder.children.get(name, ()):
            if child.kind == GROUP and child.scope is holder.scope:
                return child
        group = LayerNode(None, GROUP, holder, holder.scope)
        self.nodes.append(group)
        holder.children.setdefault(name, []).append(group)
        group.routes.append((rank, holder, name))
        return group


def is_automatic(name, kind):
    """Whether Keras made up the name, `dense_7` of a `Dense`."""
    return name.rstrip("0123456789").replace("_", "") == kind.lower()


@cache
def _base_attributes():
    """The attributes that every layer, model or metric has; they give no names."""
    import keras

    made = keras.Layer(name="layer"), keras.Model(name="model"), keras.metrics.Metric(name="metric")
    made[0].inner = keras.Layer(name="inner")  # on tensorflow this adds more attributes
    return frozenset(chain(*map(vars, made), [KEPT])) - {"inner", *_COMPILED}


# Names ----------------------------------------------------------------------------------------------------------------


def _is_number(name):
    """Whether the name is reserved: `weights[1]` and `metrics[1]` index a layer's contents."""
    return name[-1:] == "]" and _BY_NUMBER.fullmatch(name) is not None


def _numbered(items, key, word):
    """The item that `"weights[1]"` or `"metrics[1]"` names, as a list."""
    match = _BY_NUMBER.fullmatch(key)
    return items[int(match[2]) : int(match[2]) + 1] if match and match[1] == word else []


def _by_count(nodes):
    """Names as Keras's `saving_lib` makes them: a class in snake case, counted."""
    found, counts = {}, {}
    for node in nodes:
        if node.kind == LAYER:
            name = _snake_case(type(node.item).__name__)
            count = counts[name] = counts.get(name, -1) + 1
            found.setdefault(f"{name}_{count}" if count else name, node)
    return found


def _snake_case(name):
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def distinct(items):
    if len(items) < 2:
        return list(items)
    return list({id(item): item for item in items}.values())


def spelled(keys):
    """The selector of a chain of keys: names, integers for `layers[i]`, and globs."""
    kinds = {int: Position, str: Name}
    return ".".join([str(kinds[type(key)](key) if type(key) in kinds else key) for key in keys])


def is_speakable(name):
    """Whether a quoted part can hold the name."""
    return bool(name) and "/" not in name and name.isprintable()


def descend(nodes, keys, counted=False):
    """The nodes that a chain of keys leads to; with `counted` a name may also be that of a weights file."""
    for key in keys:
        found = []
        for node in nodes:
            if type(key) is not int:
                found += node.children.get(key) or _numbered(node.metrics, key, "metrics")
                if counted and key not in node.children and key in node.counted:
                    found.append(node.counted[key])
            elif -len(node.layers) <= key < len(node.layers):
                found.append(node.layers[key])
        nodes = found if len(found) < 2 else distinct(found)
        if not nodes:
            break
    return nodes


def variables_of(nodes, key):
    found = []
    for node in nodes:
        if type(key) is not int:
            found += node.variables.get(key) or _numbered(node.own, key, "weights")
    return found if len(found) < 2 else distinct(found)
