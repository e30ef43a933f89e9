"""A closer look before a proposal: spectra of promising functions that have none yet.

Where they put the functions is written to the trial that they were computed for, as numbers. So a
proposal follows from the study's trials and the first features, whichever process has computed
what, and nobody has to compute anything again in order to go on.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial

from bo_act.search.embedding import Embedding, Place
from bo_act.search.searcher import Searcher
from bo_act.study.trials import View

SPECTRA = "bo_act:spectra"
"""System attribute of a trial: [index, place or null] of functions that it was looked at for."""


@dataclass(frozen=True, eq=False)
class CloserLook:
    """What came of it.

    Attributes:
        embedding: with all places that are known.
        places: those found now, None where a spectrum cannot be computed.
        seconds: that took.
    """

    embedding: Embedding
    places: Mapping[int, Place | None]
    seconds: float

    def as_note(self) -> dict[str, float]:
        """Return what people are told of it."""
        if not self.places:
            return {}
        return {"spectra": len(self.places), "spectra_seconds": round(self.seconds, 3)}

    def keep(self, study: Study, trial: FrozenTrial) -> None:
        """Write the places to the trial that they were found for."""
        if self.embedding.on_demand is not None:
            found = [[index, place and list(place)] for index, place in self.places.items()]
            study._storage.set_trial_system_attr(trial._trial_id, SPECTRA, found)


def places_of(trials: Iterable[FrozenTrial]) -> dict[int, Place | None]:
    """Return the places that were found for some trials; the first of a function holds."""
    places: dict[int, Place | None] = {}
    for trial in sorted(trials, key=lambda one: one.number):
        for index, place in trial.system_attrs.get(SPECTRA, ()):
            places.setdefault(index, None if place is None else tuple(place))
    return places


def look_closer(searcher: Searcher, view: View, pending: Collection[int]) -> CloserLook:
    """Compute the spectra of the most promising functions that have none and were not asked for.

    Args:
        searcher: that is to propose.
        view: of the study.
        pending: indices that are not to be proposed besides the observed ones.
    """
    embedding, on_demand = view.embedding, view.embedding.on_demand
    if on_demand is None:
        return CloserLook(embedding, {}, 0.0)
    best = searcher.promising(
        embedding, view.observations, on_demand.count, pending=pending, number=view.number
    )
    guessed = set(embedding.imputed.tolist()) - view.looked_at
    asked = [index for index in best.tolist() if index in guessed]
    started = time.perf_counter()
    places = on_demand.places(asked) if asked else {}
    seconds = time.perf_counter() - started
    return CloserLook(embedding.with_spectra(places), places, seconds)
