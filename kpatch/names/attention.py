"""The steps of an attention layer that have names: `att.scores` and `att.heads`.

They are found by what a layer has, not by its class: the scores are what its one `Softmax` gives, and the heads are
what its output projection is given. So they are those of Keras and of keras_hub alike.
"""

import sys
from typing import Any

from kpatch.errors import UnsupportedError

SIDES = {"scores": "output", "heads": "input"}  # of each step: the activation of the sub-layer that it is
# The attributes under which layers of Keras and keras_hub keep the projection of their heads.
PROJECTIONS = ("_output_dense", "output_dense", "output_projector", "out_proj", "o_proj", "o_dense")


def is_attention(layer: Any) -> bool:
    """Whether a layer computes attention: by the name of its class, or because it has a `Softmax`.

    What stands for a layer in a file is none.
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(layer, keras.Layer) or isinstance(layer, keras.Model):
        return False
    return "attention" in type(layer).__name__.lower() or _softmax_of(layer) is not None


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
        reason = "projects no heads" if kind == "heads" else "computes no softmax by a layer of its own"
        raise UnsupportedError(f"{told} has no '{kind}': it {reason}")
    return found


def has(layer: Any, kind: str) -> bool:
    return is_attention(layer) and (_projection_of(layer) if kind == "heads" else _softmax_of(layer)) is not None


def _projection_of(layer: Any) -> Any:
    return next(filter(None, (getattr(layer, name, None) for name in PROJECTIONS)), None)


def _softmax_of(layer: Any) -> Any:
    import keras

    found = [each for each in layer._layers if isinstance(each, keras.layers.Softmax)]
    return found[0] if len(found) == 1 else None
