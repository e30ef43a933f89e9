"""How a training ends that is neither finished nor in error."""

from __future__ import annotations

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
