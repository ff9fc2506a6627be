"""The command line, and the files it reads and writes."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from kpatch.checkpoint import destinations, keras_files, outputs
from kpatch.errors import FileError
from kpatch.tools import command_line, loading

pytestmark = pytest.mark.backend_free

DIGITS = Path(__file__).parents[2] / "examples" / "digits.keras"


@keras.saving.register_keras_serializable("tests")
class Custom(keras.layers.Dense):
    pass


@keras.saving.register_keras_serializable("tests")
def custom_loss(y_true, y_pred):
    return keras.losses.mean_squared_error(y_true, y_pred)


@pytest.fixture
def model(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3, name="dense_1"), keras.layers.Dense(2, name="head")]
    path = tmp_path / "model.keras"
    keras.Sequential(layers, name="small").save(path)
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `kpatch` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def invoke(*args, stdin=None):
        return CliRunner().invoke(command_line.main, [str(arg) for arg in args], input=stdin)

    return invoke


def kernel(path, layer="dense_1"):
    return keras.ops.convert_to_numpy(keras.saving.load_model(path).get_layer(layer).kernel)


# apply


@pytest.mark.every_backend
def test_apply_writes_the_result_and_shows_what_changed(run, model):
    before, data = kernel(model), model.read_bytes()
    result = run("apply", model, "-e", "dense_1.kernel[0, 0] = 1.5", "-o", "out.keras")
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("dense_1.kernel[0, 0] = 1.5", "(4, 3)", f"{before[0, 0]:.4g}", "1.5", "wrote out.keras"):
        assert text in result.stdout
    expected = before.copy()
    expected[0, 0] = 1.5
    np.testing.assert_array_equal(kernel("out.keras"), expected)
    assert model.read_bytes() == data


def test_statements_of_the_file_come_before_those_of_e(run, model):
    Path("a.kpatch").write_text("dense_1.bias = 1  # a comment at the end", encoding="utf-8")
    result = run("apply", model, "a.kpatch", "-e", "dense_1.bias += 2", "-e", "dense_1.bias *= 2", "-o", "out.keras")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(keras.saving.load_model("out.keras").get_layer("dense_1").bias, [6, 6, 6])


def test_locals_of_the_file_are_known_to_e(run, model):
    Path("a.kpatch").write_text("let x = 5", encoding="utf-8")
    assert run("apply", model, "a.kpatch", "-e", "head.bias = x", "--in-place").exit_code == 0
    np.testing.assert_array_equal(keras.saving.load_model(model).get_layer("head").bias, [5, 5])


def test_standard_input(run, model):
    assert run("apply", model, "-", "-o", "out.keras", stdin="head.bias[1] = 3").exit_code == 0
    np.testing.assert_array_equal(keras.saving.load_model("out.keras").get_layer("head").bias, [0, 3])


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, model):
    data, names = model.read_bytes(), os.listdir()
    result = run("apply", model, "-e", "dense_1.kernel[:, 1] = 0", "--dry-run", "--in-place")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "dense_1.kernel[:, 1] = 0" in result.stdout
    assert "float32" in result.stdout
    assert (model.read_bytes(), os.listdir()) == (data, names)


def test_in_place_keeps_permissions_and_links(run, model):
    model.chmod(0o640)
    link = Path("link.keras")
    link.symlink_to(model)
    assert run("apply", link, "-e", "head.bias = 7", "--in-place").exit_code == 0
    assert link.is_symlink()
    assert stat.S_IMODE(model.stat().st_mode) == 0o640
    np.testing.assert_array_equal(keras.saving.load_model(model).get_layer("head").bias, [7, 7])


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_new_file_has_the_permissions_of_the_umask(run, model):
    umask = os.umask(0o027)
    try:
        assert run("apply", model, "-e", "head.bias = 7", "-o", "out.keras").exit_code == 0
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat("out.keras").st_mode) == 0o640


@pytest.mark.parametrize("same", ["model.keras", "./model.keras", "link.keras", "hard.keras"])
def test_output_that_is_the_model_is_refused(run, model, same):
    os.symlink(model, "link.keras")
    os.link(model, "hard.keras")
    data = model.read_bytes()
    result = run("apply", model, "-e", "head.bias = 7", "-o", same)
    assert result.exit_code == 1
    path = str(Path(same))
    expected = f"kpatch.FileError: '{path}' is the model itself; in_place=True (--in-place) edits it in place\n"
    assert result.stderr == expected
    assert model.read_bytes() == data


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-e", "head.bias = 1"], "Give the output"),
        (["-o", "out.keras"], "Nothing to apply"),
        (["-e", "head.bias = 1", "-o", "out.keras", "--in-place"], "exclude each other"),
    ],
)
def test_usage_errors_exit_with_2(run, model, args, message):
    result = run("apply", model, *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_error_has_a_caret_and_no_traceback_and_writes_nothing(run, model):
    names = sorted(os.listdir())
    result = run("apply", model, "-e", "dense_1.kernal[0, 0] = 1.0", "-o", "out.keras")
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert lines[0] == "kpatch.ResolutionError: no variable 'dense_1.kernal'; did you mean 'dense_1.kernel'?"
    assert lines[2:4] == ["    dense_1.kernal[0, 0] = 1.0", "            ^^^^^^"]
    assert sorted(os.listdir()) == names


def test_an_error_says_which_source_it_is_in(run, model):
    Path("a.kpatch").write_text("head.bias = 1\nhead.bios = 2\n", encoding="utf-8")
    result = run("apply", model, "a.kpatch", "-e", "head.bias = 1\nhed.bias = 3", "--dry-run")
    assert result.exit_code == 1
    assert "  that is line 2 of a.kpatch\n" in result.stderr
    assert "  that is line 2 of -e 'head.bias = 1\\nhed.bias = 3'\n" in result.stderr


def test_a_failing_assertion_leaves_the_file(run, model):
    data = model.read_bytes()
    result = run("apply", model, "-e", "head.bias = 1; assert all(head.bias == 0), 'not zero'", "--in-place")
    assert result.exit_code == 1
    assert "kpatch.PatchAssertionError: " in result.stderr
    assert model.read_bytes() == data


@pytest.mark.every_backend
def test_the_optimizer_is_kept(run, tmp_path, backend):
    path = tmp_path / "trained.keras"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="head")])
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    for i, variable in enumerate(model.optimizer.variables):
        variable.assign(keras.ops.full(variable.shape, i + 1, variable.dtype))
    model.save(path)
    assert run("apply", path, "-e", "head.bias = 7", "-o", "out.keras").exit_code == 0
    optimizer = keras.saving.load_model("out.keras").optimizer
    assert [float(np.max(v)) for v in optimizer.variables] == [float(np.max(v)) for v in model.optimizer.variables]


# check

CODE = """import kpatch

kpatch.apply(model, "dense_1.kernel[0, 0] = 1")
kpatch.apply(model, "head.bias[0 = 1; head.bias = 1 2")
kpatch.apply(model, f"head.bias = {bias}")
"""
FOUND = """\
a.py:4:34: PatchSyntaxError: expected ',' or ']', found '='
    head.bias[0 = 1; head.bias = 1 2
                ^
a.py:4:53: PatchSyntaxError: expected the end of the statement, found '2'
    head.bias[0 = 1; head.bias = 1 2
                                   ^
  statements end at a newline or ';'
"""


@pytest.fixture
def code():
    def write(text=CODE):
        Path("a.py").write_text(text, encoding="utf-8")

    return write


def test_check(run):
    Path("good.kpatch").write_text("a.b = 1; c.d = 2\n", encoding="utf-8")
    result = run("check", "good.kpatch")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1 patch in 1 file, no errors\n", "")


def test_check_goes_on_after_an_error(run):
    Path("bad.kpatch").write_text("\ufeff\r\na.b[0 = 1", encoding="utf-8")
    result = run("check", "bad.kpatch", "-", "none.kpatch", stdin="a.b = 1; a.b = $")
    assert result.exit_code == 1
    assert result.stdout == (
        "bad.kpatch:2:7: PatchSyntaxError: expected ',' or ']', found '='\n    a.b[0 = 1\n          ^\n"
        "<stdin>:1:16: PatchSyntaxError: unexpected character '$'; a binding is '$' and a name, as in '$x'\n"
        "    a.b = 1; a.b = $\n                   ^\n"
        "none.kpatch: FileError: cannot read 'none.kpatch': no such file or directory\n"
        "2 patches in 3 files, 3 errors\n"
    )
    assert result.stderr == ""


def test_check_reads_utf_8_only(run):
    Path("bad.kpatch").write_bytes(b"a.b = 1 # \xff")
    result = run("check", "bad.kpatch")
    assert result.exit_code == 1
    assert result.stdout.startswith("bad.kpatch: FileError: 'bad.kpatch' is not UTF-8 text: byte 10 is 0xff\n")


def test_check_finds_the_patches_in_code(run, code):
    code()
    result = run("check", ".")
    assert result.exit_code == 1
    summary = "2 patches in 1 file, 2 errors\n1 patch is computed and was not checked\n"
    assert (result.stdout, result.stderr) == (FOUND + summary, "")


def test_check_as_json(run, code):
    code()
    result = run("check", "a.py", "none.py", "--format", "json")
    assert (result.exit_code, result.stderr) == (1, "")
    first, second, third = json.loads(result.stdout)
    assert first["message"] == "expected ',' or ']', found '='"
    assert second == {
        "path": "a.py",
        "line": 4,
        "column": 53,
        "end_line": 4,
        "end_column": 54,
        "code": "PatchSyntaxError",
        "message": "expected the end of the statement, found '2'",
        "notes": ["statements end at a newline or ';'"],
        "statement": "head.bias[0 = 1; head.bias = 1 2",
    }
    assert third["path"] == "none.py"
    assert {third[name] for name in ("line", "column", "end_line", "end_column", "statement")} == {None}
    code("")
    assert run("check", "a.py", "--format", "json").stdout == "[]\n"


def test_check_as_annotations_of_github(run):
    os.makedirs("50%: a,b")
    path = Path("50%: a,b", "a.py")
    path.write_text("import kpatch\nkpatch.parse('a.b = \"%\\n')", encoding="utf-8")
    result = run("check", ".", "--format", "github")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == (
        "::error file=50%25%3A a%2Cb/a.py,line=2,col=21,endLine=2,endColumn=23,title=kpatch.PatchSyntaxError::"
        'the string is not closed; a " is missing\n'
    )
    path.write_text("import kpatch\nkpatch.parse('a.b = 1 % % 2')", encoding="utf-8")
    assert "found '%25'" in run("check", ".", "--format", "github").stdout


def test_check_looks_up_names_in_a_model(run, model, code):
    Path("b.kpatch").write_text("head.bias = hed.bias\ndense_2.bias = $m.nope.kernel + $m._", encoding="utf-8")
    code(
        "import kpatch\n"
        'kpatch.plan(model, \'let x = mean("head/kernal"); head.bias = x + cast(head.bias, "int8")\')\n'
        "kpatch.edit(x, '_[0] = none.bias'); kpatch.parse('none.bias = 1'); kpatch.apply(model, '_ = 1')\n"
    )
    result = run("check", ".", "--model", model, "--format", "json")
    assert (result.exit_code, result.stderr) == (1, "")
    found = [(each["path"], each["line"], each["column"], each["message"]) for each in json.loads(result.stdout)]
    assert found == [
        ("a.py", 2, 40, """no variable '"head/kernal"'; did you mean 'head.kernel'?"""),
        ("b.kpatch", 1, 13, "no variable 'hed.bias'; did you mean 'head.bias'?"),
        ("b.kpatch", 2, 1, "no variable 'dense_2.bias'; did you mean 'dense_1.bias'?"),
    ]
    assert run("check", ".").stdout == "5 patches in 2 files, no errors\n"
    result = run("check", ".", "--model", "none.keras")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "kpatch.FileError: cannot read 'none.keras': no such file or directory\n"


def test_check_takes_activations_where_they_are_edited(run, model, code):
    code(
        "import kpatch\n"
        "kpatch.intervene(model, 'head.output = 0; head.bias = 0')\n"
        "kpatch.apply(model, 'head.output = 0')\n"
        "kpatch.intervene(model, 'hed.output = 0')\n"
    )
    result = run("check", ".", "--model", model, "--format", "json")
    found = [(each["line"], each["code"], each["message"]) for each in json.loads(result.stdout)]
    assert found == [
        (3, "UnsupportedError", "'head.output' is an activation; kpatch.rewrite and kpatch.intervene edit those"),
        (4, "ResolutionError", "no activation 'hed.output'; did you mean 'head.output'?"),
    ]


def test_check_follows_the_names_of_patch_files(run, code):
    Path("sub").mkdir()
    Path("here.kpatch").write_text("a.b = ", encoding="utf-8")
    Path("sub", "beside.kpatch").write_text("a.b = 0", encoding="utf-8")
    Path("sub", "a.py").write_text(
        "import kpatch, pathlib\n"
        "kpatch.apply(model, pathlib.Path('here.kpatch'))\n"
        "kpatch.apply(model, [kpatch.load('beside.kpatch'), pathlib.Path('missing.kpatch')])\n",
        encoding="utf-8",
    )
    result = run("check", str(Path("sub", "a.py")))
    assert result.stdout.startswith("here.kpatch:1:6: PatchSyntaxError: a value is missing after '='\n")
    assert result.stdout.endswith("2 patches in 3 files, 1 error\n1 patch is computed and was not checked\n")


def test_check_looks_up_every_match_of_a_glob(run, model, monkeypatch):
    from kpatch.errors import ResolutionError
    from kpatch.names.index import ModelIndex

    def find_all(index, selector):
        raise ResolutionError(f"no match for '{selector}'")

    monkeypatch.setattr(ModelIndex, "find_all", find_all, raising=False)
    result = run("check", "-", "--model", model, stdin="let x = 0; conv*.bias = x")
    assert result.stdout == (
        "<stdin>:1:12: ResolutionError: no match for 'conv*.bias'\n"
        "    let x = 0; conv*.bias = x\n"
        "               ^^^^^^^^^^\n"
        "1 patch in 1 file, 1 error\n"
    )


def test_check_without_paths_or_with_an_unknown_format(run):
    assert run("check").exit_code == 2
    assert run("check", ".", "--format", "xml").exit_code == 2


def test_check_never_imports_keras(tmp_path):
    (tmp_path / "a.kpatch").write_text("a.b = cast(c.d, 'int8')", encoding="utf-8")
    (tmp_path / "a.py").write_text("import keras, kpatch; kpatch.apply(model, 'a.b = 1')", encoding="utf-8")
    code = (
        "import sys; from kpatch.tools.command_line import main\n"
        "try: main(['check', '.'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'keras', 'jax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env=_environment(), capture_output=True, text=True
    )
    assert ran.stdout == "2 patches in 2 files, no errors\n"


# show


def test_a_statement_in_the_place_of_a_file(run, model):
    result = run("apply", model, "head.bias = 0", "-o", "out.keras")
    assert result.exit_code == 1
    assert result.stderr == (
        "kpatch.FileError: cannot read 'head.bias = 0': no such file or directory\n"
        "  if it is a statement and no file: -e 'head.bias = 0'\n"
    )


def rows_of(result):
    """The words of each line of a table, without the rule under its head."""
    return [words for line in result.stdout.splitlines() if (words := line.split()) and "─" not in line]


def test_show_lists_every_name(run, model):
    result = run("show", model)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = rows_of(result)
    assert rows[0] == ["name", "shape", "dtype", "min", "mean", "max"]
    assert [row[0] for row in rows[1:]] == ["dense_1.kernel", "dense_1.bias", "head.kernel", "head.bias"]
    assert rows[1][1:4] == ["(4,", "3)", "float32"]
    assert float(rows[1][4]) == pytest.approx(kernel(model).min(), rel=1e-5)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("head", ["head.kernel", "head.bias"]),
        ("head.bias", ["head.bias"]),
        ("layers[0].bias", ["dense_1.bias"]),
    ],
)
def test_show_a_selection(run, model, selector, names):
    result = run("show", model, selector)
    assert result.exit_code == 0, result.output
    assert [row[0] for row in rows_of(result)[1:]] == names


def test_show_activations(run, model):
    result = run("show", model, "head", "--activations")
    assert rows_of(result) == [["name", "shape", "dtype"], ["head.output", "(None,", "2)", "float32"]]
    told = json.loads(run("show", model, "head", "--activations", "--json").stdout)
    assert told["rows"] == [{"path": "head.output", "shape": [None, 2], "dtype": "float32"}]
    result = run("show", model, "head", "--activations", "--stats")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("kpatch.UnsupportedError: activations have values only while the model runs; leave")


def test_show_an_unknown_name(run, model):
    result = run("show", model, "haed.bias")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("kpatch.ResolutionError: no variable 'haed.bias'; did you mean 'head.bias'?")


@pytest.mark.parametrize("selector", ["", "head.bias[0]", "a = 1; b", "_", "let x"])
def test_show_refuses_what_is_no_selector(run, model, selector):
    result = run("show", model, selector)
    assert result.exit_code == 2
    assert "not a selector" in result.stderr


# files


def error_of(path, **options):
    with pytest.raises(FileError) as info:
        keras_files.load(path, **options)
    return str(info.value)


def test_files_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of("none.keras") == "cannot read 'none.keras': no such file or directory"
    os.mkdir("dir.keras")
    assert error_of("dir.keras") == "cannot read 'dir.keras': is a directory"
    Path("empty.keras").touch()
    assert error_of("empty.keras") == "'empty.keras' is not a .keras file: it is empty"
    Path("text.keras").write_text("hello", encoding="utf-8")
    assert error_of("text.keras") == "'text.keras' is not a .keras file: it is not a zip archive, or is damaged"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save_weights("a.weights.h5")
    assert error_of("a.weights.h5") == (
        "'a.weights.h5' is not a .keras file: it is an HDF5 file, of weights alone or of Keras 2; "
        "load it in Python and save the model as .keras"
    )
    with zipfile.ZipFile("other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert error_of("other.keras") == (
        "'other.keras' is not a Keras model: the archive lacks its config.json or its weights"
    )


def test_a_truncated_file(model):
    data = model.read_bytes()
    model.write_bytes(data[: len(data) // 2])
    assert error_of(model) == f"'{model}' is not a .keras file: it is not a zip archive, or is damaged"


def test_damaged_bytes_end_in_a_file_error(model):
    """A bit flipped anywhere in the archive is found by its checksum or by Keras, and never ends in a traceback."""
    data = bytearray(model.read_bytes())
    for position in range(30, len(data), len(data) // 25):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        model.write_bytes(damaged)
        with contextlib.suppress(FileError):
            keras_files.load(model)


def rewrite_config(path, change, compression=zipfile.ZIP_STORED):
    """Changes the config.json inside a file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = json.dumps(change(json.loads(parts["config.json"]))).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_an_unknown_class_is_named(tmp_path):
    path = tmp_path / "custom.keras"
    keras.Sequential([keras.Input((2,)), Custom(1)]).save(path)
    rewrite_config(path, lambda config: json.loads(json.dumps(config).replace("Custom", "Missing")))
    assert error_of(path) == (
        f"cannot load '{path}': it needs the custom class 'Missing', which is not known here\n"
        "  --import MODULE imports the code that has it; in Python, custom_objects={...} hands it in"
    )


def test_a_lambda_is_not_run(tmp_path):
    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
    assert error_of(path).startswith(
        f"cannot load '{path}': it holds a Python lambda, which is code that loading would run\n"
    )


@pytest.mark.every_backend
def test_an_unknown_loss_costs_the_training_state_where_a_model_must_be_loaded(run, tmp_path):
    """Compressed weights cannot be edited where they are."""
    path = tmp_path / "custom.keras"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
    model.compile(loss=custom_loss)
    model.save(path)
    rewrite_config(path, lambda config: json.loads(json.dumps(config).replace("custom_loss", "missing_loss")), 8)
    result = run("apply", path, "-e", "head.bias = 1", "-o", "out.keras")
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        "warning: it needs the custom function 'missing_loss', which is not known here; "
        "the model was loaded without its training state\n"
    )
    data = path.read_bytes()
    result = run("apply", path, "-e", "head.bias = 1", "--in-place")
    assert result.exit_code == 1
    assert "missing_loss" in result.stderr
    assert path.read_bytes() == data


@pytest.mark.every_backend
def test_the_training_state_is_kept_whatever_it_needs(run, tmp_path):
    path = tmp_path / "custom.keras"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
    model.compile(loss=custom_loss)
    model.save(path)
    rewrite_config(path, lambda config: json.loads(json.dumps(config).replace("custom_loss", "missing_loss")))
    result = run("apply", path, "-e", "head.bias = 1", "--in-place")
    assert (result.exit_code, result.stderr) == (0, "")
    with zipfile.ZipFile(path) as archive:
        assert b"missing_loss" in archive.read("config.json")


def test_a_model_of_unknown_classes_is_edited_by_the_names_in_the_file(run, tmp_path):
    path = tmp_path / "custom.keras"
    keras.Sequential([keras.Input((2,)), Custom(1)]).save(path)
    rewrite_config(path, lambda config: json.loads(json.dumps(config).replace("Custom", "Missing")))
    result = run("apply", path, "-e", "layers.custom.vars.1 = 7", "--in-place")
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        "note: it needs the custom class 'Missing', which is not known here; "
        "the names are those in the file, as in 'layers.custom.vars.0'\n"
    )


def test_undo(run, model):
    data = model.read_bytes()
    assert run("apply", model, "-e", "head.bias = 1", "--in-place", "--journal").exit_code == 0
    assert model.read_bytes() != data
    result = run("undo", model)
    assert (result.exit_code, result.stdout) == (0, f"restored {model}\n")
    assert model.read_bytes() == data
    assert run("undo", model).exit_code == 1


def test_a_donor_is_a_file(run, model):
    shutil.copy(model, "donor.keras")
    assert run("apply", "donor.keras", "-e", "head.bias = [1, 2]", "--in-place").exit_code == 0
    result = run("apply", model, "-e", "**.bias = $d._ * $s", "--bind", "d=@donor.keras", "--bind", "s=2", "--in-place")
    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_array_equal(keras.saving.load_model(model).get_layer("head").bias, [2, 4])
    result = run("apply", model, "-e", "**.bias = 0", "--expect", "3", "--in-place")
    assert result.stderr.startswith("kpatch.ResolutionError: the patch matches 2 variables, not 3")


def test_show_statistics(run, model):
    result = run("show", model, "*.bias", "--stats")
    rows = rows_of(result)
    assert rows[0] == ["name", "shape", "dtype", "min", "mean", "max", "std", "zeros", "nan", "inf"]
    assert rows[1] == ["dense_1.bias", "(3,)", "float32", "0", "0", "0", "0", "3", "0", "0"]
    assert rows[2][0] == "head.bias"


def test_a_failed_save_leaves_the_file_and_nothing_beside_it(model, monkeypatch):
    loaded = keras_files.load(model).model
    data, names = model.read_bytes(), os.listdir(model.parent)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError) as info:
        keras_files.save(loaded, outputs.Output(model, overwrite=True), {}, [])
    assert str(info.value) == f"cannot write '{model}': no space left on device"
    assert (model.read_bytes(), os.listdir(model.parent)) == (data, names)


def test_outputs_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("dir.keras")
    messages = {
        "out.h5": "'out.h5' does not end in .keras",
        "dir.keras": "'dir.keras' is a directory",
        "none/out.keras": "'none' is not a directory",
    }
    for output, message in messages.items():
        with pytest.raises(FileError) as info:
            destinations.check_output(output, "model.keras", {}, overwrite=False)
        assert str(info.value) == message.replace("/", os.sep)


# processes


def _environment(**changes):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
    return {**environment, **changes}


def test_without_any_configuration(tmp_path):
    """The README's first command, twice: at its first import Keras writes a configuration that names TensorFlow."""
    shutil.copy(DIGITS, tmp_path / "digits.keras")
    script = [sys.executable, "-c", "from kpatch.tools.command_line import main; main()"]
    command = [*script, "apply", "digits.keras", "-e", "conv1.kernel[..., 3] = 0", "-o", "patched.keras"]
    for arguments in (command, [*command, "--overwrite"]):
        ran = subprocess.run(
            arguments, cwd=tmp_path, env=_environment(KERAS_HOME=str(tmp_path / "home")), capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert "conv1.kernel[..., 3] = 0" in ran.stdout
    assert not kernel(tmp_path / "patched.keras", "conv1")[..., 3].any()
    assert kernel(tmp_path / "patched.keras", "conv1").any()


def test_the_backend(tmp_path, monkeypatch):
    monkeypatch.setitem(loading.PACKAGES, "torch", "no_such_package")
    monkeypatch.setitem(loading.PACKAGES, "jax", "json")
    monkeypatch.setitem(loading.PACKAGES, "tensorflow", "json")
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def chosen(variable, configured):
        monkeypatch.setenv("KERAS_BACKEND", variable)
        (tmp_path / "keras.json").write_text(configured, encoding="utf-8")
        loading.choose_backend()
        return os.environ["KERAS_BACKEND"]

    assert chosen("", "") == "numpy"
    assert chosen("", "[]") == "numpy"
    assert chosen("", '{"backend": "tensorflow"}') == "tensorflow"
    assert chosen("", '{"backend": "torch"}') == "numpy"
    assert chosen("jax", '{"backend": "tensorflow"}') == "jax"
    with pytest.raises(loading.click.UsageError, match="no_such_package is not installed"):
        chosen("torch", "")
    with pytest.raises(loading.click.UsageError, match="is not a backend of Keras"):
        chosen("theano", "")


def test_help_has_examples(run):
    for command in ("apply", "check", "show", "undo"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"  kpatch {command} " in result.stdout


def test_python_m_kpatch_is_the_command_line(tmp_path):
    script = [sys.executable, "-m", "kpatch", "check", "no_such_file.kpatch"]
    options = {"cwd": tmp_path, "env": _environment(), "capture_output": True, "text": True}
    ran = subprocess.run(script, **options)
    expected = "no_such_file.kpatch: FileError: cannot read 'no_such_file.kpatch': no such file or directory\n"
    assert (ran.returncode, ran.stdout) == (1, expected + "0 patches in 1 file, 1 error\n")
    usage = subprocess.run([*script[:3], "--help"], **options).stdout
    assert usage.startswith("Usage: kpatch [OPTIONS] COMMAND")
