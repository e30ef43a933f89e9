"""Locks: what only one of a study's workers may do at a time.

Optuna cannot claim a trial atomically. Workers create new trials, and take over those of dead
processes, under the study's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from filelock import FileLock
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bo_act.dependencies.optuna_internals import backend_of
from bo_act.study.storage.backends.database import PatientDatabase
from bo_act.study.storage.backends.errors import one_line

_here = threading.Lock()  # for studies in memory, and in databases without advisory locks


@contextmanager
def study_lock(study: optuna.Study) -> Iterator[None]:
    """Lock a study against its other workers on all machines.

    PostgreSQL has advisory locks; a file gets a lock file beside it. Both end with their process.
    """
    inner = backend_of(study)
    file = getattr(inner, "file", None) or getattr(inner, "_file_path", None)
    if file is not None:
        with _beside(Path(file)):
            yield
    elif not isinstance(inner, PatientDatabase):
        with _here:
            yield
    elif inner.engine.url.get_backend_name() == "postgresql":
        connection = inner.wait_for(lambda: _locked(inner, study.study_name))
        try:
            yield
        finally:
            # If the server restarted meanwhile, lock and connection are gone.
            with suppress(DBAPIError):
                connection.close()
    else:
        with _here:
            yield


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    lock = FileLock(f"{file.resolve()}.turn")
    with one_line(Path(lock.lock_file), "written"):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _locked(database: PatientDatabase, name: str):  # type: ignore[no-untyped-def]
    connection = database.engine.connect()
    try:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name}
        )
    except DBAPIError:
        connection.close()
        raise
    return connection
