"""Evaluating a function again: the pool keeps those that were evaluated, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import RandomSearch
from bo_act.specs import AcquisitionSpec, SurrogateSpec

POINTS = np.random.default_rng(0).uniform(size=(12, 2))
EMBEDDING = Embedding.of(POINTS)
AUTO = AcquisitionSpec(repeat="auto")


def noisy(count: int) -> Observations:
    generator = np.random.default_rng(1)
    indices = np.arange(count) % (len(POINTS) - 1)  # the last one is left: else the search ends
    return Observations(indices, POINTS[indices].sum(axis=1) + generator.normal(size=count))


def searcher(**changes) -> Searcher:
    return Searcher(seed=0, acquisition=AUTO, surrogate=SurrogateSpec(noise=1.0), **changes)


def test_a_repetition_says_how_many_there_were():
    for count in (11, 22, 33):
        proposal = searcher().propose(EMBEDDING, noisy(count), number=count)
        assert proposal.by == "acquisition"
        assert proposal.index < 11
        assert proposal.repetition == count / 11


def test_without_it_and_by_a_strategy_each_is_evaluated_once():
    for others in (Searcher(seed=0), searcher(strategy=RandomSearch())):
        proposal = others.propose(EMBEDDING, noisy(33), number=33)
        assert (proposal.index, proposal.repetition) == (11, 0)


@pytest.mark.parametrize("which", ["pending", "pruned", "closed"])
def test_what_is_pending_pruned_or_given_up_is_not_repeated(which):
    seen = noisy(11)
    first = searcher().propose(EMBEDDING, seen, number=11).index
    others = {which: {first}} if which != "pending" else {}
    seen = Observations(seen.indices, seen.values, **others)
    pending = {first} if which == "pending" else ()
    assert searcher().propose(EMBEDDING, seen, pending=pending, number=11).index != first


def test_a_batch_has_no_function_twice():
    batch = searcher().propose_batch(EMBEDDING, noisy(11), 4, number=11)
    assert len({proposal.index for proposal in batch}) == 4
