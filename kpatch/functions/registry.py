"""The definition of a function, and its call. `docs/architecture.md` shows how to define one."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kpatch.errors import FunctionError, PatchError
from kpatch.functions import ranges
from kpatch.functions.parameters import STRINGS, TENSORS, Context, hint, shown
from kpatch.values import arithmetic

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Function:
    """One function of the language.

    Attributes:
        name: as in `keras.ops`.
        group: the heading of its group.
        description: one line.
        example: an expression of literals.
        result: the example's value, as the language writes it.
        exact: whether `result` is exact, or right to the digits shown.
        rule: computes the `Value` of the result from the arguments, after reading and defaults. A `PatchError` of the
            rule names the faulty argument by its parameter or its position among the tensors.
        parameters: the parameters of a call by name, with their kinds and defaults.
        context: the parameters of the rule that are not arguments: `traced` and `stream` of `call`.
        elementwise: each entry of the result depends only on the operands' entries at the same index.
        bounds: computes the range of the result's entries from the result and the arguments; `None` if unknown.
        names: likewise computes the names of the result's unknown lengths, one for each axis.
    """

    name: str
    group: str
    description: str
    example: str
    result: str
    exact: bool
    rule: Callable[..., Any]
    parameters: dict[str, inspect.Parameter]
    context: tuple[str, ...]
    elementwise: bool
    bounds: Callable[..., Any] | None
    names: Callable[..., Any] | None

    @cached_property
    def signature(self):
        """The parameters with their defaults, as Python writes them."""
        plain = [parameter.replace(annotation=REQUIRED) for parameter in self.parameters.values()]
        return str(inspect.Signature(plain))[1:-1].replace("'", '"')

    @property
    def call_form(self):
        return f"{self.name}({self.signature})"

    @cached_property
    def positional(self):
        """The parameters that a call can give by position or by name."""
        return [p.name for p in self.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @cached_property
    def variadic(self):
        """The parameter that takes all further positional arguments, or `None`."""
        return next((p.name for p in self.parameters.values() if p.kind is p.VAR_POSITIONAL), None)

    def takes_string(self, argument):
        """Whether the argument at a position or keyword must be a string."""
        positional = self.positional
        if not isinstance(argument, str):
            argument = positional[argument] if argument < len(positional) else None
        return argument in self.parameters and self.parameters[argument].annotation in STRINGS

    def __call__(self, args, kwargs, traced=False, stream=0):
        """The result of a call; see `kpatch.functions.call`."""
        given = _bind(self, args, kwargs)
        try:
            read = {p: _reader(self.parameters[p])(self, p, value) for p, (_, value) in given.items()}
            arguments = {name: read.get(name, p.default) for name, p in self.parameters.items()}
            known = {"traced": traced, "stream": stream}
            context = {name: known[name] for name in self.context}
            if self.variadic:
                positional = [arguments[name] for name in self.positional]
                result = self.rule(*positional, *arguments[self.variadic], **context)
            else:
                result = self.rule(**arguments, **context)
        except PatchError as error:
            error.argument = _place(self, error.argument, {p: place for p, (place, _) in given.items()})
            raise
        return ranges.called(self, result, arguments) if traced and arithmetic.is_planning() else result


class Group(dict[str, Function]):
    """The functions under one heading of `docs/functions.md`, by name; a call makes the decorator of a definition.

    Args:
        title: the heading.
        defaults: `elementwise`, `bounds` and `names` of the group's functions.
    """

    def __init__(self, title, **defaults):
        self.title = title
        self.defaults = {"elementwise": False, "bounds": None, "names": None, **defaults}

    def __call__(self, description, example, name=None, **rules):
        """The decorator, which returns the function unchanged.

        Args:
            description: one line.
            example: a call with literals and its result: `EXPRESSION is VALUE`, or `is about` for rounded digits.
            name: the function's name; by default that of the Python function without a trailing underscore.
            rules: `elementwise`, `bounds` and `names`, if they differ from the group's.
        """
        expression, about, result = re.split(r" is( about)? ", example)

        def define(rule):
            given = inspect.signature(rule).parameters
            arguments = {p.name: p for p in given.values() if p.annotation != Context}
            context = tuple(p for p in given if p not in arguments)
            entry = name or rule.__name__.rstrip("_"), self.title, description, expression, result, not about
            self[entry[0]] = Function(*entry, rule, arguments, context, **{**self.defaults, **rules})
            return rule

        return define


def _reader(parameter):
    return parameter.annotation.__metadata__[0]


def _bind(function, args, kwargs):
    """The given arguments as `{parameter: (position or keyword, value)}`."""
    name, parameters = function.name, function.parameters
    positional, rest = function.positional, function.variadic
    notes = [function.call_form]
    if len(args) > len(positional) and not rest:
        _refuse_surplus(function, len(positional), len(args), notes)
    given = {parameter: (place, value) for place, (parameter, value) in enumerate(zip(positional, args, strict=False))}
    if rest and len(args) > len(positional):
        given[rest] = (len(positional), args[len(positional) :])
    for keyword, value in kwargs.items():
        if keyword not in parameters or keyword == rest:
            message = f"{name}() has no argument '{shown(keyword)}'{hint(keyword, set(parameters) - {rest})}"
            raise FunctionError(message, argument=keyword, notes=notes)
        if keyword in given:
            raise FunctionError(f"{name}() got '{keyword}' twice", argument=keyword, notes=notes)
        given[keyword] = (keyword, value)
    missing = [f"'{p.name}'" for p in parameters.values() if p.default is REQUIRED and p.name not in given]
    if missing:
        why = "; the same seed gives the same numbers everywhere: seed=1" if "'seed'" in missing else ""
        raise FunctionError(f"{name}() needs {' and '.join(missing)}{why}", notes=notes)
    return given


def _refuse_surplus(function, most, found, notes):
    named = next((p.name for p in function.parameters.values() if p.kind is p.KEYWORD_ONLY), None)
    count = f"{most} argument" + "s" * (most != 1)
    how = f"; '{named}' is given by name: {named}=1" if named else ""
    raise FunctionError(f"{function.name}() takes {count}, {found} given{how}", argument=most, notes=notes)


def _place(function, argument, places):
    """The position or keyword of an argument that a rule names by its parameter or position among the tensors."""
    if not isinstance(argument, int):
        return places.get(argument)
    if function.variadic in places:
        return places[function.variadic] + argument
    tensors = [p.name for p in function.parameters.values() if p.annotation in TENSORS]
    return places.get(tensors[min(argument, len(tensors) - 1)])
