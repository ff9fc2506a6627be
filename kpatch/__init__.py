"""kpatch: a backend-agnostic edit language for Keras 3.

`parse` text into a `Patch`, `plan` it against a model, `apply` it in place, or `edit` one tensor purely. `checkpoint`
does the same to files, and `diff` makes the patch between two.
"""

from kpatch import checkpoint
from kpatch.api import apply, edit, plan
from kpatch.checkpoint import diff
from kpatch.errors import (
    BindingError,
    DTypeError,
    ExecutionError,
    FileError,
    FunctionError,
    LimitError,
    PatchAssertionError,
    PatchError,
    PatchSyntaxError,
    ResolutionError,
    ShapeError,
    SubscriptError,
    UndoError,
    UnsupportedError,
)
from kpatch.execute import AppliedPatch
from kpatch.planner import Plan
from kpatch.syntax import Patch, parse

__version__ = "0.1.0"

__all__ = [
    "AppliedPatch",
    "BindingError",
    "DTypeError",
    "ExecutionError",
    "FileError",
    "FunctionError",
    "LimitError",
    "Patch",
    "PatchAssertionError",
    "PatchError",
    "PatchSyntaxError",
    "Plan",
    "ResolutionError",
    "ShapeError",
    "SubscriptError",
    "UndoError",
    "UnsupportedError",
    "apply",
    "checkpoint",
    "diff",
    "edit",
    "parse",
    "plan",
]
