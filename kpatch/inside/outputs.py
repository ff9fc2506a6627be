"""The tensors of an activation that has several: `lstm.output.1`, `block.output.cache`, `attention.input.query`.

One of them is named by its position in a list or tuple, by its key in a dict, or by the name of the argument. The name
of the output alone means the only tensor, or the first one if a layer gives that alone when it gives one; the name of
the input alone means the first argument.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kpatch.errors import ResolutionError, UnsupportedError
from kpatch.names.tree import spelled

Keys = tuple[str, ...]

# Arguments of layers of keras_hub that give more than the hidden state when these are given.
ASKS_FOR_MORE = ("cache", "return_attention_scores", "output_attentions", "return_attns")
ALONE_FIRST = ("Bidirectional", "MultiHeadAttention", "GroupQueryAttention", "Attention")  # and their subclasses
SHOWN = 8  # tensors that an error lists


def is_tensor(x: Any) -> bool:
    return hasattr(x, "shape") and not isinstance(x, (list, tuple, Mapping))


def tensors(x: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The tensors of an activation, each with its keys from the outside in; `None`s are left out."""
    if is_tensor(x):
        yield keys, x
    elif isinstance(x, (list, tuple, Mapping)):
        for key, value in _items(x):
            yield from tensors(value, (*keys, key))


def _items(x: Any) -> Iterator[tuple[str, Any]]:
    return ((str(key), value) for key, value in (x.items() if isinstance(x, Mapping) else enumerate(x)))


def first_alone(layer: Any, x: Any) -> bool:
    """Whether the layer gives several values, the first of which is what it gives when it gives one.

    By convention these are recurrent layers and their cells (states), attention (scores), and the layers of keras_hub
    that are asked for a cache or for scores. And a first tensor is alone if the others are `None`.
    """
    if not isinstance(x, (list, tuple)) or len(x) < 2 or not is_tensor(x[0]):
        return False
    return _has_convention(layer) or all(each is None for each in x[1:])


def _has_convention(layer: Any) -> bool:
    kind: Any = type(layer)
    return hasattr(layer, "state_size") or _is_alone_first(kind)


@functools.cache
def _is_alone_first(kind: Any) -> bool:
    import keras

    if issubclass(kind, tuple(getattr(keras.layers, name) for name in ALONE_FIRST)):
        return True
    if not kind.__module__.startswith("keras_hub."):
        return False
    constants = inspect.unwrap(kind.call).__code__.co_consts  # SmolLM3 takes the names out of `**kwargs`
    read = [each for each in constants if isinstance(each, str) and each.isidentifier()]
    return any(name in each for each in (*_parameters_of(kind), *read) for name in ASKS_FOR_MORE)


def _parameters(layer: Any) -> tuple[str, ...]:
    """The names of the arguments of a layer's call, without `self`."""
    kind: Any = type(layer)
    return _parameters_of(kind)


@functools.cache
def _parameters_of(kind: Any) -> tuple[str, ...]:
    parameters = list(inspect.signature(kind.call).parameters.values())[1:]
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)


class Outputs:
    """What a layer gives, whose tensors can be replaced.

    Attributes:
        value: it, as it is now.
    """

    def __init__(self, layer: Any, value: Any, name: Keys = ("output",)) -> None:
        self.value = value
        self._layer = layer
        self._name = name

    def tensor(self, keys: Keys, path: Keys | None = None) -> Any:
        """The tensor of some keys, or of none. Errors name the layer by its path in the model, if it is given.

        Raises:
            UnsupportedError: without keys there are several.
            ResolutionError: there is none with these keys.
        """
        x = self.value
        for key in self._whole(keys):
            x = dict(_items(x)).get(key) if isinstance(x, (list, tuple, Mapping)) else None
        if is_tensor(x):
            return x
        told = functools.partial(self._told, (self._layer.name,) if path is None else path)
        if keys:
            raise ResolutionError(f"there is no '{told(keys)}': '{told()}' is {self._listed(told)}")
        held = type(self.value).__name__
        raise UnsupportedError(f"'{told()}' is not one tensor but a {held} of them: {self._listed(told)}")

    def replace(self, keys: Keys, x: Any) -> None:
        """Puts another tensor in the place of the one of these keys."""
        self.value = _replaced(self.value, self._whole(keys), x)

    def _whole(self, keys: Keys) -> Keys:
        """The keys, with what convention adds or leaves out."""
        if not keys and self._name == ("output",) and first_alone(self._layer, self.value):
            return ("0",)
        alone = keys == ("0",) and is_tensor(self.value) and _has_convention(self._layer)
        return () if alone else keys

    def _told(self, path: Keys, keys: Keys = ()) -> str:
        return spelled([*path, *self._name, *keys])

    def _listed(self, told: Callable[[Keys], str]) -> str:
        names = [told(keys) for keys, _ in tensors(self.value)]
        return ", ".join([*names[:SHOWN], *[f"{len(names) - SHOWN} more"] * (len(names) > SHOWN)]) or "no tensor"


def _replaced(x: Any, keys: Keys, new: Any) -> Any:
    if not keys:
        return _masked_as(x, new)
    items = {key: _replaced(value, keys[1:], new) if key == keys[0] else value for key, value in _items(x)}
    if isinstance(x, Mapping):
        return type(x)(zip(x, items.values(), strict=True))  # type: ignore[call-arg]
    return type(x)._make(items.values()) if hasattr(x, "_make") else type(x)(items.values())


def _masked_as(x: Any, new: Any) -> Any:
    """A tensor with the mask of padding that Keras keeps beside another one, for layers that are called with it."""
    from keras.src.backend.common import masking

    if (mask := masking.get_keras_mask(x)) is not None:
        masking.set_keras_mask(new, mask)
    return new


class Inputs:
    """What a layer is given, whose tensors can be replaced.

    Attributes:
        args, kwargs: it, as it is now.
    """

    def __init__(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self._layer = layer

    def tensor(self, keys: Keys, path: Keys | None = None) -> Any:
        """As of `Outputs`; the first key may be the name of an argument."""
        return self._present(keys)[1].tensor(self._inner(keys), path)

    def replace(self, keys: Keys, x: Any) -> None:
        place, argument = self._present(keys)
        argument.replace(self._inner(keys), x)
        if isinstance(place, int):
            self.args = (*self.args[:place], argument.value, *self.args[place + 1 :])
        else:
            self.kwargs = {**self.kwargs, place: argument.value}

    def tensors(self, keys: Keys) -> Iterator[tuple[Keys, Any]]:
        """The tensors of an argument, or without keys of the first one."""
        found = self._argument(keys)
        return tensors(found and found[1].value, keys[:1] if self._is_named(keys) else ())

    def _is_named(self, keys: Keys) -> bool:
        return bool(keys) and keys[0] in _parameters(self._layer)

    def _inner(self, keys: Keys) -> Keys:
        return keys[1:] if self._is_named(keys) else keys

    def _present(self, keys: Keys) -> tuple[int | str, Outputs]:
        found = self._argument(keys)
        if found is None:
            name = f"'{keys[0]}'" if keys else "an argument"
            raise ResolutionError(f"'{self._layer.name}' is called without {name}")
        return found

    def _argument(self, keys: Keys) -> tuple[int | str, Outputs] | None:
        """Where the argument is that the keys name, and the argument; `None` if it is not given."""
        if not keys and self.args:
            return 0, Outputs(self._layer, self.args[0], ("input",))
        names = _parameters(self._layer)
        name = keys[0] if self._is_named(keys) else names[0] if names else ""
        place = names.index(name) if name else 0
        shown = ("input", *keys[:1]) if self._is_named(keys) else ("input",)
        if place < len(self.args):
            return place, Outputs(self._layer, self.args[place], shown)
        if self.kwargs.get(name) is None:
            return None
        return name, Outputs(self._layer, self.kwargs[name], shown)
