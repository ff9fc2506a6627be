"""Patches of weight files, without loading the model: `.keras`, `.weights.h5`, `.weights.json` and `.safetensors`.

* `apply` edits a file, `plan` shows what it would do, `undo` undoes an edit;
* `open` lists and reads the arrays;
* `diff` makes the patch from one file to another.
"""

from kpatch.checkpoint.comparing import Diff, diff
from kpatch.checkpoint.edits import Applied, apply, plan, undo
from kpatch.checkpoint.opened import Checkpoint

__all__ = ["Applied", "Checkpoint", "Diff", "apply", "diff", "open", "plan", "undo"]

open = Checkpoint  # noqa: A001
