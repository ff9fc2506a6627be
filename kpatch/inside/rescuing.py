"""Values of variables that Keras's trainer on jax holds for a step: they come back if a patch fails in that step.

Before a step of `predict`, `evaluate` or `fit` it empties the variables. If the step cannot be traced, they stay empty.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from kpatch.inside.calls import patch_method

TAKES = "_get_jax_state"  # the trainer's method that empties the variables
KINDS = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


class Rescue:
    """What the trainers of models among `layers` took out of variables, until the stack closes; a call puts it back."""

    def __init__(self, layers: list[Any], stack: contextlib.ExitStack) -> None:
        self._taken: list[tuple[Any, dict[str, list[Any]]]] = []
        for model in layers:
            if hasattr(model, TAKES):
                state: dict[str, list[Any]] = {}
                self._taken.append((model, state))
                patch_method(model, TAKES, functools.partial(self._take, model, state), stack)

    @staticmethod
    def _take(model: Any, state: dict[str, list[Any]], take: Callable, **wanted: Any) -> Any:
        model._jax_state = None  # of an earlier run
        values = take(**wanted)
        state.update(zip([kind for kind in KINDS if wanted.get(kind)], values, strict=True))
        return values

    def __call__(self) -> None:
        for model, taken in self._taken:
            latest = {**taken, **(getattr(model, "_jax_state", None) or {})}  # the latter after the first step
            for kind, values in latest.items():
                variables = model.optimizer.variables if kind == KINDS[2] else getattr(model, kind)
                for variable, value in zip(variables, values or (), strict=False):
                    if variable._value is None and not value.is_deleted():
                        variable._value = value
