"""`sweep`: every combination of values, measured as one intervention each would be."""

import sys

import keras
import models
import numpy as np
import pytest

import kpatch

X = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
PNG = b"\x89PNG"


@pytest.fixture
def model():
    layers = [keras.layers.Dense(4, name=f"block_{number}") for number in range(3)]
    return models.filled(keras.Sequential([keras.Input((4,)), *layers]))


def measured(model):
    return keras.ops.sum(model(X) ** 2)


def one_by_one(model, texts):
    values = []
    for text in texts:
        with kpatch.intervene(model, text):
            values.append(float(keras.ops.convert_to_numpy(measured(model))))
    return np.array(values)


def test_every_combination(model):
    text = "block_$l.output[:, $t] = $v"
    got = kpatch.sweep(model, text, metric=lambda: measured(model), l=range(2), t=range(4), axes={"v": [2.0, 3.0]})
    texts = [f"block_{n}.output[:, {t}] = {v}" for v in (2.0, 3.0) for n in range(2) for t in range(4)]
    assert got.axes == {"v": [2.0, 3.0], "l": [0, 1], "t": [0, 1, 2, 3]}
    np.testing.assert_array_equal(got.values, one_by_one(model, texts).reshape(2, 2, 4))
    assert np.asarray(got).shape == (2, 2, 4)
    assert repr(got) == "<Sweep of v: 2 x l: 2 x t: 4>"


def test_a_name_in_braces(model):
    got = kpatch.sweep(model, "block_${l}.output[:, 0] = 2", metric=lambda: measured(model), l=range(1))
    np.testing.assert_array_equal(got.values, one_by_one(model, ["block_0.output[:, 0] = 2"]))


def test_a_recording_is_patched_in(model):
    other = X[::-1] * 2
    with kpatch.record(model, "*.output") as clean:
        expected = model(other)
    got = kpatch.sweep(model, "block_$l.output = $clean._", metric=lambda: model(X), l=range(3), clean=clean)
    assert got.values.shape == (3, 2, 4)
    for each in got.values:  # the last block is a function of each
        np.testing.assert_array_equal(each.astype("float32"), keras.ops.convert_to_numpy(expected))


def test_layers_by_number(model):
    got = kpatch.sweep(model, "layers[$l].output = 0", metric=lambda: measured(model), l=range(3))
    np.testing.assert_array_equal(got.values, one_by_one(model, [f"block_{n}.output = 0" for n in range(3)]))


@pytest.mark.backend_free
def test_what_a_sweep_shows(model):
    got = kpatch.sweep(model, "block_$l.output[:, $t] = 0", metric=lambda: measured(model), l=range(3), t=range(4))
    head, _, first, second, *_ = str(got).strip().splitlines()
    assert head.split() == ["l", "t", "value"]
    assert first.split() == ["0", "0", f"{got.values[0, 0]:.4g}"]
    assert second.split() == ["1", f"{got.values[0, 1]:.4g}"]
    assert got._repr_html_().startswith('<img class="kpatch-map"')
    pytest.importorskip("matplotlib")
    [plot, _] = got.plot().axes
    assert (plot.get_ylabel(), plot.get_xlabel()) == ("l", "t")
    assert [label.get_text() for label in plot.get_yticklabels()] == ["0", "1", "2"]
    np.testing.assert_array_equal(plot.images[0].get_array(), got.values)
    line = kpatch.sweep(model, "block_0.output[:, $t] = 0", metric=lambda: measured(model), t=range(4)).plot()
    np.testing.assert_array_equal(line.axes[0].lines[0].get_ydata(), got.values[0])
    wide = kpatch.sweep(model, "block_0.output[:, $t] = 0", metric=lambda: model(X), t=range(4))
    assert "<img" not in wide._repr_html_()
    with pytest.raises(kpatch.BindingError) as caught:
        wide.plot()
    assert str(caught.value) == "plot() draws one axis or two; this is an array of shape (4, 2, 4): take a part of it"


@pytest.mark.backend_free
def test_going_on_after_an_interrupt(model, tmp_path):
    path, text = tmp_path / "swept.npz", "block_$l.output[:, $t] = 0"
    whole = kpatch.sweep(model, text, metric=lambda: measured(model), l=range(3), t=range(4))
    ran = []

    def metric():
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(1)
        return measured(model)

    with pytest.raises(KeyboardInterrupt):
        kpatch.sweep(model, text, metric=metric, l=range(3), t=range(4), resume=path)
    ran = [1] * 6
    got = kpatch.sweep(model, text, metric=metric, l=range(3), t=range(4), resume=path)
    assert len(ran) == 6 + 7
    np.testing.assert_array_equal(got.values, whole.values)
    assert [each.name for each in tmp_path.iterdir()] == ["swept.npz"]
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.sweep(model, text, metric=metric, l=range(2), t=range(4), resume=str(path))
    message = f"'{path}' is of another sweep: its patch, bindings or axes differ; resume= takes another path"
    assert str(caught.value) == message
    path.write_bytes(b"PK")
    with pytest.raises(kpatch.FileError, match="is not the file of a sweep"):
        kpatch.sweep(model, text, metric=metric, l=range(3), t=range(4), resume=path)


@pytest.mark.backend_free
def test_an_earlier_sweep_is_gone_on_with(model):
    """Whatever is the same in it is not measured again; the earlier one stays as it is."""
    text, ran = "block_$l.output[:, $t] += sum($v)", []

    def metric():
        ran.append(1)
        return measured(model)

    vectors = [np.full(1024, 1.0), np.full(1024, 1.0)]  # which `repr` does not tell apart
    vectors[1][500] = 2
    few = kpatch.sweep(model, text, l=range(2), axes={"v": vectors[:1]}, metric=metric, t=range(4))
    known = few.values.copy()
    del ran[:]
    more = kpatch.sweep(model, text, l=range(1, 3), axes={"v": vectors}, resume=few, metric=metric, t=range(4))
    assert len(ran) == 2 * 4 * 2 - 4
    whole = kpatch.sweep(model, text, l=range(1, 3), axes={"v": vectors}, metric=metric, t=range(4))
    np.testing.assert_array_equal(more.values, whole.values)
    np.testing.assert_array_equal(few.values, known)
    with pytest.raises(kpatch.BindingError) as caught:
        kpatch.sweep(model, "block_0.output[:, $t] = 0", resume=few, metric=metric, t=range(4))
    assert str(caught.value) == "resume= is another sweep: its patch, its bindings, or the names of its axes, differ"


def donor(x):
    start = keras.initializers.Constant(x)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer=start, name="donor")])


def recorded(model, x):
    with kpatch.record(model, "block_0.output") as clean:
        model(x)
    return clean


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ("sum($v)", lambda model, x: x),
        ("sum($v)", lambda model, x: keras.ops.full((2048,), x)),
        ("sum($v)", lambda model, x: keras.Variable(np.full(2048, x))),
        ("sum($v)", lambda model, x: [x, x]),
        ("$v._", lambda model, x: recorded(model, x * X)),
        ("sum($v.donor.kernel)", lambda model, x: donor(x)),
    ],
)
def test_a_sweep_of_other_values_is_another(model, value, made):
    """The values of its bindings, that is, whatever holds them. The same values again are none."""

    def swept(x, earlier=None):
        text, v = f"block_0.output += $t * {value}", made(model, x)
        metric = lambda: ran.append(x) or measured(model)  # noqa: E731
        return kpatch.sweep(model, text, metric=metric, t=range(2), v=v, resume=earlier)

    ran = []
    first = swept(1.0)
    swept(1.0, first)
    assert ran == [1.0, 1.0]
    with pytest.raises(kpatch.BindingError) as caught:
        swept(2.0, first)
    assert str(caught.value) == "resume= is another sweep: its patch, its bindings, or the names of its axes, differ"


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("block_$l.output = 0", {"l": range(4)}, "no activation 'block_3.output'; did you mean 'block_2"),
        ("block_0.output[:, $t] = 0", {"t": range(5)}, "index 4 is out of range for axis 1 with 4 entries"),
        ("block_0.output = 0", {"t": range(5)}, "the axis 't' is not used: '$t' is nowhere in the patch"),
        ("block_0.output = $v", {"v": [1, 2]}, "kpatch.sweep has no axis; a range is one, as in l=range(12), or axes="),
        ("block_0.output = $t", {"t": range(2), "expect": 2}, "the patch matches 0 variables and 1 activation, not 2"),
        ("block_0.output = $v", {"axes": {"v": []}}, "the axis 'v' has no values"),
        (kpatch.parse("block_0.output = 0"), {"t": range(5)}, "kpatch.sweep takes a text, with '$l' in names"),
        ("block_0.output = $t", {"t": range(2), "axes": {"t": [1]}}, "'t' is given twice, as t=... and in axes={"),
        ("block_0.output = $t", {"axes": {"t": 5}}, "the axis 't' is a range or a list of values. Received: 5"),
        (
            "block_0.output = $t",
            {"t": range(2), "metric": lambda: [1, [2]]},
            "metric= returns a number, or an array of",
        ),
        ("block_0.output = $t", {"t": range(2), "metric": 3}, "metric= is a function that runs the model. Received: "),
        ("block_0.output = $t", {"t": range(2), "metric": lambda: "x"}, "metric= returns a number, or an array of"),
    ],
)
def test_what_is_wrong(model, text, given, message):
    """Nothing runs then, but the metric that is wrong."""
    ran = []
    given = {"metric": lambda: ran.append(1), **given}
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.sweep(model, text, **given)
    assert str(caught.value).startswith(message)
    assert not ran


def test_a_bar_on_a_terminal_alone(model, monkeypatch, capsys):
    def run():
        kpatch.sweep(model, "block_0.output[:, $t] = 0", metric=lambda: measured(model), t=range(4))
        return capsys.readouterr()

    assert (run().out, run().err) == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run().out == ""


def test_a_name_that_begins_with_a_binding_is_told_its_form():
    with pytest.raises(kpatch.PatchSyntaxError) as info:
        kpatch.sweep(models.dense(), "$layer.output[0] = $v", metric=lambda: 0, layer=["dense_1"], axes={"v": [1]})
    assert (
        str(info.value).splitlines()[-1] == "  a name that begins so is written '${layer}', with axes={'layer': [...]}"
    )
