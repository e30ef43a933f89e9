"""Several seeds or data sets a trial: their mean is the value, its variance is known noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from botorch.optim.closures import get_loss_closure_with_grads
from gpytorch.mlls import ExactMarginalLogLikelihood
from made_up import BLOCKS, CLOUD, smooth

from bo_act.errors import SearchError, SpecError
from bo_act.search.observations import Observations, unit, warp_targets, warp_variances
from bo_act.search.surrogate.factory import fit_points
from bo_act.search.surrogate.fitting import fit, is_written_out, loss_closure
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.search.surrogate.own import OwnSurrogate
from bo_act.specs import StudySpec, SurrogateSpec
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.study_view import StudyView
from bo_act.tasks.objective import _as_measured

optuna.logging.set_verbosity(optuna.logging.WARNING)

X = torch.from_numpy(CLOUD[:40].copy())


# --- what an objective returns ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value", "values", "test"),
    [
        (0.25, 0.25, (), None),
        ([0.25], 0.25, (), None),
        ([1.0, 2.0, 6.0], 3.0, (1.0, 2.0, 6.0), None),
        ((1, 2), 1.5, (1.0, 2.0), None),
        (np.array([1.0, 3.0]), 2.0, (1.0, 3.0), None),
        (torch.tensor([1.0, 3.0], requires_grad=True), 2.0, (1.0, 3.0), None),
        ([np.float32(1), torch.tensor(3)], 2.0, (1.0, 3.0), None),
        ({"validation": 2}, 2.0, (), None),
        ({"validation": [1, 3], "test": [2, 4]}, 2.0, (1.0, 3.0), 3.0),
        ({"validation": 1, "test": None}, 1.0, (), None),
    ],
)
def test_what_came_of_a_training(given, value, values, test):
    found = _as_measured(given)
    assert (found.value, found.values, found.test) == (value, values, test)


@pytest.mark.parametrize("given", [[1.0, math.nan], [math.inf, 1.0], [math.inf, -math.inf]])
def test_one_that_diverges_is_a_training_that_does(given):
    assert math.isnan(_as_measured(given).value)
    assert _as_measured(given).variance is None


@pytest.mark.parametrize(
    "given",
    [[], (), None, "12", True, [True, False], [[1.0], [2.0]], np.ones((2, 2)), {}, {"test": 1},
     {"validation": 1, "tests": 2}, {"validation": {"validation": 1}}, {1.0, 2.0}],
)  # fmt: skip
def test_what_is_neither_is_refused(given):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        _as_measured(given)


def make(body: str, **changes) -> StudySpec:
    Path("mine.py").write_text(f"import math\n\n\ndef objective(trial, activation):\n    {body}\n")
    content = {"name": "own", "space": "classic", "trials": 7, "objective": "mine.py:objective"}
    return StudySpec.model_validate(content | changes)


def test_a_study_of_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = "k = len(str(activation)); return {'validation': [k, k + 1, k + 5.0], 'test': k}"
    result = run_study(spec := make(body))
    study = load_study(spec)
    assert result.trials.complete == 7
    for trial in study.trials:
        low = trial.user_attrs["values"][0]
        assert trial.value == low + 2
        assert trial.user_attrs["variance"] == pytest.approx(7 / 3)  # of 0, 1, 5: 7; of their mean
        assert trial.user_attrs["test"] == low
    view = StudyView.of(study)
    found = view.variances(view.complete)
    # All have the same: what is known of the others says nothing else but for the median.
    assert found == pytest.approx(np.full(7, found[0]))
    assert 7 / 3 <= found[0] < 1.3 * 7 / 3


def test_what_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"one for each seed .*got a list of nothing"):
        run_study(make("return []"))
    with pytest.raises(SpecError, match="got a dict of 'loss'"):
        run_study(make("return {'loss': 1}", name="other"))


# --- variances ----------------------------------------------------------------------------------


def trials_of(*values: object) -> list[optuna.trial.FrozenTrial]:
    made = []
    for number, some in enumerate(values):
        several = list(some) if isinstance(some, tuple) else []
        attributes = {}
        if len(several) > 1:
            attributes = {
                "values": several, "variance": float(np.var(several, ddof=1) / len(several))
            }  # fmt: skip
        value = float(np.mean(several)) if several else float(some)
        made.append(optuna.trial.create_trial(value=value, user_attrs=attributes))
        made[-1].number = number
    return made


def test_variances_of_few_runs_are_drawn_together():
    direction = optuna.study.StudyDirection.MAXIMIZE
    view = StudyView.of_some([], [direction])
    assert view.variances(trials_of(1.0, 2.0)) is None
    assert view.variances([]) is None
    generator = np.random.default_rng(0)
    runs = [tuple(generator.normal(size=3)) for _ in range(300)]
    found = view.variances(trials_of(*runs, 0.5))
    raw = np.array([np.var(some, ddof=1) / 3 for some in runs])
    # Nearer to the truth, 1/3, than each alone, and about right on average.
    assert np.abs(found[:-1] - 1 / 3).mean() < 0.6 * np.abs(raw - 1 / 3).mean()
    assert found[:-1].mean() == pytest.approx(1 / 3, rel=0.1)
    assert found[:-1].min() > 0.05
    # One of one run has the variance of one.
    assert found[-1] == pytest.approx(1.0, rel=0.2)


def test_a_program_may_note_the_variance_itself():
    direction = optuna.study.StudyDirection.MINIMIZE
    trials = [
        optuna.trial.create_trial(value=1.0, user_attrs={"variance": 0.04}),
        optuna.trial.create_trial(value=2.0, user_attrs={"variance": "none"}),
        optuna.trial.create_trial(value=2.0, user_attrs={"variance": -1.0}),
        optuna.trial.create_trial(value=2.0),
    ]
    assert StudyView.of_some([], [direction]).variances(trials).tolist() == [0.04] * 4


@pytest.mark.parametrize("how", ["winsorized", "standardized"])
def test_variances_have_the_unit_of_the_targets(how):
    values = 0.3 * smooth(CLOUD[:40]) + 2.0
    targets = warp_targets(values, how)
    found = warp_variances(np.full(40, 0.01), values, targets, how)
    assert found == pytest.approx(np.full(40, 0.01 / unit(values, how) ** 2))
    assert not warp_variances(np.ones(3), np.ones(3), np.zeros(3), how).any()


def test_ranks_move_within_a_deviation():
    values = np.arange(20.0)
    targets = warp_targets(values, "rank_normal")
    found = warp_variances(np.full(20, 1.0), values, targets, "rank_normal")
    assert found[10] == pytest.approx(((targets[11] - targets[9]) / 2) ** 2)


@pytest.mark.parametrize("bad", [[1.0], [1.0, math.nan], [1.0, -1.0]])
def test_variances_that_are_none_are_refused(bad):
    with pytest.raises(SearchError, match="2 finite variances"):
        Observations(np.arange(2), np.arange(2.0), variances=np.array(bad))


# --- the surrogate ------------------------------------------------------------------------------


def known(scale: float = 0.05) -> np.ndarray:
    return np.where(np.arange(40) % 2, 40 * scale, scale)


def test_the_written_out_likelihood_is_botorchs():
    y = torch.from_numpy(warp_targets(smooth(CLOUD[:40]), "standardized")).unsqueeze(-1)
    model = GaussianProcess(X, y, BLOCKS, train_Yvar=torch.from_numpy(known()).unsqueeze(-1))
    assert is_written_out(model)
    model.train()
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    parameters = {n: p for n, p in mll.named_parameters() if p.requires_grad}
    value, gradient = get_loss_closure_with_grads(mll, parameters)()
    ours, slopes = loss_closure(model)()
    assert float(ours) == pytest.approx(float(value), rel=1e-9)
    by_id = dict(zip(map(id, model.parameters()), slopes, strict=True))
    for parameter, theirs in zip(parameters.values(), gradient, strict=True):
        torch.testing.assert_close(by_id[id(parameter)], theirs, rtol=1e-6, atol=1e-8)
    assert fit(model) == ""


def test_predictions_are_botorchs_and_follow_the_sure_ones():
    values = smooth(CLOUD[:40]) + 0.3 * np.random.default_rng(1).normal(size=40)
    believed = torch.from_numpy(CLOUD[40:43].copy())
    options = {"pending": believed, "seed": 0}
    spec = SurrogateSpec(targets="standardized")
    model, y, note = fit_points(spec, X, values, BLOCKS, variances=known(), **options)
    assert note == ""
    assert len(model.x) == 43
    new = torch.from_numpy(CLOUD[50:60].copy())
    mean, variance = model.mean_and_variance(new)
    theirs = type(model).__mro__[1].posterior(model, new.unsqueeze(-2))
    torch.testing.assert_close(mean, theirs.mean.flatten().detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, theirs.variance.flatten().detach(), rtol=1e-3, atol=1e-6)
    at_x, _ = model.mean_and_variance(X)
    away = (at_x - y).abs()
    assert away[known() == known().min()].mean() < 0.5 * away[known() > known().min()].mean()
    mean, variance = model.mean_and_variance(new)
    upper, most = model.upper_bounds(new)
    assert (upper >= mean - 1e-9).all()
    assert (most >= variance - 1e-9).all()
    assert torch.isfinite(model.draw_path(torch.Generator().manual_seed(0))(new)).all()


def test_without_variances_nothing_changes():
    values = smooth(CLOUD[:40])
    model, _, _ = fit_points(SurrogateSpec(), X, values, BLOCKS, seed=0)
    names = [name for name, _ in model.named_parameters()]
    assert "likelihood.noise_covar.raw_noise" in names


def test_a_surrogate_of_ones_own_is_told():
    told = []

    def make_model(train_X, train_Y, train_Yvar):
        from botorch.models import SingleTaskGP

        told.append(train_Yvar)
        return SingleTaskGP(train_X, train_Y, train_Yvar)

    values = smooth(CLOUD[:40])
    own = OwnSurrogate(make_model, targets="standardized")
    believed = torch.from_numpy(CLOUD[40:43].copy())
    fit_points(own, X, values, BLOCKS, variances=known(), pending=believed, seed=0)
    assert [len(one) for one in told] == [40, 43]
    expected = known() / unit(values, "standardized") ** 2
    assert told[0].flatten().numpy() == pytest.approx(expected)
