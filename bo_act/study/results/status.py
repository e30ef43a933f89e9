"""How a study is doing: who works on what, how fast, and how long it takes yet."""

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
from bo_act.study.storage.trials import Counts, StudyView, count
from bo_act.tasks.failures import FailureGroup

_RECENT = 30  # finished trials that the rate is taken from


@dataclass(frozen=True)
class AtWork:
    """One running trial and who runs it.

    Attributes:
        host, pid: of the worker; empty and None where it does not say, or has given it back.
        trial: the trial's number.
        activation: the function; empty until it is chosen.
        epochs: finished ones.
        seconds: since the trial began.
        silent: seconds since the last heartbeat; None before the first, and where there are none.
        alive: False where the trial waits to be taken over, or is as soon as a worker has waited
            for it.
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
        study, storage: where its trials are.
        total: trials that it is to have; None where no file says so.
        trials: by state.
        workers: running trials, and who runs them.
        per_hour: finished trials an hour, of late; None before two have finished, or while all
            have at one instant.
        seconds_left: at that rate; None where there is none.
        best: the best function by what the search was told; None before any.
        done: whether all trials have finished.
        failures: what failed, and why, grouped by reason.
        lacking: why there is no best function; empty where there is one.
        metric: what is measured, of several objectives the first.
        front: of several objectives the Pareto front, the best value of the first one first.
        metrics: of all objectives, where there are several.
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
        """Return what ``--json`` prints."""
        return asdict(self)


def read_status(
    spec: StudySpec | None, study: optuna.Study | None = None, *, storage: str = ""
) -> StudyStatus:
    """Read how a study is doing.

    Args:
        spec: of the study's file; None of a study without.
        study: opened before; default: opened here.
        storage: where its trials are; default: as the file says.

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
        _at_work(one, one.number in view.abandoned, silent.get(one.number)) for one in view.running
    )
    found = summarize(study, spec, storage=storage)
    return StudyStatus(
        study=study.study_name,
        storage=found.storage,
        total=spec.trials if spec else None,
        trials=counts,
        metric=found.metric,
        workers=workers,
        per_hour=None if rate is None else 3600 * rate,
        seconds_left=(
            left / rate if left is not None and rate and any(one.alive for one in workers) else None
        ),
        best=found.best,
        done=left == 0,
        failures=found.failures,
        lacking=found.lacking,
        front=found.front if found.metrics else (),
        metrics=found.metrics,
    )


def _at_work(trial: FrozenTrial, abandoned: bool, silence: Silence | None) -> AtWork:
    owner = Owner.read(trial.system_attrs.get(OWNER))
    begun = trial.datetime_start
    silent = silence.seconds if silence else None
    alive = not abandoned
    if owner and owner.patience and silent is not None and not owner.is_alive():
        # Nobody has listened here for a while, as those do who take a trial over.
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
    """Return finished trials a second, between the first and the last of the recent ones."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    ends = sorted(t.datetime_complete for t in trials if t.state in done and t.datetime_complete)
    recent = ends[-_RECENT:]
    if len(recent) < 2:
        return None
    seconds = (recent[-1] - recent[0]).total_seconds()
    return (len(recent) - 1) / seconds if seconds > 0 else None
