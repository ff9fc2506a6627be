"""Reductions of all of an array that is read in blocks, on NumPy, with the bits of the functions themselves.

The array is given by its size and `part`, a function of a start and a count, which gives these entries.
"""

import numpy as np

from kpatch.functions.quantiles import of_statistics
from kpatch.functions.ranks import order_statistics_of
from kpatch.values.numerics import engine, scalar

SUMS = ("sum", "mean", "var", "std")
BESTS = {"max": np.maximum, "min": np.minimum}
FLAGS = ("any", "all", "count_nonzero")
QUANTILES = ("median", "quantile")
LEAF = 2**16  # entries reduced by one call


def in_blocks(name, size, part, dtype, share=0.5):
    """A reduction of at least one entry; `None` if the bits of the result depend on the order of the entries.

    Args:
        name: the function.
        dtype: the dtype of the entries: float32, float64 or bool; this is not for quantiles or extremes.
        share: the share of a quantile.
    """
    if name in FLAGS or (dtype == "bool" and name == "sum"):
        return _flagged(name, size, part)
    if dtype == "bool":
        return in_blocks(name, size, lambda start, count: part(start, count).astype("float32"), "float32")
    if name in BESTS:
        return _best(BESTS[name], size, part)
    if name in QUANTILES:
        method = "median" if name == "median" else "linear"
        return of_statistics(lambda places: order_statistics_of(part, size, dtype, places), size, share, method)
    return _total(name, size, part, dtype)


def _blocks(size, part):
    return (part(start, min(LEAF, size - start)) for start in range(0, size, LEAF))


def _flagged(name, size, part):
    """A function of flags, or of floats that are 0 or not."""
    if name == "any":
        return np.bool_(any(np.any(block != 0) for block in _blocks(size, part)))
    if name == "all":
        return np.bool_(all(np.all(block != 0) for block in _blocks(size, part)))
    return np.array(sum(int(np.count_nonzero(block)) for block in _blocks(size, part))).astype("int32")


def _best(better, size, part):
    """The best entry. NumPy leaves open which of several NaN it is, and which of −0 and 0."""
    best = better.reduce([better.reduce(block) for block in _blocks(size, part)])
    if best != best:
        return None
    if best == 0:
        signs = {bool(sign) for block in _blocks(size, part) for sign in np.unique(np.signbit(block[block == 0]))}
        return best if len(signs) == 1 else None
    return best


def _total(name, size, part, dtype):
    def mean_of(entries):
        return _pairwise(entries, 0, size) / scalar(size, dtype)

    def squares(start, count):
        centred = part(start, count) - middle
        return centred * centred

    if name == "sum":
        return _pairwise(part, 0, size)
    middle = mean_of(part)
    if name == "mean":
        return middle
    return mean_of(squares) if name == "var" else engine("sqrt", dtype)(mean_of(squares))


def _pairwise(part, start, count):
    """NumPy's own order of additions: halves, of a multiple of eight entries."""
    if count <= LEAF:
        return np.add.reduce(part(start, count))
    half = count // 2
    half -= half % 8
    return _pairwise(part, start, half) + _pairwise(part, start + half, count - half)
