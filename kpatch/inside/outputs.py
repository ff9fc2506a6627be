"""The tensors of an activation that has several: `lstm.output.1`, `block.output.cache`.

A part is named by its position in a list or tuple, or by its key in a dict. The name without a part means the only
tensor, or the first one if a layer gives that first which it would give alone.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

ALONE_FIRST = ("Bidirectional", "MultiHeadAttention", "GroupQueryAttention", "Attention")  # and their subclasses


def tensors(x: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The tensors of an activation, each with its keys from the outside in; `None`s are left out."""
    if isinstance(x, Mapping):
        for key, value in x.items():
            yield from tensors(value, (*path, str(key)))
    elif isinstance(x, (list, tuple)):
        for number, value in enumerate(x):
            yield from tensors(value, (*path, str(number)))
    elif hasattr(x, "shape"):
        yield path, x


def first_alone(layer: Any, x: Any) -> bool:
    """Whether the layer gives several tensors, the first of which is what it gives when it gives one.

    By convention these are recurrent layers and their cells (states), attention (scores), and the layers of keras_hub
    with a cache.
    """
    several = isinstance(x, (list, tuple)) and len(x) > 1 and hasattr(x[0], "shape")
    kind: Any = type(layer)
    return several and (hasattr(layer, "state_size") or _has_convention(kind))


@functools.cache
def _has_convention(kind: Any) -> bool:
    import keras

    if issubclass(kind, tuple(getattr(keras.layers, name) for name in ALONE_FIRST)):
        return True
    names = inspect.signature(kind.call).parameters
    return kind.__module__.startswith("keras_hub.") and any("cache" in name for name in names)
