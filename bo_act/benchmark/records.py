"""Records of a JSON file of any length, one at a time: one object, key → record."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bo_act.errors import BenchmarkError
from bo_act.specs.base import shown

_CHUNK = 1 << 20  # characters

# Far above the released files (130 MB, 3,000 records of 40 kB), but bearable for a machine. A few
# kilobytes may unpack to any size.
_MOST_CHARACTERS = 1 << 31
_MOST_OF_A_RECORD = 1 << 24  # characters
_MOST_OF_A_KEY = 10_000  # characters, as of any expression

_SOMETHING = re.compile(r"[^ \t\n\r]")


def as_json(value: Any) -> str:
    """Return a value as JSON, shortened."""
    if isinstance(value, bool | float | None):
        return json.dumps(value)
    return json.dumps(value) if isinstance(value, str) and len(value) <= 60 else shown(value)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file one by one."""
    with _text(path) as file:
        scanner = _Scanner(file, path)
        if (start := scanner.peek()) != "{":
            raise BenchmarkError(
                f"{path}: expected an object of records, got {start!r} at the start"
            )
        scanner.skip()
        seen: set[str] = set()
        while scanner.peek() != "}":
            if seen:
                scanner.expect(",")
            key = scanner.value()
            if not isinstance(key, str) or not key.strip() or len(key) > _MOST_OF_A_KEY:
                raise BenchmarkError(f"{scanner.where}: expected an expression, got {as_json(key)}")
            if key in seen:
                raise BenchmarkError(f"{path}: record {key!r} appears twice")
            seen.add(key)
            scanner.last = key
            scanner.expect(":")
            record = scanner.value()
            if not isinstance(record, dict):
                raise BenchmarkError(
                    f"{path}: record {key!r}: expected an object, got {as_json(record)}"
                )
            yield key, record
        scanner.skip()
        if scanner.peek():
            raise BenchmarkError(f"{path}: expected the end after {scanner.last!r}, got more")


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    if path.exists() and not path.is_file():
        raise BenchmarkError(f"{path}: expected a file, got a folder, a pipe or a device")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opener: Callable[..., Any] = gzip.open if packed else open
        with opener(path, "rt", encoding="utf-8-sig") as text:
            yield text
    except (OSError, EOFError, zlib.error) as error:
        raise BenchmarkError(f"{path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: expected text in UTF-8: {error}") from error


class _Scanner:
    """JSON values from a text of any length, one at a time."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self.file, self.path = file, path
        self.buffer, self.at, self.ended = "", 0, False
        self.read = 0
        self.last = ""
        self.decoder = json.JSONDecoder(object_pairs_hook=_once)

    @property
    def where(self) -> str:
        return f"{self.path}: after record {self.last!r}" if self.last else f"{self.path}"

    def _more(self) -> bool:
        if len(self.buffer) - self.at > _MOST_OF_A_RECORD:
            raise BenchmarkError(
                f"{self.where}: more than {_MOST_OF_A_RECORD:,} characters in one piece; an "
                "Act-Bench record has about ten thousand"
            )
        chunk = self.file.read(_CHUNK)
        self.read += len(chunk)
        if self.read > _MOST_CHARACTERS:
            raise BenchmarkError(
                f"{self.where}: the file has, or unpacks to, more than {_MOST_CHARACTERS:,} "
                "characters, too many for an Act-Bench file"
            )
        self.buffer, self.at = self.buffer[self.at :] + chunk, 0
        self.ended = not chunk
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            match = _SOMETHING.search(self.buffer, self.at)
            if match:
                self.at = match.start()
                return match.group()
            if not self._more():
                self.at = len(self.buffer)
                return ""

    def skip(self) -> None:
        self.at += 1

    def expect(self, character: str) -> None:
        came = self.peek()
        if came != character:
            raise self._broken(f"expected {character!r}, got {came!r}" if came else "")
        self.skip()

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                # An apparent error may be an incompletely read value.
                if not self._more():
                    raise self._broken(error.msg) from error
                continue
            except RecursionError as error:
                raise self._broken("it is too deeply nested") from error
            except ValueError as error:  # a key twice, or a number of thousands of digits
                raise self._broken(str(error).partition(";")[0]) from error
            self.at = end
            return value

    def _broken(self, why: str) -> BenchmarkError:
        if self.ended and not self.buffer[self.at :].rstrip().endswith("}"):
            return BenchmarkError(f"{self.where}: the file is truncated; download it again")
        return BenchmarkError(f"{self.where}: not valid JSON: {why}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, if its keys are unique."""
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} appears twice")
    return record
