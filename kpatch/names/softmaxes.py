"""Attention that computes its softmax by a function of Keras: which method does, and a copy of it that calls another.

Nothing is exchanged in modules, which other layers and threads share. The copy is the method's own code; under the name
of the function it finds another one.
"""

import dis
import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

KERNEL_OF_TORCH = "scaled_dot_product_attention"  # that SAM 3 calls past Keras
MAX_DEPTH = 3  # of functions of its own module that a method calls

Replace = Callable[[Any], Any]  # a function of Keras → the one in its place

_called: "dict[int, CalledSoftmax]" = {}  # by the ids of layers that live
_making = threading.Lock()


class CalledSoftmax:
    """The softmax that a layer computes by a function, as if it were a layer: its `call` can be patched.

    Attributes:
        copies: the copy of each method, once it was made: with it, dynamo keeps what it has compiled.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.copies: dict[Any, Any] = {}

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    quantized_call = call


def of_layer(layer: Any) -> CalledSoftmax:
    """The one of a layer: the same object as long as the layer lives."""
    with _making:
        found = _called.get(id(layer))
        if found is None:
            found = _called[id(layer)] = CalledSoftmax(layer.name)
            weakref.finalize(layer, _called.pop, id(layer)).atexit = False
        return found


@functools.cache
def methods_of(kind: Any) -> tuple[str, ...]:
    """The methods of a class that call a softmax of Keras, or its attention with one inside."""
    methods = ((name, inspect.getattr_static(kind, name)) for name in dir(kind))
    return tuple(name for name, each in methods if _is_function(each) and copy_of(each, lambda _: None) is not each)


def copy_of(function: Any, replace: Replace, depth: int = MAX_DEPTH) -> Any:
    """A copy of a function that calls others in the place of Keras's; itself if it calls none of these."""
    answers: dict[str, Any] = {}
    functions = _functions(KERNEL_OF_TORCH in function.__code__.co_names)
    for name, *path in _paths(function.__code__) if depth else ():
        value = answers.get(name, function.__globals__.get(name))
        other = _in_place_of(value, path, functions, replace, function.__module__, depth)
        if other is not value:
            answers[name] = other
    if not answers:
        return function
    return with_globals(function, answers)


def with_globals(function: Any, answers: dict[str, Any]) -> Any:
    """A copy of a function that finds other values under some names of its module.

    For dynamo it has code of its own, with which that keeps what it compiles, and no `__name__` among its globals, by
    which that would look for the names in the module itself.
    """
    values = {**function.__globals__, **answers}
    values.pop("__name__", None)
    code = function.__code__.replace()
    made = types.FunctionType(code, values, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__module__ = function.__module__
    return made


def _paths(code: types.CodeType) -> Iterator[list[str]]:
    """What a function, or one inside it, reads of its module: `keras.ops.softmax` as three names."""
    path: list[str] = []
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
            path.append(each.argval)
        elif each.opname != "EXTENDED_ARG":
            yield from [path] if path else []
            path = [each.argval] if each.opname == "LOAD_GLOBAL" else []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _paths(constant)


def _in_place_of(
    value: Any, path: list[str], functions: tuple, replace: Replace, module: str | None, depth: int
) -> Any:
    """What takes the place of a global value, of which a path of attributes is read; the value itself if nothing does.

    Args:
        functions: those of Keras that are replaced.
        module: the name of the module of the function that reads it.
    """
    if path and isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "keras":
        inner = vars(value).get(path[0])
        other = _in_place_of(inner, path[1:], functions, replace, module, depth)
        if other is inner:
            return value
        copy = types.ModuleType(value.__name__)
        vars(copy).update({**vars(value), path[0]: other})
        return copy
    if path or not _is_function(value):
        return value
    if value in functions:
        return replace(value)
    return copy_of(value, replace, depth - 1) if value.__module__ == module else value


def _is_function(x: Any) -> bool:
    return isinstance(x, types.FunctionType)


@functools.cache
def _functions(asks: bool) -> tuple[Any, ...]:
    """The functions of Keras that are replaced.

    Args:
        asks: whether the method asks on which backend it runs, to call a kernel of torch itself.
    """
    from keras import activations, backend, ops

    return ops.softmax, activations.softmax, ops.dot_product_attention, *[backend.backend] * asks
