"""What goes wrong with a study's storage, in one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bo_act.errors import StorageError

_ROOM = "make room on the disk, and the same command goes on"
_WRITABLE = "make the file and its folder writable, or give another --storage"
_DAMAGED = (
    "restore a copy, save what can be read (sqlite3 FILE .recover), or give another --storage"
)

# What SQLite and PostgreSQL say, as part of a sentence, and what to do about it.
_ADVICE = {
    "is full": _ROOM,
    "no space left": _ROOM,
    "readonly": _WRITABLE,
    "read-only": _WRITABLE,
    "permission denied": "give the user the right to read and write it, or another --storage",
    "disk i/o error": "look at the disk, or the network that it is behind; the same command goes on",
    "unable to open": "look at the path and at who may write to its folder",
    "not a database": "it is another file, or damaged: give the path of a study, or restore a copy",
    "no such table": "it has no study yet, or is damaged: `bo-act run` makes one",
    "no such column": _DAMAGED,
    "malformed": _DAMAGED,
    "corrupt": _DAMAGED,
    "does not exist": "it has no study yet: `bo-act run` makes one",
}


@contextmanager
def one_line(where: Path, what: str) -> Iterator[None]:
    """Turn an error of the operating system into one that says what to do.

    Args:
        where: the storage's file.
        what: that was being done to it, "read" or "written".

    Raises:
        StorageError: in place of ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the study storage {where} cannot be {what}: {error.strerror or error}; "
            f"{_os_advice(error)}"
        ) from error


def advice(reason: str) -> str:
    """Return what to do about what a database says; ``""`` where nothing is known."""
    said = reason.lower()
    return next((then for part, then in _ADVICE.items() if part in said), "")


def damaged(where: str, reason: str) -> StorageError:
    """Return the error that a storage's content is not what was written to it."""
    return StorageError(f"the study storage {where} is damaged ({reason}): {_DAMAGED}")


def _os_advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _ROOM
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _WRITABLE
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return "it was deleted or moved: put it back, or give another --storage"
    return "give another --storage"
