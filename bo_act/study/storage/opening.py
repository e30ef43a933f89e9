"""Opening storages and studies, with errors that help."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from pydantic import ValidationError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from bo_act.dependencies.extras import require_extra
from bo_act.errors import BoActError, StorageError
from bo_act.specs import StudySpec
from bo_act.study.storage.backends.database import PatientDatabase, first_line
from bo_act.study.storage.backends.errors import one_line, unusable
from bo_act.study.storage.backends.journal_file import open_journal
from bo_act.study.storage.metric import SPEC
from bo_act.study.storage.pruners import make_pruner
from bo_act.study.storage.recorded_settings import hide_old_secrets, note_settings
from bo_act.urls import shown_url, without_secrets_of

_LOCK_WAIT = 60  # seconds that a writer waits for another one to finish with a SQLite file

_STALE_LOCK = 10  # seconds after which a silent writer loses a journal's lock


def location(spec: StudySpec) -> str:
    """Return the storage of a study to show it, without a password.

    It is ``storage`` of the study file, or ``runs/<name>/study.db``.
    """
    return shown_url(where_of(spec))


def where_of(spec: StudySpec) -> str:
    """Return the storage of a study to open it, with any password."""
    return spec.storage or f"runs/{spec.name}/study.db"


def file_of(where: str) -> Path | None:
    """Return the file of a storage; None for a URL.

    Raises:
        StorageError: the path begins with an unknown user (``~name``).
    """
    if "://" in where:
        return None
    try:
        return Path(where).expanduser()
    except RuntimeError as error:
        raise StorageError(
            f"the study storage {where} cannot be opened: {error}; write the folder instead of ~"
        ) from error


def open_storage(where: str, *, create: bool = True, patience: float = 0.0) -> BaseStorage:
    """Open a storage.

    Args:
        where: an Optuna storage URL, or a path: a journal file if it ends in ``.log``, else SQLite.
        create: create a missing file and its folders.
        patience: seconds to wait for a database server to come up. If a server goes away later,
            bo-act waits in any case.

    Raises:
        StorageError: it cannot be reached; the message gives the reason in one line.
    """
    path = file_of(where)
    if path is not None:
        return _open_file(path, create=create, journal=path.suffix == ".log")
    url = _parsed(where)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite_url(url, create=create)
    if url.drivername in ("postgres", "postgresql"):
        psycopg2 = importlib.util.find_spec("psycopg2") is not None
        url = url.set(drivername="postgresql" if psycopg2 else "postgresql+psycopg")
    # Pre-ping: a connection that a restarted server has forgotten is replaced before use.
    return _open_database(url, {"pool_pre_ping": True}, where, patience=patience)


def _parsed(where: str) -> URL:
    try:
        url = make_url(where)
    except (SQLAlchemyError, ValueError):
        url = None
    if url is None or "@" in (url.host or ""):
        raise StorageError(
            f"the study storage {shown_url(where)} cannot be reached: expected a URL as "
            "postgresql://USER@SERVER/NAME; a password belongs in ~/.pgpass or PGPASSWORD, and "
            "in a URL, write its @ : / ? # and % as %40 %3A %2F %3F %23 and %25"
        )
    return url


def _open_file(path: Path, *, create: bool, journal: bool) -> BaseStorage:
    with one_line(path, "opened"):
        exists = path.exists()
    if not create and not exists:
        raise StorageError(f"there is no study storage at {path}; `bo-act run` creates it")
    if journal:
        return open_journal(path, stale=_STALE_LOCK)
    with one_line(path, "opened"):
        if not exists:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if path.is_dir():
            raise StorageError(f"the study storage {path} is a folder; give the path of a file")
    # SQLite's own URI allows any character in the path; mode "rw" does not recreate a deleted file.
    uri = {"uri": "true", "mode": "rw"}
    url = URL.create("sqlite", database=path.absolute().as_uri(), query=uri)
    return _open_database(url, _ENGINE_OF_FILES, str(path), skip_table_creation=not create)


def _open_sqlite_url(url: URL, *, create: bool) -> BaseStorage:
    path = Path(url.database or "")
    if url.query or url.host or url.username or url.database in (None, "", ":memory:"):
        return _open_database(url, _ENGINE_OF_FILES, url.render_as_string())
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StorageError(
            f"the study storage {url} cannot be reached: there is no folder {folder}"
        )
    return _open_file(path, create=create, journal=False)


_ENGINE_OF_FILES: dict[str, Any] = {"connect_args": {"timeout": _LOCK_WAIT}}


def _open_database(
    url: URL, engine: dict[str, Any], given: str, *, patience: float = 0.0, **options: Any
) -> BaseStorage:
    text = url.render_as_string(hide_password=False)
    try:
        database = PatientDatabase.connect(text, dict(engine), patience=patience, **options)
        database.given = given
        return optuna.storages.get_storage(database)
    except BoActError:
        raise
    except Exception as error:  # from SQLAlchemy, a driver, Alembic, or a file's content
        if isinstance(error, ImportError) and url.get_backend_name() == "postgresql":
            require_extra("postgres", f"the study storage {shown_url(given)}")
        reason = without_secrets_of(given, first_line(error))
        hidden = None if "***" in reason else error
        raise unusable(shown_url(given), reason, "reached") from hidden


def open_study(
    spec: StudySpec,
    sampler: BaseSampler,
    *,
    content: dict[str, str] | None = None,
    patience: float = 0.0,
) -> optuna.Study:
    """Create the study of a file, or open an existing one.

    Args:
        spec: the study file.
        sampler: for new trials.
        content: hashes of the files it names, by their names in messages.
        patience: see ``open_storage``.

    Raises:
        StorageError: the storage cannot be reached, or has a study of this name with other
            settings.
    """
    study = optuna.create_study(
        study_name=spec.name,
        storage=open_storage(where_of(spec), patience=patience),
        sampler=sampler,
        pruner=make_pruner(spec.pruner, epochs=spec.training.epochs),
        direction=spec.measured.direction,
        load_if_exists=True,
    )
    hide_old_secrets(study)
    note_settings(study, spec, content or {}, where=location(spec))
    return study


def load_named(where: str, name: str) -> tuple[optuna.Study, StudySpec | None]:
    """Open a study of any program, to read it.

    Args:
        where: its storage, as for ``open_storage``.
        name: of the study there.

    Returns:
        The study, and its study file; None if a program made it.

    Raises:
        StorageError: the storage cannot be reached, or has no such study.
    """
    storage = open_storage(where, create=False)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = sorted(optuna.get_all_study_names(storage))
        others = f"it has {', '.join(map(repr, names[:5]))}" if names else "it has none"
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise StorageError(
            f"the storage {shown_url(where)} has no study {name!r}; {others}{more}"
        ) from error
    try:
        spec = StudySpec.model_validate(study.user_attrs.get(SPEC))
    except ValidationError:  # made by a program, or by another version
        return study, None
    return study, spec.model_copy(update={"storage": where})


def load_study(spec: StudySpec) -> optuna.Study:
    """Open an existing study to read it.

    Raises:
        StorageError: the storage cannot be reached or has no such study.
    """
    storage = open_storage(where_of(spec), create=False)
    try:
        study = optuna.load_study(study_name=spec.name, storage=storage)
    except KeyError as error:
        raise StorageError(
            f"the storage {location(spec)} has no study {spec.name!r}; `bo-act run` creates it"
        ) from error
    with suppress(StorageError):  # you may not have the right to write
        hide_old_secrets(study)
    return study
