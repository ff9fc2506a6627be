"""Builds the model of an archive's configuration without values, to learn its names and the array of each variable.

The model is built as by `load_model`, in safe mode, in a scope in which Keras creates no values. Keras then loads it
from a store whose values are only the paths of the arrays.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.checkpoint.keras_files import failure
from kpatch.errors import FileError, of_backend


class Origin(str):
    """The path, in the weights file, of a variable's array."""

    __slots__ = ()


def build(config, arrays, custom_objects=None):
    """The model, and the array of each of its variables.

    Args:
        config: the text of config.json.
        arrays: the `Array`s of the weights file.
        custom_objects: classes and functions by name that the configuration needs beside Keras's, or `None`.

    Returns:
        The model, and a dict of arrays by the id of the variable.

    Raises:
        FileError: this process lacks code that the model needs, or the weights do not fit the architecture.
    """
    try:
        import keras
        from keras.src.saving import saving_lib
    except ModuleNotFoundError as error:
        raise of_backend(error) from None

    scope = keras.saving.custom_object_scope(dict(custom_objects or {}))
    with scope, warnings.catch_warnings(), _shapes_alone():
        warnings.simplefilter("ignore")
        try:
            model = saving_lib._model_from_config(config, None, False, True)
            found = _where(model, {"/".join(keys): array for array in arrays for keys in array.chains}, saving_lib)
        except Exception as error:  # the classes of a configuration can raise anything
            raise FileError(failure(Path(), error, "").message.partition(": ")[2]) from error
    if not isinstance(model, keras.Layer):
        raise FileError("its configuration is not one of a model")
    for variable in model.variables:
        array = found.get(id(variable))
        if array is not None and array.shape != tuple(variable.shape):
            raise FileError(f"its weights do not fit its architecture: '{variable.path}' is {tuple(variable.shape)}")
    return model, found


def _shapes_alone():
    """A scope in which variables have shapes but no memory, even if a layer reads them."""
    import keras

    class Shapes(keras.StatelessScope):
        def get_current_value(self, variable):
            known = super().get_current_value(variable)
            if known is not None or not backends.current().arrays_are_tensors or variable.dtype not in _PLAIN:
                return known
            return np.broadcast_to(np.zeros((), variable.dtype), variable.shape)

    return Shapes(initialize_variables=False)


_PLAIN = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _where(model, arrays, saving_lib):
    """The array that Keras's own loading assigns to each variable, by the id of the variable."""
    found = {}
    for variable in model.variables:
        variable.assign = _taker(variable, arrays, found)
    store = _store(saving_lib, arrays)
    try:
        saving_lib._load_state(model, store, None, "", visited_saveables=set(), failed_saveables=set(), error_msgs={})
    finally:
        for variable in model.variables:
            vars(variable).pop("assign", None)
    return found


def _taker(variable, arrays, found):
    def assign(value):
        if isinstance(value, Origin):
            found[id(variable)] = arrays[value]
        return value

    return assign


def _store(saving_lib, arrays):
    """A Keras store in which each value is its `Origin`."""
    groups = {}
    for path in arrays:
        group, _, key = path.rpartition("/")
        if group == "vars" or group.endswith("/vars"):
            groups.setdefault(group[: -len("vars")].rstrip("/"), {})[key] = Origin(path)

    kind: Any = saving_lib.H5IOStore

    class Store(kind):
        def __init__(self):
            self.mode = "r"

        def __bool__(self):
            return True

        def get(self, path):
            return groups.get(path, {})

        def has_path(self, path):
            return path in groups or any(group.startswith(f"{path}/") for group in groups)

    return Store()
