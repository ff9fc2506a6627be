"""Numbers of whole arrays that are read in blocks: the bits of those of arrays in memory."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kpatch import checkpoint
from kpatch.checkpoint import store
from kpatch.functions import call, reductions
from kpatch.values.dtypes import tensor

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 128, 129, 2**16, 2**16 + 1, 3 * 2**16 + 1000, 2**18 + 8 * 77 + 5])
def test_totals_have_the_bits_of_the_functions(size, dtype):
    """NumPy adds in pairs, so the blocks must be its own halves."""
    rng = np.random.default_rng(size)
    x = (rng.standard_normal(size) * 10 ** rng.uniform(-5, 5, size)).astype(dtype)
    for special in ((), (np.inf,), (np.nan,), (-0.0,)):
        x[: len(special)] = special
        for name in reductions.TOTALS:
            with np.errstate(all="ignore"):
                found = reductions.in_blocks(name, size, lambda start, count: x[start : start + count], dtype)
            expected = call(name, [tensor(x.reshape(1, -1))], {}).data
            assert np.asarray(found).tobytes() == np.asarray(expected).tobytes(), name
            assert found.dtype == dtype


PATCHES = (
    "a = _ - mean(_)",
    "a -= mean(_)",
    "a = (_ - mean(_)) * 0.5 + sum(abs(_))",
    "a *= var(_)",
    "a = _ * std(_ - mean(_))",
    "a[abs(_) < 2 * std(_)] = 0",
    "a = _ + mean($b) * mean(c)",
    "a = _ - mean(c[abs(_) < mean(_)])",
    "a = _ - mean(_, axis=0)",
    "a = _ - max(_)",
)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a": (700, 300), "c": (2, 70_001)}
    arrays = {name: rng.standard_normal(shape, "float32") for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "m.safetensors")
    save_file({"b": rng.standard_normal((3, 99_999), "float32")}, tmp_path / "b.safetensors")
    return tmp_path


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_in_blocks_has_the_bits_of_one_in_memory(files, patch, monkeypatch):
    given = {"b": load_file(files / "b.safetensors")["b"]} if "$b" in patch else {}
    checkpoint.apply(files / "m.safetensors", patch, files / "blocks.safetensors", bindings=given)
    monkeypatch.setattr(store.Stored, "stream", None)
    checkpoint.apply(files / "m.safetensors", patch, files / "memory.safetensors", bindings=given)
    assert (files / "blocks.safetensors").read_bytes() == (files / "memory.safetensors").read_bytes()


@pytest.mark.parametrize("patch", PATCHES[:6])
def test_no_array_is_read_as_a_whole(files, patch, monkeypatch):
    def refuse(*_):
        raise AssertionError("read as a whole")

    monkeypatch.setattr(store.Stored, "value", refuse)
    checkpoint.apply(files / "m.safetensors", patch, files / "out.safetensors")
