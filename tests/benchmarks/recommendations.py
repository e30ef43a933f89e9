"""How good recommendations are: each shipped benchmark's task in turn, from the others' results.

Prints the tables of docs/results/search.md#in-which-order-should-functions-be-recommended:

- of the first functions: regret of the best of five, the mean gain over ReLU (a loss counts at most
  5 points), the share better than ReLU beside the chance that was said, and the share of the
  80% intervals that hold, for several ways to choose;
- the same where a random half of the functions is unknown in every source and predicted from
  outputs alone.

Functions of one task share that task's luck (how good ReLU is there, above all), so these are four
observations, however many functions are counted.

    python tests/benchmarks/recommendations.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import norm, rankdata

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.search.observations import warp_targets
from bo_act.search.recommendation import Floats, forecast, predicted, winsorized
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process

BENCHMARKS = ("digits_mlp", "digits_small_cnn", "fashion_mlp_adam", "fashion_mnist_small_cnn")
FIRST = (5, 10, 30)
LEAST = -5.0  # points


def gains_of(benchmark: Benchmark) -> Floats:
    """Return gains over ReLU in points, (N,)."""
    relu = benchmark.space.catalogue.index("relu(x)")
    return np.asarray(100 * (benchmark.values - benchmark.values[relu]))


def reduced(gains: Floats) -> Floats:
    """Return winsorized gains, (N, S)."""
    return np.stack(winsorized(list(gains.T)), axis=1)


def normal_scores(values: Floats) -> Floats:
    """Return the normal quantile of each rank."""
    return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))


def smoothed(scores: Floats, blocks: dict) -> Floats:
    """Return the mean of a Gaussian process over output features that is fitted to scores."""
    found = np.full(len(scores), -np.inf)
    rows = np.flatnonzero(blocks["outputs"].present)
    found[rows], _ = predicted(scores, blocks, blocks, rows)
    return found


def smoothed_with_spectra(scores: Floats, embedding: Embedding) -> Floats:
    """Return the same with the Fisher spectra of the task's own network as a second block."""
    rows = np.flatnonzero(embedding.valid)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    rest = np.random.default_rng(0).choice(order[250:], 250, replace=False)
    x, y = (torch.from_numpy(one[[*order[:250], *rest]]) for one in (embedding.points, scores))
    model, _ = fit_gaussian_process(x, (y - y.mean()) / y.std(), embedding.blocks)
    found = np.full(len(scores), -np.inf)
    found[rows] = model.mean_and_variance(torch.from_numpy(embedding.points[rows]))[0].numpy()
    return found


def shown(orders: list[np.ndarray], sources: list[Floats], truths: list[Floats]) -> str:
    """Return the cells of a way to choose, over the tasks."""
    cells = []
    best = [
        truth.max() - truth[order[:5]].max() for order, truth in zip(orders, truths, strict=True)
    ]
    cells.append(f"{np.mean(best):.2f}")
    tops = [truth[order[:10]] for order, truth in zip(orders, truths, strict=True)]
    cells.append(f"{np.mean([np.maximum(top, LEAST).mean() for top in tops]):+.2f}")
    cells.append(f"{np.mean([(top > 0).mean() for top in tops]):.2f}")
    made = [forecast(reduced(gains)) for gains in sources]
    cells.append(
        f"{np.mean([one.chance[o[:10]].mean() for one, o in zip(made, orders, strict=True)]):.2f}"
    )
    for count in FIRST:
        held = []
        for one, order, truth in zip(made, orders, truths, strict=True):
            some = order[:count]
            held.append(((one.low[some] <= truth[some]) & (truth[some] <= one.high[some])).mean())
        each = ", ".join(f"{share:.2f}" for share in held)
        cells.append(f"{np.mean(held):.2f} ({each})" if count == 10 else f"{np.mean(held):.2f}")
    return " | ".join(cells)


def main() -> None:
    """Leave out and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=3, help="random halves that are unknown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    benchmarks = [open_benchmark(name) for name in BENCHMARKS]
    blocks = dict(benchmarks[0].features.blocks)
    relu = benchmarks[0].space.catalogue.index("relu(x)")
    all_gains = np.stack([gains_of(one) for one in benchmarks], axis=1)
    others = [np.delete(np.arange(len(benchmarks)), left) for left in range(len(benchmarks))]
    sources = [all_gains[:, some] for some in others]
    truths = list(all_gains.T)

    def scored(how: Callable[[Floats, Benchmark], Floats]) -> list[np.ndarray]:
        orders = []
        for gains, left in zip(sources, benchmarks, strict=True):
            score = how(gains, left).astype(np.float64).copy()
            score[~blocks["outputs"].present] = score[relu] = -np.inf
            orders.append(np.argsort(-score, kind="stable"))
        return orders

    def each(gains: Floats, how: Callable[[Floats], Floats]) -> Floats:
        return np.stack([how(column) for column in gains.T], axis=1)

    generator = np.random.default_rng(0)
    ways: dict[str, Callable[[Floats, Benchmark], Floats]] = {
        "mean gain (what recommend does)": lambda gains, _: reduced(gains).mean(axis=1),
        "mean normal score of ranks": lambda gains, _: each(gains, normal_scores).mean(axis=1),
        "worst winsorized value (as a warm start begins)": lambda gains, _: each(
            gains, lambda column: warp_targets(column, "winsorized")
        ).min(axis=1),
        "mean gain, smoothed over outputs": lambda gains, _: smoothed(
            reduced(gains).mean(axis=1), blocks
        ),
        "the same, and over this network's Fisher spectra": lambda gains, left: (
            smoothed_with_spectra(reduced(gains).mean(axis=1), embed(left, METHODS["default"]))
        ),
        "mean normal score, smoothed over outputs": lambda gains, _: smoothed(
            each(gains, normal_scores).mean(axis=1), blocks
        ),
        "at random": lambda gains, _: generator.random(len(gains)),
    }
    print("| first by | regret of 5 | gain | better | said | " + " | ".join(map(str, FIRST)) + " |")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(FIRST))
    for name, how in ways.items():
        print(f"| {name} | {shown(scored(how), sources, truths)} |", flush=True)
    held: dict[int, list[float]] = {count: [] for count in FIRST}
    said, better, regrets = [], [], []
    for number in range(options.hidden):
        half = np.random.default_rng(number).permutation(np.flatnonzero(blocks["outputs"].present))
        hidden = np.setdiff1d(half[: len(half) // 2], relu)
        for gains, truth in zip(sources, truths, strict=True):
            filled = np.full((len(hidden), gains.shape[1]), np.nan)
            variances = np.zeros_like(filled)
            for column, gain in enumerate(reduced(gains).T):
                known = gain.copy()
                known[hidden] = np.nan
                filled[:, column], variances[:, column] = predicted(known, blocks, blocks, hidden)
            one, real = forecast(filled, variances), truth[hidden]
            for count in FIRST:
                some = one.order[:count]
                inside = (one.low[some] <= real[some]) & (real[some] <= one.high[some])
                held[count].append(float(inside.mean()))
            said.append(one.chance[one.order[:10]].mean())
            better.append((real[one.order[:10]] > 0).mean())
            regrets.append(real.max() - real[one.order[:5]].max())
    cells = [np.mean(regrets), np.mean(better), np.mean(said), *map(np.mean, held.values())]
    print("\nhalf unknown: regret of 5, better, said, intervals that hold (5, 10, 30): ", end="")
    print(", ".join(f"{cell:.2f}" for cell in cells))


if __name__ == "__main__":
    main()
