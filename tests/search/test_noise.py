"""Known noise of measurements: its unit, and that the model takes it as the least there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import BLOCKS, CLOUD, smooth
from pydantic import ValidationError

from bo_act.search.observations import fences, unit, warp_targets
from bo_act.search.surrogate.factory import fit_points
from bo_act.search.surrogate.fitting import fit, loss_closure
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.specs import SurrogateSpec

X = CLOUD[:80].copy()
NONE = torch.empty(0, X.shape[1], dtype=torch.float64)


def values(scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Smooth values, the worst third of them fallen to chance."""
    found = smooth(X)
    found[found < np.quantile(found, 1 / 3)] = found.min() - 5.0
    return scale * found + shift


def noise_of(spec: SurrogateSpec, measured: np.ndarray) -> float:
    model, _, note = fit_points(
        spec, torch.from_numpy(X), measured, BLOCKS, pending=NONE, pruned=NONE, seed=0
    )
    assert note == ""
    return float(model.noise)


@pytest.mark.parametrize("how", ["winsorized", "standardized"])
def test_the_unit_is_the_slope_from_targets_to_values(how):
    measured = values(scale=0.3, shift=2.0)
    low, high = fences(measured)
    order = np.argsort(measured)
    order = order[(measured[order] > low) & (measured[order] < high)]
    assert len(order) > 20
    targets = warp_targets(measured, how)
    slope = np.diff(measured[order]) / np.diff(targets[order])
    assert slope == pytest.approx(unit(measured, how), rel=1e-9)


def test_equal_targets_have_no_unit():
    measured = np.full(7, 0.9)
    assert not warp_targets(measured, "winsorized").any()
    assert unit(measured, "winsorized") == float("inf")
    x, none = torch.from_numpy(X[:7]), NONE
    model, y, note = fit_points(
        SurrogateSpec(noise=0.1), x, measured, BLOCKS, pending=none, pruned=none, seed=0
    )
    assert note == ""
    assert not y.any()
    assert torch.isfinite(model.mean_and_variance(torch.from_numpy(X))[0]).all()


def test_known_noise_has_the_unit_of_the_value():
    spec = SurrogateSpec(noise=0.6)
    expected = (0.6 / unit(values(), "winsorized")) ** 2
    assert noise_of(SurrogateSpec(), values()) < 0.5 * expected
    assert noise_of(spec, values()) == pytest.approx(expected, rel=1e-6)
    # In per cent as in fractions, whatever the level.
    shrunk = SurrogateSpec(noise=0.006)
    assert noise_of(shrunk, values(scale=0.01, shift=0.7)) == pytest.approx(expected, rel=1e-6)


def test_more_noise_than_is_known_is_fitted():
    jitter = 0.2 * np.random.default_rng(0).normal(size=len(X))
    measured = smooth(X) + jitter
    alone = noise_of(SurrogateSpec(targets="standardized"), measured)
    little = SurrogateSpec(targets="standardized", noise=0.02)
    assert (0.02 / unit(measured, "standardized")) ** 2 < 0.1 * alone
    # L-BFGS stops by the change of the objective, so not at the very same place.
    assert noise_of(little, measured) == pytest.approx(alone, rel=0.05)


def test_all_else_is_fitted_as_well_as_the_known_noise_allows():
    y = warp_targets(values(), "winsorized")
    least = 0.3
    model = GaussianProcess(
        torch.from_numpy(X), torch.from_numpy(y).unsqueeze(-1), BLOCKS, least_noise=least
    )
    assert fit(model) == ""
    assert float(model.noise) == pytest.approx(least, rel=1e-9)
    parameters = [name for name, _ in model.named_parameters()]
    _, gradient = loss_closure(model)()
    slopes = {name: -slope.item() for name, slope in zip(parameters, gradient, strict=True)}
    noise = slopes.pop("likelihood.noise_covar.raw_noise")
    assert np.abs(list(slopes.values())).max() < 5e-3
    assert noise < -5e-3  # less would be better, were it not known


@pytest.mark.parametrize(
    "refused",
    [
        {"noise": 0.0},
        {"noise": float("inf")},
        {"noise": 0.01, "targets": "rank_normal"},
        {"noise": 0.01, "name": "forest"},
    ],
)
def test_noise_without_a_meaning_is_refused(refused):
    with pytest.raises(ValidationError):
        SurrogateSpec(**refused)
