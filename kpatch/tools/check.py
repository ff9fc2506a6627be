"""`kpatch check`: checks the patches in files and directories, and reports errors like a linter."""

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.text import Text

from kpatch.errors import FileError, PatchError, shorten
from kpatch.names.patches import decode, read, unreadable
from kpatch.syntax import Patch, ast, parse
from kpatch.tools import python_sources
from kpatch.tools.places import Extent, FoundPatch, patch_file
from kpatch.tools.python_sources import Found

PYTHON = (".py", ".pyi", ".pyw")
SEARCHED = (".py", ".kpatch")  # the files checked in a directory
SKIPPED = ("__pycache__", "node_modules")


class Finding(NamedTuple):
    """An error and its place; `region` is `None` if the error concerns the whole file."""

    path: str
    region: Extent | None
    error: PatchError

    @property
    def code(self) -> str:
        return type(self.error).__name__


class Report(NamedTuple):
    """The findings, and the numbers of files, of patches checked, and of computed patches, which are not checked."""

    findings: list[Finding]
    files: int
    patches: int
    computed: int


# Checking ------------------------------------------------------------------------------------------------------------


def check_files(paths: tuple[str, ...], model: Any = None) -> Report:
    """Checks the patches in files.

    Args:
        paths: patch files, Python files and directories; `-` is a patch on standard input.
        model: the Keras model in which names are looked up, or `None`.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open(os.path.join(folder, "a.py"), "w") as file:
        ...         _ = file.write("import kpatch; kpatch.parse('bias = 1'); kpatch.parse('bias = 1 2')")
        ...     report = check_files((folder,))
        >>> report.patches, [(finding.region.column, finding.error.message) for finding in report.findings]
        (2, [(65, "expected the end of the statement, found '2'")])
    """
    findings: list[Finding] = []
    patches = computed = 0
    files = list(dict.fromkeys(_files(paths, findings)))
    for path in files:  # which grows
        try:
            found = _found(path)
        except FileError as error:
            findings.append(Finding(_shown(path), _region_in_file(error), error))
            continue
        patches += len(found.patches)
        computed += found.computed
        for name in found.files:
            named = _named_in(path, name)
            if named is None:
                computed += 1
            elif named not in files:
                files.append(named)
        for patch in found.patches:
            findings += _findings(_shown(path), patch, model)
    return Report(findings, len(files), patches, computed)


def expanded(paths: tuple[str, ...], windows: bool = os.name == "nt") -> tuple[str, ...]:
    """The paths; on Windows, whose shells leave that to the commands, the files that they mean by stars."""
    found = [sorted(glob.glob(path)) if windows and not os.path.exists(path) else [] for path in paths]
    return tuple(each for path, files in zip(paths, found, strict=True) for each in files or [path])


def _files(paths: tuple[str, ...], findings: list[Finding]) -> Iterator[str]:
    for path in paths:
        if path != "-" and os.path.isdir(path):
            yield from _search(path, findings)
        else:
            yield path if path in ("-", "") else str(Path(path))


def _named_in(path: str, name: str) -> str | None:
    """The patch file that a Python file names: in the working directory, or beside that file."""
    candidates = (Path(name), Path(path).parent / name)
    return next((str(each) for each in candidates if each.is_file()), None)


def _search(directory: str, findings: list[Finding]) -> Iterator[str]:
    """The files in a directory that can contain patches. It follows no links to directories: they can form cycles."""
    folders = [directory]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            findings.append(Finding(_shown(folder), None, unreadable(folder, error)))
            continue
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        folders += [entry.path for entry in reversed(entries) if _is_searched(entry)]
        for entry in entries:
            if entry.name.endswith(SEARCHED) and os.path.isfile(entry.path):  # reading a pipe would block
                yield str(Path(entry.path))


def _is_searched(entry: "os.DirEntry[str]") -> bool:
    is_folder = entry.is_dir(follow_symlinks=False) and entry.name not in SKIPPED
    return is_folder and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))  # a virtual environment


def _shown(path: str) -> str:
    return {"-": "<stdin>", "": "''"}.get(path) or Path(path).as_posix()


def _found(path: str) -> Found:
    if not path.endswith(PYTHON):
        return Found([patch_file(decode(read(path, place="--model MODEL.keras looks names up in a model"), path))])
    data = read(path, python_sources.MAX_PYTHON)
    if b"kpatch" not in data:
        return Found([])  # without that word it calls no function of kpatch
    return python_sources.find(python_sources.decode_python(data, path))


def _region_in_file(error: FileError) -> Extent | None:
    """The place of the error in a file that is not Python."""
    if error.source is None or error.span is None:
        return None
    return patch_file(error.source).region(error.span)


def _findings(path: str, found: FoundPatch, model: Any) -> list[Finding]:
    text = _closed(found.text) if found.open_names else found.text
    try:
        patch = parse(text)
    except PatchError as error:
        errors = list(error.errors)
        for each in errors:
            each.source = found.text if each.source == text else each.source
    else:
        known = model is not None and found.of_model and text == found.text
        errors = _unresolved(patch, model, found.activations) if known else []
    return [Finding(path, found.region(error.span or (0, 0)), error) for error in errors]


def _closed(text: str) -> str:
    """The text of a `kpatch.sweep` with letters or digits for each `$name` in a name; all else keeps its place."""
    text = re.sub(r"(?<=layers\[)\$\w+(?=\])", lambda part: "1" * len(part[0]), text)
    return re.sub(r"\$\{\w+\}|(?<=[\w.*?])\$(?=\w)", lambda part: "x" * len(part[0]), text)


def _unresolved(patch: Patch, model: Any, activations: bool) -> list[PatchError]:
    """The errors of names that the model does not have."""
    from kpatch.names.bindings import NONE
    from kpatch.names.index import index
    from kpatch.names.meanings import ModelNames

    known = index(model)
    names = ModelNames(known, NONE)
    errors = []
    for selector, exclusions in _selectors(patch):
        try:
            if not (activations and known.activations(selector)[0]):
                names.matches(selector, exclusions)
        except PatchError as error:
            errors.append(error.locate(selector.span, patch.source))
    return errors


def _selectors(patch: Patch) -> Iterator[tuple[ast.Selector, tuple[ast.Selector, ...]]]:
    """The selectors of targets, with their exclusions, and of references; without those of other models, `$donor.x`."""
    from kpatch.functions.quoted import with_names

    stack: list[Any] = [with_names(patch)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Edit):
            if isinstance(node.target.selector, ast.Selector):
                yield node.target.selector, node.exclusions
            stack += [node.value, *reversed(node.target.index or ())]
        elif isinstance(node, ast.For):
            yield node.selector, node.exclusions
            stack += reversed(node.statements)
        elif isinstance(node, ast.Selector):
            yield node, ()
        elif not isinstance(node, ast.Binding):
            stack.extend(reversed(list(ast.children(node))))


# Showing -------------------------------------------------------------------------------------------------------------


def show_report(report: Report, form: str) -> None:
    """Prints a report on standard output."""
    if form == "json":
        click.echo(json.dumps([_record(finding) for finding in report.findings], indent=2))
    elif form == "github":
        for finding in report.findings:
            click.echo(_annotation(finding))
    else:
        console = Console()
        for finding in report.findings:
            console.print(_text(finding, console.encoding), soft_wrap=True)
        for line in _summary(report):
            console.print(Text(line), soft_wrap=True)


def _text(finding: Finding, encoding: str) -> Text:
    place = [finding.path, *finding.region[:2]] if finding.region is not None else [finding.path]
    head = Text.assemble((":".join(map(str, place)), "bold"), ": ", (finding.code, "bold red"), ": ")
    return head.append("\n".join([shorten(finding.error.message), *finding.error.details(encoding)]))


def _summary(report: Report) -> Iterator[str]:
    errors = _count(len(report.findings), "error") if report.findings else "no errors"
    yield f"{_count(report.patches, 'patch', 'es')} in {_count(report.files, 'file')}, {errors}"
    if report.computed:
        verbs = ("is", "was") if report.computed == 1 else ("are", "were")
        yield "{} {} computed and {} not checked".format(_count(report.computed, "patch", "es"), *verbs)


def _count(number: int, what: str, ending: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else ending}"


def _record(finding: Finding) -> dict[str, Any]:
    place = finding.region._asdict() if finding.region is not None else dict.fromkeys(Extent._fields)
    return {"path": finding.path, **finding.error.to_dict(), **place}


def _annotation(finding: Finding) -> str:
    """A workflow command of GitHub Actions, which shows the error at its line in a pull request."""
    properties = {"file": finding.path}
    if finding.region is not None:
        line, column, end_line, end_column = map(str, finding.region)
        properties |= {"line": line, "col": column, "endLine": end_line, "endColumn": end_column}
    properties["title"] = f"kpatch.{finding.code}"
    given = ",".join(f"{name}={value.translate(_IN_PROPERTY)}" for name, value in properties.items())
    message = "\n".join(map(shorten, (finding.error.message, *finding.error.notes)))
    return f"::error {given}::{message.translate(_IN_MESSAGE)}"


_IN_MESSAGE = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTY = {**_IN_MESSAGE, **str.maketrans({":": "%3A", ",": "%2C"})}
