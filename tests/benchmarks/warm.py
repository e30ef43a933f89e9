"""Whether a search should start warm by default: regret early and late, each task left out.

Replays searches of the shipped benchmarks, each learning from the others. A warm start begins
alike for every seed, so here each seed removes a random quarter of the functions, for all ways to
start: what is best, what is begun with and what follows differ between seeds, and differences are
paired. Prints the table of docs/results/search.md#warm-starts. Every finished search is one line of
a file, so that a second call goes on where the first one stopped.

    python tests/benchmarks/warm.py --seeds 30

Ways to start: ``cold`` (the baselines and two random functions); ``warm`` (the default of
``warm_start.sources``: five functions by their mean normal score, and a block of ranks); ``worst``
(five by their winsorized value in their worst source, and the block); ``mean`` (five by their mean
gain, as ``bo-act recommend`` orders them, and the block); ``coverage`` (five
chosen one by one, so that the best of them in each source is as good as possible on average, and
the block). ``no block`` leaves the block out, ``dropped`` after twenty observations; ``shuffled``
permutes the values of the sources.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kept import Kept
from scipy.stats import rankdata

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import as_source
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.recommendation import winsorized
from bo_act.search.searcher import Searcher
from bo_act.search.warm_start import Source, make_warm_start
from bo_act.statistics import mean_interval

BENCHMARKS = (
    "digits_mlp",
    "digits_resnet",
    "digits_small_cnn",
    "fashion_mlp_adam",
    "fashion_mnist_small_cnn",
    "fashion_vit",
    "friedman_mlp",
    "topics_gpt",
)
WAYS = (
    "cold",
    "warm",
    "warm, shuffled",
    "warm, no block",
    "warm, dropped",
    "worst",
    "mean",
    "coverage",
)
SHOWN = (5, 10, 20, 30, 50)
DROPPED = 20  # observations after which the block is


def search(name: str, way: str, seed: int) -> list[float]:
    """Search a benchmark, and return the regret after the evaluations in ``SHOWN``.

    It is in points of accuracy, and in thousandths of another metric.
    """
    benchmark, embedding, sources = _task(name)
    values = benchmark.metric.sign * benchmark.values
    generator = np.random.default_rng([seed, 4])
    there = np.zeros(len(benchmark), dtype=bool)
    there[generator.permutation(len(benchmark))[len(benchmark) // 4 :]] = True
    embedding = embedding.restricted(there)
    begin, _, then = way.partition(", ")
    if then == "shuffled":
        sources = [replace(one, values=generator.permutation(one.values)) for one in sources]
    warm = make_warm_start(sources, embedding)
    first = {"worst": _worst, "mean": _mean, "coverage": _covering}.get(begin)
    cold = begin == "cold"
    design = initial_design(
        benchmark,
        seed=seed,
        initial=2 if cold else 0,
        first=() if cold else warm.best if first is None else first(sources, embedding.valid),
        baselines=cold,
    )
    design = [index for index in design if embedding.valid[index]]
    enriched = warm.enrich(embedding)
    searcher = Searcher(initial=0, seed=seed)
    indices: list[int] = []
    for number in range(SHOWN[-1]):
        plain = cold or then == "no block" or (then == "dropped" and number >= DROPPED)
        if number < len(design):
            indices.append(design[number])
            continue
        some = np.array(indices)
        seen = Observations(some, values[some])
        proposal = searcher.propose(embedding if plain else enriched, seen, number=number)
        indices.append(proposal.index)
    best, scale = values[embedding.valid].max(), 100 if benchmark.metric.in_percent else 1000
    return [scale * float(best - values[indices[:count]].max()) for count in SHOWN]


def _mean(sources: list[Source], valid: np.ndarray, count: int = 5) -> list[int]:
    """Choose functions by the mean of their winsorized values."""
    mean = np.mean(winsorized([one.values for one in sources]), axis=0)
    return np.argsort(-np.where(valid, mean, -np.inf), kind="stable")[:count].tolist()


def _worst(sources: list[Source], valid: np.ndarray, count: int = 5) -> list[int]:
    """Choose functions by their winsorized value in the source where that is the worst."""
    worst = np.min([warp_targets(one.values, "winsorized") for one in sources], axis=0)
    return np.argsort(-np.where(valid, worst, -np.inf), kind="stable")[:count].tolist()


def _covering(sources: list[Source], valid: np.ndarray, count: int = 5) -> list[int]:
    """Choose functions one by one, for the largest mean over sources of the best score so far."""
    shares = np.stack([rankdata(-one.values) / len(one.values) for one in sources], axis=1)
    scores = np.where(valid[:, None], -np.log(shares), -np.inf)
    best = np.zeros(scores.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        gain = np.maximum(scores, best).mean(axis=1)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, scores[chosen[-1]])
    return chosen


_TASKS: dict[str, tuple[Benchmark, Embedding, list[Source]]] = {}


def _task(name: str) -> tuple[Benchmark, Embedding, list[Source]]:
    if name not in _TASKS:
        benchmark = open_benchmark(name)
        others = [open_benchmark(other) for other in BENCHMARKS if other != name]
        sources = [as_source(other, benchmark.space) for other in others]
        _TASKS[name] = benchmark, embed(benchmark, METHODS["default"]), sources
    return _TASKS[name]


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--benchmarks", nargs="+", default=BENCHMARKS)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("runs/warm.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(options.out)
    print("| benchmark | start | " + " | ".join(map(str, SHOWN)) + " |")
    print("|---|---|" + "---:|" * len(SHOWN))
    for name in options.benchmarks:
        usual: np.ndarray | None = None
        for way in options.ways:
            regrets = np.array(
                [
                    kept.get((name, way, seed), partial(search, name, way, seed))
                    for seed in range(options.first_seed, options.first_seed + options.seeds)
                ]
            )
            cells = []
            usual = regrets if usual is None else usual
            for column, before in zip(regrets.T, usual.T, strict=True):
                cell = f"{column.mean():.2f}"
                if regrets is not usual:  # paired by seed
                    middle, ends = mean_interval(column - before)
                    half = (ends[1] - ends[0]) / 2 if ends else math.nan
                    cell += f" ({middle:+.2f} ± {half:.2f})"
                cells.append(cell)
            print(f"| {name} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
