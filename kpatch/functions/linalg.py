"""Linear algebra: matrices in the last two axes, batches in the axes before them.

Integers are computed in float32, 16-bit floats in float32 and rounded once, literals in double precision.

For a matrix without an inverse or a factor some backends raise, others give infinities or NaN, depending on rounding.
So kpatch itself refuses, on every backend alike, a matrix that is singular within the rounding of its dtype. Compiled
functions make no such check, because their values are unknown.
"""

import functools
import math

import numpy as np

from kpatch import backends
from kpatch.errors import FunctionError, ShapeError
from kpatch.functions import ranges
from kpatch.functions.axes import differ, normal_axes
from kpatch.functions.operands import as_floats, float_of, need_lengths, strong
from kpatch.functions.parameters import Flag, Integers, Numeric, Order
from kpatch.functions.reductions import by_name, floats, max_, min_, need_entries, reduce, sum_, total
from kpatch.functions.registry import Group
from kpatch.functions.shapes import expand_dims, moveaxis
from kpatch.indexing import broadcast
from kpatch.values import dtypes, numerics
from kpatch.values.arithmetic import compute, count_work, doubt, fold
from kpatch.values.tensors import to_numpy

LINEAR_ALGEBRA = Group("Linear algebra")
FAILURES = ("LinAlgError", "_LinAlgError", "InvalidArgumentError", "ValueError")  # the backends' errors for a matrix


def _of_matrix(description, example, shape=lambda shape: shape, square=True):
    """The decorator of a kernel: defines the function of one matrix with the kernel's name.

    Args:
        shape: the result's shape from the matrix's shape.
        square: whether the matrix must be square.
    """

    def define(kernel):
        name = kernel.__name__.lstrip("_")

        def rule(x: Numeric):
            _need_matrix(name, x.shape, square)
            _count_work(x.shape, min(_known(x.shape[-2:])), x)
            return _computed(name, kernel, shape(x.shape), x)

        LINEAR_ALGEBRA(description, example, name)(rule)
        return kernel

    return define


def _computed(name, kernel, shape, *operands):
    """The `Value` of a kernel of the operands, in one float dtype."""
    dtypes.check_size(shape, *operands)
    need_lengths(name, *operands)
    if any(value.data is None for value in operands):
        doubt()
    run = functools.partial(_run, name, kernel)
    if all(value.weak for value in operands):
        folded = (lambda *_: np.zeros(shape)) if 0 in shape else (lambda *data: run(*data, "float64"))
        return fold(shape, folded, *map(as_floats, operands))
    dtype = float_of(*operands)
    return compute(dtype, shape, lambda *data: numerics.in_float32(run, dtype, *data), *operands, to=dtype)


def _run(name, kernel, *arguments):
    *data, dtype = arguments
    if not any(map(numerics.is_traced, data)):
        for place, x in enumerate(data):
            if not np.isfinite(to_numpy(x)).all():
                message = f"{name}() of a matrix with nan or infinite entries"
                raise FunctionError(message, argument=place, notes=["nan_to_num(x) replaces them by numbers"])
    return kernel(*data, dtype)


# -- norms -------------------------------------------------------------------------------------------------------------


@LINEAR_ALGEBRA(
    'the norm; ord is 1, 2, inf or -inf of vectors, "fro", "nuc", 1, -1, 2, -2, inf or -inf of matrices',
    "norm([3, 4]) is about 5",
    names=ranges.without_reduced,
)
def norm(x: Numeric, ord: Order = None, axis: Integers = None, keepdims: Flag = False):  # noqa: A002
    """All axes count as one if `ord` is not given; else one axis makes vectors, two make matrices."""
    axes = normal_axes(axis, len(x.shape))
    if ord is not None and len(axes) > 2:
        raise ShapeError(f"'ord' of norm() is for one axis or two, found {len(axes)}", argument="ord")
    names = ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf) if len(axes) == 2 else (1, 2, math.inf, -math.inf)
    if ord not in (None, *names):
        given = ", ".join(map(str, names[:-1]))
        kind = "matrices" if len(axes) == 2 else "vectors"
        raise FunctionError(f"'ord' of norm() of {kind} is {given} or {names[-1]}, not {ord}", argument="ord")
    if len(axes) == 2 and ord not in (None, "fro"):
        return _matrix_norm(x, ord, axes, keepdims)
    return reduce(functools.partial(_norm, ord), x, axis, keepdims, floats, None)


def _norm(degree, x, axes, dtype):
    """The norm of a vector; several axes count as one."""
    if degree == np.inf:
        return by_name("max", abs(x), axes) if 0 not in x.shape else total(x, axes, dtype)
    if degree == -np.inf:
        return by_name("min", abs(x), axes)
    if degree == 1:
        return total(abs(x), axes, dtype)
    return numerics.engine("sqrt", dtype)(total(x * x, axes, dtype))


def _matrix_norm(x, degree, axes, keepdims):
    """By the singular values, or by the sums of rows or columns; short floats are rounded once."""
    dtype = float_of(x)
    if dtypes.FLOATS[dtype] == 16:
        x = compute("float32", x.shape, lambda a: a, x, to="float32")
    best = sum_ if degree == "nuc" else max_ if degree > 0 else min_
    if degree != "nuc":
        need_entries("norm", x, axes)
    if degree in ("nuc", 2, -2):
        [x] = strong(x) if x.weak else [x]
        matrices = moveaxis(x, axes, (-2, -1))
        least = _least(matrices.shape)
        _count_work(matrices.shape, *_known([least]), matrices)
        result = best(_computed("norm", _svd, (*matrices.shape[:-2], least), matrices), -1)
        if keepdims:
            result = expand_dims(result, axes)
    else:
        along = axes[0] if abs(degree) == 1 else axes[1]
        result = best(norm(x, 1, along, keepdims=True), axes, keepdims)
    return compute(dtype, result.shape, lambda a: numerics.recast(a, dtype), result)


# -- shapes and bounds -------------------------------------------------------------------------------------------------


def _need_matrix(name, shape, square=True):
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {shape}", argument=0)
    if square and differ(*shape[-2:]):
        raise ShapeError(f"{name}() takes square matrices, found the shape {shape}", argument=0)


def _known(lengths):
    return [1 if length is None else length for length in lengths]


def _count_work(shape, depth, *operands):
    count_work(math.prod(_known(shape)) * depth, *operands)


def _least(shape):
    rows, columns = shape[-2:]
    return None if None in (rows, columns) else min(rows, columns)


# -- the functions, and their kernels: on NumPy's arrays and on the backend's tensors ----------------------------------


def _engines(x):
    """The modules with the functions of arrays and of linear algebra."""
    if isinstance(x, np.ndarray):
        return np, np.linalg  # literals are arrays on every backend
    ops = backends.current().ops
    return ops, ops


def _attempt(refuse, function, *data):
    """Calls a backend's function; one of its `FAILURES` becomes the error made by `refuse`."""
    try:
        return function(*data)
    except Exception as error:  # each backend has its own, with no common base
        if type(error).__name__ not in FAILURES:
            raise
        raise refuse() from error


def _transposed(x):
    return _engines(x)[0].swapaxes(x, -1, -2)


def _symmetric(x):
    """The lower triangle and its mirror image: some backends read one triangle, some the mean of both."""
    arrays = _engines(x)[0]
    return arrays.tril(x) + _transposed(arrays.tril(x, -1))


@_of_matrix("the determinant", "det([[1, 2], [3, 4]]) is about -2", lambda shape: shape[:-2])
def _det(x, dtype):
    arrays, linalg = _engines(x)
    return linalg.det(x) if x.shape[-1] else arrays.ones(x.shape[:-2], dtype)


def _singular(name):
    note = "pinv(x) has a result for every matrix" if name == "inv" else "pinv(a) @ b is the least-squares solution"
    return FunctionError(f"{name}() of a singular matrix", argument=0, notes=[note])


@_of_matrix("the inverse matrix", "inv([[2, 0], [1, 1]]) is about [[0.5, 0], [-0.5, 1]]")
def _inv(x, dtype, name="inv"):
    """Raises `FunctionError` if rounding the entries could make the matrix singular.

    The measure is the condition number of R. D. Skeel, "Scaling for numerical stability in Gaussian elimination",
    J. ACM 26, 1979, which ignores the scales of the rows, or that of the transposed matrix, which ignores the scales
    of the columns; the smaller counts.

    Example:
        >>> _inv(np.array([[2.0, 0.0], [0.0, 4.0]]), "float64")
        array([[0.5 , 0.  ],
               [0.  , 0.25]])
        >>> _inv(np.array([[1.0, 2.0], [2.0, 4.0]]), "float64")
        Traceback (most recent call last):
        kpatch.FunctionError: inv() of a singular matrix
          pinv(x) has a result for every matrix
    """
    refuse = functools.partial(_singular, name)
    inverse = _attempt(refuse, _engines(x)[1].inv, x)
    if not numerics.is_traced(inverse):
        size, back = (np.abs(to_numpy(part).astype("float64")) for part in (x, inverse))
        condition = np.minimum((back @ size).sum(-1).max(-1), (size @ back).sum(-2).max(-1))
        if not (condition * np.finfo(dtype).eps < 1).all():
            raise refuse()
    return inverse


@_of_matrix(
    "the pseudo-inverse matrix",
    "pinv([[2], [0]]) is about [[0.5, 0]]",
    lambda shape: (*shape[:-2], shape[-1], shape[-2]),
    square=False,
)
def _pinv(x, dtype):
    """Singular values below the rounding of the largest one count as 0, on every backend alike."""
    arrays, linalg = _engines(x)
    u, s, v = linalg.svd(x, full_matrices=False)
    least = arrays.max(s, axis=-1, keepdims=True) * (max(x.shape[-2:]) * float(np.finfo(dtype).eps))
    kept = arrays.sign(arrays.maximum(s - least, s * 0))
    inverse = kept / (s + (1 - kept))
    return (_transposed(v) * arrays.expand_dims(inverse, -2)) @ _transposed(u)


@LINEAR_ALGEBRA("x such that a @ x == b", "solve([[2, 0], [1, 1]], [2, 5]) is about [1, 4]")
def solve(a: Numeric, b: Numeric):
    """`b` with one axis is a vector, else matrices whose batch broadcasts with that of `a`."""
    _need_matrix("solve", a.shape)
    if not b.shape:
        raise ShapeError("solve() takes a vector or a matrix on the right, found a number", argument=1)
    vector = len(b.shape) == 1
    rows, columns = (b.shape[0], 1) if vector else b.shape[-2:]
    if differ(a.shape[-1], rows):
        message = f"the shapes {a.shape} and {b.shape} do not fit: {a.shape[-1]} is not {rows}"
        raise ShapeError(message, argument=1)
    batch = broadcast([a.shape[:-2], () if vector else b.shape[:-2]])
    size = a.shape[-1] if rows is None else rows
    _count_work((*batch, size, size), max(_known((size, columns))), a, b)
    return _computed("solve", _solve, (*batch, size) if vector else (*batch, size, columns), a, b)


def _solve(a, b, dtype):
    arrays, linalg = _engines(a)
    if not numerics.is_traced(a):
        _inv(a, dtype, "solve")  # the check of `inv`: the backends' own differ
    vector = len(b.shape) == 1
    right = arrays.expand_dims(b, -1) if vector else b
    batch = broadcast([tuple(a.shape[:-2]), tuple(right.shape[:-2])])
    a, right = (arrays.broadcast_to(part, (*batch, *part.shape[-2:])) for part in (a, right))
    result = linalg.solve(a, right)
    return arrays.squeeze(result, -1) if vector else result


@_of_matrix(
    "the lower triangular l with positive diagonal such that l @ transpose(l) == x",
    "cholesky([[4, 2], [2, 5]]) is about [[2, 0], [1, 2]]",
)
def _cholesky(x, dtype):
    def refuse():
        return FunctionError("cholesky() of a matrix that is not positive definite", argument=0)

    result = _attempt(refuse, _engines(x)[1].cholesky, _symmetric(x))
    if not numerics.is_traced(result):
        pivots, whole = (to_numpy(part).astype("float64") for part in (result, x))
        pivots, whole = (np.diagonal(part, axis1=-2, axis2=-1) for part in (pivots, whole))
        if not (pivots**2 > np.finfo(dtype).eps * whole).all():
            raise refuse()
    return result


@_of_matrix(
    "the orthogonal factor q of x == q @ r, with no negative entry on the diagonal of r",
    "qr([[3, 0], [4, 5]]) is about [[0.6, -0.8], [0.8, 0.6]]",
    lambda shape: (*shape[:-1], _least(shape)),
    square=False,
)
def _qr(x, dtype):
    arrays, linalg = _engines(x)
    q, r = linalg.qr(x)
    diagonal = arrays.diagonal(r, axis1=-2, axis2=-1)
    sign = arrays.sign(arrays.sign(diagonal) * 2 + 1)  # 1 for 0
    return q * arrays.expand_dims(sign, -2)


@_of_matrix(
    "the singular values, descending",
    "svd([[3, 0], [0, -4]]) is about [4, 3]",
    lambda shape: (*shape[:-2], _least(shape)),
    square=False,
)
def _svd(x, dtype):
    return _engines(x)[1].svd(x, compute_uv=False)


@_of_matrix(
    "the eigenvalues of a symmetric matrix, ascending",
    "eigh([[2, 1], [1, 2]]) is about [1, 3]",
    lambda shape: shape[:-1],
)
def _eigh(x, dtype):
    return _engines(x)[1].eigh(_symmetric(x))[0]
