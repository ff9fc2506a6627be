"""The graphs of a model, one within another: which of them call a layer, and which of their layers use a variable."""

from functools import cached_property
from typing import Any

from kpatch.names.tree import LayerNode


def has_graph(layer: Any) -> bool:
    import keras
    from keras.models import Sequential

    return isinstance(layer, Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "_run_through_graph") and hasattr(layer, "operations")
    )


class Graphs:
    """The graphs of a model. A layer that is shared is in several, or within several layers.

    Args:
        root: the node of the model, which has a graph.

    Attributes:
        leaves: the nodes of the layers of all graphs, without those that have a graph themselves.
    """

    def __init__(self, root: LayerNode) -> None:
        self.leaves: list[LayerNode] = []
        self._holders: dict[LayerNode, list[LayerNode]] = {root: []}
        stack = [root]
        while stack:
            graph = stack.pop()
            layers = set(map(id, graph.item.layers))
            for node in graph.layers:
                if id(node.item) not in layers:
                    continue  # an attribute of the model, which its graph does not call
                if node not in self._holders:
                    (stack if has_graph(node.item) else self.leaves).append(node)
                self._holders.setdefault(node, []).append(graph)

    def holders(self, node: LayerNode) -> list[LayerNode]:
        """The graphs that call a layer."""
        return self._holders.get(node, [])

    def around(self, node: LayerNode) -> list[LayerNode]:
        """All graphs that a layer is in, at any depth, each once."""
        found: dict[LayerNode, None] = {}
        stack = [node]
        while stack:
            for graph in self.holders(stack.pop()):
                if graph not in found:
                    found[graph] = None
                    stack.append(graph)
        return list(found)

    def containing(self, node: LayerNode) -> list[LayerNode]:
        """The leaves that have a node within them."""
        return [leaf for leaf in self.leaves if leaf is not node and node in self._within[leaf]]

    def users(self, variable: Any) -> list[LayerNode]:
        """The leaves that have a variable, of their own or within them."""
        return [leaf for leaf in self.leaves if id(variable) in self._variables[leaf]]

    @cached_property
    def _within(self) -> dict[LayerNode, set[LayerNode]]:
        return {leaf: _closure(leaf) for leaf in self.leaves}

    @cached_property
    def _variables(self) -> dict[LayerNode, set[int]]:
        return {
            leaf: {id(entry.variable) for node in nodes for entry in node.own} for leaf, nodes in self._within.items()
        }


def _closure(node: LayerNode) -> set[LayerNode]:
    """The node and all nodes within it."""
    found, stack = {node}, [node]
    while stack:
        at = stack.pop()
        new = [each for each in (*at.below, *at.metrics) if each not in found]
        found.update(new)
        stack += new
    return found
