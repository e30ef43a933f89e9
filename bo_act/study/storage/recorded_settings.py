"""The settings of a study and hashes of the files it names, recorded in the study.

Trials with different settings do not compare. Until a trial has a value the settings may change;
from then on bo-act checks them whenever a study is opened, and before each trial.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.dependencies.optuna_internals import id_of, storage_of
from bo_act.errors import SpecError, StorageError
from bo_act.metrics import Metric
from bo_act.specs import DataSpec, MetricSpec, ModelSpec, StudySpec
from bo_act.study.storage.backends.locks import study_lock
from bo_act.study.storage.metric import METRIC, SPEC, direction_of
from bo_act.study.storage.owner import OWNER
from bo_act.study.storage.study_view import StudyView
from bo_act.tasks.task import SPACE
from bo_act.urls import shown_url

CONTENT = "bo_act:content"
"""User attribute of a study: hashes of the files that the study file names."""

# Keys that may differ between two runs of one study: they change neither space nor values.
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
    "metric": True,  # compared as a whole
    "training": {"device", "threads"},
}

# Tables whose keys are the user's: one that is missing has another meaning than a default.
_WHOLE = ("model.options", "parameters")


def note_settings(
    study: optuna.Study, spec: StudySpec, content: Mapping[str, str], *, where: str
) -> None:
    """Record a study's settings; once it has values, check that they are the same.

    Args:
        study: of the file.
        spec: the study file.
        content: hashes of the files it names, by their names in messages.
        where: the study's storage, for messages.

    Raises:
        StorageError: the study was made with other settings, or not by a study file.
    """
    if len(study.directions) > 1:
        raise _foreign(spec, where)
    if direction_of(study) != spec.measured.direction:  # which Optuna cannot change any more
        noted = study.user_attrs.get(SPEC)
        if noted is None:
            raise _foreign(spec, where)
        raise _other_settings(spec, _changed_settings(spec, noted), where)
    with study_lock(study):
        before = _Before.read(study, spec)
        if before.spec is None and (before.binds_settings or before.chosen):
            raise _foreign(spec, where)
        settings = _changed_settings(spec, before.spec or {})
        names = _changed_content(content, before.content)
        if settings and (before.binds_settings or (before.chosen and _chooses(settings))):
            raise _other_settings(spec, settings, where)
        if names and (before.binds_content or (before.chosen and _chooses(names))):
            raise _other_content(spec, names)
        for trial in before.begun:
            # Its reported values do not continue with other settings.
            if settings or (names and trial.intermediate_values):
                _give_up(study, trial)
        if settings or before.spec is None:
            study.set_user_attr(SPEC, json.loads(spec.model_dump_json()))
        if study.user_attrs.get(METRIC) != (metric := spec.measured.as_json()):
            study.set_user_attr(METRIC, metric)
        if names or before.content.keys() != content.keys():
            study.set_user_attr(CONTENT, {**before.content, **content})


def check_settings(study: optuna.Study, spec: StudySpec, content: Mapping[str, str]) -> None:
    """Check, before a trial begins, that nobody has changed the study's settings meanwhile.

    Raises:
        StorageError: somebody opened it with other settings before it had any value.
    """
    known = study.user_attrs
    if SPEC in known and (settings := _changed_settings(spec, known[SPEC])):
        raise _other_settings(spec, settings, "the same storage")
    if names := _changed_content(content, known.get(CONTENT, {})):
        raise _other_content(spec, names)


def hide_old_secrets(study: optuna.Study) -> None:
    """Remove passwords that earlier versions recorded in a study."""
    for key, value in study.user_attrs.items():
        if key.startswith("bo_act:") and (clean := _without_secrets(value)) != value:
            study.set_user_attr(key, clean)


@dataclass(frozen=True)
class _Before:
    """State of a study before it was opened.

    Attributes:
        spec: as recorded; None if no study file made the study.
        content: hashes as recorded.
        begun: own trials that were begun and are abandoned.
        binds_settings, binds_content: whether there are values that do not compare with those of
            other settings, or of other content of the same files.
        chosen: whether a trial has parameters, for which Optuna accepts no other choices.
    """

    spec: Mapping[str, Any] | None
    content: Mapping[str, str]
    begun: tuple[FrozenTrial, ...]
    binds_settings: bool
    binds_content: bool
    chosen: bool

    @classmethod
    def read(cls, study: optuna.Study, spec: StudySpec) -> _Before:
        view = StudyView.of(study)
        own, abandoned = view.trials, view.abandoned
        begun = tuple(trial for trial in own if trial.number in abandoned)
        # A failed trial has no value, and an enqueued one has none yet.
        measured = any(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            or (trial.state == TrialState.RUNNING and trial.number not in abandoned)
            for trial in own
        )
        # A killed trial resumes with the same files and settings. A trial that was given back may
        # have failed because of the files or, without reported values, of the settings.
        killed = [trial for trial in begun if trial.system_attrs.get(OWNER)]
        saved = any(Path("runs", spec.name, "checkpoints").glob("*.pt"))
        known = study.user_attrs
        return cls(
            known.get(SPEC),
            known.get(CONTENT, {}),
            begun,
            measured or bool(killed or (begun and saved) or _curves(begun)),
            measured or bool(_curves(killed) or (killed and saved)),
            any(trial.params for trial in own),
        )


def _curves(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with reported values."""
    return [trial for trial in trials if trial.intermediate_values]


def _chooses(changed: Iterable[str]) -> bool:
    """Tell whether a change affects the choices of parameters."""
    return any(key.startswith((SPACE, "space", "activations", "parameters")) for key in changed)


def _give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    storage, why = storage_of(study), "what it started with has changed"
    storage.set_trial_user_attr(id_of(trial), "failure", why)
    storage.set_trial_state_values(id_of(trial), TrialState.FAIL)


def _changed_settings(spec: StudySpec, before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the changed keys, with values (before, now)."""
    requested = _flat(json.loads(spec.model_dump_json(exclude=_FREE)))
    known, defaults = _flat(before), _defaults()
    tables = {key[:end] for key in known for end, mark in enumerate(key) if mark == "."}
    changed: dict[str, tuple[Any, Any]] = {}
    measured = _measured(before)
    if measured != spec.measured:
        changed["metric"] = (str(measured), str(spec.measured))
    for key, value in requested.items():
        # A missing key was added by a later version, and its default changes nothing.
        old = known.get(key, defaults.get(key))
        if key == "features.loss" and {old, value} == {None, "cross_entropy"}:
            continue  # None means the loss of classes
        if old != value or (value is None and key in tables):
            changed[key] = (old, value)
    return changed


def _measured(before: Mapping[str, Any]) -> Metric | None:
    """Return the metric of a recorded study file; None if it is unknown."""
    try:
        noted = MetricSpec.model_validate(before.get("metric", {}))
        return noted.measured(own=before.get("objective") is not None)
    except (ValueError, SpecError):
        return None


def _changed_content(content: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    return [name for name in content if before.get(name, content[name]) != content[name]]


@cache
def _defaults() -> dict[str, Any]:
    least = StudySpec(name="x", model=ModelSpec(name="x"), data=DataSpec(name="digits"))
    flat = _flat(json.loads(least.model_dump_json()))
    return {key: flat[key] for key in flat.keys() - {"name", "model.name", "data.name"}}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(value, dict):
            flat[prefix + key] = value
            continue
        if prefix + key in _WHOLE:
            flat[prefix + key] = sorted(value)
        flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return shown_url(value) if isinstance(value, str) else value


def _other_settings(
    spec: StudySpec, changed: Mapping[str, tuple[Any, Any]], where: str
) -> StorageError:
    first = list(changed.items())[:4]
    shown = ", ".join(f"{key} was {old!r}, is {now!r}" for key, (old, now) in first)
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return StorageError(
        f"the study {spec.name!r} in {where} was made with other settings: {shown}{more}; give the "
        "changed study another name (--set name=...), or another storage"
    )


def _other_content(spec: StudySpec, changed: list[str]) -> StorageError:
    return StorageError(
        f"{' and '.join(changed)} changed since the study {spec.name!r} began, so its trials do "
        "not compare with new ones; undo the change, or give the changed study another name "
        "(--set name=...)"
    )


def _foreign(spec: StudySpec, where: str) -> StorageError:
    return StorageError(
        f"the study {spec.name!r} in {where} was made by a program, not by a study file; give "
        "this study another name (--set name=...), or another storage"
    )
