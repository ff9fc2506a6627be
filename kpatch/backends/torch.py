"""The torch backend.

The `Parameter` stays the same object, so that optimizers and modules keep referring to it; only its storage changes.
Other tensors can share the storage: the tensor or array from which the variable was made, another variable, a view.

* If only the parameter refers to the storage, it is written in place; otherwise the parameter first gets its own copy.
* Shared memory (`share_memory_`) is written in place, because sharing is intended.
* A storage over foreign memory, as of a variable created from a NumPy array, has no count of its users; it is replaced
  once.
* Two Keras variables over one `Parameter` are one parameter, as everywhere in torch.
"""

import inspect
from typing import Any

import numpy as np
import torch
from keras import ops
from torch.autograd.forward_ad import unpack_dual
from torch.optim.optimizer import register_optimizer_step_post_hook

from kpatch.backends import host, torch_exports
from kpatch.backends import numpy as arrays
from kpatch.backends.base import Backend, intervals, unpacked
from kpatch.backends.exporting import format_of
from kpatch.backends.torch_memory import Taken, alone, move, publish, writable
from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Positions, Region

MOST_KEPT = 0.5  # the largest share of entries for `Kept`: an offset takes eight bytes, a mask's entry one
NUMBERS = (float, int, bool)
EXACT = {torch.float32: np.float32, torch.float64: np.float64}  # whose entries Python's numbers hold, but for NaN
REDUCED = (torch.float32, torch.float64, torch.int32, torch.bool)  # dtypes that NumPy reduces
_IN_JIT = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)  # without one more call of Python
OPERATORS = {"+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div}


def _left_alone(function):
    """The function, which dynamo does not trace: it would trace the creation of the error."""
    why = {"reason": "it cannot be called inside a function that is being compiled; kpatch.edit works there"}
    named = "reason" in inspect.signature(torch.compiler.disable).parameters  # not in older torch
    return torch.compiler.disable(function, **(why if named else {}))


class Torch(Backend):
    """Keras's torch backend, eager and in `torch.compile`, `torch.export` and `torch.func`."""

    name = "torch"
    ops = ops
    sorts_nan_last = True
    sums_one_by_one = False
    lengths_stay_unknown = False
    lacks = frozenset(("uint64",))
    refuse = _left_alone(Backend.refuse)

    def read(self, variable, selection):
        kind = type(selection)
        if kind is Point:
            return variable._value.data[selection.index].clone()
        tensor = variable._value.detach()
        if kind is Region:
            view, backward = _view(tensor, selection)
            return _flip(view, backward) if backward else view.clone(memory_format=torch.contiguous_format)
        if kind is Mask:
            return tensor.clone()
        return torch.take(_bits(tensor), _here(tensor, selection.flat)).view(tensor.dtype).reshape(selection.shape)

    def keep(self, variable, selection):
        """In the memory of a CPU numbers of NumPy: a tensor of one entry takes six times as long to make."""
        kind = type(selection)
        if kind is Point:
            return _entry(variable._value.data[selection.index])
        kept = host.kept(self, variable, selection) if kind is Positions else None
        return self.read(variable, selection) if kept is None else kept

    def write(self, variable, selection, values, donate=True):
        kind = type(selection)
        tensor = writable(variable, donate, whole=kind is Region and selection.full)
        if kind is Point:
            tensor[selection.index] = values if _is_plain(values) else _like(tensor, values)
        elif kind in host.LISTED and host.suits(variable, selection, values) and (view := _noted(tensor)) is not None:
            arrays.put(view, selection, values)
        else:
            _put(tensor, *unpacked(selection, values))
        publish(variable, tensor)

    def prepare(self, variable, selection, array):
        """Puts the array on the variable's device."""
        return _like(variable._value, np.array(array))

    def update(self, variable, region, op, old, operand):
        tensor = writable(variable, donate=True)
        view, backward = _view(tensor, region)
        old, operand = (_flip(_like(tensor, part), backward) for part in (old, operand))
        OPERATORS[op](old, operand, out=view)
        publish(variable, tensor)

    def whole(self, variable):
        return variable._value.detach()

    def take_over(self, variable, values):
        """The parameter takes over the memory of `values`; `None` if the parameter is in shared memory."""
        old = variable._value.detach()
        if old.device.type == "cpu" and old.is_shared():
            return None
        move(variable._value, _like(old, values).contiguous())
        return old

    def written(self, variable, values):
        """torch counts what is written into a parameter; its optimizers write into it."""
        shared = values.numel() and values.data_ptr() == variable._value.data_ptr()
        return Taken(variable._value, values).unchanged if shared else super().written(variable, values)

    def view(self, tensor):
        return _viewed(tensor)

    def memory(self, variable):
        parameter = variable._value
        view = _noted(parameter.detach()) if alone(parameter) else None
        return None if view is None else view.reshape(-1)

    def blank(self, like):
        """Without gradients, which NumPy does not know."""
        if any(self.is_traced(x) or self.is_differentiated(x) or self.view(x) is None for x in like):
            return None
        made = torch.empty_like(like[0], requires_grad=False)
        memory = self.view(made)
        return (made, memory) if memory.flags.writeable else None

    def reducer(self, x):
        """NumPy, in the memory of a CPU: so a sum has the same bits as on the other backends."""
        plain = type(x) in (torch.Tensor, torch.nn.Parameter) and x.dtype in REDUCED and x.is_cpu
        if not plain or x.nbytes > host.REDUCED or self.is_tracing() or self.is_traced(x) or self.is_differentiated(x):
            return None
        return REDUCER

    def placed(self, array, like):
        """In memory of torch, also if it is that of another tensor now."""
        return _here(like, array).clone()

    def sync(self, model):
        """Refuses a model whose parameters are sharded: Keras's variables are no longer what torch trains."""
        if not _in_job():
            return
        from torch.distributed.tensor import DTensor

        for layer in model._flatten_layers() if hasattr(model, "_flatten_layers") else ():
            if any(isinstance(each, DTensor) for each in layer._modules.get("_torch_params", {}).values()):
                raise UnsupportedError(
                    f"the parameters of '{layer.name}' are sharded (fully_shard, DTensor), which kpatch does not edit",
                    notes=["edit the model before it is sharded, or its checkpoint"],
                )

    def process(self):
        if not _in_job():
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()

    def kept(self, mask, held):
        """Only for a constant mask with few entries and constant values."""
        if not isinstance(mask, np.ndarray) or not isinstance(held, np.ndarray) or held.shape not in ((), mask.shape):
            return None
        return Kept(mask, held) if mask.dtype == bool and mask.mean() <= MOST_KEPT else None

    def is_differentiated(self, data):
        """By a graph, or forward, with a tangent."""
        return (data.requires_grad and torch.is_grad_enabled()) or unpack_dual(data).tangent is not None

    def is_traced(self, data):
        """Detects fake tensors of compilers and tensors of `torch.func`'s transforms, by private tests."""
        from torch._subclasses.fake_tensor import FakeTensor

        return torch.compiler.is_compiling() or isinstance(data, FakeTensor) or _is_transformed(data)

    def is_tracing(self):
        return torch.compiler.is_compiling() or _IN_JIT()

    def distinguish(self, key):
        """Nothing to do: dynamo guards what it compiles by the objects that stand in for calls."""
        return True

    def after_own_steps(self, variable, function):
        """By the hook of all optimizers of `torch.optim`; a variable keeps its `Parameter`."""

        def stepped(optimizer, args, kwargs):
            parameter = variable._value
            if any(each is parameter for group in optimizer.param_groups for each in group["params"]):
                function()

        return register_optimizer_step_post_hook(stepped).remove

    def in_dynamo(self):
        return torch.compiler.is_dynamo_compiling()

    def outside_graphs(self, function):
        return torch.compiler.disable(function)

    def exported(self, call, values, free, using):
        target = format_of(FORMATS) if torch.jit.is_tracing() else None
        return call(*values) if target is None else FORMATS[target].made(call, values, free, using)

    def hand_out(self, take, x):
        if self.is_traced(x):
            raise UnsupportedError("in a transform of torch.func, or an export, activations have no values to record")
        take(x)
        return x

    def snapshot(self, x):
        """A tensor with gradients stays itself, so that there are gradients with respect to it."""
        return x if x.requires_grad else x.detach().clone()

    def known_length(self, length):
        return None if isinstance(length, torch.SymInt) else length

    def holds(self, condition):
        """In an export, torch records the condition as a bound of its symbols."""
        return bool(condition())

    def require(self, holds, message):
        """Works in `torch.compile`; the transforms of `torch.func` have no such operation."""
        if not _is_transformed(holds):
            torch._assert_async(holds.all(), message)

    def refusal(self, dtype):
        if dtype in ("uint16", "uint32", "uint64"):
            return f'the torch backend has no arithmetic on {dtype}; write cast(..., "int64")'
        return None

    def wide(self, name, dtype):
        return getattr(torch, name, None)

    def erfc(self, x):
        return torch.special.erfc(x)

    def remainder(self, x, y):
        """In double precision, which is exact: of long tensors of float32, torch's is NaN if the quotient overflows."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return x % y
        return (x.double() % y.double()).float()

    def first_best(self, how, x):
        return getattr(ops, "arg" + how)(x, axis=1)

    def largest_in_segments(self, values, segments, count):
        """Not Keras's function, which computes in float32."""
        empty = segments.new_full((count,), -1, dtype=values.dtype)
        return empty.scatter_reduce(0, segments.long(), values, "amax")

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        result = tensor.clone()
        result[intervals(starts, counts)] = values
        return result

    def takes_numbers(self, dtype):
        """All but uint64, of which torch takes only numbers below 2**63."""
        return dtype != np.uint64


class TorchToOnnx(torch_exports.TracedToOnnx, Torch):
    """In exports to onnx."""


class TorchToOpenvino(torch_exports.Traced, Torch):
    """In exports to openvino."""


FORMATS: dict[str, Any] = {"onnx": TorchToOnnx(), "openvino": TorchToOpenvino()}


class Kept:
    """The held values of a weight under a mask, written back after each step of `hold`.

    `where` would make a new tensor of the weight's size, which the optimizer copies into the weight: for a tenth of the
    entries this takes ten times as long.

    Args:
        mask: a boolean array.
        held: an array of the mask's shape, or a 0-d array.
    """

    def __init__(self, mask, held):
        self._mask = mask
        self._held = held
        self._entries = None

    def suits(self, variable):
        """Whether `write` can be used: mask and values fit the variable, and no function is compiled or stateless."""
        if torch.compiler.is_dynamo_compiling():
            return False
        from keras.src.backend.common.stateless_scope import in_stateless_scope

        known = self._mask.shape, self._held.dtype.name
        return known == (tuple(variable.shape), variable.dtype) and not in_stateless_scope()

    @torch.compiler.disable  # dynamo would treat the arrays as tensors
    def write(self, variable):
        """Writes the held values into the variable's memory."""
        if self._entries is None:
            self._entries = np.flatnonzero(self._mask), np.broadcast_to(self._held, self._mask.shape)[self._mask]
        self._entries = _keep(variable, *self._entries)


def _keep(variable, flat, values):
    """Writes entries at flat offsets into the variable's memory, even if it is shared, as Keras's `assign` does.

    Returns:
        The offsets and the values as tensors on the variable's device, for the next call.
    """
    tensor = variable._value.detach()
    flat, values = _here(tensor, flat), _like(tensor, values)
    _bits(tensor).put_(flat, _bits(values))
    return flat, values


_in_job = torch.distributed.is_initialized if torch.distributed.is_available() else lambda: False


def _is_transformed(data):
    wrapped = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    return bool(wrapped and wrapped(data))


def _view(tensor, region):
    """A view of the region with positive steps, since torch has no others, and the axes to flip."""
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
    """Flips values that broadcast to the region; the axes are negative, and the values may lack leading axes."""
    axes = [axis for axis in axes if values.dim() + axis >= 0]
    return _bits(values).flip(axes).view(values.dtype) if axes else values


def _places(tensor, positions):
    """A view of the tensor's bits, and the index of the positions in it."""
    if tensor.is_contiguous():
        return _bits(tensor).view(-1), (_here(tensor, positions.flat),)
    places = positions.coordinates(tuple(tensor.shape))
    return _bits(tensor), tuple(_here(tensor, axis) for axis in places)


def _like(tensor, values):
    """The values as a tensor of the dtype and device of `tensor`."""
    if isinstance(values, torch.Tensor):
        return values.detach().to(tensor.device, tensor.dtype)
    if isinstance(values, (np.ndarray, np.generic)):
        return _here(tensor, values).to(tensor.dtype)
    return torch.tensor(values, dtype=tensor.dtype, device=tensor.device)


def _put(tensor, selection, values):
    """Writes values to a region, under a mask, or at positions."""
    if type(selection) is Region:
        view, backward = _view(tensor, selection)
        view.copy_(_flip(_like(tensor, values), backward))
    elif type(selection) is Mask:
        mask, values = _here(tensor, selection.mask), _bits(_like(tensor, values))
        if values.dim() == 0:
            _bits(tensor).masked_fill_(mask, values)
        else:  # needs a temporary of the tensor's size
            torch.where(mask, values, _bits(tensor), out=_bits(tensor))
    else:
        entries, places = _places(tensor, selection)
        entries.index_put_(places, _bits(_like(tensor, values)).expand(selection.shape).reshape(-1))


def _is_plain(values):
    """Whether an entry can be set to the values as they are."""
    return not values.requires_grad if type(values) is torch.Tensor else type(values) in NUMBERS


def _entry(entry):
    """A copy of one entry: a number if that has all bits, else a tensor.

    A zero may be a denormal number, which the thread takes for zero.
    """
    make = EXACT.get(entry.dtype)
    if make is not None and entry.is_cpu and (number := entry.item()) and number == number:
        return make(number)
    return entry.clone()


def _here(tensor, values):
    """The values, in their own dtype, as a tensor on the device of `tensor`."""
    if not isinstance(values, torch.Tensor):
        values = _from_numpy(np.asarray(values))
    return values.detach().to(tensor.device)


def _from_numpy(array):
    if not array.flags.carray:  # read-only, or with strides that torch does not support
        array = array.copy()
    if array.dtype.isbuiltin == 2:  # bfloat16 and float8 of ml_dtypes, which torch does not accept
        return torch.from_numpy(array.view(f"u{array.itemsize}")).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def _viewed(tensor):
    """The tensor's memory, by DLPack: `Tensor.numpy` permanently marks the storage as not resizable."""
    plain = tensor.dtype in (torch.float32, torch.float64) and tensor.is_contiguous()
    return np.from_dlpack(tensor.detach()) if plain and tensor.is_cpu else None


def _noted(tensor):
    """The tensor's memory for NumPy to write, or `None`; from now on gradients whose graph holds it are refused."""
    view = _viewed(tensor)
    if view is None or not view.flags.writeable:
        return None
    tensor.view(-1)[:0].zero_()
    return view


def _reduced(tensor):
    """The tensor's entries as an array that is only read."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bool:
        return np.from_dlpack(tensor.view(torch.uint8)).view(bool)
    return np.from_dlpack(tensor)


REDUCER = host.Reducer(_reduced)


def _bits(tensor):
    """The same memory, viewed as integers for float8, which few operations support."""
    dtype = tensor.dtype
    return tensor.view(torch.uint8) if dtype.itemsize == 1 and dtype.is_floating_point else tensor
