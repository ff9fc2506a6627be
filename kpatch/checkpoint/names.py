"""The meaning of names in a file: the model's selectors if its architecture is known, then the file's own names, such
as `layers.dense.vars.0`."""

from typing import Any

from kpatch.checkpoint.arrays import Opaque
from kpatch.errors import BindingError, ResolutionError, UnsupportedError
from kpatch.names.index import ModelIndex
from kpatch.names.meanings import ModelNames, Place
from kpatch.names.sums import narrow
from kpatch.names.tree import LAYER, Entry, LayerNode, is_speakable, spelled
from kpatch.syntax import Implied
from kpatch.syntax.ast import Name


class Folder:
    """A group of a file, in place of a layer in the tree of names."""

    built = True

    def __init__(self, name):
        self.name = name


class FileEntry(Entry):
    """An array in the index of a file. If no chain of names means it alone, its path is its whole name in the file."""

    __slots__ = ()

    @property
    def path(self):
        if self._path is None:
            chains = ([*node.keys(), name] for _, node, name in self.routes if node.variables[name] == [self])
            keys = next((keys for keys in chains if all(map(is_speakable, keys))), [self.variable.path])
            self._path = spelled(keys)
        return self._path


class FileIndex(ModelIndex):
    """The index of the names in a file: a tree of the arrays' chains of names.

    Example:
        >>> from kpatch.checkpoint.arrays import Array, Opaque
        >>> from kpatch.syntax import parse
        >>> index = FileIndex([Array(("layers", "dense", "vars", "0"), None, 0, (4, 3), "float32")])
        >>> index.find(parse('"layers/dense/vars/0" = 1').statements[0].target.selector)
        layers.dense.vars.0 (4, 3) float32
    """

    def __init__(self, arrays):
        root = LayerNode(Folder(""), LAYER, None)
        nodes, entries = [root], []
        for array in arrays:
            owner = self._folder(root, array.chains[0], nodes)
            entry = FileEntry(array, owner, len(entries))
            entry.hidden = array.hidden
            owner.own.append(entry)
            for rank, keys in enumerate(array.chains):
                node = self._folder(root, keys, nodes)
                entry.routes.append((rank, node, keys[-1]))
                node.variables.setdefault(keys[-1], []).append(entry)
            entries.append(entry)
        self._whole = {entry.variable.path: entry for entry in entries}
        self._enter(root, nodes, entries)

    def _match(self, selector, keys):
        """A quoted name that is all of an array's name in the file means that array."""
        part = selector.parts[0]
        whole = self._whole.get(part.value) if len(selector.parts) == 1 and type(part) is Name else None
        return super()._match(selector, keys) if whole is None else [whole]

    def _refuse_activation(self, selector, keys):
        """A file has no activations: `x.output` is an array."""

    def _folder(self, node, keys, nodes):
        for key in keys[:-1]:
            node = self._child(node, key, nodes)
        return node

    def optimizer(self, name=None):
        """`None`: there are no names of an optimizer but the file's own."""

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
    if isinstance(array, Opaque):
        message = f"'{path}' is of {array.dtype}, which is not part of the language"
        raise UnsupportedError(message, notes=["such an array is listed, copied and compared, and nothing else"])
    weight = weight or narrow(array)
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

    def donor(self, node, target):
        """The entry of a `Binding` node whose values can be read."""
        entry = self._entry(node, target)
        place_of_array(self, entry, f"${node.name}.{entry.path}")
        return entry

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

    def variable_of(self, entry):
        try:
            return self.index.array(entry)
        except ResolutionError:  # a variable of the model, of which the file has no values
            return None

    def of_entry(self, entry):
        key = id(entry.variable), entry.weight is None
        if key not in self._by_variable:
            self._by_variable[key] = place_of_array(self.index, entry, entry.path)
        return self._by_variable[key]
