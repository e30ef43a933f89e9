"""The metric in a study file."""

from __future__ import annotations

from typing import Literal

from bo_act.errors import nearest
from bo_act.metrics import ACCURACY, METRICS, Metric
from bo_act.specs.base import Spec


class MetricSpec(Spec):
    """What a training ends with, and which values of it are better.

    The built-in training takes only a name of ``METRICS``. Your own objective may have any metric;
    if its name is in ``METRICS``, missing keys are those of that metric.

    Attributes:
        name: default: ``accuracy`` of the built-in training, ``value`` of your own objective.
        direction: whether larger values are better, or smaller ones.
        unit: ``percent`` for fractions shown in percent, ``plain``, or a text after the number,
            such as ``nats`` or ``per token``.
        worst: value of your own objective's diverged training runs, if known.

    Examples:
        >>> MetricSpec(name="validation loss", direction="minimize").measured(own=True).sign
        -1.0
    """

    name: str | None = None
    direction: Literal["maximize", "minimize"] | None = None
    unit: str | None = None
    worst: float | None = None

    def measured(self, *, own: bool) -> Metric:
        """Return the metric.

        Args:
            own: whether the user's own objective measures it.

        Raises:
            ValueError: the built-in training does not measure it in this form.
            SpecError: a value is invalid, see ``Metric``.
        """
        usual = ACCURACY if self.name is None and not own else METRICS.get(self.name or "")
        if usual is None and not own:
            raise ValueError(
                f"metric.name: expected a metric of the built-in training ({', '.join(METRICS)}), "
                f"got {self.name!r}{nearest(self.name or '', METRICS)}; other metrics need your "
                "own objective"
            )
        base = usual or Metric("value" if self.name is None else self.name)
        metric = Metric(
            base.name,
            self.direction or base.direction,
            base.unit if self.unit is None else self.unit,
            base.worst if self.worst is None else self.worst,
        )
        if not own and metric != base:
            raise ValueError(
                f"metric: expected only the name with the built-in training, whose "
                f"{self.name or 'accuracy'} is {base}; leave direction, unit and worst out"
            )
        return metric

    @property
    def key(self) -> str:
        """The built-in training's metric, a key in ``METRICS``."""
        return self.name or "accuracy"
