"""Taking turns: what only one of a study's workers may do at a time.

Optuna has no way to say "this trial is mine, unless somebody else has it". A new trial is created,
and one of a dead process taken over, in a turn.
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

from bo_act.optuna_internals import backend_of
from bo_act.study.storage.database import PatientDatabase
from bo_act.study.storage.errors import one_line

_here = threading.Lock()  # of studies in memory, and in databases without locks of their own


@contextmanager
def study_lock(study: optuna.Study) -> Iterator[None]:
    """Keep all other workers of a study out, on whichever machine they are.

    PostgreSQL has advisory locks; files get a lock file beside them. Both end with their process.
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
            # A server that restarted meanwhile has forgotten the lock with the connection.
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
