"""`slots="reset"`: what an optimizer remembers of the entries written starts anew, and comes back with `undo`."""

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.errors import BindingError, ExecutionError, PatchError, UnsupportedError
from kpatch.names.index import index
from kpatch.values.tensors import to_numpy

layers, optimizers = keras.layers, keras.optimizers
trains = pytest.mark.skipif(keras.backend.backend() == "numpy", reason="Keras cannot train on numpy")


def trained(optimizer):
    """A model whose optimizer remembers something of each entry."""
    model = models.normalised()
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    for number, entry in enumerate(index(model).optimizer_entries()):
        if entry.of is not None:
            size = int(np.prod(entry.shape))
            entry.variable.assign(np.arange(10 * number + 1, 10 * number + 1 + size).reshape(entry.shape))
    return model


def memory(model):
    return {entry.path: to_numpy(entry.variable).copy() for entry in index(model).optimizer_entries()}


def bits(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [to_numpy(variable).tobytes() for variable in variables]


START = {  # what the slots of each optimizer start from; `None`: the value of the variable
    "SGD": (lambda: optimizers.SGD(momentum=0.9, gradient_accumulation_steps=2), {"momentum": 0}),
    "Adam": (lambda: optimizers.Adam(amsgrad=True, use_ema=True), {"average": None, "velocity_hat": 0}),
    "Adagrad": (lambda: optimizers.Adagrad(initial_accumulator_value=0.25), {"accumulator": 0.25}),
    "Ftrl": (lambda: optimizers.Ftrl(initial_accumulator_value=0.5), {"accumulator": 0.5, "linear": 0}),
    "LossScaleOptimizer": (lambda: optimizers.LossScaleOptimizer(optimizers.Adam()), {"momentum": 0, "velocity": 0}),
    "ScheduleFreeAdamW": (lambda: optimizers.ScheduleFreeAdamW(), {"momentum": None, "velocity": 0}),
    "Muon": (lambda: optimizers.Muon(), {"momentum": 0}),
}
PATCHES = {
    "one entry": ("a.kernel[1, 2] = 7", lambda w: [(1, 2)]),
    "a row, and one entry of it": ("a.kernel[1] = 7; a.kernel[1, 0] = 8", lambda w: [(1, slice(None))]),
    "positions, one of them twice": ("a.kernel[[0, 3, 0], [1, 1, 1]] = [1, 2, 3]", lambda w: [(0, 1), (3, 1)]),
    "a mask": ("a.kernel[_ > 0] *= 0.5", lambda w: [w > 0]),
    "a mask of most": ("a.kernel[_ > -100] = 7", lambda w: [w > -100]),
    "nothing": ("a.kernel[_ > 100] = 7; a.kernel[5:] = 1", lambda w: []),
    "many entries, one by one": ("\n".join(f"a.kernel[{i}, 0] = {i}" for i in range(4)), lambda w: [(slice(4), 0)]),
}


@pytest.mark.parametrize("kind", START)
@pytest.mark.parametrize("patch", PATCHES)
def test_the_slots_of_exactly_the_entries_written(kind, patch):
    make, starts = START[kind]
    text, entries = PATCHES[patch]
    model = trained(make())
    before, first = memory(model), bits(model)
    places = entries(to_numpy(model.get_layer("a").kernel).copy())
    with kpatch.apply(model, text, slots="reset"):
        weight, after = to_numpy(model.get_layer("a").kernel), memory(model)
        for path, old in before.items():
            expected = old.copy()
            if path.endswith(".a.kernel"):
                start = starts.get(path.split(".")[1], 0)
                for place in places:
                    expected[place] = weight[place] if start is None else start
            np.testing.assert_array_equal(after[path], expected, path)
    assert bits(model) == first


def test_undo_false_resets_too():
    model = trained(optimizers.Adam())
    kpatch.apply(model, "a.bias[0] = 7; assert a.bias[0] == 7; a.kernel[_ > -100] = 0", slots="reset", undo=False)
    after = memory(model)
    assert after["optimizer.momentum.a.bias"][0] == 0 != after["optimizer.momentum.a.bias"][1]
    assert not after["optimizer.velocity.a.kernel"].any()


@pytest.mark.backend_free
def test_writes_tell_the_slots():
    model = trained(optimizers.SGD(momentum=0.9))
    first, second = kpatch.apply([model], "a.bias[1] = 7", slots="reset").writes
    assert (first.path, second.path) == ("[0].a.bias", "[0].optimizer.momentum.a.bias")
    assert second.statement == "a.bias[1] = 7"
    assert second.after.tolist() == [0] != second.before.tolist()


@pytest.mark.backend_free
def test_weights_that_are_not_trained_have_no_slots():
    model = trained(optimizers.Adam())
    before = memory(model)
    kpatch.apply(model, "norm.moving_mean = 1; optimizer.iterations = 5", slots="reset")
    changed = [path for path, value in memory(model).items() if not np.array_equal(before[path], value)]
    assert changed == ["optimizer.iterations"]


@pytest.mark.backend_free
def test_an_optimizer_that_is_not_built_remembers_nothing():
    model = models.normalised()
    model.compile(optimizers.Adam())
    kpatch.apply(model, "a.bias = 1", slots="reset").undo()


@pytest.mark.backend_free
def test_adafactor_resets_whole_variables_alone():
    model = trained(optimizers.Adafactor())
    first = bits(model)
    with pytest.raises(UnsupportedError) as info:
        kpatch.apply(model, "a.bias = 1; a.kernel[0] = 1", slots="reset")
    assert str(info.value) == (
        "slots: 'optimizer.r.a.kernel' (4,) has no entries of their own for the 3 of 12 that are written\n"
        "  it is reset if all entries of the variable are written"
    )
    with pytest.raises(UnsupportedError):
        kpatch.apply(model, "a.bias = 1; a.kernel[0] = 1", slots="reset", undo=False)
    assert bits(model) == first
    with kpatch.apply(model, "a.bias[0] = 1; a.kernel[0] = 1; a.kernel[1:] = 1", slots="reset"):
        after = memory(model)
        assert after["optimizer.velocity.a.bias"][0] == 0 != after["optimizer.velocity.a.bias"][1]
        assert not any(after[f"optimizer.{slot}.a.kernel"].any() for slot in ("r", "c", "velocity"))
        assert after["optimizer.r.b.kernel"].all()
    assert bits(model) == first


class Odd(optimizers.SGD):
    """An optimizer that its configuration does not make."""

    def __init__(self, needed):
        super().__init__(0.1, momentum=0.9)


@pytest.mark.backend_free
def test_errors():
    model = models.normalised()
    none = "slots='reset' is about the optimizer of a compiled model, and there is none"
    for target, patch in ((model, "a.bias = 1"), (model.get_layer("a").bias, "_ = 1")):
        with pytest.raises(BindingError, match=none):
            kpatch.apply(target, patch, slots="reset")
    with pytest.raises(BindingError) as info:
        kpatch.apply(model, "a.bias = 1", slots=3)
    assert str(info.value) == "slots is 'keep', 'reset' or an optimizer. Received: slots=3"
    assert not to_numpy(model.get_layer("a").bias).any()
    model = trained(Odd(1))
    first = bits(model)
    with pytest.raises(PatchError, match="no new Odd can be made to see what its slots start from"):
        kpatch.apply(model, "a.bias = 1", slots="reset")
    assert bits(model) == first


@pytest.mark.backend_free
def test_a_failure_while_slots_are_reset_restores_all(monkeypatch):
    model = trained(optimizers.Adam())
    first = bits(model)
    from kpatch.run.live import Live

    real, calls = Live.reset, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no memory")
        real(self, *args)

    monkeypatch.setattr(Live, "reset", failing)
    for undo in (True, False):
        calls.clear()
        with pytest.raises(ExecutionError):
            kpatch.apply(model, "a.bias = 1", slots="reset", undo=undo)
        assert bits(model) == first


@trains
def test_in_a_loop_of_ones_own():
    """An optimizer that the model does not know, as dead neurons are made anew: nothing pulls them back."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a")])
    optimizer = optimizers.SGD(0.1, momentum=0.9)
    kernel = model.get_layer("a").kernel
    gradients = [np.ones((4, 3), "float32"), np.ones(3, "float32")]
    zeros = [np.zeros_like(each) for each in gradients]
    optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients], model.trainable_variables)
    kpatch.apply(model, "a.kernel[:, 0] = 5", slots=optimizer)
    optimizer.apply([keras.ops.convert_to_tensor(each) for each in zeros], model.trainable_variables)
    assert (to_numpy(kernel)[:, 0] == 5).all()
    before = to_numpy(kernel)[:, 1].copy()
    optimizer.apply([keras.ops.convert_to_tensor(each) for each in zeros], model.trainable_variables)
    assert (to_numpy(kernel)[:, 1] != before).all()


@trains
def test_in_a_callback_of_fit():
    model = models.normalised()
    model.compile(optimizers.Adam(0.1), "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    seen = []

    class Edit(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            applied = kpatch.apply(self.model, "b.bias[0] = 3", slots="reset")
            seen.extend(write.after[0] for write in applied.writes)
            applied.undo()

    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Edit()])
    assert seen == [3, 0, 0]
    assert memory(model)["optimizer.velocity.b.bias"].all()
