"""Metrics of a comparison: regret, ranks, and probabilities that methods beat others.

S  seeds (runs) of a method on a benchmark      T  evaluations of a run

The incumbent is the function with the best value so far, which the search would recommend. Its
regret is its difference to the best function of the benchmark, in the unit of the metric;
normalized, 1 is the mean regret of a random function. Test regret is that of the same incumbent in
test values, which the search never sees.

A search that observes one run of each function is judged by the mean of the others, free of
selection bias by the observed run. The best function by these others is itself biased, equally for
all methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bo_act.benchmark.table import Benchmark
from bo_act.comparison.replay import TOLD_RUN
from bo_act.errors import BenchmarkError
from bo_act.metrics import ACCURACY, Metric
from bo_act.statistics import holm, mean_interval, negligible, share_interval, share_p, tied

if TYPE_CHECKING:
    from pandas import DataFrame

_TOP = 0.01  # share of the measured functions

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Progress:
    """The runs of one method on one benchmark, evaluation by evaluation.

    Attributes:
        seeds: (S,) ascending.
        regret: (S, T) of the incumbent, in the unit of the stored values.
        test_regret: (S, T) of the incumbent; NaN where its test value is unknown.
        normalized: (S, T) regret over that of a random function.
        rank: (S, T) of the incumbent among the measured functions, 1 is the best.
        seconds: (S, T) of each suggestion; NaN for the initial design.
    """

    seeds: NDArray[np.int64]
    regret: Floats
    test_regret: Floats
    normalized: Floats
    rank: NDArray[np.int64]
    seconds: Floats


def progress(
    steps: DataFrame, benchmarks: Mapping[str, Benchmark]
) -> dict[tuple[str, str], Progress]:
    """Follow the incumbent through every run: (benchmark, method) → progress.

    Args:
        steps: one row for each evaluation, see ``Comparison``.
        benchmarks: name → benchmark, for all names in the steps.

    Raises:
        BenchmarkError: the runs of a method differ in length.
    """
    runs = {}
    signs = steps["benchmark"].map({n: b.metric.sign for n, b in benchmarks.items()})
    steps = steps.assign(value=signs.astype(float) * steps["value"])  # larger is better
    ordered = steps.sort_values(["seed", "evaluation"], kind="stable")
    for (name, method), rows in ordered.groupby(["benchmark", "method"], sort=False):
        seeds, counts = np.unique(rows["seed"], return_counts=True)
        if len(set(counts)) > 1:
            raise BenchmarkError(
                f"expected runs of equal length of {method!r} on {name!r}, got "
                f"{sorted(set(counts))}"
            )
        shape = (len(seeds), int(counts[0]))
        index = rows["index"].to_numpy().reshape(shape)
        # The last value of a pruned trial does not count.
        value = np.where(rows["pruned"], -np.inf, rows["value"]).reshape(shape)
        seconds = rows["suggest_seconds"].to_numpy(dtype=np.float64).reshape(shape)
        benchmark = benchmarks[str(name)]
        if TOLD_RUN not in rows:
            runs[str(name), str(method)] = _progress(benchmark, seeds, index, value, seconds)
            continue
        observed = rows[TOLD_RUN].to_numpy(dtype=np.int64).reshape(shape)[:, 0]
        parts = [
            (
                observed == run,
                benchmark.of_runs(np.delete(np.arange(benchmark.seeds), run).tolist()),
            )
            for run in np.unique(observed)
        ]
        runs[str(name), str(method)] = _joined(
            [
                _progress(judge, seeds[those], index[those], value[those], seconds[those])
                for those, judge in parts
            ]
        )
    return runs


def _joined(parts: Sequence[Progress]) -> Progress:
    """Collect the runs of a method, ascending by seed."""
    order = np.argsort(np.concatenate([part.seeds for part in parts]))
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
        for field in fields(Progress)
    }
    return Progress(**columns)


def _progress(
    benchmark: Benchmark,
    seeds: NDArray[np.int64],
    index: NDArray[np.int64],
    value: Floats,
    seconds: Floats,
) -> Progress:
    best_so_far = np.maximum.accumulate(value, axis=1)
    new = np.concatenate(
        [np.ones((len(value), 1), dtype=bool), value[:, 1:] > best_so_far[:, :-1]], axis=1
    )
    when = np.maximum.accumulate(np.where(new, np.arange(value.shape[1]), 0), axis=1)
    incumbent = np.take_along_axis(index, when, axis=1)
    # Unmeasured functions count as chance, behind all measured ones.
    measured = benchmark.measured
    # Means that differ by rounding are ties.
    sign = benchmark.metric.sign
    truth = tied(sign * np.where(measured, benchmark.values, benchmark.least))
    tested = measured & np.isfinite(benchmark.test)
    test = np.where(measured, np.nan, sign * benchmark.least)
    best_test = np.nan
    if tested.any():
        test[tested] = tied(sign * benchmark.test[tested])
        best_test = test[tested].max()
    ranks = np.where(measured, benchmark.ranks, measured.sum() + 1)
    regret = truth.max() - truth[incumbent]
    return Progress(
        np.asarray(seeds, dtype=np.int64),
        regret,
        best_test - np.minimum(test, best_test)[incumbent],
        regret / spread(benchmark),
        ranks[incumbent],
        seconds,
    )


def spread(benchmark: Benchmark) -> float:
    """Return the mean regret of a random function."""
    best = benchmark.values[benchmark.best]
    regret = benchmark.metric.sign * float(best - benchmark.expectation)
    return 1.0 if negligible(regret, best) else regret


def floor(benchmark: Benchmark) -> float:
    """Return half the smallest positive normalized regret: the lower end of logarithmic axes."""
    values = np.unique(tied(benchmark.metric.sign * benchmark.values[benchmark.measured]))
    gap = float(values[-1] - values[-2]) if len(values) > 1 else 1.0
    return gap / 2 / spread(benchmark)


def evaluations_to_top(rank: NDArray[np.int64], count: int) -> dict[str, Any]:
    """Return the number of evaluations until a run's incumbent was in the best hundredth for good.

    An incumbent by observed runs may be there by chance, and leave again.

    Args:
        rank: (S, T) of the incumbents.
        count: measured functions.

    Returns:
        ``median`` over the runs, with ``censored`` runs that did not end there counted as the
        longest; None if these are half or more.
    """
    inside = rank <= max(1, int(np.ceil(_TOP * count)))
    stays = np.logical_and.accumulate(inside[:, ::-1], axis=1)[:, ::-1]
    got_there = stays[:, -1]
    first = np.where(got_there, stays.argmax(axis=1) + 1.0, np.inf)
    ordered = np.sort(first)
    low, high = ordered[(len(first) - 1) // 2], ordered[len(first) // 2]
    return {
        "median": float((low + high) / 2) if np.isfinite(high) else None,
        "censored": int((~got_there).sum()),
        "runs": len(first),
    }


def probability_of_beating(
    first: Mapping[str, Progress], second: Mapping[str, Progress], *, at: int | None = None
) -> dict[str, Any]:
    """Estimate the probability that one method has less regret than another.

    Runs with the same seed on the same benchmark, and so the same start, are pairs; equal regret
    counts half. The interval of ``share_interval`` is over similar benchmarks: few benchmarks make
    it wide. With a single benchmark it holds for that one only.

    Args:
        first: benchmark → progress of one method.
        second: the same for the other.
        at: number of evaluations; None: all.

    Returns:
        ``probability``, ``ci95`` and ``p`` of one half (None without any pair), ``pairs``, by
        benchmark ``benchmarks``, and on how many of them it wins more than half of the pairs,
        ``ahead``.
    """
    column = -1 if at is None else at - 1
    wins = {}
    for name in first.keys() & second.keys():
        _, mine, theirs = np.intersect1d(first[name].seeds, second[name].seeds, return_indices=True)
        if len(mine):
            difference = second[name].regret[theirs, column] - first[name].regret[mine, column]
            wins[name] = (np.sign(difference) + 1) / 2
    wins = dict(sorted(wins.items()))
    if not wins:
        nothing = {"probability": None, "ci95": None, "p": None}
        return nothing | {"pairs": 0, "benchmarks": {}, "ahead": 0}
    shares = {name: float(outcomes.mean()) for name, outcomes in wins.items()}
    counts = [(outcomes.sum(), len(outcomes)) for outcomes in wins.values()]
    return {
        "probability": float(np.mean(list(shares.values()))),
        "ci95": list(share_interval(counts)),
        "p": share_p(counts),
        "pairs": sum(map(len, wins.values())),
        "benchmarks": shares,
        "ahead": sum(share > 0.5 for share in shares.values()),
    }


def summary(
    steps: DataFrame,
    benchmarks: Mapping[str, Benchmark],
    at: Sequence[int] = (5, 10, 20, 30, 50, 75, 100),
    *,
    compared_at: int | None = None,
) -> dict[str, Any]:
    """Summarize a comparison as JSON values.

    Args:
        steps: one row for each evaluation.
        benchmarks: name → benchmark.
        at: evaluations to report, besides the last one; later ones are left out.
        compared_at: number of evaluations after which to compare methods; None: all.

    Returns:
        ``methods`` → name → ``benchmarks`` → name → figures; ``comparisons``, one for each two
        methods, with ``p_holm``, p adjusted for all of them (Holm 1979); ``compared_at``; what
        searches observed, ``searches_were_told`` (``mean`` or ``run``); and for each benchmark its
        ``metric`` and how many of its ``functions`` are ``measured``, and in several runs
        (``repeated``). Regrets are in the unit of the metric (0.01 of accuracy is one percentage
        point). None is what is unknown: test regret without a test value, seconds without a
        suggestion, the interval of runs that are all equal.
    """
    runs = progress(steps, benchmarks)
    requested = () if compared_at is None else (compared_at,)
    methods: dict[str, dict[str, Progress]] = {}
    for (benchmark, method), run in runs.items():
        methods.setdefault(method, {})[benchmark] = run
    return {
        "methods": {
            method: {
                "benchmarks": {
                    name: _figures(run, benchmarks[name], (*at, *requested))
                    for name, run in on.items()
                }
            }
            for method, on in methods.items()
        },
        "comparisons": adjusted(
            [
                {"a": a, "b": b} | probability_of_beating(methods[a], methods[b], at=compared_at)
                for a, b in combinations(methods, 2)
            ]
        ),
        "compared_at": compared_at or int(steps["evaluation"].max()),
        "searches_were_told": "run" if TOLD_RUN in steps else "mean",
        "benchmarks": {
            name: {
                "metric": table.metric.as_json(),
                "functions": len(table),
                "measured": int(table.measured.sum()),
                "repeated": int(
                    (np.isfinite(table.runs["validation_value"]).sum(axis=1) > 1).sum()
                ),
            }
            for name, table in benchmarks.items()
        },
    }


def remarks(summed: Mapping[str, Any]) -> list[str]:
    """Return remarks on a summary: partial benchmarks, and the observed runs."""
    sentences = [
        f"{name}: {counts['measured']:,} of {counts['functions']:,} functions "
        f"({int(100 * counts['measured'] / counts['functions'])}%) are measured; regret is "
        "relative to the best of them"
        for name, counts in summed["benchmarks"].items()
        if counts["measured"] < counts["functions"]
    ]
    if summed["searches_were_told"] == "run":
        sentences.append(
            "Searches observed one run of each function. The mean of the other runs judges their "
            "choice and defines the best function that regret refers to (with selection bias)"
        )
        sentences += [
            f"{name}: only {counts['repeated']:,} of {counts['measured']:,} functions have several "
            "runs; the run of any other is observed and judges it, too, luck included"
            for name, counts in summed["benchmarks"].items()
            if counts["repeated"] < counts["measured"]
        ]
    return sentences


def adjusted(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return comparisons with p adjusted for the number shown, as ``p_holm``."""
    known = [number for number, comparison in enumerate(comparisons) if comparison["p"] is not None]
    p = dict(zip(known, holm([comparisons[number]["p"] for number in known]), strict=True))
    return [
        {**comparison, "p_holm": p.get(number)} for number, comparison in enumerate(comparisons)
    ]


def _figures(runs: Progress, benchmark: Benchmark, at: Sequence[int]) -> dict[str, Any]:
    last = runs.regret.shape[1]
    evaluations = sorted({evaluation for evaluation in at if evaluation < last} | {last})
    regret = {
        evaluation: mean_interval(runs.regret[:, evaluation - 1]) for evaluation in evaluations
    }
    logs = np.log10(np.maximum(runs.normalized, floor(benchmark)))
    seconds = runs.seconds[np.isfinite(runs.seconds)]
    return {
        "runs": len(runs.seeds),
        "regret": {str(evaluation): mean for evaluation, (mean, _) in regret.items()},
        "ci95": {str(evaluation): _interval(ends) for evaluation, (_, ends) in regret.items()},
        "normalized_regret": _means(runs.normalized, evaluations),
        "test_regret": _means(runs.test_regret, evaluations),
        "median_rank": {str(p): float(np.median(runs.rank[:, p - 1])) for p in evaluations},
        "area_log_regret": float(logs.mean()),
        "evaluations_to_top_1pct": evaluations_to_top(runs.rank, int(benchmark.measured.sum())),
        "suggest_seconds": {
            "median": float(np.median(seconds)) if len(seconds) else None,
            "p95": float(np.quantile(seconds, 0.95)) if len(seconds) else None,
        },
    }


def _interval(ends: tuple[float, float] | None) -> list[float] | None:
    """Return an interval of regret, which is never negative; None without any spread."""
    if ends is None or ends[0] == ends[1]:
        return None
    return [max(0.0, ends[0]), ends[1]]


def _means(values: Floats, evaluations: Sequence[int]) -> dict[str, float | None]:
    means = {str(evaluation): float(values[:, evaluation - 1].mean()) for evaluation in evaluations}
    return {evaluation: mean if np.isfinite(mean) else None for evaluation, mean in means.items()}


def table(summed: Mapping[str, Any]) -> DataFrame:
    """Return a summary as a table: a row per benchmark and method, the best first.

    Regrets are as ``Metric.difference`` writes them, in points if the metric is in percent;
    interval, rank and test regret are those at ``compared_at``.
    """
    import pandas as pd

    rows = []
    compared_at = str(summed["compared_at"])
    for method, on in summed["methods"].items():
        for name, figures in on["benchmarks"].items():
            last = compared_at if compared_at in figures["regret"] else list(figures["regret"])[-1]
            interval = figures["ci95"][last]
            top, test = figures["evaluations_to_top_1pct"], figures["test_regret"][last]
            metric = Metric.read(summed["benchmarks"][name]["metric"]) or ACCURACY
            rows.append(
                {"benchmark": name, "method": method}
                | {
                    f"regret {evaluation}": metric.scale * mean
                    for evaluation, mean in figures["regret"].items()
                }
                | {
                    "± 95%": None
                    if interval is None
                    else metric.scale * (interval[1] - figures["regret"][last]),
                    "median rank": figures["median_rank"][last],
                    "test regret": None if test is None else metric.scale * test,
                    "area": figures["area_log_regret"],
                    "to top 1%": None if top["median"] is None else top["median"],
                    "seconds": figures["suggest_seconds"]["median"],
                }
            )
    frame = pd.DataFrame(rows)
    return frame.sort_values(["benchmark", "area"], kind="stable", ignore_index=True)
