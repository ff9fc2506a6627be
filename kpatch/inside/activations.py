"""The activations of one pass through a model, kept for expressions that read them."""

from kpatch.errors import ResolutionError, UnsupportedError


class Activations:
    """The inputs and outputs of layers.

    Args:
        elsewhere: for errors, the reason why a layer's activation can be missing.
        source: the patch's text.
    """

    def __init__(self, elsewhere, source):
        self._elsewhere = elsewhere
        self._source = source
        self._kept = {}  # (id of a layer, kind) → the tensor; `None` if there were several

    def keep(self, layer, kind, x):
        key = id(layer), kind
        self._kept[key] = None if key in self._kept else x

    def read(self, part, name):
        """The activation that a `splitting.Part` reads under a name."""
        node, kind, span = part.reads[name]
        path = f"{node.item.name}.{kind}"
        key = id(node.item), kind
        if key not in self._kept:
            message = f"'{part.node.item.name}' cannot read '{path}': that is computed later, or {self._elsewhere}"
        elif self._kept[key] is None:
            message = f"'{path}' means several tensors: '{node.item.name}' is called more than once"
        else:
            return self._kept[key]
        raise ResolutionError(message, span=span, source=self._source)


def check_one_tensor(layer, kind, x, part, source):
    """Raises if an activation is a list or a dict of tensors; `part` is the `Part` that edits it, or `None`."""
    if not hasattr(x, "shape"):
        message = f"'{layer.name}.{kind}' is not one tensor but a {type(x).__name__} of them"
        raise UnsupportedError(message, span=part and part.span, source=source)


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
