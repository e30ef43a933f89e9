"""Whether evaluating a function again pays, and which function to recommend in the end.

Searches of kept benchmarks with several runs a function are told one run at a time, and judged

- by a run that they were not told (``held out``): a function can be evaluated once more;
- by the mean of all, where each evaluation is any of the runs (``drawn``): as often as one likes,
  with a truth that is known, in which a function's luck in its three runs counts as its own.

Prints the table of docs/results/benchmarks.md. Every finished search is one line of a file, so that
a second call goes on where the first one stopped.

    python tests/benchmarks/repetition.py --seeds 10

Rules: each function once (``never``); the acquisition function's pool keeps those evaluated
(``pool``, which is ``acquisition.repeat = "auto"``); one of the best is repeated where the
knowledge gradient of that is more than the new one's (``gradient``; ``pooled``: the model gets
means and their variances); the last fifth of the evaluations repeats the best (``final``).
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import Kept
from optuna.trial import create_trial

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.configurations import Configurations
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.search.observations import Observations
from bo_act.search.proposal import Fit
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.statistics import mean_interval
from bo_act.study.storage.study_view import StudyView

EVALUATIONS, SHOWN = 50, (30, 50)
RULES = ("never", "gradient", "gradient, pooled", "pool", "final")
INCUMBENTS = 64
NODES = 32  # of Gauss-Hermite quadrature
FINAL = 0.8  # of the evaluations, after which the best are repeated


class Task:
    """What a search is told, evaluation by evaluation, and what judges it."""

    def __init__(self, benchmark: Benchmark, how: str, seed: int) -> None:
        runs = benchmark.metric.sign * benchmark.runs["validation_value"]
        runs = np.where(np.isfinite(runs), runs, np.nanmin(runs))
        self.runs, self.how = runs, how
        self.generator = np.random.default_rng([seed, 1])
        self.means = runs.mean(axis=1)
        self.best = float(self.means[benchmark.measured].max())
        order = self.generator.permutation(runs.shape[1])
        self.judge, self.order = (self.means, order) if how == "drawn" else (
            runs[:, order[0]], order[1:]
        )  # fmt: skip

    def most(self) -> float:
        """Return how often a function can be evaluated."""
        return math.inf if self.how == "drawn" else len(self.order)

    def value(self, index: int, before: int) -> float:
        """Return one more value of a function that has been evaluated so often before."""
        if self.how == "held out":
            return float(self.runs[index, self.order[before]])
        return float(self.runs[index, self.generator.integers(self.runs.shape[1])])


def gradient(model: GaussianProcess, points: torch.Tensor) -> np.ndarray:
    """Return how much one more measurement of each point raises the largest mean of all, (m,)."""
    mean, covariance = model.joint(points)
    deviation = (covariance.diagonal().clamp_min(1e-12) + model.noise).sqrt()
    moves = covariance / deviation
    nodes, weights = np.polynomial.hermite.hermgauss(NODES)
    largest = sum(
        weight * (mean.unsqueeze(1) + math.sqrt(2.0) * node * moves).amax(dim=0)
        for node, weight in zip(nodes, weights / math.sqrt(math.pi), strict=True)
    )
    return (largest - mean.max()).clamp_min(0.0).numpy()


def proposed(
    rule: str,
    searcher: Searcher,
    embedding: Embedding,
    told: Observations,
    *,
    task: Task,
    number: int,
) -> int:
    """Return what is evaluated next by a rule."""
    indices, counts = np.unique(told.indices, return_counts=True)
    seen = _pooled(told) if rule.endswith("pooled") else told
    again = indices[(counts < task.most()) & embedding.valid[indices]]
    if rule == "never" or (rule == "final" and number < FINAL * EVALUATIONS):
        return searcher.propose(embedding, seen, number=number).index
    fit = searcher.fit(embedding, seen, number=number)
    model = fit.model
    if rule == "final":
        few = again[counts[np.isin(indices, again)] < 3]
        return int(few[means(fit, few).argmax()])
    if rule == "pool":
        others = np.setdiff1d(np.flatnonzero(embedding.valid), indices)
        candidates = np.concatenate([others, again])
        points = fit.space.points(Configurations.of(candidates))
        scores = score_pool(searcher.acquisition, model, points, float(fit.y.max()), seed=number)
        return int(candidates[int(scores.argmax())])
    new = searcher.propose(embedding, seen, number=number).index
    rivals = again[np.argsort(-means(fit, again))[:INCUMBENTS]]
    some = np.append(rivals, new)
    scores = gradient(model, fit.space.points(Configurations.of(some)))
    best = int(scores[:-1].argmax()) if len(rivals) else -1
    return int(some[best]) if scores[best] > scores[-1] else new


def means(fit: Fit, indices: np.ndarray) -> np.ndarray:
    """Return posterior means of functions."""
    return fit.model.mean_and_variance(fit.space.points(Configurations.of(indices)))[0].numpy()


def search(benchmark: Benchmark, embedding: Embedding, how: str, rule: str, seed: int) -> dict:
    """Search, and return the regret of what is recommended after some evaluations."""
    task = Task(benchmark, how, seed)
    searcher = Searcher(initial=0, seed=seed)
    design = initial_design(benchmark, seed=seed)
    told: list[tuple[int, float]] = []
    found: dict[str, Any] = {}
    for number in range(EVALUATIONS):
        if number < len(design):
            index = design[number]
        else:
            index = proposed(rule, searcher, embedding, _seen(told), task=task, number=number)
        before = sum(one == index for one, _ in told)
        told.append((index, task.value(index, before)))
        if number + 1 in SHOWN:
            seen = _seen(told)
            tried = np.unique(seen.indices)
            tried = tried[embedding.valid[tried]]
            shown = _pooled(seen) if rule.endswith("pooled") else seen
            fit = searcher.fit(embedding, shown, number=number + 1)
            observed = np.array([seen.values[seen.indices == one].mean() for one in tried])
            every = np.flatnonzero(embedding.valid)
            chosen = {
                "value": tried[observed.argmax()],
                "mean": tried[means(fit, tried).argmax()],
                "anywhere": every[means(fit, every).argmax()],
            }
            found[str(number + 1)] = {
                name: 100 * (task.best - task.judge[one]) for name, one in chosen.items()
            } | {"functions": len(tried)}
    return found


def _seen(told: list[tuple[int, float]]) -> Observations:
    return Observations(np.array([i for i, _ in told]), np.array([v for _, v in told]))


def _pooled(seen: Observations) -> Observations:
    """Return each function's mean, with its variance by those of all that were repeated."""
    some = np.unique(seen.indices)
    each = [seen.values[seen.indices == one] for one in some]
    if max(map(len, each)) < 2:
        return seen
    trials = []
    for number, values in enumerate(each):
        noted = {}
        if len(values) > 1:
            variance = float(values.var(ddof=1) / len(values))
            noted = {"values": values.tolist(), "variance": variance}
        trials.append(create_trial(value=float(values.mean()), user_attrs=noted))
        trials[-1].number = number
    means = np.array([values.mean() for values in each])
    return Observations(some, means, variances=StudyView.variances(trials))


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--out", type=Path, default=Path("runs/repetition.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(options.out)
    shown = " | ".join(f"after {n}" for n in SHOWN)
    print(f"| benchmark | judged by | repeat | recommended by | {shown} | functions tried |")
    print("|---|---|---|---|" + "---:|" * (len(SHOWN) + 1))
    for name, how in (
        ("digits_mlp", "held out"),
        ("fashion_mnist_small_cnn", "held out"),
        ("digits_mlp", "drawn"),
        ("fashion_mnist_small_cnn", "drawn"),
        ("digits_small_cnn", "drawn"),
    ):
        benchmark = open_benchmark(name)
        embedding = embed(benchmark, METHODS["default"])
        usual: np.ndarray | None = None
        for rule in options.rules:
            runs = []
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                made = partial(search, benchmark, embedding, how, rule, seed)
                runs.append(kept.get((name, how, rule, seed), made))
            for by in ("value", "mean", "anywhere"):
                regrets = np.array([[run[str(n)][by] for n in SHOWN] for run in runs])
                cells = []
                usual = regrets if usual is None else usual
                for column, before in zip(regrets.T, usual.T, strict=True):
                    cell = f"{column.mean():.2f}"
                    if regrets is not usual:  # paired by seed
                        middle, ends = mean_interval(column - before)
                        half = (ends[1] - ends[0]) / 2 if ends else math.nan
                        cell += f" ({middle:+.2f} ± {half:.2f})"
                    cells.append(cell)
                tried = np.mean([run[str(SHOWN[-1])]["functions"] for run in runs])
                said = " | ".join(cells)
                print(f"| {name} | {how} | {rule} | {by} | {said} | {tried:.0f} |", flush=True)


if __name__ == "__main__":
    main()
