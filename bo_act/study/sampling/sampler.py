"""ActivationSampler: the searcher as an Optuna sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import TrialPruned
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bo_act.activations.space import Space
from bo_act.errors import ExhaustedError, ExpressionError, SearchError
from bo_act.features.table import FeatureTable
from bo_act.metrics import Metric
from bo_act.optuna_internals import id_of, is_optimizing, storage_of, whole_study
from bo_act.search.acquisition.own import AnyAcquisition, MakeAcquisition, OwnAcquisition
from bo_act.search.acquisition.pool import check_unlisted
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.strategies import Strategy
from bo_act.search.surrogate.own import AnySurrogate, MakeModel, OwnSurrogate
from bo_act.search.unenumerated import ExpressionPool
from bo_act.search.warm_start import Source
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.specs.base import whole
from bo_act.study.sampling.candidates import (
    Embeddable,
    check_trees,
    how_chosen,
    listed_candidates,
    met_candidates,
)
from bo_act.study.sampling.configurations import (
    CONFIGURATION,
    ONE,
    JointSide,
    checked_names,
    params_of,
)
from bo_act.study.sampling.endings import mark_diverged, stop
from bo_act.study.sampling.enqueued import warn_of_unasked
from bo_act.study.sampling.parameters import SharedSettings, StudyParameters, is_compared
from bo_act.study.sampling.warm_start import read_sources, refuse_itself
from bo_act.study.storage.heartbeat import Heartbeat
from bo_act.study.storage.metric import note_metric
from bo_act.study.storage.owner import CLAIM, OWNER, Owner
from bo_act.study.storage.trials import StudyView, View, own_only


class ActivationSampler(BaseSampler):
    """Proposes activation functions by Bayesian optimization over an embedding of their features.

    A proposal fills the slots of the space with one function. Every other parameter of the study
    (numbers and categories) is searched jointly with the function, since the best function depends
    on the learning rate and the like; ``delegate`` samples them separately. The proposal depends
    only on the study and on ``seed``, never on the process, so a resumed study continues as an
    uninterrupted one would have.

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
        strategy: replaces surrogate and acquisition after the start, see ``Strategy``.
        candidates: ``catalogue``: all functions of the space; ``trees``: local search in an
            unenumerated space, by output features only (no features, embedder, strategy or warm
            start); ``auto``: the catalogue if the space can be listed.
        warm_start: sources: names of benchmarks and studies, or ``Source`` objects. They inform
            only the surrogate and never become trials of the study.
        first: how many functions that are good in all sources to evaluate first.
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
        metric: what the study measures, noted in it at the first trial, so that tables, reports and
            commands show values as they are; default: what the study has noted, else a value
            without a unit in the study's direction.

    Raises:
        ExpressionError: a baseline is not in the space.
        SearchError: the features belong to another space, the acquisition function does not
            support this search, or ``defaults`` names an unknown parameter. The first proposal
            raises it, too, if the study is its own source, or the
            metric is not the study's.

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
    ) -> None:
        if initial is None:
            initial = 0 if warm_start else 2
        whole(first, "first", error=SearchError)
        whole(max_retries, "max_retries", error=SearchError)
        options: dict[str, Any] = {
            "initial": initial,
            "surrogate": OwnSurrogate.of(surrogate or SurrogateSpec()),
            "acquisition": OwnAcquisition.of(acquisition or AcquisitionSpec()),
            "strategy": strategy,
            "seed": seed,
            "costs": costs,
        }
        self._told_by = [one for one in warm_start if isinstance(one, str)]
        usual = () if warm_start else space.baselines
        given = usual if baselines is None else baselines
        if candidates == "trees" or (candidates == "auto" and not space.can_be_listed):
            check_trees(
                space,
                features,
                embedding,
                strategy,
                warm_start=warm_start,
                costs=costs is not None or options["acquisition"].needs_costs,
            )
            self.candidates = met_candidates(space, embedding, given, options)
        else:
            sources = [one for one in warm_start if isinstance(one, Source)]
            sources += read_sources(space, self._told_by)
            self.candidates = listed_candidates(
                space, features, embedding, given, options, sources=sources, first=first
            )
        self.space = space
        self.catalogue = self.candidates.catalogue
        self.searcher = self.candidates.searcher
        self.activations = checked_names(activations, strategy)
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
            check_unlisted(options["acquisition"])
        self.max_retries = max_retries
        self.metric, self._is_noted = metric, False
        self._slot_sampler = RandomSampler(seed=seed)
        self._indices_of: dict[int, tuple[FrozenTrial, int | None]] = {}

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
        self._raise_error_if_multi_objective(study)
        if self._told_by:
            refuse_itself(study, self._told_by)
            self._told_by = []  # once is enough: another study's trials stay another's
        self.parameters.check_defaults(study)
        slots = self.parameters.slots
        others = {name: d for name, d in search_space.items() if name not in slots}
        values = {}
        if others and self._delegates:
            values = self.delegate.sample_relative(own_only(study, trial), trial, others)
        if any(
            name in slots for name in (*trial.system_attrs.get("fixed_params", {}), *trial.params)
        ):
            # Enqueued; or taken over after its claim was final, its parameters half written.
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
        self._raise_error_if_multi_objective(study)
        name, _, slot = param_name.rpartition(".")
        if slot in self.space.distributions and name and name not in self.activations:
            raise SearchError(
                f"the objective asks for an activation named {name!r}, which the sampler does not "
                f"know; give it activations=(..., {name!r})"
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
            SearchError: the enqueued values are invalid, or the study measures something else than
                the sampler was told; the trial has failed.
        """
        self._note_metric(study, trial)
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

    def view(self, study: Study, trial: FrozenTrial | None = None) -> View:
        """Read the study as the searcher sees it.

        Args:
            study: a study of this space.
            trial: the trial to propose for; excluded from the view.
        """
        return self._view(StudyView.of(study, trial))

    def observations(
        self,
        trials: Sequence[FrozenTrial],
        direction: StudyDirection,
        *,
        worst: float | None = None,
    ) -> Observations:
        """Return the observations of some trials of a study, larger is better.

        Args:
            trials: of a study.
            direction: of the study.
            worst: what its metric says that diverged ones count as, where it does.
        """
        return self._view(StudyView.of_some(trials, direction, worst=worst)).observations

    def configurations(self, study: Study) -> JointSide | None:
        """Return how configurations are searched; None if only functions are."""
        return None if self._delegates else self._side(study, self.parameters.common(study))

    def remaining(self, study: Study, trials: StudyView | None = None) -> int:
        """Count the functions that can still be proposed.

        With other parameters or several activations, all functions count: each can be proposed
        again in another configuration.

        Args:
            study: a study of this space.
            trials: read before; default: read here.
        """
        if self.configurations(study):
            return int(self.embedding.valid.sum())
        if isinstance(self.catalogue, ExpressionPool) and not self.catalogue.is_complete:
            return len(self.space)
        candidates = set(np.flatnonzero(self.embedding.valid).tolist())
        taken = self._view(trials or StudyView.of(study)).taken
        return len((candidates | set(self.searcher.baselines)) - taken)

    def _stop_if_exhausted(self, study: Study, trial: FrozenTrial) -> None:
        if trial.distributions.keys() - self.parameters.slots.keys() and not self._delegates:
            return  # its function can be tried again with other values
        # With fewer trials than functions some function is left: there is no need to look.
        if trial.number + 1 >= int(self.embedding.valid.sum()) and not self.remaining(study):
            stop(study, self.space.name)

    def _view(self, trials: StudyView) -> View:
        if isinstance(self.catalogue, ExpressionPool):
            # Functions are met in the order of the trials, whichever process reads them.
            for trial in trials.in_order:
                self._index(trial)
        complete = [(t, index) for t in trials.complete if (index := self._index(t)) is not None]
        failures = Counter(self._index(trial) for trial in trials.failed)
        observations = Observations(
            np.array([index for _, index in complete], dtype=np.int64),
            trials.values([trial for trial, _ in complete]),
            frozenset(self._indices(trials.pruned)),
            frozenset(
                index
                for index, count in failures.items()
                if index is not None and count > self.max_retries
            ),
            trials.seconds([trial for trial, _ in complete]),
        )
        return View(observations, frozenset(self._indices(trials.waiting)), trials.number)

    def _indices(self, trials: Sequence[FrozenTrial]) -> Iterator[int]:
        return (index for trial in trials if (index := self._index(trial)) is not None)

    def _side(self, study: Study, others: Mapping[str, BaseDistribution]) -> JointSide | None:
        if not others and self.activations == ONE:
            return None
        return JointSide.of(
            self.catalogue,
            self.embedding,
            self.searcher,
            activations=self.activations,
            distributions=others,
            shared=self.parameters.shared(study, others),
            max_retries=self.max_retries,
        )

    def _index(self, trial: FrozenTrial) -> int | None:
        """Return the function of a trial, None of one that is of another space."""
        known = self._indices_of.get(id_of(trial))
        if known is not None and known[0] is trial:
            return known[1]
        index = None
        with suppress(ExpressionError):
            index = self.catalogue.index(params_of(trial))
        if trial.state.is_finished():  # storages return the same object from now on
            self._indices_of[id_of(trial)] = trial, index
        return index

    def _note_metric(self, study: Study, trial: FrozenTrial) -> None:
        if self.metric is None or self._is_noted:
            return
        try:
            note_metric(whole_study(study), self.metric)
        except SearchError as error:
            _fail(study, trial, error)
            raise
        self._is_noted = True

    def _take_enqueued(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> None:
        """Note the function that a person chose, and what it is to be evaluated with."""
        try:
            self.check_enqueued(study, fixed)
            if not (slots := self.parameters.completed(fixed, trial.number)):
                return
            others = {} if self._delegates else self.parameters.common(study)
            free = {name: d for name, d in others.items() if name not in fixed}
            params = {**self.parameters.shared(study, free), **fixed, **slots}
            key, claim = (CONFIGURATION, params) if self._side(study, others) else (CLAIM, slots)
        except SearchError as error:
            _fail(study, trial, error)
            raise
        storage_of(study).set_trial_system_attr(id_of(trial), key, claim)
        trial.system_attrs[key] = claim
        self._note(study, trial, slots, {"by": "enqueued"})

    def _claimed(self, study: Study, trial: FrozenTrial, others: Mapping[str, Any]) -> Any:
        """Return the parameters of what is proposed to a trial, which has claimed it."""
        if side := self._side(study, others):
            proposal, params = side.claim(study, trial)
            self._note(study, trial, params, how_chosen(proposal, study.direction))
            return params
        contested: set[int] = set()
        while True:  # ends: each round leaves one more candidate out
            view = self.view(study, trial)
            chosen = self.searcher.propose(
                self.embedding,
                view.observations,
                pending=view.pending | contested,
                number=view.number,
            )
            slots = self.catalogue.params(chosen.index)
            storage_of(study).set_trial_system_attr(id_of(trial), CLAIM, slots)
            # Another may have claimed it meanwhile, or have finished it.
            if chosen.index not in self.view(study, trial).taken:
                break
            contested.add(chosen.index)
        self._note(study, trial, slots, how_chosen(chosen, study.direction))
        return slots

    def _note(
        self, study: Study, trial: FrozenTrial, params: Mapping[str, Any], how: Mapping[str, Any]
    ) -> None:
        """Write into a trial what it evaluates and how that was chosen."""
        attributes = self.candidates.attributes(params, self.activations) | {"proposal": how}
        for name, value in attributes.items():
            storage_of(study).set_trial_user_attr(id_of(trial), name, value)
        # Optuna's trial reads the storage once, at its beginning, and looks into this object.
        trial.user_attrs.update(attributes)


def _fail(study: Study, trial: FrozenTrial, error: SearchError) -> None:
    """End a trial that nobody has in hand yet, so that nobody else could end it."""
    storage_of(study).set_trial_user_attr(id_of(trial), "failure", str(error))
    storage_of(study).set_trial_state_values(id_of(trial), TrialState.FAIL)
