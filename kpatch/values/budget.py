"""What a patch may cost, counted over all its statements while it is planned.

A patch that would cost more is refused before its first write. The unit is an entry of a tensor. A statement *touches*
the entries of the variables, bound values and `_` that it names, each time that it names them, and those it assigns to.
What it computes may be a multiple of that.
"""

import math

from kpatch.errors import LimitError

MULTIPLE = 256  # entries of results for each entry that a patch touches
FREE = 2**26  # entries of results that a patch can always compute
WORK_MULTIPLE = 2**14  # multiplications of matrices for each entry that a patch touches
FREE_WORK = 2**33  # multiplications that a patch can always do
MAX_CONSTANTS = 2**24  # entries computed of literals alone, which are computed while planning
OBJECTS = 4  # what an integer counts for that is computed by Python's arithmetic, to be exact
MAX_OFFSETS = 2**16  # entries of a selection whose offsets a plan keeps
MAX_KEPT = 2**22  # and of all such selections of a patch
MAX_OPERATIONS = 2**20  # results of operators and functions, for all matches of globs
MAX_PLANNED = 2**16  # nodes of expressions that are planned again, for further shapes under a glob


def size_of(shape):
    """The number of entries; an unknown length counts as 1."""
    return math.prod(shape) if None not in shape else math.prod(1 if length is None else length for length in shape)


class Budget:
    """What a patch has cost so far.

    Args:
        length: the number of characters of the patch, whose literals are not counted.

    Attributes:
        open: a result has an unknown length, so that its size is counted when the patch runs.
        spent: a limit is exceeded.
    """

    __slots__ = (
        "allowed", "constants", "kept", "open", "operations", "planned", "results", "spent", "touched", "work"
    )  # fmt: skip

    def __init__(self, length=0):
        self.allowed = MAX_CONSTANTS + OBJECTS * length
        self.touched = self.results = self.work = self.operations = 0
        self.constants = self.planned = self.kept = 0
        self.open = self.spent = False

    def touch(self, shape, bound=None):
        """The entries of a name, of which there are no more than the shape `bound` has."""
        self.touched += size_of(shape) if bound is None else min(size_of(shape), size_of(bound))

    def allow(self, entries):
        """Literals that were handed in, with which constants can be computed."""
        self.allowed += OBJECTS * entries

    def compute(self, shape):
        """A result of tensors."""
        self.open = self.open or None in shape
        self.operations += 1
        self.results += size_of(shape)
        self._check_results()

    def _check_results(self):
        if self.operations > MAX_OPERATIONS:
            self._refuse(
                f"a patch computes at most {MAX_OPERATIONS:,} results of operators and functions, for all variables "
                "that its globs match"
            )
        if self.results > FREE + MULTIPLE * self.touched:
            self._refuse(
                f"the results of a patch have at most {FREE:,} entries in all, and {MULTIPLE} for each entry of the "
                f"tensors that it names; with this one they would have {self.results:,}"
            )

    def multiply(self, steps):
        """The steps of products of matrices and of linear algebra."""
        self.work += steps
        self._check_work()

    def _check_work(self):
        if self.work > FREE_WORK + WORK_MULTIPLE * self.touched:
            self._refuse(
                f"products of matrices and linear algebra take at most {FREE_WORK:,} steps in a patch, and "
                f"{WORK_MULTIPLE:,} for each entry of the tensors that it names; with this one they take {self.work:,}"
            )

    def fold(self, entries):
        """Entries computed of literals alone, or converted."""
        self.constants += entries
        if self.constants > self.allowed:
            self._refuse(
                f"the constants of a patch, computed of literals alone, have at most {MAX_CONSTANTS:,} entries in all"
            )

    def plan(self, nodes):
        """An expression planned for a further shape."""
        self.planned += nodes
        if self.planned > MAX_PLANNED:
            self._refuse(
                f"a patch plans at most {MAX_PLANNED:,} parts of expressions for further shapes that its globs match"
            )

    def _refuse(self, message):
        self.spent = True
        raise LimitError(message)

    def keep(self, shape):
        """Whether the offsets of a selection may be kept in the plan."""
        size = size_of(shape)
        kept = size <= MAX_OFFSETS and self.kept + size <= MAX_KEPT
        self.kept += size if kept else 0
        return kept

    def cost(self):
        """The cost so far."""
        return self.touched, self.results, self.work, self.operations

    def since(self, before):
        """The cost since a moment, for `repeat`."""
        return tuple(late - early for early, late in zip(before, self.cost(), strict=True))

    def repeat(self, cost):
        """Counts a cost once more, for a copy of a step."""
        touched, results, work, operations = cost
        self.touched += touched
        self.results += results
        self.work += work
        self.operations += operations
        self._check_results()
        self._check_work()
