"""The steps of Python that something takes. Tests hold them in place of seconds, which depend on the machine."""

import gc
import sys


def steps(function, *arguments):
    """How many lines of Python run, in kpatch and in what it calls, until the function returns.

    No garbage is collected meanwhile: jax has Python told of that.
    """
    count = 0

    def traced(frame, event, argument):
        nonlocal count
        count += event == "line"
        return traced

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(traced)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count
