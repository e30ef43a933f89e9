"""Warm starts: what other benchmarks know about the functions of a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bo_act.activations.space import Space
from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, ExpressionError
from bo_act.search.embedding import Embedding


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What sources say of the N functions of a space.

    Attributes:
        ranks: (N, sources) in [0, 1]: 1 is a source's best function, ties share their mean rank;
            one half where the source knows nothing.
        best: the functions with the largest mean rank, the best first.
    """

    ranks: NDArray[np.float64]
    best: tuple[int, ...]

    def enrich(self, embedding: Embedding) -> Embedding:
        """Return the embedding with a further block ``sources``.

        A Gaussian process then learns from what it observes how much the ranks say about this
        task, by the length scale and the weight of their kernel.
        """
        return embedding.with_block("sources", self.ranks)


def warm_start(space: Space, sources: Sequence[Benchmark], *, top: int = 5) -> WarmStart:
    """Gather what other benchmarks know.

    Args:
        space: of the search.
        sources: benchmarks of any spaces; functions are matched by what they compute.
        top: how many of the best to begin with.

    Raises:
        BenchmarkError: a source has no function of the space.
    """
    ranks = np.full((len(space.catalogue), len(sources)), 0.5)
    known = np.zeros(len(space.catalogue), dtype=bool)
    for column, source in enumerate(sources):
        ours, theirs = _matched(space, source)
        if not len(ours):
            raise BenchmarkError(
                f"the benchmark {source.name!r} has no function of the space {space.name!r}, so "
                "a search there can learn nothing from it"
            )
        values = source.values[theirs]
        ordered = np.sort(values)
        below = np.searchsorted(ordered, values, side="left")
        upto = np.searchsorted(ordered, values, side="right")
        ranks[ours, column] = (below + upto) / (2 * len(values))
        known[ours] = True
    mean = np.where(known, ranks.mean(axis=1), -np.inf)
    order = np.argsort(-mean, kind="stable")[: min(top, int(known.sum()))]
    return WarmStart(ranks, tuple(int(index) for index in order))


def _matched(space: Space, source: Benchmark) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices in the space and in the source of the functions that both have."""
    theirs = np.flatnonzero(source.measured)
    if source.space.catalogue.hash == space.catalogue.hash:
        return theirs, theirs
    pairs = {}
    for index in theirs:
        try:
            pairs[space.catalogue.index(source.space.catalogue.expression(int(index)))] = int(index)
        except ExpressionError:
            continue
    return np.array(list(pairs), dtype=np.int64), np.array(list(pairs.values()), dtype=np.int64)
