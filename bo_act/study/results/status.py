"""Status of a study: its workers, their rate, and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.errors import SearchError
from bo_act.metrics import ACCURACY, Metric
from bo_act.specs import StudySpec
from bo_act.study.results.summary import Found, summarize
from bo_act.study.results.tried import text_of
from bo_act.study.storage.heartbeat import Silence, silences
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import Counts, count
from bo_act.tasks.failures import FailureGroup

_RECENT = 30  # finished trials to compute the rate from


@dataclass(frozen=True)
class AtWork:
    """One running trial and its worker.

    Attributes:
        host, pid: of the worker; empty and None if unknown, or if the trial was given back.
        trial: the trial's number.
        activation: the function; empty until it is chosen.
        epochs: number of finished epochs.
        seconds: since the trial began.
        silent: seconds since the last heartbeat; None before the first, or without heartbeats.
        alive: False if the trial waits to be taken over, now or after a worker's grace period.
    """

    host: str
    pid: int | None
    trial: int
    activation: str
    epochs: int
    seconds: float
    silent: float | None
    alive: bool


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment.

    Attributes:
        study, storage: location of its trials.
        total: planned trials; None without a study file.
        trials: by state.
        workers: running trials with their workers.
        per_hour: recently finished trials per hour; None before two have finished at different
            times.
        seconds_left: at that rate; None without a rate.
        best: the best function in the search; None before any.
        done: whether all trials have finished.
        failures: failed trials, grouped by reason.
        lacking: why there is no best function; empty if there is one.
        metric: of the study; the first of several objectives.
        front: for several objectives, the Pareto front, the best first value first.
        metrics: of all objectives, if there are several.
    """

    study: str
    storage: str
    total: int | None
    trials: Counts
    workers: tuple[AtWork, ...]
    per_hour: float | None
    seconds_left: float | None
    best: Found | None
    done: bool
    failures: tuple[FailureGroup, ...] = ()
    lacking: str = ""
    metric: Metric = ACCURACY
    front: tuple[Found, ...] = ()
    metrics: tuple[Metric, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return asdict(self)


def read_status(
    spec: StudySpec | None, study: optuna.Study | None = None, *, storage: str = ""
) -> StudyStatus:
    """Read the status of a study.

    Args:
        spec: the study file; None if a program made the study.
        study: if already open.
        storage: of its trials; default: from the file.

    Raises:
        StorageError: there is no such study.
        SearchError: there is neither a study nor a file.
    """
    if study is None:
        if spec is None:
            raise SearchError("expected a study, or a study file, got neither")
        study = load_study(spec)
    view = StudyView.of(study)
    silent = silences(study, view.running)
    counts = count(view.trials)
    rate = _per_second(view.trials)
    left = max(0, spec.trials - counts.finished) if spec else None
    workers = tuple(
        _at_work(trial, trial.number in view.abandoned, silent.get(trial.number))
        for trial in view.running
    )
    result = summarize(study, spec, storage=storage)
    return StudyStatus(
        study=study.study_name,
        storage=result.storage,
        total=spec.trials if spec else None,
        trials=counts,
        metric=result.metric,
        workers=workers,
        per_hour=None if rate is None else 3600 * rate,
        seconds_left=(
            left / rate
            if left is not None and rate and any(worker.alive for worker in workers)
            else None
        ),
        best=result.best,
        done=left == 0,
        failures=result.failures,
        lacking=result.lacking,
        front=result.front if result.metrics else (),
        metrics=result.metrics,
    )


def _at_work(trial: FrozenTrial, abandoned: bool, silence: Silence | None) -> AtWork:
    owner = Owner.read(trial.system_attrs.get(OWNER))
    begun = trial.datetime_start
    silent = silence.seconds if silence else None
    alive = not abandoned
    if owner and owner.patience and silent is not None and not owner.is_alive():
        # This process has not listened for long, so go by the age of the last heartbeat.
        alive = alive and silent <= owner.patience
    return AtWork(
        host=owner.host if owner else "",
        pid=owner.pid if owner else None,
        trial=trial.number,
        activation=text_of(trial),
        epochs=len(trial.intermediate_values),
        seconds=round(max(0.0, time.time() - begun.timestamp()), 1) if begun else 0.0,
        silent=None if silent is None else round(silent, 1),
        alive=alive,
    )


def _per_second(trials: Sequence[FrozenTrial]) -> float | None:
    """Return finished trials per second, between the first and the last of the recent ones."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    ends = sorted(t.datetime_complete for t in trials if t.state in done and t.datetime_complete)
    recent = ends[-_RECENT:]
    if len(recent) < 2:
        return None
    seconds = (recent[-1] - recent[0]).total_seconds()
    return (len(recent) - 1) / seconds if seconds > 0 else None
