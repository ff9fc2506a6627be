"""What statements did to arrays in files: the entries counted, the range and mean of their values as NumPy's."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch import checkpoint

pytestmark = pytest.mark.backend_free

SIZE = 3 * 2**16 + 77  # of several blocks


@pytest.fixture
def values(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(SIZE).astype("float32")
    values[:3] = np.nan, 0.0, -0.0
    values[2**16 : 2**17] = np.abs(values[2**16 : 2**17])  # a block of one sign
    save_file({"w": values}, tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    return values


@pytest.mark.parametrize("number", ["0", "-0.0", "0.5"])
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("abs(_) < 1", lambda w: np.abs(w) < 1),
        ("_ > 0.5", lambda w: w > 0.5),
        ("_ < 0", lambda w: w < 0),
        ("not (_ > 0)", lambda w: ~(w > 0)),  # NaN is among these
        ("_ > 9", lambda w: w > 9),
        ("_ < inf", lambda w: w < np.inf),
        ("abs(_) > 2.5", lambda w: np.abs(w) > 2.5),  # few, of which all are kept at first
    ],
)
def test_entries_of_a_mask(values, mask, expected, number):
    applied = checkpoint.apply("m.safetensors", f"w[{mask}] = {number}", "out.safetensors")
    where = expected(values)
    new = np.where(where, np.float32(number), values)
    assert checkpoint.open("out.safetensors")["w"].tobytes() == new.tobytes()
    [change] = applied.changes
    assert change.entries == np.count_nonzero(where)
    for found, picked in ((change.before, values[where]), (change.after, new[where])):
        _check(found.to_dict(), picked)


def test_entries_of_a_whole_array(values):
    [change] = checkpoint.apply("m.safetensors", "w = 0.5 * _ + 1.0", "out.safetensors").changes
    assert change.entries == SIZE
    _check(change.before.to_dict(), values)
    _check(change.after.to_dict(), np.float32(0.5) * values + np.float32(1))


def _check(found, picked):
    if not picked.size:
        assert found == {"min": None, "mean": None, "max": None, "values": []}
    elif np.isnan(picked).any():
        assert found["mean"] == "NaN"
    else:
        assert (found["min"], found["max"]) == (picked.min(), picked.max())
        assert found["mean"] == pytest.approx(picked.mean(dtype="float64"), rel=1e-12, abs=1e-12)
