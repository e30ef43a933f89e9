"""What a runner tells while it works; apart from it, so that showing needs nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


class Events:
    """What a runner tells while it works; a subclass shows it. Nothing is done with it here."""

    def features(self, done: int, total: int) -> None:
        """Features of so many functions are there."""

    def opened(self, study: Study) -> None:
        """The study was opened; it may be read from now on, also between the other calls."""

    def search(self, done: int, total: int, trial: FrozenTrial | None, best: float | None) -> None:
        """So many trials are done; ``trial`` is the one that has just ended, None at the start."""

    def confirmation(self, done: int, total: int, text: str) -> None:
        """So many fresh-seed runs are done; ``text`` is the function that is next."""

    def runs(self, done: int, total: int, what: str) -> None:
        """So many runs of a benchmark or a comparison are done."""
