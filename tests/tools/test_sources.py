"""Patch strings in Python code: which are found, and that each of their characters is placed where it stands."""

import ast
import codecs
import contextlib
import inspect
import os
import subprocess
import sys
import textwrap

import pytest
from counting import steps
from hypothesis import given
from hypothesis import strategies as st

import kpatch
from kpatch.errors import FileError
from kpatch.names.patches import PatchLike
from kpatch.tools import python_sources
from kpatch.tools.check import check_files
from kpatch.tools.python_sources import NAMES, find, takers

pytestmark = pytest.mark.backend_free


def texts(code):
    return [patch.text for patch in find(textwrap.dedent(code)).patches]


def only(code):
    (patch,) = find(code).patches
    return patch


# Which calls


@pytest.mark.parametrize(
    "code",
    [
        "import kpatch; kpatch.apply(m, 'p')",
        "import kpatch; kpatch.apply(m, patch='p')",
        "import kpatch; kpatch.apply(patch='p', model=m)",
        "import kpatch; kpatch.apply(m, 'p', donate=False).undo()",
        "import kpatch; kpatch.apply(m, ('p'))",
        "import kpatch; kpatch.plan(m, 'p')",
        "import kpatch; kpatch.edit(x, 'p')",
        "import kpatch; kpatch.parse('p')",
        "import kpatch; kpatch.parse(text='p')",
        "import kpatch; kpatch.apply(m, kpatch.parse('p'))",
        "import kpatch; patch = kpatch.parse('p'); kpatch.apply(m, patch)",
        "import kpatch; kpatch.apply(m, kpatch.Patch('p'))",
        "import kpatch as kp; kp.apply(m, 'p')",
        "import kpatch.errors; kpatch.apply(m, 'p')",
        "import numpy, kpatch.errors as e, kpatch as k; k.apply(m, 'p')",
        "from kpatch import apply; apply(m, 'p')",
        "import kpatch; kpatch.checkpoint.apply(path, 'p', out)",
        "from kpatch import checkpoint; checkpoint.plan(path, 'p')",
        "from kpatch import apply as edit_now; edit_now(m, 'p')",
        "from kpatch import *; apply(m, 'p')",
        "def f():\n    import kpatch\n    return [kpatch.apply(m, 'p') for m in ms]",
        "class A:\n    def f(self):\n        kpatch.apply(self.m, 'p')\nimport kpatch",
        "try:\n    import kpatch\nexcept ImportError:\n    kpatch = None\nkpatch.apply(m, 'p')",
        "import kpatch\nwith kpatch.apply(m, 'p') as applied:\n    pass",
        "import kpatch\n@kpatch.edit(x, 'p')\nasync def f(): pass",
        "import kpatch\nf(lambda x: kpatch.edit(x, 'p'))",
        "import kpatch\ntry:\n    kpatch.apply(m, 'p')\nexcept kpatch.PatchError:\n    pass",
        "import kpatch\nmatch x:\n    case {'a': 1, **rest}:\n        kpatch.apply(rest, 'p')",
    ],
)
def test_a_call_of_ours(code):
    assert texts(code) == ["p"]
    assert find(code).computed == 0


@pytest.mark.parametrize(
    "code",
    [
        "apply(m, 'p')",
        "kpatch.apply(m, 'p')",
        "from other import apply; apply(m, 'p')",
        "from . import kpatch; kpatch.apply(m, 'p')",
        "from .kpatch import apply; apply(m, 'p')",
        "import other as kpatch; kpatch.apply(m, 'p')",
        "import kpatch, other as kpatch; kpatch.apply(m, 'p')",
        "import kpatch; kpatch.other(m, 'p')",
        "import kpatch; other.kpatch.apply(m, 'p')",
        "import kpatch; kpatch.apply(m)",
        "import kpatch; kpatch.apply(m, 5); kpatch.apply(m, b'p')",
        "from kpatch import apply\ndef f(apply):\n    apply(m, 'p')",
        "from kpatch import apply\ndef f():\n    def apply(m, p): pass\n    apply(m, 'p')",
        "def f():\n    import kpatch\nkpatch.apply(m, 'p')",
        "from kpatch import apply\n[apply(m, 'p') for apply in others]",
        "from kpatch import apply\nclass A:\n    apply = 1\n    apply(m, 'p')",
    ],
)
def test_no_call_of_ours(code):
    assert find(code) == ([], 0, ())


def test_a_method_does_not_see_the_names_of_its_class():
    code = "from kpatch import apply\nclass A:\n    apply = 1\n    def f(self):\n        apply(m, 'p')"
    assert texts(code) == ["p"]


def test_whose_names_are_those_of_a_model():
    code = "import kpatch; kpatch.{}('a', 'b')"
    found = {name: only(code.format(name)) for name in ("apply", "hold", "plan", "intervene", "edit", "parse")}
    assert [name for name, each in found.items() if each.of_model] == ["apply", "hold", "plan", "intervene"]
    assert [name for name, each in found.items() if each.activations] == ["plan", "intervene"]
    both = "import kpatch; p = 'a.output = 0'; kpatch.apply(m, p); kpatch.intervene(m, p); kpatch.parse(p)"
    assert (only(both).of_model, only(both).activations) == (True, False)


def test_lists_and_dicts_of_patches():
    code = "import kpatch\nfrom kpatch.callbacks import PatchCallback\n"
    assert texts(code + "kpatch.apply(m, ['a', ('b', f'c')])") == ["a", "b"]
    assert find(code + "kpatch.apply(m, ['a', ('b', f'c')])").computed == 1
    assert texts(code + "PatchCallback({0: 'a', range(3): 'b', **more})") == ["a", "b"]
    assert texts(code + "PatchCallback('a', on='epoch_begin'); PatchCallback(patches='b')") == ["a", "b"]
    assert only(code + "PatchCallback('a')").of_model
    assert find(code + "p = ['a', p]\nkpatch.apply(m, p)").computed == 0


@pytest.mark.parametrize(
    ("call", "files"),
    [
        ("kpatch.apply(m, Path('a.kpatch'))", ("a.kpatch",)),
        ("kpatch.apply(m, [pathlib.Path('a.kpatch'), 'b = 0', Path('b.kpatch')])", ("a.kpatch", "b.kpatch")),
        ("p = Path('a.kpatch'); kpatch.layers.ScatterLayer(p)", ("a.kpatch",)),
        ("n = 'a.kpatch'; kpatch.load(n)", ("a.kpatch",)),
        ("kpatch.apply(m, kpatch.load(Path('a.kpatch')))", ("a.kpatch",)),
        ("kpatch.load(name)", ()),
        ("kpatch.apply(m, 'a = 0')  # kpatch: ignore", ()),
    ],
)
def test_patch_files(call, files):
    found = find(f"import kpatch, kpatch.layers, pathlib\nfrom pathlib import Path\n{call}")
    assert (found.files, found.computed) == (files, 0)


def test_paths_that_are_computed():
    code = "import kpatch\nfrom pathlib import Path\n"
    for path in ("Path(name)", "Path('a') / 'b'", "Path('a', 'b')", "folder / 'a.kpatch'"):
        assert find(f"{code}kpatch.apply(m, {path})")[1:] == (1, ())
    assert find(f"{code}p = Path(p)\nkpatch.apply(m, p)")[1:] == (1, ())


def test_the_functions_that_take_a_patch_are_those_with_such_a_parameter():
    packages = (kpatch, kpatch.checkpoint)
    public = {f"{package.__name__}.{name}": getattr(package, name) for package in packages for name in package.__all__}
    functions = {path: thing for path, thing in public.items() if inspect.isfunction(thing)}
    classes = {
        f"kpatch.{module}.{name}": thing
        for module in kpatch.EXTENSIONS
        for name, thing in inspect.getmembers(getattr(kpatch, module), inspect.isclass)
        if thing.__module__ == f"kpatch.{module}"
    }
    parameters = {path: list(inspect.signature(thing).parameters) for path, thing in (functions | classes).items()}
    found = {path: at for path, names in parameters.items() for at, name in enumerate(names) if name in NAMES}
    annotated = {
        path
        for path, thing in (functions | classes).items()
        for each in inspect.signature(thing).parameters.values()
        if "PatchLike" in str(each.annotation) or each.annotation is PatchLike
    }
    assert annotated <= found.keys()  # a parameter that is a patch has such a name
    assert len(found) > 10
    assert {path: taken.position for path, taken in takers().items()} == {**found, "kpatch.Patch": 0}


SWEPT = "block_$l.output[:, $i] = 2*$v; layers[$l].bias = ${kind}_1.bias; a.$x = 1"


def test_names_of_a_sweep_are_open(tmp_path):
    """`$names` in names are syntax for `kpatch.sweep` alone, and keep the places of errors."""
    path = tmp_path / "a.py"
    path.write_text(f"import kpatch\nkpatch.sweep(m, '{SWEPT}', metric=f)\nkpatch.sweep(m, 'a_$l = 1 2')\n")
    path.write_text(path.read_text() + "kpatch.apply(m, 'a_$l = 1')\n")
    found = check_files((str(path),)).findings
    assert [(each.region[:2], each.error.statement) for each in found] == [
        ((3, 27), "a_$l = 1 2"),
        ((4, 20), "a_$l = 1"),
    ]


@pytest.mark.parametrize("path", takers())
def test_each_of_them_is_found(path):
    arguments = ", ".join(["x"] * takers()[path].position + ["'p'"])
    assert texts(f"import {path.rpartition('.')[0]}\n{path}({arguments})") == ["p"]


# Names


@pytest.mark.parametrize(
    "code",
    [
        "P = 'p'\nkpatch.apply(m, P)\nkpatch.plan(m, P)",
        "def f():\n    kpatch.apply(m, P)\nP = 'p'",
        "P: str = 'p'\nkpatch.apply(m, P)",
        "P: str\nP = 'p'\nkpatch.apply(m, P)",
        "P = Q = 'p'\nkpatch.apply(m, Q)",
        "if (P := 'p'):\n    kpatch.apply(m, patch=P)",
        "[P := 'p' for _ in 'x']\nkpatch.apply(m, P)",
        "P = 1\ndef f():\n    P = 'p'\n    def g():\n        kpatch.apply(m, P)",
    ],
)
def test_a_name_bound_once_is_its_literal(code):
    assert texts("import kpatch\n" + code) == ["p"]
    assert find("import kpatch\n" + code).computed == 0


@pytest.mark.parametrize(
    "code",
    [
        "P = 'p'\nP = 'q'\nkpatch.apply(m, P)",
        "P = 'p'\nP += 'q'\nkpatch.apply(m, P)",
        "P = 'p'\ndef f():\n    global P\n    P = 'q'\nkpatch.apply(m, P)",
        "def f():\n    P = 'p'\n    def g():\n        nonlocal P\n        P = 'q'\n    kpatch.apply(m, P)",
        "P = 'p'\nfor P in ps:\n    kpatch.apply(m, P)",
        "P = 'p'\ndel P\nkpatch.apply(m, P)",
        "P, Q = 'p', 'q'\nkpatch.apply(m, P)",
        "P = 'p'\ndef f(P):\n    kpatch.apply(m, P)",
        "P = 'p'\ndef f(P='q'):\n    kpatch.apply(m, P)",
        "P = 'p'\ntry: pass\nexcept E as P: kpatch.apply(m, P)",
        "P = 'p'\nmatch x:\n    case [*P]: kpatch.apply(m, P)",
        "P = 'p'\nmatch x:\n    case {**P}: kpatch.apply(m, P)",
        "P = 'p'\nmatch x:\n    case P: kpatch.apply(m, P)",
        "P = 'p'\nfrom other import P\nkpatch.apply(m, P)",
        "class A:\n    P = 'p'\n    def f(self): kpatch.apply(m, P)",
        "P = 'p'\nQ = P\nkpatch.apply(m, Q)",
        "kpatch.apply(m, f'{x} = 1')",
        "kpatch.apply(m, f'x = 1')",
        "kpatch.apply(m, 'a' + 'b')",
        "kpatch.apply(m, 'a {}'.format(b))",
        "kpatch.apply(m, textwrap.dedent('a'))",
        "kpatch.apply(*args)",
        "kpatch.apply(m, **options)",
        "kpatch.apply(m, *args)",
    ],
)
def test_other_patches_are_counted(code):
    assert find("import kpatch\n" + code) == ([], 1, ())


# Left out


@pytest.mark.parametrize(
    "code",
    [
        "kpatch.parse('p')  # kpatch: ignore",
        "kpatch.parse(  #kpatch:ignore until the next version\n    'p'\n)",
        "kpatch.parse(\n    'p'  # kpatch: ignore\n)",
        "kpatch.parse('''p\nq''')  # kpatch: ignore",
        "kpatch.parse('p'  # kpatch: ignore\n    'q'\n)",
        "P = 'p'  # kpatch: ignore\nkpatch.parse(P)",
        "P = 'p'\nkpatch.parse(P)  # kpatch: ignore",
        "kpatch.parse(p + q)  # kpatch: ignore",
        "import pytest\nwith pytest.raises(kpatch.PatchSyntaxError, match='x'):\n    kpatch.parse('p')",
        "from pytest import raises\nwith x, raises((ValueError, kpatch.PatchError)) as info:\n    kpatch.parse('p')",
        "from kpatch.errors import PatchError\nwith self.assertRaises(PatchError):\n    kpatch.parse('p')",
    ],
)
def test_left_out(code):
    assert find("import kpatch\n" + code) == ([], 0, ())


@pytest.mark.parametrize(
    "code",
    [
        "kpatch.parse('p # kpatch: ignore')",
        "x = '# kpatch: ignore'; kpatch.parse('p')",
        "# kpatch: ignore\nkpatch.parse('p')\n# kpatch: ignore",
        "import pytest\nwith pytest.raises(ValueError):\n    kpatch.parse('p')",
        "import pytest\nwith pytest.warns(kpatch.PatchError):\n    kpatch.parse('p')",
        "import pytest\nwith pytest.raises(kpatch.PatchError):\n    pass\nkpatch.parse('p')",
        "import pytest\nwith pytest.raises(kpatch.parse('p')):\n    pass",
    ],
)
def test_not_left_out(code):
    assert len(find("import kpatch\n" + code).patches) == 1


# Places

# In each, `¡` stands before the first character of the fault in `head.bias[0 = 1`, and is taken out.
SPELLINGS = [
    "p('head.bias[0 ¡= 1')",
    'p("head.bias[0 ¡= 1")',
    "p('''head.bias[0 ¡= 1''')",
    'p(r"head.bias[0 ¡= 1")',
    'p(R"""head.bias[0 ¡= 1""")',
    'p(u"head.bias[0 ¡= 1")',
    "p(text='head.bias[0 ¡= 1')",
    "p(('head.bias[0 ¡= 1'))",
    "p('head.bias' '[0 ¡= 1')",
    "p('head.bias'   \"[0 \" '''¡= 1''')",
    "p('' 'head.bias[0 ' '' '¡= 1' '')",
    "p('head.bias'  # a 'comment'\n    # \"another\n\n      '[0 ¡= 1'\n)",
    "p('head.bias' \\\n  '[0 ¡= 1')",
    "p('head.bias\\\n[0 ¡= 1')",
    "p('head.bias[0 \\\n¡= 1')",
    "p('head\\x2ebias[0 ¡= 1')",
    "p('\\x68\\u0065\\U00000061\\144.bias\\N{LEFT SQUARE BRACKET}\\60 ¡= 1')",
    "p('head.bias[0 ¡\\x3d 1')",
    "p('head.bias[0 ' u'¡\\75 1')",
    "p('\\thead.bias[0\\t¡= 1')",
    "p('# \\\\ \\' \\\" \\q\\nhead.bias[0 ¡= 1')",
    "p(r'# \\\\ \\' \\n ' '\\nhead.bias[0 ¡= 1')",
    "p('''\n  head.bias[0 ¡= 1\n''')",
    "p('''# it's \"it\"\n\n\n  head.bias[0 ¡= 1 # ''\\' ''' )",
    "p('''\\\n  head.bias[0 ¡= 1''')",
    "é = 'é€𝄞'; p('head.bias[0 ¡= 1')",
    "é = 'é€𝄞'; p('# é€𝄞\\nhead.bias[0 ¡= 1')",
    "é = 'é€𝄞'; p('# é' '''€\n # 𝄞\nhead.bias[0 ¡= 1''')",
    "\fp('head.bias[0 ¡= 1')",
    "x = '\x0b\x1c\u2028\x85'; p('head.bias[0 ¡= 1')",
    "if x:\n\tp('head.bias[0 ¡= 1')",
    "P = 'head.bias[0 ¡= 1'\np(P)",
]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("code", SPELLINGS)
def test_the_place_of_a_fault(tmp_path, code, newline):
    code = f"from kpatch import parse as p\n{code}\n"
    line, column = code[: code.index("¡")].count("\n") + 1, code.index("¡") - code.rfind("\n", 0, code.index("¡"))
    path = tmp_path / "a.py"
    path.write_bytes(code.replace("¡", "").replace("\n", newline).encode())
    (finding,) = check_files((str(path),)).findings
    assert finding.error.message == "expected ',' or ']', found '='"
    width = 4 if code[code.index("¡") + 1 :].startswith("\\x") else 3 if "¡\\75" in code else 1
    assert finding.region == (line, column, line, column + width)


@pytest.mark.parametrize(
    ("code", "region"),
    [
        ("p('a.b')", (1, 7, 1, 7)),  # at the end of a patch: the closing quote
        ("p('')", (1, 4, 1, 4)),
        ("p('' '')", (1, 7, 1, 7)),
        ("p('a.b' '')", (1, 10, 1, 10)),
        ("p('''a.b\n''')", (2, 1, 2, 1)),
    ],
)
def test_the_end_of_a_patch(code, region):
    patch = only("from kpatch import parse as p;" + code)
    got = patch.region((len(patch.text),) * 2)
    assert (got.line, got.column - 30 * (got.line == 1)) == region[:2]


def test_a_span_over_several_literals():
    patch = only("import kpatch\nkpatch.parse('ab'\n   'c\\x64')\n")
    assert patch.region((1, 4)) == (2, 16, 3, 10)


def character_at(code, region):
    lines = code.split("\n")
    if region.line == region.end_line:
        return lines[region.line - 1][region.column - 1 : region.end_column - 1]
    return "\n"


def unescaped(written):
    return ast.literal_eval(f'"""{written}"""' if written != '"' else "'\"'")


PRINTABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def spelled(draw):
    """A text, and a literal for it."""
    parts = draw(st.lists(PRINTABLE, min_size=1, max_size=4))
    literals = [draw(st.sampled_from([repr, ascii, triple, by_hex, folded]))(part) for part in parts]
    between = draw(st.sampled_from([" ", "", "\n", "  # a 'comment\n\n", " \\\n\t"]))
    return "".join(parts), between.join(literals) if "" not in (between, *parts) else " ".join(literals)


def triple(text):
    return '"""' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\0", "\\0") + '"""'


def by_hex(text):
    return "u'" + "".join(f"\\U{ord(char):08x}" for char in text) + "'"


def folded(text):
    return "'" + "\\\n".join("\\'" if char == "'" else repr(char)[1:-1] for char in text) + "'"


@given(before=PRINTABLE, spelling=spelled())
def test_every_character_is_placed_where_it_is_written(before, spelling):
    text, literal = spelling
    code = f"import kpatch\n{before!r}; kpatch.edit(x, ({literal}))\n"
    patch = only(code)
    assert patch.text == text
    end = patch.region((0, 0))[:2]
    for offset, char in enumerate(text):
        region = patch.region((offset, offset + 1))
        assert region[:2] >= end
        end = region[2:]
        assert unescaped(character_at(code, region)) == char


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(FileError):
        find("kpatch\n" + text)


@given(st.binary(max_size=40), st.sampled_from(["", "# coding: latin-1\n", "# coding: unicode_escape\n"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_bytes(start.encode() + b"kpatch\n" + data)
    report = check_files((str(path),))
    assert report.patches == 0
    assert all(finding.code == "FileError" for finding in report.findings)


# Files


@pytest.fixture
def checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def check(data, name="a.py"):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return check_files((name,))

    return check


FAULTY = "import kpatch; kpatch.parse('é[')"


@pytest.mark.parametrize(
    ("encoding", "start"),
    [("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("latin-1", b"# -*- coding: latin-1 -*-\n"), ("cp1252", None)],
)
def test_the_declared_encoding(checked, encoding, start):
    start = f"#!/usr/bin/python\n# vim: set fileencoding={encoding} :\n".encode() if start is None else start
    report = checked(start + FAULTY.encode(encoding))
    assert [(finding.region[:2], finding.error.source) for finding in report.findings] == [
        ((1 + start.count(b"\n"), 30), "é[")
    ]


@pytest.mark.parametrize(
    ("data", "message", "place"),
    [
        (b"import kpatch\nx = (1,", "'(' was never closed", (2, 5)),
        (b"import kpatch\nprint 'x'", "Missing parentheses", (2, 1)),
        (b"import kpatch\n\xff", "'a.py' is not UTF-8 text: byte 14 is 0xff", None),
        (b"# coding: nonsense\nimport kpatch", "'a.py' cannot be read as Python: unknown encoding: nonsense", None),
        (b"# coding: hex\nimport kpatch", "'a.py' is not HEX text: ", None),
        (b"import kpatch\nx = '\0'", "null byte", None),
        (b"# coding: unicode_escape\nimport kpatch; x = '\\ud800'", "surrogates not allowed", None),
        (b"import kpatch\n" + b"-" * 200_000 + b"1", "nested too deeply", None),
        (b"import kpatch\nx = " + b"1+" * 200_000 + b"1", "nested too deeply", None),
        (b"import kpatch\nx = [0, f" + b"(1)" * 200_000 + b"]", "nested too deeply", None),
        (b"import kpatch\nx" + b".x" * 200_000, "nested too deeply", None),
        (
            b"import kpatch\n" + b" " * python_sources.MAX_PYTHON,
            "'a.py' is too long: it has more than 4,194,304 bytes",
            None,
        ),
    ],
)
def test_files_that_are_not_python(checked, data, message, place):
    (finding,) = checked(data).findings
    assert finding.code == "FileError"
    assert message in finding.error.message
    if place:
        assert finding.region[:2] == place


def test_long_data_is_not_deep(checked):
    data = "import kpatch\nx = [" + "-1, (+1).real, " * 50_000 + "]\n" + "y = -1; z = x[0](1)\n" * 10_000
    assert checked(data) == ([], 1, 0, 0)


def test_a_file_that_does_not_mention_kpatch_is_not_looked_into(checked):
    assert checked("print 'Python 2'") == ([], 1, 0, 0)


def test_no_warnings_of_pythons_own(checked, recwarn):
    assert checked("import kpatch\nx = '\\d'\nkpatch.parse('\\d')").findings[0].region[:2] == (3, 15)
    assert not recwarn.list


GROWING = {
    "calls": lambda n: "kpatch.parse(f'');" * n,
    "one line": lambda n: "'é';" + "kpatch.parse('');" * n,
    "one name": lambda n: "P='''" + "\n" * (10 * n) + "''' # kpatch: ignore\n" + "kpatch.parse(P)\n" * n,
    "imports": lambda n: "import kpatch\nkpatch.parse(p)\n" * n,
    "with": lambda n: "with " + "raises(ValueError)," * n + "x:\n" + " kpatch.parse(p)\n" * n,
    "escapes": lambda n: "kpatch.parse('" + "\\n" * (10 * n) + "')",
    "literals": lambda n: "kpatch.parse(" + "'' " * (10 * n) + ")",
}


@pytest.mark.parametrize("code", GROWING.values(), ids=GROWING)
def test_time_grows_with_the_file(code):
    """In steps of Python. What its own functions do with long lines, `benchmarks/scaling.py` measures."""
    small, large = (steps(find, "import kpatch\n" + code(count)) for count in (500, 2_000))
    assert large < 4.2 * small


def test_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    searched = ["b.py", "a.kpatch", "pkg/c.py", "pkg/deep/d.py", "dir.py/e.py"]
    others = ["text.txt", "stub.pyi", ".x.py", ".hidden/x.py", "pkg/__pycache__/x.py", "node_modules/x.py"]
    for name in (*searched, *others, "venv/pyvenv.cfg", "venv/lib/x.py"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write("kpatch = (")
    if os.name == "posix":
        os.symlink("..", "pkg/up")
        os.symlink("self.py", "self.py")
        os.mkfifo("pipe.py")
    assert sorted(finding.path for finding in check_files((".",)).findings) == sorted(searched)
    assert check_files(("pkg", "pkg/c.py", "./b.py", "b.py", "stub.pyi", ".hidden")).files == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_read(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (finding,) = check_files((str(tmp_path),)).findings
    assert "permission denied" in finding.error.message


def test_neither_keras_nor_click_is_needed_to_find_patches():
    code = (
        "import sys, kpatch.tools.python_sources as s; assert s.find('import kpatch; kpatch.parse(\"\")').patches\n"
        "assert not {'keras', 'click', 'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
