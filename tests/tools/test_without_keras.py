"""Commands on files leave Keras alone, unless a patch computes something that only Keras can."""

import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.backend_free

FILE = {
    "conv1.kernel": np.linspace(-1, 1, 72, dtype="float32").reshape(3, 3, 1, 8),
    "conv1.bias": np.arange(8, dtype="float32"),
    "steps": np.arange(4),
}
PATCH = """
assert shape(conv1.kernel) == [3, 3, 1, 8]
let m = mean(conv1.kernel)
conv1.kernel[..., 3] = 0
conv1.kernel *= 0.5
conv1.kernel[abs(_) < quantile(abs(_), 0.25)] = 0
conv1.kernel[:, ::-1, 0, [1, 0]] = where(_ > m, clip(_, -0.2, 0.2), exp(_) ** 2 // 0.3)
conv1.bias -= mean(_) + std(_) * max(_)
conv1.bias[argmax(_)] = cast(sum(steps), "float32")
steps[_ % 2 == 0] += 10
"""
COMMANDS = f"""
import sys
from kpatch.tools.command_line import main

for command in (
    ["show", "a.safetensors"],
    ["show", "a.safetensors", "conv1", "--stats"],
    ["apply", "a.safetensors", "-e", {PATCH!r}, "-o", "b.safetensors"],
    ["apply", "a.safetensors", "-e", {PATCH!r}, "--dry-run"],
    ["apply", "a.safetensors", "-e", "conv1.bias[:2] = $v", "--bind", "v=[1, 2]", "--in-place", "--journal"],
    ["undo", "a.safetensors"],
    ["diff", "a.safetensors", "b.safetensors", "--summary"],
    ["show", "a.safetensors", "conv1.kernal", "--json"],
    ["apply", "a.safetensors", "-e", "conv1.kernal = 0", "--dry-run", "--json"],
):
    main(command, standalone_mode=False)
    assert "keras" not in sys.modules, command
"""
MERGE = """
import os, sys

os.environ["KERAS_BACKEND"] = "numpy"
import kpatch

given = {"b": kpatch.checkpoint.open("b.safetensors")}
patch = "*.kernel = 0.75 * _ + 0.25 * $b._; steps = $b._"
kpatch.checkpoint.apply("a.safetensors", patch, "c.safetensors", bindings=given)
assert "keras" not in sys.modules
"""


def run(code, directory):
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)


def test_commands_do_not_load_keras(tmp_path):
    save_file(FILE, tmp_path / "a.safetensors")
    run(COMMANDS + MERGE.replace("import os, sys", "import os"), tmp_path)
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a.keys() == FILE.keys()
    assert all(np.array_equal(a[name], FILE[name]) for name in FILE)
    assert b["steps"].tolist() == [10, 1, 12, 3]
    expected = np.float32(0.75) * a["conv1.kernel"] + np.float32(0.25) * b["conv1.kernel"]
    assert np.array_equal(c["conv1.kernel"], expected)
