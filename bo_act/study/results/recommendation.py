"""Recommendation: which functions to try on a task, before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from bo_act import content
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.space import Space, load_space
from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import is_task_of, matched, same_runs
from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, ExpressionError, SpecError
from bo_act.features.outputs import output_blocks
from bo_act.metrics import Metric
from bo_act.search.recommendation import (
    FEWEST,
    LEVEL,
    Floats,
    Forecast,
    forecast,
    predicted,
    winsorized,
)
from bo_act.specs import StudySpec
from bo_act.specs.base import whole
from bo_act.statistics import tied
from bo_act.tasks.configuration import REFERENCE


@dataclass(frozen=True)
class Recommended:
    """A function to try.

    Attributes:
        activation: the function.
        gain: expected over the present function, larger is better, in the recommendation's unit.
        low, high: 80% interval of the gain.
        chance: probability of being better than the present function.
        measured: gain in each source, in their order; None if the source lacks the function.
    """

    activation: str
    gain: float
    low: float
    high: float
    chance: float
    measured: tuple[float | None, ...]


@dataclass(frozen=True)
class Recommendation:
    """Functions to try on a task, most promising first.

    Attributes:
        study: its name.
        over: the present function.
        sources: names of the benchmarks.
        metric: with the unit of the gains; None if sources and study have different metrics: gains
            are then differences of normal scores of ranks.
        functions: the recommended ones.
        left_out: unused benchmarks, of the study's own task.

    Examples:
        >>> import bo_act
        >>> recommendation = bo_act.recommend(bo_act.read_study("quickstart"), top=3)
        >>> [0 < function.chance < 1 for function in recommendation.functions]
        [True, True, True]
    """

    study: str
    over: str
    sources: tuple[str, ...]
    metric: Metric | None
    functions: tuple[Recommended, ...]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return {
            "study": self.study,
            "over": self.over,
            "unit": RANKS if self.metric is None else self.metric.differences,
            "metric": None if self.metric is None else self.metric.as_json(),
            "level": LEVEL,
            "sources": list(self.sources),
            "left_out": list(self.left_out),
            "functions": [
                {
                    "activation": function.activation,
                    "gain": function.gain,
                    "low": function.low,
                    "high": function.high,
                    "chance": function.chance,
                    "measured": dict(zip(self.sources, function.measured, strict=True)),
                }
                for function in self.functions
            ],
        }


RANKS = "normal scores of ranks"
"""The unit of gains if metrics differ."""


def recommend(
    study: StudySpec,
    *,
    top: int = 10,
    over: str | Expression | None = None,
    sources: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recommendation:
    """Recommend functions for a task by their gains on other tasks, without any training.

    The expected gain is the mean over the sources, see ``forecast``. If a source lacks a function,
    a Gaussian process predicts its value from the function's outputs. Neither the network nor the
    data is read. Sources of the study's own task are left out.

    Args:
        study: with a space, a metric and a task.
        top: number of functions.
        over: the present function; default: the first of ``confirm.baselines``, else ReLU.
        sources: names or paths of benchmarks; default: all known by name.
        progress: called with (sources read, number of sources).

    Raises:
        SpecError: the study has several activations, or its space is too large to be listed.
        BenchmarkError: fewer than two sources remain, or a source lacks the present function.

    Examples:
        >>> import bo_act
        >>> recommendation = recommend(bo_act.read_study("quickstart"), top=5)
        >>> len(recommendation.functions), recommendation.over
        (5, 'relu(x)')
    """
    whole(top, "top", low=1)
    space = _space(study)
    present = parse(str(over or next(iter(study.confirm.baselines), REFERENCE)))
    used, left_out = _read(study, sources, progress)
    metric = study.measured
    same = all(_is_alike(source.metric, metric) for source in used)
    gains = [_gains(source, present, in_ranks=not same) for source in used]
    predicted_gains, measured = _forecast(space, used, gains)
    own = _index(space, present)
    chosen = [int(index) for index in predicted_gains.order if index != own][:top]
    return Recommendation(
        study.name,
        str(present),
        tuple(source.name for source in used),
        metric if same else None,
        tuple(
            Recommended(
                space.catalogue.text(index),
                float(predicted_gains.gain[index]),
                float(predicted_gains.low[index]),
                float(predicted_gains.high[index]),
                float(predicted_gains.chance[index]),
                tuple(float(gain) if np.isfinite(gain) else None for gain in measured[index]),
            )
            for index in chosen
        ),
        left_out,
    )


def _space(study: StudySpec) -> Space:
    if study.activations:
        raise SpecError(
            f"recommendations are of one function for the whole network, and {study.name!r} has "
            f"{len(study.activations)} activations ({', '.join(study.activations)}); leave "
            "activations out of the study"
        )
    space = load_space(study.space)
    if study.candidates == "trees" or not space.can_be_listed:
        raise SpecError(
            f"recommendations need a list of all functions, and the space {space.name!r} of "
            f"{len(space):,} expressions is searched without one; name a smaller space: "
            "--set space=act_bench"
        )
    return space


def _read(
    study: StudySpec, names: Sequence[str] | None, progress: Callable[[int, int], None] | None
) -> tuple[list[Benchmark], tuple[str, ...]]:
    """Return the benchmarks to learn from, and the names of those of the study's own task."""
    wanted = list(dict.fromkeys(content.names("studies/benchmarks") if names is None else names))
    used: list[Benchmark] = []
    left_out = []
    for number, name in enumerate(wanted):
        if progress:
            progress(number, len(wanted))
        benchmark = open_benchmark(name)
        if is_task_of(benchmark, study):
            left_out.append(benchmark.name)
        elif not any(same_runs(benchmark, other) for other in used):
            used.append(benchmark)
    if len(used) < FEWEST:
        raise BenchmarkError(
            f"expected at least {FEWEST} benchmarks of other tasks, got "
            f"{', '.join(source.name for source in used) or 'none'}"
            + (f" besides {', '.join(left_out)}, of the study's own task" if left_out else "")
            + "; name more, or leave the sources out to use those that bo-act ships"
        )
    return used, tuple(left_out)


def _is_alike(one: Metric, other: Metric) -> bool:
    return (one.name, one.direction, one.unit) == (other.name, other.direction, other.unit)


def _gains(benchmark: Benchmark, present: Expression, *, in_ranks: bool) -> Floats:
    """Return the gain of each of a benchmark's functions over the present one; NaN if unknown."""
    index = _index(benchmark.space, present)
    if index is None or not benchmark.measured[index]:
        raise BenchmarkError(
            f"the benchmark {benchmark.name!r} has no value of the present function {present}, so "
            "gains over it are unknown there; give another with --over, e.g. --over 'relu(x)'"
        )
    values = benchmark.metric.sign * benchmark.values
    if in_ranks:
        known = benchmark.measured
        ranks = (rankdata(tied(values[known])) - 0.5) / known.sum()
        values = np.full(len(values), np.nan)
        values[known] = norm.ppf(ranks)
    return np.asarray(values - values[index])


def _index(space: Space, function: Expression) -> int | None:
    try:
        return space.catalogue.index(function)
    except ExpressionError:
        return None


def _forecast(
    space: Space, used: Sequence[Benchmark], gains: Sequence[Floats]
) -> tuple[Forecast, NDArray[np.float64]]:
    """Return the forecast for the functions of a space, and their measured gains, (N, S)."""
    catalogue = space.catalogue
    measured = np.full((len(catalogue), len(used)), np.nan)
    for column, (benchmark, gain) in enumerate(zip(used, gains, strict=True)):
        theirs, ours = matched(benchmark, space)
        measured[ours, column] = gain[theirs]
    blocks = output_blocks(catalogue)
    filled, variances = measured.copy(), np.zeros_like(measured)
    for column, (benchmark, gain) in enumerate(zip(used, gains, strict=True)):
        rows = np.flatnonzero(np.isnan(measured[:, column]) & blocks["outputs"].present)
        if len(rows):
            filled[rows, column], variances[rows, column] = predicted(
                winsorized(gain), benchmark.features.blocks, blocks, rows
            )
    filled[~blocks["outputs"].present] = np.nan  # not finite, so nothing to recommend
    return forecast(filled, variances), measured
