"""Optuna's pruners from the options of a study file."""

from __future__ import annotations

import warnings

from optuna import pruners
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner

from bo_act.specs import PrunerSpec


def make_pruner(spec: PrunerSpec, *, epochs: int) -> BasePruner:
    """Return the Optuna pruner that a spec names.

    Args:
        spec: name and options.
        epochs: of a whole training. Hyperband plans with them; by itself it would take those of
            the trials seen so far, which differ between processes.
    """
    with warnings.catch_warnings():
        # A user of a study file cannot change that some pruners are experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _make(spec, epochs)


def _make(spec: PrunerSpec, epochs: int) -> BasePruner:
    schedule = (spec.startup_trials, spec.warmup_epochs, spec.interval)
    match spec.name:
        case "median":
            return pruners.MedianPruner(*schedule, n_min_trials=spec.least_trials)
        case "percentile":
            return pruners.PercentilePruner(
                spec.percentile, *schedule, n_min_trials=spec.least_trials
            )
        case "successive_halving":
            return pruners.SuccessiveHalvingPruner(
                min_resource=spec.first_epochs,
                reduction_factor=spec.reduction_factor,
                min_early_stopping_rate=spec.early_stopping_rate,
                bootstrap_count=spec.bootstrap_trials,
            )
        case "hyperband":
            return pruners.HyperbandPruner(
                min_resource=spec.first_epochs,
                max_resource=max(epochs, spec.first_epochs),
                reduction_factor=spec.reduction_factor,
                bootstrap_count=spec.bootstrap_trials,
            )
        case "wilcoxon":
            return pruners.WilcoxonPruner(
                p_threshold=spec.p_threshold, n_startup_steps=spec.warmup_epochs
            )
        case "patient":
            wrapped = _make(spec.wraps, epochs) if spec.wraps else None
            return pruners.PatientPruner(wrapped, spec.patience, spec.least_gain)
        case "threshold":
            return pruners.ThresholdPruner(
                spec.lower, spec.upper, spec.warmup_epochs, spec.interval
            )
        case "none":
            return pruners.NopPruner()
