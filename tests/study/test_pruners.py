"""Pruners by name, with their options."""

from __future__ import annotations

import optuna
import pytest
from optuna import pruners
from pydantic import ValidationError
from small_studies import BASE

from bo_act.specs import PrunerSpec, StudySpec
from bo_act.specs.files import explain
from bo_act.study.storage.pruners import make_pruner

EVERY = [
    ({"name": "none"}, pruners.NopPruner),
    ({"name": "nop"}, pruners.NopPruner),
    ({"name": "median", "interval": 2, "least_trials": 3}, pruners.MedianPruner),
    ({"name": "percentile", "percentile": 25.0}, pruners.PercentilePruner),
    ({"name": "successive_halving", "early_stopping_rate": 1}, pruners.SuccessiveHalvingPruner),
    ({"name": "hyperband", "reduction_factor": 2}, pruners.HyperbandPruner),
    ({"name": "wilcoxon", "p_threshold": 0.05}, pruners.WilcoxonPruner),
    ({"name": "patient", "patience": 2, "wraps": {"name": "median"}}, pruners.PatientPruner),
    ({"name": "patient", "patience": 2}, pruners.PatientPruner),
    ({"name": "threshold", "lower": 0.2}, pruners.ThresholdPruner),
]


def test_every_pruner_of_optuna_has_a_name():
    made = {type(make_pruner(PrunerSpec.model_validate(one), epochs=9)) for one, _ in EVERY}
    theirs = {getattr(pruners, name) for name in pruners.__all__} - {pruners.BasePruner}
    assert made == {one for one in theirs if isinstance(one, type)}


@pytest.mark.parametrize(("options", "kind"), EVERY)
def test_a_pruner_by_its_name(options, kind):
    spec = PrunerSpec.model_validate(options)
    assert PrunerSpec.model_validate(spec.model_dump()) == spec  # as study.json keeps it
    pruner = make_pruner(spec, epochs=9)
    assert type(pruner) is kind
    # Hyperband draws the bracket of a trial by the name of its study.
    study = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)

    def falls(trial: optuna.Trial) -> float:
        for epoch in range(9):
            trial.report(0.9 if trial.number < 12 else 0.1 / (1 + epoch), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.9

    study.optimize(falls, n_trials=13)
    assert study.trials[12].state.name == ("COMPLETE" if kind is pruners.NopPruner else "PRUNED")


@pytest.mark.parametrize(
    ("pruner", "says"),
    [
        (
            {"name": "median", "percentile": 20.0},
            "percentile is not an option of the pruner 'median'",
        ),
        ({"name": "hyperband", "early_stopping_rate": 1}, "options: first_epochs, reduction_fac"),
        ({"name": "threshold"}, "needs lower or upper"),
        ({"name": "patient", "wraps": {"name": "patient"}}, "another pruner to wrap"),
        ({"name": "median", "warmup_epoch": 3}, "did you mean 'warmup_epochs'"),
        (
            {"name": "patient", "wraps": {"name": "median", "startup": 1}},
            "did you mean 'startup_trials'",
        ),
        ({"name": "asha"}, "'successive_halving'"),
        ({"name": "percentile", "percentile": 0}, "greater than 0"),
    ],
)
def test_options_that_make_no_sense(pruner, says):
    with pytest.raises(ValidationError) as caught:
        StudySpec.model_validate(BASE | {"pruner": pruner})
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(explain(caught.value, StudySpec))
