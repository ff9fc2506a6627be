"""What is handed in as a path."""

import os
import reprlib
from pathlib import Path
from typing import Any

from kpatch.errors import FileError


def as_path(path: "str | os.PathLike[str]") -> Path:
    """The `Path` that is meant.

    Raises:
        FileError: it is no path, or an empty one, which would mean the current folder.
    """
    given: Any = path
    text = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
    if text == "":
        raise FileError("a path cannot be empty; '.' is the current folder")
    if isinstance(text, str):
        return Path(text)
    raise FileError(f"a path is a str or a pathlib.Path. Received: {reprlib.repr(path)} (of type {type(path)})")
