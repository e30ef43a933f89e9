"""Why a trial was made: the study as it was then, explained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.errors import ExpressionError, SearchError
from bo_act.metrics import Metric
from bo_act.search.explain import Explanation, can_explain, explain
from bo_act.study.results.failures import failure_of_trial, state_of
from bo_act.study.results.tried import settings_of, text_of
from bo_act.study.sampling.configurations import params_of
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.storage.metric import metrics_of
from bo_act.study.storage.trials import StudyView, is_diverged, own_trial, own_trials
from bo_act.tasks.configuration import shown


@dataclass(frozen=True)
class Outcome:
    """One of several objectives of a trial.

    Attributes:
        metric: what it is.
        value: as measured; None where it was not.
        expected: when the function was proposed; None where nothing was.
    """

    metric: Metric
    value: float | None
    expected: float | None


@dataclass(frozen=True)
class TrialExplanation:
    """A trial and what was expected of it before it was run.

    Attributes:
        trial, activation: which; with the values of other parameters where the study has any.
        value: what was measured; None where it was not.
        state: what came of the trial: ``complete``, ``diverged``, ``pruned``, ``failed``,
            ``running``.
        failure: why it failed; None where it did not.
        by: how it was chosen: a baseline, at random, by the acquisition function, by a strategy,
            or by a person (``enqueued``).
        metric: what was measured.
        explanation: by what had been evaluated then; None where there is none. Its values are as
            the study stores them, and what its contributions add is good.
        neighbours: texts of the similar functions.
        expected: the value that was expected when it was proposed, as the trial noted it.
        lacking: why there is no explanation; empty where there is one.
        outcomes: of each objective, where there are several; ``metric`` is the first, then, and
            there is neither a value nor an explanation.
        feasible: the probability, when it was proposed, that it satisfies the constraints.
    """

    trial: int
    activation: str
    value: float | None
    by: str
    metric: Metric
    explanation: Explanation | None
    neighbours: tuple[str, ...] = ()
    state: str = "complete"
    failure: str | None = None
    expected: float | None = None
    lacking: str = ""
    outcomes: tuple[Outcome, ...] = ()
    feasible: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        found = asdict(self)
        if self.explanation is not None:
            found["neighbours"] = [
                {"activation": text, "value": n.value, "similarity": n.similarity}
                for text, n in zip(self.neighbours, self.explanation.neighbours, strict=True)
            ]
            del found["explanation"]["neighbours"]
        return found


def why(
    study: optuna.Study, sampler: ActivationSampler | None, number: int, *, lacking: str = ""
) -> TrialExplanation:
    """Explain a trial by the observations available when it began.

    Args:
        study: of the sampler's space.
        sampler: with the embedding that the study uses; None tells what the trial noted alone.
        number: of the trial.
        lacking: why there is no sampler.

    Raises:
        SearchError: there is no such trial, or it has no function.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("classic")
        >>> sampler = bo_act.ActivationSampler(space)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(lambda trial: len(str(space.suggest_expression(trial))), n_trials=8)
        >>> why(study, sampler, 7).by
        'acquisition'
    """
    trial = own_trial(study, number)
    text = _noted(trial) if sampler is None else _activation(trial, sampler)
    if not text:
        raise SearchError(f"trial {number} has no function yet")
    metric, *further = metrics_of(study)
    proposal = trial.user_attrs.get("proposal", {})
    outcomes: tuple[Outcome, ...] = ()
    if further:
        outcomes = _outcomes(trial, (metric, *further), proposal.get("expected"))
        sampler, lacking = None, "predictions are explained of one objective, not of several"
    explanation: Explanation | None = None
    similar: tuple[str, ...] = ()
    if sampler is not None:
        try:
            explanation, similar = _explained(study, sampler, trial, metric)
        except SearchError:
            if not can_explain(sampler.searcher.surrogate):
                raise
            lacking = "too few functions had been evaluated"
    value = trial.value if trial.state == TrialState.COMPLETE and not further else None
    if value is not None and not math.isfinite(value):  # of an objective that diverged
        value = None
    return TrialExplanation(
        number,
        text,
        value,
        proposal.get("by", "enqueued"),
        metric,
        explanation,
        similar,
        state_of([trial]),
        None if (failure := failure_of_trial(trial)) is None else str(failure),
        None if further else proposal.get("expected"),
        "" if explanation else lacking or "there is no sampler",
        outcomes,
        proposal.get("feasible"),
    )


def _outcomes(
    trial: FrozenTrial, metrics: Sequence[Metric], expected: Sequence[float] | None
) -> tuple[Outcome, ...]:
    done = trial.state == TrialState.COMPLETE and not is_diverged(trial)
    nothing: list[float | None] = [None] * len(metrics)
    values, each = trial.values if done else nothing, expected or nothing
    return tuple(Outcome(*one) for one in zip(metrics, values, each, strict=True))


def _explained(
    study: optuna.Study, sampler: ActivationSampler, trial: FrozenTrial, metric: Metric
) -> tuple[Explanation, tuple[str, ...]]:
    """Return what the surrogate said of a trial, and the similar functions."""
    trials = own_trials(study)
    known = [t for t in trials if t.number != trial.number and _finished_before(t, trial)]
    before = StudyView.of_some(known, study.directions, worst=metric.worst)
    view = sampler.view(study, before)
    one = sampler.configuration(trial, view)
    found = explain(view.searcher, sampler.embedding, view.observations, one)
    alike = [view.trials[neighbour.place] for neighbour in found.neighbours]
    similar = tuple(_activation(other, sampler) or "" for other in alike)
    return _as_stored(found, metric), similar


def _as_stored(found: Explanation, metric: Metric) -> Explanation:
    """Return an explanation whose values are as the study stores them."""
    ends = sorted((metric.sign * found.low, metric.sign * found.high))
    return replace(
        found,
        predicted=metric.sign * found.predicted,
        low=ends[0],
        high=ends[1],
        neighbours=tuple(replace(n, value=metric.sign * n.value) for n in found.neighbours),
    )


def _noted(trial: FrozenTrial) -> str:
    """Return what a trial itself says that it tried."""
    others = settings_of(trial, None)
    return text_of(trial) + (f" with {shown(others)}" if others else "")


def _activation(trial: FrozenTrial, sampler: ActivationSampler) -> str | None:
    """Return a trial's function or functions, with the other parameters where they are searched."""
    catalogue, space = sampler.catalogue, sampler.space
    parts = []
    for name in sampler.activations:
        try:
            given = space.activation_of(trial, name)
        except ExpressionError:
            return None
        text = catalogue.text(catalogue.index(given))
        parts.append(f"{name}: {text}" if name else text)
    slots = sampler.parameters.slots
    params = trial.params if trial.state.is_finished() else params_of(trial)
    others = {name: value for name, value in params.items() if name not in slots}
    return ", ".join(parts) + (f" with {shown(others)}" if others else "")


def _finished_before(other: FrozenTrial, trial: FrozenTrial) -> bool:
    if other.datetime_complete is None or not other.state.is_finished():
        return False
    # One that waits in the queue begins after all that has ended by now.
    return trial.datetime_start is None or other.datetime_complete <= trial.datetime_start
