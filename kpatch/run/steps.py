"""The steps of a checked patch: one for each statement and variable."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kpatch.names.meanings import Names, Place
from kpatch.syntax import Patch, ast


@dataclass(eq=False, slots=True)
class EditStep:
    """One statement that writes.

    Attributes:
        statement: the `ast.Edit`.
        place: what it writes to.
        selection: the entries, or `None` if they depend on values, or on lengths that are not known yet.
        constant: the values as a NumPy array of the place's dtype, or `None` where they depend on values.
        scalar: the right-hand side is one number that does not depend on the entries.
        operand: for `op=` by a number, that number as a `Value` of the place's dtype.
        stream: which of a glob's matches the place is.
        fresh: the values are a new tensor of the whole place, which it can take over.
        mask: for an index that is a mask, the `elementwise.Program` that makes it, or `None`.
        value: for fresh values, the `elementwise.Program` that computes them, or `None`.
        prepared: the constant as a backend takes it fastest, filled at the first run.
        open_ended: whether the value fits is known only when the lengths are.
        may_fail: it can still be an error, on the values that it meets.
    """

    statement: ast.Edit
    place: Place
    selection: Any
    constant: Any = None
    scalar: bool = False
    operand: Any = None
    stream: int = 0
    fresh: bool = False
    mask: Any = None
    value: Any = None
    prepared: Any = None
    open_ended: bool = False
    may_fail: bool = True

    @property
    def statements(self):
        return (self.statement,)


@dataclass(eq=False, slots=True)
class AssertStep:
    statement: ast.Assert
    may_fail: bool = True

    place, stream = None, 0


@dataclass(eq=False, slots=True)
class LetStep:
    statement: ast.Let
    may_fail: bool = True

    place, stream = None, 0


def writing(steps):
    """The steps that write."""
    return tuple(step for step in steps if not isinstance(step, (AssertStep, LetStep)))


@dataclass(eq=False)
class Checked:
    """A patch that fits its names: what runs it, and what the caches keep. It holds no values of variables.

    Attributes:
        patch: the `Patch`.
        steps: what is executed, in order.
        names: the `Names` that the steps were made with.
        unproved: the index nodes, by `id`, that are checked when a compiled function runs.
        traced: it runs in a compiled function, where values cannot be looked at.
    """

    patch: Patch
    steps: tuple
    names: Names
    unproved: frozenset = frozenset()
    traced: bool = False

    @cached_property
    def edits(self):
        """The steps that write."""
        return writing(self.steps)

    @cached_property
    def doubtful(self):
        """The position of the last step that may still fail on the values that it meets, or -1."""
        return max((position for position, step in enumerate(self.steps) if step.may_fail), default=-1)

    @cached_property
    def dynamic(self):
        """Whether a step writes entries that depend on values."""
        return any(step.selection is None for step in self.edits)
