"""Searches that are told values of few digits, or one value that is spurious.

Run by ``make benchmark-robustness``; prints a table of docs/results/search.md. Searches are
replayed on measured benchmarks. Regret is that of the best function evaluated, by the values as
they were measured. Every finished search is one line of a file, so that a second call goes on where
the first one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import torch
from kept import Kept
from spectra import BENCHMARKS, SHOWN, shown

from bo_act.benchmark.store import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.search.embedding import Embedding
from bo_act.search.method import METHODS, MethodSpec
from bo_act.specs import SurrogateSpec
from bo_act.study.methods import make_method_sampler

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
    benchmark: Benchmark, method: MethodSpec, embedding: Embedding, told: Told, seed: int
) -> list[float]:
    """Return the regret after each evaluation, in points."""
    design = initial_design(benchmark, seed=seed)
    there = np.isfinite(benchmark.runs["validation_accuracy"])
    values = told(benchmark.values, design[-1])
    runs = {"validation_accuracy": np.where(there, values[:, None], np.nan)}
    steps = replay(
        replace(benchmark, runs={**benchmark.runs, **runs}),
        make_method_sampler(method, benchmark.space, embedding, seed=seed),
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
    print(f"| benchmark | told | targets | {' | '.join(map(str, SHOWN))} |")
    print("|---|---|---|" + "---:|" * len(SHOWN))
    for benchmark in map(open_benchmark, options.benchmarks):
        embedding = embed(benchmark, METHODS["default"])
        for what, told in TOLD.items():
            for targets in options.targets:
                method = MethodSpec(surrogate=SurrogateSpec(targets=targets))
                runs = [
                    kept.get(
                        (benchmark.name, what, targets, seed),
                        lambda: search(benchmark, method, embedding, told, seed),  # noqa: B023
                    )
                    for seed in range(options.seeds)
                ]
                cells = [shown(np.array(runs)[:, place - 1]) for place in SHOWN]
                print(
                    f"| {benchmark.name} | {what} | {targets} | {' | '.join(cells)} |", flush=True
                )


if __name__ == "__main__":
    main()
