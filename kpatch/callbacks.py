"""A callback that applies patches while a model trains."""

import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from kpatch.errors import BindingError, boundary, of_backend

try:
    import keras
except ModuleNotFoundError as error:
    raise of_backend(error) from None

from kpatch.inside.holding import GrowingHold, Hold, written
from kpatch.names.patches import PatchLike, as_patch, bound, together
from kpatch.run import checking, live
from kpatch.run.resetting import KEEP, RESET, optimizers_for
from kpatch.run.steps import Checked
from kpatch.syntax import Patch, ast
from kpatch.values.tensors import to_numpy

MOMENTS = ("epoch_begin", "epoch_end", "batch_end")
SLOTS = (KEEP, RESET)
MANY = 2**63 - 1  # epochs, or steps, of a `fit` that does not say how many

Numbers = int | range


class PatchCallback(keras.callbacks.Callback):
    """Applies patches at given epochs or steps of `fit`.

    All are checked before the first step. How many entries were written is logged as `patched_entries`.

    Args:
        patches: a patch for every epoch, or with `on="batch_end"` for every step; or `{number: patch}`, of the epoch or
            step, counted from 0. A number may be a `range` of them. With `steps_per_execution` a patch comes after the
            steps that run together with its own.
        on: `"epoch_begin"`, `"epoch_end"` or `"batch_end"`.
        slots: what becomes of the optimizer's variables for the entries written (momentum, variance): `"keep"`, or
            `"reset"` to what they start from; a moving average then starts from the new value.
        bindings: the values of the patches' `$names`; each patch gets those that it names. A function of the number is
            called for each, and once before, for the check; so is a schedule of `keras.optimizers.schedules`. `$epoch`
            and `$step` are bound.
        expect: how many variables each patch must match; another number is an error.
        every: a patch that is given alone runs at the numbers that this divides.
        hold: the entries that are written are held until `fit` ends (as by `kpatch.hold`), with nothing compiled anew.
            After an exception `callback.held.release()` ends that.

    Raises:
        PatchError: a patch is wrong, or does not fit the model; the latter when `fit` begins.

    Example:
        >>> import keras, kpatch.callbacks
        >>> callback = kpatch.callbacks.PatchCallback({0: "dense_1.bias = 0"}, slots="reset")
        >>> prune = kpatch.callbacks.PatchCallback(
        ...     "**.kernel[abs(_) < quantile(abs(_), $sparsity)] = 0",
        ...     bindings={"sparsity": keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.9, power=3)},
        ...     hold=True,
        ... )
    """

    patches: dict[Numbers, Patch]
    on: str
    slots: str
    bindings: dict[str, Any]
    expect: int | None
    hold: bool
    held: Hold | None
    _epoch: int
    _step: int
    _first: int
    _begun: bool

    @boundary
    def __init__(
        self,
        patches: PatchLike | Mapping[Numbers, PatchLike],
        on: str = "epoch_end",
        slots: str = "keep",
        bindings: Mapping[str, Any] | None = None,
        expect: int | None = None,
        *,
        every: int = 1,
        hold: bool = False,
    ) -> None:
        super().__init__()
        if on not in MOMENTS:
            raise ValueError(f"Argument `on` must be one of {MOMENTS}. Received: on={on!r}")
        if slots not in SLOTS:
            raise ValueError(f"Argument `slots` must be one of {SLOTS}. Received: slots={slots!r}")
        given: Any = every
        if not isinstance(given, Integral) or every < 1 or (isinstance(patches, Mapping) and every != 1):
            raise BindingError(f"every= is 1 or more, for a patch that is given alone. Received: every={every!r}")
        self.patches: dict[Numbers, Patch] = {
            numbers: as_patch(patch) for numbers, patch in _numbered(patches, every).items()
        }
        self.on = on
        self.slots = slots
        self.bindings = together(bindings, {})
        self.expect = expect
        self.hold = hold
        self.held = None
        self._reset()

    def _reset(self) -> None:
        self._epoch = self._step = self._first = 0  # `_first` is the first step of the epoch
        self._begun = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._reset()
        self._release()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._release()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch, self._first = epoch, self._step
        if not self._begun:
            self._begin()
        self._apply("epoch_begin", [epoch], logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._apply("epoch_end", [epoch], logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """`batch` is the last of the steps that ran together; of an epoch, whose last steps may be fewer."""
        length = (self.params or {}).get("steps") or batch + 1
        done = range(self._step, self._first + min(batch + 1, length))
        self._apply("batch_end", done, logs)
        self._step = done.stop

    def _begin(self) -> None:
        """Checks all patches, each for the first number that it runs at: `fit` may go on with a later epoch."""
        span = self._span()
        numbers = [_first(each, span.start) for each in self.patches]
        checked = [self._checked(patch, each) for patch, each in zip(self.patches.values(), numbers, strict=True)]
        if self.hold:
            places = {id(step.place.variable): step.place for each in checked for step in each.edits}
            self.held = GrowingHold(self.model, list(places.values()))
        if unreached := [number for number in numbers if number not in span]:
            self._warn_of_unreached(unreached[0], span)
        self._begun = True

    def _checked(self, patch: Patch, number: int) -> Checked:
        named = {node.name for node in ast.walk(patch) if type(node) is ast.Binding}
        given = {"epoch": self._epoch, "step": self._step, **self.bindings}
        if self.on == "batch_end":
            given["step"] = self.bindings.get("step", number)
        else:
            given["epoch"] = self.bindings.get("epoch", number)
        values = {name: _value(given[name], number) for name in named if name in given}
        return checking.check(self.model, *bound(patch, values), self.expect)

    def _apply(self, moment: str, numbers: Iterable[int], logs: dict[str, Any] | None) -> None:
        if moment != self.on:
            return
        entries = sum(self._run(patch, number) for number in numbers for patch in self._of(number))
        if logs is not None:
            logs["patched_entries"] = entries

    def _of(self, number: int) -> Iterator[Patch]:
        return (patch for numbers, patch in self.patches.items() if number in _range(numbers))

    def _run(self, patch: Patch, number: int) -> int:
        """Applies a patch. Returns how many entries it wrote."""
        optimizers = optimizers_for(self.slots, [self.model])
        applied = live.apply(self._checked(patch, number), optimizers=optimizers)
        masks = written(applied)
        if isinstance(self.held, GrowingHold):
            self.held.add(masks, applied)
        return sum(int(mask.sum()) for _, mask in masks)

    def _release(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            held.release()

    def _span(self) -> range:
        """The numbers of the epochs or steps of this `fit`. It may not say how many there are."""
        params = self.params or {}
        epochs = range(self._epoch, max(params.get("epochs") or MANY, self._epoch + 1))
        return epochs if self.on != "batch_end" else range(len(epochs) * (params.get("steps") or MANY))

    def _warn_of_unreached(self, number: int, span: range) -> None:
        unit = "step" if self.on == "batch_end" else "epoch"
        limit = f"begins with {span[0]}" if number < span[0] else f"ends with {span[-1]}"
        message = f"a PatchCallback has a patch for {unit} {number}, but this fit {limit}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _numbered(patches: Any, every: int) -> dict[Numbers, Any]:
    """The patches by their numbers."""
    if not isinstance(patches, Mapping):
        return {range(0, MANY, int(every)): patches}
    for number in patches:
        if not _counts(number):
            raise BindingError(
                'a PatchCallback takes a patch, or {number: patch}, as in {0: "head.bias = 0"}; the number is that of '
                f"the epoch or step, from 0 on, or a range of them. Received: patches={reprlib.repr(patches)}"
            )
    return dict(patches)


def _counts(given: Any) -> bool:
    """Whether a key stands for epochs or steps."""
    if isinstance(given, range):
        return bool(given) and min(given[0], given[-1]) >= 0
    return isinstance(given, Integral) and int(given) >= 0


def _range(numbers: Numbers) -> range:
    return numbers if isinstance(numbers, range) else range(numbers, numbers + 1)


def _first(numbers: Numbers, start: int = 0) -> int:
    """The first of the numbers from `start` on; if there is none, the last."""
    found = _range(numbers)
    found = found if found.step > 0 else found[::-1]
    left = found[max(0, -((found.start - start) // found.step)) :]
    return left[0] if left else found[-1]


def _value(given: Any, number: int) -> Any:
    """The value of a binding at a number. What a function gives of one entry is a number."""
    if not callable(given) or isinstance(given, keras.Layer):
        return given
    value = given(number)
    if keras.ops.is_tensor(value) or isinstance(value, (np.ndarray, np.generic)):
        array = to_numpy(value)
        return array.item() if array.ndim == 0 else array
    return value
