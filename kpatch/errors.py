"""The exceptions of kpatch, and how an error is shown.

Every error is a `PatchError`, and also the builtin exception that fits, so that `except IndexError` and the like work.
Two bases are not used, since they change how an error is handled: Python prints a `SyntaxError` by its own fields, and
Keras ignores a `NotImplementedError` while it builds a model.

The parts below the top (indexing, functions, backends) raise without knowing the source text; `PatchError.locate` adds
the span and the text on the way up, so that each error ends with its statement and a caret.
"""

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

Span = tuple[int, int]

MAX_LINE = 100  # columns of source shown around a caret
MAX_TEXT = 400  # characters of a message or a note; a name can be as long as a patch
MAX_SHOWN = 10  # errors shown in full when a patch has many


class PatchError(Exception):
    """Anything wrong with a patch, or with what it is applied to; nothing was changed, but for what `written` holds.

    Attributes:
        message: one sentence that names the fault.
        notes: further lines: what was found, what would have been right.
        span: `(start, end)`, offsets of the part at fault in `source`, or `None`.
        source: the patch's text, or `None`.
        line, column: where `span` starts, counted from 1, or `None`.
        statement: the line of the source that `span` starts in, or `None`.
        errors: all errors found in the same patch, this one first.
        written: the statements that stay written, `(statement, variable)` each. Empty, unless the backend failed and
            old values could not be written back, or had not been kept (`undo=False`).

    Example:
        >>> import kpatch
        >>> try:
        ...     kpatch.parse("dense.kernel[0 = 1")
        ... except kpatch.PatchError as error:
        ...     print(error.line, error.column, error.span)
        1 16 (15, 16)
    """

    __module__ = "kpatch"
    written: tuple[tuple[str, str], ...] = ()
    _keras_call_info_injected = True  # Keras, which makes errors inside of calls anew, would take the caret away
    ag_pass_through = True  # TensorFlow, which wraps errors inside of `tf.function`, would take the class away

    def __init__(
        self,
        message: str,
        *,
        span: Span | None = None,
        source: str | None = None,
        notes: Iterable[str] = (),
        argument: int | str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.notes = tuple(notes)
        self.span = span
        self.source = source
        self.argument: Any = argument  # which argument or index item is at fault, until `locate` turns it into a span
        self.others: tuple[PatchError, ...] = ()

    def locate(self, span: Span | None = None, source: str | None = None) -> "Self":
        """Adds the span and the source where they are not yet known, and returns the error."""
        if self.span is None:
            self.span = span
        if self.source is None:
            self.source = source
        return self

    @property
    def errors(self) -> "tuple[PatchError, ...]":
        return (self, *self.others)

    @property
    def line(self) -> int | None:
        place = self._place()
        return None if place is None else place[0]

    @property
    def column(self) -> int | None:
        place = self._place()
        return None if place is None else place[1]

    @property
    def statement(self) -> str | None:
        place = self._place()
        return None if place is None else place[2]

    def _place(self) -> tuple[int, int, str] | None:
        """The line and column that the span starts at, and the text of the line."""
        if self.span is None or self.source is None:
            return None
        before = self.source[: self.span[0]].replace("\r\n", "\n").replace("\r", "\n")
        after = self.source[self.span[0] :].replace("\r\n", "\n").replace("\r", "\n")
        head, rest = before.rpartition("\n")[2], after.partition("\n")[0]
        return before.count("\n") + 1, len(head) + 1, head + rest

    def _show(self) -> str:
        place = [] if self._place() is None else [f"  line {self.line}, column {self.column}"]
        return "\n".join([shorten(self.message), *place, *self.details()])

    def details(self) -> list[str]:
        """The lines below the message and the place: the statement with its caret, and the notes."""
        lines, place = [], self._place()
        if self.span is not None and place is not None:
            _, column, text = place
            width = min(self.span[1] - self.span[0], len(text) - column + 1)
            lines = ["    " + part for part in _underline(text, column - 1, max(1, width))]
        return lines + ["  " + shorten(note) for note in self.notes]

    def __str__(self) -> str:
        shown = [error._show() for error in self.errors[:MAX_SHOWN]]
        if len(self.errors) > MAX_SHOWN:
            shown.append(f"... and {len(self.errors) - MAX_SHOWN} more errors")
        return "\n\n".join(shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(cls: "type[PatchError]", message: str, state: dict[str, Any]) -> "PatchError":
    error = cls(message)
    error.__dict__.update(state)
    return error


def shorten(text: str) -> str:
    """The text, cut to what an error shows of it."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _underline(text: str, start: int, width: int) -> tuple[str, str]:
    """The line of source, clipped around the caret, and the carets under it."""
    if len(text) > MAX_LINE:
        low = max(0, min(start - MAX_LINE // 3, len(text) - MAX_LINE))
        head, tail = "…" if low else "", "…" if low + MAX_LINE < len(text) else ""
        text = head + text[low : low + MAX_LINE] + tail
        start += len(head) - low
        width = min(width, len(text) - start)
    text = "".join(char if char.isprintable() else " " if char == "\t" else "�" for char in text)
    return text, " " * _columns(text[:start]) + "^" * max(1, _columns(text[start : start + width]))


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(bool(unicodedata.combining(char)) for char in text)


def reason(error: OSError) -> str:
    """What the operating system says of an `OSError`.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory"))
        'no such file or directory'
    """
    return (error.strerror or str(error)).lower()


def combine(errors: list[PatchError]) -> PatchError:
    """The first of the errors, in the order of the source, carrying the others."""
    first, *others = sorted(errors, key=lambda error: error.span or (0, 0))
    first.others = tuple(others)
    return first


class PatchSyntaxError(PatchError, ValueError):
    """The text is not a patch: `dense.kernel[0 = 1`."""

    __module__ = "kpatch"


class ResolutionError(PatchError, LookupError):
    """A name means no variable of the model, or several: `dense_1.kernal = 0`."""

    __module__ = "kpatch"


class BindingError(PatchError, ValueError):
    """A value handed in from Python is missing, not used, or of the wrong kind: `bias = $vectr`."""

    __module__ = "kpatch"


class SubscriptError(PatchError, IndexError):
    """An index does not fit its tensor: `kernel[64] = 0` where the axis has 64 entries."""

    __module__ = "kpatch"


class ShapeError(PatchError, ValueError):
    """A value does not fit where it goes: `bias = [1, 2, 3]` where the bias has 2 entries."""

    __module__ = "kpatch"


class DTypeError(PatchError, TypeError):
    """Types that do not go together, or a conversion that would lose: `int8_scale = 300`."""

    __module__ = "kpatch"


class FunctionError(PatchError, ValueError):
    """No such function, or wrong arguments for it: `kernel = sqr(_)`."""

    __module__ = "kpatch"


class PatchAssertionError(PatchError, AssertionError):
    """An `assert` of the patch does not hold: `assert all(bias == 0)`."""

    __module__ = "kpatch"


class UndoError(PatchError, RuntimeError):
    """An edit cannot be undone: undone before, or overwritten by a later edit."""

    __module__ = "kpatch"


class LimitError(PatchError, ValueError):
    """More than a patch may ask for: `bias = sum(zeros([1000000000000]))`."""

    __module__ = "kpatch"


class UnsupportedError(PatchError, RuntimeError):
    """Part of the language that this version, or this backend, cannot execute: `block1.output = 0`."""

    __module__ = "kpatch"


class ExecutionError(PatchError, RuntimeError):
    """The backend failed while a patch ran (out of memory, say); it says whether everything was put back as it was."""

    __module__ = "kpatch"


class FileError(PatchError, OSError):
    """A file that cannot be read or written, or that is no Keras model."""

    __module__ = "kpatch"


BACKENDS = frozenset(("jax", "openvino", "tensorflow", "torch"))  # the packages of Keras's backends beside NumPy


def of_backend(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """An error of importing Keras, whose text says what to set if it is Keras's backend that is missing.

    Example:
        >>> of_backend(ModuleNotFoundError("No module named 'torch'", name="torch")).msg.partition("; ")[2]
        'set the environment variable KERAS_BACKEND to one that is installed, such as numpy, and start Python anew'
    """
    package = (error.name or "").partition(".")[0]
    if package in BACKENDS and "KERAS_BACKEND" not in error.msg:
        error.msg += (
            ", which Keras's backend needs; set the environment variable KERAS_BACKEND to one that is installed, "
            "such as numpy, and start Python anew"
        )
    return error
