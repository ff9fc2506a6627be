"""Behaviour of indexing that mutants of the code had shown to be untested."""

from dataclasses import is_dataclass

import keras
import pytest

from kpatch.indexing import kinds

pytestmark = pytest.mark.skipif(keras.backend.backend() != "numpy", reason="needs no backend: tested once")

KINDS = [cls for cls in vars(kinds).values() if is_dataclass(cls)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_selections_are_small_and_cannot_be_changed(kind):
    assert len(KINDS) > 6
    assert kind.__dictoffset__ == 0  # no `__dict__`
    assert kind.__dataclass_params__.frozen
    assert kind.__hash__ is not None
