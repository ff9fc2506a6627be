"""The dtypes that the backend of this process has, for the tests."""

from kpatch.errors import UnsupportedError
from kpatch.values import dtypes


def available(name):
    try:
        dtypes.check_available(name)
    except UnsupportedError:
        return False
    return True


INTEGERS = [name for name in dtypes.INTEGERS if available(name)]
FLOATS = [name for name in dtypes.FLOATS if available(name)]
