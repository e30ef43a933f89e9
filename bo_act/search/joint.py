"""Several things at once: functions for several places, and other parameters of the study.

K  activations of a configuration            p  coordinates of the other parameters
n  observed configurations                   N  functions of the catalogue

A configuration is a point like any other: the embedded points of its functions beside the
coordinates of its parameters, each of them a block of the kernel. There are too many to score them
all, so the acquisition function is climbed by turns: all functions for one place, then many
settings of the parameters, from several starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.acquisition import make_scorer, promising
from bo_act.search.embedding import Embedding
from bo_act.search.parameters import Parameters, Settings
from bo_act.search.pointwise import PointwiseModel
from bo_act.search.searcher import fit_points
from bo_act.specs import AcquisitionSpec, SurrogateSpec

_REPRESENTATIVES = 512  # configurations that stand for all
_POOL = 4_096  # functions looked at for a start
_COARSE = 4  # settings that they are scored at, besides those of the best observed
_SHORT = 256  # functions looked at after that, for each place
_STARTS = 4
_SWEEPS = 3
_SETTINGS = 64  # scored at a time: as many spread out as near


@dataclass(frozen=True, eq=False)
class Configurations:
    """n configurations.

    Attributes:
        functions: (n, K) indices in the catalogue.
        settings: (n, p) coordinates of the parameters.
    """

    functions: NDArray[np.int64]
    settings: Settings

    def __post_init__(self) -> None:
        if self.functions.ndim != 2 or len(self.functions) != len(self.settings):
            raise SearchError(
                f"expected functions (n, K) and settings (n, p), got {self.functions.shape} and "
                f"{self.settings.shape}"
            )

    def __len__(self) -> int:
        return len(self.functions)

    def __getitem__(self, chosen: Any) -> Configurations:
        return Configurations(self.functions[chosen], self.settings[chosen])

    @classmethod
    def join(cls, *parts: Configurations) -> Configurations:
        """Return all configurations of the parts, in their order."""
        return cls(
            np.concatenate([part.functions for part in parts]),
            np.concatenate([part.settings for part in parts]),
        )


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


@dataclass(frozen=True, eq=False)
class JointProposal:
    """One configuration and how it came about; see ``Proposal``.

    Attributes:
        functions: K indices.
        settings: (p,).
        by, mean, deviation, note: as there.
        score: of the acquisition function, where it chose.
    """

    functions: tuple[int, ...]
    settings: Settings
    by: str
    mean: float | None = None
    deviation: float | None = None
    note: str = ""
    score: float | None = None


@dataclass(frozen=True)
class JointSearcher:
    """Settings of a search over configurations; see ``Searcher``.

    Attributes:
        activations: K names of places; ``("",)`` for one.
        parameters: what else is searched.
        defaults: (p,) settings that baselines are evaluated with; None draws them.
    """

    activations: tuple[str, ...]
    parameters: Parameters
    defaults: Settings | None = None
    baselines: tuple[int, ...] = ()
    initial: int = 2
    surrogate: SurrogateSpec = field(default_factory=SurrogateSpec)
    acquisition: AcquisitionSpec = field(default_factory=AcquisitionSpec)
    seed: int = 0

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
                    settings = self.parameters.draw(1, generator)[0]
                return JointProposal((index,) * places, settings, "baseline")
        candidates = np.flatnonzero(embedding.valid)
        if not len(candidates):
            raise SearchError("no function has a place in the embedding, so none can be proposed")
        starts = {(index,) * places for index in self.baselines}
        extra = sum(tuple(row) not in starts for row in known.functions.tolist())
        usable = embedding.valid[observations.measured.functions].all(axis=1)
        if extra < self.initial or len(np.unique(observations.values[usable])) < 2:
            functions = tuple(generator.choice(candidates, size=places).tolist())
            return JointProposal(functions, self.parameters.draw(1, generator)[0], "random")
        fit = self.fit(embedding, observations, pending=pending, number=number)
        climb = _Climb(self, fit.space, fit.model, candidates, generator)
        found = climb.best(fit.measured, fit.y, known, observations.closed)
        return replace(found, note=fit.note)

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
            seed=self.seed + number,
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
    model: PointwiseModel
    measured: Configurations
    values: NDArray[np.float64]
    y: Tensor
    places: NDArray[np.int64]
    note: str


class ConfigurationSpace:
    """Points of configurations.

    Args:
        embedding: of the N functions, d columns.
        activations: K names.
        parameters: p coordinates.

    Attributes:
        blocks: columns of each block of each activation, and of each parameter.
    """

    def __init__(
        self, embedding: Embedding, activations: tuple[str, ...], parameters: Parameters
    ) -> None:
        self.embedding, self.parameters = embedding, parameters
        width = embedding.points.shape[1]
        self.blocks = {
            f"{name}.{block}" if name else block: slice(
                columns.start + k * width, columns.stop + k * width
            )
            for k, name in enumerate(activations)
            for block, columns in embedding.blocks.items()
        }
        start = len(activations) * width
        self.blocks |= {
            name: slice(start + columns.start, start + columns.stop)
            for name, columns in parameters.blocks.items()
        }

    def placed(self, some: Configurations) -> Configurations:
        """Return those whose functions all have a place in the embedding."""
        return some[self.embedding.valid[some.functions].all(axis=1)]

    def points(self, some: Configurations) -> Tensor:
        """Return the points of n configurations, (n, K d + p)."""
        embedded = np.concatenate(
            [self.embedding.points[column] for column in some.functions.T], axis=1
        )
        return torch.from_numpy(np.concatenate([embedded, some.settings], axis=1))


class _Climb:
    """Maximizing the acquisition function over configurations."""

    def __init__(
        self,
        searcher: JointSearcher,
        space: ConfigurationSpace,
        model: PointwiseModel,
        candidates: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        self.searcher, self.space, self.model = searcher, space, model
        self.candidates, self.generator = candidates, generator
        self.places = len(searcher.activations)

    def best(
        self,
        measured: Configurations,
        y: Tensor,
        known: Configurations,
        closed: frozenset[tuple[int, ...]],
    ) -> JointProposal:
        with torch.no_grad():
            incumbents = measured[np.argsort(-y.numpy(), kind="stable")[:_STARTS]]
            self.pool = self._pool(incumbents)
            raw = make_scorer(
                self.searcher.acquisition,
                self.model,
                float(y.max()),
                pool=self.space.points(Configurations.join(incumbents, self._random())),
                seed=int(self.generator.integers(2**31)),
            )
            self.score = _without(raw, self.space, known, closed)
            found = self._coarse(incumbents)
            for _ in range(_SWEEPS):
                before = found.functions.copy(), found.settings.copy()
                found = self._sweep(found)
                if all(np.array_equal(a, b) for a, b in zip(before, vars(found).values())):  # noqa: B905
                    break
            chosen = found[[int(self.score(found).argmax())]]
            mean, variance = self.model.mean_and_variance(self.space.points(chosen))
        return JointProposal(
            tuple(chosen.functions[0].tolist()),
            chosen.settings[0],
            "acquisition",
            float(mean[0]),
            float(variance.sqrt()[0]),
            score=float(self.score(chosen)[0]),
        )

    def _pool(self, incumbents: Configurations) -> NDArray[np.int64]:
        """Return the functions to look at: all, or those that may be good where the best are."""
        if len(self.candidates) <= _POOL:
            return self.candidates
        others = incumbents[np.zeros(len(self.candidates), dtype=np.int64)]
        others.functions[:, 0] = self.candidates
        chosen = promising(self.model, self.space.points(others), _POOL)
        return np.asarray(self.candidates[chosen.numpy()])

    def _random(self) -> Configurations:
        functions = self.generator.choice(self.pool, size=(_REPRESENTATIVES, self.places))
        return Configurations(
            functions, self.searcher.parameters.draw(_REPRESENTATIVES, self.generator)
        )

    def _coarse(self, incumbents: Configurations) -> Configurations:
        """Return starts: incumbents, and the best function for each place at some settings.

        From then on each place chooses among the functions that scored best there.
        """
        settings = incumbents.settings[:1]
        if settings.shape[1]:
            drawn = self.searcher.parameters.draw(_COARSE, self.generator)
            settings = np.unique(np.concatenate([settings, drawn]), axis=0)
        starts = [incumbents]
        short = []
        for place in range(self.places):
            scores = np.full(len(self.pool), -np.inf)
            for row in settings:
                base = Configurations(incumbents.functions[:1], row[None])
                many = self._with_functions(base, place, self.pool)
                here = self.score(many)
                starts.append(many[[int(here.argmax())]])
                scores = np.maximum(scores, here)
            short.append(self.pool[np.argsort(-scores, kind="stable")[:_SHORT]])
        self.short = short
        found = Configurations.join(*starts)
        order = np.argsort(-self.score(found), kind="stable")[:_STARTS]
        return found[order]

    @staticmethod
    def _with_functions(
        one: Configurations, place: int, functions: NDArray[np.int64]
    ) -> Configurations:
        many = one[np.zeros(len(functions), dtype=np.int64)]
        many.functions[:, place] = functions
        return many

    def _sweep(self, found: Configurations) -> Configurations:
        improved = []
        for row in range(len(found)):
            one = found[[row]]
            for place in range(self.places):
                one = self._with_best_function(one, place)
            improved.append(self._with_best_settings(one))
        return Configurations.join(*improved)

    def _with_best_function(self, one: Configurations, place: int) -> Configurations:
        others = self._with_functions(one, place, self.short[place])
        return self._best_of(Configurations.join(one, others))

    def _with_best_settings(self, one: Configurations) -> Configurations:
        parameters = self.searcher.parameters
        if not parameters.width:
            return one
        settings = np.concatenate(
            [
                one.settings,
                parameters.draw(_SETTINGS, self.generator),
                parameters.near(one.settings[0], _SETTINGS, self.generator),
            ]
        )
        return self._best_of(Configurations(np.repeat(one.functions, len(settings), 0), settings))

    def _best_of(self, many: Configurations) -> Configurations:
        return many[[int(self.score(many).argmax())]]


def _without(
    raw: Callable[[Tensor], Tensor],
    space: ConfigurationSpace,
    known: Configurations,
    closed: frozenset[tuple[int, ...]],
) -> Callable[[Configurations], NDArray[np.float64]]:
    """Return scores of configurations, minus infinity of those that were tried or given up."""
    taken = {_key(*row) for row in zip(known.functions, known.settings, strict=True)}

    def score(some: Configurations) -> NDArray[np.float64]:
        scores = raw(space.points(some)).numpy().copy()
        for row in np.flatnonzero(np.isin(some.functions, known.functions).all(axis=1)):
            if _key(some.functions[row], some.settings[row]) in taken:
                scores[row] = -np.inf
        for functions in closed:
            scores[(some.functions == functions).all(axis=1)] = -np.inf
        return np.asarray(scores)

    return score


def _key(functions: NDArray[np.int64], settings: Settings) -> tuple[bytes, bytes]:
    return functions.tobytes(), np.round(settings, 9).tobytes()
