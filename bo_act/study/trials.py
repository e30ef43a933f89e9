"""A study's trials, sorted by what they are to a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bo_act.search.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.study.claims import OWNER, Owner
from bo_act.study.heartbeat import silent

SOURCE = "source"
"""User attribute of a trial that tells of another task: what it was measured on."""

DIVERGED = "diverged"
"""The constraint, and the value of a trial's ``status``, of a function whose training diverged."""


def is_own(trial: FrozenTrial) -> bool:
    """Tell whether a trial is one of its study, and not what a source was seen to say."""
    return SOURCE not in trial.user_attrs


def is_diverged(trial: FrozenTrial) -> bool:
    """Tell whether a trial has ended with the result that its training diverged.

    NaN is a failure to Optuna, without a value: such a trial is known by its ``status``.
    """
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        return False
    if trial.user_attrs.get("status") == DIVERGED:
        return True
    return trial.value is not None and not math.isfinite(trial.value)


@dataclass(frozen=True)
class Trials:
    """A study's own trials, each kind in the order of their numbers.

    Attributes:
        complete: with a value, or diverged.
        pruned: stopped early.
        failed: ended without a result, for no fault of the function's.
        waiting: live ones, or not yet begun, by whoever runs them.
        number: the place of the next trial, lost trials and those of sources not counted, so that a
            repetition of a lost trial has the same random state.
        sign: 1 where larger is better, else -1.
    """

    complete: tuple[FrozenTrial, ...]
    pruned: tuple[FrozenTrial, ...]
    failed: tuple[FrozenTrial, ...]
    waiting: tuple[FrozenTrial, ...]
    number: int
    sign: float

    @classmethod
    def of(cls, study: Study, trial: FrozenTrial | None = None) -> Trials:
        """Read a study.

        Args:
            study: any.
            trial: the trial that is to be begun; left out of what is seen.
        """
        trials, abandoned = read_trials(study)
        # Another worker takes these over with the functions they have: nobody else may begin them.
        abandoned -= {trial.number for trial in trials if _is_inherited(trial)}
        before = len(trials) if trial is None else trial.number
        others = [other for other in trials if other.number != before]
        return cls.sort(others, abandoned, before, study.direction)

    @classmethod
    def sort(
        cls,
        trials: Sequence[FrozenTrial],
        abandoned: frozenset[int],
        before: int,
        direction: StudyDirection,
    ) -> Trials:
        """Sort trials, of which those that are abandoned count as lost."""
        lost = sum(
            (_has_failed(trial) or trial.number in abandoned or not is_own(trial))
            and trial.number < before
            for trial in trials
        )
        trials = [trial for trial in trials if is_own(trial)]

        def of_state(*states: TrialState) -> tuple[FrozenTrial, ...]:
            return tuple(
                trial
                for trial in trials
                if trial.state in states
                and (trial.state == TrialState.FAIL or trial.number not in abandoned)
            )

        return cls(
            tuple(
                t
                for t in of_state(TrialState.COMPLETE, TrialState.FAIL)
                if t.value is not None or is_diverged(t)
            ),
            of_state(TrialState.PRUNED),
            tuple(filter(_has_failed, of_state(TrialState.FAIL))),
            of_state(TrialState.RUNNING, TrialState.WAITING),
            before - lost,
            1.0 if direction == StudyDirection.MAXIMIZE else -1.0,
        )

    @property
    def in_order(self) -> list[FrozenTrial]:
        """All of them by their numbers."""
        every = (*self.complete, *self.pruned, *self.failed, *self.waiting)
        return sorted(every, key=lambda trial: trial.number)

    def values(self, some: Sequence[FrozenTrial]) -> np.ndarray:
        """Return finite values of complete trials, (n,), larger is better.

        An objective may return NaN or infinity for a network that diverged: no better than the
        worst.
        """
        told = [math.nan if trial.value is None else trial.value for trial in some]
        measured = self.sign * np.array(told, dtype=np.float64)
        finite = np.isfinite(measured)
        measured[~finite] = measured[finite].min() if finite.any() else 0.0
        return measured


@dataclass(frozen=True)
class View:
    """A study as the searcher sees it.

    Attributes:
        observations: measured values, larger is better, and what is not to be proposed.
        pending: indices that other live trials are evaluating.
        number: the place of the next trial, lost trials not counted, so that a repetition of a
            lost trial has the same random state.
        embedding: where the functions lie, by all spectra computed for these trials.
        looked_at: indices that spectra were asked of for them.
    """

    observations: Observations
    pending: frozenset[int]
    number: int
    embedding: Embedding
    looked_at: frozenset[int] = frozenset()

    @property
    def taken(self) -> frozenset[int]:
        """Indices that are not to be proposed."""
        return self.pending | self.observations.taken


def common_parameters(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters that all own trials with a result have, slots among them."""
    found: dict[str, BaseDistribution] | None = None
    for trial in trials:
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or is_diverged(trial)
        if ended and trial.params and is_own(trial):
            known = trial.distributions if found is None else found
            found = {n: d for n, d in known.items() if trial.distributions.get(n) == d}
    return found or {}


def seconds(trial: FrozenTrial) -> float:
    """Return how long a complete trial took; NaN where that says nothing of others.

    A training that diverged ended early. Where the objective has not noted its ``seconds``, those
    between the trial's beginning and its end count.
    """
    if is_diverged(trial):
        return float("nan")
    noted = trial.user_attrs.get("seconds")
    if noted is None and trial.duration is not None:
        noted = trial.duration.total_seconds()
    return float("nan") if noted is None else float(noted)


def read_trials(study: Study) -> tuple[list[FrozenTrial], frozenset[int]]:
    """Read a study's trials and which of them are abandoned.

    Returns:
        The trials in their order, not copied, and the numbers of those that still run although
        they were given back or their process has ended or been silent for too long.
    """
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    unheard = silent(study, trials)
    gone = {
        t.number: t.system_attrs[OWNER]
        for t in trials
        if t.number in unheard or _has_lost_its_owner(t)
    }
    if gone:
        # A process may have finished its trial and ended after the trials were read. What is read
        # once it has ended is its last word.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return trials, frozenset(
        number
        for number, owner in gone.items()
        if trials[number].state == TrialState.RUNNING
        and trials[number].system_attrs[OWNER] == owner
    )


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and not is_diverged(trial)


def _is_inherited(trial: FrozenTrial) -> bool:
    if OWNER not in trial.system_attrs:
        return False
    owner = Owner.read(trial.system_attrs[OWNER])
    return owner is None or owner.grace is not None  # of a study's runner, which takes over


def _has_lost_its_owner(trial: FrozenTrial) -> bool:
    if trial.state != TrialState.RUNNING or OWNER not in trial.system_attrs:
        return False
    owner = Owner.read(trial.system_attrs[OWNER])
    return owner is None or owner.is_gone()
