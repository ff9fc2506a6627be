"""kpatch: a backend-agnostic edit language for Keras 3.

`parse` text into a `Patch`, `plan` it against a model, `apply` it in place, or `edit` one tensor purely. `rewrite`
puts it into a model's graph, `intervene` into its calls, `hold` keeps it through training. What extends Keras's own
namespaces is in `kpatch.layers`, `kpatch.initializers`, `kpatch.constraints` and `kpatch.callbacks`; to load a file
that holds such objects, import the module first. `checkpoint` does the same to files, and `diff` makes the patch
between two.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kpatch import checkpoint
from kpatch.api import apply, edit, plan
from kpatch.checkpoint import diff
from kpatch.checkpoint.listing import Listing, show
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
    of_backend,
)
from kpatch.inside.holding import Hold, hold
from kpatch.inside.intervening import Intervention, intervene
from kpatch.inside.recording import Recording, record
from kpatch.inside.rewriting import rewrite
from kpatch.inside.sweeping import Sweep, sweep
from kpatch.names.patches import load
from kpatch.run.plan import Plan
from kpatch.run.undo import AppliedPatch
from kpatch.syntax import Patch, parse

__version__ = "0.2.0"
EXTENSIONS = ("callbacks", "constraints", "initializers", "layers")  # they extend Keras's modules, and import it

__all__ = [
    "AppliedPatch",
    "BindingError",
    "DTypeError",
    "ExecutionError",
    "FileError",
    "FunctionError",
    "Hold",
    "Intervention",
    "LimitError",
    "Listing",
    "Patch",
    "PatchAssertionError",
    "PatchError",
    "PatchSyntaxError",
    "Plan",
    "Recording",
    "ResolutionError",
    "ShapeError",
    "SubscriptError",
    "Sweep",
    "UndoError",
    "UnsupportedError",
    "apply",
    "checkpoint",
    "diff",
    "edit",
    "hold",
    "intervene",
    "load",
    "parse",
    "plan",
    "record",
    "rewrite",
    "show",
    "sweep",
]


if TYPE_CHECKING:
    from kpatch import callbacks as callbacks
    from kpatch import constraints as constraints
    from kpatch import initializers as initializers
    from kpatch import layers as layers


def __getattr__(name: str) -> Any:
    """The modules that load Keras, when they are first asked for."""
    if name in EXTENSIONS:
        try:
            return importlib.import_module(f"kpatch.{name}")
        except ModuleNotFoundError as error:
            raise of_backend(error) from None
    raise AttributeError(f"module 'kpatch' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *EXTENSIONS})
