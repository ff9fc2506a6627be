"""The limits on what a patch costs, counted over the whole patch and found before the first write."""

import contextlib

import numpy as np
import pytest
from counting import steps

import kpatch
from kpatch.run import execute
from kpatch.values import budget

FREE = (
    "the results of a patch have at most 67,108,864 entries in all, and 256 for each entry of the tensors that it names"
)
CONSTANTS = "the constants of a patch, computed of literals alone, have at most 16,777,216 entries in all"


class Many:
    """A layer with `count` kernels, each of its own shape, and one large one."""

    def __new__(cls, count, large=(64, 64)):
        import keras

        class Holder(keras.layers.Layer):
            def build(self, _=None):
                for i in range(count):
                    setattr(self, f"w{i}", self.add_weight(shape=(2, i + 1), name=f"w{i}", initializer="ones"))
                self.large = self.add_weight(shape=large, name="large", initializer="ones")

        holder = Holder()
        holder.build()
        return holder


@pytest.fixture(scope="module")
def many():
    return Many(20)


def refused(layer, text):
    """The message of the one error of a patch that changes nothing."""
    before = [np.array(weight) for weight in layer.get_weights()]
    with pytest.raises(kpatch.LimitError) as caught:
        kpatch.apply(layer, text)
    assert len(caught.value.errors) == 1
    assert all(map(np.array_equal, before, layer.get_weights()))
    return caught.value.message


PAIRS = "let a = reshape(large, [-1])\n"
TILE = "tile([1, 2, 3, 4], 250000)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(f"let a{i} = {TILE}" for i in range(120)), CONSTANTS),
        (f"let a = {TILE}\n" + "\n".join(f"let b{i} = a * 2" for i in range(20)), CONSTANTS),
        (f"let a = {TILE}\n" + "\n".join(f"let b{i} = a < 2" for i in range(20)), CONSTANTS),
        (f"let a = {TILE}\nlet b = [{', '.join(['a'] * 200)}]", CONSTANTS),
        (f"let a = {TILE}\n" + "\n".join(f"large[0, 0] = sum(a + large[{i}, 0])" for i in range(20)), CONSTANTS),
        ("let a = reshape(tile([3], 250000), [500, 500])\nlet b = a @ a", CONSTANTS),
        ("w* = sum(" + TILE + ")", CONSTANTS),
    ],
)
def test_constants_are_counted_in_the_whole_patch(many, text, message):
    assert refused(many, text) == message


@pytest.mark.parametrize(
    "text",
    [
        "large[0, 0] = 1\nlet a = ones([10000, 10000])",
        "\n".join(["large[0, 0] = sum(normal([4000, 4000], seed=1))"] * 5),
        PAIRS + "\n".join(["large[0, 0] = sum(expand_dims(a, 0) * expand_dims(a, 1))"] * 5),
        "let a = reshape(large, [-1])\n"
        + "\n".join(["large[0, 0] = count_nonzero(expand_dims(a, 0) < expand_dims(a, 1))"] * 5),
        f"let a = cast({TILE}, 'int32')\n" + "\n".join(["large[0, 0] = sum(take(large, a % 4, axis=0))"] * 2),
        "let a = tile([0], 1000000)\nlarge[0, 0] = sum(large[a])\nlarge[0, 0] = sum(large[a])",
        "let a = tile([0], 1000000)\nlarge[a] = 0\nlarge[a] = 0",
    ],
)
def test_results_are_counted_in_the_whole_patch(many, text):
    assert refused(many, text).startswith(FREE)


def test_what_is_touched_allows_a_multiple(monkeypatch):
    """Each name counts each time that it is named, and the entries that are assigned to."""
    monkeypatch.setattr(budget, "FREE", 0)
    layer = Many(0, (4, 4))
    kpatch.plan(layer, "large = ones([255, 4, 4])[0]")  # and the 16 entries of the subscript
    assert refused(layer, "large = ones([256, 4, 4])[0]").startswith("the results of a patch have at most 0 entries")
    kpatch.plan(layer, "large[0] = ones([255, 4])[0]")
    refused(layer, "large[0] = ones([256, 4])[0]")
    kpatch.plan(layer, "large[0, 0] = sum(large) + sum(ones([240, 4, 4]))")
    refused(layer, "large[0, 0] = size(large) + sum(ones([240, 4, 4]))")
    kpatch.plan(layer, "large[0, 0] = sum(large[0]) + sum(ones([240, 4]))")
    refused(layer, "large[0, 0] = sum(large[0]) + sum(ones([240, 4, 4]))")


def test_each_match_of_a_glob_touches_and_costs(monkeypatch):
    layer = Many(3, (2, 3))  # of the shape of the last match before it
    monkeypatch.setattr(budget, "FREE", 6)
    kpatch.plan(layer, "*e = ones([255, 6])[0, 0]\n" * 2)
    refused(layer, "** = ones([256, 6])[0, 0]")  # four matches, of which two are alike


def test_products_and_linear_algebra_are_counted_in_the_whole_patch(many, monkeypatch):
    text = "let a = ones([1024, 1024])\n"
    assert refused(many, text + "large[0, 0] = sum(a @ a)\n" * 9).startswith(
        "products of matrices and linear algebra take at most 8,589,934,592 steps in a patch, and 16,384 for each entry"
    )
    monkeypatch.setattr(budget, "FREE_WORK", 0)
    kpatch.plan(many, "large = large @ large")
    refused(many, "let a = ones([128, 128])\nlarge[0] = (a @ a)[0, :64]")


def test_sizes_that_depend_on_values_are_counted_when_the_patch_runs(many, monkeypatch):
    text = "large[0, 0] = 2\nlet a = large[large > 0]\nlarge[0, 0] = sum(expand_dims(a, 0) * expand_dims(a, 1))"
    kpatch.apply(many, text).undo()
    monkeypatch.setattr(budget, "FREE", 2**20)
    assert refused(many, text).startswith("the results of a patch have at most 1,048,576 entries")


def test_operations_are_counted_for_all_matches(many, monkeypatch):
    monkeypatch.setattr(budget, "MAX_OPERATIONS", 40)
    kpatch.plan(many, "w* = _ + _ * 2")
    assert refused(many, "w* = _ + _ * 2 - 1") == (
        "a patch computes at most 40 results of operators and functions, for all variables that its globs match"
    )


def test_plans_for_further_shapes_are_counted(many, monkeypatch):
    monkeypatch.setattr(budget, "MAX_PLANNED", 19 * 9)
    kpatch.plan(many, "w* = _[...] + 1")
    kpatch.plan(many, "w* = _ + 1 + 1 + 1 + 1")  # which is not planned again
    text = "a patch plans at most 171 parts of expressions for further shapes that its globs match"
    assert refused(many, "w* = _[...] + 1 + 1") == text
    with pytest.raises(kpatch.ShapeError) as caught:
        kpatch.plan(many, "w* = [1, 2, 3, 4, 5, 6, 7]")
    assert caught.value.notes[-1] == "15 of the 20 matches fail"


def test_a_patch_with_many_faults_ends_after_a_hundred(many):
    for text in ("large = nothing\n", "large[99] = 0\n", "large = large + true\n", "large = [1, 2]\n"):
        with pytest.raises(kpatch.PatchError) as caught:
            kpatch.plan(many, text * 300)
        assert len(caught.value.errors) == 100


def test_offsets_of_many_entries_are_made_when_the_patch_runs(many):
    before = many.get_weights()[-1]
    text = "let rows = tile([3, 1], 600)\nlarge[rows] = 7\nlarge[rows] *= 2"
    plan = kpatch.plan(many, text)
    assert [step.selection for step in plan.edits] == [None, None]
    assert [row.entries for row in plan.rows] == [76_800, 76_800]
    applied = kpatch.apply(many, text)
    large = before.copy()
    large[[3, 1]] = 14
    np.testing.assert_array_equal(many.get_weights()[-1], large)
    applied.undo()
    np.testing.assert_array_equal(many.get_weights()[-1], before)
    with pytest.raises(kpatch.SubscriptError, match="index 64 is out of range for axis 0 with 64 entries"):
        kpatch.plan(many, "large[tile([64], 2000)] = 0")


def test_a_dry_run_computes_a_bounded_number_of_masks(many, monkeypatch):
    assert [row.entries for row in kpatch.plan(many, "w* [_ > 0] = 0").rows[:2]] == [2, 4]
    monkeypatch.setattr(execute, "MAX_COUNTED", 70)
    counts = [row.entries for row in kpatch.plan(many, "w*[_ > 0] = 0").rows]
    assert (counts[0], counts[-1]) == (2, None)
    assert sum(count is not None for count in counts) == 70 // 6


def nested(depth):
    return "(1 + " * depth + "_" + ")" * depth


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "**.*." * n + "x = 0",
        lambda n: "**." * n + "w1 = 0",
        lambda n: f"large[{nested(n)} > 0] = 0",
        lambda n: f"large = {nested(n)}",
        lambda n: "w* = 0\n" * n,
    ],
)
def test_planning_takes_steps_in_proportion_to_the_text(many, text):
    def attempt(text):
        with contextlib.suppress(kpatch.PatchError):
            kpatch.plan(many, text)

    attempt("large = 0")
    assert steps(attempt, text(90)) < 4 * steps(attempt, text(30))


def test_a_long_pattern_takes_steps_in_proportion_to_the_text(many):
    """Of a name that is shorter nothing is compiled."""
    short, long = (f"**.{part} = 0" for part in ("?*", "?*" * 1000))
    with pytest.raises(kpatch.ResolutionError, match="no variable matches"):
        kpatch.plan(many, long)
    assert steps(refused_in_names, many, long) < steps(kpatch.plan, many, short) + 10 * len(long)


def refused_in_names(layer, text):
    with contextlib.suppress(kpatch.ResolutionError):
        kpatch.plan(layer, text)


def test_a_chain_of_more_comparisons_than_python_has_frames(many):
    """It is one mask, made in blocks."""
    before = np.array(many.get_weights()[-1])
    kpatch.apply(many, f"large[{'2 > ' * 3000} _ < 1] = 1")
    np.testing.assert_array_equal(np.array(many.get_weights()[-1]), before)
    with kpatch.apply(many, f"large[{'2 > _ < ' * 1500} 3] = 5"):
        assert (np.array(many.get_weights()[-1]) == 5).all()
