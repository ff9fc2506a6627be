"""`PatchCallback`: schedules, values that depend on the step, and entries that are held by and by."""

import itertools
import warnings

import keras
import models
import numpy as np
import pytest
from keras import ops

import kpatch
from kpatch.callbacks import PatchCallback

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 2)).astype("float32")
pytestmark = pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")


def fitted(callback, epochs=4, watch=None, initial_epoch=0, **compiled):
    """A model that has been trained with a callback, and the history."""
    model = models.dense()
    model.compile(keras.optimizers.Adam(0.05), "mse", **compiled)
    callbacks = [callback] if watch is None else [callback, watch]
    epochs = {"epochs": epochs, "initial_epoch": initial_epoch}
    history = model.fit(X, Y, batch_size=8, **epochs, verbose=0, callbacks=callbacks, shuffle=False)
    return model, history.history


def written(model, name="dense_1"):
    return ops.convert_to_numpy(model.get_layer(name).bias).tolist()


def test_every_epoch():
    _, history = fitted(PatchCallback("dense_1.bias[0] = 0"))
    assert history["patched_entries"] == [1, 1, 1, 1]


@pytest.mark.parametrize(("patches", "every"), [("dense_1.bias = 0", 2), ({range(0, 4, 2): "dense_1.bias = 0"}, 1)])
def test_some_epochs(patches, every):
    _, history = fitted(PatchCallback(patches, every=every))
    assert history["patched_entries"] == [3, 0, 3, 0]


@pytest.mark.parametrize("together", [1] if BACKEND == "torch" else [1, 3, 4])
def test_steps_are_counted_as_steps(together):
    """Also where several run together: 4 steps an epoch, of which the last one may run alone."""
    seen = []
    callback = PatchCallback("dense_1.bias = $see", on="batch_end", bindings={"see": lambda n: seen.append(n) or n})
    model, _ = fitted(callback, epochs=2, steps_per_execution=together)
    assert seen[0] == 0  # the check of the patch, before the first step
    assert seen[1:] == list(range(8))
    assert written(model) == [7, 7, 7]


def test_values_of_the_step():
    patch = "dense_1.bias = [$epoch, $step, $v]"
    rate = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)
    model, _ = fitted(PatchCallback(patch, bindings={"v": rate}))
    assert written(model) == [3, 16, 0.25]
    model, _ = fitted(PatchCallback(patch, on="batch_end", bindings={"v": np.sqrt, "epoch": 9}))
    assert written(model) == [9, 15, np.float32(np.sqrt(15))]


@pytest.mark.parametrize(
    ("patches", "on", "told"),
    [
        ({1: "dense_1.bias = 0", 7: "dense_1.bias = 1"}, "epoch_end", "epoch 7, but this fit ends with 3"),
        ({0: "dense_1.bias = 0"}, "epoch_begin", "epoch 0, but this fit begins with 1"),
        ({range(12, 20): "dense_1.bias = 0"}, "batch_end", "step 12, but this fit ends with 11"),
        ({range(9, -1, -9): "dense_1.bias = 0"}, "epoch_end", "epoch 9, but this fit ends with 3"),
        ({range(3, -1, -1): "dense_1.bias = 0", 11: "dense_1.bias = 0"}, "batch_end", None),
    ],
)
def test_a_number_that_is_not_reached(patches, on, told):
    """By epochs 1 to 3, of 4 steps each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(PatchCallback(patches, on), initial_epoch=1)
    given = [str(each.message) for each in caught if "PatchCallback" in str(each.message)]
    assert given == ([] if told is None else [f"a PatchCallback has a patch for {told}"])


def test_a_fit_that_goes_on():
    """Values are asked for from the first epoch on that it has."""
    callback = PatchCallback("dense_1.bias = $v", bindings={"v": lambda epoch: {2: 1.0, 3: 2.0}[epoch]})
    model, _ = fitted(callback, initial_epoch=2)
    assert written(model) == [2, 2, 2]


def test_gradual_pruning(monkeypatch):
    """More and more entries are zero, and stay so through all steps; the step is compiled once."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 3, 0.75, power=3)
    patch = "dense_1.kernel[abs(_) < quantile(abs(_), $share)] = 0"
    callback = PatchCallback(patch, on="epoch_begin", bindings={"share": schedule}, hold=True)
    zeros, kept, made = [], [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with kpatch.apply(self.model, "dense_2.bias = _"):  # which brings the weights back into the variables
                kernel = ops.convert_to_numpy(self.model.get_layer("dense_1").kernel)
            zeros.append(int((kernel == 0).sum()))
            assert repr(callback.held) == f"<Hold of {zeros[-1]} entries of dense_1.kernel>"
            if batch == 3:
                kept.append(kernel == 0)

        def on_epoch_begin(self, epoch, logs=None):
            made.append(self.model.train_function)

    model, _ = fitted(callback, watch=Watch())
    assert zeros == [0] * 4 + [zeros[4]] * 4 + [zeros[8]] * 4 + [9] * 4
    assert 0 < zeros[4] <= zeros[8] < 9
    assert all((later | earlier == later).all() for earlier, later in itertools.pairwise(kept))
    assert all(each is made[0] for each in made)
    assert model.get_layer("dense_1").kernel.constraint is None
    assert callback.held is None
    model.fit(X, Y, verbose=0)
    assert (ops.convert_to_numpy(model.get_layer("dense_1").kernel) != 0).all()


def test_what_is_held_is_saved(tmp_path):
    """By the configuration of the layers, as of any hold."""

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.save(tmp_path / "model.keras")

    fitted(PatchCallback("dense_1.kernel[0] = 0.5", on="epoch_begin", hold=True), epochs=1, watch=Save())
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    constraint = loaded.get_layer("dense_1").kernel.constraint
    got = ops.convert_to_numpy(constraint(ops.zeros((4, 3))))
    assert got.tolist() == [[0.5] * 3, *[[0.0] * 3] * 3]
