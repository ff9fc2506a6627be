"""Sums of products, computed as matrix products whose sizes are checked one by one."""

import functools
import itertools
import math
import string
from collections import Counter

import numpy as np

from kpatch import backends
from kpatch.errors import FunctionError, ShapeError, UnsupportedError
from kpatch.functions.axes import differ, normal_axes, size
from kpatch.functions.operands import blaming, need_lengths, need_numbers
from kpatch.functions.parameters import Numeric, Operands, Pairs, Text
from kpatch.functions.reductions import sum_
from kpatch.functions.registry import Group
from kpatch.functions.shapes import diagonal, expand_dims, ravel, reshape, transpose
from kpatch.indexing import broadcast
from kpatch.values import arithmetic, dtypes, numerics
from kpatch.values.arithmetic import compute
from kpatch.values.dtypes import Value, is_integer

PRODUCTS = Group("Products")


@PRODUCTS("the matrix product, as `@`", "matmul([[1, 2], [3, 4]], [10, 1]) is [12, 34]")
def matmul(x1: Numeric, x2: Numeric):
    return arithmetic.matmul(x1, x2)


def _contract(name, x1, x2, first, second):
    """Sums the products over the axes `first` of `x1` and `second` of `x2` by one matrix product."""
    lengths = [x1.shape[axis] for axis in first], [x2.shape[axis] for axis in second]
    if len(first) != len(second) or any(map(differ, *lengths)):
        raise ShapeError(f"shapes {x1.shape} and {x2.shape} do not multiply over these axes", argument=1)
    left = [axis for axis in range(len(x1.shape)) if axis not in first]
    right = [axis for axis in range(len(x2.shape)) if axis not in second]
    rows, columns = [x1.shape[axis] for axis in left], [x2.shape[axis] for axis in right]
    inner = [b if a is None else a for a, b in zip(*lengths, strict=True)]
    dtypes.check_size((*rows, *columns), x1, x2)
    if _too_open([*rows, *inner, *columns]):
        return _unknown(name, (*rows, *columns), x1, x2)
    a = _arranged(x1, [*left, *first], [_joint(rows), _joint(inner)])
    b = _arranged(x2, [*second, *right], [_joint(inner), _joint(columns)])
    return reshape(arithmetic.matmul(a, b), _free((*rows, *columns)))


def _too_open(lengths):
    """Whether axes of these lengths cannot be joined to matrices: a `-1` of `reshape` stands for one unknown length."""
    return None in lengths and (lengths.count(None) > 1 or 0 in lengths)


def _joint(lengths):
    """The length of joined axes, for `reshape`."""
    return -1 if None in lengths else math.prod(lengths)


def _free(lengths):
    return tuple(-1 if length is None else length for length in lengths)


def _unknown(name, shape, *operands):
    """The result while planning with unknown lengths."""
    need_lengths(name, *operands)
    return Value(dtypes.common(operands), tuple(shape), None, all(x.weak for x in operands))


def _arranged(x, order, shape):
    return reshape(transpose(x, tuple(order)), tuple(shape))


@PRODUCTS("the sum of products over the last axis of x1 and the second to last of x2", "dot([1, 2], [3, 4]) is 11")
def dot(x1: Numeric, x2: Numeric):
    if not x1.shape or not x2.shape:
        return arithmetic.binary("*", x1, x2)
    return _contract("dot", x1, x2, (len(x1.shape) - 1,), (max(0, len(x2.shape) - 2),))


@PRODUCTS("the sum of products over the last axes", "inner([[1, 2], [3, 4]], [10, 1]) is [12, 34]")
def inner(x1: Numeric, x2: Numeric):
    if not x1.shape or not x2.shape:
        return arithmetic.binary("*", x1, x2)
    return _contract("inner", x1, x2, (len(x1.shape) - 1,), (len(x2.shape) - 1,))


@PRODUCTS("the sum of products over all entries", "vdot([[1, 2], [3, 4]], [[1, 0], [0, 10]]) is 41")
def vdot(x1: Numeric, x2: Numeric):
    a, b = ravel(x1), ravel(x2)
    if differ(a.shape[0], b.shape[0]):
        message = f"vdot() needs the same number of entries on both sides, found the shapes {x1.shape} and {x2.shape}"
        raise ShapeError(message, argument=1)
    return _contract("vdot", a, b, (0,), (0,))


@PRODUCTS("each entry times each entry", "outer([1, 2], [3, 4]) is [[3, 4], [6, 8]]")
def outer(x1: Numeric, x2: Numeric):
    return arithmetic.binary("*", expand_dims(ravel(x1), 1), expand_dims(ravel(x2), 0))


@PRODUCTS("the Kronecker product: each entry of x1 times the whole of x2", "kron([1, 10], [1, 2]) is [1, 2, 10, 20]")
def kron(x1: Numeric, x2: Numeric):
    """All products, with axes interleaved and joined in pairs; a missing axis counts as length 1."""
    count = max(len(x1.shape), len(x2.shape))
    left, right = ((1,) * (count - len(x.shape)) + x.shape for x in (x1, x2))
    shape = tuple(size(pair) for pair in zip(left, right, strict=True))
    if None in shape:
        return _unknown("kron", shape, x1, x2)
    dtypes.check_size(shape, x1, x2)
    grid = reshape(outer(x1, x2), (*left, *right))
    order = tuple(itertools.chain.from_iterable((axis, axis + count) for axis in range(count)))
    return reshape(transpose(grid, order), shape)


@PRODUCTS("the cross product of vectors of 3 entries, along the last axis", "cross([1, 0, 0], [0, 1, 0]) is [0, 0, 1]")
def cross(x1: Numeric, x2: Numeric):
    for place, x in enumerate((x1, x2)):
        if not x.shape or x.shape[-1] not in (3, None):
            message = f"cross() takes vectors of 3 entries along the last axis, found the shape {x.shape}"
            raise ShapeError(message, argument=place)
    shape = (*broadcast([x1.shape, x2.shape])[:-1], 3)
    dtypes.check_size(shape, x1, x2)
    dtype = dtypes.common((x1, x2))
    if dtype in ("int", "float"):
        return arithmetic.fold(shape, _crossed, x1, x2, dtype=dtype)
    kernel = functools.partial(numerics.in_float32, lambda a, b, inner: _crossed(a, b, _stacked(inner)), dtype)
    return compute(dtype, shape, kernel, x1, x2, to=dtype)


def _crossed(a, b, stack=None):
    """The cross product by its definition; `stack` joins the three components."""
    (a0, a1, a2), (b0, b1, b2) = ([x[..., place] for place in range(3)] for x in (a, b))
    parts = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    return (stack or functools.partial(np.stack, axis=-1))(parts)


def _stacked(dtype):
    ops = backends.current().ops
    return lambda parts: numerics.concatenate([ops.expand_dims(part, -1) for part in parts], -1, dtype)


@PRODUCTS("the sum of products over several axes", "tensordot([[1, 2], [3, 4]], [[1, 0], [0, 10]]) is 41")
def tensordot(x1: Numeric, x2: Numeric, axes: Pairs = 2):
    counts = len(x1.shape), len(x2.shape)
    if isinstance(axes, int):
        if not 0 <= axes <= min(counts):
            raise ShapeError(
                f"tensors of {counts[0]} and {counts[1]} axes cannot be contracted over {axes}", argument="axes"
            )
        return _contract("tensordot", x1, x2, tuple(range(counts[0] - axes, counts[0])), tuple(range(axes)))
    if len(axes) != 2:
        raise FunctionError("'axes' is an integer or a list of two lists of axes", argument="axes")
    first, second = (
        normal_axes(tuple(part) if isinstance(part, list) else part, count, "axes")
        for part, count in zip(axes, counts, strict=True)
    )
    return _contract("tensordot", x1, x2, first, second)


# -- Einstein's convention ---------------------------------------------------------------------------------------------


@PRODUCTS(
    "sums of products by Einstein's convention, a letter for each axis",
    'einsum("ij,j->i", [[1, 2], [3, 4]], [10, 1]) is [12, 34]',
)
def einsum(subscripts: Text, *operands: Operands):
    """Sums of products. A letter stands for an axis; axes whose letter is not in the result are summed over.

    Operands are contracted in pairs, the pair with the smallest product first.

    Example:
        >>> from kpatch.values.dtypes import literal
        >>> einsum("ij,jk->ik", literal([[1, 2]]), literal([[3], [4]])).data
        array([[11]])
    """
    terms, result = _read(subscripts, len(operands))
    need_numbers("einsum", *operands)
    lengths = _lengths_of(terms, operands)
    shape = tuple(lengths[letter] for letter in result)
    dtypes.check_size(shape, *operands)
    dtype = dtypes.common(operands)
    if _too_open([*lengths.values()]):
        return _unknown("einsum", shape, *operands)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    if is_integer(dtype) and dtype != "int" and dtypes.INTEGERS[dtype] < 32:
        wide = "int32"  # the same bits once it is wrapped
    parts = [
        (_widened(x, dtype, wide, place), term) for place, (x, term) in enumerate(zip(operands, terms, strict=True))
    ]
    while len(parts) > 1:
        parts = _join_best(parts, result, lengths)
    [(total, letters)] = parts
    total, letters = _summed(total, letters, set(result))
    total = transpose(total, tuple(letters.index(letter) for letter in result))
    return total if wide == dtype else compute(dtype, shape, lambda x: numerics.recast(x, dtype), total)


def _read(subscripts, count):
    """The letters of each operand and of the result."""
    text = "".join(subscripts.split())
    if "..." in text:
        raise UnsupportedError("'...' in einsum() is not supported; give each axis a letter", argument="subscripts")
    inputs, arrow, result = text.partition("->")
    wrong = next((c for c in inputs.replace(",", "") + result if c not in string.ascii_letters), None)
    if wrong is not None:
        raise FunctionError(f"the axes of einsum() are letters, not '{wrong}'", argument="subscripts")
    terms = inputs.split(",")
    if len(terms) != count:
        found = f"{len(terms)} operand" + "s" * (len(terms) != 1)
        raise FunctionError(f"the subscripts name {found}, {count} given", argument="subscripts")
    if not arrow:
        once = Counter(inputs.replace(",", ""))
        result = "".join(sorted(letter for letter in once if once[letter] == 1))
    twice = next((letter for letter in result if result.count(letter) > 1), None)
    if twice is not None:
        raise FunctionError(f"'{twice}' occurs twice in the result of einsum()", argument="subscripts")
    unknown = next((letter for letter in result if letter not in inputs), None)
    if unknown is not None:
        raise FunctionError(
            f"'{unknown}' in the result of einsum() is not an axis of an operand", argument="subscripts"
        )
    return terms, result


def _lengths_of(terms, operands):
    """The length of each letter's axis."""
    lengths: dict[str, int | None] = {}
    for place, (term, x) in enumerate(zip(terms, operands, strict=True)):
        if len(term) != len(x.shape):
            shown = term if len(term) <= 2 * dtypes.MAX_AXES else term[: 2 * dtypes.MAX_AXES] + "..."
            axes = f"{len(term)} ax{'i' if len(term) == 1 else 'e'}s"
            raise ShapeError(f"'{shown}' names {axes} of the shape {x.shape}", argument=place)
        for letter, length in zip(term, x.shape, strict=True):
            known = lengths.get(letter)
            if differ(known, length):
                raise ShapeError(f"'{letter}' has length {known}, but {length} in the shape {x.shape}", argument=place)
            lengths[letter] = length if known is None else known
    return lengths


def _widened(x, dtype, wide, place):
    """An operand converted to the result's dtype, then to the dtype of the computation."""
    if dtype in ("int", "float"):
        return x
    with blaming(place):
        x = compute(dtype, x.shape, lambda a: a, x, to=dtype)
    return x if wide == dtype else compute(wide, x.shape, lambda a: a, x, to=wide)


def _summed(x, letters, kept):
    """Takes the diagonal of repeated letters and sums over letters that are not in `kept`."""
    while twice := next((letter for letter in letters if letters.count(letter) > 1), None):
        first = letters.index(twice)
        second = letters.index(twice, first + 1)
        x = diagonal(x, 0, first, second)  # puts the diagonal last
        letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + twice
    surplus = tuple(place for place, letter in enumerate(letters) if letter not in kept)
    if surplus:
        x = sum_(x, surplus)
    return x, "".join(letter for letter in letters if letter in kept)


def _join_best(parts, result, lengths):
    """The parts, with the pair that has the smallest product contracted."""
    terms = [set(letters) for _, letters in parts]
    uses = Counter(itertools.chain(result, *terms))  # a letter is needed if others than the pair use it

    def needed(pair):
        first, second = (terms[place] for place in pair)
        return {letter for letter in first | second if uses[letter] > (letter in first) + (letter in second)}

    def size(pair):
        return math.prod(lengths[letter] or 1 for letter in needed(pair))

    pair = min(itertools.combinations(range(len(parts)), 2), key=size)
    joined = _joined(parts[pair[0]], parts[pair[1]], needed(pair), lengths)
    return [joined, *(part for place, part in enumerate(parts) if place not in pair)]


def _joined(first, second, needed, lengths):
    """Two operands contracted by a batch of matrix products."""
    (a, a_letters), (b, b_letters) = first, second
    a, a_letters = _summed(a, a_letters, needed | set(b_letters))
    b, b_letters = _summed(b, b_letters, needed | set(a_letters))
    shared = [letter for letter in a_letters if letter in b_letters]
    batch, inner = ([x for x in shared if (x in needed) == kept] for kept in (True, False))
    left, right = [x for x in a_letters if x not in shared], [x for x in b_letters if x not in shared]
    letters = [*batch, *left, *right]
    dtypes.check_size([lengths[letter] for letter in letters], a, b)
    sizes = [_joint([lengths[letter] for letter in group]) for group in (batch, left, inner, right)]
    x = _arranged(a, [a_letters.index(letter) for letter in (*batch, *left, *inner)], sizes[:3])
    y = _arranged(b, [b_letters.index(letter) for letter in (*batch, *inner, *right)], [sizes[0], *sizes[2:]])
    product = reshape(arithmetic.matmul(x, y), _free(lengths[letter] for letter in letters))
    return product, "".join(letters)
