"""The functions of the language: the table of all, and calls by name."""

from kpatch.errors import FunctionError
from kpatch.functions import (
    along,
    creation,
    elementwise,
    gather,
    linalg,
    products,
    quantiles,
    randoms,
    reductions,
    shapes,
)
from kpatch.functions.parameters import hint, shown
from kpatch.functions.registry import Group
from kpatch.syntax import habits

# In the order of docs/functions.md.
FILES = (elementwise, reductions, quantiles, along, gather, creation, randoms, shapes, products, linalg)
GROUPS = [found for file in FILES for found in vars(file).values() if isinstance(found, Group)]
TABLE = {name: function for group in GROUPS for name, function in group.items()}


def call(name, args=(), kwargs=None, traced=False, stream=0):
    """Calls a function of the table.

    Args:
        args, kwargs: `Value`s; a string for a parameter that takes one; a list of `Value`s for a list of tensors.
        traced: in a compiled function, whose values are unknown.
        stream: the number of the random sequence: under a glob the number of the match.

    Raises:
        PatchError: the call is wrong; `argument` is the position or the keyword of the faulty argument.

    Example:
        >>> from kpatch.values.dtypes import literal
        >>> call("sum", [literal([1, 2, 3])]).data
        array(6)
        >>> call("sqr", [literal(2)])
        Traceback (most recent call last):
        kpatch.FunctionError: no function 'sqr'; did you mean 'sqrt'?
    """
    if name not in TABLE:
        instead = habits.function(name)
        told = f"; {instead}" if instead else hint(name, TABLE)
        raise FunctionError(f"no function '{shown(name)}'{told}")
    return TABLE[name](list(args), kwargs or {}, traced, stream)


def is_elementwise(name):
    """Whether each entry of the result depends only on the operands' entries at the same index.

    Example:
        >>> is_elementwise("exp"), is_elementwise("sum")
        (True, False)
    """
    return name in TABLE and TABLE[name].elementwise


def is_random(name):
    """Whether the function generates random numbers.

    Example:
        >>> is_random("normal"), is_random("mean")
        (True, False)
    """
    return name in TABLE and "stream" in TABLE[name].context
