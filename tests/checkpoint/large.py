"""Files of over 4 GiB, one of each format: `python tests/checkpoint/large.py DIRECTORY`.

Each file is sparse. Its last array lies behind 4 GiB and is edited in a copy and in place, compared and undone. The
copies take 5 GB of the disk, one at a time.
"""

import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np

import kpatch
from kpatch import checkpoint

LARGE = (2**30 + 2**18,)  # float32: over 4 GiB
SMALL = (2, 3)
ZEROS = bytes(2**20)


class Sparse:
    """A file to write to, which leaves holes for zeros."""

    def __init__(self, path):
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if len(data) == len(ZEROS) and data == ZEROS:
            self._file.seek(len(data), 1)
            return len(data)
        return self._file.write(data)


def safetensors(path):
    header, at = {}, 0
    for name, shape in (("a.large", LARGE), ("b.small", SMALL)):
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def index(path):
    path.mkdir()
    safetensors(path / "one.safetensors")
    weights = dict.fromkeys(("a.large", "b.small"), "one.safetensors")
    Path(path, "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def hdf5(path):
    with h5py.File(path, "w") as file:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        group = file.create_group("a")
        h5py.h5d.create(group.id, b"large", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(LARGE), created)
        file.create_group("b").create_dataset("small", data=np.zeros(SMALL, "float32"))


def shards(path):
    hdf5(path.with_name("one.weights.h5"))
    path.write_text(json.dumps({"weight_map": {"/a/vars": "one.weights.h5"}}))


def archive(path):
    inner = path.with_name("inner.h5")
    hdf5(inner)
    target = Sparse(path)
    with zipfile.ZipFile(target, "w") as made:
        made.writestr("config.json", json.dumps({"class_name": "Unknown", "config": {}}))
        with inner.open("rb") as source, made.open("model.weights.h5", "w", force_zip64=True) as entry:
            shutil.copyfileobj(source, entry, len(ZEROS))
    target.close()
    inner.unlink()


FORMATS = {
    "m.safetensors": safetensors,
    "folder": index,
    "m.weights.h5": hdf5,
    "m.h5": hdf5,
    "m.weights.json": shards,
    "m.keras": archive,
}


def tried(folder, name, make):
    path, out = folder / name, folder / f"out-{name}"
    make(path)
    last = LARGE[0] - 1
    patch = f"b.small[1] = [1, 2, 3]; a.large[{last}] = 7"
    checkpoint.apply(path, patch, out)
    found = kpatch.diff(path, out)
    assert found.text.splitlines() == [f"a.large[{last}] = 7.0", "b.small[1] = [1.0, 2.0, 3.0]"], found.text
    checkpoint.apply(path, patch, in_place=True, journal=True)
    assert kpatch.diff(path, out).equal
    checkpoint.undo(path)
    assert checkpoint.open(path)["b.small"].tolist() == np.zeros(SMALL).tolist()
    if name.endswith(".keras"):
        with zipfile.ZipFile(out) as opened:
            assert opened.testzip() is None


def main(directory):
    for name, make in FORMATS.items():
        folder = Path(directory, f"large-{name.replace('.', '-')}")
        folder.mkdir(parents=True)
        tried(folder, name, make)
        shutil.rmtree(folder)
        print(f"{name}: over 4 GiB, edited, compared and undone", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
