"""Embeddings from elsewhere: any numbers are brought to [0, 1], and what is none is refused."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, smooth
from scipy.stats import rankdata

from bo_act.errors import SearchError
from bo_act.features.table import FeatureTable
from bo_act.search.embedding.embedding import GIVEN, Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.spaces.space import Space, load_space
from bo_act.study.sampling.sampler import ActivationSampler

EVERYWHERE = np.ones(len(CLOUD), dtype=bool)
RANKS = (rankdata(CLOUD, axis=0) - 0.5) / len(CLOUD)


@pytest.fixture(scope="module")
def classic() -> Space:
    return load_space("classic")


def coordinates(space: Space) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(space.catalogue), 3))


class Fitted:
    """An embedder of someone else's."""

    def __init__(self, what: object) -> None:
        self.what = what

    def fit(self, table: FeatureTable) -> object:
        assert len(table)
        return self.what


# --- any unit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "units",
    [
        lambda x: 1000 * x,
        lambda x: x - 1e6,
        lambda x: 1e300 * x,
        lambda x: -np.exp(-30 * x),
        lambda x: np.exp(20 * x),
    ],
)
def test_columns_in_any_unit_are_scaled_by_rank(units):
    found = Embedding(units(CLOUD), BLOCKS, EVERYWHERE)
    np.testing.assert_allclose(found.points, RANKS)
    assert found.hash == Embedding(RANKS, BLOCKS, EVERYWHERE).hash


@given(st.lists(st.sampled_from([1.0, 7.0, -1e3]), min_size=4, max_size=4), st.integers(0, 99))
def test_what_is_in_the_unit_cube_stays_to_the_bit(scales, seed):
    valid = np.random.default_rng(seed).uniform(size=len(CLOUD)) < 0.8
    valid[:2] = True
    points = np.where(valid[:, None], CLOUD * scales, np.nan)
    found = Embedding(points, BLOCKS, valid)
    assert np.isnan(found.points[~valid]).all()
    for column, scale in enumerate(scales):
        here = found.points[valid, column]
        if scale == 1.0:
            np.testing.assert_array_equal(here, CLOUD[valid, column])
        else:
            order = rankdata(scale * CLOUD[valid, column])
            np.testing.assert_allclose(here, (order - 0.5) / valid.sum())
    # Parts of it, and it with more, are not scaled anew.
    part = found.restricted(np.arange(len(CLOUD)) % 3 > 0)
    np.testing.assert_array_equal(part.points[part.valid], found.points[part.valid])
    more = found.with_block("sources", 1e4 * CLOUD[:, :1])
    np.testing.assert_array_equal(more.points[valid, :-1], found.points[valid])
    assert more.points[valid, -1].min() > 0
    assert more.points[valid, -1].max() < 1


def test_a_column_that_says_nothing_is_constant():
    points = 50 * CLOUD
    points[:, 1] = 700.0
    points[:, 2] = 5.0 + 1e-15 * CLOUD[:, 2]  # a constant but for rounding
    points[:, 3] = np.where(CLOUD[:, 3] < 0.5, -1e300, 1e300)
    found = Embedding(points, BLOCKS, EVERYWHERE).points
    assert (found[:, 1:3] == 0.5).all()
    assert len(np.unique(found[:, 3])) == 2
    assert np.ptp(found[:, 3]) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_search_does_not_depend_on_the_unit(scale):
    embedding = Embedding(scale * CLOUD, BLOCKS, EVERYWHERE)
    values, taken = smooth(CLOUD), list(range(6))
    for number in range(6, 26):
        seen = np.array(taken)
        proposal = Searcher(seed=1).propose(
            embedding, Observations(seen, values[seen]), number=number
        )
        taken.append(proposal.index)
    assert values[taken].max() == values.max()


# --- at the sampler's door ------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.ndarray.tolist,
        torch.from_numpy,
        lambda x: torch.from_numpy(x).float().requires_grad_(),
        Fitted,
        lambda x: Fitted(torch.from_numpy(x)),
        lambda x: Fitted(Embedding(x, {GIVEN: slice(0, 3)}, np.ones(len(x), dtype=bool))),
    ],
)
def test_a_sampler_takes_coordinates_in_every_form(classic, kind):
    given = coordinates(classic)
    sampler = ActivationSampler(classic, embedding=kind(1000 * given), baselines=(), initial=3)
    expected = (rankdata(given, axis=0) - 0.5) / len(given)
    np.testing.assert_allclose(sampler.embedding.points, expected)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(
        lambda trial: given[classic.catalogue.index(str(classic.suggest(trial).expression)), 0],
        n_trials=5,
    )
    assert study.trials[-1].user_attrs["proposal"]["by"] == "acquisition"


def test_what_has_a_place_already_is_taken_as_it_is(classic):
    given = np.random.default_rng(0).uniform(size=(len(classic.catalogue), 3))
    sampler = ActivationSampler(classic, embedding=given)
    np.testing.assert_array_equal(sampler.embedding.points, given)
    embedding = Embedding.of(given)
    assert ActivationSampler(classic, embedding=embedding).embedding is embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x[:-1],
            "of the 34 functions of the space 'classic', got one of 33",
        ),
        (lambda x: x[:, 0], r"expected an embedding \(N, d\).* got ndarray .* of shape \(34,\)"),
        (lambda x: x[:, :0], r"shape \(34, 0\)"),
        (lambda x: np.where(x == x[4, 1], np.nan, x), "row 4, column 1 of the embedding is nan"),
        (lambda x: np.where(x == x[4, 1], np.inf, x), "row 4, column 1 of the embedding is inf"),
        (lambda x: x.astype(str), r"an \(N, d\) array of numbers, got ndarray of <U32"),
        (lambda x: x.astype(complex), "got ndarray of complex128"),
        (lambda x: [[1.0, 2.0], [3.0]], "got list"),
        (lambda x: "umap", "an EmbeddingSpec, an object with fit.*, got str"),
        (lambda x: Embedding, "got type"),
        (lambda x: Fitted(None), "what Fitted.fit returned: .* got NoneType"),
        (lambda x: Fitted(x[:, 0]), "what Fitted.fit returned: "),
        (lambda x: Fitted(x[:-1]), "got one of 33"),
    ],
)
def test_what_is_no_embedding_is_refused(classic, change, message):
    with pytest.raises(SearchError, match=message) as refused:
        ActivationSampler(classic, embedding=change(coordinates(classic)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": CLOUD[0]}, r"points of shape \(4,\) and valid of shape \(120,\)"),
        ({"points": np.where(CLOUD[7, 2] == CLOUD, np.nan, CLOUD)}, "row 7, column 2 .* is nan"),
        ({"valid": EVERYWHERE[1:]}, r"valid of shape \(119,\)"),
        ({"valid": EVERYWHERE.astype(int)}, "valid .* of bool, got .* type int64"),
        ({"blocks": {"a": slice(0, 5)}}, "the block 'a' .* its 4 columns"),
        ({"blocks": {"a": slice(0, 4), "b": slice(4, 4)}}, "the block 'b' .* at least one"),
        ({"blocks": {"a": slice(None)}}, "the block 'a'"),
        ({"blocks": {"a": [0, 1, 2, 3]}}, "the block 'a'"),
        ({"blocks": {"a": slice(0, 3)}}, "each of the 4 columns .* in one block"),
        ({"blocks": {"a": slice(0, 4), "b": slice(2, 4)}}, "each of the 4 columns"),
    ],
)
def test_an_embedding_is_checked_when_it_is_made(change, message):
    made = {"points": CLOUD, "blocks": BLOCKS, "valid": EVERYWHERE} | change
    with pytest.raises(SearchError, match=message):
        Embedding(**made)
