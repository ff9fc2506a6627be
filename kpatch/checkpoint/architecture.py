"""Builds the model of an archive's configuration without values, to learn its names and the array of each variable.

The model is built as by `load_model`, in safe mode, in a scope in which Keras creates no values. Keras then loads it
from a store whose values are only the paths of the arrays. Of what a model is compiled with only the optimizer is made.
"""

import contextlib
import itertools
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.checkpoint.keras_files import failure
from kpatch.errors import FileError, of_backend
from kpatch.names.optimizers import optimizers_in

MOST_BUILT = 50_000  # layers, each of which takes Keras a fifth of a millisecond


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
        FileError: this process lacks code that the model needs, the weights do not fit the architecture, or to build it
            would take Keras more than seconds.
    """
    _check_cost(config)
    try:
        import keras
        from keras.src.saving import saving_lib
    except ModuleNotFoundError as error:
        raise of_backend(error) from None

    by_path = {"/".join(keys): array for array in arrays for keys in array.chains}
    scope = _custom_objects(custom_objects or {})
    with scope, warnings.catch_warnings(), _shapes_alone():
        warnings.simplefilter("ignore")
        try:
            model = saving_lib._model_from_config(config, None, False, True)
            found = _where(model, model.variables, by_path, saving_lib, "")
        except Exception as error:  # the classes of a configuration can raise anything
            failed = failure(Path(), error, "")
            raise FileError(failed.message.partition(": ")[2], notes=failed.notes) from error
    if not isinstance(model, keras.Layer):
        raise FileError("its configuration is not one of a model")
    for variable in model.variables:
        array = found.get(id(variable))
        if array is not None and array.shape != tuple(variable.shape):
            raise FileError(f"its weights do not fit its architecture: '{variable.path}' is {tuple(variable.shape)}")
    if isinstance(model, keras.Model):
        with scope:
            found |= _add_optimizer(model, json.loads(config).get("compile_config"), by_path, saving_lib)
    return model, found


def _check_cost(config):
    """Raises `FileError` for a configuration of so many layers that Keras would build for minutes."""
    count = cost = 0

    def weigh(part):
        nonlocal count, cost
        if "class_name" in part:
            inner = part.get("config")
            layers = inner.get("layers") if isinstance(inner, dict) and part["class_name"] == "Sequential" else None
            count += 1
            cost += 1 + (len(layers) ** 2 // 2 if isinstance(layers, list) else 0)  # built anew with each layer
        return part

    try:
        json.loads(config, object_hook=weigh)
    except (ValueError, RecursionError):
        return  # Keras's own error says more
    if cost > MOST_BUILT:
        raise FileError(f"its configuration has {count:,} parts, which Keras would build for too long")


def _custom_objects(given):
    """A scope of custom objects beside those of the scope around it, which Keras's own scope would hide."""
    import keras
    from keras.src.backend.common import global_state

    around = global_state.get_global_attribute("custom_objects_scope_dict", {})
    return keras.saving.custom_object_scope({**around, **given})


def _add_optimizer(model, compiled, arrays, saving_lib):
    """Gives the model the optimizer of its configuration, if that has such variables as the file.

    Of one that is not known here, the variables have only the file's own names.

    Returns:
        The array of each of its variables, by the id of the variable.
    """
    count = sum(path.startswith("optimizer/vars/") for path in arrays)
    if not count or not isinstance(compiled, dict):
        return {}
    for scope in (_shapes_alone, contextlib.nullcontext):  # some make values, which Keras refuses in such a scope
        optimizer = _optimizer(model, compiled.get("optimizer"), count, scope)
        if optimizer is None or len(optimizer.variables) != count:
            continue
        found = _where(optimizer, optimizer.variables, arrays, saving_lib, "optimizer")
        if all(found[id(each)].shape == tuple(each.shape) for each in optimizer.variables if id(each) in found):
            model.optimizer = optimizer
            return found
    return {}


def _optimizer(model, config, count, scope):
    """The optimizer of a configuration, built unless it has `count` variables before; `None` if it cannot be made."""
    import keras
    from keras import optimizers
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    try:
        optimizer = keras.saving.deserialize_keras_object(config)
        if model.dtype_policy.name == "mixed_float16" and not isinstance(optimizer, optimizers.LossScaleOptimizer):
            optimizer = optimizers.LossScaleOptimizer(optimizer)  # as `compile` does
        if len(optimizer.variables) != count:
            parts = [optimizer, *optimizers_in(optimizer)]
            for part in parts:  # tensorflow's own ask for the values of the model's variables
                vars(part).update({name: partial(getattr(BaseOptimizer, name), part) for name in _OF_VALUES})
            with scope():
                optimizer.build(model.trainable_variables)
            for part, name in itertools.product(parts, _OF_VALUES):
                vars(part).pop(name, None)
    except Exception:  # noqa: BLE001 (the classes of a configuration can raise anything)
        return None
    return optimizer


def _shapes_alone():
    """A scope in which variables have shapes but no memory, even if a layer reads them."""
    import keras
    from keras.src.backend.common import global_state

    class Shapes(keras.StatelessScope):
        def __enter__(self):
            self._before = list(global_state.get_global_attribute(_TO_COME, []))
            return super().__enter__()

        def __exit__(self, *exception):
            """Nobody else's scope makes the values of these variables when it ends."""
            super().__exit__(*exception)
            global_state.set_global_attribute(_TO_COME, self._before)

        def get_current_value(self, variable):
            known = super().get_current_value(variable)
            if known is not None or not backends.current().arrays_are_tensors or variable.dtype not in _PLAIN:
                return known
            return np.broadcast_to(np.zeros((), variable.dtype), variable.shape)

    return Shapes(initialize_variables=False)


_OF_VALUES = ("add_variable_from_reference", "_var_key")  # methods of optimizers
_TO_COME = "uninitialized_variables"  # where Keras lists them
_PLAIN = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _where(item, variables, arrays, saving_lib, path):
    """The array that Keras's own loading assigns to each variable of a model or optimizer, by the variable's id."""
    found = {}
    for variable in variables:
        variable.assign = _taker(variable, arrays, found)
    store = _store(saving_lib, arrays)
    try:
        saving_lib._load_state(item, store, None, path, visited_saveables=set(), failed_saveables=set(), error_msgs={})
    finally:
        for variable in variables:
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
