"""Outcomes of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DIVERGED = "diverged"
"""The constraint, and the value of a trial's ``status``, of a function whose training diverged."""


class TrainingStopped(KeyboardInterrupt):
    """A training was asked to stop; its state is saved."""


class Diverged(Exception):
    """Raise this in your own training function if it diverged: the trial counts as the worst.

    Examples:
        >>> import bo_act
        >>> def objective(trial):
        ...     raise bo_act.Diverged("the loss is not finite")
    """


@dataclass(frozen=True)
class TrainingResult:
    """Result of one training run.

    Attributes:
        status: ``diverged`` if a training loss or the metric was infinite or NaN, or if accuracy
            and loss stayed at chance for ``collapse_epochs``; else ``completed``.
        curve: validation metric after each finished epoch, as stored: accuracy is a fraction.
        train_loss: mean training loss of each finished epoch.
        value: of the last epoch, or the chance level of a diverged run, see ``Data.worst``.
        seconds: wall time of training and validation, of a resumed run from there.
        epoch_of_divergence: the epoch, from 0, when the loss or the metric ceased to be finite, or
            accuracy was judged to stay at chance.
        collapsed: whether the accuracy stayed at chance.
        notes: deviations from the recipe.
        saving: part of ``seconds`` spent on checkpoints.
    """

    status: Literal["completed", "diverged"]
    curve: tuple[float, ...]
    train_loss: tuple[float, ...]
    value: float
    seconds: float
    epoch_of_divergence: int | None = None
    collapsed: bool = False
    notes: tuple[str, ...] = ()
    saving: float = 0.0
