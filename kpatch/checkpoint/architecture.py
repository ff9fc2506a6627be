"""The model that an archive's configuration describes, without its values: what is called what, and lies where.

The model is built as `load_model` builds it, in safe mode, in a scope in which Keras makes no values for variables; and
then it `loads` from a store that says only where each value would have come from.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.checkpoint.keras_files import failure
from kpatch.errors import FileError, of_backend


class Origin(str):
    """Where a value would have come from: the path in the weights file."""

    __slots__ = ()


def build(config, arrays):
    """The model, and which array each of its variables is loaded from.

    Args:
        config: the text of config.json.
        arrays: the `Array`s of the weights file.

    Returns:
        The model, and a dict of arrays by the id of the variable.

    Raises:
        FileError: this process lacks code that the model needs, or the weights are not of this architecture.
    """
    try:
        import keras
        from keras.src.saving import saving_lib
    except ModuleNotFoundError as error:
        raise of_backend(error) from None

    with warnings.catch_warnings(), _shapes_alone():
        warnings.simplefilter("ignore")
        try:
            model = saving_lib._model_from_config(config, None, False, True)
            found = _where(model, {"/".join(array.keys): array for array in arrays}, saving_lib)
        except Exception as error:  # whatever the classes of a configuration raise
            raise FileError(failure(Path(), error, "").message.partition(": ")[2]) from error
    if not isinstance(model, keras.Layer):
        raise FileError("its configuration is not one of a model")
    for variable in model.variables:
        array = found.get(id(variable))
        if array is not None and array.shape != tuple(variable.shape):
            raise FileError(f"its weights are not of its architecture: '{variable.path}' is {tuple(variable.shape)}")
    return model, found


def _shapes_alone():
    """A scope in which variables have shapes and no memory, also where a layer looks at one."""
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
    """Which array Keras's own loading gives to which variable."""
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
    """A store of Keras's kind in which each value is its `Origin`."""
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
