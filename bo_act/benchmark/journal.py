"""RunJournal: runs of a build or a comparison as JSON lines, safe against kills."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from bo_act.errors import BenchmarkError
from bo_act.io import digest, reason

_FORM = 2
_UNCHECKED = 1  # the previous format, without checksums


_CHECK = b', "check": "%s"}'
_LENGTH = len(_CHECK % (b"0" * 16))


class RunJournal:
    """A file of runs that one process at a time may extend.

    The first line has the settings of the runs. Every line ends with a checksum; an incomplete
    line of a killed process is cut off.

    Args:
        path: of the file; created with its folder if missing.
        made_from: everything that the runs depend on.
        key: the fields that identify a run.

    Raises:
        BenchmarkError: the runs have other settings, the file is damaged or cannot be written, or
            another process has it open.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any], *, key: Sequence[str]) -> None:
        self.path = path
        self.key = tuple(key)
        self.header = {"form": _FORM, "made_from": json.loads(json.dumps(made_from))}
        self._records: dict[tuple[Any, ...], dict[str, Any]] = {}

    def __enter__(self) -> RunJournal:
        self._lock = FileLock(self.path.with_suffix(".lock"), timeout=0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise BenchmarkError(
                f"another process is working in {self.path.parent}; wait until it ends, or give "
                "another folder"
            ) from error
        except OSError as error:
            raise self._cannot_write(error) from error
        with ExitStack() as on_failure:
            on_failure.callback(self._lock.release)
            if self.path.exists() and not self.path.is_file():
                raise BenchmarkError(
                    f"{self.path}: expected a file, got a folder, a pipe or a device"
                )
            try:
                # Unbuffered: on a full disk nothing remains to be written later.
                self._file = on_failure.enter_context(self.path.open("a+b", buffering=0))
                self._read()
            except OSError as error:
                raise self._cannot_write(error) from error
            on_failure.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.release()

    def __contains__(self, run: tuple[Any, ...]) -> bool:
        return run in self._records

    def __getitem__(self, run: tuple[Any, ...]) -> dict[str, Any]:
        return self._records[run]

    def add(self, record: dict[str, Any]) -> None:
        """Save a run durably.

        Raises:
            BenchmarkError: it cannot be written; earlier runs stay.
        """
        try:
            self._write(record)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._records.setdefault(self._run(record), record)

    def _run(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record[field] for field in self.key)

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, allow_nan=False).encode()
        if self._checked:
            line = line[:-1] + _CHECK % digest(line)[:16].encode()
        left = memoryview(line + b"\n")
        end = self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def _read(self) -> None:
        self._checked = True
        self._file.seek(0)
        content = self._file.readall()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        if not whole:
            self._write(self.header)
            return
        first, *lines = content[:whole].split(b"\n")[:-1]
        self._checked = first.startswith(b'{"form": %d' % _FORM)
        header = self._parse(first, 1)
        if not lines and header != self.header:  # no runs depend on it
            self._file.truncate(0)
            self._write(self.header)
            return
        self._check(header)
        for number, line in enumerate(lines, start=2):
            record = self._parse(line, number)
            try:
                self._records.setdefault(self._run(record), record)
            except KeyError as error:
                raise self._damaged(number, f"it has no {error}") from error
            except TypeError as error:  # a list instead of a number or a name
                raise self._damaged(number, f"it has no plain {', '.join(self.key)}") from error

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        if self._checked:
            text, check = line[:-_LENGTH] + b"}", line[-_LENGTH:]
            if check != _CHECK % digest(text)[:16].encode():
                raise self._damaged(number, "its checksum is wrong")
            line = text
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, str(error)) from error
        if not isinstance(record, dict):
            raise self._damaged(number, "it is not a JSON object")
        return record

    def _cannot_write(self, error: OSError) -> BenchmarkError:
        return BenchmarkError(
            f"{self.path} cannot be written: {reason(error)}; earlier runs are saved, and the "
            "same call resumes there"
        )

    def _damaged(self, number: int, why: str) -> BenchmarkError:
        return BenchmarkError(
            f"{self.path}, line {number} is damaged: {why}; remove that line, and the run will be "
            "repeated"
        )

    def _check(self, header: dict[str, Any]) -> None:
        made_from = header.get("made_from")
        if header.get("form") in (_FORM, _UNCHECKED) and made_from == self.header["made_from"]:
            return
        theirs, ours = _flat(header), _flat(self.header)
        differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        shown = ", ".join(
            f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} now)" for key in differing[:3]
        )
        raise BenchmarkError(
            f"{self.path} holds runs with other settings: {shown}; give another folder, or remove "
            "this one"
        )


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
