"""What the cost of functions brings a search: regret by seconds of training, and the front.

Run by ``make benchmark-costs``; prints the tables of docs/results/search.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from pandas import DataFrame

from bo_act.benchmark.table import Benchmark
from bo_act.comparison.compare import compare
from bo_act.spaces.costs import costs_of, operator_times
from bo_act.statistics import mean_interval, pareto_front
from bo_act.terminal import live

BENCHMARKS = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn", "fashion_mlp_adam")
METHODS = ("default", "per_second", "hypervolume", "random")
SHOWN = (20, 30, 50)


def cell(values: np.ndarray, form: str = "{:.2f}") -> str:
    """Return a mean with half its 95% interval."""
    middle, (low, high) = mean_interval(values)
    return f"{form.format(middle)} ± {form.format((high - low) / 2)}"


def area(values: np.ndarray, logs: np.ndarray, least: float, most: float) -> float:
    """Return the area that functions dominate, of value above and logarithm of cost below."""
    above = values > least
    values, logs = values[above], logs[above]
    steps = pareto_front(values.tolist(), (-logs).tolist())[::-1]
    ends = [*(float(logs[i]) for i in steps[1:]), most]
    return float(
        sum((end - logs[i]) * (values[i] - least) for i, end in zip(steps, ends, strict=True))
    )


def by_seconds(runs: dict[tuple[str, int], DataFrame], benchmark: Benchmark, seeds: int) -> None:
    """Print regret after as many seconds of training as the default needs for some functions."""
    best = benchmark.values[benchmark.measured].max()

    def clock(run: DataFrame) -> np.ndarray:
        return np.cumsum(run["train_seconds"].astype(float).fillna(0.0).to_numpy())

    budgets = [
        np.mean([clock(runs["default", seed])[at - 1] for seed in range(seeds)]) for at in SHOWN
    ]
    for method in ("default", "per_second", "random"):
        cells = []
        for budget in budgets:
            regrets = []
            for seed in range(seeds):
                run = runs[method, seed]
                count = max(1, int(np.searchsorted(clock(run), budget, side="right")))
                regrets.append(100 * (best - run["value"].to_numpy()[:count].max()))
            cells.append(cell(np.array(regrets)))
        print(f"| {benchmark.name} | `{method}` | {' | '.join(cells)} |")
    print(f"(budgets in seconds: {', '.join(f'{budget:.1f}' for budget in budgets)})")


def of_front(
    runs: dict[tuple[str, int], DataFrame], benchmark: Benchmark, logs: np.ndarray, seeds: int
) -> None:
    """Print the share of the largest area that was dominated after some evaluations."""
    known = np.flatnonzero(benchmark.measured)
    least, most = float(np.median(benchmark.values[known])), float(logs[known].max())
    whole = area(benchmark.values[known], logs[known], least, most)
    for method in ("default", "hypervolume", "random"):
        cells = []
        for at in SHOWN:
            seen = [runs[method, seed]["index"].to_numpy()[:at] for seed in range(seeds)]
            shares = [area(benchmark.values[i], logs[i], least, most) / whole for i in seen]
            cells.append(cell(np.array(shares), "{:.3f}"))
        print(f"| {benchmark.name} | `{method}` | {' | '.join(cells)} |")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/compare/costs"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with live(quiet=False) as events:
        found = compare(
            BENCHMARKS,
            METHODS,
            evaluations=100,
            seeds=options.seeds,
            workers=options.workers,
            out=options.out,
            events=events,
        )
    times = operator_times()
    runs = dict(iter(found.steps.groupby(["benchmark", "method", "seed"])))
    of = {
        name: {(m, s): run for (b, m, s), run in runs.items() if b == name} for name in BENCHMARKS
    }
    print("Regret in points by seconds of training, as long as the default takes for\n")
    print(f"| benchmark | method | {' | '.join(map(str, SHOWN))} |\n|---|---|---:|---:|---:|")
    for name in BENCHMARKS:
        by_seconds(of[name], found.benchmarks[name], options.seeds)
    print("\nShare of the largest area dominated, by evaluations\n")
    print(f"| benchmark | method | {' | '.join(map(str, SHOWN))} |\n|---|---|---:|---:|---:|")
    for name in BENCHMARKS:
        benchmark = found.benchmarks[name]
        logs = np.log(costs_of(benchmark.space.catalogue, times))
        of_front(of[name], benchmark, logs, options.seeds)


if __name__ == "__main__":
    main()
