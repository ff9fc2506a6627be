"""Damaged files of every format, through show, copy, in place, undo and diff.

`python tests/checkpoint/fuzz.py DIRECTORY COUNT` damages COUNT files and prints how many were refused. Each step must
end in a result or in an error of kpatch, within 10 seconds and 1 GB, and leave the sources as they are.
"""

import json
import multiprocessing
import queue
import shutil
import sys
import traceback
import zipfile
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save_file

import kpatch
from kpatch import checkpoint
from kpatch.checkpoint import formats
from kpatch.errors import PatchError

SECONDS, MEMORY = 10, 2**30
NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
PATCH, IN_PLACE = "**[...] = 1", "(a|b).**[...] = 1"  # what is compressed is edited in a copy alone


def make(folder):
    """A file of each format, in a folder of its own: pairs of what is opened and the file to damage."""
    rng, made = np.random.default_rng(0), []
    arrays = {f"{part}.{name}": rng.normal(size=(6, 5)).astype("float32") for part in "ab" for name in ("w", "v")}

    def place(name):
        path = folder / name.replace(".", "_") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(path)
        return path

    save_file(arrays, place("a.safetensors"), {"format": "np"})
    with h5py.File(place("a.weights.h5"), "w") as file:
        for name, value in arrays.items():
            file[name.replace(".", "/")] = value
        file["tied"] = file["a/w"]
        file.create_dataset("packed", data=arrays["a.w"], compression="gzip")
    with h5py.File(place("old.h5"), "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"a", b"b"]
        for name, value in arrays.items():
            layer, weight = name.split(".")
            group.require_group(layer).attrs["weight_names"] = [f"{layer}/{each}:0".encode() for each in "vw"]
            group[f"{layer}/{layer}/{weight}:0"] = value
    with zipfile.ZipFile(place("a.keras"), "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Unknown", "config": {}}))
        archive.write(made[1], "model.weights.h5")
    shutil.copytree(made[1].parent, folder / "sharded")
    index = place("model.safetensors.index.json")
    save_file(arrays, index.with_name("one.safetensors"))
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(arrays, "one.safetensors")}))
    shards = place("a.weights.json")
    shutil.copy(made[1], shards.with_name("a_0.weights.h5"))
    shards.write_text(json.dumps({"weight_map": {"/a/vars": "a_0.weights.h5"}}))
    pairs = [(path, path) for path in made]
    for name in ("keras-3.15.0-int8.keras", "keras-3.15.0.keras", "keras-3.15.0.h5"):
        shutil.copy(Path(__file__).with_name("files") / name, place(name))
        pairs.append((made[-1], made[-1]))
    for number, damaged in enumerate(("model.weights.h5", "config.json")):
        unzipped = folder / f"unzipped_{number}"
        zipfile.ZipFile(made[-3]).extractall(unzipped)
        pairs.append((unzipped, unzipped / damaged))
    return pairs


def damaged(data, rng):
    """The bytes with one to four damages: bits, bytes, numbers, pieces cut, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        near = min(len(data), 2048) if rng.random() < 0.6 else len(data)
        if not near:
            break
        at, length = int(rng.integers(near)), int(rng.integers(1, 64))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            number = NUMBERS[int(rng.integers(len(NUMBERS)))]
            data[at : at + 8] = number.to_bytes(8, "little")
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            other = int(rng.integers(len(data)))
            data[at : at + length] = data[other : other + length]
        else:
            del data[len(data) - at :]
    return bytes(data)


def tried(path, good, folder):
    """What the steps make of a damaged file; the number that were refused."""
    of_folder = path.is_dir() or path.name.endswith("index.json")
    out = folder / ("out" if of_folder else f"out{formats.suffix(path)}")
    sources = path if path.is_dir() else path.parent
    before = {each: each.read_bytes() for each in sources.iterdir() if each.is_file()}
    in_place = PATCH if path.is_dir() or path.name.startswith("keras-") else IN_PLACE
    steps = (
        lambda: str(kpatch.show(path, stats=True)),
        lambda: checkpoint.apply(path, PATCH, out),
        lambda: checkpoint.diff(path, good).text,
        lambda: checkpoint.diff(good, path, common=True).text,
        lambda: checkpoint.apply(path, in_place, in_place=True, journal=True),
        lambda: checkpoint.undo(path),
    )
    refused = 0
    for step in steps:
        try:
            step()
            continue
        except PatchError:
            refused += 1
        finally:
            edited = step is steps[4]
            if not edited:
                assert {each: each.read_bytes() for each in before} == before, "a source has changed"
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    return refused


def worker(folder, numbers, results):
    """Damages and tries files, and says the number of each before it begins, and the outcome after it."""
    import resource

    import keras  # noqa: F401  # it takes seconds, which are not those of a file

    folder.mkdir(parents=True)
    made = make(folder)
    originals = make(folder / "good")
    for path, _ in originals:
        str(kpatch.show(path))  # what Keras imports at first use
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
    for number in numbers:
        rng = np.random.default_rng(number)
        at = number % len(made)
        (opened, path), data = made[at], made[at][1].read_bytes()
        path.write_bytes(damaged(data, rng))
        results.put((number, None))
        try:
            outcome = tried(opened, originals[at][0], folder)
        except BaseException:  # noqa: BLE001
            outcome = traceback.format_exc()
        results.put((number, outcome))
        path.write_bytes(data)
        for each in path.parent.glob("*undo*"):
            each.unlink()


def run(folder, numbers):
    """The number of steps that were refused, for all files together; raises for anything else."""
    context, refused = multiprocessing.get_context("fork"), 0
    results = context.Queue()
    process = context.Process(target=worker, args=(Path(folder, str(numbers[0])), numbers, results), daemon=True)
    process.start()
    number, seconds = None, 120  # until the worker is ready
    for _ in range(2 * len(numbers)):
        try:
            number, outcome = results.get(timeout=seconds)
        except queue.Empty:
            process.kill()
            raise AssertionError(
                f"file {number}: it takes too long, or ends the process ({process.exitcode})"
            ) from None
        seconds = SECONDS
        if isinstance(outcome, str):
            process.kill()
            raise AssertionError(f"file {number}:\n{outcome}")
        refused += outcome or 0
    process.join()
    return refused


def main(directory, count):
    step = 500
    for start in range(0, count, step):
        refused = run(directory, range(start, min(count, start + step)))
        print(f"{min(count, start + step)} files, {refused} steps refused", flush=True)  # noqa: T201
        shutil.rmtree(Path(directory, str(start)), ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
