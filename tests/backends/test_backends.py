"""The backend's object and the generic one, held to NumPy bit for bit; and what others hold keeps its values."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import kpatch
from kpatch import backends
from kpatch.backends.generic import Generic
from kpatch.backends.numpy import packed, put
from kpatch.backends.present import CLASSES, load
from kpatch.indexing import Mask, PackedMask, Point, Positions, Region, select, whole

pytestmark = pytest.mark.usefixtures("compiled")
BACKEND = keras.backend.backend()
WRITERS = [backends.current(), Generic(BACKEND)]
DTYPES = ["float32", "float16", "bfloat16", "int8", "int32", "uint8", "bool"]
if BACKEND != "jax":  # which has 64 bits only where that is switched on
    DTYPES += ["int64", "float64"]
SHAPES = [(), (1,), (7,), (1, 5), (4, 6), (5, 1), (0, 3), (3, 4, 5), (2, 3, 2, 3)]
SELECTIONS = [
    Point((2, 3)),
    select((4, 6), (slice(None, None, 2), slice(4, None, -2))),
    select((4, 6), (2,)),
    select((4, 6), (slice(None), 3)),
    Positions(np.array([23, 0, 7, 8]), (2, 2)),
    Mask(np.arange(24).reshape(4, 6) % 3 == 0, (4, 6)),
    whole((4, 6)),
]


def parametrize_selection(test):
    return pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: type(selection).__name__)(test)


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def random_bits(shape, dtype, seed=0):
    """Every bit at random, so that among the floats there are NaNs of all kinds, -0.0 and subnormal numbers."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = numpy_dtype(dtype)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype="uint8")
    return np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(shape)


def host(tensor):
    """A variable or tensor as a NumPy array, bit for bit and in memory of its own."""
    tensor = getattr(tensor, "_value", tensor)
    if BACKEND == "torch" and not isinstance(tensor, np.ndarray | np.generic):
        import torch

        tensor = tensor.detach().cpu()
        if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            bits = {1: torch.uint8, 2: torch.int16}[tensor.dtype.itemsize]
            return tensor.view(bits).numpy().copy().view(getattr(ml_dtypes, str(tensor.dtype).partition(".")[2]))
        return tensor.numpy().copy()
    if BACKEND == "tensorflow" and not isinstance(tensor, np.ndarray):  # a 0-d bfloat16 is no array to NumPy
        return np.array(keras.ops.reshape(tensor, (-1,)).numpy()).reshape(tensor.shape)
    return np.array(tensor)


def assert_same_bits(actual, expected):
    actual = host(actual)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(as_bits(actual), as_bits(expected))


def as_bits(array):
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), "uint8")


def tensor_of(array):
    """The array as a tensor of the backend, bit for bit."""
    if BACKEND == "torch" and array.dtype == ml_dtypes.bfloat16:
        import torch

        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(array, str(array.dtype))


def zeros(shape, dtype):
    """A variable made by an initializer, which torch would have requiring gradients if trainable."""
    return keras.Variable("zeros", shape=shape, dtype=dtype, trainable=dtype.startswith(("float", "bfloat")))


def variable_of(array):
    """A variable with exactly these bits, whose memory nobody else holds."""
    variable = zeros(array.shape, str(array.dtype))
    variable.assign(tensor_of(array))
    return variable


def index_of(selection, shape):
    """What NumPy takes for the same selection."""
    if isinstance(selection, Point):
        return selection.index
    if isinstance(selection, Region):
        return selection.slices
    if isinstance(selection, Mask):
        return selection.mask
    return np.unravel_index(selection.flat.reshape(selection.shape), shape) if shape else ...


def taken(array, selection):
    if isinstance(selection, Mask):
        return array.copy()
    if not selection.size:
        return np.zeros(selection.shape, array.dtype)
    return np.array(array[index_of(selection, array.shape)]).reshape(selection.shape)


def replaced(array, selection, values):
    array = array.copy()
    if not selection.size:
        return array
    if isinstance(selection, Mask):
        values = np.broadcast_to(values, array.shape)[selection.mask]
    elif isinstance(selection, Positions) and not array.shape:
        values = np.reshape(values, ())
    array[index_of(selection, array.shape)] = values
    return array


@st.composite
def selections(draw, shape):
    kind = draw(st.sampled_from(["point", "region", "region", "positions", "mask"]))
    size = int(np.prod(shape))
    if kind == "point" and size:
        return Point(tuple(draw(st.integers(0, length - 1)) for length in shape))
    if kind == "mask" and size:
        bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return Mask(np.array(bits, bool).reshape(shape), shape)
    if kind == "positions" and size:
        flat = draw(st.lists(st.integers(0, size - 1), unique=True, max_size=12))
        dims = (len(flat),) if len(flat) % 2 else (2, len(flat) // 2)
        return Positions(np.array(flat, "int64"), dims)
    ends = st.none() | st.integers(-8, 8)
    steps = st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3])
    items = []
    for length in shape:
        if length and draw(st.integers(0, 3)) == 0:
            items.append(draw(st.integers(-length, length - 1)))
        else:
            items.append(slice(draw(ends), draw(ends), draw(steps)))
    return select(shape, (*items, ...)) if len(items) < len(shape) or not shape else select(shape, tuple(items))


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    selection = draw(selections(shape))
    dtype = draw(st.sampled_from(DTYPES))
    dims = list(selection.shape)
    if isinstance(selection, Mask):
        dims = draw(st.sampled_from([[], dims]))
    else:  # a shape that broadcasts to the selection's
        dims = [draw(st.sampled_from([1, size])) for size in dims][draw(st.integers(0, len(dims))) :]
    how = draw(st.sampled_from(["array", "tensor", "prepared", "read-only"]))
    return shape, dtype, selection, tuple(dims), how, draw(st.booleans()), draw(st.integers(0, 99))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: type(writer).__name__)
@hypothesis.settings(max_examples=40 if BACKEND == "jax" else 120)
@hypothesis.given(case=cases())
def test_read_write_and_restore(writer, case):
    shape, dtype, selection, dims, how, donate, seed = case
    before = random_bits(shape, dtype, seed)
    values = random_bits(dims, dtype, seed + 1)
    variable = variable_of(before)
    old = writer.read(variable, selection)
    assert_same_bits(old, taken(before, selection))
    assert keras.ops.is_tensor(old)
    given = {"array": values, "tensor": tensor_of(values), "read-only": np.broadcast_to(values, dims)}
    given = given[how] if how in given else writer.prepare(variable, selection, values)
    writer.write(variable, selection, given, donate=donate)
    assert_same_bits(variable, replaced(before, selection, values))
    assert_same_bits(old, taken(before, selection))
    assert_same_bits(given, values)
    writer.write(variable, selection, old, donate=donate)
    assert_same_bits(variable, before)
    kept = writer.keep(variable, selection)
    assert_same_bits(kept, taken(before, selection))
    writer.write(variable, selection, values, donate=donate)
    assert_same_bits(kept, taken(before, selection))
    if isinstance(selection, Mask):
        selection, kept = PackedMask(selection.mask), before[selection.mask]
    writer.write(variable, selection, kept, donate=donate)
    assert_same_bits(variable, before)


@pytest.mark.skipif(BACKEND not in ("torch", "tensorflow"), reason="theirs")
def test_what_numpy_writes_or_leaves_to_the_backend_has_the_same_bits(monkeypatch):
    from kpatch.backends import host

    before, values = random_bits((4, 6), "float32"), random_bits((4, 6), "float32", 1)
    for copied, largest in [(0, 24), (0, 23)] + [(24, 24)] * (BACKEND == "tensorflow"):
        monkeypatch.setattr(host, "LARGEST", largest)
        monkeypatch.setattr(f"kpatch.backends.{BACKEND}.COPIED", copied, raising=False)
        for selection in SELECTIONS[-3:-1]:
            variable = variable_of(before)
            given = values if isinstance(selection, Mask) else values.reshape(-1)[:4].reshape(2, 2)
            kept = backends.current().keep(variable, selection)
            backends.current().write(variable, selection, given)
            assert_same_bits(variable, replaced(before, selection, given))
            assert_same_bits(kept, taken(before, selection))
            if isinstance(selection, Mask):
                backends.current().write(variable, PackedMask(selection.mask), before[selection.mask])
                assert_same_bits(variable, before)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: type(writer).__name__)
@pytest.mark.parametrize("dtype", DTYPES)
@parametrize_selection
def test_scalars(writer, dtype, selection):
    before = random_bits((4, 6), dtype)
    variable = variable_of(before)
    scalars = [True, np.bool_(True)] if dtype == "bool" else [3, numpy_dtype(dtype).type(5)]
    if numpy_dtype(dtype).kind in "fV":
        scalars += [0.5, -0.0, float("inf")]
    for scalar in scalars:
        writer.write(variable, selection, scalar)
        assert_same_bits(variable, replaced(before, selection, numpy_dtype(dtype).type(scalar)))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: type(writer).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_update(writer, dtype, op):
    regions = [select((4, 6), item) for item in [(slice(None, None, 2), slice(4, None, -2)), (2,), (slice(0, 0),)]]
    operands = [0.5, numpy_dtype(dtype).type(2), tensor_of(np.array([2, 4, 8], "float32").astype(numpy_dtype(dtype)))]
    for region in [*regions, whole((4, 6))]:
        for operand in operands:
            shape = np.shape(operand) if isinstance(operand, (float, np.generic)) else tuple(operand.shape)
            if shape and (region.size == 0 or region.shape[-1] != shape[-1]):
                continue
            before = (np.arange(24, dtype="float32").reshape(4, 6) - 8).astype(numpy_dtype(dtype))
            variable = variable_of(before)
            old = writer.read(variable, region)
            writer.update(variable, region, op, old, operand)
            number = host(operand).astype("float32") if shape else np.float32(operand)
            now = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[op](
                taken(before, region).astype("float32"), number
            )
            assert_same_bits(variable, replaced(before, region, now.astype(numpy_dtype(dtype))))
            assert_same_bits(old, taken(before, region))


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: type(writer).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_update_rounds_the_operand_to_the_dtype_first(writer, dtype):
    before = np.arange(1, 1000, dtype="float32").astype(numpy_dtype(dtype))
    variable = variable_of(before)
    writer.update(variable, whole((999,)), "*", writer.read(variable, whole((999,))), 0.1)
    assert_same_bits(variable, before * numpy_dtype(dtype).type(0.1))


def test_update_to_infinity_says_nothing(recwarn):
    variable = variable_of(np.array([1e30, 0, -1], "float32"))
    writer = backends.current()
    for op, operand in [("*", 1e30), ("/", 0.0)]:
        writer.update(variable, whole((3,)), op, writer.read(variable, whole((3,))), operand)
    assert np.isinf(host(variable))[[0, 2]].all()
    assert np.isnan(host(variable))[1]
    assert not recwarn.list


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy has one kind of memory")
@parametrize_selection
def test_memory_of_the_values_stays_the_callers(selection):
    writer = backends.current()
    variable = variable_of(np.zeros((4, 6), "float32"))
    values = tensor_of(np.ones(selection.shape, "float32"))
    writer.write(variable, selection, values)
    writer.write(variable, selection, 7.0)
    assert (host(values) == 1).all()


def read_value(variable):
    """The tensor behind a variable: on tensorflow, `value` is a variable too."""
    return variable.value.read_value() if BACKEND == "tensorflow" else variable.value


def holders():
    """Ways to hold what a variable held, each a function from a variable to something that must keep its values."""
    found = {
        "numpy": lambda variable: variable.numpy(),
        "convert_to_numpy": lambda variable: keras.ops.convert_to_numpy(variable),
        "copied variable": lambda variable: _assigned(variable, variable),
        "assigned variable's value": lambda variable: _assigned(variable, variable.value),
        "assigned array": lambda variable: _assign(variable, np.arange(24, dtype="float32").reshape(4, 6)),
        "assigned tensor": lambda variable: _assign(variable, tensor_of(np.ones((4, 6), "float32"))),
        "view of an array": lambda variable: variable.numpy()[1:],
    }
    if BACKEND != "torch":  # where it is the parameter itself
        found |= {
            "tensor": read_value,
            "array of the tensor": lambda variable: np.asarray(read_value(variable)),
            "variable of the variable": lambda variable: keras.Variable(variable),
            "variable of the tensor": lambda variable: keras.Variable(read_value(variable)),
        }
    if BACKEND in ("numpy", "jax"):
        found |= {
            "view of the value": lambda variable: variable.value[1:],
            "memory view": lambda variable: memoryview(np.asarray(variable.value)),
        }
    return found


def _assigned(variable, value):
    other = zeros(variable.shape, variable.dtype)
    other.assign(value)
    return other


def _assign(variable, value):
    variable.assign(value)
    return value


@pytest.mark.parametrize("held", holders())
@pytest.mark.parametrize("donate", [True, False])
@parametrize_selection
def test_what_others_hold_keeps_its_values(held, donate, selection):
    writer = backends.current()
    variable = variable_of(random_bits((4, 6), "float32"))
    other = holders()[held](variable)
    before = host(other)
    for value in (7.0, 8.0):  # the second finds memory that the first made private
        writer.write(variable, selection, value, donate=donate)
        assert_same_bits(other, before)
    assert (host(variable)[index_of(selection, (4, 6))] == 8).all()


def initial_values():
    found = {"array": lambda: np.zeros((4, 6), "float32"), "tensor": lambda: tensor_of(np.zeros((4, 6), "float32"))}
    if BACKEND == "torch":
        import torch

        found["array behind a tensor"] = lambda: torch.from_numpy(np.zeros((4, 6), "float32"))
        found["part of a tensor"] = lambda: torch.zeros(3, 4, 6)[1]
        found["columns of a tensor"] = lambda: torch.zeros(4, 12)[:, ::2]
        found["transposed tensor"] = lambda: torch.zeros(6, 4).T
        found["expanded tensor"] = lambda: torch.zeros(6).expand(4, 6)
    return found


@pytest.mark.parametrize("name", initial_values())
@pytest.mark.parametrize("donate", [True, False])
@parametrize_selection
def test_variables_of_one_value_are_two(name, donate, selection):
    value = initial_values()[name]()
    first, second = keras.Variable(value), keras.Variable(value)
    writer = backends.current()
    for number in (1.0, 2.0):
        writer.write(first, selection, number, donate=donate)
        assert_same_bits(first, replaced(np.zeros((4, 6), "float32"), selection, number))
        assert not host(second).any()
        assert not host(value).any()
    writer.write(second, selection, 3.0, donate=donate)
    assert_same_bits(first, replaced(np.zeros((4, 6), "float32"), selection, 2.0))


def address(variable):
    """Where the variable's entries lie."""
    if BACKEND == "torch":
        return variable._value.data_ptr()
    if BACKEND == "jax":
        return variable._value.unsafe_buffer_pointer()
    return np.asarray(read_value(variable)).ctypes.data


@pytest.mark.parametrize("selection", SELECTIONS[:5], ids=lambda selection: type(selection).__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_writes_in_place(selection, dtype):
    writer = backends.current()
    variable = zeros((4, 6), dtype)
    writer.write(variable, selection, 1)
    place = address(variable)
    for value in (2, 3):
        old = writer.read(variable, selection)
        writer.write(variable, selection, value)
        assert address(variable) == place
        writer.write(variable, selection, old)
        assert address(variable) == place


def test_donate_false_leaves_the_old_memory_alone():
    if BACKEND in ("torch", "tensorflow"):
        pytest.skip("torch's parameter is one object; tensorflow sees to it by itself")
    variable = variable_of(np.zeros((4, 6), "float32"))
    held = variable.value
    place = address(variable)
    del held
    backends.current().write(variable, Point((0, 0)), 1.0, donate=False)
    assert address(variable) != place


def test_failed_write_changes_nothing():
    writer = backends.current()
    before = random_bits((4, 6), "float32")
    for donate in (True, False):
        variable = variable_of(before)
        with pytest.raises((ValueError, RuntimeError, TypeError), match=r"shape|broadcast|size"):
            writer.write(variable, SELECTIONS[1], np.zeros((3, 3), "float32"), donate=donate)
        assert_same_bits(variable, before)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@parametrize_selection
def test_float8(dtype, selection):
    writer = backends.current()
    before, values = random_bits((4, 6), dtype), random_bits(selection.shape, dtype, 1)
    # Keras cannot make float8 variables from an initializer on most backends, nor from an array on torch.
    variable = zeros((4, 6), dtype) if BACKEND == "torch" else keras.Variable(np.zeros_like(before), dtype=dtype)
    writer.write(variable, whole((4, 6)), before)
    old = writer.read(variable, selection)
    assert_same_bits(old, taken(before, selection))
    writer.write(variable, selection, values)
    assert_same_bits(variable, replaced(before, selection, values))
    writer.write(variable, selection, old)
    assert_same_bits(variable, before)


def test_unknown_backend_is_written_by_keras_ops():
    unknown = load("openvino")
    assert type(unknown) is Generic
    assert unknown.name == "openvino"


def test_known_backend():
    assert type(backends.current()).__name__ == CLASSES[BACKEND]
    assert backends.current().name == BACKEND
    assert backends.current() is backends.current()


@pytest.mark.skipif(BACKEND != "numpy", reason="numpy's own")
class TestNumpy:
    @parametrize_selection
    def test_any_order_of_memory(self, selection):
        before = np.asfortranarray(random_bits((4, 6), "float32"))
        variable = keras.Variable(before)
        assert variable._value.flags.f_contiguous
        old = backends.current().read(variable, selection)
        assert_same_bits(old, taken(before, selection))
        place = variable._value.ctypes.data
        backends.current().write(variable, selection, 2.0)
        assert_same_bits(variable, replaced(before, selection, 2.0))
        assert variable._value.ctypes.data == place

    def test_memory_that_may_not_be_written(self):
        variable = variable_of(np.zeros((4, 6), "float32"))
        variable._value.flags.writeable = False
        backends.current().write(variable, Point((0, 0)), 1.0)
        assert host(variable)[0, 0] == 1

    @pytest.mark.parametrize("holds", ["nobody", "array", "view", "memory"])
    def test_undo_gives_back_the_former_array_unless_others_hold_it(self, holds):
        variable = variable_of(random_bits((4, 6), "float32"))
        before, place = host(variable), address(variable)
        takes = {"array": lambda x: x, "view": lambda x: x[:], "memory": memoryview}
        held = takes[holds](variable._value) if holds in takes else before
        applied = kpatch.apply(variable, "_ = _ * 2 - mean(_)")
        applied.undo()
        assert (address(variable) == place) == (holds == "nobody")
        for _ in range(2):
            with kpatch.apply(variable, "_[0, 0] = 7"):
                assert_same_bits(np.asarray(held), before)
                assert_same_bits(applied._records[0].before, before)  # which it may still show
            assert_same_bits(variable, before)

    @pytest.mark.parametrize("true", [0, 1, 3, 50, 100, 180, 200])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32", "bool"])
    def test_entries_under_masks_of_any_share(self, dtype, true, monkeypatch):
        """In several blocks, into memory in order or not."""
        monkeypatch.setattr("kpatch.backends.numpy.BLOCK", 64)
        mask = (np.random.default_rng(true).permutation(200) < true).reshape(8, 25)
        before, numbers = random_bits((8, 25), dtype), random_bits((3,), dtype, 1)
        for array in (before.copy(), np.asfortranarray(before)):
            kept = packed(array, mask)
            assert_same_bits(kept, before[mask])
            for number in (*numbers, numbers.dtype.type(0)):
                put(array, Mask(mask, mask.shape), number)
                assert_same_bits(array, np.where(mask, number, before))
            put(array, PackedMask(mask), kept)
            assert_same_bits(array, before)

    def test_view_of_foreign_memory(self):
        variable = variable_of(np.zeros((4, 6), "float32"))
        owner = np.zeros((5, 6), "float32")
        variable._value = owner[1:]
        backends.current().write(variable, Point((0, 0)), 1.0)
        assert not owner.any()


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own")
class TestTorch:
    @parametrize_selection
    def test_parameter_stays_the_same_object(self, selection):
        for variable in (keras.Variable(np.zeros((4, 6), "float32")), variable_of(np.zeros((4, 6), "float32"))):
            parameter, version = variable.value, variable.value._version
            backends.current().write(variable, selection, 2.0)
            assert variable.value is parameter
            assert isinstance(parameter, __import__("torch").nn.Parameter)
            assert parameter.requires_grad
            assert parameter.grad_fn is None
            assert parameter._version > version or not np.shares_memory(host(variable), host(parameter))

    @parametrize_selection
    def test_array_behind_a_tensor_that_is_gone(self, selection):
        import torch

        array = np.zeros((4, 6), "float32")
        variable = keras.Variable(torch.from_numpy(array))
        backends.current().write(variable, selection, 2.0)
        assert not array.any()

    @parametrize_selection
    def test_entries_that_lie_on_each_other(self, selection):
        import torch

        variable = keras.Variable(torch.zeros(6).expand(4, 6))
        backends.current().write(variable, selection, 2.0)
        assert_same_bits(variable, replaced(np.zeros((4, 6), "float32"), selection, 2.0))

    @parametrize_selection
    def test_values_that_require_grad(self, selection):
        import torch

        variable = variable_of(np.zeros((4, 6), "float32"))
        values = torch.ones(selection.shape, requires_grad=True) * 2
        backends.current().write(variable, selection, values)
        assert variable.value.is_leaf
        assert (host(variable)[index_of(selection, (4, 6))] == 2).all()

    @parametrize_selection
    @pytest.mark.parametrize("inside", [False, True])
    def test_inference_mode(self, selection, inside):
        import torch

        variable = keras.Variable(np.zeros((4, 6), "float32"))
        with torch.inference_mode(inside):
            old = backends.current().read(variable, selection)
            backends.current().write(variable, selection, 2.0)
        assert not variable.value.is_inference()
        backends.current().write(variable, selection, old)
        assert not host(variable).any()
        (variable.value * 2).sum().backward()
        assert (host(variable.value.grad) == 2).all()

    @parametrize_selection
    def test_memory_format(self, selection):
        import torch

        before = random_bits((4, 6), "float32")
        parameter = torch.nn.Parameter(torch.from_numpy(before.copy()).T.clone(memory_format=torch.contiguous_format).T)
        assert not parameter.is_contiguous()
        variable = keras.Variable(parameter)
        strides, place = parameter.stride(), parameter.data_ptr()
        assert_same_bits(backends.current().read(variable, selection), taken(before, selection))
        backends.current().write(variable, selection, 2.0)
        assert_same_bits(variable, replaced(before, selection, 2.0))
        assert (parameter.stride(), parameter.data_ptr()) == (strides, place)

    def test_shared_memory_stays_shared(self):
        import torch

        tensor = torch.zeros(4, 6).share_memory_()
        variable = keras.Variable(tensor)
        backends.current().write(variable, Point((0, 0)), 1.0)
        assert tensor[0, 0] == 1

    def test_without_torchs_own_count(self, monkeypatch):
        monkeypatch.setattr("kpatch.backends.torch_memory.COUNT", None)
        variable = variable_of(np.zeros((4, 6), "float32"))
        held = variable.value.detach()
        backends.current().write(variable, Point((0, 0)), 1.0)
        assert host(variable)[0, 0] == 1
        assert held[0, 0] == 0

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool"])
    def test_one_entry_keeps_its_bits(self, dtype):
        """Also of denormal numbers, in a thread that takes them for zeros."""
        import torch

        values = np.array([1, 0, 0.1, -0.0, np.nan, np.inf, 1e-45, 1e-310]).astype(dtype)
        values = np.append(values, np.frombuffer(b"\x01\xff" * 4, dtype)) if dtype.startswith("float") else values
        variable = variable_of(values)
        torch.set_flush_denormal(True)
        try:
            kept = [backends.current().keep(variable, Point((place,))) for place in range(len(values))]
            backends.current().write(variable, whole(values.shape), 1)
            for place, entry in enumerate(kept):
                backends.current().write(variable, Point((place,)), entry)
        finally:
            torch.set_flush_denormal(False)
        assert_same_bits(variable, values)

    def test_arrays_that_may_not_be_written(self, recwarn):
        variable = variable_of(np.zeros((4, 6), "float32"))
        mask, flat = np.broadcast_to(True, (4, 6)), np.broadcast_to(np.array([3]), (1,))
        backends.current().write(variable, Mask(mask, (4, 6)), np.broadcast_to(np.float32(2), (4, 6)))
        backends.current().write(variable, Positions(flat, (1,)), np.float32(2))
        assert (host(variable) == 2).all()
        assert not recwarn.list

    @pytest.mark.parametrize("dtype", ["uint16", "uint32"])
    def test_dtypes_that_keras_widens(self, dtype):
        variable = zeros((4, 6), dtype)
        for selection in SELECTIONS:
            backends.current().write(variable, selection, np.ones(selection.shape, dtype))
        assert host(variable).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tensorflow's own")
class TestTensorFlow:
    @parametrize_selection
    def test_reads_go_on_sharing_the_buffer(self, selection):
        """In copy-on-read mode, which TensorFlow's own sparse writes leave behind, each read would copy."""
        variable = variable_of(random_bits((4, 6), "float32"))
        backends.current().write(variable, selection, 1.0)
        first, second = (np.asarray(read_value(variable)) for _ in range(2))
        assert np.shares_memory(first, second)

    def test_failed_write_leaves_no_copy_on_read(self):
        variable = variable_of(random_bits((4, 6), "float32"))
        with pytest.raises(ValueError, match="broadcast"):
            backends.current().write(variable, SELECTIONS[1], np.zeros((3, 3), "float32"))
        first, second = (np.asarray(read_value(variable)) for _ in range(2))
        assert np.shares_memory(first, second)

    @pytest.mark.parametrize("index", [(), 3, slice(2, 5), slice(None), [1, 2]])
    def test_what_was_read_shares_nothing(self, index):
        """Slices of whole rows are views in TensorFlow: one would make the next write copy the variable."""
        for shape in [(64,), (64, 1), (64, 64)]:
            variable = variable_of(random_bits(shape, "float32"))
            items = index if index == () else (np.array(index),) if isinstance(index, list) else (index,)
            old = backends.current().read(variable, select(shape, items))
            assert not np.shares_memory(np.asarray(old), np.asarray(read_value(variable)))
            point = backends.current().read(variable, Point((16,) + (0,) * (len(shape) - 1)))
            assert not np.shares_memory(np.asarray(point), np.asarray(read_value(variable)))

    def test_more_axes_than_kernels_take(self):
        shape = (1, 2, 1, 2, 1, 2, 1, 2, 1, 2)
        before = random_bits(shape, "float32")
        for items in [(0, 1) * 5, (0, 1), (slice(None), slice(None, None, -1)), (np.array([0]), np.array([1]))]:
            variable, selection = variable_of(before), select(shape, items)
            assert_same_bits(backends.current().read(variable, selection), taken(before, selection))
            backends.current().write(variable, selection, 2.0)
            assert_same_bits(variable, replaced(before, selection, 2.0))

    def test_written_first_inside_a_function(self):
        """What is kept between calls must not belong to a graph."""
        import tensorflow as tf

        variable, seen = variable_of(np.zeros((9, 11), "float32")), []

        @tf.function
        def traced():
            with tf.init_scope():
                seen.append(backends.current().read(variable, Point((8, 10))))

        traced()
        backends.current().write(variable, Point((8, 10)), 2.0)
        assert host(variable)[8, 10] == 2

    def test_mirrored_variables(self):
        """Every replica is written. In a process of its own, as devices are split before TensorFlow starts."""
        program = textwrap.dedent("""
            import numpy as np, tensorflow as tf
            cpu, = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
            import keras
            from kpatch import backends
            from kpatch.indexing import Mask, Point, Positions, select, whole
            writer = backends.current()
            with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
                variable = keras.Variable(np.zeros((4, 6), "float32"))
                statistic = keras.Variable(np.zeros((4, 6), "float32"), synchronization="on_read", aggregation="mean")
            assert len(variable.value.values) == 2
            cases = [Point((1, 2)), select((4, 6), (slice(None, None, -2), 3)), select((4, 6), (1,)), whole((4, 6)),
                     Positions(np.array([3, 1]), (2,)), Mask(np.eye(4, 6) > 0, (4, 6))]
            for number, selection in enumerate(cases, 1):
                for each in (variable, statistic):
                    old = writer.read(each, selection)
                    writer.write(each, selection, float(number))
                    for replica in each.value.values:
                        assert (replica.numpy() == number).sum() == (4 if type(selection) is Mask else selection.size)
                    writer.write(each, selection, old)
                    assert not any(replica.numpy().any() for replica in each.value.values)
            print("written")
        """)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        assert done.stdout.endswith("written\n"), done.stderr
