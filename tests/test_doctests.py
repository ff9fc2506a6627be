"""The examples in the docstrings run, on the backend of this process."""

import doctest
import pkgutil
import re
from importlib import import_module
from importlib.util import find_spec

import pytest

import kpatch

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["kpatch", *(module.name for module in pkgutil.walk_packages(kpatch.__path__, "kpatch."))]


def imported_backend(name):
    """The backend that a module imports as it is loaded itself, if any."""
    with open(find_spec(name).origin, encoding="utf-8") as file:
        found = re.search(r"^(?:import|from) (jax|torch|tensorflow)\b", file.read(), re.MULTILINE)
    return found and found[1]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, backend):
    if imported_backend(name) not in (None, backend):
        pytest.skip("of another backend")
    result = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert result.failed == 0, "see the captured output"


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["apply", "diff", "edit", "parse", "plan"])
def test_the_public_functions_have_examples(name):
    assert any(test.examples for test in doctest.DocTestFinder().find(getattr(kpatch, name), name))
