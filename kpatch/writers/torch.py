"""Entries of variables on the torch backend.

The `Parameter` stays the same object, so optimizers and modules go on seeing it; what changes is its storage. Other
tensors may share that storage: the one that the variable was made from, a second variable made from it, a NumPy array
behind `torch.from_numpy`, a view taken from the parameter. It is written in place where the parameter alone holds it,
else the parameter first gets a storage of its own (shared memory excepted: there, sharing is what was asked for). A
storage over foreign memory, such as Keras makes for a variable created from a NumPy array, does not tell who else sees
it: it too is replaced, once. Two Keras variables over one `Parameter` are one parameter, here as everywhere in torch.
"""

import inspect

import numpy as np
import torch

from kpatch import writers
from kpatch.indexing import Mask, Point, Region

OPERATORS = {"+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div}


def read(variable, selection):
    """The selected entries in memory of their own; for a `Mask` the whole tensor."""
    tensor = variable._value.detach()
    kind = type(selection)
    if kind is Point:
        return tensor[selection.index].clone()
    if kind is Region:
        view, backward = _view(tensor, selection)
        return _flip(view, backward) if backward else view.clone(memory_format=torch.contiguous_format)
    if kind is Mask:
        return tensor.clone()
    return torch.take(_bits(tensor), _here(tensor, selection.flat)).view(tensor.dtype).reshape(selection.shape)


def write(variable, selection, values, donate=True):
    """Writes values of the tensor's dtype, in place where nobody else holds the storage."""
    tensor = _writable(variable, donate)
    kind = type(selection)
    if kind is Point:
        tensor[selection.index] = values if type(values) in (float, int, bool) else _like(tensor, values)
    elif kind is Region:
        view, backward = _view(tensor, selection)
        view.copy_(_flip(_like(tensor, values), backward))
    elif kind is Mask:
        mask, values = _here(tensor, selection.mask), _bits(_like(tensor, values))
        if values.dim() == 0:
            _bits(tensor).masked_fill_(mask, values)
        else:  # which takes a temporary of the tensor's size
            torch.where(mask, values, _bits(tensor), out=_bits(tensor))
    else:
        entries, places = _places(tensor, selection)
        entries.index_put_(places, _bits(_like(tensor, values)).expand(selection.shape).reshape(-1))
    _publish(variable, tensor)


def prepare(variable, selection, array):
    """The array as `write` takes it fastest: a tensor on the variable's device."""
    return _like(variable._value, np.array(array))


def update(variable, region, op, old, operand):
    """The region becomes `old <op> operand`, computed where it is to be."""
    tensor = _writable(variable, donate=True)
    view, backward = _view(tensor, region)
    old, operand = (_flip(_like(tensor, part), backward) for part in (old, operand))
    OPERATORS[op](old, operand, out=view)
    _publish(variable, tensor)


def keep(variable, flat, values):
    """Writes entries at flat offsets, as Keras's `assign` writes: into this memory, whoever else sees it.

    Returns:
        The offsets and the values as tensors of the variable's device, to be handed in at the next time.
    """
    tensor = variable._value.detach()
    flat, values = _here(tensor, flat), _like(tensor, values)
    _bits(tensor).put_(flat, _bits(values))
    return flat, values


def whole(variable):
    """The whole value as an alias, to be let go before anything is written."""
    return variable._value.detach()


def exchange(variable, values):
    """The parameter takes over a tensor's memory that nobody else holds; gives what it had. Shared memory stays."""
    old = variable._value.detach()
    if old.device.type == "cpu" and old.is_shared():
        return None
    variable._value.data = _like(old, values).contiguous()
    return old


def view(tensor):
    """The tensor's memory as an array that is only read, or `None` where it cannot be reached.

    By DLPack: `Tensor.numpy` marks the storage for good as one that others may see.
    """
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype in (torch.float32, torch.float64)
    return np.from_dlpack(tensor.detach()) if plain else None


def settle(variable):
    """Waits for the variable's value: it is there."""


def sync(model):
    """Gives a model's variables their present values: they have them."""


def is_tracing():
    """Whether a function is being traced at this moment."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _left_alone(function):
    """The function, which dynamo does not look into: it would trace the making of an error."""
    why = {"reason": "it works at once; kpatch.edit makes a new tensor, and works in compiled functions"}
    named = "reason" in inspect.signature(torch.compiler.disable).parameters  # not in older torch
    return torch.compiler.disable(function, **(why if named else {}))


refuse = _left_alone(writers.refuse)


def _view(tensor, region):
    """A view of the region with its steps forward, as torch has no others, and the axes then to be flipped."""
    if all(step > 0 for step in region.steps):
        return tensor[region.slices], ()
    index, backward, kept = [], [], 0
    for axis, (start, count, step) in enumerate(zip(region.starts, region.counts, region.steps, strict=True)):
        if axis in region.dropped:
            index.append(start)
            continue
        if step < 0:
            backward.append(kept)
            start, step = start + step * (count - 1), -step
        index.append(slice(start, start + step * count, step))
        kept += 1
    return tensor[tuple(index)], tuple(axis - kept for axis in backward)


def _flip(values, axes):
    """Flips values that broadcast to the region; the axes are counted from the last, and it may lack the first ones."""
    axes = [axis for axis in axes if values.dim() + axis >= 0]
    return _bits(values).flip(axes).view(values.dtype) if axes else values


def _places(tensor, positions):
    """A view of the tensor's bits, and an index into it that means the positions."""
    if tensor.is_contiguous():
        return _bits(tensor).view(-1), (_here(tensor, positions.flat),)
    places = positions.coordinates(tuple(tensor.shape))
    return _bits(tensor), tuple(_here(tensor, axis) for axis in places)


def _like(tensor, values):
    """The values as a tensor of that tensor's dtype and device, bit for bit."""
    if isinstance(values, torch.Tensor):
        return values.detach().to(tensor.device, tensor.dtype)
    if isinstance(values, (np.ndarray, np.generic)):
        return _here(tensor, values).to(tensor.dtype)
    return torch.tensor(values, dtype=tensor.dtype, device=tensor.device)


def _here(tensor, values):
    """A tensor or array, in its own dtype, as a tensor on that tensor's device."""
    if not isinstance(values, torch.Tensor):
        values = _from_numpy(np.asarray(values))
    return values.detach().to(tensor.device)


def _from_numpy(array):
    if not array.flags.carray:  # read-only, or steps that torch does not have
        array = array.copy()
    if array.dtype.isbuiltin == 2:  # bfloat16 and float8, which NumPy has from elsewhere and torch does not take
        return torch.from_numpy(array.view(f"u{array.itemsize}")).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def _bits(tensor):
    """The same memory as integers for float8, which few operations take."""
    dtype = tensor.dtype
    return tensor.view(torch.uint8) if dtype.itemsize == 1 and dtype.is_floating_point else tensor


def _writable(variable, donate):
    """The memory to write into: the parameter's where nobody else sees it, else a copy for `_publish`."""
    parameter = variable._value
    if donate and _alone(parameter):
        return parameter.detach()
    with torch.inference_mode(False):
        return parameter.detach().clone()


def _publish(variable, tensor):
    parameter = variable._value
    if parameter.data_ptr() != tensor.data_ptr():
        parameter.data = tensor


def _alone(tensor):
    """Whether the tensor's storage is its own, with each entry in a place of its own."""
    if _holders(tensor) == ALONE and tensor.untyped_storage().resizable():
        return tensor.is_contiguous() or _dense(tensor)
    return tensor.device.type == "cpu" and tensor.is_shared()


def _dense(tensor):
    """Whether the tensor fills its memory without gap or overlap, in any order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _holders(tensor):
    """How many tensors hold the storage, this look at it included; -1 where this torch does not tell."""
    return COUNT(tensor.untyped_storage()._cdata) if COUNT else -1


def _counter():
    """torch's own count and what it says of one holder. The count is private: without it, every write copies."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or not hasattr(torch.UntypedStorage, "_cdata"):
        return None, 0
    tensor = torch.empty(1)
    alone = count(tensor.untyped_storage()._cdata)
    alias = tensor.detach()
    return (count, alone) if count(alias.untyped_storage()._cdata) == alone + 1 else (None, 0)


COUNT, ALONE = _counter()
