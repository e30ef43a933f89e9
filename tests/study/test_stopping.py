"""Knowing when to stop: the expected improvement of what is left, in units of the value."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
from made_up import BLOCKS, CLOUD, smooth

from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.spaces.space import load_space
from bo_act.study.results.stopping import improvement_left
from bo_act.study.sampling.sampler import ActivationSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def cloud() -> Embedding:
    return Embedding(CLOUD.copy(), BLOCKS, np.ones(len(CLOUD), dtype=bool))


def seen(indices: np.ndarray, scale: float = 1.0, shift: float = 0.0) -> Observations:
    return Observations(indices, shift + scale * smooth(CLOUD[indices]))


expected_improvement = Searcher().expected_improvement
WORST_FIRST = np.argsort(smooth(CLOUD))


def test_it_is_large_before_the_best_was_seen_and_small_after(cloud):
    before = expected_improvement(cloud, seen(WORST_FIRST[:40]))
    after = expected_improvement(cloud, seen(np.concatenate([WORST_FIRST[:39], WORST_FIRST[-1:]])))
    gap = np.ptp(smooth(CLOUD)[WORST_FIRST[[39, -1]]])
    assert before > 0.05 * gap
    # Far above all others, the best counts as nearer than it is.
    assert after < 0.5 * before


def test_a_spurious_best_value_does_not_end_a_search(cloud):
    some = WORST_FIRST[:90]
    values = smooth(CLOUD[some])
    plain = expected_improvement(cloud, Observations(some, values))
    values[5] = 1e6
    found = expected_improvement(cloud, Observations(some, values))
    assert 0.02 * plain < found < 2 * plain


def test_it_is_in_units_of_the_value(cloud):
    plain = expected_improvement(cloud, seen(np.arange(30)))
    assert expected_improvement(cloud, seen(np.arange(30), scale=0.01)) == pytest.approx(
        0.01 * plain, rel=1e-3
    )
    assert expected_improvement(cloud, seen(np.arange(30), shift=5.0)) == pytest.approx(
        plain, rel=1e-3
    )


def test_it_is_what_monte_carlo_says(cloud):
    """The expected gain over the best, by the truth at functions that are like those left out."""
    found = []
    gains = []
    for seed in range(20):
        chosen = np.random.default_rng(seed).permutation(120)[:40]
        found.append(expected_improvement(cloud, seen(chosen)))
        left = np.setdiff1d(np.arange(120), chosen)
        gains.append(max(smooth(CLOUD[left]).max() - smooth(CLOUD[chosen]).max(), 0.0))
    # The next evaluation cannot bring more than the best of all that is left: the same order.
    assert 0.1 < np.mean(found) / np.mean(gains) < 2.0


def test_too_little_is_known_to_tell(cloud):
    assert expected_improvement(cloud, seen(np.arange(2))) == float("inf")
    same = Observations(np.arange(5), np.ones(5))
    assert expected_improvement(cloud, same) == float("inf")


def test_nothing_is_left(cloud):
    assert expected_improvement(cloud, seen(np.arange(120))) == 0.0


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_of_a_study(direction):
    space = load_space("classic")
    sampler = ActivationSampler(space)
    study = optuna.create_study(direction=direction, sampler=sampler)
    sign = 1.0 if direction == "maximize" else -1.0
    values = np.linspace(0, 1, len(space.catalogue))
    assert improvement_left(study, sampler) == float("inf")
    study.optimize(
        lambda trial: sign * values[space.catalogue.index(str(space.suggest(trial).expression))],
        n_trials=13,
    )
    indices = np.array([trial.user_attrs["index"] for trial in study.trials])
    expected = expected_improvement(sampler.embedding, Observations(indices, values[indices]))
    assert improvement_left(study, sampler) == pytest.approx(expected)
    assert 0 < expected < 1


def test_a_study_ends(tmp_path, monkeypatch, bo_act):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "classic"\ntrials = 20\n[model]\nname = "mlp"\n[data]\n'
        'name = "digits"\ntrain = 128\nvalidation = 200\n[training]\nepochs = 1\nthreads = 1\n'
        "[features]\nfim = false\n[confirm]\nseeds = 0\n[stop]\nimprovement = 1.0\nleast = 12\n"
    )
    code, out, _ = bo_act("run", "s.toml", "--json", "--quiet")
    assert (code, json.loads(out)["trials"]["complete"]) == (0, 12)
    # It is no part of what a study is made with: without it the study goes on.
    code, out, _ = bo_act(
        "run", "s.toml", "--json", "--quiet", "--set", "stop.improvement=1e-9", "--set", "trials=14"
    )
    assert (code, json.loads(out)["trials"]["complete"]) == (0, 14)
