"""Replaying a search on a benchmark, with stored values instead of trainings.

The search is an in-memory Optuna study with the samplers of real studies, and each trial ends at
once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import TrialPruned
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState

from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, ExpressionError
from bo_act.specs.base import MOST_EVALUATIONS, checked_seed, whole

Told = Literal["mean", "run"]
"""What searches are told of a function: the mean of its runs, or one of them."""

TOLD_RUN = "told_run"
"""The column of steps with the run that a search was told, where it was one."""

MOST_REFUSED = 10_000
"""Proposals in a row that do not satisfy what the space requires, before a sampler is given up."""


@dataclass(frozen=True)
class Step:
    """One evaluation of a replayed search.

    Attributes:
        evaluation: its number, from 1.
        index: of the function in the catalogue.
        activation: its text.
        value: observed by the search; for a pruned trial the last value of its curve.
        test: mean test value, hidden from the search; None if unknown.
        suggest_seconds: time of the suggestion; None for a function of the initial design.
        pruned: whether it was stopped before its last epoch.
        train_seconds: time of its training in the benchmark, None if unknown.
    """

    evaluation: int
    index: int
    activation: str
    value: float
    test: float | None
    suggest_seconds: float | None
    pruned: bool
    train_seconds: float | None = None


def initial_design(
    benchmark: Benchmark,
    *,
    seed: int,
    initial: int = 2,
    first: Sequence[int] = (),
    baselines: bool = True,
) -> list[int]:
    """Return the initial design of a search: the same for every method.

    Args:
        benchmark: the measured baselines of its space come first.
        seed: of the random ones.
        initial: random measured functions after the baselines.
        first: functions before the baselines.
        baselines: whether to include them.
    """
    seed = checked_seed(seed, error=BenchmarkError)
    whole(initial, "initial", error=BenchmarkError)
    catalogue = benchmark.space.catalogue
    design: list[int] = []
    for baseline in benchmark.space.baselines if baselines else ():
        try:
            design.append(catalogue.index(baseline))
        except ExpressionError:  # a baseline may be outside the space
            continue
    design = [index for index in dict.fromkeys([*first, *design]) if benchmark.measured[index]]
    others = np.setdiff1d(np.flatnonzero(benchmark.measured), design)
    generator = np.random.default_rng([seed, len(design)])
    drawn = generator.choice(others, size=min(initial, len(others)), replace=False)
    return design + [int(index) for index in drawn]


def replay(
    benchmark: Benchmark,
    sampler: BaseSampler,
    *,
    evaluations: int,
    design: Sequence[int] = (),
    pruner: BasePruner | None = None,
) -> list[Step]:
    """Let a sampler search a benchmark.

    A function without a value in the benchmark counts as an evaluation at chance level, like a
    network that does not learn; in a partial benchmark it is refused, as if outside the space, and
    does not count. A pruner sees the mean curve of a function's runs, epoch by epoch.

    Args:
        benchmark: source of the values.
        sampler: of a study of the benchmark's space.
        evaluations: trials in all, including the design.
        design: indices of the first functions.
        pruner: may stop trials; needs a benchmark with curves.

    Raises:
        BenchmarkError: there is a pruner but the benchmark has no curves, or the sampler proposes
            no function of the space.

    Examples:
        >>> import optuna, bo_act
        >>> benchmark = bo_act.open_benchmark("digits_mlp")
        >>> steps = replay(benchmark, optuna.samplers.RandomSampler(seed=0), evaluations=5)
        >>> [step.evaluation for step in steps]
        [1, 2, 3, 4, 5]
    """
    if pruner is not None and benchmark.curves is None:
        raise BenchmarkError(
            f"benchmark {benchmark.name!r} has no learning curves to prune by; leave the pruner "
            "out, or use a benchmark made by `bo-act bench build`"
        )
    whole(evaluations, "evaluations", low=1, high=MOST_EVALUATIONS, error=BenchmarkError)
    catalogue = benchmark.space.catalogue
    study = optuna.create_study(
        direction=benchmark.metric.direction, sampler=sampler, pruner=pruner or NopPruner()
    )
    for index in design:
        study.enqueue_trial(catalogue.params(index))
    steps = []
    for evaluation in range(1, evaluations + 1):
        started = time.perf_counter()
        trial = _ask(study, benchmark)
        seconds = time.perf_counter() - started
        index = catalogue.index(trial.params)
        taken = _note_times(benchmark, trial, index)
        value, pruned = _answer(benchmark, study, trial, index)
        test = float(benchmark.test[index]) if benchmark.measured[index] else benchmark.least
        steps.append(
            Step(
                evaluation,
                index,
                catalogue.text(index),
                value,
                test if np.isfinite(test) else None,
                seconds if evaluation > len(design) else None,
                pruned,
                taken,
            )
        )
    return steps


def _ask(study: Study, benchmark: Benchmark) -> Trial:
    """Return a trial with a function of the space, in a partial benchmark a measured one.

    Samplers without a catalogue may propose functions that violate the space's requirements; these
    trials are pruned and do not count.

    Raises:
        BenchmarkError: it keeps proposing such functions.
    """
    space = benchmark.space
    for _ in range(MOST_REFUSED):
        trial = study.ask()
        try:
            space.suggest_expression(trial)
        except TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        if not benchmark.is_part or benchmark.measured[space.catalogue.index(trial.params)]:
            return trial
        study.tell(trial, state=TrialState.PRUNED)
    lacking = f", or are not measured in {benchmark.name!r}" if benchmark.is_part else ""
    raise BenchmarkError(
        f"{MOST_REFUSED} proposals in a row do not satisfy what the space {space.name!r} "
        f"requires{lacking}; after a pruned trial, a sampler must propose something else"
    )


def mean_curve(benchmark: Benchmark, index: int) -> NDArray[np.float64]:
    """Return the mean validation value after each epoch that any run reached, (E',)."""
    if benchmark.curves is None:
        return np.empty(0)
    curves = benchmark.curves[index].astype(np.float64)
    finite = np.isfinite(curves)
    reached = finite.any(axis=0)
    total = np.where(finite, curves, 0.0).sum(axis=0)
    return np.asarray(total[reached] / finite.sum(axis=0)[reached])


def _note_times(benchmark: Benchmark, trial: Trial, index: int) -> float | None:
    """Record the attributes of a real training, and return its seconds."""
    if "seconds" not in benchmark.runs or not benchmark.measured[index]:
        return None
    taken = float(np.nanmedian(benchmark.runs["seconds"][index]))
    if not np.isfinite(taken):
        return None
    trial.set_user_attr("seconds", taken)
    if benchmark.diverged[index].any():
        trial.set_user_attr("status", "diverged")
    return taken


def _answer(
    benchmark: Benchmark, study: optuna.Study, trial: Trial, index: int
) -> tuple[float, bool]:
    if not isinstance(study.pruner, NopPruner):
        for epoch, value in enumerate(mean_curve(benchmark, index)):
            trial.report(float(value), epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return float(value), True
    measured = benchmark.measured[index]
    value = float(benchmark.values[index]) if measured else benchmark.least
    study.tell(trial, value)
    return value, False
