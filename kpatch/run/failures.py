"""What the exceptions of edits that failed tell: what stays written, and why."""

from kpatch.errors import ExecutionError, PatchError

MAX_LISTED = 20  # writes that an error lists


def failed(error, stays, failures, patch):
    notes = _listed(stays, failures, patch)
    if (interrupt := interrupt_among([error, *failures])) is not None:
        return _told(interrupt, "an edit was cut off", notes, stays, patch)
    if not stays and (isinstance(error, ExecutionError) or not isinstance(error, PatchError)):
        notes = ["every variable was put back as it was"]
    if not isinstance(error, PatchError):
        error = _caused_by(error, f"the backend failed while the patch ran: {error}", notes)
    elif stays and failures:
        error = _caused_by(failures[0], f"the backend failed while old values were written back: {failures[0]}", notes)
    else:
        error.notes = (*error.notes, *notes)
    error.written = _written(stays, patch)
    return error


def failed_undo(stays, failures, patch):
    notes = [*_listed(stays, failures, patch), "undo() can be called again"]
    if (interrupt := interrupt_among(failures)) is not None:
        return _told(interrupt, "undo() was cut off", notes, stays, patch)
    error = _caused_by(failures[0], f"the backend failed while old values were written back: {failures[0]}", notes)
    error.written = _written(stays, patch)
    return error


def _caused_by(cause, message, notes):
    error = ExecutionError(message, notes=notes)
    error.__cause__ = cause
    return error


def interrupt_among(failures):
    """The first that is no error: Ctrl-C, or an exit."""
    return next((failure for failure in failures if not isinstance(failure, Exception)), None)


def _told(interrupt, message, notes, stays, patch):
    """The interrupt itself; if something stays written it says so."""
    if stays:
        text = "\n  ".join([message, *notes])
        if isinstance(interrupt, KeyboardInterrupt) and not interrupt.args:
            interrupt.args = (text,)
        else:
            interrupt.__notes__ = [*getattr(interrupt, "__notes__", ()), text]  # `add_note`, new in Python 3.11
        interrupt.written = _written(stays, patch)
    return interrupt


def _written(stays, patch):
    """The text of each statement that stays written, and the variable."""
    return tuple((patch.source[slice(*s.span)], r.step.place.path) for r in stays for s in r.step.statements)


def _listed(stays, failures, patch):
    """The lines of an error that tell what stays written, and why."""
    if not stays:
        return []
    why = f"writing back failed: {failures[0]}" if failures else "undo=False keeps few old values"
    partly = [record.before is not None or not record.done for record in stays for _ in record.step.statements]
    pairs = zip(_written(stays, patch), partly, strict=True)
    lines = [f"  '{text}' in {path}" + ", perhaps in part" * part for (text, path), part in pairs]
    more = [f"  and {len(lines) - MAX_LISTED} more"] * (len(lines) > MAX_LISTED)
    return [f"what stays written ({why}):", *lines[:MAX_LISTED], *more, "everything else was put back as it was"]
