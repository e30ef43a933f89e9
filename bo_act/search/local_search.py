"""Local search for the configuration with the best acquisition value.

There are too many configurations to score all. From several starts, the search alternates: it tries
all functions for one activation after another, then many settings of the other parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import ExhaustedError
from bo_act.search.acquisition.pool import Scoring
from bo_act.search.configurations import Configurations, ConfigurationSpace, Taken

_REPRESENTATIVES = 512  # configurations that represent all
_POOL = 4_096  # functions scored at the start
_COARSE = 4  # settings that they are scored at, besides those of the best observation
_SHORT = 256  # functions that are scored from then on, per activation
_STARTS = 4
_SWEEPS = 3
_SETTINGS = 64  # scored at once, near and spread out each


class LocalSearch:
    """Maximizes the acquisition function over configurations.

    Args:
        scoring: scores of configurations.
        space: maps configurations to points.
        candidates: indices of functions that may be proposed.
        taken: configurations that may not.
        generator: of random draws.
    """

    def __init__(
        self,
        scoring: Scoring,
        space: ConfigurationSpace,
        *,
        candidates: NDArray[np.int64],
        taken: Taken,
        generator: np.random.Generator,
    ) -> None:
        self.scoring, self.space = scoring, space
        self.candidates, self.taken, self.generator = candidates, taken, generator

    def best(self, measured: Configurations, merits: Tensor) -> tuple[Configurations, float]:
        """Return the best configuration that is not taken, and its score.

        Args:
            measured: n configurations that the surrogate was fitted to.
            merits: (n,) their ranking, larger is better.

        Raises:
            ExhaustedError: all configurations that it tried are taken.
        """
        incumbents = measured[np.argsort(-merits.numpy(), kind="stable")[:_STARTS]]
        self.places = incumbents.functions.shape[1]
        self.pool = self._pool(incumbents)
        drawn = self._random()
        self.raw = self.scoring.scorer(
            self.space.points(Configurations.join(incumbents, drawn)),
            seed=int(self.generator.integers(2**31)),
        )
        starts = self._coarse(incumbents)
        for _ in range(_SWEEPS):
            before, starts = starts, self._sweep(starts)
            if np.array_equal(before.functions, starts.functions) and np.array_equal(
                before.settings, starts.settings
            ):
                break
        chosen = self._best_of(starts)
        if self.taken.among(chosen)[0]:
            chosen = self._best_of(drawn)
        if self.taken.among(chosen)[0]:
            raise ExhaustedError("there is nothing left to propose: all configurations were tried")
        return chosen, float(self._score(chosen)[0])

    def _score(self, configurations: Configurations) -> NDArray[np.float64]:
        """Return the scores, (n,), minus infinity only for taken configurations."""
        with torch.no_grad():
            scores = self.raw(self.space.points(configurations)).numpy()
        least = np.finfo(scores.dtype).min
        return np.where(self.taken.among(configurations), -np.inf, np.maximum(scores, least))

    def _pool(self, incumbents: Configurations) -> NDArray[np.int64]:
        """Return the functions to score: all, or the most promising at the best settings."""
        if len(self.candidates) <= _POOL:
            return self.candidates
        points = self.space.points(incumbents.with_functions(0, self.candidates))
        with torch.no_grad():
            chosen = self.scoring.promising(points, _POOL)
        return np.asarray(self.candidates[chosen.numpy()])

    def _random(self) -> Configurations:
        functions = self.generator.choice(self.pool, size=(_REPRESENTATIVES, self.places))
        return Configurations(
            functions, self.space.parameters.draw(_REPRESENTATIVES, self.generator)
        )

    def _coarse(self, incumbents: Configurations) -> Configurations:
        """Return starts: incumbents, and the best function for each activation at some settings.

        From then on, each activation is chosen among the functions with the best scores here.
        """
        settings = incumbents.settings[:1]
        if settings.shape[1]:
            drawn = self.space.parameters.draw(_COARSE, self.generator)
            settings = np.unique(np.concatenate([settings, drawn]), axis=0)
        starts = [incumbents]
        self.short = []
        for k in range(self.places):
            scores = np.full(len(self.pool), -np.inf)
            for row in settings:
                base = Configurations(incumbents.functions[:1], row[None])
                variants = base.with_functions(k, self.pool)
                here = self._score(variants)
                starts.append(variants[[int(here.argmax())]])
                scores = np.maximum(scores, here)
            self.short.append(self.pool[np.argsort(-scores, kind="stable")[:_SHORT]])
        joined = Configurations.join(*starts)
        return joined[np.argsort(-self._score(joined), kind="stable")[:_STARTS]]

    def _sweep(self, starts: Configurations) -> Configurations:
        improved = []
        for row in range(len(starts)):
            best = starts[[row]]
            for k, short in enumerate(self.short):
                best = self._best_of(Configurations.join(best, best.with_functions(k, short)))
            improved.append(self._with_best_settings(best))
        return Configurations.join(*improved)

    def _with_best_settings(self, configuration: Configurations) -> Configurations:
        parameters = self.space.parameters
        if not parameters.width:
            return configuration
        settings = np.concatenate(
            [
                configuration.settings,
                parameters.draw(_SETTINGS, self.generator),
                parameters.near(configuration.settings[0], _SETTINGS, self.generator),
            ]
        )
        return self._best_of(
            Configurations(np.repeat(configuration.functions, len(settings), 0), settings)
        )

    def _best_of(self, configurations: Configurations) -> Configurations:
        return configurations[[int(self._score(configurations).argmax())]]
