"""The nearest spelling of a word, for "did you mean ...?"."""

import difflib
from heapq import nsmallest
from itertools import islice

MAX_WORD = 100  # longer words are not compared
MAX_CANDIDATES = 100_000  # looked at
MAX_COMPARED = 200  # compared letter by letter
CUTOFF = 0.6  # difflib's ratio from which two words are near


def nearest(word, candidates):
    """The candidate spelled most like the word, or `None` where none comes near.

    One that differs in case alone is nearest. Time is bounded, whatever the word and the candidates are.

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
        # The bound that difflib itself starts from, without its cost: most candidates end here.
        if 2 * min(len(word), len(candidate)) >= CUTOFF * (len(word) + len(candidate)):
            if candidate.lower() == word.lower():
                return candidate
            close.append(candidate)
    if len(close) > MAX_COMPARED:
        letters = set(word)
        close = nsmallest(MAX_COMPARED, close, key=lambda candidate: len(letters ^ set(candidate)))
    found = difflib.get_close_matches(word, close, n=1, cutoff=CUTOFF)
    return found[0] if found else None
