"""Whether variables are still where they were found, in a time that does not grow with the model."""

from collections.abc import Iterable
from typing import Any

from kpatch.names.tree import LAYER, LayerNode

VARIABLES = ("_trainable_variables", "_non_trainable_variables")
LAYERS = ("_layers",)


class Links:
    """The places of variables in Keras's lists, from the model down to the layer.

    A layer that is quantised, or gets factors of LoRA, has other variables, or more of them.

    Args:
        entries: the entries of the variables, found just now; `None` for a variable of no model.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        self._complete = True
        self._links: dict[tuple[int, str], tuple[dict[str, Any], str, int, dict[int, Any]]] = {}
        for entry in entries:
            if entry is not None:
                self._complete = self._complete and self._link_variable(entry)

    def hold(self) -> bool:
        """Whether nothing is certain to have changed that the variables depend on."""
        return self._complete and all(
            len(state[name]) == size and all(state[name][at] is item for at, item in items.items())
            for state, name, size, items in self._links.values()
        )

    def _link_variable(self, entry: Any) -> bool:
        node = getattr(entry, "owner", None)
        if not isinstance(node, LayerNode) or not self._link(node, entry.variable, VARIABLES):
            return False
        while node.parent is not None:
            if not self._link(node.parent, node.item, LAYERS):
                return False
            node = node.parent
        return True

    def _link(self, node: LayerNode, item: Any, names: Iterable[str]) -> bool:
        """Watches the lists of a layer, and the item in one of them; says whether it is there."""
        if node.kind != LAYER:
            return False
        state, found = vars(node.item), False
        for name in names:
            held = state[name]
            *_, items = self._links.setdefault((id(state), name), (state, name, len(held), {}))
            at = next((at for at, each in enumerate(held) if each is item), None)
            if at is not None:
                items[at], found = item, True
        return found
