"""What a runner tells while it works; apart from it, so that showing needs nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from bo_act.study.running.waiting import Awaited


class Events:
    """What a runner tells while it works; a subclass shows it. Nothing is done with it here."""

    def features(self, done: int, total: int) -> None:
        """Features of so many functions are there."""

    def vectors(self, done: int, total: int) -> None:
        """Vectors in the form of Act-Bench of so many functions are there."""

    def opened(self, study: Study) -> None:
        """The study was opened; it may be read from now on, also between the other calls."""

    def search(self, done: int, total: int, trial: FrozenTrial | None, best: float | None) -> None:
        """So many trials are done; ``trial`` is the one that has just ended, None at the start."""

    def waiting(self, trials: Sequence[Awaited]) -> None:
        """These have to end or to be taken over before there is anything to do.

        Called again and again meanwhile, and with none of them when that is over.
        """

    def confirmation(self, done: int, total: int, text: str) -> None:
        """So many fresh-seed runs are done; ``text`` is the function that is next."""

    def runs(self, done: int, total: int, what: str) -> None:
        """So many runs of a benchmark or a comparison are done."""
