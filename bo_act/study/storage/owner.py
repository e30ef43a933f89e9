"""Who works on which trial, so that the trials of a dead process are found again."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
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

GRACE = 120.0
"""Seconds of silence after which a process is taken for dead that states no other time."""


class TrialTaken(Exception):
    """A trial is no longer this process's: it was silent for too long, or somebody freed it."""


@dataclass(frozen=True)
class Owner:
    """A process, and how to tell whether it is alive.

    Attributes:
        host: the machine's name, for people: two containers may have the same, and one that is
            started again may have another.
        pid: process number.
        born: when the process started, in the kernel's ticks; tells apart two processes that
            were given the same number. Empty where the system does not tell.
        grace: seconds of silence after which it may be taken for dead, of a study file's runner,
            whose trials others take over; None of a loop of one's own.
        place: where the number means this process: the boot of the machine and the name space of
            process numbers, or nowhere else. None of versions that did not write it.
    """

    host: str
    pid: int
    born: str
    grace: float | None = field(default=None, compare=False)
    place: str | None = None

    @classmethod
    def me(cls, grace: float | None = None) -> Owner:
        """Return this process."""
        return cls(_host(), os.getpid(), _born(os.getpid()), grace, _place())

    @classmethod
    def read(cls, attribute: Any) -> Owner | None:
        """Return the owner that a trial's attribute holds, or None."""
        if not isinstance(attribute, dict):
            return None
        try:
            grace, place = attribute.get("grace"), attribute.get("place")
            return cls(
                str(attribute["host"]),
                int(attribute["pid"]),
                str(attribute["born"]),
                None if grace is None else float(grace),
                None if place is None else str(place),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def as_attribute(self) -> dict[str, Any]:
        """Return what is written to a trial."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"

    @property
    def patience(self) -> float | None:
        """Seconds of silence after which it is taken for dead; None where it would never speak."""
        return GRACE if self.grace is None and self.place is not None else self.grace

    @property
    def is_here(self) -> bool:
        """Whether the process number, looked up here, means the process.

        Equal host names prove nothing; they count where an earlier version wrote no more.
        """
        if self.place is None:
            return self.host == _host()
        return self.place == _place()

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended."""
        return self._runs() is False

    def is_alive(self) -> bool:
        """Tell whether the process is known to run, be it that it is stopped."""
        return self._runs() is True

    def _runs(self) -> bool | None:
        """Tell whether the process runs; None where only its heartbeats can tell."""
        if not self.is_here or os.name != "posix":
            return None
        hidden = False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user, who may hide when it was born
            hidden = True
        born = _born(self.pid)
        if not self.born or (hidden and not born):
            return None
        return born == self.born


@cache
def _host() -> str:
    return socket.gethostname()


def _place() -> str:
    """Return the boot of this machine and the name space of process numbers."""
    try:
        # A /proc of another name space would look numbers up in that one.
        if os.readlink("/proc/self") == str(os.getpid()):
            return f"{_boot()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        pass
    boot = "" if Path("/proc/self").exists() else _boot_without_proc()
    return boot or _nowhere_else(os.getpid())


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@cache
def _boot_without_proc() -> str:
    asked = ["sysctl", "-n", "kern.bootsessionuuid"]  # macOS
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _nowhere_else(_: int) -> str:
    """Return a place of one process alone: its number means nothing to any other."""
    return f"process {uuid.uuid4()}"


def _born(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # The second field is the command in brackets and may itself hold spaces and brackets.
    fields = text.rsplit(")", 1)[1].split()
    state, started = fields[0], fields[19]
    return "" if state == "Z" else started
