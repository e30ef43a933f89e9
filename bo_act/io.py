"""Files that appear whole or not at all, and what is said of errors on one line.

Every file that bo-act writes as a whole is written here: under a name of its own beside the target,
flushed to the disk and renamed. So any number of processes may write one file at once, a reader
sees the old content or the new, and a full disk or a kill leaves the old one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.bo-act-tmp", re.DOTALL)

# A temporary file is written to all the time; one this old (in seconds) belongs to nobody.
_ABANDONED = 86_400.0

_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "give a place that can be written to",
    errno.EACCES: "allow that, or give another place",
    errno.EPERM: "allow that, or give another place",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or give another place",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or give another place",
    errno.EISDIR: "a folder stands where a file is needed: give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "give a place that exists",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new name to write a file to, which takes the place of ``path`` at the end.

    Folders are made where they are missing, permissions are those of any new file. A link is
    followed, and what is no file (a pipe, ``/dev/stdout``) is written to as it is. Where the block
    raises, the target stays as it was and nothing is left behind; what killed processes left in the
    folder is removed by the next writer, a day later.

    Args:
        path: of the file. The name that is given ends otherwise, so say in which form to write.

    Raises:
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.bo-act-tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):  # half a file would fill the disk as well
            temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file; text is written as UTF-8. See ``replacing``.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def expanded(name: str | Path) -> Path:
    """Return a path with the home folder in place of ``~``, where that is known."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user, or one without a home
        return Path(name)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed a day ago or more left half written in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):  # renamed or removed in this moment
                    if time.time() - entry.stat().st_mtime > _ABANDONED:
                        os.unlink(entry.path)


def reason(error: OSError) -> str:
    """Return why a file cannot be used and what to do about it: ``why; what to do``."""
    said = error.strerror or one_line(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{said}; {advice}" if advice else said


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error as ``Type: text`` on one line of at most so many characters."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= most else line[: most - 3] + "..."


def digest(content: bytes | str | Mapping[str, Any]) -> str:
    """Return the sha256 (hexadecimal) of bytes, of a text, or of a mapping as JSON."""
    if isinstance(content, Mapping):
        content = json.dumps(content, sort_keys=True)
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
