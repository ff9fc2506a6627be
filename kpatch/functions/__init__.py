"""`call`, which runs a function of the table: it reads the arguments, and passes them to the rule of the group."""

import ast
import difflib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kpatch.errors import DTypeError, FunctionError, LimitError, PatchError, ShapeError, UnsupportedError
from kpatch.functions import gather, linalg, products, randoms, ranges, rules
from kpatch.functions.table import TABLE
from kpatch.values import arithmetic, dtypes
from kpatch.values.dtypes import constant

RULES: dict[str, Callable[..., Any]] = {
    **rules.RULES,
    "Selection": gather.pick,
    "Products": products.product,
    "Linear algebra": linalg.factor,
    "Random": randoms.random,
}
_CONTEXT = {"Arithmetic and comparison": "traced", "Selection": "traced", "Random": "stream"}  # what a rule must know
REQUIRED = object()
METHODS = ("linear", "lower", "higher", "midpoint", "nearest")
MAX_OPERANDS = 16  # of einsum, which looks at pairs of them
MAX_NAME = 60  # characters of a wrong name that are shown, and compared with the right ones

_ELEMENTWISE = ("Arithmetic", "Element-wise", "Tests of entries", "Choice", "Conversion")


def is_elementwise(name):
    """Whether each entry of the result depends on the entries at that place alone.

    Example:
        >>> is_elementwise("exp"), is_elementwise("sum")
        (True, False)
    """
    return name in TABLE and TABLE[name].group.startswith(_ELEMENTWISE)


def is_random(name):
    """Whether the function makes random numbers.

    Example:
        >>> is_random("normal"), is_random("mean")
        (True, False)
    """
    return name in TABLE and TABLE[name].group == "Random"


def takes_string(name, argument):
    """Whether the argument, by its position or keyword, is a string; elsewhere a quoted name is a variable's.

    Example:
        >>> takes_string("cast", 1), takes_string("cast", 0), takes_string("zeros", "dtype")
        (True, False, True)
    """
    if name not in TABLE:
        return True  # the error will be about the name
    positional = _signature(name).args
    if not isinstance(argument, str):
        argument = positional[argument].arg if argument < len(positional) else None
    return _kind(TABLE[name], argument) in (_string, _dtype, _method)


def call(name, args=(), kwargs=None, traced=False, stream=0):
    """Calls a function of the table.

    Args:
        args, kwargs: `Value`s; a string where the function takes one; a list of `Value`s where it joins tensors.
        traced: inside jit, where values cannot be looked at.
        stream: which of independent random sequences the seeds mean: under a glob the number of the match.

    Raises:
        PatchError: with the position or the keyword of the argument at fault as `argument`.

    Example:
        >>> from kpatch.values.dtypes import literal
        >>> call("sum", [literal([1, 2, 3])]).data
        array(6)
        >>> call("sqr", [literal(2)])
        Traceback (most recent call last):
        kpatch.FunctionError: no function 'sqr'; did you mean 'sqrt'?
    """
    function = TABLE.get(name)
    if function is None:
        raise FunctionError(f"no function '{_shown(name)}'{_nearest(name, TABLE)}")
    given = _bind(function, list(args), kwargs or {})
    places = {parameter: place for parameter, (place, _) in given.items()}
    try:
        arguments = {
            parameter: _kind(function, parameter)(function, parameter, value) for parameter, (_, value) in given.items()
        }
        arguments = {parameter: arguments.get(parameter, default) for parameter, default in _parameters(name).items()}
        needs = _CONTEXT.get(function.group)
        extra = {needs: {"traced": traced, "stream": stream}[needs]} if needs else {}
        result = RULES[function.group](name, **arguments, **extra)
    except PatchError as error:
        error.argument = _place(function, error.argument, places)
        raise
    proves = traced and arithmetic.is_planning()
    return ranges.called(name, result, arguments, is_elementwise(name)) if proves else result


def _place(function, argument, places):
    """The position or the keyword of an argument that a rule names, by its parameter or its place among the tensors."""
    if not isinstance(argument, int):
        return places.get(argument)
    if _variadic(function.name) in places:
        return places[_variadic(function.name)] + argument
    tensors = [p for p in _parameters(function.name) if _kind(function, p) in (_tensor, _tensors)]
    return places.get(tensors[min(argument, len(tensors) - 1)])


# -- arguments ---------------------------------------------------------------------------------------------------------


@functools.cache
def _signature(name):
    function = ast.parse(f"lambda {TABLE[name].signature}: None", mode="eval").body
    assert isinstance(function, ast.Lambda)
    return function.args


@functools.cache
def _parameters(name):
    """The parameters of a function, with their defaults."""
    spec = _signature(name)
    missing = len(spec.args) - len(spec.defaults)
    defaults = [REQUIRED] * missing + [ast.literal_eval(default) for default in spec.defaults]
    named = {argument.arg: REQUIRED for argument in spec.kwonlyargs}
    rest = {spec.vararg.arg: REQUIRED} if spec.vararg else {}
    return {**dict(zip((argument.arg for argument in spec.args), defaults, strict=True)), **rest, **named}


def _variadic(name):
    """The parameter that takes all further positional arguments, if there is one."""
    rest = _signature(name).vararg
    return rest and rest.arg


def _bind(function, args, kwargs):
    """Each argument given, as `{parameter: (position or keyword, value)}`."""
    name, parameters = function.name, _parameters(function.name)
    notes = [f"{name}({function.signature})"]
    positional = [argument.arg for argument in _signature(name).args]
    rest = _variadic(name)
    if len(args) > len(positional) and not rest:
        _refuse_surplus(function, len(positional), len(args), notes)
    given = {parameter: (place, args[place]) for place, parameter in enumerate(positional[: len(args)])}
    if rest and len(args) > len(positional):
        given[rest] = (len(positional), args[len(positional) :])
    for keyword, value in kwargs.items():
        if keyword not in parameters or keyword == rest:
            message = f"{name}() has no argument '{_shown(keyword)}'{_nearest(keyword, set(parameters) - {rest})}"
            raise FunctionError(message, argument=keyword, notes=notes)
        if keyword in given:
            raise FunctionError(f"{name}() got '{keyword}' twice", argument=keyword, notes=notes)
        given[keyword] = (keyword, value)
    missing = [f"'{p}'" for p, default in parameters.items() if default is REQUIRED and p not in given]
    if missing:
        why = "; the same seed gives the same numbers everywhere: seed=1" if "'seed'" in missing else ""
        raise FunctionError(f"{name}() needs {' and '.join(missing)}{why}", notes=notes)
    return given


def _refuse_surplus(function, most, found, notes):
    named = _signature(function.name).kwonlyargs
    count = f"{most} argument" + "s" * (most != 1)
    how = f"; '{named[0].arg}' is given by name: {named[0].arg}=1" if named else ""
    raise FunctionError(f"{function.name}() takes {count}, {found} given{how}", argument=most, notes=notes)


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


def _several(function, parameter, values):
    """The operands of `einsum`."""
    if len(values) > MAX_OPERANDS:
        message = f"{function.name}() takes at most {MAX_OPERANDS} operands, {len(values)} given"
        raise LimitError(message, argument=parameter)
    return [_tensor(function, parameter, value) for value in values]


def _known(function, parameter, wanted, value, kind, axes=(0,)):
    """The constant's data, of one of the numbers of axes."""
    _check_kind(function, parameter, wanted, value, kind, axes)
    if value.data is None:
        message = f"'{parameter}' of {function.name}() is not known before the patch runs"
        raise UnsupportedError(message, argument=parameter)
    return value.data.tolist()


def _check_kind(function, parameter, wanted, value, kind, axes):
    if isinstance(value, str | list) or not value.weak or value.dtype not in kind or len(value.shape) not in axes:
        _refuse(function, parameter, wanted, value)


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
    """A shape. While planning a length may be unknown: `shape(_)` under a mask is known when the patch runs."""
    wanted = "an integer or a list of them"
    _check_kind(function, parameter, wanted, value, ("int",), (0, 1))
    if value.data is None and arithmetic.is_planning() and None not in value.shape:
        return (None,) * (value.shape[0] if value.shape else 1)
    known = _known(function, parameter, wanted, value, ("int",), (0, 1))
    lengths = tuple(known) if isinstance(known, list) else (known,)
    negative = next((length for length in lengths if length < 0), None)
    if negative is not None:
        raise ShapeError(f"a length cannot be negative: {negative}", argument=parameter)
    return lengths


def _length(function, parameter, value):
    _check_kind(function, parameter, "a constant integer", value, ("int",), (0,))
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
    _integer: "axis1 axis2 k offset decimals num seed randint.minval randint.maxval",
    _length: "N M n",
    _integers: "axis newshape source destination repeats shift",
    _pairs: "axes",
    _boolean: "keepdims approximate endpoint equal_nan",
    _number: "ord alpha negative_slope rtol atol nan posinf neginf start stop step mean stddev minval maxval p",
    _numbers: "q",
    _lengths: "shape",
    _method: "method",
    _dtype: "dtype",
    _string: "subscripts",
    _several: "operands",
}
_KIND_OF = {parameter: kind for kind, names in _KINDS.items() for parameter in names.split()}


def _kind(function, parameter):
    """How a parameter's argument is read, by its name; anything else is a tensor."""
    if function.group == "Joining" and parameter in ("x", "xs"):
        return _tensors
    return _KIND_OF.get(f"{function.name}.{parameter}") or _KIND_OF.get(parameter, _tensor)
