"""Held entries written back where they are, in torch when it is eager: what `hold` asks of a weight after each step.

By `where` that is a new tensor of the weight's size, which the optimizer then copies into the weight: ten times the
time that a tenth of the entries takes. Compilers make one pass of it, so other backends have no need of this.
"""

import numpy as np
import torch

from kpatch.writers import torch as writer

MOST = 0.5  # of the entries: an offset takes eight bytes, an entry of a mask one


class Kept:
    """The entries of a weight under a mask, with the values that they keep.

    Args:
        mask: a boolean array.
        held: an array of the mask's shape, or of one number.
    """

    def __init__(self, mask, held):
        self._mask = mask
        self._held = held
        self._entries = None

    def suits(self, variable):
        """Whether `write` may be asked: not while a function is compiled, nor where there is no step that is eager."""
        if torch.compiler.is_dynamo_compiling():
            return False
        from keras.src.backend.common.stateless_scope import in_stateless_scope

        known = self._mask.shape, self._held.dtype.name
        return known == (tuple(variable.shape), variable.dtype) and not in_stateless_scope()

    @torch.compiler.disable  # it would take the arrays for tensors
    def write(self, variable):
        """Writes them into the variable's own memory."""
        if self._entries is None:
            self._entries = np.flatnonzero(self._mask), np.broadcast_to(self._held, self._mask.shape)[self._mask]
        self._entries = writer.keep(variable, *self._entries)


def kept(mask, held):
    """The `Kept` of a mask of few entries and the values under it; `None` where they are something else."""
    if not isinstance(mask, np.ndarray) or not isinstance(held, np.ndarray) or held.shape not in ((), mask.shape):
        return None
    return Kept(mask, held) if mask.dtype == bool and mask.mean() <= MOST else None
