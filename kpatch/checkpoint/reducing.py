"""Reductions of arrays of files in blocks, such as `mean(abs(_))` or `quantile($donor._, 0.5)`."""

import math
from typing import Any

import numpy as np

from kpatch import backends
from kpatch.functions.blockwise import BESTS, FLAGS, QUANTILES, SUMS, in_blocks
from kpatch.names.meanings import Place
from kpatch.run.programs import IN_BLOCKS, compile_mask, evaluated
from kpatch.run.semantics import NAMED
from kpatch.syntax import ast
from kpatch.values.dtypes import Value, tensor

_FUNCTIONS = {*SUMS, *BESTS, *FLAGS, *QUANTILES}


def reduced(node: Any, scope: Any, names: Any, reader: Any) -> Value | None:
    """The value of a call that reduces all of one array, element-wise expressions of it included; or `None`.

    Args:
        node: the node of an expression.
        scope: its `evaluate.Scope`.
        names: the `FileNames`.
        reader: the function from a place to the function of a start and a count that reads its flat entries.
    """
    if type(node) is not ast.Call or node.function not in _FUNCTIONS or not backends.current().arrays_are_tensors:
        return None
    share = _share(node)
    if share is None:
        return None
    whole, place = _of_one_place(node.arguments[0].value, scope, names)
    if place is None or place.dtype not in IN_BLOCKS or 0 in place.shape:
        return None
    scope = scope.with_implied(place.unknown())
    planned = evaluated(whole, scope, names)
    program = compile_mask(whole, planned, place)
    if program is None or planned[id(whole)].shape != place.shape:
        return None
    if _reads([node for node, _ in program.scalars], ast.Implied):
        return None
    read, numbers = reader(place), program.numbers(scope)

    def part(start, count):
        block = read(start, count)
        return program.compute([block] * len(program.arrays), numbers)

    with np.errstate(all="ignore"):
        found = in_blocks(node.function, math.prod(place.shape), part, planned[id(whole)].dtype, share)
    return None if found is None else tensor(found)


def _share(node: ast.Call) -> float | None:
    """The share of a quantile, and any number for other functions; `None` for a call with further arguments."""
    match node.function, node.arguments:
        case "quantile", (ast.Argument(None, _), ast.Argument(None, ast.Integer(share) | ast.Float(share))):
            return float(share)
        case name, (ast.Argument(None, _),) if name != "quantile":
            return 0.5
    return None


def _of_one_place(node: Any, scope: Any, names: Any) -> tuple[Any, Place | None]:
    """An expression with `_` for the one tensor in it, and that tensor's place; `None` if there is no such place."""
    places: list[Place] = []

    def replaced(part):
        if type(part) in NAMED and isinstance(place := names.meaning(part, scope.target), Place):
            places.append(place)
            return ast.Implied(part.span)
        return part

    if _reads([node], ast.Implied):
        if scope.whole is None:
            return node, None
        places.append(scope.whole)
    whole = ast.mapped(node, replaced)
    same = len({(id(place.variable), place.weight is None) for place in places}) == 1
    return whole, places[0] if same and places[0].shape else None


def _reads(nodes: Any, kind: type) -> bool:
    return any(type(part) is kind for node in nodes for part in ast.walk(node))
