"""A module of torch inside of a `TorchModuleWrapper`: its own names of parameters and buffers."""

from kpatch.values.dtypes import NUMPY, dtype_name

BUFFERS = "_kpatch_buffers"  # the attribute of the layer that holds variables for the buffers, by name


def wraps_module(layer):
    import keras

    return isinstance(layer, keras.layers.TorchModuleWrapper)


def parameters(layer):
    """Pairs of a chain of names and a variable of the layer, for each parameter of its module."""
    variables = {id(variable._value): variable for variable in layer.weights}
    for name, parameter in layer.module.named_parameters(remove_duplicate=False):
        if id(parameter) in variables:
            yield tuple(name.split(".")), variables[id(parameter)]


def buffers(layer):
    """Pairs of a chain of names and a variable whose value is the buffer itself, the same one each time."""
    kept = vars(layer).setdefault(BUFFERS, {})
    for name, buffer in layer.module.named_buffers():
        if dtype_name(buffer.dtype) in NUMPY:
            variable = kept.get(name)
            if variable is None or variable._value is not buffer:
                variable = kept[name] = _variable(buffer, name.rpartition(".")[2])
            yield tuple(name.split(".")), variable


def _variable(buffer, name):
    import keras

    shape = tuple(buffer.shape)
    variable = keras.Variable("zeros", shape=shape, dtype=dtype_name(buffer.dtype), trainable=False, name=name)
    variable._value = buffer
    return variable


def watch_module(layer, watch):
    """Notices a module, parameter or buffer that is exchanged."""
    for module in layer.module.modules():
        for items in (module._modules, module._parameters, module._buffers):
            watch.sequence(items.values())
