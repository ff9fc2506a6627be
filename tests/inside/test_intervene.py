"""Blocks of `intervene`: how they begin, and that nothing outlives them, in whatever order they end."""

import concurrent.futures
import contextlib
import copy
import gc
import itertools
import random

import keras
import models
import numpy as np
import pytest

import kpatch

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def predicted(model, x=X):
    return np.asarray(model.predict(x, verbose=0))


def called(model):
    """What the model gives, with nothing compiled."""
    return np.array(keras.ops.convert_to_numpy(model(X)))


def same(a, b):
    return a.tobytes() == b.tobytes()


def unpatched(model):
    return not any(vars(layer).keys() & {"call", "quantized_call"} for layer in [model, *model._flatten_layers()])


@pytest.fixture
def dense():
    return models.dense()


# What models have compiled --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", [True, False], ids=["compiled before", "compiled in the block"])
def test_generate(earlier):
    model = models.generator()
    before = model.generate(X) if earlier else None
    for value in (7, 8):
        with kpatch.intervene(model, "b.output[:, 1] = $v", v=value):
            assert (model.generate(X)[:, 1] == value).all()
    after = model.generate(X)
    assert before is None or same(before, after)
    assert not np.isin(after[:, 1], (7, 8)).any()


def test_generate_of_a_model_inside_of_another():
    model = models.generator()
    outer = keras.Sequential([keras.Input((4,)), model, keras.layers.Dense(4, name="c")])
    before = model.generate(X)
    with kpatch.intervene(outer, "b.output[:, 1] = 7"):
        assert (model.generate(X)[:, 1] == 7).all()
    assert same(model.generate(X), before)


def test_generate_of_a_model_around_the_one_patched():
    model = models.generator()
    with kpatch.intervene(model.backbone, "b.output[:, 1] = 7"):
        assert (model.generate(X)[:, 1] == 7).all()
    assert (model.generate(X)[:, 1] != 7).any()


def test_other_models_that_share_the_layers(dense):
    features = keras.Model(dense.inputs, dense.get_layer("dense_1").output)
    outer = keras.Sequential([keras.Input((4,)), dense])
    with kpatch.intervene(dense, "dense_1.output[:, 1] = 7"):
        assert (predicted(features)[:, 1] == 7).all()
        inside = predicted(outer)
    assert (predicted(features)[:, 1] != 7).any()
    assert not same(predicted(outer), inside)
    assert same(predicted(outer), predicted(dense))


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy compiles nothing")
def test_models_compiled_as_a_whole(dense):
    dense.compile("sgd", "mse", jit_compile=True)
    before = predicted(dense)
    with kpatch.intervene(dense, "dense_1.output[:, 0] = 5; dense_2.output[:, 0] = mean(dense_1.output)"):
        first = predicted(dense)
        with kpatch.intervene(dense, "dense_2.output[:, 1] = 7"):
            assert (predicted(dense)[:, 1] == 7).all()
        assert same(predicted(dense), first)
    assert same(predicted(dense), before)


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
def test_training_in_a_block_and_after(dense):
    dense.compile("sgd", "mse")
    y = np.zeros((3, 2), "float32")
    dense.fit(X, y, verbose=0)
    with kpatch.intervene(dense, "dense_2.output[:, 0] = 7000"):
        assert dense.evaluate(X, y, verbose=0) > 7000
        assert dense.fit(X, y, verbose=0).history["loss"][0] > 7000
    assert dense.evaluate(X, y, verbose=0) < 7000
    assert dense.fit(X, y, verbose=0).history["loss"][0] < 7000


# The end of a block ---------------------------------------------------------------------------------------------------


TEXTS = [
    "dense_1.output[:, 0] = 5",
    "dense_1.output[:, 1] = 6; dense_2.output[:, 0] = mean(dense_1.output)",
    "dense_2.input[:, 1] += 1; dense_1.output *= 2",
]


def with_only(texts):
    """What the model of these tests gives under some patches, one inside of the other."""
    model = models.dense()
    with contextlib.ExitStack() as stack:
        for text in texts:
            stack.enter_context(kpatch.intervene(model, text))
        return called(model)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_calls_are_unpatched_in_any_order(dense, order):
    blocks = [kpatch.intervene(dense, text) for text in TEXTS]
    for block in blocks:
        block.__enter__()
    left = list(range(3))
    for number in order:
        assert same(called(dense), with_only([TEXTS[each] for each in left]))
        blocks[number].__exit__(None, None, None)
        left.remove(number)
    assert unpatched(dense)
    assert same(called(dense), with_only([]))


EDITS = [
    "dense_1.kernel[0] = $v",
    "dense_1.kernel[:, 1] = $v; dense_1.bias = $v",
    "dense_1.kernel[1:, ::-2] = $v",
    "dense_1.kernel[[0, 3, 0], [1, 2, 1]] = $v; dense_1.kernel[2, 2] = $v",
    "dense_1.kernel[abs(_) < 100] = $v",
    "**.kernel = $v",
    "dense_1.bias[1] = $v; dense_1.bias[:2] = $v; dense_1.kernel[dense_1.kernel > -100] = $v",
    "dense_2.kernel[_ != 7.25] = $v + 0 * _",
]


@pytest.mark.parametrize("seed", range(8))
def test_weights_are_restored_in_any_order(seed):
    """An entry shows the value of the latest block that edits it, and is what it was when none is left."""
    dice = random.Random(seed)
    dense, before = models.dense(), models.dense().get_weights()
    blocks, left = [], list(range(8))
    masks = {text: edited_by(text) for text in EDITS}
    while blocks or left:
        if left and (not blocks or dice.random() < 0.6):
            number, text = left.pop(0), dice.choice(EDITS)
            blocks.append((number, text, kpatch.intervene(dense, text, v=number + 0.5).__enter__()))
        else:
            blocks.pop(dice.randrange(len(blocks)))[2].__exit__(None, None, None)
        expected = [np.array(weight) for weight in before]
        for number, text, _ in blocks:
            for weight, mask in zip(expected, masks[text], strict=True):
                weight[mask] = number + 0.5
        assert [w.tobytes() for w in dense.get_weights()] == [w.tobytes() for w in expected]


def edited_by(text):
    """Which entries of the weights a patch edits."""
    model = models.dense()
    before = model.get_weights()
    with kpatch.apply(model, text, v=99):
        return [a != b for a, b in zip(before, model.get_weights(), strict=True)]


def test_an_edit_that_outlasts_the_block(dense):
    before = models.snapshot(dense)
    with kpatch.intervene(dense, "dense_1.kernel = 0; dense_1.bias[0] = 1; dense_1.bias += 1"):
        applied = kpatch.apply(dense, "dense_1.kernel[0] = 5; dense_1.bias[0] = -0.5")
    expected = models.dense()
    kpatch.apply(expected, "dense_1.kernel[0] = 5; dense_1.bias[0] = -0.5")
    assert models.snapshot(dense) == models.snapshot(expected)
    applied.undo()
    assert models.snapshot(dense) == before


def test_an_edit_that_nobody_can_undo_stays(dense):
    with kpatch.intervene(dense, "dense_1.kernel = 0"):
        kpatch.apply(dense, "dense_1.kernel[0] = 5")
        kpatch.apply(dense, "dense_1.kernel[1] = 6", undo=False)
    expected = models.dense()
    kpatch.apply(expected, "dense_1.kernel[0] = 5; dense_1.kernel[1] = 6")
    assert models.snapshot(dense) == models.snapshot(expected)


def test_an_exception_ends_only_its_block(dense):
    with kpatch.intervene(dense, TEXTS[0]):
        with pytest.raises(ZeroDivisionError), kpatch.intervene(dense, f"{TEXTS[1]}; dense_1.bias = 3"):
            raise ZeroDivisionError
        assert same(called(dense), with_only(TEXTS[:1]))
    assert unpatched(dense)


def test_a_block_that_cannot_begin(dense, recwarn):
    before = models.snapshot(dense)
    block = kpatch.intervene(dense, "assert all(dense_1.bias < 100); dense_1.bias = 1; dense_1.output = 0")
    kpatch.apply(dense, "dense_1.bias = 100").undo()
    with kpatch.apply(dense, "dense_1.bias = 100"), pytest.raises(kpatch.PatchAssertionError):
        block.__enter__()
    assert unpatched(dense)
    assert models.snapshot(dense) == before
    with block:
        assert (dense.get_weights()[1] == 1).all()
        called(dense)
    del block
    assert not [each for each in recwarn if "kpatch" in str(each.message)]


def steps(model, text):
    with kpatch.intervene(model, text):
        while True:
            yield called(model)


def test_generators_that_take_turns(dense):
    one, other = steps(dense, TEXTS[0]), steps(dense, TEXTS[2])
    assert same(next(one), with_only([TEXTS[0]]))
    assert same(next(other), with_only([TEXTS[0], TEXTS[2]]))
    one.close()
    assert same(next(other), with_only([TEXTS[2]]))
    del other  # left at its `yield`, for ever
    gc.collect()
    assert unpatched(dense)


def test_the_same_patch_twice(dense):
    text = "dense_1.output[:, 0] += 1; dense_2.output[:, 0] = mean(dense_1.output); dense_1.bias += 1"
    before = models.snapshot(dense)
    with kpatch.intervene(dense, text):
        once = predicted(dense)
        with kpatch.intervene(dense, text):
            twice = predicted(dense)
        assert same(predicted(dense), once)
    kernel, bias, kernel_2, bias_2 = models.dense().get_weights()
    hidden = X @ kernel + bias + 2
    hidden[:, 0] += 2
    np.testing.assert_allclose(twice[:, 1], (hidden @ kernel_2 + bias_2)[:, 1], rtol=1e-5)
    np.testing.assert_allclose(twice[:, 0], hidden.mean(), rtol=1e-5)
    assert models.snapshot(dense) == before


def test_shared_layers_in_nested_models():
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    a = keras.Input((4,))
    model = models.filled(keras.Model(a, shared(inner(shared(a))), name="outer"))
    before = predicted(model)
    one, other = kpatch.intervene(model, "shared.output[:, 0] = 1"), kpatch.intervene(inner, "shared.output[:, 1] = 2")
    one.__enter__()
    other.__enter__()
    assert predicted(model)[:, :2].tolist() == [[1, 2]] * 3
    one.__exit__(None, None, None)
    assert (predicted(inner)[:, 1] == 2).all()
    other.__exit__(None, None, None)
    assert same(predicted(model), before)
    assert unpatched(model)


def test_what_stood_in_for_a_call_before_stands_in_after(dense):
    layer = dense.get_layer("dense_1")
    own = layer.call
    layer.call = doubled = lambda *args, **kwargs: 2 * own(*args, **kwargs)
    before = predicted(dense)
    with kpatch.intervene(dense, "dense_1.output[:, 0] = 5"):
        inside = layer.call
        layer.call = lambda *args, **kwargs: inside(*args, **kwargs)  # puts itself around the patch, and goes on
        outside = layer.call
    assert layer.call is outside
    dense.predict_function = None
    assert same(predicted(dense), before)
    layer.call = doubled
    with kpatch.intervene(dense, "dense_1.output[:, 0] = 5"):
        pass
    assert layer.call is doubled


def test_a_quantised_layer(dense):
    dense.quantize("int8")
    before, bias = predicted(dense), keras.ops.convert_to_numpy(dense.get_layer("dense_2").bias)
    with kpatch.intervene(dense, "dense_1.output = 0; dense_2.output[:, 0] = 7"):
        assert predicted(dense).tolist() == [[7, bias[1]]] * 3
    assert same(predicted(dense), before)
    assert unpatched(dense)


def test_a_copy_made_in_a_block_is_not_patched(dense):
    with kpatch.intervene(dense, "dense_1.output[:, 0] = 5"):
        copied, cloned = copy.deepcopy(dense), keras.models.clone_model(dense)
    cloned.set_weights(dense.get_weights())
    kpatch.apply(dense, "** = 0")
    assert unpatched(copied)
    assert unpatched(cloned)
    assert same(called(copied), with_only([]))
    assert same(called(cloned), with_only([]))


def in_threads(function, number=4):
    """Runs it in some threads at a time, and raises what one of them raised."""
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        for done in [pool.submit(function, each) for each in range(number)]:
            done.result()


def test_threads_that_call_the_model_read_their_own_activations(dense):
    def call(number):
        x = np.full((2, 4), number, "float32")
        for _ in range(50):
            hidden = keras.ops.convert_to_numpy(dense.get_layer("dense_1")(x))
            got = keras.ops.convert_to_numpy(dense(x))
            np.testing.assert_allclose(got[:, 0], hidden.mean(), rtol=1e-5)

    with kpatch.intervene(dense, "dense_2.output[:, 0] = mean(dense_1.output)"):
        in_threads(call)


def test_threads_that_begin_and_end_blocks(dense):
    def work(number):
        for _ in range(50):
            with kpatch.intervene(dense, f"dense_2.output[:, {number % 2}] = 7; dense_1.input *= 1"):
                got = keras.ops.convert_to_numpy(dense(X))
                assert (got[:, number % 2] == 7).all()

    in_threads(work)
    assert unpatched(dense)
    assert same(called(dense), with_only([]))


# Several tensors ------------------------------------------------------------------------------------------------------


class Block(keras.layers.Layer):
    """Gives a tensor, or with a cache more; takes arguments by name."""

    def call(self, x, cache=None, scale=None):
        x = x if scale is None else x * scale
        return (x, {"cache": cache + 1}) if cache is not None else x


class Alone(keras.layers.Layer):
    """Gives one tensor, and `None` in the place of another, as in the vision tower of Gemma 4."""

    def call(self, x):
        return 2 * x, None


class AroundAlone(keras.Model):
    def __init__(self):
        super().__init__()
        self.alone = Alone(name="alone")

    def call(self, x):
        return self.alone(x)[0]


class Cached(keras.Model):
    def __init__(self):
        super().__init__(name="cached")
        self.block = Block(name="block")

    def call(self, x):
        y, held = self.block(x, cache=x, scale=2 * keras.ops.ones((1, 4)))
        return y + held["cache"]


@pytest.mark.parametrize("route", ["__call__", "predict"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("block.output.0 = 0", X + 1),
        ("block.output.1.cache[:, 0] = 0", 2 * X + (X + 1) * [0, 1, 1, 1]),
        ("block.output.0 += block.input; block.output.1.cache = -block.output.0", 0 * X),
        ("block.input = 0", X + 1),
        ("block.input.cache = 0", 2 * X + 1),
        ("block.input.scale[:, 1:] *= 2", X * [2, 4, 4, 4] + X + 1),
        ('block."input".scale = mean(block.input.cache); block.output.1."cache" = 0', X * X.mean()),
    ],
)
def test_one_of_several_tensors(text, expected, route):
    model = Cached()
    before = np.array(model(X))
    with kpatch.intervene(model, text):
        got = np.array(keras.ops.convert_to_numpy(getattr(model, route)(X)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert same(np.array(keras.ops.convert_to_numpy(model(X))), before)
    assert unpatched(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "block.output = 0",
            "'block.output' is not one tensor but a tuple of them: block.output.0, block.output.1.cache",
        ),
        ("block.output.7 = 0", "there is no 'block.output.7': 'block.output' is block.output.0, block.output.1.cache"),
        ("block.output.1 = 0", "there is no 'block.output.1': 'block.output' is block.output.0, block.output.1.cache"),
        ("block.input.query = 0", "there is no 'block.input.query': 'block.input' is block.input"),
    ],
)
def test_which_of_several_tensors(text, message):
    model = Cached()
    with kpatch.intervene(model, text), pytest.raises(kpatch.PatchError) as caught:
        model(X)
    line = text.split(" = ")[0]
    assert str(caught.value) == f"{message}\n  line 1, column 1\n    {text}\n    {'^' * len(line)}"


class Pair(keras.Model):
    def call(self, x):
        return {"u": x, "v": 2 * x}


def test_a_tensor_of_a_dict_that_the_model_gives():
    """The model itself has no name in a patch; one within another has one, also in an error."""
    model = Pair(name="pair")
    with kpatch.intervene(model, "output.u[:, 0] = 7"), kpatch.record(model, "output") as recorded:
        got = model(X)
    np.testing.assert_array_equal(np.array(keras.ops.convert_to_numpy(got["u"]))[:, 0], 7)
    np.testing.assert_array_equal(np.array(keras.ops.convert_to_numpy(got["v"])), 2 * X)
    assert list(recorded) == ["output.u", "output.v"]
    outer = keras.Sequential([model, keras.layers.Lambda(lambda x: x["u"])], name="outer")
    outermost = keras.Sequential([outer])
    outermost(X)
    for whole, name in ((model, "output"), (outermost, "outer.pair.output")):
        with kpatch.intervene(whole, f"{name} = 0"), pytest.raises(kpatch.UnsupportedError) as caught:
            whole(X)
        assert caught.value.message == f"'{name}' is not one tensor but a dict of them: {name}.u, {name}.v"
    with pytest.raises(kpatch.ResolutionError, match=r"^no variable 'output\.kernel'"):
        kpatch.intervene(models.dense(), "output.kernel = 0")


def test_the_first_tensor_by_convention():
    inputs = keras.Input((5, 4))
    model = models.filled(keras.Model(inputs, keras.layers.LSTM(3, return_state=True, name="lstm")(inputs)))
    x = np.ones((2, 5, 4), "float32")
    with kpatch.intervene(model, "lstm.output[:, 0] = 7; lstm.output.2 = 5"):
        output, _, state = map(np.array, model.predict(x, verbose=0))
    assert (output[:, 0] == 7).all()
    assert (output[:, 1:] != 7).all()
    assert (state == 5).all()


def test_a_tensor_beside_none():
    model = AroundAlone()
    with kpatch.intervene(model, "alone.output = 7"), kpatch.record(model, "alone.output") as recorded:
        assert (np.array(model(np.ones((2, 3), "float32"))) == 7).all()
    assert recorded["alone.output"] is recorded["alone.output.0"]


def test_a_layer_called_by_keywords():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(inputs=inputs))
    with kpatch.intervene(model, "dense.input = 0"):
        assert (predicted(model) == 0).all()


class Masked(keras.layers.Layer):
    """Keras keeps a mask beside the tensor that it is given, which a layer inside takes."""

    def __init__(self):
        super().__init__(name="masked")
        self.supports_masking = True
        self.inner = keras.layers.LSTM(2)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


def test_masks_of_padding_stay():
    embed, tokens = keras.layers.Embedding(9, 4, mask_zero=True, name="embed"), np.array([[1, 2, 0, 0], [3, 4, 5, 0]])
    model = models.filled(keras.Sequential([keras.Input((4,), dtype="int32"), embed, Masked()]))
    before = predicted(model, tokens)
    with kpatch.record(model, "**.input"), kpatch.intervene(model, "embed.output += 0; masked.input += 0"):
        assert same(predicted(model, tokens), before)
    assert not same(predicted(model, tokens + 1), before)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_cell_of_a_recurrent_layer(kind):
    """Also where a fused kernel would compute without the cell."""
    inputs, layer = keras.Input((5, 4)), getattr(keras.layers, kind)(3, name="layer")
    model = models.filled(keras.Model(inputs, layer(inputs)))
    x = np.ones((2, 5, 4), "float32")
    with kpatch.intervene(model, "layer.cell.output = 0"):
        assert (predicted(model, x) == 0).all()
    assert layer.use_cudnn == "auto"
    assert (predicted(model, x) != 0).any()


# Nothing silent -------------------------------------------------------------------------------------------------------


def test_what_is_not_computed():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3, name="mha")(inputs, inputs))
    text = "mha._softmax.output = 0"
    with pytest.raises(kpatch.ResolutionError) as caught, kpatch.intervene(model, text):
        model.predict(np.ones((2, 5, 4)), verbose=0)
    assert str(caught.value) == (
        "'mha._softmax.output' was not computed in the block, though the model ran, so nothing was edited\n"
        "  line 1, column 1\n    mha._softmax.output = 0\n    ^^^^^^^^^^^^^^^^^^^\n"
        "  fused attention calls no softmax; 'mha.scores' is what it gives, and has the layer compute it"
    )
    assert unpatched(model)
    with pytest.warns(RuntimeWarning, match="none of its layers was called"), kpatch.intervene(model, text):
        pass  # the model does not run
    with kpatch.intervene(model, "mha.*.output *= 1"):
        model.predict(np.ones((2, 5, 4)), verbose=0)  # of a glob, those that are computed
    block = kpatch.intervene(model, text).start()
    model(np.ones((2, 5, 4)))
    block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # an exception of the block comes first


@pytest.mark.parametrize("earlier", [True, False], ids=["compiled before", "compiled in the block"])
def test_models_around_and_beside(dense, earlier):
    features = keras.Model(dense.inputs, dense.get_layer("dense_1").output)
    outer = keras.Sequential([keras.Input((4,)), dense])
    if earlier:
        before = predicted(features), predicted(outer)
    with kpatch.intervene(dense, "dense_1.output[:, 1] = 7"):
        assert (predicted(features)[:, 1] == 7).all()
        inside = predicted(outer)
    assert (predicted(features)[:, 1] != 7).any()
    assert not same(predicted(outer), inside)
    if earlier:
        assert same(predicted(features), before[0])
        assert same(predicted(outer), before[1])


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["__call__", "predict"])
def test_a_variable_is_read_when_the_layer_runs(dense, route):
    v = keras.Variable(np.array([1.0, 2.0]))
    with kpatch.intervene(dense, "dense_2.output = $v", v=v):
        assert keras.ops.convert_to_numpy(getattr(dense, route)(X)).tolist() == [[1, 2]] * 3
        v.assign([3.0, 4.0])
        assert keras.ops.convert_to_numpy(getattr(dense, route)(X)).tolist() == [[3, 4]] * 3


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", ["array", "tensor", "variable"])
def test_values_take_the_dtype_of_the_layer(dtype, kind):
    model, v = models.dense(dtype), np.array([0.1, 0.2], "float32")
    given = {"array": v, "tensor": keras.ops.convert_to_tensor(v), "variable": keras.Variable(v)}[kind]
    with kpatch.intervene(model, "dense_2.output = $v", v=given):
        got = model(X)
    cast = keras.ops.cast(keras.ops.convert_to_tensor(v), dtype.removeprefix("mixed_"))
    assert keras.ops.dtype(got) == dtype.removeprefix("mixed_")
    assert np.array_equal(np.array(keras.ops.convert_to_numpy(got))[0], keras.ops.convert_to_numpy(cast))


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy has no gradients")
def test_gradients_with_respect_to_a_binding(dense):
    kernel, bias = (keras.ops.convert_to_numpy(v) for v in dense.get_layer("dense_2").weights)
    hidden = np.array(keras.ops.convert_to_numpy(dense.get_layer("dense_1")(X)))

    def loss(v):
        with kpatch.intervene(dense, "dense_1.output += $v", v=v):
            return keras.ops.sum(dense(X) ** 2)

    got = models.gradient(loss, keras.ops.zeros((3,)))
    np.testing.assert_allclose(got, (2 * (hidden @ kernel + bias) @ kernel.T).sum(0), rtol=1e-4)


def test_started_and_released(dense):
    before = called(dense)
    steering = kpatch.intervene(dense, "dense_2.output = 0; dense_2.bias = 1").start()
    assert (called(dense) == 0).all()
    steering.release()
    steering.release()  # once more, which changes nothing
    assert same(called(dense), before)
    assert unpatched(dense)


# The beginning --------------------------------------------------------------------------------------------------------


def test_a_patch_is_checked_by_the_call(dense):
    with pytest.raises(kpatch.PatchSyntaxError) as caught:
        kpatch.intervene(dense, "nonsense (((")
    assert str(caught.value) == (
        "a call cannot be assigned to; an index stands in square brackets, as in 'x[0, 0] = 1'\n"
        "  line 1, column 10\n    nonsense (((\n             ^"
    )
    for text, error in [
        ("dense_1.outptu = 0", kpatch.ResolutionError),
        ("dense_1.output = 0; dense_1.bias[9] = 1", kpatch.SubscriptError),
        ("dense_1.output = $v", kpatch.BindingError),
        ("assert shape(dense_1.bias) == [4]; dense_1.output = 0", kpatch.PatchAssertionError),
        ("dense_1.bias = mean(dense_1.output)", kpatch.UnsupportedError),
    ]:
        with pytest.raises(error):
            kpatch.intervene(dense, text)


def test_without_a_block(dense):
    before = models.snapshot(dense)
    with pytest.warns(RuntimeWarning) as caught:
        kpatch.intervene(dense, "dense_1.output = 0; dense_1.bias = 3")
    assert [str(each.message) for each in caught] == [
        "kpatch.intervene(model, 'dense_1.outp...se_1.bias = 3') had no 'with' block, so it had no effect"
    ]
    assert caught[0].filename == __file__
    assert unpatched(dense)
    assert models.snapshot(dense) == before


def test_entered_by_hand_and_dropped(dense):
    before = models.snapshot(dense)
    with kpatch.intervene(dense, "dense_1.bias[0] = 3"):
        with pytest.warns(RuntimeWarning) as caught:
            kpatch.intervene(dense, "dense_1.output = 0; dense_1.bias = 4").__enter__()
        assert dense.get_weights()[1][0] == 3
        assert dense.get_weights()[1][1] != 4
    assert [str(each.message) for each in caught if each.category is RuntimeWarning] == [
        "kpatch.intervene(model, 'dense_1.outp...se_1.bias = 4') was not left by its block; it ends now"
    ]
    assert unpatched(dense)
    assert models.snapshot(dense) == before


def test_one_intervention_has_several_blocks_in_turn(dense):
    block = kpatch.intervene(dense, "dense_1.output[:, 0] = 5; dense_1.bias = 1")
    assert repr(block) == "<Intervention in dense_1.output, dense_1.bias: begins with a 'with' block>"
    for _ in range(2):
        with block as entered:
            assert entered is block
            assert repr(block) == "<Intervention in dense_1.output, dense_1.bias: under way>"
            assert (keras.ops.convert_to_numpy(dense.get_layer("dense_1")(X))[:, 0] == 5).all()
            with pytest.raises(kpatch.UnsupportedError) as caught:
                block.__enter__()
            assert str(caught.value) == (
                "the block of this intervention is under way; kpatch.intervene makes another one"
            )
        block.__exit__(None, None, None)  # once more, which changes nothing
        assert unpatched(dense)


def test_an_intervention_shows_some_of_what_it_edits():
    layers = [keras.layers.Dense(2, name=f"d{number}") for number in range(9)]
    block = kpatch.intervene(keras.Sequential([keras.Input((2,)), *layers]), "d0.output = 0; d*.bias = 0")
    shown = ", ".join(f"d{number}.bias" for number in range(7))
    assert repr(block) == f"<Intervention in d0.output, {shown}, 2 more: begins with a 'with' block>"
    block.dismiss()


def test_an_error_of_the_end_names_the_one_of_the_block(dense, monkeypatch):
    def fail(self):
        raise kpatch.ExecutionError("the backend failed")

    monkeypatch.setattr(kpatch.AppliedPatch, "_withdraw", fail)
    block = kpatch.intervene(dense, "dense_1.output = 0; dense_1.bias *= 1")
    with pytest.raises(kpatch.ExecutionError) as caught, block:
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert unpatched(dense)


def test_a_model_that_changes_before_the_block(dense):
    block = kpatch.intervene(dense, "dense_2.output[..., -1] = 9; dense_2.bias = 1")
    dense.pop()
    dense.add(keras.layers.Dense(3, name="dense_2"))
    with block:
        assert (predicted(dense)[:, 2] == 9).all()
        assert dense.get_weights()[3].tolist() == [1, 1, 1]
    dense.pop()
    with pytest.raises(kpatch.ResolutionError, match=r"no activation 'dense_2.output'"):
        block.__enter__()
    assert unpatched(dense)
