"""Selectors with globs → variables: one walk over a model's graph of names, without backtracking.

`*` and `?` match inside one name, `**` any number of names. The walk goes from part to part, with the set of the nodes
that the parts before lead to. So the cost is at most the size of the graph times the number of parts, even with shared
layers, cycles and many `**`.
"""

import re
from functools import cache, lru_cache

from kpatch.names.tree import descend, distinct, variables_of
from kpatch.syntax.ast import Glob

ANY_DEPTH = Glob("**")


def matching(root, keys, counted=False):
    """The entries that a chain of keys matches from a node on.

    Args:
        keys: strings, integers for `layers[i]`, and `Glob`s.
        counted: a string may also be a name that a weights file counts.

    Returns:
        A list of distinct `Entry`s in the model's order, without hidden ones, and without the scales and factors of a
        weight that is among them.
    """
    found = []
    for node, last in walk(root, keys, counted):
        if last == ANY_DEPTH:
            found += [entry for entries in node.variables.values() for entry in entries] + node.own
        elif type(last) is Glob:
            matches = matcher(last.pattern)
            found += [entry for name, entries in node.variables.items() if matches(name) for entry in entries]
        else:
            found += variables_of([node], last)
    every = set(found)
    return sorted(
        {entry for entry in every if not entry.hidden and entry.part_of not in every}, key=lambda entry: entry.order
    )


def walk(root, keys, counted=False):
    """The nodes matched by all keys but the last, each with the last key; for a final `**`, also all nodes below."""
    nodes = [root]
    for key in keys[:-1]:
        nodes = _reached(nodes, key, counted)
    yield from ((node, keys[-1]) for node in (_and_below(nodes) if keys[-1] == ANY_DEPTH else nodes))


def _reached(nodes, key, counted):
    """The nodes that a key leads to, each once."""
    if key == ANY_DEPTH:
        return _and_below(nodes)
    if type(key) is not Glob:
        return descend(nodes, [key], counted)
    matches = matcher(key.pattern)
    return distinct(
        [child for node in nodes for name, children in node.children.items() if matches(name) for child in children]
    )


def _and_below(nodes):
    """The nodes, and all nodes below, each once."""
    found = dict.fromkeys(nodes)
    stack = list(found)
    while stack:
        new = [child for child in stack.pop().below if child not in found]
        found.update(dict.fromkeys(new))
        stack += new
    return list(found)


@lru_cache(maxsize=64)
def matcher(pattern):
    """A function that tests whether a name matches a pattern of `*` and `?`, in time linear in the name's length.

    Example:
        >>> matches = matcher("conv*_?")
        >>> matches("conv2d_1"), matches("conv2d_10")
        (True, False)
    """
    shortest = len(pattern) - pattern.count("*")
    compiled = cache(lambda: _compiled(pattern))  # at the first name that is long enough: a pattern may be huge
    return lambda name: len(name) >= shortest and compiled()(name)


def _compiled(pattern):
    head, *rest = [re.compile(re.escape(part).replace(r"\?", "."), re.DOTALL) for part in pattern.split("*")]
    if not rest:
        return lambda name: head.fullmatch(name) is not None
    *middle, tail = rest
    tail_length = len(pattern) - pattern.rindex("*") - 1

    def matches(name):
        start = head.match(name)
        if start is None or not tail.fullmatch(name, len(name) - tail_length):
            return False
        position, end = start.end(), len(name) - tail_length
        for part in middle:  # the first place is the best: it leaves the most for the following parts
            place = part.search(name, position, end)
            if place is None:
                return False
            position = place.end()
        return position <= end

    return matches
