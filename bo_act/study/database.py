"""A database that is waited for: what a study loses when its server restarts is time.

Every call is made again, after longer and longer pauses, until the server answers. What Optuna
writes may be written twice without harm; where a call may have arrived although its answer was
lost, the second one is read accordingly.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

from bo_act.errors import StorageError

T = TypeVar("T", bound=type)

PATIENCE = 3600.0
"""Seconds that a lost database is waited for."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; they double

_log = logging.getLogger("bo_act")
_inside = threading.local()  # whether this thread is in a call that is waited for


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that the database is not there, for now."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # The last is what follows in a session whose connection has been cut.
    if not isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
        return False
    # A file is there or not; only its lock is worth waiting for.
    return "sqlite3" not in str(cause) or "locked" in str(cause)


def _waited_for(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def patient(self: PatientDatabase, *args: Any, **options: Any) -> Any:
        if getattr(_inside, "call", False):
            return call(self, *args, **options)
        _inside.call = True
        try:
            return self.wait_for(functools.partial(call, self, *args, **options))
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
    """Optuna's storage in a database, each call of which is repeated while the server is away."""

    @classmethod
    def connect(cls, url: str, options: dict[str, Any], *, patience: float) -> PatientDatabase:
        """Open a database; one that is not there is waited for so many seconds.

        Of several processes that make its tables at once all but one fail, and find them then.
        """
        tries = 0
        ends = time.monotonic() + patience
        while True:
            try:
                return cls(url, engine_kwargs=options)
            except Exception as error:
                tries += 1
                raced = "exist" in str(error).lower() or "unique" in str(error).lower()
                if not ((raced and tries < 5) or (is_lost(error) and time.monotonic() < ends)):
                    raise
                time.sleep(0.3 * tries if tries < 10 else 3.0)

    def wait_for(self, call: Callable[[], Any]) -> Any:
        """Call, and call again while the server is away.

        Raises:
            StorageError: it was away for longer than ``PATIENCE``.
        """
        pause, began = _FIRST_PAUSE, 0.0
        while True:
            try:
                answer = call()
            except UpdateFinishedTrialError:
                if not began:
                    raise
                answer = True  # the first attempt had arrived
            except Exception as error:
                if not is_lost(error):
                    raise
                began = began or time.monotonic()
                where = self.engine.url.render_as_string(hide_password=True)
                reason = _reason(error)
                if time.monotonic() - began > PATIENCE:
                    raise StorageError(
                        f"the database {where} has been away for an hour: {reason}; the same "
                        "command goes on once it is back"
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


def database_of(study: optuna.Study) -> PatientDatabase | None:
    """Return the database server that a study is in, None for files and memory."""
    inner = getattr(study._storage, "_backend", None)
    if isinstance(inner, PatientDatabase) and inner.engine.url.get_backend_name() != "sqlite":
        return inner
    return None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    text = str(getattr(cause, "orig", None) or cause).strip()
    return text.splitlines()[0] if text else type(cause).__name__
