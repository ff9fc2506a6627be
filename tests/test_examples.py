"""The examples: what the classifier reaches, what the patches for it do, and the study as a user runs it."""

import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import kpatch

BACKEND = keras.backend.backend()
EXAMPLES = Path(__file__).parent.parent / "examples"
PATCHES = sorted(EXAMPLES.glob("*.kpatch"))


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(EXAMPLES / "digits.keras")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as `python script` does, in this process, which has imported what takes most of the time."""

    def ran(script, *arguments):
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return ran


@pytest.fixture(scope="module")
def held_out():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from train_digits import split_digits
    finally:
        sys.path.remove(str(EXAMPLES))
    return split_digits()[1]


def predicted(model, x):
    return np.argmax(keras.ops.convert_to_numpy(model.predict_on_batch(x)), axis=-1)


def test_the_classifier(model, held_out):
    x, y = held_out
    assert np.mean(predicted(model, x) == y) > 0.95
    assert (EXAMPLES / "digits.keras").stat().st_size < 300_000


@pytest.mark.backend_free
def test_there_are_patches():
    assert PATCHES


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_patch_applies_and_is_undone(model, path):
    before = [np.array(weight) for weight in model.get_weights()]
    with kpatch.apply(model, path.read_text(encoding="utf-8")) as applied:
        assert all(write.entries > 0 for write in applied.writes)
        assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_a_forgotten_digit_is_never_seen(model, held_out):
    x, y = held_out
    assert (predicted(model, x) == 7).any()
    with kpatch.apply(model, (EXAMPLES / "forget_digit.kpatch").read_text(encoding="utf-8")):
        forgetful = predicted(model, x)
    assert not (forgetful == 7).any()
    assert np.mean(forgetful[y != 7] == y[y != 7]) > 0.9


def test_the_ablation_study(run, tmp_path):
    plot = tmp_path / "ablation.png"
    rows = [
        line.strip("│┃ ").split("│") for line in run("ablate_digits.py", "--plot", plot).splitlines() if "│ " in line
    ]
    found = {(cells[0].strip(), int(cells[1])) for cells in rows}
    assert found == {("conv1", i) for i in range(8)} | {("conv2", i) for i in range(16)}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_steering(run, tmp_path):
    plot = tmp_path / "steering.png"
    rows = run("steer_digits.py", "--plot", plot).splitlines()
    assert len([row for row in rows if "direction, strength" in row]) == (9 if BACKEND == "numpy" else 18)
    assert float(rows[8].split()[6].rstrip("%,")) > 90  # at the greatest strength nearly all are sevens
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
def test_holding(run, tmp_path):
    plot = tmp_path / "held.png"
    out = run("hold_digits.py", "--epochs", 2, "--plot", plot)
    assert "entries of dense_1.kernel" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(BACKEND != "torch", reason="one backend does; PatchCallback has its tests on each")
def test_gradual_pruning(run, tmp_path):
    plot = tmp_path / "pruned.png"
    lines = run("prune_gradually.py", "--epochs", 2, "--plot", plot).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["not pruned", "90% zeros", "95% zeros", "98% zeros"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(BACKEND != "torch", reason="one backend does; kpatch.sweep has its tests on each")
def test_tracing(run, tmp_path):
    plot = tmp_path / "traced.png"
    lines = run("trace_facts.py", "--epochs", 3, "--plot", plot).splitlines()
    effects = np.array([[float(value) for value in line.split()[2:]] for line in lines if line.startswith("block")])
    way = np.eye(4, 6, k=2) == 1  # a fact moves one token in each block
    assert (effects[~way] == 0).all()
    assert (effects[way] > 0).all()
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(BACKEND != "torch", reason="one backend does; scores and heads have their tests on each")
def test_silencing_heads(run, tmp_path):
    plot = tmp_path / "heads.png"
    out = run("ablate_heads.py", "--epochs", 1, "--texts", 128, "--plot", plot).splitlines()
    rows = [line.strip("│┃ ").split("│") for line in out if "│ " in line]
    assert [row[0].strip() for row in rows] == [f"{block}.{head}" for block in range(2) for head in range(4)]
    assert out[0].endswith("of the repeated tokens are right")
    assert plot.read_bytes()[16:24] == (EXAMPLES.parent / "docs" / "pictures" / "heads.png").read_bytes()[16:24]


@pytest.mark.backend_free
def test_the_picture_of_edits(run, tmp_path):
    pytest.importorskip("matplotlib")
    run("draw_edits.py", tmp_path / "edits.png")
    drawn, kept = ((at / "edits.png").read_bytes()[16:24] for at in (tmp_path, EXAMPLES.parent / "docs" / "pictures"))
    assert drawn == kept  # the width and height
