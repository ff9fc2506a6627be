"""Arrays of HDF5 files that are compressed, in chunks, or in another byte order: edited in a copy, chunk by chunk."""

import json
import mmap
import struct
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint import arrays, heaps, packed
from kpatch.errors import FileError, UnsupportedError

pytestmark = pytest.mark.backend_free

VALUES = np.random.default_rng(0).standard_normal((37, 11)).astype("float32")
STORED = {
    "chunks": {"chunks": (5, 4)},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf", "chunks": (40 - 3, 3)},
    "shuffle": {"compression": "gzip", "shuffle": True, "chunks": (1, 11)},
    "checksum": {"fletcher32": True, "chunks": (10, 11)},
    "all of them": {"compression": 9, "shuffle": True, "fletcher32": True, "chunks": (7, 2), "maxshape": (None, 50)},
    "another order": {"dtype": ">f4"},
    "another order, packed": {"dtype": ">f4", "compression": "gzip"},
}
PATCH = "w[abs(_) < 0.5] = 0; w[3, 4] = 7; w[-1] += plain[0]; w *= 2; plain[1] = w[3, 4]; w[::9, 1] = $row"
ROW = [1.0, 2.0, 3.0, 4.0, 5.0]


def expected():
    w, plain = VALUES.copy(), np.array([0.5, 0, 0], "float32")
    w[np.abs(w) < np.float32(0.5)] = 0
    w[3, 4] = 7
    w[-1] += plain[0]
    w *= 2
    plain[1] = w[3, 4]
    w[::9, 1] = ROW
    return w, plain


def make(path, values=VALUES, **stored):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("g/w", data=values, **stored)
        data.attrs["told"] = "kept"
        file["g/z"] = data
        file["g/plain"] = np.array([0.5, 0, 0], "float32")
        file.create_dataset("g/other", data=np.arange(50, dtype="int16"), compression="lzf")
    return path


def described(dataset):
    names = ("chunks", "compression", "compression_opts", "shuffle", "fletcher32", "maxshape", "dtype", "shape")
    return [getattr(dataset, name) for name in names], dict(dataset.attrs)


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_an_edit_in_a_copy(tmp_path, stored, monkeypatch):
    monkeypatch.setattr(packed, "BLOCK", 200)  # several rows of chunks
    path, out = make(tmp_path / "a.h5", **stored), tmp_path / "o.h5"
    before = path.read_bytes()
    applied = checkpoint.apply(path, PATCH, out, row=ROW)
    w, plain = expected()
    assert path.read_bytes() == before
    assert [change.entries for change in applied.changes] == [int((abs(VALUES) < 0.5).sum()), 1, 11, 407, 1, 5]
    with h5py.File(path) as old, h5py.File(out) as new:
        assert described(new["g/w"]) == described(old["g/w"])
        assert np.array_equal(new["g/w"][()], w)
        assert new["g/z"] == new["g/w"]
        assert np.array_equal(new["g/plain"][()], plain)
        assert np.array_equal(new["g/other"][()], np.arange(50))
    found = kpatch.diff(path, out)
    checkpoint.apply(path, found, tmp_path / "again.h5")
    assert kpatch.diff(out, tmp_path / "again.h5").equal
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.h5", "again.h5", "o.h5"]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(30).reshape(5, 6) % 2 == 0,
        np.arange(30, dtype="uint64") + 2**63,
        np.arange(-8, 8, dtype="int8").reshape(4, 4),
        np.linspace(0, 1, 24, dtype="float16").reshape(2, 3, 4),
        np.linspace(0, 1, 24),
    ],
    ids=lambda values: str(values.dtype),
)
def test_dtypes(tmp_path, values):
    path, out = make(tmp_path / "a.h5", values, compression="gzip"), tmp_path / "o.h5"
    new = True if values.dtype == "bool" else 3
    checkpoint.apply(path, f"w[1] = {str(new).lower()}", out)
    wanted = values.copy()
    wanted[1] = new
    with h5py.File(out) as file:
        assert file["g/w"].dtype == values.dtype
        assert np.array_equal(file["g/w"][()], wanted)


def test_bfloat16(tmp_path):
    """HDF5 has none: Keras stores two bytes of no kind."""
    values = np.arange(12).astype(ml_dtypes.bfloat16).reshape(3, 4)
    path, out = tmp_path / "a.h5", tmp_path / "o.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=values.view("V2"), compression="gzip").attrs["dtype"] = "bfloat16"
    checkpoint.apply(path, "w[1] *= 2", out)
    values[1] *= 2
    assert np.array_equal(checkpoint.open(out)["w"], values)
    assert h5py.File(out)["w"].compression == "gzip"


def test_what_no_patch_changes_is_not_encoded_again(tmp_path):
    """The other chunks stay the same bytes."""
    path, out = make(tmp_path / "a.h5", chunks=(5, 4), compression="gzip", compression_opts=9), tmp_path / "o.h5"
    checkpoint.apply(path, "w[6, 5] = 9; w[20, 0] = 8; w[20, 0] = $same", out, same=VALUES[20, 0])
    with h5py.File(path) as old, h5py.File(out) as new:
        ids = [file["g/w"].id for file in (old, new)]
        places = [ids[0].get_chunk_info(number).chunk_offset for number in range(ids[0].get_num_chunks())]
        same = [place for place in places if len({each.read_direct_chunk(place) for each in ids}) == 1]
    assert len(places) == 24
    assert set(places) - set(same) == {(5, 4)}


def test_the_rest_of_the_file_is_kept(tmp_path):
    path, out = make(tmp_path / "a.h5", chunks=(5, 4)), tmp_path / "o.h5"
    strings = h5py.string_dtype()
    with h5py.File(path, "r+") as file:
        file.attrs["names"] = np.array(["ä", "b"], strings)
        file.attrs["fixed"] = np.array([b"abc", b"d"])
        file.create_dataset("texts", data=np.array(["one", "two"], object), dtype=strings)
        file.create_dataset("scalar", data=3.5)
        file.create_dataset("none", data=h5py.Empty("f4"))
        file.create_dataset("empty", shape=(0, 3), maxshape=(None, 3), dtype="f8")
        file.create_dataset("späte", shape=(9, 9), chunks=(3, 3), dtype="f4", fillvalue=2)  # no chunk is stored
        file["kind"] = np.dtype([("a", "i4"), ("b", "f8")])
        file.create_dataset("records", data=np.zeros(3, file["kind"].dtype), compression="gzip")
        file.create_group("ordered", track_order=True).attrs["number"] = 7
        for name in "zxy":
            file["ordered"][name] = np.arange(3)
    checkpoint.apply(path, "w[0, 0] = 1", out)
    with h5py.File(path) as old, h5py.File(out) as new:
        names = []
        old.visit(names.append)
        found = []
        new.visit(found.append)
        assert found == names
        for name in ("/", *names):
            assert type(new[name]) is type(old[name])
            assert {k: np.asarray(v).tolist() for k, v in new[name].attrs.items()} == {
                k: np.asarray(v).tolist() for k, v in old[name].attrs.items()
            }
            if isinstance(new[name], h5py.Dataset):
                assert described(new[name])[0] == described(old[name])[0]
                if new[name].chunks:
                    assert new[name].id.get_num_chunks() == old[name].id.get_num_chunks()
                if name not in ("g/w", "g/z"):
                    assert np.asarray(new[name][()]).tolist() == np.asarray(old[name][()]).tolist()


def test_a_keras_archive(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((11,)), keras.layers.Dense(6, name="d"), keras.layers.Dense(2, name="e")])
    model.save(tmp_path / "plain.keras")
    path, out, inner = tmp_path / "a.keras", tmp_path / "o.keras", tmp_path / "inner.h5"
    with zipfile.ZipFile(tmp_path / "plain.keras") as old, zipfile.ZipFile(path, "w") as new:
        inner.write_bytes(old.read("model.weights.h5"))
        with h5py.File(inner, "r+") as file:
            group = file["layers/dense/vars"]
            kernel = group["0"][()]
            del group["0"]
            group.create_dataset("0", data=kernel, chunks=(4, 5), compression="gzip")
        for info in old.infolist():
            new.writestr(info, inner.read_bytes() if info.filename == "model.weights.h5" else old.read(info))
        new.writestr("assets/more.txt", "kept" * 100, zipfile.ZIP_DEFLATED)
        new.comment = b"a comment"
    checkpoint.apply(path, "d.kernel[2] = 5; d.bias[1] = 3; e.kernel *= $other.d.kernel[2, 3]", out, other=path)
    kernel[2] = 5
    loaded = keras.saving.load_model(out)
    assert np.array_equal(loaded.get_layer("d").get_weights()[0], kernel)
    assert loaded.get_layer("d").get_weights()[1].tolist() == [0, 3, 0, 0, 0, 0]
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out) as new:
        assert new.testzip() is None
        assert new.comment == b"a comment"
        assert [each.filename for each in new.infolist()] == [each.filename for each in old.infolist()]
        for info in old.infolist():
            assert new.getinfo(info.filename).compress_type == info.compress_type
            if info.filename != "model.weights.h5":
                assert new.read(info.filename) == old.read(info.filename)
    out.unlink()
    checkpoint.apply(path, "d.bias = 1", out)  # no packed array changes: the same file but for these bytes
    assert out.stat().st_size == path.stat().st_size


def test_a_folder_and_shards(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder / "model.weights.h5", compression="gzip")
    (folder / "config.json").write_text(json.dumps({"class_name": "Unknown", "config": {}}))
    checkpoint.apply(folder, "g.w[0, 0] = 1", tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["config.json", "model.weights.h5"]
    assert checkpoint.open(tmp_path / "out")["g.w"][0, 0] == 1
    for number in range(2):
        make(tmp_path / f"s_{number}.weights.h5", compression="gzip")
    (tmp_path / "s.weights.json").write_text(
        json.dumps({"weight_map": {"/g/vars": ["s_0.weights.h5", "s_1.weights.h5"]}})
    )
    with h5py.File(tmp_path / "s_1.weights.h5", "r+") as file:
        file.move("g", "h")
    checkpoint.apply(tmp_path / "s.weights.json", "h.w = 3", tmp_path / "t.weights.json")
    assert (checkpoint.open(tmp_path / "t.weights.json")["h.w"] == 3).all()


def test_an_old_file_of_keras(tmp_path):
    path, out = tmp_path / "a.h5", tmp_path / "o.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"d"]
        file.create_group("d").attrs["weight_names"] = [b"d/kernel:0"]
        file.create_dataset("d/d/kernel:0", data=VALUES, compression="lzf")
    checkpoint.apply(path, "d.kernel = 0.5 * _ + 0.5 * $b._", out, b=path)
    assert np.array_equal(checkpoint.open(out)["d.kernel"], np.float32(0.5) * VALUES + np.float32(0.5) * VALUES)


def test_donors_are_read_by_rows_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "BLOCK", 200)
    monkeypatch.setattr(arrays.Array, "view", None)
    path, donor = make(tmp_path / "a.h5"), make(tmp_path / "b.h5", VALUES * 2, chunks=(5, 4), compression="gzip")
    checkpoint.apply(path, "w = 0.5 * _ + 0.25 * $b._ - mean($b.w)", tmp_path / "o.h5", b=checkpoint.open(donor))
    monkeypatch.undo()
    checkpoint.apply(path, "w = 0.5 * _ + 0.25 * $b - mean($b)", tmp_path / "p.h5", b=VALUES * 2)
    assert kpatch.diff(tmp_path / "o.h5", tmp_path / "p.h5").equal


def refused(*args, **options):
    with pytest.raises(UnsupportedError) as info:
        checkpoint.apply(*args, **options)
    return info.value.message


def test_what_is_refused(tmp_path):
    path = make(tmp_path / "a.h5", compression="gzip")
    before = path.read_bytes()
    assert refused(path, "plain[0] = 1; w[0] = 1", in_place=True) == (
        "'g.w' is not edited in place, since it is stored compressed or in chunks; name an output (out=, -o OUT)"
    )
    assert refused(path, "w[0] = 1", tmp_path / "o.h5", journal=True) == (
        "'g.w' is edited without a journal, since it is stored compressed or in chunks; "
        "leave out journal=True (--journal)"
    )
    assert path.read_bytes() == before
    checkpoint.apply(path, "plain = w[0, :3]", in_place=True, journal=True)  # read, and not written
    assert np.array_equal(checkpoint.open(path)["g.plain"], VALUES[0, :3])
    checkpoint.undo(path)
    assert path.read_bytes() == before
    lossy = make(tmp_path / "l.h5", scaleoffset=3)
    assert refused(lossy, "w[0] = 1", tmp_path / "o.h5") == (
        "'g.w' cannot be edited in the file: its filter 'scaleoffset' does not keep every value"
    )
    assert refused(make(tmp_path / "b.h5", dtype=">f4"), "w[0] = 1", in_place=True) == (
        "'g.w' is not edited in place, since it is stored in the byte order of another machine; "
        "name an output (out=, -o OUT)"
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.h5", "b.h5", "l.h5"]


def test_a_failure_of_the_encoder_leaves_nothing(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5", compression="gzip")

    def full(*_):
        raise OSError("Can't write data (file write failed)")

    monkeypatch.setattr(packed, "_write_part", full)
    with pytest.raises(FileError) as info:
        checkpoint.apply(path, "w[0] = 1", tmp_path / "o.h5")
    assert str(info.value) == (f"cannot encode the arrays of '{path}' again: Can't write data (file write failed)")
    assert [each.name for each in tmp_path.iterdir()] == ["a.h5"]


def test_a_chunk_without_bytes(tmp_path):
    """libhdf5 crashes if it takes the checksum off it."""
    path = make(tmp_path / "a.h5", fletcher32=True, chunks=(37, 4))
    data = path.read_bytes()
    key = struct.pack("<IIQQQ", 37 * 4 * 4 + 4, 0, 0, 4, 0)  # length, filters that were left out, place
    assert data.count(key) == 1
    path.write_bytes(data.replace(key, bytes(4) + key[4:]))
    told = f"cannot read '{path}': a chunk of 'g/w' is not in it"
    for step in (
        lambda: checkpoint.open(path)["g.w"],
        lambda: checkpoint.apply(path, "w[0] = 1", tmp_path / "o.h5"),
        lambda: checkpoint.apply(path, "plain = w[0, 0]", in_place=True),
        lambda: str(kpatch.show(path)),
    ):
        with pytest.raises(FileError) as info:
            step()
        assert info.value.message == told


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_chunks(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    chunks = tuple(data.draw(st.integers(1, length)) for length in shape)
    values = np.random.default_rng(len(shape)).integers(-100, 100, shape).astype("int32")
    filters = {"compression": data.draw(st.sampled_from([None, "gzip", "lzf"])), "shuffle": data.draw(st.booleans())}
    path = make(folder / "a.h5", values, chunks=chunks, **filters)
    index = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    count = data.draw(st.integers(1, 60))
    with packed.Packed(0, path.stat().st_size, "g/w", "int32", "").reader(path.open("rb")) as read:
        found = [read(start, min(count, values.size - start)) for start in range(0, values.size, count)]
    assert np.array_equal(np.concatenate(found), values.reshape(-1))
    checkpoint.apply(path, f"w *= 3; w[{', '.join(map(str, index))}] = 1000", folder / "o.h5")
    values *= 3
    values[index] = 1000
    assert np.array_equal(h5py.File(folder / "o.h5")["g/w"][()], values)


def test_marks_of_heaps_are_found_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(heaps, "PIECE", 5)
    data = b"..GCOL...GCO.GCOLGCOL.GCO"
    path = tmp_path / "marks"
    path.write_bytes(data)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert list(heaps._marks(mapped, 0, len(data))) == [2, 13, 17]
        assert list(heaps._marks(mapped, 3, 20)) == [13]
