"""Why a trial was made: predictions, their parts, their neighbours."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
import torch
from made_up import BLOCKS, CLOUD, smooth
from optuna.trial import TrialState

from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.explain import explain
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process
from bo_act.spaces.space import load_space
from bo_act.specs import SurrogateSpec
from bo_act.study.results.explanation import why
from bo_act.study.sampling.sampler import ActivationSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def cloud() -> Embedding:
    valid = np.ones(len(CLOUD), dtype=bool)
    valid[119] = False
    return Embedding(np.where(valid[:, None], CLOUD, np.nan), BLOCKS, valid)


def seen(count: int = 30) -> Observations:
    return Observations(np.arange(count), smooth(CLOUD[:count]))


def test_an_explanation_is_the_models(cloud):
    found = explain(Searcher(), cloud, seen(), 50)
    x, y = CLOUD[:30], warp_targets(smooth(CLOUD[:30]), SurrogateSpec().targets)
    oracle, _ = fit_gaussian_process(torch.from_numpy(x.copy()), torch.from_numpy(y), BLOCKS)
    posterior = oracle.posterior(torch.from_numpy(CLOUD[[50]]))
    assert sum(found.contributions.values()) == pytest.approx(posterior.mean.item(), abs=1e-6)
    kernel = oracle.covar_module
    prior = kernel(torch.from_numpy(CLOUD[[50]]), torch.from_numpy(x.copy())).to_dense()[0].detach()
    similar = (prior / kernel(torch.from_numpy(CLOUD[[50]])).to_dense().item()).numpy()
    assert [n.place for n in found.neighbours] == np.argsort(-similar)[:5].tolist()
    for neighbour in found.neighbours:
        assert neighbour.similarity == pytest.approx(similar[neighbour.place], abs=1e-6)
        assert neighbour.value == smooth(CLOUD)[neighbour.place]
    assert found.low <= found.predicted <= found.high
    assert found.observed == 30


def test_intervals_hold_what_is_measured(cloud):
    inside = []
    for index in range(40, 119):
        found = explain(Searcher(), cloud, seen(40), index)
        value = smooth(CLOUD[[index]])[0]
        if smooth(CLOUD[:40]).min() <= value <= smooth(CLOUD[:40]).max():
            inside.append(found.low <= value <= found.high)
    assert len(inside) > 60
    assert np.mean(inside) > 0.8


def test_a_functions_own_value_is_not_evidence(cloud):
    found = explain(Searcher(), cloud, seen(31), 30)
    assert found == explain(Searcher(), cloud, seen(30), 30)
    assert 30 not in [neighbour.place for neighbour in found.neighbours]


@pytest.mark.parametrize(
    ("observations", "index", "surrogate", "message"),
    [
        (seen(1), 50, "gp", "at least two evaluated functions"),
        (seen(), 119, "gp", "not in the embedding"),
        (seen(), 50, "forest", "only the surrogate 'gp', or your own, can explain"),
    ],
)
def test_what_cannot_be_explained(cloud, observations, index, surrogate, message):
    with pytest.raises(SearchError, match=message):
        explain(Searcher(surrogate=SurrogateSpec(name=surrogate)), cloud, observations, index)


# --- trials ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched():
    space = load_space("classic")
    sampler = ActivationSampler(space)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(
        lambda trial: float(np.sin(space.catalogue.index(str(space.suggest(trial).expression)))),
        n_trials=14,
    )
    return study, sampler


def test_a_trial_is_explained_by_those_before_it(searched):
    study, sampler = searched
    found = why(study, sampler, 12)
    assert found.activation == study.trials[12].user_attrs["activation"]
    assert found.value == study.trials[12].value
    assert found.by == "acquisition"
    assert found.explanation.observed == 12
    assert sum(found.explanation.contributions.values()) == pytest.approx(
        study.trials[12].user_attrs["proposal"]["mean"], abs=1e-3
    )
    before = {trial.user_attrs["activation"] for trial in study.trials[:12]}
    assert set(found.neighbours) <= before
    assert json.loads(json.dumps(found.as_json()))["neighbours"][0]["activation"] in before


def test_the_first_trial_has_no_evidence(searched):
    found = why(*searched, 0)
    assert found.explanation is None
    assert found.by == "baseline"


def test_trials_that_cannot_be_explained(searched):
    study, sampler = searched
    with pytest.raises(SearchError, match="has no trial 99; its trials are 0 to 13"):
        why(study, sampler, 99)
    empty = optuna.create_study()
    empty.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    with pytest.raises(SearchError, match="has no function yet"):
        why(empty, sampler, 0)


def test_the_command(tmp_path, monkeypatch, bo_act):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(
        'name = "s"\nspace = "classic"\ntrials = 13\n[model]\nname = "mlp"\n[data]\n'
        'name = "digits"\ntrain = 128\nvalidation = 200\n[training]\nepochs = 1\nthreads = 1\n'
        "[features]\nfim = false\n[confirm]\nseeds = 0\n"
    )
    assert bo_act("run", "s.toml", "--quiet")[0] == 0
    code, out, _ = bo_act("why", "s.toml", "12")
    assert code == 0
    for part in ("Trial 12", "by the acquisition function", "because", "Most similar"):
        assert part in out
    code, out, _ = bo_act("why", "s.toml", "12", "--json")
    assert json.loads(out)["trial"] == 12
    assert "too few functions had been evaluated" in bo_act("why", "s.toml", "0")[1]
    code, _, err = bo_act("why", "s.toml", "40")
    assert code == 2
    assert "has no trial 40; its trials are 0 to 12" in err
