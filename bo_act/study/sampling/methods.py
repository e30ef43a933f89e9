"""Optuna samplers from the descriptions of methods."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from bo_act.errors import SearchError
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.embedding.own import OwnEmbedder
from bo_act.search.method import MethodSpec
from bo_act.search.strategies import Evolution, RandomSearch, Strategy
from bo_act.search.surrogate.own import AnySurrogate, OwnSurrogate
from bo_act.spaces.space import Space
from bo_act.specs import EmbeddingSpec, StrategySpec
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.tasks.methods import METHOD_PARTS
from bo_act.tasks.task import Task
from bo_act.user_code.files import call_with


@dataclass(frozen=True)
class Method:
    """The search method of a study.

    Attributes:
        embedding, surrogate, acquisition, strategy: as for ``ActivationSampler``.
    """

    embedding: EmbeddingSpec | OwnEmbedder
    surrogate: AnySurrogate
    acquisition: AnyAcquisition
    strategy: Strategy | None

    @classmethod
    def of(cls, task: Task) -> Method:
        """Return the method of a study file, including the user's own functions.

        Raises:
            SearchError: a strategy class asks for unknown arguments, or makes no strategy.
        """
        spec = task.spec
        embedding: EmbeddingSpec | OwnEmbedder = spec.embedding
        surrogate: AnySurrogate = spec.surrogate
        acquisition: AnyAcquisition = spec.acquisition
        own = {key: loaded.function for key, loaded in task.methods.items()}
        if "embedding" in own:
            embedding = OwnEmbedder(own["embedding"])
        if "surrogate" in own:
            noted = spec.surrogate
            surrogate = OwnSurrogate(own["surrogate"], noted.targets, noted.noise, noted.name)
        if "acquisition" in own:
            acquisition = OwnAcquisition(own["acquisition"], acquisition.name)
        if "strategy" not in own:
            strategy = make_strategy(spec.strategy, task.space)
        else:
            what = f"the strategy {spec.strategy.name!r}"
            offered = {"space": task.space, "seed": spec.seed}
            strategy = call_with(own["strategy"], offered, what=what, error=SearchError)
            if not callable(getattr(strategy, "choose", None)):
                raise SearchError(
                    f"{what}: expected {METHOD_PARTS['strategy']}, got {strategy!r:.60}"
                )
        return cls(embedding, surrogate, acquisition, strategy)


def make_strategy(spec: StrategySpec, space: Space) -> Strategy | None:
    """Return the strategy of a spec; None leaves the choice to the surrogate."""
    if spec.name == "evolution":
        return Evolution(space, population=spec.population, tournament=spec.tournament)
    return RandomSearch() if spec.name == "random" else None


def make_method_sampler(
    method: MethodSpec,
    space: Space,
    embedding: Embedding | None,
    *,
    costs: NDArray[np.float64] | None = None,
    seed: int,
) -> BaseSampler:
    """Return the sampler of a method, for a study whose initial design is enqueued.

    Args:
        method: its description.
        space: of the study.
        embedding: of the space's functions, fitted by ``method.embedding``; Optuna's own samplers
            need none.
        costs: of each function, for methods that need them; default: measured.
        seed: of every random choice.
    """
    if method.optuna is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if method.optuna == "random":
                return RandomSampler(seed=seed)
            # Both count the enqueued trials as their random start.
            return TPESampler(seed=seed) if method.optuna == "tpe" else GPSampler(seed=seed)
    if embedding is None:
        raise SearchError("expected an embedding for this method, got none")
    return ActivationSampler(
        space,
        embedding=embedding,
        baselines=(),
        initial=0,
        surrogate=method.surrogate,
        acquisition=method.acquisition,
        costs=costs,
        strategy=make_strategy(method.strategy, space),
        seed=seed,
    )
