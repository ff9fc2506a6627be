"""Sharded weights: a JSON file maps layers to the HDF5 files beside it, or tensors to the safetensors files."""

import json
import os
from pathlib import Path

from kpatch.checkpoint import hdf5, safetensors
from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError

MAX_SHARDS = 2**12


def read(source, file, largest):
    """The `Source`s of the shards of an open map, `model.weights.json` or `model.safetensors.index.json`; their arrays.

    Args:
        source: the `Source` of the map.
        file: the open map.
        largest: the most bytes that it may have.

    Raises:
        FileError: the map is damaged, or a shard is missing, damaged or not in its directory.
    """
    where, names = _map(source, file, largest)
    if len(names) > MAX_SHARDS:
        raise FileError(f"'{source}' is refused: it names more than {MAX_SHARDS} shards")
    files = [Source(_beside(source, name)) for name in names]
    found = []
    for name, shard in zip(names, files, strict=True):
        with shard.parsed() as opened:
            kind = safetensors if name.endswith(".safetensors") else hdf5
            found += [array for array in kind.arrays(shard, opened) if where.get(array.label, name) == name]
    labels = {array.label for array in found}
    for label, name in where.items():
        if str(source).endswith(".index.json") and label not in labels:
            raise FileError(f"'{source}' is damaged: its shard '{name}' lacks '{label}'")
    return files, found


def _map(source, file, largest):
    try:
        data = file.read(largest + 1)
        if len(data) > largest:
            raise ValueError("it is too long")
        where = json.loads(data.decode("utf-8"))["weight_map"]
        names = dict.fromkeys(name for each in where.values() for name in ([each] if isinstance(each, str) else each))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"'{source}' is not a map of sharded weights") from error
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise FileError(f"'{source}' is refused: its shard {name!r} is not a file beside it")
    return where, list(names)


def _beside(source, name):
    """The path of a shard: beside the path that was given, else beside the file that this leads to."""
    for folder in (source.path.parent, source.real.parent):
        if os.path.isfile(folder / name):
            return folder / name
    raise FileError(f"'{source}' lacks its shard '{name}'")
