"""A database that is waited for: what a study loses when its server restarts is time.

Every call is made again, after longer and longer pauses, until the server answers. What Optuna
writes may be written twice without harm; where a call may have arrived although its answer was
lost, the second one is read accordingly. What waiting does not help against, a full disk or a
damaged file, is an error of one line.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from bo_act.errors import StorageError
from bo_act.optuna_internals import RDB_LOGGER, BaseHeartbeat, backend_of
from bo_act.study.storage.errors import damaged, one_line, replaced, unusable
from bo_act.urls import shown_url, without_secrets_of

T = TypeVar("T", bound=type)

PATIENCE = 3600.0
"""Seconds that a lost database is waited for."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; they double

# What a server says that will not say anything else later.
_IN_VAIN = ("authentication failed", "no password supplied", "no pg_hba.conf entry")

# What Optuna says on reading of something that is not there.
_NOT_THERE = ("Record does not exist", "No trial")

_log = logging.getLogger("bo_act")
_inside = threading.local()  # whether this thread is in a call that is waited for

# Optuna reads a damaged file a second time, in smaller parts, and says so in many lines.
logging.getLogger(RDB_LOGGER).addFilter(
    lambda record: "Falling back to a slower alternative" not in record.getMessage()
)


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that the database is not there, for now."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # The last is what follows in a session whose connection has been cut.
    if not isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
        return False
    # A file is there or not; only its lock is worth waiting for.
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
    """Optuna's storage in a database, each call of which is repeated while the server is away.

    Attributes:
        given: the URL or path that a person gave.
        file: of SQLite; None for a server, and in memory.
    """

    given: str = ""
    file: Path | None = None
    _inode: int = 0

    @classmethod
    def connect(
        cls, url: str, engine: dict[str, Any], *, patience: float = 0.0, **options: Any
    ) -> PatientDatabase:
        """Open a database; one that is not there is waited for so many seconds.

        Of several processes that make its tables at once all but one fail, and find them then.

        Args:
            url: of the database.
            engine: options of its engine.
            patience: seconds to wait for it.
            options: of Optuna's storage.
        """
        tries = 0
        ends = time.monotonic() + patience
        while True:
            try:
                made = cls(url, engine_kwargs=engine, **options)
                made._find_file()
                return made
            except Exception as error:
                tries += 1
                raced = "exist" in str(error).lower() or "unique" in str(error).lower()
                comes = is_lost(error) and not any(part in str(error) for part in _IN_VAIN)
                if not ((raced and tries < 5) or (comes and time.monotonic() < ends)):
                    raise
                time.sleep(0.3 * tries if tries < 10 else 3.0)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # Optuna's own would take the braces of a path or password for its own

    def _find_file(self) -> None:
        if self.engine.url.get_backend_name() == "sqlite":
            with self.engine.connect() as connection:
                _, _, path = connection.execute(text("PRAGMA database_list")).first() or ("",) * 3
            if path:
                self.file = Path(path)
                self._inode = self.file.stat().st_ino

    def _check_file(self) -> None:
        """Miss a file that was deleted: SQLite would go on writing to what nobody finds again."""
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
        """Call, and call again while the server is away.

        Raises:
            StorageError: it was away for longer than ``PATIENCE``, or cannot be used.
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
                    "the database %s is away (%s); next attempt in %.1f s", where, reason, pause
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


def database_of(study: optuna.Study) -> PatientDatabase | None:
    """Return the database server that a study is in, None for files and memory."""
    inner = backend_of(study)
    if isinstance(inner, PatientDatabase) and inner.engine.url.get_backend_name() != "sqlite":
        return inner
    return None


def first_line(error: BaseException) -> str:
    """Return what a database's error says, without the statement that it was about."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    said = str(getattr(cause, "orig", None) or cause).strip()
    return said.splitlines()[0] if said else type(cause).__name__
