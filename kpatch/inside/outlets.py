"""Recordings of one form, of the same activations of a model: what is compiled in a block serves all later ones.

Compiled functions hand out activations to the outlet of the form, and that passes them on to the recording under way.
Blocks of one form that last at the same time have an outlet each.
"""

import contextlib
import threading
from collections import OrderedDict
from typing import Any

from kpatch.inside.traces import Traces

KEPT = 64  # forms of a model, the latest: its layers can be recorded in turn

_taking = threading.Lock()


class Outlet:
    """Where compiled functions hand out activations. They keep it for good, so it must not lead to the model.

    Attributes:
        recorder: what the activations go to; `None` if there is no block.
    """

    def __init__(self) -> None:
        self.recorder: Any = None

    def take(self, *handed: Any) -> None:
        """Passes an activation on. A graph may call this after the block, if somebody keeps the graph."""
        recorder = self.recorder
        if recorder is not None:
            recorder.take(*handed)


class Line:
    """Blocks of one form, one after the other.

    Attributes:
        busy: whether a block lasts.
        spoiled: whether a function may have been compiled in part without the block; then there are no more of them.
    """

    def __init__(self, index: Any, layers: list[Any]) -> None:
        self.outlet = Outlet()
        self.traces = Traces(index, layers)
        self.busy = False
        self.spoiled = False


def line_of(index: Any, form: tuple, layers: list[Any], stack: contextlib.ExitStack) -> Line:
    """A line of a form for a block, which has it until the stack closes."""
    with _taking:
        forms: OrderedDict[tuple, list[Line]] = vars(index).setdefault("recordings", OrderedDict())
        lines = forms.setdefault(form, [])
        forms.move_to_end(form)
        while len(forms) > KEPT:
            for line in forms.popitem(last=False)[1]:
                line.traces.spend()
        free = [each for each in lines if not each.busy]
        for spoiled in [each for each in free if each.spoiled]:
            lines.remove(spoiled)
            spoiled.traces.spend()
        line = next((each for each in free if not each.spoiled), None) or Line(index, layers)
        if line not in lines:
            lines.append(line)
        stack.callback(setattr, line, "busy", False)
        line.busy = True
    return line
