"""Searching functions together with a study's other parameters, or several functions at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bo_act.activations.catalogue import Catalogue
from bo_act.activations.space import slot_of
from bo_act.errors import ExpressionError, SearchError
from bo_act.optuna_internals import id_of, storage_of
from bo_act.search.configurations import Configurations, JointProposal
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.explain import Explanation, can_explain, explain_point
from bo_act.search.joint import JointObservations, JointSearcher
from bo_act.search.observations import count_different, unit
from bo_act.search.parameters import Parameters
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import Strategy
from bo_act.search.unenumerated import ExpressionPool
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.study.storage.owner import CLAIM
from bo_act.study.storage.trials import StudyView

ONE = ("",)
"""The single activation of a study has no name."""

CONFIGURATION = "bo_act:configuration"
"""System attribute of a trial: the parameters of the configuration that it was given."""


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters, those among them that it was given and has not asked for yet."""
    attributes = trial.system_attrs
    claimed = attributes.get(CLAIM, {}) if trial.state == TrialState.RUNNING else {}
    given, fixed = attributes.get(CONFIGURATION, {}), attributes.get("fixed_params", {})
    return {**claimed, **given, **fixed, **trial.params}


def functions_of(
    catalogue: Catalogue | ExpressionPool, params: Mapping[str, Any], activations: Sequence[str]
) -> list[int]:
    """Return the functions that parameters stand for, one for each activation of a study.

    Raises:
        ExpressionError: slots are missing, or are those of another space.
    """
    return [catalogue.index(slots_of(params, name)) for name in activations]


def slots_of(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the parameters of one activation of a study without its name."""
    start = slot_of(name, "")
    return {key.removeprefix(start): v for key, v in params.items() if key.startswith(start)}


@dataclass(frozen=True, eq=False)
class JointView:
    """A study as the joint searcher sees it; see ``View``.

    Attributes:
        trials: numbers of those that were measured, in the order of the observations.
    """

    observations: JointObservations
    pending: Configurations
    number: int
    trials: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class JointSide:
    """How a sampler searches configurations of one set of parameters.

    Attributes:
        catalogue, embedding: of the sampler.
        searcher: of configurations.
        shared: values of the other parameters that all baselines are evaluated with.
        max_retries: of the sampler.
    """

    catalogue: Catalogue | ExpressionPool
    embedding: Embedding
    searcher: JointSearcher
    shared: Mapping[str, Any]
    max_retries: int

    @classmethod
    def of(
        cls,
        catalogue: Catalogue | ExpressionPool,
        embedding: Embedding,
        searcher: Searcher,
        *,
        activations: tuple[str, ...],
        distributions: Mapping[str, BaseDistribution],
        shared: Mapping[str, Any],
        max_retries: int,
    ) -> JointSide:
        """Make it from a searcher of single functions."""
        parameters = Parameters(distributions)
        return cls(
            catalogue,
            embedding,
            JointSearcher(
                activations,
                parameters,
                parameters.encode(shared),
                searcher.baselines,
                searcher.initial,
                searcher.surrogate,
                searcher.acquisition,
                searcher.seed,
            ),
            shared,
            max_retries,
        )

    def view(self, trials: StudyView) -> JointView:
        """Return what trials say; those without all the parameters say nothing."""
        measured, complete = self._read(trials.complete)
        failures = Counter(tuple(row) for row in self._read(trials.failed)[0].functions.tolist())
        observations = JointObservations(
            measured,
            trials.values(complete),
            self._read(trials.pruned)[0],
            frozenset(functions for functions, n in failures.items() if n > self.max_retries),
        )
        # One that was begun before the parameters were known has not asked for them yet.
        pending, _ = self._read(trials.waiting, usual=self.shared)
        numbers = tuple(trial.number for trial in complete)
        return JointView(observations, pending, trials.number, numbers)

    def claim(self, study: Study, trial: FrozenTrial) -> tuple[JointProposal, dict[str, Any]]:
        """Choose a configuration that no other trial has, and say so in the storage.

        Returns:
            The proposal and its parameters, slots among them.
        """
        contested = self._none()
        while True:
            seen = self.view(StudyView.of(study, trial))
            proposal = self.searcher.propose(
                self.embedding,
                seen.observations,
                pending=Configurations.join(seen.pending, contested),
                number=seen.number,
            )
            params = self.params(proposal)
            storage_of(study).set_trial_system_attr(id_of(trial), CONFIGURATION, params)
            mine = Configurations(np.array([proposal.functions]), proposal.settings[None])
            # Another may have claimed it meanwhile, or have finished it.
            now = self.view(StudyView.of(study, trial))
            done = now.observations
            others = Configurations.join(now.pending, done.measured, done.pruned)
            if proposal.by == "random" or not self._among(mine, others):
                return proposal, params
            contested = Configurations.join(contested, mine)

    def params(self, proposal: JointProposal) -> dict[str, Any]:
        """Return the Optuna parameters of a proposal."""
        slots = {
            slot_of(name, slot): value
            for name, index in zip(self.searcher.activations, proposal.functions, strict=True)
            for slot, value in self.catalogue.params(index).items()
        }
        if proposal.by == "baseline":  # to the last digit, which a place on a scale is not
            return slots | dict(self.shared)
        return slots | self.searcher.parameters.decode(proposal.settings)

    def improvement(self, trials: StudyView) -> float:
        """Return the largest expected improvement, see ``improvement_left``."""
        seen = self.view(trials)
        if count_different(seen.observations.values) < 3:
            return math.inf
        searcher = replace(
            self.searcher,
            baselines=(),
            initial=0,
            surrogate=SurrogateSpec(targets="winsorized"),
            acquisition=AcquisitionSpec(name="log_ei"),
        )
        proposal = searcher.propose(
            self.embedding, seen.observations, pending=seen.pending, number=seen.number
        )
        fit = searcher.fit(
            self.embedding, seen.observations, pending=seen.pending, number=seen.number
        )
        return math.exp(proposal.score or 0.0) * unit(fit.values, "winsorized")

    def explain(self, trial: FrozenTrial, known: StudyView) -> tuple[Explanation, tuple[int, ...]]:
        """Explain what was expected of a trial.

        Args:
            trial: with all its parameters.
            known: what had been evaluated.

        Returns:
            The explanation and the numbers of the similar trials.

        Raises:
            SearchError: the surrogate is no Gaussian process, the trial lacks a parameter, or too
                little was observed.
        """
        if not can_explain(self.searcher.surrogate):
            raise SearchError(
                f"only the surrogate 'gp' can be asked why, and this one is "
                f"{self.searcher.surrogate.name!r}"
            )
        one, _ = self._read([trial])
        seen = self.view(known)
        if not len(one) or count_different(seen.observations.values) < 2:
            raise SearchError("expected at least two trials with different values before it")
        fit = self.searcher.fit(
            self.embedding, seen.observations, pending=self._none(), number=trial.number
        )
        if not len(fit.space.placed(one)):
            raise SearchError("the function has no place in the embedding")
        said = explain_point(fit.model, fit.y, fit.values, fit.space.points(one))
        return said, tuple(seen.trials[fit.places[n.index]] for n in said.neighbours)

    def _read(
        self, trials: Sequence[FrozenTrial], *, usual: Mapping[str, Any] | None = None
    ) -> tuple[Configurations, list[FrozenTrial]]:
        functions, settings, read = [], [], []
        for trial in trials:
            params = {**(usual or {}), **params_of(trial)}
            if not all(name in params for name in self.searcher.parameters.distributions):
                continue
            try:
                found = functions_of(self.catalogue, params, self.searcher.activations)
                place = self.searcher.parameters.encode(params)
            except (ExpressionError, ValueError):  # of another space, or an enqueued choice
                continue
            functions.append(found)
            settings.append(place)
            read.append(trial)
        if not read:
            return self._none(), []
        return Configurations(np.array(functions), np.stack(settings)), read

    def _none(self) -> Configurations:
        places, width = len(self.searcher.activations), self.searcher.parameters.width
        return Configurations(np.empty((0, places), dtype=np.int64), np.empty((0, width)))

    @staticmethod
    def _among(one: Configurations, others: Configurations) -> bool:
        same = (others.functions == one.functions).all(axis=1)
        return bool((same & np.isclose(others.settings, one.settings).all(axis=1)).any())


def checked_names(activations: Sequence[str], strategy: Strategy | None) -> tuple[str, ...]:
    """Return the names of a study's activations.

    Raises:
        SearchError: a name is missing or given twice, or a strategy is to choose several.
    """
    names = tuple(activations)
    if not names or len(set(names)) < len(names) or ("" in names and names != ONE):
        raise SearchError(
            f"expected one name for each activation of the study, each once, got {names}"
        )
    if strategy is not None and names != ONE:
        raise SearchError(
            f"a strategy chooses one function at a time, and the study has the activations {names};"
            " leave it out, so that the surrogate chooses them together"
        )
    return names
