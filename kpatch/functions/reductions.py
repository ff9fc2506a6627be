"""Reductions, sorting and running sums along axes, with one result on every backend.

Adjacent axes are worked on together, as the middle one of three: so nothing depends on how many axes a backend takes,
and few of the backends' kernels are needed.
"""

import math

import numpy as np

from kpatch.functions.ranks import order_statistics
from kpatch.values.dtypes import NUMPY, RANGES, dtype_name, is_floating
from kpatch.values.numerics import as_tensor, carried, engine, is_traced, recast, scalar, where

BLOCK = 256  # terms added one after the other; longer sums are sums of such sums

# -- reductions --------------------------------------------------------------------------------------------------------


def runs(axes):
    """Adjacent axes grouped, as half-open intervals.

    Example:
        >>> runs([0, 2, 3])
        [(0, 1), (2, 4)]
    """
    result: list[tuple[int, int]] = []
    for axis in sorted(axes):
        if result and result[-1][1] == axis:
            result[-1] = (result[-1][0], axis + 1)
        else:
            result.append((axis, axis + 1))
    return result


def reduce_along(function, x, axes):
    """Applies a function that reduces the middle of three axes, to each run of adjacent axes in turn."""
    from keras import ops

    shape = ops.shape(x)
    for start, stop in reversed(runs(axes)):
        parts = shape[:start], shape[start:stop], shape[stop:]
        x = function(ops.reshape(x, [math.prod(part) for part in parts]))
        shape = shape[:start] + shape[stop:]
    return ops.reshape(x, shape)


def restore_axes(x, axes):
    """Reduced axes put back, with length 1."""
    from keras import ops

    return ops.expand_dims(x, tuple(axes)) if axes else x


def total(x, axes, dtype):
    """The sum. Long float sums are taken in blocks where the backend would add one term after the other."""
    import keras

    linear = is_floating(dtype) and keras.backend.backend() not in ("jax", "torch")
    return reduce_along(_sum_in_blocks if linear else _sum_middle, recast(x, dtype), axes)


def _sum_middle(x):
    from keras import ops

    return ops.sum(x, axis=1)


def _sum_in_blocks(x):
    """Sums of at most `BLOCK` terms; a contiguous axis needs no help, NumPy and TensorFlow add that pairwise."""
    from keras import ops

    outer, count, inner = x.shape
    if None in (outer, count, inner) or inner == 1 or count <= BLOCK:
        return ops.sum(x, axis=1)
    whole = count - count % BLOCK
    blocks = ops.reshape(x[:, :whole], (outer, BLOCK, whole // BLOCK, inner))
    result = _sum_in_blocks(ops.sum(blocks, axis=1))
    return result if whole == count else result + ops.sum(x[:, whole:], axis=1)


def mean(x, axes, dtype):
    return total(x, axes, dtype) / _length(x, axes, dtype)


def _length(x, axes, dtype):
    """How many entries are reduced to one, as a scalar of a float dtype."""
    from keras import ops

    shape = ops.shape(x)
    lengths = [shape[axis] for axis in axes]
    if all(isinstance(length, int) for length in lengths):
        return scalar(math.prod(lengths), dtype)
    return ops.cast(ops.zeros((), "int32") + math.prod(lengths), dtype)  # as in `grids.Span`


def variance(x, axes, dtype):
    centred = x - restore_axes(mean(x, axes, dtype), axes)
    return mean(centred * centred, axes, dtype)


def deviation(x, axes, dtype):
    return engine("sqrt", dtype)(variance(x, axes, dtype))


def product(x, axes, dtype):
    multiply = engine("prod", dtype)
    return reduce_along(lambda part: recast(multiply(part, 1), dtype), x, axes)


def largest(x, axes, dtype):
    from keras import ops

    return reduce_along(lambda part: ops.max(part, axis=1), x, axes)


def smallest(x, axes, dtype):
    from keras import ops

    return reduce_along(lambda part: ops.min(part, axis=1), x, axes)


def any_along(x, axes, dtype):
    from keras import ops

    return reduce_along(lambda part: ops.any(part, axis=1), _as_flags(x, dtype), axes)


def all_along(x, axes, dtype):
    from keras import ops

    return reduce_along(lambda part: ops.all(part, axis=1), _as_flags(x, dtype), axes)


def _as_flags(x, dtype):
    return x if dtype == "bool" else x != scalar(0, dtype)


def count(x, axes, dtype):
    return total(_as_flags(x, dtype), axes, "int32")


def first_largest(x, axes, dtype):
    """The index of the first NaN, else of the first largest entry, as int32; of several axes, into all of them."""
    return _first_best("max", x, axes, dtype)


def first_smallest(x, axes, dtype):
    """The index of the first NaN, else of the first smallest entry, as int32; of several axes, into all of them."""
    return _first_best("min", x, axes, dtype)


def _first_best(how, x, axes, dtype):
    """The backends disagree on NaN, on ties, and (by design of Keras) on the order of −0 and 0."""
    import keras
    from keras import ops

    backend = keras.backend.backend()

    def of_three_axes(part):
        if backend == "numpy":
            return np.asarray(getattr(np, "arg" + how)(part, axis=1)).astype("int32")
        if backend == "torch":
            return getattr(ops, "arg" + how)(part, axis=1)
        best = getattr(ops, how)(part, axis=1, keepdims=True)
        found = part == best
        if is_floating(dtype):
            found = ops.where(best == best, found, part != part)
        length = ops.shape(part)[1]
        places = ops.reshape(ops.arange(length, dtype="int32"), (1, length, 1))
        return ops.min(ops.where(found, places, scalar(RANGES["int32"][1], "int32")), axis=1)

    return reduce_along(of_three_axes, x, axes)


def logsumexp(x, axes, dtype):
    from keras import ops

    if 0 in x.shape:
        return total(x, axes, dtype) - scalar(np.inf, dtype)
    top = largest(x, axes, dtype)
    top = where(ops.isfinite(top), top, scalar(0, dtype), dtype)
    scaled = engine("exp", dtype)(x - restore_axes(top, axes))
    return engine("log", dtype)(total(scaled, axes, dtype)) + top


def norm(x, axes, dtype, **options):
    """Of a vector; of several axes, as if they were one."""
    degree = options["ord"]
    if degree == np.inf:
        return largest(abs(x), axes, dtype) if 0 not in x.shape else total(x, axes, dtype)
    if degree == -np.inf:
        return smallest(abs(x), axes, dtype)
    if degree == 1:
        return total(abs(x), axes, dtype)
    return engine("sqrt", dtype)(total(x * x, axes, dtype))


# -- along one axis ----------------------------------------------------------------------------------------------------


def softmax(x, dtype, axis, log):
    shifted = x - restore_axes(largest(x, (axis,), dtype), (axis,))
    powers = engine("exp", dtype)(shifted)
    whole = restore_axes(total(powers, (axis,), dtype), (axis,))
    return shifted - engine("log", dtype)(whole) if log else powers / whole


def accumulate(how, x, axis, dtype):
    """`cumsum` or `cumprod`."""
    return in_rows(lambda rows: engine(how, dtype)(rows, 1), x, axis)


def order(x, axis, dtype):
    """The indices that sort along an axis: stable, NaN last, as int32."""
    return in_rows(lambda rows: _order(rows, dtype), x, axis)


def sort(x, axis, dtype):
    """Ascending, NaN last; equal entries keep their order, so that the bits are the same everywhere."""
    return in_rows(lambda rows: _sorted(rows, dtype), x, axis)


def _sorted(x, dtype):
    """Along the middle of three axes."""
    import keras
    from keras import ops

    backend = keras.backend.backend()
    if backend == "numpy" and dtype != "bfloat16":  # of which ml_dtypes sorts NaN anywhere
        return np.sort(x, axis=1, kind="stable")
    if backend == "jax" and dtype != "bool":
        return ops.sort(x, axis=1)
    return carried(lambda part: ops.take_along_axis(part, _order(x, dtype), axis=1), dtype, x)


def in_rows(function, x, axis):
    """Applies a function that works along the middle of three axes, and keeps the shape."""
    from keras import ops

    shape = ops.shape(x)
    rows = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    return ops.reshape(function(ops.reshape(x, rows)), shape)


def _order(x, dtype):
    """Along the middle of three axes."""
    import keras
    from keras import ops

    if dtype == "bool":
        x = ops.cast(x, "int8")
    elif dtype in ("float16", "bfloat16"):
        x, dtype = ops.cast(x, "float32"), "float32"
    backend = keras.backend.backend()
    if backend == "numpy":
        return np.argsort(x, axis=1, kind="stable").astype("int32")  # Keras asks for no stable one
    if backend not in ("jax", "torch") and is_floating(dtype):
        x = _sortable(x, dtype)  # TensorFlow sorts NaN anywhere
    return ops.cast(ops.argsort(x, axis=1), "int32")


def _sortable(x, dtype):
    """Integers in the order of the floats, all NaN equal and last, −0 equal to 0."""
    from keras import ops

    whole = "int64" if dtype == "float64" else "int32"
    x = where(x == scalar(0, dtype), scalar(0, dtype), x, dtype)
    bits = ops.view(x, whole)
    low, high = RANGES[whole]
    bits = where(bits < scalar(0, whole), scalar(low, whole) - bits, bits, whole)
    return where(x == x, bits, scalar(high, whole), whole)


def _from_sortable(bits, dtype):
    """The floats that `_sortable` made integers of."""
    from keras import ops

    whole = "int64" if dtype == "float64" else "int32"
    bits = where(bits < scalar(0, whole), scalar(RANGES[whole][0], whole) - bits, bits, whole)
    return ops.view(bits, dtype)


def quantiles(x, shares, axes, method, dtype):
    """By NumPy's definition, along a new first axis for the shares; NaN where one entry is."""
    from keras import ops

    last = math.prod(x.shape[axis] for axis in axes) - 1
    places = np.array(shares, "float64") * last
    below = np.minimum(np.floor(places), last).astype("int32")
    above = np.minimum(below + 1, last)
    part = places - below
    if method == "nearest":
        part = np.round(places) - below
    elif method != "linear":
        part = np.where(part > 0, {"lower": 0, "higher": 1, "midpoint": 0.5}[method], 0)
    wanted = np.stack([below, above, np.full_like(below, last)])
    places = np.unique(wanted)
    at = np.searchsorted(places, wanted).astype("int32")
    view = _view(x) if len(axes) == len(x.shape) else None
    if view is not None:
        low, high, top = order_statistics(view.reshape(-1), places)[at]
        return as_tensor(_between(low, high, top, part, np.where), dtype)
    x = ops.moveaxis(x, axes[0], -1) if len(axes) == 1 else ops.reshape(x, (-1,))
    x = _placed(x, places, dtype)

    def choose(condition, a, b):
        return where(as_tensor(condition, "bool") if isinstance(condition, np.ndarray) else condition, a, b, dtype)

    low, high, top = (ops.take(x, row, axis=-1) for row in at)
    return ops.moveaxis(_between(low, high, top, part, choose, lambda share: as_tensor(share, dtype)), -1, 0)


def _between(low, high, top, part, choose, made=lambda share: share):
    """The numbers a share `part` of the way from `low` to `high`; `top` is NaN where one of the entries is."""
    near, far = (made(share.astype(NUMPY[dtype_name(low.dtype)])) for share in (part, 1 - part))
    with np.errstate(all="ignore"):
        step = high - low
        result = choose(part < 0.5, low + step * near, high - step * far)
    result = choose(part == 0, low, choose(part == 1, high, result))
    result = choose(low == high, low, result)  # equal infinities have no difference
    return choose(top == top, result, top)


def _view(x):
    """The tensor as an array of NumPy, where its memory is within reach."""
    from kpatch import writers

    return None if is_traced(x) else writers.current().view(x)


def _placed(x, places, dtype):
    """The entries at some places along the last axis, were it sorted, NaN last.

    The order of −0 and 0 is left open, which allows for faster algorithms than `sort` has.
    """
    import keras
    from keras import ops

    backend = keras.backend.backend()
    if backend == "numpy":
        return np.partition(x, places, axis=-1)[..., places]
    x = ops.sort(x if backend in ("jax", "torch") else _sortable(x, dtype), axis=-1)
    x = ops.take(x, places.astype("int32"), axis=-1)
    return x if backend in ("jax", "torch") else _from_sortable(x, dtype)
