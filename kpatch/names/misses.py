"""The errors of `kpatch.names.index`: why a selector matches no variable or several, with near names."""

from itertools import accumulate, chain

from kpatch.errors import ResolutionError
from kpatch.names import attention, globs
from kpatch.names.tree import ACTIVATIONS, GROUP, LAYER, METRIC, SEED, descend, spelled, variables_of
from kpatch.syntax.ast import Glob, Name
from kpatch.syntax.spelling import nearest

OF_PYTHON = ("model", "self", "net", "m")  # what Python calls a model
MAX_LISTED = 8  # candidates shown in an error


class Miss:
    """Makes the error of a selector that matches no variable or several."""

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
        if self.selector.is_glob:
            return self._no_match()
        return self._layer() or self._hidden() or self._missing()

    def _no_variables(self):
        unbuilt = any(node.kind == LAYER and not node.item.built for node in self.index.nodes)
        message = f"no variable '{self.selector}': the model has no variables"
        return ResolutionError(message + " until it is built or called" * unbuilt, span=self.selector.span)

    def _layer(self):
        for form in self.index.forms(self.selector, self.keys):
            for node in self.index.nodes_ending(form, counted=True) or descend([self.index.root], form):
                message = f"'{self.selector}' is a {node.kind}, not a variable"
                return ResolutionError(message, span=self.spans[-1], notes=[_contents(node, spelled(form))])
        return None

    def _hidden(self):
        for form in self.index.forms(self.selector, self.keys):
            for entry in self.index.entries_ending(form):
                message = f"no variable '{self.selector}'; did you mean '{entry.path}'?"
                note = "what is no weight (states, metrics, seed generators) is reached by its full name only"
                return ResolutionError(message, span=self.selector.span, notes=[note])
        return None

    def _no_match(self):
        """The error of a glob without a match: the first part that matches nothing, and the names at that level."""
        form = self.index.forms(self.selector, self.keys)[-1]
        word = "activation" if form[-1] in ACTIVATIONS else "variable"
        message, root = f"no {word} matches '{self.selector}'", self.index.root
        if not self.index.may_suggest():
            return ResolutionError(message, span=self.selector.span)
        if below := globs.matching(root, [*form, globs.ANY_DEPTH], counted=True):
            note = f"'{self.selector}.**' matches {_listed([entry.path for entry in below])}"
            return ResolutionError(f"{message}: it matches only layers", span=self.selector.span, notes=[note])
        if deeper := self._deeper(form):
            message += f"; did you mean '**.{self.selector}'?"
            notes = ["a selector with a glob starts at the model", f"that matches {_listed(deeper, word)}"]
            return ResolutionError(message, span=self.selector.span, notes=notes)
        at, nodes = 0, [root]
        while at < len(form) - 1 and (further := [node for node, _ in globs.walk(root, [*form[: at + 1], ""], True)]):
            at, nodes = at + 1, further
        names = _names(nodes, "variables" if at == len(form) - 1 else "children")
        pattern = form[at].pattern if type(form[at]) is Glob else form[at]
        if type(pattern) is str and (near := nearest(pattern, names)):
            better = [*form[:at], near, *form[at + 1 :]]
            if globs.matching(root, better, counted=True):
                message += f"; did you mean '{spelled(better)}'?"
        shown = next((node for node in nodes if node.variables or node.children), nodes[0])
        notes = [_contents(shown, spelled(shown.keys()) or "the model")]
        return ResolutionError(message, span=self.spans[at - len(form)], notes=notes)

    def _deeper(self, form):
        """The variables, or activations, that would match at any depth of the model."""
        anywhere = [globs.ANY_DEPTH, *form]
        if form[-1] not in ACTIVATIONS:
            return [entry.path for entry in globs.matching(self.index.root, anywhere, counted=True)]
        layers = [node for node in self.index.nodes_before(anywhere) if node.kind == LAYER]
        return [spelled([*node.keys(), form[-1]]) for node in layers]

    def _missing(self):
        forms = self.index.forms(self.selector, self.keys)
        form = max(forms, key=lambda form: self._followed(form)[1] - len(form))  # the form whose fault comes last
        nodes, at = self._followed(form)
        holder = spelled(form[:at]) or "the model"
        word = "activation" if form[-1] in ACTIVATIONS else "variable"
        message, notes = f"no {word} '{self.selector}'", [_contents(nodes[0], holder)]
        if type(form[at]) is int:
            message += f": {holder} has {len(nodes[0].layers)} layer{'s' * (len(nodes[0].layers) != 1)}"
        elif form[0] in OF_PYTHON and form[1:] and (rest := self.index.entries_ending(form[1:])):
            message += f"; a name begins at a layer of the model: '{rest[0].path}'"
        elif self.index.may_suggest():
            found, name = self._near(form, nodes, at)
            if len(found) == 1:
                message += f"; did you mean '{name or found[0].path}'?"
            elif found:
                message += f"; did you mean '{name}'?" * (name is not None)
                paths = ", ".join(_shortened([entry.path for entry in found]))
                notes.append(f"variables named '{found[0].variable.name}': {paths}")
            elif near := self._activation(form, nodes, at):
                message += f"; did you mean '{near}'?"
        return ResolutionError(message, span=self.spans[at - len(form)], notes=notes)

    def _followed(self, form):
        """The nodes reached by the names, and the position of the first name that matches nothing."""
        nodes, at = [self.index.root], 0
        while at < len(form) - 1:
            following = self._next(nodes, form[at], at)
            if not following:
                break
            nodes, at = following, at + 1
        return nodes, at

    def _next(self, nodes, key, at):
        return (at == 0 and self.index.nodes_ending([key], counted=True)) or descend(nodes, [key], counted=True)

    def _near(self, form, nodes, at):
        """The entries with near names, and the selector that matches them, or `None` to show their own paths."""
        keys, nodes = self._corrected(form, nodes, at)
        if not nodes:
            return self._below(self._followed(form)[0][0], form[-1]), None
        last = _nearest(form[-1], _names(nodes, "variables") if keys else self.index.variable_names())
        if last is None:
            return self._below(nodes[0], form[-1]), None
        found = variables_of(nodes, last) if keys else self.index.entries_ending([last])
        return [entry for entry in found if not entry.hidden], spelled([*keys, last])

    def _activation(self, form, nodes, at):
        """The selector of an activation with near names, or `None`."""
        keys, nodes = self._corrected(form, nodes, at)
        layers = [node.item for node in nodes if node.kind == LAYER and keys]
        steps = [kind for kind in attention.SIDES if any(attention.has(layer, kind) for layer in layers)]
        last = _nearest(form[-1], [*ACTIVATIONS, *steps]) if layers else None
        return last and spelled([*keys, last])

    def _corrected(self, form, nodes, at):
        """The names before the last as they are nearest to those of the model, and their nodes; none if one is not."""
        keys = form[:at]
        for key in form[at:-1]:
            if type(key) is str:
                key = _nearest(key, self.index.layer_names() if not keys else _names(nodes, "children"))
            nodes = self._next(nodes, key, len(keys)) if key is not None else []
            keys.append(key)
        return keys, nodes

    def _below(self, node, name):
        """The variables with a name at any depth below a node."""
        below, stack = set(), [node]
        while stack:
            node = stack.pop()
            if node not in below:
                below.add(node)
                stack += chain.from_iterable(node.children.values())
        return [entry for entry in self.index.entries_ending([name]) if not entry.hidden and entry.owner in below]


def excludes_nothing(exclusion, selector, means):
    """The error of an exclusion that means none of the variables, or activations, of the target's selector."""
    message = f"'{exclusion}' excludes nothing: it means none of the matches of '{selector}'"
    return ResolutionError(message, span=exclusion.span, notes=[f"it means {', '.join(_shortened(map(str, means)))}"])


def leave_nothing(selector, exclusions):
    """The error of exclusions that together take all that the target's selector means."""
    span = exclusions[0].span[0], exclusions[-1].span[1]
    return ResolutionError(f"the exclusions leave nothing of '{selector}'", span=span)


def _spans(part):
    """The span of the part; for a Keras path, the spans of its names."""
    if type(part) is not Name or "/" not in part.value:
        return [part.span]
    start, end = part.span
    names = part.value.split("/")
    if end - start != len(part.value) + 2:  # written with escapes
        return [part.span] * len(names)
    starts = accumulate([start + 1, *[len(name) + 1 for name in names[:-1]]])
    return [(start, start + len(name)) for start, name in zip(starts, names, strict=True)]


def _names(nodes, which):
    return list(dict.fromkeys(chain.from_iterable(getattr(node, which) for node in nodes)))


def _nearest(key, names):
    return key if key in names else nearest(key, names)


def _contents(node, name):
    """The contents of a layer: `dense_1 has: kernel (64, 32) float32, bias (32,) float32`."""
    entries = {}
    for key, found in node.variables.items():
        for entry in found:
            if not entry.hidden or node.kind in (METRIC, SEED):
                entries.setdefault(id(entry), f"{spelled([key])} {entry.shape} {entry.dtype}")
    items = list(entries.values()) + _child_names(node)
    if items:
        return f"{name} has: {', '.join(_shortened(items))}"
    built = node.kind != LAYER or node.item.built
    return f"{name} has no variables{'' if built else ' until it is built or called'}"


def _child_names(node):
    names = {}
    for key, children in node.children.items():
        for child in children:
            if child.kind in (LAYER, GROUP) and type(child.item).__name__ != "InputLayer":
                holder, label = child.label() if child.parent is node else (node, key)
                if holder is node:
                    names.setdefault(id(child), spelled([label]))
    return list(names.values())


def _listed(paths, word="variable"):
    """The number of paths, and the first ones."""
    return f"{len(paths)} {word}{'s' * (len(paths) != 1)}, {', '.join(_shortened(paths))}"


def _shortened(items):
    items = list(items)
    more = len(items) - MAX_LISTED
    return items[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])
