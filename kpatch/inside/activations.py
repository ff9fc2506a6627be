"""The activations of one pass through a model, kept for expressions that read them."""

from kpatch.errors import PatchError, ResolutionError
from kpatch.names.tree import spelled


class Activations:
    """The inputs and outputs of layers, as `Inputs` and `Outputs`.

    Args:
        elsewhere: for errors, the reason why a layer's activation can be missing.
        source: the patch's text.
    """

    def __init__(self, elsewhere, source):
        self._elsewhere = elsewhere
        self._source = source
        self._kept = {}  # (id of a layer, kind) → what it is given or gives; `None` if there were several calls

    def keep(self, layer, kind, held):
        key = id(layer), kind
        self._kept[key] = None if key in self._kept else held

    def read(self, part, name):
        """The tensor that a `splitting.Part` reads under a name."""
        node, kind, inner, span = part.reads[name]
        path = f"{node.item.name}.{kind}"
        key = id(node.item), kind
        if key not in self._kept:
            message = f"'{part.node.item.name}' cannot read '{path}': that is computed later, or {self._elsewhere}"
        elif self._kept[key] is None:
            message = f"'{path}' means several tensors: '{node.item.name}' is called more than once"
        else:
            return tensor_in(self._kept[key], node, inner, span, self._source)
        raise ResolutionError(message, span=span, source=self._source)


def tensor_in(held, node, inner, span, source):
    """A tensor of what the layer of a node is given or gives; an error shows its name in the patch."""
    try:
        return held.tensor(inner, node.keys())
    except PatchError as error:
        raise error.locate(span, source) from None


def loop_around(node, *kinds):
    """The layer of one of the kinds, by their names in `keras.layers`, whose loop the layer of a node is in; or `None`.

    What a loop computes anew in each step cannot be read outside of it. How often a backend calls the cell of a
    recurrent layer, if at all, is its own affair.
    """
    import keras

    classes = tuple(getattr(keras.layers, kind) for kind in kinds)
    holder = node.parent
    while holder is not None and not isinstance(holder.item, classes):
        holder = holder.parent
    return holder and holder.item


def why_not_called(node, kind):
    """A sentence on why a layer can be left out of a call of its model."""
    import keras

    if node.parent is not None and kind == "output" and isinstance(node.item, keras.layers.Softmax):
        name = spelled([*node.parent.keys(), "scores"])
        return f"fused attention calls no softmax; '{name}' is what it gives, and has the layer compute it"
    return "the model took another way, or a function was compiled before the block"
