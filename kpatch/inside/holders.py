"""The objects that hold patches, by key, for graphs of `torch.compile`."""

import itertools
import weakref
from typing import Any

_numbers = itertools.count()
_live: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()


def enter(holder):
    """Adds an object and returns its key: a string, because dynamo can treat a number as variable."""
    key = str(next(_numbers))
    _live[key] = holder
    return key


def run(key, names, *values):
    """Calls an object by its key."""
    return _live[key](names, *values)
