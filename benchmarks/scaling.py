"""Measures that the time for a text grows with its length, not faster: `python benchmarks/scaling.py`.

The tests count steps of Python, to which a function in C that goes over a long line again and again is one step. Here
each text is read at one length and at four times that length: the time of the processor, without collections of
garbage, in the fastest of three turns. Four is linear. It ends with 1 if a text takes more than six times as long.
"""

import sys
import time

from kpatch.errors import PatchError
from kpatch.syntax import parse
from kpatch.tools.python_sources import find

SOURCES = {
    "calls": lambda n: "kpatch.parse(f'');" * n,
    "one line": lambda n: "'é';" + "kpatch.parse('');" * n,
    "one name": lambda n: "P='''" + "\n" * (10 * n) + "''' # kpatch: ignore\n" + "kpatch.parse(P)\n" * n,
    "imports": lambda n: "import kpatch\nkpatch.parse(p)\n" * n,
    "with": lambda n: "with " + "raises(ValueError)," * n + "x:\n" + " kpatch.parse(p)\n" * n,
    "escapes": lambda n: "kpatch.parse('" + "\\n" * (10 * n) + "')",
    "literals": lambda n: "kpatch.parse(" + "'' " * (10 * n) + ")",
}
PATCHES = {
    "statements": lambda n: "dense_1.kernel[123,456] = 0.123456\n" * n,
    "one long line": lambda n: "a = 1;" * n,
    "comments": lambda n: "#\n" * n,
    "an open string": lambda n: "'" * n,
    "open brackets": lambda n: "[" * n,
}


def attempt(text):
    try:
        parse(text)
    except PatchError as error:
        str(error)


def seconds(function, text):
    begin = time.process_time()
    function(text)
    return time.process_time() - begin


def main():
    rows = [
        (f"Python: {name}", find, lambda n, make=make: "import kpatch\n" + make(n)) for name, make in SOURCES.items()
    ]
    rows += [(f"patch: {name}", attempt, make) for name, make in PATCHES.items()]
    failed = False
    for name, function, make in rows:
        small, large = (min(seconds(function, make(n)) for _ in range(3)) for n in (10_000, 40_000))
        grows = large > max(6 * small, 0.05)
        failed |= grows
        print(f"{name:24} {small:8.3f} s {large:8.3f} s {large / small:6.1f} times{'  NOT LINEAR' if grows else ''}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
