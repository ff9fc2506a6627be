"""The names of layers and weights in an HDF5 file of Keras 2 (a whole model, or weights).

Such a file lists its layers in the attribute `layer_names`, and the weights of each in `weight_names`.
"""

import itertools
import re
from collections import Counter

import numpy as np

TOP = "top_level_model_weights"  # the group of the weights that belong to no layer
SLOTS = "optimizer_weights"
_NUMBER = re.compile(r":\d+$")  # TensorFlow's number of an output: `kernel:0`


def is_one(file):
    """Whether an open file lists its layers."""
    return bool({"layer_names", "layer_names0"} & set(_base(file)[1].attrs))


def _base(file):
    """The chain of names of the group with the layers, and the group."""
    whole = file.get("model_weights")
    return (("model_weights",), whole) if hasattr(whole, "keys") else ((), file)


def name(file, arrays):
    """Names the arrays of an open file by layer and weight, if it lists them: `dense_1.kernel`.

    The chains of groups stay names as well. Slots of an optimizer are reached by these alone.
    """
    base, weights = _base(file)
    layers = _texts(weights, "layer_names")
    places = {}
    for layer in [*layers, TOP]:
        path = tuple(layer.split("/"))
        group = weights.get(layer)
        for weight in _texts(group, "weight_names"):
            keys = (*base, *path, *weight.split("/"))
            places[keys] = _chain(path if layer != TOP else (), weight)
    times = Counter(places.values())
    for array in arrays:
        chain = places.get(array.keys)
        if chain and times[chain] == 1:
            array.called = chain
        array.hidden = array.keys[0] == SLOTS


def _chain(layer, weight):
    """The layer's name and those that follow it in the weight's: `sequential/head/kernel:0` is `head.kernel`."""
    parts = tuple(_NUMBER.sub("", weight).split("/"))
    for start in range(len(parts) - len(layer)):
        if layer and parts[start : start + len(layer)] == layer:
            parts = parts[start + len(layer) :]
            break
    return (*layer, *parts)


def _texts(group, attribute):
    """The texts in an attribute, which is split into several (`layer_names0`, ...) if it is long."""
    attrs = getattr(group, "attrs", {})
    numbered = itertools.takewhile(attrs.__contains__, (f"{attribute}{number}" for number in range(len(attrs))))
    parts = [attribute] if attribute in attrs else numbered
    texts = (text for part in parts for text in np.ravel(attrs[part]).tolist())
    data = (text if isinstance(text, bytes) else str(text).encode("utf-8", "replace") for text in texts)
    return [each.decode("utf-8", "replace") for each in data]
