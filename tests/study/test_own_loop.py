"""A training loop of the user's own: what Optuna's habits make of it, and what we do about them."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import numpy as np
import optuna
import pytest
import torch
from optuna.pruners import HyperbandPruner
from optuna.samplers import GPSampler, TPESampler
from optuna.trial import TrialState

from bo_act import ActivationSampler, Diverged, improvement_left, why
from bo_act.errors import ExhaustedError
from bo_act.report.loaded_study import LoadedStudy
from bo_act.report.trials import rows
from bo_act.search.strategies import RandomSearch
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec
from bo_act.study.storage.opening import open_storage
from bo_act.study.storage.trials import count

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("classic")


def new_study(space: Space, direction: str = "maximize", **options) -> optuna.Study:
    sampler = ActivationSampler(space, **options)
    return optuna.create_study(direction=direction, sampler=sampler)


def tried(study: optuna.Study) -> list[str]:
    return [trial.user_attrs["activation"] for trial in study.trials]


# --- NaN is a result ------------------------------------------------------------------------

NAN = [math.nan, np.float32("nan"), torch.tensor(math.nan), [math.nan]]


@pytest.mark.parametrize("nan", NAN, ids=lambda nan: type(nan).__name__)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_nan_is_a_diverged_result(space, nan, direction):
    """Never proposed again, and no better than the worst."""
    study = new_study(space, direction)
    sign = 1 if direction == "maximize" else -1

    def objective(trial: optuna.Trial):
        space.suggest(trial)
        return nan if trial.number % 2 else sign * float(trial.number)

    study.optimize(objective, n_trials=12)
    assert len(set(tried(study))) == 12
    observations = study.sampler.view(study).observations
    assert observations.values.tolist() == [0, 0, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0]
    assert not observations.closed
    said = count(study.trials)
    assert (said.complete, said.diverged, said.failed) == (12, 6, 0)
    assert why(study, study.sampler, 11).explanation.observed == 11
    assert improvement_left(study, study.sampler) < 10


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_infinity_is_a_diverged_result(space, value, direction):
    study = new_study(space, direction)
    study.optimize(
        lambda trial: value if space.suggest(trial) and trial.number % 2 else 1.0, n_trials=6
    )
    assert count(study.trials).diverged == 3
    assert study.best_value == 1.0


def test_nan_is_told(space):
    study = new_study(space)
    texts = []
    for _ in range(6):
        trial = study.ask()
        texts.append(str(space.suggest(trial).expression))
        with pytest.warns(UserWarning, match="not acceptable"):
            study.tell(trial.number, math.nan)
    assert len(set(texts)) == 6
    assert count(study.trials).diverged == 6


def test_a_failure_stays_one(space):
    """An exception, and an end that says nothing of a value, are tried again."""
    study = new_study(space, max_retries=1)
    ends = iter([RuntimeError("lost the device"), None, "text"])

    def objective(trial: optuna.Trial):
        space.suggest(trial)
        end = next(ends)
        if isinstance(end, Exception):
            raise end
        return end

    study.optimize(objective, n_trials=2, catch=RuntimeError)
    assert len(set(tried(study))) == 1
    assert study.sampler.view(study).observations.closed
    study.tell(study.ask(), state=TrialState.FAIL)
    assert count(study.trials).diverged == 0
    assert count(study.trials).failed == 3


def test_raising_diverged_is_a_result(space):
    study = new_study(space)

    def objective(trial: optuna.Trial) -> float:
        space.suggest(trial)
        raise Diverged

    study.optimize(objective, n_trials=4, catch=Diverged)
    assert len(set(tried(study))) == 4
    assert count(study.trials).diverged == 4


@pytest.mark.parametrize("name", ["s.db", "s.log"])
def test_another_process_knows_what_diverged(space, tmp_path, name):
    """What is known is in the storage."""
    for _ in range(6):
        study = optuna.create_study(
            study_name="s",
            storage=open_storage(str(tmp_path / name)),
            sampler=ActivationSampler(space),
            direction="maximize",
            load_if_exists=True,
        )
        study.optimize(lambda trial: math.nan if space.suggest(trial) else 0, n_trials=1)
    assert len(set(tried(study))) == 6
    assert [row.state for row in rows(LoadedStudy(study, None, study.sampler))] == ["diverged"] * 6


def test_nan_in_threads(space):
    study = new_study(space)
    study.optimize(
        lambda trial: math.nan if space.suggest(trial) and trial.number % 2 else 1.0,
        n_trials=14,
        n_jobs=2,
    )
    assert max(Counter(tried(study)).values()) == 1


@pytest.mark.parametrize("delegate", [None, TPESampler(seed=0), GPSampler(seed=0)])
def test_parameters_are_learnt_from_what_diverged(space, delegate):
    """A rate at which nothing trains is known as bad, and so is what else was searched."""
    study = new_study(space, delegate=delegate)
    study.pruner = HyperbandPruner()

    def objective(trial: optuna.Trial) -> float:
        space.suggest(trial)
        rate = trial.suggest_float("rate", 0.0, 1.0)
        return math.nan if trial.number < 4 or rate > 0.5 else rate

    study.optimize(objective, n_trials=8)
    assert [trial.user_attrs.get("status") for trial in study.trials[:4]] == ["diverged"] * 4
    assert not count(study.trials).failed
    if delegate is None:
        assert list(study.sampler.view(study).searcher.parameters.distributions) == ["rate"]


# --- every function was tried ---------------------------------------------------------------


@pytest.fixture(scope="module")
def five() -> Space:
    return Space(
        SpaceSpec(name="five", schemas=("unary(x)",), unary=("relu", "tanh", "erf", "elu", "exp"))
    )


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"candidates": "trees"}, {"strategy": RandomSearch()}])
def test_a_study_ends_with_a_message(five, jobs, options):
    study = new_study(five, **options)
    count = 5 if "candidates" in options else int(study.sampler.embedding.valid.sum())
    with pytest.warns(UserWarning, match="every function of the space 'five'") as told:
        study.optimize(lambda trial: len(str(five.suggest(trial))), n_trials=50, n_jobs=jobs)
    assert len(told) == 1
    done = study.get_trials(states=(TrialState.COMPLETE,))
    assert len({trial.user_attrs["activation"] for trial in done}) == len(done) == count
    # Those that began while others had the last functions have none.
    rest = [trial for trial in study.trials if trial.state != TrialState.COMPLETE]
    assert [trial.state for trial in rest] == [TrialState.PRUNED] * len(rest)
    assert len(rest) <= (jobs if jobs > 1 else 0)


def test_an_ended_study_that_is_run_again(five):
    """It returns at once; where trials are asked for one by one, that is an error."""
    study = new_study(five)
    for _ in range(2):
        with pytest.warns(UserWarning, match="every function"):
            study.optimize(lambda trial: len(str(five.suggest(trial))), n_trials=50)
    assert [trial.state.name for trial in study.trials[-2:]] == ["COMPLETE", "PRUNED"]
    with pytest.raises(ExhaustedError, match="nothing left to propose"):
        five.suggest(study.ask())


def test_what_fails_is_tried_again_before_the_end(five):
    study = new_study(five, max_retries=1)

    def objective(trial: optuna.Trial) -> float:
        five.suggest(trial)
        if trial.number % 2:
            raise RuntimeError
        return 1.0

    with pytest.warns(UserWarning, match="every function"):
        study.optimize(objective, n_trials=50, catch=RuntimeError)
    done = study.get_trials(states=(TrialState.COMPLETE,))
    assert len({trial.user_attrs["activation"] for trial in done}) == len(done)
    assert set(tried(study)) == {trial.user_attrs["activation"] for trial in done}


def test_a_search_of_other_parameters_does_not_end(five):
    study = new_study(five)
    study.optimize(
        lambda trial: trial.suggest_float("rate", 0, 1) * len(str(five.suggest(trial))),
        n_trials=9,
        n_jobs=2,
    )
    assert len(study.trials) == 9


def test_workers_of_one_storage_end(five, tmp_path):
    """Each sees that the other has tried the last function."""
    studies = [
        optuna.create_study(
            study_name="s",
            storage=open_storage(str(tmp_path / "s.log")),
            sampler=ActivationSampler(five),
            load_if_exists=True,
        )
        for _ in range(2)
    ]
    count = int(studies[0].sampler.embedding.valid.sum())
    for turn in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            studies[turn % 2].optimize(lambda trial: len(str(five.suggest(trial))), n_trials=1)
    for study in studies:
        with pytest.warns(UserWarning, match="every function"):
            study.optimize(lambda trial: len(str(five.suggest(trial))), n_trials=50)
    states = [trial.state.name for trial in studies[0].trials]
    assert states == ["COMPLETE"] * count + ["PRUNED"] * 2


def test_brackets_end(five):
    study = new_study(five)
    study.pruner = HyperbandPruner()
    with pytest.warns(UserWarning, match="every function"):
        study.optimize(lambda trial: len(str(five.suggest(trial))), n_trials=50)
