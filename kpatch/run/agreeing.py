"""One edit in several processes: before it begins they compare what they are about to do.

Each process runs a program of its own, and all must make the same edit, as each has a part of it. Once an edit runs, a
process may wait for values of the others, so whatever can be wrong in one of them alone is told before.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.errors import UnsupportedError
from kpatch.names.meanings import Place
from kpatch.run.steps import Checked
from kpatch.values.dtypes import Value
from kpatch.values.tensors import of_variable, to_numpy

REFUSED = bytes(hashlib.sha256().digest_size)  # in place of a digest


def agree(checked: Checked, *options: Any) -> None:
    """Compares a checked patch, the values of its `$names`, and options with those of the other processes.

    Raises:
        UnsupportedError: they differ. All processes raise it, or an error of their own.
    """
    process, count = backends.current().process()
    if count == 1:
        return
    variables = (step.place.variable for step in checked.edits)
    told = _exchanged(variables, functools.partial(_digest, checked, options))
    refusing = [number for number, digest in told.items() if digest == REFUSED]
    if refusing:
        raise UnsupportedError(f"no process applies the patch, as it is refused in {_processes(refusing)}")
    others = [number for number, digest in told.items() if digest != told[process]]
    if others:
        raise UnsupportedError(
            f"the patch, or a value of its $names, is another one in {_processes(others)}",
            notes=["all processes that hold a part of a variable apply the same patch, with the same values"],
        )


def refuse(target: Any) -> None:
    """Tells the other processes that this one refuses a patch of a model, or of what else `kpatch.apply` edits."""
    if backends.current().process()[1] > 1:
        _exchanged(_variables(target), lambda: REFUSED)


def _exchanged(variables: Iterable[Any], message: Callable[[], bytes]) -> dict[int, bytes]:
    """What each process tells, by its number; empty if no variable is shared with other processes."""
    backend = backends.current()
    return next(filter(None, (backend.exchanged(variable, message) for variable in variables)), {})


def _variables(target: Any) -> Iterator[Any]:
    if isinstance(target, (Mapping, list, tuple)):
        for each in target.values() if isinstance(target, Mapping) else target:
            yield from _variables(each)
    else:
        yield from getattr(target, "variables", [target])


def _digest(checked: Checked, options: tuple) -> bytes:
    found = hashlib.sha256((checked.patch.source or str(checked.patch)).encode())
    found.update(repr((options, len(checked.steps))).encode())
    for name, value in checked.names.bindings.values():
        found.update(name.encode())
        if (array := _held(value)) is not None:
            found.update(repr((array.dtype, array.shape)).encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()


def _held(value: Any) -> np.ndarray | None:
    """The values that this process alone may have; `None` if several hold them, or they are in a model or a file."""
    if isinstance(value, Place) and value.weight is None:
        data = of_variable(value.variable)
    elif isinstance(value, Value):
        data = value.data
    else:
        return None
    return None if backends.current().is_spread(data) else to_numpy(data)


def _processes(numbers: list[int]) -> str:
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
