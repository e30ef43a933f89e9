"""Several things at once: functions for several places, and other parameters of the study.

K  activations of a configuration            p  coordinates of the other parameters
n  observed configurations                   N  functions of the catalogue

A configuration is a point like any other: the embedded points of its functions beside the
coordinates of its parameters, each of them a block of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.acquisition.own import AnyAcquisition
from bo_act.search.configurations import Configurations, ConfigurationSpace, JointProposal
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.local_search import Climb
from bo_act.search.observations import count_different, inverse_warp
from bo_act.search.parameters import Parameters, Settings
from bo_act.search.searcher import fit_points
from bo_act.search.surrogate.own import AnySurrogate
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.specs.base import checked_seed, derived_seed, whole
from bo_act.torch_state import plain_torch


@dataclass(frozen=True, eq=False)
class JointObservations:
    """Values of n evaluated configurations, larger is better.

    Attributes:
        measured: n configurations.
        values: (n,) finite.
        pruned: configurations stopped early.
        closed: functions of configurations that are not to be tried again (given up).
    """

    measured: Configurations
    values: NDArray[np.float64]
    pruned: Configurations
    closed: frozenset[tuple[int, ...]] = frozenset()


@dataclass(frozen=True)
class JointSearcher:
    """Settings of a search over configurations; see ``Searcher``.

    Attributes:
        activations: K names of places; ``("",)`` for one.
        parameters: what else is searched.
        defaults: (p,) settings that all baselines are evaluated with; None draws them by the seed.
    """

    activations: tuple[str, ...]
    parameters: Parameters
    defaults: Settings | None = None
    baselines: tuple[int, ...] = ()
    initial: int = 2
    surrogate: AnySurrogate = field(default_factory=SurrogateSpec)
    acquisition: AnyAcquisition = field(default_factory=AcquisitionSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed, error=SearchError))
        whole(self.initial, "initial", error=SearchError)

    @plain_torch()
    def propose(
        self,
        embedding: Embedding,
        observations: JointObservations,
        *,
        pending: Configurations,
        number: int,
    ) -> JointProposal:
        """Choose the next configuration.

        Baselines come first, one in all places; then ``initial`` random configurations.

        Args:
            embedding: of the N functions.
            observations: so far.
            pending: under evaluation.
            number: the trial's place in the study, from 0.

        Raises:
            SearchError: no function has a place in the embedding.
        """
        places = len(self.activations)
        generator = np.random.default_rng([self.seed, number])
        known = Configurations.join(observations.measured, observations.pruned, pending)
        seen = {tuple(row) for row in known.functions.tolist()} | observations.closed
        for index in self.baselines:
            if (index,) * places not in seen:
                settings = self.defaults
                if settings is None:
                    settings = self.parameters.draw(1, np.random.default_rng(self.seed))[0]
                return JointProposal((index,) * places, settings, "baseline")
        candidates = np.flatnonzero(embedding.valid)
        if not len(candidates):
            raise SearchError("no function has a place in the embedding, so none can be proposed")
        starts = {(index,) * places for index in self.baselines}
        extra = sum(tuple(row) not in starts for row in known.functions.tolist())
        usable = embedding.valid[observations.measured.functions].all(axis=1)
        if extra < self.initial or count_different(observations.values[usable]) < 2:
            functions = tuple(generator.choice(candidates, size=places).tolist())
            return JointProposal(functions, self.parameters.draw(1, generator)[0], "random")
        fit = self.fit(embedding, observations, pending=pending, number=number)
        climb = Climb(
            self.acquisition,
            fit.space,
            fit.model,
            places=places,
            candidates=candidates,
            generator=generator,
        )
        found = climb.best(fit.measured, fit.y, known, observations.closed)
        (expected,) = inverse_warp([found.mean or 0.0], fit.y.numpy(), fit.values)
        return replace(found, expected=float(expected), note=fit.note)

    def fit(
        self,
        embedding: Embedding,
        observations: JointObservations,
        *,
        pending: Configurations,
        number: int,
    ) -> JointFit:
        """Fit the surrogate to what was observed; arguments as in ``propose``."""
        space = ConfigurationSpace(embedding, self.activations, self.parameters)
        usable = embedding.valid[observations.measured.functions].all(axis=1)
        measured = observations.measured[usable]
        values = observations.values[usable]
        model, y, note = fit_points(
            self.surrogate,
            space.points(measured),
            values,
            space.blocks,
            pending=space.points(space.placed(pending)),
            pruned=space.points(space.placed(observations.pruned)),
            seed=derived_seed(self.seed, number),
        )
        return JointFit(space, model, measured, values, y, np.flatnonzero(usable), note)


@dataclass(frozen=True, eq=False)
class JointFit:
    """A surrogate of configurations.

    Attributes:
        space: what places configurations.
        model: the surrogate.
        measured: the n configurations that it was fitted to.
        values: (n,) as observed.
        y: (n,) warped.
        places: (n,) among the observations; those without a place were left out.
        note: what went other than planned.
    """

    space: ConfigurationSpace
    model: Surrogate
    measured: Configurations
    values: NDArray[np.float64]
    y: Tensor
    places: NDArray[np.int64]
    note: str
