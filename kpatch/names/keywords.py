"""Keywords that a function does not take: an error names them as what they are, and not as a binding that is unused.

The public functions take the values of a patch's `$names` as keywords, so any keyword reaches them. A name of this
table that the patch asks for, as in `head.bias = $out`, is a binding as any other. A name that the function has itself
is bound by `bindings={"undo": ...}`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from kpatch.errors import BindingError, PatchError, apart, in_dynamo, is_brief, left_alone, of_backend, outward
from kpatch.names.bindings import OPTIONS
from kpatch.names.patches import as_patch
from kpatch.syntax import ast

P = ParamSpec("P")
R = TypeVar("R")


class Purpose(NamedTuple):
    """What a function does, and what to use in the place of keywords that are others'."""

    does: str
    output: str
    in_place: str
    dry_run: str


_FILE = "kpatch.checkpoint.apply writes a file"
_PLAN = "kpatch.plan is the dry run"
_COPY = "kpatch.rewrite makes a new model"
_EDIT = "kpatch.apply edits a model in place"

FUNCTIONS = {
    "kpatch.apply": Purpose("edits a model in memory", _FILE, f"it always edits in place; {_COPY}", _PLAN),
    "kpatch.plan": Purpose("writes nothing", _FILE, _EDIT, "it is the dry run itself"),
    "kpatch.edit": Purpose("returns a new tensor", "x = kpatch.edit(x, patch) keeps it", _EDIT, "x stays as it is"),
    "kpatch.rewrite": Purpose(
        "returns a new model",
        "kpatch.rewrite(model, patch).save(path) writes a file",
        _EDIT,
        "the old one stays as it is",
    ),
    "kpatch.intervene": Purpose("patches a model for a 'with' block", _FILE, _COPY, "its call only checks the patch"),
    "kpatch.sweep": Purpose("returns what it measures", "its keyword is 'resume'", _COPY, "it ends as it began"),
    "kpatch.hold": Purpose("edits a model in memory", _FILE, "it always edits in place", _PLAN),
    "kpatch.checkpoint.apply": Purpose(
        "edits a file", "its keyword is 'out'", "its keyword is 'in_place'", "kpatch.checkpoint.plan is the dry run"
    ),
    "kpatch.checkpoint.plan": Purpose(
        "writes nothing", _FILE, "kpatch.checkpoint.apply edits a file in place", "it is the dry run itself"
    ),
}

_OF_APPLY = "kpatch.apply takes it"
_OF_FILES = "kpatch.checkpoint.apply takes it"


def _hints(function: Purpose) -> dict[str, str]:
    """What to say of each keyword that some function takes, and this one does not."""
    return {
        "out": function.output,
        "output": function.output,
        "inplace": function.in_place,
        "in_place": function.in_place,
        "dry_run": function.dry_run,
        "donate": _OF_APPLY,
        "undo": _OF_APPLY,
        "slots": _OF_APPLY,
        "expect": "the one tensor is all that it edits",
        "journal": _OF_FILES,
        "overwrite": _OF_FILES,
    }


def checked(name: str, in_graph: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function of the table with that name, whose calls by a keyword that it does not take are clear errors.

    `torch.compile` calls it as it is, unless it becomes a part of the graph.

    Example:
        >>> import kpatch
        >>> kpatch.apply(model=None, patch="head.bias = 0")
        Traceback (most recent call last):
        kpatch.BindingError: kpatch.apply takes 'model' and 'patch' by position: kpatch.apply(model, patch)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        first = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY and each.default is each.empty]
        own = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD} - set(first)
        OPTIONS.update(own)
        does, call = FUNCTIONS[name].does, f"{name}({', '.join(first)})"
        errors = {key: f"{name} {does} and takes no '{key}'; {hint}" for key, hint in _hints(FUNCTIONS[name]).items()}
        by_position = f"{name} takes {' and '.join(map(repr, first))} by position: {call}"
        errors |= dict.fromkeys(["model", *first], by_position)
        foreign = errors.keys() - own

        @functools.wraps(function)
        def called(*args: P.args, **given: P.kwargs) -> R:
            if not in_graph and in_dynamo():
                return apart(called, *args, **given)
            try:
                for key in given:
                    if key in foreign and not _is_bound(key, args, first):
                        raise BindingError(errors[key])
                if not given:  # the commonest call, which takes a fourth of the time of the other
                    return function(*args)  # type: ignore[call-arg]
                return function(*args, **given)
            except PatchError as error:
                __tracebackhide__ = is_brief()
                raise outward(error) from error.__cause__
            except ModuleNotFoundError as error:
                raise of_backend(error) from None

        return left_alone(called)

    return decorate


def _is_bound(key: str, args: tuple[Any, ...], first: list[str]) -> bool:
    """Whether a keyword may be a binding: the patch has a `$name` for it, or is missing, and Python says so."""
    if len(args) < len(first):
        return key not in ("model", *first)
    return any(type(node) is ast.Binding and node.name == key for node in ast.walk(as_patch(args[len(first) - 1])))
