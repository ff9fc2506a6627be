"""Names of digits, `blocks.0`, and alternatives, `(a|b).kernel`: live, in files, and inside a model."""

import keras
import models
import numpy as np
import pytest
from failures import failure
from models import chain

import kpatch
import kpatch.callbacks
import kpatch.layers
from kpatch.errors import UnsupportedError
from kpatch.tools import check
from kpatch.values.tensors import to_numpy

layers = keras.layers


class Blocks(keras.Model):
    """Layers in a list, in a list of lists, and called by digits."""

    def __init__(self):
        super().__init__(name="net")
        self.blocks = [layers.Dense(3, name="a"), layers.Dense(3, name="b")]
        self.grid = [[layers.Dense(3, name="c")], [layers.Dense(3, name="d")]]
        self.digits = layers.Dense(3, name="0")

    def call(self, x):
        for layer in (*self.blocks, *self.grid[0], *self.grid[1], self.digits):
            x = layer(x)
        return x


@pytest.fixture
def net():
    model = Blocks()
    model(np.zeros((1, 3), "float32"))
    return models.filled(model)


def values(model):
    return [to_numpy(variable.value) for variable in model.variables]


def alike(model, text, plain, **given):
    """Whether two patches have the same effect, to the bit; the first is undone, the second stays."""
    before = models.snapshot(model)
    applied = kpatch.apply(model, text, **given)
    after = models.snapshot(model)
    applied.undo()
    assert models.snapshot(model) == before
    kpatch.apply(model, plain, **given)
    return after == models.snapshot(model) != before


# Digits ---------------------------------------------------------------------------------------------------------------


def test_digits_are_names_keys_and_indices_of_lists(net):
    assert alike(net, "blocks.1.kernel[0] = 7", 'blocks."1".kernel[0] = 7')
    assert alike(net, "grid.1.0.bias = blocks.0.kernel[0] + .5", "d.bias = a.kernel[0] + 0.5")
    assert alike(net, "0.bias = 4", "digits.bias = 4")
    assert alike(net, "blocks.0.bias = $other.blocks.1.kernel[1]", "a.bias = $other.b.kernel[1]", other=net)
    assert kpatch.plan(net, "blocks.*.bias = 1; 0.bias = 2").rows[2].path == "digits.bias"


def test_digits_are_no_positions():
    model = chain("a", "b")
    assert failure(kpatch.apply, model, "net.1.kernel = 0") == (
        "no variable 'net.1.kernel'\n"
        "  line 1, column 1\n"
        "    net.1.kernel = 0\n"
        "    ^^^\n"
        "  the model has: a, b\n"
        "  variables named 'kernel': a.kernel, b.kernel"
    )
    assert failure(kpatch.apply, model, "0.kernel = 1").startswith("no variable '0.kernel'")


def test_digits_in_files(net, tmp_path):
    model = chain("a", "b")
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    text = "layers.dense.vars.0[1] = layers.dense_1.vars.1 + .5"
    kpatch.apply(model, "a.kernel[1] = b.bias + 0.5")
    for name in ("m.keras", "m.weights.h5"):
        kpatch.checkpoint.apply(tmp_path / name, text, in_place=True)
        found = kpatch.checkpoint.open(tmp_path / name)["layers.dense.vars.0"]
        assert found.tobytes() == to_numpy(model.variables[0].value).tobytes()


# Alternatives ---------------------------------------------------------------------------------------------------------


def test_each_alternative_is_resolved_as_it_would_be_alone():
    net = chain("conv1", "conv2", "block1_conv", "block2_conv", "block2_convx")
    assert alike(net, "(conv1|conv2).kernel *= 2", "conv1.kernel *= 2; conv2.kernel *= 2")
    assert alike(net, "block(1|2)_conv*.bias = 1", "block1_conv*.bias = 1; block2_conv*.bias = 1")
    both = "conv1.kernel += 1; conv1.bias += 1; block1_conv.kernel += 1; block1_conv.bias += 1"
    assert alike(net, "(conv|block)1*.(kernel|bias) += 1", both)
    assert alike(net, '("conv1"|*_convx).bias[0] = 9', "conv1.bias[0] = 9; block2_convx.bias[0] = 9")
    assert alike(net, "(conv1|*1|conv1).bias += 1", "conv1.bias += 1")  # each variable once


def test_alternatives_go_in_the_order_of_the_text():
    net = chain("a", "b", "c")
    paths = [row.path for row in kpatch.plan(net, "(c|a|*).bias = _", expect=3).rows]
    assert paths == ["c.bias", "a.bias", "b.bias"]
    kpatch.apply(net, "(c|a).bias = uniform(3, seed=1)")
    drawn = [to_numpy(net.get_layer(name).bias.value) for name in "ca"]
    assert not np.array_equal(*drawn)
    kpatch.apply(net, "(c|a|b).bias = uniform(3, seed=1)")  # one more at the end changes nobody's numbers
    assert all(np.array_equal(to_numpy(net.get_layer(n).bias.value), x) for n, x in zip("ca", drawn, strict=True))


def test_an_alternative_that_means_nothing_has_its_own_caret():
    net = chain("conv1", "conv2", "block1")
    assert failure(kpatch.apply, net, "(conv1|convx).kernel = 0") == (
        "no variable 'convx.kernel'; did you mean 'conv2.kernel'?\n"
        "  line 1, column 8\n"
        "    (conv1|convx).kernel = 0\n"
        "           ^^^^^\n"
        "  the model has: conv1, conv2, block1"
    )
    assert failure(kpatch.apply, net, "**.block(1|2)*.bias = 0") == (
        "no variable matches '**.block2*.bias'; did you mean '**.block1.bias'?\n"
        "  line 1, column 12\n"
        "    **.block(1|2)*.bias = 0\n"
        "               ^\n"
        "  the model has: conv1, conv2, block1"
    )
    assert failure(kpatch.apply, net, "(conv1|conv2).(kernel|gamma) = 0") == (
        "no variable 'conv1.gamma'\n"
        "  line 1, column 23\n"
        "    (conv1|conv2).(kernel|gamma) = 0\n"
        "                          ^^^^^\n"
        "  conv1 has: kernel (3, 3) float32, bias (3,) float32"
    )
    assert failure(kpatch.apply, net, "(conv1.kernel|conv2) = 0", kind=kpatch.PatchSyntaxError)
    nested = failure(kpatch.apply, net, "(conv1|block1) = 0")
    assert nested.startswith("'conv1' is a layer, not a variable\n  line 1, column 2\n")


def test_an_error_in_one_alternative_names_the_variable():
    net = chain("a", "b")
    before = models.snapshot(net)
    assert failure(kpatch.apply, net, "(a|b).(kernel|bias)[2, 0] = 1", kind=kpatch.SubscriptError) == (
        "too many indices for shape (3,)\n"
        "  line 1, column 24\n"
        "    (a|b).(kernel|bias)[2, 0] = 1\n"
        "                           ^\n"
        "  the index takes 2 axes, the tensor has 1\n"
        "  for a.bias (3,) float32, match 2 of '(a|b).(kernel|bias)'\n"
        "  2 of the 4 matches fail"
    )
    assert models.snapshot(net) == before


@pytest.mark.backend_free
def test_alternatives_are_made_one_by_one():
    selector = kpatch.parse(f"{'(a|b)' * 10}.kernel = 0").statements[0].target.selector
    assert str(next(iter(selector.alternatives))) == "aaaaaaaaaa.kernel"
    assert len({str(each) for each in selector.alternatives}) == 1024


def test_alternatives_of_several_models():
    one, two = chain("a", "b"), chain("a", "b")
    assert failure(kpatch.apply, {"one": one, "two": two}, "(one|tow).a.bias = 5").startswith("no model 'tow'")
    kpatch.apply({"one": one, "two": two}, "(one|two).a.bias = 5; one.(a|b).kernel[0] = 6", expect=4)
    assert values(one)[1].tolist() == values(two)[1].tolist() == [5, 5, 5]
    assert values(one)[0][0].tolist() == values(one)[2][0].tolist() == [6, 6, 6]
    kpatch.apply([one, two], "(a|b).bias = $donor._ + 1", donor=one, expect=4)
    assert values(one)[1].tolist() == [6, 6, 6]


def test_alternatives_in_files(tmp_path):
    net = chain("a", "b")
    net.save(tmp_path / "m.keras")
    text = "(a|b).bias = [1, 2, 3]; layers.dense(|_1).vars.0 *= 2"
    assert failure(kpatch.parse, text, kind=kpatch.PatchSyntaxError).startswith("an alternative is missing before '|'")
    text = "(a|b).bias = [1, 2, 3]; layers.(dense|dense_1).vars.0 *= 2"
    applied = kpatch.checkpoint.apply(tmp_path / "m.keras", text, in_place=True, expect=4)
    assert [change.step.place.path for change in applied.changes] == [
        "a.bias",
        "b.bias",
        "layers.dense.vars.0",
        "layers.dense_1.vars.0",
    ]
    kpatch.apply(net, "**.bias = [1, 2, 3]; **.kernel *= 2")
    assert models.snapshot(keras.models.load_model(tmp_path / "m.keras")) == models.snapshot(net)


def test_alternatives_of_activations(backend):
    net = chain("a", "b", "c")
    x = np.ones((2, 3), "float32")
    with kpatch.intervene(net, "(a|c).output[:, 0] = 5; (a|b).kernel *= 2", expect=4):
        steered = to_numpy(net(x))
    apart = "a.output[:, 0] = 5; c.output[:, 0] = 5; a.kernel *= 2; b.kernel *= 2"
    with kpatch.intervene(net, apart):
        assert to_numpy(net(x)).tobytes() == steered.tobytes()
    new = kpatch.rewrite(net, "(a|c).output[:, 0] = 5; (a|b).kernel *= 2", expect=4)
    np.testing.assert_allclose(to_numpy(new(x)), steered, rtol=1e-6)
    assert failure(kpatch.intervene, net, "(a|b).(output|kernel) = 0", kind=UnsupportedError) == (
        "'(a|b).(output|kernel)' means activations and weights; write a statement for each\n"
        "  line 1, column 2\n"
        "    (a|b).(output|kernel) = 0\n"
        "     ^^^^^^^^^^^^^^^^^^^"
    )
    assert failure(kpatch.rewrite, net, "(a|d).output = 0") == (
        "no activation 'd.output'\n  line 1, column 4\n    (a|d).output = 0\n       ^\n  the model has: a, b, c"
    )
    assert failure(kpatch.apply, net, "(a|b).output = 0", kind=UnsupportedError).startswith(
        "'a.output' is an activation"
    )
    message = failure(kpatch.layers.ScatterLayer, "(a|b) = 0")
    assert message.startswith("no variable '(a|b)': a ScatterLayer knows one tensor, '_'")


def test_alternatives_in_training(backend):
    if backend == "numpy":
        pytest.skip("Keras trains no model on numpy")
    net = chain("a", "b")
    net.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    with kpatch.hold(net, "(a|b).bias = 2", expect=2):
        net.fit(x, x, verbose=0, callbacks=[kpatch.callbacks.PatchCallback({0: "(a|b).kernel[0] = 1"})])
        assert values(net)[1].tolist() == values(net)[3].tolist() == [2, 2, 2]
        assert values(net)[0][0].tolist() == values(net)[2][0].tolist() == [1, 1, 1]


@pytest.mark.backend_free
def test_patch_files_and_the_checker_know_them(tmp_path):
    (tmp_path / "p.kpatch").write_text("(a|b).bias = 1\n0.bias = 2\n(\n  a  # comment\n  | c\n).kernel *= 2\n")
    net = chain("a", "b", "0")
    report = check.check_files((str(tmp_path / "p.kpatch"),), net)
    assert [(f.region.line, f.region.column, f.error.message) for f in report.findings] == [
        (5, 5, "no variable 'c.kernel'")
    ]
    patch = kpatch.load(tmp_path / "p.kpatch")
    assert str(patch).splitlines() == ["(a|b).bias = 1", "0.bias = 2", "(a|c).kernel *= 2"]
