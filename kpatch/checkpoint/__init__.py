"""Patches of weight files, without loading the model: `.keras`, `.weights.h5`, `.weights.json` and `.safetensors`.

* `apply` edits a file, `plan` shows what it would do, `undo` undoes an edit, `log` lists the edits that it can undo;
* `open` lists and reads the arrays;
* `diff` makes the patch from one file to another.
"""

from kpatch.checkpoint.comparing import Diff, diff
from kpatch.checkpoint.edits import Applied, Logged, apply, log, plan, undo
from kpatch.checkpoint.opened import Checkpoint

__all__ = ["Applied", "Checkpoint", "Diff", "Logged", "apply", "diff", "log", "open", "plan", "undo"]

open = Checkpoint  # noqa: A001
