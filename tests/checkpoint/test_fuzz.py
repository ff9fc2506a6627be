"""A few damaged files of each format; `python tests/checkpoint/fuzz.py DIRECTORY COUNT` tries many."""

import sys

import fuzz
import pytest


@pytest.mark.backend_free
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_damaged_files_end_in_a_result_or_an_error(tmp_path):
    assert fuzz.run(tmp_path, range(120)) > 120
