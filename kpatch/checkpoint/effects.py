"""The effects of statements on arrays in files: how many entries changed, and samples of their values."""

import numpy as np

from kpatch.view.data import measured, summary
from kpatch.view.overview import sample

MAX_KEPT = 2**12  # changed entries whose old and new values are kept


class Change:
    """The effect of a statement on an array.

    Attributes:
        step: the plan's step.
        statement: the statement.
        entries: the number of entries written.
        before, after: a `Sample` of their old and new values.
    """

    def __init__(self, step, statement):
        self.step = step
        self.statement = statement
        self.entries = 0
        self.before = Sample()
        self.after = Sample()

    def to_dict(self):
        """The change without its statement, as data in the form of `Write.to_dict`."""
        place = self.step.place
        return {
            "path": place.path,
            "shape": list(place.shape),
            "dtype": place.dtype,
            "entries": self.entries,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "asked": None,
        }

    def add(self, before, after):
        self.entries += before.size
        self.before.add(before)
        self.after.add(after)

    def add_chosen(self, values, mask, chosen, after):
        """Adds the entries of a mask, which all become one number.

        Args:
            values: the old values.
            mask: the mask.
            chosen: the old values under the mask, with zeros beside it.
            after: the number.
        """
        count = int(np.count_nonzero(mask))
        self.entries += count
        self.before.add_chosen(values, mask, chosen, count)
        self.after.add(np.broadcast_to(after, count))


class Sample:
    """A stream of values: all values if they are few, else their range and mean."""

    def __init__(self):
        self._kept = []
        self._size = 0
        self._low, self._high, self._sum = np.inf, -np.inf, 0.0

    def add(self, values):
        self._size += values.size
        self._kept.append(values)
        if self._size > MAX_KEPT:
            for part in self._kept:
                if part.size:
                    self._measure(part if any(part.strides) else part[:1], part.size)
            self._kept = []

    def add_chosen(self, values, mask, chosen, count):
        """Adds the `count` values under a mask; `chosen` has zeros beside it.

        These are no extremes if the signs differ. To measure `chosen` takes a third of the time of picking the values.
        """
        if self._size > MAX_KEPT and count and chosen.min() < 0 < chosen.max():
            self._size += count
            self._measure(chosen, chosen.size)
        else:
            self.add(values.compress(mask))  # a seventh of the time of `values[mask]`

    def _measure(self, part, count):
        """Adds the range and sum of `count` values; `part` can be one value that is repeated."""
        wide = part.astype("float32" if part.dtype.itemsize < 4 else part.dtype, copy=False)
        self._low = min(self._low, float(wide.min()))
        self._high = max(self._high, float(wide.max()))
        self._sum += float(wide.sum(dtype="float64")) * (count / part.size)

    def __str__(self):
        if self._is_kept:
            return sample(self._values)
        return f"{self._low:.4g} … {self._high:.4g}, mean {self._sum / self._size:.4g}"

    def to_dict(self):
        """As `data.summary`."""
        if self._is_kept:
            return summary(self._values)
        return {**measured(self._low, self._sum / self._size, self._high), "values": None}

    @property
    def _is_kept(self):
        return bool(self._kept) or not self._size

    @property
    def _values(self):
        return np.concatenate([np.ravel(part) for part in self._kept]) if self._kept else []
