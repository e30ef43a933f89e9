"""What a study has found, read from its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from bo_act.errors import StorageError
from bo_act.html import Markup, box, table
from bo_act.specs import StudySpec
from bo_act.statistics import pareto_front
from bo_act.study.results.confirmation import Confirmed, failed_runs, read_confirmed
from bo_act.study.results.failures import baseline_notes, failures, nothing_found, state_of
from bo_act.study.results.verdict import notes_on_failures, verdict, with_interval
from bo_act.study.storage.opening import load_study, location
from bo_act.study.storage.trials import Counts, count, measured, own_trials
from bo_act.tasks.configuration import REFERENCE, Configuration, functions_of, shown
from bo_act.tasks.failures import FailureGroup, failures_of_runs


@dataclass(frozen=True)
class Found:
    """One function as the search saw it.

    Attributes:
        activation: its text.
        value: validation accuracy, a fraction.
        trial: the trial's number; None where the study has not evaluated it.
        settings: values of the study's other parameters.
        cost: what it costs at inference, in units of ReLU's; None where the search did not ask.
        state: what came of it: ``complete``, ``diverged``, ``pruned``, ``failed`` or ``running``;
            empty where it was not tried.
    """

    activation: str
    value: float | None
    trial: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    state: str = ""


@dataclass(frozen=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        study, storage: location of its trials.
        trials: by state.
        best: the best function by validation accuracy; None before any has completed.
        baseline: ReLU in the same study.
        top: the best functions, best first.
        confirmed: fresh-seed results on the test set; empty before the confirmation.
        front: if cost is an objective, the Pareto front, the best value first.
        failures: failed trials, grouped by reason.
        lacking: why there is no best function; empty if there is one.
        notes: caveats of the verdict.

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

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self) | {"confirmed": [one.as_json() for one in self.confirmed]}

    def _repr_html_(self) -> str:
        """Show the verdict and the best functions in a notebook."""
        counts = self.trials
        said = (
            f"{counts.complete} complete ({counts.diverged} diverged), {counts.pruned} pruned, "
            f"{counts.failed} failed"
        )
        title = f"Study {self.study}"
        more: list[Markup | str] = [*self.notes]
        if self.failures:
            more.append(_html_failures(self.failures))
        judged = verdict(self.confirmed)
        if judged is not None:
            notes = [judged.note] if judged.note else []
            return box(title, said, judged.text, _html_confirmed(self.confirmed), *notes, *more)
        if self.best is None:
            return box(title, said, self.lacking, *more)
        what = "Best of the search, by validation accuracy with one seed; not confirmed:"
        return box(title, said, what, _html_table(self.top), *more)


def _drawn(activation: str) -> Markup:
    from bo_act.activations.plots import graph

    functions = functions_of(activation).values()
    return Markup("".join(graph(text, width=72, height=48) for text in functions))


def _html_table(functions: Sequence[Found]) -> Markup:
    rows = [
        (
            _drawn(f.activation),
            f.activation,
            shown(f.settings),
            "" if f.value is None else f"{100 * f.value:.2f}%",
            f.trial,
        )
        for f in functions
    ]
    headers = ("", "activation", "settings", "validation", "trial")
    return table(headers, rows, numbers=frozenset({3, 4}))


def _html_confirmed(confirmed: Sequence[Confirmed]) -> Markup:
    rows = [
        (
            _drawn(row.activation),
            row.activation,
            shown(row.settings),
            with_interval(row.test, "{:.2f}%"),
            "" if row.minus_relu is None else with_interval(row.minus_relu, "{:+.2f}"),
        )
        for row in confirmed
    ]
    headers = ("", "activation", "settings", "test accuracy", "minus ReLU")
    return table(headers, rows, numbers=frozenset({3, 4}))


def _html_failures(groups: Sequence[FailureGroup]) -> Markup:
    rows = [(one.phase, one.reason, one.count, one.functions) for one in groups]
    return table(("failed in", "reason", "times", "activation"), rows, numbers=frozenset({2}))


def summarize(
    study: optuna.Study, spec: StudySpec, confirmed: Sequence[Confirmed] = (), *, top: int = 10
) -> StudyResult:
    """Read a study's outcome from its trials."""
    own = own_trials(study)
    ranked = _ranked(own)
    baselines = [REFERENCE, *(row.activation for row in confirmed if row.role == "baseline")]
    confirming = failures_of_runs(
        "confirmation", failed_runs(spec, study, best_configurations(study, spec))
    )
    return StudyResult(
        study=study.study_name,
        storage=location(spec),
        trials=count(own),
        best=_found(ranked[0], spec) if ranked else None,
        baseline=_baseline(own, ranked, spec),
        top=tuple(_found(trial, spec) for trial in ranked[:top]),
        front=tuple(_found(trial, spec) for trial in _front(ranked, spec)),
        confirmed=tuple(confirmed),
        failures=(*failures(own), *confirming),
        lacking=nothing_found(own, objective=spec.objective is not None),
        notes=(
            *baseline_notes(own, baselines),
            *notes_on_failures(confirming, confirmed, seeds=spec.confirm.seeds),
        ),
    )


def _baseline(own: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], spec: StudySpec) -> Found:
    """Return what came of ReLU."""
    best = next((trial for trial in ranked if _text(trial) == REFERENCE), None)
    if best is not None:
        return _found(best, spec)
    tried = [trial for trial in own if _text(trial) == REFERENCE]
    return Found(REFERENCE, None, tried[-1].number if tried else None, state=state_of(tried))


def read_result(spec: StudySpec) -> StudyResult:
    """Read the outcome of a study that was run, without measuring anything.

    Raises:
        StorageError: there is no such study.
    """
    study = load_study(spec)
    confirmed = read_confirmed(spec, study, best_configurations(study, spec))
    return summarize(study, spec, confirmed)


def best_configurations(study: optuna.Study, spec: StudySpec) -> list[Configuration]:
    """Return the best functions that are to be confirmed, best first.

    Each stands once, with the best of the settings that it was tried with. Where cost is an
    objective, those that none beats in both come first.
    """
    best: dict[str, FrozenTrial] = {}
    ranked = _ranked(own_trials(study))
    for trial in [*_front(ranked, spec), *ranked]:
        best.setdefault(_text(trial), trial)
    return [Configuration.of_trial(t, spec) for t in list(best.values())[: spec.confirm.top]]


def best_value(study: optuna.Study) -> float | None:
    """Return the best validation accuracy so far, None before any."""
    ranked = _ranked(own_trials(study))
    return _value(ranked[0]) if ranked else None


def _ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    # Of equal values the earlier trial is the better one: it does not depend on the storage.
    return sorted(measured(trials), key=lambda trial: (-_value(trial), trial.number))


def _front(ranked: Sequence[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    if spec.acquisition.name != "hypervolume":
        return []
    priced = [trial for trial in ranked if "cost" in trial.user_attrs]
    costs = [trial.user_attrs["cost"] for trial in priced]
    return [priced[number] for number in pareto_front([_value(trial) for trial in priced], costs)]


def _value(trial: FrozenTrial) -> float:
    if trial.value is None:
        raise StorageError(f"trial {trial.number} is complete but has no value")
    return trial.value


def _text(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("activation", ""))


def _found(trial: FrozenTrial, spec: StudySpec) -> Found:
    settings = Configuration.of_trial(trial, spec).settings
    cost = trial.user_attrs.get("cost")
    return Found(_text(trial), _value(trial), trial.number, settings, cost, "complete")
