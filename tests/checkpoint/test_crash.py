"""Each way of writing is killed once; `python tests/checkpoint/crash.py DIRECTORY COUNT` does it many times."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import scenes

SAMPLE = [name for name in scenes.names() if "safetensors" in name or name.endswith((" journal", " copy-journal"))]


@pytest.mark.backend_free
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are killed that are forks")
def test_a_command_that_is_killed_is_done_or_not_done():
    """`KPATCH_KILLS=100` kills each command at each call to the system that writes, and at 100 random moments."""
    root, count = Path(__file__).parents[1], os.environ.get("KPATCH_KILLS", "0")
    environment = {**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": f"{root.parent}{os.pathsep}{root}"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync takes no time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        code = [sys.executable, str(Path(__file__).with_name("crash.py")), folder, count]
        code += SAMPLE if count == "0" else []
        ran = subprocess.run(code, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout.split()[-2]) > 20
