"""ActivationSampler: the searcher as an Optuna sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bo_act.activations.space import Space
from bo_act.errors import ExpressionError, SearchError
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.search.embedding import Embedder, Embedding, make_embedder
from bo_act.search.observations import Observations
from bo_act.search.searcher import Proposal, Searcher
from bo_act.search.strategies import Strategy
from bo_act.search.warm_start import Source, make_warm_start
from bo_act.specs import AcquisitionSpec, EmbeddingSpec, SurrogateSpec
from bo_act.study.claims import CLAIM, OWNER, Owner
from bo_act.study.sources import read_sources


class ActivationSampler(BaseSampler):
    """Proposes activation functions by Bayesian optimization over an embedding of their features.

    The slots of the space are filled with one function; every other parameter of the study is
    left to ``delegate``. The proposal depends on what is in the study and on ``seed``, never on
    the process: a resumed study goes on as an uninterrupted one would have.

    Several processes or threads may work on one study: each claims its function in the storage
    and yields when another holds it.

    Args:
        space: where functions come from.
        features: what is known of each function, from ``compute_features``; default: the output
            features alone, computed here.
        baselines: functions to evaluate first; default: those of the space file.
        initial: random functions after the baselines, before the surrogate proposes.
        embedding: a spec, any object with ``fit(table) -> Embedding``, or an embedding of the
            space's functions, which needs no features.
        surrogate: options of the Gaussian process.
        acquisition: which acquisition function, with its options.
        strategy: chooses in place of surrogate and acquisition, once the start is over.
        warm_start: what other tasks say: names of benchmarks and studies, or sources. It goes into
            the surrogate alone, never into the study's trials.
        first: how many of the functions that are best in them are evaluated before the baselines.
        seed: of every random choice.
        delegate: samples all other parameters; default: Optuna's TPE with the same seed.
        max_retries: how often a function is proposed again after its trial failed.

    Raises:
        ExpressionError: a baseline is not in the space.
        SearchError: the features belong to another space.
    """

    def __init__(
        self,
        space: Space,
        *,
        features: FeatureTable | None = None,
        baselines: Sequence[str] | None = None,
        initial: int = 2,
        embedding: EmbeddingSpec | Embedder | Embedding | None = None,
        surrogate: SurrogateSpec | None = None,
        acquisition: AcquisitionSpec | None = None,
        strategy: Strategy | None = None,
        warm_start: Sequence[str | Source] = (),
        first: int = 5,
        seed: int = 0,
        delegate: BaseSampler | None = None,
        max_retries: int = 2,
    ) -> None:
        catalogue = space.catalogue
        if not isinstance(embedding, Embedding):
            embedding = _embedded(space, features, embedding)
        if len(embedding) != len(catalogue):
            raise SearchError(
                f"expected an embedding of the {len(catalogue)} functions of the space "
                f"{space.name!r}, got one of {len(embedding)}"
            )
        given = space.baselines if baselines is None else baselines
        start = [catalogue.index(function) for function in given]
        if warm_start:
            named = [name for name in warm_start if isinstance(name, str)]
            sources = [s for s in warm_start if isinstance(s, Source)] + read_sources(space, named)
            warm = make_warm_start(sources, embedding, first=first)
            start = [*warm.best, *start]
            embedding = warm.enrich(embedding)
        self.space = space
        self.embedding = embedding
        self.searcher = Searcher(
            baselines=tuple(dict.fromkeys(start)),
            initial=initial,
            surrogate=surrogate or SurrogateSpec(),
            acquisition=acquisition or AcquisitionSpec(),
            strategy=strategy,
            seed=seed,
        )
        self.delegate = delegate or TPESampler(seed=seed)
        self.max_retries = max_retries
        self._slot_sampler = RandomSampler(seed=seed)

    # --- Optuna's interface -----------------------------------------------------------------

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the slots of the space and whatever the delegate samples jointly."""
        others = self.delegate.infer_relative_search_space(study, trial)
        return {**others, **self.space.distributions}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose a function, claim it, and return its slots beside the delegate's values."""
        self._raise_error_if_multi_objective(study)
        slots = self.space.distributions
        others = {name: d for name, d in search_space.items() if name not in slots}
        values = self.delegate.sample_relative(study, trial, others) if others else {}
        if any(name in slots for name in trial.system_attrs.get("fixed_params", {})):
            return values  # an enqueued trial: its function was chosen by a person
        return {**values, **self.space.catalogue.params(self._claim(study, trial))}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Leave parameters outside the space to the delegate."""
        self._raise_error_if_multi_objective(study)
        chosen = self._slot_sampler if param_name in self.space.distributions else self.delegate
        return chosen.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Note which process runs the trial."""
        if trial.system_attrs.get(OWNER) != (me := Owner.me().as_attribute()):
            study._storage.set_trial_system_attr(trial._trial_id, OWNER, me)
        self.delegate.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the delegate see the result."""
        self.delegate.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the delegate; proposals have no state to reseed."""
        self.delegate.reseed_rng()
        self._slot_sampler.reseed_rng()

    # --- proposing --------------------------------------------------------------------------

    def view(self, study: Study, trial: FrozenTrial | None = None) -> View:
        """Read the study as the searcher sees it.

        Args:
            study: a study of this space.
            trial: the trial that a proposal is for; left out of what is seen.
        """
        trials, abandoned = read_trials(study)
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        before = len(trials) if trial is None else trial.number
        others = [other for other in trials if other.number != before]
        return self._read(others, abandoned, before, sign)

    def observations(
        self, trials: Sequence[FrozenTrial], direction: StudyDirection
    ) -> Observations:
        """Return what some trials of a study say, larger is better."""
        sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
        return self._read(trials, frozenset(), len(trials), sign).observations

    def remaining(self, study: Study) -> int:
        """Count the functions that can still be proposed."""
        candidates = set(np.flatnonzero(self.embedding.valid).tolist())
        return len((candidates | set(self.searcher.baselines)) - self.view(study).taken)

    def _read(
        self, trials: Sequence[FrozenTrial], abandoned: frozenset[int], before: int, sign: float
    ) -> View:
        indices, values = [], []
        pruned, pending = set(), set()
        failures: Counter[int] = Counter()
        lost = 0
        for other in trials:
            index = self._index(other)
            gone = other.state == TrialState.FAIL or other.number in abandoned
            lost += gone and other.number < before
            if index is None:
                continue
            if other.state == TrialState.COMPLETE and other.value is not None:
                indices.append(index)
                values.append(sign * other.value)
            elif other.state == TrialState.PRUNED:
                pruned.add(index)
            elif other.state == TrialState.FAIL:
                failures[index] += 1
            elif not gone:
                pending.add(index)
        closed = {index for index, count in failures.items() if count > self.max_retries}
        measured = np.array(values, dtype=np.float64)
        finite = np.isfinite(measured)
        # An objective may return infinity for a network that diverged: no better than the worst.
        measured[~finite] = measured[finite].min() if finite.any() else 0.0
        observations = Observations(
            np.array(indices, dtype=np.int64), measured, frozenset(pruned), frozenset(closed)
        )
        return View(observations, frozenset(pending), before - lost)

    def _index(self, trial: FrozenTrial) -> int | None:
        params: Mapping[str, Any] = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        try:
            return self.space.catalogue.index(params)
        except ExpressionError:
            # A trial that is between its claim and its parameters.
            claim = trial.system_attrs.get(CLAIM) if trial.state == TrialState.RUNNING else None
            return int(claim) if claim is not None else None

    def _claim(self, study: Study, trial: FrozenTrial) -> int:
        contested: set[int] = set()
        while True:  # ends: each round leaves one more candidate out
            view = self.view(study, trial)
            proposal = self.searcher.propose(
                self.embedding,
                view.observations,
                pending=view.pending | contested,
                number=view.number,
            )
            study._storage.set_trial_system_attr(trial._trial_id, CLAIM, proposal.index)
            # Another may have claimed it meanwhile, or have finished it.
            if proposal.index not in self.view(study, trial).taken:
                break
            contested.add(proposal.index)
        self._note(study, trial, proposal)
        return proposal.index

    def _note(self, study: Study, trial: FrozenTrial, proposal: Proposal) -> None:
        catalogue = self.space.catalogue
        how: dict[str, Any] = {"by": proposal.by}
        if proposal.mean is not None and proposal.deviation is not None:
            how |= {"mean": round(proposal.mean, 4), "deviation": round(proposal.deviation, 4)}
        if proposal.note:
            how["note"] = proposal.note
        for name, value in {
            "activation": catalogue.text(proposal.index),
            "index": proposal.index,
            "catalogue": catalogue.hash[:16],
            "embedding": self.embedding.hash[:16],
            "proposal": how,
        }.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, value)


def _embedded(
    space: Space, features: FeatureTable | None, embedding: EmbeddingSpec | Embedder | None
) -> Embedding:
    features = compute_features(space) if features is None else features
    if features.catalogue_hash != space.catalogue.hash:
        raise SearchError(
            f"the features were computed for another catalogue ({features.catalogue_hash[:12]})"
            f" than that of the space {space.name!r} ({space.catalogue.hash[:12]}); compute them "
            "again with compute_features(space, ...)"
        )
    if embedding is None or isinstance(embedding, EmbeddingSpec):
        embedding = make_embedder(embedding or EmbeddingSpec())
    return embedding.fit(features)


@dataclass(frozen=True)
class View:
    """A study as the searcher sees it.

    Attributes:
        observations: measured values, larger is better, and what is not to be proposed.
        pending: indices that other live trials are evaluating.
        number: the place of the next trial, lost trials not counted, so that a repetition of a
            lost trial has the same random state.
    """

    observations: Observations
    pending: frozenset[int]
    number: int

    @property
    def taken(self) -> frozenset[int]:
        """Indices that are not to be proposed."""
        return self.pending | self.observations.taken


def read_trials(study: Study) -> tuple[list[FrozenTrial], frozenset[int]]:
    """Read a study's trials and which of them are abandoned.

    Returns:
        The trials in their order, not copied, and the numbers of those that still run although
        they were given back or their process has ended.
    """
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    gone = {t.number: t.system_attrs[OWNER] for t in trials if _has_lost_its_owner(t)}
    if gone:
        # A process may have finished its trial and ended after the trials were read. What is read
        # once it has ended is its last word.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return trials, frozenset(
        number
        for number, owner in gone.items()
        if trials[number].state == TrialState.RUNNING
        and trials[number].system_attrs[OWNER] == owner
    )


def _has_lost_its_owner(trial: FrozenTrial) -> bool:
    if trial.state != TrialState.RUNNING or OWNER not in trial.system_attrs:
        return False
    owner = Owner.read(trial.system_attrs[OWNER])
    return owner is None or owner.is_gone()
