"""Progress listeners of a runner, in their own module without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Awaited:
    """A running trial that others wait for.

    Attributes:
        trial: its number.
        kind: of its process: ``alive``; ``silent``, if its heartbeat is late; ``mute``, if it has
            no heartbeat.
        text: the process and the time left, as a sentence.
    """

    trial: int
    kind: str
    text: str


class Events:
    """Progress callbacks of a runner; they do nothing here, and a subclass displays them.

    Examples:
        >>> import bo_act
        >>> class Printing(bo_act.Events):
        ...     def search(self, done, total, trial, best):
        ...         print(f"{done} of {total}, best {best}")
    """

    def features(self, done: int, total: int) -> None:
        """Called as features are computed: functions done, and in all."""

    def vectors(self, done: int, total: int) -> None:
        """Called as Act-Bench vectors are computed: functions done, and in all."""

    def opened(self, study: Study) -> None:
        """Called once the study is open; it may be read from now on, also between calls."""

    def search(self, done: int, total: int, trial: FrozenTrial | None, best: float | None) -> None:
        """Called after each trial; at the start, ``trial`` is None."""

    def waiting(self, trials: Sequence[Awaited]) -> None:
        """Called while the worker is idle: these trials must end or be taken over first.

        Called repeatedly, and with no trials once the wait is over.
        """

    def confirmation(self, done: int, total: int, text: str) -> None:
        """Called after each fresh-seed run; ``text`` is the next function."""

    def runs(self, done: int, total: int, what: str) -> None:
        """Called after each run of a benchmark or a comparison."""
