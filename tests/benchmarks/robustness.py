"""Searches that are told values of few digits or a spurious one, or coordinates in another unit.

Run by ``make benchmark-robustness``; prints two tables of docs/results/search.md. Searches are
replayed on measured benchmarks. Regret is that of the best function evaluated, by the values as
they were measured. Every finished search is one line of a file, so that a second call goes on where
the first one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
import torch
from kept import Kept
from spectra import BENCHMARKS, SHOWN, shown

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.specs import SurrogateSpec
from bo_act.study.sampling.sampler import ActivationSampler

Targets = Literal["winsorized", "rank_normal", "standardized"]
Told = Callable[[np.ndarray, int], np.ndarray]
"""Values (N,) as measured, and a function that the search begins with → what it is told."""


def rounded(values: np.ndarray, _: int) -> np.ndarray:
    """Return values in steps of a hundredth."""
    return 0.01 * np.round(values / 0.01)


def with_spurious(values: np.ndarray, index: int) -> np.ndarray:
    """Return values of which one is far above all that can be."""
    return np.where(np.arange(len(values)) == index, 5.0, values)


TOLD: dict[str, Told] = {
    "as measured": lambda values, _: values,
    "steps of 0.01": rounded,
    "one is 5.0": with_spurious,
    "both": lambda values, index: with_spurious(rounded(values, index), index),
}


def search(
    benchmark: Benchmark,
    targets: Targets,
    embedding: Embedding | np.ndarray,
    told: Told,
    seed: int,
) -> list[float]:
    """Return the regret after each evaluation, in points."""
    design = initial_design(benchmark, seed=seed)
    there = np.isfinite(benchmark.runs["validation_value"])
    learnt = [index for index in design if not benchmark.diverged[index].any()]
    values = told(benchmark.values, learnt[-1])
    runs = {"validation_value": np.where(there, values[:, None], np.nan)}
    sampler = ActivationSampler(
        benchmark.space,
        embedding=embedding,
        baselines=(),
        initial=0,
        surrogate=SurrogateSpec(targets=targets),
        seed=seed,
    )
    steps = replay(
        replace(benchmark, runs={**benchmark.runs, **runs}),
        sampler,
        evaluations=max(SHOWN),
        design=design,
    )
    truth = np.where(benchmark.measured, benchmark.values, benchmark.chance)
    found = np.maximum.accumulate(truth[[step.index for step in steps]])
    regret: list[float] = (100 * (truth.max() - found)).tolist()
    return regret


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS))
    parser.add_argument(
        "--targets", nargs="+", default=["winsorized", "rank_normal", "standardized"]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/robustness.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = Kept(options.out)
    columns = " | ".join(map(str, SHOWN))

    def row(benchmark: Benchmark, what: str, how: str, one: Callable[[int], list[float]]) -> None:
        runs = [
            kept.get((benchmark.name, what, how, seed), lambda: one(seed))  # noqa: B023
            for seed in range(options.seeds)
        ]
        cells = " | ".join(shown(np.array(runs)[:, place - 1]) for place in SHOWN)
        print(f"| {benchmark.name} | {what} | {how} | {cells} |", flush=True)

    print(f"| benchmark | told | targets | {columns} |\n|---|---|---|" + "---:|" * len(SHOWN))
    opened = [open_benchmark(name) for name in options.benchmarks]
    for benchmark in opened:
        embedding = embed(benchmark, METHODS["default"])
        for what, told in TOLD.items():
            for targets in options.targets:
                row(benchmark, what, targets, partial(search, benchmark, targets, embedding, told))
    print(f"\n| benchmark | embedding | unit | {columns} |\n|---|---|---|" + "---:|" * len(SHOWN))
    for benchmark in opened:
        embedding = embed(benchmark, METHODS["default"])
        for unit in (1.0, 1e3):
            points = np.where(embedding.valid[:, None], unit * embedding.points, 0.0)
            row(
                benchmark,
                "an array of the default's coordinates",
                f"times {unit:,.0f}",
                partial(search, benchmark, "winsorized", points, TOLD["as measured"]),
            )


if __name__ == "__main__":
    main()
