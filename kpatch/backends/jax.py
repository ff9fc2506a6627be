"""The jax backend.

jax arrays are immutable. Donation makes an edit cheap: a compiled call takes over the variable's buffer and returns it
with the new entries. Donation deletes every other array over the buffer, so a buffer is donated only if no other array
uses it (`jax_donation`); otherwise the variable gets a copy, once.

A sharded array is never gathered: each shard is read and written as an array of its own (`jax_shards`). Small arrays
in the memory of a CPU are edited by NumPy until compiling pays (`jax_host`).
"""

import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export, lax
from jax import numpy as jnp
from keras import distribution, ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

from kpatch.backends import jax_donation as donation
from kpatch.backends import jax_entries as entries
from kpatch.backends import jax_fused as fused
from kpatch.backends import jax_host as host
from kpatch.backends import jax_processes as processes
from kpatch.backends import jax_shards as shards
from kpatch.backends import jax_trainer as trainer
from kpatch.backends.base import Backend, Cell, unpacked
from kpatch.backends.jax_entries import OPERATORS, is_converted, on_one_device
from kpatch.errors import UnsupportedError
from kpatch.indexing import PackedMask, Point, Positions


class Jax(Backend):
    """Keras's jax backend, eager and in transformations such as `jax.jit`."""

    name = "jax"
    ops = ops
    sorts_nan_last = True
    sums_one_by_one = False
    flushes_denormals = True
    lengths_stay_unknown = False
    compiles_operations = True
    compiles_weights_in = True

    def read(self, variable, selection):
        array = _array(variable)
        if not selection.size:
            return jnp.zeros(selection.shape, array.dtype)
        if host.serves(array, selection):
            return host.take(array, selection)
        return _taken(array, selection)

    def keep(self, variable, selection):
        """An array of NumPy in the memory of a CPU: each edit looks through the arrays of jax that live."""
        array = _array(variable)
        if not selection.size:
            return self.read(variable, selection)
        if host.serves(array, selection):
            return host.taken(array, selection)
        taken = _taken(array, selection)
        return np.array(taken) if type(selection) is Point and host.is_on_host(array) else taken

    def write(self, variable, selection, values, donate=True):
        """With `donate=False` the variable gets a new array; the old one is unchanged."""
        if not selection.size:
            return
        if _by_host(variable, selection, values):
            _set(variable, host.put(_array(variable), selection, values))
            return
        if type(selection) is PackedMask:
            selection, values = unpacked(selection, values)
        _replace(variable, _writable(variable, donate), selection, _present(values, selection))

    def prepare(self, variable, selection, array):
        """Puts the array on the variable's device; for shards and positions it stays on the host."""
        current = _array(variable)
        array = np.asarray(array, current.dtype)
        if type(selection) is Positions or not on_one_device(current):
            return array
        return entries.concrete(array.copy(), current.sharding if current._committed else None)

    def update(self, variable, region, op, old, operand):
        """Computes and writes in one pass, if the array is on one device and its dtype is not converted."""
        if not region.size:
            return
        if _by_host(variable, region, old, operand):
            values = host.operated(op, old, operand)
            if values is not None:
                _set(variable, host.put(_array(variable), region, values))
                return
        array = _writable(variable, donate=True)
        if on_one_device(array) and not is_converted(array.dtype):
            _become(variable, array, entries.region_call(array, region, old, operand, op=op))
            return
        operand = operand if isinstance(operand, jax.Array) else np.asarray(operand, array.dtype)
        _replace(variable, array, region, _present(OPERATORS[op](old, operand), region))

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

    def written(self, variable, values):
        """As an array of NumPy, if it can: a trainer deletes those of jax that it donates."""
        if host.is_on_host(values):
            return super().written(variable, _viewed(values))
        return lambda: None if values.is_deleted() else values

    def give_back(self, variable, values):
        """An array of NumPy keeps the values then: jax copies the buffer before it is donated."""
        current = _array(variable)
        if in_stateless_scope() or not isinstance(values, jax.Array) or not host.is_on_host(values):
            return None
        if current.sharding != values.sharding or current._committed != values._committed:
            return None
        kept = _viewed(values)
        variable._value = values
        return kept

    @contextlib.contextmanager
    def writing(self, variables):
        with host.editing(), donation.looking_once(variables):
            yield

    def overwriting(self, variable, program, given):
        """By a compiled function, which donates the buffer, once the same is done again; others copy small arrays."""
        if not on_one_device(_array(variable)) or in_stateless_scope() or not donation.is_referred_to_once(variable):
            return None
        if not host.comes_again(program.operations, _array(variable)):
            return None
        arrays, numbers = given()
        if any(isinstance(x, jax.core.Tracer) for x in arrays):
            return None
        return Donating(variable, fused.NewValue(program.operations, _array(variable), arrays, numbers, program.counts))

    def agrees(self, operations, numbers):
        return host.agrees(operations, numbers)

    def suits_blocks(self, operations, arrays, numbers):
        """NumPy computes the first ones of a shape; later a compiled function is faster."""
        return host.agrees(operations, numbers) and host.pays(operations, arrays[0])

    def blank(self, like):
        return host.blank(like[0]) if all(map(host.is_on_host, like)) else None

    def fused(self, operations, arrays, numbers):
        if any(isinstance(x, jax.core.Tracer) or not on_one_device(x) for x in arrays):
            return None
        function, *arguments = fused.call([fused.NewValue(operations, arrays[0], arrays, numbers)])
        return function(*arguments)[0]

    def settle(self, variable):
        """jax computes asynchronously: running out of memory is noticed only here."""
        _array(variable).block_until_ready()

    def view(self, tensor):
        """Uses NumPy: a DLPack view would keep a reference to the buffer until it is garbage-collected."""
        if not on_one_device(tensor) or tensor.dtype not in (np.float32, np.float64):
            return None
        return np.asarray(tensor) if next(iter(tensor.devices())).platform == "cpu" else None

    def process(self):
        """Asks jax only if it is a part of a job: once it has looked for its devices it cannot become one."""
        return _process() if _in_job() else (0, 1)

    def exchanged(self, variable, message):
        value = variable._value
        return {} if value is None or value.is_fully_addressable else processes.exchanged(value, message())

    def is_spread(self, x):
        return processes.is_spread(x)

    def gathered(self, x):
        return processes.gathered(x)

    def interpreter(self, work, x):
        return host.INTERPRETER if host.pays(work, x) and not self.is_tracing() else None

    def reducer(self, x):
        """jax compiles a reduction for each shape, and NumPy is as fast in the memory of a CPU."""
        return host.INTERPRETER if host.reduces(x) else None

    def placed(self, array, like):
        return host.placed(array, like)

    def sync(self, model):
        """Restores the values of a model's variables during `fit`, `evaluate` or `predict`.

        Keras's trainer then holds the values, and `variable.value` is `None`. Before the next step Keras takes them
        from the variables again, so an edit in a callback takes effect. Other objects are left unchanged.
        """
        bring = getattr(model, "jax_state_sync", None)
        if bring is not None:
            bring()

    def rescue(self):
        trainer.rescue()

    def refuse(self, function):
        self.rescue()
        super().refuse(function)

    def is_traced(self, data):
        return isinstance(data, jax.core.Tracer)

    def is_tracing(self):
        if _IS_CLEAN is not None and _IS_CLEAN():
            return False
        return isinstance(jnp.zeros(()), jax.core.Tracer)  # under `grad` or `vmap` alone, `zeros` is a value

    def known_length(self, length):
        return None if export.is_symbolic_dim(length) else length

    def holds(self, condition):
        try:
            return bool(condition())
        except jax.errors.InconclusiveDimensionOperation:
            return None

    def present(self, variable):
        """A variable that the compiled function is not given is read on the host; else it would be a constant."""
        value = variable.value
        if self.is_traced(value) or not self.is_tracing():
            return value
        shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.pure_callback(lambda: np.asarray(variable._value), shape)

    def cell(self, value):
        return RefCell(value)

    def hand_out(self, take, x):
        """The values go through the host: a compiled function of jax gives nothing else out while it runs."""
        if not self.is_traced(x):
            take(x)
            return x
        if _several() is not None:  # jax hands out nothing there in order
            self.rescue()
            raise UnsupportedError(
                "activations cannot be recorded in a function that is compiled for several devices",
                notes=["call the model by itself, as in model(x), instead of predict, evaluate or fit"],
            )
        jax.debug.callback(lambda values: take(np.array(values)), x, ordered=True)
        return x

    def distinguish(self, key):
        """By a context that is a part of the key of every cache of traces; jax 0.4 has none."""
        if _key() is None:
            return False
        _key().set_global(key)  # all threads see the patch
        return True

    def undistinguished(self):
        return contextlib.nullcontext() if _key() is None else _key()(())

    def finish(self):
        jax.effects_barrier()

    def refusal(self, dtype):
        if not self.narrows(dtype):
            return None
        narrow = dtype.replace("64", "32")
        return f'jax has no {dtype} unless JAX_ENABLE_X64 is set; write cast(..., "{narrow}")'

    def narrows(self, dtype):
        return dtype.endswith("64") and not jax.config.jax_enable_x64

    def wide(self, name, dtype):
        return getattr(jnp, name, None)

    def erfc(self, x):
        return jax.scipy.special.erfc(x)

    def keeps_scalars(self):
        """Creating a scalar takes at least 20 µs."""
        return True

    def untraced(self):
        return jax.ensure_compile_time_eval()

    def sort(self, x, dtype):
        return None if dtype == "bool" else ops.sort(x, axis=1)

    def replaces_slices(self):
        return True

    def replace_slices(self, tensor, starts, counts, values):
        return lax.dynamic_update_slice(tensor, jnp.broadcast_to(values, counts), starts)


class Donating(NamedTuple):
    """A value that a compiled function computes, which takes over the variable's buffer."""

    variable: Any
    job: fused.NewValue

    @staticmethod
    def run(jobs, begin):
        """Many by one call."""
        counts, alone = [], donation.alone([job.own for _, job in jobs])
        jobs = [(variable, job._replace(donated=id(job.own) in alone)) for variable, job in jobs]
        for start, share in fused.shares([job for _, job in jobs]):
            counts += fused.counts(share)
            for at in range(start, start + len(share)):
                begin(at)
            _become_all([variable for variable, _ in jobs[start : start + len(share)]], share)
        return counts


class RefCell(Cell):
    """A `jax.Ref`; a jax without them gets the value from the host."""

    def __init__(self, value: np.ndarray) -> None:
        self._value: Any = None
        self._ref: Any = jax.new_ref(_everywhere(value)) if hasattr(jax, "new_ref") else None
        if self._ref is None:
            self._value = value

    def get(self):
        if self._ref is not None:
            return self._ref[...]
        shape = jax.ShapeDtypeStruct(self._value.shape, self._value.dtype)
        return jax.pure_callback(lambda: self._value, shape)

    def put(self, value):
        if self._ref is None:
            self._value = value
        else:
            self._ref[...] = jnp.asarray(value)


def _in_job():
    is_initialized = getattr(jax.distributed, "is_initialized", None)  # an older jax has none
    return is_initialized is None or is_initialized()


@functools.cache
def _process():
    return jax.process_index(), jax.process_count()


def _several():
    """Keras's mesh of devices if there are several, on which it compiles functions; or `None`."""
    parallel = distribution.distribution()
    return None if parallel is None or parallel.device_mesh.devices.size == 1 else parallel.device_mesh


def _everywhere(value):
    """The value as an array on each device on which Keras compiles functions."""
    mesh, array = _several(), jnp.asarray(value)
    if mesh is None:
        return array
    return distribution.distribute_tensor(array, distribution.TensorLayout([None] * array.ndim, mesh))


@functools.cache
def _key():
    """The context that blocks enter. From its first use on, jax traces anew what it has traced before, once."""
    return jax.make_user_context(()) if hasattr(jax, "make_user_context") else None


def _viewed(values):
    """The memory of an array of the host as one of NumPy.

    The process ends if jax is asked for memory that its computation did not get; waiting raises an error.
    """
    return np.asarray(values.block_until_ready())


def _array(variable):
    array = variable._value
    if array is None:
        raise UnsupportedError(
            f"variable '{variable.path}' has no value now",
            notes=[
                "during fit, evaluate and predict the running model holds the values: apply the patch to that model,",
                "as in kpatch.apply(callback.model, ...)",
            ],
        )
    return array


def _taken(array, selection):
    """The selected entries by a compiled function."""
    return _present((entries if on_one_device(array) else shards).take(array, selection), selection)


def _by_host(variable, selection, *values):
    return host.serves(_array(variable), selection, *values) and not in_stateless_scope()


def _writable(variable, donate):
    """The array to donate: the variable's own if it is private, else a copy."""
    private = donate and donation.private(variable)
    array = _array(variable)
    if in_stateless_scope():
        raise _untouchable(variable)
    if private:
        return array
    if on_one_device(array):
        return _untraced(variable, entries.copy(array))
    return shards.rebuilt(array, [_untraced(variable, entries.copy(part)) for part in entries.parts_of(array)])


def _replace(variable, array, selection, values):
    """Puts the values into the array, which is donated; the result becomes the variable's value."""
    if on_one_device(array):
        _become(variable, array, entries.put_call(array, selection, values))
        return
    parts = entries.parts_of(array)
    try:
        shards.put(parts, array, selection, values)
    finally:  # also if a shard failed: the shards before it are already donated
        _set(variable, shards.rebuilt(array, parts))


def _become(variable, array, call):
    """Sets the variable's value to the result of a call that donates the array."""
    entries.call_into(functools.partial(setattr, variable), "_value", call)
    new = variable._value
    if isinstance(new, jax.core.Tracer):  # then nothing was donated
        variable._value = array
        raise _untouchable(variable)
    donation.remember(new)


def _become_all(variables, jobs):
    """Sets the variables' values to the results of one call, which donates their arrays."""
    results: list = []
    try:
        entries.extend_by(results, fused.call(jobs))
    finally:  # an interrupt comes after the call of C code that sets all
        any(map(setattr, variables, itertools.repeat("_value"), results))
    if any(isinstance(new, jax.core.Tracer) for new in results):  # then nothing was donated
        any(map(setattr, variables, itertools.repeat("_value"), [job.own for job in jobs]))
        raise _untouchable(variables[0])
    for new in results:
        donation.remember(new)


def _present(values, selection):
    """The values. Waits for large ones, so that a failed computation overwrites nothing."""
    if type(selection) is Point:
        return values
    if isinstance(values, jax.Array) and values.nbytes > donation.SMALL and not isinstance(values, jax.core.Tracer):
        values.block_until_ready()
    return values


def _clean_state():
    """jax's private test that no transformation is active, or `None`; without it edits are slower."""
    try:
        from jax._src.core import trace_state_clean
    except ImportError:
        return None
    return trace_state_clean


_IS_CLEAN = _clean_state()


def _set(variable, array):
    """Sets the value without `assign`: only entries changed, so its checks and conversions are not needed."""
    variable._value = _untraced(variable, array)
    donation.remember(array)


def _untraced(variable, array):
    if isinstance(array, jax.core.Tracer):
        raise _untouchable(variable)
    return array


def _untouchable(variable):
    return UnsupportedError(
        f"variable '{variable.path}' cannot be edited inside a function that jax traces, or a StatelessScope",
        notes=["kpatch.edit works there, and returns a new tensor"],
    )
