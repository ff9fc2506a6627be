"""Sharded weights: `model.weights.json` maps layers to the HDF5 files beside it."""

import json
from pathlib import Path

from kpatch.checkpoint import hdf5
from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError


def read(path, file):
    """The `Source`s of the shards of an open `.weights.json`.

    Raises:
        FileError: the file is damaged, or a shard is missing or not in its directory.
    """
    try:
        shards = json.loads(file.read().decode("utf-8"))["weight_map"]
        names = dict.fromkeys(name for each in shards.values() for name in ([each] if isinstance(each, str) else each))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"'{path}' is not a map of sharded weights") from error
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise FileError(f"'{path}' is refused: its shard {name!r} is not a file beside it")
        if not (path.parent / name).is_file():
            raise FileError(f"'{path}' lacks its shard '{name}'")
    return [Source(path.parent / name) for name in names]


def arrays(sources):
    """The `Array`s of all shards."""
    found = []
    for source in sources:
        with source.parsed() as file:
            found += hdf5.arrays(source, file)
    return found
