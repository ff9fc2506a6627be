"""Linear algebra, sums of products, and entries picked by index or size: NumPy is the oracle."""

import itertools
import math
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from test_functions import FLOATS, INTEGERS, JAX, fails, given_as, make, numbers, run

import kpatch
from kpatch.errors import DTypeError, FunctionError, LimitError, ShapeError, SubscriptError, UnsupportedError
from kpatch.functions import TABLE, call
from kpatch.values.arithmetic import planning
from kpatch.values.dtypes import NUMPY, Value, literal

RANDOM = np.random.default_rng(0)
A = RANDOM.standard_normal((2, 3, 4, 4)).astype("float32") + 2 * np.eye(4, dtype="float32")
B = RANDOM.standard_normal((2, 3, 4, 2)).astype("float32")
TALL = RANDOM.standard_normal((2, 5, 3)).astype("float32")
WIDE = TALL.swapaxes(-1, -2)
POSITIVE = A @ A.swapaxes(-1, -2)
SIX = RANDOM.standard_normal((2, 6)).astype("float32")


def numpy_qr(x):
    q, r = np.linalg.qr(x)
    return q * np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :]


CASES = [
    ("det", np.linalg.det, A), ("det", np.linalg.det, A[0, 0]), ("inv", np.linalg.inv, A), ("pinv", np.linalg.pinv, A),
    ("pinv", np.linalg.pinv, TALL), ("pinv", np.linalg.pinv, WIDE), ("cholesky", np.linalg.cholesky, POSITIVE),
    ("qr", numpy_qr, A), ("qr", numpy_qr, TALL), ("qr", numpy_qr, WIDE), ("eigh", np.linalg.eigvalsh, POSITIVE),
    ("svd", lambda x: np.linalg.svd(x, compute_uv=False), A), ("eigh", np.linalg.eigvalsh, A),
    ("svd", lambda x: np.linalg.svd(x, compute_uv=False), TALL), ("solve", np.linalg.solve, A, B),
    ("solve", np.linalg.solve, A[0, 0], B), ("solve", np.linalg.solve, A, B[0, 0]),
    ("solve", np.linalg.solve, A[0, 0], B[0, 0, :, 0]), ("kron", np.kron, A[0], TALL), ("kron", np.kron, A[0, 0], B),
    ("solve", lambda a, b: np.linalg.solve(a, b[:, None])[..., 0], A, B[0, 0, :, 0]),
    ("kron", np.kron, A[0, 0, 0], TALL), ("inner", np.inner, A[0, 0], B[0].swapaxes(-1, -2)), ("vdot", np.vdot, A, A),
    ("inner", np.inner, A[0, 0], np.float32(3)), ("cross", np.cross, WIDE[:, :, :3], WIDE[:, :, 2:]),
    ("cross", np.cross, TALL, TALL[0, 0]), ("vdot", np.vdot, TALL, WIDE),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'-'.join(str(x.shape) for x in case[2:])}")
def test_values(case):
    name, oracle, *args = case
    expected = oracle(*(x.astype("float64") for x in args))
    np.testing.assert_allclose(run(name, *args), expected, rtol=3e-4, atol=3e-5)
    hidden = call(name, [Value("float32", x.shape) for x in args])
    assert (hidden.dtype, hidden.shape, hidden.data) == ("float32", np.shape(expected), None)
    folded = call(name, [literal(x.astype("float64")) for x in args])
    assert folded.weak
    np.testing.assert_allclose(folded.data, expected, rtol=1e-10, atol=1e-10)
    if "float64" in FLOATS:
        found = run(name, *(x.astype("float64") for x in args))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [f.name for f in TABLE.values() if f.group == "Linear algebra"])
def test_short_floats_are_rounded_once(name):
    args = {"solve": (A[0, 0], B[0, 0]), "cholesky": (POSITIVE[0, 0],)}.get(name, (A[0, 0],))
    for dtype in ("bfloat16",) if JAX else ("float16", "bfloat16"):
        short = [x.astype(NUMPY[dtype]) for x in args]
        found, wide = run(name, *short), run(name, *(x.astype("float32") for x in short))
        assert found.dtype == NUMPY[dtype]
        np.testing.assert_array_equal(found, wide.astype(NUMPY[dtype]))


def test_integers_are_float32_in_linear_algebra():
    x = np.array([[2, 0], [1, 1]], "int8")
    assert run("inv", x).dtype == np.float32
    np.testing.assert_allclose(run("inv", x), [[0.5, 0], [-0.5, 1]], atol=1e-7)
    np.testing.assert_allclose(run("solve", x, np.array([2, 5], "uint8")), [1, 4], rtol=1e-6)
    np.testing.assert_allclose(run("solve", x, [2, 5]), [1, 4], rtol=1e-6)


def test_matrices_without_entries():
    empty = np.zeros((0, 0), "float32")
    assert run("det", empty) == run("det", literal(empty)) == 1
    assert run("det", np.zeros((0, 2, 2), "float32")).shape == (0,)
    assert run("inv", empty).shape == run("cholesky", empty).shape == (0, 0)
    assert run("pinv", np.zeros((0, 3), "float32")).shape == (3, 0)
    assert run("qr", np.zeros((3, 0), "float32")).shape == (3, 0)
    assert run("svd", np.zeros((0, 3), "float32")).shape == run("eigh", empty).shape == (0,)
    assert run("solve", empty, np.zeros((0, 2), "float32")).shape == (0, 2)
    assert run("svd", literal(np.zeros((0, 3)))).shape == (0,)


SINGULAR = [[[1, 2], [2, 4]], [[0, 0], [0, 0]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 1], [1, 1 + 1e-8]]]
ALMOST = [[[1, 0], [0, 1e-12]], [[1e12, 0], [1, 1e-12]], [[1, 1], [1, 1.001]]]


@pytest.mark.parametrize("batched", [False, True])
def test_singular_matrices_are_refused_everywhere(batched):
    for rows in SINGULAR:
        x = np.array(rows, "float32")
        x = np.stack([np.eye(len(x), dtype="float32"), x]) if batched else x
        text = "inv() of a singular matrix\n  pinv(x) has a result for every matrix"
        assert fails(FunctionError, "inv", x) == (text, 0)
        text = "solve() of a singular matrix\n  pinv(a) @ b is the least-squares solution"
        assert fails(FunctionError, "solve", x, np.ones(x.shape[-1], "float32")) == (text, 0)
        np.testing.assert_allclose(run("det", x), np.linalg.det(x.astype("float64")), atol=1e-5)
    for rows in ALMOST:
        x = np.array(rows, "float32")
        expected = np.linalg.inv(x.astype("float64"))
        np.testing.assert_allclose(run("inv", x), expected, rtol=1e-3)
        solution = run("solve", x, x[:, 0])  # one of LAPACK's, and of how it rounds; that it solves is what holds
        np.testing.assert_allclose(x.astype("float64") @ solution, x[:, 0], rtol=1e-6)


def test_matrices_that_are_not_positive_definite_are_refused_everywhere():
    for rows in ([[1, 2], [2, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]], [[-1, 0], [0, 1]]):
        text = "cholesky() of a matrix that is not positive definite"
        assert fails(FunctionError, "cholesky", np.array(rows, "float32")) == (text, 0)
        assert fails(FunctionError, "cholesky", rows)[0] == text
    upper = np.array([[4, 99], [2, 5]], "float32")  # only the lower triangle is read, as NumPy does
    np.testing.assert_allclose(run("cholesky", upper), [[2, 0], [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(run("eigh", upper), np.linalg.eigvalsh([[4, 2], [2, 5]]), rtol=1e-6)


def test_pinv_of_matrices_without_full_rank():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], "float32")
    expected = np.linalg.pinv(x.astype("float64"), 1e-6)
    np.testing.assert_allclose(run("pinv", x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run("pinv", np.zeros((2, 3), "float32")), np.zeros((3, 2)))


@pytest.mark.parametrize("name", ["det", "inv", "pinv", "cholesky", "qr", "svd", "eigh"])
def test_entries_that_are_not_finite(name):
    for bad in (math.nan, math.inf):
        x = np.array([[1, 0], [bad, 1]], "float32")
        text = f"{name}() of a matrix with nan or infinite entries\n  nan_to_num(x) replaces them by numbers"
        assert fails(FunctionError, name, x) == (text, 0)
        assert fails(FunctionError, name, literal([[1.0, 0.0], [bad, 1.0]])) == (text, 0)


MATRIX = 'write cast(..., "float32") or where(..., 1, 0)'


@pytest.mark.parametrize(
    ("kind", "name", "args", "text", "argument"),
    [
        (ShapeError, "inv", (TALL,), "inv() takes square matrices, found the shape (2, 5, 3)", 0),
        (ShapeError, "det", (TALL[0, 0],), "a matrix has at least 2 axes, found the shape (3,)", 0),
        (ShapeError, "svd", (1.5,), "a matrix has at least 2 axes, found the shape ()", 0),
        (ShapeError, "solve", (A[0, 0], np.ones(3, "float32")),
         "the shapes (4, 4) and (3,) do not fit: 4 is not 3", 1),
        (ShapeError, "solve", (A[0, 0], 2), "solve() takes a vector or a matrix on the right, found a number", 1),
        (ShapeError, "solve", (A, B[:1, :2]), "shapes (2, 3) and (1, 2) do not broadcast together", 1),
        (DTypeError, "inv", (A[0, 0] > 0,), f"inv() takes numbers, not booleans; {MATRIX}", 0),
        (ShapeError, "cross", (A, A),
         "cross() takes vectors of 2 or 3 entries, axis 3 of the shape (2, 3, 4, 4) has 4", 0),
        (ShapeError, "cross", (TALL, 2), "cross() takes vectors of 2 or 3 entries, found a number", 1),
        (ShapeError, "cross", (TALL, TALL, -1, -1, 3), "axis 3 is out of range for 3 axes", 4),
        (ShapeError, "cross", (TALL, TALL[:, :2]), "shapes (2, 5, 3) and (2, 2, 3) do not broadcast together", 1),
        (ShapeError, "vdot", (A, TALL),
         "vdot() needs the same number of entries on both sides, found the shapes (2, 3, 4, 4) and (2, 5, 3)", 1),
        (ShapeError, "inner", (A, TALL), "shapes (2, 3, 4, 4) and (2, 5, 3) do not multiply over these axes", 1),
        (LimitError, "kron", (np.zeros(2**15, "int8"), np.zeros(2**15, "int8")),
         "a result has at most 268435456 entries, this one would have 1073741824", None),
        (DTypeError, "kron", (A, A > 0), f"kron() takes numbers, not booleans; {MATRIX}", 1),
    ],
)  # fmt: skip
def test_errors(kind, name, args, text, argument):
    assert fails(kind, name, *args) == (text, argument)
    hidden = [x if not isinstance(x, np.ndarray) else Value(x.dtype.name, x.shape) for x in args]
    assert fails(kind, name, *hidden) == (text, argument)


def test_work_is_bounded():
    with planning(), pytest.raises(LimitError) as caught:
        call("svd", [Value("float32", (4096, 4096))])
    assert caught.value.message == (
        "products of matrices and linear algebra take at most 8,589,934,592 steps in a patch, and 16,384 for each "
        "entry of the tensors that it names; with this one they take 68,719,476,736"
    )
    with planning(), pytest.raises(LimitError):
        call("solve", [Value("float32", (4096, 4096)), Value("float32", (4096,))])


def test_exact_products():
    x = np.array([100, -100, 3], "int8")
    np.testing.assert_array_equal(run("cross", x, x[::-1].copy()), np.cross(x, x[::-1]))
    np.testing.assert_array_equal(run("kron", x, x), np.kron(x, x))
    assert run("vdot", x, x) == np.vdot(x, x)
    assert run("inner", x, x).dtype == np.int8
    big = literal([[2**62, 1], [0, 1]])
    assert call("kron", [big, literal([1, 1])]).data.tolist() == [[2**62, 2**62, 1, 1], [0, 0, 1, 1]]
    assert call("cross", [literal([2**40, 0, 0]), literal([0, 2**20, 0])]).data.tolist() == [0, 0, 2**60]


@pytest.mark.parametrize("dtype", ["float32"] if JAX else [*INTEGERS, *FLOATS])
def test_cross_along_any_axis(dtype):
    cases = [
        ((2, 3, 4), (3, 2, 4), {"axisa": 1, "axisb": 0, "axisc": 0}), ((3, 4), (3, 4), {"axis": 0}),
        ((2, 5), (3, 5), {"axis": 0}), ((4, 3), (4, 2), {}), ((4, 2), (4, 2), {}), ((2, 4), (1, 2), {"axisa": 0}),
    ]  # fmt: skip
    for first, second, axes in cases:
        # Entries that keep the products within int8, and their order such that unsigned differences wrap as NumPy's.
        a, b = (RANDOM.integers(0, 9, shape).astype(NUMPY[dtype]) for shape in (first, second))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # vectors of 2 entries
            expected = np.cross(a, b, **axes)
        found = run("cross", a, b, **axes)
        assert found.dtype == NUMPY[dtype]
        np.testing.assert_array_equal(found.astype("float64"), expected.astype("float64"))
        planned = call("cross", [Value(dtype, x.shape) for x in (a, b)], {k: literal(v) for k, v in axes.items()})
        assert (planned.dtype, planned.shape) == (dtype, expected.shape)
        whole = a.astype("int64"), b.astype("int64")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            expected = np.cross(*whole, **axes)
        folded = call("cross", [literal(x.tolist()) for x in whole], {k: literal(v) for k, v in axes.items()})
        np.testing.assert_array_equal(folded.data, expected)


def test_cross_of_short_floats_is_rounded_once():
    x = SIX.astype(NUMPY["bfloat16"])
    a, b = x[:, :3], x[:, 3:]
    expected = np.cross(a.astype("float64"), b.astype("float64")).astype("float32").astype(NUMPY["bfloat16"])
    tolerance = 2.0**-8
    np.testing.assert_allclose(
        run("cross", a, b).astype("float32"), expected.astype("float32"), rtol=tolerance, atol=1e-5
    )


# -- Einstein's convention ---------------------------------------------------------------------------------------------

EINSUMS = [
    ("ij->j", (3, 4)), ("ij->ji", (3, 4)), ("ij", (3, 4)), ("ba", (3, 4)), ("ij->", (3, 4)), ("ii->i", (3, 3)),
    ("ii", (3, 3)), ("iji->j", (3, 4, 3)), ("iii->i", (2, 2, 2)), ("iijj->ij", (2, 2, 3, 3)),
    ("ij,jk->ik", (3, 4), (4, 5)), ("ij,jk", (3, 4), (4, 5)),
    ("ij,jk->ikj", (3, 4), (4, 5)), ("i,j->ij", (3,), (4,)), ("i,i->", (3,), (3,)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bij,kj->bk", (2, 3, 4), (5, 4)), ("ij,kl,jk->il", (3, 4), (5, 6), (4, 5)), ("ij,ij->ij", (3, 4), (3, 4)),
    (" i j , j -> i ", (3, 4), (4,)), (",ij->ij", (), (3, 4)), ("->", ()),
    ("ijk,ilm,njm->lkn", (2, 3, 4), (2, 5, 6), (7, 3, 6)),
    ("aB,Bc->ca", (2, 3), (3, 4)), ("ij,jj->i", (2, 3), (3, 3)),
    ("i,i,i->i", (3,), (3,), (3,)), ("ij,k->k", (2, 3), (4,)),
    ("...ij,...jk->...ik", (2, 7, 3, 4), (7, 4, 5)), ("i...,j...k->...ijk", (2, 3, 4), (2, 4, 3)),
    ("...ij,...jk", (2, 1, 3, 4), (7, 4, 5)), ("...,...->...", (3, 1), (1, 4)), ("...", (3, 4)), ("i->...i", (3,)),
    ("...i->...", (3,)), ("...i,i", (2, 1, 3), (3,)), ("...ii->...i", (1, 2, 2)), ("i...->i...", (2, 1, 3)),
    ("ij,jk->ik", (3, 0), (0, 5)), ("ij->i", (0, 4)),
]  # fmt: skip


@pytest.mark.parametrize("case", EINSUMS, ids=lambda case: case[0])
def test_einsum(case):
    subscripts, *shapes = case
    arrays = [RANDOM.standard_normal(shape).astype("float32") for shape in shapes]
    expected = np.einsum(subscripts, *(x.astype("float64") for x in arrays))
    np.testing.assert_allclose(run("einsum", subscripts, *arrays), expected, rtol=1e-5, atol=1e-5)
    hidden = call("einsum", [subscripts, *(Value("float32", shape) for shape in shapes)])
    assert (hidden.dtype, hidden.shape) == ("float32", expected.shape)
    unknown = call("einsum", [subscripts, *(Value("float32", (None,) * len(shape)) for shape in shapes)])
    assert len(unknown.shape) == expected.ndim
    whole = [RANDOM.integers(-9, 9, shape) for shape in shapes]
    folded = call("einsum", [subscripts, *map(literal, whole)])
    assert folded.weak
    np.testing.assert_array_equal(folded.data, np.einsum(subscripts, *whole))
    small = [x.astype("int8") for x in whole]
    found = run("einsum", subscripts, *small)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, np.einsum(subscripts, *small))


def test_einsum_of_short_floats_is_rounded_once():
    a, b, c = (RANDOM.standard_normal(shape).astype(NUMPY["bfloat16"]) for shape in ((3, 40), (40, 50), (50, 4)))
    wide = run("einsum", "ij,jk,kl->il", *(x.astype("float32") for x in (a, b, c)))
    np.testing.assert_array_equal(run("einsum", "ij,jk,kl->il", a, b, c), wide.astype(NUMPY["bfloat16"]))


def test_einsum_meets_dtypes():
    assert run("einsum", "i,i->", np.ones(3, "float32"), [1, 2, 3]) == 6
    assert run("einsum", "i,i->i", np.array([1, 2], "int8"), np.array([1, 2], "uint8")).dtype == np.int16
    assert fails(DTypeError, "einsum", "i,i->i", np.array([1], "int8"), [300])[1] == 2
    assert fails(DTypeError, "einsum", "i,i->i", [True], [2]) == (f"einsum() takes numbers, not booleans; {MATRIX}", 1)


SUBSCRIPTS = "\n  einsum(subscripts, *operands)"


@pytest.mark.parametrize(
    ("kind", "args", "text", "argument"),
    [
        (FunctionError, ("...i->i", SIX), "the result of einsum() needs '...', as an operand has axes for it", 0),
        (FunctionError, ("......->...", SIX), "the axes of einsum() are letters, not '.'", 0),
        (ShapeError, ("ijk...->...", SIX), "'ijk...' names more axes than the shape (2, 6) has", 1),
        (ShapeError, ("i,...j,...j", SIX[0], np.ones((3, 2)), np.ones((2, 2))),
         "shapes (3,) and (2,) do not broadcast together", 3),
        (FunctionError, ("i1->i", SIX), "the axes of einsum() are letters, not '1'", 0),
        (FunctionError, ("ij->i->j", SIX), "the axes of einsum() are letters, not '-'", 0),
        (FunctionError, ("ij,jk->ik", SIX), "the subscripts name 2 operands, 1 given", 0),
        (FunctionError, ("ij", SIX, SIX), "the subscripts name 1 operand, 2 given", 0),
        (FunctionError, ("ij->ii", SIX), "'i' occurs twice in the result of einsum()", 0),
        (FunctionError, ("ij->k", SIX), "'k' in the result of einsum() is not an axis of an operand", 0),
        (ShapeError, ("i->i", SIX), "'i' names 1 axis of the shape (2, 6)", 1),
        (ShapeError, ("ij" * 999, SIX), f"'{'ij' * 8}...' names 1998 axes of the shape (2, 6)", 1),
        (ShapeError, ("ij,jk->ik", SIX, SIX), "'j' has length 6, but 2 in the shape (2, 6)", 2),
        (FunctionError, (SIX, SIX), "'subscripts' of einsum() is a string, not a tensor of float32" + SUBSCRIPTS, 0),
        (FunctionError, ("ij->i", "ij"),
         "'operands' of einsum() is a tensor or a number, not a string" + SUBSCRIPTS, 1),
        (FunctionError, ("ij->i",), "einsum() needs 'operands'" + SUBSCRIPTS, None),
        (LimitError, (",".join("i" * 17), *[SIX[0]] * 17), "einsum() takes at most 16 operands, 17 given", 1),
        (LimitError, ("a,b,c->abc", *[Value("int8", (2**10,))] * 3),
         "a result has at most 268435456 entries, this one would have 1073741824", None),
    ],
)  # fmt: skip
def test_einsum_errors(kind, args, text, argument):
    assert fails(kind, "einsum", *args) == (text, argument)


def test_intermediate_sizes_are_bounded():
    """The result is one number, but each way to it passes through a tensor of three axes."""
    square = [Value("float32", (1000, 1000))] * 6
    assert call("einsum", ["ab,bc,cd,de,ef,fa->", *square]).shape == ()
    text = "a result has at most 268435456 entries, this one would have 1000000000"
    assert fails(LimitError, "einsum", "ab,ac,ad,bc,bd,cd->", *square)[0] == text


def test_einsum_takes_operands_by_position():
    with pytest.raises(FunctionError, match=r"^einsum\(\) has no argument 'operands'"):
        call("einsum", ["i->i"], {"operands": literal([1])})


# -- the largest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_top_k_is_stable_with_nan_last(dtype):
    x = np.array([3, math.nan, 1, -math.inf, 2, -0.0, 0.0, math.inf, -0.0], "float32").astype(NUMPY[dtype])
    expected = x[np.argsort(-x.astype("float64"), kind="stable")]
    for k in (0, 1, 4, 9):
        found = run("top_k", x, k)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found.astype("float64"), expected[:k].astype("float64"))
        numbers = slice(0, min(k, 8))  # the sign of a NaN is nobody's business
        signs = [np.signbit(x[numbers].astype("float32")) for x in (found, expected)]
        np.testing.assert_array_equal(*signs)


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS])
def test_top_k_of_integers(dtype):
    ends = [0, 1] if dtype == "bool" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    x = np.array([[*ends, 1, 0, 1], [1, 0, *ends, 0]]).astype(dtype)
    expected = np.sort(x, axis=-1)[:, ::-1][:, :3]
    np.testing.assert_array_equal(run("top_k", x, 3), expected)
    np.testing.assert_array_equal(run("top_k", literal(x), 3), expected)


def test_top_k_errors():
    text = "'k' of top_k() must be between 0 and the length of the last axis: 7"
    assert fails(FunctionError, "top_k", SIX, 7) == (text, 1)
    assert fails(FunctionError, "top_k", SIX, k=-1)[1] == "k"
    text = "top_k() takes a tensor of at least one axis, found a number"
    assert fails(ShapeError, "top_k", 3, 1) == (text, 0)
    assert call("top_k", [Value("int8", (3, None)), literal(2)]).shape == (3, 2)
    text = "'k' of top_k() is a constant integer, not a tensor of int32\n  top_k(x, k)"
    assert fails(FunctionError, "top_k", SIX, np.array(2, "int32")) == (text, 1)


# -- taking ------------------------------------------------------------------------------------------------------------

INDICES = [2, -1, [0, -3], [[1, 2], [-1, 0]], [], [[]]]


@pytest.mark.parametrize("indices", INDICES, ids=str)
def test_take(indices):
    x = np.arange(27).reshape(3, 3, 3)
    places = np.array(indices, "int64")
    for axis, dtype in itertools.product((None, 0, 1, -1), ("float32", "bool", "bfloat16", "uint8")):
        array = (x % 2 if dtype == "bool" else x).astype(NUMPY[dtype])
        expected = np.take(array, places, axis=axis)
        options = {} if axis is None else {"axis": axis}
        for given in (literal(places), make(places, "int32"), make(places, "int8")):
            found = run("take", array, given, **options)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, expected)
    folded = call("take", [literal(x), literal(places)])
    np.testing.assert_array_equal(folded.data, np.take(x, places))
    assert run("take", literal(x), make(places, "int32")).dtype == np.int32


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, *FLOATS])
def test_take_along_axis(dtype):
    x = RANDOM.integers(0, 2 if dtype == "bool" else 100, (3, 1, 5)).astype(NUMPY[dtype])
    for shape, axis in (((3, 4, 5), 1), ((3, 1, 2), 2), ((1, 1, 5), 0), ((2, 6, 1), 0), ((3, 0, 5), 1)):
        places = RANDOM.integers(-x.shape[axis], x.shape[axis], shape)
        expected = np.take_along_axis(x, places, axis)
        for given in (literal(places), make(places, "int32")):
            np.testing.assert_array_equal(run("take_along_axis", x, given, axis=axis), expected)
    np.testing.assert_array_equal(run("take_along_axis", x, [-1, 3]), x.ravel()[[-1, 3]])
    order = np.argsort(x, axis=-1, kind="stable")
    np.testing.assert_array_equal(run("take_along_axis", x, make(order, "int32"), -1), np.sort(x, -1))


ROWS = """a compiled function cannot check that this index is in range for axis 1 with 6 entries
  of its entries only the dtype is known: int32
  clip(..., 0, 5) is in range, and so is ... % 6"""
INTS = '\n  cast(x, "int32") converts it to integers'


@pytest.mark.parametrize(
    ("kind", "name", "args", "text", "argument"),
    [
        (SubscriptError, "take", (SIX, [0, 2], 0), "index 2 is out of range for axis 0 with 2 entries", 1),
        (SubscriptError, "take", (SIX, -13), "index -13 is out of range for axis 0 with 12 entries", 1),
        (SubscriptError, "take", (SIX[:0], [0], 0), "index 0 is out of range for axis 0 with 0 entries", 1),
        (SubscriptError, "take", (SIX, [2**64 - 1], 0),
         "index 18446744073709551615 is out of range for axis 0 with 2 entries", 1),
        (SubscriptError, "take_along_axis", (SIX, [[1], [6]], 1),
         "index 6 is out of range for axis 1 with 6 entries", 1),
        (DTypeError, "take", (SIX, [0.0]), "the indices of take() are integers, not floats" + INTS, 1),
        (DTypeError, "take", (SIX, [True]),
         "the indices of take() are integers, not booleans\n  x[mask] picks by a mask", 1),
        (DTypeError, "take", (SIX, SIX), "the indices of take() are integers, not float32" + INTS, 1),
        (ShapeError, "take", (SIX, [0], 2), "axis 2 is out of range for 2 axes", 2),
        (FunctionError, "take", (SIX, [0], [0, 1]), "'axis' is one integer here, not a list", 2),
        (ShapeError, "take_along_axis", (SIX, [0], 1),
         "indices of shape (1,) do not fit the shape (2, 6); they need 2 axes", 1),
        (ShapeError, "take_along_axis", (SIX, [[0]] * 3, 1),
         "indices of shape (3, 1) do not broadcast with the shape (2, 6) beside axis 1", 1),
        (LimitError, "take", (np.zeros((2**14, 1), "int8"), np.zeros(2**15, "int32"), 1),
         "a result has at most 268435456 entries, this one would have 536870912", None),
    ],
)  # fmt: skip
def test_errors_of_indices(kind, name, args, text, argument):
    assert fails(kind, name, *args) == (text, argument)
    x = args[0]
    hidden = [Value(x.dtype.name, x.shape), *map(given_as, args[1:])]
    assert fails(kind, name, *hidden) == (text, argument)


def test_computed_indices_are_checked_while_running():
    text = "index 6 is out of range for axis 1 with 6 entries"
    for name, places in (("take", [0, 6]), ("take_along_axis", [[0], [6]])):
        assert fails(SubscriptError, name, SIX, np.array(places, "int32"), 1) == (text, 1)
        given = [make(SIX), Value("int32", np.shape(places)), literal(1)]
        assert call(name, given).data is None
        with pytest.raises(UnsupportedError) as caught, planning():
            call(name, given, traced=True)
        assert (str(caught.value), caught.value.argument) == (ROWS, 1)
        constant = [make(SIX), literal(places), literal(1)]
        with pytest.raises(SubscriptError):
            call(name, constant, traced=True)


# -- in patches --------------------------------------------------------------------------------------------------------


def test_in_a_patch():
    x = ops.convert_to_tensor(np.array([[4, 2], [2, 5]], "float32"))
    for text, expected in (
        ("_ = inv(_)", np.linalg.inv([[4, 2], [2, 5]])),
        ("_ = cholesky(_)", [[2, 0], [1, 2]]),
        ('_ = einsum("ij,kj->ik", _, _)', [[20, 18], [18, 29]]),
        ("_[:, 0] = take(_, [1, 0])", [[2, 2], [4, 5]]),
        ("_[0] = top_k(_, 2) * 10", [[40, 20], [2, 5]]),
    ):
        found = np.asarray(ops.convert_to_numpy(kpatch.edit(x, text)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_inside_compiled_functions():
    text = "_ = inv(_) + qr(_) + pinv(_) + cholesky(_) * det(_) + take(_, [1, 0], axis=0) + svd(_) + eigh(_)"
    x = np.array([[4, 2], [2, 5]], "float32")
    expected = np.asarray(ops.convert_to_numpy(kpatch.edit(ops.convert_to_tensor(x), text)))
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(lambda x: kpatch.edit(x, text))
    elif backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: kpatch.edit(x, text))
    else:
        return
    found = np.asarray(ops.convert_to_numpy(compiled(ops.convert_to_tensor(x))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_planning_refuses_what_is_constant():
    with planning(), pytest.raises(SubscriptError):
        call("take", [Value("float32", (3,)), literal([3])])


def test_unknown_lengths():
    square = Value("float32", (None, None))
    for name in ("inv", "pinv", "cholesky", "qr"):
        assert call(name, [square]).shape == (None, None)
    assert call("solve", [square, Value("float32", (3, 2))]).shape == (3, 2)
    assert call("svd", [Value("float32", (2, None, 3))]).shape == (2, None)
    assert numbers(call("take", [make(SIX), literal(0)])).shape == ()
