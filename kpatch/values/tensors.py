"""Reads and replaces entries of a tensor by pure functions, on any backend.

They hide differences of the backends: torch has no negative steps; `keras.ops.scatter_update` and `slice_update` write
into their argument on numpy; TensorFlow takes a stop of −1 for a position before the first entry.
"""

import numpy as np

from kpatch import backends
from kpatch.errors import UnsupportedError
from kpatch.indexing import Grid, Mask, Point, Positions, Region
from kpatch.values import grids, widths
from kpatch.values.dtypes import dtype_name


def take(tensor, selection):
    """The selected entries: a tensor of shape `selection.shape` and of the same dtype. A `Mask` is not accepted."""
    ops = backends.current().ops
    if isinstance(selection, Point):
        return tensor[selection.index]
    if isinstance(selection, Region):
        return _take_region(tensor, selection)
    if isinstance(selection, Grid):
        return grids.take(tensor, selection)
    if isinstance(selection, Mask):
        raise TypeError(f"a mask is read by its positions. Received: selection={selection}")
    flat = ops.take(ops.reshape(tensor, (-1,)), selection.flat, axis=0)
    return ops.reshape(flat, selection.shape)


def replace(tensor, selection, values):
    """A new tensor with the selected entries replaced; `values` broadcasts to `selection.shape`.

    Raises:
        UnsupportedError: the backend would change the other entries.
    """
    _check_moved(tensor)
    if isinstance(selection, Grid):
        return grids.replace(tensor, selection, values)
    ops = backends.current().ops
    if isinstance(selection, Point | Region) and selection.size and not getattr(selection, "full", False):
        # one pass over the tensor: a scatter of rows costs several on jax
        items = selection.index if isinstance(selection, Point) else selection.slices
        return grids.replace(tensor, Grid(items, selection.shape), values)
    values = widths.as_tensor(values)
    if isinstance(selection, Mask):
        return backends.current().where(selection.mask, values, tensor)
    if selection.size == 0:
        return tensor
    if isinstance(selection, Region):
        return ops.copy(ops.broadcast_to(values, selection.shape))
    flat = positions(selection, tensor.shape).flat
    values = ops.reshape(ops.broadcast_to(values, selection.shape), (-1,))
    whole = ops.copy(ops.reshape(tensor, (-1,)))  # numpy's scatter writes into its argument
    return ops.reshape(ops.scatter_update(whole, flat[:, None], values), tensor.shape)


def _check_moved(tensor):
    backend = backends.current()
    if backend.computes_in is None:
        return
    from keras.backend import standardize_dtype

    refusal = backend.refusal(standardize_dtype(tensor.dtype))
    if refusal:
        raise UnsupportedError(refusal)


def positions(selection, shape):
    """The selection as flat offsets into a tensor of shape `shape`."""
    if isinstance(selection, Positions):
        return selection
    if isinstance(selection, Point):
        flat = np.ravel_multi_index(selection.index, tuple(shape)) if selection.index else 0
        return Positions(np.array([flat], "int64"), ())
    axes = zip(selection.starts, selection.counts, selection.steps, strict=True)
    grid = [start + step * np.arange(count) for start, count, step in axes]
    strides = np.cumprod([1, *reversed(shape)])[:-1][::-1]
    flat = sum((axis * int(s) for axis, s in zip(np.ix_(*grid), strides, strict=True)), np.zeros((), "int64"))
    return Positions(np.ravel(flat).astype("int64"), selection.shape)


def mask_of(selection, shape):
    """The selection as a boolean array of shape `shape`."""
    if isinstance(selection, Mask):
        return np.array(to_numpy(selection.mask))
    mask = np.zeros(shape, bool)
    if isinstance(selection, Region):
        mask[selection.slices] = True
    else:
        mask.reshape(-1)[positions(selection, shape).flat] = True
    return mask


def _take_region(tensor, region):
    """Takes slices with positive steps, then flips, which every backend supports."""
    ops = backends.current().ops
    slices, backward, kept = [], [], 0
    axes = zip(region.starts, region.counts, region.steps, strict=True)
    for axis, (start, count, step) in enumerate(axes):
        if axis in region.dropped:
            slices.append(start)
            continue
        first = start if step > 0 else start + step * (count - 1)
        slices.append(slice(first, first + abs(step) * (count - 1) + 1, abs(step)) if count else slice(0, 0))
        if step < 0:
            backward.append(kept)
        kept += 1
    taken = tensor[tuple(slices)]
    return ops.flip(taken, axis=tuple(backward)) if backward else taken


def of_variable(variable):
    """The tensor that a variable holds."""
    return backends.current().tensor_of(variable)


def detached(variable):
    """The tensor that a variable holds, as a constant for gradients."""
    value = of_variable(variable)
    if isinstance(value, np.ndarray):  # Keras would narrow 64 bits to 32
        return value
    ops = backends.current().ops
    return ops.stop_gradient(value)


def to_numpy(tensor):
    """The tensor as a NumPy array; for 0-d bfloat16, TensorFlow needs an axis."""
    if not isinstance(tensor, np.ndarray | np.generic):
        tensor = backends.current().gathered(tensor)
    if isinstance(tensor, np.ndarray | np.generic):
        return np.asarray(tensor)
    ops = backends.current().ops
    name = dtype_name(tensor.dtype)
    if name.startswith("float8_"):  # which torch does not hand to NumPy
        return to_numpy(backends.current().bits(tensor, "uint8")).view(name)
    if name != "bfloat16" or tuple(tensor.shape):
        return np.asarray(ops.convert_to_numpy(tensor))
    return np.asarray(ops.convert_to_numpy(ops.reshape(tensor, (1,)))).reshape(())
