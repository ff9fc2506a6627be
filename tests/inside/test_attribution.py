"""Gradients with respect to activations: a few random patches; `tests/attribution.py` draws many, in float64."""

import attribution
import keras
import pytest


@pytest.mark.skipif(keras.backend.backend() == "numpy", reason="numpy has no gradients")
def test_gradients_agree_with_finite_differences():
    assert attribution.run(3, seed=1, step=1e-2, tolerance=5e-3) == 3
