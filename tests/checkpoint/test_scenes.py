"""Each way of writing does what it says, leaves nothing behind, and is undone, on the system that runs the tests.

`KPATCH_FAULTS=1` runs every scene, as the workflow does on Windows and macOS; else it is some of them.
"""

import os

import pytest
from scenes import Scene, names

from kpatch import checkpoint

NAMES = list(names())[:: 1 if "KPATCH_FAULTS" in os.environ else 6]


@pytest.mark.backend_free
@pytest.mark.parametrize("name", NAMES)
def test_a_way_of_writing(name, tmp_path):
    made = Scene(name, tmp_path)
    made.run_from_start()
    assert not made.left()
    if made.how in ("copy", "copy-journal", "streamed", "over", "in-place", "journal"):
        result = checkpoint.open(made.path if made.how in ("in-place", "journal") else made.out)
        assert (result["a.w"][2, 1:3] > 1).all()  # half of 7, and half of a donor around 0
    if made.how in ("copy-journal", "over", "journal", "recover", "undo", "undo-all"):
        found, expected = made.undone()
        assert found == expected
