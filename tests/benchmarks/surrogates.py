"""How well each surrogate orders functions it has not seen, and how honest its intervals are.

Run by ``make benchmark-surrogates``; prints the table of docs/results/benchmarks.md.
"""

from __future__ import annotations

import argparse
from itertools import product

from bo_act.benchmark.store import open_benchmark
from bo_act.comparison.compare import embed
from bo_act.comparison.quality import surrogate_quality
from bo_act.search.method import METHODS


def cell(found: dict) -> str:
    """Return a mean with half its 95% interval."""
    low, high = found["ci95"]
    return f"{found['mean']:.2f} ± {(high - low) / 2:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observations", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    print("| benchmark | method | tau | tau, best fifth | inside 50% | 80% | 95% |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, method in product(
        ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn"),
        ("default", "outputs", "forest", "published"),
    ):
        benchmark, spec = open_benchmark(name), METHODS[method]
        found = surrogate_quality(
            benchmark,
            embed(benchmark, spec),
            spec.surrogate,
            observations=options.observations,
            seeds=options.seeds,
        )
        levels = ["-"] * 3  # nearest neighbours claim no interval
        if spec.surrogate.name != "knn":
            levels = [f"{share['mean']:.2f}" for share in found["coverage"].values()]
        cells = [cell(found["tau"]), cell(found["tau_top"]), *levels]
        print(f"| {name} | `{method}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
