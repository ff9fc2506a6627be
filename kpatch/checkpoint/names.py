"""The meaning of names in a file: the model's selectors if its architecture is known, then the file's own names, such
as `layers.dense.vars."0"`."""

from typing import Any

from kpatch.checkpoint.arrays import Array
from kpatch.errors import BindingError, ResolutionError, UnsupportedError
from kpatch.names.bindings import NONE, Bindings
from kpatch.names.index import ModelIndex
from kpatch.names.meanings import ModelNames, Place
from kpatch.names.tree import LAYER, Entry, LayerNode
from kpatch.syntax import Implied


class Folder:
    """A group of a file, in place of a layer in the tree of names."""

    built = True

    def __init__(self, name):
        self.name = name


class FileIndex(ModelIndex):
    """The index of the names in a file: a tree of the arrays' chains of names.

    Example:
        >>> from kpatch.checkpoint.arrays import Array
        >>> from kpatch.syntax import parse
        >>> index = FileIndex([Array(("layers", "dense", "vars", "0"), None, 0, (4, 3), "float32")])
        >>> index.find(parse('"layers/dense/vars/0" = 1').statements[0].target.selector)
        layers.dense.vars."0" (4, 3) float32
    """

    def __init__(self, arrays):
        root = LayerNode(Folder(""), LAYER, None)
        nodes, entries = [root], []
        for array in arrays:
            node = root
            for key in array.keys[:-1]:
                node = self._child(node, key, nodes)
            entry = Entry(array, node, len(entries))
            entry.hidden = False
            entry.routes.append((0, node, array.keys[-1]))
            node.own.append(entry)
            node.variables.setdefault(array.keys[-1], []).append(entry)
            entries.append(entry)
        self._enter(root, nodes, entries)

    @staticmethod
    def _child(node, key, nodes):
        if key not in node.children:
            child = LayerNode(Folder(key), LAYER, node)
            child.routes.append((0, node, key))
            node.children[key] = [child]
            nodes.append(child)
        return node.children[key][0]


def place_of_array(checkpoint, entry, path):
    """The `Place` of an entry of a `Checkpoint`: of the weight that a layer computes with, if the file stores codes."""
    array, weight = checkpoint.array(entry), checkpoint.weight(entry)
    if weight is None:
        return Place(path, array.shape, array.dtype, array, entry)
    return Place(path, weight.shape, weight.dtype, array, entry, weight)


class FileDonor:
    """A bound file; as with a model, a path after its `$name` selects an array."""

    sources: Any
    find: Any
    array: Any
    weight: Any
    counterpart: Any

    def donated(self, node, target):
        """The `Place` of a `Binding` node: by its path or, for `$name._`, the counterpart of the target."""
        entry = self._entry(node, target)
        return place_of_array(self, entry, f"${node.name}.{entry.path}")

    def _entry(self, node, target):
        if node.path is None:
            raise BindingError(f"'${node.name}' is a checkpoint; name an array of it, or write '${node.name}._'")
        if isinstance(node.path, Implied) and (target is None or target.entry is None):
            raise BindingError(f"'${node.name}._' is the variable at the target's place, and here is no target")
        try:
            return self.counterpart(target) if isinstance(node.path, Implied) else self.find(node.path)
        except (ResolutionError, UnsupportedError) as error:
            error.notes = (f"in the file bound to '${node.name}'", *error.notes)
            raise


class FileNames(ModelNames):
    """The names of a patch of a `Checkpoint`, which finds entries like the index of a model."""

    def of_entry(self, entry):
        key = id(entry.variable), entry.weight is None
        if key not in self._by_variable:
            self._by_variable[key] = place_of_array(self.index, entry, entry.path)
        return self._by_variable[key]


class Given:
    """The bindings of a patch of a file: arrays of files, checkpoints, and all values that `kpatch.apply` takes.

    Attributes:
        models: the bound models.
    """

    def __init__(self, given):
        self._files = {name: value for name, value in given.items() if isinstance(value, (Array, FileDonor))}
        self._used = set()
        self._places = {}
        others = {name: value for name, value in given.items() if name not in self._files}
        self._others = NONE if not others else Bindings(others)

    @property
    def models(self):
        return self._others.models

    def meaning(self, node, target):
        held = self._files.get(node.name)
        if held is None:
            return self._others.meaning(node, target)
        self._used.add(node.name)
        if node not in self._places or target is not None:
            self._places[node] = self._place(node, held, target)
        return self._places[node]

    def _place(self, node, held, target):
        if isinstance(held, Array):
            if node.path is not None:
                raise BindingError(f"'${node.name}' is no model, so it has no '.{node.path}'")
            return Place(f"${node.name}", held.shape, held.dtype, held)
        return held.donated(node, target)

    @property
    def sources(self):
        """The `Source`s of the bound files."""
        found = [each for held in self._files.values() for each in held.sources]
        return list(dict.fromkeys(found))

    def check_used(self):
        for name in self._files:
            if name not in self._used:
                raise BindingError(f"'{name}' is not used: '${name}' is nowhere in the patch")
        self._others.check_used()
