"""The searcher: from observations to the next candidate, as a pure function.

The same arguments give the same proposal, in any process: that makes resuming a study, replaying
a benchmark and parallel workers the same code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from bo_act.errors import ExhaustedError, SearchError
from bo_act.search.acquisition.cost import per_second_of, predicted_seconds, score_hypervolume
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, count_different, unit, warp_targets
from bo_act.search.strategies import Strategy, chosen_by
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process
from bo_act.search.surrogate.own import AnySurrogate, OwnSurrogate, fit_own
from bo_act.search.surrogate.surrogate import Surrogate, observed_units
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.specs.base import checked_seed, derived_seed, whole
from bo_act.torch_state import plain_torch

_MOST_NOISE = 1e6  # in units of the warped target, far above what is fitted


@dataclass(frozen=True)
class Proposal:
    """One candidate and its origin.

    Attributes:
        index: in the catalogue.
        by: a baseline, a random choice of the start, the acquisition function, or a strategy
            that needs no surrogate.
        mean, deviation: the surrogate's prediction in units of the warped target, if there is one.
        expected: the mean in units of the value, larger is better.
        note: anything unexpected, for people.

    Examples:
        >>> Proposal(index=3, by="random").by
        'random'
    """

    index: int
    by: Literal["baseline", "random", "acquisition", "strategy"]
    mean: float | None = None
    deviation: float | None = None
    expected: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Searcher:
    """Settings of a search.

    Attributes:
        baselines: indices to evaluate first, in order.
        initial: random candidates after the baselines.
        surrogate, acquisition: as in a study file.
        strategy: replaces surrogate and acquisition after the start.
        seed: of every random choice, together with the trial's number.
        costs: (N,) inference cost of each function, for acquisition functions that need it.

    Raises:
        SearchError: costs are needed and there are none, or a number is invalid.

    Examples:
        >>> import numpy as np
        >>> from bo_act import Embedding, Observations
        >>> points = np.random.default_rng(0).uniform(size=(50, 3))
        >>> observed = Observations(np.arange(5), points[:5].sum(axis=1))
        >>> proposal = Searcher(seed=0).propose(Embedding.of(points), observed, number=5)
        >>> proposal.by, proposal.index in range(5)
        ('acquisition', False)
    """

    baselines: tuple[int, ...] = ()
    initial: int = 2
    surrogate: AnySurrogate = field(default_factory=SurrogateSpec)
    acquisition: AnyAcquisition = field(default_factory=AcquisitionSpec)
    strategy: Strategy | None = None
    seed: int = 0
    costs: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed, error=SearchError))
        whole(self.initial, "initial", error=SearchError)
        if self.acquisition.needs_costs and self.costs is None:
            raise SearchError(
                f"the acquisition function {self.acquisition.name!r} needs to know what functions "
                "cost; give their costs (costs=), or choose another"
            )

    @plain_torch()
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
            SearchError: every candidate was evaluated, is pending or has no coordinates.
        """
        taken = observations.taken | set(pending)
        for index in self.baselines:
            if index not in taken:
                return Proposal(index, "baseline")
        free = embedding.valid.copy()
        free[list(taken)] = False
        candidates = np.flatnonzero(free)
        if not len(candidates):
            raise ExhaustedError(
                f"nothing is left to propose: of {len(embedding)} functions "
                f"{int(embedding.valid.sum())} have a place in the embedding, and all of them "
                "were evaluated or are being evaluated"
            )
        generator = np.random.default_rng([self.seed, number])
        extra = len(taken - set(self.baselines))
        usable = embedding.valid[observations.indices]
        if extra < self.initial or count_different(observations.values[usable]) < 2:
            return Proposal(int(generator.choice(candidates)), "random")
        if self.strategy is not None:
            return Proposal(
                chosen_by(
                    self.strategy,
                    candidates,
                    embedding=embedding,
                    observations=observations,
                    pending=frozenset(pending),
                    generator=generator,
                ),
                "strategy",
            )
        return self._by_acquisition(embedding, observations, pending, candidates, number)

    def propose_batch(
        self,
        embedding: Embedding,
        observations: Observations,
        q: int,
        *,
        pending: Collection[int] = (),
        number: int,
    ) -> list[Proposal]:
        """Choose the next q candidates, to be evaluated at once.

        Each counts as pending for the next ones: the batch is what q parallel workers of a study
        get. It is shorter if fewer candidates are left.

        Args:
            embedding: as in ``propose``.
            observations: as in ``propose``.
            q: at least 1.
            pending: as in ``propose``.
            number: the place of the first one in the study.

        Raises:
            SearchError: q is less than 1, or nothing is left.
        """
        if q < 1:
            raise SearchError(f"expected a batch of at least one, got {q}")
        batch: list[Proposal] = []
        for place in range(q):
            waiting = set(pending) | {proposal.index for proposal in batch}
            try:
                proposal = self.propose(
                    embedding, observations, pending=waiting, number=number + place
                )
            except SearchError:
                if not batch:
                    raise
                break
            batch.append(proposal)
        return batch

    def _by_acquisition(
        self,
        embedding: Embedding,
        observations: Observations,
        pending: Collection[int],
        candidates: np.ndarray,
        number: int,
    ) -> Proposal:
        model, y, note = fit_observed(
            self.surrogate,
            embedding,
            observations,
            pending=pending,
            believe=not isinstance(self.acquisition, OwnAcquisition),
            seed=derived_seed(self.seed, number),
        )
        scores = self._scores(
            model, y, embedding, observations, pending=pending, candidates=candidates, number=number
        )
        # Models of few neighbours give many the same score: the first is no better than another.
        best = candidates[(scores == scores.max()).numpy()]
        chosen = int(np.random.default_rng([self.seed, number]).choice(best))
        prediction = model.mean_and_variance(torch.from_numpy(embedding.points[[chosen]]))
        told = observations.values[embedding.valid[observations.indices]]
        return Proposal(chosen, "acquisition", *observed_units(prediction, y, told), note=note)

    def _scores(
        self,
        model: Surrogate,
        y: torch.Tensor,
        embedding: Embedding,
        observations: Observations,
        *,
        pending: Collection[int],
        candidates: np.ndarray,
        number: int,
    ) -> torch.Tensor:
        spec, costs = self.acquisition, self.costs
        points = torch.from_numpy(embedding.points)
        if costs is not None and spec.name == "hypervolume":
            had = np.array([*observations.indices, *sorted(pending)], dtype=np.int64)
            had = had[embedding.valid[had]]
            new, old = ((points[some], torch.from_numpy(costs[some])) for some in (candidates, had))
            scores = score_hypervolume(model, new, old, least=float(y.median()))
        else:
            seed = _draw_seed(self.seed, number)
            scores = score_pool(spec, model, points[candidates], float(y.max()), seed=seed)
        if costs is not None and isinstance(spec, AcquisitionSpec) and spec.per_second:
            seconds = predicted_seconds(costs, observations.indices, observations.seconds)
            if seconds is not None:
                return per_second_of(spec, scores, torch.from_numpy(seconds[candidates]))
        return scores


def fit_observed(
    spec: AnySurrogate,
    embedding: Embedding,
    observations: Observations,
    *,
    pending: Collection[int] = (),
    believe: bool = True,
    seed: int,
) -> tuple[Surrogate, torch.Tensor, str]:
    """Fit the surrogate that a spec names to what was observed.

    Args:
        spec: which one.
        embedding: of N functions; observations without a place in it are left out.
        observations: at least two different values.
        pending: indices under evaluation.
        believe: take pending ones as if observed; else they are the model's ``pending``.
        seed: of what is random in fitting.

    Returns:
        The model, the warped targets of the observations in it, and what went other than planned.
    """
    usable = embedding.valid[observations.indices]

    def points(indices: Collection[int]) -> torch.Tensor:
        placed = [index for index in sorted(indices) if embedding.valid[index]]
        return torch.from_numpy(embedding.points[placed])

    return fit_points(
        spec,
        torch.from_numpy(embedding.points[observations.indices[usable]]),
        observations.values[usable],
        embedding.blocks,
        pending=points(set(pending) - observations.pruned),
        pruned=points(observations.pruned),
        believe=believe,
        seed=seed,
    )


def fit_points(
    spec: AnySurrogate,
    x: torch.Tensor,
    values: np.ndarray,
    blocks: Mapping[str, slice],
    *,
    pending: torch.Tensor,
    pruned: torch.Tensor,
    believe: bool = True,
    seed: int,
) -> tuple[Surrogate, torch.Tensor, str]:
    """Fit the surrogate that a spec names to points.

    Args:
        spec: which one.
        x: (n, d) float64 points in [0, 1].
        values: (n,) float64, larger is better.
        blocks: columns of each feature block.
        pending: (p, d) points under evaluation.
        pruned: (r, d) points whose evaluation was stopped early.
        believe: take pending ones as if observed; else they are the model's ``pending``.
        seed: of what is random in fitting.

    Returns:
        The model, the warped targets, and what went other than planned.
    """
    y = torch.from_numpy(warp_targets(values, spec.targets))
    waiting = pending if not believe else pending[:0]
    pending = pending if believe else pending[:0]
    # Pruned functions did worse than most: believed to be no better than the median.
    ceiling = torch.full(
        (len(pending) + len(pruned),), torch.inf, device="cpu", dtype=torch.float64
    )
    ceiling[len(pending) :] = float(y.median())
    believed = torch.cat([pending, pruned])
    least_noise = 0.0
    if spec.noise is not None:
        least_noise = min(spec.noise / unit(values, spec.targets), _MOST_NOISE) ** 2
    model, note = fit_surrogate(
        spec,
        x,
        y,
        blocks,
        believed=believed,
        ceiling=ceiling,
        least_noise=least_noise,
        seed=seed,
    )
    model.observed, model.pending = x, waiting
    return model, y, note


def _draw_seed(seed: int, number: int) -> int:
    """Mix a seed and a trial's number, so that no two (seed, number) draw the same."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0])


def fit_surrogate(
    spec: AnySurrogate,
    x: torch.Tensor,
    y: torch.Tensor,
    blocks: Mapping[str, slice],
    *,
    believed: torch.Tensor,
    ceiling: torch.Tensor,
    least_noise: float = 0.0,
    seed: int,
) -> tuple[Surrogate, str]:
    """Fit the surrogate that a spec names.

    Args:
        spec: which one.
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        blocks: columns of each feature block.
        believed: (p, d) points without a value, taken as if observed at their predicted mean.
        ceiling: (p,) what their values are known not to exceed.
        least_noise: known variance of a measurement, in units of the warped target; of a Gaussian
            process.
        seed: of what is random in fitting.

    Returns:
        The model, and what went other than planned.
    """
    if isinstance(spec, OwnSurrogate):
        return fit_own(
            spec,
            x,
            y,
            blocks,
            believed=believed,
            ceiling=ceiling,
            variance=least_noise or None,
            seed=seed,
        ), ""
    if spec.name != "gp":
        # scikit-learn takes a while to import.
        from bo_act.search.surrogate.sklearn_models import RegressorModel

        return RegressorModel(spec, x, y, believed=believed, ceiling=ceiling, seed=seed), ""
    model, failure = fit_gaussian_process(
        x, y, blocks, least_noise=least_noise, believed=believed, ceiling=ceiling
    )
    return model, f"the surrogate kept its priors: {failure}" if failure else ""
