"""What pruners save: regret by epochs of training, replayed on kept learning curves.

Run by ``make benchmark-pruning``; prints the table of docs/results/search.md. Every finished search
is one line of a file, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import torch
from kept import Kept

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, mean_curve, replay
from bo_act.search.method import METHODS
from bo_act.specs import PrunerSpec
from bo_act.statistics import mean_interval
from bo_act.study.sampling.methods import make_method_sampler
from bo_act.study.storage.pruners import make_pruner

BENCHMARKS = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn")
SHOWN = (20, 30, 50, 70)  # trainings' worth of epochs


def _early(epochs: int) -> dict[str, int]:
    # As in a study file: ten trials first, then from a quarter of the epochs on.
    return {"startup_trials": 10, "warmup_epochs": max(0, epochs // 4 - 1)}


PRUNERS: dict[str, Callable[[int], PrunerSpec]] = {
    "none": lambda _: PrunerSpec(),
    "median": lambda epochs: PrunerSpec(name="median", **_early(epochs)),
    "best quarter": lambda epochs: PrunerSpec(name="percentile", percentile=25.0, **_early(epochs)),
    "successive_halving": lambda _: PrunerSpec(name="successive_halving"),
    "hyperband": lambda _: PrunerSpec(name="hyperband"),
    "wilcoxon": lambda epochs: PrunerSpec(name="wilcoxon", warmup_epochs=max(2, epochs // 4)),
    "patient median": lambda epochs: PrunerSpec(
        name="patient",
        patience=2,
        wraps=PrunerSpec(name="median", **_early(epochs)),
    ),
    "threshold 50%": lambda epochs: PrunerSpec(
        name="threshold", lower=0.5, warmup_epochs=max(0, epochs // 4 - 1)
    ),
}


def search(benchmark: Benchmark, name: str, seed: int) -> dict:
    """Return the epochs and the regret after each of 100 trials."""
    if benchmark.curves is None:
        raise ValueError(f"{benchmark.name} has no curves")
    epochs, method = benchmark.curves.shape[2], METHODS["default"]
    sampler = make_method_sampler(method, benchmark.space, embed(benchmark, method), seed=seed)
    steps = replay(
        benchmark,
        sampler,
        evaluations=100,
        design=initial_design(benchmark, seed=seed),
        pruner=make_pruner(PRUNERS[name](epochs), epochs=epochs),
    )
    taken = []
    for step in steps:
        curve = mean_curve(benchmark, step.index)
        # A pruned trial's value is the accuracy after its last epoch.
        after = np.flatnonzero(np.isclose(curve, step.value, atol=1e-7))
        taken.append((int(after[0]) + 1) / epochs if step.pruned else 1.0)
    values = [-np.inf if step.pruned else step.value for step in steps]
    best = benchmark.values[benchmark.measured].max()
    regret = 100 * (best - np.maximum.accumulate(values))
    pruned = sum(step.pruned for step in steps)
    return {"trainings": np.cumsum(taken).tolist(), "regret": regret.tolist(), "pruned": pruned}


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = Kept(options.out)
    shown = " | ".join(map(str, SHOWN))
    print(f"| benchmark | pruner | {shown} | pruned of 100 | cost of 100 in training runs |")
    print("|---|---|" + "---:|" * (len(SHOWN) + 2))
    for benchmark in map(open_benchmark, BENCHMARKS):
        for name in PRUNERS:
            runs = []
            for seed in range(options.seeds):
                made = partial(search, benchmark, name, seed)
                runs.append(kept.get((benchmark.name, name, seed), made))
            cells = []
            for budget in SHOWN:
                places = [
                    max(0, int(np.searchsorted(run["trainings"], budget, side="right")) - 1)
                    for run in runs
                ]
                regrets = [run["regret"][place] for run, place in zip(runs, places, strict=True)]
                middle, (low, high) = mean_interval(np.array(regrets))
                cells.append(f"{middle:.2f} ± {(high - low) / 2:.2f}")
            cells.append(f"{np.mean([run['pruned'] for run in runs]):.0f}")
            cells.append(f"{np.mean([run['trainings'][-1] for run in runs]):.0f}")
            print(f"| {benchmark.name} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
