"""Search 2,000 points in the plane, none of which has a name, for the one nearest to a target."""

import numpy as np
import optuna
import optunahub

EmbeddingSampler = optunahub.load_module("samplers/embedding").EmbeddingSampler

points = np.random.default_rng(0).uniform(size=(2_000, 2))  # (N, d), in any unit
sampler = EmbeddingSampler(points, seed=0)


def objective(trial: optuna.Trial) -> float:
    """Return the squared distance of an item from (0.3, 0.7)."""
    item = sampler.suggest(trial)  # a number from 0 to 1,999
    x, y = points[item]
    return (x - 0.3) ** 2 + (y - 0.7) ** 2


study = optuna.create_study(direction="minimize", sampler=sampler)
study.optimize(objective, n_trials=30)
print(f"item {study.best_params['item']}: {study.best_value:.5f}")
