"""Tables and pages: at any width each name is whole, a long plan is short, and HTML escapes what it is given."""

import html.parser

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch.view import html as pages
from kpatch.view import tables
from kpatch.view.overview import Column, Overview
from kpatch.view.shown import Shown

pytestmark = pytest.mark.backend_free


class Printed(Shown):
    """An overview that shows itself."""

    def __init__(self, overview):
        self._overview = overview

    def overview(self):
        return self._overview


def text(overview, width=120):
    return tables.as_text(Printed(overview), width)


LONG = "encoder.block_with_a_very_long_name_of_its_own.attention.query_projection.kernel"


@pytest.fixture(scope="module")
def overview():
    columns = (
        Column("statement"),
        Column("variable"),
        Column("shape", drop=2),
        Column("entries", True, 1),
        Column("after"),
    )
    rows = [
        ("**.kernel = 0", LONG, "(4, 3)", "12", "0 … 0, mean 0"),
        ("**.kernel = 0", "head.kernel", "(4, 3)", "12", "0 … 0, mean 0"),
        ("head.bias[0] = 1", "head.bias", "(3,)", "1", "1"),
    ]
    return Overview(columns, rows, ["'head.bias' is short"])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_names_are_whole_at_any_width(overview, width):
    printed = text(overview, width)
    for name in (LONG, "head.kernel", "head.bias", "**.kernel = 0", "head.bias[0] = 1"):
        assert name in printed
    assert "…" not in printed.replace("0 … 0", "")
    assert all(len(line) <= max(width, len(LONG) + len("  variable: ")) for line in printed.splitlines())


def test_a_wide_table():
    columns = (Column("statement"), Column("variable"), Column("entries", True))
    rows = [("**.bias = 0", "a.bias", "3"), ("**.bias = 0", "b.bias", "1,024"), ("a.bias = 1", "a.bias", "3")]
    assert (
        text(Overview(columns, rows))
        == """
  statement     variable   entries
 ──────────────────────────────────
  **.bias = 0   a.bias           3
                b.bias       1,024
  a.bias = 1    a.bias           3
"""
    )


def test_statements_become_headings_and_columns_go():
    columns = (Column("statement"), Column("variable"), Column("shape", drop=1), Column("after"))
    rows = [("head.bias[0] = 1", "head.bias", "(3,)", "1"), ("head.kernel[:, 2] = 0.5", "head.kernel", "(4, 3)", "0.5")]
    report = Overview(columns, rows)
    assert (
        text(report, 40)
        == """
    variable      shape    after
   ──────────────────────────────
  head.bias[0] = 1
    head.bias     (3,)     1
  head.kernel[:, 2] = 0.5
    head.kernel   (4, 3)   0.5
"""
    )
    assert (
        text(report, 30)
        == """
    variable      after
   ─────────────────────
  head.bias[0] = 1
    head.bias     1
  head.kernel[:, 2] = 0.5
    head.kernel   0.5
"""
    )
    assert text(report, 20) == (
        "head.bias[0] = 1\n  variable: head.bias\n  shape: (3,)\n  after: 1\n"
        "head.kernel[:, 2] = 0.5\n  variable: head.kernel\n  shape: (4, 3)\n  after: 0.5"
    )


def test_a_glob_of_many_matches_is_ten_lines():
    many = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2, name=f"d{i}") for i in range(60))])
    plan = kpatch.plan(many, "**.kernel = 0")
    assert len(str(plan).strip().splitlines()) == 11
    assert "... and 52 more" in str(plan)
    statements = kpatch.plan(many, "; ".join(f"d{i}.bias = 1" for i in range(60)))
    assert str(statements).strip().splitlines()[-1].strip() == "... and 20 more"
    assert "... and 52 more" in plan._repr_html_()


def test_a_listing_has_every_name():
    many = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2, name=f"d{i}") for i in range(60))])
    listing = kpatch.show(many)
    assert all(path in str(listing) for path in listing.paths)
    assert len(listing.paths) == 120


class Reader(html.parser.HTMLParser):
    """The texts of a page, and whether its elements are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.open = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_well_formed_and_escaped():
    report = Overview((Column("<b>"), Column("x")), [("a < b & c", "<script>alert(1)</script>")], ["x < y"])
    texts = Reader(pages.fragment(report)).texts
    assert {"<b>", "a < b & c", "<script>alert(1)</script>", "⚠ x < y"} <= set(texts)


def test_a_notebook_shows_what_was_edited():
    model = models.dense()
    applied = kpatch.apply(model, "dense_1.kernel[abs(_) < 0.5] = 0")
    texts = Reader(applied._repr_html_()).texts
    assert "dense_1.kernel[abs(_) < 0.5] = 0" in texts
    assert applied._repr_html_().count("<img") == 1
    assert "<img" not in kpatch.plan(model, "dense_1.bias = 1")._repr_html_()


@pytest.mark.parametrize("make", [
    lambda model: kpatch.plan(model, "dense_1.bias = 1"),
    lambda model: kpatch.apply(model, "dense_1.bias = 1"),
    lambda model: kpatch.show(model),
    lambda model: kpatch.diff(model, models.filled(models.dense(), 5)),
    lambda model: kpatch.parse("dense_1.bias = 1"),
])  # fmt: skip
def test_what_shows_itself(make):
    shown = make(models.dense())
    assert "dense_1.bias" in str(shown)
    assert "dense_1.bias" in "".join(Reader(shown._repr_html_()).texts)
    printed = []
    shown._repr_pretty_(type("Printer", (), {"text": lambda self, text: printed.append(text)})(), False)
    assert printed == [str(shown)]


def test_show():
    model = models.dense()
    assert kpatch.show(model).paths == ("dense_1.kernel", "dense_1.bias", "dense_2.kernel", "dense_2.bias")
    assert kpatch.show(model, "dense_2").paths == ("dense_2.kernel", "dense_2.bias")
    (row,) = kpatch.show(model, "dense_1.k*").rows
    assert (row.path, row.shape, row.dtype) == ("dense_1.kernel", (4, 3), "float32")
    assert row.statistics.low == np.min(model.get_layer("dense_1").kernel)
    with pytest.raises(kpatch.PatchSyntaxError, match=r"^not a selector: 'dense_1\.bias = 1'; examples are conv1, "):
        kpatch.show(model, "dense_1.bias = 1")
    with pytest.raises(kpatch.PatchSyntaxError) as caught:
        kpatch.show(model, "dense_1.ker nel")
    assert (caught.value.span, caught.value.source) == ((12, 15), "dense_1.ker nel")
    with pytest.raises(kpatch.ResolutionError, match=r"no variable .dense_3."):
        kpatch.show(model, "dense_3")


def test_wide_characters_take_two_columns():
    columns = Column("name"), Column("before"), Column("after")
    lines = text(Overview(columns, [("卷" * 30, "卷" * 12, "积" * 12)]), 50).splitlines()
    assert [line.strip() for line in lines[-2:]] == ["before: " + "卷" * 12, "after: " + "积" * 12]


def test_a_text_is_not_displayed_by_rich(overview, monkeypatch):
    """In a notebook rich would show it beside the page."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *args: pytest.fail("shown twice"))
    assert "head.kernel" in text(overview)


def test_a_page_leaves_out_what_a_picture_shows():
    columns = (Column("name"), Column("after", breaks=True), Column("where", drawn=True))
    rows = [("a", "0 … 1", "▁█")]
    drawn = type("Drawn", (), {"html": lambda self: "PICTURE"})
    assert "▁█" in pages.fragment(Overview(columns, rows))
    page = pages.fragment(Overview(columns, rows, pictures=[drawn]))
    assert "▁█" not in page
    assert "where" not in page
    assert page.count("PICTURE") == 1
    assert '<td class="breaks">0 … 1</td><td>PICTURE</td></tr>' in page
    columns = (Column("name", pictured=True), *columns[1:])  # in sight also if the table is wide
    assert "</code></td><td>PICTURE</td><td" in pages.fragment(Overview(columns, rows, pictures=[drawn]))


def test_show_activations():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="proj")], name="inner")
    x = keras.Input((5, 4))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(x, keras.layers.Dense(3, name="head")(inner(keras.layers.Flatten(name="flat")(y)[:, :4])))
    found = {row.path: row.shape for row in kpatch.show(model, activations=True).rows}
    assert found["attention.output"] == (None, 5, 4)
    assert found["head.output"] == (None, 3)
    assert found["inner.proj.output"] == (None, 2)
    assert kpatch.show(model, "head", activations=True).paths == ("head.output",)
    assert kpatch.show(model, "head.input", activations=True).rows[0].shape == (None, 2)
    assert kpatch.show(model, "attention.scores", activations=True).paths == ("attention.scores",)
    table = str(kpatch.show(model, "inner.**.output", activations=True))
    assert [line.split() for line in table.splitlines()[1:] if "proj" in line] == [
        ["inner.proj.output", "(None,", "2)", "float32"]
    ]
    assert kpatch.show(model, "head", activations=True).to_dict() == {
        "rows": [{"path": "head.output", "shape": [None, 3], "dtype": "float32"}]
    }
    with pytest.raises(kpatch.ResolutionError, match=r"^no layer or activation 'heat'; did you mean 'head'\?$"):
        kpatch.show(model, "heat", activations=True)
    with pytest.raises(kpatch.ResolutionError, match=r"^no layer or activation 'zzz'$"):
        kpatch.show(model, "zzz", activations=True)
    with pytest.raises(kpatch.UnsupportedError) as info:
        kpatch.show(model, stats=True, activations=True)
    assert str(info.value) == "activations have values only while the model runs; leave out stats (--stats)"


NESTED = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.layers.Dense(3, name="one")], name="inner")])
BARE, ALONE = keras.layers.Dense(2), keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one")])


@pytest.mark.parametrize(
    ("model", "selector", "paths"),
    [
        (ALONE, None, ["one.output"]),
        (ALONE, "**", ["one.output"]),
        (ALONE, "*", ["one.output"]),
        (ALONE, "**.output", ["one.output"]),
        (ALONE, "input", ["input"]),
        (ALONE, "(one|on?).output", ["one.output"]),
        (BARE, None, ["output"]),
        (BARE, "**", ["output"]),
        (BARE, "output", ["output"]),
        (keras.layers.LSTM(2), "output.0", ["output.0"]),
        (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="output")]), "output", ["output.output"]),
        (NESTED, "inner", ["inner.output", "inner.one.output"]),
        (NESTED, "in*", ["inner.output"]),
        (NESTED, "one", ["inner.one.output"]),
    ],
)
def test_show_activations_of(model, selector, paths):
    assert list(kpatch.show(model, selector, activations=True).paths) == paths


def test_the_activations_of_a_layer_alone_are_edited():
    x = np.ones((1, 4), "float32")
    before = keras.ops.convert_to_numpy(BARE(x))
    with kpatch.intervene(BARE, "output[0, 1] = 5"):
        assert keras.ops.convert_to_numpy(BARE(x)).tolist() == [[before[0, 0], 5]]
    with kpatch.record(ALONE, "output") as found:
        ALONE(x)
    assert found["output"].shape == (1, 3)
    with pytest.raises(kpatch.ResolutionError, match=r"^no variable 'output\.kernel'"):
        kpatch.apply(ALONE, "output.kernel = 0")


def test_show_activations_of_files(tmp_path):
    """The model is built without its values, which a file of weights alone cannot tell."""
    x = keras.Input((5, 4))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 4, name="att")(x, x))
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    found = kpatch.show(tmp_path / "a.keras", "att", activations=True)
    rows = [(row.path, row.shape) for row in found.rows]
    assert rows[:3] == [("att.output", (None, 5, 4)), ("att.scores", None), ("att.heads", None)]
    with pytest.raises(kpatch.FileError) as info:
        kpatch.show(tmp_path / "a.weights.h5", activations=True)
    assert str(info.value) == (
        f"the activations of '{tmp_path / 'a.weights.h5'}' are not known: "
        "kpatch reads the architecture of .keras files, and of folders with a config.json"
    )


def test_show_a_file(tmp_path):
    model = models.dense()
    model.save(tmp_path / "m.keras")
    assert (
        str(kpatch.show(tmp_path / "m.keras")) == str(kpatch.show(str(tmp_path / "m.keras"))) == str(kpatch.show(model))
    )


def test_the_lexer_knows_the_words_and_loses_no_character():
    pygments = pytest.importorskip("pygments")
    from pygments.token import Error, Keyword, Name, Number

    from kpatch.syntax.words import CONSTANTS, KEYWORDS
    from kpatch.view.highlighting import PatchLexer

    lexer = PatchLexer()
    for word in KEYWORDS | CONSTANTS:
        assert next(iter(lexer.get_tokens(word)))[0] in Keyword
    for text in ("enc.kernel[..., $i] **= 1.5e-3 # no", "(a|b)_*.k = 'x' ; \x00 é", "let t = sum(_)\n_ //= 0xff"):
        found = list(lexer.get_tokens(text))
        assert "".join(value for _, value in found) == f"{text}\n"
        assert all(kind is not Error for kind, _ in found)
    assert [v for k, v in lexer.get_tokens("a.b[1] = -2.5e3 + f(_)") if k in Number] == ["1", "2.5e3"]
    assert [v for k, v in lexer.get_tokens("a = exp(1)") if k is Name.Function] == ["exp"]
    assert pygments.__version__
