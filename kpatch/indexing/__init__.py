"""Subscript to selection, by NumPy's rules, on shapes alone: no tensors, no Keras.

`select` turns the items between the brackets into one of these selections, in normal form:

* `Point`: one entry, an integer for every axis;
* `Region`: basic indexing, an arithmetic progression on each axis;
* `Positions`: any other index, as flat offsets in C order;
* `Mask`: a boolean tensor of the variable's shape, made by the executor so that the mask stays on its device;
* `Grid`: one item an axis, if lengths are unknown or an index is a tensor of a graph.
"""

from kpatch.indexing.broadcasting import broadcast, fit
from kpatch.indexing.kinds import (
    GraphEntry,
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
from kpatch.indexing.subscript import infer, layout, select

__all__ = [
    "GraphEntry",
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
