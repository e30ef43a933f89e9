# ruff: noqa: RUF001
"""stdout and stderr of a command, on any terminal, pipe or file.

A terminal or pipe that is not UTF-8 gets plain characters instead of those it cannot show.
Progress may get lost, results may not: if stdout cannot be written to, the command ends with one
line; if its reader has gone, it ends quietly.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from bo_act.errors import BoActError
from bo_act.io import reason

_HANDLER = "bo-act"
_CHILDREN = "PYTHONIOENCODING"

_PLAIN = {
    "±": "+/-", "×": "x", "·": "*", "−": "-", "²": "^2", "³": "^3", "½": "1/2", "µ": "u", "μ": "u",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->", "–": "-", "—": "-", "…": "...", "•": "*",
    "‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ",
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
    **dict.fromkeys("▏▎▍▌│┃║╎┆", "|"),
    **dict.fromkeys("─━═╌┄╴╸╺╼╾", "-"),
}  # fmt: skip
"""Substitutes for characters that an encoding lacks."""


class OutputError(BoActError):
    """Results cannot be printed.

    Attributes:
        unread: the reader has gone, as in ``bo-act … | head -1``.
    """

    def __init__(self, error: OSError) -> None:
        self.unread = isinstance(error, BrokenPipeError)
        super().__init__(
            f"the results cannot be printed to stdout: {reason(error, 'print them elsewhere')}; "
            "everything saved is safe"
        )


@contextmanager
def steady_streams() -> Iterator[None]:
    """Let stdout and stderr take any text; drop what stderr cannot write.

    The first failing write or flush of stdout raises an ``OutputError``.
    """
    codecs.register_error(_HANDLER, _in_plain)
    _fill_gaps()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _steady(sys.stdout, True), _steady(sys.stderr, False)
    # Child processes inherit the encoding.
    previous = os.environ.get(_CHILDREN)
    os.environ[_CHILDREN] = f"{sys.stdout.encoding or 'utf-8'}:backslashreplace"
    try:
        yield
    finally:
        os.environ.pop(_CHILDREN)
        os.environ.update({} if previous is None else {_CHILDREN: previous})
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_gaps() -> None:
    """Reopen closed streams on the null device, so that no file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor


def _steady(stream: TextIO | None, needed: bool) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not hasattr(stream, "buffer"):  # a notebook's, or one in memory
        return stream
    stream.flush()
    raw = _Raw(stream, needed)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),  # type: ignore[type-var]
        encoding=stream.encoding,
        errors=_HANDLER,
        line_buffering=bool(stream.line_buffering) or not needed,
    )


class _Raw(io.RawIOBase):
    """The bytes of a stream; after the first failure, they go nowhere."""

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self._stream = stream
        self._raw = getattr(stream.buffer, "raw", stream.buffer)
        self._needed = needed
        self._lost = False

    def write(self, content: bytes, /) -> int:  # type: ignore[override]
        if not self._lost:
            try:
                written: int = self._raw.write(content)
                return written
            except OSError as error:
                self._lost = True
                if self._needed:
                    raise OutputError(error) from error
        return len(content)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks; for ``codecs.register_error``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte of a file name
        return bytes([code - 0xDC00]), error.start + 1
    if character in _PLAIN:
        plain = _PLAIN[character]
    elif 0x2500 <= code < 0x2580:  # corners and crossings of boxes
        plain = "+"
    elif 0x2580 <= code < 0x25A0:  # blocks
        plain = "#"
    elif 0x2800 <= code < 0x2900:  # braille, used for curves
        plain = " .:"[min(2, (code - 0x2800).bit_count())]
    else:
        plain = character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1
