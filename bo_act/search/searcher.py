"""The searcher: from observations to the next candidate, as a pure function.

The same arguments give the same proposal, in any process. So resumed studies, replayed benchmarks
and parallel workers are the same code.

K  activations of a configuration            p  coordinates of the other parameters
N  functions of the catalogue                n  observed configurations
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import ExhaustedError, SearchError
from bo_act.search.acquisition.cost import per_second_of, predicted_seconds, score_hypervolume
from bo_act.search.acquisition.outcomes import ScoringOutcomes
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition
from bo_act.search.acquisition.pool import Scoring, ScoringValue, score_pool
from bo_act.search.configurations import (
    ONE,
    Configurations,
    ConfigurationSpace,
    Parameters,
    Settings,
    Taken,
)
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.local_search import LocalSearch
from bo_act.search.observations import Observations, count_different, inverse_warp, unit
from bo_act.search.proposal import Fit, Proposal
from bo_act.search.strategies import Strategy, chosen_by
from bo_act.search.surrogate.factory import fit_points
from bo_act.search.surrogate.outcomes import Outcomes, fit_outcomes
from bo_act.search.surrogate.own import AnySurrogate
from bo_act.search.unenumerated import ExpressionPool, TreeSearch
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.specs.base import checked_seed, derived_seed, whole

_DRAWS = 1_000  # attempts to draw a new configuration


@dataclass(frozen=True)
class Searcher:
    """Settings of a search.

    Attributes:
        baselines: indices to evaluate first, in order, each as all K activations.
        initial: number of random candidates after the baselines.
        surrogate, acquisition: as in a study file.
        strategy: replaces surrogate and acquisition after the start, if only functions are
            searched.
        seed: of all random choices, together with the trial's number.
        costs: (N,) inference cost of each function, for acquisition functions that need it.
        activations: K names; ``("",)`` for one.
        parameters: the other searched parameters.
        defaults: (p,) settings of all baselines; None: drawn by the seed.
        pool: functions so far, for local search over trees; a proposal may add one.

    Raises:
        SearchError: costs are needed but missing, or a number is invalid.

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
    costs: NDArray[np.float64] | None = field(default=None, compare=False)
    activations: tuple[str, ...] = ONE
    parameters: Parameters = field(default_factory=Parameters, compare=False)
    defaults: Settings | None = field(default=None, compare=False)
    pool: ExpressionPool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed, error=SearchError))
        whole(self.initial, "initial", error=SearchError)
        if self.acquisition.needs_costs and self.costs is None:
            raise SearchError(
                f"the acquisition function {self.acquisition.name!r} needs the functions' costs; "
                "give costs=, or choose another"
            )
        if self.repeats and self.surrogate.name != "gp":
            raise SearchError(
                "acquisition.repeat = 'auto' needs the surrogate 'gp', which fits the noise of a "
                f"measurement, got {self.surrogate.name!r}; choose that surrogate, or leave repeat "
                "out"
            )

    @property
    def of_functions(self) -> bool:
        """Whether a configuration is just one function; then each function is tried once."""
        return len(self.activations) == 1 and not self.parameters.width

    @property
    def repeats(self) -> bool:
        """Whether a function may be evaluated again; strategies choose new ones."""
        return self.acquisition.repeats and self.strategy is None

    @plain_torch()
    def propose(
        self,
        embedding: Embedding,
        observations: Observations,
        *,
        pending: Configurations | Collection[int] = (),
        number: int,
    ) -> Proposal:
        """Choose the next candidate.

        Args:
            embedding: of N functions; only valid ones are proposed.
            observations: n values so far.
            pending: configurations under evaluation; indices if only functions are searched.
            number: of the trial in the study, from 0.

        Raises:
            ExhaustedError: all candidates were evaluated, are pending, or have no coordinates.
        """
        pending = Configurations.of(pending, like=observations.measured)
        known = Configurations.join(observations.measured, observations.pruned, pending)
        taken = Taken(known, observations.closed)
        starts = [(index,) * len(self.activations) for index in self.baselines]
        for functions in starts:
            if functions not in taken.functions:
                settings = self.defaults
                if settings is None:
                    settings = self.parameters.draw(1, np.random.default_rng(self.seed))[0]
                return Proposal(functions, "baseline", tuple(settings.tolist()))
        free = embedding.valid.copy()
        if self.of_functions:
            free[[index for (index,) in taken.functions]] = False
        candidates = np.flatnonzero(free)
        if not len(candidates):
            raise ExhaustedError(
                f"there is nothing left to propose: {int(embedding.valid.sum())} of "
                f"{len(embedding)} functions are in the embedding, and all of them were evaluated "
                "or are being evaluated"
            )
        generator = np.random.default_rng([self.seed, number])
        usable = observations.measured.placed(embedding)
        different = max(map(count_different, observations.objectives[usable].T))
        if taken.count(starts) < self.initial or different < 2:
            return self._random(candidates, taken, generator)
        if self.strategy is not None:
            chosen = chosen_by(
                self.strategy,
                candidates,
                embedding=embedding,
                observations=observations,
                pending=frozenset(pending.functions[:, 0].tolist()),
                generator=generator,
            )
            return Proposal((chosen,), "strategy")
        if self.repeats:
            if not observations.is_plain:
                raise SearchError(
                    "acquisition.repeat = 'auto' supports one objective without constraints; "
                    "leave repeat out"
                )
            others = Configurations.join(observations.pruned, pending)
            free, waiting = embedding.valid.copy(), Taken(others, observations.closed).functions
            free[[index for (index,) in waiting]] = False
            candidates = np.flatnonzero(free)
        fit = self.fit(embedding, observations, pending=pending, number=number, outcomes=True)
        best, score = self._best(
            fit, observations, pending, candidates, taken=taken, number=number, generator=generator
        )
        if self.pool is not None:  # it has the function now
            fit = replace(fit, space=self._space(self.pool.embedding))
        if fit.outcomes is not None:
            return _of_outcomes(best, score, fit, fit.outcomes, observations)
        mean, variance = fit.model.mean_and_variance(fit.space.points(best))
        (expected,) = inverse_warp(mean.tolist(), fit.y.numpy(), fit.values)
        return Proposal(
            tuple(best.functions[0].tolist()),
            "acquisition",
            tuple(best.settings[0].tolist()),
            float(mean),
            math.sqrt(float(variance)),
            float(expected),
            score,
            fit.note,
            repetition=self._count(observations, best) if self.repeats else 0,
        )

    def propose_batch(
        self,
        embedding: Embedding,
        observations: Observations,
        q: int,
        *,
        pending: Configurations | Collection[int] = (),
        number: int,
    ) -> list[Proposal]:
        """Choose the next q candidates, for parallel evaluation.

        Each counts as pending for the next ones, so q parallel workers of a study get the same. The
        batch is shorter if fewer candidates are left.

        Args:
            embedding: as in ``propose``.
            observations: as in ``propose``.
            q: at least 1.
            pending: as in ``propose``.
            number: of the first one's trial in the study.

        Raises:
            SearchError: q is less than 1, or nothing is left.
        """
        if q < 1:
            raise SearchError(f"expected a batch size of at least one, got {q}")
        batch: list[Proposal] = []
        waiting = Configurations.of(pending, like=observations.measured)
        for offset in range(q):
            try:
                proposal = self.propose(
                    embedding, observations, pending=waiting, number=number + offset
                )
            except SearchError:
                if not batch:
                    raise
                break
            batch.append(proposal)
            waiting = Configurations.join(waiting, proposal.configuration)
        return batch

    @plain_torch()
    def expected_improvement(
        self,
        embedding: Embedding,
        observations: Observations,
        *,
        pending: Configurations | Collection[int] = (),
        number: int = 0,
    ) -> float:
        """Return the largest expected improvement of any candidate over the best observed value.

        The surrogate sees winsorized values, which unlike ranks have a unit. Arguments as in
        ``propose``. The result is infinite with fewer than three different values, or without a
        feasible one.

        Raises:
            SearchError: there are several objectives.
        """
        if observations.others.shape[1]:
            raise SearchError(
                "expected improvement needs a single objective, and the study has "
                f"{1 + observations.others.shape[1]}"
            )
        usable = observations.measured.placed(embedding)
        values = observations.values[usable]
        if count_different(values) < 3 or not observations.is_any_feasible(usable):
            return math.inf
        searcher = replace(
            self,
            baselines=(),
            initial=0,
            surrogate=_in_units(self.surrogate),
            acquisition=AcquisitionSpec(name="log_ei"),
            strategy=None,
            pool=None,  # only functions so far: a search would add others
        )
        try:
            proposal = searcher.propose(embedding, observations, pending=pending, number=number)
        except ExhaustedError:
            return 0.0
        return math.exp(proposal.score or 0.0) * unit(values, "winsorized")

    @plain_torch()
    def fit(
        self,
        embedding: Embedding,
        observations: Observations,
        *,
        pending: Configurations | Collection[int] = (),
        number: int = 0,
        outcomes: bool = False,
    ) -> Fit:
        """Fit the surrogate to the observations.

        Args:
            embedding: as in ``propose``; observations outside it are left out.
            observations: at least two different values.
            pending: as in ``propose``.
            number: as in ``propose``.
            outcomes: also fit further objectives and constraints, if there are any.
        """
        space = self._space(embedding)
        usable = observations.measured.placed(embedding)
        measured, values = observations.measured[usable], observations.values[usable]
        pending = Configurations.of(pending, like=observations.measured)
        pending = pending[~Taken(observations.pruned, ()).among(pending)]
        pruned = observations.pruned  # with a value if a repetition was pruned
        pruned = pruned[~Taken(observations.measured, ()).among(pruned)]
        x, more = space.points(measured), observations.among(usable)
        options: dict[str, Any] = {
            "pending": space.placed(pending.distinct()),
            "pruned": space.placed(pruned.distinct()),
            # BoTorch's functions of several objectives draw the values of pending points.
            "believe": not (isinstance(self.acquisition, OwnAcquisition) or more.others.shape[1]),
            "seed": derived_seed(self.seed, number),
        }
        model, y, note = fit_points(
            self.surrogate, x, values, space.blocks, variances=more.variances, **options
        )
        fitted = Fit(space, model, measured, values, y, np.flatnonzero(usable), note)
        if not outcomes or observations.is_plain:
            return fitted
        every = fit_outcomes(
            self.surrogate,
            x,
            (model, y),
            space.blocks,
            others=more.others,
            constraints=more.constraints,
            **options,
        )
        if every.constraints or len(every.objectives) > 1:
            return replace(fitted, outcomes=every)
        return fitted  # too few values of the constraints are known

    @staticmethod
    def _count(observations: Observations, configuration: Configurations) -> int:
        """Count the evaluations of a function."""
        return int((observations.indices == configuration.functions[0, 0]).sum())

    def _space(self, embedding: Embedding) -> ConfigurationSpace:
        return ConfigurationSpace(embedding, self.activations, self.parameters)

    def _random(
        self, candidates: NDArray[np.int64], taken: Taken, generator: np.random.Generator
    ) -> Proposal:
        for _ in range(_DRAWS):
            functions = generator.choice(candidates, size=(1, len(self.activations)))
            drawn = Configurations(functions, self.parameters.draw(1, generator))
            if not taken.among(drawn)[0]:
                (chosen,), (settings,) = drawn.functions.tolist(), drawn.settings.tolist()
                return Proposal(tuple(chosen), "random", tuple(settings))
        raise ExhaustedError("there is nothing left to propose: all configurations were tried")

    def _best(
        self,
        fit: Fit,
        observations: Observations,
        pending: Configurations,
        candidates: NDArray[np.int64],
        *,
        taken: Taken,
        number: int,
        generator: np.random.Generator,
    ) -> tuple[Configurations, float]:
        """Return the configuration with the best score, and the score."""
        scoring: Scoring = ScoringValue(self.acquisition, fit.model, float(fit.y.max()))
        merits = fit.y
        if fit.outcomes is not None:
            scoring = ScoringOutcomes(self.acquisition, fit.outcomes)
            merits = torch.from_numpy(observations.merits[fit.places])
        if not self.of_functions:
            search = LocalSearch(
                scoring, fit.space, candidates=candidates, taken=taken, generator=generator
            )
            return search.best(fit.measured, merits)
        if self.pool is not None:
            seen = [index for (index,) in taken.functions]
            trees = TreeSearch(scoring, self.pool, taken=seen, generator=generator)
            chosen, score = trees.best(fit.space.embedding, observations, candidates)
            return Configurations.of([chosen]), score
        scores = self._scores(fit, observations, pending, candidates, number)
        # Models of few neighbours give many functions the same score: draw one of them.
        best = candidates[(scores == scores.max()).numpy()]
        return Configurations.of([generator.choice(best)]), float(scores.max())

    def _scores(
        self,
        fit: Fit,
        observations: Observations,
        pending: Configurations,
        candidates: NDArray[np.int64],
        number: int,
    ) -> Tensor:
        """Return the scores of all candidates, (m,)."""
        spec, costs, model, y = self.acquisition, self.costs, fit.model, fit.y
        points = fit.space.points(Configurations.of(candidates))
        # Each pair of seed and number has its own draws.
        seed = int(np.random.SeedSequence([self.seed, number, 1]).generate_state(1)[0])
        if fit.outcomes is not None:
            with torch.no_grad():
                return ScoringOutcomes(spec, fit.outcomes).scorer(points, seed=seed)(points)
        if costs is not None and spec.name == "hypervolume":
            had = Configurations.join(observations.measured, pending.distinct())
            had = had[had.placed(fit.space.embedding)]
            old = fit.space.points(had), torch.from_numpy(costs[had.functions[:, 0]])
            new = points, torch.from_numpy(costs[candidates])
            return score_hypervolume(model, new, old, least=float(y.median()))
        scores = score_pool(spec, model, points, float(y.max()), seed=seed)
        if costs is not None and isinstance(spec, AcquisitionSpec) and spec.per_second:
            seconds = predicted_seconds(costs, observations.indices, observations.seconds)
            if seconds is not None:
                return per_second_of(spec, scores, torch.from_numpy(seconds[candidates]))
        return scores


def _in_units(surrogate: AnySurrogate) -> SurrogateSpec:
    """Return a Gaussian process for targets with a unit."""
    if isinstance(surrogate, SurrogateSpec) and surrogate.name == "gp":
        return surrogate.model_copy(update={"targets": "winsorized", "noise": None})
    return SurrogateSpec()


def _of_outcomes(
    configuration: Configurations,
    score: float,
    fit: Fit,
    outcomes: Outcomes,
    observations: Observations,
) -> Proposal:
    """Return the proposal of a search with several outcomes."""
    point = fit.space.points(configuration)
    feasible = None
    if outcomes.constraints:
        feasible = math.exp(float(outcomes.log_feasibility(point)))
    measured = observations.objectives[fit.places]
    predicted = [model.mean_and_variance(point) for model in outcomes.objectives]
    expected = [
        float(inverse_warp(mean.tolist(), targets.numpy(), values)[0])
        for (mean, _), targets, values in zip(
            predicted, outcomes.targets.T, measured.T, strict=True
        )
    ]
    proposal = Proposal(
        tuple(configuration.functions[0].tolist()),
        "acquisition",
        tuple(configuration.settings[0].tolist()),
        score=score,
        note=fit.note,
        feasible=feasible,
    )
    if len(predicted) > 1:
        return replace(proposal, outcomes=tuple(expected))
    ((mean, variance),) = predicted
    return replace(
        proposal,
        mean=float(mean),
        deviation=math.sqrt(float(variance)),
        expected=expected[0],
    )
