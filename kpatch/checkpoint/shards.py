"""Sharded weights: `model.weights.json` says which of the HDF5 files beside it holds which layer's variables."""

import json
from pathlib import Path

from kpatch.checkpoint import hdf5
from kpatch.errors import FileError


def read(path):
    """The map of a `.weights.json`, and the paths of its shards.

    Raises:
        FileError: it is damaged, or leads out of its directory.
    """
    path = Path(path)
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = dict.fromkeys(name for each in shards.values() for name in ([each] if isinstance(each, str) else each))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"'{path}' is no map of sharded weights") from error
    for name in names:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise FileError(f"'{path}' is refused: its shard {name!r} is not a file beside it")
        if not (path.parent / name).is_file():
            raise FileError(f"'{path}' lacks its shard '{name}'")
    return [path.parent / name for name in names]


def arrays(paths):
    """The `Array`s of all shards."""
    return [array for path in paths for array in hdf5.arrays(path)]
