"""Confirmation: the best functions trained anew with fresh seeds, and the test set read.

The search selects on validation accuracy, of one seed a function, so its best value is partly
luck. What is claimed is therefore measured again: each of the best functions and each baseline
with the same fresh seeds, on the test set, with intervals. Where other parameters are searched as
well, each is trained with the best settings that the search saw for it. Results are kept in the
study, seed by seed, so that an interrupted confirmation goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from bo_act import statistics
from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.specs import StudySpec
from bo_act.study.settings import Configuration
from bo_act.study.task import Task
from bo_act.study.trials import is_own
from bo_act.training.images import Images
from bo_act.training.trainer import EVALUATION_BATCH, cpu_threads, evaluate, pick_device
from bo_act.workers import compute_in_processes, cores_each

FRESH = 10_000
"""Added to a study's seed for the first confirmation seed; the search uses the seed itself."""

REFERENCE = "relu(x)"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval (Student's t over the seeds)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of differences paired by seed.

    Attributes:
        p: of the paired t-test, two-sided, not adjusted; None where the differences are equal, be
            it up to rounding.
    """

    p: float | None = None


@dataclass(frozen=True)
class Confirmed:
    """One function, trained with fresh seeds.

    Attributes:
        activation: its text.
        settings: values of the study's other parameters.
        tried: settings that the search tried it with.
        role: ``found`` by the search or a ``baseline``.
        seeds: how many were trained.
        diverged: how many of them diverged; they count with chance-level accuracy.
        test, validation: accuracy, a fraction.
        searched: validation accuracy in the search, of one seed; None where it was not tried.
        minus: test accuracy minus that of each baseline, by its text, paired by seed.
    """

    activation: str
    settings: Mapping[str, Any]
    tried: int
    role: str
    seeds: int
    diverged: int
    test: Interval
    validation: Interval
    searched: float | None = None
    minus: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def minus_relu(self) -> Difference | None:
        """Test accuracy minus that of ReLU, paired by seed; None of ReLU itself."""
        return self.minus.get(REFERENCE)

    @property
    def shrinkage(self) -> float | None:
        """How much of the search's value fresh seeds did not bear out."""
        return None if self.searched is None else self.searched - self.validation.mean

    def as_json(self) -> dict[str, Any]:
        """Return what ``bo-act run --json`` prints."""
        row = asdict(self)
        return row | {"minus_relu": row["minus"].get(REFERENCE), "shrinkage": self.shrinkage}


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Return the mean of a - b over n seeds, its 95% interval and the p of the paired t-test."""
    found = statistics.paired(a, b)
    low, high = found.interval or (None, None)
    return Difference(found.mean, low, high, found.p)


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of n values and the 95% interval of the mean; none for n = 1."""
    mean, ends = statistics.mean_interval(values)
    low, high = ends or (None, None)
    return Interval(mean, low, high)


def confirm(
    task: Task,
    study: optuna.Study,
    found: Sequence[Configuration],
    progress: Callable[[int, int, str], None] | None = None,
    *,
    workers: int = 1,
) -> list[Confirmed]:
    """Train the found functions and the baselines with fresh seeds and read the test set.

    Args:
        task: what to train on.
        study: keeps the results; those it has are not measured again.
        found: the best functions of the search, best first.
        progress: called with (runs done, runs in all, the function that is next).
        workers: processes that train at a time; this one keeps the results.

    Returns:
        The found functions in their order, then the baselines.
    """
    wanted = _wanted(task.spec, study, found)
    runs = [
        _Run.of(one, seed) for seed in range(task.spec.confirm.seeds) for one in wanted.values()
    ]
    kept = study.user_attrs
    todo = [run for run in runs if _attribute(run.configuration, run.seed) not in kept]
    done = len(runs) - len(todo)
    if progress and runs:
        progress(done, len(runs), "")
    for run, row in _measured(task, todo, workers):
        study.set_user_attr(
            _attribute(run.configuration, run.seed),
            {"activation": run.configuration.text, "seed": run.seed, **row},
        )
        done += 1
        if progress:
            progress(done, len(runs), run.configuration.text)
    return read_confirmed(task.spec, study, found)


def read_confirmed(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> list[Confirmed]:
    """Return what has been confirmed, over the seeds that every function has by now."""
    wanted = _wanted(spec, study, found)
    rows = _rows(spec, study, wanted)
    if not rows[REFERENCE]:
        return []
    baselines = {str(canonical(parse(text))) for text in (REFERENCE, *spec.confirm.baselines)}
    against = {text: [r["test"] for r in rows[text]] for text in wanted if text in baselines}
    return [
        _summarize(
            one,
            rows[text],
            against,
            "found" if place < len(found) else "baseline",
            [trial.value for trial in _trials_of(text, study) if trial.value is not None],
        )
        for place, (text, one) in enumerate(wanted.items())
    ]


def confirmed_runs(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> dict[str, list[dict[str, Any]]]:
    """Return the single runs of a confirmation, seed by seed.

    Returns:
        Text of each function → its runs, as many of each: ``test`` and ``validation`` accuracy,
        ``status`` and ``seconds`` of training. The same place in two lists is the same seed.
    """
    return _rows(spec, study, _wanted(spec, study, found))


def _rows(
    spec: StudySpec, study: optuna.Study, wanted: Mapping[str, Configuration]
) -> dict[str, list[dict[str, Any]]]:
    kept = study.user_attrs
    rows: dict[str, list[dict[str, Any]]] = {text: [] for text in wanted}
    for seed in range(spec.confirm.seeds):
        measured = {text: kept.get(_attribute(wanted[text], seed)) for text in rows}
        if any(row is None for row in measured.values()):
            break
        for text, row in measured.items():
            rows[text].append(row or {})
    return rows


def _wanted(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> dict[str, Configuration]:
    wanted = {one.text: one for one in found}
    for text in (REFERENCE, *spec.confirm.baselines):
        expression = canonical(parse(text))
        wanted.setdefault(str(expression), _best_of(expression, spec, study))
    return wanted


def _best_of(expression: Expression, spec: StudySpec, study: optuna.Study) -> Configuration:
    """Return a function with the best settings it was tried with, else those of the file."""
    tried = _trials_of(str(expression), study)
    if not tried:
        return Configuration.everywhere(expression, spec, spec.defaults)
    return Configuration.of_trial(min(tried, key=lambda t: (-(t.value or 0.0), t.number)), spec)


def _trials_of(text: str, study: optuna.Study) -> list[FrozenTrial]:
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get("activation") == text and is_own(trial)
    ]


def _attribute(one: Configuration, seed: int) -> str:
    text = one.text
    if one.settings:
        text += json.dumps(one.settings, sort_keys=True)
    return f"bo_act:confirmed:{hashlib.sha256(text.encode()).hexdigest()[:16]}:{seed}"


@dataclass(frozen=True)
class _Run:
    """One training of the confirmation; travels to other processes.

    Attributes:
        what: the functions' texts by place, and the settings, as JSON.
        seed: which of the fresh seeds, from 0.
    """

    what: str
    seed: int

    def __str__(self) -> str:
        return f"{self.configuration.text} with fresh seed {self.seed}"

    @classmethod
    def of(cls, one: Configuration, seed: int) -> _Run:
        texts = {name: str(function) for name, function in one.functions.items()}
        return cls(json.dumps([texts, dict(one.settings)]), seed)

    @property
    def configuration(self) -> Configuration:
        texts, settings = json.loads(self.what)
        functions = {name: canonical(parse(text)) for name, text in texts.items()}
        return Configuration(functions, settings)


@dataclass(frozen=True)
class _Job:
    """Trains and reads the test set in a worker."""

    spec: StudySpec

    def __call__(self, device: torch.device) -> Callable[[_Run], tuple[_Run, dict[str, Any]]]:
        training = self.spec.training.model_copy(update={"device": str(device)})
        task = Task.load(self.spec.model_copy(update={"training": training}))
        test = task.data.load_test()

        def measure(run: _Run) -> tuple[_Run, dict[str, Any]]:
            with cpu_threads(training.threads):
                return run, _measure(task, run, test)

        return measure


def _measured(
    task: Task, runs: Sequence[_Run], workers: int
) -> Iterator[tuple[_Run, dict[str, Any]]]:
    """Measure runs; the test set is read once, and only where there is something to measure."""
    if workers > 1 and len(runs) > 1:
        training = task.spec.training
        yield from compute_in_processes(
            _Job(task.spec),
            runs,
            device=pick_device(training.device),
            workers=workers,
            threads=training.threads or cores_each(workers),
        )
    elif runs:
        test = task.data.load_test()
        for run in runs:
            yield run, _measure(task, run, test)


def _measure(task: Task, run: _Run, test: Images) -> dict[str, Any]:
    one, seed = run.configuration, task.spec.seed + FRESH + run.seed
    network, result = task.train(one.trained, seed=seed, settings=one.settings)
    spec = task.spec.training
    accuracy = 1 / task.data.num_classes
    if result.status == "completed":
        accuracy = evaluate(
            network,
            test,
            batch_size=EVALUATION_BATCH,
            device=pick_device(spec.device),
            precision=spec.precision,
        )
    return {
        "test": accuracy,
        "validation": result.validation_accuracy,
        "status": result.status,
        "seconds": round(result.seconds, 3),
    }


def _summarize(
    one: Configuration,
    rows: list[dict[str, Any]],
    against: Mapping[str, list[float]],
    role: str,
    searched: list[float],
) -> Confirmed:
    text = one.text
    test = [row["test"] for row in rows]
    minus = {name: paired(test, theirs) for name, theirs in against.items() if name != text}
    return Confirmed(
        activation=text,
        settings=one.settings,
        tried=len(searched),
        role=role,
        seeds=len(rows),
        diverged=sum(row["status"] == "diverged" for row in rows),
        test=interval(test),
        validation=interval([row["validation"] for row in rows]),
        searched=max(searched, default=None),
        minus=minus,
    )
