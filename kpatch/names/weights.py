"""Which weight a variable of a layer stores, by the kind of the layer and the way in which it is quantised."""

import math
from typing import Any

import numpy as np

from kpatch.names.codecs import INT4, INT8, ONE, Codes, Plain, Weight, Zeroed, dtype_of
from kpatch.names.sums import Float8, ForeignCodes, Lora, ReadOnly

# What quantised layers keep beside scales: int4 the group of each row, float8 scales and ranges of activations.
BOOKKEEPING = (
    "g_idx", "inputs_scale", "outputs_grad_scale", "inputs_amax_history", "kernel_amax_history",
    "outputs_grad_amax_history",
)  # fmt: skip


def weight_of(layer, variable):
    """The `Weight` that a variable of a layer stores; `None` if the variable is what the layer computes with.

    Example:
        >>> import keras
        >>> from kpatch.names.weights import weight_of
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 4))
        >>> weight_of(layer, layer._kernel) is None
        True
        >>> layer.quantize("int8")
        >>> weight = weight_of(layer, layer._kernel)
        >>> weight.shape, weight.dtype, weight.told
        ((4, 3), 'float32', 'int8 codes')
    """
    mode = getattr(layer, "quantization_mode", None)
    lora = getattr(layer, "lora_enabled", False)
    if mode is None and not lora:
        return None
    try:
        weight = _weight_of(layer, variable, mode, lora)
    except AttributeError:  # somebody's subclass, which lacks what Keras's own class has
        return _unknown(layer, variable)
    if weight is not None:
        held = (*layer._trainable_variables, *layer._non_trainable_variables)
        weight.bookkeeping = tuple(each for each in held if each.name in BOOKKEEPING)
    return weight


def _weight_of(layer, variable, mode, lora):
    import keras

    dense, einsum = (isinstance(layer, kind) for kind in (keras.layers.Dense, keras.layers.EinsumDense))
    if isinstance(layer, keras.layers.Embedding):
        return _of_embedding(layer, variable, mode, lora)
    if not (dense or einsum or lora):
        return _unknown(layer, variable)
    kernel: Any = getattr(layer, "_kernel", None)
    if variable is not kernel:
        calibrated = (dense or einsum) and variable is getattr(layer, "quantized_kernel", None)
        return _of_calibrated(layer, variable, mode) if calibrated else None
    weight: Weight = Plain(layer, variable, variable.shape, dtype_of(variable))
    if mode == "float8":
        weight = Float8(layer, variable, layer.kernel_scale)
    elif mode in ("int8", "int4"):
        weight = _of_dense(layer, variable, mode) if dense else _of_einsum(layer, variable, mode)
    if lora:
        return Lora(weight, layer.lora_kernel_a, layer.lora_kernel_b)
    return None if type(weight) is Plain else weight


def _unknown(layer, variable):
    """What may be codes of a layer that somebody else quantises."""
    return ForeignCodes(layer, variable) if dtype_of(variable) in ("int8", "uint8") else None


def _of_dense(layer, variable, mode):
    shape = (variable.shape[0], layer.units)
    if mode == "int8":
        return Codes(layer, variable, layer.kernel_scale, shape, shape, (ONE, np.arange(shape[1])), INT8)
    return _packed(layer, variable, shape, shape)


def _packed(layer, variable, shape, layout):
    """int4 codes in rows, two of a row in a byte, with a scale for each column, or for blocks of each."""
    scale, columns = layer.kernel_scale, layout[1]
    if layer._int4_block_size in (None, -1):
        return Codes(layer, variable, scale, shape, layout, (ONE, np.arange(columns)), INT4, packing=1)
    groups = (columns, np.arange(columns))
    return Zeroed(layer, variable, scale, layer.kernel_zero, shape, layout, groups, INT4, packing=1, axis=0)


def _of_einsum(layer, variable, mode):
    if mode == "int4":
        layout = (variable.shape[0], layer._int4_unpacked_column_size)
        return _packed(layer, variable, tuple(layer.original_kernel_shape), layout)
    shape, scale = tuple(variable.shape), layer.kernel_scale
    offsets = np.arange(math.prod(scale.shape)).reshape(tuple(scale.shape))
    if layer._kernel_squeeze_axes:
        offsets = np.expand_dims(offsets, tuple(layer._kernel_squeeze_axes))
    if layer._kernel_expand_axes:
        offsets = np.squeeze(offsets, tuple(layer._kernel_expand_axes))
    if layer._kernel_transpose_axes:
        offsets = np.transpose(offsets, np.argsort(layer._kernel_transpose_axes))
    groups = [np.moveaxis(offsets, axis, 0).reshape(offsets.shape[axis], -1)[:, 0] for axis in range(len(shape))]
    return Codes(layer, variable, scale, shape, shape, groups, INT8)


def _of_embedding(layer, variable, mode, lora):
    shape = (layer.input_dim, layer.output_dim)
    if variable is getattr(layer, "reverse_embeddings", None):
        return None if mode is None else _of_reverse(layer, variable, mode)
    if variable is not getattr(layer, "_embeddings", None):
        return None
    if mode is None:
        weight: Weight = Plain(layer, variable, shape, dtype_of(variable))
    elif mode == "int8" or layer._int4_block_size in (None, -1):
        limits, packing = (INT8, None) if mode == "int8" else (INT4, 1)
        groups = (np.arange(shape[0]), ONE)
        weight = Codes(layer, variable, layer.embeddings_scale, shape, shape, groups, limits, packing)
    else:
        count = layer.embeddings_scale.shape[1]
        rows = np.arange(shape[0]) * count
        scale, zero = layer.embeddings_scale, layer.embeddings_zero
        weight = Zeroed(layer, variable, scale, zero, shape, shape, (rows, 1), INT4, packing=1, axis=1)
    return Lora(weight, layer.lora_embeddings_a, layer.lora_embeddings_b) if lora else weight


def _of_reverse(layer, variable, mode):
    """The second matrix of a `ReversibleEmbedding` that ties no weights."""
    shape, scale = (layer.output_dim, layer.input_dim), layer.reverse_embeddings_scale
    if mode == "int8":
        return Codes(layer, variable, scale, shape, shape, (ONE, np.arange(shape[1])), INT8)
    if layer._int4_block_size in (None, -1):
        return Codes(layer, variable, scale, shape, shape, (ONE, np.arange(shape[1])), INT4, packing=0)
    groups = (shape[1], np.arange(shape[1]))
    zero = layer.reverse_embeddings_zero
    return Zeroed(layer, variable, scale, zero, shape, shape, groups, INT4, packing=0, axis=0)


def _of_calibrated(layer, variable, mode):
    """The weight of a layer after GPTQ or AWQ; before, the layer computes with the kernel that it had."""
    if not getattr(layer, f"is_{mode}_calibrated", False):
        return None
    columns = getattr(layer, f"{mode}_unpacked_column_size", None) or layer.units
    shape = getattr(layer, "original_kernel_shape", None) or layer.kernel_shape
    return ReadOnly(layer, variable, shape, columns, mode)
