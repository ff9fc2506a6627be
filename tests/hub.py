"""keras_hub, for the tests of its layers and architectures: kpatch does not need it, so they are skipped without it.

tox installs it and sets `KPATCH_HUB`, so that there nothing is skipped.
"""

import importlib
import os
import sys

import keras
import pytest


def keras_hub():
    if os.environ.get("KPATCH_HUB") and sys.version_info >= (3, 11):  # keras_hub itself is for 3.11 and later
        return importlib.import_module("keras_hub")
    return pytest.importorskip("keras_hub")


def here(cases, on_jax):
    """The cases that run on this backend.

    On jax some stand for the others: it compiles each operation of each shape, for a second or more a case. What
    differs there is how a block is told apart, and that is the same for every layer.
    """
    return on_jax if keras.backend.backend() == "jax" and not os.environ.get("KPATCH_HUB_ALL") else cases
