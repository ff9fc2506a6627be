"""Entries held through training, with every optimizer, on the backend of this process; and callbacks."""

import functools

import keras
import models
import numpy as np
import pytest
from keras import ops

import kpatch
from kpatch.callbacks import PatchCallback
from kpatch.constraints import PatchConstraint
from kpatch.values.tensors import to_numpy

pytestmark = pytest.mark.usefixtures("programs")
BACKEND = keras.backend.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 6)).astype("float32"), RNG.normal(size=(24, 2)).astype("float32")
MASK = RNG.random((6, 5)) < 0.3
PATCH = "a.kernel[$mask] = _; b.kernel[0, 0] = 1.1; b.bias = 0.3; norm.gamma[1] = 0.7"
OPTIMIZERS = (
    "SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion", "Lamb", "Adafactor",
    "Muon", "ScheduleFreeAdamW",
)  # fmt: skip
EMA = {"use_ema": True, "ema_momentum": 0.9}
OPTIONS = {
    "plain": {},
    "ema": EMA,
    "overwrite": {**EMA, "ema_overwrite_frequency": 2, "weight_decay": 0.1, "global_clipnorm": 1.0},
    "accumulation": {**EMA, "gradient_accumulation_steps": 2},
}


def network(dtype=None):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(5, name="a", kernel_constraint="max_norm", dtype=dtype),
        keras.layers.BatchNormalization(name="norm", dtype=dtype),
        keras.layers.Dense(2, name="b", dtype=dtype),
    ]
    return keras.Sequential([keras.Input((6,)), *layers])


def check_held(model, before):
    kernel = to_numpy(model.get_layer("a").kernel.value)
    assert kernel[MASK].tobytes() == before[MASK].tobytes()
    assert (kernel[~MASK] != before[~MASK]).any()
    assert to_numpy(model.get_layer("b").kernel.value)[0, 0] == np.float32(1.1)
    assert (to_numpy(model.get_layer("b").bias.value) == np.float32(0.3)).all()
    assert to_numpy(model.get_layer("norm").gamma.value)[1] == np.float32(0.7)


def trained(optimizer, dtype=None, **options):
    model = network(dtype)
    model.compile(optimizer, "mse", **options)
    hold = kpatch.hold(model, PATCH, mask=MASK)
    before = np.array(to_numpy(model.get_layer("a").kernel.value))
    model.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    check_held(model, before)
    return model, hold, before


@trains
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name):
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    trained(getattr(keras.optimizers, name)(0.01, **momentum, **OPTIONS["overwrite"]))


@trains
@pytest.mark.parametrize("options", OPTIONS)
def test_moving_averages_decay_clipping_and_accumulation(options):
    trained(keras.optimizers.AdamW(0.01, **OPTIONS[options]))


@trains
def test_compiled(monkeypatch):
    """By XLA; on torch by `torch.compile`, of which Keras's overwriting of weights by averages makes small pieces."""
    if BACKEND == "torch":
        import torch

        # the last of its stages, which makes C++, takes half the time and changes nothing of what is held
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    trained(keras.optimizers.AdamW(0.01, **OPTIONS["ema" if BACKEND == "torch" else "overwrite"]), jit_compile=True)


@trains
def test_mixed_precision_with_loss_scaling():
    inner = keras.optimizers.Adam(**EMA, ema_overwrite_frequency=2)
    trained(keras.optimizers.LossScaleOptimizer(inner), dtype="mixed_float16")


@trains
def test_after_saving_and_loading(tmp_path):
    model, _, before = trained(keras.optimizers.AdamW(0.01, **OPTIONS["overwrite"]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    check_held(loaded, before)


@trains
def test_every_bit():
    model = network()
    model.compile("sgd", "mse")
    kpatch.apply(model, "a.bias = [0.0, -0.0, nan, inf, 1e-42]")
    before = to_numpy(model.get_layer("a").bias.value)[:2].tobytes()
    kpatch.hold(model, "a.bias[:2] = _")
    model.fit(X, Y, verbose=0)
    assert to_numpy(model.get_layer("a").bias.value)[:2].tobytes() == before


@trains
def test_every_bit_of_bfloat16():
    model = network("bfloat16")
    model.compile("sgd", "mse")
    kpatch.apply(model, "a.kernel[0] = [0.0, -0.0, 0.1, inf, 1e-39]")
    before = to_numpy(model.get_layer("a").kernel.value)[0].tobytes()
    kpatch.hold(model, "a.kernel[0] = _")
    model.fit(X, Y, verbose=0)
    assert to_numpy(model.get_layer("a").kernel.value)[0].tobytes() == before


@trains
@pytest.mark.parametrize("least", [0.1, 0.9])
def test_few_entries_and_most(least):
    model = network()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    mask = np.random.default_rng(2).random((6, 5)) < least
    before = np.array(to_numpy(model.get_layer("a").kernel.value))
    kpatch.hold(model, "a.kernel[$mask] = _", mask=mask)
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(to_numpy(model.get_layer("a").kernel.value) == before, mask)


def test_a_constraint_that_is_asked_changes_nothing():
    """Only the optimizer, which assigns what it is given, may have the variable written in place."""
    model = network()
    kernel = model.get_layer("a").kernel
    kpatch.hold(model, "a.kernel[0] = 7")
    kernel.assign(ops.ones((6, 5)))
    assert (to_numpy(kernel.constraint(kernel))[0] == 7).all()
    assert (to_numpy(kernel.value) == 1).all()


@pytest.mark.skipif(BACKEND not in ("jax", "torch"), reason="the other backends have no stateless steps")
def test_a_stateless_step_changes_nothing():
    model = network()
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    kpatch.hold(model, "a.kernel[0] = 7")
    place = [v is model.get_layer("a").kernel for v in model.trainable_variables].index(True)
    values = [ops.copy(v.value) for v in model.trainable_variables]
    gradients = [ops.ones_like(value) for value in values]
    before = models.snapshot(model)
    new, _ = optimizer.stateless_apply([v.value for v in optimizer.variables], gradients, values)
    assert (to_numpy(new[place])[0] == 7).all()
    assert (to_numpy(new[place])[1:] != to_numpy(values[place])[1:]).all()
    assert models.snapshot(model) == before


@trains
def test_release():
    model, hold, before = trained(keras.optimizers.Adam(0.01))
    hold.release()
    assert isinstance(model.get_layer("a").kernel.constraint, keras.constraints.MaxNorm)
    assert model.get_layer("b").kernel_constraint is None
    model.fit(X, Y, epochs=1, batch_size=8, verbose=0)
    assert (to_numpy(model.get_layer("a").kernel.value)[MASK] != before[MASK]).any()


def test_a_patch_that_cannot_be_held_changes_nothing():
    model = network()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    before = models.snapshot(model)
    with pytest.raises(kpatch.UnsupportedError) as caught:
        kpatch.hold(model, "b.bias = 1; optimizer.momentum.b.bias[0] = 0")
    assert str(caught.value) == (
        "'optimizer.momentum.b.bias' is not trained, so there is nothing to hold it against\n"
        "  line 1, column 13\n"
        "    b.bias = 1; optimizer.momentum.b.bias[0] = 0\n"
        "                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^"
    )
    assert models.snapshot(model) == before
    assert model.get_layer("b").bias.constraint is None


def test_a_frozen_variable_waits():
    """Of a glob, too; it is held when it is trained again."""
    model = network()
    model.get_layer("a").trainable = False
    held = kpatch.hold(model, "(a|b).kernel[0, 0] = 0.5")
    assert repr(held) == "<Hold of 1 entry of a.kernel (frozen now), 1 entry of b.kernel>"
    model.get_layer("a").trainable = True
    assert repr(held) == "<Hold of 1 entry of a.kernel, 1 entry of b.kernel>"
    if BACKEND != "numpy":
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.fit(X, Y, verbose=0)
        assert [to_numpy(model.get_layer(name).kernel.value)[0, 0] for name in "ab"] == [0.5, 0.5]
    held.release()
    assert model.get_layer("b").kernel.constraint is None


@pytest.mark.parametrize("released", [0, 1])
def test_moving_statistics(released):
    model = network()
    norm = model.get_layer("norm")
    holds = [
        kpatch.hold(model, "norm.moving_mean[:2] = [0.5, -0.0]"),
        kpatch.hold(model, "norm.moving_mean[1:3] = [7, 8]; norm.moving_variance[0] = 3"),
    ]

    def run():
        model(X, training=True)
        if BACKEND != "numpy":
            model.compile(keras.optimizers.Adam(0.1), "mse")
            model.fit(X, Y, verbose=0)
        return to_numpy(norm.moving_mean.value).tolist(), to_numpy(norm.moving_variance.value)[0]

    mean, variance = run()
    assert [*mean[:3], variance] == [0.5, 7, 8, 3]
    assert not set(mean[3:]) & {0.0}
    holds[released].release()
    mean, variance = run()
    held = [mean[0] == 0.5, mean[1] == 7, mean[2] == 8, variance == 3]
    assert held == ([False, True, True, True] if released == 0 else [True, False, False, False])
    assert released == 0 or str(mean[1]) == "-0.0"
    holds[1 - released].release()
    assert "assign" not in vars(norm.moving_mean)
    run()
    assert to_numpy(norm.moving_mean.value)[0] != 0.5


@pytest.mark.skipif(BACKEND != "torch", reason="only torch has optimizers of its own")
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_the_optimizers_of_torch(name):
    import torch

    model = network()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    others = getattr(torch.optim, name)(network().parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        (model(torch.from_numpy(X), training=True) ** 2).sum().backward()
        optimizer.step()
        others.step()
        return to_numpy(model.get_layer("b").kernel.value)[0].tolist()

    with kpatch.hold(model, "b.kernel[0] = [1, 2]") as one, kpatch.hold(model, "b.kernel[0, 0] = 3"):
        assert step() == [3, 2]
        one.release()
        first, second = step()
        assert first == 3
        assert second != 2
    assert step()[0] != 3


def test_as_a_context():
    model = models.dense()
    with kpatch.hold(model, "**.kernel[0] = 0") as hold:
        assert repr(hold) == "<Hold of 3 entries of dense_1.kernel, 2 entries of dense_2.kernel>"
        assert isinstance(model.get_layer("dense_1").kernel.constraint, PatchConstraint)
    assert model.get_layer("dense_1").kernel.constraint is None
    assert repr(hold) == "<Hold, released>"


# Several holds --------------------------------------------------------------------------------------------------------


def constrained(model):
    """What the constraint of the kernel makes of a tensor, and what the configuration's makes of it."""
    x = np.linspace(-3, 3, 30, dtype="float32").reshape(6, 5)
    layer = model.get_layer("a")
    return [to_numpy(each(ops.convert_to_tensor(x))) for each in (layer.kernel.constraint, layer.kernel_constraint)]


@pytest.mark.parametrize("seed", range(5))  # each trains a model
def test_holds_of_one_variable_are_released_in_any_order(seed):
    """Of the entries that several hold, the latest hold decides; what none holds is the other constraint's."""
    dice = np.random.default_rng(seed)
    model = network()
    own = model.get_layer("a").kernel.constraint
    [free, _] = constrained(model)
    holds, left = [], list(range(6))
    while holds or left:
        if left and (not holds or dice.random() < 0.6):
            value, mask = left.pop(0), dice.random((6, 5)) < 0.4
            patch = (
                "a.kernel[$mask] = $value" if value % 2 else "a.kernel[$mask] = $value + arange(count_nonzero($mask))"
            )
            held = np.zeros((6, 5), "float32")
            held[mask] = value + (0 if value % 2 else np.arange(mask.sum()))
            holds.append((mask, held, kpatch.hold(model, patch, mask=mask, value=value)))
        else:
            hold = holds.pop(dice.integers(len(holds)))[2]
            hold.release()
            hold.release()  # once more, which changes nothing
        expected = free.copy()
        for mask, held, _ in holds:
            expected[mask] = held[mask]
        for got in constrained(model):
            np.testing.assert_array_equal(got, expected)
    assert model.get_layer("a").kernel.constraint is own
    assert model.get_layer("a").kernel_constraint is own


@trains
@pytest.mark.parametrize("first", [0, 1])
def test_the_hold_that_is_left_goes_on(first):
    model = network()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    holds = [kpatch.hold(model, "a.kernel[0] = 0.5"), kpatch.hold(model, "a.kernel[1] = 0.25; b.bias[0] = 0.25")]
    model.fit(X, Y, verbose=0)
    holds[first].release()
    model.fit(X, Y, verbose=0)
    kernel = to_numpy(model.get_layer("a").kernel.value)
    assert [(kernel[0] == 0.5).all(), (kernel[1] == 0.25).all()] == [first == 1, first == 0]
    holds[1 - first].release()
    model.fit(X, Y, verbose=0)
    kernel = to_numpy(model.get_layer("a").kernel.value)
    assert (kernel[0] != 0.5).any()
    assert (kernel[1] != 0.25).any()
    assert model.get_layer("b").bias.constraint is None


def test_holds_are_saved_and_loaded_one_on_top_of_the_other(tmp_path):
    model = network()
    hold = kpatch.hold(model, "a.kernel[0] = 5")
    kpatch.hold(model, "a.kernel[1] = 6")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    hold.release()
    with kpatch.hold(loaded, "a.kernel[2] = 7"):
        [got, _] = constrained(loaded)
        assert [(got[row] == value).all() for row, value in enumerate((5, 6, 7))] == [True, True, True]
    [got, _] = constrained(loaded)
    assert [(got[row] == value).all() for row, value in enumerate((5, 6, 7))] == [True, True, False]
    [got, _] = constrained(model)
    assert [(got[row] == value).all() for row, value in enumerate((5, 6, 7))] == [False, True, False]


def test_a_constraint_that_somebody_puts_on_top_stays():
    model = network()
    kernel = model.get_layer("a").kernel
    own = kernel.constraint
    hold = kpatch.hold(model, "a.kernel[0] = 5")
    kernel.constraint = above = PatchConstraint("_[1] = 6", base=kernel.constraint)
    hold.release()
    assert kernel.constraint is above
    assert above.base is own


def test_a_hold_that_fails_halfway_changes_nothing(monkeypatch):
    model = network()
    before, own = models.snapshot(model), model.get_layer("a").kernel.constraint
    put = PatchConstraint.on

    def fail(self, base):
        if base is not own:
            raise MemoryError
        return put(self, base)

    monkeypatch.setattr(PatchConstraint, "on", fail)
    with pytest.raises(MemoryError):
        kpatch.hold(model, "a.kernel[0] = 5; b.kernel[0] = 6")
    assert model.get_layer("a").kernel.constraint is own
    assert model.get_layer("a").kernel_constraint is own
    assert models.snapshot(model) == before


@trains
def test_a_hold_of_a_layer_reaches_every_model_that_trains_it():
    inner = network()
    outer = keras.Sequential([keras.Input((6,)), inner])
    for model in (inner, outer):
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.fit(X, Y, verbose=0)
    with kpatch.hold(inner.get_layer("a"), "kernel[0] = 0.5"):
        for model in (inner, outer):
            model.fit(X, Y, verbose=0)
            assert (to_numpy(inner.get_layer("a").kernel.value)[0] == 0.5).all()
    outer.fit(X, Y, verbose=0)
    assert (to_numpy(inner.get_layer("a").kernel.value)[0] != 0.5).any()


@trains
def test_a_constraint_in_a_layer():
    layer = keras.layers.Dense(2, kernel_constraint=PatchConstraint("_[abs(_) < 0.5] = 0", base="non_neg"))
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(0.05, **EMA), "mse")
    model.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    kernel = layer.get_weights()[0]
    assert ((kernel == 0) | (kernel >= 0.5)).all()


# Callbacks ------------------------------------------------------------------------------------------------------------


@trains
def test_callback_by_epoch():
    model = network()
    model.compile("sgd", "mse")
    logs = model.fit(X, Y, epochs=3, verbose=0, callbacks=[PatchCallback({1: "a.kernel[0] = 5", 2: "b.bias = 2"})])
    assert logs.history["patched_entries"] == [0, 5, 2]
    assert (to_numpy(model.get_layer("b").bias.value) == 2).all()
    assert (to_numpy(model.get_layer("a").kernel.value)[0] > 1).all()


@trains
def test_callback_by_step_resets_slots():
    model = network()
    model.compile(keras.optimizers.Adam(0.01, use_ema=True), "mse")
    callback = PatchCallback({2: "b.bias[0] = $v"}, on="batch_end", slots="reset", bindings={"v": 3.0})
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                optimizer = self.model.optimizer
                place = optimizer._get_variable_index(self.model.get_layer("b").bias)
                kept = (optimizer._momentums, optimizer._velocities, optimizer._model_variables_moving_average)
                seen.extend(to_numpy(slots[place].value).tolist() for slots in kept)

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[callback, Look()])
    momentum, velocity, average = seen
    assert momentum[0] == 0 != momentum[1]
    assert velocity[0] == 0 != velocity[1]
    assert average[0] == 3


@trains
def test_holds_and_blocks_begin_and_end_while_fit_runs():
    """The step that is compiled is made anew at once, since `fit` looks for it at each step."""
    model = network()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    rows, losses = [], []

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.block = (
                kpatch.intervene(self.model, "b.output[:, 0] = 1000 + 0 * _").__enter__() if epoch == 1 else None
            )
            if epoch == 2:
                self.hold = kpatch.hold(self.model, "a.kernel[0] = 0.5")

        def on_epoch_end(self, epoch, logs=None):
            losses.append(logs["loss"])
            if self.block is not None:
                self.block.__exit__(None, None, None)
            with kpatch.apply(self.model, "a.bias = 0"):  # which brings the weights back into the variables
                rows.append(to_numpy(self.model.get_layer("a").kernel.value)[0].copy())
            if epoch == 2:
                self.hold.release()

    model.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[Change()])
    assert [loss > 1000 for loss in losses] == [False, True, False, False]
    assert [bool((row == 0.5).all()) for row in rows] == [False, False, True, False]


def test_a_released_hold_stands_in_no_way_of_undo():
    """A hold that lasts does; and so do edits that were made in it, which are undone before."""
    model = models.dense()
    before = models.snapshot(model)
    first = kpatch.apply(model, "dense_1.kernel[0] = 1")
    held = kpatch.hold(model, "dense_1.kernel[0, :2] = 2; dense_1.bias = 3")
    assert raised(first.undo) == (
        "a later hold of 'dense_1.kernel' overlaps this edit; release that first\n"
        "  the later edit: dense_1.kernel[0, :2] = 2\n"
        "  this edit: dense_1.kernel[0] = 1"
    )
    later = kpatch.apply(model, "dense_1.kernel[0, 1] = 4")
    held.release()
    assert to_numpy(model.layers[0].kernel.value)[0].tolist() == [2, 4, 1]  # what was held stays
    assert raised(first.undo).startswith("a later edit of 'dense_1.kernel' overlaps this one; undo that first")
    later.undo()
    first.undo()
    assert models.snapshot(model)[0] == before[0]


@trains
def test_what_a_callback_has_held_stands_in_no_way_of_undo():
    model = network()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = models.snapshot(model)
    first = kpatch.apply(model, "a.kernel = 0.5")
    callback = PatchCallback("a.kernel[0] = $epoch", on="epoch_begin", hold=True)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    first.undo()
    assert models.snapshot(model)[0] == before[0]


@trains
def test_a_block_around_an_evaluation_while_fit_runs():
    model = network()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with kpatch.intervene(self.model, "b.output[:, 0] = 1000"):
                seen.append(self.model.evaluate(X, Y, verbose=0) > 1000)
            seen.append(self.model.evaluate(X, Y, verbose=0) > 1000)

    model.fit(X, Y, epochs=2, verbose=0, callbacks=[Look()])
    assert seen == [True, False, True, False]


def raised(function):
    with pytest.raises(kpatch.PatchError) as caught:
        function()
    return str(caught.value)


def test_callback_arguments():
    with pytest.raises(ValueError, match=r"Argument `on` must be one of .* Received: on='epoch'"):
        PatchCallback({}, on="epoch")
    with pytest.raises(kpatch.PatchSyntaxError):
        PatchCallback({0: "a ="})
    for every in (0, 1.5, -1):
        with pytest.raises(kpatch.BindingError) as caught:
            PatchCallback("a = 1", every=every)
        assert str(caught.value) == f"every= is 1 or more, for a patch that is given alone. Received: every={every}"
    with pytest.raises(kpatch.BindingError):
        PatchCallback({0: "a = 1"}, every=2)
