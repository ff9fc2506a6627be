"""The table of functions, and `call`, which runs one.

Each function has the name, the arguments and the meaning of the same function in `keras.ops` (arguments that a patch
has no use for are left out). The functions of a group share a rule. Only what the table holds can be called.
"""

import ast
import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpatch import dtypes, rules
from kpatch.dtypes import constant
from kpatch.errors import DTypeError, FunctionError, PatchError, ShapeError, UnsupportedError


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
METHODS = ("linear", "lower", "higher", "midpoint", "nearest")
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
        quantile | x, q, axis=None, method="linear", keepdims=False | what a share q is below | quantile(_, 0.9)
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
        uniform | shape, minval=0.0, maxval=1.0, dtype=None, seed=None | evenly distributed ones | uniform([3], seed=1)
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


def takes_string(name, argument):
    """Whether the argument, by its position or keyword, is a string; elsewhere a quoted name is a variable's.

    Example:
        >>> takes_string("cast", 1), takes_string("cast", 0), takes_string("zeros", "dtype")
        (True, False, True)
    """
    if name not in TABLE:
        return True  # the error will be about the name
    parameters = list(_parameters(name))
    parameter = argument if isinstance(argument, str) else parameters[argument] if argument < len(parameters) else None
    return _kind(TABLE[name], parameter) in (_string, _dtype, _method)


def call(name, args=(), kwargs=None, traced=False, stream=0):
    """Calls a function of the table.

    Args:
        args, kwargs: `Value`s; a string where the function takes one; a list of `Value`s where it joins tensors.
        traced: inside jit, where values cannot be looked at.

    Raises:
        PatchError: with the position or the keyword of the argument at fault as `argument`.

    Example:
        >>> from kpatch.dtypes import literal
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
        return rules.RULES[function.group](name, **{**defaults, **arguments}, **extra)
    except PatchError as error:
        if isinstance(error.argument, int):
            error.argument = tensors[min(error.argument, len(tensors) - 1)]
        error.argument = places.get(error.argument)
        raise


# -- arguments ---------------------------------------------------------------------------------------------------------


@functools.cache
def _parameters(name):
    """The parameters of a function, with their defaults."""
    function = ast.parse(f"lambda {TABLE[name].signature}: None", mode="eval").body
    assert isinstance(function, ast.Lambda)
    spec = function.args
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
        return rules.join("stack", value, 0)
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
    return _known(function, parameter, "a constant integer or a list of two lists", value, ("int",), (0, 1, 2))


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


def _length(function, parameter, value):
    _integer(function, parameter, value)
    return _lengths(function, parameter, value)[0]


def _string(function, parameter, value):
    if not isinstance(value, str):
        _refuse(function, parameter, "a string", value)
    return value


def _method(function, parameter, value):
    """How quantiles interpolate."""
    method = _string(function, parameter, value)
    if method not in METHODS:
        message = f"no method '{_shown(method)}' of {function.name}(){_nearest(method, METHODS)}"
        raise FunctionError(message, argument=parameter, notes=["methods: " + " ".join(METHODS)])
    return method


def _dtype(function, parameter, value):
    name = _string(function, parameter, value)
    if name not in dtypes.DTYPES:
        message = f"no dtype '{_shown(name)}'{_nearest(name, dtypes.DTYPES)}"
        raise DTypeError(message, argument=parameter, notes=["dtypes: " + " ".join(dtypes.DTYPES)])
    return name


_KINDS: dict[Callable[..., Any], str] = {
    _integer: "axis1 axis2 k offset decimals num",
    _length: "N M",
    _integers: "axis newshape source destination repeats shift",
    _pairs: "axes",
    _boolean: "keepdims approximate endpoint equal_nan",
    _number: "ord alpha negative_slope rtol atol nan posinf neginf start stop step",
    _numbers: "q",
    _lengths: "shape",
    _method: "method",
    _dtype: "dtype",
}
_KIND_OF = {parameter: kind for kind, names in _KINDS.items() for parameter in names.split()}


def _kind(function, parameter):
    """How a parameter's argument is read, by its name; anything else is a tensor."""
    if function.group == "Joining" and parameter in ("x", "xs"):
        return _tensors
    return _KIND_OF.get(parameter, _tensor)
