"""`kpatch.edit`, and layers, inside `torch.compile`: one opaque call in dynamo's graph; AOT autograd traces through it.

Dynamo would otherwise trace the parser and the planner, and take their NumPy arrays for tensors.
"""

import torch

from kpatch.compiled import run_live


def _edit(x, text, bindings):
    from kpatch.api import edit

    return edit(x, text, **bindings)


edit_in_graph = torch.compiler.allow_in_graph(_edit)
run_in_graph = torch.compiler.allow_in_graph(run_live)
