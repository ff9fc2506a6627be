"""Sums of products, computed as matrix products whose sizes are checked one by one."""

import functools
import itertools
import math
import operator
import string
from collections import Counter

import numpy as np

from kpatch import backends
from kpatch.errors import FunctionError, ShapeError
from kpatch.functions.axes import differ, normal_axes, normal_axis, size
from kpatch.functions.operands import blaming, need_lengths, need_numbers
from kpatch.functions.parameters import Axis, Numeric, Operands, Pairs, Text, shown
from kpatch.functions.reductions import sum_
from kpatch.functions.registry import Group
from kpatch.functions.shapes import diagonal, expand_dims, moveaxis, ravel, reshape, squeeze, transpose
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


@PRODUCTS(
    "the cross product of vectors of 3 entries, or of 2; of 2 on both sides, its third entry",
    "cross([1, 0, 0], [0, 1, 0]) is [0, 0, 1]",
)
def cross(x1: Numeric, x2: Numeric, axisa: Axis = -1, axisb: Axis = -1, axisc: Axis = -1, axis: Axis = None):
    if axis is not None:
        axisa = axisb = axisc = axis
    names = ("axisa", "axisb", "axisc") if axis is None else ("axis",) * 3
    x1, x2 = _vectors(x1, axisa, 0, names[0]), _vectors(x2, axisb, 1, names[1])
    shape = broadcast([(*x1.shape[:-1], 3), (*x2.shape[:-1], 3)])
    flat = x1.shape[-1] == x2.shape[-1] == 2
    result = _cross(x1, x2, shape[:-1] if flat else shape, flat)
    return result if flat else moveaxis(result, -1, normal_axis(axisc, len(shape), names[2]))


def _vectors(x, axis, place, name):
    """The operand with the axis of the vectors last."""
    if not x.shape:
        raise ShapeError("cross() takes vectors of 2 or 3 entries, found a number", argument=place)
    axis = normal_axis(axis, len(x.shape), name)
    if x.shape[axis] not in (2, 3, None):
        found = f"axis {axis} of the shape {x.shape} has {x.shape[axis]}"
        raise ShapeError(f"cross() takes vectors of 2 or 3 entries, {found}", argument=place)
    return moveaxis(x, axis, -1)


def _cross(x1, x2, shape, flat):
    dtypes.check_size(shape, x1, x2)
    dtype = dtypes.common((x1, x2))
    if dtype in ("int", "float"):
        join = operator.itemgetter(2) if flat else functools.partial(np.stack, axis=-1)
        return arithmetic.fold(shape, lambda a, b: join(_crossed(a, b, np.zeros_like)), x1, x2, dtype=dtype)

    def kernel(a, b, inner):
        parts = _crossed(a, b, lambda x: numerics.filled_like(x, 0, inner))
        return parts[2] if flat else _stacked(parts, inner)

    return compute(dtype, shape, functools.partial(numerics.in_float32, kernel, dtype), x1, x2, to=dtype)


def _crossed(a, b, zeros):
    """The entries of the cross product by its definition. Terms with a missing third entry are 0."""
    a, b = ([x[..., place] for place in range(2 if x.shape[-1] == 2 else 3)] for x in (a, b))

    def term(i, j):
        return a[i] * b[j] if i < len(a) and j < len(b) else zeros(a[0] * b[0])

    return [term(i, j) - term(j, i) for i, j in ((1, 2), (2, 0), (0, 1))]


def _stacked(parts, dtype):
    ops = backends.current().ops
    return numerics.concatenate([ops.expand_dims(part, -1) for part in parts], -1, dtype)


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
    "sums of products by Einstein's convention: a letter for each axis, `...` for further ones, which broadcast",
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
    terms, result, operands = _read(subscripts, operands)
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


def _read(subscripts, operands):
    """The letters of each operand and of the result, and the operands without axes that broadcast."""
    inputs, arrow, result = "".join(subscripts.split()).partition("->")
    named = "".join(term.replace("...", "", 1) for term in (*inputs.split(","), result))
    wrong = next((c for c in named if c not in string.ascii_letters), None)
    if wrong is not None:
        raise FunctionError(f"the axes of einsum() are letters, not '{wrong}'", argument="subscripts")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        found = f"{len(terms)} operand" + "s" * (len(terms) != 1)
        raise FunctionError(f"the subscripts name {found}, {len(operands)} given", argument="subscripts")
    if not arrow:
        once = Counter(named)
        result = "..." * ("..." in inputs) + "".join(sorted(letter for letter in once if once[letter] == 1))
    if "..." in inputs + result:
        terms, result, operands = _without_dots(terms, result, operands)
    twice = next((letter for letter in result if result.count(letter) > 1), None)
    if twice is not None:
        raise FunctionError(f"'{twice}' occurs twice in the result of einsum()", argument="subscripts")
    unknown = next((letter for letter in result if letter not in "".join(terms)), None)
    if unknown is not None:
        raise FunctionError(
            f"'{unknown}' in the result of einsum() is not an axis of an operand", argument="subscripts"
        )
    return terms, result, operands


def _without_dots(terms, result, operands):
    """The terms and the result with a sign for each axis of `...`, the same from the last one on.

    An axis of length 1 that broadcasts to a longer one is taken away from its operand.
    """
    counts = [len(x.shape) - len(term.replace("...", "")) for term, x in zip(terms, operands, strict=True)]
    starts = [term.find("...") for term in terms]
    dotted = [place for place, start in enumerate(starts) if start >= 0]
    for place in dotted:
        if counts[place] < 0:
            message = f"'{shown(terms[place])}' names more axes than the shape {operands[place].shape} has"
            raise ShapeError(message, argument=place)
    parts = {place: operands[place].shape[starts[place] :][: counts[place]] for place in dotted}
    try:
        shape = broadcast(list(parts.values()))
    except ShapeError as error:
        error.argument = dotted[error.argument]
        raise
    signs = "".join(chr(0x2460 + number) for number in range(len(shape)))
    if signs and "..." not in result:
        raise FunctionError("the result of einsum() needs '...', as an operand has axes for it", argument="subscripts")
    terms, operands = list(terms), list(operands)
    for place, part in parts.items():
        whole = list(zip(part, shape[len(shape) - len(part) :], signs[len(signs) - len(part) :], strict=True))
        ones = tuple(starts[place] + at for at, (length, full, _) in enumerate(whole) if length == 1 != full)
        operands[place] = squeeze(operands[place], ones) if ones else operands[place]
        kept = "".join(sign for length, full, sign in whole if not length == 1 != full)
        terms[place] = terms[place].replace("...", kept)
    return terms, result.replace("...", signs), operands


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
