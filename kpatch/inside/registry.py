"""The objects that hold patches, by number: what a graph of `torch.compile` names them by."""

import itertools
import weakref
from typing import Any

_numbers = itertools.count()
_live: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()


def enter(holder):
    """Adds an object, and gives its key: a string, as dynamo may take a number for one that varies."""
    key = str(next(_numbers))
    _live[key] = holder
    return key


def run(key, names, *values):
    """Calls an object by its key."""
    return _live[key](names, *values)
