"""Storage of heartbeats: in a database server, or beside a file."""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import func, select

from bo_act.dependencies.optuna_internals import backend_of, models, study_id
from bo_act.study.storage.backends.database import PatientDatabase


class Beats(ABC):
    """The heartbeats of a storage.

    Attributes:
        name: of the storage, the same for all its studies.
    """

    name: str

    @abstractmethod
    def beat(self, trial_id: int) -> None:
        """Record a heartbeat of a trial's process."""

    @abstractmethod
    def end(self, trial_id: int) -> None:
        """Remove the heartbeat of an ended trial."""

    @abstractmethod
    def read(self, *, patient: bool = False) -> dict[int, tuple[Hashable, float]]:
        """Read the last heartbeats.

        Args:
            patient: wait for a database that is away.

        Returns:
            Id of a trial → (mark that changes with each heartbeat, age in seconds by the storage's
            clock).
        """


class _OfFile(Beats):
    """Heartbeats beside a file: modification times of empty files, one per running trial.

    The machine with the disk sets the times, by its own clock. Empty files need no space, so that
    no process looks dead because the disk is full.
    """

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._folder, self._start = file.parent, f"{file.name}.beat-"

    def beat(self, trial_id: int) -> None:
        path = self._path(trial_id)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch()
        except PermissionError:  # of another user, whose trial was taken over
            path.unlink()
            path.touch()

    def end(self, trial_id: int) -> None:
        with suppress(OSError):
            self._path(trial_id).unlink()

    def read(self, *, patient: bool = False) -> dict[int, tuple[Hashable, float]]:  # noqa: ARG002
        times = {}
        for path in self._folder.glob(f"{_escaped(self._start)}*"):
            number = path.name.removeprefix(self._start)
            with suppress(OSError):
                if number.isdecimal():
                    times[int(number)] = _time(path)
        now = self._now() if times else 0
        return {trial: (at, max(0.0, (now - at) / 1e9)) for trial, at in times.items()}

    def _path(self, trial_id: int) -> Path:
        return self._folder / f"{self._start}{trial_id}"

    def _now(self) -> int:
        """Return the time in nanoseconds, by the clock of the files' times."""
        try:
            with tempfile.TemporaryFile(dir=self._folder) as probe:
                return os.fstat(probe.fileno()).st_mtime_ns
        except OSError:  # a read-only folder: our own clock must do
            return time.time_ns()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _time(path: Path) -> int:
    """Return when a file was last touched, in nanoseconds."""
    # Opened, since a network file system may answer from its cache otherwise.
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


class _OfDatabase(Beats):
    """Heartbeats in a database server, in Optuna's own table."""

    def __init__(self, database: RDBStorage, study_id: int) -> None:
        self.name = f"{database.engine.url.render_as_string(hide_password=True)} {study_id}"
        self._database, self._study_id = database, study_id

    def beat(self, trial_id: int) -> None:
        # Not the method of PatientDatabase, which would wait for a server that is away.
        RDBStorage.record_heartbeat(self._database, trial_id)

    def end(self, trial_id: int) -> None:
        pass  # ``read`` skips ended trials

    def read(self, *, patient: bool = False) -> dict[int, tuple[Hashable, float]]:
        if patient and isinstance(self._database, PatientDatabase):
            beats: dict[int, tuple[Hashable, float]] = self._database.wait_for(self.read)
            return beats
        query = (
            select(
                models.TrialHeartbeatModel.trial_id,
                models.TrialHeartbeatModel.heartbeat,
                func.now(),
            )
            .join(models.TrialModel)
            .where(models.TrialModel.study_id == self._study_id)
            .where(models.TrialModel.state == TrialState.RUNNING)
        )
        with self._database.engine.connect() as connection:
            return {
                trial: (heard, max(0.0, _seconds_between(heard, now)))
                for trial, heard, now in connection.execute(query)
            }


def _seconds_between(heard: datetime, now: datetime) -> float:
    return (now.replace(tzinfo=None) - heard.replace(tzinfo=None)).total_seconds()


def beats_of(study: optuna.Study) -> Beats | None:
    """Return the heartbeats of a study's storage; None if it has none, as in memory."""
    inner = backend_of(study)
    if isinstance(inner, RDBStorage) and inner.engine.url.get_backend_name() != "sqlite":
        return _OfDatabase(inner, study_id(study))
    file = _file_of(inner)
    return None if file is None else _OfFile(file)


def _file_of(inner: object) -> Path | None:
    """Return the file of an SQLite database or of a journal."""
    name = getattr(inner, "file", None) or getattr(inner, "_file_path", None)
    if isinstance(inner, RDBStorage) and not isinstance(inner, PatientDatabase):
        name = inner.engine.url.database
        if name and name.startswith("file:"):  # SQLite's own URI
            name = unquote(urlsplit(name).path)
    return None if name in (None, "", ":memory:") else Path(name).resolve()
