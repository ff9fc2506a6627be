"""The first edits of a shape on jax: by NumPy, with the bits of the compiled functions, which come when they pay."""

import keras
import ml_dtypes
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("jax's own", allow_module_level=True)

import jax

if jax.default_backend() != "cpu":
    pytest.skip("NumPy edits what lies in the memory of a CPU", allow_module_level=True)

from jax import numpy as jnp

import kpatch
from kpatch import backends, indexing
from kpatch.backends import jax_entries as entries
from kpatch.backends import jax_host as host
from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Positions

SHAPE = (6, 5)
MASK = np.arange(30).reshape(SHAPE) % 3 == 0
SELECTIONS = {
    "point": indexing.select(SHAPE, (2, -1)),
    "row": indexing.select(SHAPE, (1,)),
    "steps": indexing.select(SHAPE, (slice(None, None, -2), slice(0, 4, 3))),
    "whole": indexing.whole(SHAPE),
    "positions": Positions(np.array([3, 29, 7]), (3,)),
    "mask": Mask(MASK, SHAPE),
    "mask on the device": Mask(jnp.asarray(MASK), SHAPE),
}


@pytest.fixture(autouse=True)
def _nothing_copied(monkeypatch):
    monkeypatch.setattr(host, "_copied", {})
    monkeypatch.setattr(host, "_done", {})


def bits(shape, dtype, seed=0):
    """Random bits: NaNs with payloads, -0.0 and subnormal numbers among them."""
    dtype = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.integers(0, 256, (*shape, dtype.itemsize), dtype="uint8").reshape(-1).view(dtype).reshape(shape)


def as_bytes(array):
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint32", "bool", "float8_e4m3fn"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_bits_are_those_of_the_compiled_functions(name, dtype):
    selection, array = SELECTIONS[name], jnp.asarray(bits(SHAPE, dtype))
    shape = SHAPE if type(selection) is Mask else selection.shape
    values = jnp.asarray(bits(shape, dtype, seed=1))
    assert host.serves(array, selection)
    assert host.serves(array, selection, values)
    taken, compiled = host.take(array, selection), entries.take(array, selection)
    assert (taken.shape, taken.dtype, as_bytes(taken)) == (compiled.shape, compiled.dtype, as_bytes(compiled))
    new = host.put(array, selection, values)
    function, own, *arguments = entries.put_call(entries.copy(array), selection, values)
    assert as_bytes(new) == as_bytes(function(own, *arguments))
    assert (new.dtype, new.sharding, new._committed) == (array.dtype, array.sharding, array._committed)


@pytest.mark.parametrize("op", "+-*")
def test_operators_have_the_bits_of_the_compiled_ones_or_are_left_to_them(op):
    old, operand = np.linspace(-3, 3, 30, dtype="float32").reshape(SHAPE), np.float32(0.3)
    compiled = entries.OPERATORS[op](jnp.asarray(old), jnp.asarray(operand))
    assert as_bytes(host.operated(op, jnp.asarray(old), operand)) == as_bytes(compiled)
    for odd in (1e-40, np.nan, np.inf):
        assert host.operated(op, np.full(SHAPE, odd, "float32"), operand) is None
    assert host.operated("*", np.full(SHAPE, 1e-30, "float32"), np.float32(1e-10)) is None
    assert host.operated(op, jnp.ones(SHAPE, "bfloat16"), operand) is None
    assert host.operated("/", old, operand) is None


class Compilations:
    """How many functions were compiled since it was made: jax tells its listeners, which stay for ever."""

    def __init__(self):
        self.number = 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event, seconds, **_):
        self.number += event == "/jax/core/compile/backend_compile_duration"


def test_a_patch_that_is_applied_and_undone_once_compiles_nothing():
    layers = [keras.layers.Dense(units, name=f"d{units}") for units in (11, 13, 17)]
    model = keras.Sequential([keras.Input((7,)), *layers])
    before = model.get_weights()
    found = Compilations()
    text = """
    **.kernel[abs(_) < 0.1] = 0; **.bias = 1; d11.kernel[2:, ::3] *= 0.5; d13.bias[[1, 4]] = 7
    **.kernel *= 0.5; **.kernel = 0.7 * _ + 0.3 * $donor._; **.kernel = clip(_, -0.5, 0.5)
    **.kernel[abs(_) < quantile(abs(_), 0.5)] = 0; **.kernel[_ * 2 > 0.1] -= 0.25
    """
    kpatch.apply(model, text, donor=keras.models.clone_model(model)).undo()
    assert found.number == 0
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, old)
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(23))
    assert found.number > 0


def test_work_of_one_shape_is_compiled_once_copies_cost_more_and_that_of_large_arrays_at_once(monkeypatch):
    array, point, row = jnp.zeros(SHAPE), SELECTIONS["point"], SELECTIONS["row"]
    monkeypatch.setattr(host, "BUDGET", 3 * (array.nbytes + host.OVERHEAD) - 1)
    assert [host.serves(array, point) for _ in range(5)] == [True, True, True, False, False]
    assert host.serves(array, row)
    assert host.serves(array, point, 1.0)
    assert host.serves(jnp.zeros(SHAPE, "int8"), point)
    assert not host.serves(jnp.zeros(2**20), point)


def kernels(inputs, *units):
    """A model of kernels that jax made itself."""
    layers = [keras.layers.Dense(each, use_bias=False, name=f"d{at}") for at, each in enumerate(units)]
    model = keras.Sequential([keras.Input((inputs,)), *layers])
    for seed, variable in enumerate(model.variables):
        variable.assign(jnp.asarray(bits(variable.shape, "float32", seed)) * 1)
    return model


def test_what_edits_do_often_is_compiled_for_all_variables_at_once(monkeypatch):
    monkeypatch.setattr(host, "OFTEN", 2)
    text, models = "**.kernel[abs(_) < 1] = -2.5; **.kernel = clip(_, -2, 1e30)", [kernels(7, 9, 301) for _ in range(5)]
    found = Compilations()
    counts, numbers = [], []
    for model in models[:4]:
        applied = kpatch.apply(model, text, undo=False)
        counts.append([row.entries for row in applied.plan.rows])
        numbers.append(found.number)
    assert numbers[:2] == [0, 0]
    assert 0 < numbers[2] == numbers[3] <= 3
    applied = kpatch.apply(models[4], text)  # one after the other
    assert counts == [[row.entries for row in applied.plan.rows]] * 4
    for model in models[:4]:
        assert [as_bytes(v._value) for v in model.variables] == [as_bytes(v._value) for v in models[4].variables]


def test_buffers_that_other_arrays_share_keep_their_values_when_many_are_written_at_once():
    model = kernels(300, 301, 300, 302)
    for _ in range(host.OFTEN + 1):
        kpatch.apply(model, "**.kernel *= 2", undo=False)
    first, second, third = model.variables
    alias = jax.device_put(first._value, next(iter(first._value.devices())))
    shard, view = second._value.addressable_data(0), np.asarray(third._value)
    before = [as_bytes(v._value) for v in model.variables]
    kpatch.apply(model, "**.kernel *= 2", undo=False)
    assert [as_bytes(alias), as_bytes(shard), as_bytes(view)] == before
    del alias, shard, view
    kpatch.apply(model, "**.kernel *= 2", undo=False)
    addresses = [v._value.unsafe_buffer_pointer() for v in model.variables]
    kpatch.apply(model, "**.kernel *= 2", undo=False)
    assert [v._value.unsafe_buffer_pointer() for v in model.variables] == addresses


def test_an_interrupt_after_the_call_that_donates_loses_no_value(monkeypatch):
    """Small variables have their old values again, as they are kept."""
    model, extend = kernels(30, 31, 30), entries.extend_by
    before = [as_bytes(v.value) for v in model.variables]

    def interrupted(results, call):
        extend(results, call)
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "BUDGET", -1)
    monkeypatch.setattr(entries, "extend_by", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kpatch.apply(model, "**.kernel *= 2", undo=False)
    assert [as_bytes(v.value) for v in model.variables] == before


def test_what_is_counted_is_bounded(monkeypatch):
    monkeypatch.setattr(host, "REMEMBERED", 4)
    for length in range(1, 20):
        assert host.serves(jnp.zeros(length), indexing.select((length,), (0,)))
        assert len(host._copied) <= 4


def test_whoever_holds_the_old_array_keeps_its_values():
    variable = keras.Variable(np.zeros(SHAPE, "float32"))
    held, view = variable.value, np.asarray(variable.value)
    backends.current().write(variable, SELECTIONS["row"], np.float32(3))
    assert not held.is_deleted()
    assert not view.any()
    assert not np.asarray(held).any()
    assert np.asarray(variable.value).sum() == 15


def test_variables_are_not_edited_in_a_stateless_scope():
    variable = keras.Variable(np.zeros(SHAPE, "float32"))
    with keras.StatelessScope(), pytest.raises(UnsupportedError, match="StatelessScope"):
        backends.current().write(variable, SELECTIONS["point"], np.float32(3))
    assert not np.asarray(variable.value).any()


def test_arrays_that_are_traced_or_on_several_devices_are_not_for_numpy():
    seen = []
    jax.make_jaxpr(lambda x: seen.append(host.serves(x, SELECTIONS["point"])) or x)(jnp.zeros(SHAPE))
    jax.make_jaxpr(lambda x: seen.append(host.serves(jnp.zeros(SHAPE), SELECTIONS["point"], x)) or x)(1.0)
    assert seen == [False, False]


@pytest.mark.parametrize("budget", [host.BUDGET, -1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["point", "row", "positions"])
def test_what_is_kept_is_written_back_with_the_same_bits(name, dtype, budget, monkeypatch):
    monkeypatch.setattr(host, "BUDGET", budget)
    writer, selection = backends.current(), SELECTIONS[name]
    variable = keras.Variable(jnp.asarray(bits(SHAPE, dtype)), dtype=dtype, trainable=False)
    start = as_bytes(variable._value)
    kept = writer.keep(variable, selection)
    assert as_bytes(kept) == as_bytes(writer.read(variable, selection))
    writer.write(variable, selection, jnp.asarray(bits(selection.shape, dtype, seed=1)))
    writer.write(variable, selection, kept)
    assert as_bytes(variable._value) == start


def test_kept_edits_of_one_entry_leave_no_arrays_behind():
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(50, name="head")])
    host._copied.clear()
    kpatch.apply(model, "head.kernel[0, 0] = 1")
    alive = len(jax.devices()[0].client.live_arrays())
    applied = [kpatch.apply(model, "head.kernel[0, 0] = 1") for _ in range(20)]
    assert len(jax.devices()[0].client.live_arrays()) <= alive + 2
    assert applied[-1].writes[0].before == 1


def test_jax_takes_over_memory_as_it_is():
    x = jnp.asarray(bits((40, 50), "float32"))
    own = host._own(x)
    placed = host.placed(own, x)
    assert placed.unsafe_buffer_pointer() == own.ctypes.data
    unaligned = np.frombuffer(b"0" + own.tobytes(), "uint8")[1:].view("float32").reshape(40, 50)
    assert as_bytes(host.placed(unaligned, x)) == as_bytes(own)


def test_undo_gives_back_the_former_array_and_its_values_stay():
    layer = keras.layers.Dense(50, use_bias=False, name="head")
    model = keras.Sequential([keras.Input((40,)), layer])
    former = layer._kernel._value
    start = as_bytes(former)
    applied = kpatch.apply(model, "head.kernel = _ * 0.5 - 1")
    applied.undo()
    assert layer._kernel._value is former
    del former
    trained = jax.jit(lambda x: x + 1, donate_argnums=0)(layer._kernel._value)  # as a trainer does it
    assert as_bytes(applied.writes[0].before) == start
    layer._kernel._value = trained
    other = kpatch.apply(model, "head.kernel[0, 0] = 3")
    assert as_bytes(applied.writes[0].before) == start
    other.undo()
    assert as_bytes(layer._kernel._value) == as_bytes(trained)


def test_a_former_array_that_somebody_else_holds_keeps_its_values():
    layer = keras.layers.Dense(400, use_bias=False, name="head")
    model = keras.Sequential([keras.Input((300,)), layer])
    held = layer._kernel._value
    start = as_bytes(held)
    kpatch.apply(model, "head.kernel *= 2").undo()
    for _ in range(2):
        kpatch.apply(model, "head.kernel[1, 1] = 3")
    assert as_bytes(held) == start
