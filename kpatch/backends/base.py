"""The Protocol of a backend. Its defaults are safe on an untested backend."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from kpatch.errors import PatchError, UnsupportedError, is_apart
from kpatch.indexing import Mask, PackedMask, Point, Positions, Region

Selection = Point | Region | Positions | Mask


class Cell:
    """A place for a tensor of one shape and dtype, which a compiled function reads each time that it runs."""

    def __init__(self, convert: Callable, value: np.ndarray) -> None:
        self._convert = convert
        self.put(value)

    def get(self) -> Any:
        return self._value

    def put(self, value: np.ndarray) -> None:
        self._value = self._convert(value)


class Overwriting(Protocol):
    """A whole new value that is ready to be computed in its variable's own memory."""

    @staticmethod
    def run(jobs: list, begin: Callable[[int], None]) -> list[int]:
        """Computes the values of different variables; gives how many entries each program chose, if it counts.

        Args:
            jobs: objects of this class.
            begin: called with the place of a job before its variable is written.
        """


class OtherBitsError(PatchError):
    """An interpreter may not give the bits of the backend that it stands for; its caller falls back."""


class Backend(Protocol):
    """One of Keras's backends.

    Only the first group of methods touches a backend's memory: it reads and writes entries of a variable in place. The
    callers have checked that the selection is in normal form for the variable's shape, that no entry occurs twice, and
    that the values have the variable's dtype and broadcast to the selection. The other groups are facts, and functions
    whose results or cost differ. If a method returns `None`, the caller does the work by `ops`.

    Attributes:
        name: Keras's name of the backend.
        ops: `keras.ops`, or what does the same.
        arrays_are_tensors: NumPy arrays are the backend's tensors. So an array needs no conversion, and an array
            without memory of its own can replace a variable's value.
        sorts_nan_last: `ops.sort` and `ops.argsort` put NaN last. On other backends NaN can come anywhere, so floats
            are sorted as integers of the same order.
        sums_one_by_one: the backend adds terms one by one along an axis other than the last. Rounding errors then grow
            with the length, so long sums are taken in blocks.
        flushes_denormals: the backend takes denormal numbers for zeros, also in comparisons.
        lengths_stay_unknown: a length that is unknown while planning is still unknown when the patch runs, because it
            is a tensor of a graph. It cannot be compared, and no error can be raised.
        lacks: dtypes in which the backend has no tensors.
        computes_in: dtypes in which `keras.ops` compute without conversion; `None` means all dtypes.
        takes_tensors_as_bounds: `replace_slices` takes spans whose start and count are tensors of a graph.
        xla_hands_out: `hand_out` works in graphs that XLA compiles, where the backend has such graphs.
        compiles_operations: each operation that is called eagerly is a compiled function, and traced anew as they are.
        compiles_weights_in: a function that closes over weights is compiled with their values as constants.
    """

    name: str
    ops: Any
    arrays_are_tensors: bool = False
    sorts_nan_last: bool = False
    sums_one_by_one: bool = True
    flushes_denormals: bool = False
    lengths_stay_unknown: bool = True
    lacks: frozenset[str] = frozenset()
    computes_in: frozenset[str] | None = None
    takes_tensors_as_bounds: bool = False
    xla_hands_out: bool = True
    compiles_operations: bool = False
    compiles_weights_in: bool = False

    # -- entries of a variable -----------------------------------------------------------------------------------------

    def read(self, variable, selection: Selection) -> Any:
        """A copy of the selected entries; for a `Mask`, of the whole tensor."""

    def keep(self, variable, selection: Selection) -> Any:
        """The same in the form that is kept most cheaply: what `write` takes, but nothing to compute with."""
        return self.read(variable, selection)

    def write(self, variable, selection: Selection, values, donate: bool = True) -> None:
        """Writes values of the variable's dtype, in place if nothing else refers to the memory.

        The values of a `PackedMask` are those of its entries, in a row. `donate=False` leaves the old memory unchanged,
        for threads that may be reading it.
        """

    def prepare(self, variable, selection: Selection, array: np.ndarray) -> Any:
        """The array in the form that `write` takes fastest."""

    def update(self, variable, region: Region, op: str, old, operand) -> None:
        """Sets the region to `old <op> operand`, in one pass if the backend can."""

    def whole(self, variable) -> Any:
        """An alias of the whole value. The caller must release it before anything is written."""

    def take_over(self, variable, values) -> Any:
        """Replaces the variable's tensor by `values`, to which nothing else may refer.

        Returns:
            The variable's former tensor, or `None` if the tensor was not replaced.
        """
        return None

    def give_back(self, variable, values) -> Any:
        """Gives a variable the tensor `values` again, which it had before, if nothing can write into that.

        Returns:
            What keeps the values, whatever becomes of the variable; or `None` if they must be written.
        """
        return None

    def written(self, variable, values) -> Callable[[], Any]:
        """The function that gives values that the variable took over; or `None` if others may have come there."""
        return lambda: values

    def view(self, tensor) -> np.ndarray | None:
        """The tensor's memory as a NumPy array to read, or `None` if the host cannot address it."""
        return None

    def is_spread(self, x) -> bool:
        """Whether this process lacks values of a tensor, which other processes hold."""
        return False

    def gathered(self, x) -> Any:
        """A tensor that is spread over processes, as an array with all values; others as they are.

        All processes that hold parts of the tensor must call it.
        """
        return x

    def process(self) -> tuple[int, int]:
        """The number of this process, and how many processes run one program together."""
        return 0, 1

    def exchanged(self, variable, message: Callable[[], bytes]) -> dict[int, bytes]:
        """The message of each process that holds parts of a variable, by its number. All of them must call it.

        Empty if this process holds the variable alone. All messages have one length, a multiple of 4.
        """
        return {}

    def writing(self, variables: list) -> AbstractContextManager:
        """A block in which values of these variables are written: what else uses their memory may be searched once."""
        return nullcontext()

    def memory(self, variable) -> np.ndarray | None:
        """The variable's memory as a flat NumPy array to write, or `None` if others may see it, or NumPy cannot.

        Only float32 and float64. No other alias may be held when it is asked for.
        """
        return None

    def overwriting(self, variable, program, given: Callable) -> Overwriting | None:
        """A whole new value, ready to be computed in the variable's own memory; or `None`.

        Args:
            program: a `programs.Program`.
            given: the function that gives the tensors and the numbers of the program. No alias is held before.
        """
        memory = self.memory(variable) if program.has_bits else None
        if memory is None:
            return None
        arrays, numbers = given()
        views = [view.reshape(-1) for x in arrays if (view := self.view(x)) is not None]
        return program.overwriting(memory, views, numbers) if len(views) == len(arrays) else None

    def blank(self, like: list) -> Any:
        """A new tensor like the first of some tensors, and its memory as an array of NumPy to write; or `None`.

        Only if each of them has a `view`, and NumPy may compute of them in place of the backend.
        """
        return None

    def agrees(self, operations: tuple, numbers: list) -> bool:
        """Whether NumPy has the backend's bits in all operations of a program, whatever numbers the tensors hold."""
        return True

    def suits_blocks(self, operations: tuple, arrays: list, numbers: list) -> bool:
        """Whether NumPy computes a program in the memory of a `blank` tensor, rather than `fused`."""
        return True

    def fused(self, operations: tuple, arrays: list, numbers: list) -> Any:
        """The result of element-wise operations in one pass over the memory, with the same bits; or `None`."""
        return None

    def settle(self, variable) -> None:
        """Waits for the variable's value if the backend computes asynchronously; raises its errors."""
        return

    def sync(self, model) -> None:
        """Updates the values of a model's variables so that they can be edited."""
        return

    def interpreter(self, work, x) -> "Backend | None":
        """The backend that computes in place of this one, with the same bits and without compiling; or `None`.

        Args:
            work: what is computed, as a hashable; after some times it is compiled.
            x: the largest tensor of the computation.
        """
        return None

    def reducer(self, x) -> "Backend | None":
        """The backend that reduces axes of a tensor in place of this one, at any time; or `None`.

        Sums have other roundings there, so that it depends on nothing but dtype, size and place of the tensor.
        """
        return None

    def placed(self, array: np.ndarray, like) -> Any:
        """An array of an interpreter as a tensor that lies where the tensor `like` does."""
        return self.ops.convert_to_tensor(array)

    def taken(self, x) -> Any:
        """For an interpreter: a tensor of the backend that it stands for, as its own, which is only read."""
        return x

    def accepted(self, x) -> Any:
        """The result of an operation; an interpreter refuses one that the compiled operation may not give."""
        return x

    def kept(self, mask, held) -> Any:
        """An object that writes `held` under a mask into a variable's memory (see `torch.Kept`).

        `None` if `where` is as fast, as on backends whose compiler fuses it.
        """
        return None

    def after_own_steps(self, variable, function) -> Any:
        """Has the backend's own optimizers, not Keras's, call `function()` after each step with the variable.

        Returns what ends that; `None` if the backend has no such optimizers, or they tell nobody.
        """
        return None

    def rescue(self) -> None:
        """Puts back what Keras's trainer took out of variables for a step, before an error leaves the step."""
        return

    # -- tensors, eager and traced -------------------------------------------------------------------------------------

    def converted(self, x) -> Any:
        """What `keras.ops.convert_to_tensor` gives, as a tensor that is no variable."""
        return self.ops.convert_to_tensor(x)

    def tensor_of(self, variable) -> Any:
        """The tensor that a Keras variable holds."""
        return variable.value

    def is_traced(self, data) -> bool:
        """Whether the values of a tensor of the backend are unknown (a tracer, a graph's tensor)."""
        return False

    def is_differentiated(self, data) -> bool:
        """Whether gradients may be taken with respect to a tensor whose values are known."""
        return False

    def is_tracing(self) -> bool:
        """Whether a function is being traced now, so that computed values are unknown."""
        return False

    def refuse_traces(self, function: str) -> None:
        """Raises if `function`, which takes effect immediately, is called in a trace (`jax.jit`, `torch.compile`, ...).

        In a trace it could run once or in every call, depending on the backend, and the values that it keeps would
        belong to the trace.
        """
        if self.is_tracing() or is_apart():
            self.refuse(function)

    def refuse_in_dynamo(self, function: str) -> None:
        """Raises if `torch.compile` compiles the caller: dynamo would trace the block, too, on which it crashes."""
        if self.in_dynamo() or is_apart():
            self.refuse(function)

    def refuse(self, function: str) -> None:
        """Raises the error of the two functions above."""
        raise UnsupportedError(
            f"{function} cannot be called inside a function that is being traced or compiled",
            notes=[
                "kpatch.edit works there, and returns a new tensor",
                "a layer (kpatch.layers.ScatterLayer) or kpatch.rewrite edits in each call of a model",
                "kpatch.hold and kpatch.callbacks.PatchCallback edit weights while a model trains",
            ],
        )

    def in_dynamo(self) -> bool:
        """Whether dynamo is tracing the caller for `torch.compile` or `torch.export`."""
        return False

    def known_length(self, length) -> Any:
        """The length of an axis; `None` if it is a symbol of an export."""
        return length

    def holds(self, condition) -> bool | None:
        """The truth of `condition()`, a condition on lengths; `None` if it is known only when the graph runs."""
        return None

    def require(self, holds, message: str) -> None:
        """Adds an assertion to the graph that the boolean tensor is all true, if the backend can."""
        return

    def present(self, variable) -> Any:
        """The tensor that a variable holds; in a graph, at the time that the graph runs."""
        return self.tensor_of(variable)

    def records_gradients(self) -> bool:
        """Whether a tensor may have a gradient, though nothing tells it: a tape records."""
        return False

    def cell(self, value: np.ndarray) -> Cell:
        """A `Cell` with a value."""
        return Cell(self.ops.convert_to_tensor, value)

    def hand_out(self, take, x) -> Any:
        """Calls `take` with a tensor; in a graph with its values, each time that the graph runs, in order.

        Returns:
            The tensor with which the graph goes on.
        """
        take(x)
        return x

    def outside_graphs(self, function) -> Any:
        """The function, not traced by dynamo: its calls break the graph, and run between its parts."""
        return function

    def distinguish(self, key: tuple[int, ...]) -> bool:
        """Has every compiled function keep a trace for each key; from now on, traces of this key count.

        `False` if the backend cannot, and nothing has changed.
        """
        return False

    def undistinguished(self) -> AbstractContextManager:
        """A context in which traces of the empty key count, in this thread."""
        return nullcontext()

    def finish(self) -> None:
        """Waits until all graphs that run have handed out their values."""
        return

    def nbytes(self, x) -> int:
        """How many bytes the values of a tensor take."""
        return x.nbytes

    def snapshot(self, x) -> Any:
        """A tensor with the values of `x`, which keeps them when the memory of `x` is written in place."""
        return x

    def exported(self, call, values, free, using) -> Any:
        """The result of `call(*values)`; in an export by Keras, an error if the file would be invalid, or compute else.

        Args:
            call: a function of tensors.
            values: its tensors.
            free: the axes of the first one whose lengths are not known in the model.
            using: `backends.using`.
        """
        return call(*values)

    # -- dtypes --------------------------------------------------------------------------------------------------------

    def refusal(self, dtype: str) -> str | None:
        """Why the backend cannot compute in a dtype, as a sentence; `None` if it can."""
        return None

    def narrows(self, dtype: str) -> bool:
        """Whether the backend converts arrays of this 64-bit dtype to 32-bit tensors."""
        return False

    def wide(self, name: str, dtype: str) -> Any:
        """The backend's own function `name` for a 64-bit dtype, which `keras.ops` narrows; or `None`."""
        return None

    def keeps_scalars(self) -> bool:
        """Whether scalar tensors are cached, which pays if creating one is slow."""
        return False

    def untraced(self) -> AbstractContextManager:
        """A context in which new tensors have known values, even in a trace."""
        return nullcontext()

    def bits(self, x, dtype: str) -> Any:
        """The same memory in another dtype of that width, also of unknown lengths."""
        return self.ops.view(x, dtype)

    def reads_bits(self) -> bool:
        """Whether `bits` works in the current context: not in a graph for a format that has no such operation."""
        return True

    def erfc(self, x) -> Any:
        """`1 - erf(x)`, with all digits where the backend has that function."""
        return 1 - self.ops.erf(x)

    def power(self, x, y) -> Any:
        """`x` to the power of `y`, of floats of one dtype."""
        return x**y

    def floor_divide(self, x, y) -> Any:
        """The quotient of integers of one dtype, rounded down."""
        return x // y

    def remainder(self, x, y) -> Any:
        """The remainder of tensors of one dtype, by the quotient rounded down."""
        return x % y

    def equal(self, x, y) -> Any:
        """Where tensors of one dtype are equal, exactly; of a rank that is known also if lengths are not."""
        return x == y

    def ordered(self, compare, x, y) -> Any:
        """Where `compare`, one of `operator`'s `lt`, `le`, `gt` and `ge`, holds of tensors of one dtype."""
        return compare(x, y)

    # -- along the middle axis of three --------------------------------------------------------------------------------

    def first_best(self, how: str, x) -> Any:
        """The index of the first NaN, else of the first largest (`how` is "max") or smallest ("min") entry.

        `None` if the backend's function has other rules for NaN, for ties, or for −0 and 0.
        """
        return None

    def sort(self, x, dtype: str) -> Any:
        """The entries in ascending order, stable, NaN last; or `None`."""
        return None

    def order(self, x) -> Any:
        """The indices of the ascending order, stable, as int32."""
        return self.ops.cast(self.ops.argsort(x, axis=1), "int32")

    def smallest_at(self, x, places) -> Any:
        """The entries at `places` of the sorted last axis, NaN last; or `None`.

        The order of −0 and 0 is unspecified, so that algorithms faster than sorting can be used.
        """
        return None

    def largest_in_segments(self, values, segments, count) -> Any:
        """The largest of the int32 values of each segment; a negative number for an empty segment."""
        return self.ops.segment_max(values, segments, num_segments=count)

    def move_axes(self, x, source, destination) -> Any:
        """`ops.moveaxis`, correct on every backend."""
        return self.ops.moveaxis(x, source, destination)

    def where(self, mask, x, y) -> Any:
        """The entries of `x` where the mask is true, else of `y`; both have one dtype, which is kept."""
        return self.ops.where(mask, x, y)

    # -- slices replaced in a new tensor -------------------------------------------------------------------------------

    def replaces_slices(self) -> bool:
        """Whether `replace_slices` works in the current context; else the caller uses `where`."""
        return False

    def replace_slices(self, tensor, starts, counts, values) -> Any:
        """A new tensor with `counts` entries from `starts` on replaced on each axis; values broadcast to them."""
        return self.ops.slice_update(self.ops.copy(tensor), starts, self.ops.broadcast_to(values, counts))

    def takes_numbers(self, dtype) -> bool:
        """Whether `replace_slices` takes every number of this NumPy dtype as a Python number.

        It should if the backend then creates no tensor of the number.
        """
        return False


def unpacked(selection, values):
    """A selection and values to write, without a `PackedMask`: a `Mask`, and an array of its shape."""
    if type(selection) is not PackedMask:
        return selection, values
    mask = selection.mask
    whole = np.zeros(mask.shape, values.dtype)
    whole[mask] = values
    return Mask(mask, mask.shape), whole


def intervals(starts, counts):
    """The slices of `counts` entries from `starts` on."""
    return tuple(slice(start, start + count) for start, count in zip(starts, counts, strict=True))
