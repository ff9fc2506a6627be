"""`--bind name=value` on the command line: numbers and lists, arrays and tensors from files, models.

row=3   scale=0.5   rows=[1, 2, 3]   v=@vector.npy   v=@arrays.npz:name   k=@weights.safetensors:name   m=@donor.keras

A file of weights without a key is a donor; a `.safetensors` of one tensor is that tensor.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

from kpatch.checkpoint.disk import check_regular
from kpatch.errors import BindingError, FileError, PatchError, reason
from kpatch.syntax import is_name, nearest, parse

_FILE = re.compile(  # path, kind, optional key
    r"(.*?\.(keras|npy|npz|safetensors(?:\.index\.json)?|h5|hdf5|weights\.json))(?::(.*))?", re.DOTALL
)
FORMS = "name=3, name=[1, 2], name=@file.npy, name=@file.safetensors:key or name=@model.keras"


def read(texts: Iterable[str], load_model: Callable[[str], Any]) -> dict[str, Any]:
    """The bindings of `--bind`, as `{name: value}`.

    Args:
        texts: the options' values, `name=value`.
        load_model: loads a model from a path.

    Raises:
        BindingError: a text has another form, or a name is bound twice.
        FileError: a file cannot be read, or does not have the key.

    Example:
        >>> read(["row=3", "scale=-pi/2", "rows=[1, 2]"], load_model=None)
        {'row': 3, 'scale': -1.5707963267948966, 'rows': [1, 2]}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not is_name(name):
            raise BindingError(f"'{text}' is not a binding; write {FORMS}")
        if name in found:
            raise BindingError(f"'{name}' is bound twice")
        value = value.strip()
        found[name] = _from_file(name, value[1:], load_model) if value.startswith("@") else _literal(name, value)
    return found


def paths(texts: Iterable[str]) -> list[str]:
    """The files from which bindings are read."""
    values = [text.partition("=")[2].strip()[1:] for text in texts if text.partition("=")[2].strip().startswith("@")]
    return [match[1] if (match := _FILE.fullmatch(value)) else value for value in values]


def is_file(path: str) -> bool:
    """Whether the name of a file is that of one from which bindings are read."""
    match = _FILE.fullmatch(path)
    return match is not None and match[3] is None


def keys(path: str) -> list[str]:
    """The keys in a file that has keys of its own; none of others.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if path.endswith(".npz"):
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as tensors:
                return sorted(tensors.keys())
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    return []


def _literal(name: str, text: str) -> Any:
    """A number, a boolean or a list, by the rules of the language."""
    from kpatch.functions.quoted import with_names
    from kpatch.run.evaluate import Scope, evaluate

    try:
        [statement] = parse(f"let {name}_ = {text}").statements
        value = evaluate(with_names(statement.value), Scope(_no_variables))
    except (PatchError, ValueError) as error:
        why = error.message if isinstance(error, PatchError) else "it is several statements"
        raise BindingError(f"cannot read '{text}' for '{name}': {why}", notes=[f"write {FORMS}"]) from error
    if not value.weak:
        raise BindingError(f"'{text}' for '{name}' is not a number or a list of numbers", notes=[f"write {FORMS}"])
    return value.data.tolist()


def _no_variables(node: Any, target: Any) -> Any:
    name = str(node).strip('"')
    raise BindingError(f"'{name}' is not a number; a file is written @{name}")


def _from_file(name: str, text: str, load_model: Callable[[str], Any]) -> Any:
    """The array or model in `path` or `path:key`."""
    match = _FILE.fullmatch(text)
    if match is None or os.path.isdir(text):
        if os.path.exists(text):
            return load_model(text)
        raise BindingError(f"cannot read '@{text}' for '{name}'; a file ends in .npy, .npz, .safetensors or .keras")
    path, kind, key = match[1], match[2], match[3]
    if kind not in _READERS:
        return load_model(path) if key is None else load_model(path)[key]
    try:
        check_regular(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(2, "no such file or directory")
        return _READERS[kind](path, key, load_model)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read '{path}': {reason(error)}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(f"'{path}' is damaged, or not a .{kind} file") from error


def _npy(path: str, key: str | None, load_model: Callable[[str], Any]) -> Any:
    import numpy as np

    if key is not None:
        raise FileError(f"'{path}' holds one array, without a name such as '{key}'")
    return np.load(path, allow_pickle=False)


def _npz(path: str, key: str | None, load_model: Callable[[str], Any]) -> Any:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return arrays[_key(path, key, arrays.files)]


def _safetensors(path: str, key: str | None, load_model: Callable[[str], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            if key is None and len(tensors.keys()) != 1:
                return load_model(path)
            return tensors.get_tensor(_key(path, key, tensors.keys()))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _key(path: str, key: str | None, keys: Iterable[str]) -> str:
    """The key, if the file has it; the file's only key, if none is given; else `FileError`."""
    keys = sorted(keys)
    if key is None and len(keys) == 1:
        return keys[0]
    if key in keys:
        assert key is not None
        return key
    has = f"it has: {', '.join(keys[:8])}" + (f", and {len(keys) - 8} more" if len(keys) > 8 else "")
    if key is None:
        raise FileError(f"'{path}' holds {len(keys)} tensors; say which, as in '{path}:name'", notes=[has])
    near = nearest(key, keys)
    raise FileError(f"'{path}' has no '{key}'" + (f"; did you mean '{near}'?" if near else ""), notes=[has])


_READERS: dict[str, Callable[[str, str | None, Callable[[str], Any]], Any]] = {
    "npy": _npy,
    "npz": _npz,
    "safetensors": _safetensors,
}
