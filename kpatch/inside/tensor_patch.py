"""A patch of one tensor `_` for compiled functions: planned once for each shape, run in traces.

Layers, initializers and constraints hold one. They serialise its source text and the values of its `$names`.
"""

import base64
import functools
import zlib
from dataclasses import replace

import numpy as np

from kpatch import backends
from kpatch.errors import BindingError, PatchError
from kpatch.inside import holders
from kpatch.names.bindings import Bindings, foreign
from kpatch.names.meanings import Place, TensorNames, unknown
from kpatch.names.patches import bound
from kpatch.run import execute, planner, pure
from kpatch.syntax import ast, parse
from kpatch.values.dtypes import FLOATS, NUMPY, dtype_name, tensor
from kpatch.values.numerics import is_differentiated, is_traced
from kpatch.values.symbols import lengths
from kpatch.values.tensors import detached, to_numpy

MAX_PLANS = 16  # plans of a patch, for the latest combinations of shapes and dtypes


def in_dynamo():
    """Whether dynamo is tracing the caller for `torch.compile` or `torch.export`."""
    return backends.current().in_dynamo()


class Holder:
    """An object with a patch, called in compiled functions; in `torch.compile` by its key in the holders."""

    def __init__(self):
        self.key = holders.enter(self)

    def __call__(self, names, *values):
        raise NotImplementedError

    def free_axes(self):
        """The axes of the first tensor whose lengths are not known in the model."""
        return ()

    def run(self, names, *values):
        """Calls the object; under dynamo, which would treat NumPy arrays as tensors, as one opaque call."""
        if in_dynamo():
            from kpatch.inside.dynamo import run_in_graph

            return run_in_graph(self.key, tuple(names), *values)
        try:
            call = functools.partial(self, names)
            return backends.current().exported(call, values, self.free_axes(), backends.using)
        except PatchError:
            backends.current().rescue()
            raise


class TensorPatch(Holder):
    """A patch whose every target is `_`.

    Args:
        patch: a `Patch`, or its text.
        bindings: the values of constant `$names`, `{name: value}`.
        owner: the owner's name for errors: "a ScatterLayer".

    Attributes:
        text: the text to serialise.
        bindings: `{name: value}`, with arrays as NumPy arrays.
        free: the `$names` without a value, in the order of the text; each call gives their tensors.
        used: whether it was called, since somebody set it to `False`.
    """

    def __init__(self, patch, bindings=None, owner="kpatch.edit"):
        super().__init__()
        self.patch, bindings = bound(patch, bindings)
        self.text = text_of(self.patch)
        self.owner = owner
        self.bindings = {name: plain(name, value) for name, value in bindings.items()}
        named = list(dict.fromkeys(node.name for node in _nodes(self.patch) if type(node) is ast.Binding))
        self.free = tuple(name for name in named if name not in self.bindings)
        if unused := next((name for name in self.bindings if name not in named), None):
            raise BindingError(f"'{unused}' is not used: '${unused}' is nowhere in the patch")
        self._refuse_variables()
        self._plans = []
        self.used = False

    def free_axes(self):
        shapes = [known["_"][0] for known, _ in self._plans]
        return tuple({axis for shape in shapes for axis, length in enumerate(shape) if length is None})

    def refuse_free(self):
        """Raises for a `$name` without a value; for owners whose calls give no tensors."""
        for part in _nodes(self.patch):
            if type(part) is ast.Binding and part.name in self.free:
                raise BindingError(f"no value for '${part.name}'; bindings={{'{part.name}': ...}} gives it").locate(
                    part.span, self.patch.source
                )

    def indices(self):
        """The `$names` in an index, which must be constants."""
        return names_in_indices(self.patch)

    def plan(self, spec, given=None):
        """The plan for a tensor.

        Args:
            spec: the tensor's `(shape, dtype)`; lengths can be `None`.
            given: the specs of the free names, `{name: (shape, dtype)}`.
        """
        specs = {"_": spec, **(given or {})}
        for known, planned in self._plans:
            if _covers(known, specs):
                return planned
        planned = replace(self.check(spec, given), names=None)  # their values can belong to a trace
        self._plans = [*self._plans[1 - MAX_PLANS :], (specs, planned)]
        return planned

    def check(self, spec, given=None):
        """The same, made anew and not kept."""
        values = {name: unknown(f"${name}", kind, tuple(shape)) for name, (shape, kind) in (given or {}).items()}
        names = self._names(spec, values)
        return planner.make(self.patch, names, names.implied.unknown(), traced=True)

    def __call__(self, names, x, *given):
        """A new tensor with the edits of the patch; `given` are the tensors of the free `names`."""
        self.used = True
        values = {name: tensor(value) for name, value in zip(names, given, strict=True)}
        spec = lengths(x.shape), dtype_name(x.dtype)
        planned = self.plan(spec, {name: (value.shape, value.dtype) for name, value in values.items()})
        store = pure.Pure(x, self._names(spec, values))
        execute.run(planned, store)
        return store.tensor

    def get_config(self):
        return {"patch": self.text, "bindings": {name: encoded(value) for name, value in self.bindings.items()}}

    def _names(self, spec, values):
        constants = {name: cast_as(value, spec[1]) for name, value in self.bindings.items()}
        return TensorNames(Place("_", *spec), Bindings({**constants, **values}), self.owner)

    def _refuse_variables(self):
        names = TensorNames(None, Bindings({}), self.owner)
        try:
            for part in _nodes(self.patch):
                if type(part) in (ast.Target, ast.Reference, ast.For) and isinstance(part.selector, ast.Selector):
                    names.place(part.selector)
        except PatchError as error:
            raise error.locate(None, self.patch.source) from None


def _nodes(patch):
    return (node for statement in patch.statements for node in ast.walk(statement))


def _index(node):
    return node.index or () if type(node) in (ast.Target, ast.Subscript) else ()


def _covers(known, specs):
    """Whether a plan for `known` fits `specs`: equal dtypes, and lengths that are equal or `None` in the plan."""
    return known.keys() == specs.keys() and all(
        dtype == specs[name][1]
        and len(shape) == len(specs[name][0])
        and all(a is None or a == b for a, b in zip(shape, specs[name][0], strict=True))
        for name, (shape, dtype) in known.items()
    )


def names_in_indices(patch):
    """The `$names` of a patch that an index depends on, without its `let`s."""
    brackets = [item for node in _nodes(patch) for item in _index(node)]
    return {part.name for item in brackets for part in ast.walk(item) if type(part) is ast.Binding}


def cast_as(value, dtype):
    """A floating array in the dtype of a floating tensor, as Keras casts what a layer is given; else the value itself.

    Arrays of float64 are literals, as Python's floats are.
    """
    kind = value.dtype.name if isinstance(value, np.ndarray) else None
    if kind in FLOATS and dtype in FLOATS and kind not in (dtype, "float64"):
        with np.errstate(over="ignore"):
            return value.astype(NUMPY[dtype])
    return value


# What is serialised --------------------------------------------------------------------------------------------------


def text_of(patch):
    """The source of a patch; its canonical text if it is a part of another patch, whose source it has."""
    return patch.source if parse(patch.source) == patch else str(patch)


def plain(name, value):
    """The value of a binding: Python numbers and lists unchanged, anything else as a NumPy array."""
    import keras

    if isinstance(value, dict) and value.keys() == {"dtype", "shape", "zlib"}:
        data = np.frombuffer(zlib.decompress(base64.b64decode(value["zlib"])), NUMPY[value["dtype"]])
        return data.reshape(value["shape"])
    if isinstance(value, (bool, int, float, list, tuple)):
        return list(value) if isinstance(value, tuple) else value
    if isinstance(value, keras.Layer):
        raise BindingError(f"'${name}' is a model; a compiled function takes numbers, lists, arrays and tensors")
    if isinstance(value, keras.Variable):
        value = detached(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.array(value)
    if keras.ops.is_tensor(value):
        return constant(name, value)
    try:
        return foreign(value)
    except (TypeError, ValueError, RuntimeError) as error:  # what the libraries' own conversions raise
        kind = type(value).__name__
        raise BindingError(f"'${name}' is a {kind}; a binding is a number, a list, an array or a tensor") from error


def constant(name, value):
    """The array of a tensor whose values are known, and of which no gradients are taken: a constant would have none."""
    if is_traced(value) or is_differentiated(value):
        raise BindingError(
            f"'${name}' is a tensor that is traced or differentiated, and a binding here is a constant",
            notes=[
                "kpatch.edit keeps its gradient, and so does kpatch.intervene in activations",
                f"a ScatterLayer takes it as a further input: layer([x, {name}])",
                "keras.ops.stop_gradient makes a constant of known values",
            ],
        )
    return to_numpy(value)


def encoded(value):
    if not isinstance(value, np.ndarray):
        return value
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes(), 1)).decode()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "zlib": packed}
