"""Entries of variables on the jax backend, and what else differs there.

An array of jax never changes; what makes an edit cheap is donation: a compiled call takes the variable's buffer over,
and its result is that buffer with the new entries in it. That deletes every other array over the same buffer, so it is
done only if nobody else has one (`jax_donation`); if somebody may, the variable gets a copy, once.

Nothing is computed on a whole array that is sharded, so nothing is ever gathered: each device's shard is an array of
its own, read and written like any other (`jax_shards`).
"""

import functools

import jax
import numpy as np
from jax import export, lax
from jax import numpy as jnp
from keras.src.backend.common.stateless_scope import in_stateless_scope

from kpatch.backends import jax_donation as donation
from kpatch.backends import jax_entries as entries
from kpatch.backends import jax_shards as shards
from kpatch.backends.base import Backend
from kpatch.backends.jax_entries import OPERATORS, is_converted, on_one_device
from kpatch.errors import UnsupportedError
from kpatch.indexing import Positions


class Jax(Backend):
    """Keras's jax backend: eager, and inside of `jax.jit` and the like."""

    name = "jax"
    sorts_nan_last = True
    sums_one_by_one = False
    lengths_stay_unknown = False

    def read(self, variable, selection):
        array = _array(variable)
        if not selection.size:
            return jnp.zeros(selection.shape, array.dtype)
        return _present((entries if on_one_device(array) else shards).take(array, selection))

    def write(self, variable, selection, values, donate=True):
        """With `donate=False` the variable gets a new array each time, and the old one stays as it is."""
        if not selection.size:
            return
        array = _writable(variable, donate)
        _replace(variable, array, selection, _present(values))

    def prepare(self, variable, selection, array):
        """On the variable's device; for shards and positions on the host."""
        current = _array(variable)
        array = np.asarray(array, current.dtype)
        if type(selection) is Positions or not on_one_device(current):
            return array
        return entries.concrete(array.copy(), current.sharding if current._committed else None)

    def update(self, variable, region, op, old, operand):
        """Computed in the pass that writes it, if that is one over the region."""
        if not region.size:
            return
        array = _writable(variable, donate=True)
        if on_one_device(array) and not is_converted(array.dtype):
            _become(variable, array, entries.region_call(array, region, old, operand, op=op))
            return
        operand = operand if isinstance(operand, jax.Array) else np.asarray(operand, array.dtype)
        _replace(variable, array, region, _present(OPERATORS[op](old, operand)))

    def whole(self, variable):
        return _array(variable)

    def take_over(self, variable, values):
        old = _array(variable)
        if in_stateless_scope():
            raise _untouchable(variable)
        if old.sharding != values.sharding or old._committed != values._committed:
            return None
        _set(variable, values)
        return old

    def settle(self, variable):
        """jax computes while Python goes on: for want of memory it fails only then."""
        _array(variable).block_until_ready()

    def view(self, tensor):
        """By NumPy: DLPack would do too, but jax then counts a holder of the buffer until its garbage is collected."""
        if not on_one_device(tensor) or tensor.dtype not in (np.float32, np.float64):
            return None
        return np.asarray(tensor) if next(iter(tensor.devices())).platform == "cpu" else None

    def sync(self, model):
        """Gives the variables of a model that is in `fit`, `evaluate` or `predict` their present values.

        There Keras holds them in its trainer, and `variable.value` is none. It takes them from the variables again
        before the next step, so that an edit made in a callback takes effect. Anything but a trainer is left alone.
        """
        bring = getattr(model, "jax_state_sync", None)
        if bring is not None:
            bring()

    def is_traced(self, data):
        return isinstance(data, jax.core.Tracer)

    def is_tracing(self):
        if _IS_CLEAN is not None and _IS_CLEAN():
            return False
        return isinstance(jnp.zeros(()), jax.core.Tracer)  # under `grad` or `vmap` alone it is a value

    def known_length(self, length):
        return None if export.is_symbolic_dim(length) else length

    def holds(self, condition):
        try:
            return bool(condition())
        except jax.errors.InconclusiveDimensionOperation:
            return None

    def refusal(self, dtype):
        if not self.narrows(dtype):
            return None
        narrow = dtype.replace("64", "32")
        return f'jax has no {dtype} unless JAX_ENABLE_X64 is set; write cast(..., "{narrow}")'

    def narrows(self, dtype):
        return dtype.endswith("64") and not jax.config.jax_enable_x64

    def wide(self, name, dtype):
        return getattr(jnp, name, None)

    def keeps_scalars(self):
        """Each costs 20 µs and more."""
        return True

    def untraced(self):
        return jax.ensure_compile_time_eval()

    def sort(self, x, dtype):
        from keras import ops

        return None if dtype == "bool" else ops.sort(x, axis=1)

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        return lax.dynamic_update_slice(tensor, jnp.broadcast_to(values, counts), starts)


def _array(variable):
    array = variable._value
    if array is None:
        raise UnsupportedError(
            f"variable '{variable.path}' has no value at present",
            notes=[
                "inside fit, evaluate and predict the model that runs holds the values: apply the patch to that one,",
                "as in kpatch.apply(callback.model, ...)",
            ],
        )
    return array


def _writable(variable, donate):
    """The array for a function that donates it: the variable's own, or a copy if others may see that."""
    private = donate and donation.private(variable)
    array = _array(variable)
    if in_stateless_scope():
        raise _untouchable(variable)
    if private:
        return array
    if on_one_device(array):
        return _untraced(variable, entries.copy(array))
    return shards.rebuilt(array, [_untraced(variable, entries.copy(part)) for part in shards.parts_of(array)])


def _replace(variable, array, selection, values):
    """Puts the values into the array, which is donated, and makes the variable's value of the result."""
    if on_one_device(array):
        _become(variable, array, entries.put_call(array, selection, values))
        return
    parts = shards.parts_of(array)
    try:
        shards.put(parts, array, selection, values)
    finally:  # also if a shard failed: those before it are deleted
        _set(variable, shards.rebuilt(array, parts))


def _become(variable, array, call):
    """The variable's value becomes what a call that donates the array makes of it."""
    entries.call_into(functools.partial(setattr, variable), "_value", call)
    new = variable._value
    if isinstance(new, jax.core.Tracer):  # then nothing was donated
        variable._value = array
        raise _untouchable(variable)
    donation.remember(new)


def _present(values):
    """The values; large ones when they are computed, so that none that failed is written over what is there."""
    if isinstance(values, jax.Array) and values.nbytes > donation.SMALL and not isinstance(values, jax.core.Tracer):
        values.block_until_ready()
    return values


def _clean_state():
    """jax's own test whether no transformation is at work, or `None`: it is private. Without it edits are slower."""
    try:
        from jax._src.core import trace_state_clean
    except ImportError:
        return None
    return trace_state_clean


_IS_CLEAN = _clean_state()


def _set(variable, array):
    """Sets the value without `assign`, whose checks and conversions it does not need: only entries have changed."""
    variable._value = _untraced(variable, array)
    donation.remember(array)


def _untraced(variable, array):
    if isinstance(array, jax.core.Tracer):
        raise _untouchable(variable)
    return array


def _untouchable(variable):
    return UnsupportedError(
        f"variable '{variable.path}' cannot be edited inside a function that jax traces, or a StatelessScope",
        notes=["kpatch.edit makes a new tensor, and works there"],
    )
