"""Behaviour of checkpoints that mutants of the code had shown to be untested."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch import checkpoint

pytestmark = pytest.mark.skipif(keras.backend.backend() != "numpy", reason="needs no backend: tested once")


@pytest.mark.parametrize("count", [63, 64, 65])
def test_up_to_64_scattered_entries_are_written_out(count, tmp_path):
    old = np.zeros(65**2, "float32")
    new = old.copy()
    new[np.arange(count) ** 2] = np.arange(count) + 1
    for name, array in (("a", old), ("b", new)):
        save_file({"w": array}, tmp_path / f"{name}.safetensors")
    found = checkpoint.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    lines = [line for line in found.text.splitlines() if line.startswith("w")]
    assert len(lines) == (count if count <= 64 else 1)
    assert bool(found.bindings) == (count > 64)
