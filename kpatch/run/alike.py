"""Steps of a glob's matches, copied from those of matches that are alike, which takes a tenth of the time."""

import math
from typing import Any

from kpatch import functions, indexing
from kpatch.errors import PatchError
from kpatch.names.meanings import Place
from kpatch.run.steps import copied
from kpatch.syntax import ast
from kpatch.values.budget import Budget

LEAVES = (ast.Implied, ast.Integer, ast.Float, ast.Boolean, ast.Constant)
REDUCING = ("sum", "mean", "max", "min", "prod", "var", "std", "any", "all", "median")  # of all entries, if alone


class Alike:
    """What was planned for the matches of a statement or a block.

    Steps of matches of one shape and dtype are alike. If each part of a statement has the shape of the match or is one
    number, so are those of all shapes. Their cost grows with the size in a straight line, which two sizes give.

    Args:
        node: the statement or block.
        names: the `Names` of the patch.
        several: it has several matches.
        traced: the patch runs in a compiled function.

    Attributes:
        size: the number of nodes of its expressions.
    """

    def __init__(self, node: Any, names: Any, several: bool, traced: bool) -> None:
        nodes = list(ast.walk(node)) if several else []
        self.size = len(nodes)
        self._own = [part for part in nodes if _is_of_target(part)]
        self._names = names
        self._planned: dict = {}  # by the match's shape, and what else decides: the steps and their cost
        self._sizes: dict = {}  # by what else decides: the same of two matches, by their sizes
        self._scales = several and not traced and isinstance(node, ast.Edit) and suits_any_shape(node)

    def copies(self, place: Place, stream: int, budget: Budget) -> list | None:
        """The steps of a match, whose cost is counted; `None` if they must be planned."""
        likeness = self._likeness(place)
        found = self._planned.get(likeness) or self._scaled(likeness)
        if found is None:
            return None
        steps, cost = found
        budget.repeat(cost)
        return [copied(step, place, stream) for step in steps]

    def add(self, place: Place, steps: list, cost: tuple) -> None:
        """Keeps what was planned for a match."""
        likeness = self._likeness(place)
        self._planned[likeness] = steps, cost
        if self._scales_to(likeness) and _covers(steps[0]):
            sizes = self._sizes.setdefault(likeness[1:], {})
            if len(sizes) < 2:
                sizes[math.prod(place.shape)] = steps, cost

    def _likeness(self, place):
        """The shape and dtype of a match, and those of its counterparts; `None` if planning raises an error."""
        try:
            own = [self._names.meaning(node, place) for node in self._own]
        except PatchError:
            return None
        others = [(each.dtype, None if each.shape == place.shape else each.shape) for each in own]
        return place.shape, place.dtype, type(place.weight), tuple(others)

    def _scales_to(self, likeness):
        """Whether all tensors of the match have its shape, which has entries, and are what is stored."""
        if not self._scales or likeness is None:
            return False
        shape, _, weight, others = likeness
        return len(shape) > 0 and 0 not in shape and weight is type(None) and all(own is None for _, own in others)

    def _scaled(self, likeness):
        """The steps for a shape that was not planned, and their cost; or `None`."""
        sizes = self._sizes.get(likeness[1:], {}) if self._scales_to(likeness) else {}
        if len(sizes) < 2:
            return None
        (small, ([step], low)), (large, (_, high)) = sizes.items()
        shape, size = likeness[0], math.prod(likeness[0])
        step = copied(step, step.place, 0)
        step.selection = None if step.selection is None else indexing.whole(shape)
        step.size = None if step.size is None else size
        return [step], tuple(a + (b - a) * (size - small) // (large - small) for a, b in zip(low, high, strict=True))


def suits_any_shape(statement: ast.Edit) -> bool:
    """Whether each expression of a writing statement has the shape of its target or is one number, whatever the shape.

    >>> from kpatch.syntax import parse
    >>> texts = "a *= 2", "a[abs(_) < max(_)] = 0", "a = _[0]", "a = _ - b.c", "a = matmul(_, _)"
    >>> [suits_any_shape(parse(text).statements[0]) for text in texts]
    [True, True, False, False, False]
    """
    return all(map(_is_elementwise, (statement.value, *(statement.target.index or ()))))


def _covers(step):
    """Whether the entries are all of the place, or those under a mask of all, in a row, which no whole tensor fits."""
    if step.mask is not None:
        return not any(map(_is_of_target, ast.walk(step.statement.value)))
    return isinstance(step.selection, indexing.Region) and step.selection.full


def _is_elementwise(node):
    match node:
        case ast.Call("quantile", (ast.Argument(None, x), ast.Argument(None, ast.Integer() | ast.Float()))):
            return _is_elementwise(x)
        case ast.Call(function, (ast.Argument(None, x),)) if function in REDUCING:
            return _is_elementwise(x)
        case ast.Call(function):
            known = functions.is_elementwise(function)
        case ast.Binary(op):
            known = op != "@"
        case _:
            known = isinstance(node, (ast.Argument, ast.Unary, ast.Compare))
    return isinstance(node, LEAVES) or _is_of_target(node) or (known and all(map(_is_elementwise, ast.children(node))))


def _is_of_target(node):
    """Whether the node is a `$donor._`, which means a different variable for each target."""
    return type(node) is ast.Binding and isinstance(node.path, ast.Implied)
