"""How a training ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DIVERGED = "diverged"
"""The constraint, and the value of a trial's ``status``, of a function whose training diverged."""


class TrainingStopped(KeyboardInterrupt):
    """A training was asked to stop; its state is saved."""


class Diverged(Exception):
    """For your own training function to raise: a result, no better than the worst.

    Examples:
        >>> import bo_act
        >>> def objective(trial):
        ...     raise bo_act.Diverged("the loss is not finite")
    """


@dataclass(frozen=True)
class TrainingResult:
    """What came of one training run.

    Attributes:
        status: ``diverged`` where a training loss, or the metric, was infinite or NaN, or where
            accuracy and loss stayed at chance for ``collapse_epochs``; else ``completed``, at
            whatever value.
        curve: the metric on the validation samples after each finished epoch, as it is stored:
            accuracy is a fraction.
        train_loss: mean training loss of each finished epoch.
        value: the last epoch's, or of a diverged run what guessing has, see ``Data.worst``.
        seconds: wall time of training and validation; of a run that was gone on with, from there.
        epoch_of_divergence: the epoch, from 0, in which the loss or the metric ceased to be finite,
            or in which accuracy was taken to stay at chance.
        collapsed: it was the accuracy.
        notes: what was not done as the recipe says.
        saving: seconds of ``seconds`` that went into checkpoints.
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
