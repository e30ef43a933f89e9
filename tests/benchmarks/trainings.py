"""Searches with real trainings: parameters, several activations, spaces too large to list.

Run by ``make benchmark-trainings``; prints the tables of docs/results/search.md. Every finished
search is kept as one line of a file, so that a second call goes on where the first one stopped.
Small networks train fastest on one thread each: set ``OMP_NUM_THREADS=1`` before the command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import optuna
import torch
from kept import Kept
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from scipy.stats import t as student

from bo_act import ActivationSampler, FeatureTable, Space, compute_features, load_space, read_study
from bo_act.search.unenumerated import ExpressionPool
from bo_act.tasks.task import Task

TRIALS, SHOWN = 60, (20, 30, 60)
RATE = "training.learning_rate"
RATES = {"good": (0.05, (0.002, 1.0)), "bad": (0.002, (1e-4, 3.0))}
HOW = {
    "together": "jointly",
    "apart": "function by the model, rate by TPE",
    "function": "the function alone",
    "tpe": "both by TPE",
    "random": "both at random",
}
LARGE = {
    ("six_operators", "trees"): "local search",
    ("six_operators", "random"): "random",
    ("four_operators", "trees"): "local search",
    ("four_operators", "random"): "random",
    ("act_bench", "catalogue"): "all functions, default without spectra",
    ("act_bench", "random"): "random",
}
STAGES = {
    ("two stages", "two"): "a function for each",
    ("two stages", "one"): "one function for both",
    ("two stages", "random"): "a function for each, at random",
}


@cache
def stages() -> Task:
    """Return the task of two activations: digits, a small network of two stages."""
    return Task.load(read_study("digits_two_activations"))


@cache
def task() -> Task:
    """Return the task of the quickstart: digits, a small network."""
    return Task.load(read_study("quickstart"))


@cache
def outputs(space: str) -> FeatureTable:
    """Return the output features of a space."""
    return compute_features(load_space(space))


@cache
def spectra() -> FeatureTable:
    """Return all features of the task's space."""
    return task().features()


def search(sampler: BaseSampler, space: Space, rate: Callable, seed: int, first: list) -> list:
    """Return the validation accuracy of each trial of one search."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params in first:
        study.enqueue_trial(params)

    def objective(trial: optuna.Trial) -> float:
        expression = space.suggest_expression(trial)
        settings = {RATE: rate(trial)}
        return task().train(expression, seed=seed, settings=settings)[1].value

    study.optimize(objective, n_trials=TRIALS)
    return [trial.value for trial in study.trials]


def with_rate(which: str, how: str, seed: int) -> list[float]:
    """Search function and learning rate."""
    default, (low, high) = RATES[which]
    space, range_ = task().space, FloatDistribution(low, high, log=True)
    samplers = {
        "together": lambda: ActivationSampler(
            space,
            features=spectra(),
            seed=seed,
            parameters={"rate": range_},
            defaults={"rate": default},
        ),
        "apart": lambda: ActivationSampler(
            space, features=spectra(), seed=seed, delegate=TPESampler(seed=seed)
        ),
        "function": lambda: ActivationSampler(space, features=spectra(), seed=seed),
        "tpe": lambda: TPESampler(seed=seed),
        "random": lambda: RandomSampler(seed=seed),
    }

    def rate(trial: optuna.Trial) -> float:
        return default if how == "function" else trial.suggest_float("rate", low, high, log=True)

    return search(samplers[how](), space, rate, seed, [])


@cache
def frontier(space: str) -> ExpressionPool:
    """Return the trees of a space."""
    return ExpressionPool(load_space(space))


def in_large_space(name: str, how: str, seed: int) -> list[float]:
    """Search a space with the quickstart's own learning rate."""
    space, first = load_space(name), []
    if how == "trees":
        sampler: BaseSampler = ActivationSampler(space, candidates="trees", seed=seed)
    elif how == "catalogue":
        sampler = ActivationSampler(space, features=outputs(name), seed=seed)
    else:
        sampler, trees = RandomSampler(seed=seed), frontier(name)
        first = [trees.params(trees.index(baseline)) for baseline in space.baselines]
    rate = task().spec.training.learning_rate
    return search(sampler, space, lambda _: rate, seed, first)


@cache
def spectra_of_stages() -> FeatureTable:
    """Return all features of the two-stage network's space."""
    return stages().features()


def with_stages(_: str, how: str, seed: int) -> list[float]:
    """Search a function for each stage of a network, or one for both."""
    space, names = stages().space, ("early", "late") if how != "one" else ("",)
    start = [space.catalogue.params(space.catalogue.index(one)) for one in space.baselines]
    both = [{f"{name}.{slot}": v for name in names for slot, v in p.items()} for p in start]
    sampler: BaseSampler = RandomSampler(seed=seed)
    if how != "random":
        sampler = ActivationSampler(
            space, features=spectra_of_stages(), activations=names, seed=seed
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params in both if how == "random" else []:
        study.enqueue_trial(params)

    def objective(trial: optuna.Trial) -> float:
        found = {name: space.suggest_expression(trial, name) for name in names}
        _, result = stages().train(found.get("", found), seed=seed)
        return result.value

    study.optimize(objective, n_trials=TRIALS)
    return [trial.value for trial in study.trials]


def paired(a: np.ndarray, b: np.ndarray) -> str:
    """Return the mean difference of two paired rows of values and half its 95% interval."""
    gap = 100 * (a - b)
    half = student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
    return f"{gap.mean():+.2f} ± {half:.2f}"


def main() -> None:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["parameters", "spaces", "activations"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/trainings"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.table == "parameters":
        # Both samplers that see the function alone, or neither well, are shown with a good rate.
        rows = {("good", how): name for how, name in HOW.items()}
        rows |= {("bad", how): HOW[how] for how in ("together", "apart", "function")}
        run: Callable[[str, str, int], list[float]] = with_rate
        against = dict.fromkeys(rows, "together")
    elif options.table == "activations":
        rows, run, against = STAGES, with_stages, dict.fromkeys(STAGES, "one")
    else:
        rows, run, against = LARGE, in_large_space, dict.fromkeys(LARGE, "random")
    kept = Kept(options.out / f"{options.table}.jsonl")
    for seed in range(options.seeds):
        for what, how in rows:
            kept.get((what, how, seed), partial(run, what, how, seed))
            print(f"seed {seed}: {what}, {how}", flush=True)
    best = {
        row: np.maximum.accumulate(
            [kept.found[*row, seed] for seed in range(options.seeds)], axis=1
        )
        for row in rows
    }
    print(f"| {options.table} | how | {' | '.join(map(str, SHOWN))} | minus the other at 60 |")
    print("|---|---|" + "---:|" * len(SHOWN) + "---|")
    for row, name in rows.items():
        cells = [f"{100 * best[row][:, at - 1].mean():.2f}" for at in SHOWN]
        other = (row[0], against[row])
        gap = "" if row == other else f"{paired(best[row][:, -1], best[other][:, -1])} {other[1]}"
        print(f"| {row[0]} | {name} | {' | '.join(cells)} | {gap} |")


if __name__ == "__main__":
    main()
