"""Pictures of edits: each edited entry is in its cell, whatever the size of the tensor."""

import io

import models
import numpy as np
import pytest

import kpatch
from kpatch.view.pictures import Map, heat_map, nearest_to_zero, png

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    "shape", [(), (5,), (4, 3), (2, 3, 4), (3, 3, 2, 5), (2, 3, 3, 2, 7), (1000, 3), (300, 700), (3, 3, 64, 200)]
)
def test_one_entry_is_one_cell(shape):
    rng = np.random.default_rng(3)
    for flat in rng.integers(0, int(np.prod(shape)), 8):
        drawn = Map(shape)
        drawn.add(np.array([flat]), np.array([-2.5]))
        assert np.nansum(drawn.cells) == -2.5
        assert np.isnan(drawn.cells).sum() == drawn.cells.size - 1
        assert max(drawn.cells.shape) <= 97


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 5), (2, 3, 3, 2, 7)])
def test_every_entry_has_a_cell_inside(shape):
    drawn = Map(shape)
    drawn.add(np.arange(np.prod(shape)), np.ones(np.prod(shape)))
    np.testing.assert_array_equal(np.isfinite(drawn.cells), drawn._inside())
    entries = int(np.prod(shape)) // (shape[-2] if len(shape) > 3 else 1)  # input channels of a filter share a cell
    assert drawn._inside().sum() == entries


def test_the_largest_change_of_a_cell_is_shown():
    drawn = Map((400, 2))
    drawn.add(np.arange(800), np.where(np.arange(800) == 5, -9.0, 1.0))
    assert 'title="changed by -9 to 1; a cell shows the largest change of 5 × 1 entries"' in drawn.html()
    drawn.add(np.array([790, 792]), np.array([np.nan, 0.0]))
    assert drawn.cells[0].tolist() == [1, -9]
    assert np.isinf(drawn.cells).sum() == 1


def test_a_filter_is_a_tile():
    drawn = Map((2, 2, 3, 4))
    drawn.add(np.flatnonzero(np.arange(48) % 4 == 3), np.ones(12))  # the last filter
    assert np.argwhere(np.isfinite(drawn.cells)).tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_colours():
    drawn = Map((1, 5))
    drawn.add(np.arange(4), np.array([2.0, -1.0, 0.0, np.inf]))
    assert drawn.image()[0].tolist() == [
        [230, 126, 0, 255], [0, 114, 178, 166], [128, 128, 128, 128], [204, 121, 167, 255], [128, 128, 128, 30]
    ]  # fmt: skip


def test_png_is_read_by_others():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype="uint8")
    read = pytest.importorskip("matplotlib.image").imread(io.BytesIO(png(image)))
    np.testing.assert_array_equal(np.round(read * 255), image)


POINTS = "; ".join(f"dense_1.kernel[{i}, 0] = 7" for i in range(4))
INDICES = ("[1, 2]", "[abs(_) > 0.2]", "[[0, 2], 1]", "[::2, ::-1]", "", "[..., 2]")


@pytest.mark.parametrize("patch", [f"{POINTS}; dense_1.kernel[1, 0] = 8", *(f"dense_1.kernel{i} = 7" for i in INDICES)])
def test_offsets_of_a_write_are_those_of_its_values(patch):
    model = models.dense()
    before = np.array(model.get_layer("dense_1").kernel)
    applied = kpatch.apply(model, patch)
    state = before.copy()
    for write in applied.writes:
        np.testing.assert_array_equal(state.reshape(-1)[write.flat], write.before)
        state.reshape(-1)[write.flat] = write.after
    np.testing.assert_array_equal(state, np.array(model.get_layer("dense_1").kernel))


@pytest.mark.parametrize("index", ["", "[::2, ::-1]", "[abs(_) > 0.2]", "[[2, 0, 3]]", "[1]"])
def test_of_many_entries_a_sample_is_drawn(monkeypatch, index):
    """Each entry of the sample has its own place and change."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("kpatch.run.writes.DRAWN", 2)
    monkeypatch.setattr("kpatch.run.writes.SAMPLE", 200)
    monkeypatch.setattr("kpatch.run.writes.BLOCK", 3)
    applied = kpatch.apply(models.dense(), f"dense_1.kernel{index} = 7; dense_2.bias = 2")
    [write, _] = applied.writes
    expected = Map(write.shape)
    expected.add(write.flat, write.after - write.before)
    np.testing.assert_array_equal(write.map().cells, expected.cells)
    note = f"200 of {write.entries} entries, drawn at random"
    [large, small] = applied.plot().axes
    assert (len(large.images), large.get_xlabel(), small.get_xlabel()) == (1, note, "")
    page = applied._repr_html_()
    assert page.count("<img") == 2
    assert page.count(note) == 1


def test_a_weight_of_many_codes(monkeypatch):
    monkeypatch.setattr("kpatch.run.writes.DRAWN", 2)
    model = models.dense()
    model.get_layer("dense_1").quantize("int8")
    for index in ("", "[1]"):
        [write] = kpatch.apply(model, f"dense_1.kernel{index} *= -1").writes
        drawn = write.map()
        assert np.isfinite(drawn.cells).sum() == write.entries
        assert drawn.note.startswith("2,097,152 of ")


def test_a_title_is_no_formula():
    pytest.importorskip("matplotlib")
    figure = kpatch.apply(models.dense(), "dense_1.bias = $a_ * $b", a_=1, b=2).plot()
    figure.savefig(io.BytesIO())
    assert not figure.axes[0].title.get_parse_math()


def test_a_figure_has_a_bound():
    pytest.importorskip("matplotlib")
    patch = "; ".join(f"dense_1.bias[{n % 3}] += 1" for n in range(30))
    figure = kpatch.apply(models.dense(), patch).plot()
    assert (len(figure.axes), figure.get_suptitle()) == (24, "the first 24 of 30")


def test_plot():
    pytest.importorskip("matplotlib")
    applied = kpatch.apply(models.dense(), "dense_1.kernel[0] = 1; dense_2.bias = 2")
    assert [axes.get_title() for axes in applied.plot().axes] == [
        "dense_1.kernel\ndense_1.kernel[0] = 1", "dense_2.bias\ndense_2.bias = 2"
    ]  # fmt: skip
    assert applied.plot()._repr_png_().startswith(b"\x89PNG")  # a notebook shows it without pyplot


@pytest.mark.parametrize(
    ("values", "start"), [([1.5, 2], 1.5), ([-3, -1], -1), ([-1, 2], 0), ([0, 2], 0), ([np.nan, 4], 4), ([np.nan], 0)]
)
def test_a_heat_map_of_one_sign_starts_at_its_values(values, start):
    """Else its colours could not be told apart."""
    pytest.importorskip("matplotlib")
    values = np.array([values, values], "float64")
    assert nearest_to_zero(values) == start
    [image] = heat_map({"a": [0, 1], "b": range(values.shape[1])}, values).axes[0].images
    assert image.get_cmap().name == ("cividis" if start else "PuOr_r")
