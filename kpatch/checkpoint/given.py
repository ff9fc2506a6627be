"""What is handed in to a patch of a file: arrays of files, files, and all that a patch of a model takes."""

from kpatch.checkpoint.arrays import Array
from kpatch.errors import BindingError
from kpatch.names.bindings import NONE, Bindings, file_of
from kpatch.names.meanings import Place
from kpatch.names.sums import narrow


class Given:
    """The bindings of a patch of a file: arrays of files, checkpoints, and all values that `kpatch.apply` takes.

    Args:
        given: the values by their names.
        custom_objects: for files that are given by their path, as for `Checkpoint`.

    Attributes:
        models: the bound models.
    """

    def __init__(self, given, custom_objects=None):
        found = {n: value if isinstance(value, Array) else file_of(value, custom_objects) for n, value in given.items()}
        self._files = {name: value for name, value in found.items() if value is not None}
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
            weight = narrow(held)
            dtype = held.dtype if weight is None else weight.dtype
            return Place(f"${node.name}", held.shape, dtype, held, None, weight)
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
