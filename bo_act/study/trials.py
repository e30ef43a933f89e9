"""A study's trials, sorted by what they are to a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bo_act.failures import Failure
from bo_act.search.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.study.claims import OWNER, Owner
from bo_act.study.heartbeat import silent

SOURCE = "source"
"""User attribute of a trial that tells of another task: what it was measured on."""


def is_own(trial: FrozenTrial) -> bool:
    """Tell whether a trial is one of its study, and not what a source was seen to say."""
    return SOURCE not in trial.user_attrs


def has_values(study: Study) -> bool:
    """Tell whether a trial of the study's own has come to a value."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return any(map(is_own, study.get_trials(deepcopy=False, states=done)))


def _counts(trial: FrozenTrial) -> bool:
    """Tell whether a failed trial says anything of its function, and not of the user's file."""
    failure = Failure.read(trial.user_attrs.get("failure"))
    return failure is None or failure.blame != "file"


@dataclass(frozen=True)
class Trials:
    """A study's own trials, each kind in the order of their numbers.

    Attributes:
        complete: with a value.
        pruned: stopped early.
        failed: ended without a value, for no fault of the function's; those are left out that
            the user's file is to blame for.
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
            (trial.state == TrialState.FAIL or trial.number in abandoned or not is_own(trial))
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
            tuple(t for t in of_state(TrialState.COMPLETE) if t.value is not None),
            of_state(TrialState.PRUNED),
            tuple(filter(_counts, of_state(TrialState.FAIL))),
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

        An objective may return infinity for a network that diverged: no better than the worst.
        """
        measured = np.array([self.sign * (trial.value or 0.0) for trial in some], dtype=np.float64)
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


def seconds(trial: FrozenTrial) -> float:
    """Return how long a complete trial took; NaN where that says nothing of others.

    A training that diverged ended early. Where the objective has not noted its ``seconds``, those
    between the trial's beginning and its end count.
    """
    if trial.user_attrs.get("status") == "diverged":
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
