"""The best configuration by an acquisition function, climbed by turns.

There are too many configurations to score them all: all functions for one place, then many
settings of the parameters, from several starts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.search.acquisition.own import AnyAcquisition
from bo_act.search.acquisition.pool import make_scorer, promising
from bo_act.search.configurations import Configurations, ConfigurationSpace, JointProposal
from bo_act.search.parameters import Settings
from bo_act.search.surrogate.surrogate import Surrogate

_REPRESENTATIVES = 512  # configurations that stand for all
_POOL = 4_096  # functions looked at for a start
_COARSE = 4  # settings that they are scored at, besides those of the best observed
_SHORT = 256  # functions looked at after that, for each place
_STARTS = 4
_SWEEPS = 3
_SETTINGS = 64  # scored at a time: as many spread out as near


class Climb:
    """Maximizing the acquisition function over configurations.

    Args:
        acquisition: what is maximized.
        space: what places configurations.
        model: the surrogate.
        places: K.
        candidates: indices of functions that may be proposed.
        generator: of what is drawn.
    """

    def __init__(
        self,
        acquisition: AnyAcquisition,
        space: ConfigurationSpace,
        model: Surrogate,
        *,
        places: int,
        candidates: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        self.acquisition, self.space, self.model = acquisition, space, model
        self.places, self.candidates, self.generator = places, candidates, generator

    def best(
        self,
        measured: Configurations,
        y: Tensor,
        known: Configurations,
        closed: frozenset[tuple[int, ...]],
    ) -> JointProposal:
        """Return the best configuration that was not tried.

        Args:
            measured: n configurations that the surrogate was fitted to.
            y: (n,) their warped values.
            known: tried or under evaluation.
            closed: functions of configurations that are not to be tried again.
        """
        with torch.no_grad():
            incumbents = measured[np.argsort(-y.numpy(), kind="stable")[:_STARTS]]
            self.pool = self._pool(incumbents)
            raw = make_scorer(
                self.acquisition,
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
            functions, self.space.parameters.draw(_REPRESENTATIVES, self.generator)
        )

    def _coarse(self, incumbents: Configurations) -> Configurations:
        """Return starts: incumbents, and the best function for each place at some settings.

        From then on each place chooses among the functions that scored best there.
        """
        settings = incumbents.settings[:1]
        if settings.shape[1]:
            drawn = self.space.parameters.draw(_COARSE, self.generator)
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
        parameters = self.space.parameters
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
