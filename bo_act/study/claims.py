"""Who is working on which trial, so that the trials of a dead process are found again."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

OWNER = "bo_act:owner"
"""System attribute of a trial: the process that runs it, None once that has given it back."""

DEATHS = "bo_act:deaths"
"""System attribute of a trial: how many processes have died over it."""

CLAIM = "bo_act:claim"
"""System attribute of a trial: the slots of the function it was given."""


@dataclass(frozen=True)
class Owner:
    """A process on a machine.

    Attributes:
        host: the machine's name.
        pid: process number.
        born: when the process started, in the kernel's ticks; tells apart two processes that
            were given the same number. Empty where the system does not tell.
        grace: seconds after which it may be taken for dead where it was silent for so long; None
            where it does not say that it is alive.
    """

    host: str
    pid: int
    born: str
    grace: float | None = field(default=None, compare=False)

    @classmethod
    def me(cls, grace: float | None = None) -> Owner:
        """Return this process."""
        return cls(_host(), os.getpid(), _born(os.getpid()), grace)

    @classmethod
    def read(cls, attribute: Any) -> Owner | None:
        """Return the owner that a trial's attribute holds, or None."""
        if not isinstance(attribute, dict):
            return None
        try:
            grace = attribute.get("grace")
            return cls(
                str(attribute["host"]),
                int(attribute["pid"]),
                str(attribute["born"]),
                None if grace is None else float(grace),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def as_attribute(self) -> dict[str, Any]:
        """Return what is written to a trial."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether the process is one of this machine."""
        return self.host == _host()

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended.

        A process of another machine is never known to have ended; see ``heartbeat``.
        """
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _born(self.pid) != self.born


@cache
def _host() -> str:
    return socket.gethostname()


def _born(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # The second field is the command in brackets and may itself hold spaces and brackets.
    fields = text.rsplit(")", 1)[1].split()
    state, started = fields[0], fields[19]
    return "" if state == "Z" else started
