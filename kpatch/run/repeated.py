"""`Plan.apply`: a plan that is kept is run again and again, without looking at the rest of the model."""

from typing import Any

from kpatch import backends
from kpatch.errors import ResolutionError
from kpatch.names.links import Links
from kpatch.run import checking, live
from kpatch.run.steps import Checked
from kpatch.run.undo import AppliedPatch
from kpatch.syntax import Patch


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
        return live.apply(self._checked, donate, undo)

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
