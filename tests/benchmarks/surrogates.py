"""How well each surrogate orders functions it has not seen, and how honest its intervals are.

Run by ``make benchmark-surrogates``; prints the tables of docs/results/benchmarks.md: surrogates
fitted to random functions, and the default's intervals over the course of its own searches.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import optuna
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from surrogate_quality import surrogate_quality

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.study.sampling.methods import make_method_sampler

BENCHMARKS = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn")
COURSE = (20, 50, 100)  # evaluations


def cell(found: dict) -> str:
    """Return a mean with half its 95% interval."""
    low, high = found["ci95"]
    return f"{found['mean']:.2f} ± {(high - low) / 2:.2f}"


def shares(coverage: dict) -> list[str]:
    """Return the covered shares."""
    return [f"{share['mean']:.2f}" for share in coverage.values()]


def compare_surrogates(observations: int, seeds: int) -> None:
    """Print the table of surrogates that saw random functions."""
    print("| benchmark | method | tau | tau, best fifth | inside 50% | 80% | 95% |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, method in product(BENCHMARKS, ("default", "outputs", "forest", "published")):
        benchmark, spec = open_benchmark(name), METHODS[method]
        found = surrogate_quality(
            benchmark,
            embed(benchmark, spec),
            spec.surrogate,
            observations=observations,
            seeds=seeds,
        )
        levels = ["-"] * 3  # nearest neighbours claim no interval
        if spec.surrogate.name != "knn":
            levels = shares(found["coverage"])
        cells = [cell(found["tau"]), cell(found["tau_top"]), *levels]
        print(f"| {name} | `{method}` | {' | '.join(cells)} |", flush=True)


def search(benchmark: Benchmark, embedding: Embedding, seed: int) -> list[int]:
    """Return what the default evaluates, in order."""
    sampler = make_method_sampler(METHODS["default"], benchmark.space, embedding, seed=seed)
    design = initial_design(benchmark, seed=seed)
    steps = replay(benchmark, sampler, evaluations=COURSE[-1], design=design)
    return [step.index for step in steps]


def follow_default(seeds: int) -> None:
    """Print the default's intervals after random functions and after its own searches."""
    print("| benchmark | fitted to | 50% | 80% | 95% | best fifth: 50% | 80% | 95% |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in BENCHMARKS:
        benchmark, spec = open_benchmark(name), METHODS["default"]
        embedding = embed(benchmark, spec)
        searched = [search(benchmark, embedding, seed) for seed in range(seeds)]
        for how, observations in product(("random", "searched"), COURSE):
            found = surrogate_quality(
                benchmark,
                embedding,
                spec.surrogate,
                observations=observations,
                seeds=seeds,
                searched=searched if how == "searched" else None,
            )
            levels = shares(found["coverage"]) + shares(found["coverage_top"])
            print(f"| {name} | {observations} {how} | {' | '.join(levels)} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observations", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    compare_surrogates(options.observations, options.seeds)
    print()
    follow_default(options.seeds)


if __name__ == "__main__":
    main()
