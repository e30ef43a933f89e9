"""ActivationSampler inside real Optuna studies and storages."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import TrialState, create_trial

from bo_act import ActivationSampler, load_space
from bo_act.errors import SearchError
from bo_act.features.compute import compute_features
from bo_act.spaces.space import Space
from bo_act.specs import AcquisitionSpec, SpaceSpec
from bo_act.study.storage.opening import open_storage
from bo_act.study.storage.owner import CLAIM, OWNER, Owner

optuna.logging.set_verbosity(optuna.logging.WARNING)

SMALL = SpaceSpec(
    name="small",
    schemas=("binary(unary(x),unary(x))",),
    unary=("identity", "tanh", "relu", "sigmoid", "erf", "softplus", "abs"),
    binary=("add", "mul", "max"),
    baselines=("relu(x)", "tanh(x)"),
)


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(SMALL)


@pytest.fixture(scope="module")
def features(space):
    return compute_features(space)


@pytest.fixture(scope="module")
def act_bench_outputs(act_bench):
    return compute_features(act_bench)


def quality(space: Space, index: int) -> float:
    """A smooth made-up value of a function: how near its moments are to those of swish."""
    import torch

    from bo_act.activations.evaluation import evaluate

    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    y = evaluate(space.catalogue.expression(index), x)
    return -float((y - torch.nn.functional.silu(x)).abs().mean())


def objective(space: Space):
    def run(trial: optuna.Trial) -> float:
        return quality(space, space.catalogue.index(str(space.suggest(trial).expression)))

    return run


def proposed(study: optuna.Study) -> list[int]:
    return [trial.user_attrs["index"] for trial in study.trials]


# --- the contract of every Optuna sampler ---------------------------------------------------


class TestBasicContract(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, act_bench, act_bench_outputs):
        return lambda: ActivationSampler(act_bench, features=act_bench_outputs)


class TestSeveralObjectivesContract(MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self, space, features):
        return lambda: ActivationSampler(space, features=features)


# --- proposing ------------------------------------------------------------------------------


def test_a_plain_study_is_searched(space, features):
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features, seed=3)
    )
    study.optimize(objective(space), n_trials=20)
    first = [space.catalogue.index(text) for text in ("relu(x)", "tanh(x)")]
    assert proposed(study)[:2] == first
    assert len(set(proposed(study))) == 20
    ways = [trial.user_attrs["proposal"]["by"] for trial in study.trials]
    assert ways == ["baseline"] * 2 + ["random"] * 2 + ["acquisition"] * 16
    for trial in study.trials:
        assert space.catalogue.index(trial.params) == trial.user_attrs["index"]
        assert space.catalogue.text(trial.user_attrs["index"]) == trial.user_attrs["activation"]
        assert trial.user_attrs["catalogue"] == space.catalogue.hash[:16]


def test_it_finds_what_random_search_does_not(space, features):
    def regret(sampler) -> float:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective(space), n_trials=16)
        best = max(quality(space, i) for i in range(len(space.catalogue)))
        return best - study.best_value

    ours = [regret(ActivationSampler(space, features=features, seed=seed)) for seed in range(5)]
    random = [regret(RandomSampler(seed=seed)) for seed in range(5)]
    assert np.mean(ours) < 0.5 * np.mean(random)


def test_minimizing_the_negative_is_the_same_search(space, features):
    up = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    up.optimize(objective(space), n_trials=10)
    down = optuna.create_study(
        direction="minimize", sampler=ActivationSampler(space, features=features)
    )
    down.optimize(lambda trial: -objective(space)(trial), n_trials=10)
    assert proposed(up) == proposed(down)


def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(space, features, tmp_path):
    settings = {"seed": 7, "acquisition": AcquisitionSpec(name="log_ei")}
    whole = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features, **settings)
    )
    whole.optimize(objective(space), n_trials=12)
    for _ in range(12):
        study = optuna.create_study(
            study_name="s",
            direction="maximize",
            storage=open_storage(str(tmp_path / "s.db")),
            sampler=ActivationSampler(space, features=features, **settings),
            load_if_exists=True,
        )
        np.random.seed(np.random.randint(1000))  # the global state must not matter
        study.optimize(objective(space), n_trials=1)
    assert proposed(study) == proposed(whole)


@pytest.mark.parametrize("delegate", [TPESampler(seed=1), RandomSampler(seed=1), GPSampler(seed=1)])
def test_other_parameters_go_to_the_delegate(space, features, delegate):
    sampler = ActivationSampler(space, features=features, delegate=delegate)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def run(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        value = objective(space)(trial)
        return value - abs(np.log10(rate) + 2) + trial.suggest_int("depth", 1, 3)

    study.optimize(run, n_trials=14)
    assert all(
        set(trial.params) == {"binary", "left", "right", "lr", "depth"} for trial in study.trials
    )
    assert len(set(proposed(study))) == 14
    rates = [trial.params["lr"] for trial in study.trials]
    assert rates[0] == rates[1]  # of both baselines
    assert len(set(rates[1:])) >= 12


def test_an_enqueued_function_is_taken_as_it_is(space, features):
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    params = space.catalogue.params(space.catalogue.index("mul(sigmoid(x),erf(x))"))
    study.enqueue_trial(params)
    study.optimize(objective(space), n_trials=8)
    assert study.trials[0].params == params
    indices = [space.catalogue.index(trial.params) for trial in study.trials]
    assert len(set(indices)) == 8


def test_other_samplers_search_the_same_slots(space):
    for sampler in (TPESampler(seed=0), RandomSampler(seed=0), GPSampler(seed=0)):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective(space), n_trials=12)
        assert {space.catalogue.index(trial.params) for trial in study.trials}


# --- trials without a value -----------------------------------------------------------------


def trial_of(space: Space, index: int, state: TrialState, **more):
    params = space.catalogue.params(index)
    trial = create_trial(
        state=state,
        params=params,
        distributions={name: space.distributions[name] for name in params},
        value=0.5 if state == TrialState.COMPLETE else None,
        **more,
    )
    if state == TrialState.RUNNING:
        trial.datetime_complete = None
    return trial


def dead_owner() -> dict:
    process = subprocess.Popen([sys.executable, "-c", ""])
    owner = Owner.me().as_attribute() | {"pid": process.pid}
    process.wait()
    return owner


@pytest.fixture
def study(space, features):
    sampler = ActivationSampler(space, features=features, max_retries=1)
    return optuna.create_study(direction="maximize", sampler=sampler)


def test_pruned_functions_have_no_value_and_do_not_come_back(space, study):
    study.add_trial(trial_of(space, 5, TrialState.PRUNED, intermediate_values={0: 0.9}))
    view = study.sampler.view(study)
    assert view.observations.pruned.functions.tolist() == [[5]]
    assert (5,) in view.taken.functions
    assert len(view.observations) == 0


def test_failed_functions_come_back_a_bounded_number_of_times(space, study):
    study.add_trial(trial_of(space, 5, TrialState.FAIL))
    assert (5,) not in study.sampler.view(study).observations.closed
    study.add_trial(trial_of(space, 5, TrialState.FAIL))
    assert (5,) in study.sampler.view(study).observations.closed


def test_a_failure_repeats_the_random_proposal_it_interrupted(space, features):
    def run(fail_at: set[int]) -> list[int]:
        sampler = ActivationSampler(space, features=features, baselines=(), initial=6, seed=5)
        study = optuna.create_study(direction="maximize", sampler=sampler)

        def flaky(trial: optuna.Trial) -> float:
            value = objective(space)(trial)
            if trial.number in fail_at:
                raise RuntimeError("lost the device")
            return value

        study.optimize(flaky, n_trials=8 + len(fail_at), catch=RuntimeError)
        done = study.get_trials(states=[TrialState.COMPLETE])
        return [trial.user_attrs["index"] for trial in done]

    assert run(set()) == run({1, 4})


def test_running_trials_are_pending_and_abandoned_ones_are_not(space, study):
    alive = trial_of(space, 5, TrialState.RUNNING, system_attrs={OWNER: Owner.me().as_attribute()})
    claimed = create_trial(
        state=TrialState.RUNNING,
        system_attrs={OWNER: Owner.me().as_attribute(), CLAIM: space.catalogue.params(6)},
    )
    dead = trial_of(space, 7, TrialState.RUNNING, system_attrs={OWNER: dead_owner()})
    for trial in (alive, claimed, dead):
        study.add_trial(trial)
    view = study.sampler.view(study)
    assert view.pending.functions.tolist() == [[5], [6]]
    assert view.number == 2


def test_abandoned_trials_that_a_runner_takes_over_are_pending(space, study):
    inherited = dead_owner() | {"grace": 60.0}
    study.add_trial(trial_of(space, 7, TrialState.RUNNING, system_attrs={OWNER: inherited}))
    study.add_trial(trial_of(space, 8, TrialState.RUNNING, system_attrs={OWNER: None}))
    assert study.sampler.view(study).pending.functions.tolist() == [[7], [8]]


def test_half_written_parameters_are_completed_from_the_claim(space, study):
    claim = space.catalogue.params(9)
    (first, *_) = claim
    template = create_trial(
        state=TrialState.RUNNING,
        params={first: claim[first]},
        distributions={first: space.distributions[first]},
        system_attrs={CLAIM: claim, OWNER: None},
    )
    number = study._storage.create_new_trial(study._study_id, template)
    taken = optuna.trial.Trial(study, number)
    assert space.catalogue.index(str(space.suggest(taken).expression)) == 9


def test_what_a_process_finished_before_it_ended_is_not_abandoned(space, study, monkeypatch):
    study.add_trial(
        trial_of(space, 5, TrialState.RUNNING, system_attrs={OWNER: Owner.me().as_attribute()})
    )

    def finishes_and_ends(_: Owner) -> bool:
        if study.trials[0].state == TrialState.RUNNING:
            study.tell(0, 0.5)
        return True

    monkeypatch.setattr(Owner, "is_gone", finishes_and_ends)
    view = study.sampler.view(study)
    assert view.taken.functions == {(5,)}
    assert view.number == 1


def test_infinite_values_count_as_the_worst(space, features):
    study = optuna.create_study(
        direction="minimize", sampler=ActivationSampler(space, features=features)
    )

    def diverging(trial: optuna.Trial) -> float:
        loss = -objective(space)(trial)
        return float("inf") if trial.number % 2 else loss

    study.optimize(diverging, n_trials=8)
    view = study.sampler.view(study)
    assert np.isfinite(view.observations.values).all()
    assert view.observations.values[1] == view.observations.values[::2].min()


def test_nothing_left_is_said(space, features):
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, features=features)
    )
    valid = int(study.sampler.embedding.valid.sum())
    for index in np.flatnonzero(study.sampler.embedding.valid):
        study.add_trial(trial_of(space, int(index), TrialState.COMPLETE))
    with pytest.raises(SearchError, match=f"{valid} of {valid} functions are in the embedding"):
        space.suggest(study.ask())


def test_features_of_another_space_are_refused(space):
    with pytest.raises(SearchError, match="another catalogue"):
        ActivationSampler(load_space("classic"), features=compute_features(space))


# --- several at once ------------------------------------------------------------------------


def test_threads_take_different_functions(space, features):
    sampler = ActivationSampler(space, features=features)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective(space), n_trials=24, n_jobs=4)
    assert max(Counter(proposed(study)).values()) == 1


def work(path: str, trials: int) -> None:
    small = Space(SMALL)
    study = optuna.load_study(
        study_name="s", storage=open_storage(path), sampler=ActivationSampler(small)
    )
    study.optimize(objective(small), n_trials=trials)
    os._exit(0)  # the parent's test runner must not run on in here


@pytest.mark.parametrize("name", ["s.db", "s.log"])
def test_processes_take_different_functions(tmp_path, name):
    path = str(tmp_path / name)
    optuna.create_study(study_name="s", storage=open_storage(path), direction="maximize")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(path, 8)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    study = optuna.load_study(study_name="s", storage=open_storage(path))
    assert len(study.trials) == 24
    assert max(Counter(proposed(study)).values()) == 1
