"""Forecasts from gains on other tasks: the numbers, what does not change them, how many hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import t as student

from bo_act.errors import SearchError
from bo_act.features.outputs import output_blocks
from bo_act.search.recommendation import LEVEL, forecast, predicted, winsorized
from bo_act.spaces.space import load_space

GAINS = st.tuples(st.integers(1, 30), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e3, 1e3))
)


def test_the_numbers_of_two_functions():
    gains = np.array([[0.02, 0.04, 0.03], [0.00, 0.03, -0.03]])
    found = forecast(gains)
    np.testing.assert_allclose(found.gain, [0.03, 0.0], atol=1e-15)
    between = (0.01**2 + 0.03**2) / 2  # variances over the sources are 0.01² and 0.03²
    deviation = np.sqrt(between * (1 + 1 / 3))
    half = student.ppf(0.9, 2) * deviation
    np.testing.assert_allclose(found.high - found.gain, half)
    np.testing.assert_allclose(found.gain - found.low, half)
    np.testing.assert_allclose(found.chance, [student.cdf(0.03 / deviation, 2), 0.5])
    assert found.order.tolist() == [0, 1]


@given(GAINS, st.floats(1e-3, 1e3))
def test_any_unit_and_any_order_of_sources_tell_the_same(gains, unit):
    found = forecast(gains)
    assert (np.diff(found.gain[found.order]) <= 0).all()
    assert ((found.low <= found.gain) & (found.gain <= found.high)).all()
    assert ((found.chance >= 0) & (found.chance <= 1)).all()
    again = forecast(gains[:, ::-1])
    np.testing.assert_allclose(again.gain, found.gain, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(again.high, found.high, rtol=1e-6, atol=1e-6)
    scaled = forecast(unit * gains)
    np.testing.assert_allclose(scaled.gain, unit * found.gain, rtol=1e-9, atol=1e-9 * unit)


@given(GAINS.map(np.round))
def test_functions_that_fail_are_alike(gains):
    found = np.stack(winsorized(list(gains.T)), axis=1)
    best, quartile = gains.max(axis=0), np.quantile(gains, 0.75, axis=0, method="lower")
    floor = best - (best - quartile).max()
    np.testing.assert_array_equal(found, np.maximum(gains, floor))
    assert (found.max(axis=0) == best).all()
    # By how much they fail changes nothing.
    lost = gains - 1e6 * (gains < floor)
    np.testing.assert_array_equal(np.stack(winsorized(list(lost.T)), axis=1), found)


def test_that_the_present_function_is_the_best_hides_no_difference():
    gains = np.array([[0.0, 0.0], [-0.01, -0.02], [-0.03, -0.03], [-0.9, -0.04]])
    found = forecast(np.stack(winsorized(list(gains.T)), axis=1))
    assert found.order.tolist() == [0, 1, 2, 3]
    assert found.chance[1] < 0.5


def test_what_nothing_is_known_of_has_no_forecast():
    gains = np.array([[0.1, 0.2], [np.nan, 0.3], [np.nan, np.nan], [0.0, 0.1]])
    found = forecast(gains)
    assert found.order.tolist() == [0, 3]
    assert np.isnan(found.gain[[1, 2]]).all()


def test_gains_that_were_predicted_widen_the_interval():
    gains = np.array([[0.1, 0.2], [0.1, 0.2]])
    found = forecast(gains, np.array([[0.0, 0.0], [0.01, 0.03]]))
    spread = ((found.high - found.gain) / student.ppf(0.9, 1)) ** 2
    np.testing.assert_allclose(spread, [0.005 * 1.5, 0.005 * 1.5 + 0.02])
    assert found.chance[1] < found.chance[0]


def test_one_task_alone_does_not_tell_how_tasks_differ():
    with pytest.raises(
        SearchError, match="at least 2 tasks, got 1; a single task does not show how"
    ):
        forecast(np.ones((3, 1)))


@pytest.mark.parametrize("sources", [2, 4, 8])
def test_of_the_intervals_as_many_hold_as_they_say(sources):
    # Tasks differ in how good the present function is there, which all gains have in common.
    generator = np.random.default_rng(sources)
    held = []
    for _ in range(1000):
        tasks = generator.normal(0.3, 1.0, sources + 1)
        gains = tasks + generator.normal(0, 0.1, (10, sources + 1))
        found = forecast(gains[:, :-1])
        held.append(np.mean((found.low <= gains[:, -1]) & (gains[:, -1] <= found.high)))
    assert abs(np.mean(held) - LEVEL) < 0.05


def test_functions_are_predicted_from_their_outputs():
    catalogue = load_space("act_bench").catalogue
    blocks = output_blocks(catalogue)
    present = np.flatnonzero(blocks["outputs"].present)
    values = np.full(len(catalogue), np.nan)
    values[present] = np.tanh(blocks["moments"].values[present, 0])
    hidden = np.random.default_rng(0).choice(present, 300, replace=False)
    known = values.copy()
    known[hidden] = np.nan
    mean, variance = predicted(known, blocks, blocks, hidden)
    errors = mean - values[hidden]
    assert np.sqrt(np.mean(errors**2)) < 0.3 * values[hidden].std()
    assert (variance > 0).all()
