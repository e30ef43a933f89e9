"""Owners of trials, so that the trials of a dead process can be taken over."""

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
"""System attribute of a trial: the process that runs it, None once given back."""

DEATHS = "bo_act:deaths"
"""System attribute of a trial: how many processes have died while running it."""

CLAIM = "bo_act:claim"
"""System attribute of a trial: the slots of its function."""

GRACE = 120.0
"""Default grace period: seconds of silence after which a process is considered dead."""


class TrialTaken(Exception):
    """This process has lost a trial: it was silent for too long, or somebody released the trial."""


@dataclass(frozen=True)
class Owner:
    """A process, with the means to tell whether it is alive.

    Attributes:
        host: the machine's name, for people: two containers may share it, and a restarted one may
            have another.
        pid: process number.
        born: start time of the process in kernel ticks, since process numbers are reused; empty if
            the system does not report it.
        grace: grace period in seconds of a study file's worker, whose trials others take over;
            None for your own loop.
        place: where the process number is valid: boot id and process namespace, or an id of this
            process alone. None from versions that did not write it.
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
        """Return the owner from a trial's attribute, or None."""
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
        """Return the value of the trial's attribute."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid})"

    @property
    def patience(self) -> float | None:
        """Seconds of silence after which it is considered dead; None if it sends no heartbeats."""
        return GRACE if self.grace is None and self.place is not None else self.grace

    @property
    def is_here(self) -> bool:
        """Whether the process number is valid in this process's namespace.

        Host names count only for earlier versions, which recorded nothing else.
        """
        if self.place is None:
            return self.host == _host()
        return self.place == _place()

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended."""
        return self._runs() is False

    def is_alive(self) -> bool:
        """Tell whether the process is known to run; it may be suspended."""
        return self._runs() is True

    def _runs(self) -> bool | None:
        """Tell whether the process runs; None if only its heartbeats can tell."""
        if not self.is_here or os.name != "posix":
            return None
        hidden = False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process, whose start time may be hidden
            hidden = True
        born = _born(self.pid)
        if not self.born or (hidden and not born):
            return None
        return born == self.born


@cache
def _host() -> str:
    return socket.gethostname()


def _place() -> str:
    """Return the boot id of this machine and the process namespace."""
    try:
        # A /proc of another namespace would look process numbers up there.
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
    command = ["sysctl", "-n", "kern.bootsessionuuid"]  # macOS
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _nowhere_else(_: int) -> str:
    """Return a place of this process alone, where no other can look up its number."""
    return f"process {uuid.uuid4()}"


def _born(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # The second field is the command in brackets, which may contain spaces and brackets.
    fields = text.rsplit(")", 1)[1].split()
    state, started = fields[0], fields[19]
    return "" if state == "Z" else started
