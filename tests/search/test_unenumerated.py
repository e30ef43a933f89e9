"""Local search over trees where a space cannot be listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import optuna
import pytest
import torch
from made_up import TASK

from bo_act import ActivationSampler, improvement_left, load_space, why
from bo_act.activations.evaluation import evaluate
from bo_act.errors import ExpressionError, SearchError
from bo_act.features.compute import compute_features
from bo_act.search.embedding.embedding import PcaEmbedder
from bo_act.search.unenumerated import ExpressionPool, neighbours
from bo_act.spaces.space import Space
from bo_act.specs import AcquisitionSpec, EmbeddingSpec, SpaceSpec
from bo_act.specs.files import read_study
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def six() -> Space:
    return load_space("six_operators")


@pytest.fixture(scope="module")
def small() -> Space:
    return Space(
        SpaceSpec(
            name="small",
            schemas=("unary(x)", "binary(unary(x),unary(x))", "unary(unary(x))"),
            unary=("identity", "tanh", "relu", "sigmoid", "erf", "softplus", "abs"),
            binary=("add", "mul", "max"),
            expressions=("hard_sigmoid(x)",),
            baselines=("relu(x)", "tanh(x)"),
        )
    )


def distance_to_a_wave(space: Space):
    """How near a function is to one that no tree of the space is."""
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    wanted = torch.sin(1.5 * x) * torch.exp(-x * x / 4) + 0.3 * x

    def objective(trial: optuna.Trial) -> float:
        away = (evaluate(space.suggest_expression(trial), x).expand_as(x) - wanted).abs().mean()
        return float(-torch.log1p(away)) if torch.isfinite(away) else -3.0

    return objective


def search(space: Space, trials: int, **options) -> optuna.Study:
    options = {"candidates": "trees"} | options
    study = optuna.create_study(direction="maximize", sampler=ActivationSampler(space, **options))
    study.optimize(distance_to_a_wave(space), n_trials=trials)
    return study


# --- functions met --------------------------------------------------------------------------


def test_a_space_that_is_sampled_whole_has_its_catalogues_functions(small):
    frontier, catalogue = ExpressionPool(small), small.catalogue
    assert len(frontier) == len(catalogue)
    of_catalogue = {catalogue.index(frontier.text(index)) for index in range(len(frontier))}
    assert len(of_catalogue) == len(catalogue)
    # The same coordinates, too: the sample is all there is.
    embedding = PcaEmbedder().fit(compute_features(small))
    ours = frontier.embedding
    assert ours.points.shape == embedding.points.shape
    for index in range(len(frontier)):
        there = catalogue.index(frontier.text(index))
        assert ours.valid[index] == embedding.valid[there]
        np.testing.assert_allclose(ours.points[index], embedding.points[there], atol=1e-12)


def test_functions_outside_the_sample_lie_where_they_would(act_bench):
    """Those that a frame was not learnt from are placed as if it had been learnt from all."""
    table = compute_features(act_bench)
    whole = PcaEmbedder().fit(table)
    from bo_act.features.rank_pca import output_frame, place_outputs

    valid = np.flatnonzero(whole.valid)
    frame = output_frame(table.blocks, valid[::2], 6)
    points = place_outputs(frame, table.blocks, valid[1::2])
    assert points.min() >= 0
    assert points.max() <= 1
    for ours, theirs in zip(points.T, whole.points[valid[1::2]].T, strict=True):
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.99
    again = place_outputs(frame, table.blocks, valid[1:10:2])
    np.testing.assert_array_equal(again, points[: len(again)])


def test_a_function_is_met_once(six):
    frontier = ExpressionPool(six)
    before = len(frontier)
    first = frontier.index("softplus(relu(add(erf(x),erf(x))))")
    assert first == before
    assert frontier.index("softplus(relu(add(erf(x),erf(x))))") == first
    with pytest.raises(ExpressionError, match="no schema can express it"):
        frontier.params(first)
    # The number of a spelling in a schema makes it one that can be tried.
    params = {
        "schema": "binary(unary(x),unary(x))",
        "binary": "add",
        "left": "identity",
        "right": "identity",
    }
    index = frontier.index("add(x,x)")
    assert frontier.index(params) == index
    assert frontier.params(index) == params
    with pytest.raises(ExpressionError, match="not a member of the space"):
        frontier.index({"schema": "nothing"})


def test_neighbours_are_one_change_away(six):
    generator = np.random.default_rng(0)
    number = six.number(
        {
            "schema": "binary(unary(unary(x)),unary(x))",
            "binary": "mul",
            "left": "tanh",
            "left_inner": "abs",
            "right": "relu",
        }
    )
    own = six.params(number)
    found = [six.params(other) for other in neighbours(six, number, generator)]
    same = [params for params in found if params["schema"] == own["schema"]]
    assert len(same) == 6 + 3 * 26
    for params in same:
        assert sum(params[slot] != own[slot] for slot in own) == 1
    others = [params for params in found if params["schema"] != own["schema"]]
    assert {params["schema"] for params in others} == set(six.schema_choices) - {own["schema"]}
    for params in others:
        for slot in set(params) & set(own) - {"schema"}:
            assert params[slot] == own[slot]


# --- searching ------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_goes_beyond_the_sample_and_is_reproducible(six):
    study = search(six, 24, candidates="auto")  # too large to list
    sampler = study.sampler
    assert isinstance(sampler.catalogue, ExpressionPool)
    texts = [trial.user_attrs["activation"] for trial in study.trials]
    assert len(set(texts)) == 24
    assert texts[:8] == [str(baseline) for baseline in six.baselines]
    fresh = ExpressionPool(six)
    sampled = {fresh.text(index) for index in range(len(fresh))}
    assert len([text for text in texts if text not in sampled]) > 8
    # One trial a process, in as many processes as trials: the same study.
    parts = optuna.create_study(direction="maximize")
    for _ in range(13):
        parts.sampler = ActivationSampler(six)
        parts.optimize(distance_to_a_wave(six), n_trials=1)
    assert [t.params for t in parts.trials] == [t.params for t in study.trials[:13]]
    said = why(study, sampler, 23)
    assert said.explanation is not None
    assert len(said.neighbours) == 5
    assert improvement_left(study, sampler) > 0
    assert sampler.remaining(study) > 10**8


@pytest.mark.slow
def test_it_finds_what_chance_does_not(six):
    ours = [search(six, 30, seed=seed).best_value for seed in range(2)]
    chance = []
    for seed in range(2):
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed)
        )
        study.optimize(distance_to_a_wave(six), n_trials=30)
        chance.append(study.best_value)
    assert np.mean(ours) > np.mean(chance)


def test_a_small_space_is_searched_to_its_end():
    few = Space(
        SpaceSpec(
            name="few",
            schemas=("unary(x)", "binary(unary(x),unary(x))"),
            unary=("identity", "tanh", "relu", "abs"),
            binary=("add", "max"),
            baselines=("relu(x)",),
        )
    )
    count = len(few.catalogue)
    assert count == 14
    with pytest.warns(UserWarning, match="every function of the space 'few'"):
        study = search(few, count, initial=1)
    assert {few.catalogue.index(t.params) for t in study.trials} == set(range(count))


def test_pruned_failed_and_pending_trees_are_not_met_again(six):
    study = optuna.create_study(direction="maximize", sampler=ActivationSampler(six))
    value = distance_to_a_wave(six)

    def objective(trial: optuna.Trial) -> float:
        reached = value(trial)
        if trial.number % 3 == 2:
            raise optuna.TrialPruned
        return reached

    study.optimize(objective, n_trials=11)
    waiting = [study.ask() for _ in range(3)]
    texts = [six.suggest_expression(trial) for trial in waiting]
    study.optimize(objective, n_trials=3)
    met = [t.user_attrs["activation"] for t in study.get_trials(deepcopy=False)]
    assert len(set(met)) == len(met) == 17
    assert {str(text) for text in texts} <= set(met)


def test_no_other_spelling_of_a_function_is_tried(act_bench):
    """The mean alone is largest at the best function itself, which has many spellings."""
    study = search(act_bench, 22, acquisition=AcquisitionSpec(name="greedy"))
    catalogue = act_bench.catalogue
    assert len({catalogue.index(t.params) for t in study.trials}) == 22


def test_with_other_parameters(six):
    study = optuna.create_study(direction="maximize", sampler=ActivationSampler(six))
    value = distance_to_a_wave(six)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1, log=True)
        return value(trial) - (np.log10(rate) + 2) ** 2

    study.optimize(objective, n_trials=18)
    assert abs(np.log10(study.best_params["rate"]) + 2) < 0.5


def test_what_needs_a_list_is_refused(six, tiny, act_bench):
    with pytest.raises(ExpressionError, match="at most 3,000,000 can be listed"):
        _ = six.catalogue
    with pytest.raises(SearchError, match="a warm start cannot be used"):
        ActivationSampler(six, warm_start=["digits_mlp"])
    with pytest.raises(SearchError, match="the UMAP embedding cannot be used"):
        ActivationSampler(six, embedding=EmbeddingSpec(name="umap"))
    with pytest.raises(SearchError, match="features cannot be used"):
        ActivationSampler(tiny, features=compute_features(tiny), candidates="trees")
    with pytest.raises(ExpressionError, match="no schema can express it"):
        ActivationSampler(act_bench, candidates="trees", baselines=["tanh(tanh(tanh(relu(x))))"])


STUDY = f"""
name = "deep"
space = "six_operators"
trials = 11
{TASK}[confirm]
top = 1
seeds = 2
baselines = []
"""


@pytest.mark.slow
def test_a_study_of_a_large_space(tmp_path, monkeypatch, bo_act):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.toml").write_text(STUDY)
    spec = read_study("deep.toml")
    result = run_study(spec)
    assert result.trials.finished == 11
    assert result.confirmed
    assert read_result(spec) == result
    code, out, _ = bo_act("why", "deep.toml", "10")
    assert code == 0, out
    code, out, _ = bo_act("space", "six_operators")
    assert code == 0
    assert "699,106,653" in out
    code, _, err = bo_act("space", "six_operators", "--functions")
    assert code == 2
    assert "can be listed" in err
    code, _, err = bo_act("features", "deep.toml")
    assert code == 2
    assert "can be listed" in err
    # Another process goes on with it, and takes no function again.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "bo_act.cli", "run", "deep.toml", "--set", "trials=13"]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"]["complete"] == 13
    texts = [t.user_attrs["activation"] for t in load_study(spec).trials]
    assert len(set(texts)) == 13
