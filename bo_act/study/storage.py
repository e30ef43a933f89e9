"""Opening storages and studies, with errors that help."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from bo_act.errors import StorageError
from bo_act.io import expanded
from bo_act.specs import StudySpec
from bo_act.study.database import PatientDatabase
from bo_act.study.pruners import make_pruner
from bo_act.study.trials import own_trials

SPEC = "bo_act:spec"
"""User attribute of a study: the resolved study file."""

CONTENT = "bo_act:content"
"""User attribute of a study: hashes of what the study file names."""

_LOCK_WAIT = 60  # seconds that a writer waits for another one to finish with a SQLite file

_STALE_LOCK = 10  # seconds after which a journal's lock is taken from a writer that is silent

# What may differ between two runs of one study: none of it changes what is searched or measured.
_FREE: dict[str, Any] = {
    "trials": True,
    "storage": True,
    "description": True,
    "confirm": True,
    "stop": True,
    "grace": True,
    "max_retries": True,
    "data": {"root", "download", "workers"},
    "callbacks": True,
    "warm_start": {"as_trials"},
    "training": {"device", "threads"},
}


def location(spec: StudySpec) -> str:
    """Return the storage of a study: as its file says, or ``runs/<name>/study.db``."""
    return spec.storage or f"runs/{spec.name}/study.db"


def open_storage(where: str, *, create: bool = True, patience: float = 0.0) -> BaseStorage:
    """Open a storage.

    Args:
        where: an Optuna storage URL, or a path: ending in ``.log`` a journal file, else SQLite.
        create: make a file (and its folders) that does not exist.
        patience: seconds to wait for a database server that is not there yet. One that is lost
            later is waited for in any case.

    Raises:
        StorageError: it cannot be reached, with the reason on one line.
    """
    if "://" not in where:
        return _open_file(expanded(where), create=create)
    if where.startswith("postgresql://") and importlib.util.find_spec("psycopg2") is None:
        where = where.replace("postgresql://", "postgresql+psycopg://", 1)
    return _open_database(where, patience=patience)


def _open_file(path: Path, *, create: bool) -> BaseStorage:
    if not create and not path.is_file():
        raise StorageError(f"there is no study storage at {path}; `bo-act run` makes it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".log":
            # Absolute: Optuna's lock is a link to the file, and one that leads nowhere, as a
            # relative one does, is waited for without end when its owner was killed.
            path = path.resolve()
            lock = JournalFileSymlinkLock(str(path), grace_period=_STALE_LOCK)
            _mend_journal(path, lock)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (OSError, ValueError) as error:
        raise StorageError(f"the study storage {path} cannot be opened: {error}") from error
    return _open_database(f"sqlite:///{path}")


def _mend_journal(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off a last line that was never finished.

    A process that died while it wrote leaves half a line, whose write nobody relied on; the next
    writer would add to it and make the whole journal unreadable.
    """
    if not path.is_file():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("rb+") as file:
                file.truncate(whole)
    finally:
        lock.release()


def _open_database(url: str, *, patience: float = 0.0) -> BaseStorage:
    # Connections that a restarted server has forgotten are found out before they are used.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _LOCK_WAIT}}
    try:
        return optuna.storages.get_storage(PatientDatabase.connect(url, options, patience=patience))
    except (SQLAlchemyError, ImportError, OSError, ValueError, RuntimeError) as error:
        hint = ""
        if isinstance(error, ImportError):
            hint = "; for PostgreSQL install the extra: pip install 'bo-act[postgres]'"
        raise StorageError(
            f"the storage {_without_password(url)} cannot be reached: {_first_line(error)}{hint}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    scheme, _, login = head.partition("://")
    return f"{scheme}://{login.partition(':')[0]}@{tail}" if at else url


def open_study(
    spec: StudySpec,
    sampler: BaseSampler,
    *,
    content: dict[str, str] | None = None,
    patience: float = 0.0,
) -> optuna.Study:
    """Create the study of a file, or open it where it exists.

    Args:
        spec: the study file.
        sampler: for the trials to come.
        content: hashes of what the file names, by what to call it.
        patience: see ``open_storage``.

    Raises:
        StorageError: the storage cannot be reached, or holds a study of this name that was made
            with other settings.
    """
    storage = open_storage(location(spec), patience=patience)
    try:
        study = optuna.create_study(
            study_name=spec.name,
            storage=storage,
            sampler=sampler,
            pruner=make_pruner(spec.pruner, epochs=spec.training.epochs),
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(
            f"the storage {_without_password(location(spec))} cannot be used: {_first_line(error)}"
        ) from error
    if any(trial.state.is_finished() for trial in own_trials(study)):
        _check_same(spec, study.user_attrs.get(SPEC, {}))
        _check_content(spec, content or {}, study.user_attrs.get(CONTENT, {}))
    else:
        study.set_user_attr(SPEC, json.loads(spec.model_dump_json()))
        study.set_user_attr(CONTENT, content or {})
    return study


def load_study(spec: StudySpec) -> optuna.Study:
    """Open a study that exists, to read it.

    Raises:
        StorageError: the storage cannot be reached or has no such study.
    """
    where = location(spec)
    storage = open_storage(where, create=False)
    try:
        return optuna.load_study(study_name=spec.name, storage=storage)
    except KeyError as error:
        raise StorageError(
            f"the storage {_without_password(where)} has no study {spec.name!r}; "
            "`bo-act run` makes it"
        ) from error


def _check_same(spec: StudySpec, made_with: dict[str, Any]) -> None:
    asked = _flat(json.loads(spec.model_dump_json(exclude=_FREE)))
    # A key that is missing before was added by a later version and had no effect then.
    before = _flat(made_with)
    changed = [key for key in asked if key in before and before[key] != asked[key]]
    if changed:
        shown = ", ".join(f"{key} was {before[key]!r}, is {asked[key]!r}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise StorageError(
            f"the study {spec.name!r} in {_without_password(location(spec))} was made with other "
            f"settings: {shown}{more}; give the changed study another name "
            f"(--set name=...), or another storage"
        )


def _check_content(spec: StudySpec, content: dict[str, str], before: dict[str, str]) -> None:
    changed = [name for name in content if before.get(name, content[name]) != content[name]]
    if changed:
        raise StorageError(
            f"{' and '.join(changed)} changed since the study {spec.name!r} began, so its trials "
            "do not compare with new ones; undo the change, or give the changed study another "
            "name (--set name=...)"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
