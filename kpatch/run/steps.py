"""The steps of a checked patch: one for each statement and variable."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

from kpatch.names.meanings import Names, Place
from kpatch.syntax import Patch, ast
from kpatch.values.dtypes import NUMPY

MANY, LARGE = 1_000, 2**24  # steps, and bytes of entries: with fewer of both an edit takes less than a second


@dataclass(eq=False, slots=True)
class EditStep:
    """The edit of one statement on one place.

    Attributes:
        statement: the `ast.Edit`.
        place: the place that it writes to.
        selection: the entries, or `None` if they depend on values or on unknown lengths.
        constant: the values as a NumPy array of the place's dtype, or `None` if they depend on values.
        scalar: the right side is one number that does not depend on the entries.
        operand: for `op=` with a number, that number as a `Value` of the place's dtype.
        size: the number of entries if it is known, though the selection is made when the step runs.
        stream: the number of the glob's match.
        fresh: the values are a new tensor of the whole place, which the place can take over.
        mask: for a mask as the index, the `programs.Program` that computes it, or `None`.
        value: the `programs.Program` that computes the whole place as it will be, or `None`.
        prepared: the constant in the form that the backend writes fastest, set at the first run.
        open_ended: unknown lengths decide whether the value fits.
        may_fail: the step can still fail, depending on values.
        block: the `ast.For` that holds the statement, or `None`.
        works: the texts of its expressions, by the node's `id`, that can be interpreted; "" for others.
    """

    statement: ast.Edit
    place: Place
    selection: Any
    constant: Any = None
    scalar: bool = False
    operand: Any = None
    size: int | None = None
    stream: int = 0
    fresh: bool = False
    mask: Any = None
    value: Any = None
    prepared: Any = None
    open_ended: bool = False
    may_fail: bool = True
    block: ast.For | None = None
    works: dict = field(default_factory=dict)

    @property
    def statements(self):
        return (self.statement,)


@dataclass(eq=False, slots=True)
class AssertStep:
    """An assertion; in a block `place` is the match, which is its `_`, as in a `LetStep`."""

    statement: ast.Assert
    may_fail: bool = True
    place: Place | None = None
    stream: int = 0
    block: ast.For | None = None


@dataclass(eq=False, slots=True)
class LetStep:
    """A `let`; `value` is the `programs.Program` of a whole tensor that is computed of its match, or `None`."""

    statement: ast.Let
    may_fail: bool = True
    place: Place | None = None
    stream: int = 0
    block: ast.For | None = None
    value: Any = None


_FIELDS = {kind: attrgetter(*kind.__slots__) for kind in (EditStep, AssertStep, LetStep)}


def copied(step, place, stream):
    """The step of another match that is alike; `dataclasses.replace` takes several times as long."""
    kind = type(step)
    result = kind(*_FIELDS[kind](step))
    result.place, result.stream = place, stream
    return result


def nbytes(step):
    """The bytes of the entries that a step writes: of the whole place, if values decide which; 0 if it writes none."""
    if isinstance(step, (AssertStep, LetStep)):
        return 0
    size = math.prod(step.place.shape) if step.selection is None else step.selection.size
    return size * NUMPY[step.place.dtype].itemsize


def writing(steps):
    """The steps that write."""
    return tuple(step for step in steps if not isinstance(step, (AssertStep, LetStep)))


@dataclass(eq=False)
class Checked:
    """A patch checked against names, ready to run. It holds no values of variables, so it can be cached.

    Attributes:
        patch: the `Patch`.
        steps: the steps, in order.
        names: the `Names` of the patch.
        unproved: the index nodes, by `id`, that are checked when a compiled function runs.
        open: the sizes of some results are known only when the steps run.
        traced: the patch runs in a compiled function, whose values are unknown.
    """

    patch: Patch
    steps: tuple
    names: Names
    unproved: frozenset = frozenset()
    traced: bool = False
    open: bool = False

    @cached_property
    def models(self):
        """The models whose variables are named, and those handed in."""
        return (*self.names.models, *self.names.bindings.models)

    @cached_property
    def derives(self):
        """Whether a layer derives tensors from a variable that is written: it has a `finalize_state`."""
        entries = [step.place.entry for step in self.edits]
        return any(entry is not None and hasattr(type(entry.owner.item), "finalize_state") for entry in entries)

    @cached_property
    def plain(self):
        """Whether each step writes a constant to known entries, so that nothing is evaluated when it runs."""
        return len(self.edits) == len(self.steps) and all(
            step.constant is not None and step.selection is not None and not step.open_ended for step in self.edits
        )

    @cached_property
    def edits(self):
        """The steps that write."""
        return writing(self.steps)

    @cached_property
    def variables(self):
        """The variables that are written, each once."""
        return list({id(step.place.variable): step.place.variable for step in self.edits}.values())

    @cached_property
    def doubtful(self):
        """The position of the last step that can still fail, depending on values; or -1."""
        return max((position for position, step in enumerate(self.steps) if step.may_fail), default=-1)

    @cached_property
    def lasts(self):
        """Whether the steps may take over a second, so that a caller is shown how far they are."""
        return len(self.steps) >= MANY or self.nbytes >= LARGE

    @cached_property
    def nbytes(self):
        """The bytes of the entries that are written, as a progress bar counts them."""
        return sum(map(nbytes, self.edits))

    @cached_property
    def dynamic(self):
        """Whether a step writes entries that depend on values."""
        return any(step.selection is None for step in self.edits)
