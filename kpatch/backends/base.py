"""What kpatch asks of a backend of Keras: the Protocol, with answers that are safe on a backend nobody has tried."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from kpatch.errors import UnsupportedError
from kpatch.indexing import Mask, Point, Positions, Region

Selection = Point | Region | Positions | Mask


class Backend(Protocol):
    """One of Keras's backends.

    The first group of methods is the one place that touches a backend's memory: entries of a variable, read and
    written in place. What it takes for granted was checked before: a selection in normal form for the variable's shape,
    values of the variable's dtype that broadcast to it, no entry twice. The other groups are facts and functions whose
    results, or whose cost, differ. A method that may answer `None` leaves the work to the caller, who then does it by
    `keras.ops`.

    Attributes:
        name: Keras's name of the backend.
        arrays_are_tensors: NumPy's arrays are the backend's tensors. So an array needs no conversion, and one without
            memory of its own may stand for a variable.
        sorts_nan_last: `ops.sort` and `ops.argsort` put NaN last. Elsewhere NaN may come anywhere, so floats are sorted
            as integers of the same order.
        sums_one_by_one: the backend adds the terms of a sum over an axis that is not the last one after the other.
            Rounding errors then grow with the length, so long sums are taken in blocks.
        lengths_stay_unknown: a length that is unknown while a patch is planned is still unknown when the patch runs, as
            it is a tensor of a graph. So nothing can be compared with it, and no error can be raised.
        lacks: the dtypes of which the backend has no tensors.
        computes_in: the dtypes whose entries `keras.ops` do not change by themselves; `None` stands for all of them.
        takes_tensors_as_bounds: `replace_slices` takes spans whose start and count are tensors of a graph.
    """

    name: str
    arrays_are_tensors: bool = False
    sorts_nan_last: bool = False
    sums_one_by_one: bool = True
    lengths_stay_unknown: bool = True
    lacks: frozenset[str] = frozenset()
    computes_in: frozenset[str] | None = None
    takes_tensors_as_bounds: bool = False

    # -- entries of a variable -----------------------------------------------------------------------------------------

    def read(self, variable, selection: Selection) -> Any:
        """The selected entries in memory of their own; for a `Mask` the whole tensor."""

    def write(self, variable, selection: Selection, values, donate: bool = True) -> None:
        """Writes values of the variable's dtype, in place if nobody else holds the memory.

        With `donate=False` the memory that another thread may be reading at this moment is left as it is.
        """

    def prepare(self, variable, selection: Selection, array: np.ndarray) -> Any:
        """The array as `write` takes it fastest."""

    def update(self, variable, region: Region, op: str, old, operand) -> None:
        """The region becomes `old <op> operand`, in one pass if the backend can."""

    def whole(self, variable) -> Any:
        """The whole value as an alias, to be let go before anything is written."""

    def take_over(self, variable, values) -> Any:
        """Gives the variable a tensor that nobody else holds, in place of its own.

        Returns:
            The variable's former tensor; or `None`: nothing was taken over.
        """
        return None

    def view(self, tensor) -> np.ndarray | None:
        """The tensor's memory as an array that is only read; or `None`: the memory is out of reach."""
        return None

    def settle(self, variable) -> None:
        """Waits for the variable's value, if the backend computes while Python goes on; raises what failed."""
        return

    def sync(self, model) -> None:
        """Brings the values of a model's variables where they can be edited."""
        return

    def kept(self, mask, held) -> Any:
        """An object that writes `held` under a mask into a variable's own memory (see `torch.Kept`).

        `None` if that is no faster than `where`: compilers make one pass of that.
        """
        return None

    # -- tensors, eager and traced -------------------------------------------------------------------------------------

    def tensor_of(self, variable) -> Any:
        """The tensor that a Keras variable holds."""
        return variable.value

    def is_traced(self, data) -> bool:
        """Whether a tensor of the backend stands for values that are not known yet."""
        return False

    def is_tracing(self) -> bool:
        """Whether a function is being traced at this moment, so that what is computed here is not known yet."""
        return False

    def refuse_traces(self, function: str) -> None:
        """Raises for a function that works at once, while another is being traced (`jax.jit`, `torch.compile`, ...).

        Otherwise it would run once, at the time of the trace, or with each call, as the backend likes; and what it
        keeps for the next time would belong to the trace.
        """
        if self.is_tracing():
            self.refuse(function)

    def refuse(self, function: str) -> None:
        """Raises the error of `refuse_traces`."""
        raise UnsupportedError(
            f"{function} works at once, and cannot be called inside a function that is being traced or compiled",
            notes=[
                "kpatch.edit makes a new tensor, and works there",
                "a layer (kpatch.layers.ScatterLayer) or kpatch.rewrite edits in each call of a model",
                "kpatch.hold and kpatch.callbacks.PatchCallback edit weights while a model trains",
            ],
        )

    def in_dynamo(self) -> bool:
        """Whether dynamo is tracing the caller, for `torch.compile` or `torch.export`."""
        return False

    def known_length(self, length) -> Any:
        """The length of an axis; `None` for a symbol that stands for any length while a function is exported."""
        return length

    def holds(self, condition) -> bool | None:
        """What a condition on lengths is, a function without arguments; `None` if only the running graph knows."""
        return None

    def require(self, holds, message: str) -> None:
        """Makes a graph that runs end with the message unless all of a tensor's booleans are true, if it can."""
        return

    # -- dtypes --------------------------------------------------------------------------------------------------------

    def refusal(self, dtype: str) -> str | None:
        """Why the backend cannot compute in a dtype, as a sentence; `None` if it can."""
        return None

    def narrows(self, dtype: str) -> bool:
        """Whether the backend makes tensors of 32 bits of an array of that dtype of 64 bits."""
        return False

    def wide(self, name: str, dtype: str) -> Any:
        """The backend's own function of that name for a dtype of 64 bits, which `keras.ops` narrows; or `None`."""
        return None

    def keeps_scalars(self) -> bool:
        """Whether numbers are made once and kept; that pays if making one takes long."""
        return False

    def untraced(self) -> AbstractContextManager:
        """A context in which a tensor that is made is a value, also while a function is being traced."""
        return nullcontext()

    # -- along an axis; `x` has three, and the middle one is meant -----------------------------------------------------

    def first_best(self, how: str, x) -> Any:
        """The index of the first NaN, else of the first largest entry (`how` is "max") or smallest ("min"); or `None`.

        `None` if the backend's function has other rules for NaN, for ties, or for the order of −0 and 0.
        """
        return None

    def sort(self, x, dtype: str) -> Any:
        """The entries in ascending order, NaN last, equal ones in their former order; or `None`."""
        return None

    def order(self, x) -> Any:
        """The indices of the ascending order, equal entries in their former order, as int32."""
        from keras import ops

        return ops.cast(ops.argsort(x, axis=1), "int32")

    def smallest_at(self, x, places) -> Any:
        """The entries that sorting along the last axis would bring to some places, NaN last; or `None`.

        The order of −0 and 0 is left open, so an algorithm that is faster than sorting will do.
        """
        return None

    def largest_in_segments(self, values, segments, count) -> Any:
        """The largest of the int32 values of each segment; of one without values some negative number."""
        from keras import ops

        return ops.segment_max(values, segments, num_segments=count)

    def move_axes(self, x, source, destination) -> Any:
        """What `ops.moveaxis` should do."""
        from keras import ops

        return ops.moveaxis(x, source, destination)

    def where(self, mask, x, y) -> Any:
        """The entries of `x` where the mask holds, else those of `y`; both of one dtype, which is kept."""
        from keras import ops

        return ops.where(mask, x, y)

    # -- slices of a tensor, replaced in a new tensor ------------------------------------------------------------------

    def replaces_slices(self) -> bool:
        """Whether `replace_slices` works here and now; else the caller takes `where`."""
        return False

    def replace_slices(self, tensor, starts, counts, values) -> Any:
        """A new tensor with `counts` entries from `starts` replaced, axis by axis; values broadcast to them."""
        from keras import ops

        return ops.slice_update(ops.copy(tensor), starts, ops.broadcast_to(values, counts))

    def takes_numbers(self, dtype) -> bool:
        """Whether `replace_slices` takes one of Python's numbers for the values, and of that NumPy dtype each of them.

        That is worth it if no tensor is then made of the number.
        """
        return False


def intervals(starts, counts):
    """The index that takes `counts` entries from `starts`."""
    return tuple(slice(start, start + count) for start, count in zip(starts, counts, strict=True))
