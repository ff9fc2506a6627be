"""A callback that applies patches while a model trains."""

import reprlib
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import keras

from kpatch.errors import BindingError
from kpatch.inside.holding import written
from kpatch.names.patches import PatchLike, as_patch, bound, together
from kpatch.run import checking, live
from kpatch.run.resetting import KEEP, RESET, optimizers_for
from kpatch.run.steps import Checked
from kpatch.syntax import Patch

MOMENTS = ("epoch_begin", "epoch_end", "batch_end")
SLOTS = (KEEP, RESET)


class PatchCallback(keras.callbacks.Callback):
    """Applies patches at given epochs or steps of `fit`.

    All are checked before the first step. How many entries were written is logged as `patched_entries`.

    Args:
        patches: `{number: patch}`: of the epoch, or with `on="batch_end"` of the step, counted from 0.
        on: `"epoch_begin"`, `"epoch_end"` or `"batch_end"`.
        slots: what becomes of the optimizer's variables for the entries written (momentum, variance): `"keep"`, or
            `"reset"` to what they start from; a moving average then starts from the new value.
        bindings: the values of the patches' `$names`; each patch gets those that it names.
        expect: how many variables each patch must match; another number is an error.

    Example:
        >>> import keras, kpatch.callbacks
        >>> callback = kpatch.callbacks.PatchCallback({0: "dense_1.bias = 0"}, slots="reset")
    """

    def __init__(
        self,
        patches: Mapping[int, PatchLike],
        on: str = "epoch_end",
        slots: str = "keep",
        bindings: Mapping[str, Any] | None = None,
        expect: int | None = None,
    ) -> None:
        super().__init__()
        if on not in MOMENTS:
            raise ValueError(f"Argument `on` must be one of {MOMENTS}. Received: on={on!r}")
        if slots not in SLOTS:
            raise ValueError(f"Argument `slots` must be one of {SLOTS}. Received: slots={slots!r}")
        given: Any = patches
        if not isinstance(given, Mapping) or not all(isinstance(number, Integral) for number in given):
            raise BindingError(
                f'a PatchCallback takes {{number: patch}}, as in PatchCallback({{0: "head.bias = 0"}}); the number is '
                f"that of the epoch or step. Received: patches={reprlib.repr(patches)}"
            )
        self.patches = {number: as_patch(patch) for number, patch in patches.items()}
        self.on = on
        self.slots = slots
        self.bindings = together(bindings, {})
        self.expect = expect
        self._step = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._step = 0
        for patch in self.patches.values():
            self._checked(patch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._apply("epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._apply("epoch_end", epoch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._apply("batch_end", self._step, logs)
        self._step += 1

    def _checked(self, patch: Patch) -> Checked:
        from kpatch.inside.splitting import bindings_of

        return checking.check(self.model, *bound(patch, bindings_of(patch, self.bindings)), self.expect)

    def _apply(self, moment: str, number: int, logs: dict[str, Any] | None) -> None:
        if moment != self.on:
            return
        entries = 0
        if number in self.patches:
            optimizers = optimizers_for(self.slots, [self.model])
            masks = written(live.apply(self._checked(self.patches[number]), optimizers=optimizers))
            entries = sum(int(mask.sum()) for _, mask in masks)
        if logs is not None:
            logs["patched_entries"] = entries
