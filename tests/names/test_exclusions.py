"""Exclusions, `**.kernel *= 0.5 except head.*`: live, in files, in several models, and inside a model."""

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
from kpatch.names import meanings
from kpatch.tools import check
from kpatch.values.tensors import to_numpy

layers = keras.layers


def written(model, text, **given):
    """The paths of the variables that a patch writes."""
    return [row.path for row in kpatch.plan(model, text, **given).rows]


def test_what_is_excluded_stays():
    net = chain("a", "b", "head")
    assert written(net, "**.kernel = 0 except head.*", expect=2) == ["a.kernel", "b.kernel"]
    assert written(net, "** = 0 except head.**, *.bias") == ["a.kernel", "b.kernel"]
    assert written(net, "** = 0 except (a|head).*, b.kernel") == ["b.bias"]
    assert written(net, "(a|b|head).bias = 0 except b.bias") == ["a.bias", "head.bias"]
    assert written(net, "** = 0 except layers[1].*, layers[-1].kernel, a.kernel") == ["a.bias", "head.bias"]
    before = [to_numpy(variable.value).copy() for variable in net.variables]
    applied = kpatch.apply(net, "**.kernel[abs(_) < 0.5] = 0 except head.*,  # the head\n\n  b.*")
    assert [write.path for write in applied.writes] == ["a.kernel"]
    for variable, old in zip(net.variables, before, strict=True):
        new = np.where(abs(old) < 0.5, 0, old) if variable is net.variables[0] else old
        assert to_numpy(variable.value).tobytes() == new.tobytes()
    applied.undo()
    assert all(to_numpy(v.value).tobytes() == old.tobytes() for v, old in zip(net.variables, before, strict=True))


def test_an_exclusion_changes_nobodys_random_numbers():
    one, two = chain("a", "b", "c"), chain("a", "b", "c")
    kpatch.apply(one, "**.kernel = normal([3, 3], seed=1)")
    kpatch.apply(two, "**.kernel = normal([3, 3], seed=1) except b.*")
    drawn, kept = ([to_numpy(v.value) for v in net.variables[::2]] for net in (one, two))
    assert drawn[0].tobytes() == kept[0].tobytes()
    assert drawn[2].tobytes() == kept[2].tobytes()
    assert kept[1].tobytes() == to_numpy(chain("a", "b", "c").variables[2].value).tobytes()


def test_the_donor_does_not_depend_on_exclusions():
    net, donor = chain("a", "b", "head"), chain("a", "b", "head")
    kpatch.apply(donor, "** += 1")
    kpatch.apply(net, "**.kernel = $donor._ except head.*", donor=donor)
    same = [
        to_numpy(v.value).tobytes() == to_numpy(w.value).tobytes()
        for v, w in zip(net.variables, donor.variables, strict=True)
    ]
    assert same == [True, False, True, False, False, False]


def test_whole_errors():
    net = chain("a", "b", "head")
    before = models.snapshot(net)
    assert failure(kpatch.apply, net, "**.kernel = 0 except head.bias, b.*") == (
        "'head.bias' excludes nothing: it means none of the matches of '**.kernel'\n"
        "  line 1, column 22\n"
        "    **.kernel = 0 except head.bias, b.*\n"
        "                         ^^^^^^^^^\n"
        "  it means head.bias (3,) float32"
    )
    assert failure(kpatch.apply, net, "**.kernel = 0 except (head|b).*, (a|c).*") == (
        "no variable matches 'c.*'\n"
        "  line 1, column 37\n"
        "    **.kernel = 0 except (head|b).*, (a|c).*\n"
        "                                        ^\n"
        "  the model has: a, b, head"
    )
    assert failure(kpatch.apply, net, "**.kernel = 0 except b.*, (a|head).*") == (
        "the exclusions leave nothing of '**.kernel'\n"
        "  line 1, column 22\n"
        "    **.kernel = 0 except b.*, (a|head).*\n"
        "                         ^^^^^^^^^^^^^^^"
    )
    assert failure(kpatch.apply, net, "**.kernel = 0 except head") == (
        "'head' is a layer, not a variable\n"
        "  line 1, column 22\n"
        "    **.kernel = 0 except head\n"
        "                         ^^^^\n"
        "  head has: kernel (3, 3) float32, bias (3,) float32\n"
        "  'head.**' excludes all variables of a layer"
    )
    assert failure(kpatch.apply, net, "**.bias = [1, 2] except head.*", kind=kpatch.ShapeError).endswith(
        "  for a.bias (3,) float32, match 1 of '**.bias'\n  2 of the 2 matches fail"
    )
    assert failure(kpatch.apply, net, "**.bias = 0 except head.*", expect=3).startswith("the patch matches 2 variables")
    assert failure(kpatch.edit, np.ones(3), "** = 1 except a").startswith("no variable '**': kpatch.edit knows one")
    assert models.snapshot(net) == before


@pytest.mark.backend_free
def test_exclusions_are_bounded(monkeypatch):
    monkeypatch.setattr(meanings, "MAX_MATCHES", 30)
    net = chain("a", "b", "c")
    assert len(written(net, "** = 0 except a.*, a.*, a.*")) == 4
    message = failure(kpatch.plan, net, f"** = 0 except {', '.join(['a.*'] * 9)}", kind=kpatch.LimitError)
    assert message.startswith("the globs of a patch match at most 30 variables")


def test_several_models():
    shared = layers.Dense(3, name="head")
    one, two = (keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a"), shared]) for _ in "12")
    assert written([one, two], "**.kernel = 0 except head.*") == ["[0].a.kernel", "[1].a.kernel"]
    assert written([one, two], "**.bias = 0 except a.*") == ["[0].head.bias"]
    assert written({"x": one, "y": two}, "**.kernel = 0 except (x|y).a.*") == ["x.head.kernel"]
    assert written({"x": one, "y": two}, "*.a.* = 0 except y.**") == ["x.a.kernel", "x.a.bias"]


def test_what_is_stored_and_scales():
    net = chain("a", "head")
    net.quantize("int8")
    assert written(net, "**.kernel *= 0.5 except head.*") == ["a.kernel"]
    assert written(net, "**.kernel.stored = 0 except head.*") == ["a.kernel.stored"]
    assert written(net, "**.kernel_scale *= 2 except head.**") == ["a.kernel_scale"]
    assert written(net, "**.kernel_scale *= 2 except head.*_scale") == ["a.kernel_scale"]
    assert "excludes nothing" in failure(kpatch.plan, net, "**.kernel_scale *= 2 except head.kernel")


def test_files(tmp_path):
    net = chain("a", "b", "head")
    net.save(tmp_path / "m.keras")
    net.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "p.kpatch").write_text("**.kernel[0] *= 2 except head.*,\n  layers.dense_1.vars.0\n")
    kpatch.checkpoint.apply(tmp_path / "m.keras", kpatch.load(tmp_path / "p.kpatch"), in_place=True, expect=1)
    text = "**.0[0] *= 2 except layers.dense_2.*.*, layers.dense_1.vars.0"
    kpatch.checkpoint.apply(tmp_path / "m.weights.h5", text, in_place=True, expect=1)
    kpatch.apply(net, "a.kernel[0] *= 2")
    assert models.snapshot(keras.models.load_model(tmp_path / "m.keras")) == models.snapshot(net)
    other = chain("a", "b", "head")
    other.load_weights(tmp_path / "m.weights.h5")
    assert models.snapshot(other) == models.snapshot(net)


def test_activations():
    net = chain("a", "b", "head")
    x = np.ones((2, 3), "float32")
    text = "*.output[:, 0] = 5 except head.output; **.kernel *= 2 except head.*"
    with kpatch.intervene(net, text, expect=4):
        steered = to_numpy(net(x))
    with kpatch.intervene(net, "(a|b).output[:, 0] = 5; (a|b).kernel *= 2"):
        assert to_numpy(net(x)).tobytes() == steered.tobytes()
    np.testing.assert_allclose(to_numpy(kpatch.rewrite(net, text, expect=4)(x)), steered, rtol=1e-6)
    assert failure(kpatch.intervene, net, "*.output = 0 except head.kernel") == (
        "'head.kernel' excludes nothing: it means none of the matches of '*.output'\n"
        "  line 1, column 21\n"
        "    *.output = 0 except head.kernel\n"
        "                        ^^^^^^^^^^^\n"
        "  it means head.kernel (3, 3) float32"
    )
    assert failure(kpatch.rewrite, net, "*.output = 0 except *.output").startswith("the exclusions leave nothing")
    assert failure(kpatch.rewrite, net, "**.kernel = 0 except a.output", kind=UnsupportedError).startswith(
        "'a.output' is"
    )
    assert failure(kpatch.rewrite, net, "*.output = 0 except x.output").startswith("no activation 'x.output'")
    layer = kpatch.layers.PatchedLayer(net, "**.bias = 1 except head.*")
    by_hand = chain("a", "b", "head")
    kpatch.apply(by_hand, "(a|b).bias = 1")
    np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(by_hand(x)), rtol=1e-6)


def test_training(backend):
    if backend == "numpy":
        pytest.skip("Keras trains no model on numpy")
    net = chain("a", "b")
    net.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    with kpatch.hold(net, "**.bias = 2 except b.*", expect=1):
        callback = kpatch.callbacks.PatchCallback({0: "**.kernel[0] = 1 except a.*"})
        net.fit(x, x, verbose=0, callbacks=[callback])
    found = [to_numpy(variable.value) for variable in net.variables]
    assert found[1].tolist() == [2, 2, 2] != found[3].tolist()
    assert found[2][0].tolist() == [1, 1, 1] != found[0][0].tolist()


@pytest.mark.backend_free
def test_the_checker(tmp_path):
    (tmp_path / "p.kpatch").write_text("**.bias = 1 except b.*\n**.kernel = mean(c.bias) except b.bias,\n  c.*\n")
    report = check.check_files((str(tmp_path / "p.kpatch"),), chain("a", "b"))
    assert [(f.region.line, f.region.column, f.error.message) for f in report.findings] == [
        (2, 33, "'b.bias' excludes nothing: it means none of the matches of '**.kernel'"),
        (2, 18, "no variable 'c.bias'"),
    ]
