"""The table of functions, and `call`, which runs one.

Each function has the name, the arguments and the meaning of the same function in `keras.ops` (arguments that a patch
has no use for are left out). A group of functions shares one rule: a Python function that checks dtypes and shapes,
says what the result is, and computes it if all data is present. Only what the table holds can be called.
"""

import ast
import difflib
import functools
import math
from dataclasses import dataclass

import numpy as np

from kpatch import arithmetic, dtypes, numerics
from kpatch.arithmetic import apply, compute, fold
from kpatch.dtypes import RANGES, Value, constant, is_floating, is_integer, literal
from kpatch.errors import DTypeError, FunctionError, LimitError, PatchError, ShapeError, UnsupportedError
from kpatch.indexing import broadcast


@dataclass(frozen=True, slots=True)
class Function:
    """One line of the table.

    Attributes:
        name: as in `keras.ops`.
        signature: the parameters, with their defaults as Python writes them.
        group: the title of the group whose rule it follows.
        description: one line.
        example: an expression; `_` and `x` are tensors.
    """

    name: str
    signature: str
    group: str
    description: str
    example: str


REQUIRED = object()
MAX_NAME = 60  # characters of a wrong name that are shown, and compared with the right ones

_TABLE = {
    "Arithmetic and comparison": """
        add | x1, x2 | the sum, as `+` | add(_, 1)
        subtract | x1, x2 | the difference, as `-` | subtract(_, 1)
        multiply | x1, x2 | the product, as `*` | multiply(_, 2)
        divide | x1, x2 | the quotient, a float, as `/` | divide(_, 2)
        true_divide | x1, x2 | the quotient, a float, as `/` | true_divide(_, 2)
        floor_divide | x1, x2 | the quotient rounded down, as `//` | floor_divide(_, 2)
        mod | x1, x2 | the remainder, with the sign of x2, as `%` | mod(_, 2)
        power | x1, x2 | x1 to the power of x2, as `**` | power(_, 2)
        negative | x | the opposite, as unary `-` | negative(_)
        equal | x1, x2 | as `==` | equal(_, 0)
        not_equal | x1, x2 | as `!=` | not_equal(_, 0)
        less | x1, x2 | as `<` | less(_, 0)
        less_equal | x1, x2 | as `<=` | less_equal(_, 0)
        greater | x1, x2 | as `>` | greater(_, 0)
        greater_equal | x1, x2 | as `>=` | greater_equal(_, 0)
        logical_and | x1, x2 | as `and` | logical_and(_ > 0, _ < 1)
        logical_or | x1, x2 | as `or` | logical_or(_ < 0, _ > 1)
        logical_xor | x1, x2 | whether exactly one holds | logical_xor(_ < 0, _ > 1)
        logical_not | x | as `not` | logical_not(_ > 0)
    """,
    "Element-wise mathematics": """
        exp | x | e to the power of each entry | exp(_)
        exp2 | x | 2 to the power of each entry | exp2(_)
        expm1 | x | exp(x) - 1, exact near 0 | expm1(_)
        log | x | the natural logarithm | log(abs(_))
        log2 | x | the logarithm to base 2 | log2(abs(_))
        log10 | x | the logarithm to base 10 | log10(abs(_))
        log1p | x | log(1 + x), exact near 0 | log1p(abs(_))
        sqrt | x | the square root | sqrt(abs(_))
        rsqrt | x | 1 / sqrt(x) | rsqrt(_ + 0.001)
        cbrt | x | the cube root | cbrt(_)
        reciprocal | x | 1 / x | reciprocal(_)
        sin | x | the sine | sin(_)
        cos | x | the cosine | cos(_)
        tan | x | the tangent | tan(_)
        arcsin | x | the inverse sine | arcsin(_)
        arccos | x | the inverse cosine | arccos(_)
        arctan | x | the inverse tangent | arctan(_)
        sinh | x | the hyperbolic sine | sinh(_)
        cosh | x | the hyperbolic cosine | cosh(_)
        tanh | x | the hyperbolic tangent | tanh(_)
        arcsinh | x | the inverse hyperbolic sine | arcsinh(_)
        arccosh | x | the inverse hyperbolic cosine | arccosh(1 + abs(_))
        arctanh | x | the inverse hyperbolic tangent | arctanh(_)
        deg2rad | x | degrees as radians | deg2rad(_)
        rad2deg | x | radians as degrees | rad2deg(_)
        erf | x | the error function | erf(_)
        sigmoid | x | 1 / (1 + exp(-x)) | sigmoid(_)
        silu | x | x * sigmoid(x) | silu(_)
        softplus | x | log(1 + exp(x)) | softplus(_)
        softsign | x | x / (1 + abs(x)) | softsign(_)
        gelu | x, approximate=True | the Gaussian error linear unit | gelu(_, approximate=false)
        elu | x, alpha=1.0 | x, and below 0 alpha * (exp(x) - 1) | elu(_)
        leaky_relu | x, negative_slope=0.2 | x, and below 0 negative_slope * x | leaky_relu(_)
        arctan2 | x1, x2 | the angle of the point (x2, x1) | arctan2(_, 1)
        hypot | x1, x2 | sqrt(x1**2 + x2**2) | hypot(_, 1)
        logaddexp | x1, x2 | log(exp(x1) + exp(x2)) | logaddexp(_, 0)
    """,
    "Element-wise, in the same dtype": """
        abs | x | the absolute value | abs(_)
        sign | x | 1, 0 or -1; of nan nan | sign(_)
        square | x | x * x | square(_)
        floor | x | rounded down | floor(_)
        ceil | x | rounded up | ceil(_)
        trunc | x | rounded towards 0 | trunc(_)
        round | x, decimals=0 | rounded to the nearest, halves to even | round(_, 2)
        relu | x | x, and below 0 0 | relu(_)
        relu6 | x | x, at least 0 and at most 6 | relu6(_)
        nan_to_num | x, nan=0.0, posinf=None, neginf=None | nan and infinities replaced by numbers | nan_to_num(_)
        maximum | x1, x2 | the larger of two; nan where either is | maximum(_, 0)
        minimum | x1, x2 | the smaller of two; nan where either is | minimum(_, 1)
        clip | x, x_min, x_max | x, at least x_min and at most x_max | clip(_, -1, 1)
    """,
    "Tests of entries": """
        isnan | x | whether it is nan | isnan(_)
        isinf | x | whether it is infinite | isinf(_)
        isfinite | x | whether it is neither nan nor infinite | isfinite(_)
    """,
    "Closeness": """
        isclose | x1, x2, rtol=1e-05, atol=1e-08, equal_nan=False | |x1 - x2| <= atol + rtol * |x2| | isclose(_, 1)
        allclose | x1, x2, rtol=1e-05, atol=1e-08, equal_nan=False | whether isclose holds everywhere | allclose(_, 1)
    """,
    "Choice": """
        where | condition, x1, x2 | x1 where the condition holds, else x2 | where(_ > 0, _, 0)
    """,
    "Conversion": """
        cast | x, dtype | in another dtype; to integers it truncates and wraps, and nan is 0 | cast(_, "int8")
    """,
    "Reductions": """
        sum | x, axis=None, keepdims=False | the sum; of booleans, how many hold | sum(_, axis=0)
        mean | x, axis=None, keepdims=False | the mean; of booleans, the share that holds | mean(_)
        prod | x, axis=None, keepdims=False | the product | prod(_)
        max | x, axis=None, keepdims=False | the largest; nan if one is | max(_)
        min | x, axis=None, keepdims=False | the smallest; nan if one is | min(_)
        var | x, axis=None, keepdims=False | the variance | var(_)
        std | x, axis=None, keepdims=False | the standard deviation | std(_)
        any | x, axis=None, keepdims=False | whether one holds | any(_ > 0)
        all | x, axis=None, keepdims=False | whether all hold | all(_ > 0)
        count_nonzero | x, axis=None | how many are not 0 | count_nonzero(_)
        argmax | x, axis=None, keepdims=False | the index of the first largest, or of the first nan | argmax(_)
        argmin | x, axis=None, keepdims=False | the index of the first smallest, or of the first nan | argmin(_)
        logsumexp | x, axis=None, keepdims=False | log(sum(exp(x))) | logsumexp(_)
        norm | x, ord=None, axis=None, keepdims=False | the length as a vector; ord 1, 2, inf or -inf | norm(_, axis=0)
    """,
    "Quantiles": """
        median | x, axis=None, keepdims=False | the middle of the sorted entries | median(_)
        quantile | x, q, axis=None, method="linear", keepdims=False | what a share q lies below | quantile(_, 0.9)
    """,
    "Along an axis": """
        sort | x, axis=-1 | ascending, nan last | sort(_)
        argsort | x, axis=-1 | the indices that sort; stable, nan last | argsort(_)
        cumsum | x, axis=None | the sums of all up to each entry | cumsum(_)
        cumprod | x, axis=None | the products of all up to each entry | cumprod(_)
        softmax | x, axis=-1 | exp(x), scaled to the sum 1 | softmax(_)
        log_softmax | x, axis=-1 | the logarithm of softmax | log_softmax(_)
    """,
    "Creation": """
        zeros | shape, dtype=None | zeros, float32 unless said otherwise | zeros([2, 3])
        ones | shape, dtype=None | ones, float32 unless said otherwise | ones([2, 3])
        full | shape, fill_value, dtype=None | one value throughout | full([2, 3], 0.5)
        zeros_like | x, dtype=None | zeros of x's shape and dtype | zeros_like(_)
        ones_like | x, dtype=None | ones of x's shape and dtype | ones_like(_)
        full_like | x, fill_value, dtype=None | one value throughout, of x's shape and dtype | full_like(_, 0.5)
        eye | N, M=None, k=0, dtype=None | ones on a diagonal | eye(3)
        arange | start, stop=None, step=None, dtype=None | start, start + step, ... below stop | arange(10)
        linspace | start, stop, num=50, endpoint=True, dtype=None | num numbers, evenly spaced | linspace(0, 1, 11)
    """,
    "Sizes": """
        shape | x | the lengths of the axes, a list | shape(_)
        ndim | x | the number of axes | ndim(_)
        size | x | the number of entries | size(_)
    """,
    "Shape": """
        reshape | x, newshape | the same entries in another shape; -1 for what fits | reshape(_, [-1])
        ravel | x | all entries along one axis | ravel(_)
        transpose | x, axes=None | the axes reversed, or in the order given | transpose(_)
        swapaxes | x, axis1, axis2 | two axes exchanged | swapaxes(_, 0, 1)
        moveaxis | x, source, destination | axes moved to other places | moveaxis(_, 0, -1)
        squeeze | x, axis=None | without axes of length 1 | squeeze(_)
        expand_dims | x, axis | with a new axis of length 1 | expand_dims(_, 0)
        broadcast_to | x, shape | repeated to a shape | broadcast_to(_, [2, 3])
        repeat | x, repeats, axis=None | each entry repeated | repeat(_, 2, axis=0)
        tile | x, repeats | the whole repeated | tile(_, [2, 1])
        flip | x, axis=None | in reverse order | flip(_, axis=0)
        roll | x, shift, axis=None | shifted around | roll(_, 1, axis=0)
        tril | x, k=0 | zeros above a diagonal | tril(_)
        triu | x, k=0 | zeros below a diagonal | triu(_)
        diagonal | x, offset=0, axis1=0, axis2=1 | the entries of a diagonal | diagonal(_)
        diag | x, k=0 | of a vector the matrix, of a matrix the diagonal | diag(_)
        trace | x, offset=0, axis1=0, axis2=1 | the sum of a diagonal | trace(_)
    """,
    "Joining": """
        concatenate | xs, axis=0 | tensors one after the other along an axis | concatenate([x, x], axis=0)
        stack | x, axis=0 | tensors side by side along a new axis | stack([x, x])
    """,
    "Products": """
        matmul | x1, x2 | the matrix product, as `@` | matmul(_, x)
        dot | x1, x2 | the sum of products over the last axis of x1 and the second to last of x2 | dot(_, x)
        outer | x1, x2 | each entry times each entry | outer(_, x)
        tensordot | x1, x2, axes=2 | the sum of products over several axes | tensordot(_, x, axes=1)
    """,
    "Not executed yet": """
        top_k | x, k | the k largest, in order | top_k(_, 5)
        take | x, indices, axis=None | the entries at some indices | take(_, [0, 2], axis=0)
        take_along_axis | x, indices, axis=None | the entries at indices of each row | take_along_axis(_, x)
        det | x | the determinant | det(_)
        inv | x | the inverse matrix | inv(_)
        pinv | x | the pseudo-inverse matrix | pinv(_)
        solve | a, b | x such that a @ x == b | solve(_, x)
        cholesky | x | the Cholesky factor | cholesky(_)
        qr | x | the orthogonal factor | qr(_)
        svd | x | the singular values | svd(_)
        eigh | x | the eigenvalues of a symmetric matrix | eigh(_)
        cross | x1, x2 | the cross product | cross(_, x)
        kron | x1, x2 | the Kronecker product | kron(_, x)
        inner | x1, x2 | the sum of products over the last axes | inner(_, x)
        vdot | x1, x2 | the sum of products over all entries | vdot(_, x)
        einsum | subscripts, *operands | sums of products by Einstein's convention | einsum("ij->j", _)
        normal | shape, mean=0.0, stddev=1.0, dtype=None, seed=None | normally distributed numbers | normal([3], seed=1)
        uniform | shape, minval=0.0, maxval=1.0, dtype=None, seed=None | evenly distributed numbers | uniform([3], seed=1)
        randint | shape, minval, maxval, dtype="int32", seed=None | random integers | randint([3], 0, 9, seed=1)
        bernoulli | shape, p, seed=None | true with probability p | bernoulli([3], 0.5, seed=1)
        permutation | n, seed=None | 0 to n - 1 in random order | permutation(5, seed=1)
    """,
}


def _read_table():
    table = {}
    for group, text in _TABLE.items():
        for line in text.strip().splitlines():
            name, signature, description, example = (part.strip() for part in line.split(" | "))
            table[name] = Function(name, signature, group, description, example)
    return table


TABLE = _read_table()
_ELEMENTWISE = ("Arithmetic", "Element-wise", "Tests of entries", "Choice", "Conversion")


def is_elementwise(name):
    """Whether each entry of the result depends on the entries at that place alone.

    Example:
        >>> is_elementwise("exp"), is_elementwise("sum")
        (True, False)
    """
    return name in TABLE and TABLE[name].group.startswith(_ELEMENTWISE)


def call(name, args=(), kwargs=None, traced=False):
    """Calls a function of the table.

    Args:
        args, kwargs: `Value`s; a string where the function takes one; a list of `Value`s where it joins tensors.
        traced: inside jit, where values cannot be looked at.

    Raises:
        PatchError: with the position or the keyword of the argument at fault as `argument`.

    Example:
        >>> call("sum", [literal([1, 2, 3])]).data
        array(6)
        >>> call("sqr", [literal(2)])
        Traceback (most recent call last):
        kpatch.FunctionError: no function 'sqr'; did you mean 'sqrt'?
    """
    function = TABLE.get(name)
    if function is None:
        raise FunctionError(f"no function '{_shown(name)}'{_nearest(name, TABLE)}")
    if function.group == "Not executed yet":
        raise UnsupportedError(f"{name}() is not executed yet: it comes with the next version")
    given = _bind(function, list(args), kwargs or {})
    places = {parameter: place for parameter, (place, _) in given.items()}
    tensors = [parameter for parameter in _parameters(name) if _kind(function, parameter) in (_tensor, _tensors)]
    try:
        arguments = {
            parameter: _kind(function, parameter)(function, parameter, value) for parameter, (_, value) in given.items()
        }
        defaults = {p: d for p, d in _parameters(name).items() if p not in given}
        extra = {"traced": traced} if function.group.startswith("Arithmetic") else {}
        return _RULES[function.group](function, **{**defaults, **arguments}, **extra)
    except PatchError as error:
        if isinstance(error.argument, int):
            error.argument = tensors[min(error.argument, len(tensors) - 1)]
        error.argument = places.get(error.argument)
        raise


# -- arguments ---------------------------------------------------------------------------------------------------------


@functools.cache
def _parameters(name):
    """The parameters of a function, with their defaults."""
    spec = ast.parse(f"def f({TABLE[name].signature}): pass").body[0].args
    missing = len(spec.args) - len(spec.defaults)
    defaults = [REQUIRED] * missing + [ast.literal_eval(default) for default in spec.defaults]
    return dict(zip((argument.arg for argument in spec.args), defaults, strict=True))


def _bind(function, args, kwargs):
    """Each argument given, as `{parameter: (position or keyword, value)}`."""
    name, parameters = function.name, _parameters(function.name)
    notes = [f"{name}({function.signature})"]
    if len(args) > len(parameters):
        count = f"{len(parameters)} argument" + "s" * (len(parameters) != 1)
        message = f"{name}() takes {count}, {len(args)} given"
        raise FunctionError(message, argument=len(parameters), notes=notes)
    given = {parameter: (place, args[place]) for place, parameter in enumerate(list(parameters)[: len(args)])}
    for keyword, value in kwargs.items():
        if keyword not in parameters:
            message = f"{name}() has no argument '{_shown(keyword)}'{_nearest(keyword, parameters)}"
            raise FunctionError(message, argument=keyword, notes=notes)
        if keyword in given:
            raise FunctionError(f"{name}() got '{keyword}' twice", argument=keyword, notes=notes)
        given[keyword] = (keyword, value)
    missing = [f"'{p}'" for p, default in parameters.items() if default is REQUIRED and p not in given]
    if missing:
        raise FunctionError(f"{name}() needs {' and '.join(missing)}", notes=notes)
    return given


def _shown(name):
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def _nearest(name, names):
    close = difflib.get_close_matches(name, names, 1) if len(name) <= MAX_NAME else []
    return f"; did you mean '{close[0]}'?" if close else ""


def _refuse(function, parameter, wanted, value):
    found = "a string" if isinstance(value, str) else "a list of tensors" if isinstance(value, list) else None
    if found is None:
        name = {"int": "an integer", "float": "a float", "bool": "a boolean"}.get(value.dtype, value.dtype)
        found = f"{'a tensor' if not value.weak else 'a list' if value.shape else name}"
        found += f" of {value.dtype}" if not value.weak else ""
    note = f"{function.name}({function.signature})"
    message = f"'{parameter}' of {function.name}() is {wanted}, not {found}"
    raise FunctionError(message, argument=parameter, notes=[note])


def _tensor(function, parameter, value):
    if isinstance(value, str):
        _refuse(function, parameter, "a tensor or a number", value)
    if isinstance(value, list):
        return _joined(function, value, 0, "stack")
    return value


def _tensors(function, parameter, value):
    """A list of tensors; of a literal list, its items."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) or not value.weak or not value.shape or value.data is None:
        _refuse(function, parameter, "a list of tensors", value)
    return [constant(np.asarray(item)) for item in value.data]


def _known(function, parameter, wanted, value, kind, axes=(0,)):
    """The constant's data, of one of the numbers of axes."""
    if isinstance(value, str | list) or not value.weak or value.dtype not in kind or len(value.shape) not in axes:
        _refuse(function, parameter, wanted, value)
    if value.data is None:
        raise UnsupportedError(f"'{parameter}' of {function.name}() is not known before the patch runs")
    return value.data.tolist()


def _integer(function, parameter, value):
    return _known(function, parameter, "a constant integer", value, ("int",))


def _integers(function, parameter, value):
    known = _known(function, parameter, "a constant integer or a list of them", value, ("int",), (0, 1))
    return tuple(known) if isinstance(known, list) else known


def _pairs(function, parameter, value):
    known = _known(function, parameter, "a constant integer or a list of two lists", value, ("int",), (0, 1, 2))
    return known


def _boolean(function, parameter, value):
    return _known(function, parameter, "true or false", value, ("bool",))


def _number(function, parameter, value):
    return _known(function, parameter, "a constant number", value, ("int", "float"))


def _numbers(function, parameter, value):
    return _known(function, parameter, "a constant number or a list of them", value, ("int", "float"), (0, 1))


def _lengths(function, parameter, value):
    """A shape."""
    known = _known(function, parameter, "an integer or a list of them", value, ("int",), (0, 1))
    lengths = tuple(known) if isinstance(known, list) else (known,)
    negative = next((length for length in lengths if length < 0), None)
    if negative is not None:
        raise ShapeError(f"a length cannot be negative: {negative}", argument=parameter)
    return lengths


def _string(function, parameter, value):
    if not isinstance(value, str):
        _refuse(function, parameter, "a string", value)
    return value


def _dtype(function, parameter, value):
    name = _string(function, parameter, value)
    if name not in dtypes.DTYPES:
        message = f"no dtype '{_shown(name)}'{_nearest(name, dtypes.DTYPES)}"
        raise DTypeError(message, argument=parameter, notes=["dtypes: " + " ".join(dtypes.DTYPES)])
    return name


_KINDS = {
    _integer: "axis1 axis2 k offset decimals num N M",
    _integers: "axis newshape source destination repeats shift",
    _pairs: "axes",
    _boolean: "keepdims approximate endpoint equal_nan",
    _number: "ord alpha negative_slope rtol atol nan posinf neginf start stop step",
    _numbers: "q",
    _lengths: "shape",
    _string: "method",
    _dtype: "dtype",
}
_KIND_OF = {parameter: kind for kind, names in _KINDS.items() for parameter in names.split()}


def _kind(function, parameter):
    """How a parameter's argument is read, by its name; anything else is a tensor."""
    if function.group == "Joining" and parameter in ("x", "xs"):
        return _tensors
    return _KIND_OF.get(parameter, _tensor)


def _axis(axis, count, name="axis"):
    """A normalised axis."""
    if not -count <= axis < count:
        axes = f"{count} ax{'i' if count == 1 else 'e'}s"
        raise ShapeError(f"axis {axis} is out of range for {axes}", argument=name)
    return axis % count


def _axes(axis, count, name="axis"):
    """Normalised axes, all different; all of them for `None`."""
    if axis is None:
        return tuple(range(count))
    axes = tuple(_axis(a, count, name) for a in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) < len(axes):
        raise ShapeError(f"axis {axes} names one axis twice", argument=name)
    return axes


def _one_axis(axis, count):
    if isinstance(axis, tuple):
        raise FunctionError("'axis' is one integer here, not a list", argument="axis")
    return _axis(axis, count)


def _need_numbers(function, *values):
    for place, value in enumerate(values):
        if value.dtype == "bool":
            message = f'{function.name}() takes numbers, not booleans; write cast(..., "float32") or where(..., 1, 0)'
            raise DTypeError(message, argument=place)


def _float_of(value):
    """The float dtype in which a tensor's mathematics is done."""
    return value.dtype if value.dtype in dtypes.FLOATS else "float32"


# -- element by element ------------------------------------------------------------------------------------------------

_OPERATOR = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "true_divide": "/",
    "floor_divide": "//",
    "mod": "%",
    "power": "**",
    "logical_and": "and",
    "logical_or": "or",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}


def _arithmetic(function, x1=None, x2=None, x=None, traced=False):
    if x is not None:
        return arithmetic.unary("-" if function.name == "negative" else "not", x)
    if function.name == "logical_xor":
        arithmetic.need_booleans("logical_xor()", x1, x2)
        return arithmetic.compare("!=", x1, x2)
    op = _OPERATOR[function.name]
    if op in numerics.COMPARISONS:
        return arithmetic.compare(op, x1, x2)
    return arithmetic.binary(op, x1, x2, traced)


def _mathematics(function, x=None, x1=None, x2=None, **options):
    """Of integers float32, of 16-bit floats computed in float32 and rounded once."""
    operands = [value for value in (x, x1, x2) if value is not None]
    _need_numbers(function, *operands)
    shape = broadcast([value.shape for value in operands])
    dtypes.check_size(shape, *operands)
    dtype = dtypes.common(operands)
    if dtype in ("int", "float"):
        formula = functools.partial(numerics.formula(function.name), **options)
        return fold(shape, formula, *map(_as_floats, operands))
    dtype = dtype if dtype in dtypes.FLOATS else "float32"

    def kernel(*tensors):
        *tensors, inner = tensors
        return numerics.engine(function.name, inner)(*tensors, **options)

    return apply(dtype, shape, lambda *x: numerics.in_float32(kernel, dtype, *x), *operands, to=dtype)


def _as_floats(value):
    data = None if value.data is None else value.data.astype("float64")
    return Value("float", value.shape, data, True, value.is_list)


def _clip(x, x_min, x_max, dtype):
    return numerics.minimum(numerics.maximum(x, x_min, dtype), x_max, dtype)


def _relu(x, dtype):
    return numerics.maximum(x, numerics.scalar(0, dtype), dtype)


_SAME = {
    "abs": numerics.absolute,
    "sign": numerics.sign,
    "square": lambda x, dtype: x * x,
    "floor": functools.partial(numerics.rounded, "floor"),
    "ceil": functools.partial(numerics.rounded, "ceil"),
    "trunc": numerics.truncate,
    "round": functools.partial(numerics.rounded, "round"),
    "relu": _relu,
    "relu6": lambda x, dtype: numerics.minimum(_relu(x, dtype), numerics.scalar(6, dtype), dtype),
    "nan_to_num": numerics.nan_to_num,
    "maximum": numerics.maximum,
    "minimum": numerics.minimum,
    "clip": _clip,
}
_FOLDED = {
    "floor": lambda x: x if x.dtype == object else np.floor(x),
    "ceil": lambda x: x if x.dtype == object else np.ceil(x),
    "trunc": lambda x: x if x.dtype == object else np.trunc(x),
    "round": lambda x, decimals: x if x.dtype == object else np.round(x, decimals),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "nan_to_num": lambda x, **to: x if x.dtype == object else np.nan_to_num(x, **to),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
}


def _same_dtype(function, decimals=None, nan=None, posinf=None, neginf=None, **operands):
    """The operands' common dtype is the result's."""
    operands = list(operands.values())
    _need_numbers(function, *operands)
    shape = broadcast([value.shape for value in operands])
    dtypes.check_size(shape, *operands)
    dtype = dtypes.common(operands)
    options = {}
    if function.name == "round":
        if decimals < 0 and is_integer(dtype):
            raise FunctionError("integers are not rounded to tens; divide first", argument="decimals")
        options = {"decimals": max(-400, min(decimals, 400))}
    if function.name == "nan_to_num":
        options = {"nan": nan, "posinf": posinf, "neginf": neginf}
        if dtype in dtypes.FLOATS:
            _check_replacements(options, dtype)
    if dtype in ("int", "float"):
        formula = _FOLDED.get(function.name) or getattr(np, function.name)
        return fold(shape, functools.partial(formula, **options), *operands, dtype=dtype)
    kernel = functools.partial(_SAME[function.name], **options)
    return apply(dtype, shape, lambda *x: kernel(*x, dtype=dtype), *operands, to=dtype)


def _check_replacements(options, dtype):
    for parameter, number in options.items():
        if number is not None:
            try:
                dtypes.fit(literal(number), dtype)
            except DTypeError as error:
                error.argument = parameter
                raise


def _test(function, x):
    _need_numbers(function, x)
    if x.weak:
        return fold(x.shape, lambda a: getattr(np, function.name)(a), _as_floats(x))
    if is_integer(x.dtype):
        always = function.name == "isfinite"
        return apply("bool", x.shape, lambda a: (a == a) if always else (a != a), x)
    return apply("bool", x.shape, lambda a: numerics.engine(function.name, x.dtype)(a), x)


def _close(function, x1, x2, rtol, atol, equal_nan):
    """NumPy's definition, in the operands' float dtype, float32 at least."""
    _need_numbers(function, x1, x2)
    shape = broadcast([x1.shape, x2.shape])
    dtypes.check_size(shape, x1, x2)
    dtype = dtypes.common((x1, x2))
    if dtype in ("int", "float"):
        operands = _as_floats(x1), _as_floats(x2)
        close = fold(shape, lambda a, b: np.isclose(a, b, rtol, atol, equal_nan), *operands)
    else:
        wide = "float64" if dtype == "float64" else "float32"
        near = functools.partial(numerics.close, rtol=rtol, atol=atol, equal_nan=equal_nan, dtype=wide)
        close = apply("bool", shape, near, x1, x2, to=wide)
    return call("all", [close]) if function.name == "allclose" else close


def _where(function, condition, x1, x2):
    if condition.dtype != "bool":
        found = {"int": "an integer", "float": "a float"}.get(condition.dtype, condition.dtype)
        raise DTypeError(f"the condition of where() is boolean, not {found}; write '!= 0'", argument="condition")
    shape = broadcast([condition.shape, x1.shape, x2.shape])
    dtypes.check_size(shape, condition, x1, x2)
    try:
        dtype = dtypes.common((x1, x2))
    except DTypeError as error:
        error.argument = ("x1", "x2")[error.argument]
        raise
    if condition.weak and x1.weak and x2.weak:
        return fold(shape, np.where, condition, x1, x2, dtype=dtype)
    if dtype in ("int", "float", "bool"):
        a, b = _strong(x1, x2)
        dtype = a.dtype
    else:
        a, b = (arithmetic.prepared(x, dtype, name) for x, name in ((x1, "x1"), (x2, "x2")))
    return apply(dtype, shape, lambda c, a, b: numerics.where(c, a, b, dtype), _as_tensor(condition), a, b)


def _strong(*literals):
    """Literals that meet no tensor, as tensors: float32, int32 (int64 where they need it) or bool."""
    kind = dtypes.common(literals)
    if kind == "bool":
        return [_as_tensor(x) for x in literals]
    dtype = "float32"
    if kind == "int":
        low, high = RANGES["int32"]
        wide = any(x.data is not None and ((x.data < low) | (x.data > high)).any() for x in literals)
        dtype = "int64" if wide else "int32"
    dtypes.check_available(dtype)
    return [arithmetic.prepared(x, dtype) for x in literals]


def _as_tensor(value):
    return arithmetic.prepared(value, "bool") if value.weak else value


def _cast(function, x, dtype):
    if not x.weak:
        return apply(dtype, x.shape, lambda a: numerics.cast(a, x.dtype, dtype), x)
    dtypes.check_available(dtype)
    if x.data is None:
        return Value(dtype, x.shape)
    return Value(dtype, x.shape, numerics.as_tensor(numerics.cast_array(x.data, dtype), dtype))


# -- reductions --------------------------------------------------------------------------------------------------------

_REDUCTIONS = {
    "sum": numerics.total,
    "mean": numerics.mean,
    "prod": numerics.product,
    "max": numerics.largest,
    "min": numerics.smallest,
    "var": numerics.variance,
    "std": numerics.deviation,
    "any": numerics.any_along,
    "all": numerics.all_along,
    "count_nonzero": numerics.count,
    "argmax": numerics.first_largest,
    "argmin": numerics.first_smallest,
    "logsumexp": numerics.logsumexp,
    "norm": numerics.norm,
}
_COUNTING = ("sum", "mean", "any", "all", "count_nonzero", "argmax", "argmin")  # take booleans
_NEEDS_ENTRIES = ("max", "min", "argmax", "argmin", "median", "quantile")
_TO_FLOAT = ("mean", "var", "std", "logsumexp", "norm")


def _reduction(function, x, axis=None, keepdims=False, ord=None):
    name = function.name
    if name not in _COUNTING:
        _need_numbers(function, x)
    axes = _axes(axis, len(x.shape))
    if name in ("argmax", "argmin") and isinstance(axis, tuple):
        raise FunctionError("'axis' is one integer here, not a list", argument="axis")
    if name == "norm":
        _check_order(ord, axes)
    shape = _reduced(x.shape, axes, keepdims)
    if name in _NEEDS_ENTRIES:
        _check_entries(function, x.shape, axes)
    if x.weak and name not in ("logsumexp", "norm"):
        return _folded_reduction(function, x, shape, axis, keepdims)
    dtype, inner = _reduction_dtypes(name, x)
    options = {"ord": ord} if name == "norm" else {}
    kernel = functools.partial(_REDUCTIONS[name], **options)

    def reduce(a):
        a, kept = (a, axes) if x.shape or not name.startswith("arg") else (numerics.reshape(a, (1,)), (0,))
        result = numerics.recast(kernel(a, kept, inner), dtype)
        return numerics.restore_axes(result, axes) if keepdims and axes else result

    return compute(dtype, shape, reduce, x, to=inner)


def _reduction_dtypes(name, x):
    """The dtypes of the result, and of the operand while it is reduced: 16-bit floats are summed in float32."""
    if name in ("any", "all"):
        return "bool", x.dtype
    if name in ("count_nonzero", "argmax", "argmin"):
        return "int32", "uint8" if x.dtype == "bool" else x.dtype
    if name in ("max", "min"):
        return x.dtype, x.dtype
    if name in _TO_FLOAT or is_floating(x.dtype):
        dtype = _float_of(x)
        return dtype, "float32" if dtypes.FLOATS[dtype] == 16 else dtype
    dtype = x.dtype if dtypes.NUMPY[x.dtype].itemsize >= 4 else "int32"
    return dtype, dtype


def _reduced(shape, axes, keepdims):
    if keepdims:
        return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


def _check_entries(function, shape, axes):
    if 0 in [shape[axis] for axis in axes]:
        raise ShapeError(f"{function.name}() of no entries: the shape is {shape}", argument=0)


def _check_order(order, axes):
    if order not in (None, 1, 2, math.inf, -math.inf):
        raise FunctionError(f"'ord' of norm() is 1, 2, inf or -inf, not {order}", argument="ord")
    if order is not None and len(axes) > 1:
        raise UnsupportedError("norms of matrices are not executed yet; name one axis, or ravel", argument="ord")


def _folded_reduction(function, x, shape, axis, keepdims):
    name = function.name
    if x.dtype == "bool" and name in ("sum", "mean"):
        x = Value("int", x.shape, None if x.data is None else x.data.astype("int64"), True)
    if name in _TO_FLOAT:
        x = _as_floats(x)
    options = {"axis": axis, **({} if name == "count_nonzero" else {"keepdims": keepdims})}
    dtype = "bool" if name in ("any", "all") else "int" if name.startswith(("arg", "count")) else x.dtype
    whole = (lambda a: a != 0) if name in ("any", "all", "count_nonzero") else (lambda a: a)
    return fold(shape, lambda a: getattr(np, name)(whole(a), **options), x, dtype=dtype)


def _quantile(function, x, q=0.5, axis=None, method="linear", keepdims=False):
    _need_numbers(function, x)
    if method not in ("linear", "lower", "higher", "midpoint", "nearest"):
        near = _nearest(method, ("linear", "lower", "higher", "midpoint", "nearest"))
        raise FunctionError(f"no method '{_shown(method)}' of quantile(){near}", argument="method")
    shares = q if isinstance(q, list) else [q]
    wrong = next((share for share in shares if not 0 <= share <= 1), None)
    if wrong is not None:
        raise FunctionError(f"'q' of quantile() lies between 0 and 1: {wrong}", argument="q")
    if isinstance(axis, tuple):
        raise UnsupportedError("quantiles over several axes are not executed yet; reshape first", argument="axis")
    axes = _axes(axis, len(x.shape))
    _check_entries(function, x.shape, axes)
    if x.data is not None:
        _need_lengths(function, x)
    shape = ((len(q),) if isinstance(q, list) else ()) + _reduced(x.shape, axes, keepdims)
    dtypes.check_size(shape, x)
    if x.weak:
        return fold(shape, lambda a: np.quantile(a, q, axis=axis, method=method, keepdims=keepdims), _as_floats(x))
    dtype = _float_of(x)

    def pick(a, inner):
        results = [numerics.quantile(a, share, axes, method, inner) for share in shares]
        if keepdims and axes:
            results = [numerics.restore_axes(result, axes) for result in results]
        return numerics.stack(results, 0) if isinstance(q, list) else results[0]

    return compute(dtype, shape, lambda a: numerics.in_float32(pick, dtype, a), x, to=dtype)


def _along(function, x, axis):
    """Functions that keep the shape, and run along one axis; for `None` along all entries in one row."""
    name = function.name
    if name not in ("sort", "argsort"):
        _need_numbers(function, x)
    if axis is None:
        x = call("ravel", [x])
    if not x.shape:
        x = call("reshape", [x, literal([1])]) if name != "softmax" else x
    axis = 0 if axis is None else _one_axis(axis, len(x.shape)) if x.shape else 0
    if x.weak and "softmax" not in name:
        options = {"kind": "stable"} if "sort" in name else {}
        dtype = "int" if name == "argsort" else x.dtype
        return fold(x.shape, lambda a: getattr(np, name)(a, axis=axis, **options), x, dtype=dtype)
    if "softmax" in name:
        dtype = _float_of(x)
        kernel = functools.partial(numerics.softmax, axis=axis, log=name == "log_softmax")
        return compute(dtype, x.shape, lambda a: numerics.in_float32(kernel, dtype, a), x, to=dtype)
    if "sort" in name:
        kernel = numerics.sort if name == "sort" else numerics.order
        return compute("int32" if name == "argsort" else x.dtype, x.shape, lambda a: kernel(a, axis, x.dtype), x)
    dtype, inner = _reduction_dtypes("sum", x)
    kernel = functools.partial(numerics.accumulate, name)
    return compute(dtype, x.shape, lambda a: numerics.recast(kernel(a, axis, inner), dtype), x, to=inner)


# -- creation ----------------------------------------------------------------------------------------------------------


def _creation(function, **arguments):
    return _CREATORS[function.name](**arguments)


def _filled(shape, number, dtype):
    dtype = dtype or "float32"
    dtypes.check_size(shape)
    dtypes.check_available(dtype)
    return compute(dtype, shape, lambda: numerics.full(shape, numerics.scalar(number, dtype), dtype))


def _filled_with(shape, fill_value, dtype=None):
    _check_fill(shape, fill_value)
    dtypes.check_size(shape, fill_value)
    if dtype is None:
        dtype = "float32" if fill_value.dtype in ("int", "float") else fill_value.dtype
    dtypes.check_available(dtype)
    try:
        value = arithmetic.convert(fill_value, dtype)
    except PatchError as error:
        error.argument = "fill_value"
        raise
    if value.weak and value.data is not None:
        value = Value(dtype, value.shape, numerics.as_tensor(value.data, dtype))
    return compute(dtype, shape, lambda a: numerics.full(shape, a, dtype), value)


def _check_fill(shape, value):
    if broadcast([shape, value.shape]) != shape:
        raise ShapeError(f"a value of shape {value.shape} does not broadcast to {shape}", argument="fill_value")


def _filled_like(x, number, dtype):
    """Of a literal a literal."""
    if x.weak and dtype is None:
        return fold(x.shape, lambda a: np.full_like(a, number), x)
    if None in x.shape:
        dtype = dtype or x.dtype
        return compute(dtype, x.shape, lambda a: numerics.filled_like(a, number, dtype), x)
    return _filled(x.shape, number, dtype or x.dtype)


def _full_like(x, fill_value, dtype):
    if dtype is None:
        dtype = fill_value.dtype if x.weak and not fill_value.weak else x.dtype
        if dtype in ("int", "float"):
            dtype = _strong(x)[0].dtype
    if None in x.shape and x.data is None:
        _check_fill(x.shape, fill_value)
        return arithmetic.convert(fill_value, dtype) and Value(dtype, x.shape)
    _need_lengths(TABLE["full_like"], x)
    return _filled_with(x.shape, fill_value, dtype)


def _need_lengths(function, *operands):
    """Inside a compiled graph a length may stay unknown; while planning it is known later."""
    if any(None in value.shape for value in operands):
        raise UnsupportedError(
            f"{function.name}() of a tensor with an axis of unknown length is not supported", argument=0
        )


def _eye(N, M, k, dtype):
    shape = _lengths(None, "N", literal(N)) + _lengths(None, "M", literal(N if M is None else M))
    dtypes.check_size(shape)
    dtype = dtype or "float32"
    return compute(dtype, shape, lambda: numerics.eye(*shape, max(-shape[0], min(k, shape[1])), dtype))


def _arange(start, stop, step, dtype):
    if stop is None:
        start, stop = 0, start
    step = 1 if step is None else step
    if step == 0 or not all(math.isfinite(number) for number in (start, stop, step)):
        raise FunctionError(
            "arange() needs finite bounds and a step that is not 0", argument="step" if step == 0 else None
        )
    numbers = (start, stop, step)
    whole = all(isinstance(number, int) for number in numbers)
    length = max(0, -((start - stop) // step) if whole else math.ceil(_finite((stop - start) / step)))
    dtypes.check_size((length,))
    dtype = dtype or ("int32" if whole else "float32")
    if dtype == "bool":
        raise DTypeError("arange() makes numbers, not booleans", argument="dtype")
    last = start + step * max(0, length - 1)
    dtypes.fit(literal([start, last]), dtype)
    return compute(dtype, (length,), lambda: numerics.sequence(start, step, length, dtype))


def _finite(length):
    if not math.isfinite(length):
        raise LimitError(f"a result has at most {dtypes.MAX_SIZE} entries")
    return length


def _linspace(start, stop, num, endpoint, dtype):
    if num < 0:
        raise FunctionError(f"'num' of linspace() cannot be negative: {num}", argument="num")
    dtypes.check_size((num,))
    dtype = dtype or "float32"
    if not is_floating(dtype):
        raise DTypeError(f"linspace() makes floats, not {dtype}", argument="dtype")
    step = (stop - start) / max(1, num - 1 if endpoint else num)
    dtypes.fit(literal([float(start), float(stop)]), dtype)
    return compute(dtype, (num,), lambda: numerics.sequence(start, step, num, dtype, stop if endpoint else None))


_CREATORS = {
    "zeros": lambda shape, dtype: _filled(shape, 0, dtype),
    "ones": lambda shape, dtype: _filled(shape, 1, dtype),
    "full": _filled_with,
    "zeros_like": lambda x, dtype: _filled_like(x, 0, dtype),
    "ones_like": lambda x, dtype: _filled_like(x, 1, dtype),
    "full_like": _full_like,
    "eye": _eye,
    "arange": _arange,
    "linspace": _linspace,
}


# -- shapes ------------------------------------------------------------------------------------------------------------


def _sizes(function, x):
    if function.name == "ndim":
        return literal(len(x.shape))
    known = None not in x.shape
    if function.name == "shape":
        data = np.array(x.shape, "int64") if known else None
        return Value("int", (len(x.shape),), data, True, True)
    return literal(math.prod(x.shape)) if known else Value("int", (), None, True)


def _shape_function(function, x, **arguments):
    """Moves entries: the shape rule gives the result's shape, and the arguments for the function of that name."""
    if function.name == "trace":
        return call(
            "sum", [call("diagonal", [x], {k: literal(v) for k, v in arguments.items()})], {"axis": literal(-1)}
        )
    shape, options = _SHAPE_RULES[function.name](x.shape, **arguments)
    dtypes.check_size(shape, x)
    if x.weak:
        name = {"ravel": "reshape"}.get(function.name, function.name)
        result = fold(shape, lambda a: getattr(np, name)(a, *options), x, dtype=x.dtype)
        return result
    return compute(x.dtype, shape, lambda a: numerics.move(function.name, a, options, x.dtype), x)


def _reshape_rule(shape, newshape):
    new = newshape if isinstance(newshape, tuple) else (newshape,)
    free = [place for place, length in enumerate(new) if length == -1]
    if any(length < -1 for length in new) or len(free) > 1:
        raise ShapeError(f"a shape has lengths and at most one -1: {list(new)}", argument="newshape")
    fixed = math.prod(length for length in new if length != -1)
    if None in shape:
        return tuple(None if length == -1 else length for length in new), (new,)
    size = math.prod(shape)
    if (size % fixed if free and fixed else size != fixed) or (free and not fixed):
        raise ShapeError(f"{size} entries of shape {shape} do not fill the shape {list(new)}", argument="newshape")
    filled = tuple(size // fixed if length == -1 else length for length in new)
    return filled, (filled,)


def _ravel_rule(shape):
    return ((None,), ((-1,),)) if None in shape else ((math.prod(shape),), ((math.prod(shape),),))


def _transpose_rule(shape, axes):
    if axes is None:
        order = tuple(reversed(range(len(shape))))
    else:
        order = _axes(_flat(axes), len(shape), "axes")
        if len(order) != len(shape):
            raise ShapeError(f"'axes' names {len(order)} of {len(shape)} axes", argument="axes")
    return tuple(shape[axis] for axis in order), (order,)


def _flat(axes):
    """A list of integers, where a list of lists is allowed elsewhere."""
    if isinstance(axes, int):
        return (axes,)
    if any(isinstance(axis, list) for axis in axes):
        raise FunctionError("'axes' is a list of integers here", argument="axes")
    return tuple(axes)


def _swapaxes_rule(shape, axis1, axis2):
    a, b = _axis(axis1, len(shape), "axis1"), _axis(axis2, len(shape), "axis2")
    order = list(range(len(shape)))
    order[a], order[b] = b, a
    return tuple(shape[axis] for axis in order), (a, b)


def _moveaxis_rule(shape, source, destination):
    sources, targets = _axes(source, len(shape), "source"), _axes(destination, len(shape), "destination")
    if len(sources) != len(targets):
        raise ShapeError("'source' and 'destination' name as many axes", argument="destination")
    order = [axis for axis in range(len(shape)) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return tuple(shape[axis] for axis in order), (sources, targets)


def _squeeze_rule(shape, axis):
    if axis is None:
        if None in shape:
            raise UnsupportedError("squeeze() with an unknown length needs 'axis'")
        axes = tuple(place for place, length in enumerate(shape) if length == 1)
    else:
        axes = _axes(axis, len(shape))
    long = next((place for place in axes if shape[place] not in (1, None)), None)
    if long is not None:
        raise ShapeError(f"axis {long} has length {shape[long]}, not 1", argument="axis")
    return _reduced(shape, axes, False), (axes,)


def _expand_rule(shape, axis):
    count = len(shape) + (len(axis) if isinstance(axis, tuple) else 1)
    axes = _axes(axis, count)
    lengths = iter(shape)
    return tuple(1 if place in axes else next(lengths) for place in range(count)), (axes,)


def _broadcast_rule(old, shape):
    if broadcast([shape, old]) != shape:
        raise ShapeError(f"shape {old} does not broadcast to {shape}", argument="shape")
    return shape, (shape,)


def _repeat_rule(shape, repeats, axis):
    if axis is None:
        shape, place = _ravel_rule(shape)[0], 0
    else:
        place = _one_axis(axis, len(shape))
    counts = repeats if isinstance(repeats, tuple) else (repeats,)
    if any(count < 0 for count in counts):
        raise ShapeError("a number of repeats cannot be negative", argument="repeats")
    length = shape[place]
    if len(counts) == 1:
        repeats, total = counts[0], None if length is None else length * counts[0]
    elif length is not None and len(counts) != length:
        raise ShapeError(f"{len(counts)} repeats for {length} entries", argument="repeats")
    else:
        total = sum(counts)
    return (*shape[:place], total, *shape[place + 1 :]), (repeats, axis if axis is None else place)


def _tile_rule(shape, repeats):
    counts = repeats if isinstance(repeats, tuple) else (repeats,)
    if any(count < 0 for count in counts):
        raise ShapeError("a number of repeats cannot be negative", argument="repeats")
    width = max(len(shape), len(counts))
    shape, counts = (1,) * (width - len(shape)) + shape, (1,) * (width - len(counts)) + counts
    pairs = zip(shape, counts, strict=True)
    return tuple(None if length is None else length * count for length, count in pairs), (counts,)


def _flip_rule(shape, axis):
    return shape, (_axes(axis, len(shape)),)


def _roll_rule(shape, shift, axis):
    shifts = shift if isinstance(shift, tuple) else (shift,)
    if axis is None:
        if len(shifts) != 1:
            raise ShapeError("several shifts need as many axes", argument="shift")
        return shape, (_within(shifts[0], _size(shape)), None)
    axes = _axes(axis, len(shape))
    if len(shifts) not in (1, len(axes)):
        raise ShapeError(f"{len(shifts)} shifts for {len(axes)} axes", argument="shift")
    shifts = shifts * (len(axes) // len(shifts))
    pairs = zip(shifts, axes, strict=True)
    return shape, (tuple(_within(amount, shape[place]) for amount, place in pairs), axes)


def _within(shift, length):
    return shift % length if length else 0 if length == 0 else max(-(2**31), min(shift, 2**31 - 1))


def _size(shape):
    return None if None in shape else math.prod(shape)


def _triangle_rule(shape, k):
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {shape}", argument="x")
    return shape, (_clamped(k),)


def _clamped(k):
    return max(-(2**30), min(k, 2**30))


def _diagonal_rule(shape, offset, axis1, axis2):
    if len(shape) < 2:
        raise ShapeError(f"a matrix has at least 2 axes, found the shape {shape}", argument="x")
    a, b = _axis(axis1, len(shape), "axis1"), _axis(axis2, len(shape), "axis2")
    if a == b:
        raise ShapeError("a diagonal needs two different axes", argument="axis2")
    rows, columns = shape[a], shape[b]
    length = None
    if rows is not None and columns is not None:
        length = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    kept = tuple(shape[axis] for axis in range(len(shape)) if axis not in (a, b))
    return (*kept, length), (_clamped(offset), a, b)


def _diag_rule(shape, k):
    if len(shape) == 2:
        return _diagonal_rule(shape, k, 0, 1)[0], (_clamped(k),)
    if len(shape) != 1:
        raise ShapeError(f"diag() takes a vector or a matrix, found the shape {shape}", argument="x")
    length = None if shape[0] is None else shape[0] + abs(k)
    return (length, length), (k,)


_SHAPE_RULES = {
    "reshape": _reshape_rule,
    "ravel": _ravel_rule,
    "transpose": _transpose_rule,
    "swapaxes": _swapaxes_rule,
    "moveaxis": _moveaxis_rule,
    "squeeze": _squeeze_rule,
    "expand_dims": _expand_rule,
    "broadcast_to": _broadcast_rule,
    "repeat": _repeat_rule,
    "tile": _tile_rule,
    "flip": _flip_rule,
    "roll": _roll_rule,
    "tril": _triangle_rule,
    "triu": _triangle_rule,
    "diagonal": _diagonal_rule,
    "diag": _diag_rule,
}


def _joining(function, axis, x=None, xs=None):
    return _joined(function, xs if x is None else x, axis, function.name)


def _joined(function, values, axis, how):
    """One tensor of several, which meet in one dtype."""
    if not values:
        raise FunctionError(f"{function.name}() of no tensors", argument=0)
    if any(isinstance(value, str) for value in values):
        raise FunctionError("a list holds tensors and numbers, not strings", argument=0)
    if how == "stack":
        values = [_shape_value(value, axis, len(value.shape) + 1) for value in values]
    shapes = [value.shape for value in values]
    count = len(shapes[0])
    if not count:
        raise ShapeError("numbers have no axis to be joined along; write stack(...)", argument=0)
    place = _one_axis(axis, count)
    for shape in shapes:
        if len(shape) != count or any(_differ(shape[i], shapes[0][i]) for i in range(count) if i != place):
            old = [s[:place] + s[place + 1 :] for s in (shapes[0], shape)] if how == "stack" else (shapes[0], shape)
            raise ShapeError(f"tensors of the shapes {old[0]} and {old[1]} cannot be joined", argument=0)
    lengths = [shape[place] for shape in shapes]
    total = None if None in lengths else sum(lengths)
    known = [next((s[i] for s in shapes if s[i] is not None), None) for i in range(count)]
    shape = tuple(total if i == place else known[i] for i in range(count))
    dtypes.check_size(shape, *values)
    dtype = dtypes.common(values)
    if dtype in ("int", "float") or all(value.weak for value in values):
        return fold(shape, lambda *arrays: np.concatenate(arrays, axis=place), *values, dtype=dtype)
    return compute(dtype, shape, lambda *x: numerics.concatenate(x, place, dtype), *values, to=dtype)


def _shape_value(value, axis, count):
    axis = _one_axis(axis, count)
    return call("expand_dims", [value, literal(axis)])


def _differ(a, b):
    return a != b and None not in (a, b)


# -- products ----------------------------------------------------------------------------------------------------------


def _product(function, x1, x2, axes=None):
    _need_numbers(function, x1, x2)
    if function.name == "matmul":
        return arithmetic.matmul(x1, x2)
    if function.name == "outer":
        a = call("expand_dims", [call("ravel", [x1]), literal(1)])
        b = call("expand_dims", [call("ravel", [x2]), literal(0)])
        return arithmetic.binary("*", a, b)
    if function.name == "dot":
        if not x1.shape or not x2.shape:
            return arithmetic.binary("*", x1, x2)
        return _contract(function, x1, x2, (len(x1.shape) - 1,), (max(0, len(x2.shape) - 2),))
    if isinstance(axes, int):
        if not 0 <= axes <= min(len(x1.shape), len(x2.shape)):
            raise ShapeError(f"tensors of {len(x1.shape)} and {len(x2.shape)} axes share no {axes}", argument="axes")
        first = tuple(range(len(x1.shape) - axes, len(x1.shape)))
        return _contract(function, x1, x2, first, tuple(range(axes)))
    if len(axes) != 2:
        raise FunctionError("'axes' is an integer or a list of two lists of axes", argument="axes")
    first, second = (tuple(part) if isinstance(part, list) else part for part in axes)
    return _contract(function, x1, x2, _axes(first, len(x1.shape), "axes"), _axes(second, len(x2.shape), "axes"))


def _contract(function, x1, x2, first, second):
    """Sums the products over the axes `first` of `x1` and `second` of `x2`: one product of matrices."""
    lengths = [x1.shape[axis] for axis in first], [x2.shape[axis] for axis in second]
    if len(first) != len(second) or any(map(_differ, *lengths)):
        raise ShapeError(f"shapes {x1.shape} and {x2.shape} do not multiply over these axes", argument=1)
    left = [axis for axis in range(len(x1.shape)) if axis not in first]
    right = [axis for axis in range(len(x2.shape)) if axis not in second]
    rows, columns = [x1.shape[axis] for axis in left], [x2.shape[axis] for axis in right]
    dtypes.check_size((*rows, *columns), x1, x2)
    if None in (*x1.shape, *x2.shape):
        if x1.data is not None and x2.data is not None:
            _need_lengths(function, x1, x2)
        return Value(dtypes.common((x1, x2)), (*rows, *columns), None, x1.weak and x2.weak)
    inner = math.prod(lengths[0])
    a = _arranged(x1, [*left, *first], [math.prod(rows), inner])
    b = _arranged(x2, [*second, *right], [inner, math.prod(columns)])
    return call("reshape", [arithmetic.matmul(a, b), literal([*rows, *columns])])


def _arranged(x, order, shape):
    return call("reshape", [call("transpose", [x, literal(order)]) if order else x, literal(shape)])


_RULES = {
    "Arithmetic and comparison": _arithmetic,
    "Element-wise mathematics": _mathematics,
    "Element-wise, in the same dtype": _same_dtype,
    "Tests of entries": _test,
    "Closeness": _close,
    "Choice": _where,
    "Conversion": _cast,
    "Reductions": _reduction,
    "Quantiles": _quantile,
    "Along an axis": _along,
    "Creation": _creation,
    "Sizes": _sizes,
    "Shape": _shape_function,
    "Joining": _joining,
    "Products": _product,
}
