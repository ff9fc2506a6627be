"""Replaces slices of a tensor, as a pure function, in each backend's fastest way: mostly a write into a copy.

`keras.ops.slice_update` writes into its argument on numpy and has no gradient on tensorflow. `where` costs three times
as much as a copy on most backends.
"""

import numpy as np

from kpatch import backends


def replace(tensor, spans, values):
    """A new tensor with the entries of the spans replaced.

    Args:
        spans: a `grids.Span` for each axis, with step 1 or -1.
        values: a tensor with as many axes that broadcasts to the entries.
    """
    ops = backends.current().ops
    turned = tuple(axis for axis, span in enumerate(spans) if span.step < 0 and values.shape[axis] != 1)
    values = ops.flip(values, axis=turned) if turned else values
    starts, counts = _bounds(spans)
    return backends.current().replace_slices(tensor, starts, counts, values)


def suits(spans):
    """Whether `replace` takes these spans: steps of 1 or -1, and bounds that the backend accepts."""
    backend = backends.current()
    for span in spans:
        known = span.static or span.whole or type(span.item) is int or backend.takes_tensors_as_bounds
        if span.step not in (1, -1) or not known:
            return False
    return backend.replaces_slices()


def fills(spans, values):
    """Whether `fill` applies: the values are one number, and `suits(spans)`."""
    return (
        isinstance(values, np.ndarray)
        and values.size == 1
        and backends.current().takes_numbers(values.dtype)
        and None not in spans
        and suits(spans)
    )


def fill(tensor, spans, values):
    """A new tensor with the entries of the spans replaced by one number."""
    starts, counts = _bounds(spans)
    return backends.current().replace_slices(tensor, starts, counts, values.item())


def _bounds(spans):
    """The lowest index of each span, and the counts."""
    starts = [span.start if span.step > 0 else span.start - span.count + 1 for span in spans]
    return starts, [span.count for span in spans]
