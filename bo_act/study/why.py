"""Why a trial was made: the study as it was then, explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.errors import SearchError
from bo_act.search.explain import Explanation, explain
from bo_act.study.sampler import ActivationSampler


@dataclass(frozen=True)
class Why:
    """A trial and what was expected of it before it was run.

    Attributes:
        trial, activation: which.
        value: what was measured; None where it was not.
        by: how it was chosen: a baseline, at random, by the acquisition function, by a strategy,
            or by a person (``enqueued``).
        explanation: by what had been evaluated then; None where that was too little.
        neighbours: texts of the similar functions.
    """

    trial: int
    activation: str
    value: float | None
    by: str
    explanation: Explanation | None
    neighbours: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        found = asdict(self)
        if self.explanation is not None:
            found["neighbours"] = [
                {"activation": text, "value": n.value, "similarity": n.similarity}
                for text, n in zip(self.neighbours, self.explanation.neighbours, strict=True)
            ]
            del found["explanation"]["neighbours"]
        return found


def why(study: optuna.Study, sampler: ActivationSampler, number: int) -> Why:
    """Explain a trial by what was known when it began.

    Args:
        study: of the sampler's space.
        sampler: with the embedding that the study uses.
        number: of the trial.

    Raises:
        SearchError: there is no such trial, or it has no function.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise SearchError(
            f"the study {study.study_name!r} has no trial {number}; it has {len(trials)}, from 0"
        )
    trial = trials[number]
    catalogue = sampler.space.catalogue
    proposal: Mapping[str, Any] = trial.user_attrs.get("proposal", {})
    text = trial.user_attrs.get("activation")
    if text is None:
        raise SearchError(f"trial {number} has not been given a function yet")
    index = catalogue.index(text)
    known = [t for t in trials if t.number != number and _finished_before(t, trial)]
    observations = sampler.observations(known, study.direction)
    try:
        explanation = explain(
            sampler.embedding,
            observations,
            index,
            surrogate=sampler.searcher.surrogate,
            seed=sampler.searcher.seed,
        )
    except SearchError:
        if sampler.searcher.surrogate.name != "gp":
            raise
        explanation = None
    texts = (
        ()
        if explanation is None
        else tuple(catalogue.text(neighbour.index) for neighbour in explanation.neighbours)
    )
    value = trial.value if trial.state == TrialState.COMPLETE else None
    by = proposal.get("by", "enqueued")
    return Why(number, catalogue.text(index), value, by, explanation, texts)


def _finished_before(other: FrozenTrial, trial: FrozenTrial) -> bool:
    if other.datetime_complete is None or trial.datetime_start is None:
        return False
    return other.state.is_finished() and other.datetime_complete <= trial.datetime_start
