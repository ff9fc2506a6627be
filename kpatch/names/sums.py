"""Weights that are stored as floats, or as codes that others choose: float8, GPTQ, AWQ, and sums under LoRA."""

import math

import numpy as np

from kpatch.errors import DTypeError, UnsupportedError
from kpatch.names.codecs import StoredChange, Weight, blocks, dtype_of
from kpatch.values.dtypes import NUMPY

FLOAT8 = 448.0
FLOAT8_ROUNDS = 464.0  # the smallest number that would round beyond the largest float8


class Float8(Weight):
    """A float that the layer rounds to float8 under one scale for all; entries themselves stay as they are given."""

    told = "floats, rounded to float8"
    moves = "its scale trains on"

    def __init__(self, layer, variable, scale):
        super().__init__(layer, variable, variable.shape, dtype_of(variable))
        self.others = (scale,)

    def values(self, read, flat=None):
        return self._computed(read(self.variable, flat), read(self.others[0], None))

    def _computed(self, stored, scale):
        import ml_dtypes

        computed = NUMPY[self.layer.compute_dtype]  # what the layer rounds to before, and after
        scale = scale.astype(computed)
        with np.errstate(all="ignore"):
            codes = np.clip(stored.astype(computed) / scale, -FLOAT8, FLOAT8).astype(ml_dtypes.float8_e4m3fn)
            return (codes.astype(computed) * scale).astype(stored.dtype)

    def changes(self, read, flat, wanted, slack=0.0):
        scale, wanted = read(self.others[0], None), wanted.astype("float64")
        with np.errstate(all="ignore"):
            bad = np.flatnonzero(np.abs(wanted) >= FLOAT8_ROUNDS * float(scale))
        made = []
        if bad.size:
            every = flat is None or len(flat) == math.prod(self.shape)
            endless = bad[~np.isfinite(wanted[bad])]
            if not every or endless.size:
                end = FLOAT8 * float(scale)
                note = "a statement that writes all of the weight may choose a new scale"
                first = int(endless[0] if endless.size else bad[0])
                raise self._out_of_range(flat, wanted, first, f"float8 reaches from {-end:.6g} to {end:.6g}", note)
            largest = np.asarray(np.nanmax(np.abs(wanted)) / FLOAT8, scale.dtype)
            made = [StoredChange(self.others[0], None, largest.reshape(scale.shape))]
        values = self._rounded(wanted)
        return [self._change(flat, values), *made]


class Narrow(Weight):
    """A variable of float8, in which no backend computes: read as float32, and rounded once when it is written."""

    def __init__(self, variable):
        super().__init__(None, variable, variable.shape, "float32")
        self.told = dtype_of(variable)

    def values(self, read, flat=None):
        return read(self.variable, flat).astype("float32")

    def changes(self, read, flat, wanted, slack=0.0):
        import ml_dtypes

        with np.errstate(all="ignore"):
            values = wanted.astype(getattr(ml_dtypes, self.told))
            lost = np.flatnonzero(~np.isfinite(values.astype("float32")) & (values.astype("float64") != wanted))
        lost = lost[~np.isnan(wanted[lost])]
        if lost.size:
            first = int(lost[0])
            largest = float(ml_dtypes.finfo(self.told).max)
            message = (
                f"{wanted[first]:.6g} at {self._index(flat, first)} does not fit {self.told} (at most {largest:g})"
            )
            raise DTypeError(message, argument=first)
        return [self._change(flat, values)]


def narrow(variable):
    """The weight of a variable of a model or a file that holds float8; `None` for another dtype."""
    return Narrow(variable) if dtype_of(variable).startswith("float8_") else None


class ReadOnly(Weight):
    """Codes of GPTQ and AWQ, which were chosen together: changed one by one they fit their neighbours no longer."""

    def __init__(self, layer, variable, shape, columns, mode):
        scaling = [layer.awq_scales] if mode == "awq" else []
        super().__init__(layer, variable, shape, dtype_of(layer.kernel_scale))
        self.others = (layer.kernel_scale, layer.kernel_zero, layer.g_idx, *scaling)
        self.columns = columns
        self.told = f"codes of {mode.upper()}"
        self.refusal = f"the codes of {mode.upper()} were chosen together, and are not chosen one by one"

    def values(self, read, flat=None):
        codes = read(self.variable, None)
        if codes.shape[0] != self.columns:
            halves = np.stack([codes & 15, codes >> 4], axis=1)
            codes = halves.reshape(-1, *codes.shape[1:])[: self.columns]
        scale, zero, group, *scaling = (read(variable, None) for variable in self.others)
        at = blocks(group, scale.shape[1])
        weight = ((codes.astype(scale.dtype) - zero[:, at].astype(scale.dtype)) * scale[:, at]).T
        if scaling:
            weight = weight / scaling[0][:, None]
        weight = weight.reshape(self.shape)
        return weight if flat is None else weight.reshape(-1)[flat]


class ForeignCodes(Weight):
    """Codes of a layer that kpatch does not know."""

    def __init__(self, layer, variable):
        super().__init__(layer, variable, variable.shape, dtype_of(variable))
        self.told = "codes"
        kind = type(layer).__name__
        self.unreadable = self.refusal = f"kpatch does not know how a quantised {kind} makes weights of its codes"

    def values(self, read, flat=None):
        raise UnsupportedError(f"a weight cannot be read: {self.unreadable}")


class Lora(Weight):
    """A base, and an update of low rank that the layer adds to it."""

    moves = "the factors of its update train on"

    def __init__(self, base, a, b):
        super().__init__(base.layer, base.variable, base.shape, base.dtype)
        self.base = base
        self.others = (*base.others, a, b)
        self.told = f"a base of {base.told or base.dtype}, to which LoRA adds"

    def in_file(self, array):
        """Keras saves the sum of both, as a base without an update."""
        return self.base.in_file(array)

    def values(self, read, flat=None):
        base = self.base.values(read, flat)
        return self._rounded(base.astype("float64") + self._update(read, flat))

    def _update(self, read, flat):
        """The update, in float64; summed up term by term, so that an entry does not depend on those beside it."""
        a, b = (read(factor, None).astype("float64") for factor in self.others[-2:])
        rank, last = b.shape
        if flat is None:
            terms = (a[..., k, None] * b[k] for k in range(rank))
        else:
            row, column = flat // last, flat % last
            terms = (a.reshape(-1, rank)[row, k] * b[k, column] for k in range(rank))
        return self.layer.lora_alpha / self.layer.lora_rank * sum(terms)

    def changes(self, read, flat, wanted, slack=0.0):
        with np.errstate(all="ignore"):
            slack = np.abs(np.spacing(self._rounded(wanted))).astype("float64")
        return self.base.changes(read, flat, wanted - self._update(read, flat).reshape(-1), slack)
