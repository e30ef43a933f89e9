"""Confirmation: the best functions trained anew with fresh seeds, and the test set read.

The search selects on validation data, of one seed a function, so its best value is partly luck.
What is claimed is therefore measured again: each of the best functions and each baseline with the
same fresh seeds, on the test set, with intervals over further seeds and further test examples.
Where other parameters are searched as well, each is trained with the best settings that the search
saw for it. Results are kept in the study, seed by seed, with what each test example had, so that an
interrupted confirmation goes on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act import statistics
from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.errors import SearchError
from bo_act.failures import Failure
from bo_act.metrics import Metric
from bo_act.specs import StudySpec
from bo_act.specs.base import derived_seed
from bo_act.study.results.confirmation_runs import Run, measured
from bo_act.study.results.failures import state_of
from bo_act.study.results.per_example import KEY, Floats, table
from bo_act.study.storage.trials import is_diverged, own_trials
from bo_act.study.storage.trials import measured as finite
from bo_act.tasks.configuration import REFERENCE, Configuration
from bo_act.tasks.task import Task

FRESH = 10_000
"""Added to a study's seed for the first confirmation seed; the search uses the seed itself."""

_FAILURES_IN_A_ROW = 5  # after which the cause lies outside the functions


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval by Student's t.

    Attributes:
        mean: over the seeds, and the test examples.
        low, high: ends of the interval; None for one seed.
        over: what is taken for a sample: ``seeds`` alone, or ``both`` seeds and test examples,
            whichever of the two is the wider.
        intervals: ends by what is a sample: ``seeds``, ``examples``, ``both``; empty where single
            examples are not known.
    """

    mean: float
    low: float | None
    high: float | None
    over: Literal["seeds", "both"] = "seeds"
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of differences paired by seed, and by test example.

    Attributes:
        p: of the t-test that the interval is of, two-sided, not adjusted: how often as large a
            difference would be seen over other seeds (and other test examples, see ``over``) if
            there was none. None where the differences are equal, be it up to rounding.
        p_values: the same by what is a sample, as ``intervals``.
    """

    p: float | None = None
    p_values: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Confirmed:
    """One function, trained with fresh seeds.

    Attributes:
        activation: its text.
        settings: values of the study's other parameters.
        tried: settings that the search tried it with.
        role: ``found`` by the search or a ``baseline``.
        seeds: how many were trained.
        diverged: how many of them diverged; they count as networks that learn nothing.
        test, validation: of the metric, as values are stored: an accuracy is a fraction.
        on: ``test``; or ``validation``, where an objective of your own returns nothing else.
        searched: its best value in the search, of one seed; None where it has none.
        state: what came of it in the search: ``complete``, ``diverged``, ``pruned``, ``failed`` or
            ``running``; empty where it was not tried.
        minus: its test value minus that of each baseline, by its text, paired by seed and example.
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
    state: str = ""
    minus: Mapping[str, Difference] = field(default_factory=dict)
    on: Literal["test", "validation"] = "test"

    @property
    def data(self) -> str:
        """What it was confirmed on, for people."""
        return "the test set" if self.on == "test" else "validation data"

    def of(self, metric: Metric) -> str:
        """Return the name of what was confirmed, for people."""
        return f"{self.on} {metric.name}"

    @property
    def minus_relu(self) -> Difference | None:
        """Its test value minus that of ReLU, paired; None of ReLU itself."""
        return self.minus.get(REFERENCE)

    @property
    def shrinkage(self) -> float | None:
        """The search's value minus that of fresh seeds."""
        return None if self.searched is None else self.searched - self.validation.mean

    def as_json(self) -> dict[str, Any]:
        """Return what ``bo-act run --json`` prints."""
        row = asdict(self)
        return row | {"minus_relu": row["minus"].get(REFERENCE), "shrinkage": self.shrinkage}


def paired(
    a: Sequence[float], b: Sequence[float], examples: tuple[Floats, Floats] | None = None
) -> Difference:
    """Return the mean of a - b over n seeds, its 95% interval and the p of the t-test.

    Args:
        a: means of each seed.
        b: those of the other.
        examples: (n, N) of each seed and test example, of which those are the means.
    """
    found = statistics.paired(a, b)
    if examples is None:
        low, high = found.interval or (None, None)
        return Difference(found.mean, low, high, p=found.p)
    crossed = statistics.crossed(*examples)
    said = crossed.both if crossed.wider == "both" else found
    low, high = said.interval or (None, None)
    parts = {"seeds": found, "examples": crossed.examples, "both": crossed.both}
    return Difference(
        found.mean,
        low,
        high,
        crossed.wider,
        {name: one.interval for name, one in parts.items()},
        said.p,
        {name: one.p for name, one in parts.items()},
    )


def interval(values: Sequence[float], examples: Floats | None = None) -> Interval:
    """Return the mean of n values and the 95% interval of the mean; none for n = 1.

    Args:
        values: means of each seed.
        examples: (n, N) of each seed and test example, of which those are the means.
    """
    mean, ends = statistics.mean_interval(values)
    if examples is None:
        low, high = ends or (None, None)
        return Interval(mean, low, high)
    found = statistics.crossed(examples)
    intervals = {"seeds": ends, "examples": found.examples.interval, "both": found.both.interval}
    low, high = intervals[found.wider] or (None, None)
    return Interval(mean, low, high, found.wider, intervals)


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

    A training that fails is noted in the study, and made again by the next call.

    Returns:
        The found functions in their order, then the baselines; nothing where none was found.

    Raises:
        SearchError: several trainings fail one after the other.
    """
    if not found:
        return []
    wanted = _wanted(task.spec, study, found)
    first = derived_seed(task.spec.seed, FRESH)
    seeds = range(task.spec.confirm.seeds)
    runs = [Run.of(one, seed, first=first) for seed in seeds for one in wanted.values()]
    kept = study.user_attrs
    todo = [run for run in runs if _attribute(run.configuration, run.seed) not in kept]
    done = len(runs) - len(todo)
    if progress and runs:
        progress(done, len(runs), "")
    in_a_row = 0
    for run, row in measured(task, todo, workers):
        key = _attribute(run.configuration, run.seed)
        content = {"activation": run.configuration.text, "seed": run.seed, **row}
        if row.get("test", 0.0) is None:
            content |= dict.fromkeys(("test", "validation"), _worst(task.spec, study))
        failed = "failure" in row
        study.set_user_attr(_failed(key) if failed else key, content)
        in_a_row = in_a_row + 1 if failed else 0
        if in_a_row >= _FAILURES_IN_A_ROW:
            raise SearchError(
                f"{in_a_row} trainings of the confirmation failed in a row; the last: "
                f"{Failure.read(row['failure'])}; finished trainings are saved, and the same "
                "command repeats the others"
            )
        done += 1
        if progress:
            progress(done, len(runs), run.configuration.text)
    return read_confirmed(task.spec, study, found)


def takes_fresh_seeds(task: Task) -> bool:
    """Tell whether a study has a confirmation.

    An objective of your own is confirmed where the study file has a table ``[confirm]``, since its
    trainings may be expensive, and where it asks for ``seed``: else all runs would be the same.
    """
    spec = task.spec
    if task.objective is None or not spec.confirm.seeds:
        return bool(spec.confirm.seeds)
    if "confirm" not in spec.model_fields_set:
        return False
    if not task.objective.asks_for("seed"):
        warnings.warn(
            f"{task.objective.path}: the objective takes no seed, so nothing is confirmed with "
            "fresh ones; add the argument seed, or set confirm.seeds = 0",
            stacklevel=2,
        )
        return False
    return True


def _worst(spec: StudySpec, study: optuna.Study) -> float:
    """Return what a diverged training of an objective of your own counts as."""
    if spec.measured.worst is not None:
        return spec.measured.worst
    sign = spec.measured.sign
    values = [trial.value for trial in finite(own_trials(study)) if trial.value is not None]
    return min(values, key=lambda value: sign * value)


def read_confirmed(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> list[Confirmed]:
    """Return what has been confirmed, over the seeds that every function has by now.

    A function whose every training failed is left out.
    """
    if not found:
        return []
    wanted = _wanted(spec, study, found)
    rows = _rows(spec, study, wanted)
    if not any(rows.values()):
        return []
    baselines = {str(canonical(parse(text))) for text in (REFERENCE, *spec.confirm.baselines)}
    tested = tested_runs(rows, value="test")
    against = {text: tested[text] for text in rows if text in baselines}
    searched = {one.text for one in found}
    return [
        _summarize(
            wanted[text],
            some,
            tested=tested[text],
            against=against,
            metric=spec.measured,
            role="found" if text in searched else "baseline",
            trials=_trials_of(text, study),
        )
        for text, some in rows.items()
    ]


def confirmed_runs(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> dict[str, list[dict[str, Any]]]:
    """Return the single runs of a confirmation, seed by seed.

    Returns:
        Text of each function → its runs, as many of each: ``test`` and ``validation`` values,
        ``status`` and ``seconds`` of training. The same place in two lists is the same seed.
    """
    return _rows(spec, study, _wanted(spec, study, found))


def failed_runs(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> list[dict[str, Any]]:
    """Return the runs of a confirmation that failed: ``activation``, ``seed`` and ``failure``."""
    kept, seeds = study.user_attrs, range(spec.confirm.seeds)
    wanted = _wanted(spec, study, found).values() if found else ()
    keys = [_attribute(one, seed) for seed in seeds for one in wanted]
    return [kept[_failed(key)] for key in keys if key not in kept and _failed(key) in kept]


def _rows(
    spec: StudySpec, study: optuna.Study, wanted: Mapping[str, Configuration]
) -> dict[str, list[dict[str, Any]]]:
    kept, seeds = study.user_attrs, range(spec.confirm.seeds)
    keys = {text: [_attribute(one, seed) for seed in seeds] for text, one in wanted.items()}

    def failed(key: str) -> bool:
        return key not in kept and _failed(key) in kept

    # One whose every training failed would take all seeds from the others.
    rows: dict[str, list[dict[str, Any]]] = {
        text: []
        for text, its in keys.items()
        if any(key in kept for key in its) or not any(map(failed, its))
    }
    for seed in seeds:
        now = {text: keys[text][seed] for text in rows}
        if any(map(failed, now.values())):
            continue
        if any(key not in kept for key in now.values()):
            break
        for text, key in now.items():
            rows[text].append(kept[key])
    return rows


def _wanted(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> dict[str, Configuration]:
    wanted = {one.text: one for one in found}
    for text in (REFERENCE, *spec.confirm.baselines):
        expression = canonical(parse(text))
        wanted.setdefault(str(expression), _best_of(expression, spec, study, found[0].asked))
    return wanted


def _best_of(
    expression: Expression, spec: StudySpec, study: optuna.Study, asked: Mapping[str, Any]
) -> Configuration:
    """Return a function with the best settings it was tried with, else those of the file.

    What else an objective of your own asks for is, of one that was not tried, that of the best.
    """
    trials = _trials_of(str(expression), study)
    tried = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not tried:
        return Configuration.everywhere(expression, spec, spec.defaults, asked)
    sign = spec.measured.sign
    best = min(tried, key=lambda t: (-sign * (t.value or 0.0), t.number))
    return Configuration.of_trial(best, spec)


def _trials_of(text: str, study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in own_trials(study) if trial.user_attrs.get("activation") == text]


def _attribute(one: Configuration, seed: int) -> str:
    text = one.text
    for settings in (one.settings, one.asked):
        text += json.dumps(dict(settings), sort_keys=True) if settings else ""
    return f"bo_act:confirmed:{hashlib.sha256(text.encode()).hexdigest()[:16]}:{seed}"


def _failed(key: str) -> str:
    """Return the attribute of a training that failed, which that of its result overrules."""
    return f"{key}:failed"


@dataclass(frozen=True, eq=False)
class Tested:
    """The test results of a function's n runs, and, where known, of each example (n, N)."""

    values: list[float]
    examples: Floats | None

    def minus(self, other: Tested) -> Difference:
        """Return the differences, paired by seed, and by example where those are known."""
        if self.examples is None or other.examples is None:
            return paired(self.values, other.values)
        return paired(self.values, other.values, (self.examples, other.examples))


def tested_runs(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], *, value: str
) -> dict[str, Tested]:
    """Return the test results of each function, with those of each example if all runs have them.

    Args:
        rows: records of the runs of each function.
        value: the key of a run's result.
    """
    kept = (run[KEY]["count"] for runs in rows.values() for run in runs if run.get(KEY))
    count = next(kept, 0)
    tested = {}
    for text, runs in rows.items():
        values = [run[value] for run in runs]
        tested[text] = Tested(values, table(runs, values, count))
    return tested


def _summarize(
    one: Configuration,
    rows: list[dict[str, Any]],
    *,
    tested: Tested,
    against: Mapping[str, Tested],
    metric: Metric,
    role: str,
    trials: Sequence[FrozenTrial],
) -> Confirmed:
    text = one.text
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    searched = [t.value for t in complete if t.value is not None and not is_diverged(t)]
    minus = {name: tested.minus(theirs) for name, theirs in against.items() if name != text}
    return Confirmed(
        activation=text,
        settings=one.settings,
        tried=len(complete),
        role=role,
        seeds=len(rows),
        diverged=sum(row["status"] == "diverged" for row in rows),
        test=interval(tested.values, tested.examples),
        validation=interval([row["validation"] for row in rows]),
        searched=max(searched, key=lambda value: metric.sign * value, default=None),
        state=state_of(trials),
        minus=minus,
        on="test" if all(row.get("of", "test") == "test" for row in rows) else "validation",
    )
