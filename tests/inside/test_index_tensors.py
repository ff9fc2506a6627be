"""Index tensors in compiled patches that are proved to be in range: NumPy's, with gradients, on every backend.

Of those that are not, see `test_unknown_lengths.py`.
"""

import functools

import keras
import numpy as np
import pytest
from gradients import check_gradients, gradients
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import ops

import kpatch
import kpatch.layers
from kpatch.constraints import PatchConstraint
from kpatch.functions import ranges
from kpatch.initializers import PatchedInitializer
from kpatch.inside.tensor_patch import TensorPatch
from kpatch.layers import PatchedLayer, ScatterLayer
from kpatch.run import evaluate as ev
from kpatch.syntax import parse
from kpatch.values import arithmetic
from kpatch.values.dtypes import Value, tensor
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="numpy has no gradients")
RANDOM = np.random.default_rng(0)
X = (RANDOM.permutation(60).reshape(3, 4, 5) / 8 - 3 + 1 / 32).astype("float32")  # no ties, nothing near an integer
V = np.array([0.5, -1.5], "float32")


def _set(a, index, value):
    a[index] = value


def _rows(a):
    return np.arange(3), a[..., 0].argmax(1)


def _placed(a, change):
    i = a[0, 0].argmax()
    a[..., i] **= 2
    a[..., i - 1] *= change


# statement → what it does to `a` with the value `v`; the batch, which is the first axis, may be unknown to all of them
FORMS = {
    "_[:, argmax(_[0, :, 0])] = 0": lambda a, v: _set(a, np.s_[:, a[0, :, 0].argmax()], 0),
    "_[arange(shape(_)[0]), argmax(_[..., 0], axis=1)] = 0": lambda a, v: _set(a, _rows(a), 0),
    "_[arange(shape(_)[0]), argmax(_[..., 0], axis=1), :2] += $v": lambda a, v: _set(
        a, (*_rows(a), np.s_[:2]), a[(*_rows(a), np.s_[:2])] + v
    ),
    "_[expand_dims(arange(shape(_)[0]), 1), argsort(_[..., 0], axis=1)[:, -2:], -1] = $v": lambda a, v: _set(
        a, (np.arange(3)[:, None], a[..., 0].argsort(1)[:, -2:], -1), v
    ),
    "_[argmin(_, axis=0)[0], arange(4)[:1], :] = $v[1]": lambda a, v: _set(a, np.s_[a.argmin(0)[0], [0], :], v[1]),
    "_[..., argsort(_[0, 0])[:2]] = $v": lambda a, v: _set(a, np.s_[..., a[0, 0].argsort()[:2]], v),
    "_[..., argsort(_[0, 0])[::-1]] = _ * 2": lambda a, v: _set(
        a, np.s_[..., a[0, 0].argsort()[::-1]], 2 * a[..., a[0, 0].argsort()[::-1]]
    ),
    "_[:, [3, 1], argsort(_[0, 0])[:2]] *= $v": lambda a, v: _set(
        a, np.s_[:, [3, 1], a[0, 0].argsort()[:2]], v * a[:, [3, 1], a[0, 0].argsort()[:2]]
    ),
    "_[argmax(_[:, 0, 0]), :, argsort(_[0, 0])[:2]] = expand_dims($v, 1)": lambda a, v: _set(
        a, np.s_[a[:, 0, 0].argmax(), :, a[0, 0].argsort()[:2]], v[:, None]
    ),
    "_[:, 1, 0 * argsort(_[0, 0, :2]) + 2] = $v": lambda a, v: _set(a, np.s_[:, 1, 2], v[1]),  # the last wins
    "_[:, cast(_[0, 0] * 8, 'int32') % 2 + 1] += 1": lambda a, v: _set(
        a, np.s_[:, np.floor(a[0, 0] * 8).astype(int) % 2 + 1], a[:, np.floor(a[0, 0] * 8).astype(int) % 2 + 1] + 1
    ),  # each once, as in NumPy
    "_[..., where(_[0, 0] > 0, 1, -1)] = $v[0]": lambda a, v: _set(a, np.s_[..., np.where(a[0, 0] > 0, 1, -1)], v[0]),
    "_[..., cast(clip(_[0, 0], 0, 4), 'int32')] = 0": lambda a, v: _set(
        a, np.s_[..., np.clip(a[0, 0], 0, 4).astype(int)], 0
    ),
    "let i = argmax(_[0, 0]); _[..., i] = _ ** 2; _[..., i - 1] *= 0.5": lambda a, v: _placed(a, 0.5),
    "let x = _; _[:, 0] = x[arange(shape(x)[0]), argmax(x[..., 0], axis=1)]": lambda a, v: _set(
        a, np.s_[:, 0], a[_rows(a)]
    ),
    "let x = _; _[..., 0] -= take_along_axis(x, argmax(x, axis=2, keepdims=true), axis=2)[..., 0]": lambda a, v: _set(
        a, np.s_[..., 0], a[..., 0] - a.max(2)
    ),
    "_ = take(_, argsort(_[0, 0]), axis=2)": lambda a, v: _set(a, ..., a[..., a[0, 0].argsort()]),
    "_ = take(_, argsort(_[:, 0, 0]), axis=0) * $v[0]": lambda a, v: _set(a, ..., a[a[:, 0, 0].argsort()] * v[0]),
    "_[:, argsort(_[0, 0])[:0]] = 7": lambda a, v: None,
    "_[argmax(_[..., :1], axis=2, keepdims=true) == arange(5)] = 0": lambda a, v: _set(a, np.s_[..., 0], 0),
    "_[_ == max(_, axis=-1, keepdims=true)] = 0": lambda a, v: _set(a, a == a.max(-1, keepdims=True), 0),
}


def by_numpy(text, x, v=V):
    a = x.copy()
    FORMS[text](a, v)
    return a


def inputs_of(text):
    return [X, V][: 1 + ("$v" in text)]


def layer_of(text):
    """The layer as a function of the tensor, and of `v` where it is named."""
    layer = ScatterLayer(text)
    return (lambda x, v: layer([x, v])) if "$v" in text else (lambda x: layer(x))


# NumPy is the measure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMS)
def test_it_does_what_numpy_does(text):
    given = [ops.convert_to_tensor(array.copy()) for array in inputs_of(text)]
    np.testing.assert_allclose(to_numpy(layer_of(text)(*given)), by_numpy(text, X, V), rtol=1e-6)
    for argument, array in zip(given, inputs_of(text), strict=True):
        np.testing.assert_array_equal(to_numpy(argument), array)


@pytest.mark.parametrize("text", FORMS)
def test_the_eager_edit_does_the_same(text):
    got = kpatch.edit(ops.convert_to_tensor(X), text, **{"v": V} if "$v" in text else {})
    np.testing.assert_allclose(to_numpy(got), by_numpy(text, X, V), rtol=1e-6)


@pytest.mark.parametrize("text", FORMS)
def test_of_an_unknown_batch(text):
    inputs = [keras.Input((4, 5)), keras.Input(batch_shape=(2,))][: len(inputs_of(text))]
    model = keras.Model(inputs, ScatterLayer(text)(inputs if len(inputs) > 1 else inputs[0]))
    assert model.output_shape == (None, 4, 5)
    for function in compiled(lambda *given: model(list(given)), inputs):
        given = [ops.convert_to_tensor(array) for array in inputs_of(text)]
        np.testing.assert_allclose(to_numpy(function(*given)), by_numpy(text, X, V), rtol=1e-6)


def compiled(function, inputs):
    """The function by each compiler of the backend; on tensorflow the batch stays unknown in its graph."""
    if BACKEND == "jax":
        import jax

        return [jax.jit(function)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
        return [tf.function(function, input_signature=signature, jit_compile=xla) for xla in (False, True)]
    if BACKEND == "torch":
        import torch

        torch._dynamo.reset()
        return [function, torch.compile(function, fullgraph=True, backend="aot_eager")]
    return [function]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "int32", "bool"])
def test_of_every_kind_of_dtype(dtype):
    x = (X * 8).astype("int32") % 2 if dtype == "bool" else (X * 8).astype("int32")
    x = ops.cast(ops.convert_to_tensor(x), dtype)
    for text in ("_[:, argsort(_[0, :, 0]), 0] = _", "_[..., cast(_[0, 0], 'int32') % 5] = _[..., ::-1]"):
        expected = to_numpy(kpatch.edit(x, text))
        for function in compiled(
            lambda x, text=text: kpatch.edit(x, text), [keras.Input(batch_shape=(3, 4, 5), dtype=dtype)]
        ):
            np.testing.assert_array_equal(to_numpy(function(x)), expected)


@st.composite
def subscripts(draw):
    """A shape, the text of an index with at least one `$` tensor, NumPy's items, and the tensors."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    kinds = draw(
        st.lists(st.sampled_from("tnims"), min_size=len(shape), max_size=len(shape)).filter(lambda k: "t" in k)
    )
    block = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1), (0,)]))
    texts, items, tensors = [], [], {}
    for axis, kind in enumerate(kinds):
        length = shape[axis]
        entries = st.integers(-length, length - 1)
        if kind == "t":
            place = draw(st.sampled_from([block, block[1:], ()]))
            array = np.array(draw(st.lists(st.integers(-9, 9), min_size=6, max_size=6)), "int32")
            array = np.resize(array, place).astype("int32")
            low = draw(st.sampled_from([0, length]))
            tensors[f"t{axis}"] = array
            texts.append(f"$t{axis} % {length} - {low}")
            items.append(array % length - low)
        elif kind == "n":
            array = draw(st.lists(entries, min_size=(block or (1,))[-1], max_size=(block or (1,))[-1]))
            texts.append(str(array))
            items.append(np.array(array, "int64"))
        elif kind == "m":
            held = min(length, (block or (1,))[-1])  # so that it broadcasts, or is one
            array = [place < held for place in range(length)]
            texts.append(str(array).lower())
            items.append(np.array(array))
        elif kind == "i":
            items.append(draw(entries))
            texts.append(str(items[-1]))
        else:
            texts.append(draw(st.sampled_from([":", "1:", "::-1", "::2"])))
            items.append(slice(*(int(part) if part else None for part in (texts[-1] + ":").split(":")[:3])))
    if draw(st.booleans()) and kinds[-1] == "s":
        texts[-1], items[-1] = "...", Ellipsis
    return shape, ", ".join(texts), tuple(items), tensors


@settings(max_examples={"numpy": 150, "jax": 25}.get(BACKEND, 40))
@given(subscripts())
def test_any_mixture_is_numpys(drawn):
    shape, index, items, tensors = drawn
    x = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    try:
        values = -1 - np.arange(x[items].size, dtype="float32").reshape(x[items].shape)
    except IndexError:  # the index arrays do not broadcast together
        assume(False)
    expected = x.copy()
    expected[items] = values
    names = (*tensors, "v")
    written = run(f"_[{index}] = $v", names, x, *tensors.values(), values)
    np.testing.assert_array_equal(written, expected)
    expected[items] = -7
    np.testing.assert_array_equal(run(f"_[{index}] = -7", names[:-1], x, *tensors.values()), expected)
    read = f"let read = _[{index}]; _[...] = sum(read) * 0; _[{index}] = read"
    expected[...] = 0
    expected[items] = x[items]
    np.testing.assert_array_equal(run(read, names[:-1], x, *tensors.values()), expected)


def run(text, names, x, *given):
    patch = TensorPatch(text)
    order = patch.free
    values = dict(zip(names, given, strict=True))
    return to_numpy(patch(order, *map(ops.convert_to_tensor, (x, *(values[name] for name in order)))))


def test_the_last_of_repeated_entries_wins():
    x, places = np.zeros(50, "float32"), RANDOM.integers(0, 50, 5000).astype("int32")
    values = np.arange(5000, dtype="float32")
    expected = x.copy()
    expected[places] = values
    for _ in range(3):
        got = run("_[$i % 50] = $v", ("i", "v"), x, places, values)
        np.testing.assert_array_equal(got, expected)


# Gradients ------------------------------------------------------------------------------------------------------------


@trains
@pytest.mark.parametrize("text", FORMS)
def test_gradients_are_those_of_finite_differences(text):
    check_gradients(layer_of(text), functools.partial(by_numpy, text), *inputs_of(text))


@trains
def test_gradients_of_entries_overwritten_and_of_values_that_lost_are_exactly_zero():
    x, places = X[0, 0], np.array([1, 3, 1, 1], "int32")
    values = np.array([np.inf, 2, 3, 4], "float32")
    patch = TensorPatch("_[$i % 5] = $v")
    i = ops.convert_to_tensor(places)
    dx, dv = gradients(lambda x, v: ops.sum(patch(("i", "v"), x, i, v) * 2.0), x, values)
    assert dx.tolist() == [2, 0, 2, 0, 2]
    assert dv.tolist() == [0, 2, 0, 2]


@trains
def test_gradients_of_what_is_read_twice_add_up():
    [dx] = gradients(lambda x: ops.sum(ScatterLayer("_[:2] = _[[0, 0] + argmax(_) * 0]")(x)), X[0, 0])
    assert dx.tolist() == [2, 0, 1, 1, 1]


# Wherever a patch is compiled -----------------------------------------------------------------------------------------


def test_of_the_weights_of_a_layer():
    dense = keras.layers.Dense(2, kernel_initializer="ones", use_bias=True)
    dense.build((None, 3))
    dense.kernel.assign([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]])
    layer = PatchedLayer(dense, "kernel[argmax(kernel, axis=0), arange(2)] = 0; bias[argmin(kernel[0])] = 9")
    assert to_numpy(layer(np.ones((1, 3), "float32"))).tolist() == [[4 + 9, 2]]
    constraint = PatchConstraint("_[argsort(_)[:2]] = 0")
    assert to_numpy(constraint(ops.convert_to_tensor([3.0, -1.0, 2.0]))).tolist() == [3, 0, 0]
    made = to_numpy(PatchedInitializer("_[permutation(4, seed=1), arange(4)] = 1", base="zeros")((4, 4)))
    assert made.sum(0).tolist() == made.sum(1).tolist() == [1, 1, 1, 1]


def test_of_a_rewritten_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
    x = RANDOM.normal(size=(5, 4)).astype("float32")
    top = kpatch.rewrite(model, "hidden.output[arange(shape(_)[0]), argmax(_, axis=1)] = 0")
    hidden = to_numpy(model.get_layer("hidden")(x))
    hidden[np.arange(5), hidden.argmax(1)] = 0
    np.testing.assert_allclose(to_numpy(top(x)), to_numpy(model.layers[-1](hidden)), rtol=1e-5)


@trains
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND != "torch" else [False])
def test_it_trains(jit_compile):
    layer = ScatterLayer("_[arange(shape(_)[0]), argmax(_, axis=1)] = $v", bindings={"v": 0.5}, trainable_values=True)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(RANDOM.normal(size=(20, 4)), RANDOM.normal(size=(20, 3)), batch_size=8, verbose=0)
    assert layer.get_weights()[0] != 0.5


# The proof ------------------------------------------------------------------------------------------------------------


numbers = st.integers(-6, 6).map(str)
floats = st.sampled_from(["_", "-_", "_ * 3", "floor(_)", "round(_)", "abs(_)", "relu6(_)", "trunc(_ / 2)"])
leaves = st.one_of(
    numbers,
    st.builds("clip({}, {}, {})".format, floats, numbers, numbers).map(lambda text: f"cast({text}, 'int32')"),
    st.builds("cast({}, '{}')".format, floats, st.sampled_from(["int32", "int8", "uint8"])),
    st.sampled_from(
        ["argmax(_)", "argmin(_)", "argsort(_)", "arange(4)", "arange(5, 1, -1)", "count_nonzero(_)", "sum(_ > 0)"]
    ),
    st.sampled_from(["cast(_ > 0, 'int32')", "randint([4], -3, 5, seed=1)", "permutation(4, seed=2)", "shape(_)[0]"]),
    st.sampled_from(["full([4], 3, 'int8')", "tril(reshape(argsort(_), [2, 2]) + 3)[0, 1]", "ones_like(argsort(_))"]),
)


def combined(parts):
    return st.one_of(
        st.builds("({} {} {})".format, parts, st.sampled_from("+-*"), parts),
        st.builds("({} {} {})".format, parts, st.sampled_from(["//", "%"]), numbers.filter(lambda n: n != "0")),
        st.builds("{}({}, {})".format, st.sampled_from(["minimum", "maximum", "add", "subtract"]), parts, parts),
        st.builds("subtract(x2={}, x1={})".format, parts, parts),
        st.builds("clip({}, {}, {})".format, parts, numbers, numbers),
        st.builds("where(_ > 0, {}, {})".format, parts, parts),
        st.builds("(-{})".format, parts),
        st.builds("{}({})".format, st.sampled_from(["abs", "sign", "relu", "sort", "max", "min", "flip"]), parts),
        st.builds("cast({}, '{}')".format, parts, st.sampled_from(["int8", "uint8", "int16", "float16"])),
        st.builds("stack([{}, {}])[1]".format, parts, parts),
    )


@settings(max_examples=400 if BACKEND == "numpy" else 60)
@given(
    st.recursive(leaves, combined, max_leaves=6),
    st.lists(st.floats(-300, 300, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=4, max_size=4),
)
def test_every_entry_lies_in_the_range_that_is_proved(text, entries):
    node = parse(f"_ = {text}").statements[0].value
    x = np.array(entries, "float32")
    try:
        with arithmetic.planning():
            planned = ev.evaluate(node, ev.Scope(None, implied=Value("float32", (4,)), traced=True))
        value = ev.evaluate(node, ev.Scope(None, implied=tensor(ops.convert_to_tensor(x))))
    except kpatch.PatchError:
        return
    low, high, over = ranges.of(planned)
    found = np.asarray(value.data if value.weak else to_numpy(value.data)).astype("float64")
    found = found[~np.isnan(found)]
    assert over is None
    assert not found.size or low <= found.min() <= found.max() <= high, (text, entries)


PROVED = {  # an index of the first axis of a tensor of shape (4, None) → whether it is proved to be in range
    "argmax(_[:, 0])": True,
    "argmax(_, axis=0)": True,
    "argmax(_, axis=1)": False,
    "max([0, 1, 2], initial=3)": True,
    "max(argmax(_, axis=0), initial=3)": True,
    "max(argmax(_, axis=0), initial=4)": False,
    "min(argmax(_, axis=0), initial=-4)": True,
    "min(argmax(_, axis=0), initial=-5)": False,
    "argmax(_)": False,
    "argsort(_, axis=0)[0] - 4": True,
    "argsort(_, axis=0)[0] - 5": False,
    "-1 - argmin(_[:, 0])": True,
    "3 - argmin(_[:, 0]) * 2": True,
    "argmin(_[:, 0]) * 2": False,
    "cast(_[:, 0], 'int32') % 4": True,
    "cast(_[:, 0], 'int32') % -4": True,
    "cast(_[:, 0], 'int32') % 5": False,
    "mod(cast(_[:, 0], 'int32'), 4)": True,
    "clip(cast(_[:, 0], 'int32'), -4, 3)": True,
    "clip(cast(_[:, 0], 'int32'), -5, 3)": False,
    "cast(clip(_[:, 0], 1, 3.5), 'uint8')": True,
    "cast(_[:, 0] > 0, 'int32')": True,
    "cast(heaviside(_[:, 0], 3), 'int32')": True,
    "cast(heaviside(_[:, 0], 4), 'int32')": False,
    "minimum(argmax(_, axis=1), 3)": True,
    "clip(argmax(_, axis=1), 0, 3)": True,
    "argmax(_, axis=1) % 4": True,
    "count_nonzero(_[:, 0]) - 1": True,
    "count_nonzero(_[:, 0])": False,
    "count_nonzero(_[0])": False,
    "arange(4)[::-1]": True,
    "where(_[:, 0] > 0, 0, argmax(_[:, 0]))": True,
    "where(_[:, 0] > 0, 4, argmax(_[:, 0]))": False,
    "argmax(_[:, 0]) * 1000000000 * 1000000000": False,  # it wraps
    "cast(argmax(_[:, 0]) + 126, 'int8') - 126": False,
    "argmax(_[:, 0])[...]": True,
    "arange(shape(_)[0])": True,
    "arange(shape(_)[1])": False,
    "cast($i, 'int32') % 4": True,
    "$i": False,
}
PROVED_OF_AN_UNKNOWN_LENGTH = {  # likewise of the second axis
    "argmax(_, axis=1)": True,
    "argmax(_[0])": True,
    "argmin(abs(_) * 2 - 1, axis=1)": True,
    "argmax(_[0, 1:])": False,
    "argmax(_[0] + $w)": False,
    "argmax($w)": False,
    "argsort(-_, axis=1)[..., :1]": True,
    "argsort(_[1:, :])[0, 2:]": True,
    "argsort(sum(_, axis=0))": True,
    "argmax(mean(_, axis=0, keepdims=true), axis=1)": True,
    "argmax(where(_ > 0, _, 0), axis=-1)": True,
    "argmax(softmax(_), axis=1)": True,
    "argmax(_, axis=0)": False,
    "argmax(_, axis=1) - 1": False,
    "argmax(_, axis=1) + 1": False,
    "maximum(argmax(_, axis=1), 0)": True,
    "maximum(argmax(_, axis=1), 1)": False,
    "argmax(transpose(_), axis=0)": False,
    "arange(shape(_)[1])": True,
    "arange(shape(_)[-1])": True,
    "arange(shape(_)[0])": False,
    "clip(argmax(_, axis=1), 0, 3)": False,
    "cast(argmax(_, axis=1), 'int8')": False,
    "0 * argmax(_[0])": False,
}


@pytest.mark.parametrize("index", PROVED)
def test_what_is_proved(index):
    assert _is_proved(f"_[{index}] = 0") is PROVED[index]
    assert _is_proved(f"_ = sum(_[{index}])") is PROVED[index]


@pytest.mark.parametrize("index", PROVED_OF_AN_UNKNOWN_LENGTH)
def test_what_is_proved_of_an_unknown_length(index):
    assert _is_proved(f"_[:, {index}] = 0") is PROVED_OF_AN_UNKNOWN_LENGTH[index]


def _is_proved(text):
    patch = TensorPatch(text)
    kinds = {"i": ((4,), "int32"), "w": ((None,), "float32")}
    return not patch.plan(((4, None), "float32"), {name: kinds[name] for name in patch.free}).unproved


REFUSED = {
    "_ = take(_, argmax(_), axis=1)": """
        a compiled function cannot check that this index is in range for axis 1 with 4 entries
          line 1, column 13
            _ = take(_, argmax(_), axis=1)
                        ^^^^^^^^^
          of its entries only the dtype is known: int32
          clip(..., 0, 3) is in range, and so is ... % 4""",
    "_ = sum(_[_ > 1])": """
        the number of entries that a mask selects is unknown inside a compiled function
          line 1, column 11
            _ = sum(_[_ > 1])
                      ^^^^^
          a mask of the whole tensor, or of its first axes, can be assigned to; where(mask, a, b) reads""",
    "_[_[:, 0] > 0, argmax(_[0])] = 0": """
        the number of entries that a mask selects is unknown inside a compiled function
          line 1, column 3
            _[_[:, 0] > 0, argmax(_[0])] = 0
              ^^^^^^^^^^^
          a mask of the whole tensor, or of its first axes, can be assigned to; where(mask, a, b) reads""",
    "let i = argmax(_[0]); _ = [5, 6, 7, 8][i]": """
        a list cannot be indexed by a tensor inside a compiled function
          line 1, column 27
            let i = argmax(_[0]); _ = [5, 6, 7, 8][i]
                                      ^^^^^^^^^^^^^^^
          cast([...], "float32") converts it to a tensor""",
    "_[:, argmax(_[0]) / 2] = 0": """
        an index is made of integers or booleans, not of float32
          line 1, column 6
            _[:, argmax(_[0]) / 2] = 0
                 ^^^^^^^^^^^^^^^^
          cast(x, "int32") converts it to integers""",
    "_[:, [0, 1], argmax(_[0])] = 0": """
        too many indices for shape (None, 4)
          line 1, column 14
            _[:, [0, 1], argmax(_[0])] = 0
                         ^^^^^^^^^^^^
          the index takes 3 axes, the tensor has 2""",
    "_[:, argsort(_[0])[:2]] = [1, 2, 3]": """
        value of shape (3,) does not fit the selection of shape (None, 2)
          line 1, column 27
            _[:, argsort(_[0])[:2]] = [1, 2, 3]
                                      ^^^^^^^^^
          axis 1 of the selection has length 2: the value's must be 2 or 1, not 3""",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_at_build(text):
    with pytest.raises(kpatch.PatchError) as caught:
        ScatterLayer(text).build((None, 4))
    assert str(caught.value) == REFUSED[text].replace("\n        ", "\n").strip("\n")


def test_offsets_that_do_not_fit_are_refused():
    with pytest.raises(kpatch.LimitError, match="an index tensor into more than 2147483647 entries"):
        ScatterLayer("_[argmax(_[:, 0]), argmax(_[0])] = 0").build((2**16, 2**16))


def test_nested_lengths_are_worked_out_once():
    text = "_"
    for _ in range(19):
        text = f"arange(shape({text})[0])"
    assert to_numpy(ScatterLayer(f"_[{text}] = 0")(ops.ones((4,)))).tolist() == [0, 0, 0, 0]
