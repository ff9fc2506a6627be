"""A block for each match, `for **.kernel { let t = ...; _ = ... }`: NumPy is the oracle; one atomic patch."""

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
SLERP = """
for **.kernel {
    let a = _ / sqrt(sum(_ * _))
    let b = $b._ / sqrt(sum($b._ * $b._))
    let angle = arccos(clip(sum(a * b), -1, 1))
    _ = (sin(0.7 * angle) * _ + sin(0.3 * angle) * $b._) / sin(angle)
}
"""


def values(model):
    return [np.array(to_numpy(variable.value)) for variable in model.variables]


def slerp(x, y):
    x, y = x.astype("float64"), y.astype("float64")
    angle = np.arccos(np.clip(np.sum(x / np.linalg.norm(x) * y / np.linalg.norm(y)), -1, 1))
    return (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)


def test_slerp_is_numpys():
    net, donor = chain("a", "b"), chain("a", "b", seed=1)
    before = values(net)
    applied = kpatch.apply(net, SLERP, b=donor, expect=2)
    for place, (old, new, other) in enumerate(zip(before, values(net), values(donor), strict=True)):
        expected = old if place % 2 else slerp(old, other)
        np.testing.assert_allclose(new, expected, rtol=2e-5)
    assert [write.path for write in applied.writes] == ["a.kernel", "b.kernel"]
    applied.undo()
    assert [v.tobytes() for v in values(net)] == [v.tobytes() for v in before]


def test_a_block_is_the_patch_of_each_tensor():
    text = "let m = mean(_); _[_ > m] = m; _ = _[::-1] + size(_); assert all(_[0] < 99); let n = m; _ -= n"
    net = chain("a", "b")
    expected = [np.array(keras.ops.convert_to_numpy(kpatch.edit(v.value, text))) for v in net.variables]
    kpatch.apply(net, f"for ** {{ {text} }}", expect=4)
    assert [v.tobytes() for v in values(net)] == [v.tobytes() for v in expected]


def test_each_match_sees_what_the_matches_before_it_wrote_and_lets_are_snapshots():
    net = chain("a", "b")
    kpatch.apply(net, "a.bias = 1; b.bias = 2; let m = a.bias[0]; for *.bias { let t = _; _ = a.bias + t + m; _ += t }")
    assert [v.tolist() for v in values(net)[1::2]] == [[4, 4, 4], [9, 9, 9]]
    kpatch.apply(net, "for (b|a).bias except a.bias { _[1] = 0 }; for a.bias { _ = 5 }", expect=2)
    assert [v.tolist() for v in values(net)[1::2]] == [[5, 5, 5], [9, 0, 9]]


def test_random_numbers_are_those_of_the_matches():
    one, two = chain("a", "b", "c"), chain("a", "b", "c")
    kpatch.apply(one, "**.kernel = normal([3, 3], seed=1) except b.*")
    kpatch.apply(two, "for **.kernel except b.* { let x = normal([3, 3], seed=1); _ = x }")
    assert models.snapshot(one) == models.snapshot(two)


def test_all_or_nothing():
    net = chain("a", "b")
    kpatch.apply(net, "a.bias = 1; b.bias = 7")
    before = models.snapshot(net)
    text = "for *.bias {\n  let t = max(_)\n  _ = 0\n  assert t < 5, 'large'\n}"
    assert failure(kpatch.apply, net, text, kind=kpatch.PatchAssertionError) == (
        "assertion failed: large\n"
        "  line 4, column 10\n"
        "      assert t < 5, 'large'\n"
        "             ^^^^^\n"
        "  t is 7.0\n"
        "  for b.bias (3,) float32, match 2 of '*.bias'"
    )
    assert models.snapshot(net) == before


def test_errors_before_the_first_write_name_the_variable():
    net = chain("a", "b")
    before = models.snapshot(net)
    text = "for ** { let t = _[0]; let u = t[0, 0]; _[1, 2] = 0; _[u] = 5 }"
    assert failure(kpatch.apply, net, text, kind=kpatch.SubscriptError) == (
        "too many indices for shape (3,)\n"
        "  line 1, column 37\n"
        "    for ** { let t = _[0]; let u = t[0, 0]; _[1, 2] = 0; _[u] = 5 }\n"
        "                                        ^\n"
        "  the index takes 2 axes, the tensor has 1\n"
        "  for a.kernel (3, 3) float32, match 1 of '**'\n"
        "  4 of the 4 matches fail"
    )
    text = "for **.(kernel|bias) { let t = cholesky(_); assert t == _ }"
    assert failure(kpatch.apply, net, text, kind=kpatch.ShapeError).endswith(
        "for a.bias (3,) float32, match 3 of '**.(kernel|bias)'\n  2 of the 4 matches fail"
    )
    assert failure(kpatch.apply, net, "for *.gamma { _ = 1 }").startswith("no variable matches '*.gamma'")
    assert failure(kpatch.apply, net, "for a { _ = 1 }").startswith("'a' is a layer, not a variable")
    other = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    assert failure(kpatch.apply, net, "for **.bias { _ = $b._ }", b=other).endswith("2 of the 2 matches fail")
    assert failure(kpatch.apply, net, "for a.bias { _[5] = 1 }", kind=kpatch.SubscriptError).endswith(
        "for a.bias (3,) float32"
    )
    assert failure(kpatch.apply, net, "for ** { _ = 1 }", expect=3).startswith("the patch matches 4 variables, not 3")
    assert failure(kpatch.edit, np.ones(3), "for ** { _ = 1 }").startswith("no variable '**': kpatch.edit knows one")
    assert failure(kpatch.layers.ScatterLayer, "for ** { _ = 1 }").startswith("no variable '**': a ScatterLayer knows")
    assert models.snapshot(net) == before


def test_matches_times_statements_are_bounded(monkeypatch):
    monkeypatch.setattr(meanings, "MAX_MATCHES", 11)
    net = chain("a", "b")
    assert len(kpatch.plan(net, "for ** { _ = 1; _ += 1 }").rows) == 8
    message = failure(kpatch.plan, net, "for ** { _ = 1; _ += 1; _ *= 2 }", kind=kpatch.LimitError)
    assert message.startswith("the globs of a patch match at most 11 variables")


def test_plans_count_entries():
    net = chain("a", "b")
    text = "for *.bias { let t = mean(_); _[_ >= t] = t; _[_ == t] = 0; let u = max(_); _[_ < u] = 1 }"
    counts = [row.entries for row in kpatch.plan(net, text).rows]
    first = [int((v >= v.mean()).sum()) for v in values(net)[1::2]]
    assert counts == [*first, None, None, None, None]


def test_several_models():
    shared = layers.Dense(3, name="head")
    one, two = (keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a"), shared]) for _ in "12")
    kpatch.apply([one, two], "for **.bias { let t = size(_); _ += t }", expect=3)
    assert [v.tolist() for v in (*values(one)[1::2], *values(two)[1::2])] == [[3] * 3] * 4
    kpatch.apply({"x": one, "y": two}, "for (x|y).a.bias { let t = x.a.bias; _ = t + 1 }")
    assert [v[0] for v in (values(one)[1], values(two)[1])] == [4, 5]


def test_quantised_weights_and_what_is_stored():
    net, other = chain("a", "b"), chain("a", "b")
    for model in (net, other):
        model.quantize("int8")
    kpatch.apply(net, "for **.kernel { let t = mean(_); _ = _ - t }; for **.stored { _[0] = 1 }")
    for name in "ab":
        kpatch.apply(other, f"let t = mean({name}.kernel); {name}.kernel = _ - t; {name}.kernel.stored[0] = 1")
    assert models.snapshot(net) == models.snapshot(other)


def test_files(tmp_path):
    net, donor = chain("a", "b"), chain("a", "b", seed=1)
    net.save(tmp_path / "m.keras")
    donor.save(tmp_path / "d.keras")
    (tmp_path / "p.kpatch").write_text(
        "for **.kernel except b.* {\n  let t = $b._ - _  # the task\n  _ += 0.5 * t\n}\n"
    )
    patch = kpatch.load(tmp_path / "p.kpatch")
    opened = kpatch.checkpoint.open(tmp_path / "d.keras")
    kpatch.checkpoint.apply(tmp_path / "m.keras", patch, in_place=True, expect=1, b=opened)
    kpatch.apply(net, patch, b=donor)
    assert models.snapshot(keras.models.load_model(tmp_path / "m.keras")) == models.snapshot(net)


def test_inside_of_a_model():
    net, by_hand = chain("a", "b"), chain("a", "b")
    x = np.ones((2, 3), "float32")
    before, text = models.snapshot(net), "for **.bias { let t = _; _ = t + 1 }"
    kpatch.apply(by_hand, "**.bias += 1")
    expected = to_numpy(by_hand(x))
    with kpatch.intervene(net, text + "; b.output[:, 0] = 0", expect=3):
        assert to_numpy(net(x))[:, 1:].tobytes() == expected[:, 1:].tobytes()
    assert models.snapshot(net) == before
    np.testing.assert_allclose(to_numpy(kpatch.layers.PatchedLayer(net, text)(x)), expected, rtol=1e-6)
    assert failure(kpatch.intervene, net, "for *.output { _ = 0 }", kind=UnsupportedError) == (
        "'*.output' is an activation; a 'for' block edits weights\n"
        "  line 1, column 5\n"
        "    for *.output { _ = 0 }\n"
        "        ^^^^^^^^"
    )
    assert failure(kpatch.rewrite, net, text, kind=UnsupportedError).startswith(
        "a layer that is patched in a new model takes no 'for' block; write a statement for each edit\n"
    )
    message = failure(kpatch.intervene, net, "for **.bias { _ = mean(a.output) }", kind=UnsupportedError)
    assert message.startswith(
        "'a.output' is an activation; an edit of weights can read only weights\n  line 1, column 24"
    )


def test_training(backend):
    if backend == "numpy":
        pytest.skip("Keras trains no model on numpy")
    net = chain("a", "b")
    net.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    with kpatch.hold(net, "for **.bias { let t = 2.0; _[1:] = t }", expect=2):
        net.fit(x, x, verbose=0, callbacks=[kpatch.callbacks.PatchCallback({0: "for *.kernel { _[0] = 1 }"})])
    assert [v[1:].tolist() for v in values(net)[1::2]] == [[2, 2], [2, 2]]
    assert [v[0].tolist() for v in values(net)[::2]] == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.backend_free
def test_the_checker(tmp_path):
    (tmp_path / "p.kpatch").write_text("for *.gamma { _ = 1 }\nfor *.bias {\n  let t = c.bias\n  _ = t\n}\n")
    report = check.check_files((str(tmp_path / "p.kpatch"),), chain("a", "b"))
    assert [(f.region.line, f.region.column, f.error.message) for f in report.findings] == [
        (1, 7, "no variable matches '*.gamma'"),
        (3, 11, "no variable 'c.bias'"),
    ]
