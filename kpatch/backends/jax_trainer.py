"""Values that Keras's trainer on jax takes out of variables for a step: they come back before an error leaves the step.

Before a step of `fit`, `evaluate` or `predict` the trainer empties the variables of its model. If the step cannot be
traced, they stay empty. Which model is trained, and the values, only the trainer's calls know that are under way.
"""

import sys
from types import FrameType
from typing import Any

import jax

TRAINER = "keras.src.backend.jax.trainer"
KINDS = {  # what a state holds, by the number of its lists: of `fit`, `evaluate` and `predict`
    4: ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables"),
    3: ("trainable_variables", "non_trainable_variables", "metrics_variables"),
    2: ("trainable_variables", "non_trainable_variables"),
}


def rescue() -> None:
    """Puts the values back, in the models of all steps that are under way in this thread."""
    state: Any = None  # the latest one, which is that of the innermost call
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == TRAINER:
            calls = frame.f_locals
            state = state or _known(calls.get("state"))
            if state is not None and hasattr(model := calls.get("self"), "_get_jax_state"):
                _put_back(model, state)
                state = None
        frame = frame.f_back


def _known(state: Any) -> Any:
    """The state if it has values; those of a trace have none."""
    if not isinstance(state, tuple) or len(state) not in KINDS:
        return None
    values = [value for each in state for value in each or ()]
    return state if not any(isinstance(value, jax.core.Tracer) for value in values) else None


def _put_back(model: Any, state: tuple) -> None:
    model._jax_state = None  # Keras would write that of an earlier step
    for kind, values in zip(KINDS[len(state)], state, strict=True):
        variables = model.optimizer.variables if kind == "optimizer_variables" else getattr(model, kind)
        for variable, value in zip(variables, values or (), strict=False):
            if variable._value is None and not value.is_deleted():
                variable._value = value
