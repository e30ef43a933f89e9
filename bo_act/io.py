"""Files that appear whole or not at all, and what is said of errors on one line.

Every file that bo-act writes as a whole is written here: under a name of its own beside the target,
and renamed when it is whole. So any number of processes may write one file at once, a reader
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
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ENDING = ".bo-act-tmp"
_TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{16}}{re.escape(_ENDING)}", re.DOTALL)

# Where there are no locks: seconds without a write after which a temporary file is nobody's.
_ABANDONED = 86_400.0

_CHECK = 32  # bytes of a sha256, the last ones of a checked file

_ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "allow writing there",
    errno.EACCES: "allow that",
    errno.EPERM: "allow that",
    errno.ENOTDIR: "move the file that is in the folder's place",
    errno.EEXIST: "move the file that is in the folder's place",
    errno.EISDIR: "move the folder that is in the file's place",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ENOENT: "make it",
}


@contextmanager
def replacing(path: Path, *, sync: bool = True, parents: bool = True) -> Iterator[Path]:
    """Give a new name to write a file to, which takes the place of ``path`` at the end.

    Permissions are those of any new file. A link is followed, and what is no file (a pipe,
    ``/dev/stdout``) is written to as it is. Where the block raises, the target stays as it was and
    nothing is left behind; what a killed process left is removed by the next writer in the folder.

    Args:
        path: of the file. The name that is given ends otherwise, so say in which form to write.
        sync: wait until it is on the disk, so that it is there after a power failure. What is a
            cache, and has a checksum, can do without.
        parents: make its folder where that is missing.

    Raises:
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent)
    with _new_beside(target) as file:
        temporary = Path(file.name)
        try:
            yield temporary
            if sync:
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):  # half a file would fill the disk as well
                temporary.unlink(missing_ok=True)
            raise


def _new_beside(target: Path) -> BinaryIO:
    """Return a new file, locked for as long as it is open, so that others see that it is in use."""
    while True:
        name = f".{target.name[:40]}.{secrets.token_hex(8)}{_ENDING}"
        file = target.with_name(name).open("xb")
        lock(file.fileno())
        if os.path.exists(file.name):  # it was not taken for abandoned before it was locked
            return file
        file.close()


def lock(descriptor: int) -> None:
    """Wait until nobody else has a file locked; then it is, until it is closed."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left half written in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with suppress(OSError):  # in use, renamed or removed in this moment
                    _remove_unused(Path(entry.path))


def _remove_unused(path: Path) -> None:
    """Remove a temporary file that no process has locked.

    The lock is held until the file is gone: whoever makes one locks it and then looks whether it is
    still there.
    """
    if fcntl is not None:
        with path.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:  # a file system without locks
                pass
            else:
                path.unlink()
                return
    if time.time() - path.stat().st_mtime >= _ABANDONED:
        path.unlink()


def atomic_write(
    path: Path, content: str | bytes | memoryview, *, sync: bool = True, parents: bool = True
) -> None:
    """Write a file; text is written as UTF-8. See ``replacing``.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, sync=sync, parents=parents) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_checked(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file of a cache, from which ``read_checked`` takes nothing else than its content.

    See ``replacing``.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, sync=sync) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def read_checked(path: Path) -> memoryview:
    """Return the content of a file that ``write_checked`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: its checksum is wrong: damaged, or another file.
    """
    content = memoryview(path.read_bytes())
    if len(content) < _CHECK or hashlib.sha256(content[:-_CHECK]).digest() != content[-_CHECK:]:
        raise ValueError("it is damaged")
    return content[:-_CHECK]


def expanded(name: str | Path) -> Path:
    """Return a path with the home folder in place of ``~``, where that is known."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user, or one without a home
        return Path(name)


def reason(error: OSError, otherwise: str = "give another place") -> str:
    """Return why a file cannot be used and what to do about it: ``why; what to do``.

    Args:
        error: what the system says.
        otherwise: what else can be done.
    """
    said = error.strerror or one_line(error)
    if said.startswith("No usable temporary directory"):
        return f"{said}; set TMPDIR to a writable folder"
    advice = _ADVICE.get(error.errno or 0)
    return f"{said}; {advice}, or {otherwise}" if advice else said


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
