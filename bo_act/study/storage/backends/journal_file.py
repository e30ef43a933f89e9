"""A study's journal file, robust against half-written and foreign lines.

Optuna reads a journal up to the first malformed line, and appends after whatever stands at its end:
a writer that dies within a line (a full disk, a power cut) makes the file unreadable. Here a
writer repairs the end before each record, under the lock, and readers skip malformed lines. All
readers skip the same lines, so that they agree on the trials.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from bo_act.errors import StorageError
from bo_act.study.storage.backends.errors import one_line, replaced

_BEGINS = b'{"op_code":'  # each record
_BLOCK = 1 << 16  # bytes to read at a time, in search of the end of a line
_BEGINNING = 1 << 20  # bytes to search for a first record

_log = logging.getLogger("bo_act")


def open_journal(path: Path, *, stale: int) -> JournalStorage:
    """Open a journal file, and create a missing one.

    Args:
        path: of the file.
        stale: seconds after which a silent writer loses the lock.

    Raises:
        StorageError: it cannot be opened, or is another file.
    """
    # Absolute: Optuna's lock is a link to the file. A relative link leads nowhere, and after its
    # owner was killed others would wait for it forever.
    path = path.resolve()
    with one_line(path, "opened"):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _check_is_journal(path)
        return _Journal(_JournalFile(path, stale=stale))


class _Journal(JournalStorage):
    """Optuna's journal, whose replay skips malformed records."""

    def _sync_with_backend(self) -> None:
        replay = self._replay_result
        for record in self._backend.read_logs(replay.log_number_read):
            try:
                replay.apply_logs([record])
            except Exception:
                # Optuna refuses other workers' records only if they are malformed.
                if record.get("worker_id") == replay.worker_id:
                    raise


class _JournalFile(JournalFileBackend):
    """Reads and appends records, one per line.

    Args:
        path: absolute, of a file that exists.
        stale: see ``open_journal``.
    """

    def __init__(self, path: Path, *, stale: int) -> None:
        lock = JournalFileSymlinkLock(str(path), grace_period=stale)
        super().__init__(str(path), lock_obj=lock)
        self._path = path
        self._inode = path.stat().st_ino
        self._read = 0, 0  # lines and bytes read so far

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the records after so many lines; an empty one for a malformed line."""
        number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
        with one_line(self._path, "read"), self._path.open("rb") as file:
            known = os.fstat(file.fileno())
            if known.st_ino != self._inode or known.st_size < offset:
                raise replaced(self._path)
            file.seek(offset)
            # The rest after the last newline is being written, or was never finished.
            lines = file.read().split(b"\n")[:-1]
        records = [_record(line) for line in lines]
        if records and not records[-1]:
            # Another process may just be repairing the end: read the line again once another
            # follows.
            del records[-1]
        unreadable = [number + at for at, record in enumerate(records, start=1) if not record]
        if unreadable:
            _log.warning(
                "%s: %d lines are not study records, from line %d on; bo-act ignores them",
                *(self._path, len(unreadable), unreadable[0]),
            )
        for line, record in zip(lines, records, strict=False):
            number, offset = number + 1, offset + len(line) + 1
            self._read = number, offset
            if number > log_number_from:
                yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, or nothing.

        Raises:
            StorageError: they cannot be written; the file is as it was.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with (
            one_line(self._path, "written"),
            self._locked(),
            # Append mode: a process that has lost the lock cannot overwrite anything.
            open(self._path, "ab+", buffering=0, opener=_open_existing) as file,
        ):
            _append(file, lines.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # this process was silent for too long and lost the lock
                self._lock.release()


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)  # do not recreate a deleted file


def _append(file: RawIOBase, data: bytes) -> None:
    """Append after a file's last whole line; if that fails, restore this end."""
    size = file.seek(0, os.SEEK_END)
    end = _end_of_last_line(file, size)
    if end < size:
        file.truncate(end)
    written = 0
    try:
        while written < len(data):
            written += file.write(data[written:]) or 0
        os.fsync(file.fileno())
    except BaseException:
        if file.seek(0, os.SEEK_END) == end + written:
            with suppress(OSError):  # the next writer repairs it otherwise
                file.truncate(end)
        raise


def _end_of_last_line(file: RawIOBase, end: int) -> int:
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = (file.read(end - start) or b"").rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _record(line: bytes) -> dict[str, Any]:
    """Return the record in a line, or an empty one.

    Earlier versions and other programs may have appended a record to half a line.
    """
    start = 0
    while start >= 0:
        try:
            record = json.loads(line[start:])
        except (ValueError, RecursionError):
            start = line.find(_BEGINS, start + 1)
            continue
        is_record = isinstance(record, dict) and type(record.get("op_code")) is int
        return record if is_record else {}
    return {}


def _check_is_journal(path: Path) -> None:
    """Refuse a file with text but no record, which bo-act would truncate and write to."""
    with path.open("rb") as file:
        content = file.read(_BEGINNING)
    # A first record that was never finished is accepted, too.
    if _BEGINS.startswith(content[: len(_BEGINS)]) or any(map(_record, content.split(b"\n"))):
        return
    raise StorageError(
        f"{path} is another file, not a study journal, and stays unchanged; give another path "
        "(--storage runs/NAME.log)"
    )
