"""Configurations of trials (functions and other parameters), as the searcher sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from bo_act.errors import ExpressionError, SearchError
from bo_act.search.configurations import ONE, Configurations, Parameters, Settings, Taken
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import Strategy
from bo_act.search.unenumerated import ExpressionPool
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.enumeration import slot_of
from bo_act.study.storage.owner import CLAIM
from bo_act.study.storage.study_view import StudyView

CONFIGURATION = "bo_act:configuration"
"""System attribute of a trial: the parameters of its configuration."""


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters, including those given to it but not yet requested."""
    attributes = trial.system_attrs
    claimed = attributes.get(CLAIM, {}) if trial.state == TrialState.RUNNING else {}
    given, fixed = attributes.get(CONFIGURATION, {}), attributes.get("fixed_params", {})
    return {**claimed, **given, **fixed, **trial.params}


def functions_of(
    catalogue: Catalogue | ExpressionPool, params: Mapping[str, Any], activations: Sequence[str]
) -> tuple[int, ...]:
    """Return the functions that parameters encode, one per activation of a study.

    Raises:
        ExpressionError: slots are missing, or belong to another space.
    """
    return tuple(catalogue.index(slots_of(params, name)) for name in activations)


def slots_of(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the parameters of one activation of a study without its name."""
    if not name:
        return dict(params)
    start = slot_of(name, "")
    return {key.removeprefix(start): v for key, v in params.items() if key.startswith(start)}


def checked_names(activations: Sequence[str], strategy: Strategy | None) -> tuple[str, ...]:
    """Return the names of a study's activations.

    Raises:
        SearchError: a name is missing or given twice, or a strategy would choose several.
    """
    names = tuple(activations)
    if not names or len(set(names)) < len(names) or ("" in names and names != ONE):
        raise SearchError(
            f"expected a different name for each activation of the study, got {names}"
        )
    if strategy is not None and names != ONE:
        raise SearchError(
            f"a strategy chooses one function at a time, but the study has the activations "
            f"{names}; leave it out to let the surrogate choose them together"
        )
    return names


@dataclass(frozen=True, eq=False)
class View:
    """A study as the searcher sees it.

    Attributes:
        searcher: with the study's current parameters.
        observations: measured values, larger is better, and excluded functions.
        pending: configurations of other live trials.
        number: index of the next trial, without lost ones, so that the repetition of a lost trial
            has the same random state.
        trials: the measured ones, in the order of the observations.
    """

    searcher: Searcher
    observations: Observations
    pending: Configurations
    number: int
    trials: Sequence[FrozenTrial]

    @property
    def waiting(self) -> Taken:
        """Configurations of other live trials."""
        return Taken(self.pending, ())

    @property
    def taken(self) -> Taken:
        """Configurations not to propose, except as repetitions."""
        observations = self.observations
        known = Configurations.join(observations.measured, observations.pruned, self.pending)
        return Taken(known, observations.closed)

    def remaining(self, embedding: Embedding) -> float:
        """Count what can still be proposed; infinity if a parameter is continuous.

        Args:
            embedding: of the functions.
        """
        searcher, taken = self.searcher, self.taken
        if searcher.of_functions:
            candidates = {*np.flatnonzero(embedding.valid).tolist(), *searcher.baselines}
            return len(candidates - {index for (index,) in taken.functions})
        open_ = [functions for functions, _ in taken.tried if functions not in taken.closed]
        tried, closed = (
            sum(bool(embedding.valid[[*functions]].all()) for functions in group)
            for group in (open_, taken.closed)
        )
        every = int(embedding.valid.sum()) ** len(searcher.activations) - closed
        return float(every * searcher.parameters.count - tried)


class TrialReader:
    """Reads configurations from trials, with a cache of finished ones.

    Args:
        catalogue: of the functions; an ``ExpressionPool`` grows.
        activations: names of the functions.
        max_retries: how often a function is tried again after its trial failed.
    """

    def __init__(
        self, catalogue: Catalogue | ExpressionPool, activations: tuple[str, ...], max_retries: int
    ) -> None:
        self.catalogue, self.activations = catalogue, activations
        self.max_retries = max_retries
        self._rows: dict[int, tuple[FrozenTrial, Parameters, _Row | None]] = {}
        self._known: tuple[Mapping[str, BaseDistribution], Parameters] = {}, Parameters()

    def view(
        self,
        trials: StudyView,
        searcher: Searcher,
        others: Mapping[str, BaseDistribution],
        shared: Mapping[str, Any],
    ) -> View:
        """Return the searcher's view of trials, without those that lack a parameter.

        Args:
            trials: of a study.
            searcher: of functions.
            others: parameters searched jointly with them.
            shared: their values for all baselines.
        """
        parameters = self.coordinates(others)
        if others:
            encoded = parameters.encode(shared)
            searcher = replace(searcher, parameters=parameters, defaults=encoded)
        if isinstance(self.catalogue, ExpressionPool):
            # Every process adds functions to its pool in the order of the trials.
            self.read(trials.in_order, parameters)
        measured, complete = self.read(trials.complete, parameters)
        failures = Counter(map(tuple, self.read(trials.failed, parameters)[0].functions.tolist()))
        # A trial begun before the parameters were known has not requested them yet.
        pending, _ = self.read(trials.waiting, parameters, shared)
        observations = Observations(
            measured,
            trials.values(complete),
            self.read(trials.pruned, parameters)[0],
            frozenset(functions for functions, n in failures.items() if n > self.max_retries),
            trials.seconds(complete),
            # A trial's variance belongs to its single value.
            variances=trials.variances(complete) if len(trials.directions) == 1 else None,
            others=trials.others(complete),
            constraints=trials.constraints(complete),
        )
        return View(searcher, observations, pending, trials.number, complete)

    def coordinates(self, others: Mapping[str, BaseDistribution]) -> Parameters:
        """Return the coordinates of parameters; the same object for the same parameters."""
        known, parameters = self._known
        if known != others:
            parameters = Parameters(others)
            self._known = others, parameters
        return parameters

    def read(
        self,
        trials: Sequence[FrozenTrial],
        parameters: Parameters,
        usual: Mapping[str, Any] | None = None,
    ) -> tuple[Configurations, list[FrozenTrial]]:
        """Return the configurations of trials, and the trials that have one.

        Args:
            trials: of a study.
            parameters: searched besides the functions.
            usual: values for parameters that a trial has not requested.
        """
        rows = [(row, t) for t in trials if (row := self._row(t, parameters, usual)) is not None]
        functions = np.array([row[0] for row, _ in rows], dtype=np.int64)
        settings = np.array([row[1] for row, _ in rows])
        return (
            Configurations(
                functions.reshape(-1, len(self.activations)),
                settings.reshape(len(rows), parameters.width),
            ),
            [trial for _, trial in rows],
        )

    def _row(
        self, trial: FrozenTrial, parameters: Parameters, usual: Mapping[str, Any] | None
    ) -> _Row | None:
        """Return functions and settings; None if some are missing or of another space."""
        known = self._rows.get(trial.number)
        if known is not None and known[0] is trial and known[1] is parameters:
            return known[2]
        params = {**(usual or {}), **params_of(trial)}
        row = None
        if parameters.distributions.keys() <= params.keys():
            try:
                functions = functions_of(self.catalogue, params, self.activations)
                row = functions, parameters.encode(params)
            except (ExpressionError, ValueError):  # of another space, or an enqueued choice
                pass
        if trial.state.is_finished():  # storages return the same object from now on
            self._rows[trial.number] = trial, parameters, row
        return row


_Row = tuple[tuple[int, ...], Settings]
