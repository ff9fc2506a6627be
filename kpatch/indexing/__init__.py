"""Subscript to selection, by NumPy's rules, on shapes alone: no tensors, no Keras.

`select` makes of the items between the brackets one of a few selections, in normal form. So code that reads or writes
the entries needs no rules of its own:

* `Point`: one entry, every axis by an integer;
* `Region`: basic indexing, an arithmetic progression on each axis;
* `Positions`: anything else, as flat offsets in C order;
* `Mask`: a boolean tensor of the variable's own shape; the executor makes it if the mask never leaves its device;
* `Grid`: of a tensor with lengths that are not known yet, or by index tensors of a graph: one item an axis.
"""

from kpatch.indexing.kinds import (
    Entry,
    Grid,
    Mask,
    PackedMask,
    Point,
    Positions,
    Region,
    Unknown,
    parts,
    whole,
)
from kpatch.indexing.overlap import last_wins, overlap
from kpatch.indexing.shapes import broadcast, fit
from kpatch.indexing.subscript import infer, layout, select

__all__ = [
    "Entry",
    "Grid",
    "Mask",
    "PackedMask",
    "Point",
    "Positions",
    "Region",
    "Unknown",
    "broadcast",
    "fit",
    "infer",
    "last_wins",
    "layout",
    "overlap",
    "parts",
    "select",
    "whole",
]
