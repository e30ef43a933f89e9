"""What Fisher spectra bring to a search: of all functions, of some, of none.

Run by ``make benchmark-spectra``; prints the table of docs/results/search.md. Searches are replayed
on measured benchmarks. Every finished search is one line of a file, so that a second call goes on
where the first one stopped.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import optuna
import torch
from kept import Kept

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.replay import initial_design, replay
from bo_act.errors import ExpressionError
from bo_act.features.subset import spread
from bo_act.features.table import NOT_COMPUTED, Block, FeatureTable
from bo_act.search.embedding.embedding import Embedding, PcaEmbedder
from bo_act.statistics import mean_interval
from bo_act.study.sampling.sampler import ActivationSampler

BENCHMARKS = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn", "fashion_mlp_adam")
SHOWN = (20, 30, 50)  # evaluations


def embed(benchmark: Benchmark, subset: int | None) -> Embedding:
    """Embed a benchmark's functions by the spectra of a subset; 0 means none, None all of them."""
    table = benchmark.features
    if subset == 0:
        table = table.without("fim", "fim_null")
    elif subset is not None:
        table = with_subset(benchmark, subset)
    return PcaEmbedder().fit(table).restricted(benchmark.measured)


def with_subset(benchmark: Benchmark, subset: int) -> FeatureTable:
    """Leave the spectra out that ``features.subset`` would not have computed."""
    table, catalogue = benchmark.features, benchmark.space.catalogue
    start = []
    for baseline in benchmark.space.baselines:
        with suppress(ExpressionError):
            start.append(catalogue.index(baseline))
    kept = np.zeros(len(table), dtype=bool)
    kept[spread(table.blocks, subset, include=start)] = True
    blocks = dict(table.blocks)
    for name in ("fim", "fim_null"):
        values = np.where(kept[:, None], table.blocks[name].values, np.nan)
        reasons = table.blocks[name].reasons
        # What has no output features was never asked for.
        asked = kept | ~table.blocks["outputs"].present
        blocks[name] = Block(
            values.astype(np.float32),
            tuple(r if a else NOT_COMPUTED for r, a in zip(reasons, asked, strict=True)),
        )
    return replace(table, blocks=blocks)


def search(benchmark: Benchmark, embedding: Embedding, seed: int) -> list[float]:
    """Return the regret after each evaluation."""
    sampler = ActivationSampler(
        benchmark.space, embedding=embedding, baselines=(), initial=0, seed=seed
    )
    steps = replay(
        benchmark,
        sampler,
        evaluations=max(SHOWN),
        design=initial_design(benchmark, seed=seed),
    )
    best = benchmark.values[benchmark.measured].max()
    regret = 100 * (best - np.maximum.accumulate([step.value for step in steps]))
    return regret.tolist()


def shown(numbers: np.ndarray) -> str:
    """Return a mean with half of its 95% interval."""
    middle, ends = mean_interval(numbers)
    return f"{middle:.2f}" + (f" ± {(ends[1] - ends[0]) / 2:.2f}" if ends else "")


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--subset", type=int, default=500)
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path("runs/spectra.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = Kept(options.out)
    none = "none, output features alone"
    ways = {
        none: 0,
        f"{options.subset} spread out, the rest imputed": options.subset,
        "all": None,
    }
    columns = " | ".join(map(str, SHOWN))
    minus = " | ".join(f"minus none, at {place}" for place in SHOWN)
    print(f"| benchmark | spectra | {columns} | {minus} |")
    print("|---|---|" + "---:|" * (2 * len(SHOWN)))
    for benchmark in map(open_benchmark, options.benchmarks):
        regrets: dict[str, np.ndarray] = {}
        for name, subset in ways.items():
            runs = []
            embedding = cache(partial(embed, benchmark, subset))
            for seed in range(options.seeds):
                key = (benchmark.name, subset, seed)
                runs.append(kept.get(key, lambda: search(benchmark, embedding(), seed)))  # noqa: B023
            regrets[name] = np.array(runs)
        for name, regret in regrets.items():
            cells = [shown(regret[:, place - 1]) for place in SHOWN]
            for place in SHOWN:
                apart = (regret - regrets[none])[:, place - 1]
                cells.append("" if name == none else shown(apart))
            print(f"| {benchmark.name} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
