"""The message of an error, and its class, for the tests."""

import pytest

from kpatch.errors import PatchError, ResolutionError


def failure(function, *args, kind=ResolutionError, **options):
    """The message of the error that a call ends with; it is of exactly this class."""
    with pytest.raises(PatchError) as info:
        function(*args, **options)
    assert type(info.value) is kind
    return str(info.value)
