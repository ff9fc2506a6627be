"""`Plan`: a snapshot of a patch's effect on a model or a file, as rows with warnings."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from kpatch.errors import UnsupportedError
from kpatch.run.steps import Checked, writing
from kpatch.syntax import Patch, ast
from kpatch.view.overview import Column, Overview, shape
from kpatch.view.shown import Shown

EMPTY = "the patch is empty: it has no statements"


@dataclass(frozen=True, slots=True)
class Row:
    """One statement of a plan.

    Attributes:
        statement: the statement's text.
        path: the variable, or activation, that it writes to.
        shape, dtype: its shape and dtype. An activation's have `None` for what only a call of the model tells.
        entries: the number of entries that it writes; `None` if it depends on values that earlier statements write, or
            on what only a call tells.
    """

    statement: str
    path: str
    shape: tuple | None
    dtype: str | None
    entries: int | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": None if self.shape is None else list(self.shape)}


def plan_rows(plan: "Plan") -> list[tuple[ast.Edit, Row]]:
    """Pairs of a statement and its row, in the order of the statements."""
    rows = [
        (statement, Row(text_in(statement, plan.patch), step.place.path, step.place.shape, step.place.dtype, count))
        for step, count in zip(plan.edits, plan.counts, strict=True)
        for statement in step.statements
    ]
    return sorted([*rows, *plan.activations], key=lambda pair: pair[0].span)


def plan_warnings(rows: list[tuple[ast.Edit, Row]]) -> tuple[str, ...]:
    """A sentence for each statement that edits no entry, or all entries in spite of its index."""
    by_statement: dict = {}
    for statement, row in rows:
        by_statement.setdefault(statement.span, (statement, []))[1].append(row)
    return tuple(filter(None, (_warning(statement, found) for statement, found in by_statement.values())))


def _warning(statement: ast.Edit, rows: list[Row]) -> str | None:
    counts = [row.entries for row in rows if row.entries is not None]
    if statement.target.index is None or len(counts) < len(rows):
        return None
    if sum(counts) == 0:
        return f"'{rows[0].statement}' edits nothing: its index selects no entry"
    narrowing = any(not (isinstance(item, ast.Ellipsis_) or _is_all(item)) for item in statement.target.index)
    if narrowing and sum(counts) == sum(math.prod(row.shape or ()) for row in rows) > 1:
        return f"'{rows[0].statement}' edits everything: its index selects every entry"
    return None


def _is_all(item: ast.Node) -> bool:
    return isinstance(item, ast.Slice) and (item.start, item.stop, item.step) == (None, None, None)


def told(patch: Patch) -> str:
    """The patch's text, as it was written if it was."""
    return patch.source or str(patch)


def text_in(statement: ast.Edit, patch: Patch) -> str:
    """The statement's text in the patch's source."""
    return patch.source[slice(*statement.span)]


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Shown):
    """A snapshot of a patch's effect on a model; later changes of the model do not change it.

    `print(plan)` shows it as a table, and so does a notebook.

    Attributes:
        patch: the `Patch`.
        steps: the steps that write variables, in order.
        activations: the statements that write activations, and their rows.
        rows: a `Row` for each writing statement and each of its matches.
        warnings: a sentence for each statement that edits no entry, or all entries in spite of its index; or one if
            the patch is empty.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> plan = kpatch.plan(model, "dense_1.kernel[0] = 1.0")
        >>> plan.rows[0].path, plan.rows[0].shape, plan.rows[0].entries
        ('dense_1.kernel', (4, 3), 3)
    """

    patch: Patch
    steps: tuple
    counts: tuple = field(repr=False)  # the number of entries each step writes; `None` if unknown before it runs
    activations: tuple = ()

    def apply(self, *, donate: bool = True, undo: bool = True) -> Any:
        """Refused: only a plan of a model, for its variables, can be applied (`ModelPlan`).

        Raises:
            UnsupportedError: always.
        """
        if self.activations:
            raise UnsupportedError("this plan edits activations, which kpatch.intervene does while a block lasts")
        raise UnsupportedError("this plan tells about a file, or about edits that were made; it applies nothing")

    @classmethod
    def of(cls, checked: Checked, counts: Iterable[int | None]) -> "Plan":
        """The plan of a checked patch; `counts` has a number of entries for each writing step."""
        return cls(checked.patch, checked.steps, tuple(counts))

    @property
    def edits(self) -> tuple[Any, ...]:
        """The steps that write."""
        return writing(self.steps)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for _, row in self._of_statements)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        return (*plan_warnings(self._of_statements), *[EMPTY] * (not self.patch.statements))

    @cached_property
    def _of_statements(self) -> list[tuple[ast.Edit, Row]]:
        """The statements and their rows."""
        return plan_rows(self)

    def overview(self) -> Overview:
        columns = (
            Column("statement"),
            Column("variable"),
            Column("shape", drop=1),
            Column("dtype", drop=2),
            Column("entries", right=True),
        )
        rows = [
            (r.statement, r.path, "?" if r.shape is None else shape(r.shape), r.dtype or "?", _counted(r.entries))
            for r in self.rows
        ]
        return Overview(columns, rows, self.warnings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "patch": told(self.patch),
            "rows": [row.to_dict() for row in self.rows],
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        return f"<Plan {len(self.edits) + len(self.activations)} writes>"


def _counted(entries: int | None) -> str:
    return "?" if entries is None else f"{entries:,}"
