"""The cache of names: as Keras names them, or nothing; damage, strangers and other files are ignored."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from checkpoint import checkpoints
from models import dense, mixed

from kpatch.checkpoint import architecture, remembered
from kpatch.checkpoint.opened import Checkpoint
from kpatch.errors import PatchError
from kpatch.names import counterparts, tree
from kpatch.names.index import index
from kpatch.syntax import parse

pytestmark = pytest.mark.backend_free

MODELS = {
    each.__name__: each
    for each in (
        dense, mixed, checkpoints.conv, checkpoints.lstm, checkpoints.bidirectional, checkpoints.attention,
        checkpoints.nested, checkpoints.shared, checkpoints.embedding, checkpoints.time_distributed,
        checkpoints.mixed_bfloat16, checkpoints.trained,
    )
}  # fmt: skip
SELECTORS = (
    "**", "**.kernel", "*.bias", "layers[0].kernel", "layers[-1].bias", "kernel", "head", "dense.kernel",
    "dense_1.kernel", "head.kernal", "inner.**", "**.kernal", "nothing.kernel", "*", "layers[9].kernel", "bi.**",
    "lstm.kernel", "weights", '"inner/proj/kernel"', "inner.layers[0].kernel", "attention.*.kernel", "head.output",
    "optimizer.learning_rate", "optimizer.**", "optimizer.momentum.**.kernel", "optimizer.nothing", "optimizer",
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Saves a model; gives its file opened, its index and its arrays by Keras, and the place of its names."""

    def make(model, name="model"):
        model.save(tmp_path / f"{name}.keras")
        file = Checkpoint(tmp_path / f"{name}.keras")
        built, arrays = architecture.build(file._config, file.arrays)
        return file, index(built), arrays, tmp_path / "names" / f"{name}.json"

    (tmp_path / "names").mkdir(mode=0o700)
    return make


def found(known, arrays, selector):
    """What a selector means, or the error."""
    try:
        entries = known.find_all(parse(f"{selector} = 0").statements[0].target.selector)
    except PatchError as error:
        return str(error)
    return [described(entry, arrays) for entry in entries]


def described(entry, arrays):
    array = arrays.get(id(entry.variable))
    return entry.path, entry.shape, entry.dtype, entry.hidden, entry.variable.path, array and array.path


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_names_are_those_that_keras_gave(model, saved):
    file, by_keras, arrays, place = saved(model())
    remembered.keep(place, by_keras, arrays)
    known, kept = remembered.read(place, file.arrays)
    assert [described(e, kept) for e in known.entries] == [described(e, arrays) for e in by_keras.entries]
    assert [node.keys() for node in known.nodes] == [node.keys() for node in by_keras.nodes]
    for selector in SELECTORS:
        assert found(known, kept, selector) == found(by_keras, arrays, selector)


def test_kept_names_have_the_counterparts_that_keras_has(saved):
    """Found by position, since all names are numbers that Keras counts: the classes of layers are compared."""
    file, by_keras, arrays, place = saved(checkpoints.functional(keras.layers.Dense(4), keras.layers.Dense(4)))
    remembered.keep(place, by_keras, arrays)
    known, _ = remembered.read(place, file.arrays)
    wider = index(checkpoints.functional(keras.layers.Dense(4, use_bias=False), keras.layers.Dense(4)))
    kernel = wider.entries[-2]
    expected = counterparts.Counterparts("d", by_keras).of(kernel).path
    assert counterparts.Counterparts("d", known).of(kernel).path == expected
    target = known.find(parse(f"{expected} = 0").statements[0].target.selector)
    assert counterparts.Counterparts("d", wider).of(target) is kernel


class Custom(keras.layers.Dense):
    pass


def custom():
    return checkpoints.functional(Custom(3, name="own"))


@pytest.mark.parametrize("model", [custom, checkpoints.int8, checkpoints.float8])
def test_foreign_classes_and_codes_are_not_kept(model, saved):
    with keras.saving.custom_object_scope({"Custom": Custom}):
        _, by_keras, arrays, place = saved(model())
    remembered.keep(place, by_keras, arrays)
    assert not place.exists()


def test_every_slot_of_the_tree_is_kept():
    """A new slot of `LayerNode` or `Entry` goes into `remembered.py`."""
    others = {"__weakref__", "_below", "_counted", "item", "kind", "parent", "routes", "scope"}
    assert set(tree.LayerNode.__slots__) - others == {*remembered.LISTS, *remembered.NAMED}
    assert set(tree.Entry.__slots__) == {
        "_path", "_stored", "hidden", "order", "owner", "part_of", "routes", "variable", "weight",
    }  # fmt: skip


def signed(place, text):
    data = text.encode()
    place.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def test_damage_is_ignored(saved):
    file, by_keras, arrays, place = saved(dense())
    remembered.keep(place, by_keras, arrays)
    whole = place.read_bytes()
    for at in range(0, len(whole), 37):
        place.write_bytes(whole[:at])
        assert remembered.read(place, file.arrays) is None
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert remembered.read(place, file.arrays) is None
    place.unlink()
    assert remembered.read(place, file.arrays) is None


ODD = [None, -1, 10**6, "", "x", [], {}, 1.5, True, [[0, 0, 0]], {"kernel": [99]}, {"kernel": 0}, "kernel"]


def places_in(content, at=()):
    """Each place in nested lists and dicts, as a chain of keys."""
    yield at
    for key, part in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(part, (dict, list)):
            yield from places_in(part, (*at, key))
        else:
            yield (*at, key)


def test_an_entry_that_somebody_wrote_is_sound_or_ignored(saved):
    file, by_keras, arrays, place = saved(checkpoints.trained())
    remembered.keep(place, by_keras, arrays)
    text, draw = place.read_bytes().partition(b"\n")[2].decode(), random.Random(0)
    every = [at for at in places_in(json.loads(text)) if at]
    outcomes = set()
    for at in draw.sample(every, 200):
        content = holder = json.loads(text)
        for key in at[:-1]:
            holder = holder[key]
        holder[at[-1]] = draw.choice(ODD)
        signed(place, json.dumps(content))
        read = remembered.read(place, file.arrays)
        outcomes.add(read is None)
        for selector in SELECTORS if read else ():
            found(*read, selector)
    assert outcomes == {True, False}


def test_each_variable_has_an_array_of_its_shape(saved):
    _, by_keras, arrays, place = saved(dense())
    remembered.keep(place, by_keras, arrays)
    wider = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="dense_1"), keras.layers.Dense(2)])
    assert remembered.read(place, saved(wider, "wider")[0].arrays) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_what_others_may_write_is_ignored(saved):
    file, by_keras, arrays, place = saved(dense())
    remembered.keep(place, by_keras, arrays)
    assert place.stat().st_mode & 0o777 == 0o600
    for path, mode in ((place, 0o660), (place, 0o602), (place.parent, 0o770)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert remembered.read(place, file.arrays) is None
        path.chmod(before)
    assert remembered.read(place, file.arrays) is not None
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")
    assert remembered.read(place, file.arrays) is None


def test_the_oldest_go_first(saved, monkeypatch):
    _, by_keras, arrays, place = saved(dense())
    monkeypatch.setattr(remembered, "MOST", 3)
    for number in range(5):
        each = place.with_name(f"{number}.json")
        remembered.keep(each, by_keras, arrays)
        os.utime(each, (number, number))
    left = place.with_name("left.new")
    left.touch()
    os.utime(left, (0, 0))
    remembered.keep(place, by_keras, arrays)
    assert {each.name for each in place.parent.iterdir()} == {"model.json", "3.json", "4.json"}


def test_a_place_depends_on_the_architecture_alone(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("KPATCH_CACHE", str(tmp_path / "elsewhere"))
    file, *_ = saved(dense())
    place = remembered.place(file._config, file.arrays)
    assert place.parent == tmp_path / "elsewhere"
    config = json.loads(file._config)
    assert remembered.place(json.dumps(config | {"shared_object_id": 7}), file.arrays) != place
    first, second = (json.dumps(config | {"shared_object_id": number}) for number in (7, 8))
    assert remembered.place(first, file.arrays) == remembered.place(second, file.arrays)
    assert remembered.place(file._config, file.arrays[1:]) != place
    assert remembered.place("no json", file.arrays) is None
    monkeypatch.setattr(remembered, "_versions", lambda: ["another"])
    assert remembered.place(file._config, file.arrays) != place


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("KPATCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert remembered.directory() == tmp_path / "kpatch" / "names"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert remembered.directory() == tmp_path / "home" / ".cache" / "kpatch" / "names"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert remembered.directory() == tmp_path / "home" / "Library" / "Caches" / "kpatch" / "names"
    with remembered.switched_off():
        assert remembered.directory() is None
    for word in ("off", "0", "No"):
        monkeypatch.setenv("KPATCH_CACHE", word)
        assert remembered.directory() is None


SECOND = """
import sys
from click.shell_completion import ShellComplete
from kpatch.tools.command_line import main

completed = ShellComplete(main, {}, "kpatch", "").get_completions(["show", "model.keras"], "inner.proj.")
print([item.value for item in completed])
patch = "**.kernel[abs(_) < 0.5] = 0; layers[-1].bias += 1"
for command in (["show", "model.keras"], ["apply", "model.keras", "-e", patch, "-o", "out.keras", "--overwrite"]):
    main(command, standalone_mode=False)
print("keras" in sys.modules)
"""


def test_the_second_look_needs_no_keras(tmp_path):
    mixed().save(tmp_path / "model.keras")
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment["KPATCH_CACHE"] = str(tmp_path / "names")
    texts, files = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SECOND], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        texts.append(done.stdout.splitlines())
        files.append(Path(tmp_path, "out.keras").read_bytes())
    assert [lines[-1] for lines in texts] == ["True", "False"]
    assert [lines[0] for lines in texts] == ["[]", "['inner.proj.kernel', 'inner.proj.bias']"]
    assert texts[0][1:-1] == texts[1][1:-1]
    assert files[0] == files[1]
