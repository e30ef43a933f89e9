"""Failures of users' code on one line, with the place in the user's own file.

A user's code (a model file, a training function, a data file, a callback) may raise anything. The
report always has the type, the message, and the innermost line in the user's own files, not in a
library or bo-act.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bo_act.errors import BoActError
from bo_act.urls import without_secrets

__all__ = ["USERS", "Blame", "Failure", "is_machines", "one_line"]

USERS = (Exception, SystemExit, GeneratorExit)
"""What code of a user's may raise. KeyboardInterrupt, as a rule, is a person."""

Blame = Literal["machine", "file", "function"]
"""Whose a failure is: the machine's, the user's file's whatever the function, or one function's."""

_MOST = 300  # longest stored message, in characters

# Errors of data loader and pool processes arrive with their traceback as text.
_TRACEBACK = "Traceback (most recent call last)"

# Messages of torch and its libraries in a RuntimeError of the machine.
_MACHINE = re.compile(
    r"CUDA error|CUDA driver|CUDA out of memory|cuDNN error|CUBLAS_STATUS|CUSOLVER_STATUS|"
    r"HIP error|NCCL|No CUDA GPUs are available|out of memory|not enough memory|"
    r"can't allocate memory|cannot allocate memory|no space left on device|too many open files|"
    r"unable to (?:mmap|open shared memory)|DataLoader worker \(pid",
    re.IGNORECASE,
)
# Also index errors: caused by the code and its data, not by the device.
_NOT_MACHINE = re.compile(r"device-side assert", re.IGNORECASE)

_ERRNOS = {
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EIO", "ENOMEM", "EMFILE", "ENFILE", "ENODEV", "ENXIO", "ESTALE",
        "EROFS", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "ENETRESET",
    )
    if hasattr(errno, name)
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Why a training has no result.

    Attributes:
        type: the exception's class.
        message: on one line.
        file: the innermost file of the user's, relative to the working folder if inside; empty if
            none was involved.
        line: in that file.
        blame: who is to blame.
    """

    type: str
    message: str
    file: str = ""
    line: int | None = None
    blame: Blame = "function"

    @classmethod
    def of(cls, error: BaseException, *, blame: Blame | None = None) -> Failure:
        """Read it from a caught exception.

        For an error of bo-act with another cause, use the cause.

        Args:
            error: with its traceback.
            blame: who is to blame; default: the machine or the function.
        """
        blame = blame or ("machine" if is_machines(error) else "function")
        root = error
        while isinstance(root, BoActError) and isinstance(root.__cause__, BaseException):
            root = root.__cause__
        around = []
        while isinstance(root, BaseExceptionGroup):  # which has no message of its own
            around.append(root)
            root = root.exceptions[0]
        errors = (*_chain(root), *reversed(around))
        file, line = next((place for link in errors if (place := _place(link))), ("", None))
        kind, message = _said(root)
        return cls(kind, message, file, line, blame)

    @classmethod
    def read(cls, attribute: object) -> Failure | None:
        """Read a trial's user attribute ``failure``; None if there is none."""
        if isinstance(attribute, str) and attribute:  # of an earlier version, or plain text
            kind, colon, message = attribute.partition(": ")
            if colon and kind.isidentifier():
                return cls(kind, clean(message))
            return cls("", clean(attribute))
        if not isinstance(attribute, dict):
            return None
        line, blame = attribute.get("line"), attribute.get("blame")
        return cls(
            clean(str(attribute.get("type", ""))),
            clean(str(attribute.get("message", ""))),
            clean(str(attribute.get("file", ""))),
            line if isinstance(line, int) else None,
            blame if blame in ("machine", "file", "function") else "function",
        )

    def as_attribute(self) -> dict[str, Any]:
        """Return the user attribute for a trial."""
        return asdict(self)

    def __str__(self) -> str:
        said = ": ".join(part for part in (self.type, self.message) if part)
        if self.file and self.line is not None:
            return f"{said} ({self.file}, line {self.line})"
        return said


def one_line(error: BaseException) -> str:
    """Return an exception as one line, with the place in a user's file if there is one."""
    return str(Failure.of(error))


def is_machines(error: BaseException) -> bool:
    """Tell whether the machine failed: no memory, no device, no room, no network.

    The same code may succeed at another time.
    """
    return any(map(_is_machines, _chain(error)))


def _is_machines(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_machines, error.exceptions))
    if isinstance(error, MemoryError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    torch: Any = sys.modules.get("torch")  # not loaded: it raised nothing
    kinds = tuple(
        kind
        for name in ("OutOfMemoryError", "AcceleratorError")
        if (kind := getattr(torch, name, None)) is not None
    )
    if not isinstance(error, RuntimeError | OSError) or isinstance(error, RecursionError):
        return False
    text = _text(error)
    if _NOT_MACHINE.search(text):
        return False
    return isinstance(error, kinds) or bool(_MACHINE.search(text))


def clean(text: str) -> str:
    """Return a text on one line, safe for terminals and databases, shortened if long."""
    # Surrogates are not text, and PostgreSQL refuses the character 0.
    start = without_secrets(text[: 20 * _MOST]).encode("utf-8", "replace").decode("utf-8")
    line = " ".join(start.split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _MOST else line[: _MOST - 3] + "..."


# --- where, and what ------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, from the outside in."""
    link: BaseException | None = error
    for _ in range(20):
        if link is None:
            return
        yield link
        implied = None if link.__suppress_context__ else link.__context__
        link = link.__cause__ or (implied if isinstance(link, BoActError) else None)


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return the innermost line of a user's file in an exception's traceback."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno is not None:
        return shown_path(error.filename), error.lineno
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    notes = [str(note) for note in getattr(error, "__notes__", ())]  # of our own workers
    if _TRACEBACK in (text := "\n".join([_text(error), *notes])):
        lines = re.findall(r'File "([^"]+)", line (\d+)', text)
        places += [(file, int(line)) for file, line in lines]
    for file, line in reversed(places):
        if is_users_file(file):
            return shown_path(file), line
    return None


def _said(error: BaseException) -> tuple[str, str]:
    """Return the type and the message of an exception for reports."""
    kind, text = type(error).__name__, _text(error)
    if _TRACEBACK in text:
        last = text.strip().splitlines()[-1]
        inner, _, message = last.partition(": ")
        return clean(inner.rpartition(".")[2]) or kind, clean(message)
    return kind, clean(text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # str() of a user's class may fail
        return ""


def is_users_file(file: str) -> bool:
    """Tell whether a file is the user's, or bo-act's own editable content."""
    if file.startswith("<"):
        return False
    path = _absolute(file)
    package = os.path.dirname(os.path.dirname(_absolute(__file__))) + os.sep
    if path.startswith(package):
        return path.startswith(os.path.join(package, "library", ""))
    parts = Path(path).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not any(path.startswith(folder) for folder in _library_folders())


@cache
def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {os.path.realpath(sysconfig.get_path(name)) for name in names}
    folders |= {_absolute(sysconfig.get_path(name)) for name in names}
    torch: Any = sys.modules.get("torch")  # it may be built from its source, elsewhere
    if getattr(torch, "__file__", None):
        folders.add(os.path.dirname(_absolute(torch.__file__)))
    return tuple(folder + os.sep for folder in folders)


def _absolute(file: str) -> str:
    try:
        return os.path.abspath(file)
    except OSError:  # the working folder is gone
        return file


def shown_path(file: str) -> str:
    path = _absolute(file)
    try:
        return clean(Path(path).relative_to(Path.cwd()).as_posix())
    except (ValueError, OSError):  # it is elsewhere, or the folder is gone
        return clean(path)


def is_of_in_place(error: Exception) -> bool:
    """Tell whether a gradient failed because of an in-place change."""
    return isinstance(error, RuntimeError) and any(
        said in str(error)
        for said in ("inplace operation", "in-place operation", "modified inplace")
    )
