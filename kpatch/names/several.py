"""Several models as one: a dict, whose keys begin the names, or a list, of which each model gets every statement.

A variable may stand for a model: its key is its whole name, and in a list it is `_`.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kpatch.errors import PatchError, ResolutionError
from kpatch.functions.quoted import with_names
from kpatch.names import globs
from kpatch.names.bindings import Bindings
from kpatch.names.index import index, keys_of, stored_of
from kpatch.names.meanings import ModelNames, Place
from kpatch.names.tree import GROUP, STORED, Entry, LayerNode, distinct, is_speakable
from kpatch.syntax import Patch, ast, nearest

MAX_LISTED = 8  # models that an error lists


class ModelsIndex:
    """The names of several models: a key, and after it a name of that model, by the rules of `ModelIndex`.

    Args:
        models: `{key: model}`; the key of a variable is its whole name.
        part: what makes the first part of a selector of a key.

    Attributes:
        keys: the keys.
        models: the models, without the variables.
        variables: the `Entry` of each variable, by its key.

    Example:
        >>> import keras
        >>> from kpatch.syntax import parse
        >>> one, two = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]) for _ in "ab")
        >>> index = ModelsIndex({"one": one, "two": two})
        >>> found = index.find_all(parse("*.head.bias = 0").statements[0].target.selector)
        >>> [index.path(entry) for entry in found]
        ['one.head.bias', 'two.head.bias']
    """

    def __init__(self, models: Mapping[Any, Any], part: type[ast.Name] = ast.Name) -> None:
        import keras

        for key in models:
            if not isinstance(key, str) or not is_speakable(key):
                raise PatchError(f"the key of a model is a name without '/'. Received: {reprlib.repr(key)}")
        if not models:
            raise PatchError("there are no models to edit: the list or dict is empty")
        free = {key: each for key, each in models.items() if isinstance(each, keras.Variable)}
        self._indices = {key: index(model) for key, model in models.items() if key not in free}
        self._labels = {id(known.root): str(part(key)) for key, known in reversed(self._indices.items())}
        self.variables = {key: _entry(variable, str(part(key))) for key, variable in free.items()}
        self.keys = tuple(map(part, models))
        self.models = [model for key, model in models.items() if key not in free]

    @property
    def nodes(self) -> list[LayerNode]:
        """All nodes; how many there are bounds what globs cost."""
        return [node for known in self._indices.values() for node in known.nodes]

    def path(self, entry: Entry) -> str:
        """A selector that means exactly this variable."""
        if entry.owner.kind == GROUP:
            return entry.path
        root = entry.owner
        while root.parent is not None:
            root = root.parent
        return f"{self._labels[id(root)]}.{entry.path}"

    def find(self, selector: ast.Selector) -> Entry:
        """The entry of the one variable that a selector without globs means."""
        [entry] = self.find_all(selector)
        return entry

    def find_all(self, selector: ast.Selector) -> list[Entry]:
        """The entries that a selector means, model after model; raises as `ModelIndex.find_all` does."""
        if type(selector.parts[0]) is ast.Glob:
            return self._matching(selector)
        key, rest = _split(selector)
        if key in self.variables:
            if rest is None:
                return [self.variables[key]]
            name = f"'{selector.parts[0]}' is a variable" + ", '_'" * (type(selector.parts[0]) is ast.Key)
            raise ResolutionError(f"no variable '{rest}': {name}", span=rest.span)
        if key not in self._indices:
            raise self._no_model(selector.parts[0], key)
        if rest is None:
            raise ResolutionError(f"'{selector}' is a model, not a variable", span=selector.span)
        try:
            return self._indices[key].find_all(rest)
        except PatchError as error:
            error.notes = (f"in the model '{key}'", *error.notes)
            raise

    def _matching(self, selector: ast.Selector) -> list[Entry]:
        keys = keys_of(selector)
        if found := distinct(self._globbed(keys, False)) or distinct(self._globbed(keys, True)):
            return found
        if keys[-1] == STORED and len(keys) > 2:
            return stored_of(self, selector)
        raise ResolutionError(f"no variable matches '{selector}'", span=selector.span, notes=[self._listed()])

    def _globbed(self, keys: list[Any], counted: bool) -> list[Entry]:
        first, *rest = keys
        found = []
        if not rest:
            matches = globs.matcher(first.pattern) if type(first) is ast.Glob else first.__eq__
            found = [entry for key, entry in self.variables.items() if matches(key)]
        for key, known in self._indices.items():
            if first == globs.ANY_DEPTH:  # it matches the key, and goes on below
                found += globs.matching(known.root, keys, counted)
            elif rest and (globs.matcher(first.pattern)(key) if type(first) is ast.Glob else first == key):
                found += globs.matching(known.root, rest, counted)
        return found + (self._globbed(rest, counted) if rest and first == globs.ANY_DEPTH else [])

    def _no_model(self, part: Any, key: str) -> ResolutionError:
        near = nearest(key, {*self._indices, *self.variables})
        hint = f"; did you mean '{near}'?" if near else ": a name begins with the key of its model"
        return ResolutionError(f"no model '{key}'{hint}", span=part.span, notes=[self._listed()])

    def _listed(self) -> str:
        more = [f"and {len(self.keys) - MAX_LISTED} more"] * (len(self.keys) > MAX_LISTED)
        kind = "variables" if not self._indices else "models and variables" if self.variables else "models"
        return f"the {kind} are: {', '.join([*map(str, self.keys[:MAX_LISTED]), *more])}"


def _entry(variable: Any, key: str) -> Entry:
    """The entry of a variable that belongs to no model, of which the key is the whole name."""
    entry = Entry(variable, LayerNode(None, GROUP, None), 0)
    entry.hidden = False
    entry._path = key
    return entry


def _split(selector: ast.Selector) -> tuple[str, ast.Selector | None]:
    """The key that a selector begins with, and the selector of the rest, or `None` if there is none."""
    first, *rest = selector.parts
    key = first.value if isinstance(first, ast.Name) else str(first)
    if "/" in key:
        key, _, below = key.partition("/")
        rest = [ast.Name(below, first.span), *rest]
    return key, ast.Selector(tuple(rest), (rest[0].span[0], selector.span[1])) if rest else None


class EachNames(ModelNames):
    """The names of the models of a list, in a patch that `each` made: every selector begins with an `ast.Key`."""

    def __init__(self, index: ModelsIndex, bindings: Bindings) -> None:
        super().__init__(index, bindings)
        self._writers = {}  # (a selector without its key, a variable's place) → the first key that has it

    def places(self, selector: ast.Selector | None) -> list[Place]:
        """Those that the statement writes in this model: a variable that several models share is written once."""
        places = super().places(selector)
        if selector is None:
            return places
        key, *rest = selector.parts
        return [place for place in places if self._writers.setdefault((*rest, id(place)), key) == key]

    def writes_nothing(self, statement: ast.Node) -> bool:
        """Whether the one variable of the target belongs to the statement's copy for a model before."""
        if not isinstance(statement, ast.Edit) or isinstance(statement.target.selector, ast.Implied):
            return False
        selector = statement.target.selector
        try:
            return not selector.is_glob and not self.places(selector)
        except PatchError:  # planning words it
            return False


def list_of(models: Iterable[Any]) -> ModelsIndex:
    """The index of a list of models; their keys are `[0]`, `[1]` and so on."""
    return ModelsIndex({f"[{position}]": model for position, model in enumerate(models)}, ast.Key)


def each(patch: Patch, names: EachNames) -> Patch:
    """A patch with a copy of each statement for each model of `EachNames`, with the names and locals of that model.

    The copies of a statement follow each other: what a statement reads, no later statement has written yet.
    """
    statements = []
    for statement in with_names(patch).statements:
        for key in names.index.keys:
            copy = _of_variable(statement, key) if key.value in names.index.variables else statement
            copy = ast.mapped(copy, lambda node, key=key: _of_model(node, key))
            if not names.writes_nothing(copy):
                statements.append(copy)
    return Patch(tuple(statements), patch.source, patch.span)


def _of_variable(statement: Any, key: ast.Key) -> ast.Node:
    """A statement with the name of a variable in place of `_`, where that is the variable as a whole."""
    if type(statement) is not ast.Edit:
        return _explicit(statement)
    target = statement.target
    if isinstance(target.selector, ast.Implied):
        target = replace(target, selector=ast.Selector((), target.selector.span))
    return replace(statement, target=target)


def _explicit(node: Any) -> Any:
    if type(node) is tuple:
        return tuple(map(_explicit, node))
    if not isinstance(node, ast.Node):
        return node
    if type(node) is ast.Implied:
        return ast.Reference(ast.Selector((), node.span), node.span)
    if type(node) is ast.Subscript:  # in an index `_` is the tensor that is indexed
        return replace(node, value=_explicit(node.value))
    return type(node)(*[_explicit(getattr(node, name)) for name in node.__match_args__])


def _of_model(node: Any, key: ast.Key) -> ast.Node:
    kind = type(node)
    if kind is ast.Local:
        return ast.Local(f"{key}.{node.name}", node.span)
    if kind is ast.Let:
        return ast.Let(f"{key}.{node.name}", node.value, node.span)
    if kind is ast.Reference:
        return ast.Reference(_under(key, node.selector), node.span)
    if kind is ast.Target:
        return ast.Target(_under(key, node.selector), node.index, node.span)
    if kind is ast.For:
        node = replace(node, selector=_under(key, node.selector))
    if kind in (ast.Edit, ast.For) and node.exclusions:
        return replace(node, exclusions=tuple(_under(key, each) for each in node.exclusions))
    return node


def _under(key: ast.Key, selector: Any) -> Any:
    if isinstance(selector, ast.Implied):
        return selector
    return ast.Selector((ast.Key(key.value, selector.span), *selector.parts), selector.span)
