"""What each backend itself does best, without kpatch: read and write entries of float32 tensors in place.

`point` and `region` each make a tensor like the variable's, and give the edit and its way back:
`edit() -> old values`, `restore(old)`. `wait` waits for what a variable's backend has only dispatched. `prunes`,
`merges`, `clips` and `masks` are loops over many variables as an expert writes them, by name; the fastest is what
kpatch is held against.
"""

import functools

import keras
import numpy as np

BLOCK = 2**16  # entries that stay in the processor's cache
SLICES = (slice(None, 2048), slice(None, None, 2))  # [:2048, ::2]


def wait(variable):
    value = variable._value
    if keras.backend.backend() == "jax":
        return value.block_until_ready
    if keras.backend.backend() == "torch" and value.is_cuda:
        import torch

        return torch.cuda.synchronize
    return lambda: None


def point(variable):
    return _BACKENDS[keras.backend.backend()][0](variable)


def region(variable):
    return _BACKENDS[keras.backend.backend()][1](variable)


def _numpy_point(variable):
    array, one = np.ones(variable.shape, "float32"), np.float32(1)

    def edit():
        old = array[0, 0]
        array[0, 0] = one
        return old

    return edit, lambda old: array.__setitem__((0, 0), old)


def _numpy_region(variable):
    array = np.ones(variable.shape, "float32")

    def edit():
        old = array[SLICES].copy()
        array[SLICES] *= 0.5
        return old

    return edit, lambda old: array.__setitem__(SLICES, old)


def _torch_point(variable):
    import torch

    parameter = torch.nn.Parameter(torch.ones_like(variable._value))
    one = torch.ones((), device=parameter.device)

    def edit():
        entry = parameter.detach()[0, 0]
        old = entry.clone()
        entry.copy_(one)
        return old

    return edit, lambda old: parameter.detach()[0, 0].copy_(old)


def _torch_region(variable):
    import torch

    parameter = torch.nn.Parameter(torch.ones_like(variable._value))

    def edit():
        entries = parameter.detach()[SLICES]
        old = entries.clone()
        entries.mul_(0.5)
        return old

    return edit, lambda old: parameter.detach()[SLICES].copy_(old)


def _tensorflow_point(variable):
    """By kernels, without Python's helpers around them; the last call takes back what the assignment leaves."""
    import tensorflow as tf

    raw, ours = tf.raw_ops, tf.Variable(tf.ones(variable.shape))
    begin, ones, value = tf.constant([0, 0]), tf.constant([1, 1]), tf.constant(1.0)
    where = {"begin": begin, "end": begin, "strides": ones, "shrink_axis_mask": 3}

    def write(number):
        raw.ResourceStridedSliceAssign(ref=ours.handle, value=number, **where)
        raw.DisableCopyOnRead(resource=ours.handle)

    def edit():
        tensor = raw.ReadVariableOp(resource=ours.handle, dtype=tf.float32)
        old = raw.StridedSlice(input=tensor, **where)
        del tensor
        write(value)
        return old

    return edit, write


def _tensorflow_region(variable):
    import tensorflow as tf

    ours = tf.Variable(tf.ones(variable.shape))

    def edit():
        old = ours[SLICES]
        ours[SLICES].assign(old * 0.5)
        return old

    return edit, lambda old: ours[SLICES].assign(old)


def _jax_point(variable):
    import jax
    from jax import lax

    held, index, one = [jax.numpy.ones(variable.shape)], jax.numpy.zeros((), "int32"), jax.numpy.ones(())
    read = jax.jit(lambda x, i, j: lax.dynamic_slice(x, (i, j), (1, 1)).reshape(()))
    put = jax.jit(lambda x, i, j, v: lax.dynamic_update_slice(x, v.reshape((1, 1)), (i, j)), donate_argnums=0)

    def write(number):
        held[0] = put(held[0], index, index, number)

    def edit():
        old = read(held[0], index, index)
        write(one)
        return old

    return edit, write


def _jax_region(variable):
    import jax

    held = [jax.numpy.ones(variable.shape)]
    read = jax.jit(lambda x: x[SLICES])
    scale = jax.jit(lambda x: x.at[SLICES].multiply(0.5), donate_argnums=0)
    put = jax.jit(lambda x, old: x.at[SLICES].set(old), donate_argnums=0)

    def edit():
        old = read(held[0])
        held[0] = scale(held[0]).block_until_ready()
        return old.block_until_ready()

    def restore(old):
        held[0] = put(held[0], old).block_until_ready()

    return edit, restore


def prunes(variables):
    """Sets the 90 % of each variable that are smallest to 0."""
    backend = keras.backend.backend()
    return {name: lambda loop=loop: loop(variables) for name, loop in _PRUNES[backend].items()}


def merges(variables, others):
    """Each variable becomes 0.7 of itself and 0.3 of the other."""
    loops = {"keras": _merge_by_keras}
    if keras.backend.backend() == "torch":
        loops["torch, in place"] = _merge_by_torch
    if keras.backend.backend() == "jax":
        loops["jax, jitted"] = _merge_by_jax
    return {name: lambda loop=loop: loop(variables, others) for name, loop in loops.items()}


def clips(variables):
    """Each entry is brought between two bounds."""
    loops = {"numpy, in blocks": _clip_in_blocks, "torch, in place": _clip_by_torch}
    return _loops(variables, loops | {"jax, jitted": _by_jax(3), "tf.function": _by_tensorflow(0)})


def masks(variables):
    """The entries that are nearly 0 become 0."""
    loops = {"numpy, in blocks": _mask_in_blocks, "torch, in place": _mask_by_torch}
    return _loops(variables, loops | {"jax, jitted": _by_jax(4), "tf.function": _by_tensorflow(1)})


def _loops(variables, loops):
    """Those of the present backend; NumPy writes into torch's memory too."""
    backend = keras.backend.backend()
    own = [name for name in loops if name.startswith({"tensorflow": "tf"}.get(backend, backend))]
    own += ["numpy, in blocks"] * (backend == "torch")
    return {name: lambda loop=loops[name]: loop(variables) for name in own}


def _memory(variable):
    """As a flat array. `Tensor.numpy` would mark torch's storage for ever as one that is shared."""
    value = variable._value
    return (np.from_dlpack(value.detach()) if keras.backend.backend() == "torch" else value).reshape(-1)


def _clip_in_blocks(variables):
    low, high = np.float32(-0.05), np.float32(0.05)
    for array in map(_memory, variables):
        for start in range(0, array.size, BLOCK):
            block = array[start : start + BLOCK]
            np.clip(block, low, high, out=block)


def _mask_in_blocks(variables):
    """By logic on bits, which is faster than a choice or a write under a mask."""
    size, small, bits = np.empty(BLOCK, "float32"), np.empty(BLOCK, bool), np.empty(BLOCK, "int32")
    for array in map(_memory, variables):
        for start in range(0, array.size, BLOCK):
            block = array[start : start + BLOCK]
            count = block.size
            np.less(np.abs(block, out=size[:count]), np.float32(0.01), out=small[:count])
            np.copyto(bits[:count], np.subtract(small[:count].view("int8"), 1))
            np.bitwise_and(block.view("int32"), bits[:count], out=block.view("int32"))


def _clip_by_torch(variables):
    import torch

    with torch.no_grad():
        for variable in variables:
            variable._value.clamp_(-0.05, 0.05)


def _mask_by_torch(variables):
    import torch

    with torch.no_grad():
        for variable in variables:
            variable._value.masked_fill_(variable._value.abs() < 0.01, 0)


def _by_jax(number):
    def loop(variables):
        for variable in variables:
            variable._value = _jax_kernels()[number](variable._value)

    return loop


def _by_tensorflow(number):
    compiled = []

    def loop(variables):
        if not compiled:
            compiled.append(_tensorflow_loop(number, variables))
        compiled[0]()

    return loop


def _tensorflow_loop(number, variables):
    import tensorflow as tf

    functions = lambda x: tf.clip_by_value(x, -0.05, 0.05), lambda x: tf.where(tf.abs(x) < 0.01, 0.0, x)

    @tf.function
    def loop():
        for variable in variables:
            variable._value.assign(functions[number](variable._value))

    return loop


def _numpy_prune(variables):
    for variable in variables:
        size = np.abs(variable._value)
        variable._value[size < np.quantile(size, 0.9)] = 0


def _torch_prune(variables):
    import torch

    with torch.no_grad():
        for variable in variables:
            size = variable._value.abs()
            bound = size.flatten().kthvalue(round(0.9 * (size.numel() - 1)) + 1).values
            variable._value.masked_fill_(size < bound, 0)


def _torch_prune_by_numpy(variables):
    import torch

    with torch.no_grad():
        for variable in variables:
            size = variable._value.abs()
            variable._value.masked_fill_(size < float(np.quantile(size.cpu().numpy(), 0.9)), 0)


def _jax_prune(variables):
    for variable in variables:
        variable._value = _jax_kernels()[0](variable._value)


def _jax_prune_by_numpy(variables):
    for variable in variables:
        bound = np.quantile(np.abs(np.asarray(variable._value)), 0.9)
        variable._value = _jax_kernels()[1](variable._value, bound)


def _tensorflow_prune(variables):
    import tensorflow as tf

    for variable in variables:
        size = tf.sort(tf.reshape(tf.abs(variable._value), [-1]))
        bound = size[round(0.9 * (size.shape[0] - 1))]
        variable._value.assign(tf.where(tf.abs(variable._value) < bound, 0.0, variable._value))


def _tensorflow_prune_by_numpy(variables):
    import tensorflow as tf

    for variable in variables:
        bound = np.quantile(tf.abs(variable._value).numpy(), 0.9)
        variable._value.assign(tf.where(tf.abs(variable._value) < bound, 0.0, variable._value))


def _merge_by_keras(variables, others):
    for variable, other in zip(variables, others, strict=True):
        variable.assign(0.7 * variable + 0.3 * other)


def _merge_by_torch(variables, others):
    import torch

    with torch.no_grad():
        for variable, other in zip(variables, others, strict=True):
            variable._value.mul_(0.7).add_(other._value, alpha=0.3)


def _merge_by_jax(variables, others):
    for variable, other in zip(variables, others, strict=True):
        variable._value = _jax_kernels()[2](variable._value, other._value)


@functools.cache
def _jax_kernels():
    import jax
    from jax import numpy as jnp

    prune = jax.jit(lambda x: jnp.where(abs(x) < jnp.quantile(abs(x), 0.9), 0, x), donate_argnums=0)
    cut = jax.jit(lambda x, bound: jnp.where(abs(x) < bound, 0, x), donate_argnums=0)
    merge = jax.jit(lambda x, y: 0.7 * x + 0.3 * y, donate_argnums=0)
    clip = jax.jit(lambda x: jnp.clip(x, -0.05, 0.05), donate_argnums=0)
    return prune, cut, merge, clip, jax.jit(lambda x: jnp.where(abs(x) < 0.01, 0, x), donate_argnums=0)


_PRUNES = {
    "numpy": {"numpy": _numpy_prune},
    "torch": {"torch.kthvalue": _torch_prune, "numpy.quantile": _torch_prune_by_numpy},
    "jax": {"jax, jitted": _jax_prune, "numpy.quantile": _jax_prune_by_numpy},
    "tensorflow": {"tf.sort": _tensorflow_prune, "numpy.quantile": _tensorflow_prune_by_numpy},
}
_BACKENDS = {
    "numpy": (_numpy_point, _numpy_region),
    "torch": (_torch_point, _torch_region),
    "tensorflow": (_tensorflow_point, _tensorflow_region),
    "jax": (_jax_point, _jax_region),
}
