"""The exceptions of kpatch, and the text of an error.

Every error is a `PatchError` and also derives from the builtin exception that fits (`IndexError`, `ValueError`, ...).
Two builtins are not used as a base: Python prints a `SyntaxError` from its own fields, and Keras ignores a
`NotImplementedError` while it builds a model.

Code that does not know the source text (indexing, functions, backends) raises without a span; its callers add span and
source by `PatchError.locate`, so the error shows the statement and a caret.
"""

import functools
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

Span = tuple[int, int]

MAX_LINE = 100  # columns of source shown around a caret
MAX_TEXT = 400  # characters of a message or a note; a name can be as long as a patch
MAX_SHOWN = 10  # errors shown in full when a patch has many
UNICODE = "utf-8"


class PatchError(Exception):
    """A fault in a patch or in its target. Nothing was changed, except the statements in `written`.

    Attributes:
        message: one sentence that names the fault.
        notes: further lines: the value found, the right form.
        span: `(start, end)`, offsets of the faulty part in `source`, or `None`.
        source: the patch's text, or `None`.
        line, column: where `span` starts, counted from 1, or `None`.
        statement: the source line in which `span` starts, or `None`.
        errors: all errors found in the same patch, this one first.
        written: the statements that stay written, as `(statement, variable)` pairs. Empty, unless the backend failed
            and the old values could not be written back or were not kept (`undo=False`).

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
    _keras_call_info_injected = True  # otherwise Keras raises a copy of an error in a call, without the caret
    ag_pass_through = True  # otherwise TensorFlow wraps an error in `tf.function` in another class

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
        self.argument: Any = argument  # the position of the faulty argument or index item
        self.others: tuple[PatchError, ...] = ()

    def locate(self, span: Span | None = None, source: str | None = None) -> "Self":
        """Sets the span and the source if they are not set yet, and returns the error."""
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

    def _show(self, encoding: str) -> str:
        place = [] if self._place() is None else [f"  line {self.line}, column {self.column}"]
        return "\n".join([shorten(self.message), *place, *self.details(encoding)])

    def details(self, encoding: str = UNICODE) -> list[str]:
        """The lines below the message and the place: the statement with its caret, and the notes.

        Args:
            encoding: that of the terminal; characters that it lacks are escaped before the caret is placed.
        """
        lines, place = [], self._place()
        if self.span is not None and place is not None:
            _, column, text = place
            width = min(self.span[1] - self.span[0], len(text) - column + 1)
            lines = ["    " + part for part in _underline(text, column - 1, max(1, width), encoding)]
        return lines + ["  " + shorten(note) for note in self.notes]

    def __str__(self) -> str:
        return self.shown()

    def shown(self, encoding: str = UNICODE) -> str:
        """The text of the error and of all that were found with it, for a terminal of an encoding."""
        shown = [error._show(encoding) for error in self.errors[:MAX_SHOWN]]
        if len(self.errors) > MAX_SHOWN:
            shown.append(f"... and {len(self.errors) - MAX_SHOWN} more errors")
        return "\n\n".join(shown)

    def to_dict(self) -> dict[str, Any]:
        """The error, without the others found with it, as data that `json.dumps` takes.

        Example:
            >>> import kpatch
            >>> try:
            ...     kpatch.parse("head.bias = 1 2")
            ... except kpatch.PatchError as error:
            ...     print([error.to_dict()[key] for key in ("code", "message", "line", "column", "notes")])
            ['PatchSyntaxError', "expected the end of the statement, found '2'", 1, 15, []]
        """
        return {
            "code": type(self).__name__,
            "message": shorten(self.message),
            "notes": [shorten(note) for note in self.notes],
            "line": self.line,
            "column": self.column,
            "statement": self.statement and shorten(self.statement),
            **({"written": [list(pair) for pair in self.written]} if self.written else {}),
        }

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the frames of the caller alone, since IPython never hides the last one itself."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        shown = type(self), self, outer_frames(self.__traceback__)
        if shell is None:
            return traceback.format_exception(*shown)
        return shell.InteractiveTB.structured_traceback(*shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(cls: "type[PatchError]", message: str, state: dict[str, Any]) -> "PatchError":
    error = cls(message)
    error.__dict__.update(state)
    return error


def shorten(text: str) -> str:
    """The text, cut to `MAX_TEXT` characters."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _underline(text: str, start: int, width: int, encoding: str) -> tuple[str, str]:
    """The line of source, clipped around the caret, and the carets under it."""
    if len(text) > MAX_LINE:
        low = max(0, min(start - MAX_LINE // 3, len(text) - MAX_LINE))
        dots = "…" if _written("…", encoding) == "…" else "..."
        head, tail = dots if low else "", dots if low + MAX_LINE < len(text) else ""
        text = head + text[low : low + MAX_LINE] + tail
        start += len(head) - low
        width = min(width, len(text) - start)
    parts = text[:start], text[start : start + width], text[start + width :]
    before, marked, after = (_written(part, encoding) for part in parts)
    column, end = _columns(before), _columns(before + marked)
    return before + marked + after, " " * column + "^" * max(1, end - column)


def _written(text: str, encoding: str) -> str:
    """The text as a terminal of an encoding shows it, on one line."""
    text = "".join(char if char.isprintable() else " " if char == "\t" else "�" for char in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _columns(text: str) -> int:
    """The number of terminal columns that the text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def reason(error: OSError) -> str:
    """The operating system's text of an `OSError`, in lower case.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory"))
        'no such file or directory'
    """
    return (error.strerror or str(error)).lower()


def combine(errors: list[PatchError]) -> PatchError:
    """The first error in source order, with the others in its `others`. The same error of several models is one."""
    same: dict[tuple, list[PatchError]] = {}
    for error in errors:
        same.setdefault((type(error), error.message, error.span), []).append(error)
    for error, *more in same.values():
        error.notes += (f"the same in {len(more)} more model{'s' * (len(more) > 1)}",) * bool(more)
    first, *others = sorted((error for error, *_ in same.values()), key=lambda error: error.span or (0, 0))
    first.others = tuple(others)
    return first


class PatchSyntaxError(PatchError, ValueError):
    """The text is not a patch: `dense.kernel[0 = 1`."""

    __module__ = "kpatch"


class ResolutionError(PatchError, LookupError):
    """A name matches no variable of the model, or several: `dense_1.kernal = 0`."""

    __module__ = "kpatch"


class BindingError(PatchError, ValueError):
    """A bound value is missing, unused, or of the wrong kind: `bias = $vectr`."""

    __module__ = "kpatch"


class SubscriptError(PatchError, IndexError):
    """An index does not fit its tensor: `kernel[64] = 0` if the axis has 64 entries."""

    __module__ = "kpatch"


class ShapeError(PatchError, ValueError):
    """A value's shape does not fit its target: `bias = [1, 2, 3]` if the bias has 2 entries."""

    __module__ = "kpatch"


class DTypeError(PatchError, TypeError):
    """Dtypes that do not combine, or a value that the dtype cannot hold: `int8_scale = 300`."""

    __module__ = "kpatch"


class FunctionError(PatchError, ValueError):
    """An unknown function, or wrong arguments: `kernel = sqr(_)`."""

    __module__ = "kpatch"


class PatchAssertionError(PatchError, AssertionError):
    """An `assert` of the patch does not hold: `assert all(bias == 0)`."""

    __module__ = "kpatch"


class UndoError(PatchError, RuntimeError):
    """An edit cannot be undone: undone before, or overwritten by a later edit."""

    __module__ = "kpatch"


class LimitError(PatchError, ValueError):
    """A patch exceeds a limit: `bias = sum(zeros([1000000000000]))`."""

    __module__ = "kpatch"


class UnsupportedError(PatchError, RuntimeError):
    """This version or this backend cannot execute a part of the language: `block1.output = 0`."""

    __module__ = "kpatch"


class ExecutionError(PatchError, RuntimeError):
    """The backend failed while a patch ran, out of memory for example; the text says if all values were restored."""

    __module__ = "kpatch"


class FileError(PatchError, OSError):
    """A file cannot be read or written, or is not a Keras model."""

    __module__ = "kpatch"


FRAMES = "KPATCH_TRACEBACK"  # the environment variable: with "full", errors show the frames inside kpatch

P = ParamSpec("P")
R = TypeVar("R")


def is_brief() -> bool:
    """Whether the frames inside kpatch are hidden."""
    return os.environ.get(FRAMES) != "full"


def boundary(function: Callable[P, R]) -> Callable[P, R]:
    """A public function, or an `__init__`: the traceback of its errors ends at the line that called it.

    Notebooks and pytest hide the one frame that is left, of this function. `torch.compile` calls it as it is.
    """

    @functools.wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        if in_dynamo():
            return apart(called, *args, **given)
        try:
            return function(*args, **given)
        except PatchError as error:
            __tracebackhide__ = is_brief()
            raise outward(error) from error.__cause__

    vars(called)["__signature__"] = inspect.signature(function)  # Keras asks constructors, and looks into no wrapper
    return left_alone(called)


def left_alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which TensorFlow's autograph calls as it is: it would rewrite all of kpatch, as far as it can."""
    vars(function)["autograph_info__"] = {}
    return function


class _CallsApart(threading.local):
    called = False  # here, as an attribute that is missing takes eight times as long


_apart = _CallsApart()


def in_dynamo() -> bool:
    """Whether `torch.compile` compiles the caller, or runs it between two graphs; torch is not loaded for the answer.

    Dynamo traces only such calls as are given tensors, and it may trace what others call in turn.
    """
    if "torch._dynamo.eval_frame" not in sys.modules:  # it is loaded when something is compiled
        return False
    private = sys.modules.get("torch._C._dynamo.eval_frame")
    active = getattr(private, "get_eval_frame_callback", None)  # without it, calls that are traced are seen
    return sys.modules["torch"].compiler.is_dynamo_compiling() or (active is not None and callable(active()))


def apart(function: Callable, *args: Any, **given: Any) -> Any:
    """Calls a function between two graphs of `torch.compile`: dynamo would trace the parser, on which it crashes."""
    return sys.modules["torch"].compiler.disable(_call_apart)(function, *args, **given)


for _name, _value in (
    ("_torchdynamo_disable", True),  # as `torch.compiler.disable` marks a function
    ("_torchdynamo_disable_msg", "it cannot be called inside a function that is one graph; kpatch.edit works there"),
):
    setattr(apart, _name, _value)


def _call_apart(function: Callable, *args: Any, **given: Any) -> Any:
    before, _apart.called = is_apart(), True
    try:
        return function(*args, **given)
    finally:
        _apart.called = before


def is_apart() -> bool:
    """Whether a function that is being compiled has made the call that is under way."""
    return _apart.called


def outer_frames(frames: TracebackType | None) -> TracebackType | None:
    """A traceback up to the call of a public function."""
    outer: list[TracebackType] = []
    while frames is not None and frames.tb_frame.f_locals.get("__tracebackhide__") is not True:  # IPython's is a text
        outer.append(frames)
        frames = frames.tb_next
    if frames is None:
        return outer[0] if outer else None  # no such call is in it
    found = None
    for each in reversed(outer):
        found = TracebackType(found, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return found


def outward(error: PatchError) -> PatchError:
    """The error, to be raised to a caller outside of kpatch: without frames, and without the error that caused it.

    That stays its `__context__`. The backend's error stays the `__cause__` of an `ExecutionError`, with its frames.
    """
    if not is_brief():
        return error
    if not isinstance(error, ExecutionError):
        error.__cause__ = None
    error.__suppress_context__ = True
    return error.with_traceback(None)


BACKENDS = frozenset(("jax", "openvino", "tensorflow", "torch"))  # the packages of Keras's backends beside NumPy


def of_backend(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The import error, which also says how to choose a backend if the missing package is Keras's backend.

    Example:
        >>> of_backend(ModuleNotFoundError("No module named 'torch'", name="torch")).msg.partition("; ")[2]
        'set the environment variable KERAS_BACKEND to one that is installed, such as numpy, and restart Python'
    """
    package = (error.name or "").partition(".")[0]
    if package in BACKENDS and "KERAS_BACKEND" not in error.msg:
        error.msg += (
            ", which Keras's backend needs; set the environment variable KERAS_BACKEND to one that is installed, "
            "such as numpy, and restart Python"
        )
    return error
