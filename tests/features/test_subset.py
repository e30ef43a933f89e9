"""A subset that is spread out: against a slow loop and the best there is; a search with it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import SPACE, history, make

from bo_act.errors import FeatureError
from bo_act.events import Events
from bo_act.features.outputs import output_blocks
from bo_act.features.rank_pca import output_coordinates
from bo_act.features.subset import farthest, spread
from bo_act.features.table import Block
from bo_act.spaces.space import Space
from bo_act.specs import SpaceSpec
from bo_act.study.running.runner import run_study
from bo_act.study.running.worker import compute_candidate_features
from bo_act.study.storage.opening import load_study
from bo_act.tasks.task import Task


def naive(points: np.ndarray, count: int, start: list[int]) -> list[int]:
    chosen = list(start)
    while len(chosen) < count:
        gaps = {
            i: min((sum((points[i] - points[j]) ** 2) for j in chosen), default=0)
            for i in range(len(points))
            if i not in chosen
        }
        chosen.append(min(i for i in gaps if gaps[i] == max(gaps.values())))
    return chosen


def radius(points: np.ndarray, chosen: list[int] | tuple[int, ...]) -> float:
    """The largest distance of any point from the nearest chosen one."""
    gaps = points[:, None] - points[list(chosen)]
    return float(np.linalg.norm(gaps, axis=2).min(axis=1).max())


@st.composite
def clouds(draw, high: int) -> tuple[np.ndarray, int, list[int]]:
    """Points on a coarse grid (so that many are equal or equally far), a count, and a start."""
    rows = draw(st.integers(1, high))
    columns = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = rng.integers(0, draw(st.sampled_from([2, 5, 1000])), size=(rows, columns)) / 1024
    start = draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=min(3, rows)))
    return points, draw(st.integers(max(1, len(start)), rows)), start


@settings(max_examples=60)
@given(clouds(25))
def test_it_is_the_loops_choice(case):
    points, count, start = case
    chosen = farthest(points, count, start)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == naive(points, count, start)
    assert len(set(chosen.tolist())) == count


@settings(max_examples=60)
@given(clouds(9))
def test_no_choice_covers_twice_as_well(case):
    points, count, start = case
    chosen = farthest(points, count, start).tolist()
    best = min(
        radius(points, some)
        for some in combinations(range(len(points)), count)
        if set(start) <= set(some)
    )
    assert radius(points, chosen) <= 2 * best + 1e-6


@pytest.fixture(scope="module")
def blocks() -> dict[str, Block]:
    spec = SpaceSpec(
        name="t",
        unary=("zero", "one", "identity", "reciprocal", "exp", "relu", "swish", "cosh"),
        binary=("add", "mul", "div", "pow"),
        schemas=("binary(unary(x),unary(x))",),
    )
    return output_blocks(Space(spec).catalogue)


def test_a_subset_of_a_space(blocks):
    present = blocks["outputs"].present
    missing = np.flatnonzero(~present)
    include = [5, int(missing[0]), 40, 5]
    assert present[[5, 40]].all()
    chosen = spread(blocks, 20, include=include)
    assert len(chosen) == 20
    assert (np.diff(chosen) > 0).all()
    assert {5, 40} <= set(chosen.tolist())
    assert present[chosen].all()
    rows = np.flatnonzero(present)
    points = output_coordinates(blocks, rows, 6)
    start = np.searchsorted(rows, [5, 40]).tolist()
    assert sorted(rows[naive(points, 20, start)]) == chosen.tolist()
    # It covers the space better than a random choice does.
    ours = radius(points, np.searchsorted(rows, chosen))
    for seed in range(5):
        some = np.random.default_rng(seed).permutation(len(rows))[:20]
        assert ours < radius(points, some)


def test_as_many_as_there_are_or_more(blocks):
    present = np.flatnonzero(blocks["outputs"].present)
    for count in (len(present), len(present) + 1, 10**6):
        np.testing.assert_array_equal(spread(blocks, count), present)
    assert len(spread(blocks, len(present) - 1)) == len(present) - 1
    gone = {
        n: Block(np.full_like(b.values, np.nan), ("gone",) * len(b.values))
        for n, b in blocks.items()
    }
    assert len(spread(gone, 3, include=[0])) == 0


def test_a_larger_subset_holds_the_smaller_one(blocks):
    chosen = [set(spread(blocks, count, include=[5]).tolist()) for count in (1, 8, 30)]
    assert chosen[0] == {5}
    assert chosen[0] < chosen[1] < chosen[2]


@pytest.mark.parametrize(("count", "include"), [(2, [5, 6, 7]), (0, []), (-1, [])])
def test_fewer_than_are_to_be_included(blocks, count, include):
    assert blocks["outputs"].present[include].all()
    with pytest.raises(FeatureError, match=f"including {len(include)} given ones, got {count};"):
        spread(blocks, count, include=include)


def test_a_study_proposes_with_spectra_and_without_and_goes_on_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    changes = {"features": {"subset": 12}, "confirm": {"seeds": 0}}
    once = make(**changes, trials=10)
    run_study(once)
    fim = compute_candidate_features(Task.load(once), Events()).blocks["fim"]
    tried = [trial.user_attrs["index"] for trial in load_study(once).trials]
    assert 0 < fim.left_out[tried].sum() < 10
    run_study(make(**changes, name="stepwise", trials=4))
    again = make(**changes, name="stepwise", trials=10)
    run_study(again)
    assert history(again) == history(once)
