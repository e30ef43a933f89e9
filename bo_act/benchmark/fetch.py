"""Downloading benchmark files: resumable, checked, complete or absent."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from io import FileIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bo_act.errors import BenchmarkError
from bo_act.io import atomic_write, digest, lock, reason
from bo_act.urls import without_secrets_of

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and of how many if the server says so."""

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3

_BY_HAND = (
    "The authors' repository, cognizant-ai-labs/act-bench on GitHub, links to the released "
    "Act-Bench files. If this machine cannot reach it, download the file on another machine, copy "
    "it here, and give its path instead of a benchmark's name."
)


def fetch(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a file, or resume if the server still has the same one.

    Args:
        url: http or https.
        folder: for the file, under the last part of the URL.
        sha256: expected checksum, in hexadecimal.
        progress: see ``Progress``.

    Returns:
        The file. An existing one is not downloaded again, only its checksum is verified.

    Raises:
        BenchmarkError: the URL is invalid or unreachable, the checksum is wrong, or the file
            cannot be written.
    """
    path = folder / _name(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _begun(path) as part:
            if part is not None:
                _download(url, part, progress)
                _finish(url, part, path, sha256)
                return path
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {reason(error)}") from error
    checksum = _checksum(path)
    if sha256 is not None and checksum != sha256.lower():
        raise BenchmarkError(
            f"{path}: expected the checksum {sha256.lower()}, got {checksum}; the existing file is "
            "a different one or damaged: delete it and fetch it again"
        )
    return path


def _name(url: str) -> str:
    """Return the file name of a URL."""
    name = ""
    with suppress(ValueError):  # half an IPv6 address
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.netloc:
            name = Path(unquote(parts.path)).name
    if name in ("", "..") or "\0" in name:
        raise BenchmarkError(f"expected an http or https URL of a file, got {url!r}. {_BY_HAND}")
    return name


class _Part:
    """A partial download, of one version of one URL.

    Args:
        path: of the partial file; a note beside it has its origin.
        file: of that path, open for appending and locked.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.file = file
        self.note = path.with_name(f"{path.name}.json")
        self.begun_here = False
        self.version: dict[str, str | None] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self.note.read_bytes())
            self.version = {key: content[key] for key in ("url", "etag", "modified", "whole")}

    @property
    def size(self) -> int:
        """Bytes received."""
        return os.fstat(self.file.fileno()).st_size

    def usable(self, url: str) -> int:
        """Return how many bytes to resume from; 0 if they may be of another version."""
        told_apart = self.version.get("etag") or self.version.get("modified")
        of_it = self.version.get("url") == digest(url) and bool(told_apart or self.begun_here)
        return self.size if of_it else 0

    def begin(self, version: Mapping[str, str | None]) -> None:
        """Discard the partial file, and start with the first byte of a version."""
        self.version, self.begun_here = dict(version), True
        with self._writing():
            self.file.truncate(0)
            atomic_write(self.note, json.dumps(self.version))

    def fits(self, version: Mapping[str, str | None]) -> bool:
        """Return whether a version is the one begun, as far as the server says."""
        return all(
            mine == theirs
            for mine, theirs in ((self.version[key], version[key]) for key in self.version)
            if mine is not None and theirs is not None
        )

    def add(self, chunk: bytes) -> None:
        """Add bytes."""
        left = memoryview(chunk)
        with self._writing():
            while left:
                left = left[self.file.write(left) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Distinguish write errors from network errors."""
        try:
            yield
        except OSError as error:
            raise BenchmarkError(
                f"cannot write {self.path}: {reason(error)}; the part received so far is kept, "
                "and the same call resumes there"
            ) from error

    def discard(self) -> None:
        """Remove the partial file."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


@contextmanager
def _begun(path: Path) -> Iterator[_Part | None]:
    """Yield the partial file for appending; None if the file is complete.

    A second process waits for the first one, and then finds the complete file.
    """
    part = path.with_name(f"{path.name}.part")
    while not path.is_file():
        with part.open("ab", buffering=0) as file:
            lock(file.fileno())
            # Unless another process finished or discarded it meanwhile.
            if part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno())):
                begun = _Part(part, file)
                if path.is_file():
                    begun.discard()
                    continue
                try:
                    yield begun
                finally:
                    if not begun.size:
                        begun.discard()
                return
    yield None


def _finish(url: str, part: _Part, path: Path, sha256: str | None) -> None:
    """Check the download, and move it into place."""
    if sha256 is not None and (checksum := _checksum(part.path)) != sha256.lower():
        part.discard()
        raise BenchmarkError(
            f"{url}: expected the checksum {sha256.lower()}, got {checksum}; the server has a "
            "different file, which was discarded"
        )
    os.fsync(part.file.fileno())
    part.path.replace(path)
    part.note.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: _Part, progress: Progress | None) -> None:
    for attempt in range(_ATTEMPTS):
        before = part.size
        try:
            _continue(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            raise BenchmarkError(
                f"{url}: the server answers {error.code} {error.reason}. {_BY_HAND}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Try again after a connection that brought some bytes.
            if attempt == _ATTEMPTS - 1 or part.size <= before:
                advice = f" The part received so far is in {part.path}." if part.size else ""
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                why = without_secrets_of(url, str(cause))
                raise BenchmarkError(
                    f"{url}: cannot be downloaded: {why}.{advice} {_BY_HAND}"
                ) from error


def _version(url: str, headers: Message) -> dict[str, str | None]:
    """Return the identity of a file's version, and its number of bytes."""
    part = headers.get("Content-Range")
    whole = part.rpartition("/")[2] if part else headers.get("Content-Length", "")
    return {
        "url": digest(url),  # may contain a token
        "etag": headers.get("ETag"),
        "modified": headers.get("Last-Modified"),
        "whole": whole if whole.isdigit() else None,
    }


def _continue(url: str, part: _Part, progress: Progress | None) -> None:
    done = part.usable(url)
    headers = {}
    if done:
        headers["Range"] = f"bytes={done}-"
        etag = part.version["etag"] or ""
        # A weak one ("W/…") does not guarantee each byte.
        same = part.version["modified"] if etag.startswith("W/") or not etag else etag
        headers |= {"If-Range": same} if same else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if not done or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        version = _version(url, error.headers)
        if version["whole"] == str(done) and part.fits(version):
            return  # already complete
        answer = urllib.request.urlopen(url, timeout=_TIMEOUT)
    with answer:
        version = _version(url, answer.headers)
        if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
            begins = answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            if not done:
                raise ConnectionError("the server sent part of the file instead of all of it")
            if not (begins and part.fits(version)):
                part.begin({})
                _continue(url, part, progress)
                return
        else:
            done = 0
            part.begin(version)
        whole = int(version["whole"]) if version["whole"] else None
        while chunk := answer.read(_CHUNK):
            part.add(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, whole)
        if whole is not None and done < whole:
            raise ConnectionError(f"the connection ended after {done:,} of {whole:,} bytes")
