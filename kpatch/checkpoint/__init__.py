"""Weights on disk: a patch applied to a file without loading the model, and the patch between two files.

`apply` edits a `.keras`, `.weights.h5`, `.weights.json` or `.safetensors`, `plan` says what it would do, `open` lists
and reads, `diff` makes the patch that leads from one to another, and `undo` takes an edit back.
"""

from kpatch.checkpoint.comparing import Diff, diff
from kpatch.checkpoint.edits import Applied, apply, plan, undo
from kpatch.checkpoint.opened import Checkpoint

__all__ = ["Applied", "Checkpoint", "Diff", "apply", "diff", "open", "plan", "undo"]

open = Checkpoint  # noqa: A001
