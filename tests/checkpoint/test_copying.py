"""Copies that are made while a patch runs: the bytes of those made at once; whatever fails, nothing is left."""

import errno
import functools
import json
import os
import random
import struct
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch import checkpoint
from kpatch.checkpoint import arrays, copying, destinations, disk, store
from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError
from kpatch.run import blocks

pytestmark = pytest.mark.backend_free

ARRAYS = {"a.w": (700, 500), "b.w": (300, 400), "c.w": (9,), "d.w": (1000, 200)}  # 2.6 MB: several blocks of 512 kB
PATCHES = {
    "nothing": "",
    "an entry": "a.w[5, 7] = 1",
    "entries": "a.w[::3, [1, 2]] = 7; d.w[[999, 0, 3]] += 1",
    "a prune": "*.w[abs(_) < 0.5] = 0",
    "one array": "b.w *= 0.5",
    "twice": "a.w *= 0.5; a.w[abs(_) < 0.1] = 3; a.w[0] = 1; a.w = 0.5 * _ + 1.0",
    "numbers and arrays": "d.w = 0; b.w = b.w[::-1] + mean(a.w); a.w = 0.5 * _ + 0.5",
    "others": "a.w = _ + d.w[0, 0]; c.w = a.w[0, :9]; d.w[sum(c.w) > 0] = 1; assert all(isfinite(a.w))",
    "written, then read": "b.w = 2; a.w[:300, :400] = b.w; b.w[0, 0] = 5",
}


def no_thread_is_left():
    """Apart from those that compute blocks, which are kept."""
    return all(each is threading.main_thread() or blocks.is_own(each) for each in threading.enumerate())


@pytest.fixture
def at_once(tmp_path):
    """Files to patch."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, "float32") for name, shape in ARRAYS.items()}
    save_file(arrays, tmp_path / "m.safetensors")
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for name, values in arrays.items():
            file[name.replace(".", "/")] = values
    return tmp_path


@pytest.fixture
def behind(monkeypatch):
    """Every copy is made as those of large files are."""
    monkeypatch.setattr(copying, "SMALL", 0)
    monkeypatch.setattr(copying, "CHUNK", 2**16)
    monkeypatch.setattr(copying, "UNSYNCED", 2**18)


@pytest.mark.parametrize("name", ["m.safetensors", "m.weights.h5"])
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_the_bytes_are_those_of_a_copy_made_at_once(at_once, monkeypatch, patch, name):
    for journal in (False, True):
        out = [at_once / f"{number}{journal}{name}" for number in range(2)]
        for number, path in enumerate(out):
            with monkeypatch.context() as patched:
                patched.setattr(copying, "SMALL", 2**24 if number == 0 else 0)
                patched.setattr(copying, "CHUNK", 2**16)
                checkpoint.apply(at_once / name, patch, path, journal=journal)
        assert out[0].read_bytes() == out[1].read_bytes()
        if journal:
            checkpoint.undo(out[1])
            assert out[1].read_bytes() == (at_once / name).read_bytes()
    assert no_thread_is_left()


def test_an_archive_has_the_right_checksum(tmp_path, behind):
    import zipfile

    import keras

    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(400, name="d")])
    model.save(tmp_path / "m.keras")
    patch = "d.kernel[abs(_) < 0.02] = 0; d.kernel *= 2; d.bias[3] = 1"
    checkpoint.apply(tmp_path / "m.keras", patch, tmp_path / "o.keras")
    assert zipfile.ZipFile(tmp_path / "o.keras").testzip() is None
    kernel = model.layers[0].get_weights()[0]
    expected = np.where(np.abs(kernel) < np.float32(0.02), 0, kernel) * 2
    assert np.array_equal(keras.saving.load_model(tmp_path / "o.keras").layers[0].get_weights()[0], expected)


def test_a_copy_is_what_was_written_to_it(tmp_path, behind):
    draw = random.Random(0)
    for size in (0, 1, 1000, 300_000):
        path, target = tmp_path / "source", tmp_path / "target"
        path.write_bytes(draw.randbytes(size))
        source, expected = Source(path), bytearray(path.read_bytes())
        with source.parsed():
            pass
        copy = copying.Copy(source, target)
        for _ in range(60):
            start = draw.randint(0, size)
            stop = draw.randint(start, size)
            kind = draw.choice(("claim", "write behind", "ensure", "read"))
            if kind == "ensure":
                copy.settle(start, stop)
            elif kind == "read":
                assert copy.read(stop - start, start) == expected[start:stop]
            else:
                new = expected[start:stop] = draw.randbytes(stop - start)
                copy.claim(start, stop)
                written = functools.partial(os.pwrite, copy.descriptor, new, start)
                if copy.behind is not None:
                    copy.behind.put(written)
                if copy.behind is None or kind == "claim":
                    copy.settle(0, 0)
                    written()
        copy.settle(0, copying.END)
        copy.finish()
        copy.close()
        assert target.read_bytes() == expected
    assert no_thread_is_left()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("patch", ["*.w[abs(_) < 0.5] = 0", "a.w[0] = 1; d.w = 0"])
@pytest.mark.parametrize(("call", "number"), [("pwrite", 0), ("pwrite", 1), ("fsync", 0)])
def test_a_full_disk(at_once, behind, monkeypatch, call, number, patch):
    if not hasattr(os, call):
        pytest.skip("the system has no such call")
    calls, known, before = [0], getattr(os, call), left(at_once)

    def full(*args):
        calls[0] += 1
        if calls[0] > number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return known(*args)

    monkeypatch.setattr(os, call, full)
    out = at_once / "out.safetensors"
    with pytest.raises(FileError) as info:
        checkpoint.apply(at_once / "m.safetensors", patch, out)
    assert str(info.value) == f"cannot write '{out}': no space left on device"
    assert left(at_once) == before
    assert no_thread_is_left()


def test_an_interrupt(at_once, behind, monkeypatch):
    known, calls, before = store.Change.add, [0], left(at_once)

    def interrupted(*args):
        calls[0] += 1
        if calls[0] > 2:
            raise KeyboardInterrupt
        return known(*args)

    monkeypatch.setattr(store.Change, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.apply(at_once / "m.safetensors", "*.w *= 0.5", at_once / "out.safetensors")
    assert left(at_once) == before
    assert no_thread_is_left()


@pytest.mark.parametrize("code", copying.NO_COPY)
def test_a_file_system_that_copies_nothing_itself(at_once, behind, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    if hasattr(os, "copy_file_range"):
        monkeypatch.setattr(os, "copy_file_range", refuse)
    checkpoint.apply(at_once / "m.safetensors", "c.w[0] = 0", at_once / "out.safetensors")
    old, new = (Path(at_once, f"{name}.safetensors").read_bytes() for name in ("m", "out"))
    assert sum(a != b for a, b in zip(old, new, strict=True)) <= 4


def test_a_system_without_pread(at_once, behind, monkeypatch):
    """Threads would share one position in the file, so there are none."""
    for name in ("pread", "pwrite", "copy_file_range"):
        monkeypatch.delattr(os, name, raising=False)
    checkpoint.apply(at_once / "m.safetensors", PATCHES["twice"], at_once / "out.safetensors")
    monkeypatch.undo()
    checkpoint.apply(at_once / "m.safetensors", PATCHES["twice"], at_once / "again.safetensors")
    assert Path(at_once, "out.safetensors").read_bytes() == Path(at_once, "again.safetensors").read_bytes()


def test_a_source_that_is_cut_while_it_is_copied(at_once, behind, monkeypatch):
    path, known = at_once / "m.safetensors", store.Change.add

    def cut(*args):
        os.truncate(path, 2**20)
        return known(*args)

    monkeypatch.setattr(store.Change, "add", cut)
    with pytest.raises(FileError, match=r"became shorter|shorter than its header|has changed since"):
        checkpoint.apply(path, "a.w[0] = 1", at_once / "out.safetensors")
    assert not (at_once / "out.safetensors").exists()


def test_what_is_written_over_is_never_copied(at_once, behind, monkeypatch):
    copied, known = [0], copying.Copy._copied

    def counted(*args):
        done = known(*args)
        copied[0] += done
        return done

    monkeypatch.setattr(copying.Copy, "_copied", counted)
    checkpoint.apply(at_once / "m.safetensors", "*.w[abs(_) < 0.5] = 0", at_once / "out.safetensors")
    size = (at_once / "m.safetensors").stat().st_size
    assert copied[0] == size - sum(4 * int(np.prod(shape)) for shape in ARRAYS.values())


def test_the_disk_is_asked_to_begin_early(at_once, behind, monkeypatch):
    begun, known = [], copying.start_sync
    monkeypatch.setattr(copying, "start_sync", lambda descriptor: begun.append(known(descriptor)))
    for patch in ("*.w[abs(_) < 0.5] = 0", "c.w[0] = 1"):
        begun.clear()
        checkpoint.apply(at_once / "m.safetensors", patch, at_once / "out.safetensors", overwrite=True)
        assert len(begun) >= 4


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_how_a_system_begins_to_bring_a_file_to_the_disk(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    disk._sync_file_range.cache_clear()
    with (tmp_path / "f").open("wb") as file:
        disk.start_sync(file.fileno())
    disk.start_sync(-1)  # a failure is left to `fsync`
    assert (disk._sync_file_range() is None) == (platform != "linux")
    disk._sync_file_range.cache_clear()


@pytest.fixture
def sparse(tmp_path):
    """A file of 8 MB with two arrays, of which a few kB are no holes."""
    path, count = tmp_path / "s.safetensors", 2**20
    table = {
        n: {"dtype": "F32", "shape": [count], "data_offsets": [4 * count * i, 4 * count * (i + 1)]}
        for i, n in enumerate("ab")
    }
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 8 * count)
        file.seek(2**21)
        file.write(np.arange(1, 2**10, dtype="float32").tobytes())
    if taken(path) > 2**16:
        pytest.skip("the file system keeps no holes")
    return path


def taken(path):
    """The bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


SPARSE = {"": 0, "b[5] = 1": 0, "*[_ > 9] = 3": 0, "a *= 2": 0, "b = 1": 2**22, "a[_ == 0] = 1": 2**22}


@pytest.mark.parametrize(("patch", "filled"), SPARSE.items())
@pytest.mark.parametrize("small", [0, 2**26])
def test_holes_stay_holes(sparse, monkeypatch, patch, filled, small):
    monkeypatch.setattr(copying, "SMALL", small)
    out, full = sparse.with_name("o.safetensors"), sparse.with_name("f.safetensors")
    checkpoint.apply(sparse, patch, out)
    assert filled <= taken(out) <= filled + 2 * arrays.BLOCK + 2**16
    monkeypatch.delattr(os, "SEEK_DATA")
    checkpoint.apply(sparse, patch, full)
    assert out.read_bytes() == full.read_bytes()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_tells_no_holes(sparse, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "lseek", refuse)
        checkpoint.apply(sparse, "b[5] = 1", sparse.with_name("o.safetensors"))
    checkpoint.apply(sparse, "b[5] = 1", sparse.with_name("f.safetensors"))
    assert sparse.with_name("o.safetensors").read_bytes() == sparse.with_name("f.safetensors").read_bytes()


def test_the_copies_of_a_folder_keep_holes(sparse, monkeypatch):
    monkeypatch.setattr(destinations, "_linked", lambda *_: False)  # else shards that do not change are linked
    folder = sparse.with_name("hf")
    folder.mkdir()
    sparse.rename(folder / "one.safetensors")
    save_file({"c": np.ones(9, "float32")}, folder / "two.safetensors")
    weights = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    checkpoint.apply(folder, "c = 2", sparse.with_name("out"))
    assert taken(sparse.with_name("out") / "one.safetensors") < 2**16
