"""The steps of an attention layer that have names: `att.scores` and `att.heads`.

They are found by what a layer has, not by its class: the scores are what its one `Softmax` gives, or the one softmax
that it computes by a function; the heads are what its output projection is given. So they are those of Keras, of
keras_hub and of the user's own layers alike.
"""

import sys
from typing import Any

from kpatch.errors import UnsupportedError
from kpatch.names import softmaxes

SIDES = {"scores": "output", "heads": "input"}  # of each step: the activation of the sub-layer that it is
# The attributes under which layers of Keras and keras_hub keep the projection of their heads.
PROJECTIONS = (
    *("_output_dense", "output_dense", "output_projector", "out_proj", "o_proj", "o_dense", "proj", "projection"),
)
# Classes whose softmax gives no scores, and why.
UNLIKE = {"DFineMultiscaleDeformableAttention": "weighs sampled points, not keys"}


def is_attention(layer: Any) -> bool:
    """Whether a layer computes attention: by the name of its class, or because it has a `Softmax`.

    What stands for a layer in a file is none.
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(layer, keras.Layer) or isinstance(layer, keras.Model):
        return False
    return "attention" in type(layer).__name__.lower() or len(_softmaxes_of(layer)) == 1


def sublayer(layer: Any, kind: str) -> Any:
    """The sub-layer of an attention layer whose activation is a step of it.

    Raises:
        UnsupportedError: the layer has none, with the reason.
    """
    found = _projection_of(layer) if kind == "heads" else _softmax_of(layer)
    if found is None:
        told = f"'{layer.name}', a {type(layer).__name__},"
        if not layer.built:
            raise UnsupportedError(f"{told} has no '{kind}' until it is built")
        raise UnsupportedError(f"{told} has no '{kind}': it {_why_none(layer, kind)}")
    return found


def has(layer: Any, kind: str) -> bool:
    return is_attention(layer) and (_projection_of(layer) if kind == "heads" else _softmax_of(layer)) is not None


def method_of(layer: Any) -> str | None:
    """The method in which a layer computes its scores by a function; `None` if it has a `Softmax`, or no scores."""
    if not layer.built or _softmaxes_of(layer) or type(layer).__name__ in UNLIKE:
        return None
    kind: Any = type(layer)
    methods = softmaxes.methods_of(kind)
    return methods[0] if len(methods) == 1 else None


def _why_none(layer: Any, kind: str) -> str:
    if kind == "heads":
        return "projects no heads"
    own: Any = type(layer)
    if own.__name__ in UNLIKE:
        return UNLIKE[own.__name__]
    found = [each.name for each in _softmaxes_of(layer)] or softmaxes.methods_of(own)
    told = " and ".join(f"'{each}'" for each in found)
    return f"computes several softmaxes, in {told}" if found else "calls no softmax of Keras"


def _projection_of(layer: Any) -> Any:
    import keras

    found = (getattr(layer, name, None) for name in PROJECTIONS)
    return next((each for each in found if isinstance(each, (keras.layers.Dense, keras.layers.EinsumDense))), None)


def _softmax_of(layer: Any) -> Any:
    found = _softmaxes_of(layer)
    if len(found) == 1:
        return found[0]
    return None if method_of(layer) is None else softmaxes.of_layer(layer)


def _softmaxes_of(layer: Any) -> list[Any]:
    import keras

    return [each for each in layer._layers if isinstance(each, keras.layers.Softmax)]
