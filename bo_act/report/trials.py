"""Trials as rows: functions in order, how they were chosen, and their results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from bo_act.metrics import Metric
from bo_act.report.loaded_study import LoadedStudy
from bo_act.search.observations import fences, warp_targets
from bo_act.study.results.failures import failure_of_trial
from bo_act.study.storage.trials import is_diverged, own_only, own_trials
from bo_act.tasks.configuration import shown

_FEWEST = 5  # trials for estimating importances


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        number: from 0.
        functions: one text per place; empty if the trial has none.
        settings: values of other parameters, as text.
        state: ``complete``, ``diverged``, ``pruned``, ``failed``, ``running`` or ``waiting``.
        value: of the objective; None if there is none, several, or it is not finite.
        by: how it was chosen: baseline, random, acquisition, strategy, enqueued.
        seconds: of training.
        cost: at inference in units of ReLU's; None if the search did not need it.
        curve: reported values, epoch by epoch.
        note: why it failed, deviations from the plan, or the constraints it violates.
        violated: whether it violates any.
    """

    number: int
    functions: tuple[str, ...]
    settings: str
    state: str
    value: float | None
    by: str
    seconds: float | None
    cost: float | None
    curve: tuple[float, ...]
    note: str
    violated: bool = False


def rows(subject: LoadedStudy) -> list[Row]:
    """Return a study's own trials in their order, without those of its sources."""
    return [_row(trial, subject) for trial in subject.trials]


def _row(trial: FrozenTrial, subject: LoadedStudy) -> Row:
    attributes = trial.user_attrs
    state = {"fail": "failed"}.get(name := trial.state.name.lower(), name)
    if is_diverged(trial):
        state = "diverged"
    proposal = attributes.get("proposal", {})
    (value, *further) = trial.values or [None]
    if further or trial.state != TrialState.COMPLETE:
        value = None
    seconds = attributes.get("seconds")
    if seconds is None and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    reported = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
    return Row(
        trial.number,
        subject.functions(trial),
        shown(_others(trial, subject)),
        state,
        value if value is not None and math.isfinite(value) else None,
        str(proposal.get("by", "enqueued")),
        seconds,
        attributes.get("cost"),
        tuple(float(v) for v in reported if math.isfinite(v)),
        str(failure_of_trial(trial) or proposal.get("note") or _violated(trial)),
        bool(_violated(trial)),
    )


def _violated(trial: FrozenTrial) -> str:
    """Say which constraints a trial violates; ``""`` of one that violates none."""
    if is_diverged(trial) or not (violated := [n for n, v in trial.constraints.items() if v > 0]):
        return ""
    return f"violates the constraint{'s' * (len(violated) > 1)} {', '.join(violated)}"


def _others(trial: FrozenTrial, subject: LoadedStudy) -> dict[str, Any]:
    """Return the parameters that are not slots of a function."""
    if subject.spec is not None:
        return {name: v for name, v in trial.params.items() if name in subject.spec.parameters}
    if subject.sampler is None:
        return {}
    space = subject.sampler.space
    slots = {slot for name in subject.activations for slot in space.slots(name)}
    return {name: value for name, value in trial.params.items() if name not in slots}


def best_so_far(rows: Sequence[Row], metric: Metric) -> list[float | None]:
    """Return the best value after each trial; None before any."""
    best: float | None = None
    course = []
    for row in rows:
        good = row.state == "complete" and not row.violated
        if good and row.value is not None and metric.better(row.value, best):
            best = row.value
        course.append(best)
    return course


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Return the complete, feasible trials, the best first, ties by number."""
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    complete = [row for row in complete if not row.violated]
    return sorted(complete, key=lambda row: (-metric.sign * (row.value or 0.0), row.number))


def end_of_interest(values: Sequence[float], metric: Metric, within: Iterable[float] = ()) -> float:
    """Return the end of an axis of values on the bad side.

    It is the lower fence of the winsorized targets; values beyond do not matter.

    Args:
        values: at least one.
        metric: of the values.
        within: values that must be on the axis.
    """
    array = metric.sign * np.asarray(values, dtype=np.float64)
    lowest = float(max(array.min(), fences(array)[0]))
    return metric.sign * min([lowest, *(metric.sign * level for level in within)])


def importances(subject: LoadedStudy) -> tuple[dict[str, float], str]:
    """Estimate how much each slot and each other parameter matters, by fANOVA.

    Values are winsorized as for the surrogate; else the importances would only tell trained from
    diverged.

    Returns:
        Name → share of the variance, the largest first, and ``""``; or nothing, and the reason.
    """
    study = subject.study
    complete = [
        t
        for t in own_trials(study, TrialState.COMPLETE)
        if t.value is not None and math.isfinite(t.value)
    ]
    if len(complete) < _FEWEST:
        return {}, f"At least {_FEWEST} complete trials are needed; there are {len(complete)}."
    sign = subject.metric.sign
    warped = warp_targets(np.array([sign * (t.value or 0) for t in complete]), "winsorized")
    of_trial = {t.number: float(y) for t, y in zip(complete, warped, strict=True)}
    if len(set(of_trial.values())) < 2:
        return {}, "All complete trials have the same value."
    try:
        shares = get_param_importances(
            own_only(study),
            evaluator=FanovaImportanceEvaluator(seed=0),
            target=lambda trial: of_trial.get(trial.number, min(of_trial.values())),
        )
    except (ValueError, RuntimeError, ImportError) as error:
        return {}, f"Optuna could not estimate them: {error}"
    if not shares:
        return {}, "No parameter is common to all trials."
    return dict(sorted(shares.items(), key=lambda pair: -pair[1])), ""
