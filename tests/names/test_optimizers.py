"""The variables of a compiled model's optimizer by name, live and in a `.keras` file."""

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.errors import PatchError, ResolutionError, UndoError, UnsupportedError
from kpatch.names.index import index
from kpatch.values.tensors import to_numpy

layers, optimizers = keras.layers, keras.optimizers
trains = pytest.mark.skipif(keras.backend.backend() == "numpy", reason="Keras cannot train on numpy")


def compiled(optimizer, build=True):
    model = models.normalised()
    model.compile(optimizer, "mse")
    if build:
        model.optimizer.build(model.trainable_variables)
    return model


def failure(model, text, kind=ResolutionError):
    with pytest.raises(kind) as info:
        kpatch.plan(model, f"{text} = 0")
    return str(info.value)


def paths(model, text):
    return [row.path for row in kpatch.plan(model, f"{text} = 0").rows]


def numbered(model):
    """Gives each variable of the optimizer a value of its own."""
    for number, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(tuple(variable.shape), number))


def named(model):
    return index(model).optimizer_entries()


TRAINED = ("a.kernel", "a.bias", "norm.gamma", "norm.beta", "b.kernel", "b.bias")
ADAM = ("momentum", "velocity")
OPTIMIZERS = {
    "SGD": (lambda: optimizers.SGD(0.1), ()),
    "SGD with momentum": (lambda: optimizers.SGD(0.1, momentum=0.9), ("momentum",)),
    "Adam": (
        lambda: optimizers.Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
        ("average", "gradient_accumulator", *ADAM, "velocity_hat"),
    ),
    "RMSprop": (
        lambda: optimizers.RMSprop(momentum=0.9, centered=True),
        ("velocity", "momentum", "average_gradient"),
    ),
    "Adadelta": (lambda: optimizers.Adadelta(), ("accumulated_grad", "accumulated_delta_var")),
    "Adagrad": (lambda: optimizers.Adagrad(), ("accumulator",)),
    "Adamax": (lambda: optimizers.Adamax(), ("momentum", "norm")),
    "Ftrl": (lambda: optimizers.Ftrl(), ("accumulator", "linear")),
    "Lamb": (lambda: optimizers.Lamb(), ADAM),
    "Lion": (lambda: optimizers.Lion(), ("momentum",)),
    "Nadam": (lambda: optimizers.Nadam(), ADAM),
    "LossScaleOptimizer": (lambda: optimizers.LossScaleOptimizer(optimizers.Adam()), ADAM),
}
OWN = {"Nadam": ["u_product"], "LossScaleOptimizer": ["step_counter", "dynamic_scale"]}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_of_keras(kind, tmp_path):
    """Each name means one variable, the same one in the file; an edit of it reaches it, and undo restores the bits."""
    make, slots = OPTIMIZERS[kind]
    model = compiled(make())
    numbered(model)
    own = [f"optimizer.{name}" for name in ("iterations", "learning_rate", *OWN.get(kind, ()))]
    entries = named(model)
    assert [entry.path for entry in entries] == [*own, *(f"optimizer.{s}.{t}" for s in slots for t in TRAINED)]
    assert len({id(entry.variable) for entry in entries}) == len(entries)
    model.save(tmp_path / "model.keras")
    opened = kpatch.checkpoint.open(tmp_path / "model.keras")
    for entry in entries:
        assert paths(model, entry.path) == [entry.path]
        np.testing.assert_array_equal(opened[entry.path], to_numpy(entry.variable))
    before = [to_numpy(variable).copy() for variable in model.optimizer.variables]
    with kpatch.apply(model, "optimizer.** = 77", expect=len(entries)) as applied:
        assert all((to_numpy(entry.variable) == 77).all() for entry in entries)
        assert [write.path for write in applied.writes] == [entry.path for entry in entries]
    for old, variable in zip(before, model.optimizer.variables, strict=True):
        assert old.tobytes() == to_numpy(variable).tobytes()
    kpatch.checkpoint.apply(opened, "optimizer.** = 77", tmp_path / "out.keras", expect=len(entries))
    loaded = keras.saving.load_model(tmp_path / "out.keras")
    assert all((to_numpy(entry.variable) == 77).all() for entry in named(loaded))
    assert [entry.path for entry in named(loaded)] == [entry.path for entry in entries]


def test_adafactor_has_names_for_rows_and_columns(tmp_path):
    model = compiled(optimizers.Adafactor())
    numbered(model)
    assert [(row.path, row.shape) for row in kpatch.plan(model, "optimizer.*.a.kernel = 0").rows] == [
        ("optimizer.r.a.kernel", (4,)),
        ("optimizer.c.a.kernel", (3,)),
        ("optimizer.velocity.a.kernel", (4, 3)),
    ]
    assert paths(model, "optimizer.*.a.bias") == ["optimizer.velocity.a.bias"]
    model.save(tmp_path / "model.keras")
    opened = kpatch.checkpoint.open(tmp_path / "model.keras")
    for entry in named(model):
        np.testing.assert_array_equal(opened[entry.path], to_numpy(entry.variable))


@pytest.mark.backend_free
def test_what_stands_after_the_slot_is_any_selector_of_variables():
    model = compiled(optimizers.Adam())
    assert paths(model, "optimizer.momentum.layers[0].kernel") == ["optimizer.momentum.a.kernel"]
    assert paths(model, "optimizer.momentum.dense_1.kernel") == ["optimizer.momentum.b.kernel"]
    assert paths(model, "optimizer.momentum.gamma") == ["optimizer.momentum.norm.gamma"]
    assert paths(model, "optimizer.*.a.bias") == ["optimizer.momentum.a.bias", "optimizer.velocity.a.bias"]
    assert paths(model, "optimizer.vel*.a.*") == ["optimizer.velocity.a.kernel", "optimizer.velocity.a.bias"]
    assert paths(model, "optimizer.velocity.norm.*") == [
        "optimizer.velocity.norm.gamma",
        "optimizer.velocity.norm.beta",
    ]
    assert paths(model, "optimizer.**.gamma") == ["optimizer.momentum.norm.gamma", "optimizer.velocity.norm.gamma"]
    assert paths(model, "optimizer.*") == ["optimizer.iterations", "optimizer.learning_rate"]
    assert paths({"m": model}, "m.optimizer.learning_rate") == ["m.optimizer.learning_rate"]
    assert paths([model], "optimizer.learning_rate") == ["[0].optimizer.learning_rate"]
    kpatch.apply(model, "optimizer.momentum.a.kernel[0] = 3; let m = max(optimizer.momentum.a.kernel); a.bias = m")
    assert to_numpy(model.get_layer("a").bias).tolist() == [3, 3, 3]


@pytest.mark.backend_free
def test_nothing_else_means_the_variables_of_an_optimizer():
    model = compiled(optimizers.Adam())
    assert len(paths(model, "**")) == len(model.weights)
    assert not [path for path in paths(model, "**.kernel") if path.startswith("optimizer")]
    for text in ("momentum.a.kernel", "learning_rate", "iterations", "*.momentum.a.kernel", "**.learning_rate"):
        failure(model, text)


@pytest.mark.backend_free
def test_what_is_really_called_so_comes_first():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="optimizer")])
    model.compile(optimizers.Adam())
    assert paths(model, "optimizer.kernel") == ["optimizer.kernel"]
    assert paths(model, "optimizer.learning_rate") == ["optimizer.learning_rate"]


@pytest.mark.backend_free
def test_errors():
    plain = models.normalised()
    assert failure(plain, "optimizer.learning_rate") == (
        "no variable 'optimizer.learning_rate': the model has no optimizer until it is compiled\n"
        "  line 1, column 1\n"
        "    optimizer.learning_rate = 0\n"
        "    ^^^^^^^^^^^^^^^^^^^^^^^"
    )
    model = compiled(optimizers.SGD(0.1, momentum=0.9), build=False)
    assert paths(model, "optimizer.learning_rate") == ["optimizer.learning_rate"]
    assert failure(model, "optimizer.momentum.a.kernel") == (
        "no variable 'optimizer.momentum.a.kernel': the optimizer has no slots until it is built, as its first step or "
        "its 'build' does\n"
        "  line 1, column 11\n"
        "    optimizer.momentum.a.kernel = 0\n"
        "              ^^^^^^^^\n"
        "  SGD has: iterations, learning_rate"
    )
    model.optimizer.build(model.trainable_variables)
    assert paths(model, "optimizer.momentum.a.kernel") == ["optimizer.momentum.a.kernel"]
    assert failure(model, "optimizer.momentums.a.kernel") == (
        "no variable 'optimizer.momentums.a.kernel'; did you mean 'optimizer.momentum.a.kernel'?\n"
        "  line 1, column 11\n"
        "    optimizer.momentums.a.kernel = 0\n"
        "              ^^^^^^^^^\n"
        "  SGD has: iterations, learning_rate; and for each variable: momentum"
    )
    assert failure(model, "optimizer") == (
        "'optimizer' is the optimizer of the model, not a variable\n"
        "  line 1, column 1\n"
        "    optimizer = 0\n"
        "    ^^^^^^^^^\n"
        "  SGD has: iterations, learning_rate; and for each variable: momentum"
    )
    for text, first in {
        "optimizer.momentum": "'optimizer.momentum' is a slot of each variable; name the variable too, as in "
        "'optimizer.momentum.a.kernel'",
        "optimizer.momentum.a.kernal": "no variable 'a.kernal'; did you mean 'a.kernel'?",
        "optimizer.momentum.kernel": "'kernel' is ambiguous: 2 variables have that name",
        "optimizer.momentum.norm.moving_mean": "no variable 'optimizer.momentum.norm.moving_mean': the optimizer has "
        "no slot 'momentum' of 'norm.moving_mean'",
        "optimizer.*.norm.moving_*": "no variable matches 'optimizer.*.norm.moving_*': the optimizer has no such slot "
        "of 'norm.moving_*'",
        "optimizer.learning_rate.a": "no variable 'optimizer.learning_rate.a': 'optimizer.learning_rate' is one "
        "variable, with nothing below it",
        "optimizer.x*": "no variable matches 'optimizer.x*'",
    }.items():
        assert failure(model, text).partition("\n")[0] == first
    model.compile(optimizers.SGD(optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)))
    assert failure(model, "optimizer.learning_rate").partition("\n")[0] == (
        "no variable 'optimizer.learning_rate': the learning rate is a schedule, ExponentialDecay, and no variable"
    )


@pytest.mark.backend_free
def test_another_optimizer_is_noticed():
    model = compiled(optimizers.SGD(0.1))
    text = "optimizer.learning_rate = 0.5"
    kpatch.apply(model, text)
    first, model.optimizer = model.optimizer, optimizers.SGD(0.2)
    kpatch.apply(model, text)
    assert to_numpy(model.optimizer.learning_rate) == 0.5
    model.compile(optimizers.Adam(0.3))
    kpatch.apply(first and model, text)
    assert to_numpy(model.optimizer.learning_rate) == 0.5


@pytest.mark.backend_free
def test_an_optimizer_under_another_attribute():
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(2, name="head")
            self.slow = optimizers.SGD(0.1, momentum=0.9)

    model = Pair()
    model.head.build((None, 2))
    model.slow.build(model.head.trainable_variables)
    assert paths(model, "slow.momentum.head.kernel") == ["slow.momentum.head.kernel"]
    model.slow = optimizers.SGD(0.2)
    kpatch.apply(model, "slow.learning_rate = 0.5")
    assert to_numpy(model.slow.learning_rate) == 0.5


@pytest.mark.backend_free
def test_a_donor_lends_the_same_slots():
    one, two = compiled(optimizers.Adam()), compiled(optimizers.Adam())
    numbered(two)
    kpatch.apply(one, "optimizer.**.kernel = $two._; optimizer.iterations = $two._", two=two)
    for entry, other in zip(named(one), named(two), strict=True):
        same = entry.path.endswith(("kernel", "iterations"))
        assert np.array_equal(to_numpy(entry.variable), to_numpy(other.variable)) == same or not same
    with pytest.raises(ResolutionError, match=r"'\$two' has no counterpart of 'optimizer.velocity.a.bias'"):
        kpatch.apply(one, "optimizer.velocity.a.bias = $two._", two=compiled(optimizers.SGD(momentum=0.9)))


@pytest.mark.backend_free
def test_where_a_patch_has_no_optimizer_to_edit():
    model = compiled(optimizers.SGD(0.1))
    with pytest.raises(UnsupportedError, match="is no weight of a layer, so no graph has it"):
        kpatch.rewrite(model, "optimizer.learning_rate = 0.5")
    with pytest.raises(UnsupportedError, match="is not trained"):
        kpatch.hold(model, "optimizer.learning_rate = 0.5")
    with kpatch.intervene(model, "optimizer.learning_rate = 0.5"):
        assert to_numpy(model.optimizer.learning_rate) == 0.5
    assert to_numpy(model.optimizer.learning_rate) == np.float32(0.1)


class Own(optimizers.SGD):
    """An optimizer that no file can make."""


@pytest.mark.backend_free
def test_files(tmp_path):
    path = tmp_path / "model.keras"
    for make in (lambda: optimizers.Adam(), lambda: optimizers.SGD(0.1, momentum=0.9)):
        model = compiled(make(), build=False)
        model.save(path)  # not built: two variables
        assert [name for name in kpatch.checkpoint.open(path) if name.startswith("optimizer")] == [
            "optimizer.iterations",
            "optimizer.learning_rate",
        ]
    models.normalised().save(path)
    with pytest.raises(ResolutionError, match="the model has no optimizer until it is compiled"):
        kpatch.checkpoint.open(path)["optimizer.learning_rate"]
    compiled(Own(0.1)).save(path)
    opened = kpatch.checkpoint.open(path)
    assert opened["optimizer.vars.1"] == np.float32(0.1)
    with pytest.raises(PatchError) as info:
        opened["optimizer.learning_rate"]
    assert info.value.notes[-1] == (
        "the file has one that cannot be made here; its variables are 'optimizer.vars.0' to 'optimizer.vars.1'"
    )


@pytest.mark.backend_free
def test_a_file_is_read_without_values(tmp_path):
    """What its names are learnt from is not made later, by the end of somebody's scope."""
    model = compiled(optimizers.Adam())
    model.save(tmp_path / "model.keras")
    opened = kpatch.checkpoint.open(tmp_path / "model.keras")
    entries = [*opened.index.entries, *opened.index.optimizer_entries()]
    with keras.StatelessScope():
        pass
    made = [entry.path for entry in entries if entry.variable._value is not None]
    assert made == ["optimizer.iterations", "optimizer.learning_rate"]


@pytest.mark.backend_free
def test_a_mixed_model_has_a_loss_scale(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a")])
    model.dtype_policy = "mixed_float16"
    model.compile(optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    assert paths(model, "optimizer.momentum.a.kernel") == ["optimizer.momentum.a.kernel"]
    assert paths(model, "optimizer.dynamic_scale") == ["optimizer.dynamic_scale"]


@trains
def test_in_a_callback_of_fit():
    """jax keeps the values in the trainer meanwhile."""
    model = compiled(optimizers.SGD(0.1, momentum=0.9))
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    seen = []

    class Edit(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                self.applied = kpatch.apply(self.model, "optimizer.momentum.b.bias[0] = 5; optimizer.learning_rate = 0")
            elif batch == 1:
                [write] = kpatch.apply(self.model, "optimizer.momentum.b.bias[0] += 0").writes
                seen.append(write.before[0])
                with pytest.raises(UndoError):
                    self.applied.undo()

    bias = to_numpy(model.get_layer("b").bias)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[Edit()])
    assert seen[0] == pytest.approx(4.5)  # 0.9 of it, and no gradient at a learning rate of 0
    after = to_numpy(model.get_layer("b").bias)
    assert after[0] - bias[0] > 4
    assert to_numpy(model.optimizer.learning_rate) == 0
