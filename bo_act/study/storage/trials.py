"""A study's own trials, sorted by what they are to a search: the one place that reads them.

A study may hold trials of warm-start sources, for those who look at it with Optuna's tools. They
are to count for nothing, so nothing else here asks a study or its storage for trials: what this
module returns are own ones, and what Optuna's own code is to read goes through ``own_only``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import chi2

from bo_act.errors import SearchError
from bo_act.failures import Failure
from bo_act.optuna_internals import filter_study, id_of, storage_of, study_id
from bo_act.study.storage.heartbeat import silences
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.training.outcomes import DIVERGED

VALUES, VARIANCE = "values", "variance"
"""User attributes of a trial: of several runs each value, and the variance of their mean."""

_PRIOR = 4  # degrees of freedom of what is known of a variance by others'

SOURCE = "source"
"""User attribute of a trial that tells of another task: what it was measured on."""


# --- reading --------------------------------------------------------------------------------


def own(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return those trials that are of their study, and not what a source was seen to say."""
    return [trial for trial in trials if SOURCE not in trial.user_attrs]


def own_trials(study: Study, *states: TrialState) -> list[FrozenTrial]:
    """Return a study's own trials in the order of their numbers, not copied.

    Args:
        study: any. That of a sampler under Hyperband holds the trials of one bracket.
        states: of the trials; default: all.
    """
    return own(study.get_trials(deepcopy=False, states=states or None))


def source_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials of warm-start sources that a study holds."""
    return [t for t in study.get_trials(deepcopy=False) if SOURCE in t.user_attrs]


def own_trial(study: Study, number: int) -> FrozenTrial:
    """Return one of a study's own trials.

    Raises:
        SearchError: it has none of this number.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        held = f"it has {len(trials)}, from 0" if trials else "it has none yet"
        raise SearchError(f"the study {study.study_name!r} has no trial {number}; {held}")
    trial = trials[number]
    if not own([trial]):
        raise SearchError(
            f"trial {number} comes from the source {trial.user_attrs[SOURCE]!r}, not from the "
            f"study {study.study_name!r}, whose own trials begin at "
            f"{next((t.number for t in own(trials)), len(trials))}"
        )
    return trial


def read_again(study: Study, trial: Trial) -> FrozenTrial:
    """Return a trial as it is now, which may have been told from elsewhere."""
    found: FrozenTrial = storage_of(study).get_trial(id_of(trial))
    return found


def own_only(study: Study, trial: FrozenTrial | None = None) -> Study:
    """Return a study for Optuna's samplers and importances, in which there are own trials alone.

    Args:
        study: that they are to read.
        trial: that is sampled for. Of a study with Hyperband a sampler gets the trials of one
            bracket, and so it does here.
    """
    whole = getattr(study, "_study", study)
    found: Study = _OwnTrialsStudy(whole)
    return found if trial is None or whole is study else filter_study(found, trial)


class _OwnTrialsStudy(Study):
    """A study as Optuna's own code sees it, without the trials of sources."""

    def __init__(self, study: Study) -> None:
        self.__dict__.update(study.__dict__)
        self._storage: Any = _OwnTrialsStorage(storage_of(study))
        self._study = study

    def stop(self) -> None:
        """Stop the study that is optimized."""
        self._study.stop()


class _OwnTrialsStorage:
    """A storage without the trials of sources."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return own(self._storage.get_all_trials(*args, **options))


# --- what they are to a search --------------------------------------------------------------


def is_diverged(trial: FrozenTrial) -> bool:
    """Tell whether a trial has ended with the result that its training diverged.

    NaN is a failure to Optuna, without a value: such a trial is known by its ``status``.
    """
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        return False
    if trial.user_attrs.get("status") == DIVERGED:
        return True
    return not all(map(math.isfinite, trial.values or ()))


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial violates none of its constraints; one without any violates none."""
    return all(value <= 0 for value in trial.constraints.values())


def has_values(study: Study) -> bool:
    """Tell whether a trial of the study's own has come to a value."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return bool(own_trials(study, *done))


def _counts(trial: FrozenTrial) -> bool:
    """Tell whether a failed trial says anything of its function, and not of the user's file."""
    failure = Failure.read(trial.user_attrs.get("failure"))
    return failure is None or failure.blame != "file"


def measured(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return those trials that came to a value and have not diverged."""
    return [t for t in trials if t.state == TrialState.COMPLETE and not is_diverged(t)]


def repetition(trial: FrozenTrial | Trial) -> int:
    """Return how often a trial's function had been evaluated when the sampler chose it again."""
    proposal = trial.user_attrs.get("proposal")
    return int(proposal.get("repetition", 0)) if isinstance(proposal, dict) else 0


def averaged(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials that came to a value, those of one repeated function as one, their mean.

    It has the first one's number. Where one of them diverged, its value counts as it was told;
    where none was, the function has no mean and is left out.
    """
    trials = list(trials)
    again = {_params(trial) for trial in trials if repetition(trial)}
    if not again:
        return measured(trials)
    groups: dict[Any, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE or is_diverged(trial):
            repeated = (key := _params(trial)) in again
            groups.setdefault(key if repeated else trial.number, []).append(trial)
    found = []
    for some in groups.values():
        values = [math.nan if one.value is None else one.value for one in some]
        if (first := next(iter(measured(some)), None)) is None:
            continue
        if len(some) > 1:
            mean = math.fsum(values) / len(values)
            if not math.isfinite(mean):
                continue
            first = copy(first)
            first.value = mean
        found.append(first)
    return found


def _params(trial: FrozenTrial) -> tuple[Any, ...]:
    return tuple(sorted(trial.params.items()))


@dataclass(frozen=True)
class Counts:
    """Trials by state; ``complete`` includes the ``diverged`` ones."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    diverged: int = 0
    running: int = 0

    @property
    def finished(self) -> int:
        """Trials with a result."""
        return self.complete + self.pruned


def count(trials: Sequence[FrozenTrial]) -> Counts:
    """Count a study's own trials by state."""
    diverged = sum(map(is_diverged, trials))
    states = [trial.state for trial in trials if not is_diverged(trial)]
    return Counts(
        complete=states.count(TrialState.COMPLETE) + diverged,
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        diverged=diverged,
        running=states.count(TrialState.RUNNING),
    )


@dataclass(frozen=True)
class StudyView:
    """A study's own trials at one moment.

    Attributes:
        trials: all of them by their numbers.
        directions: of the study's objectives.
        abandoned: numbers of those that still run although they were given back, or their process
            has ended or been silent for too long.
        before: number of the trial that is to be begun, which is left out.
        worst: what a value that is not finite counts as; None: as the worst of the others.
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
            trial: the trial that is to be begun; left out of what is seen.
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
        """Return a view of some trials of a study, none of which was abandoned."""
        return cls(tuple(own(trials)), tuple(directions), worst=worst)

    @cached_property
    def complete(self) -> tuple[FrozenTrial, ...]:
        """Those with a value, or diverged."""
        some = self._of(TrialState.COMPLETE, TrialState.FAIL)
        return tuple(trial for trial in some if trial.values is not None or is_diverged(trial))

    @cached_property
    def pruned(self) -> tuple[FrozenTrial, ...]:
        """Those that were stopped early."""
        return self._of(TrialState.PRUNED)

    @cached_property
    def failed(self) -> tuple[FrozenTrial, ...]:
        """Those that ended without a result.

        Those are left out that the user's file is to blame for.
        """
        some = self._of(TrialState.FAIL)
        return tuple(trial for trial in some if _has_failed(trial) and _counts(trial))

    @cached_property
    def running(self) -> tuple[FrozenTrial, ...]:
        """Those that run, abandoned ones among them."""
        return self._of(TrialState.RUNNING)

    @cached_property
    def waiting(self) -> tuple[FrozenTrial, ...]:
        """Those that will have a result: they run, or wait to, by whoever runs them."""
        some = self._of(TrialState.RUNNING, TrialState.WAITING)
        return tuple(trial for trial in some if trial.number not in self._lost)

    @cached_property
    def number(self) -> int:
        """The place of the next trial.

        Lost trials are not counted, so that a repetition of a lost trial has the same random state.
        """
        return sum(
            not _has_failed(trial)
            and trial.number not in self._lost
            and (self.before is None or trial.number < self.before)
            for trial in self.trials
        )

    @property
    def signs(self) -> tuple[float, ...]:
        """Of each objective 1 where larger is better, else -1."""
        return tuple(1.0 if one == StudyDirection.MAXIMIZE else -1.0 for one in self.directions)

    @property
    def in_order(self) -> list[FrozenTrial]:
        """All that are not lost, by their numbers."""
        every = (*self.complete, *self.pruned, *self.failed, *self.waiting)
        return sorted(every, key=lambda trial: trial.number)

    def values(self, some: Sequence[FrozenTrial], objective: int = 0) -> np.ndarray:
        """Return finite values of complete trials, (n,), larger is better.

        An objective may return NaN or infinity for a network that diverged: no better than the
        worst, in each objective.

        Args:
            some: of the study.
            objective: which one, from 0.
        """
        told = [_told(trial, objective) for trial in some]
        sign = self.signs[objective]
        measured = sign * np.array(told, dtype=np.float64)
        finite = np.isfinite(measured)
        if self.worst is not None:
            measured[~finite] = sign * self.worst
        else:
            measured[~finite] = measured[finite].min() if finite.any() else 0.0
        return measured

    def others(self, some: Sequence[FrozenTrial]) -> np.ndarray:
        """Return finite values of the further objectives, (n, M - 1), as ``values`` does."""
        further = [self.values(some, place) for place in range(1, len(self.directions))]
        return np.array(further).reshape(len(further), len(some)).T

    @staticmethod
    def constraints(some: Sequence[FrozenTrial]) -> np.ndarray:
        """Return values of constraints, (n, C), NaN where a trial does not tell.

        The mark of trials that diverged is none of them: what diverges has the worst value anyway.
        """
        names = dict.fromkeys(n for trial in some for n in trial.constraints if n != DIVERGED)
        told = [[trial.constraints.get(name, math.nan) for name in names] for trial in some]
        values = np.array(told, dtype=np.float64).reshape(len(some), len(names))
        # Without a bound is as far away as the farthest.
        finite = np.abs(values[np.isfinite(values)]).max(initial=1.0)
        return np.where(np.isinf(values), np.sign(values) * finite, values)

    @staticmethod
    def variances(some: Sequence[FrozenTrial]) -> np.ndarray | None:
        """Return the variances of the values of complete trials, (n,); None where none notes any.

        Of few runs each a variance is little known itself, so it is drawn towards that of the
        others, as one of four more runs (Smyth 2004, "Linear models and empirical Bayes methods
        for assessing differential expression in microarray experiments", eq. 6). A trial of one
        run, and one that diverged, has that of one run.
        """
        noted = np.array([_variance(trial) for trial in some], dtype=np.float64)
        known = np.isfinite(noted)
        if not known.any():
            return None
        runs = np.array([len(trial.user_attrs.get(VALUES, ())) for trial in some])
        several = known & (runs > 1)
        if not several.any():  # noted by a program: as it says
            return np.where(known, noted, noted[known].mean())
        single, freedom = noted * runs, np.maximum(runs - 1, 0)
        # The median is not moved by those few that nearly diverged; of a chi-squared variable it
        # is below the mean.
        usual = float(
            np.median(single[several] / (chi2.median(freedom[several]) / freedom[several]))
        )
        drawn = (freedom * single + _PRIOR * usual) / (freedom + _PRIOR) / np.maximum(runs, 1)
        return np.where(several, drawn, np.where(known, noted, usual))

    @staticmethod
    def seconds(some: Sequence[FrozenTrial]) -> np.ndarray:
        """Return how long complete trials took, (n,); NaN where that says nothing of others.

        A training that diverged ended early. Where the objective has not noted its ``seconds``,
        those between the trial's beginning and its end count.
        """
        return np.array([_seconds(trial) for trial in some], dtype=np.float64)

    @cached_property
    def _lost(self) -> frozenset[int]:
        """Numbers of abandoned trials that nobody takes over with the functions they have."""
        return self.abandoned - {t.number for t in self.running if _is_inherited(t)}

    def _of(self, *states: TrialState) -> tuple[FrozenTrial, ...]:
        return tuple(trial for trial in self.trials if trial.state in states)


def common_parameters(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters that all own trials with a result have, slots among them."""
    found: dict[str, BaseDistribution] | None = None
    for trial in own(trials):
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or is_diverged(trial)
        if ended and trial.params:
            known = trial.distributions if found is None else found
            found = {n: d for n, d in known.items() if trial.distributions.get(n) == d}
    return found or {}


# --- whose they are -------------------------------------------------------------------------


def _read(study: Study) -> tuple[list[FrozenTrial], frozenset[int]]:
    """Read a study's own trials and the numbers of those that are abandoned."""

    def read() -> list[FrozenTrial]:
        # Of the storage: under Hyperband, a sampler's study holds one bracket alone.
        return own(storage_of(study).get_all_trials(study_id(study), deepcopy=False))

    trials = read()
    gone = _abandoned(study, trials)
    if not gone:
        return trials, frozenset()
    # A process may have finished its trial and ended after the trials were read. What is read
    # once it has ended is its last word.
    trials = read()
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


def _is_inherited(trial: FrozenTrial) -> bool:
    if OWNER not in trial.system_attrs:
        return False
    owner = Owner.read(trial.system_attrs[OWNER])
    return owner is None or owner.grace is not None  # of a study's runner, which takes over


def _told(trial: FrozenTrial, objective: int) -> float:
    """Return one of a trial's values, NaN where it has none; of a diverged one several are none."""
    values = trial.values
    if values is None or (len(values) > 1 and is_diverged(trial)):
        return math.nan
    return float(values[objective])


def _variance(trial: FrozenTrial) -> float:
    """Return the variance that a trial notes of its value, NaN without one."""
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
