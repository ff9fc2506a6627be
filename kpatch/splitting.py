"""A patch of a model, split into patches of single layers: of their weights, of what they are given, of what they give.

`rewrite` puts them into a graph, `intervene` into the calls of layers.
"""

from dataclasses import dataclass, field
from typing import Any

from kpatch import api
from kpatch.bindings import Bindings
from kpatch.errors import PatchError, UnsupportedError
from kpatch.names import ModelNames
from kpatch.syntax import ast, parse


@dataclass(eq=False)
class Part:
    """What a patch does to one layer.

    Attributes:
        node: the layer's node in the index of the model.
        span: of the first target that names it.
        statements: `{"input": [...], "output": [...]}`, whose implied tensor is the activation.
        reads: for each of these the activations of other layers that it reads, `{name: (node, "output", span)}`.
        weights: `[(statement, entry)]`.
    """

    node: Any
    span: tuple
    statements: dict = field(default_factory=lambda: {"input": [], "output": []})
    reads: dict = field(default_factory=lambda: {"input": {}, "output": {}})
    weights: list = field(default_factory=list)

    def text(self, kind):
        return "\n".join(map(str, self.statements[kind]))


class Split:
    """The parts of a patch.

    Attributes:
        patch: the `Patch`.
        index: the index of the model's names.
        parts: a `Part` for each layer named, in the order of the patch.
        weights: the statements that write weights.
    """

    def __init__(self, model, patch, bindings):
        from kpatch.resolve import index

        self.patch = parse(patch) if isinstance(patch, str) else patch
        self.index = index(model)
        self.bindings = bindings
        self.weights = []
        self._parts = {}
        self._names = ModelNames(self.index, Bindings({}))
        self._check_bindings()
        self._check_assertions(model)
        for statement in self.patch.statements:
            if isinstance(statement, ast.Edit):
                try:
                    self._add(statement)
                except PatchError as error:
                    raise error.locate(statement.target.span, self.patch.source) from None

    @property
    def parts(self):
        return list(self._parts.values())

    def constants(self, text):
        """The bindings that a part of the patch names."""
        return bindings_of(parse(text), self.bindings)

    def _check_bindings(self):
        bound = Bindings(self.bindings)
        for node in ast.walk(self.patch):
            if type(node) is ast.Binding:
                try:
                    bound.meaning(node, None)
                except PatchError as error:
                    raise error.locate(node.span, self.patch.source) from None
        bound.check_used()

    def _check_assertions(self, model):
        kept = tuple(s for s in self.patch.statements if not isinstance(s, ast.Edit))
        if kept:
            asked = ast.Patch(kept, self.patch.source)
            api.apply(model, asked, **bindings_of(asked, self.bindings))

    def _add(self, statement):
        for node in ast.walk(statement):
            if type(node) is ast.Local:
                message = f"'{node.name}' is bound by a 'let' of the model, which a layer of its own does not know"
                raise UnsupportedError(message).locate(node.span)
        selector = statement.target.selector
        nodes, kind = self.activations(selector)
        if not nodes:
            self._add_weights(statement)
        for node in nodes:
            part = self._part(node, selector)
            own = ast.Edit(ast.Target(ast.Implied(), statement.target.index), statement.op, statement.value)
            part.statements[kind] += self._reading(own, part, kind)

    def activations(self, selector):
        """The layers whose activation a selector means, and which of the two; no layers where it means weights."""
        if isinstance(selector, ast.Implied):
            self._names.place(None)
        return self.index.activations(selector)

    def _add_weights(self, statement):
        selector = statement.target.selector
        entries = self.index.find_all(selector)
        if len(entries) > 1 and any(type(n) is ast.Call and n.function in RANDOM for n in ast.walk(statement.value)):
            raise UnsupportedError("random numbers for several variables by one statement; name them one by one")
        self.weights.append(statement)
        for entry in entries:
            self._part(entry.owner, selector).weights.append((statement, entry))

    def _part(self, node, selector):
        return self._parts.setdefault(id(node.item), Part(node, selector.span))

    def _reading(self, statement, part, kind):
        """The statement with activations that it reads as `let`s and bindings."""
        lets = {}

        def change(node):
            if type(node) is not ast.Reference:
                return node
            nodes, which = self.activations(node.selector)
            if not nodes:
                message = f"'{node.selector}' is a weight; what edits an activation reads activations"
                raise UnsupportedError(message).locate(node.span)
            if nodes[0].item is part.node.item and which == kind:
                lets["present"] = ast.Let("present", ast.Implied())
                return ast.Local("present")
            name = f"{which}_of_{len(part.reads[kind])}"
            known = part.reads[kind].items()
            name = next((n for n, (held, its, _) in known if held is nodes[0] and its == which), name)
            part.reads[kind].setdefault(name, (nodes[0], which, node.span))
            return ast.Binding(name)

        value = mapped(statement.value, change)
        target = mapped(statement.target, change)
        count = sum(isinstance(s, ast.Let) for s in part.statements[kind])
        if lets:  # a name of its own for each: a `let` may not bind a name twice
            rename = lambda n: ast.Local(f"present_{count}") if n == ast.Local("present") else n  # noqa: E731
            value, target = mapped(value, rename), mapped(target, rename)
        return [*[ast.Let(f"present_{count}", ast.Implied())] * bool(lets), ast.Edit(target, statement.op, value)]


def bindings_of(patch, bindings):
    """Those of the bindings that a patch names."""
    named = {node.name for node in ast.walk(patch) if type(node) is ast.Binding}
    return {name: value for name, value in bindings.items() if name in named}


RANDOM = ("normal", "uniform", "bernoulli", "permutation", "randint")


def weights_text(weights, leaf, whole):
    """The statements of the weights of a layer, with the names that the layer itself knows.

    Args:
        whole: the index of the model, in which the statements have their names.
    """
    from kpatch.resolve import index

    paths = {id(entry.variable): entry.path for entry in index(leaf).entries}

    def own(entry, at):
        if id(entry.variable) not in paths:
            message = f"'{entry.path}' is a weight of another layer, which '{leaf.name}' cannot read"
            raise UnsupportedError(message).locate(at.span)
        return parse(f"{paths[id(entry.variable)]} = 0").statements[0].target.selector

    def change(node):
        return ast.Reference(own(whole.find(node.selector), node)) if type(node) is ast.Reference else node

    return "\n".join(
        str(
            ast.Edit(
                mapped(ast.Target(own(entry, statement), statement.target.index), change),
                statement.op,
                mapped(statement.value, change),
            )
        )
        for statement, entry in weights
    )


def mapped(node, change):
    """The tree with each node, from the leaves up, replaced by what `change` makes of it."""
    fields = {}
    for name in node.__match_args__:
        value = getattr(node, name)
        if isinstance(value, ast.Node):
            fields[name] = mapped(value, change)
        elif type(value) is tuple and name != "span":
            fields[name] = tuple(mapped(item, change) if isinstance(item, ast.Node) else item for item in value)
        else:
            fields[name] = value
    return change(type(node)(**fields))
