"""Constants written to known entries: nothing is evaluated when such a patch runs, which makes the point edit quick."""

from unittest import mock

import counting
import models
import numpy as np
import pytest

import kpatch
from kpatch import backends, indexing
from kpatch.run import checking, evaluate
from kpatch.syntax import parse

PLAIN = (
    "dense_1.kernel[0, 0] = 1.0",
    "dense_1.kernel[1:, ::2] = 7",
    "dense_1.kernel[[0, 2, 0], 1] = [7, 8, 9]",
    "dense_1.bias = [1, 2, 3]; dense_1.bias[1] = 5",
    "dense_2.** = 2",
    "; ".join(f"dense_1.kernel[{k % 4}, {k % 3}] = {k}" for k in range(9)),
)
EVALUATED = ("dense_1.kernel[_ > 0] = 1", "dense_1.bias += 1", "let a = 1; dense_1.bias = a", "assert true")


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("text", PLAIN)
def test_constants_in_known_entries_are_written_without_a_scope_as_with_one(text, undo):
    model = models.dense()
    before, patch = models.snapshot(model), parse(text)
    checked = checking.check(model, patch, {})
    assert checked.plain
    with mock.patch.object(evaluate, "Scope", side_effect=AssertionError("something is evaluated")):
        applied = kpatch.apply(model, patch, undo=undo)
    written, writes = models.snapshot(model), [repr(write) for write in applied.writes]
    if undo:
        applied.undo()
        assert models.snapshot(model) == before
    checked.plain = False
    applied = kpatch.apply(model, patch, undo=undo)
    assert models.snapshot(model) == written
    assert [repr(write) for write in applied.writes] == writes


@pytest.mark.parametrize("text", EVALUATED)
def test_other_patches_are_evaluated(text):
    assert not checking.check(models.dense(), parse(text), {}).plain


def test_a_point_edit_takes_few_steps_of_python(compiled):
    model, patch = models.dense(), parse("dense_1.kernel[0, 0] = 1.0")
    kpatch.apply(model, patch)
    variable, writer = model.get_layer("dense_1").kernel, backends.current()
    entry = indexing.select((4, 3), (0, 0))
    value = writer.prepare(variable, entry, np.ones((), "float32"))

    def by_hand():
        writer.read(variable, entry)
        writer.write(variable, entry, value)

    counting.steps(by_hand)
    assert counting.steps(kpatch.apply, model, patch) - counting.steps(by_hand) <= 222  # jax itself takes most of them
