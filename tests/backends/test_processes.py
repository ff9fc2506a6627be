"""A job of two processes on jax, each with two devices: edits of variables of which each process holds a part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import processes
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("jax's own", allow_module_level=True)

import kpatch

ANOTHER = (
    "the patch, or a value of its $names, is another one in process {}\n"
    "  all processes that hold a part of a variable apply the same patch, with the same values"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What each process saw, and the folder of their files."""
    folder = tmp_path_factory.mktemp("job")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    for name in ("shared", "alone0", "alone1"):
        model.save_weights(folder / f"{name}.weights.h5")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    command = [sys.executable, Path(__file__).with_name("processes.py")]
    started = [
        subprocess.Popen(
            [*command, str(number), str(port), folder],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"{number}.log", "w"),  # noqa: SIM115 (the process holds it)
        )
        for number in (0, 1)
    ]
    try:
        for each in started:
            each.wait(240)
    finally:
        for each in started:
            each.kill()
    logs = [(folder / f"{number}.log").read_text()[-4000:] for number in (0, 1)]
    assert [each.returncode for each in started] == [0, 0], logs
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)], folder


@pytest.fixture
def seen(job):
    return job[0]


@pytest.mark.parametrize("name", processes.EDITS)
def test_an_edit_does_in_every_process_what_it_does_in_one(seen, name):
    model = processes.small_model()
    expected, undone = processes.edited(model, processes.EDITS[name], lambda m: [w.numpy().tolist() for w in m.weights])
    assert undone
    for each in seen:
        assert each["edits"][name] == [expected, True]


def test_shards_stay_where_they_are(seen):
    for each in seen:
        assert each["sharding"] == each["sharding after"] == "P('batch', 'model')"
        assert each["in place"]
        assert each["held"] == [2, 2]


def test_copies_stay_alike(seen):
    for number, each in enumerate(seen):
        assert each["copies"] == {name: each["edits"][name] for name in ("points", "masks", "sums")}
        assert each["copies differ"] == ANOTHER.format(1 - number)


def test_processes_that_would_edit_otherwise_edit_nothing(seen):
    for number, each in enumerate(seen):
        for name in ("another text", "another value", "another option"):
            assert each[name] == ANOTHER.format(1 - number)
        assert each["afterwards"] == seen[0]["afterwards"]
    assert seen[0]["an error here alone"] == "no process applies the patch, as it is refused in process 1"
    assert seen[1]["an error here alone"] == "the patch matches 1 variable, not 2\n  b.bias (4,) float32"
    assert seen[0]["afterwards"][3] == [w.numpy().tolist() for w in processes.small_model().weights][3]


def test_what_is_looked_at_asks_nothing_of_others(seen):
    applied, plan, listed, write = seen[0]["looked at"]
    whole, row = applied.splitlines()[3:5]
    assert whole.count("in several processes") == 2
    assert "a.kernel[0] = 1" in row
    assert row.endswith("1 … 1, mean 1")
    assert [line.split()[-1] for line in plan.splitlines()[3:5]] == ["0", "?"]
    assert listed.splitlines()[3].split()[-3:] == ["-", "-", "-"]
    assert write == "SpreadWrite(statement='a.kernel *= 2', path='a.kernel', entries=96)"
    refused, after, told, drawn = seen[0]["values"]
    assert refused.splitlines()[0] == "the values of 'a.kernel' lie in several processes"
    assert after == [1] * 12
    known = {"statement": "a.kernel *= 2", "path": "a.kernel", "shape": [8, 12], "dtype": "float32", "entries": 96}
    assert told == {**known, "before": None, "after": None, "asked": None}
    assert drawn == "not drawn: the values of 'a.kernel' lie in several processes"
    assert seen[0]["compared"].splitlines()[0] == "the values of 'a.kernel' lie in several processes"


def test_calls(seen):
    model = processes.small_model()
    kpatch.apply(model, "a.kernel[0, 0] = 1; a.kernel[7, 0] = 1")
    x = np.ones((4, 8), "float32")
    hidden = keras.ops.convert_to_numpy(model.layers[0](x))
    before = keras.ops.convert_to_numpy(model(x))
    with kpatch.intervene(model, "a.output[:, 0] = 5; b.kernel *= 2"):
        inside = keras.ops.convert_to_numpy(model(x))
    for each in seen:
        assert each["calls"] == [values.tolist() for values in (hidden, before, inside, before, before)]
        assert each["pure"] == np.ravel(kpatch.edit(model.layers[0].kernel.value, "_[0] = 1")).tolist()


def test_training(seen):
    kernel = np.array(seen[0]["afterwards"][2])
    for each in seen:
        row, trained = each["held in fit"]
        assert row == [1] * 12
        assert np.array_equal(np.array(trained) == 0, abs(kernel) < 4)
        assert each["called in fit"] == 3
        assert each["recorded in fit"].splitlines()[0] == (
            "activations cannot be recorded in a function that is compiled for several devices"
        )
        assert each["after that"]


def test_a_file_is_edited_once(job):
    seen, folder = job
    path = folder / "shared.weights.h5"
    assert seen[0]["a file in place"].startswith("\n  statement")
    assert seen[1]["a file in place"] == (
        f"process 1 of this job does not edit '{path}', as process 0 does: each would edit it once more\n"
        "  call it in process 0 alone, or have each process write a file of its own: out=..."
    )
    assert kpatch.checkpoint.open(path)["layers.dense.vars.1"].tolist() == [1, 1]
    for name, times in (("own", 2), ("alone", 1)):
        for number in (0, 1):
            own = kpatch.checkpoint.open(folder / f"{name}{number}.weights.h5")
            assert own["layers.dense.vars.1"].tolist() == [times, times]
