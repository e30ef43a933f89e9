"""Errors of a study's storage, in one line with advice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bo_act.errors import StorageError

_ROOM = "make room on the disk, and the same command resumes"
_WRITABLE = "make the file and its folder writable, or give another --storage"

# Messages of SQLite and its readers about damaged content.
_DAMAGE = ("malformed", "not a database", "no such column", "decode to utf-8", "codec can't decode")

# Part of a message of SQLite or PostgreSQL → advice.
_ADVICE = {
    "is full": _ROOM,
    "no space left": _ROOM,
    "readonly": _WRITABLE,
    "read-only": _WRITABLE,
    "permission denied": "give the user the right to read and write it, or another --storage",
    "disk i/o error": "check the disk or its network; the same command resumes",
    "unable to open": "check the path and who may write to its folder",
    "no such table": "it has no study yet, or is damaged; `bo-act run` creates one",
    'database "': "create it (createdb NAME), or give another --storage",
    'relation "': "it has no study yet; `bo-act run` creates one",
    "password": "give it in ~/.pgpass or PGPASSWORD",
}


@contextmanager
def one_line(where: Path, what: str) -> Iterator[None]:
    """Turn an error of the operating system into one line with advice.

    Args:
        where: the storage's file.
        what: the failed action, as "read" or "written".

    Raises:
        StorageError: in place of ``OSError``, and of ``ValueError`` (an invalid path).
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the study storage {where} cannot be {what}: {error.strerror or error}; "
            f"{_os_advice(error)}"
        ) from error
    except ValueError as error:
        raise StorageError(f"the study storage {str(where)!r} cannot be {what}: {error}") from error


def unusable(where: str, reason: str, what: str = "used") -> StorageError:
    """Return the error for an unusable database, given its reason."""
    lowered = reason.lower()
    if any(part in lowered for part in _DAMAGE):
        return damaged(where, reason)
    advice = next((f"; {advice}" for part, advice in _ADVICE.items() if part in lowered), "")
    return StorageError(f"the study storage {where} cannot be {what}: {reason}{advice}")


def replaced(where: Path) -> StorageError:
    """Return the error for a file that was replaced while open."""
    return StorageError(
        f"the study storage {where} was replaced by another file while in use; the same command "
        "continues with the new file"
    )


def damaged(where: str, reason: str) -> StorageError:
    """Return the error for a storage with damaged content."""
    return StorageError(
        f"the study storage {where} is damaged ({reason}): restore a copy, save what can be read "
        f"(sqlite3 {where} .recover), or give another --storage"
    )


def _os_advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _ROOM
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _WRITABLE
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return "it was deleted or moved: put it back, or give another --storage"
    return "give another --storage"
