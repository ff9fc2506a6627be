"""`Checkpoint`: the names in a weight file, and its values, read on demand."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kpatch.checkpoint import formats, names, recovery, workplaces
from kpatch.checkpoint.arrays import Array, in_blocks
from kpatch.checkpoint.disk import Source
from kpatch.errors import FileError, PatchError, ResolutionError, boundary, reason
from kpatch.names.index import ModelIndex
from kpatch.names.meanings import Place
from kpatch.names.paths import as_path
from kpatch.names.tree import Entry, LayerNode
from kpatch.syntax import ast, parse


def is_path(value: Any) -> bool:
    """Whether something that is handed in is the path of a file, and not a text by mistake."""
    return isinstance(value, os.PathLike) or value.endswith(formats.SUFFIXES) or os.path.exists(value)


class Decoded:
    """A weight that a file stores as something else, with what is asked of an `Array` that is only read."""

    def __init__(self, path: str, weight: Any) -> None:
        self.path = path
        self.shape, self.dtype, self.told = weight.shape, weight.dtype, weight.told
        self._weight = weight

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def view(self) -> np.ndarray:
        return self._weight.values(stored_in_file)

    def blocks(self) -> Iterator[Any]:
        yield from in_blocks(self.view())


def stored_in_file(array: Array, flat: np.ndarray | None = None) -> np.ndarray:
    """Entries of an `Array`, as a `codecs.Weight` reads them."""
    values = np.asarray(array.view())
    return values if flat is None else values.reshape(-1)[flat]


class Checkpoint(names.FileDonor):
    """The arrays of a file, by name, read on demand. `kpatch.checkpoint.open` makes it.

    Args:
        path: a file or a folder of a format that kpatch reads.
        custom_objects: the classes of one's own that a model needs, by name, as for `keras.saving.load_model`.

    Raises:
        FileError: the file cannot be read, is damaged, or is of another format.

    Attributes:
        path, real: the given path, and that of its main file, where links lead.
        kind: its format, of those in `checkpoint/formats.py`.
        arrays: its `Array`s.
        files: the `Source`s that contain the arrays.
        sources: all files parsed: the given one, and `files`.
        entry: the `archive.Member` that contains the arrays of an archive, or `None`.
        note: the reason why only the file's own names are known, or `None`.

    Example:
        >>> import keras, kpatch, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "small.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")]).save(path)
        >>> file = kpatch.checkpoint.open(path)
        >>> list(file), file["head.bias"]
        (['head.kernel', 'head.bias'], array([0., 0., 0.], dtype=float32))
    """

    @boundary
    def __init__(self, path: "str | os.PathLike[str]", *, custom_objects: Mapping[str, Any] | None = None) -> None:
        self.custom_objects = custom_objects
        self.path = as_path(path)
        self.kind = formats.kind(self.path)
        self.note: str | None = None
        source = Source(formats.main(self.path))
        self.real = source.real
        try:
            recovery.recover(self.real)
            if self.path.is_dir():
                workplaces.sweep(self.path.parent)  # where results of the folder are made
            with source.parsed() as file:
                found = formats.read(source, file, self.kind, self.path if self.kind == formats.FOLDER else None)
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"cannot read '{path}': {reason(error)}") from error
        self.files, self.arrays, self.entry, self._config = found.files, found.arrays, found.entry, found.config
        self.sources = list(dict.fromkeys([source, *self.files, *found.others]))

    @cached_property
    def own(self) -> names.FileIndex:
        """The index of the file's own names."""
        return names.FileIndex(self.arrays)

    @cached_property
    def _model(self) -> tuple[ModelIndex, dict[int, Array]] | None:
        """The index of the model's names, and the array of each variable by its id.

        `None` if the file has no configuration, or if the model cannot be built.
        """
        if self._config is None:
            return None
        from kpatch.checkpoint import remembered

        try:
            return remembered.names(self._config, self.arrays, self.custom_objects)
        except FileError as error:
            self.note = f"{error.message}; the names are those in the file, as in '{self.own.entries[0].path}'"
            return None

    def architecture(self) -> Any:
        """The model that the file's configuration describes, built by Keras without values.

        Raises:
            FileError: the file has no configuration, or the model cannot be built.
        """
        if self._config is None:
            told = "kpatch reads the architecture of .keras files, and of folders with a config.json"
            raise FileError(f"the activations of '{self.path}' are not known: {told}")
        from kpatch.checkpoint import architecture

        try:
            return architecture.build(self._config, self.arrays, self.custom_objects)[0]
        except FileError as error:
            raise FileError(f"cannot build the model in '{self.path}': {error.message}", notes=error.notes) from error

    @cached_property
    def index(self) -> ModelIndex:
        """The index of names: the model's, else the file's own."""
        return self.own if self._model is None else self._model[0]

    def find(self, selector: ast.Selector) -> Entry:
        """The entry that matches a selector without globs."""
        [entry] = self.find_all(selector)
        return entry

    def find_all(self, selector: ast.Selector) -> list[Entry]:
        """The entries that match a selector: by the model's names, else by the file's own.

        Raises:
            ResolutionError: no entry matches, or several match a selector without globs.
        """
        try:
            return self.index.find_all(selector)
        except ResolutionError as error:
            if self.index is not self.own:
                with contextlib.suppress(PatchError):
                    return self.own.find_all(selector)
                error.notes = (*error.notes, *self._unknown_optimizer(selector))
            elif self.note:
                error.notes = (*error.notes, self.note)
            raise

    def _unknown_optimizer(self, selector: ast.Selector) -> list[str]:
        """A note on the names of an optimizer that cannot be made here."""
        first = selector.parts[0]
        if type(first) is not ast.Name or first.value != "optimizer" or self.index.optimizer_entries():
            return []
        own = [entry.path for entry in self.own.entries if entry.path.startswith("optimizer.")]
        return (
            [f"the file has one that cannot be made here; its variables are '{own[0]}' to '{own[-1]}'"] if own else []
        )

    @property
    def nodes(self) -> list[LayerNode]:
        return self.index.nodes

    def array(self, entry: Entry) -> Array:
        """The `Array` of an entry of either index."""
        if self._model is None or entry.owner is self.own.root or type(entry.owner.item) is names.Folder:
            return entry.variable
        array = self._model[1].get(id(entry.variable))
        if array is None:
            raise ResolutionError(f"'{entry.path}' is a variable of the model, but the file has no values for it")
        return array

    def weight(self, entry: Entry) -> Any:
        """The `codecs.Weight` that an entry's array stores, or `None` if the array is the weight."""
        if entry.weight is None or self._model is None:
            return None
        arrays = self._model[1]
        return entry.weight.in_file(lambda variable: arrays[id(variable)])

    def counterpart(self, target: Place) -> Entry:
        """The counterpart of a target."""
        return self._counterparts.of(target.entry)

    @cached_property
    def _counterparts(self) -> Any:
        from kpatch.names.counterparts import Counterparts

        return Counterparts(self.path.name, self.index)

    def entries(self) -> list[tuple[Entry, Array]]:
        """Pairs of an entry and its `Array` in the model's order, then the arrays that only the file names."""
        found, seen = [], set()
        for entry in [*self.index.entries, *self.index.optimizer_entries(), *self.own.entries]:
            try:
                array = self.array(entry)
            except ResolutionError:
                continue
            if id(array) not in seen:
                seen.add(id(array))
                found.append((entry, array))
        return found

    def named(self) -> list[tuple[str, Any]]:
        """Pairs of a name and what it means, an `Array` or a `Decoded`, in the order of `entries`."""
        return [(entry.path, self.meant(entry)) for entry, _ in self.entries()]

    def stored(self) -> list[tuple[str, Array]]:
        """Pairs of a name and the `Array` as it is stored."""
        return [
            ((entry if self.weight(entry) is None else entry.stored).path, array) for entry, array in self.entries()
        ]

    def meant(self, entry: Entry) -> Any:
        """What the name of an entry means: its `Array`, or the `Decoded` weight that the array stores."""
        weight = self.weight(entry)
        return self.array(entry) if weight is None else Decoded(entry.path, weight)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.named()])

    def __len__(self) -> int:
        return len(self.arrays)

    @boundary
    def __getitem__(self, selector: str) -> np.ndarray:
        """The values of the array that a selector matches, as a NumPy array."""
        target = parse(f"{selector} = 0").statements[0].target
        return np.array(self.meant(self.find(target.selector)).view())

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}, {len(self.arrays)} arrays>"
