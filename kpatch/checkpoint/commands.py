"""The commands `apply`, `show` and `diff` on files."""

import os
import sys
from pathlib import Path

import numpy as np

from kpatch.checkpoint import archive, comparing, formats, safetensors, saving
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import FileError, ResolutionError
from kpatch.names.index import keys_of
from kpatch.names.tree import spelled
from kpatch.syntax import ast


def opened(path):
    """The `Checkpoint`, or `None` if the weights of an archive are compressed, so that the model must be loaded."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "numpy"  # no training backend is needed here
    if formats.kind(path) == formats.ARCHIVE and not archive.is_plain(path):
        return None
    return Checkpoint(path)


def sidecar(patch_file, patch):
    """The arrays of the `.safetensors` beside a patch file that the patch names as `$name`.

    Raises:
        FileError: `kpatch diff` did not write the two files together.
    """
    beside = Path(patch_file).with_suffix(".safetensors") if patch_file not in (None, "-") else None
    if beside is None or not beside.is_file():
        return {}
    asked = {node.name for statement in patch.statements for node in ast.walk(statement) if type(node) is ast.Binding}
    found = {array.path: array for array in Checkpoint(beside).arrays if array.path in asked}
    digest = saving.digest_of_arrays(patch.source)
    if found and digest is not None and safetensors.metadata(beside).get("digest") != digest:
        raise FileError(f"'{beside}' was not written together with '{patch_file}'; run kpatch diff again")
    return found


def selected(checkpoint, selector):
    """Pairs of a name and an `Array`: all, or those that match a selector, or those of the layer that it names."""
    if selector is None:
        return checkpoint.named()
    try:
        return [(entry.path, checkpoint.meant(entry)) for entry in checkpoint.find_all(selector)]
    except ResolutionError:
        nodes = checkpoint.index.nodes_ending(keys_of(selector), counted=True)
        layers = [f".{selector}.", *[f".{spelled(node.keys())}." for node in nodes]]
        found = [pair for pair in checkpoint.named() if any(layer in f".{pair[0]}" for layer in layers)]
        if not found:
            raise
        return found


def dtype_shown(checkpoint, array):
    """The dtype of an array as `kpatch show` tells it: `float32 of int8 codes`; `int8 codes` in a file without more."""
    if told := getattr(array, "told", None):
        return f"{array.dtype} of {told}"
    bare = checkpoint is not None and checkpoint.index is checkpoint.own
    return f"{array.dtype} codes" if bare and array.dtype == "int8" else array.dtype


def difference(old, new, tolerance):
    """The `Diff` of two files, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    pair = []
    for path in (old, new):
        checkpoint = opened(path)
        if checkpoint is None:
            raise FileError(f"the weights in '{path}' are compressed: load the model and save it again")
        pair.append(checkpoint)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing", total=sum(array.nbytes for array in pair[0].arrays))
        return comparing.diff(*pair, tolerance=tolerance, progress=lambda count: progress.advance(task, count))


class Statistics:
    """The range, mean and standard deviation of an array, and its numbers of 0, NaN and infinities; read in blocks."""

    HEADINGS = ("min", "mean", "max")
    MORE = ("std", "zeros", "nan", "inf")

    def __init__(self, array):
        self.size = array.size
        self.low, self.high, self.sum, self.squares = np.inf, -np.inf, 0.0, 0.0
        self.zeros = self.nans = self.infinite = 0
        with np.errstate(all="ignore"):
            for _, block in array.blocks():
                self._add(block)

    def _add(self, block):
        self.zeros += block.size - np.count_nonzero(block)
        wide = block if block.dtype.kind in "iub" else block.astype("float64")
        self.low, self.high = np.minimum(self.low, wide.min()), np.maximum(self.high, wide.max())
        self.sum += float(wide.sum(dtype="float64"))
        self.squares += float(np.square(wide, dtype="float64").sum())
        if wide.dtype.kind == "f":
            self.nans += int(np.isnan(wide).sum())
            self.infinite += int(np.isinf(wide).sum())

    def row(self, more):
        if not self.size:
            return ("-",) * (3 + 4 * more)
        mean = self.sum / self.size
        row = (f"{self.low:.6g}", f"{mean:.6g}", f"{self.high:.6g}")
        if not more:
            return row
        deviation = np.sqrt(max(0.0, self.squares / self.size - mean**2)) if np.isfinite(mean) else np.nan
        return (*row, f"{deviation:.6g}", f"{self.zeros:,}", f"{self.nans:,}", f"{self.infinite:,}")
