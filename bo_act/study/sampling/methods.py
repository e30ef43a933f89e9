"""From a method's description to an Optuna sampler."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from bo_act.activations.space import Space
from bo_act.errors import SearchError
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.embedding.own import OwnEmbedder
from bo_act.search.method import MethodSpec
from bo_act.search.strategies import Evolution, RandomSearch, Strategy
from bo_act.search.surrogate.own import AnySurrogate, OwnSurrogate
from bo_act.specs import EmbeddingSpec, StrategySpec
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.tasks.methods import METHOD_PARTS
from bo_act.tasks.task import Task
from bo_act.user_files import call_with


@dataclass(frozen=True)
class Method:
    """How a study searches, made ready.

    Attributes:
        embedding, surrogate, acquisition, strategy: as ``ActivationSampler`` takes them.
    """

    embedding: EmbeddingSpec | OwnEmbedder
    surrogate: AnySurrogate
    acquisition: AnyAcquisition
    strategy: Strategy | None

    @classmethod
    def of(cls, task: Task) -> Method:
        """Return that of a study file, with the functions of the user's own that it names.

        Raises:
            SearchError: the class of a strategy asks for what is not there, or makes none.
        """
        spec = task.spec
        embedding: EmbeddingSpec | OwnEmbedder = spec.embedding
        surrogate: AnySurrogate = spec.surrogate
        acquisition: AnyAcquisition = spec.acquisition
        own = {key: one.function for key, one in task.methods.items()}
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
    """Return the strategy that a spec names; None is the model's choice."""
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
        method: what to do.
        space: of the study.
        embedding: of the space's functions, fitted as ``method.embedding`` says; Optuna's own
            samplers need none.
        costs: what each function costs, for methods that ask; default: measured.
        seed: of every random choice.
    """
    if method.optuna is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if method.optuna == "random":
                return RandomSampler(seed=seed)
            # Both count the enqueued trials as the random ones that they would begin with.
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
