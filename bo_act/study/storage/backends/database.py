"""A database that bo-act waits for: when its server restarts, a study loses only time.

Every call is repeated, after longer and longer pauses, until the server answers. Optuna's writes
may safely run twice; if the first call arrived although its answer was lost, the repeated one
counts as a success. If waiting is no help (a full disk, a damaged file), the error takes one line.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from bo_act.dependencies.optuna_internals import RDB_LOGGER, BaseHeartbeat
from bo_act.errors import StorageError
from bo_act.study.storage.backends.errors import damaged, one_line, replaced, unusable
from bo_act.urls import shown_url, without_secrets_of

T = TypeVar("T", bound=type)

PATIENCE = 3600.0
"""Seconds to wait for a lost database."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; they double

# Errors of a server that waiting does not help against.
_IN_VAIN = ("authentication failed", "no password supplied", "no pg_hba.conf entry")

# Optuna's messages for missing records.
_NOT_THERE = ("Record does not exist", "No trial")

_log = logging.getLogger("bo_act")
_inside = threading.local()  # whether this thread is in a repeated call

# Optuna reads a damaged file a second time, in smaller parts, and logs that in many lines.
logging.getLogger(RDB_LOGGER).addFilter(
    lambda record: "Falling back to a slower alternative" not in record.getMessage()
)


def is_lost(error: BaseException) -> bool:
    """Tell whether an error means that the database is away for now."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # PendingRollbackError follows in a session whose connection was cut.
    if not isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
        return False
    # Of a file, only its lock is worth waiting for.
    return "sqlite3" not in str(cause) or "locked" in str(cause)


def _waited_for(call: Callable[..., Any]) -> Callable[..., Any]:
    reads = call.__name__.lstrip("_").startswith("get_")

    @functools.wraps(call)
    def patient(self: PatientDatabase, *args: Any, **options: Any) -> Any:
        if getattr(_inside, "call", False):
            return call(self, *args, **options)
        _inside.call = True
        try:
            return self.wait_for(functools.partial(call, self, *args, **options))
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            if self.file is None or not reads or str(error).strip("'\"").startswith(_NOT_THERE):
                raise
            raise damaged(str(self.file), first_line(error)) from error
        finally:
            _inside.call = False

    return patient


def _all_calls_waited_for(storage: T) -> T:
    interface = {*vars(BaseStorage), *vars(BaseHeartbeat), "_get_trials", "_create_new_trial"}
    private = {"_get_trials", "_create_new_trial", "_set_trial_param", "_get_best_trial_id"}
    for name in interface | private:
        call = getattr(RDBStorage, name, None)
        if callable(call) and (not name.startswith("_") or name in private):
            setattr(storage, name, _waited_for(call))
    return storage


@_all_calls_waited_for
class PatientDatabase(RDBStorage):
    """Optuna's database storage, which repeats each call while the server is away.

    Attributes:
        given: the URL or path as you gave it.
        file: of SQLite; None for a server, and in memory.
    """

    given: str = ""
    file: Path | None = None
    _inode: int = 0

    @classmethod
    def connect(
        cls, url: str, engine: dict[str, Any], *, patience: float = 0.0, **options: Any
    ) -> PatientDatabase:
        """Open a database, waiting for its server.

        If several processes create its tables at once, all but one fail, and succeed when they try
        again.

        Args:
            url: of the database.
            engine: options of SQLAlchemy's engine.
            patience: seconds to wait for the server.
            options: of Optuna's storage.
        """
        tries = 0
        ends = time.monotonic() + patience
        while True:
            try:
                database = cls(url, engine_kwargs=engine, **options)
                database._find_file()
                return database
            except Exception as error:
                tries += 1
                raced = "exist" in str(error).lower() or "unique" in str(error).lower()
                comes = is_lost(error) and not any(part in str(error) for part in _IN_VAIN)
                if not ((raced and tries < 5) or (comes and time.monotonic() < ends)):
                    raise
                time.sleep(0.3 * tries if tries < 10 else 3.0)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # Optuna would treat braces in a path or password as a template

    def _find_file(self) -> None:
        if self.engine.url.get_backend_name() == "sqlite":
            with self.engine.connect() as connection:
                _, _, path = connection.execute(text("PRAGMA database_list")).first() or ("",) * 3
            if path:
                self.file = Path(path)
                self._inode = self.file.stat().st_ino

    def _check_file(self) -> None:
        """Raise if the file was deleted or replaced: SQLite would keep writing to the old one."""
        if self.file is None:
            return
        try:
            inode = self.file.stat().st_ino
        except OSError:
            with one_line(self.file, "used"):
                raise
        if inode != self._inode:
            raise replaced(self.file)

    def wait_for(self, call: Callable[[], Any]) -> Any:
        """Call, and repeat the call while the server is away.

        Raises:
            StorageError: the server was away for longer than ``PATIENCE``, or cannot be used.
        """
        pause, began = _FIRST_PAUSE, 0.0
        while True:
            try:
                self._check_file()
                answer = call()
            except UpdateFinishedTrialError:
                if not began:
                    raise
                answer = True  # the first attempt had arrived
            except Exception as error:
                where, reason = self._where, without_secrets_of(self.given, first_line(error))
                if not is_lost(error):
                    if not isinstance(error, SQLAlchemyError | StorageInternalError):
                        raise
                    raise unusable(where, reason) from error
                began = began or time.monotonic()
                if time.monotonic() - began > PATIENCE:
                    raise StorageError(
                        f"the database {where} has been unreachable for an hour: {reason}; the "
                        "same command resumes when it is back"
                    ) from error
                _log.warning(
                    "the database %s is unreachable (%s); next attempt in %.1f s",
                    where,
                    reason,
                    pause,
                )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if began:
                _log.warning("the database is back after %.1f s", time.monotonic() - began)
            return answer

    @property
    def _where(self) -> str:
        return str(self.file) if self.file else shown_url(self.given)


def first_line(error: BaseException) -> str:
    """Return the message of a database error, without the SQL statement."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    message = str(getattr(cause, "orig", None) or cause).strip()
    return message.splitlines()[0] if message else type(cause).__name__
