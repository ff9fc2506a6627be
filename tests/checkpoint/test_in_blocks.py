"""Numbers of whole arrays that are read in blocks: the bits of those of arrays in memory."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.checkpoint import store
from kpatch.functions import blockwise, call
from kpatch.values.dtypes import literal, tensor

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 7, 128, 129, 2**16, 2**16 + 1, 3 * 2**16 + 1000, 2**18 + 8 * 77 + 5])
def test_totals_have_the_bits_of_the_functions(size, dtype):
    """NumPy adds in pairs, so the blocks must be its own halves."""
    rng = np.random.default_rng(size)
    x = (rng.standard_normal(size) * 10 ** rng.uniform(-5, 5, size)).astype(dtype)
    for special in ((), (np.inf,), (np.nan,), (-0.0,)):
        x[: len(special)] = special
        for name in (*blockwise.SUMS, *blockwise.BESTS, *blockwise.FLAGS, "median"):
            with np.errstate(all="ignore"):
                found = blockwise.in_blocks(name, size, lambda start, count: x[start : start + count], dtype)
            expected = call(name, [tensor(x.reshape(1, -1))], {}).data
            if found is None:
                assert name in blockwise.BESTS
                assert np.isnan(expected)
                continue
            assert np.asarray(found).tobytes() == np.asarray(expected).tobytes(), name
            assert found.dtype == expected.dtype


@pytest.mark.parametrize("size", [9, 2**16 + 77])
def test_extremes_of_zeros(size):
    """NumPy leaves open which of −0 and 0 is the largest; of one kind of them it is that."""
    for zeros in ([0.0], [-0.0], [0.0, -0.0]):
        x = np.full(size, -1, "float32")
        x[: len(zeros)] = zeros
        found = blockwise.in_blocks("max", size, lambda start, count, x=x: x[start : start + count], "float32")
        assert (found is None) == (len(zeros) == 2)
        assert found is None or np.signbit(found) == np.signbit(zeros[0])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [5, 2**14 + 3, 3 * 2**16 + 1000])
def test_quantiles_have_the_bits_of_the_function(size, share):
    x = np.random.default_rng(size).standard_normal(size).astype("float32")
    found = blockwise.in_blocks("quantile", size, lambda start, count: x[start : start + count], "float32", share)
    assert found.tobytes() == np.asarray(call("quantile", [tensor(x), literal(share)], {}).data).tobytes()


@pytest.mark.parametrize("name", ["sum", "mean", "any", "all", "count_nonzero"])
def test_flags(name):
    flags = np.random.default_rng(0).random(3 * 2**16 + 5) < 0.3
    found = blockwise.in_blocks(name, flags.size, lambda start, count: flags[start : start + count], "bool")
    expected = call(name, [tensor(flags)], {}).data
    assert (found.tobytes(), found.dtype) == (np.asarray(expected).tobytes(), expected.dtype)


IN_BLOCKS = (
    "a = _ - mean(_)",
    "a -= mean(_)",
    "a = (_ - mean(_)) * 0.5 + sum(abs(_))",
    "a *= var(_)",
    "a = _ * std(_ - mean(_))",
    "a[abs(_) < 2 * std(_)] = 0",
    "a = _ - max(_)",
    "a[abs(_) < quantile(abs(_), 0.3)] = 0",
    "let m = max(abs(c) * $one); let n = count_nonzero(c < 0); assert any(c > 0) and mean(c > 0) < 0.9; a += m * n",
    "a *= 0.5; let m = mean(a); a[0] = m; a[1] = max(a)",
    "for * { let t = mean(_); _ -= t }",
    "for * { let t = quantile(abs(_), 0.3); assert any(_ > t) and mean(_ * 2) < 1; _[abs(_) < t] = 0 }",
    "for a { let t = sum($b) + max(_) * mean(_ - $one); _ = _ * t; let u = var(_); assert u > 0; _ -= u }",
    "assert all(isfinite(a)); a[_ > mean(abs($b))] = 0; a[_ > median($b)] = 1; a += min($b) + sum(c > 3 * std(c))",
)
PATCHES = (
    *IN_BLOCKS,
    "a = _ + mean($b) * mean(c)",
    "a = _ - mean(c[abs(_) < mean(_)])",
    "a = _ - mean(_, axis=0)",
    "a[_ > min(_) + 0.5 * max(abs(c))] = median(c)",
    "a[2] = max(_); a = _ / max(abs(a))",
    "for * { let t = max(_[argmax(_[:, 0])]); let u = _ - mean(_, axis=0); _ = u * t; assert shape(_)[0] > 1 }",
)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a": (700, 300), "c": (2, 70_001)}
    arrays = {name: rng.standard_normal(shape, "float32") for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "m.safetensors")
    save_file({"b": rng.standard_normal((3, 99_999), "float32")}, tmp_path / "b.safetensors")
    return tmp_path


def given(files, patch):
    """What a patch names: an array of a file, and a number."""
    [array] = checkpoint.open(files / "b.safetensors").arrays
    return {name: value for name, value in {"b": array, "one": 1.5}.items() if f"${name}" in patch}


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_in_blocks_has_the_bits_of_one_in_memory(files, patch, monkeypatch):
    checkpoint.apply(files / "m.safetensors", patch, files / "blocks.safetensors", bindings=given(files, patch))
    monkeypatch.setattr(store.Stored, "stream", None)
    monkeypatch.setattr(store.Stored, "reduced", None)
    checkpoint.apply(files / "m.safetensors", patch, files / "memory.safetensors", bindings=given(files, patch))
    assert (files / "blocks.safetensors").read_bytes() == (files / "memory.safetensors").read_bytes()


@pytest.mark.parametrize("patch", IN_BLOCKS)
def test_no_array_is_read_as_a_whole(files, patch, monkeypatch):
    def refuse(*_):
        raise AssertionError("read as a whole")

    monkeypatch.setattr(store.Stored, "value", refuse)
    checkpoint.apply(files / "m.safetensors", patch, files / "out.safetensors", bindings=given(files, patch))
