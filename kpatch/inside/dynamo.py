"""`kpatch.edit` and layers in `torch.compile`: one opaque call in dynamo's graph, which AOT autograd traces through.

Otherwise dynamo would trace the parser and the planner, and treat their NumPy arrays as tensors.
"""

import keras
import numpy as np
import torch

from kpatch.inside import holders
from kpatch.run import pure
from kpatch.syntax import parse

IN_GRAPH = (bool, int, float, list, tuple, np.ndarray, torch.Tensor)  # types that a call in a graph accepts


def edit(x, text, bindings):
    """`kpatch.edit` under dynamo. Bindings that a graph cannot hold, such as a model, break the graph."""
    given = {name: value.value if isinstance(value, keras.Variable) else value for name, value in bindings.items()}
    if all(isinstance(value, IN_GRAPH) for value in given.values()):
        return _edit_in_graph(x, text, given)
    return _edit_apart(x, text, given)


def _edit(x, text, bindings):
    return pure.edit(x, parse(text), bindings)


_edit_in_graph = torch.compiler.allow_in_graph(_edit)
_edit_apart = torch.compiler.disable(_edit)
run_in_graph = torch.compiler.allow_in_graph(holders.run)
