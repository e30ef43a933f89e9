"""Metrics of comparisons, against plain loops."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from benchmarks_of_tests import random_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bo_act.benchmark.selection_bias import selection_bias
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.metrics import (
    Progress,
    adjusted,
    evaluations_to_top,
    floor,
    probability_of_beating,
    progress,
    remarks,
    summary,
    table,
)
from bo_act.errors import BenchmarkError
from bo_act.metrics import Metric
from bo_act.spaces.space import load_space
from bo_act.statistics import holm, mean_interval, mean_intervals, share_interval, share_p

ONE = random_benchmark(load_space("classic"), runs=2, seed=1)
TWO = random_benchmark(load_space("classic"), runs=2, seed=2)
BENCHMARKS = {"one": ONE, "two": TWO}


def steps_of(
    benchmark: str, method: str, seed: int, indices: list[int], pruned: set[int] = frozenset()
) -> pd.DataFrame:
    source = BENCHMARKS[benchmark]
    values = np.where(source.measured, source.values, source.chance)[indices]
    return pd.DataFrame(
        {
            "benchmark": benchmark,
            "method": method,
            "seed": seed,
            "evaluation": range(1, len(indices) + 1),
            "index": indices,
            "activation": "",
            "value": values,
            "test": 0.0,
            "suggest_seconds": [0.01 * (place + 1) for place in range(len(indices))],
            "pruned": [place in pruned for place in range(len(indices))],
        }
    )


def walks(seed: int, methods=("a", "b"), seeds=range(4), length: int = 12) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    parts = [
        steps_of(b, m, s, generator.integers(0, len(ONE), length).tolist())
        for b, m, s in product(BENCHMARKS, methods, seeds)
    ]
    return pd.concat(parts, ignore_index=True)


@settings(max_examples=40)
@given(
    indices=st.lists(st.integers(0, len(ONE) - 1), min_size=1, max_size=15),
    pruned=st.sets(st.integers(1, 14)),
)
def test_progress_is_a_plain_loop(indices, pruned):
    steps = steps_of("one", "a", 3, indices, pruned)
    found = progress(steps.sample(frac=1, random_state=0), BENCHMARKS)["one", "a"]
    best, incumbent = -math.inf, indices[0]
    measured = [i for i in range(len(ONE)) if ONE.measured[i]]
    top = max(ONE.values[i] for i in measured)
    mean = sum(ONE.values[i] for i in measured) / len(measured)
    for place, index in enumerate(indices):
        value = ONE.values[index] if ONE.measured[index] else ONE.chance
        if place not in pruned and value > best:
            best, incumbent = value, index
        known = ONE.measured[incumbent]
        value = ONE.values[incumbent] if known else ONE.chance
        test = ONE.test[incumbent] if known else ONE.chance
        assert found.regret[0, place] == pytest.approx(top - value, abs=1e-15)
        assert found.normalized[0, place] == pytest.approx((top - value) / (top - mean))
        assert found.test_regret[0, place] == pytest.approx(
            max(ONE.test[i] for i in measured) - test
        )
        better = sum(ONE.values[i] > value for i in measured)
        assert found.rank[0, place] == (better + 1 if known else len(measured) + 1)
    assert found.seeds.tolist() == [3]


def test_of_equal_functions_the_first_stays():
    runs = {metric: values.copy() for metric, values in ONE.runs.items()}
    runs["validation_value"][[3, 4]] = 0.99
    tied = dataclasses.replace(ONE, runs=runs)
    steps = steps_of("one", "a", 0, [4, 3]).assign(value=0.99)
    found = progress(steps, {"one": tied})["one", "a"]
    assert tied.test[3] != tied.test[4]
    assert found.test_regret[0] == pytest.approx(np.nanmax(tied.test) - tied.test[[4, 4]])


def test_runs_of_different_lengths_are_refused():
    steps = pd.concat([steps_of("one", "a", 0, [1, 2]), steps_of("one", "a", 1, [1])])
    with pytest.raises(BenchmarkError, match="expected runs of equal length of 'a' on 'one'"):
        progress(steps, BENCHMARKS)


@given(
    first=st.lists(st.one_of(st.none(), st.integers(1, 10)), min_size=1, max_size=9),
)
def test_the_median_counts_runs_that_never_got_there(first):
    """By what they are: longer than any."""
    ranks = np.full((len(first), 10), 50)
    for run, when in enumerate(first):
        if when is not None:
            ranks[run, when - 1 :] = 3
    found = evaluations_to_top(ranks, 300)
    ordered = sorted(math.inf if when is None else when for when in first)
    count = len(first)
    expected = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    assert found["median"] == (None if math.isinf(expected) else expected)
    assert found["censored"] == first.count(None)
    assert found["runs"] == count
    assert evaluations_to_top(np.array([[4]]), 300)["median"] is None
    assert evaluations_to_top(np.array([[1]]), 7)["median"] == 1
    # By chance there, and gone again.
    left = evaluations_to_top(np.array([[1, 1, 9, 3, 2], [1, 9, 9, 9, 9], [9, 3, 3, 3, 3]]), 300)
    assert left == {"median": 4.0, "censored": 1, "runs": 3}


def test_intervals_of_means_cover():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        mean, (low, high) = mean_interval(generator.normal(2, 1, 6))
        hits += low <= 2 <= high
        assert low < mean < high
    assert 930 <= hits <= 970
    assert mean_interval(np.array([1.0])) == (1.0, None)


def progress_of(regret: list[float], seeds: list[int] | None = None) -> Progress:
    last = np.array(regret)[:, None]
    numbers = np.arange(len(regret)) if seeds is None else np.array(seeds)
    return Progress(numbers, last, last, last, last.astype(int), last)


def test_beating_is_counted_over_pairs_of_seeds():
    one = {"x": progress_of([1, 2, 3, 4]), "y": progress_of([1, 1], [5, 6])}
    other = {"x": progress_of([2, 2, 2, 5], [0, 1, 2, 9]), "y": progress_of([0, 1], [6, 5])}
    found = probability_of_beating(one, other)
    # x: seed 0 won, 1 equal, 2 lost; 3 and 9 have no partner. y: seed 5 equal, 6 lost.
    assert found["benchmarks"] == {"x": 0.5, "y": 0.25}
    assert found["probability"] == 0.375
    assert found["pairs"] == 5
    back = probability_of_beating(other, one)
    assert back["probability"] == 1 - 0.375
    assert probability_of_beating(one, {"z": other["x"]})["probability"] is None


def test_the_interval_of_beating_is_that_of_the_shares():
    generator = np.random.default_rng(3)
    wins = {"x": generator.random(30) < 0.9, "y": generator.random(30) < 0.6}
    zero = {name: progress_of([0.5] * 30) for name in wins}
    one = {name: progress_of((1 - some).tolist()) for name, some in wins.items()}
    found = probability_of_beating(one, zero)
    counts = [(int(some.sum()), 30) for some in wins.values()]
    assert found["ci95"] == pytest.approx(share_interval(counts))
    assert found["ahead"] == sum(some.mean() > 0.5 for some in wins.values())
    low, high = probability_of_beating({"x": one["x"]}, zero)["ci95"]
    share = wins["x"].mean()
    assert (low, high) == pytest.approx(tuple(proportion(wins["x"].sum(), 30)), abs=1e-4)
    assert low < share < high


def proportion(wins: int, trials: int) -> list[float]:
    """The exact interval by its definition: shares with neither tail below 2.5%."""
    grid = np.linspace(0, 1, 20_001)
    tails = stats.binom.sf(wins - 1, trials, grid), stats.binom.cdf(wins, trials, grid)
    kept = grid[np.minimum(*tails) >= 0.025]
    return [kept[0], kept[-1]]


@pytest.mark.parametrize("runs", [2, 4, 5, 6, 8, 20, 30])
def test_on_one_benchmark_chance_alone_is_rarely_significant(runs):
    """As rarely as said, also for few runs: four wins of four are a chance of one in eight."""
    wins = np.arange(runs + 1)
    p = np.array([share_p([(won, runs)]) for won in wins.tolist()])
    for share in (0.5, 0.8, 0.95):
        chances = stats.binom.pmf(wins, runs, share)
        ends = np.array([share_interval([(won, runs)]) for won in wins.tolist()])
        assert chances[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum() >= 0.95
    assert stats.binom.pmf(wins, runs, 0.5)[p <= 0.05].sum() <= 0.05
    assert p[-1] == pytest.approx(2 * 0.5**runs)
    assert p[runs // 2] == 1 or runs % 2


@pytest.mark.parametrize(("shape", "count"), [((8, 2), 3), ((2, 2), 4), ((20, 1), 3), ((20, 1), 8)])
def test_intervals_over_few_benchmarks_hold_what_they_say(shape, count):
    generator = np.random.default_rng(0)
    truth = shape[0] / sum(shape)
    held = 0
    for _ in range(400):
        chances = generator.beta(*shape, size=count)
        low, high = share_interval([(generator.binomial(30, p), 30) for p in chances])
        held += low <= truth <= high
    assert held / 400 > 0.925  # 95% less two deviations of the simulation


def test_all_won_is_not_sure():
    low, high = share_interval([(30, 30)] * 3)
    assert 0.8 < low < 0.97
    assert high == 1.0
    assert share_interval([(2, 2)] * 2)[0] < 0.5


@given(
    st.lists(
        st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))),
        min_size=1,
        max_size=6,
    )
)
def test_p_of_a_share_is_below_a_twentieth_where_the_interval_leaves_out_one_half(halves):
    counts = [(wins / 2, trials) for wins, trials in halves]
    (low, high), p = share_interval(counts), share_p(counts)
    assert 0 <= p <= 1
    if p > 0.050001:
        assert low <= 0.5 <= high
    estimate = np.mean([wins / trials for wins, trials in counts])
    if p < 0.049999:
        assert not low < 0.5 < high or np.sign(estimate - 0.5) != np.sign((low + high) / 2 - 0.5)
    back = share_p([(trials - wins, trials) for wins, trials in counts])
    assert back == pytest.approx(p, rel=1e-9)


def test_p_is_adjusted_for_all_that_is_shown():
    steps = walks(3, methods=("a", "b", "c", "d"), seeds=range(8))
    pairs = summary(steps, BENCHMARKS)["comparisons"]
    assert [one["p_holm"] for one in pairs] == holm([one["p"] for one in pairs])
    few = adjusted(pairs[:3])
    assert [one["p_holm"] for one in few] == holm([one["p"] for one in pairs[:3]])
    unknown = {"p": None}
    assert adjusted([unknown, {"p": 0.01}]) == [
        {"p": None, "p_holm": None},
        {"p": 0.01, "p_holm": 0.01},
    ]


def test_a_summary_is_json_with_all_figures():
    steps = walks(0)
    found = summary(steps, BENCHMARKS, at=(2, 5, 100))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    figures = found["methods"]["a"]["benchmarks"]["two"]
    run = progress(steps, BENCHMARKS)["two", "a"]
    assert list(figures["regret"]) == ["2", "5", "12"]
    assert figures["regret"]["5"] == pytest.approx(run.regret[:, 4].mean())
    assert figures["ci95"]["5"][0] < figures["regret"]["5"] < figures["ci95"]["5"][1]
    assert figures["median_rank"]["12"] == np.median(run.rank[:, -1])
    assert figures["test_regret"]["12"] == pytest.approx(run.test_regret[:, -1].mean())
    assert figures["suggest_seconds"]["median"] == pytest.approx(0.065)
    values = sorted(set(TWO.values[TWO.measured]))
    lowest = (values[-1] - values[-2]) / 2 / (values[-1] - TWO.values[TWO.measured].mean())
    assert floor(TWO) == pytest.approx(lowest)
    logs = [math.log10(max(run.normalized[s, t], lowest)) for s, t in product(range(4), range(12))]
    assert figures["area_log_regret"] == pytest.approx(sum(logs) / len(logs))
    (pair,) = found["comparisons"]
    assert (pair["a"], pair["b"], pair["pairs"]) == ("a", "b", 8)


def test_what_one_run_judges_is_said():
    """If only the best functions were repeated, the others have no run but the observed one."""
    runs = {name: v.copy() for name, v in ONE.runs.items()}
    runs["validation_value"][4:, 1] = np.nan
    few = {"one": dataclasses.replace(ONE, runs=runs, curves=None), "two": TWO}
    steps = walks(0)
    assert not any("only" in remark for remark in remarks(summary(steps, few)))
    (said,) = [one for one in remarks(summary(steps.assign(told_run=0), few)) if "only" in one]
    assert said.startswith("one: only 4 of 33 functions have several runs; the run of any other is")


def test_a_table_is_in_points_and_in_order():
    found = summary(walks(1, methods=("a", "b", "c")), BENCHMARKS, at=(2, 5))
    frame = table(found)
    assert frame["benchmark"].tolist() == ["one"] * 3 + ["two"] * 3
    for _, rows in frame.groupby("benchmark"):
        assert rows["area"].is_monotonic_increasing
    row = frame[(frame["benchmark"] == "one") & (frame["method"] == "b")].iloc[0]
    figures = found["methods"]["b"]["benchmarks"]["one"]
    assert row["regret 5"] == pytest.approx(100 * figures["regret"]["5"])
    low, high = figures["ci95"]["12"]
    assert row["± 95%"] == pytest.approx(50 * (high - low))


def test_one_run_of_one_method():
    found = summary(steps_of("one", "a", 0, [1, 2, 3]), BENCHMARKS)
    assert found["methods"]["a"]["benchmarks"]["one"]["ci95"] == {"3": None}
    assert found["comparisons"] == []
    assert len(table(found)) == 1


# --- selection bias -------------------------------------------------------------------------


def measured(values: np.ndarray) -> Benchmark:
    count = len(ONE)
    runs = {metric: np.full((count, values.shape[1]), 0.5) for metric in ONE.runs}
    runs["validation_value"] = values
    return dataclasses.replace(
        ONE, runs=runs, diverged=np.zeros(values.shape, dtype=bool), curves=None
    )


def test_luck_is_a_plain_loop():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    merit = generator.random(len(ONE))
    values = merit[:, None] + generator.normal(0, 0.1, (len(ONE), 3))
    found = selection_bias(measured(values), top=5)
    chosen, held_out, correlation, kept, of_mean = [], [], [], [], []
    for run in range(3):
        others = [np.mean([values[i, r] for r in range(3) if r != run]) for i in range(len(values))]
        best = max(range(len(values)), key=lambda i: others[i])
        chosen.append(others[best])
        held_out.append(values[best, run])
        of_mean.append(max(values.mean(axis=1)) - values[best].mean())
        correlation.append(spearmanr(others, values[:, run]).statistic)
        first = sorted(range(len(values)), key=lambda i: -others[i])[:5]
        second = sorted(range(len(values)), key=lambda i: -values[i, run])[:5]
        kept.append(len(set(first) & set(second)) / 5)
    assert found["chosen"] == pytest.approx(np.mean(chosen))
    assert found["held_out"] == pytest.approx(np.mean(held_out))
    assert found["shrinkage"] == pytest.approx(np.mean(chosen) - np.mean(held_out))
    assert found["correlation"] == pytest.approx(np.mean(correlation))
    assert found["regret_of_mean"] == pytest.approx(np.mean(of_mean))
    assert found["kept"] == pytest.approx(np.mean(kept))


def test_luck_of_pure_noise_and_of_none():
    generator = np.random.default_rng(1)
    noise = selection_bias(measured(generator.normal(0, 1, (len(ONE), 3))))
    assert abs(noise["correlation"]) < 0.35
    assert noise["shrinkage"] > 0.5
    certain = selection_bias(measured(np.repeat(generator.random((len(ONE), 1)), 3, axis=1)))
    assert certain["correlation"] == pytest.approx(1)
    assert certain["shrinkage"] == pytest.approx(0)
    assert certain["kept"] == 1
    with pytest.raises(BenchmarkError, match="at least two runs"):
        selection_bias(measured(generator.random((len(ONE), 1))))


def test_a_run_by_which_functions_were_chosen_is_not_held_out():
    """Only the best by the first run were repeated: it would seem that luck costs nothing."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (len(ONE), 3))
    values[np.argsort(-values[:, 0])[10:], 1:] = np.nan
    found = selection_bias(measured(values))
    chosen = values[np.isfinite(values).all(axis=1)]
    shrunk = []
    for run in (1, 2):
        others = np.delete(chosen, run, axis=1).mean(axis=1)
        shrunk.append(others.max() - chosen[others.argmax(), run])
    assert found["shrinkage"] == pytest.approx(np.mean(shrunk))
    assert (found["runs"], found["functions"]) == (3, 10)
    assert math.isnan(found["correlation_top"])  # of two functions


def test_means_that_differ_by_rounding_are_no_better_or_worse():
    """The best three functions have the same mean of two runs, to the digits of float32."""
    runs = {metric: values.copy() for metric, values in ONE.runs.items()}
    accuracy = np.linspace(0.1, 0.8, len(ONE))[:, None] * np.ones(2)
    accuracy[:3] = [[0.9, 0.92], [0.91, 0.91], [0.92, 0.9]]
    accuracy[-1] = np.nan
    runs["validation_value"] = np.float64(np.float32(accuracy))
    near = dataclasses.replace(ONE, runs=runs, curves=None)
    assert len(set(near.values[:3].tolist())) > 1
    assert near.ranks[:3].tolist() == [1, 1, 1]
    assert floor(near) > 1e-2
    steps = pd.concat(
        [
            steps_of("one", name, seed, [20, place])
            for name, place in zip("abc", range(3), strict=True)
            for seed in range(4)
        ]
    )
    steps["value"] = near.values[steps["index"]]
    found = progress(steps, {"one": near})
    for one in found.values():
        assert (one.regret[:, -1] == 0).all()
        assert (one.rank[:, -1] == 1).all()
    for pair in summary(steps, {"one": near})["comparisons"]:
        assert pair["probability"] == 0.5
        low, high = pair["ci95"]
        assert low < 0.5 < high
        assert pair["ahead"] == 0


def test_where_all_are_worse_than_guessing_the_best_is_still_the_reference():
    """Errors after too short a training: no regret is negative, and a random function has 1."""
    runs = {name: 2 + v if name.endswith("value") else v for name, v in ONE.runs.items()}
    worse = dataclasses.replace(
        ONE, runs=runs, chance=1.5, curves=None, metric=Metric("error", "minimize")
    )
    assert not worse.measured.all()
    best, unknown = worse.best, int(np.flatnonzero(~worse.measured)[0])
    steps = steps_of("one", "a", 0, [3, unknown, best])
    steps["value"] = np.where(worse.measured, worse.values, worse.least)[steps["index"]]
    found = progress(steps, {"one": worse})["one", "a"]
    assert (found.regret >= 0).all()
    assert (found.test_regret >= 0).all()
    assert found.regret[0, -1] == 0
    mean = np.mean(worse.values[worse.measured] - worse.values[best])
    np.testing.assert_allclose(found.normalized, found.regret / mean)
    json.dumps(summary(steps, {"one": worse}), allow_nan=False)


def test_an_unknown_test_value_is_no_test_regret_of_zero():
    runs = {name: v.copy() for name, v in ONE.runs.items()}
    runs["test_value"][3:] = np.nan
    lacking = {"one": dataclasses.replace(ONE, runs=runs, curves=None)}
    steps = pd.concat([steps_of("one", "a", seed, [order, 5]) for seed, order in ((0, 1), (1, 2))])
    found = summary(steps, lacking, at=(1,))["methods"]["a"]["benchmarks"]["one"]["test_regret"]
    known = np.nanmax(ONE.test[:3]) - ONE.test[[1, 2]].mean()
    assert found == {"1": pytest.approx(known), "2": None}
    frame = table(summary(steps, lacking))
    assert frame["test regret"].isna().all()


def test_intervals_of_regret_begin_at_zero():
    best = ONE.best
    steps = pd.concat([steps_of("one", "a", s, [best if s else 3]) for s in range(4)])
    summed = summary(steps, BENCHMARKS)
    figures = summed["methods"]["a"]["benchmarks"]["one"]
    regret = progress(steps, BENCHMARKS)["one", "a"].regret[:, 0]
    mean, (low, high) = mean_interval(regret)
    assert low < 0
    assert figures["ci95"]["1"] == [0.0, high]
    assert table(summed)["± 95%"][0] == pytest.approx(100 * (high - mean))
    # Two runs that found the same are not sure of it.
    same = pd.concat([steps_of("one", "a", s, [best]) for s in range(2)])
    assert summary(same, BENCHMARKS)["methods"]["a"]["benchmarks"]["one"]["ci95"] == {"1": None}
    ends = [part[0] for part in mean_intervals(regret[:, None])]
    assert ends == pytest.approx([low, mean, high])


def test_a_given_start_takes_no_time():
    steps = steps_of("one", "a", 0, [1, 2, 3])
    steps.loc[:1, "suggest_seconds"] = np.nan
    for some, seconds in ((steps, 0.03), (steps[:2], None)):
        summed = summary(some, BENCHMARKS)
        figures = summed["methods"]["a"]["benchmarks"]["one"]
        assert figures["suggest_seconds"] == {"median": seconds, "p95": seconds}
        assert table(summed)["seconds"].notna().all() == (seconds is not None)


def test_all_functions_alike():
    runs = {m: np.where(np.isfinite(v), 0.3, np.nan) for m, v in ONE.runs.items()}
    runs["validation_value"][::2] += 1e-16
    flat = dataclasses.replace(ONE, runs=runs, curves=None)
    steps = pd.concat([steps_of("one", "a", seed, [3, 4]) for seed in range(3)])
    found = summary(steps, {"one": flat})["methods"]["a"]["benchmarks"]["one"]
    json.dumps(found, allow_nan=False)
    assert found["normalized_regret"]["2"] == 0.0
    assert selection_bias(flat)["correlation"] == 0.0
