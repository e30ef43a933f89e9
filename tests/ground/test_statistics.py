"""Means, intervals and tests of measurements: in any unit, and no evidence out of rounding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bo_act.metrics import ACCURACY, Metric
from bo_act.statistics import (
    FLOAT64_ROUNDING,
    ROUNDING,
    crossed,
    deviation,
    mean_interval,
    paired,
    rank_correlation,
    rescaled,
    shown_p,
    tied,
)
from bo_act.study.results import confirmed
from bo_act.study.results.confirmed import Confirmed
from bo_act.study.results.verdict import caveats, verdict

SCALES = st.sampled_from([1e-300, 1e-150, 1.0, 1e150, 1e300])
STEPS = st.lists(st.integers(-40, 40), min_size=2, max_size=12)


@given(STEPS, SCALES)
def test_means_and_intervals_in_any_unit(steps, scale):
    values = np.array(steps) / 7.0
    mean, (low, high) = mean_interval(scale * values)
    spread = values.std(ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * spread if np.ptp(values) else 0.0
    for found, expected in ((mean, 0.0), (low, -half), (high, half)):
        assert found / scale == pytest.approx(values.mean() + expected, rel=1e-9, abs=1e-12)
    assert deviation(scale * values) / scale == pytest.approx(values.std(), rel=1e-9, abs=1e-15)


@given(STEPS, SCALES, st.integers(0, 99))
def test_paired_differences_in_any_unit(steps, scale, seed):
    a = np.array(steps) / 7.0
    b = a + np.random.default_rng(seed).normal(size=len(a))
    found = paired(scale * a, scale * b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)
    assert found.mean / scale == pytest.approx((a - b).mean(), rel=1e-9)
    turned = paired(b, a)
    assert turned.p == pytest.approx(found.p, rel=1e-6)
    assert turned.mean == pytest.approx(-found.mean / scale, rel=1e-9)


@given(
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.1) | st.just(0.0),
    st.lists(st.floats(-1, 1), min_size=2, max_size=9),
    st.sampled_from([1e-16, 1e-9, 3e-8]),
)
def test_differences_that_are_equal_up_to_rounding_have_no_p(level, gain, noise, rounding):
    """As of accuracies that are a hundredth apart: 0.97 - 0.96 is not quite 0.98 - 0.97."""
    base = level + 0.01 * np.arange(len(noise))
    found = paired(base + gain + rounding * level * np.array(noise), base)
    assert found.p is None
    low, high = found.interval
    assert low == high == found.mean
    if gain == 0:
        assert found.mean == 0.0  # rounding is no gain


def test_differences_of_hundredths():
    a, b = [0.97, 0.98, 0.12, 0.55], [0.96, 0.97, 0.11, 0.54]
    assert len({x - y for x, y in zip(a, b, strict=True)}) > 1
    found = paired(a, b)
    assert found.p is None
    assert found.mean == pytest.approx(0.01)
    assert paired([0.3, 0.1 + 0.2, 0.7], [0.3, 0.3, 0.7]).interval == (0.0, 0.0)
    # What is measured stays evidence.
    assert paired([0.97, 0.98, 0.96], [0.96, 0.97, 0.9501]).p < 1e-4


def test_one_pair_has_no_interval():
    assert paired([0.9], [0.8]).interval is None
    assert paired([0.9], [0.8]).p is None
    assert mean_interval([0.3])[1] is None


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.sampled_from([ROUNDING, FLOAT64_ROUNDING]))
def test_ties(values, rounding):
    values = np.array(values)
    found = tied(values, rounding)
    assert (found <= values).all()
    assert (np.abs(found - values) <= rounding * np.abs(found)).all()
    groups = np.unique(found)
    assert (np.diff(groups) > 0.99 * rounding * np.abs(groups[:-1])).all()
    np.testing.assert_array_equal(tied(found, rounding), found)
    np.testing.assert_array_equal(tied(values[::-1], rounding)[::-1], found)


def test_a_chain_of_near_ties_is_not_one_tie():
    values = 1.0 + 0.5 * ROUNDING * np.arange(100)
    assert 25 <= len(np.unique(tied(values))) <= 50


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_rescaling_is_exact(values):
    values = np.array(values)
    found, exponent = rescaled(values)
    assert not found.any() or 0.5 <= np.abs(found).max() < 1
    far = np.abs(found) > 1e-290  # smaller ones lose digits
    np.testing.assert_array_equal(np.ldexp(found, exponent)[far], values[far])


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_a_constant_correlates_with_nothing(kind):
    some = np.array([0.3, 0.1, 0.2, 0.4])
    assert rank_correlation(some, some, kind=kind) == pytest.approx(1.0)
    assert rank_correlation(some, -some, kind=kind) == pytest.approx(-1.0)
    for constant in (np.full(4, 0.3), np.array([0.3, 0.1 + 0.2, 0.3, 0.3])):
        assert rank_correlation(some, constant, kind=kind) == 0.0
        assert rank_correlation(constant, some, kind=kind) == 0.0
    assert rank_correlation(some[:2], some[:2], kind=kind) == 0.0


# --- seeds and examples ---------------------------------------------------------------------


def components(table: np.ndarray) -> tuple[float, float, float]:
    """Return the variance components of seeds, examples and the rest, by plain loops."""
    rows, columns = table.shape
    mean = sum(map(sum, table)) / (rows * columns)
    by_row = [sum(row) / columns for row in table]
    by_column = [sum(table[:, j]) / rows for j in range(columns)]
    of_rows = columns * sum((one - mean) ** 2 for one in by_row) / (rows - 1)
    of_columns = rows * sum((one - mean) ** 2 for one in by_column) / (columns - 1)
    rest = sum(
        (table[i, j] - by_row[i] - by_column[j] + mean) ** 2
        for i in range(rows)
        for j in range(columns)
    ) / ((rows - 1) * (columns - 1))
    return (of_rows - rest) / columns, (of_columns - rest) / rows, rest


def test_the_variance_over_seeds_and_examples_is_that_of_its_components():
    generator = np.random.default_rng(0)
    rows, columns = 4, 30
    table = generator.normal(size=(rows, 1)) + generator.normal(size=columns)
    table = table + generator.normal(size=(rows, columns))
    seed, example, rest = components(table)
    assert min(seed, example) > 0
    low, high = crossed(table).both.interval
    of_rest = rest / (rows * columns)
    of_seeds, of_examples = seed / rows + of_rest, example / columns + of_rest
    variance = of_seeds + of_examples - of_rest
    satterthwaite = variance**2 / (of_seeds**2 / 3 + of_examples**2 / 29 + of_rest**2 / 87)
    half = stats.t.ppf(0.975, satterthwaite) * np.sqrt(variance)
    assert (low, high) == pytest.approx((table.mean() - half, table.mean() + half))
    assert crossed(table, 2 * table).both.interval == pytest.approx((-high, -low))
    assert crossed(table.T).both.interval == pytest.approx((low, high))
    large = crossed(1e200 * table).both.interval
    assert large == pytest.approx((1e200 * low, 1e200 * high))


def test_of_seeds_alone_and_examples_alone_it_is_students():
    generator = np.random.default_rng(1)
    one, other = generator.random((2, 5, 40)) < 0.8
    found = crossed(one.astype(float), other.astype(float))
    seeds = paired(one.mean(axis=1), other.mean(axis=1))
    assert found.seeds.interval == pytest.approx(seeds.interval)
    assert found.seeds.p == pytest.approx(seeds.p)
    expected = stats.ttest_rel(one.mean(axis=0), other.mean(axis=0))
    assert found.examples.p == pytest.approx(expected.pvalue)
    assert found.examples.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_an_interval_over_both_has_no_less_than_the_least_degrees_of_freedom():
    """What examples and the rest have in common can outweigh seeds that hardly differ."""
    generator = np.random.default_rng(3)
    for _ in range(200):
        table = (generator.random((2, 12)) < 0.5).astype(float)
        found = crossed(table)
        low, high = found.both.interval
        assert high - low <= 2 * stats.t.ppf(0.975, 1)
        low_of_examples, high_of_examples = found.examples.interval
        assert high - low >= high_of_examples - low_of_examples - 1e-12
        assert found.wider in ("seeds", "both")


def test_without_spread_there_is_no_p_and_with_one_seed_no_interval():
    same = crossed(np.full((3, 4), 0.1) + np.array([0, 1e-17, 0, 0]))
    assert same.both.interval == (same.both.mean,) * 2
    assert same.both.p is same.seeds.p is same.examples.p is None
    single = crossed(np.array([[1.0, 0, 1]]))
    assert single.both.interval is single.seeds.interval is None
    assert single.examples.interval is not None
    assert single.wider == "seeds"
    relu = np.array([[0.1 + 0.2], [0.3]]) * np.ones(5)
    assert crossed(relu, np.full((2, 5), 0.3)).both.p is None


def test_an_interval_over_seeds_and_examples_holds_where_that_over_seeds_does_not(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from intervals import CAUSES, confirmed

    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(400):
        one, other, truth = confirmed(CAUSES["examples"], 5, 200, generator)
        found = crossed(one, other)
        wider = found.both if found.wider == "both" else found.seeds
        held += [low <= truth <= high for low, high in (found.seeds.interval, wider.interval)]
    seeds, wider = held / 400
    assert seeds < 0.6
    assert 0.92 < wider < 0.98


# --- what a confirmation makes of it --------------------------------------------------------


def test_rounding_is_no_verdict():
    """Three runs with the same accuracies, summed up in another order."""
    relu = [0.1 + 0.2 + 0.3, 0.2 + 0.3 + 0.1, 0.3 + 0.1 + 0.2]
    mine = [one + step for one, step in zip(relu, (1.2e-16, 2.3e-16, 1.2e-16), strict=True)]
    difference = confirmed.paired(mine, relu)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert difference.p is None
    measured = confirmed.interval(mine)
    common = {"settings": {}, "tried": 1, "seeds": 3, "diverged": 0}
    common |= {"test": measured, "validation": measured}
    rows = [
        Confirmed(activation="tanh(x)", role="found", minus={"relu(x)": difference}, **common),
        Confirmed(activation="relu(x)", role="baseline", **common),
    ]
    assert verdict(rows).kind == "open"
    assert "p = " not in " ".join(caveats(rows))


def confirmed_row(activation: str, values: list[float], relu: list[float] | None = None, **more):
    measured = confirmed.interval(values)
    common = {"settings": {}, "tried": 1, "seeds": len(values), "diverged": 0, "role": "found"}
    common |= {"test": measured, "validation": measured}
    minus = {} if relu is None else {"relu(x)": confirmed.paired(values, relu)}
    return Confirmed(activation=activation, minus=minus, **(common | more))


def test_equal_differences_with_all_seeds_tell_nothing_of_chance():
    """Two runs that are a hundredth better each, as of an objective that rounds to hundredths."""
    relu = [0.91, 0.93]
    rows = [
        confirmed_row("tanh(x)", [0.92, 0.94], relu),
        confirmed_row("relu(x)", relu, role="baseline"),
    ]
    said = verdict(rows)
    assert said.kind == "open"
    assert "with every seed alike" in said.text
    assert "±0.00 points of test accuracy against ReLU" in said.text


def test_the_best_of_those_found_is_not_the_best_of_all_baselines():
    relu = [0.91, 0.93]
    rows = [confirmed_row("relu(x)", relu), confirmed_row("gelu(x)", [0.95, 0.96], role="baseline")]
    said = verdict(rows)
    assert said.kind == "reference"
    assert said.text.endswith("best fresh validation accuracy of the functions found.")


@pytest.mark.parametrize(("right", "count"), [(1.0, 20), (0.0, 30)])
def test_all_examples_right_is_not_sure(right, count):
    found = confirmed.interval([right] * 3, np.full((3, count), right))
    least = 0.025 ** (1 / count)
    expected = (least, 1.0) if right else (0.0, 1 - least)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.over == "both"
    assert found.intervals["seeds"] == (right, right)
    one = confirmed.interval([right], np.full((1, count), right))
    assert one.interval is None
    assert one.intervals["examples"] == pytest.approx(expected)


def test_no_interval_of_an_accuracy_leaves_its_range():
    values = [1.0, 0.9, 0.98]
    free, inside = (confirmed.interval(values, shares=shares) for shares in (False, True))
    assert free.high > 1 > free.mean
    assert (inside.mean, inside.low, inside.high) == (free.mean, free.low, 1.0)
    for metric in (ACCURACY, Metric("score")):
        shown = [metric.interval(one.mean, one.low, one.high) for one in (free, inside)]
        assert shown[0] == shown[1]
    beyond = [1.1, 0.9]  # a growth, say
    assert confirmed.interval(beyond, shares=True) == confirmed.interval(beyond)


def test_no_example_that_differs_is_not_sure():
    right = np.array([[1.0, 0, 1, 1, 0]] * 3)
    mean = right.mean(axis=1).tolist()
    found = confirmed.paired(mean, mean, (right, right))
    rare = 1 - 0.025 ** (1 / 5)
    assert found.interval == pytest.approx((-rare, rare))
    assert (found.mean, found.p, found.over) == (0.0, None, "both")
    losses = 0.5 * right  # not of right and wrong
    assert confirmed.paired([0.3] * 3, [0.3] * 3, (losses, losses)).interval == (0.0, 0.0)


def test_what_a_caveat_says_of_luck():
    relu = [0.91, 0.93, 0.9, 0.92]
    best = [0.99 + step for step in (0.0, 1e-5, 0.0, 1e-5)]
    mean = confirmed.interval(best).mean
    found = [
        confirmed_row("tanh(x)", best, [0.5 + step for step in (0, 2e-5, 3e-5, 0)], searched=mean),
        confirmed_row("erf(x)", relu, relu),
    ]
    rows = [*found, confirmed_row("relu(x)", relu, role="baseline")]
    said = " ".join(caveats(rows))
    assert "with fresh seeds: the same as in the search." in said
    assert "p < 0.001, adjusted < 0.001" in said
    assert "tanh(x) was chosen among 2 by the validation values of the same training runs" in said
    assert "the best of" not in " ".join(caveats([rows[0], rows[2]]))


@pytest.mark.parametrize(
    ("p", "said"), [(1.0, "= 1.000"), (0.0123, "= 0.012"), (0.0009, "< 0.001"), (0.0, "< 0.001")]
)
def test_no_p_is_zero(p, said):
    assert shown_p(p) == said
