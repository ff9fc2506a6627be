"""The names of an architecture, kept in the user's cache directory: the second look at a `.keras` needs no Keras.

What is kept is the tree of names that Keras gave, of its own classes alone, as JSON. It is read only by a process that
has not loaded Keras, so no class can have been replaced. An entry of the cache is never trusted: it must belong to the
user, its checksum must be right, each reference must lead somewhere, and each variable must have an array of its shape
in the file. Else it is ignored, and Keras is asked.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kpatch.backends.present import without_keras
from kpatch.checkpoint.arrays import Array
from kpatch.names import optimizers, tree
from kpatch.names.index import ModelIndex, index
from kpatch.names.optimizers import NAME, OptimizerNames, State, optimizers_in
from kpatch.names.tree import GROUP, LAYER, METRIC, SEED, Entry, LayerNode

VARIABLE = "KPATCH_CACHE"  # the directory, or "off"
LARGEST = 2**24  # bytes of an entry
MOST = 64  # entries; the oldest go first
DEEPEST = 2**9  # levels of layers
FORMAT = 2
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)

_NODES, _ENTRIES = "nodes", "entries"
LISTS = {"layers": _NODES, "numbered": _NODES, "metrics": _NODES, "own": _ENTRIES}  # slots of `LayerNode`
NAMED = {"children": _NODES, "variables": _ENTRIES}  # slots with a list for each name
_off = False


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """A block in which nothing is read from the cache or written to it."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def directory() -> Path | None:
    """The directory of the cache; `None` if it is switched off, or if the system names no place."""
    wanted = os.environ.get(VARIABLE)
    if _off or (wanted or "").lower() in ("off", "0", "no", "false"):
        return None
    if wanted:
        return Path(wanted)
    try:
        if os.name == "nt":
            return Path(os.environ["LOCALAPPDATA"], "kpatch", "names")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "kpatch" / "names"
        base = os.environ.get("XDG_CACHE_HOME", "")
        return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "kpatch" / "names"
    except (KeyError, RuntimeError):  # no LOCALAPPDATA, no home
        return None


def names(
    config: str, arrays: list[Array], custom_objects: Mapping[str, Any] | None = None
) -> tuple[ModelIndex, dict[int, Array]]:
    """The index of a model's names, and the array of each variable by its id: as they were kept, else by Keras.

    Args:
        config: the text of config.json.
        arrays: the `Array`s of the weights file.
        custom_objects: as for `architecture.build`; with them nothing is kept.

    Raises:
        FileError: as for `architecture.build`.
    """
    file = place(config, arrays) if without_keras() and not custom_objects else None
    if file is not None and (kept := read(file, arrays)) is not None:
        return kept
    from kpatch.checkpoint import architecture

    model, found = architecture.build(config, arrays, custom_objects)
    made = index(model)
    if file is not None:
        keep(file, made, found)
    return made, found


def place(config: str, arrays: list[Array]) -> Path | None:
    """The file of the cache for a configuration and a list of arrays; `None` if there is none."""
    found = directory()
    if found is None:
        return None
    try:
        parts = [_canonical(config), *_versions(), *(f"{array.path} {array.shape} {array.dtype}" for array in arrays)]
    except (OSError, *DAMAGE):
        return None
    return found / f"{hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()}.json"


def _canonical(config: str) -> str:
    """The configuration without the addresses of objects, by which Keras tells which parts are shared."""
    numbers: dict[Any, int] = {}

    def without(part: dict[str, Any]) -> dict[str, Any]:
        if "shared_object_id" in part:
            number = numbers.setdefault(part["shared_object_id"], len(numbers))
            return {**part, "shared_object_id": number}
        return part

    return json.dumps(json.loads(config, object_hook=without), sort_keys=True)


def _versions() -> list[str]:
    """The versions of Keras and kpatch: the code that makes names, and Keras's own word, without importing it."""
    spec = importlib.util.find_spec("keras")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("Keras is not installed")
    ours = (tree.__file__, optimizers.__file__, __file__)
    files = [Path(spec.submodule_search_locations[0], "src", "version.py"), *map(Path, ours)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


# -- reading -----------------------------------------------------------------------------------------------------------


class Layer:
    """Stands for a layer of Keras; a subclass has the name of its class."""

    def __init__(self, name: str, built: bool) -> None:
        self.name = name
        self.built = built


class Variable:
    """Stands for a variable of Keras."""

    def __init__(self, name: str, path: str, shape: tuple[int, ...], dtype: str) -> None:
        self.name = name
        self.path = path
        self.shape = shape
        self.dtype = dtype


class KnownIndex(ModelIndex):
    """The index of a model's names as they were kept."""

    def __init__(self, nodes: list[LayerNode], entries: list[Entry]) -> None:
        self._enter(nodes[0], nodes, entries)
        self.known_optimizer: OptimizerNames | None = None

    def optimizer(self, name: str = NAME) -> OptimizerNames | None:
        return self.known_optimizer if name == NAME else None


def read(file: Path, arrays: list[Array]) -> tuple[ModelIndex, dict[int, Array]] | None:
    """The index of names, and the array of each variable by its id; `None` if nothing sound is kept."""
    try:
        data = _bytes(file)
    except OSError:
        return None
    try:
        checksum, _, text = data.partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            return None
        kept = json.loads(text)
        known, found = _decoded(kept, {"/".join(each.keys): each for each in arrays})
        entries = [*known.entries, *known.optimizer_entries()]
        for path in (*map(LayerNode.keys, known.nodes), *(entry.path for entry in entries)):
            len(path)  # each has a name
    except DAMAGE:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # it is used: others go first
    return known, found


def _bytes(file: Path) -> bytes:
    """The bytes of a plain file that this user owns and nobody else may write; else an `OSError`."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        plain = stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST
        if not plain or not _own(found) or not _own(file.parent.stat()):
            raise PermissionError(file)
        return opened.read(LARGEST + 1)


def _own(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _decoded(kept: dict[str, Any], arrays: dict[str, Array]) -> tuple[ModelIndex, dict[int, Array]]:
    found: dict[int, Array] = {}
    known = _index(kept[_NODES], kept[_ENTRIES], arrays, found)
    state = kept[NAME]
    if state is not None:
        made = _state(state, known.entries, arrays, found) if state else None
        known.known_optimizer = OptimizerNames(known, made)
    return known, found


def _state(kept: dict[str, Any], entries: list[Entry], arrays: dict[str, Array], found: dict[int, Array]) -> State:
    """The variables of the optimizer, as they were kept."""

    def variable(of: Any, array: Any) -> Variable:
        made = _variable(of)
        _take(made, array, arrays, found)
        return made

    state = State(_text(kept["kind"]), bool(kept["built"]), kept["schedule"] and _text(kept["schedule"]))
    for keys, *each in kept["names"]:
        if not keys:
            raise ValueError(keys)
        state.names[tuple(map(_text, keys))] = variable(*each)
    for name, slots in kept["slots"].items():
        state.slots[_text(name)] = {
            id(entries[_below(number, len(entries))].variable): variable(*each) for number, *each in slots
        }
    return state


def _variable(kept: Any) -> Variable:
    name, path, shape, dtype = kept
    if any(type(length) is not int for length in shape):
        raise ValueError(shape)
    return Variable(_text(name), _text(path), tuple(shape), _text(dtype))


def _take(variable: Any, name: Any, arrays: dict[str, Array], found: dict[int, Array]) -> None:
    """Gives the variable its array, which no other one has then."""
    if name is not None:
        array = found[id(variable)] = arrays.pop(name)
        if array.shape != variable.shape:
            raise ValueError(array.shape)


def _index(nodes: list[Any], entries: list[Any], arrays: dict[str, Array], found: dict[int, Array]) -> "KnownIndex":
    made: list[LayerNode] = []
    depths = [0]
    classes: dict[tuple[str, str], type] = {}
    for number, kept in enumerate(nodes):
        parent = None
        if number:
            above = _below(kept["parent"], number)  # so there is no circle
            parent = made[above]
            depths.append(1 + _below(depths[above], DEEPEST))
        made.append(LayerNode(_item(kept, classes), kept["kind"], parent))
    known = [_entry(kept, made, number) for number, kept in enumerate(entries)]
    for node, kept in zip(made, nodes, strict=True):
        node.scope = made[_below(kept["scope"], len(made))]
        node.routes = _routes(kept["routes"], made)
        lists: dict[str, list[Any]] = {_NODES: made, _ENTRIES: known}
        for slot, what in LISTS.items():
            setattr(node, slot, _referred(kept[slot], lists[what]))
        for slot, what in NAMED.items():
            setattr(node, slot, {_text(name): _referred(each, lists[what]) for name, each in kept[slot].items()})
    for entry, kept in zip(known, entries, strict=True):
        _take(entry.variable, kept["array"], arrays, found)
    return KnownIndex(made, known)


def _item(kept: dict[str, Any], classes: dict[tuple[str, str], type]) -> Any:
    if kept["kind"] == GROUP and kept["item"] is None:
        return None
    if kept["kind"] not in (LAYER, METRIC, SEED):
        raise ValueError(kept["kind"])
    name, built, *named = kept["item"]
    module, kind = map(_text, named)
    if (module, kind) not in classes:
        classes[module, kind] = type(kind, (Layer,), {"__module__": module})
    return classes[module, kind](_text(name), bool(built))


def _entry(kept: dict[str, Any], nodes: list[LayerNode], number: int) -> Entry:
    entry = Entry.__new__(Entry)
    entry.variable = _variable(kept["variable"])
    entry.owner, entry.order = nodes[_below(kept["owner"], len(nodes))], number
    entry.hidden, entry.routes = bool(kept["hidden"]), _routes(kept["routes"], nodes)
    entry.weight = entry.part_of = entry._path = entry._stored = None
    return entry


def _routes(kept: list[Any], nodes: list[LayerNode]) -> list[tuple[int, LayerNode, str]]:
    return [(_below(rank, 100), nodes[_below(node, len(nodes))], _text(name)) for rank, node, name in kept]


def _referred(kept: list[Any], known: list[Any]) -> list[Any]:
    return [known[_below(number, len(known))] for number in kept]


def _below(number: Any, bound: int) -> int:
    if type(number) is not int or not 0 <= number < bound:
        raise IndexError(number)
    return number


def _text(text: Any) -> str:
    if type(text) is not str:
        raise TypeError(text)
    return text


# -- writing -----------------------------------------------------------------------------------------------------------


def keep(file: Path, made: ModelIndex, arrays: dict[int, Array]) -> None:
    """Keeps an index if all of it is Keras's own. That nothing can be written is no error."""
    if not _is_kerass_own(made) or any(entry.weight is not None for entry in made.entries):
        return
    text = json.dumps(_encoded(made, arrays)).encode()
    if len(text) >= LARGEST - 100:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=file.parent, suffix=".new")
        try:
            with open(descriptor, "wb") as opened:
                opened.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            os.replace(aside, file)
        except BaseException:
            os.unlink(aside)
            raise
        _sweep(file.parent)


def _is_kerass_own(made: ModelIndex) -> bool:
    items = [node.item for node in made.nodes if node.item is not None]
    if (optimizer := getattr(made.root.item, NAME, None)) is not None:
        items += [optimizer, *optimizers_in(optimizer)]
    return all(type(item).__module__.startswith("keras.src.") for item in items)


def _encoded(made: ModelIndex, arrays: dict[int, Array]) -> dict[str, Any]:
    nodes = {id(node): number for number, node in enumerate(made.nodes)}
    entries = {id(entry): number for number, entry in enumerate(made.entries)}
    numbers = {_NODES: nodes, _ENTRIES: entries}

    def referred(found: list[Any], what: str) -> list[int]:
        return [numbers[what][id(each)] for each in found]

    def routes(of: Any) -> list[Any]:
        return [(rank, nodes[id(node)], name) for rank, node, name in of.routes]

    def of_node(node: LayerNode) -> dict[str, Any]:
        item = node.item
        kind = None if item is None else (type(item).__module__, type(item).__name__)
        return {
            "kind": node.kind,
            "item": kind and (item.name, bool(getattr(item, "built", True)), *kind),
            "parent": node.parent and nodes[id(node.parent)],
            "scope": nodes[id(node.scope)],
            "routes": routes(node),
            **{slot: referred(getattr(node, slot), what) for slot, what in LISTS.items()},
            **{slot: {k: referred(v, what) for k, v in getattr(node, slot).items()} for slot, what in NAMED.items()},
        }

    def of_variable(variable: Any) -> tuple[Any, Any]:
        array = arrays.get(id(variable))
        described = (variable.name, variable.path, tuple(variable.shape), variable.dtype)
        return described, array and "/".join(array.keys)

    def of_entry(entry: Entry) -> dict[str, Any]:
        variable, array = of_variable(entry.variable)
        return {
            "variable": variable,
            "owner": nodes[id(entry.owner)],
            "hidden": entry.hidden,
            "routes": routes(entry),
            "array": array,
        }

    def of_optimizer(names: OptimizerNames | None) -> dict[str, Any] | None:
        if names is None or names.state is None:
            return None if names is None else {}
        state, variables = names.state, {id(entry.variable): entries[id(entry)] for entry in made.entries}
        return {
            "kind": state.kind,
            "built": state.built,
            "schedule": state.schedule,
            "names": [(keys, *of_variable(variable)) for keys, variable in state.names.items()],
            "slots": {
                name: [(variables[of], *of_variable(slot)) for of, slot in slots.items() if of in variables]
                for name, slots in state.slots.items()
            },
        }

    return {
        _NODES: [*map(of_node, made.nodes)],
        _ENTRIES: [*map(of_entry, made.entries)],
        NAME: of_optimizer(made.optimizer()),
    }


def _sweep(found: Path) -> None:
    """Removes the entries that were not used for longest, and what a kill left."""
    files = sorted(found.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    left = [file for file in found.glob("*.new") if time.time() - file.stat().st_mtime > 3600]
    for file in [*files[MOST:], *left]:
        file.unlink(missing_ok=True)
