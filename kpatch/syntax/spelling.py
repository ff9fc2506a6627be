"""The nearest spelling of a word, for "did you mean ...?"."""

import difflib
from heapq import nsmallest
from itertools import islice

MAX_WORD = 100  # longer words are not compared
MAX_CANDIDATES = 100_000  # candidates read
MAX_COMPARED = 200  # candidates compared letter by letter
CUTOFF = 0.6  # difflib's ratio above which two words are near


def nearest(word, candidates):
    """The candidate with the most similar spelling, or `None` if none is near.

    A candidate that differs only in case is nearest. Time is bounded for any word and candidates.

    Example:
        >>> from kpatch.syntax import nearest
        >>> nearest("kernal", ["bias", "kernel"])
        'kernel'
        >>> nearest("kernel", ["bias"])
    """
    if len(word) > MAX_WORD:
        return None
    close = []
    for candidate in islice(candidates, MAX_CANDIDATES):
        # difflib's own upper bound of the ratio, which is cheap and excludes most candidates
        if 2 * min(len(word), len(candidate)) >= CUTOFF * (len(word) + len(candidate)):
            if candidate.lower() == word.lower():
                return candidate
            close.append(candidate)
    if len(close) > MAX_COMPARED:
        letters = set(word)
        close = nsmallest(MAX_COMPARED, close, key=lambda candidate: len(letters ^ set(candidate)))
    found = difflib.get_close_matches(word, close, n=1, cutoff=CUTOFF)
    return found[0] if found else None
