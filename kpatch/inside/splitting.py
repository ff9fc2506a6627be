"""Splits a patch of a model into patches of single layers: of their weights, inputs and outputs.

`rewrite` puts the parts into a graph, `intervene` into the calls of layers. The parts keep the spans of the whole
patch, so that errors show its text. A `let` is copied to every part that names it, and computed there.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kpatch import functions
from kpatch.errors import PatchError, UnsupportedError
from kpatch.functions.quoted import with_names
from kpatch.inside.tensor_patch import names_in_indices
from kpatch.names.bindings import Bindings
from kpatch.names.meanings import ModelNames
from kpatch.names.misses import excludes_nothing, leave_nothing
from kpatch.names.tree import spelled
from kpatch.run import checking, live
from kpatch.run.encoding import stored_otherwise, tensor_of
from kpatch.syntax import Patch, ast, parse
from kpatch.values.dtypes import Value


@dataclass(eq=False, repr=False)
class Part:
    """The edits of one activation.

    Attributes:
        node: the layer's node in the index of the model.
        kind: "input" or "output".
        inner: the keys of a tensor in it, if there are several.
        span: the span of the first target that names it.
        edits: the statements that write it, unchanged.
        patch: these statements as a `Patch` of one tensor.
        constants: the values of its `$names`.
        live: the values of others, which are read when the layer runs.
        reads: the activations of other layers that it reads, `{$name: (node, kind, inner, span)}`.
    """

    node: Any
    kind: str
    inner: tuple
    span: tuple
    edits: list = field(default_factory=list)
    patch: Any = None
    constants: Any = None
    live: dict = field(default_factory=dict)
    reads: dict = field(default_factory=dict)
    entry = None  # as a target it is no variable

    @property
    def path(self):
        return spelled([self.node.item.name, self.kind, *self.inner])

    def __repr__(self):
        return self.path

    @property
    def text(self):
        return "; ".join(str(s) for s in self.patch.statements if isinstance(s, ast.Edit))


class Split:
    """The parts of a patch.

    Attributes:
        patch: the `Patch`.
        index: the index of the model's names.
        parts: a `Part` for each activation that is written, in the order of the patch.
        weights: `[(statement, entry)]` of the statements that write weights.

    Args:
        expect: how many variables and activations the patch must write, or `None`.
    """

    def __init__(self, model, patch, bindings, expect=None):
        from kpatch.names.index import index

        self.patch = with_names(patch)
        self.index = index(model)
        self.bindings = bindings
        self.weights = []
        self._parts = {}
        self._bound = Bindings(bindings)
        self._names = ModelNames(self.index, self._bound)
        self._order = {id(statement): position for position, statement in enumerate(self.patch.statements)}
        self._lets = {statement.name: statement for statement in self.patch.statements if type(statement) is ast.Let}
        nodes = ast.walk(self.patch)
        self._taken = {node.name for node in nodes if type(node) in (ast.Binding, ast.Let)}
        self._given = {}  # the key of a value that a part reads → its name
        self._reading: dict[str, Any] = {}  # the name of a `let` → the reference to an activation in it, or `None`
        for statement in self.patch.statements:
            if isinstance(statement, ast.Edit):
                self._located(self._add, statement)
            elif isinstance(statement, ast.For):
                self._located(self._add_block, statement)
            elif isinstance(statement, ast.Let):
                self._reading[statement.name] = self._located(self._activation_in, statement)
        self._check_bindings()
        if expect is not None:
            checking.check_count({id(e.variable): e for _, e in self.weights}.values(), self.parts, expect)
        self._once = self._checked_once()
        checking.check(model, self._once, bindings_of(self._once, bindings))
        for part in self.parts:
            self._located(self._finish, part)

    @property
    def parts(self):
        return list(self._parts.values())

    def with_lets(self, statements):
        """The statements and the `let`s that they name, in the order of the patch."""
        found = {id(statement): statement for statement in statements}
        stack = [*statements]
        while stack:
            for node in ast.walk(stack.pop()):
                let = self._lets.get(node.name) if type(node) is ast.Local else None
                if let is not None and id(let) not in found:
                    found[id(let)] = let
                    stack.append(let)
        return sorted(found.values(), key=lambda statement: self._order[id(statement)])

    def weights_patch(self):
        """The statements that write weights, as a patch of the model, and its bindings."""
        written = Patch(tuple(self.with_lets([statement for statement, _ in self.weights])), self.patch.source)
        return written, bindings_of(written, self.bindings)

    def check_assertions(self):
        """Checks the assertions on the present weights."""
        if self._once.statements:
            model = self.index.root.item
            live.apply(checking.check(model, self._once, bindings_of(self._once, self.bindings)))

    def layer_patch(self, layer, weights):
        """Some of the `weights` as a patch of their layer, and its constants."""
        from kpatch.names.index import index

        paths = {id(entry.variable): entry.stored.path for entry in index(layer).entries}
        constants = {}

        def own(entry, at):
            if entry.weight is not None:
                raise stored_otherwise(entry).locate(at.span, self.patch.source)
            if id(entry.variable) not in paths:
                message = f"'{entry.path}' is a weight of another layer, which '{layer.name}' cannot read"
                raise UnsupportedError(message).locate(at.span, self.patch.source)
            selector = parse(f"{paths[id(entry.variable)]} = 0").statements[0].target.selector
            return ast.Selector(selector.parts, at.span)

        def changed(node, place):
            if type(node) is ast.Reference:
                return ast.Reference(own(self.index.find(node.selector), node), node.span)
            return self._constant(node, place, constants) if type(node) is ast.Binding else node

        statements, entries = [], {}
        for statement, entry in weights:
            entries.setdefault(id(statement), []).append(entry)
        for statement in self.with_lets([statement for statement, _ in weights]):
            if isinstance(statement, ast.For):
                message = "a layer that is patched in a new model takes no 'for' block; write a statement for each edit"
                raise UnsupportedError(message).locate(statement.span, self.patch.source)
            for entry in entries.get(id(statement), [None]):
                place = None if entry is None else self._names.of_entry(entry)
                new = ast.mapped(statement, lambda node, place=place: changed(node, place))
                if entry is not None:
                    target = ast.Target(own(entry, statement.target), new.target.index, statement.target.span)
                    new = ast.Edit(target, new.op, new.value, span=new.span)
                statements.append(new)
        return Patch(tuple(statements), self.patch.source), constants

    def activations(self, selector):
        """The layers whose activation a selector means, and which; no layers if the selector means weights."""
        from keras.layers import InputLayer

        if isinstance(selector, ast.Implied):
            self._names.place(None)
        nodes, *which = self.index.activations(selector)
        computed = [node for node in nodes if not isinstance(node.item, InputLayer)]
        if nodes and not computed:
            message = f"'{selector}' is an input of the model, which no layer computes"
            raise UnsupportedError(message, notes=["edit the 'input' of the layers that take it"]).locate(selector.span)
        return computed, *which

    def _add(self, statement):
        """Adds a writing statement to its parts or to `weights`."""
        selector = statement.target.selector
        found, weights = {}, []
        for each in [selector] if isinstance(selector, ast.Implied) else selector.alternatives:
            nodes, kind, inner = self.activations(each)
            found.update({(id(node.item), kind, inner): Part(node, kind, inner, each.span) for node in nodes})
            weights += [] if nodes else [each]
        if not found:
            self._add_weights(statement)
            return
        for each in weights:
            self.index.find_all(each)  # raises if it means nothing
            message = f"'{selector}' means activations and weights; write a statement for each"
            raise UnsupportedError(message).locate(each.span)
        for key, part in self._without_excluded(statement, found).items():
            self._parts.setdefault(key, part).edits.append(statement)

    def _add_block(self, statement):
        """Adds a `for` block to `weights`."""
        for each in statement.selector.alternatives:
            if self.activations(each)[0]:
                message = f"'{each}' is an activation; a 'for' block edits weights"
                raise UnsupportedError(message).locate(each.span)
        matches = self._names.matches(statement.selector, statement.exclusions)
        self._refuse_activations_in(statement)
        self.weights += [(statement, place.entry) for _, place in matches]

    def _without_excluded(self, statement, found):
        """The activations that a statement writes."""
        taken = set()
        for each in ast.alternatives_of(statement.exclusions):
            nodes, kind, inner = self.activations(each)
            keys = {(id(node.item), kind, inner) for node in nodes} & found.keys()
            if not keys:
                means = [Part(node, kind, inner, each.span).path for node in nodes] or self.index.find_all(each)
                raise excludes_nothing(each, statement.target.selector, means)
            taken |= keys
        left = {key: part for key, part in found.items() if key not in taken}
        if not left:
            raise leave_nothing(statement.target.selector, statement.exclusions)
        return left

    def _add_weights(self, statement):
        selector = statement.target.selector
        entries = [place.entry for _, place in self._names.matches(selector, statement.exclusions)]
        if len(self._names.places(selector)) > 1 and any(
            type(n) is ast.Call and functions.is_random(n.function) for n in ast.walk(statement.value)
        ):
            raise UnsupportedError(
                "one statement cannot draw random numbers for several variables; name them one by one"
            )
        self._refuse_activations_in(statement)
        self.weights += [(statement, entry) for entry in entries]

    def _refuse_activations_in(self, statement):
        if node := self._activation_in(statement):
            message = f"'{node.selector}' is an activation; an edit of weights can read only weights"
            raise UnsupportedError(message).locate(node.span)

    def _activation_in(self, statement):
        """The first reference to an activation in a statement, or in a `let` that it names; or `None`."""
        for node in ast.walk(statement):
            if type(node) is ast.Reference and self.activations(node.selector)[0]:
                return node
            if type(node) is ast.Local and (read := self._reading.get(node.name)):
                return read
        return None

    def _check_bindings(self):
        targets = {}
        for statement, entry in self.weights:
            targets.setdefault(id(statement), []).append(self._names.of_entry(entry))
        for part in self.parts:
            for statement in part.edits:
                targets.setdefault(id(statement), []).append(part)
        for statement in self.patch.statements:
            for node in ast.walk(statement):
                if type(node) is ast.Binding:
                    for target in targets.get(id(statement), [None]):
                        self._located(self._bound.meaning, node, target)
        self._bound.check_used()

    def _checked_once(self):
        """The assertions and `let`s that read no activations, which are checked once; raises for other assertions."""
        kept = []
        for statement in self.patch.statements:
            if isinstance(statement, (ast.Edit, ast.For)):
                continue
            read = self._located(self._activation_in, statement)
            if read is None:
                kept.append(statement)
            elif isinstance(statement, ast.Assert):
                message = (
                    f"'{read.selector}' is an activation, but an assertion is checked before there are activations"
                )
                raise UnsupportedError(message, span=read.span, source=self.patch.source)
        return Patch(tuple(kept), self.patch.source)

    def _finish(self, part):
        """Makes the part's patch: its own activation becomes `_`, the others that it reads become `$names`."""
        part.constants = {}
        statements = [made for statement in self.with_lets(part.edits) for made in self._own(statement, part)]
        part.patch = Patch(tuple(statements), self.patch.source)
        for name in part.live.keys() & names_in_indices(part.patch):
            part.constants[name] = part.live.pop(name)

    def _own(self, statement, part):
        if isinstance(statement, ast.Let):
            _refuse_implied(statement.value, self._names)
            return [ast.mapped(statement, lambda node: self._read(node, part, ast.Implied(node.span)))]
        own = ast.Local(self._name("present", id(statement)))  # `_` would be the written entries, not the whole
        new = ast.mapped(statement, lambda node: self._read(node, part, own))
        target = ast.Target(ast.Implied(), new.target.index, new.target.span)
        edit = ast.Edit(target, new.op, new.value, span=new.span)
        return [ast.Let(own.name, ast.Implied()), edit] if own in ast.walk(edit) else [edit]

    def _read(self, node, part, own):
        if type(node) is ast.Binding:
            return self._given_to(part, node)
        if type(node) is not ast.Reference:
            return node
        nodes, kind, inner = self.activations(node.selector)
        if not nodes:
            self.index.find(node.selector)
            message = f"'{node.selector}' is a weight; an edit of an activation can read only activations"
            raise UnsupportedError(message).locate(node.span)
        if nodes[0].item is part.node.item and (kind, inner) == (part.kind, part.inner):
            return own
        name = self._name("_".join([nodes[0].item.name, kind, *inner]), (id(nodes[0].item), kind, inner))
        part.reads.setdefault(name, (nodes[0], kind, inner, node.span))
        return ast.Binding(name, None, node.span)

    def _given_to(self, part, node):
        """A binding of an activation's part: a constant in an index, and of numbers; else read when the layer runs."""
        held = {}
        made = self._constant(node, part, held)
        [(name, value)] = held.items()
        (part.live if is_live(value) else part.constants)[name] = value
        return made

    def _constant(self, node, target, constants):
        """A binding of a part; a variable of a bound model becomes a constant with a name of its own."""
        name, value = node.name, self.bindings[node.name]
        if node.path is not None:
            place = self._bound.meaning(node, target)
            if isinstance(place, Value):  # of a recording
                name, value = self._name(node.name, id(place)), place.data
            else:
                key = (id(place.variable), place.weight is None)
                name, value = self._name(place.path, key), place.variable if place.weight is None else tensor_of(place)
        constants[name] = value
        return ast.Binding(name, None, node.span)

    def _name(self, stem, key):
        """A name, unused in the patch, for a value that a part reads."""
        if key not in self._given:
            stem = re.sub(r"^(?=\d)|[^A-Za-z0-9_]+", "_", stem.lstrip("$"))
            numbered = (f"{stem}_{number}" for number in itertools.count(2))
            self._given[key] = next(name for name in itertools.chain([stem], numbered) if name not in self._taken)
            self._taken.add(self._given[key])
        return self._given[key]

    def _located(self, function, statement, *args):
        """Calls a function; its errors get the statement's span in the patch."""
        span = statement.target.span if isinstance(statement, ast.Edit) else statement.span
        try:
            return function(statement, *args)
        except PatchError as error:
            raise error.locate(span, self.patch.source) from None


def is_live(value):
    """Whether a binding is a tensor or a variable, which may be traced, have gradients, or change."""
    import keras

    if isinstance(value, keras.Variable):
        return True
    return keras.ops.is_tensor(value) and not isinstance(value, (np.ndarray, np.generic))


def _refuse_implied(node, names):
    """Raises for `_` in a `let` of a model, except in an index, where it means the indexed tensor."""
    if type(node) is ast.Implied:
        try:
            names.place(None)
        except PatchError as error:
            raise error.locate(node.span) from None
    for child in [node.value] if type(node) is ast.Subscript else ast.children(node):
        _refuse_implied(child, names)


def bindings_of(patch, bindings):
    """The bindings that a patch names."""
    named = {node.name for node in ast.walk(patch) if type(node) is ast.Binding}
    return {name: value for name, value in bindings.items() if name in named}
