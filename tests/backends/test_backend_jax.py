"""What is jax's own: who else may see a buffer, which compilations are shared, bits, `fit`, and sharded variables."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("jax's own", allow_module_level=True)

import jax
from jax import numpy as jnp

import kpatch
from kpatch import backends, indexing
from kpatch.backends import jax_donation as donation
from kpatch.backends import jax_entries as entries
from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Positions

pytestmark = pytest.mark.usefixtures("compiled")
writer = backends.current()
LARGE = (300, 257)  # more than what is copied unseen


def bits(shape, dtype, seed=0):
    """Random bits: NaNs with payloads, -0.0 and subnormal numbers among them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype="uint8")
    return np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(shape)


def variable_of(array):
    return keras.Variable(jnp.array(array), dtype=array.dtype.name)


def region(shape, items):
    return indexing.select(shape, items if isinstance(items, tuple) else (items,))


def private(shape=LARGE, dtype="float32"):
    """A variable that the writer has written to, so that its buffer is its own."""
    variable = keras.Variable(np.zeros(shape, dtype))
    writer.write(variable, Point((0,) * len(shape)), 1)
    return variable


def address(variable):
    return variable._value.unsafe_buffer_pointer()


def assert_same_bits(actual, expected):
    actual = np.array(actual)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == np.ascontiguousarray(expected).tobytes()


# Bits. The common tests have small tensors; here each way of writing is taken.

ITEMS = {
    "row": np.s_[5],
    "column": np.s_[..., 3],
    "block": np.s_[2:7, 4:9],
    "strided": np.s_[1:40:3, 60:2:-7],
    "reversed": np.s_[::-1],
    "one of a step": np.s_[7:8:5],
    "all": np.s_[...],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "bool"])
@pytest.mark.parametrize("name", ITEMS)
def test_regions(dtype, name):
    before = bits((64, 67), dtype)
    variable = variable_of(before)
    selection = region(before.shape, ITEMS[name])
    old = writer.read(variable, selection)
    assert_same_bits(old, before[ITEMS[name]])
    values = bits(selection.shape, dtype, 1)
    expected = before.copy()
    expected[ITEMS[name]] = values
    writer.write(variable, selection, values)
    assert_same_bits(variable._value, expected)
    writer.write(variable, selection, old)
    assert_same_bits(variable._value, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2", "bool"])
@pytest.mark.parametrize("shape", [(64 * 67,), (64, 67), (8, 8, 67), (16, 4, 67, 1), (4289,)])
def test_points_and_positions(dtype, shape):
    """Few positions and many, in tensors of which some have no two axes of about the same length."""
    before = bits(shape, dtype)
    variable = variable_of(before)
    expected = before.copy()
    for seed, count in enumerate([1, 3, 17, 300]):
        flat = np.random.default_rng(seed).choice(before.size, count, replace=False)
        selection = Positions(flat, (count,))
        if count == 1:
            selection = Point(tuple(int(i) for i in np.unravel_index(int(flat[0]), shape)))
        old, values = writer.read(variable, selection), bits(selection.shape, dtype, seed + 9)
        assert_same_bits(old, expected.reshape(-1)[flat].reshape(selection.shape))
        expected.reshape(-1)[flat] = values
        writer.write(variable, selection, values)
        assert_same_bits(variable._value, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offsets_beyond_what_an_index_holds(monkeypatch, dtype):
    """Then positions are coordinates. A limit of 200 stands for 2**31 - 1."""
    monkeypatch.setattr(entries, "LARGEST", 200)
    forget_what_is_compiled()
    before = bits((20, 31), dtype)
    variable = variable_of(before)
    for count in (1, 5, 100):
        flat = np.random.default_rng(count).choice(before.size, count, replace=False)
        positions, values = Positions(flat, (count,)), bits((count,), dtype, count)
        assert_same_bits(writer.read(variable, positions), before.reshape(-1)[flat])
        before.reshape(-1)[flat] = values
        writer.write(variable, positions, values)
        assert_same_bits(variable._value, before)
    writer.write(variable, Point((7, 30)), np.zeros((), before.dtype))
    before[7, 30] = 0
    assert_same_bits(variable._value, before)
    with pytest.raises(UnsupportedError, match=r"jax has no index for an axis as long as in shape \(300, 2\)"):
        writer.read(keras.Variable(np.zeros((300, 2))), Positions(np.arange(3), (3,)))
    monkeypatch.undo()
    forget_what_is_compiled()


def forget_what_is_compiled():
    """By the functions of `entries` alone, where the limit is looked at: the other tests need not compile anew."""
    compiled = [each for each in vars(entries).values() if hasattr(each, "clear_cache")]
    assert compiled
    for each in compiled:
        each.clear_cache()


def test_64_bits():
    run(
        """
        for dtype in ("int64", "float64", "uint64"):
            before = np.random.default_rng(0).integers(0, 2**63, (40, 50)).view(dtype)
            variable = keras.Variable(before, dtype=dtype)
            for selection in (Point((3, 4)), region((40, 50), np.s_[::3, ::-2]), Positions(np.arange(7) * 9, (7,))):
                values = np.random.default_rng(1).integers(0, 2**63, selection.shape).astype("int64").view(dtype)
                where = selection.slices if hasattr(selection, "slices") else getattr(selection, "index", None)
                where = where or np.unravel_index(selection.flat, (40, 50))
                before[where] = values
                writer.write(variable, selection, values)
                assert np.array(variable.value).tobytes() == before.tobytes()
                assert np.array(writer.read(variable, selection)).tobytes() == np.array(before[where]).tobytes()
        """,
        JAX_ENABLE_X64="1",
    )


# Who else sees the buffer.

HOLDERS = {
    "value": lambda value: value,
    "device_put": lambda value: jax.device_put(value, jax.devices()[0]),
    "device_put, its sharding": lambda value: jax.device_put(value, value.sharding),
    "addressable_data": lambda value: value.addressable_data(0),
    "shard": lambda value: value.addressable_shards[0],
    "shards": lambda value: value.addressable_shards,
    "dlpack": jax.dlpack.from_dlpack,
    "numpy": np.asarray,
    "row of numpy": lambda value: np.asarray(value)[1:],
    "memoryview": lambda value: memoryview(np.asarray(value)),
    "pytree": lambda value: jax.tree.map(lambda leaf: leaf, {"kernel": value}),
    "closure": lambda value: lambda: value,
    "stop_gradient": jax.lax.stop_gradient,
    "jit": jax.jit(lambda value: value),
    "asarray": jnp.asarray,
    "sharded": lambda value: jax.device_put(
        value, jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    ),
}

if jax.default_backend() == "cpu":
    HOLDERS["numpy by dlpack"] = np.from_dlpack


def held(holder):
    """What a holder holds, as a copy."""
    if callable(holder):
        holder = holder()
    if isinstance(holder, dict):
        holder = holder["kernel"]
    if isinstance(holder, list):
        holder = holder[0]
    return np.array(getattr(holder, "data", holder) if not isinstance(holder, np.ndarray) else holder)


@pytest.mark.parametrize("edited", [False, True], ids=["fresh", "edited before"])
@pytest.mark.parametrize("name", HOLDERS)
def test_what_is_held_keeps_its_values(name, edited):
    variable = private() if edited else keras.Variable(jnp.ones(LARGE))
    variable.numpy()
    holder = HOLDERS[name](variable.value)
    before = held(holder)
    for value in (5.0, 6.0):
        writer.write(variable, Point((1, 2)), value)
        writer.write(variable, indexing.whole(LARGE), value)
        assert (held(holder) == before).all()
    assert (variable.numpy() == 6).all()


def test_a_variable_made_of_memory_that_numpy_owns():
    memory = np.zeros(LARGE, "float32")
    for array in (jnp.asarray(memory), jax.device_put(memory), jax.dlpack.from_dlpack(memory)):
        variable = keras.Variable(array)
        del array
        for value in (1.0, 2.0):
            writer.write(variable, Point((1, 2)), value)
        assert not memory.any()


def test_a_variable_whose_array_is_the_younger_alias():
    held = jnp.zeros(LARGE)
    variable = keras.Variable(jax.device_put(held, jax.devices()[0]))
    for value in (5.0, 6.0):
        writer.write(variable, Point((1, 2)), value)
        assert not np.array(held).any()


@pytest.mark.parametrize("how", ["assign", "initial value", "variable"])
def test_two_variables_of_one_array(how):
    if how == "assign":
        one, two = keras.Variable(jnp.zeros(LARGE)), keras.Variable(jnp.zeros(LARGE))
        two.assign(one.value)
    else:
        one = private()
        two = keras.Variable(one.value if how == "initial value" else one)
    before = two.numpy()
    writer.write(one, Point((3, 3)), 5.0)
    assert (two.numpy() == before).all()
    writer.write(two, Point((3, 3)), 6.0)
    assert one.numpy()[3, 3] == 5
    assert two.numpy()[3, 3] == 6


def test_state_of_a_trainer():
    """Arrays in a state taken by hand, as for a training loop of one's own."""
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(257)])
    state = [variable.value for variable in model.trainable_variables]
    before = [np.array(value) for value in state]
    writer.write(model.layers[0].kernel, Point((0, 0)), 5.0)
    for value, old in zip(state, before, strict=True):
        assert (np.asarray(value) == old).all()


LOOKS = {
    "numpy": lambda variable: variable.numpy(),
    "convert_to_numpy": keras.ops.convert_to_numpy,
    "view let go": lambda variable: np.asarray(variable.value).sum(),
    "entry": lambda variable: float(variable.value[0, 0]),
    "shards": lambda variable: len(variable.value.addressable_shards),
    "computed": lambda variable: variable + 1,
    "nothing": lambda variable: None,
}


@pytest.mark.parametrize("name", LOOKS)
def test_looking_costs_no_copy(name):
    variable = private()
    for value in (5.0, 6.0):
        LOOKS[name](variable)
        place = address(variable)
        writer.write(variable, Point((1, 2)), value)
        assert address(variable) == place


def test_written_in_place_from_the_first_time_where_nobody_else_sees_it():
    variable = keras.Variable("zeros", shape=LARGE)
    place = address(variable)
    writer.write(variable, Point((1, 2)), 5.0)
    assert address(variable) == place


def test_written_in_place_after_training():
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(257)])
    model.compile("sgd", "mse")
    x, y = np.zeros((4, 300), "float32"), np.zeros((4, 257), "float32")
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    place = address(model.layers[0].kernel)
    writer.write(model.layers[0].kernel, Point((1, 2)), 5.0)
    assert address(model.layers[0].kernel) == place
    assert model.predict(np.eye(300)[[1]], verbose=0)[0, 2] == 5


def test_donate_false_leaves_the_buffer_alone():
    variable = private()
    place = address(variable)
    view = np.asarray(variable.value)
    writer.write(variable, Point((1, 2)), 5.0, donate=False)
    assert address(variable) != place
    assert view[1, 2] == 0


def test_older_arrays_are_not_looked_through(monkeypatch):
    """So that an edit does not become slower with the number of variables."""
    others = [jnp.zeros(LARGE) for _ in range(3)]
    variable = private()
    looked = []
    buffers = donation._buffers
    monkeypatch.setattr(donation, "_buffers", lambda arrays: looked.append(len(arrays)) or buffers(arrays))
    writer.write(variable, Point((1, 2)), 5.0)
    assert not looked
    others.append(jnp.ones(LARGE))
    writer.write(variable, Point((1, 2)), 5.0)
    assert looked


def old(count=3):
    """Variables whose memory kpatch has not seen yet."""
    return [keras.Variable(jnp.full(LARGE, float(number))) for number in range(count)]


def test_several_variables_are_looked_for_at_once(monkeypatch):
    """Afterwards, only at arrays that were made since."""
    variables, others = old(), [jnp.zeros(LARGE) for _ in range(50)]
    places, looked, buffers = [address(variable) for variable in variables], [], donation._buffers
    monkeypatch.setattr(donation, "_buffers", lambda arrays: looked.extend(map(id, arrays)) or buffers(arrays))
    with donation.looking_once(variables):
        assert len(looked) >= len(others)
        for turn in range(2):
            looked.clear()
            for variable in variables:
                writer.write(variable, Point((1, 2)), turn)
            assert not set(looked) & set(map(id, others))
    assert [address(variable) for variable in variables] == places
    assert [float(variable.value[1, 2]) for variable in variables] == [1, 1, 1]


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("when", ["before", "in the block"])
def test_what_is_held_keeps_its_values_in_one_look(name, when):
    variables = old()
    holder = HOLDERS[name](variables[1].value) if when == "before" else None
    with donation.looking_once(variables):
        writer.write(variables[0], Point((1, 2)), 5.0)
        if holder is None:
            holder = HOLDERS[name](variables[1].value)
        before = held(holder)
        for value in (5.0, 6.0):
            for variable in variables:
                writer.write(variable, Point((1, 2)), value)
                writer.write(variable, indexing.whole(LARGE), value)
            assert (held(holder) == before).all()
    assert (variables[1].numpy() == 6).all()


def test_variables_over_one_buffer_in_one_look():
    one = keras.Variable(jnp.zeros(LARGE))
    two, three = keras.Variable(one.value), keras.Variable(jax.device_put(one.value, jax.devices()[0]))
    with donation.looking_once([one, two, three, *old()]):
        for value, variable in enumerate((one, two, three)):
            writer.write(variable, Point((3, 3)), value + 5.0)
    assert [float(variable.value[3, 3]) for variable in (one, two, three)] == [5, 6, 7]


def test_a_look_ends_with_its_block():
    variables = old()
    with pytest.raises(ZeroDivisionError), donation.looking_once(variables):
        raise ZeroDivisionError
    assert donation._thread.look is None
    with donation.looking_once(variables):
        with donation.looking_once([]):
            assert donation._thread.look is None
        assert donation._thread.look.alone
    variables[0]._value.delete()
    with donation.looking_once(variables):
        assert len(donation._thread.look.alone) == 2


# Compilations.


def test_all_indices_share_one_compilation():
    variable = private((23, 29))
    writer.read(variable, Point((0, 0)))
    writer.write(variable, Point((0, 0)), writer.prepare(variable, Point((0, 0)), np.array(0)))
    sizes = entries.take_point._cache_size(), entries.put_point._cache_size()
    for i in range(20):
        writer.read(variable, Point((i, i)))
        writer.write(variable, Point((i, i)), writer.prepare(variable, Point((i, i)), np.array(i)))
    writer.write(variable, Point((22, 22)), 7.0)
    assert (entries.take_point._cache_size(), entries.put_point._cache_size()) == sizes
    assert (np.diag(variable.numpy())[:20] == np.arange(20)).all()


def test_places_of_a_region_and_counts_of_positions_share_compilations():
    variable = private((24, 30))
    put = entries.region_putter((3, 2), (1, 2), (), (), None)
    for i in range(12):
        writer.write(variable, region((24, 30), np.s_[i : i + 3, i : i + 4 : 2]), np.full((3, 2), i, "float32"))
        writer.write(variable, Positions(np.arange(17 + i), (17 + i,)), 3.0)
        if not i:
            sizes = put._cache_size(), entries.put_positions._cache_size()
    assert (put._cache_size(), entries.put_positions._cache_size()) == sizes


# Values and placement.


def test_values_of_every_kind():
    variable = private()
    index = Point((2, 3))
    device = jax.devices()[0]
    for value in (1, 2.5, True, np.float32(3), np.array(4.0), jnp.float32(5), jax.device_put(np.float32(6), device)):
        writer.write(variable, index, value)
        assert variable.numpy()[2, 3] == float(value)
        assert not variable.value._committed
        writer.write(variable, index, writer.prepare(variable, index, np.array(value)))
        assert variable.numpy()[2, 3] == float(value)
    writer.write(variable, region(LARGE, np.s_[:2]), jax.device_put(np.arange(257, dtype="float32"), device))
    assert (variable.numpy()[:2] == np.arange(257)).all()
    writer.write(variable, Mask(jnp.arange(257) % 2 + jnp.zeros(LARGE) == 0, LARGE), 8.0)
    assert (variable.numpy()[:, ::2] == 8).all()


def test_committed_arrays_stay_so():
    variable = keras.Variable(jax.device_put(np.zeros(LARGE, "float32"), jax.devices()[0]))
    for selection in (Point((1, 1)), region(LARGE, np.s_[::2]), Positions(np.arange(9), (9,))):
        old = writer.read(variable, selection)
        assert old._committed
        writer.write(variable, selection, writer.prepare(variable, selection, np.array(3.0)))
        assert variable.value._committed


@pytest.mark.parametrize("selection", [indexing.whole(LARGE), Mask(np.ones(LARGE, bool), LARGE)], ids=["all", "mask"])
def test_what_is_read_is_no_alias(selection):
    variable = private()
    old = writer.read(variable, selection)
    assert old.unsafe_buffer_pointer() != address(variable)
    writer.write(variable, selection, 9.0)
    assert old[0, 0] == 1


# Where values cannot be edited.


def test_inside_a_traced_function():
    variable = private()

    @jax.jit
    def function(x):
        writer.write(variable, Point((0, 0)), 5.0)
        return x

    for _ in range(2):
        with pytest.raises(UnsupportedError) as caught:
            function(1.0)
        assert str(caught.value) == (
            "variable 'variable' cannot be edited inside a function that jax traces, or a StatelessScope\n"
            "  kpatch.edit works there, and returns a new tensor"
        ).replace("'variable'", f"'{variable.path}'")
        writer.write(variable, Point((0, 0)), 6.0)
        assert variable.numpy()[0, 0] == 6
        held = variable.value  # so that the function copies
    assert held[0, 0] == 6


def test_inside_a_stateless_scope():
    variable = private()
    with keras.StatelessScope(), pytest.raises(UnsupportedError, match="StatelessScope"):
        writer.write(variable, Point((0, 0)), 5.0)
    assert variable.numpy()[0, 0] == 1


# Inside fit.


class Edit(keras.callbacks.Callback):
    """Calls a function with the model at a given event."""

    def __init__(self, event, function):
        super().__init__()
        setattr(self, event, lambda *_, **__: function(self._model))  # `self.model` would sync


def trained(event, function, epochs=2, learning_rate=0.0, run="fit"):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
    model.compile(keras.optimizers.SGD(learning_rate), "mse")
    model.layers[0].kernel.assign(np.ones((3, 2)))
    x, y = np.ones((12, 3), "float32"), np.zeros((12, 2), "float32")
    extra = {"epochs": epochs, "shuffle": False, "validation_data": (x, y)} if run == "fit" else {}
    arguments = (x,) if run == "predict" else (x, y)
    getattr(model, run)(*arguments, batch_size=4, verbose=0, callbacks=[Edit(event, function)], **extra)
    return model


TRAIN_EVENTS = ["on_train_batch_begin", "on_train_batch_end", "on_epoch_begin", "on_epoch_end", "on_train_end"]


@pytest.mark.parametrize("event", [*TRAIN_EVENTS, "on_test_batch_end", "on_test_begin"])
def test_an_edit_inside_fit_lasts(event):
    def edit(model):
        writer.sync(model)
        kernel = model.layers[0].kernel
        old = writer.read(kernel, Point((1, 1)))
        writer.write(kernel, Point((1, 1)), writer.prepare(kernel, Point((1, 1)), np.array(old + 1)))

    events = {"on_epoch_begin": 2, "on_epoch_end": 2, "on_train_end": 1, "on_test_begin": 2}
    model = trained(event, edit)
    expected = np.ones((3, 2))
    expected[1, 1] += events.get(event, 6)
    assert (model.layers[0].kernel.numpy() == expected).all()


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_epoch_end"])
def test_training_goes_on_from_what_was_edited(event):
    """Descent on zero targets halves the output, 3 times an epoch; at 0, edited once, it would stay at 0."""
    seen = []

    def edit(model):
        writer.sync(model)
        kernel = model.layers[0].kernel
        seen.append(np.array(kernel.value))
        if len(seen) == 1:
            writer.write(kernel, indexing.whole((3, 2)), np.zeros((3, 2), "float32"))
            writer.write(model.layers[0].bias, indexing.whole((2,)), 0.0)

    model = trained(event, edit, learning_rate=0.1)
    assert (seen[0] != 0).all()
    assert all((value == 0).all() for value in seen[1:])
    assert len(seen) > 1
    assert (model.layers[0].kernel.numpy() == 0).all()
    untouched = trained(event, writer.sync, learning_rate=0.1)
    assert (untouched.layers[0].kernel.numpy() != 0).all()


@pytest.mark.parametrize("run", ["fit", "evaluate", "predict"])
def test_without_the_models_values_it_says_what_to_do(run):
    event = {"fit": "on_train_batch_end", "evaluate": "on_test_batch_end", "predict": "on_predict_batch_end"}[run]
    texts = []

    def edit(model):
        for attempt in (
            writer.read,
            lambda *where: writer.write(*where, 1.0),
            lambda *where: writer.prepare(*where, 1),
        ):
            with pytest.raises(UnsupportedError) as caught:
                attempt(model.layers[0].kernel, Point((0, 0)))
            texts.append(str(caught.value))

    path = trained(event, edit, run=run).layers[0].kernel.path
    text = (
        f"variable '{path}' has no value now\n"
        "  during fit, evaluate and predict the running model holds the values: apply the patch to that model,\n"
        "  as in kpatch.apply(callback.model, ...)"
    )
    assert set(texts) == {text}


def test_sync_leaves_anything_else_alone():
    """While a model is in `fit`, and has no values of its own, only `sync` of that model brings them back."""
    layer = keras.layers.Dense(2, name="d")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for each in (layer, object(), model):
                writer.sync(each)
                seen.append(layer.kernel._value is not None)

    model.fit(np.ones((2, 3)), np.ones((2, 2)), batch_size=2, verbose=0, callbacks=[Look()])
    assert seen == [False, False, True]


# Processes of their own.


def run(code, **environment):
    """Runs code in a fresh process, with a few names imported."""
    names = (
        "import sys, numpy as np, jax, keras, ml_dtypes\n"
        "from jax import numpy as jnp\n"
        "from kpatch.indexing import *\n"
        "from kpatch import backends\n"
        "from kpatch.backends import jax_entries as entries\n"
        "from kpatch.backends import jax_host\n"
        "jax_host.BUDGET = 0  # as the fixture `compiled`\n"
        "writer = backends.current()\n"
        "def region(shape, items):\n"
        "    return select(shape, items if isinstance(items, tuple) else (items,))\n"
    )
    path = os.pathsep.join([str(Path(kpatch.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax", **environment}
    command = [sys.executable, "-c", names + textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is reset by Linux alone")
def test_an_entry_of_a_large_variable_takes_little_memory():
    run(
        """
        def peak(reset=False):
            if reset:
                open("/proc/self/clear_refs", "w").write("5")
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

        variable = keras.Variable("zeros", shape=(8192, 8192))
        held = variable.value
        journal = []

        def edit(i):
            point = Point((i, i))
            journal.append((point, writer.read(variable, point)))
            writer.write(variable, point, writer.prepare(variable, point, np.array(i)))

        edit(1)  # makes the buffer private
        del held
        before = peak(reset=True)
        edit(2)
        for point, old in reversed(journal):
            writer.write(variable, point, old)
        assert peak() - before < 20, (before, peak())
        """
    )


SHARDED = """
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
assert len(jax.devices()) == 8

def bits(shape, dtype, seed=0):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype="uint8")
    return np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(shape)

def variable_of(array, *spec, mesh=mesh):
    return keras.Variable(jax.device_put(array, NamedSharding(mesh, P(*spec))))

def addresses(variable):
    return [shard.data.unsafe_buffer_pointer() for shard in variable._value.addressable_shards]

# Nothing that is compiled may see an array of several devices: then nothing can be gathered.
def guarded(function):
    def call(*arguments, **keywords):
        leaves = jax.tree.leaves((arguments, keywords))
        assert all(len(leaf.devices()) == 1 for leaf in leaves if isinstance(leaf, jax.Array)), function
        calls.append(function)
        return function(*arguments, **keywords)
    return call

calls = []
for name in ("copy", "take_point", "put_point", "put_mask", "take_positions", "put_positions"):
    setattr(entries, name, guarded(getattr(entries, name)))
for name in ("region_taker", "region_putter"):
    setattr(entries, name, (lambda make: lambda *key: guarded(make(*key)))(getattr(entries, name)))
"""


ON_EIGHT_DEVICES = {
    "reads and writes": """
        ITEMS = [np.s_[...], np.s_[:, 5], np.s_[2:13:3, ::-2], np.s_[7:9, 3:4]]
        LAYOUTS = [("a", "b"), (("b", "a"), None), (None, None)]
        for number, spec in enumerate(LAYOUTS):
            dtype = ["float32", ml_dtypes.bfloat16, "int8"][number]
            before = bits((16, 24), dtype)
            variable = variable_of(before, *spec)
            sharding = variable.value.sharding
            selections = [(region((16, 24), i), i) for i in ITEMS]
            for flat in ([383, 0, 17, 200], list(range(0, 384, 7))):
                selections.append((Positions(np.array(flat), (len(flat),)), np.unravel_index(flat, (16, 24))))
            selections += [(Point(index), index) for index in ((0, 0), (15, 23), (8, 6))]
            for selection, index in selections:
                old, values = writer.read(variable, selection), bits(selection.shape, dtype, 1)
                assert np.array(old).tobytes() == np.array(before[index]).tobytes(), (spec, index)
                writer.write(variable, selection, values)
                expected = before.copy()
                expected[index] = values
                assert np.array(variable.value).tobytes() == expected.tobytes(), (spec, index)
                writer.write(variable, selection, old)
                assert np.array(variable.value).tobytes() == before.tobytes(), (spec, index)
                assert variable.value.sharding == sharding
                assert variable.value._committed
            mask = bits((16, 24), "uint8", 2) > 99
            old = writer.read(variable, Mask(mask, (16, 24)))
            assert old.sharding == sharding
            for kind in (mask, jnp.asarray(mask), jax.device_put(mask, sharding)):
                for values in (np.zeros((), dtype), bits((16, 24), dtype, 3)):
                    writer.write(variable, Mask(kind, (16, 24)), values)
                    expected = np.where(mask, values, before)
                    assert np.array(variable.value).tobytes() == expected.tobytes()
                    writer.write(variable, whole((16, 24)), old)
                    assert np.array(variable.value).tobytes() == before.tobytes()
            assert variable.value.sharding == sharding
        assert calls
        """,
    "in place, and only where the entry is": """
        for spec, owners in ((("a", "b"), 1), ((None, "b"), 2), ((None, None), 8)):
            variable = variable_of(np.zeros((16, 24), "float32"), *spec)
            writer.write(variable, Point((0, 0)), 1.0)
            value = writer.prepare(variable, Point((3, 20)), np.array(7))
            place = addresses(variable)
            calls.clear()
            writer.write(variable, Point((3, 20)), value)
            assert len(calls) == owners
            assert addresses(variable) == place
            calls.clear()
            assert float(writer.read(variable, Point((3, 20)))) == 7
            assert len(calls) == 1
            old = writer.read(variable, region((16, 24), np.s_[3, :]))
            writer.update(variable, region((16, 24), np.s_[3, :]), "*", old, np.float32(2))
            assert variable.numpy()[3, 20] == 14
            assert variable.numpy().sum() == 15
            assert addresses(variable) == place
        """,
    "what is held keeps its values": """
        HOLDERS = [
            lambda value: value,
            lambda value: jax.device_put(value, NamedSharding(mesh, P("a", ("b",)))),
            lambda value: value.addressable_shards,
            lambda value: value.addressable_shards[0],
            lambda value: value.addressable_shards[0].data,
            lambda value: value.addressable_data(0),
            lambda value: jax.device_put(value.addressable_data(0), jax.devices()[0]),
            lambda value: np.asarray(value.addressable_data(0)),
            lambda value: jax.make_array_from_single_device_arrays(
                (16, 24), NamedSharding(mesh, P("a", "b")), [shard.data for shard in value.addressable_shards]),
        ]

        def held(holder):
            holder = holder[0] if isinstance(holder, list) else holder
            return np.array(holder.data if hasattr(holder, "replica_id") else holder)

        for edited in (False, True):
            for holder in HOLDERS:
                variable = variable_of(np.zeros((16, 24), "float32"), "a", "b")
                if edited:
                    writer.write(variable, Point((15, 23)), 0.0)
                keep = holder(variable.value)
                for value in (5.0, 6.0):
                    writer.write(variable, Point((0, 0)), value)
                    assert not held(keep).any()
                writer.write(variable, region((16, 24), np.s_[:, 0]), 7.0)
                assert not held(keep).any()
                assert (variable.numpy()[:, 0] == 7).all()
        # What shares only the shards that a copy did not have to touch:
        variable = variable_of(np.zeros((16, 24), "float32"), "a", "b")
        keep = variable.value
        writer.write(variable, Point((0, 0)), 1.0, donate=False)
        writer.write(variable, Point((15, 23)), 1.0)
        assert not np.array(keep).any()
        """,
    "a variable on another device": """
        first, third = jax.devices()[0], jax.devices()[3]
        variable = keras.Variable(jax.device_put(np.zeros((300, 257), "float32"), third))
        assert variable.value.devices() == {third}
        shape, one, row = (300, 257), np.array(1.0), np.arange(257, dtype="float32")
        for selection in (Point((1, 2)), region(shape, np.s_[::2]), Positions(np.arange(9), (9,)), whole(shape)):
            values = [writer.prepare(variable, selection, one), jax.device_put(np.float32(1), first), jnp.float32(1)]
            for value in [*values, 1, jax.device_put(np.ones(selection.shape, "float32"), first)]:
                writer.write(variable, selection, value)
                assert variable.value.devices() == {third}
                assert variable.value._committed
                assert (np.array(writer.read(variable, selection)) == 1).all()
        sharded = jax.device_put(np.ones(257, "float32"), NamedSharding(mesh, P()))
        writer.write(variable, region(shape, np.s_[5]), sharded)
        assert variable.value.devices() == {third}
        uncommitted = keras.Variable(np.zeros((300, 257), "float32"))
        writer.write(uncommitted, Point((1, 2)), jax.device_put(np.float32(1), third))
        assert uncommitted.value.devices() == {first}
        assert not uncommitted.value._committed
        """,
    "distributions of Keras": """
        from keras import distribution as d
        devices = d.list_devices()
        layouts = d.LayoutMap(d.DeviceMesh((2, 4), ("batch", "model"), devices))
        layouts[".*kernel"] = (None, "model")
        one = d.DeviceMesh((1,), ("batch",), devices[:1])
        strategies = [d.ModelParallel(layout_map=layouts), d.DataParallel(devices=devices), d.DataParallel(one)]
        for strategy in strategies:
            with strategy.scope():
                model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
                model.compile(keras.optimizers.SGD(0.0), "mse")
                kernel = model.layers[0].kernel
                kernel.assign(np.ones((8, 4)))
                sharding = kernel.value.sharding

                class Edit(keras.callbacks.Callback):
                    def on_train_batch_end(self, *_, **__):
                        writer.sync(self.model)
                        writer.write(kernel, Point((2, 3)), writer.read(kernel, Point((2, 3))) + 1)

                x, y = np.ones((16, 8), "float32"), np.zeros((16, 4), "float32")
                model.fit(x, y, batch_size=8, verbose=0, callbacks=[Edit()])
                assert kernel.value.sharding == sharding
                expected = np.ones((8, 4))
                expected[2, 3] = 3
                assert (kernel.numpy() == expected).all()
                assert model.predict(x, verbose=0)[0].tolist() == [8, 8, 8, 10]
                writer.write(kernel, Point((2, 3)), 1.0)
                place = addresses(kernel)
                writer.write(kernel, Point((2, 3)), 1.0)
                assert addresses(kernel) == place
        """,
}


def test_on_eight_devices():
    """In one process, which takes seconds to start; it prints which part begins."""
    parts = (f"print({name!r})\n{textwrap.dedent(code)}" for name, code in ON_EIGHT_DEVICES.items())
    run(
        "\n".join([SHARDED, *parts]),
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    )


def test_a_model_on_several_devices():
    """What is compiled for them hands nothing out in order: a recording refuses it, and the weights are kept."""
    run(
        """
        import kpatch
        from keras import distribution as d
        layouts = d.LayoutMap(d.DeviceMesh((2, 2), ("batch", "model"), d.list_devices()))
        layouts["net/a/kernel"] = ("batch", "model")
        d.set_distribution(d.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
        layer = keras.layers.Dense(4, use_bias=False, kernel_initializer="ones", name="a")
        model = keras.Sequential([keras.Input((4,)), layer], name="net")
        x = np.ones((4, 4), "float32")
        with kpatch.record(model, "a.output") as recorded:
            model(x)
            try:
                model.predict(x, verbose=0)
            except kpatch.UnsupportedError as error:
                told = str(error)
        assert told.startswith("activations cannot be recorded in a function that is compiled for several devices")
        assert recorded["a.output"].tolist() == [[4] * 4] * 4
        assert model.predict(x, verbose=0).tolist() == [[4] * 4] * 4
        total = lambda: model.predict(x, verbose=0).sum()
        swept = kpatch.sweep(model, "a.output[:, $i] = $i", i=range(3), metric=total)
        assert swept.values.tolist() == [48, 52, 56]
        with kpatch.apply(model, "a.kernel[0, 0] = 9; a.kernel[_ < 2] = 0; a.kernel *= 2; assert sum(a.kernel) == 18"):
            assert model.predict(x, verbose=0).tolist() == [[18, 0, 0, 0]] * 4
        assert model.predict(x, verbose=0).tolist() == [[4] * 4] * 4
        assert str(layer.kernel.value.sharding.spec) == "P('batch', 'model')"
        """,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
    )
