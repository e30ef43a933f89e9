"""The searcher: from observations to the next candidate, as a pure function.

The same arguments give the same proposal, in any process: that makes resuming a study, replaying
a benchmark and parallel workers the same code.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from bo_act.errors import SearchError
from bo_act.search.acquisition import make_acquisition, score_pool
from bo_act.search.embedding import Embedding
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.surrogate import PoolModel, fit_gp
from bo_act.specs import AcquisitionSpec, SurrogateSpec


@dataclass(frozen=True)
class Proposal:
    """One candidate and how it came about.

    Attributes:
        index: in the catalogue.
        by: a baseline, a random choice, or the acquisition function.
        mean, deviation: the surrogate's prediction in units of the warped target, where it was
            asked.
        note: what went other than planned, for people.
    """

    index: int
    by: Literal["baseline", "random", "acquisition"]
    mean: float | None = None
    deviation: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Searcher:
    """Settings of a search.

    Attributes:
        baselines: indices to evaluate first, in order.
        initial: random candidates after the baselines.
        surrogate, acquisition: as in a study file.
        seed: of every random choice, together with the trial's number.
    """

    baselines: tuple[int, ...] = ()
    initial: int = 2
    surrogate: SurrogateSpec = field(default_factory=SurrogateSpec)
    acquisition: AcquisitionSpec = field(default_factory=AcquisitionSpec)
    seed: int = 0

    def propose(
        self,
        embedding: Embedding,
        observations: Observations,
        *,
        pending: Collection[int] = (),
        number: int,
    ) -> Proposal:
        """Choose the next candidate.

        Args:
            embedding: N candidates; those that are not valid are not proposed.
            observations: n values so far.
            pending: indices under evaluation.
            number: the trial's place in the study, from 0.

        Raises:
            SearchError: every candidate was evaluated, is pending or has no place.
        """
        taken = observations.taken | set(pending)
        for index in self.baselines:
            if index not in taken:
                return Proposal(index, "baseline")
        free = embedding.valid.copy()
        free[list(taken)] = False
        candidates = np.flatnonzero(free)
        if not len(candidates):
            raise SearchError(
                f"nothing is left to propose: of {len(embedding)} functions "
                f"{int(embedding.valid.sum())} have a place in the embedding, and all of them "
                "were evaluated or are being evaluated"
            )
        extra = len(taken - set(self.baselines))
        usable = embedding.valid[observations.indices]
        if extra < self.initial or len(set(observations.values[usable].tolist())) < 2:
            generator = np.random.default_rng([self.seed, number])
            return Proposal(int(generator.choice(candidates)), "random")
        return self._by_acquisition(embedding, observations, pending, candidates, number)

    def _by_acquisition(
        self,
        embedding: Embedding,
        observations: Observations,
        pending: Collection[int],
        candidates: np.ndarray,
        number: int,
    ) -> Proposal:
        usable = embedding.valid[observations.indices]
        y = torch.from_numpy(warp_targets(observations.values[usable], self.surrogate.targets))
        x = torch.from_numpy(embedding.points[observations.indices[usable]])
        model, failure = fit_gp(x, y, embedding.blocks, seed=self.seed + number)
        # Pruned functions did worse than most: believed to be no better than the median.
        ceilings = dict.fromkeys(sorted(pending), torch.inf)
        ceilings |= dict.fromkeys(sorted(observations.pruned), float(y.median()))
        believed = [index for index in ceilings if embedding.valid[index]]
        pool = PoolModel(
            model,
            torch.from_numpy(embedding.points[believed]),
            torch.tensor([ceilings[index] for index in believed], dtype=torch.float64),
        )
        acquisition = make_acquisition(self.acquisition, pool, float(y.max()))
        scores = score_pool(acquisition, torch.from_numpy(embedding.points[candidates]))
        chosen = int(candidates[int(scores.argmax())])
        mean, variance = pool.mean_and_variance(torch.from_numpy(embedding.points[[chosen]]))
        note = f"the surrogate kept its priors: {failure}" if failure else ""
        return Proposal(chosen, "acquisition", float(mean[0]), float(variance.sqrt()[0]), note=note)
