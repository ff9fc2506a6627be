"""What is handed in from Python under a name: `$row`, `$vector`, `$donor.dense_1.kernel`."""

import os
import sys
import weakref

import numpy as np

from kpatch import backends
from kpatch.errors import BindingError, PatchError
from kpatch.names.meanings import place_of_entry, place_of_weight
from kpatch.names.tree import Entry
from kpatch.syntax import Implied, nearest
from kpatch.values.dtypes import NUMPY, Value, constant, literal, tensor
from kpatch.values.numerics import from_numpy

LITERALS = ("bool", "int64", "uint64", "float64")  # NumPy's own defaults: such arrays say nothing about precision
OPTIONS: set[str] = set()  # the keywords of the functions themselves, entered by `keywords.checked`
KINDS = "a number, a list, an array, a tensor, a variable, a model, a recording, or a file of weights"


class Bindings:
    """The values of a patch's `$names`, read once.

    Attributes:
        models: the models among them.
        traced: whether one is a tensor that is not known yet, inside a compiled function.
    """

    def __init__(self, given):
        self._given = {name: _read(name, value) for name, value in given.items()}
        self._used = set()
        self.models = [held.model for held in self._given.values() if type(held) is Donor]

    def __bool__(self):
        return bool(self._given)

    def values(self):
        """Pairs of a name and what it stands for."""
        return self._given.items()

    @property
    def key(self):
        """What tells values apart that are handed in, if they are models; `None` if there are others."""
        donors = [held for held in self._given.values() if type(held) is Donor]
        return tuple((each.name, id(each.index)) for each in donors) if len(donors) == len(self._given) else None

    def remembered(self):
        """What `recall` takes, without a reference to the models; `None` if it cannot tell all that was named."""
        named = [donor.remembered() for donor in self._given.values()]
        return None if None in named else named

    def recall(self, remembered):
        """Looks up the variables that were named in a use with the same `key`; says whether they are the same still."""
        return all(donor.recall(*each) for donor, each in zip(self._given.values(), remembered, strict=True))

    @property
    def named(self):
        """The variables of models handed in that were looked up so far."""
        donors = [held for held in self._given.values() if type(held) is Donor]
        return [place for donor in donors for place in donor.places]

    @property
    def traced(self):
        from kpatch.values.arithmetic import is_traced

        values = [held for held in self._given.values() if isinstance(held, Value)]
        return any(not value.weak and is_traced(value.data) for value in values)

    def meaning(self, node, target):
        """The `Value` or the `Place` that a `Binding` node stands for.

        Raises:
            BindingError: nothing was handed in under that name, or something of another kind.
            ResolutionError: a path means no variable of the model handed in.
        """
        held = self._given.get(node.name)
        if held is None:
            raise self._missing(node.name)
        self._used.add(node.name)
        if isinstance(held, (Donor, Lender)):
            return held.place(node, target)
        if node.path is not None:
            raise BindingError(f"'${node.name}' is no model, so it has no '.{node.path}'")
        return held

    def _missing(self, name):
        near = nearest(name, self._given)
        keyword = f'bindings={{"{name}": ...}}' if name in OPTIONS else f"{name}=..."
        message = f"no value for '${name}'; " + (f"did you mean '${near}'?" if near else f"pass {keyword}")
        notes = [f"given: {', '.join(self._given)}"] if self._given else []
        return BindingError(message, notes=notes)

    def check_used(self):
        """Raises a `BindingError` for a value that no statement asks for."""
        for name in self._given:
            if name not in self._used:
                near = nearest(name, self._used)
                hint = f"; did you mean '{near}'?" if near else f": '${name}' is nowhere in the patch"
                raise BindingError(f"'{name}' is not used{hint}")


NONE = Bindings({})


class Donor:
    """A model handed in, whose variables are reached by a path, or by the target's own place."""

    def __init__(self, name, model):
        from kpatch.names.index import index

        self.name = name
        self.model = model
        self.index = index(model)
        self._counterparts = None
        self._places = {}

    @property
    def places(self):
        """Those that were looked up so far."""
        return self._places.values()

    def place(self, node, target):
        return self._place(self._entry(node, target))

    def _place(self, entry):
        if entry not in self._places:
            self._places[entry] = place_of_entry(entry, f"${self.name}.{entry.path}")
        return self._places[entry]

    def remembered(self):
        """A weak reference to the index, and the number and the dtype of each of its variables that were looked up.

        `None` if there are others, such as those of an optimizer.
        """
        if any(type(entry) is not Entry for entry in self._places):
            return None
        return weakref.ref(self.index), [(entry.order, place.dtype) for entry, place in self._places.items()]

    def recall(self, index, named):
        """Looks up variables by their numbers; says whether they have the same dtypes, and the index is the same."""
        entries = self.index.entries
        return index() is self.index and all(self._place(entries[at]).dtype == dtype for at, dtype in named)

    def _entry(self, node, target):
        if node.path is None:
            example = next((entry.path for entry in self.index.entries if not entry.hidden), "dense_1.kernel")
            raise BindingError(
                f"'${self.name}' is a model, not a tensor; name a variable of it, as in '${self.name}.{example}'",
                notes=[f"'${self.name}._' is the variable at the target's own place"],
            )
        if not isinstance(node.path, Implied):
            try:
                return self.index.find(node.path)
            except PatchError as error:
                error.notes = (f"in the model that '${self.name}' stands for", *error.notes)
                raise
        if target is None or target.entry is None:
            raise BindingError(f"'${self.name}._' is the variable at the target's place, and here is no target")
        if self._counterparts is None:
            from kpatch.names.counterparts import Counterparts

            self._counterparts = Counterparts(self.name, self.index)
        return self._counterparts.of(target.entry)


class Lender:
    """What is handed in and has values by name, other than a model in memory: a file, a recording."""

    def place(self, node, target):
        """The `Value` that a `Binding` node means, for a statement with that target, or `None`."""
        raise NotImplementedError


class FileOfValues(Lender):
    """A file handed in for a tensor or a model in memory. An array is read when the patch asks for it, once."""

    def __init__(self, file):
        self._file = file
        self._values = {}

    def place(self, node, target):
        """The `Value` of the array that a `Binding` node means."""
        entry = self._file.donor(node, target)
        if entry not in self._values:
            self._values[entry] = tensor(from_numpy(_wide(np.asarray(self._file.meant(entry).view()))))
        return self._values[entry]


def file_of(value, custom_objects=None):
    """The opened file of weights that is handed in, itself or by its path; `None` if the value is no file.

    Args:
        value: what is handed in.
        custom_objects: as for `Checkpoint`.
    """
    if hasattr(value, "donated"):
        return value
    if not isinstance(value, (str, os.PathLike)):
        return None
    from kpatch.checkpoint.opened import Checkpoint, is_path

    return Checkpoint(value, custom_objects=custom_objects) if is_path(value) else None


def _read(name, value):
    """What was handed in: a `Value`, a `Place`, a `Donor`, or a `Lender`."""
    if (file := file_of(value)) is not None:
        return FileOfValues(file)
    keras = sys.modules.get("keras")  # if it is not loaded, the value is none of its objects
    if isinstance(value, Value):
        return value
    if keras and isinstance(value, keras.Layer):
        return Donor(name, value)
    if hasattr(value, "__kpatch_lender__"):
        return value.__kpatch_lender__(name)
    if keras and isinstance(value, keras.Variable):
        place = place_of_weight(value, f"${name}")
        if place.dtype not in NUMPY:
            raise BindingError(f"'${name}' is a variable of {value.dtype}, which is not part of the language")
        return place
    try:
        return _value(value)
    except PatchError as error:
        raise BindingError(f"'${name}': {error.message}", notes=error.notes) from error
    except (TypeError, ValueError, RuntimeError) as error:  # what the backends' own conversions raise
        raise _unreadable(name, value) from error


def _unreadable(name, value):
    return BindingError(f"'${name}' is a {type(value).__name__}; a binding is {KINDS}")


def _value(value):
    """Numbers, lists, and arrays of NumPy's default dtypes are literals; everything else has a dtype of its own."""
    if isinstance(value, (bool, int, float)):
        return literal(value)
    if isinstance(value, (list, tuple)):
        return literal(_plain(value))
    if not isinstance(value, (np.ndarray, np.generic)):
        import keras

        if isinstance(value, keras.KerasTensor):
            raise TypeError("symbolic")
        if keras.ops.is_tensor(value):
            _refuse_without_entries(value)
            return tensor(backends.current().converted(value))
        value = foreign(value)
    if isinstance(value, np.ma.MaskedArray):
        raise PatchError("a masked array leaves entries without a value; 'filled()' gives them one")
    if value.dtype.name in LITERALS:
        return constant(np.array(value))
    return tensor(from_numpy(_wide(value)))


def _wide(array):
    """The array; of float8, in which no backend computes, as float32."""
    return array.astype("float32") if array.dtype.name.startswith("float8_") else array


def _refuse_without_entries(value):
    """Of a tensor on torch's meta device nothing is known; a sparse or ragged one has no entry at each place."""
    if getattr(value, "is_meta", False):
        raise PatchError("a tensor on the meta device has no values")
    if getattr(value, "is_sparse", False) or type(value).__name__ in ("SparseTensor", "RaggedTensor", "BCOO"):
        raise TypeError("sparse")


def _plain(value):
    """Lists of Python's own numbers, from lists and tuples of any."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    raise PatchError(f"a list holds numbers, and this one a {type(value).__name__}")


def foreign(value):
    """The array of a tensor of another library, on whatever device it is.

    Raises:
        TypeError, ValueError, RuntimeError: it has no array.
    """
    if isinstance(value, (str, bytes)) or not hasattr(value, "__array__"):
        raise TypeError(type(value).__name__)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return np.asarray(value.view(torch.int16)).view(NUMPY["bfloat16"])
    return np.asarray(value)
