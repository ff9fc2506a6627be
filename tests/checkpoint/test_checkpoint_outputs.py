"""No output is written over an input, or over a file that is not clearly kpatch's own."""

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from calls import before_call
from click.testing import CliRunner
from models import dense, filled
from safetensors.numpy import load_file, save_file

from kpatch import checkpoint
from kpatch.errors import FileError
from kpatch.tools.command_line import main

pytestmark = pytest.mark.backend_free

MODEL = "'{}' is the model itself; in_place=True (--in-place) edits it in place"
READ = "'{}' is read by the patch; name another output"
COMPARED = "'{}' is one of the files compared; name another output"
FOREIGN = "'{}' exists and was not written by kpatch; name another output, or remove the file"
EXISTS = "'{}' exists; overwrite=True (--overwrite) replaces it"
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


def save(path, seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (40, 3), "z": (5,)}
    save_file({name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}, path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with two models, and every kind of name for the second."""
    monkeypatch.chdir(tmp_path)
    save("base.safetensors", 0)
    save("tuned.safetensors", 1)
    os.mkdir("folder")
    os.symlink(tmp_path, "dir")
    os.symlink("tuned.safetensors", "link.safetensors")
    os.link("tuned.safetensors", "hard.safetensors")
    os.symlink("link.safetensors", "twice.safetensors")
    return tmp_path


NAMES = [
    "tuned.safetensors", "./tuned.safetensors", "dir/tuned.safetensors", "folder/../tuned.safetensors",
    "link.safetensors", "hard.safetensors", "twice.safetensors", "dir/dir/hard.safetensors",
]  # fmt: skip


def state():
    """Every file below, and the bytes in it."""
    return {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stderr, result.stdout


def refused(message, *args):
    before = state()
    assert run(*args) == (1 + (args[0] == "diff"), f"kpatch.FileError: {message}\n", "")
    assert state() == before


# Inputs


@pytest.mark.parametrize("name", NAMES)
def test_no_output_of_apply_is_an_input(here, name):
    shown = str(Path(name))
    np.save("v.npy", np.zeros(3, "float32"))
    refused(MODEL.format(shown), "apply", "tuned.safetensors", "-e", "z = 3", "-o", name)
    refused(MODEL.format(shown), "apply", "tuned.safetensors", "-e", "z = 3", "-o", name, "--overwrite")
    for overwrite in ([], ["--overwrite"]):
        bind = ["--bind", "d=@tuned.safetensors:w"]
        refused(READ.format(shown), "apply", "base.safetensors", "-e", "w = $d", *bind, "-o", name, *overwrite)
    tuned = checkpoint.open("tuned.safetensors")
    for donor in (tuned, tuned.arrays[0]):
        text = "w = $d.w" if donor is tuned else "w = $d"
        with pytest.raises(FileError) as info:
            checkpoint.apply("base.safetensors", text, out=name, overwrite=True, d=donor)
        assert str(info.value) == READ.format(shown)


def test_no_output_of_apply_is_the_patch_or_an_array_that_is_handed_in(here):
    Path("z.kpatch").write_text("z = 3", encoding="utf-8")
    np.save("v.npy", np.zeros(5, "float32"))
    for name, args in (("z.kpatch", ["z.kpatch"]), ("v.npy", ["-e", "z = $v", "--bind", "v=@v.npy"])):
        os.symlink(name, f"to-{name}.safetensors")
        out = ["-o", f"to-{name}.safetensors", "--overwrite"]
        refused(READ.format(out[1]), "apply", "base.safetensors", *args, *out)


def test_no_output_of_apply_is_the_sidecar_of_the_patch(here):
    run("diff", "base.safetensors", "tuned.safetensors", "-o", "change.kpatch")
    out = ["-o", "change.safetensors", "--overwrite"]
    refused(READ.format("change.safetensors"), "apply", "base.safetensors", "change.kpatch", *out)


@pytest.mark.parametrize("name", NAMES)
def test_no_output_of_diff_is_an_input(here, name):
    shown, files = str(Path(name)), ("base.safetensors", "tuned.safetensors")
    refused(COMPARED.format(shown), "diff", *files, "--html", name)
    refused(COMPARED.format(shown), "diff", *files[::-1], "--html", name)
    text = str(Path(name).with_suffix(".kpatch"))
    refused(COMPARED.format(shown), "diff", *files, "-o", text)
    with pytest.raises(FileError) as info:
        checkpoint.diff(*files).save(text)
    assert str(info.value) == COMPARED.format(shown)
    os.symlink(name, "patch.kpatch")
    refused(COMPARED.format("patch.kpatch"), "diff", *files, "-o", "patch.kpatch")


def test_the_names_of_the_first_examination(here):
    """`-o tuned.kpatch` wrote its sidecar over the model while it read it."""
    files = ("base.safetensors", "tuned.safetensors")
    refused(COMPARED.format("tuned.safetensors"), "diff", *files, "-o", "tuned.kpatch")
    refused(COMPARED.format("base.safetensors"), "diff", *files, "-o", "base.kpatch")
    for name in ("base.safetensors", "new.safetensors", "new.keras", "new.weights.h5"):
        refused(f"'{name}' has the name of a model; a patch ends in .kpatch", "diff", *files, "-o", name)


def test_no_output_is_a_shard_that_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        filled(dense(), seed=seed).save_weights(f"{name}.weights.json", max_shard_size=6e-8)
    os.symlink(min(Path().glob("b_*.h5")), "to.kpatch")
    refused(FOREIGN.format("to.kpatch"), "diff", "a.weights.json", "b.weights.json", "-o", "to.kpatch")
    with pytest.raises(FileError) as info:
        checkpoint.diff("a.weights.json", "b.weights.json").save("to.kpatch")
    assert str(info.value) == COMPARED.format("to.kpatch")


# Files that exist


def test_a_model_that_exists_is_replaced_if_the_caller_says_so(here):
    args = ("apply", "base.safetensors", "-e", "z = 3", "-o", "hard.safetensors")
    refused(EXISTS.format("hard.safetensors"), *args)
    with pytest.raises(FileError) as info:
        checkpoint.apply("base.safetensors", "z = 3", out="hard.safetensors")
    assert str(info.value) == EXISTS.format("hard.safetensors")
    tuned = Path("tuned.safetensors").read_bytes()
    assert run(*args, "--overwrite")[:2] == (0, "")
    assert load_file("hard.safetensors")["z"].tolist() == [3] * 5
    assert Path("tuned.safetensors").read_bytes() == tuned  # it was the other name of the file that was replaced
    checkpoint.apply("base.safetensors", "z = 4", out="hard.safetensors", overwrite=True)
    assert load_file("hard.safetensors")["z"].tolist() == [4] * 5


def test_the_ways_to_say_where_a_result_goes(here):
    checkpoint.apply("base.safetensors", "z = 3", out="new.safetensors")
    checkpoint.apply("base.safetensors", "z = 3", "also.safetensors")
    assert Path("new.safetensors").read_bytes() == Path("also.safetensors").read_bytes()
    for keywords, message in (
        ({}, "say where the result goes: either out or in_place=True"),
        ({"out": "x.safetensors", "in_place": True}, "say where the result goes: either out or in_place=True"),
        (
            {"in_place": True, "overwrite": True},
            "overwrite=True says that out may be replaced; in_place=True needs no out",
        ),
    ):
        with pytest.raises(FileError) as info:
            checkpoint.apply("base.safetensors", "z = 3", **keywords)
        assert str(info.value) == message
    assert run("apply", "base.safetensors", "-e", "z = 3", "--in-place", "--overwrite")[0] == 2


def test_what_diff_did_not_write_is_not_replaced(here):
    files = ("base.safetensors", "tuned.safetensors")
    Path("notes.txt").write_text("my notes", encoding="utf-8")
    Path("empty").touch()
    save("model.safetensors", 2)
    os.symlink("notes.txt", "link.kpatch")
    for option, name, at_fault in (
        ("-o", "notes.txt", "notes.txt"),
        ("-o", "empty", "empty"),
        ("-o", "link.kpatch", "link.safetensors"),
        ("-o", "model.kpatch", "model.safetensors"),
        ("--html", "notes.txt", "notes.txt"),
        ("--html", "empty", "empty"),
        ("--html", "model.safetensors", "model.safetensors"),
    ):
        expected = COMPARED if at_fault == "link.safetensors" else FOREIGN
        refused(expected.format(at_fault), "diff", *files, option, name)


def test_what_diff_wrote_is_replaced_until_somebody_edits_it(here):
    args = ("diff", "base.safetensors", "tuned.safetensors", "-o", "change.kpatch", "--html", "map.html")
    assert run(*args) == (1, "", "wrote change.kpatch\nwrote change.safetensors\n")
    first = {name: Path(name).read_bytes() for name in ("change.kpatch", "change.safetensors", "map.html")}
    assert run(*args)[0] == 1
    assert {name: Path(name).read_bytes() for name in first} == first
    save("other.safetensors", 2)
    assert run("diff", "base.safetensors", "other.safetensors", *args[3:])[0] == 1
    assert all(Path(name).read_bytes() != data for name, data in first.items())
    with open("change.kpatch", "a", encoding="utf-8") as file:
        file.write("# mine\n")
    refused(FOREIGN.format("change.kpatch"), *args)


def test_a_patch_without_a_sidecar_keeps_its_name_free(here):
    """Whether the patch needs it is known only when the files have been read."""
    checkpoint.apply("base.safetensors", "z[0] = 3", out="near.safetensors")
    args = ("diff", "base.safetensors", "near.safetensors", "-o")
    refused(COMPARED.format("near.safetensors"), *args, "near.kpatch")
    assert run(*args, "change.kpatch") == (1, "", "wrote change.kpatch\n")
    lines = Path("change.kpatch").read_text(encoding="utf-8").splitlines()
    assert lines == ["# written by kpatch diff: text 246b81e2a137b14d", "z[0] = 3.0"]


def test_all_outputs_are_checked_before_the_first_is_written(here):
    Path("notes.txt").write_text("my notes", encoding="utf-8")
    files = ("base.safetensors", "tuned.safetensors")
    for one, other in (("-o", "--html"), ("--html", "-o")):
        refused(FOREIGN.format("notes.txt"), "diff", *files, one, "new", other, "notes.txt")
    message = "'new.html' and 'NEW.html' are one file; each output needs a name of its own"  # on some systems
    refused(message, "diff", *files, "-o", "new.html", "--html", "NEW.html")


def test_outputs_that_are_no_files(here):
    files = ("base.safetensors", "tuned.safetensors")
    os.symlink("loop", "loop")
    os.mkdir("dir.safetensors")
    for name, message in (
        ("folder", "'folder' is a directory"),
        (".", "'.' is a directory"),
        ("none/a", "'none' is not a directory"),
        ("base.safetensors/a", "'base.safetensors' is not a directory"),
        ("loop", "'loop' is not a regular file, so it is not replaced"),
        ("/dev/null", "'/dev/null' is not a regular file, so it is not replaced"),
        ("-", "'-' is not a file name here; write './-' for a file of that name"),
    ):
        refused(message, "diff", *files, "--html", name)
        if name != "/dev/null":  # whose sidecar is in /dev
            refused(message, "diff", *files, "-o", name)
    refused("'dir.safetensors' is a directory", "apply", *files[:1], "-e", "z = 3", "-o", "dir.safetensors")
    refused("'-' does not end in .safetensors", "apply", *files[:1], "-e", "z = 3", "-o", "-")
    long = f"{'x' * 300}.safetensors"
    refused(f"cannot write '{long}': file name too long", "apply", *files[:1], "-e", "z = 3", "-o", long)


def test_a_link_to_a_file_that_is_not_there_yet(here):
    os.symlink("folder/new.safetensors", "to.safetensors")
    checkpoint.apply("base.safetensors", "z = 3", out="to.safetensors")
    assert os.path.islink("to.safetensors")
    assert load_file("folder/new.safetensors")["z"].tolist() == [3] * 5


def test_a_file_that_appears_while_the_patch_runs(here):
    """Whatever the call is before which somebody writes it, it is not written over."""
    base, out = checkpoint.open("base.safetensors"), Path("new.safetensors")

    def appear():
        if not out.exists():
            out.write_bytes(b"somebody else's")

    number, texts = 0, {EXISTS.format(out)}
    while True:
        out.unlink(missing_ok=True)
        error = None
        with before_call(number, appear) as fired:
            try:
                checkpoint.apply(base, "z = 3", out=out)
            except FileError as raised:
                error = str(raised)
        if not fired:
            break
        if error is None:  # the file was there already, or there is no asking any more: the next call renames
            assert load_file(out)["z"].tolist() == [3] * 5 or fired == ["replace"]
        else:
            assert error in texts
            assert out.read_bytes() == b"somebody else's"
        number += 1
    assert number > 20


def test_a_kept_journal_is_an_output(here):
    Path("base.safetensors.kpatch-undo").write_text("my notes", encoding="utf-8")
    Path("new.safetensors.kpatch-undo").touch()
    args = ("apply", "base.safetensors", "-e", "z = 3", "--journal")
    refused(FOREIGN.format("base.safetensors.kpatch-undo"), *args, "--in-place")
    refused(FOREIGN.format("new.safetensors.kpatch-undo"), *args, "-o", "new.safetensors")
    os.unlink("base.safetensors.kpatch-undo")
    for _ in range(2):
        assert run(*args, "--in-place")[0] == 0
    checkpoint.undo("base.safetensors")


def test_the_journal_of_a_file_that_was_replaced_undoes_nothing(here):
    checkpoint.apply("base.safetensors", "z = 3", out="new.safetensors", journal=True)
    checkpoint.apply("base.safetensors", "z = 3; w = 4", out="new.safetensors", overwrite=True)
    refused_undo = (
        "kpatch.UndoError: 'new.safetensors.kpatch-undo' is of another file than 'new.safetensors' is now\n"
        "  'kpatch undo --discard new.safetensors' removes the journal and does not change the file\n"
    )
    assert run("undo", "new.safetensors") == (1, refused_undo, "")
    assert load_file("new.safetensors")["w"][0].tolist() == [4] * 3


@posix
def test_results_that_are_read_only_as_their_sources_are(here, monkeypatch):
    """For somebody whom the system holds to that."""
    known = os.open

    def held(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and os.path.exists(path) and not os.stat(path).st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Permission denied")
        return known(path, flags, *args, **options)

    os.mkdir("hf")
    os.rename("base.safetensors", "hf/1.safetensors")
    Path("hf/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "1.safetensors", "z": "1.safetensors"}})
    )
    for path in (*Path("hf").iterdir(), Path("tuned.safetensors")):
        path.chmod(0o444)
    monkeypatch.setattr(os, "open", held)
    checkpoint.apply("hf", "z = 3", "out", journal=True)
    checkpoint.apply("hf/1.safetensors", "z = 3", "tuned.safetensors", overwrite=True, journal=True)
    assert Path("out/1.safetensors").read_bytes() == Path("tuned.safetensors").read_bytes()
    assert [mode(name) for name in ("out/1.safetensors", "tuned.safetensors")] == [0o444] * 2


# Models that have to be loaded


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.keras", 0), ("b.keras", 1)):
        filled(dense(), seed=seed).save("plain.keras")
        with zipfile.ZipFile("plain.keras") as plain, zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in plain.namelist():
                archive.writestr(entry, plain.read(entry))
        os.unlink("plain.keras")


def test_outputs_of_a_model_that_has_to_be_loaded(packed):
    args = ("apply", "a.keras", "-e", "dense_1.bias = $d.dense_1.bias", "--bind", "d=@b.keras")
    os.symlink("b.keras", "link.keras")
    refused(READ.format("link.keras"), *args, "-o", "link.keras", "--overwrite")
    refused(MODEL.format("a.keras"), *args, "-o", "a.keras", "--overwrite")
    shutil.copy("a.keras", "c.keras")
    refused(EXISTS.format("c.keras"), *args, "-o", "c.keras")
    os.chmod("c.keras", 0o640)
    assert run(*args, "-o", "c.keras", "--overwrite")[0] == 0
    assert stat.S_IMODE(os.stat("c.keras").st_mode) == 0o640
    refused(
        "the weights in 'a.keras' are compressed, so an edit cannot have a journal; leave out --journal",
        *args, "--in-place", "--journal",
    )  # fmt: skip
    os.chmod("b.keras", 0o600)
    assert run(*args, "-o", "d.keras")[0] == 0
    assert stat.S_IMODE(os.stat("d.keras").st_mode) == 0o600


# A text and its sidecar


def test_a_text_and_a_sidecar_of_two_runs_are_no_pair(here, monkeypatch):
    """A process that dies at any call of the second run leaves a pair, or what is refused."""
    save("third.safetensors", 2)
    for name in ("tuned", "third"):
        checkpoint.diff("base.safetensors", f"{name}.safetensors").save(f"{name}-change.kpatch")
    found, seen = checkpoint.diff("base.safetensors", "third.safetensors"), set()
    message = "'change.safetensors' was not written together with 'change.kpatch'; run kpatch diff again"
    for number in range(1000):
        for suffix in (".kpatch", ".safetensors"):
            shutil.copy(f"tuned-change{suffix}", f"change{suffix}")
        if os.waitpid(_dying(lambda: found.save("change.kpatch"), number), 0)[1] == 0:
            break
        Path("out.safetensors").unlink(missing_ok=True)
        code, error, _ = run("apply", "base.safetensors", "change.kpatch", "-o", "out.safetensors")
        if code:
            assert error == f"kpatch.FileError: {message}\n"
            seen.add("refused")
        else:
            [name] = [n for n in ("tuned", "third") if _same("out.safetensors", f"{n}.safetensors")]
            seen.add(name)
    assert seen == {"refused", "tuned", "third"}


def _same(one, other):
    a, b = load_file(one), load_file(other)
    return all(np.array_equal(a[name], b[name]) for name in a)


def _dying(function, number):
    """Runs a function in a child process, which dies at the call of that number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with before_call(number, lambda: os._exit(9)):
                function()
            code = 0
        finally:
            os._exit(code)
    return child


def test_a_sidecar_of_ones_own_needs_no_mark(here):
    Path("mine.kpatch").write_text("w = $v", encoding="utf-8")
    save_file({"v": np.zeros((40, 3), "float32")}, "mine.safetensors")
    assert run("apply", "base.safetensors", "mine.kpatch", "-o", "out.safetensors")[0] == 0
    assert not load_file("out.safetensors")["w"].any()


# Modes and owners


@contextlib.contextmanager
def umask(mask):
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@posix
def test_a_new_file_can_be_read_by_nobody_who_cannot_read_its_inputs(here):
    for base, tuned, mask, expected in (
        (0o600, 0o644, 0o022, 0o600),
        (0o644, 0o600, 0o022, 0o600),
        (0o640, 0o604, 0o022, 0o600),
        (0o664, 0o666, 0o002, 0o664),
        (0o666, 0o666, 0o027, 0o640),
        (0o444, 0o444, 0o022, 0o644),
        (0o755, 0o755, 0o022, 0o644),
    ):
        os.chmod("base.safetensors", base)
        os.chmod("tuned.safetensors", tuned)
        with umask(mask):
            patch = ("w = 0.5 * _ + 0.5 * $d._", "merged.safetensors")
            checkpoint.apply("base.safetensors", *patch, journal=True, d=checkpoint.open("tuned.safetensors"))
            run("diff", "base.safetensors", "tuned.safetensors", "-o", "change.kpatch", "--html", "map.html")
        made = ["merged.safetensors", "merged.safetensors.kpatch-undo"]
        made += ["change.kpatch", "change.safetensors", "map.html"]
        assert [oct(mode(name)) for name in made] == [oct(expected)] * 5
        for name in made:
            os.unlink(name)


@posix
def test_a_file_that_is_replaced_keeps_its_mode_and_its_journal_is_no_wider(here):
    checkpoint.apply("base.safetensors", "z = 3", out="new.safetensors")
    for number, bits in enumerate((0o600, 0o640, 0o604)):
        os.chmod("new.safetensors", bits)
        with umask(0):
            checkpoint.apply("base.safetensors", "z = 3", out="new.safetensors", journal=True, overwrite=True)
        [journal] = Path().glob("new.safetensors.kpatch-undo*")
        assert (mode("new.safetensors"), mode(journal), journal.name[-2:]) == (bits, bits, ("do", "-2", "-3")[number])


@posix
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o660, 0o644])
def test_a_journal_is_no_wider_than_its_file(here, bits, monkeypatch):
    os.chmod("base.safetensors", bits)
    seen, replace = [], os.replace

    def looking(source, target):
        seen.append((oct(mode(source)), Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "replace", looking)
    with umask(0):
        checkpoint.apply("base.safetensors", "z = 3", in_place=True, journal=True)
    assert seen == [
        (oct(bits), ".base.safetensors.kpatch-journal"),
        (oct(bits), "base.safetensors.kpatch-undo"),
    ]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_kept(here):
    os.unlink("hard.safetensors")
    for name in ("base.safetensors", "tuned.safetensors"):
        os.chown(name, 1234, 2345)
        os.chmod(name, 0o640)
    checkpoint.apply("tuned.safetensors", "z = 3", in_place=True, journal=True)
    checkpoint.apply("tuned.safetensors", "z = 3", out="base.safetensors", journal=True, overwrite=True)
    for name in ("tuned.safetensors.kpatch-undo", "base.safetensors", "base.safetensors.kpatch-undo"):
        found = os.stat(name)
        assert (found.st_uid, found.st_gid, mode(name)) == (1234, 2345, 0o640), name


AS_NOBODY = """
import os, sys
from kpatch import checkpoint, errors
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    checkpoint.apply("base.safetensors", "z = 3", **eval(sys.argv[1]))
except errors.FileError as error:
    print(error)
"""


def as_nobody(**keywords):
    """What an edit in a process without rights says."""
    code = [sys.executable, "-c", AS_NOBODY, repr(keywords)]
    ran = subprocess.run(code, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def open_to_all(monkeypatch):
    """A directory that others can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        os.chmod(folder, 0o777)
        save("base.safetensors", 0)
        yield Path(folder)
        monkeypatch.undo()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root becomes somebody else")
def test_somebody_who_may_not_keep_the_group(open_to_all):
    """What the group could read, another group cannot."""
    os.chmod("base.safetensors", 0o666)
    checkpoint.apply("base.safetensors", "z = 1", out="new.safetensors")
    os.chmod("new.safetensors", 0o664)
    assert as_nobody(in_place=True, journal=True) == ""
    assert mode("base.safetensors.kpatch-undo") == 0o606
    assert as_nobody(out="new.safetensors", overwrite=True) == ""
    assert (mode("new.safetensors"), os.stat("new.safetensors").st_gid) == (0o604, 65534)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root becomes somebody else")
def test_files_and_directories_that_are_read_only(open_to_all):
    denied = "cannot write '{}': permission denied"
    for folder, file, read in ((0o755, 0o666, True), (0o777, 0o644, True), (0o777, 0o600, False)):
        open_to_all.chmod(folder)
        os.chmod("base.safetensors", file)
        unreadable = "cannot read 'base.safetensors': permission denied"
        assert as_nobody(in_place=True) == (denied.format("base.safetensors") if read else unreadable)
        if folder == 0o755 or not read:
            assert as_nobody(out="x.safetensors") == (denied.format("x.safetensors") if read else unreadable)
    assert os.listdir() == ["base.safetensors"]
