"""Acquisition functions of several outcomes: several objectives, or constraints.

m  candidates                                   M  objectives
n  observations                                 C  constraints
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import (
    LogConstrainedExpectedImprovement,
    LogExpectedImprovement,
    LogProbabilityOfFeasibility,
    LogProbabilityOfImprovement,
)
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.acquisition.multi_objective.utils import prune_inferior_points_multi_objective
from botorch.acquisition.objective import GenericMCObjective
from botorch.models.model import Model, ModelList
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions.non_dominated import (
    FastNondominatedPartitioning,
)
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition, own_scorer
from bo_act.search.acquisition.pool import SCREENED, PoolMarginals, bounds, by_chunks, marginals
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.search.surrogate.outcomes import Outcomes
from bo_act.search.surrogate.own import BoTorchSurrogate
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import AcquisitionSpec
from bo_act.user_code.files import takes_any

# Candidates whose noisy hypervolume improvement is computed: those with the largest improvement
# without noise, which takes a tenth of the time.
_LOOKED = 1_024
_DRAWS = 64  # of the joint values at observed points and a candidate
_CHUNK = 256
_BEYOND = 0.1  # of the observed range, as in BoTorch's infer_reference_point

_DEFAULT = AcquisitionSpec.model_fields["name"].default
_CONSTRAINED = (_DEFAULT, "log_ei", "log_pi")


def check_outcomes(spec: AnyAcquisition, *, objectives: int, constrained: bool) -> None:
    """Refuse an acquisition function that does not support several outcomes.

    Args:
        spec: the acquisition function.
        objectives: their number.
        constrained: whether there are constraints.

    Raises:
        SearchError: it supports only one value without constraints.
    """
    if isinstance(spec, OwnAcquisition):
        asked = inspect.signature(spec.make).parameters if constrained else {}
        if constrained and "constraints" not in asked and not takes_any(asked.values()):
            raise SearchError(
                f"the acquisition function {spec.name!r} takes no 'constraints', but the trials of "
                "this study have some; give it the arguments model, objective and constraints, as "
                "BoTorch's own have"
            )
        return
    if objectives > 1 and (spec.name != _DEFAULT or spec.per_second):
        raise SearchError(
            f"the acquisition function {_named(spec)} supports one objective, and the study has "
            f"{objectives}; leave acquisition out, for noisy expected hypervolume improvement, or "
            "give a function that returns one of BoTorch's"
        )
    if constrained and (spec.name not in _CONSTRAINED or spec.per_second):
        raise SearchError(
            f"the acquisition function {_named(spec)} does not support constraints, and the trials "
            "of this study have some; leave acquisition out, choose log_ei or log_pi, or give a "
            "function that returns one of BoTorch's"
        )


def _named(spec: AcquisitionSpec) -> str:
    return f"{spec.name!r}{' per second' * spec.per_second}"


@dataclass(frozen=True, eq=False)
class ScoringOutcomes:
    """Scores of candidates by several outcomes; see ``Scoring``.

    - One objective: ``LogConstrainedExpectedImprovement`` over the best feasible value (for
      ``log_pi``, the probability of improvement and feasibility).
    - Several objectives: ``qLogNoisyExpectedHypervolumeImprovement`` (Daulton et al. 2021).
    - No feasible observation yet: ``LogProbabilityOfFeasibility``.

    Attributes:
        spec: the acquisition function.
        outcomes: the surrogates.
    """

    spec: AnyAcquisition
    outcomes: Outcomes

    def __post_init__(self) -> None:
        constrained = bool(self.outcomes.constraints)
        check_outcomes(self.spec, objectives=self._objectives, constrained=constrained)
        joint = all(isinstance(model, GaussianProcess | BoTorchSurrogate) for model in self._models)
        if not joint and (self._objectives > 1 or isinstance(self.spec, OwnAcquisition)):
            raise SearchError(
                "several objectives need a joint posterior, which the surrogate "
                "'gp' does; choose that surrogate, or one of your own"
            )

    @property
    def _models(self) -> tuple[Any, ...]:
        return self.outcomes.models

    @property
    def _objectives(self) -> int:
        return len(self.outcomes.objectives)

    @property
    def reference(self) -> Tensor:
        """The reference point of the hypervolume, (M,): a tenth of the range below the worst."""
        worst, best = self.outcomes.targets.amin(dim=0), self.outcomes.targets.amax(dim=0)
        return worst - _BEYOND * (best - worst).clamp_min(1e-3)

    @property
    def is_any_feasible(self) -> bool:
        """Whether an observation satisfies the constraints, or there are none."""
        return not self.outcomes.constraints or bool(self.outcomes.feasible.any())

    @property
    def best(self) -> float:
        """The best feasible target of the first objective."""
        y = self.outcomes.targets[:, 0]
        return float(y[self.outcomes.feasible].max() if self.outcomes.feasible.any() else y.min())

    def scorer(self, pool: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
        """Return the acquisition function, points (m, d) → scores (m,).

        Among many points, only the most promising are scored, and others have minus infinity:
        16,384 of more than 20,000, and for hypervolume 1,024, or 512 with three objectives.

        Args:
            pool: (r, d) points that represent all.
            seed: of random draws.
        """
        if isinstance(self.spec, OwnAcquisition):
            return self._own(self.spec, pool, seed)
        if not self.is_any_feasible:
            return self._of_marginals(self._feasible)
        if self._objectives > 1:
            looked = _LOOKED // (self._objectives - 1)  # a front has more corners then
            return self._screened(self._hypervolume(seed), looked, looked)
        return self._screened(self._of_marginals(self._improvement), 16_384, SCREENED)

    def promising(self, points: Tensor, count: int) -> Tensor:
        """Return the numbers of the most promising points, (count,).

        They have the largest expected improvement without noise, over the front of predicted
        means, times the probability of feasibility. Among many points, upper bounds replace both.

        Args:
            points: (m, d).
            count: at most m.
        """
        of = bounds if len(points) >= SCREENED else _exact
        gain = self._noiseless if self.is_any_feasible else None
        scores = []
        for chunk in points.split(_CHUNK):
            pools = [PoolMarginals(*of(model, chunk)) for model in self._models]
            numbers = pools[0].numbers.unsqueeze(1)
            score = chunk.new_zeros(len(chunk))
            if self.outcomes.constraints:
                score = self._feasible(ModelList(*pools))(numbers)
            if gain is not None:
                score = score + gain(pools[: self._objectives])(numbers)
            scores.append(score)
        chosen: Tensor = torch.cat(scores).topk(count).indices
        return chosen

    @cached_property
    def _noiseless(self) -> Callable[[list[PoolMarginals]], Callable[[Tensor], Tensor]]:
        if self._objectives == 1:
            return lambda pools: LogExpectedImprovement(pools[0], best_f=self.best)
        had = torch.cat([self.outcomes.observed, self.outcomes.pending])
        means = [model.mean_and_variance(had)[0] for model in self.outcomes.objectives]
        holds = self.outcomes.log_feasibility(had) >= math.log(0.5)
        front = torch.stack(means, dim=1)[holds]
        cells: Any = FastNondominatedPartitioning(self.reference, Y=front)

        def gain(pools: list[PoolMarginals]) -> Callable[[Tensor], Tensor]:
            reference = self.reference.tolist()
            improvement = ExpectedHypervolumeImprovement(ModelList(*pools), reference, cells)
            return lambda numbers: improvement(numbers).clamp_min(1e-300).log()

        return gain

    def _screened(
        self, score: Callable[[Tensor], Tensor], count: int, above: int
    ) -> Callable[[Tensor], Tensor]:
        def screened(points: Tensor) -> Tensor:
            if len(points) <= above:
                return score(points)
            chosen = self.promising(points, count)
            scores = points.new_full((len(points),), -torch.inf)
            scores[chosen] = score(points[chosen])
            return scores

        return screened

    # --- BoTorch's functions ------------------------------------------------------------------

    @property
    def _limits(self) -> dict[int, tuple[float | None, float | None]]:
        return {self._objectives + i: (limit, None) for i, limit in enumerate(self.outcomes.limits)}

    def _of_marginals(
        self, make: Callable[[ModelList], Callable[[Tensor], Tensor]]
    ) -> Callable[[Tensor], Tensor]:
        def score(points: Tensor) -> Tensor:
            pools = [marginals(model, points) for model in self._models]
            return make(ModelList(*pools))(pools[0].numbers.unsqueeze(1))

        return by_chunks(score)

    def _feasible(self, model: ModelList) -> AcquisitionFunction:
        return LogProbabilityOfFeasibility(model, self._limits)

    def _improvement(self, model: ModelList) -> Callable[[Tensor], Tensor]:
        if self.spec.name != "log_pi":
            return LogConstrainedExpectedImprovement(model, self.best, 0, self._limits)
        improves = LogProbabilityOfImprovement(cast(Model, model.models[0]), best_f=self.best)
        holds = self._feasible(model)
        return lambda numbers: improves(numbers) + holds(numbers)

    @property
    def _options(self) -> dict[str, Any]:
        """Return ``objective`` and ``constraints`` for BoTorch's Monte Carlo functions."""
        count = self._objectives
        if not self.outcomes.constraints:
            return {"objective": None, "constraints": None}
        objective: Any
        if count == 1:
            objective = GenericMCObjective(_first)
        else:
            objective = IdentityMCMultiOutputObjective(outcomes=list(range(count)))
        return {
            "objective": objective,
            "constraints": [_violated(index, low) for index, (low, _) in self._limits.items()],
        }

    def _hypervolume(self, seed: int) -> Callable[[Tensor], Tensor]:
        acquisition = hypervolume(self, seed=seed)

        def score(points: Tensor) -> Tensor:
            with _quiet():
                return torch.cat(
                    [acquisition(chunk.unsqueeze(1)) for chunk in points.split(_CHUNK)]
                )

        return score

    def _own(self, own: OwnAcquisition, pool: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        more = {**self._options, "ref_point": self.reference}
        return own_scorer(own, self.outcomes, self.best, candidates=pool, seed=seed, more=more)


def _first(samples: Tensor, X: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return samples[..., 0]


def _violated(index: int, limit: float | None) -> Callable[[Tensor], Tensor]:
    """Return a constraint in BoTorch's form: a function of samples, negative if satisfied."""
    return lambda samples: (limit or 0.0) - samples[..., index]


def _exact(model: Surrogate, points: Tensor) -> tuple[Tensor, Tensor]:
    pool = marginals(model, points)
    return pool.mean, pool.variance


@torch.no_grad()
def hypervolume(scoring: ScoringOutcomes, *, seed: int) -> AcquisitionFunction:
    """Return BoTorch's ``qLogNoisyExpectedHypervolumeImprovement`` of outcomes.

    Args:
        scoring: of at least two objectives.
        seed: of random draws.
    """
    outcomes, options = scoring.outcomes, scoring._options
    model, reference = outcomes.botorch_model(), scoring.reference
    with torch.random.fork_rng(devices=[]), _without_compiling(), _quiet():
        torch.manual_seed(seed)
        baseline = prune_inferior_points_multi_objective(
            model, outcomes.observed, reference, **options
        )
        return logei.qLogNoisyExpectedHypervolumeImprovement(
            model,
            reference,
            baseline if len(baseline) else outcomes.observed,
            sampler=SobolQMCNormalSampler(torch.Size([_DRAWS]), seed=seed),
            X_pending=outcomes.pending if len(outcomes.pending) else None,
            **options,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of jitter, which draws need at candidates beside observed points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        yield


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Prevent BoTorch from compiling its C++ kernel at the first use.

    Compiling takes half a minute per machine, and the kernel rounds differently.
    """
    before = getattr(logei, "_load_attempted", False)
    logei._load_attempted = True
    try:
        yield
    finally:
        logei._load_attempted = before
