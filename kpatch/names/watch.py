"""Detects changes of a model."""

from itertools import chain
from operator import is_, itemgetter

CONTAINERS = (list, tuple, dict)


class StandIn:
    """What takes the place of a method of a layer for a while: an attribute of the layer, and no change of the model.

    Attributes:
        adds: whether the layer had no attribute of this name.
    """

    adds = True


class Watch:
    """A snapshot of a model: names, lists of layers and variables, and attributes, compared by identity.

    The check runs at each use of an index and takes about 0.07 µs for each of Keras's own layers. It does not detect

    * an attribute of such a layer that is changed to one of the layer's own variables;
    * a change in a long list without layers.

    So `ModelIndex.find` reads the model again before it reports a name as missing.
    """

    def __init__(self):
        self._empty = []
        self._ones = []
        self._twos = []
        self._longer = []
        self._named = []
        self._names = []
        self._attributes = []
        self._values = []
        self._growing = []
        self._sizes = []

    def name(self, state):
        self._named.append(state)
        self._names.append(state["name"])

    def sequence(self, items):
        """Watches the items of a list."""
        size = len(items)
        if size == 0:
            self._empty.append(items)
        elif size == 1:
            self._ones.append((items, *items))
        elif size == 2:
            self._twos.append((items, *items))
        else:
            self._longer.append((items, tuple(items)))

    def container(self, items):
        """Watches the items of a list, tuple or dict."""
        if not items or isinstance(items, list):
            self.sequence(items)
        elif isinstance(items, dict):
            self.attributes(items, list(items), grows=True)

    def attributes(self, state, names, grows):
        """Watches values of a dict; with `grows`, also its number of items."""
        get = itemgetter(*names, names[-1])  # at least two names, to get a tuple
        self._attributes.append((get, state))
        self._values.append(get(state))
        if grows:
            self._growing.append(state)
            self._sizes.append(_size(state))

    def holds(self):
        try:
            return self._lists_hold() and self._attributes_hold()
        except (ValueError, KeyError):  # another number of items; a deleted attribute
            return False

    def _lists_hold(self):
        if any(self._empty) or [*map(_name_of, self._named)] != self._names:
            return False
        for items, same in self._longer:
            if len(items) != len(same) or not all(map(is_, items, same)):
                return False
        for items, first in self._ones:
            (now,) = items
            if now is not first:
                return False
        for items, first, second in self._twos:
            now, then = items
            if now is not first or then is not second:
                return False
        return True

    def _attributes_hold(self):
        if self._sizes != [*map(len, self._growing)] and self._sizes != [*map(_size, self._growing)]:
            return False
        values = [get(state) for get, state in self._attributes]
        return all(map(is_, _flat(values), _flat(self._values))) or self._only_plain(values)

    def _only_plain(self, values):
        """Whether only plain values (counters, flags) changed; if so, records the new values."""
        for now, then in zip(_flat(values), _flat(self._values), strict=True):
            if now is not then and not (_is_plain(now) and _is_plain(then)):
                return False
        self._values = values
        return True


def _size(state):
    """How many attributes there are without those that stand in for a method."""
    return len(state) - sum(isinstance(value, StandIn) and value.adds for value in state.values())


_flat = chain.from_iterable
_name_of = itemgetter("name")


def _is_plain(value):
    """Whether the value is no layer, variable, metric, seed generator, optimizer or container."""
    import keras

    named = (
        keras.Layer,
        keras.Variable,
        keras.metrics.Metric,
        keras.random.SeedGenerator,
        keras.optimizers.Optimizer,
    )
    return not isinstance(value, (*named, *CONTAINERS))
