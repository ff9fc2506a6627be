"""A constraint that holds a patch, and keeps to it what an optimizer would bring back: the average that EMA makes."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpatch.errors import boundary, of_backend

try:
    import keras
except ModuleNotFoundError as error:
    raise of_backend(error) from None

from kpatch import backends
from kpatch.backends.base import Cell
from kpatch.inside.tensor_patch import TensorPatch
from kpatch.names.patches import PatchLike
from kpatch.syntax import parse
from kpatch.values import widths
from kpatch.values.tensors import of_variable

HELD = "_ = where($mask, $held, _)"  # what `hold` makes
_OPEN = TensorPatch(HELD, None, "a PatchConstraint")


@keras.saving.register_keras_serializable(package="kpatch")
class PatchConstraint(keras.constraints.Constraint):
    """Edits a weight after each step of training.

    An optimizer with `use_ema` overwrites weights by their moving average, also after the last step, when constraints
    no longer run. So the average itself is edited too, at each step.

    Args:
        patch: a text, or what else `kpatch.apply` takes; every target is `_`.
        bindings: the values of the patch's `$names`.
        base: another constraint, which comes first, or its name.

    Example:
        >>> import keras, kpatch.constraints
        >>> constraint = kpatch.constraints.PatchConstraint("_[abs(_) < 1e-3] = 0")
        >>> keras.ops.convert_to_numpy(constraint(keras.ops.convert_to_tensor([1.0, 1e-4]))).tolist()
        [1.0, 0.0]
        >>> layer = keras.layers.Dense(3, kernel_constraint=constraint)
    """

    @boundary
    def __init__(
        self,
        patch: PatchLike,
        bindings: Mapping[str, Any] | None = None,
        base: "str | keras.constraints.Constraint | None" = None,
    ) -> None:
        self.patch = TensorPatch(patch, bindings, "a PatchConstraint")
        self.patch.refuse_free()
        self.base = keras.constraints.get(base)
        self._kept = kept_by(self.patch)
        self._cells: tuple[Cell, Cell] | None = None  # a mask and values that change

    @classmethod
    def growing(cls, mask: np.ndarray, held: np.ndarray) -> "PatchConstraint":
        """A constraint that holds entries; `put` changes which, also for functions that are compiled."""
        made = cls(HELD, {"mask": mask, "held": held})
        cell = backends.current().cell
        made._cells = cell(mask), cell(held)
        return made

    def put(self, mask: np.ndarray, held: np.ndarray) -> None:
        """Holds other entries. Constraints that were made by `on` see it too, as they share the cells."""
        self.patch.bindings.update(mask=mask, held=held)
        for cell, array in zip(self._cells or (), (mask, held), strict=True):
            cell.put(array)

    def on(self, base: "keras.constraints.Constraint | None") -> "PatchConstraint":
        """The same constraint on top of another one, which comes first, or of `None`."""
        made = copy.copy(self)
        made.base = base
        return made

    def taken_from(self, constraint: Any) -> Any:
        """What is left of a constraint, with others on top of others, without this one."""
        if constraint is self:
            return self.base
        above = constraint
        while isinstance(above, PatchConstraint):
            if above.base is self:
                above.base = self.base
            above = above.base
        return constraint

    def __call__(self, w: Any) -> Any:
        optimizer = optimizer_at_work() if isinstance(w, keras.Variable) else None
        if optimizer is None:
            return self._edited(w)
        average = average_of(w, optimizer)
        if average is not None:
            average.assign(self._stepped(average))
        return self._stepped(w)

    def _edited(self, w: Any) -> Any:
        if self._cells is None:
            return self.patch.run((), self._based(w))
        return _OPEN.run(_OPEN.free, self._based(w), *[cell.get() for cell in self._cells])

    def _based(self, w: Any) -> Any:
        value = of_variable(w) if isinstance(w, keras.Variable) else widths.as_tensor(w)
        return value if self.base is None else self.base(value)

    def _stepped(self, variable: Any) -> Any:
        """What the optimizer assigns a variable: its own tensor, where that can be written without a copy."""
        if self._kept is None or self._cells is not None or not self._kept.suits(variable):
            return self._edited(variable)
        if self.base is not None:
            variable.assign(self._based(variable))
        self._kept.write(variable)
        return variable.value

    def get_config(self) -> dict[str, Any]:
        base = None if self.base is None else keras.constraints.serialize(self.base)
        return {**self.patch.get_config(), "base": base}


def kept_by(patch: TensorPatch) -> Any:
    """The entries that a `TensorPatch` holds, if it is what `hold` makes and they can be written in place."""
    if patch.patch != parse(HELD):
        return None
    return backends.current().kept(patch.bindings["mask"], patch.bindings["held"])


def optimizer_at_work() -> "keras.optimizers.Optimizer | None":
    """The optimizer that applies gradients at this moment, or `None`.

    Keras hands a constraint the variable alone. The optimizer is the caller of the innermost name scope, in which it
    applies gradients.
    """
    from keras.src.backend.common import global_state

    scopes = global_state.get_global_attribute("name_scope_stack") or ()
    callers = (getattr(scope, "caller", None) for scope in reversed(scopes))
    return next((caller for caller in callers if isinstance(caller, keras.optimizers.Optimizer)), None)


def average_of(variable: Any, optimizer: Any) -> Any:
    """The moving average that an optimizer keeps of a variable, or `None`."""
    if not optimizer.use_ema:
        return None
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]
