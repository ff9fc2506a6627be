"""The weight that a layer computes with, if the layer stores something else: codes, packed codes, a base for LoRA.

A `Weight` reads and writes such a weight by way of the variables that the layer stores. It works on arrays of NumPy
alone, so that one statement stores the same codes on every backend, and in a file. Offsets are flat, in C order.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np

from kpatch.errors import DTypeError, UnsupportedError
from kpatch.values.dtypes import NUMPY, dtype_name

EPSILON = 1e-7  # what Keras adds to the largest value of a scale's group
BLOCK = 2**16  # entries that are worked on at a time, which stay in the processor's cache
ONE = np.zeros(1, "int64")  # an axis along which all entries share a scale
INT4, INT8 = (-8, 7), (-127, 127)


class StoredChange(NamedTuple):
    """Entries of a stored variable, and what they become.

    Attributes:
        variable: the variable.
        flat: the offsets of the entries, each once; `None` stands for all.
        values: what they become, of the variable's dtype.
        bits: of bytes that hold two codes, the bits of those that change; `None` if all of each entry do.
    """

    variable: Any
    flat: np.ndarray | None
    values: np.ndarray
    bits: np.ndarray | None = None


class Weight:
    """A weight that is stored as something else.

    `read` in the methods is a function of a stored variable, and of flat offsets or `None` for all; it gives an array.

    Attributes:
        layer: the layer that computes with it.
        variable: the variable that stores it, whose name it bears.
        others: the further variables that it depends on.
        bookkeeping: variables that its layer keeps for it, such as the group of each row, or ranges of activations.
        shape, dtype: of the weight.
        told: what is stored, in words.
        refusal: why it cannot be written, or `None`.
        unreadable: why it cannot be read, or `None`.
        moves: what changes it while the layer trains, though its entries are held; or `None`.
    """

    told = ""
    refusal: str | None = None
    unreadable: str | None = None
    moves: str | None = None
    others: tuple = ()
    bookkeeping: tuple = ()

    def __init__(self, layer, variable, shape, dtype):
        self.layer = layer
        self.variable = variable
        self.shape = tuple(shape)
        self.dtype = dtype

    @property
    def variables(self):
        return (self.variable, *self.others)

    def in_file(self, array):
        """The weight that a file holds, or `None` if it holds it as it is; `array` gives the array of a variable."""
        made = copy.copy(self)
        made.variable = array(self.variable)
        made.others = tuple(map(array, self.others))
        return made

    def values(self, read, flat=None):
        """The entries of the weight, as a row; of all, in its shape."""
        raise NotImplementedError

    def changes(self, read, flat, wanted, slack=0.0):
        """What has to be stored so that entries of the weight become `wanted`, or what is nearest to it.

        Args:
            flat: the offsets of the entries, each once; `None` stands for all.
            wanted: their new values, floats of any width, in a row.
            slack: by how much values may differ that count as the same.

        Raises:
            DTypeError: a value is beyond what can be stored; its `argument` is the position of it in `wanted`.
        """
        raise NotImplementedError

    def _change(self, flat, values):
        """The change of the variable itself; of all entries, in its shape."""
        return StoredChange(self.variable, flat, values.reshape(tuple(self.variable.shape)) if flat is None else values)

    def _rounded(self, values):
        return np.asarray(values).astype(NUMPY[self.dtype])

    def _out_of_range(self, flat, wanted, position, reach, note):
        """The error of a value that cannot be stored under the present scale."""
        value, at = float(wanted[position]), self._index(flat, position)
        if not np.isfinite(value):
            return DTypeError(f"{value} at {at} cannot be stored in {self.told}", argument=position)
        message = f"{value:.6g} at {at} is out of range: under the present scale {reach}"
        return DTypeError(message, notes=[note], argument=position)

    def _index(self, flat, position):
        """The entry at a position of `wanted`, as it is written in a patch."""
        offset = int(position if flat is None else flat[position])
        return "[" + ", ".join(map(str, np.unravel_index(offset, self.shape))) + "]"


class Plain(Weight):
    """What a variable stores is the weight: the base under LoRA."""

    def in_file(self, array):
        return None

    def values(self, read, flat=None):
        return read(self.variable, flat)

    def changes(self, read, flat, wanted, slack=0.0):
        with np.errstate(over="ignore"):
            values = self._rounded(wanted)
        lost = np.flatnonzero(~np.isfinite(values.astype("float64")) & np.isfinite(wanted))
        if lost.size:
            at = lost[0]
            message = (
                f"{wanted[at]:.6g} is out of the range of {self.dtype}, as which {self._index(flat, at)} is stored"
            )
            raise DTypeError(message, argument=int(at))
        return [self._change(flat, values)]


class Codes(Weight):
    """Integer codes, and a scale for each group of entries: the weight is `code / scale`.

    Args:
        layout: a shape whose flat offsets are those of the weight's.
        groups: for each axis of the layout an array of its length, or of length 1. The sum of an entry's is the offset
            of its scale.
        limits: the smallest and the largest code.
        packing: the axis of the layout along which two codes share a byte, or `None`.
    """

    def __init__(self, layer, variable, scale, shape, layout, groups, limits, packing=None):
        super().__init__(layer, variable, shape, dtype_of(scale))
        self.others = (scale,)
        self.layout = tuple(layout)
        self.groups = groups
        self.limits = limits
        self.packing = packing
        self.told = "int8 codes" if packing is None else "int4 codes"

    # Reading

    def values(self, read, flat=None):
        codes, at = self._codes(read, flat), self._groups(flat)
        return self._decoded(codes, at, self._parameters(read)).reshape(self.shape if flat is None else flat.shape)

    def _parameters(self, read):
        """The arrays that the groups index, as rows."""
        return [read(variable, None).reshape(-1) for variable in self.others[: self._counted]]

    _counted = 1

    def _decoded(self, codes, at, parameters):
        (scale,) = parameters
        with np.errstate(all="ignore"):
            return codes.astype(scale.dtype) / scale[at]

    def _groups(self, flat):
        """The group of each entry; of all, in a form that broadcasts to the layout."""
        if flat is None:
            return sum(np.ix_(*self.groups))
        where = np.unravel_index(flat, self.layout)
        parts = [group[at] for group, at in zip(self.groups, where, strict=True) if len(group) > 1]
        return sum(parts, np.zeros(flat.shape, "int64"))

    def _sizes(self):
        """How many entries each group has; 0 if no entry is in it."""
        offsets, sizes = np.zeros(1, "int64"), np.ones(1, "int64")
        for group, length in zip(self.groups, self.layout, strict=True):
            distinct, counts = np.unique(group, return_counts=True)
            offsets = np.add.outer(offsets, distinct).reshape(-1)
            sizes = np.multiply.outer(sizes, counts * (length // len(group))).reshape(-1)
        made = np.zeros(math.prod(self.others[0].shape), "int64")
        made[offsets] = sizes
        return made

    def _codes(self, read, flat):
        if self.packing is None:
            codes = read(self.variable, flat)
            return codes.reshape(self.layout) if flat is None else codes
        if flat is None:
            packed = read(self.variable, None).view("uint8")
            codes = np.empty(self.layout, "uint8")
            for half, bits in enumerate((packed & 15, packed >> 4)):
                own = codes[self._halves(half)]
                own[...] = bits[tuple(map(slice, own.shape))]
        else:
            at, high = self._bytes(flat)
            codes = read(self.variable, at).view("uint8") >> np.where(high, 4, 0).astype("uint8") & 15
        return ((codes ^ 8).view("int8") - 8).astype("int8")

    def _halves(self, half):
        """The codes in the low halves of the bytes, or in the high ones."""
        return tuple(slice(half, None, 2) if axis == self.packing else slice(None) for axis in range(2))

    def _bytes(self, flat):
        """The byte that holds each code, and whether its high half does."""
        row, column = np.unravel_index(flat, self.layout)
        if self.packing == 0:
            return row // 2 * self.layout[1] + column, row % 2 == 1
        return row * ((self.layout[1] + 1) // 2) + column // 2, column % 2 == 1

    # Writing. A part is a slice of rows of the layout, or of the entries if not all are written

    def _parts(self, flat):
        """Slices, the groups of the entries in each, in a form that broadcasts, and by axis if all are written."""
        if flat is not None:
            yield slice(None), self._groups(flat), None
            return
        rows = max(1, BLOCK // math.prod(self.layout[1:]))
        for start in range(0, self.layout[0], rows):
            part = slice(start, start + rows)
            axes = (self.groups[0] if len(self.groups[0]) == 1 else self.groups[0][part], *self.groups[1:])
            yield part, sum(np.ix_(*axes)), axes

    def changes(self, read, flat, wanted, slack=0.0):
        parameters, sizes = self._parameters(read), self._sizes()
        if flat is None:
            wanted, slack = wanted.reshape(self.layout), np.reshape(slack, self.layout if np.ndim(slack) else ())
            named = np.full(sizes.shape, True)
        else:
            named = np.bincount(self._groups(flat), minlength=sizes.size) == sizes
        codes, out = np.empty(wanted.shape, "int8"), np.empty(wanted.shape, bool)
        inexact = np.zeros(sizes.shape, bool)  # of each group, whether an entry differs under the present scale
        for part, at, axes in self._parts(flat):
            asked = wanted[part].astype("float64")
            nearest = self._nearest(asked, at, parameters)
            beyond = ~((nearest >= self.limits[0]) & (nearest <= self.limits[1]))  # NaN too
            codes[part] = own = np.where(beyond, 0, nearest).astype("int8")
            decoded = self._decoded(own, at, parameters).astype("float64")
            out[part] = beyond = beyond | ~np.isfinite(decoded)  # of any code, if a scale is zero
            near = slack[part] if np.ndim(slack) else slack
            with np.errstate(invalid="ignore"):
                differ = beyond | ~(np.abs(decoded - asked) <= near)
            _grouped(np.logical_or, inexact, differ, at, axes)
        fresh = named & inexact
        if out.any():
            self._check(flat, wanted, out, fresh, parameters)
        made = []
        if fresh.any():
            found = np.flatnonzero(fresh)
            parameters = self._chosen(flat, wanted, parameters, found)
            for part, at, _ in self._parts(flat):
                renewed = np.clip(self._nearest(wanted[part].astype("float64"), at, parameters), *self.limits)
                codes[part] = np.where(fresh[at], renewed, codes[part])
            variables = self.others[: self._counted]
            made = [StoredChange(v, found, p[found]) for v, p in zip(variables, parameters, strict=True)]
        return [self._stored(read, flat, codes), *made]

    def _nearest(self, wanted, at, parameters):
        (scale,) = parameters
        with np.errstate(all="ignore"):
            return np.rint(wanted * scale.astype("float64")[at])

    def _check(self, flat, wanted, out, fresh, parameters):
        """Raises for the first entry that no code stands for, under the scale that its group will have."""
        at = np.broadcast_to(self._groups(flat), out.shape)
        bad = np.flatnonzero(out & ~(fresh[at] & np.isfinite(wanted)))
        if not bad.size:
            return
        first = int(bad[0])
        group = at.reshape(-1)[first : first + 1]
        ends = [float(self._decoded(np.array([code]), group, parameters)[0]) for code in self.limits]
        note = f"a statement that writes all {self._sizes()[group[0]]} entries of that scale may choose a new one"
        reach = f"{self.told} there reach from {ends[0]:.6g} to {ends[1]:.6g}"
        if not all(map(np.isfinite, ends)):
            reach = f"{self.told} there stand for no numbers"
        raise self._out_of_range(flat, wanted.reshape(-1), first, reach, note)

    def _chosen(self, flat, wanted, parameters, found):
        """The parameters, with new ones for the groups `found`, as Keras chooses them."""
        (scale,) = parameters
        largest = np.zeros(scale.shape, "float32")
        for part, at, axes in self._parts(flat):
            _grouped(np.maximum, largest, np.abs(wanted[part].astype("float32")), at, axes)
        scale = scale.copy()
        scale[found] = _finite(np.float32(self.limits[1]) / (largest[found] + np.float32(EPSILON)), scale.dtype)
        return [scale]

    def _stored(self, read, flat, codes):
        if self.packing is None:
            return self._change(flat, codes)
        nibbles = codes.view("uint8") & 15
        if flat is None:
            packed = read(self.variable, None).view("uint8").copy()
            for half, (kept, shift) in enumerate(((240, 0), (15, 4))):
                own = nibbles.reshape(self.layout)[self._halves(half)]
                there = packed[tuple(map(slice, own.shape))]
                there[...] = there & kept | own << shift
            return StoredChange(self.variable, None, packed.view("int8"))
        at, high = self._bytes(flat)
        at, inverse = np.unique(at, return_inverse=True)
        packed = read(self.variable, at).view("uint8").copy()
        bits = np.zeros_like(packed)
        for half, (kept, shift) in enumerate(((240, 0), (15, 4))):
            mine = high if half else ~high
            packed[inverse[mine]] = packed[inverse[mine]] & kept | nibbles[mine] << shift
            bits[inverse[mine]] |= 255 - kept
        return StoredChange(self.variable, at, packed.view("int8"), bits.view("int8"))


class Zeroed(Codes):
    """Codes with a zero point for each group beside its scale: the weight is `(code - zero) * scale`.

    Args:
        groups: as for `Codes`, but that of one axis is what a block of it adds: the block of each position is read.
        axis: that axis.
    """

    _counted = 2

    def __init__(self, layer, variable, scale, zero, shape, layout, groups, limits, packing, axis):
        super().__init__(layer, variable, scale, shape, layout, groups, limits, packing)
        self.others = (scale, zero, layer.g_idx)
        self.axis = axis

    def values(self, read, flat=None):
        return super(Zeroed, self._now(read)).values(read, flat)

    def changes(self, read, flat, wanted, slack=0.0):
        return super(Zeroed, self._now(read)).changes(read, flat, wanted, slack)

    def _now(self, read):
        """The same, with the groups that `g_idx` has at present."""
        made, groups = copy.copy(self), list(self.groups)
        count = self.others[0].shape[0 if self.axis == 0 else -1]
        groups[self.axis] = blocks(read(self.others[2], None), count) * groups[self.axis]
        made.groups = groups
        return made

    def _decoded(self, codes, at, parameters):
        scale, zero = parameters
        with np.errstate(all="ignore"):
            return (codes.astype(scale.dtype) - zero[at].astype(scale.dtype)) * scale[at]

    def _nearest(self, wanted, at, parameters):
        scale, zero = (p.astype("float64") for p in parameters)
        with np.errstate(all="ignore"):
            return np.rint(wanted / scale[at]) + zero[at]

    def _chosen(self, flat, wanted, parameters, found):
        """As Keras chooses them, of a range that holds 0: without it the zero point is no code."""
        scale, zero = (p.copy() for p in parameters)
        lowest, largest = (np.zeros(scale.shape, "float32") for _ in range(2))
        for part, at, axes in self._parts(flat):
            narrow = wanted[part].astype("float32")
            _grouped(np.minimum, lowest, narrow, at, axes)
            _grouped(np.maximum, largest, narrow, at, axes)
        lowest, largest = lowest[found], largest[found]
        low, high = self.limits
        scale[found] = _finite((largest - lowest + np.float32(EPSILON)) / np.float32(high - low), scale.dtype)
        zeros = np.rint(-lowest.astype("float64") / scale[found].astype("float64")) + low
        zero[found] = np.clip(zeros, low, high).astype(zero.dtype)
        return [scale, zero]


def _grouped(function, made, entries, at, axes):
    """Takes entries into what a function of NumPy, such as `np.maximum`, makes of each group.

    Args:
        at: the group of each entry.
        axes: of entries that are a block of the layout, what each axis adds to the group; `None` for others.
    """
    if axes is None:
        function.at(made, at, entries)
        return
    groups = []
    for axis, group in enumerate(axes):
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        if len(starts) < entries.shape[axis]:
            entries = function.reduceat(entries, starts, axis=axis)
        groups.append(group[starts])
    function.at(made, sum(np.ix_(*groups)), entries)  # a group that lies in pieces comes several times


def blocks(index, count):
    """The block of each position, as `g_idx` holds it."""
    blocks = index.astype("int64")
    bad = blocks[(blocks < 0) | (blocks >= count)]
    if bad.size:
        raise UnsupportedError(f"a weight cannot be read: its 'g_idx' names block {bad[0]}, and there are {count}")
    return blocks


def _finite(values, dtype):
    """The values in a dtype; what is too large is its largest number."""
    import ml_dtypes

    return np.minimum(values.astype("float64"), float(ml_dtypes.finfo(dtype).max)).astype(dtype)


def dtype_of(variable):
    """The dtype that a variable holds."""
    held = getattr(variable, "_value", None)
    return variable.dtype if held is None else dtype_name(held.dtype)
