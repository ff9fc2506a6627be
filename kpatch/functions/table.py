"""The table of functions: what there is to call, and what each of them is good for.

Each function has the name, the arguments and the meaning of the same function in `keras.ops` (arguments that a patch
has no use for are left out). Only what the table holds can be called. Its second lines are examples, which run as
tests on every backend; `is about` says that the result is given to the digits shown.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Function:
    """One entry of the table.

    Attributes:
        name: as in `keras.ops`.
        signature: the parameters, with their defaults as Python writes them; those after `*` are given by name.
        group: the title of the group whose rule it follows.
        description: one line.
        example: an expression of literals.
        result: what that is, as the language writes it.
        exact: whether it is that to the bit, or to the digits shown.
    """

    name: str
    signature: str
    group: str
    description: str
    example: str
    result: str
    exact: bool


_TABLE = {
    "Arithmetic and comparison": """
        add | x1, x2 | the sum, as `+`
            add([1, 2], 10) is [11, 12]
        subtract | x1, x2 | the difference, as `-`
            subtract([1, 2], 10) is [-9, -8]
        multiply | x1, x2 | the product, as `*`
            multiply([1, 2], [3, 4]) is [3, 8]
        divide | x1, x2 | the quotient, a float, as `/`
            divide([1, 2], 4) is [0.25, 0.5]
        true_divide | x1, x2 | the quotient, a float, as `/`
            true_divide([1, 2], 4) is [0.25, 0.5]
        floor_divide | x1, x2 | the quotient rounded down, as `//`
            floor_divide([7, -7], 2) is [3, -4]
        mod | x1, x2 | the remainder, with the sign of x2, as `%`
            mod([7, -7], 3) is [1, 2]
        power | x1, x2 | x1 to the power of x2, as `**`
            power([2, 3], 2) is [4, 9]
        negative | x | the opposite, as unary `-`
            negative([1, -2]) is [-1, 2]
        equal | x1, x2 | as `==`; of two lists one boolean
            equal(cast([1, 2], "int8"), 2) is [false, true]
        not_equal | x1, x2 | as `!=`; of two lists one boolean
            not_equal(cast([1, 2], "int8"), 2) is [true, false]
        less | x1, x2 | as `<`
            less([1, 2, 3], 2) is [true, false, false]
        less_equal | x1, x2 | as `<=`
            less_equal([1, 2, 3], 2) is [true, true, false]
        greater | x1, x2 | as `>`
            greater([1, 2, 3], 2) is [false, false, true]
        greater_equal | x1, x2 | as `>=`
            greater_equal([1, 2, 3], 2) is [false, true, true]
        logical_and | x1, x2 | as `and`
            logical_and([true, true, false], [true, false, false]) is [true, false, false]
        logical_or | x1, x2 | as `or`
            logical_or([true, true, false], [true, false, false]) is [true, true, false]
        logical_xor | x1, x2 | whether exactly one holds
            logical_xor([true, true, false], [true, false, false]) is [false, true, false]
        logical_not | x | as `not`
            logical_not([true, false]) is [false, true]
    """,
    "Element-wise mathematics": """
        exp | x | e to the power of each entry
            exp([0, 1]) is about [1, 2.71828]
        exp2 | x | 2 to the power of each entry
            exp2([3, -1]) is about [8, 0.5]
        expm1 | x | exp(x) - 1, exact near 0
            expm1([0, 1]) is about [0, 1.71828]
        log | x | the natural logarithm
            log([1, 10]) is about [0, 2.30259]
        log2 | x | the logarithm to base 2
            log2([8, 0.5]) is about [3, -1]
        log10 | x | the logarithm to base 10
            log10([1000, 0.1]) is about [3, -1]
        log1p | x | log(1 + x), exact near 0
            log1p([0, 1]) is about [0, 0.693147]
        sqrt | x | the square root
            sqrt([4, 2]) is about [2, 1.41421]
        rsqrt | x | 1 / sqrt(x)
            rsqrt([4, 0.25]) is about [0.5, 2]
        cbrt | x | the cube root
            cbrt([8, -27]) is about [2, -3]
        reciprocal | x | 1 / x
            reciprocal([2, 8]) is about [0.5, 0.125]
        sin | x | the sine
            sin([0, 1]) is about [0, 0.841471]
        cos | x | the cosine
            cos([0, 1]) is about [1, 0.540302]
        tan | x | the tangent
            tan([0, 1]) is about [0, 1.55741]
        arcsin | x | the inverse sine
            arcsin([0, 1]) is about [0, 1.5708]
        arccos | x | the inverse cosine
            arccos([1, 0]) is about [0, 1.5708]
        arctan | x | the inverse tangent
            arctan([0, 1]) is about [0, 0.785398]
        sinh | x | the hyperbolic sine
            sinh([0, 1]) is about [0, 1.1752]
        cosh | x | the hyperbolic cosine
            cosh([0, 1]) is about [1, 1.54308]
        tanh | x | the hyperbolic tangent
            tanh([0, 1]) is about [0, 0.761594]
        arcsinh | x | the inverse hyperbolic sine
            arcsinh([0, 1]) is about [0, 0.881374]
        arccosh | x | the inverse hyperbolic cosine
            arccosh([1, 2]) is about [0, 1.31696]
        arctanh | x | the inverse hyperbolic tangent
            arctanh([0, 0.5]) is about [0, 0.549306]
        deg2rad | x | degrees as radians
            deg2rad([0, 180]) is about [0, 3.14159]
        rad2deg | x | radians as degrees
            rad2deg([0, 1]) is about [0, 57.2958]
        erf | x | the error function
            erf([0, 1]) is about [0, 0.842701]
        sigmoid | x | 1 / (1 + exp(-x))
            sigmoid([0, 1]) is about [0.5, 0.731059]
        silu | x | x * sigmoid(x)
            silu([0, 1]) is about [0, 0.731059]
        softplus | x | log(1 + exp(x))
            softplus([0, 1]) is about [0.693147, 1.31326]
        softsign | x | x / (1 + abs(x))
            softsign([1, -3]) is about [0.5, -0.75]
        gelu | x, approximate=True | the Gaussian error linear unit
            gelu([1, -1], approximate=false) is about [0.841345, -0.158655]
        elu | x, alpha=1.0 | x, and below 0 alpha * (exp(x) - 1)
            elu([2, -1]) is about [2, -0.632121]
        leaky_relu | x, negative_slope=0.2 | x, and below 0 negative_slope * x
            leaky_relu([2, -1]) is about [2, -0.2]
        arctan2 | x1, x2 | the angle of the point (x2, x1)
            arctan2([0, 1], -1) is about [3.14159, 2.35619]
        hypot | x1, x2 | sqrt(x1**2 + x2**2)
            hypot([3, 5], [4, 12]) is about [5, 13]
        logaddexp | x1, x2 | log(exp(x1) + exp(x2))
            logaddexp([0, 1], 0) is about [0.693147, 1.31326]
    """,
    "Element-wise, in the same dtype": """
        abs | x | the absolute value
            abs([1, -2]) is [1, 2]
        sign | x | 1, 0 or -1; of nan nan
            sign([3.5, 0.0, -2.0]) is [1, 0, -1]
        square | x | x * x
            square([3, -4]) is [9, 16]
        floor | x | rounded down
            floor([1.5, -1.5]) is [1, -2]
        ceil | x | rounded up
            ceil([1.5, -1.5]) is [2, -1]
        trunc | x | rounded towards 0
            trunc([1.5, -1.5]) is [1, -1]
        round | x, decimals=0 | rounded to the nearest, halves to even
            round([0.5, 1.5, 2.25]) is [0, 2, 2]
        relu | x | x, and below 0 0
            relu([2, -1]) is [2, 0]
        relu6 | x | x, at least 0 and at most 6
            relu6([2, -1, 9]) is [2, 0, 6]
        nan_to_num | x, nan=0.0, posinf=None, neginf=None | nan and infinities replaced by numbers
            nan_to_num([nan, inf, 1.0], posinf=9) is [0, 9, 1]
        maximum | x1, x2 | the larger of two; nan where either is
            maximum([1, 5], [3, 2]) is [3, 5]
        minimum | x1, x2 | the smaller of two; nan where either is
            minimum([1, 5], [3, 2]) is [1, 2]
        clip | x, x_min, x_max | x, at least x_min and at most x_max
            clip([-3, 0, 7], -1, 1) is [-1, 0, 1]
    """,
    "Tests of entries": """
        isnan | x | whether it is nan
            isnan([1.0, nan, inf]) is [false, true, false]
        isinf | x | whether it is infinite
            isinf([1.0, nan, inf]) is [false, false, true]
        isfinite | x | whether it is neither nan nor infinite
            isfinite([1.0, nan, inf]) is [true, false, false]
    """,
    "Closeness": """
        isclose | x1, x2, rtol=1e-05, atol=1e-08, equal_nan=False | |x1 - x2| <= atol + rtol * |x2|
            isclose([1.0, 1.000001, 1.1], 1) is [true, true, false]
        allclose | x1, x2, rtol=1e-05, atol=1e-08, equal_nan=False | whether isclose holds everywhere
            allclose([1.0, 1.000001], 1) is true
    """,
    "Choice": """
        where | condition, x1, x2 | x1 where the condition holds, else x2
            where([true, false, true], [1, 2, 3], 0) is [1, 0, 3]
    """,
    "Conversion": """
        cast | x, dtype | in another dtype; to integers it truncates and wraps, and nan is 0
            cast([2.9, -2.9, 300.0, nan], "int8") is [2, -2, 44, 0]
    """,
    "Reductions": """
        sum | x, axis=None, keepdims=False | the sum; of booleans, how many hold
            sum([[1, 2], [3, 4]], axis=0) is [4, 6]
        mean | x, axis=None, keepdims=False | the mean; of booleans, the share that holds
            mean([[1, 2], [3, 4]]) is 2.5
        prod | x, axis=None, keepdims=False | the product
            prod([[1, 2], [3, 4]]) is 24
        max | x, axis=None, keepdims=False | the largest; nan if one is
            max([[1, 2], [3, 4]], axis=1) is [2, 4]
        min | x, axis=None, keepdims=False | the smallest; nan if one is
            min([[1, 2], [3, 4]], axis=1, keepdims=true) is [[1], [3]]
        var | x, axis=None, keepdims=False | the variance
            var([1, 2, 3, 6]) is 3.5
        std | x, axis=None, keepdims=False | the standard deviation
            std([1, 2, 3, 6]) is about 1.87083
        any | x, axis=None, keepdims=False | whether one holds
            any([true, false]) is true
        all | x, axis=None, keepdims=False | whether all hold
            all([true, false]) is false
        count_nonzero | x, axis=None | how many are not 0
            count_nonzero([0, 5, 0, 7]) is 2
        argmax | x, axis=None, keepdims=False | the index of the first largest, or of the first nan
            argmax([1, 9, 9]) is 1
        argmin | x, axis=None, keepdims=False | the index of the first smallest, or of the first nan
            argmin([[1, 2], [4, 3]], axis=1) is [0, 1]
        logsumexp | x, axis=None, keepdims=False | log(sum(exp(x)))
            logsumexp([0, 0]) is about 0.693147
        norm | x, ord=None, axis=None, keepdims=False | the length as a vector; ord 1, 2, inf or -inf
            norm([3, 4]) is about 5
    """,
    "Quantiles": """
        median | x, axis=None, keepdims=False | the middle of the sorted entries
            median([3, 1, 2, 10]) is 2.5
        quantile | x, q, axis=None, method="linear", keepdims=False | what a share q is below
            quantile([0, 1, 2, 3, 4], [0.25, 0.5]) is [1, 2]
    """,
    "Along an axis": """
        sort | x, axis=-1 | ascending, nan last
            sort([3.0, nan, 1.0]) is [1, 3, nan]
        argsort | x, axis=-1 | the indices that sort; stable, nan last
            argsort([3.0, nan, 1.0]) is [2, 0, 1]
        cumsum | x, axis=None | the sums of all up to each entry
            cumsum([1, 2, 3]) is [1, 3, 6]
        cumprod | x, axis=None | the products of all up to each entry
            cumprod([1, 2, 3]) is [1, 2, 6]
        softmax | x, axis=-1 | exp(x), scaled to the sum 1
            softmax([0, 1]) is about [0.268941, 0.731059]
        log_softmax | x, axis=-1 | the logarithm of softmax
            log_softmax([0, 1]) is about [-1.31326, -0.313262]
    """,
    "Selection": """
        top_k | x, k | the k largest of the last axis, descending, nan last; argsort(-x)[..., :k] are their places
            top_k([3, 9, 1, 7], 2) is [9, 7]
        take | x, indices, axis=None | the entries at some indices
            take([[1, 2, 3], [4, 5, 6]], [0, -1], axis=1) is [[1, 3], [4, 6]]
        take_along_axis | x, indices, axis=None | the entries at indices of each row
            take_along_axis([[1, 2, 3], [4, 5, 6]], [[0], [2]], axis=1) is [[1], [6]]
    """,
    "Creation": """
        zeros | shape, dtype=None | zeros, float32 unless said otherwise
            zeros([2, 3]) is [[0, 0, 0], [0, 0, 0]]
        ones | shape, dtype=None | ones, float32 unless said otherwise
            ones(2, "int8") is [1, 1]
        full | shape, fill_value, dtype=None | one value throughout
            full([2, 2], 0.5) is [[0.5, 0.5], [0.5, 0.5]]
        zeros_like | x, dtype=None | zeros of x's shape and dtype
            zeros_like([1, 2]) is [0, 0]
        ones_like | x, dtype=None | ones of x's shape and dtype
            ones_like([1, 2]) is [1, 1]
        full_like | x, fill_value, dtype=None | one value throughout, of x's shape and dtype
            full_like([1.5, 2.5], 7) is [7, 7]
        eye | N, M=None, k=0, dtype=None | ones on a diagonal
            eye(2) is [[1, 0], [0, 1]]
        arange | start, stop=None, step=None, dtype=None | start, start + step, ... below stop
            arange(1, 10, 3) is [1, 4, 7]
        linspace | start, stop, num=50, endpoint=True, dtype=None | num numbers, evenly spaced
            linspace(0, 1, 5) is [0, 0.25, 0.5, 0.75, 1]
    """,
    "Random": """
        normal | shape, mean=0.0, stddev=1.0, dtype=None, *, seed | normally distributed floats
            normal(3, stddev=0.5, seed=1) is [0.5516383, 0.0043999893, -0.29591203]
        uniform | shape, minval=0.0, maxval=1.0, dtype=None, *, seed | evenly distributed floats, below maxval
            uniform(3, -1, 1, seed=1) is [0.50322026, 0.9084169, 0.55301285]
        randint | shape, minval, maxval, dtype="int32", *, seed | evenly distributed integers, below maxval
            randint([2, 3], 0, 10, seed=1) is [[3, 4, 7], [0, 6, 0]]
        bernoulli | shape, p, *, seed | booleans, true with probability p
            bernoulli(4, 0.5, seed=1) is [false, false, true, true]
        permutation | n, *, seed | the integers from 0 to n - 1 in random order
            permutation(5, seed=1) is [3, 2, 0, 4, 1]
    """,
    "Sizes": """
        shape | x | the lengths of the axes, a list
            shape([[1, 2, 3], [4, 5, 6]]) is [2, 3]
        ndim | x | the number of axes
            ndim([[1, 2, 3], [4, 5, 6]]) is 2
        size | x | the number of entries
            size([[1, 2, 3], [4, 5, 6]]) is 6
    """,
    "Shape": """
        reshape | x, newshape | the same entries in another shape; -1 for what fits
            reshape([1, 2, 3, 4], [2, -1]) is [[1, 2], [3, 4]]
        ravel | x | all entries along one axis
            ravel([[1, 2], [3, 4]]) is [1, 2, 3, 4]
        transpose | x, axes=None | the axes reversed, or in the order given
            transpose([[1, 2], [3, 4]]) is [[1, 3], [2, 4]]
        swapaxes | x, axis1, axis2 | two axes exchanged
            swapaxes([[1, 2, 3]], 0, 1) is [[1], [2], [3]]
        moveaxis | x, source, destination | axes moved to other places
            shape(moveaxis(zeros([2, 3, 4]), 0, -1)) is [3, 4, 2]
        squeeze | x, axis=None | without axes of length 1
            squeeze([[1, 2]]) is [1, 2]
        expand_dims | x, axis | with a new axis of length 1
            expand_dims([1, 2], 0) is [[1, 2]]
        broadcast_to | x, shape | repeated to a shape
            broadcast_to([1, 2], [2, 2]) is [[1, 2], [1, 2]]
        repeat | x, repeats, axis=None | each entry repeated
            repeat([1, 2], 2) is [1, 1, 2, 2]
        tile | x, repeats | the whole repeated
            tile([1, 2], 2) is [1, 2, 1, 2]
        flip | x, axis=None | in reverse order
            flip([1, 2, 3]) is [3, 2, 1]
        roll | x, shift, axis=None | shifted around
            roll([1, 2, 3], 1) is [3, 1, 2]
        tril | x, k=0 | zeros above a diagonal
            tril([[1, 2], [3, 4]]) is [[1, 0], [3, 4]]
        triu | x, k=0 | zeros below a diagonal
            triu([[1, 2], [3, 4]]) is [[1, 2], [0, 4]]
        diagonal | x, offset=0, axis1=0, axis2=1 | the entries of a diagonal
            diagonal([[1, 2], [3, 4]]) is [1, 4]
        diag | x, k=0 | of a vector the matrix, of a matrix the diagonal
            diag([1, 2]) is [[1, 0], [0, 2]]
        trace | x, offset=0, axis1=0, axis2=1 | the sum of a diagonal
            trace([[1, 2], [3, 4]]) is 5
    """,
    "Joining": """
        concatenate | xs, axis=0 | tensors one after the other along an axis
            concatenate([[1, 2], [3, 4]]) is [1, 2, 3, 4]
        stack | x, axis=0 | tensors side by side along a new axis
            stack([[1, 2], [3, 4]], axis=1) is [[1, 3], [2, 4]]
    """,
    "Products": """
        matmul | x1, x2 | the matrix product, as `@`
            matmul([[1, 2], [3, 4]], [10, 1]) is [12, 34]
        dot | x1, x2 | the sum of products over the last axis of x1 and the second to last of x2
            dot([1, 2], [3, 4]) is 11
        inner | x1, x2 | the sum of products over the last axes
            inner([[1, 2], [3, 4]], [10, 1]) is [12, 34]
        vdot | x1, x2 | the sum of products over all entries
            vdot([[1, 2], [3, 4]], [[1, 0], [0, 10]]) is 41
        outer | x1, x2 | each entry times each entry
            outer([1, 2], [3, 4]) is [[3, 4], [6, 8]]
        kron | x1, x2 | the Kronecker product: each entry of x1 times the whole of x2
            kron([1, 10], [1, 2]) is [1, 2, 10, 20]
        cross | x1, x2 | the cross product of vectors of 3 entries, along the last axis
            cross([1, 0, 0], [0, 1, 0]) is [0, 0, 1]
        tensordot | x1, x2, axes=2 | the sum of products over several axes
            tensordot([[1, 2], [3, 4]], [[1, 0], [0, 10]]) is 41
        einsum | subscripts, *operands | sums of products by Einstein's convention, a letter for each axis
            einsum("ij,j->i", [[1, 2], [3, 4]], [10, 1]) is [12, 34]
    """,
    "Linear algebra": """
        det | x | the determinant
            det([[1, 2], [3, 4]]) is about -2
        inv | x | the inverse matrix
            inv([[2, 0], [1, 1]]) is about [[0.5, 0], [-0.5, 1]]
        pinv | x | the pseudo-inverse matrix
            pinv([[2], [0]]) is about [[0.5, 0]]
        solve | a, b | x such that a @ x == b
            solve([[2, 0], [1, 1]], [2, 5]) is about [1, 4]
        cholesky | x | the lower triangle l with positive diagonal such that l @ transpose(l) == x
            cholesky([[4, 2], [2, 5]]) is about [[2, 0], [1, 2]]
        qr | x | the orthogonal factor q of x == q @ r, where no entry of r's diagonal is negative
            qr([[3, 0], [4, 5]]) is about [[0.6, -0.8], [0.8, 0.6]]
        svd | x | the singular values, descending
            svd([[3, 0], [0, -4]]) is about [4, 3]
        eigh | x | the eigenvalues of a symmetric matrix, ascending
            eigh([[2, 1], [1, 2]]) is about [1, 3]
    """,
}


def _read_table():
    table = {}
    for group, text in _TABLE.items():
        lines = text.strip().splitlines()
        for entry, shown in zip(lines[::2], lines[1::2], strict=True):
            name, signature, description = (part.strip() for part in entry.split(" | ", 2))
            example, about, result = re.split(r" is( about)? ", shown.strip())
            table[name] = Function(name, signature, group, description, example, result, not about)
    return table


TABLE = _read_table()
