"""Results of a study, read from its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from bo_act.errors import StorageError
from bo_act.html import Markup, box, table
from bo_act.metrics import ACCURACY, Metric
from bo_act.specs import StudySpec
from bo_act.statistics import pareto_front
from bo_act.study.results.confirmation import failed_runs, read_confirmed
from bo_act.study.results.confirmed import Confirmed
from bo_act.study.results.failures import baseline_notes, failures, nothing_found, state_of
from bo_act.study.results.tried import settings_of, text_of
from bo_act.study.results.verdict import notes_on_failures, verdict, with_interval
from bo_act.study.storage.metric import metric_of, metrics_of
from bo_act.study.storage.opening import load_study, location
from bo_act.study.storage.trials import Counts, averaged, count, is_feasible, measured, own_trials
from bo_act.tasks.configuration import REFERENCE, Configuration, functions_of, shown
from bo_act.tasks.failures import FailureGroup, failures_of_runs

FRONT = "Pareto front: no other function is better in all objectives (one run each)"


@dataclass(frozen=True)
class Found:
    """One function with its result in the search.

    Attributes:
        activation: its text.
        value: as stored in the study; an accuracy is a fraction.
        trial: the trial's number; None if the study has not evaluated it.
        settings: values of the study's other parameters.
        cost: at inference, relative to ReLU; None if the search did not use it.
        state: ``complete``, ``diverged``, ``pruned``, ``failed`` or ``running``; empty if it was
            not tried.
        values: of all objectives, if there are several.
    """

    activation: str
    value: float | None
    trial: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    state: str = ""
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        study, storage: location of its trials.
        trials: by state.
        best: the best function in the search that satisfies the study's constraints; None before
            any is complete, and for several objectives.
        baseline: ReLU in the same study.
        top: the best functions, best first.
        confirmed: fresh-seed results on the test set; empty before the confirmation.
        front: for several objectives, including cost, the Pareto front, the best value first.
        failures: failed trials, grouped by reason.
        lacking: why there is no best function; empty if there is one.
        notes: caveats of the verdict.
        metric: of the study; the first of several objectives.
        metrics: of all objectives, if there are several.

    Examples:
        >>> import bo_act
        >>> def best_function(result: bo_act.StudyResult) -> str:
        ...     return result.best.activation if result.best else result.lacking
    """

    study: str
    storage: str
    trials: Counts
    best: Found | None
    baseline: Found
    top: tuple[Found, ...] = ()
    confirmed: tuple[Confirmed, ...] = field(default=())
    front: tuple[Found, ...] = ()
    failures: tuple[FailureGroup, ...] = ()
    lacking: str = ""
    notes: tuple[str, ...] = ()
    metric: Metric = ACCURACY
    metrics: tuple[Metric, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return asdict(self) | {"confirmed": [row.as_json() for row in self.confirmed]}

    def _repr_html_(self) -> str:
        """Show the verdict and the best functions in a notebook."""
        counts = self.trials
        summary = (
            f"{counts.complete} complete ({counts.diverged} diverged), {counts.pruned} pruned, "
            f"{counts.failed} failed"
        )
        title = f"Study {self.study}"
        more: list[Markup | str] = [*self.notes]
        if self.failures:
            more.append(_html_failures(self.failures))
        judged = verdict(self.confirmed, self.metric)
        if judged is not None:
            notes = [judged.note] if judged.note else []
            return box(
                title,
                summary,
                judged.text,
                _html_confirmed(self.confirmed, self.metric),
                *notes,
                *more,
            )
        if self.front and self.metrics:
            return box(title, summary, FRONT, _html_front(self.front, self.metrics), *more)
        if self.best is None:
            return box(title, summary, self.lacking, *more)
        caption = f"Best of the search, by {self.metric.name} with one seed; not confirmed:"
        return box(title, summary, caption, _html_table(self.top, self.metric), *more)


def _drawn(activation: str) -> Markup:
    from bo_act.activations.plots import graph

    functions = functions_of(activation).values()
    return Markup("".join(graph(text, width=72, height=48) for text in functions))


def _html_table(functions: Sequence[Found], metric: Metric) -> Markup:
    values = metric.texts([f.value for f in functions])
    rows = [
        (_drawn(f.activation), f.activation, shown(f.settings), value, f.trial)
        for f, value in zip(functions, values, strict=True)
    ]
    headers = ("", "activation", "settings", metric.name, "trial")
    return table(headers, rows, numbers=frozenset({3, 4}))


def _html_front(functions: Sequence[Found], metrics: Sequence[Metric]) -> Markup:
    columns = [m.texts([f.values[i] for f in functions]) for i, m in enumerate(metrics)]
    rows = [
        (_drawn(f.activation), f.activation, shown(f.settings), *values, f.trial)
        for f, *values in zip(functions, *columns, strict=True)
    ]
    headers = ("", "activation", "settings", *map(str, metrics), "trial")
    return table(headers, rows, numbers=frozenset(range(3, 4 + len(metrics))))


def _html_confirmed(confirmed: Sequence[Confirmed], metric: Metric) -> Markup:
    rows = [
        (
            _drawn(row.activation),
            row.activation,
            shown(row.settings),
            with_interval(row.test, metric),
            "" if row.minus_relu is None else with_interval(row.minus_relu, metric, signed=True),
        )
        for row in confirmed
    ]
    headers = (
        "",
        "activation",
        "settings",
        confirmed[0].of(metric) if confirmed else "",
        "minus ReLU",
    )
    return table(headers, rows, numbers=frozenset({3, 4}))


def _html_failures(groups: Sequence[FailureGroup]) -> Markup:
    rows = [(group.phase, group.reason, group.count, group.functions) for group in groups]
    return table(("failed in", "reason", "times", "activation"), rows, numbers=frozenset({2}))


def summarize(
    study: optuna.Study,
    spec: StudySpec | None,
    confirmed: Sequence[Confirmed] = (),
    *,
    storage: str = "",
    top: int = 10,
) -> StudyResult:
    """Read a study's outcome from its trials.

    Args:
        study: any.
        spec: the study file; None if a program made the study.
        confirmed: results of the confirmation.
        storage: of the trials; default: from the file.
        top: number of functions, the best ones.
    """
    if len(study.directions) > 1:
        return _of_several(study, storage)
    own, metric = own_trials(study), metric_of(study)
    ranked = rank(own, metric)
    baselines = [REFERENCE, *(row.activation for row in confirmed if row.role == "baseline")]
    confirming = (
        failures_of_runs("confirmation", failed_runs(spec, study, best_configurations(study, spec)))
        if spec
        else []
    )
    return StudyResult(
        study=study.study_name,
        storage=storage or (location(spec) if spec else ""),
        trials=count(own),
        metric=metric,
        best=_found(ranked[0], spec) if ranked else None,
        baseline=_baseline(own, metric, spec),
        top=tuple(_found(trial, spec) for trial in ranked[:top]),
        front=tuple(_found(trial, spec) for trial in _front(ranked, spec, metric)),
        confirmed=tuple(confirmed),
        failures=(*failures(own), *confirming),
        lacking=nothing_found(own, objective=spec is None or spec.objective is not None),
        notes=(
            *baseline_notes(own, baselines),
            *notes_on_failures(confirming, confirmed, seeds=spec.confirm.seeds if spec else 0),
        ),
    )


def _of_several(study: optuna.Study, storage: str) -> StudyResult:
    """Return the outcome of a study with several objectives: its Pareto front."""
    own, metrics = own_trials(study), metrics_of(study)
    return StudyResult(
        study=study.study_name,
        storage=storage,
        trials=count(own),
        best=None,
        baseline=Found(REFERENCE, None, None),
        front=tuple(
            Found(
                text_of(trial),
                trial.values[0],
                trial.number,
                settings_of(trial, None),
                state="complete",
                values=tuple(trial.values),
            )
            for trial in front_of(own, metrics)
        ),
        failures=tuple(failures(own)),
        lacking=nothing_found(own, objective=True),
        metric=metrics[0],
        metrics=metrics,
    )


def front_of(trials: Sequence[FrozenTrial], metrics: Sequence[Metric]) -> list[FrozenTrial]:
    """Return the Pareto front of trials, the best first value first.

    Args:
        trials: of a study with several objectives; trials that violate a constraint are left out.
        metrics: of the objectives.
    """
    done = [trial for trial in measured(trials) if is_feasible(trial)]
    values = [[m.sign * trial.values[i] for trial in done] for i, m in enumerate(metrics)]
    return [done[number] for number in pareto_front(*values)]


def _baseline(own: Sequence[FrozenTrial], metric: Metric, spec: StudySpec | None) -> Found:
    """Return ReLU's best result in the search."""
    of_relu = [trial for trial in averaged(own) if text_of(trial) == REFERENCE]
    best = min(of_relu, key=lambda t: (-metric.sign * _value(t), t.number), default=None)
    if best is not None:
        return _found(best, spec)
    tried = [trial for trial in own if text_of(trial) == REFERENCE]
    return Found(REFERENCE, None, tried[-1].number if tried else None, state=state_of(tried))


def read_result(spec: StudySpec) -> StudyResult:
    """Read the outcome of an existing study.

    Raises:
        StorageError: there is no such study.
    """
    return result_of(load_study(spec), spec)


def result_of(study: optuna.Study, spec: StudySpec | None, *, storage: str = "") -> StudyResult:
    """Read the outcome of an open study; arguments as for ``summarize``."""
    confirmed = read_confirmed(spec, study, best_configurations(study, spec)) if spec else []
    return summarize(study, spec, confirmed, storage=storage)


def best_configurations(study: optuna.Study, spec: StudySpec) -> list[Configuration]:
    """Return the best functions to confirm, best first.

    Each is listed once, with its best settings. If cost is an objective, the Pareto front comes
    first.
    """
    best: dict[str, FrozenTrial] = {}
    metric = metric_of(study)
    ranked = rank(own_trials(study), metric)
    for trial in [*_front(ranked, spec, metric), *ranked]:
        best.setdefault(text_of(trial), trial)
    return [Configuration.of_trial(t, spec) for t in list(best.values())[: spec.confirm.top]]


def best_value(study: optuna.Study) -> float | None:
    """Return the best value so far, as stored; None before any."""
    sign = metric_of(study).sign
    values = [sign * _value(t) for t in averaged(own_trials(study)) if is_feasible(t)]
    return sign * max(values) if values else None


def rank(trials: Sequence[FrozenTrial], metric: Metric) -> list[FrozenTrial]:
    """Return the trials with a value that satisfy the constraints, the best first.

    Repeated trials of a function count as one, with their mean. Among equal values the earlier
    trial comes first, in any storage.
    """
    done = filter(is_feasible, averaged(trials))
    return sorted(done, key=lambda t: (-metric.sign * _value(t), t.number))


def _front(
    ranked: Sequence[FrozenTrial], spec: StudySpec | None, metric: Metric
) -> list[FrozenTrial]:
    if spec is None or spec.acquisition.name != "hypervolume":
        return []
    priced = [trial for trial in ranked if "cost" in trial.user_attrs]
    costs = [-trial.user_attrs["cost"] for trial in priced]
    values = [metric.sign * _value(trial) for trial in priced]
    return [priced[number] for number in pareto_front(values, costs)]


def _value(trial: FrozenTrial) -> float:
    if trial.value is None:
        raise StorageError(f"trial {trial.number} is complete but has no value")
    return trial.value


def _found(trial: FrozenTrial, spec: StudySpec | None) -> Found:
    settings, cost = settings_of(trial, spec), trial.user_attrs.get("cost")
    return Found(text_of(trial), _value(trial), trial.number, settings, cost, "complete")
