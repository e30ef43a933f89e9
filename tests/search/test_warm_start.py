"""Warm starts: what sources say, what a search makes of it, and where it drops them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from benchmarks_of_tests import random_benchmark
from made_up import BLOCKS, CLOUD, smooth
from optuna.trial import TrialState, create_trial
from scipy.stats import norm, spearmanr

from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.benchmark.sources import as_source
from bo_act.comparison.compare import compare
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design
from bo_act.errors import BenchmarkError, ContentNotFoundError, SearchError, StorageError
from bo_act.metrics import Metric
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.method import METHODS
from bo_act.search.observations import Observations, fences
from bo_act.search.searcher import Searcher
from bo_act.search.warm_start import SOURCES, Source, make_warm_start
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec, StudySpec
from bo_act.specs.files import read_study
from bo_act.study.running.runner import run_study
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.sampling.warm_start import add_source_trials, read_sources, trials_as_source
from bo_act.study.storage.opening import load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def cloud() -> Embedding:
    return Embedding(CLOUD.copy(), BLOCKS, np.ones(len(CLOUD), dtype=bool))


# --- what sources say -----------------------------------------------------------------------


def test_functions_are_matched_by_what_they_compute(one):
    spec = SpaceSpec(
        name="other", expressions=("max(x,zero(x))", "tanh(x)", "mul(x,sigmoid(x))", "square(x)")
    )
    other = random_benchmark(Space(spec), seed=4)  # its last function is not measured
    found = as_source(other, one.space)
    index = one.space.catalogue.index
    places = [index(text) for text in ("relu(x)", "tanh(x)", "swish(x)")]
    np.testing.assert_array_equal(found.values[places], other.values[:3])
    assert np.isnan(np.delete(found.values, places)).all()
    same = as_source(one, one.space)
    np.testing.assert_array_equal(same.values[one.measured], one.values[one.measured])
    assert np.isnan(same.values[~one.measured]).all()
    alien = random_benchmark(Space(SpaceSpec(name="x", expressions=("cosh(x)", "sinh(x)"))))
    with pytest.raises(SearchError, match="'random' has no value for any function of the space"):
        as_source(alien, one.space)


def test_ranks_and_the_best(cloud):
    first, second = smooth(CLOUD), -CLOUD[:, 1]
    found = make_warm_start([Source("a", first), Source("b", second)], cloud, first=4)
    assert found.ranks.shape == (120, 2)
    for column, values in enumerate((first, second)):
        floor, _ = fences(values)
        below = np.array([(np.maximum(values, floor) < value).sum() for value in values])
        top = values > floor
        np.testing.assert_allclose(found.ranks[top, column], (below[top] + 0.5) / 120)
        assert (found.ranks[~top, column] < found.ranks[top, column].min()).all()
    scores = norm.ppf(found.ranks).mean(axis=1)
    assert list(found.best) == np.argsort(-scores)[:4].tolist()


def test_what_is_good_on_average_is_begun_with_before_what_is_never_bad(cloud):
    one = np.arange(120.0)
    other = one[::-1].copy()
    other[[95, 24]] = 95, 24  # good in both
    other[[119, 49]] = 70, 0  # the best in one, above the middle in the other
    found = make_warm_start([Source("a", one), Source("b", other)], cloud, first=2)
    assert found.best[0] == 119
    assert np.argmax(np.minimum(one, other)) == 95


def test_what_has_no_place_is_not_begun_with(cloud):
    values = smooth(CLOUD)
    best = np.argsort(-values)
    away = cloud.restricted(~np.isin(np.arange(120), best[:2]))
    assert make_warm_start([Source("a", values)], away, first=3).best == tuple(best[2:5].tolist())


def test_what_a_source_does_not_know_is_judged_by_what_it_knows(cloud):
    values = smooth(CLOUD)
    known = np.where(np.arange(120) < 40, values, np.nan)
    found = make_warm_start([Source("a", known)], cloud)
    assert spearmanr(found.ranks[40:, 0], values[40:]).statistic > 0.8
    assert set(found.best) <= set(range(40))  # begun with is what was measured
    # Too little to judge by: the middle.
    few = np.where(np.arange(120) < 2, values, np.nan)
    assert len(set(make_warm_start([Source("a", few)], cloud).ranks[2:, 0])) == 1


def test_only_some_of_many_known_functions_judge_the_others():
    points = np.random.default_rng(3).uniform(size=(3_000, 4))
    embedding = Embedding(points, BLOCKS, np.ones(3_000, dtype=bool))
    values = smooth(points)
    values[2_900:] = np.nan
    found = make_warm_start([Source("a", values)], embedding)
    assert spearmanr(found.ranks[2_900:, 0], smooth(points)[2_900:]).statistic > 0.9


def test_a_source_knows_something(cloud):
    with pytest.raises(SearchError, match="'a' has no value"):
        Source("a", np.full(120, np.nan))


# --- what a search makes of it --------------------------------------------------------------


def test_an_embedding_with_sources(one):
    embedding = embed(one, METHODS["default"])
    warm = make_warm_start([as_source(one, one.space)], embedding)
    joined = warm.enrich(embedding)
    assert list(joined.blocks) == [*embedding.blocks, SOURCES]
    valid = embedding.valid
    np.testing.assert_array_equal(joined.points[valid, :-1], embedding.points[valid])
    np.testing.assert_array_equal(joined.points[valid, -1], warm.ranks[valid, 0])
    assert np.isnan(joined.points[~valid]).all()


def test_what_a_source_tells_is_learnt(cloud):
    """From few observations, functions are ordered better with a good source than without."""
    chosen = np.random.default_rng(0).permutation(120)[:8]
    rest = np.setdiff1d(np.arange(120), chosen)
    observations = Observations(chosen, smooth(CLOUD)[chosen])
    told = make_warm_start([Source("a", smooth(CLOUD))], cloud).enrich(cloud)
    order = {}
    for name, embedding in (("cold", cloud), ("told", told)):
        model = Searcher().fit(embedding, observations).model
        mean, _ = model.mean_and_variance(torch.from_numpy(embedding.points[rest]))
        order[name] = spearmanr(mean, smooth(CLOUD)[rest]).statistic
    assert order["told"] > max(0.9, order["cold"] + 0.05)


def test_a_sampler_begins_with_what_is_best_elsewhere(one):
    space = one.space
    sampler = ActivationSampler(
        space,
        warm_start=[as_source(one, space)],
        first=3,
        baselines=[str(function) for function in space.baselines],
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    values = np.where(one.measured, one.values, 0.0)
    valid = sampler.embedding.valid
    study.optimize(
        lambda trial: values[space.catalogue.index(str(space.suggest(trial).expression))],
        n_trials=14,
    )
    proposed = [trial.user_attrs["index"] for trial in study.trials]
    order = np.argsort(-np.where(one.measured & valid, one.values, -np.inf), kind="stable")
    assert proposed[:3] == order[:3].tolist()
    baselines = [space.catalogue.index(function) for function in space.baselines]
    rest = [index for index in baselines if index not in order[:3]]
    assert proposed[3 : 3 + len(rest)] == rest
    assert study.trials[-1].user_attrs["proposal"]["by"] == "acquisition"


def test_a_warm_start_needs_no_baselines(one):
    space = one.space
    sampler = ActivationSampler(space, warm_start=[as_source(one, space)], first=3)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    values = np.where(one.measured, one.values, 0.0)
    study.optimize(
        lambda trial: values[space.catalogue.index(str(space.suggest(trial).expression))],
        n_trials=5,
    )
    by = [trial.user_attrs["proposal"]["by"] for trial in study.trials]
    assert by == ["baseline"] * 3 + ["acquisition"] * 2


def test_a_comparison_with_the_baselines_as_well(files):
    both = ["one.parquet", "two.parquet"]
    found = compare(
        both[:1], ["default", "with_baselines"], evaluations=14, seeds=1, warm_start=both[1:]
    )
    one = open_benchmark("one.parquet")
    tried = {m: s["index"].tolist() for m, s in found.steps.groupby("method")}
    assert tried["default"][:5] == tried["with_baselines"][:5]
    usual = [i for i in initial_design(one, seed=0, initial=0) if i not in tried["default"][:5]]
    assert tried["with_baselines"][5 : 5 + len(usual)] == usual
    assert tried["default"][5 : 5 + len(usual)] != usual


def test_a_good_source_leads_to_the_best_at_once(files, one):
    # Another task on which functions do as they do here.
    runs = {metric: 0.9 * values for metric, values in one.runs.items()}
    save(dataclasses.replace(one, name="alike", runs=runs, curves=None), files / "alike.parquet")
    found = compare(
        ["one.parquet"], ["default", "cold"], evaluations=14, seeds=2, warm_start=["alike.parquet"]
    )
    best = open_benchmark("one.parquet").best
    steps = found.steps[found.steps["index"] == best]
    assert (steps.loc[steps["method"] == "default", "evaluation"] == 1).all()
    cold_steps = found.steps[(found.steps["method"] == "cold") & (found.steps["seed"] == 0)]
    design = initial_design(open_benchmark("one.parquet"), seed=0)
    assert cold_steps["index"].tolist()[: len(design)] == design


def test_no_benchmark_is_its_own_source(files):
    both = ["one.parquet", "two.parquet"]
    left_out = compare(both, ["default"], evaluations=12, seeds=1, warm_start=both)
    for name, other in (both, both[::-1]):
        alone = compare([name], ["default"], evaluations=12, seeds=1, warm_start=[other])
        chosen = left_out.steps[left_out.steps["benchmark"] == name]
        assert chosen["index"].tolist() == alone.steps["index"].tolist()
    with pytest.raises(BenchmarkError, match="benchmarks of other tasks to learn from"):
        compare(both[:1], ["default"], evaluations=12, seeds=1, warm_start=both[:1])


# --- studies --------------------------------------------------------------------------------

STUDY = {
    "name": "tiny",
    "storage": "tiny.log",
    "space": "classic",
    "trials": 12,
    "model": {"name": "mlp", "options": {"widths": [16, 16]}},
    "data": {"name": "digits", "train": 256, "validation": 200},
    "training": {"epochs": 2, "batch_size": 64, "threads": 1, "device": "cpu"},
    "features": {"fim": False},
    "confirm": {"seeds": 0},
}


def test_a_study_learns_from_a_study_and_a_benchmark(files):
    run_study(StudySpec.model_validate(STUDY))
    Path("tiny.toml").write_text(
        'name = "tiny"\nspace = "classic"\nstorage = "tiny.log"\n'
        '[model]\nname = "mlp"\n[data]\nname = "digits"\n'
    )
    space = load_space("classic")
    study, benchmark = read_sources(space, ["tiny.toml", "two.parquet"])
    assert (study.name, benchmark.name) == ("tiny", "two")
    trials = load_study(StudySpec.model_validate(STUDY)).trials
    assert np.isfinite(study.values).sum() == len(trials) == 12
    for trial in trials:
        assert study.values[trial.user_attrs["index"]] == trial.value
    sources = ["tiny.toml", "two.parquet"]
    second = StudySpec.model_validate(
        STUDY | {"name": "second", "trials": 4, "warm_start": {"sources": sources, "first": 2}}
    )
    run_study(second)
    warm = make_warm_start([study, benchmark], ActivationSampler(space).embedding, first=2)
    proposed = [trial.user_attrs["index"] for trial in load_study(second).trials]
    assert proposed[:2] == list(warm.best)
    assert len(proposed) == 4  # what was learnt from is in no trial


RATE = '[parameters]\n"training.learning_rate" = { low = 0.01, high = 0.2, log = true }\n'


@pytest.mark.parametrize("parameters", ["", RATE], ids=["functions", "with a rate"])
def test_trials_of_sources_change_nothing(files, bo_act, parameters):
    """A study with them proposes, counts, finds and confirms what it does without."""
    Path("plain.toml").write_text(
        'name = "plain"\nspace = "classic"\ntrials = 7\n'
        '[model]\nname = "mlp"\noptions = { widths = [16, 16] }\n'
        '[data]\nname = "digits"\ntrain = 256\nvalidation = 200\n'
        '[training]\nepochs = 2\nthreads = 1\ndevice = "cpu"\n[features]\nfim = false\n'
        "[confirm]\nseeds = 1\ntop = 1\n[warm_start]\nsources = ['two.parquet']\nfirst = 2\n"
        + parameters
    )
    plain, marked = (
        read_study("plain.toml", changes)
        for changes in ({}, {"name": "marked", "warm_start.as_trials": "5"})
    )
    assert marked.warm_start.as_trials == 5
    without, found = run_study(plain), run_study(marked)
    trials = load_study(marked).trials  # SQLite
    added = [trial for trial in trials if "source" in trial.user_attrs]
    assert trials[:5] == added
    source = read_sources(load_space("classic"), ["two.parquet"])[0]
    best = np.argsort(-np.where(np.isfinite(source.values), source.values, -np.inf))[:5]
    assert {t.user_attrs["index"] for t in added} == set(best.tolist())
    for trial in added:
        assert trial.user_attrs["source"] == "two"
        assert trial.value == source.values[trial.user_attrs["index"]]
        assert (
            str(load_space("classic").suggest_expression(trial)) == trial.user_attrs["activation"]
        )
    own = [(t.user_attrs["activation"], t.params, t.value) for t in trials[5:]]
    assert own == [
        (t.user_attrs["activation"], t.params, t.value) for t in load_study(plain).trials
    ]
    assert found.trials == without.trials
    assert found.trials.complete == 7
    assert [one.value for one in found.top] == [one.value for one in without.top]
    assert found.confirmed == without.confirmed
    # A second call adds nothing again, and another study learns from own trials alone.
    run_study(marked)
    assert len(load_study(marked).trials) == 12
    space = load_space("classic")
    learnt = trials_as_source("m", space, trials)
    measured = {t.user_attrs["index"] for t in trials[5:]}
    assert set(np.flatnonzero(np.isfinite(learnt.values)).tolist()) == measured
    code, out, _ = bo_act("why", "plain.toml", "11", "--set", "name=marked")
    assert code == 0
    assert "after 6 functions" in out


def test_sources_as_trials_of_several_activations(one):
    study = optuna.create_study(direction="minimize")
    # Of a metric that nobody knows: values of the study are then the source's with its sign.
    sources = [replace(as_source(one, one.space), metric=None)]
    names = ("early", "late")
    assert add_source_trials(study, one.space, sources, most=3, activations=names) == 3
    assert add_source_trials(study, one.space, sources, most=4, activations=names) == 1
    for trial in study.trials:
        function = one.space.catalogue.text(trial.user_attrs["index"])
        assert trial.value == -one.values[trial.user_attrs["index"]]
        for name in names:
            assert str(one.space.suggest_expression(trial, name)) == function


def test_a_pruner_would_count_them():
    changes = {"warm_start": {"as_trials": 1}, "pruner": {"name": "median"}}
    with pytest.raises(ValueError, match="a pruner would count"):
        StudySpec.model_validate(STUDY | changes)


def test_what_a_study_knows(one):
    space = one.space
    trials = [
        create_trial(value=0.5, user_attrs={"activation": "relu(x)"}),
        create_trial(value=float("inf"), user_attrs={"activation": "tanh(x)"}),
        create_trial(value=0.7, user_attrs={"activation": "cosh(cosh(x))"}),
        create_trial(value=0.7),
        create_trial(state=TrialState.PRUNED, user_attrs={"activation": "elu(x)"}),
    ]
    found = trials_as_source("s", space, trials)
    assert np.flatnonzero(np.isfinite(found.values)).tolist() == [space.catalogue.index("relu(x)")]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_a_study_knows_of_a_function_is_not_its_last_trial(one, direction):
    """The mean of repeated trials; and with several settings, the best."""
    metric = Metric("score", direction)
    width = {"width": optuna.distributions.IntDistribution(1, 9)}
    trials = [
        create_trial(
            value=metric.sign * value,
            params={"width": at},
            distributions=width,
            user_attrs={"activation": "relu(x)"},
        )
        for at, value in ((3, 0.7), (3, 0.3), (5, 0.4), (5, 0.44), (7, 0.1))
    ]
    found = trials_as_source("s", one.space, trials, metric)
    assert found.values[one.space.catalogue.index("relu(x)")] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing_of_this_name", ContentNotFoundError, "no study named 'nothing_of_this_name'"),
        ("missing.parquet", ContentNotFoundError, "no benchmark file .missing.parquet."),
        ("missing.toml", ContentNotFoundError, "no study file 'missing.toml'"),
        ("quickstart", StorageError, "there is no study storage"),
    ],
)
def test_a_source_that_is_not_there(files, name, error, message):
    with pytest.raises(error, match=message):
        read_sources(load_space("classic"), [name])
