"""Studies for the tests of reports: a real one, and others made by hand."""

from __future__ import annotations

import math

import optuna
from made_up import TASK
from optuna.trial import TrialState

from bo_act.report.loaded_study import LoadedStudy
from bo_act.spaces.space import Space
from bo_act.study.sampling.sampler import ActivationSampler

STUDY = f"""
name = "small"
description = "digits & <small> things"
space = "classic"
trials = 14
{TASK}device = "cpu"
[features]
batch_size = 32
quantiles = 16
[confirm]
top = 2
seeds = 2
"""


FEW = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""


def searched(
    space: Space, *, trials: int = 16, direction: str = "maximize", **options
) -> LoadedStudy:
    """A study of one's own, with a made-up objective that is smooth in the functions."""
    sampler = ActivationSampler(space, **options)
    study = optuna.create_study(study_name="own", direction=direction, sampler=sampler)
    names = sampler.activations

    def objective(trial: optuna.Trial) -> float:
        import torch

        total = 0.0
        for name in names:
            value = float(space.suggest(trial, name)(torch.tensor([0.7], dtype=torch.float64)))
            total += math.atan(value)
        if options.get("parameters"):
            total -= trial.suggest_float("rate", 0.001, 1.0, log=True)
        if trial.number == 11:
            trial.report(total, 0)
            raise optuna.TrialPruned
        return total

    study.optimize(objective, n_trials=trials)
    return LoadedStudy(study, sampler=sampler)


def only(state: TrialState, count: int = 3) -> optuna.Study:
    """A study whose trials are all in one state."""
    study = optuna.create_study(study_name="only", direction="maximize")
    for number in range(count):
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=0.5 if state == TrialState.COMPLETE else None,
                user_attrs={"activation": ["relu(x)", "tanh(x)", "elu(x)"][number % 3]},
                intermediate_values={0: 0.1, 1: 0.2},
            )
        )
    return study
