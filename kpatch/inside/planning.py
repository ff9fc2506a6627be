"""The plan of a patch that edits activations: what `intervene` would do, as far as it is known without a call."""

from typing import Any

from kpatch.inside.intervening import Calls
from kpatch.inside.splitting import Split
from kpatch.names.attention import SIDES
from kpatch.names.tree import ACTIVATIONS
from kpatch.run import checking, live
from kpatch.run.plan import Plan, Row, text_in
from kpatch.syntax import Patch, ast

NAMES = {*ACTIVATIONS, *SIDES}


def may_edit_activations(patch: Patch) -> bool:
    """Whether a target has a part that is the name of an activation, or of a variable that is called so."""
    targets = [node for statement in patch.statements for node in ast.walk(statement) if type(node) is ast.Target]
    found = [each for target in targets if isinstance(target.selector, ast.Selector) for each in ast.walk(target)]
    return any(type(node) is ast.Name and not NAMES.isdisjoint(node.value.split("/")) for node in found)


def plan(model: Any, patch: Patch, bindings: dict[str, Any], expect: int | None) -> Plan:
    """The `Plan` of a patch of weights and activations."""
    split = Split(model, patch, bindings, expect)
    calls = Calls(split)
    checked = checking.check(model, *split.weights_patch())
    rows = []
    for part, (spec, counts) in calls.known:
        shape, dtype = (None, None) if spec is None else spec
        for statement, count in zip(part.edits, counts, strict=True):
            rows.append((statement, Row(text_in(statement, split.patch), part.path, shape, dtype, count)))
    return Plan(split.patch, checked.steps, live.counts(checked), tuple(rows))
