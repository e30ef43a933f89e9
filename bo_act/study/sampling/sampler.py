"""ActivationSampler: the searcher as an Optuna sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import TrialPruned
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bo_act.dependencies.optuna_internals import id_of, is_optimizing, storage_of, whole_study
from bo_act.errors import ExhaustedError, SearchError
from bo_act.features.table import FeatureTable
from bo_act.metrics import Metric
from bo_act.search.acquisition.own import AnyAcquisition, MakeAcquisition, OwnAcquisition
from bo_act.search.acquisition.pool import check_unlisted
from bo_act.search.configurations import ONE, Configurations
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import Strategy
from bo_act.search.surrogate.own import AnySurrogate, MakeModel, OwnSurrogate
from bo_act.search.unenumerated import ExpressionPool
from bo_act.search.warm_start import Source
from bo_act.spaces.enumeration import slot_of
from bo_act.spaces.space import Space
from bo_act.specs import AcquisitionSpec, EmbeddingSpec, Spec, SurrogateSpec
from bo_act.specs.base import whole
from bo_act.study.sampling.candidates import (
    Embeddable,
    check_trees,
    how_chosen,
    listed_candidates,
    unlisted_candidates,
)
from bo_act.study.sampling.configurations import (
    CONFIGURATION,
    TrialReader,
    View,
    checked_names,
)
from bo_act.study.sampling.endings import Constraints, mark_diverged, note_constraints, stop
from bo_act.study.sampling.enqueued import warn_of_unasked
from bo_act.study.sampling.outcomes import check_constrained, check_several
from bo_act.study.sampling.parameters import SharedSettings, StudyParameters, is_compared
from bo_act.study.sampling.warm_start import read_sources, refuse_itself
from bo_act.study.storage.heartbeat import Heartbeat
from bo_act.study.storage.metric import SPEC, note_metric
from bo_act.study.storage.owner import CLAIM, OWNER, Owner
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import own_only

SEARCH = "bo_act:search"
"""User attribute of a program's study: the arguments of its sampler."""


class ActivationSampler(BaseSampler):
    """Proposes activation functions by Bayesian optimization over an embedding of their features.

    A proposal fills the slots of the space with one function. Every other parameter of the study
    (numbers and categories) is searched jointly with the function, since the best function depends
    on the learning rate and the like; ``delegate`` samples them separately. The proposal depends
    only on the study and on ``seed``, never on the process, so a resumed study continues as an
    uninterrupted one would have.

    A study may have several directions, such as accuracy and inference time: proposals then
    maximize the hypervolume dominated by the Pareto front.

    Several processes or threads may work on one study: each records ownership of its function in
    the storage and yields to any other owner.

    Args:
        space: where functions come from.
        features: of each function, from ``compute_features``; default: the output features only,
            computed here.
        baselines: functions to evaluate first; default: those of the space file, none where there
            is a warm start.
        initial: random functions after the baselines, before the surrogate proposes; default: two,
            none where there is a warm start.
        embedding: a spec, any object with ``fit(table) -> Embedding``, or an embedding of the
            space's functions, which needs no features: an ``Embedding`` or an (N, d) array of
            numbers, one row per function in the order of the catalogue; or a function of the
            features, a scikit-learn transformer or an ``nn.Module``, see ``OwnEmbedder``. Columns
            outside [0, 1] are scaled by rank.
        surrogate: a spec, or a function that makes a BoTorch model, see ``OwnSurrogate``.
        acquisition: a spec, or a function that makes a BoTorch acquisition function, see
            ``OwnAcquisition``.
        costs: (N,) inference cost of each function, if the acquisition function needs it; default:
            measured here, on the CPU. Pass the same costs to resume a study identically.
        strategy: replaces surrogate and acquisition after the initial design, see ``Strategy``.
        candidates: ``catalogue``: all functions of the space; ``trees``: local search in an
            unenumerated space, by output features only (no features, embedder, strategy or warm
            start); ``auto``: the catalogue if the space can be listed.
        warm_start: sources: names of benchmarks and studies, or ``Source`` objects. They inform
            only the surrogate and never become trials of the study.
        first: number of functions, good in the sources on average, to evaluate first.
        activations: names of several activations of one study, one per stage of the network, which
            the objective asks for by ``space.suggest(trial, "stage1")``; baselines fill all.
        parameters: the other parameters as Optuna distributions; default: those that all finished
            trials have, so that the first trial draws its own at random.
        defaults: values of other parameters for all baselines, and for functions enqueued without
            values; default: those of the first baseline, which are drawn.
        seed: of every random choice.
        delegate: samples all other parameters instead of the surrogate; default with a
            ``strategy``, which has no surrogate: Optuna's TPE.
        max_retries: how often a function is proposed again after its trial failed.
        constraints_func: returns constraint values of an ending trial, at most 0 if satisfied, as
            for Optuna's samplers. Like constraints set by ``trial.set_constraint``, they guide the
            search: a function's gain is weighted by its probability of satisfying them.
        metric: of the study, recorded at the first trial, so that tables, reports and commands show
            its values correctly; default: the recorded one, or else a value without a unit in the
            study's direction.

    Raises:
        ExpressionError: a baseline is not in the space.
        SearchError: the features belong to another space, the acquisition function does not
            support this search, or ``defaults`` names an unknown parameter. The first proposal
            raises it, too, if the study is its own source, has another metric, or has several
            objectives and the sampler an option for a single one.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("classic")
        >>> sampler = bo_act.ActivationSampler(space, seed=0)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> def objective(trial):
        ...     activation = space.suggest(trial)  # train a network with it, return its accuracy
        ...     return -len(trial.user_attrs["activation"])
        >>> study.optimize(objective, n_trials=8)
        >>> len({trial.user_attrs["activation"] for trial in study.trials})
        8
    """

    def __init__(
        self,
        space: Space,
        *,
        features: FeatureTable | None = None,
        baselines: Sequence[str] | None = None,
        initial: int | None = None,
        embedding: Embeddable = None,
        surrogate: AnySurrogate | MakeModel | None = None,
        acquisition: AnyAcquisition | MakeAcquisition | None = None,
        costs: np.ndarray | None = None,
        strategy: Strategy | None = None,
        candidates: Literal["auto", "catalogue", "trees"] = "auto",
        warm_start: Sequence[str | Source] = (),
        first: int = 5,
        activations: Sequence[str] = ("",),
        parameters: Mapping[str, BaseDistribution] | None = None,
        defaults: Mapping[str, Any] | None = None,
        seed: int = 0,
        delegate: BaseSampler | None = None,
        max_retries: int = 2,
        metric: Metric | None = None,
        constraints_func: Constraints | None = None,
    ) -> None:
        if initial is None:
            initial = 0 if warm_start else 2
        whole(first, "first", error=SearchError)
        whole(max_retries, "max_retries", error=SearchError)
        surrogate = OwnSurrogate.of(surrogate or SurrogateSpec())
        acquisition = OwnAcquisition.of(acquisition or AcquisitionSpec())
        needs_costs = acquisition.needs_costs
        if constraints_func is not None:
            check_constrained(constraints_func, acquisition, strategy)
        self._constraints_func = constraints_func
        self._search = _noted(
            space,
            {
                "embedding": EmbeddingSpec() if embedding is None else embedding,
                "surrogate": surrogate,
                "acquisition": acquisition,
            },
            strategy,
            initial=initial,
            candidates=candidates,
            activations=list(activations),
            seed=seed,
        )
        self._is_warm = bool(warm_start)
        self._source_names = [source for source in warm_start if isinstance(source, str)]
        usual = () if warm_start else space.baselines
        given = usual if baselines is None else baselines
        if candidates == "trees" or (candidates == "auto" and not space.can_be_listed):
            check_trees(
                space,
                features,
                embedding,
                strategy,
                warm_start=warm_start,
                costs=costs is not None or needs_costs,
            )
            self.candidates = unlisted_candidates(space, embedding, given, acquisition)
        else:
            sources = [source for source in warm_start if isinstance(source, Source)]
            sources += read_sources(space, self._source_names)
            self.candidates = listed_candidates(
                space,
                features,
                embedding,
                given,
                costs=costs,
                needs_costs=needs_costs,
                sources=sources,
                first=first,
            )
        self.space = space
        self.catalogue = self.candidates.catalogue
        self.activations = checked_names(activations, strategy)
        self.searcher = Searcher(
            baselines=self.candidates.baselines,
            initial=initial,
            surrogate=surrogate,
            acquisition=acquisition,
            strategy=strategy,
            seed=seed,
            costs=self.candidates.costs,
            activations=self.activations,
            pool=self.catalogue if isinstance(self.catalogue, ExpressionPool) else None,
        )
        self.parameters = StudyParameters(
            space,
            self.catalogue,
            self.activations,
            self.searcher.baselines,
            parameters,
            SharedSettings(dict(defaults or {}), seed),
        )
        self.delegate = delegate or TPESampler(seed=seed)
        self._delegates = delegate is not None or strategy is not None
        if not self._delegates and (parameters or self.activations != ONE):
            check_unlisted(acquisition)
        self._reader = TrialReader(self.catalogue, self.activations, max_retries)
        self.metric, self._is_noted = metric, False
        self._slot_sampler = RandomSampler(seed=seed)

    @property
    def embedding(self) -> Embedding:
        """The functions' coordinates; in an unenumerated space, of those seen so far."""
        return self.candidates.embedding

    # --- Optuna's interface -----------------------------------------------------------------

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the slots of the space and the other parameters sampled with them."""
        if self._delegates:
            others = self.delegate.infer_relative_search_space(own_only(study, trial), trial)
        else:
            others = self.parameters.common(study)
        return {**others, **self.parameters.slots}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose a function or a configuration, take ownership, and return its parameters."""
        if self._source_names:
            refuse_itself(study, self._source_names)
            self._source_names = []  # one check is enough
        self.parameters.check_defaults(study)
        slots = self.parameters.slots
        others = {name: d for name, d in search_space.items() if name not in slots}
        values = {}
        if others and self._delegates:
            values = self.delegate.sample_relative(own_only(study, trial), trial, others)
        if any(
            name in slots for name in (*trial.system_attrs.get("fixed_params", {}), *trial.params)
        ):
            # Enqueued; or taken over, with a final claim and some of its parameters written.
            attributes = trial.system_attrs
            params = attributes.get(CONFIGURATION) or attributes.get(CLAIM) or {}
        else:
            try:
                params = self._claimed(study, trial, {} if self._delegates else others)
            except ExhaustedError as error:
                if not is_optimizing(study):
                    raise
                stop(study, self.space.name)
                raise TrialPruned(str(error)) from error
        if values and is_compared(trial):
            values |= self.parameters.shared(study, {name: others[name] for name in values})
        return {**values, **params}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Leave parameters unknown beforehand to the delegate."""
        name, _, slot = param_name.rpartition(".")
        if slot in self.space.distributions and name and name not in self.activations:
            raise SearchError(
                f"the objective asks for an activation named {name!r}, unknown to the sampler; "
                f"give it activations=(..., {name!r})"
            )
        if param_name not in self.parameters.slots and is_compared(trial):
            return self.parameters.shared(study, {param_name: param_distribution})[param_name]
        chosen = self._slot_sampler if param_name in self.parameters.slots else self.delegate
        seen = own_only(study, trial)
        return chosen.sample_independent(seen, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Record which process owns the trial, and read enqueued values.

        Until the trial ends, the process sends heartbeats.

        Raises:
            SearchError: the enqueued values are invalid, or the study has another metric than the
                sampler; the trial has failed.
        """
        self._note_search(study, trial)
        if Owner.read(trial.system_attrs.get(OWNER)) != (me := Owner.me()):
            storage_of(study).set_trial_system_attr(id_of(trial), OWNER, me.as_attribute())
        if fixed := trial.system_attrs.get("fixed_params"):
            self._take_enqueued(study, trial, fixed)
        Heartbeat(study, id_of(trial)).begin()
        self.delegate.before_trial(own_only(study, trial), trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Record a divergence, pass the result to the delegate, and end an exhausted search."""
        Heartbeat(study, id_of(trial)).end()
        if self._constraints_func is not None:
            note_constraints(self._constraints_func, study, trial, state)
        diverged = mark_diverged(study, trial, state, values)
        self.delegate.after_trial(own_only(study, trial), trial, state, values)
        if state == TrialState.COMPLETE or diverged:
            warn_of_unasked(trial, self.parameters.settings.defaults if is_compared(trial) else {})
        if (state != TrialState.FAIL or diverged) and is_optimizing(study):
            self._stop_if_exhausted(study, trial)

    def reseed_rng(self) -> None:
        """Reseed the delegate; proposals have no state to reseed."""
        self.delegate.reseed_rng()
        self._slot_sampler.reseed_rng()

    def check_enqueued(self, study: Study, params: Mapping[str, Any]) -> None:
        """Refuse enqueued values that are invalid in a study."""
        self.parameters.check_enqueued(study, params)

    # --- proposing --------------------------------------------------------------------------

    def view(self, study: Study, trials: StudyView | None = None) -> View:
        """Read the study as the searcher sees it.

        Args:
            study: a study of this space.
            trials: the trials to read; default: all current ones.
        """
        others = self._searched(study)
        shared = self.parameters.shared(study, others)
        return self._reader.view(trials or StudyView.of(study), self.searcher, others, shared)

    def configuration(self, trial: FrozenTrial, view: View) -> Configurations:
        """Return the configuration of a trial.

        Raises:
            SearchError: it lacks a parameter, or belongs to another space.
        """
        configuration, _ = self._reader.read([trial], view.searcher.parameters)
        if not len(configuration):
            raise SearchError(f"trial {trial.number} lacks a searched parameter")
        return configuration

    def remaining(self, study: Study) -> float:
        """Count the functions, or configurations, that can still be proposed.

        Args:
            study: a study of this space.

        Returns:
            Their number; infinity if another parameter is continuous.
        """
        if isinstance(self.catalogue, ExpressionPool) and not self.catalogue.is_complete:
            return len(self.space)
        if math.isinf(self._reader.coordinates(self._searched(study)).count):
            return math.inf
        return self.view(study).remaining(self.embedding)

    def is_exhausted(self, study: Study, trials: int) -> bool:
        """Tell whether nothing is left to propose.

        Args:
            study: a study of this space.
            trials: its number of trials; with fewer than functions the answer is no.
        """
        return trials >= int(self.embedding.valid.sum()) and not self.remaining(study)

    def _stop_if_exhausted(self, study: Study, trial: FrozenTrial) -> None:
        more = trial.distributions.keys() - self.parameters.slots.keys()
        if more and not self._delegates and not self._searched(study):
            return  # its function can be evaluated with other values
        if self.is_exhausted(study, trial.number + 1):
            stop(study, self.space.name)

    def _searched(self, study: Study) -> Mapping[str, BaseDistribution]:
        """Return the parameters searched jointly with the functions."""
        return {} if self._delegates else self.parameters.common(study)

    def _note_search(self, study: Study, trial: FrozenTrial) -> None:
        if self._is_noted:
            return
        study = whole_study(study)
        try:
            if len(study.directions) > 1:
                check_several(
                    study, self.searcher, metric=self.metric is not None, warm=self._is_warm
                )
            if self.metric is not None:
                note_metric(study, self.metric)
        except SearchError as error:
            _fail(study, trial, error)
            raise
        # The study of a study file has its whole spec recorded.
        if not study.user_attrs.keys() & {SPEC, SEARCH}:
            baselines = [self.catalogue.text(index) for index in self.searcher.baselines]
            study.set_user_attr(SEARCH, {**self._search, "baselines": baselines})
        self._is_noted = True

    def _take_enqueued(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> None:
        """Record an enqueued function and its parameters."""
        try:
            self.check_enqueued(study, fixed)
            if not (slots := self.parameters.completed(fixed, trial.number)):
                return
            others = self._searched(study)
            free = {name: d for name, d in others.items() if name not in fixed}
            shared = self.parameters.shared(study, free)
        except SearchError as error:
            _fail(study, trial, error)
            raise
        self._claim(study, trial, slots, {**shared, **fixed} if others else {})
        self._note(study, trial, slots, {"by": "enqueued"})

    def _claim(
        self, study: Study, trial: FrozenTrial, slots: dict[str, Any], others: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Record the parameters of a trial, and return all of them."""
        joint = bool(others) or self.activations != ONE
        key, params = (CONFIGURATION, {**others, **slots}) if joint else (CLAIM, slots)
        storage_of(study).set_trial_system_attr(id_of(trial), key, params)
        trial.system_attrs[key] = params
        return params

    def _claimed(
        self, study: Study, trial: FrozenTrial, others: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a configuration, claim it for the trial, and return its parameters."""
        shared = self.parameters.shared(study, others)
        read = self._reader.view
        contested: list[Configurations] = []
        while True:  # ends: each round leaves one more candidate out
            view = read(StudyView.of(study, trial), self.searcher, others, shared)
            proposal = view.searcher.propose(
                self.embedding,
                view.observations,
                pending=Configurations.join(view.pending, *contested),
                number=view.number,
            )
            proposed = proposal.configuration
            values = view.searcher.parameters.decode(proposed.settings[0])
            if proposal.by == "baseline":  # exactly: decoded coordinates are rounded
                values = shared
            slots = {
                slot_of(name, slot): value
                for name, index in zip(self.activations, proposal.functions, strict=True)
                for slot, value in self.catalogue.params(index).items()
            }
            params = self._claim(study, trial, slots, values)
            # Another process may have claimed or finished it meanwhile.
            now = read(StudyView.of(study, trial), self.searcher, others, shared)
            taken = now.waiting if proposal.repetition else now.taken
            if not taken.among(proposed)[0]:
                break
            contested.append(proposed)
        self._note(study, trial, params, how_chosen(proposal, study.directions))
        return params

    def _note(
        self, study: Study, trial: FrozenTrial, params: Mapping[str, Any], how: Mapping[str, Any]
    ) -> None:
        """Record in a trial its functions, and how they were chosen."""
        attributes = self.candidates.attributes(params, self.activations) | {"proposal": how}
        storage, number = storage_of(study), id_of(trial)
        for name, value in attributes.items():
            storage.set_trial_user_attr(number, name, value)
        # Optuna reads a trial once, at its start, and then uses this object.
        trial.user_attrs.update(attributes)


def _fail(study: Study, trial: FrozenTrial, error: SearchError) -> None:
    """Fail a trial that Optuna has not returned yet, since nobody else can end it."""
    storage_of(study).set_trial_user_attr(id_of(trial), "failure", str(error))
    storage_of(study).set_trial_state_values(id_of(trial), TrialState.FAIL)


def _noted(
    space: Any, parts: Mapping[str, Any], strategy: Strategy | None, **options: Any
) -> dict[str, Any]:
    """Return the record of a sampler, or why there is none."""
    if not isinstance(space, Space):
        return {"lacking": "the study does not store the points of its items"}
    own = [name for name, part in parts.items() if not isinstance(part, Spec)]
    own += ["strategy"] * (strategy is not None)
    if own:
        return {"lacking": f"the program's own {' and '.join(own)} cannot be stored in the study"}
    specs = {name: part.model_dump(mode="json") for name, part in parts.items()}
    return {"space": space.spec.model_dump(mode="json"), **specs, **options}
