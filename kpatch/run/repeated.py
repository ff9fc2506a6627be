"""`ModelPlan`: a plan that is kept is run again and again, without looking at the rest of the model."""

from dataclasses import dataclass, field
from typing import Any

from kpatch import backends
from kpatch.errors import ResolutionError
from kpatch.names.links import Links
from kpatch.run import checking, live
from kpatch.run.plan import Plan
from kpatch.run.steps import Checked
from kpatch.run.undo import AppliedPatch
from kpatch.syntax import Patch


@dataclass(frozen=True, eq=False, repr=False)
class ModelPlan(Plan):
    """A `Plan` of edits of a model's variables, which can make them.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> plan = kpatch.plan(model, "dense_1.bias += 1")
        >>> edits = [plan.apply() for _ in range(3)]
        >>> model.get_weights()[1].tolist()
        [3.0, 3.0, 3.0]
        >>> edits[-1].undo()
        >>> model.get_weights()[1].tolist()
        [2.0, 2.0, 2.0]
    """

    repeated: "Repeated" = field(kw_only=True)

    def apply(self, *, donate: bool = True, undo: bool = True) -> AppliedPatch:
        """Makes the edits, once more at each call: `kpatch.apply` without what it looks up each time.

        It edits the variables that the plan found, as long as the model holds them, and looks at nothing else of the
        model, so that the time does not grow with it. Values are those of now, also in indices.

        Args:
            donate, undo: as for `kpatch.apply`.

        Returns:
            An `AppliedPatch`.

        Raises:
            ResolutionError: the model has changed, and the patch means other variables than those of this plan.
            UnsupportedError: inside a function that is being traced.
            PatchError: as `kpatch.apply`, with every variable bitwise as it was.
        """
        return self.repeated.apply(donate, undo)


def plan(target: Any, patch: Patch, bindings: dict[str, Any], expect: int | None) -> ModelPlan:
    """The plan of a patch for what `kpatch.apply` edits."""
    checked = checking.check_all(target, patch, bindings, expect)
    counts = live.counts(checked)
    return ModelPlan(checked.patch, checked.steps, counts, repeated=Repeated(target, patch, bindings, checked))


class Repeated:
    """The edits of a plan.

    Args:
        target: what `kpatch.plan` was given.
        checked: the patch, checked against it just now.
    """

    def __init__(self, target: Any, patch: Patch, bindings: dict[str, Any], checked: Checked) -> None:
        self._given = target, patch, bindings
        self._keep(checked)

    def _keep(self, checked: Checked) -> None:
        self._checked = checked
        self._links = Links(place.entry for place in checked.names.named)

    def apply(self, donate: bool, undo: bool) -> AppliedPatch:
        backends.current().refuse_traces("Plan.apply")
        if not self._links.hold():
            self._check_anew()
        run = live.apply_with_bar if self._checked.lasts else live.apply
        return run(self._checked, donate, undo)

    def _check_anew(self) -> None:
        """Checks the patch as if it were new; it must mean the same variables."""
        checked = checking.check_all(*self._given)
        then, now = ([step.place for step in each.edits] for each in (self._checked, checked))
        if [id(place.variable) for place in then] != [id(place.variable) for place in now]:
            raise ResolutionError(
                "the model has changed since this plan was made: its names mean other variables now",
                notes=["make a new plan: kpatch.plan(model, patch)"],
            )
        self._keep(checked)
