"""Held entries written back where they are: what `hold` asks of a weight after each step, on torch when it is eager.

By `where` that is a new tensor of the weight's size, which the optimizer then copies into the weight: ten times the
time that a tenth of the entries takes. Compilers make one pass of it, so other backends have no need of this.
"""

import numpy as np

from kpatch import writers
from kpatch.compiled import in_dynamo
from kpatch.syntax import parse

HELD = "_ = where($mask, $held, _)"
MOST = 0.5  # of the entries: an offset takes eight bytes, an entry of a mask one
_STATEMENTS = parse(HELD).statements


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
        """Whether `write` can be asked: by a backend that can, for such a variable, outside of compiled functions."""
        from keras.src.backend.common.stateless_scope import in_stateless_scope

        return (
            not in_dynamo()
            and hasattr(writers.current(), "keep")
            and not in_stateless_scope()
            and (tuple(variable.shape), variable.dtype) == (self._mask.shape, self._held.dtype.name)
        )

    def write(self, variable):
        """Writes them into the variable's own memory."""
        if self._entries is None:
            self._entries = np.flatnonzero(self._mask), np.broadcast_to(self._held, self._mask.shape)[self._mask]
        self._entries = writers.current().keep(variable, *self._entries)


def kept(patch):
    """The `Kept` of a `TensorPatch` such as `hold` makes, of few entries; `None` of any other."""
    if patch.patch.statements != _STATEMENTS:
        return None
    mask, held = patch.bindings["mask"], patch.bindings["held"]
    if not isinstance(mask, np.ndarray) or not isinstance(held, np.ndarray) or held.shape not in ((), mask.shape):
        return None
    return Kept(mask, held) if mask.dtype == bool and mask.mean() <= MOST else None
