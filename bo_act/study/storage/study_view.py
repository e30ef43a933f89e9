"""A study's own trials at one moment, as a search sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import chi2

from bo_act.study.storage.heartbeat import silences
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.study.storage.trials import VALUES, VARIANCE, all_own_trials, is_diverged, own
from bo_act.training.outcomes import DIVERGED
from bo_act.user_code.failures import Failure

_PRIOR = 4  # degrees of freedom of the prior of a variance, from the other trials


@dataclass(frozen=True)
class StudyView:
    """A study's own trials at one moment.

    Attributes:
        trials: all, in the order of their numbers.
        directions: of the study's objectives.
        abandoned: numbers of running trials that were given back, or whose process has ended or
            been silent for too long.
        before: number of the trial about to begin, which is left out.
        worst: replaces values that are not finite; None: the worst of the others does.
    """

    trials: tuple[FrozenTrial, ...]
    directions: tuple[StudyDirection, ...]
    abandoned: frozenset[int] = frozenset()
    before: int | None = None
    worst: float | None = None

    @classmethod
    def of(cls, study: Study, trial: FrozenTrial | None = None) -> StudyView:
        """Read a study.

        Args:
            study: any.
            trial: about to begin; left out.
        """
        trials, abandoned = _read(study)
        before = None if trial is None else trial.number
        others = tuple(other for other in trials if other.number != before)
        directions, worst = tuple(study.directions), None
        if len(directions) == 1 and any(map(is_diverged, others)):
            worst = metric_of(study).worst
        return cls(others, directions, abandoned, before, worst)

    @classmethod
    def of_some(
        cls,
        trials: Iterable[FrozenTrial],
        directions: Sequence[StudyDirection],
        *,
        worst: float | None = None,
    ) -> StudyView:
        """Return a view of some trials of a study, none of them abandoned."""
        return cls(tuple(own(trials)), tuple(directions), worst=worst)

    @cached_property
    def complete(self) -> tuple[FrozenTrial, ...]:
        """Trials with a value, or diverged."""
        ended = self._of(TrialState.COMPLETE, TrialState.FAIL)
        return tuple(trial for trial in ended if trial.values is not None or is_diverged(trial))

    @cached_property
    def pruned(self) -> tuple[FrozenTrial, ...]:
        """Trials that were stopped early."""
        return self._of(TrialState.PRUNED)

    @cached_property
    def failed(self) -> tuple[FrozenTrial, ...]:
        """Trials that ended without a result, unless the user's file is to blame."""
        ended = self._of(TrialState.FAIL)
        return tuple(trial for trial in ended if _has_failed(trial) and _counts(trial))

    @cached_property
    def running(self) -> tuple[FrozenTrial, ...]:
        """Running trials, including abandoned ones."""
        return self._of(TrialState.RUNNING)

    @cached_property
    def waiting(self) -> tuple[FrozenTrial, ...]:
        """Trials that will have a result: running or enqueued, and not lost."""
        unfinished = self._of(TrialState.RUNNING, TrialState.WAITING)
        return tuple(trial for trial in unfinished if trial.number not in self._lost)

    @cached_property
    def number(self) -> int:
        """Index of the next trial, for its random state.

        Lost trials do not count, so that the repetition of a lost trial has the same random state.
        """
        return sum(
            not _has_failed(trial)
            and trial.number not in self._lost
            and (self.before is None or trial.number < self.before)
            for trial in self.trials
        )

    @property
    def signs(self) -> tuple[float, ...]:
        """1 for each objective to maximize, -1 for each to minimize."""
        maximize = StudyDirection.MAXIMIZE
        return tuple(1.0 if direction == maximize else -1.0 for direction in self.directions)

    @property
    def in_order(self) -> list[FrozenTrial]:
        """All trials that are not lost, in the order of their numbers."""
        every = (*self.complete, *self.pruned, *self.failed, *self.waiting)
        return sorted(every, key=lambda trial: trial.number)

    def values(self, trials: Sequence[FrozenTrial], objective: int = 0) -> np.ndarray:
        """Return finite values of complete trials, (n,), larger is better.

        NaN and infinity, of networks that diverged, are replaced by the worst value.

        Args:
            trials: of the study.
            objective: which one, from 0.
        """
        sign = self.signs[objective]
        values = sign * np.array([_value(trial, objective) for trial in trials], dtype=np.float64)
        finite = np.isfinite(values)
        if self.worst is not None:
            values[~finite] = sign * self.worst
        else:
            values[~finite] = values[finite].min() if finite.any() else 0.0
        return values

    def others(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """Return finite values of the other objectives, (n, M - 1), as ``values`` does."""
        further = [self.values(trials, objective) for objective in range(1, len(self.directions))]
        return np.array(further).reshape(len(further), len(trials)).T

    @staticmethod
    def constraints(trials: Sequence[FrozenTrial]) -> np.ndarray:
        """Return the values of constraints, (n, C), NaN where a trial has none.

        The constraint that marks divergence is left out: a diverged trial has the worst value.
        """
        names = dict.fromkeys(n for trial in trials for n in trial.constraints if n != DIVERGED)
        rows = [[trial.constraints.get(name, math.nan) for name in names] for trial in trials]
        values = np.array(rows, dtype=np.float64).reshape(len(trials), len(names))
        # Infinity counts as the largest finite violation.
        finite = np.abs(values[np.isfinite(values)]).max(initial=1.0)
        return np.where(np.isinf(values), np.sign(values) * finite, values)

    @staticmethod
    def variances(trials: Sequence[FrozenTrial]) -> np.ndarray | None:
        """Return the variances of the values of complete trials, (n,); None if no trial has any.

        A variance from few runs is uncertain, so it is shrunk towards those of the other trials,
        with the weight of four runs (Smyth 2004, "Linear models and empirical Bayes methods for
        assessing differential expression in microarray experiments", eq. 6). A trial of a single
        run, or a diverged one, gets the usual variance of one run.
        """
        noted = np.array([_variance(trial) for trial in trials], dtype=np.float64)
        known = np.isfinite(noted)
        if not known.any():
            return None
        runs = np.array([len(trial.user_attrs.get(VALUES, ())) for trial in trials])
        several = known & (runs > 1)
        if not several.any():  # from the caller's program: taken as it is
            return np.where(known, noted, noted[known].mean())
        single, freedom = noted * runs, np.maximum(runs - 1, 0)
        # The median resists the few trials that nearly diverged. It is corrected, since the median
        # of a chi-squared variable is below its mean.
        usual = float(
            np.median(single[several] / (chi2.median(freedom[several]) / freedom[several]))
        )
        shrunk = (freedom * single + _PRIOR * usual) / (freedom + _PRIOR) / np.maximum(runs, 1)
        return np.where(several, shrunk, np.where(known, noted, usual))

    @staticmethod
    def seconds(trials: Sequence[FrozenTrial]) -> np.ndarray:
        """Return the training times of complete trials, (n,); NaN for diverged ones, cut short.

        Without the attribute ``seconds``, the time from the trial's start to its end counts.
        """
        return np.array([_seconds(trial) for trial in trials], dtype=np.float64)

    @cached_property
    def _lost(self) -> frozenset[int]:
        """Numbers of abandoned trials that no worker will take over."""
        return self.abandoned - {t.number for t in self.running if _is_inherited(t)}

    def _of(self, *states: TrialState) -> tuple[FrozenTrial, ...]:
        return tuple(trial for trial in self.trials if trial.state in states)


def _read(study: Study) -> tuple[list[FrozenTrial], frozenset[int]]:
    """Read a study's own trials and the numbers of those that are abandoned."""
    trials = all_own_trials(study)
    gone = _abandoned(study, trials)
    if not gone:
        return trials, frozenset()
    # A process may have finished its trial and ended since the trials were read: read them again.
    trials = all_own_trials(study)
    return trials, frozenset(
        trial.number
        for trial in trials
        if trial.number in gone
        and trial.state == TrialState.RUNNING
        and trial.system_attrs[OWNER] == gone[trial.number]
    )


def _abandoned(study: Study, trials: Iterable[FrozenTrial]) -> dict[int, Any]:
    """Return the owners of running trials that are abandoned, by the trials' numbers."""
    gone, unknown = [], []
    for trial in trials:
        if trial.state != TrialState.RUNNING or OWNER not in trial.system_attrs:
            continue
        owner = Owner.read(trial.system_attrs[OWNER])
        if owner is None or owner.is_gone():
            gone.append(trial)
        elif not owner.is_alive():
            unknown.append(trial)
    silent = silences(study, unknown) if unknown else {}
    gone += [trial for trial in unknown if silent[trial.number].is_too_long]
    return {trial.number: trial.system_attrs[OWNER] for trial in gone}


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and not is_diverged(trial)


def _counts(trial: FrozenTrial) -> bool:
    """Tell whether a failed trial counts against its function, not the user's file."""
    failure = Failure.read(trial.user_attrs.get("failure"))
    return failure is None or failure.blame != "file"


def _is_inherited(trial: FrozenTrial) -> bool:
    if OWNER not in trial.system_attrs:
        return False
    owner = Owner.read(trial.system_attrs[OWNER])
    return owner is None or owner.grace is not None  # from a study file, whose workers take over


def _value(trial: FrozenTrial, objective: int) -> float:
    """Return one of a trial's values; NaN without one, or if it diverged and has several."""
    values = trial.values
    if values is None or (len(values) > 1 and is_diverged(trial)):
        return math.nan
    return float(values[objective])


def _variance(trial: FrozenTrial) -> float:
    """Return the variance of a trial's value, NaN without one."""
    noted = trial.user_attrs.get(VARIANCE)
    if not isinstance(noted, int | float) or is_diverged(trial):
        return math.nan
    return float(noted) if math.isfinite(noted) and noted >= 0 else math.nan


def _seconds(trial: FrozenTrial) -> float:
    if is_diverged(trial):
        return math.nan
    noted = trial.user_attrs.get("seconds")
    if noted is None and trial.duration is not None:
        noted = trial.duration.total_seconds()
    return math.nan if noted is None else float(noted)
