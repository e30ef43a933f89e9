"""Trials as rows: what was tried in which order, how it was chosen, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bo_act.report.loaded_study import LoadedStudy
from bo_act.search.observations import fences, warp_targets
from bo_act.study.results.failures import failure_of_trial
from bo_act.study.storage.trials import is_diverged, own_only, own_trials
from bo_act.tasks.configuration import shown

_FEWEST = 5  # trials that importances are estimated from


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        number: from 0.
        functions: one text for each place; empty where the trial was not given any.
        settings: values of other parameters, as people read them.
        state: ``complete``, ``diverged``, ``pruned``, ``failed``, ``running`` or ``waiting``.
        value: of the objective; None where there is none, or none that is finite.
        by: how it was chosen: baseline, random, acquisition, strategy, enqueued.
        seconds: of training.
        cost: at inference in units of ReLU's; None where the search did not ask.
        curve: values reported, epoch by epoch.
        note: why it failed, or what went other than planned.
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


def rows(subject: LoadedStudy) -> list[Row]:
    """Return a study's own trials in their order, without those of its sources."""
    return [_row(trial, subject) for trial in subject.trials]


def _row(trial: FrozenTrial, subject: LoadedStudy) -> Row:
    attributes = trial.user_attrs
    state = {"fail": "failed"}.get(name := trial.state.name.lower(), name)
    if is_diverged(trial):
        state = "diverged"
    proposal = attributes.get("proposal", {})
    value = trial.value if trial.state == TrialState.COMPLETE else None
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
        str(failure_of_trial(trial) or proposal.get("note") or ""),
    )


def _others(trial: FrozenTrial, subject: LoadedStudy) -> dict[str, Any]:
    """Return the parameters that are not slots of a function."""
    if subject.spec is not None:
        return {name: v for name, v in trial.params.items() if name in subject.spec.parameters}
    if subject.sampler is None:
        return {}
    space = subject.sampler.space
    slots = {slot for name in subject.activations for slot in space.slots(name)}
    return {name: value for name, value in trial.params.items() if name not in slots}


def best_so_far(found: Sequence[Row], *, maximize: bool = True) -> list[float | None]:
    """Return the best value after each trial; None before any."""
    pick, best = (max if maximize else min), None
    course = []
    for row in found:
        if row.state == "complete" and row.value is not None:
            best = row.value if best is None else pick(best, row.value)
        course.append(best)
    return course


def ranked(found: Sequence[Row], *, maximize: bool = True) -> list[Row]:
    """Return the complete trials, the best first; of equal ones the earlier."""
    sign = -1.0 if maximize else 1.0
    complete = [row for row in found if row.state == "complete" and row.value is not None]
    return sorted(complete, key=lambda row: (sign * (row.value or 0.0), row.number))


def lowest_of_interest(values: Sequence[float]) -> float:
    """Return where an axis of values may begin: what lies below is far from all that matters.

    The lower fence of the winsorized targets.
    """
    array = np.asarray(values, dtype=np.float64)
    return float(max(array.min(), fences(array)[0]))


def importances(subject: LoadedStudy) -> tuple[dict[str, float], str]:
    """Estimate how much each slot and each other parameter matters, by fANOVA.

    Values are winsorized as the surrogate sees them; else the importances would be those of
    training at all.

    Returns:
        Name → share of the variance, the largest first, and ``""``; or nothing, and why.
    """
    study = subject.study
    complete = [
        t
        for t in own_trials(study, TrialState.COMPLETE)
        if t.value is not None and math.isfinite(t.value)
    ]
    if len(complete) < _FEWEST:
        return {}, f"It takes {_FEWEST} complete trials; there are {len(complete)}."
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    warped = warp_targets(np.array([sign * (t.value or 0) for t in complete]), "winsorized")
    of_trial = {t.number: float(y) for t, y in zip(complete, warped, strict=True)}
    if len(set(of_trial.values())) < 2:
        return {}, "All complete trials have the same value."
    try:
        found = get_param_importances(
            own_only(study),
            evaluator=FanovaImportanceEvaluator(seed=0),
            target=lambda trial: of_trial.get(trial.number, min(of_trial.values())),
        )
    except (ValueError, RuntimeError, ImportError) as error:
        return {}, f"Optuna could not estimate them: {error}"
    if not found:
        return {}, "No parameter is common to all trials."
    return dict(sorted(found.items(), key=lambda pair: -pair[1])), ""
