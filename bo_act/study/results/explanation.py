"""Explanation of a trial by the study's state when it began."""

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
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import is_diverged, own_trial, own_trials
from bo_act.tasks.configuration import shown


@dataclass(frozen=True)
class Outcome:
    """One of several objectives of a trial.

    Attributes:
        metric: of the objective.
        value: as measured, if it was.
        expected: at the time of the proposal, if anything was.
    """

    metric: Metric
    value: float | None
    expected: float | None


@dataclass(frozen=True)
class TrialExplanation:
    """A trial, its result, and the prediction that led to it.

    Attributes:
        trial, activation: number and function, with the values of other parameters, if any.
        value: as measured, or None.
        state: ``complete``, ``diverged``, ``pruned``, ``failed`` or ``running``.
        failure: the reason if it failed, or None.
        by: how it was chosen: ``baseline``, at random, by the acquisition function, by a strategy,
            or by you (``enqueued``).
        metric: of the study; the first of several objectives.
        explanation: by the trials evaluated before it, or None. Values are as stored; positive
            contributions are improvements.
        neighbours: texts of similar functions.
        expected: predicted value at the time of the proposal, as recorded in the trial.
        lacking: why there is no explanation; empty if there is one.
        outcomes: of several objectives, one each; there is then no value and no explanation.
        feasible: predicted probability, at the time of the proposal, that it satisfies the
            constraints.
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
        """Return the content of ``--json``."""
        content = asdict(self)
        if self.explanation is not None:
            content["neighbours"] = [
                {"activation": text, "value": n.value, "similarity": n.similarity}
                for text, n in zip(self.neighbours, self.explanation.neighbours, strict=True)
            ]
            del content["explanation"]["neighbours"]
        return content


def why(
    study: optuna.Study, sampler: ActivationSampler | None, number: int, *, lacking: str = ""
) -> TrialExplanation:
    """Explain a trial by the observations available when it began.

    Args:
        study: of the sampler's space.
        sampler: with the embedding that the study uses; None returns only the trial's own record.
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
        sampler, lacking = None, "only predictions of a single objective can be explained"
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
    if value is not None and not math.isfinite(value):  # from your objective: it diverged
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
    values, predictions = trial.values if done else nothing, expected or nothing
    return tuple(Outcome(*row) for row in zip(metrics, values, predictions, strict=True))


def _explained(
    study: optuna.Study, sampler: ActivationSampler, trial: FrozenTrial, metric: Metric
) -> tuple[Explanation, tuple[str, ...]]:
    """Return what the surrogate said of a trial, and the similar functions."""
    trials = own_trials(study)
    known = [t for t in trials if t.number != trial.number and _finished_before(t, trial)]
    before = StudyView.of_some(known, study.directions, worst=metric.worst)
    view = sampler.view(study, before)
    configuration = sampler.configuration(trial, view)
    explanation = explain(view.searcher, sampler.embedding, view.observations, configuration)
    alike = [view.trials[neighbour.place] for neighbour in explanation.neighbours]
    similar = tuple(_activation(other, sampler) or "" for other in alike)
    return _as_stored(explanation, metric), similar


def _as_stored(explanation: Explanation, metric: Metric) -> Explanation:
    """Return an explanation with the signs of stored values."""
    ends = sorted((metric.sign * explanation.low, metric.sign * explanation.high))
    neighbours = explanation.neighbours
    return replace(
        explanation,
        predicted=metric.sign * explanation.predicted,
        low=ends[0],
        high=ends[1],
        neighbours=tuple(replace(n, value=metric.sign * n.value) for n in neighbours),
    )


def _noted(trial: FrozenTrial) -> str:
    """Return a trial's functions and settings, from its own record."""
    others = settings_of(trial, None)
    return text_of(trial) + (f" with {shown(others)}" if others else "")


def _activation(trial: FrozenTrial, sampler: ActivationSampler) -> str | None:
    """Return a trial's functions, with the values of other parameters, if any."""
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
    # An enqueued trial begins after all trials that have ended.
    return trial.datetime_start is None or other.datetime_complete <= trial.datetime_start
