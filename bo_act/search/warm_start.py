"""Warm starts: values of functions on other tasks, as the start and as knowledge of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from bo_act.errors import SearchError
from bo_act.metrics import Metric
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import warp_targets
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process

SOURCES = "sources"
"""The block of an embedding with the ranks in the sources."""
_FEWEST = 3  # different values that a Gaussian process needs
_MOST = 500  # known functions that predict unknown ones
_CHUNK = 2_048
_ROUNDING = 1e-6  # relative difference of equal values; files have float32


@dataclass(frozen=True, eq=False)
class Source:
    """Values of the N functions of a space on another task.

    Attributes:
        name: of the benchmark or study.
        values: (N,) larger is better; not finite if unknown.
        metric: of the values, if known; if it is minimized, ``values`` have the opposite sign.

    Raises:
        SearchError: no value is known.

    Examples:
        >>> import bo_act
        >>> (source,) = bo_act.read_sources(bo_act.load_space("act_bench"), ["digits_mlp"])
        >>> source.name
        'digits_mlp'
    """

    name: str
    values: NDArray[np.float64]
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.values).any():
            raise SearchError(
                f"{self.name!r} has no value for any function of the space, so a search there "
                "cannot learn from it"
            )


@dataclass(frozen=True, eq=False)
class WarmStart:
    """The knowledge of all sources.

    Attributes:
        ranks: (N, S) in (0, 1): each function's rank in each source, 1 is the best. A Gaussian
            process predicts values that a source does not have.
        best: functions to begin with, best first, by the mean normal quantile of their ranks over
            the sources.
    """

    ranks: NDArray[np.float64]
    best: tuple[int, ...]

    def enrich(self, embedding: Embedding) -> Embedding:
        """Return the embedding with the ranks as a further block.

        A Gaussian process then learns the relevance of the sources from its observations, by the
        length scales and variances of this block.
        """
        return embedding.with_block(SOURCES, self.ranks)


def distinct(sources: Sequence[Source]) -> list[Source]:
    """Leave out sources whose values are all in another one: a copy counts once."""
    chosen: list[Source] = []
    for source in sources:
        if not any(_has_all_of(other, source) for other in chosen):
            chosen = [other for other in chosen if not _has_all_of(source, other)] + [source]
    return chosen


def _has_all_of(source: Source, other: Source) -> bool:
    known = np.isfinite(other.values)
    if source.values.shape != other.values.shape:
        return False
    return np.allclose(source.values[known], other.values[known], rtol=_ROUNDING, atol=0.0)


def make_warm_start(
    sources: Sequence[Source], embedding: Embedding, *, first: int = 5
) -> WarmStart:
    """Combine sources.

    Args:
        sources: at least one, of the same space as the embedding.
        embedding: of the N functions; predicts a source's missing values, and tells which functions
            can be proposed.
        first: number of the best functions to begin with.

    Raises:
        SearchError: a source has another number of functions.
    """
    for source in sources:
        if source.values.shape != (len(embedding),):
            raise SearchError(
                f"expected the values of the source {source.name!r} for each of {len(embedding)} "
                f"functions, got an array of shape {source.values.shape}"
            )
    sources = distinct(sources)
    scores = np.stack([_scores(source.values, embedding) for source in sources], axis=1)
    known = embedding.valid & np.isfinite([source.values for source in sources]).any(axis=0)
    ranks = (rankdata(scores, axis=0) - 0.5) / len(scores)
    mean = np.where(known, norm.ppf(ranks).mean(axis=1), -np.inf)
    order = np.argsort(-mean, kind="stable")[: min(first, int(known.sum()))]
    return WarmStart(np.asarray(ranks), tuple(int(index) for index in order))


def _scores(values: NDArray[np.float64], embedding: Embedding) -> NDArray[np.float64]:
    known = np.flatnonzero(np.isfinite(values))
    scores = np.zeros(len(values))
    scores[known] = warp_targets(values[known], "winsorized")
    unknown = np.flatnonzero(~np.isfinite(values) & embedding.valid)
    placed = known[embedding.valid[known]]
    if not len(unknown) or len(np.unique(scores[placed])) < _FEWEST:
        return scores
    if len(placed) > _MOST:
        placed = np.random.default_rng(0).choice(placed, _MOST, replace=False)
    x, y = embedding.points[placed], scores[placed]
    model, _ = fit_gaussian_process(torch.from_numpy(x), torch.from_numpy(y), embedding.blocks)
    for chunk in np.array_split(unknown, 1 + len(unknown) // _CHUNK):
        mean, _ = model.mean_and_variance(torch.from_numpy(embedding.points[chunk]))
        scores[chunk] = mean.numpy()
    return scores
