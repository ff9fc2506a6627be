"""The patched values of a layer's variables, as tensors; the variables do not change."""

from dataclasses import replace
from typing import Any

from kpatch.inside.tensor_patch import Holder, encoded, in_dynamo, plain, text_of
from kpatch.names.bindings import NONE, Bindings
from kpatch.names.meanings import ModelNames
from kpatch.names.patches import bound
from kpatch.run import execute, planner, pure
from kpatch.run.encoding import stored_otherwise


class WeightsPatch(Holder):
    """A patch of the variables of one layer, planned for compiled functions.

    Args:
        patch: a `Patch`, or its text.
        bindings: the values of its `$names`, constants.
    """

    def __init__(self, patch, bindings=None):
        super().__init__()
        self.patch, bindings = bound(patch, bindings)
        self.text = text_of(self.patch)
        self.bindings = {name: plain(name, value) for name, value in bindings.items()}
        self._planned: Any = None

    def plan(self, layer):
        """The plan for a built layer; renewed if its variables have changed."""
        from kpatch.names.index import index

        names = index(layer)
        if self._planned is None or self._planned.names.index is not names:
            bound = Bindings(self.bindings)
            planned = planner.make(self.patch, LayerNames(names, bound), traced=True)
            bound.check_used()
            # without the values, which can belong to a trace
            self._planned = replace(planned, names=planned.names.given(NONE))
            written = {id(step.place.variable): step.place.variable for step in self._planned.edits}
            self._written = list(written.values())
            self._read = [entry.variable for entry in names.entries if id(entry.variable) not in written]
        return self._planned

    def variables(self, layer):
        """The variables that the patch writes, and all other variables of the layer, which it can read."""
        if self._planned is None or not in_dynamo():  # under dynamo, changes of a layer cannot be detected
            self.plan(layer)
        return self._written, self._read

    def __call__(self, names, *values):
        """The new tensors of the written variables; `values` are the tensors of all `variables`. `names` is unused."""
        variables = (*self._written, *self._read)
        given = self._planned.names.given(Bindings(self.bindings))
        store = Overlay({id(v): value for v, value in zip(variables, values, strict=True)}, given)
        execute.run(self._planned, store)
        return tuple(store.tensors[id(variable)] for variable in self._written)

    def get_config(self):
        bindings = {name: encoded(value) for name, value in self.bindings.items()}
        return {"patch": self.text, "bindings": bindings}


class LayerNames(ModelNames):
    """The names of a layer whose variables are seen as a patch makes them, each of which is what it computes with."""

    def of_entry(self, entry):
        if entry.weight is not None:
            raise stored_otherwise(entry)
        return super().of_entry(entry)


class Overlay(pure.Pure):
    """A store with a tensor for each variable; a write replaces the tensor, not the variable's value."""

    implied = None
    look_up = execute.Named.look_up

    def __init__(self, tensors, names):
        self.tensors = tensors
        self.names = names

    def value(self, place):
        return self.tensors[id(place.variable)]

    def put(self, place, value):
        self.tensors[id(place.variable)] = value
