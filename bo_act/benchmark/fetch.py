"""Downloading benchmark files: resumed where they stopped, checked, and whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bo_act.errors import BenchmarkError
from bo_act.urls import without_secrets_of

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3

_BY_HAND = (
    "The released Act-Bench files are found through the authors' repository, "
    "cognizant-ai-labs/act-bench on GitHub. Where this machine has no way there, fetch the file on "
    "another one, copy it here, and give its path in place of a benchmark's name."
)


def fetch(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Download a file, or go on with it.

    Args:
        url: http or https.
        folder: to put it in, under the last part of the address.
        sha256: what its checksum has to be, in hexadecimal.
        progress: called with the bytes that are there, and of how many if the server says so.

    Returns:
        The file. One that is there is not downloaded again; its checksum is looked at.

    Raises:
        BenchmarkError: the address is none, cannot be reached, or the file is another one.
    """
    parts = urlsplit(url)
    name = Path(unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or not parts.netloc or not name:
        raise BenchmarkError(
            f"expected the http or https address of a file, got {url!r}. {_BY_HAND}"
        )
    path = folder / name
    if not path.is_file():
        part = folder / f"{name}.part"
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, part, progress)
        _check(part, sha256)
        part.replace(path)
    else:
        _check(path, sha256)
    return path


def _download(url: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            raise BenchmarkError(
                f"{url}: the server answers {error.code} {error.reason}. {_BY_HAND}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            # One that broke off after some bytes is worth another attempt.
            grown = part.exists() and part.stat().st_size > before
            if attempt == _ATTEMPTS - 1 or not grown:
                kept = f" What came so far is kept in {part}." if part.exists() else ""
                reason = without_secrets_of(url, str(getattr(error, "reason", error)))
                raise BenchmarkError(
                    f"{url}: cannot be fetched: {reason}.{kept} {_BY_HAND}"
                ) from error


def _continue(url: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers),
            timeout=_TIMEOUT,
        )
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            whole = error.headers.get("Content-Range", "").rpartition("/")[2]
            if whole == str(start):
                return  # all of it had come
            part.unlink()
            _continue(url, part, progress)
            return
        raise
    with answer:
        if start and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends it all again
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        done = start
        with part.open("ab" if start else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        if total is not None and done < total:
            raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _check(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise BenchmarkError(
            f"{path}: expected the checksum {sha256.lower()}, got {found}; the file is another "
            f"one or damaged: delete it and fetch it again"
        )
