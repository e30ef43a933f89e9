"""Observations and the targets that a surrogate is shown: in any unit, with ties and outliers."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, smooth
from scipy.stats import norm

from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, fences, inverse_warp, unit, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.factory import fit_points
from bo_act.spaces.space import load_space
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.study.results.stopping import improvement_left
from bo_act.study.sampling.sampler import ActivationSampler

HOW = ["rank_normal", "winsorized", "standardized"]
TINY = float(np.finfo(np.float64).smallest_subnormal)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_observations_are_finite(value):
    with pytest.raises(SearchError, match=f"observation 1 has the value {value}"):
        Observations(np.array([3, 4]), np.array([0.5, value]))


def test_observations_are_of_one_length():
    with pytest.raises(SearchError, match=r"as many indices as values, got \(2,\) and"):
        Observations(np.array([3, 4]), np.array([0.5]))
    assert len(Observations(np.array([3, 4]), np.array([0.5, 0.6]))) == 2


# Like accuracies: few digits, many ties.
VALUES = st.lists(
    st.integers(-(10**6), 10**6).map(lambda i: i / 1000) | st.sampled_from([0.1, 0.7]),
    min_size=1,
    max_size=40,
).map(np.array)
# Many at chance, the others in few steps near the top, and one that is spurious.
COARSE = st.tuples(
    st.lists(st.just(0.1), max_size=30),
    st.lists(st.integers(90, 97).map(lambda i: i / 100), min_size=1, max_size=30),
    st.lists(st.sampled_from([5.0, 1e6, 1e300, -5.0, -1e300]), max_size=1),
).map(np.concatenate)
WARPS = st.sampled_from(HOW)


@given(VALUES | COARSE, WARPS)
def test_warped_targets_are_finite_centred_and_in_order(values, how):
    warped = warp_targets(values, how)
    assert warped.shape == values.shape
    assert warped.dtype == np.float64
    assert np.isfinite(warped).all()
    assert abs(warped.mean()) < 0.5
    assert np.abs(warped).max() <= max(3.0, np.sqrt(len(values)) + 1e-9)
    order = np.argsort(values, kind="stable")
    assert (np.diff(warped[order]) >= 0).all()
    for value in values:
        assert len(set(warped[values == value])) == 1
    if how == "rank_normal":
        assert len(set(warped)) == len(set(values))


@given(VALUES, WARPS, st.randoms(use_true_random=False))
def test_warping_does_not_depend_on_the_order(values, how, random):
    order = list(range(len(values)))
    random.shuffle(order)
    np.testing.assert_allclose(
        warp_targets(values[order], how), warp_targets(values, how)[order], atol=1e-9
    )


@example(np.array([0.9] * 5 + [0.92, 0.93]), "winsorized", 1.0, 1.0)  # the last at the fence
@given(
    VALUES | COARSE,
    WARPS,
    st.sampled_from([1e-300, 1e-12, 3.0, 1e12, 1e300]),
    st.sampled_from([0.0, 1.0, -70.0]),
)
def test_any_unit_gives_the_same_targets(values, how, scale, shift):
    assume(np.abs(values).max() < 1e6)
    changed = scale * (values + shift)
    # A shift costs digits: the smallest difference of values is a thousandth.
    np.testing.assert_allclose(warp_targets(changed, how), warp_targets(values, how), atol=1e-7)
    if how != "rank_normal":
        assert unit(changed, how) == pytest.approx(scale * unit(values, how), rel=1e-7)


@given(VALUES | COARSE, WARPS)
def test_the_best_is_above_the_worst_whatever_is_between(values, how):
    warped = warp_targets(values, how)
    if len(set(values.tolist())) > 1:
        assert warped[values.argmax()] > warped[values.argmin()] + 0.1
        assert math.isfinite(unit(values, "winsorized"))
    else:
        assert not warped.any()
        assert math.isinf(unit(values, "winsorized"))


@given(VALUES | COARSE)
def test_winsorized_targets_keep_the_upper_half_apart(values):
    upper = np.unique(values[values >= np.median(values)])
    warped = warp_targets(values, "winsorized")
    low, high = fences(values)
    between = (values > low) & (values < high)
    assert len(set(warped[between])) == len(set(values[between]))
    if len(upper) > 1:
        assert len({float(warped[values == value][0]) for value in upper}) > 1
    assert len(set(warped[values <= low])) <= 1
    slopes = np.diff(np.unique(values[between])) / np.diff(np.unique(warped[between]))
    np.testing.assert_allclose(slopes, unit(values, "winsorized"), rtol=1e-6)


def test_coarse_values_do_not_collapse():
    """In steps of a hundredth, more than half of what was seen has the best value or nearly so."""
    values = np.array([0.1] * 8 + [0.90, 0.93, 0.95, 0.96] + [0.97] * 20)
    warped = warp_targets(values, "winsorized")
    diverged, poor, fair, good, best = (
        warped[values == value][0] for value in (0.1, 0.93, 0.95, 0.96, 0.97)
    )
    assert diverged < fair < good < best
    assert poor <= fair
    assert best - good > 0.2
    assert good - diverged > 1.0


@pytest.mark.parametrize("spurious", [5.0, 1e6, 1e300, -5.0, -1e6, -1e300])
def test_one_spurious_value_leaves_the_others_apart(spurious):
    good = 0.90 + 0.005 * np.arange(12)
    values = np.concatenate([good, np.full(10, 0.1), [spurious]])
    without, spread = (np.ptp(warp_targets(v, "winsorized")[:12]) for v in (values[:-1], values))
    assert spread > 0.85 * without


@given(st.floats(-1e3, 1e3), st.integers(1, 9), WARPS)
def test_equal_values_carry_nothing(value, count, how):
    np.testing.assert_array_equal(warp_targets(np.full(count, value), how), np.zeros(count))
    nearly = value * (1 + np.finfo(float).eps * np.arange(count))
    np.testing.assert_array_equal(warp_targets(nearly, how), np.zeros(count))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "values",
    [
        [1e308, -1e308, 0.0, 1.7e308],
        [TINY, 0.0, 2 * TINY, 7 * TINY],
        [1.0, 2.0, 1e-300, 1e300, -1e300],
        [-1e-300, 2e-300, 5e-300],
    ],
)
def test_values_of_any_size(values, how):
    values = np.array(values)
    warped = warp_targets(values, how)
    assert np.isfinite(warped).all()
    assert warped[values.argmax()] == warped.max() > warped[values.argmin()] == warped.min()
    back = inverse_warp(warped, warped, values)
    assert back.max() == values.max()
    assert np.isfinite(back).all()


def test_warps_of_a_skewed_sample():
    values = np.array([0.1, 0.1, 0.1, 0.1, 0.80, 0.82, 0.85, 0.87, 0.91])
    ranks = warp_targets(values, "rank_normal")
    np.testing.assert_allclose(ranks[-1], norm.ppf(8.5 / 9))
    np.testing.assert_allclose(ranks[:4], norm.ppf(2 / 9))
    standard = warp_targets(values, "standardized")
    np.testing.assert_allclose([standard.mean(), standard.std()], [0, 1], atol=1e-12)
    # Upper half 0.8 … 0.91: q25 = 0.82 and q75 = 0.87.
    assert fences(values) == pytest.approx((0.745, 0.97))
    raised = np.maximum(values, 0.745)
    np.testing.assert_allclose(
        warp_targets(values, "winsorized"), (raised - raised.mean()) / raised.std()
    )


def test_what_is_far_above_is_put_near_the_best():
    values = np.array([0.1] * 8 + [0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.92, 1.2])
    # Upper half: q25 = 0.835 and q75 = 0.905, so s = 0.07.
    assert fences(values) == pytest.approx((0.73, 1.045))
    near = np.maximum(values, 0.73)
    near[-1] = 0.92 + 0.035 * 0.28 / (0.035 + 0.28)
    np.testing.assert_allclose(
        warp_targets(values, "winsorized"), (near - near.mean()) / near.std()
    )


def test_few_different_values_count_once_each():
    values = np.array([0.1] * 17 + [0.94, 0.95, 0.96] + [0.97] * 14)
    # Both quartiles are 0.97. Of 0.94 to 0.97 once each: q25 = 0.9475, q50 = 0.955, q75 = 0.9625.
    assert fences(values) == pytest.approx((0.925, 0.9925))
    # Fewer than three different ones from the median up: the upper half of the different values.
    values = np.array([0.1] * 3 + [0.93, 0.94, 0.95, 0.96] + [0.97] * 8)
    # 0.95, 0.96 and 0.97.
    assert fences(values) == pytest.approx((0.94, 0.985))
    # A spurious one among few moves no quartile far.
    low, high = fences(np.append(values, 5.0))
    assert 0.85 < low < 0.95
    assert high < 1.1


def test_one_that_is_far_below_leaves_the_few_others_apart():
    assert len(set(warp_targets(np.array([0.1, 0.9, -1e300]), "winsorized"))) == 3


# --- in a search ----------------------------------------------------------------------------


def best_of_search(told: np.ndarray, *, truth: np.ndarray, leave: int, seeds: int = 4) -> float:
    """Return the mean of the best true values that searches find, the spurious one left out."""
    embedding = Embedding(CLOUD.copy(), BLOCKS, np.ones(len(CLOUD), dtype=bool))
    found = []
    for seed in range(seeds):
        start = np.random.default_rng(seed).permutation(len(CLOUD))[:7]
        taken = [leave, *start[start != leave].tolist()]
        searcher = Searcher(seed=seed, acquisition=AcquisitionSpec(name="ucb"))
        for number in range(len(taken), 22):
            seen = np.array(taken)
            observations = Observations(seen, told[seen])
            taken.append(searcher.propose(embedding, observations, number=number).index)
        found.append(truth[[index for index in taken if index != leave]].max())
    return float(np.mean(found))


@pytest.mark.parametrize("spurious", [1e3, 1e300])
def test_a_search_with_a_spurious_value_goes_on(spurious):
    truth = smooth(CLOUD)
    leave = int(np.argsort(truth)[30])
    told = truth.copy()
    told[leave] = spurious
    assert best_of_search(told, truth=truth, leave=leave) > 0.97 * truth.max()


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_a_study_of_values_of_any_size(scale):
    space = load_space("classic")
    values = np.random.default_rng(0).normal(size=len(space.catalogue))

    def study(unit_of_value: float) -> optuna.Study:
        sampler = ActivationSampler(space, baselines=(), seed=3)
        made = optuna.create_study(direction="maximize", sampler=sampler)
        made.optimize(
            lambda trial: (
                unit_of_value * values[space.catalogue.index(str(space.suggest(trial).expression))]
            ),
            n_trials=8,
        )
        return made

    plain, scaled = study(1.0), study(scale)
    assert [t.params for t in scaled.trials] == [t.params for t in plain.trials]
    left = [improvement_left(one, one.sampler) for one in (plain, scaled)]
    assert left[1] == pytest.approx(scale * left[0], rel=1e-6)
    expected = [t.user_attrs["proposal"]["expected"] for t in scaled.trials[-3:]]
    assert all(0 < abs(one) <= 4 * scale for one in expected)


@pytest.mark.parametrize("noise", [1e-3, 1e300])
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_known_noise_of_any_size(scale, noise):
    x, none = torch.from_numpy(CLOUD[:20].copy()), torch.empty(0, 4, dtype=torch.float64)
    model, y, note = fit_points(
        SurrogateSpec(noise=noise),
        x,
        scale * smooth(CLOUD[:20]),
        BLOCKS,
        pending=none,
        pruned=none,
        seed=0,
    )
    assert note == ""
    assert torch.isfinite(model.mean_and_variance(x)[0]).all()
    assert float(y.std()) > 0.5
