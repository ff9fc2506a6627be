"""Something happens to a file at a call to the system: at the first one of an edit, at the second, and so on."""

import contextlib
import os

CALLS = (
    "open", "close", "stat", "fstat", "lstat", "pread", "pwrite", "fsync", "replace", "rename", "unlink", "mkdir",
    "copy_file_range", "dup", "chmod", "chown",
)  # fmt: skip


@contextlib.contextmanager
def before_call(number, action):
    """Runs an action before the call of that number; gives a list, which is empty until then."""
    known = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    left, fired = [number], []

    def restore():
        for name, call in known.items():
            setattr(os, name, call)

    def wrapped(call):
        def counted(*args, **kwargs):
            if left[0] == 0 and not fired:
                restore()
                fired.append(call.__name__)
                action()
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    for name, call in known.items():
        setattr(os, name, wrapped(call))
    try:
        yield fired
    finally:
        restore()


def at_each_call(edit, action, reset, step=1):
    """Runs an edit again and again, with an action before its first call, its second, ...; gives after each what call
    that was and the exception that the edit ended in, or `None`."""
    for number in range(0, 10_000, step):
        reset()
        error = None
        with before_call(number, action) as fired:
            try:
                edit()
            except Exception as raised:  # noqa: BLE001 (the caller looks at it)
                error = raised
        if not fired:
            assert error is None, error
            return
        yield fired[0], error
    raise AssertionError("the edit does not end")
