"""Selector → variables: an index of a model's names, kept until the model changes."""

import os
import reprlib
import weakref
from collections import defaultdict
from dataclasses import replace

import numpy as np

from kpatch.errors import PatchError, ResolutionError, UnsupportedError
from kpatch.names import attention, globs
from kpatch.names import optimizers as opt
from kpatch.names.misses import Miss
from kpatch.names.tree import ACTIVATIONS, KEPT, LAYER, STORED, Walk, descend, distinct, spelled, variables_of
from kpatch.syntax.ast import Glob, Name, Position

MAX_SUGGESTED = 20  # errors of one use that look for the nearest spelling: milliseconds each, in a large model


class ModelIndex:
    """The names of a model's variables. `index(model)` gives it: the same object as long as nothing changes.

    Attributes:
        root: the `LayerNode` of the model.
        entries: each variable once, in the order of `model.weights`, the hidden ones between.
        plans: what `run` makes of patches and these names, and keeps with them.
        counterparts: of the entries of other models, by their root, the numbers of those with the same place here.
    """

    def __init__(self, root):
        vars(root).setdefault(KEPT, None)  # before the attributes are counted
        walk = Walk(root)
        self._watch = walk.watch
        self._enter(walk.root, walk.nodes, walk.entries)

    def _enter(self, root, nodes, entries):
        self.root = root
        self.nodes = nodes
        self.entries = entries
        self._nodes = defaultdict(list)  # by each of their names
        self._variables = defaultdict(list)
        for node in nodes:
            for name, nodes in node.children.items():
                self._nodes[name] += nodes
            for name, entries in node.variables.items():
                self._variables[name] += entries
        self._optimizers = {}
        self._successor = None
        self._walked = True
        self._suggestions = MAX_SUGGESTED
        self.plans = {}
        self.counterparts = weakref.WeakKeyDictionary()

    def begin(self):
        """Whether the model is still as it was; a new use of the index begins."""
        self._walked = False
        self._suggestions = MAX_SUGGESTED
        return self._successor is None and self._watch.holds()

    @property
    def models(self):
        """The model, in a list."""
        return [self.root.item]

    @staticmethod
    def path(entry):
        """A selector that means exactly this variable."""
        return entry.path

    def find(self, selector):
        """The entry of the one variable that a selector without globs means; raises as `find_all` does."""
        [entry] = self.find_all(selector)
        return entry

    def find_all(self, selector):
        """The entries that a selector means, in the model's order: exactly one, or with a glob one or more.

        Raises:
            ResolutionError: it means none, or without a glob several; with the candidates, the nearest spelling, and
                the span of the part at fault.
            UnsupportedError: it is an activation.
        """
        if self._successor is not None:
            return self._successor.find_all(selector)
        keys = keys_of(selector)
        self._refuse_activation(selector, keys)
        found = self._match(selector, keys)
        if len(found) == 1 or (found and selector.is_glob):
            return found
        if not found and keys[-1] == STORED and len(keys) > 1:
            return stored_of(self, selector)
        if not found and (names := self._optimizer_of(selector)) is not None:
            return names.find_all(selector)
        if not found and not self._walked:
            return self._find_anew(selector, keys)
        raise Miss(self, selector, keys).error(found)

    def _optimizer_of(self, selector):
        """The names of the optimizer that a selector begins with, or `None`."""
        first = selector.parts[0]
        return self.optimizer(first.value) if type(first) is Name else None

    def optimizer(self, name=opt.NAME):
        """The `OptimizerNames` of an attribute of the model; `None` if that is no optimizer.

        Of a model that is not compiled, `"optimizer"` has names as well: none.
        """
        import keras

        model = self.root.item
        held = vars(model).get(name) if isinstance(model, keras.Layer) else None
        if not (opt.is_optimizer(held) or (name == opt.NAME and isinstance(model, keras.Model))):
            return None
        key = (name, id(held), held is not None and held.built)  # the index is made anew if it holds another one
        if key not in self._optimizers:
            state = None if held is None else opt.state_of(held)
            self._optimizers[key] = opt.OptimizerNames(self, state, name)
        return self._optimizers[key]

    def optimizer_entries(self):
        """The entries of the variables of the model's optimizer, which are not among `entries`."""
        names = self.optimizer()
        return [] if names is None else names.entries()

    def _find_anew(self, selector, keys):
        """Looks once more, in a new index: an attribute may have been bound in a way that `Watch` does not see."""
        fresh = ModelIndex(self.root.item)
        fresh._suggestions = self._suggestions
        if fresh._match(selector, keys):
            self._successor = vars(self.root.item)[KEPT] = fresh
        self._walked = True
        return self.find_all(selector)

    def _match(self, selector, keys):
        """The entries that the selector means: by a full chain of names, else, without a glob, by the end of one.

        If that is none, names may also be those that a weights file counts.
        """
        forms = self.forms(selector, keys)
        if selector.is_glob:
            tries = (globs.matching(self.root, form, counted) for counted in _ways(keys) for form in forms)
            return next(filter(None, tries), [])
        for form in forms:
            if found := variables_of(descend([self.root], form[:-1]), form[-1]):
                return found
        for form in forms:
            if found := [entry for entry in self.entries_ending(form) if not entry.hidden]:
                return found
        if found := self._of_keras_path(selector):
            return found
        return next(filter(None, map(self._counted, forms)), [])

    def _of_keras_path(self, selector):
        if not _is_keras_path(selector) or len(selector.parts) > 1:
            return []
        return [entry for entry in self.entries if entry.variable.path == selector.parts[0].value]

    def _counted(self, keys):
        nodes = self.nodes_ending(keys[:-1], counted=True) if len(keys) > 1 else []
        return [entry for entry in variables_of(nodes, keys[-1]) if not entry.hidden]

    def forms(self, selector, keys):
        """The chain of names that the selector spells; a Keras path may begin with the model's own name."""
        if _is_keras_path(selector) and keys[0] == self.root.item.name and len(keys) > 1:
            return [keys, keys[1:]]
        return [keys]

    def entries_ending(self, keys):
        """The entries with a chain of names that ends so, hidden ones too."""
        if len(keys) == 1:
            return distinct(self._variables.get(keys[0], ()))
        return variables_of(self.nodes_ending(keys[:-1]), keys[-1])

    def nodes_ending(self, keys, counted=False):
        """The nodes with a chain of names that ends so. A leading `layers[i]` counts from the model, nowhere else.

        With `counted` each may also be a name of a weights file, if no layer of the model has the first one, and none
        beside it another. The first one means that layer of each model, so it is ambiguous if several count so far:
        what a name means does not depend on whether Keras's own numbers began with it.
        """
        if type(keys[0]) is int:
            return descend([self.root], keys, counted)
        first = self._nodes.get(keys[0], ())
        if counted and not first:
            first = [node.counted[keys[0]] for node in self._models() if keys[0] in node.counted]
        return descend(distinct(first), keys[1:], counted)

    def _models(self):
        return [node for node in self.nodes if node.kind == LAYER and node.numbered]

    def nodes_before(self, keys):
        """The nodes that all keys but the last lead to; with a glob among them, from the model on.

        Without one these are layers by their full chain of names, else by the end of one.
        """
        if any(type(key) is Glob for key in keys):
            tries = ([node for node, _ in globs.walk(self.root, keys, counted)] for counted in (False, True))
            found = next(filter(None, tries), [])
            return [node for node in found if node is not self.root] or found  # its output is that of a layer, again
        whole = [node for node in descend([self.root], keys[:-1]) if node.kind == LAYER]
        return whole or self.nodes_ending(keys[:-1], counted=True)

    def activations(self, selector):
        """The nodes of the layers whose activation a selector means, in the model's order, and which one it is.

        That is `"output"` or `"input"`, and the keys of a tensor in it, if there are several: `("cache",)`; or
        `"scores"` or `"heads"` of attention. No nodes, if the selector means variables.

        Raises:
            ResolutionError: without a glob, it means several activations.
            UnsupportedError: without a glob, the layer has no scores or heads.
        """
        keys = keys_of(selector)
        at = max((place for place, key in enumerate(keys) if key in ACTIVATIONS), default=0)
        inner = tuple(keys[at + 1 :])
        if self._of_root(keys):
            return [self.root], keys[0], inner
        if not at and keys[-1] in attention.SIDES:
            return self._steps(selector, keys), keys[-1], ()
        if not at or (inner and (any(type(key) is not str for key in inner) or self._match(selector, keys))):
            return [], None, ()
        forms = [form[: len(form) - len(inner)] for form in self.forms(selector, keys)]
        found = _outermost([node for form in forms for node in self.nodes_before(form) if node.kind == LAYER])
        _refuse_several(selector, found, keys[at:])
        return found, keys[at], inner

    def _of_root(self, keys):
        """Whether names are `output` or `input`, or a tensor in it, of the model or layer itself.

        A name that a variable has is none of a tensor: `output.kernel` is of a layer that is not there.
        """
        first, *inner = keys
        if first not in ACTIVATIONS or first in self._nodes or first in self._variables:
            return False
        return all(type(key) is str for key in inner) and keys[-1] not in self._variables

    def _steps(self, selector, keys):
        """The nodes of the attention layers of which a selector means a step; a variable's name comes first."""
        nodes = [self.root] if keys[0] not in self._nodes else []  # of the layer that is handed in
        if len(keys) > 1:
            nodes = _outermost([node for form in self.forms(selector, keys) for node in self.nodes_before(form)])
        found = [node for node in nodes if node.kind == LAYER and attention.is_attention(node.item)]
        if not found or self._match(selector, keys):
            return []
        if selector.is_glob:
            return [node for node in found if attention.has(node.item, keys[-1])]
        _refuse_several(selector, found, keys[-1:])
        try:
            attention.sublayer(found[0].item, keys[-1])
        except UnsupportedError as error:
            raise error.locate(selector.span) from None
        return found

    def _refuse_activation(self, selector, keys):
        if any(key in (*ACTIVATIONS, *attention.SIDES) for key in keys) and self.activations(selector)[0]:
            message = f"'{selector}' is an activation; kpatch.rewrite and kpatch.intervene edit those"
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
        >>> from kpatch.names.index import index
        >>> from kpatch.syntax import parse
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
        >>> index(model).entries
        [head.kernel (4, 3) float32, head.bias (3,) float32]
        >>> index(model).find(parse("kernel = 0").statements[0].target.selector)
        head.kernel (4, 3) float32
    """
    known = kept(root)
    if known is not None:
        return known
    import keras

    if not isinstance(root, keras.Layer):
        raise _no_model(root)
    known = ModelIndex(root)
    root.__dict__[KEPT] = known
    return known


def kept(root):
    """The index that was made of a model, if it is still right; else `None`, as for anything else."""
    try:
        known = root.__dict__[KEPT]
    except (AttributeError, KeyError):
        return None
    return known if known is not None and known.root.item is root and known.begin() else None


def find_every(index, selector):
    """The entries that a target's selector means: those of each alternative, which is resolved as it would be alone."""
    return distinct([entry for each in selector.alternatives for entry in index.find_all(each)])


def _no_model(value):
    import keras

    notes = []
    if isinstance(value, (str, os.PathLike)):
        notes = ["kpatch.checkpoint.apply edits a file"]
    elif keras.ops.is_tensor(value) or isinstance(value, (np.ndarray, np.generic)):
        notes = ["kpatch.edit makes an edited copy of a tensor or an array"]
    elif isinstance(value, keras.KerasTensor):
        notes = ["kpatch.layers.ScatterLayer edits a tensor of a graph"]
    message = f"expected a Keras model or layer; Received: {reprlib.repr(value)} (of type {type(value)})"
    return PatchError(message, notes=notes)


def stored_of(names, selector):
    """What `.stored` means: of a glob, only those of its matches that store something else than the weight."""
    of = names.find_all(_without_last(selector))
    found = [entry.stored for entry in of if entry.weight is not None or not selector.is_glob]
    if found:
        return found
    message = f"no variable matches '{selector}': what it matches without '.{STORED}' is stored as it is"
    raise ResolutionError(message).locate(selector.span)


def _without_last(selector):
    """The selector without its last part; of a Keras path without the last of its names."""
    last = selector.parts[-1]
    rest = last.value.rpartition("/")[0] if type(last) is Name else ""
    parts = (*selector.parts[:-1], *[Name(rest, last.span)] * bool(rest))
    return replace(selector, parts=parts)


def _outermost(nodes):
    """The nodes, each once, without a layer whose wrapper has the same name and is among them."""
    return [node for node in distinct(nodes) if not (node.parent in nodes and _wraps(node.parent.item, node.item))]


def _wraps(outer, layer):
    import keras

    return isinstance(outer, keras.layers.Wrapper) and outer.layer is layer and outer.name == layer.name


def _refuse_several(selector, nodes, keys):
    if len(nodes) > 1 and not selector.is_glob:
        paths = ", ".join(repr(spelled([*node.keys(), *keys])) for node in nodes[:8])
        message = f"'{selector}' means several activations"
        raise ResolutionError(message, notes=[f"candidates: {paths}"]).locate(selector.span)


# Chains of names -----------------------------------------------------------------------------------------------------


def keys_of(selector):
    """The selector's parts as strings, integers for `layers[i]`, and `Glob`s; a Keras path is several."""
    keys: list[str | int | Glob] = []
    for part in selector.parts:
        if type(part) is Name:
            keys += part.value.split("/") if "/" in part.value else (part.value,)
        else:
            keys.append(part.index if type(part) is Position else part)
    return keys


def _ways(keys):
    """Whether names in front of the last may be those of a weights file: first not, then also."""
    return (False, True) if any(type(key) is str for key in keys[:-1]) else (False,)


def _is_keras_path(selector):
    first = selector.parts[0]
    return type(first) is Name and "/" in first.value
