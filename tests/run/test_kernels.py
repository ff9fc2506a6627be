"""Functions of NumPy for blocks, held to NumPy's own, bit for bit."""

import numpy as np
import pytest

from kpatch.run import kernels

pytestmark = pytest.mark.backend_free
SPECIAL = [np.nan, -np.nan, np.inf, -0.0, 0.0, 1e-40, -1e-40, 1.0, -2.5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("true", [0, 1, 3, 4, 150, 256])
def test_a_choice_is_that_of_numpy(dtype, true):
    """Of few true entries, of many, and into the memory of each operand."""
    rng = np.random.default_rng(true)
    mask = rng.permutation(256) < true
    x, y = (rng.choice(SPECIAL, 256).astype(dtype) for _ in range(2))
    numbers = [x.dtype.type(number) for number in SPECIAL]
    for chosen in (x, *numbers):
        for other in (y, *numbers):
            expected = np.where(mask, chosen, other).tobytes()
            for count in (None, true):
                assert kernels.where(mask, chosen, other, np.empty_like(x), count=count).tobytes() == expected
                for place in (x, y):
                    operands = [place.copy() if each is place else each for each in (chosen, other)]
                    out = next((new for new, old in zip(operands, (chosen, other), strict=True) if old is place), None)
                    if out is not None:
                        assert kernels.where(mask, *operands, out, count=count) is out
                        assert out.tobytes() == expected
