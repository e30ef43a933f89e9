"""What a study measures: a name, a direction, a unit, and how values of it are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """A quantity that a training ends with.

    Attributes:
        name: as it is shown: ``accuracy``, ``mean squared error``.
        direction: whether larger values are better, or smaller ones.
        unit: ``percent`` for a fraction that is shown in percent; else what stands behind the
            number (``bits per token``), or nothing.
        worst: what a diverged training counts as, where that is known, as chance level is.
    """

    name: str
    direction: Direction = "maximize"
    unit: str = ""
    worst: float | None = None

    @property
    def sign(self) -> float:
        """1 where larger values are better, -1 where smaller ones are."""
        return 1.0 if self.direction == "maximize" else -1.0

    def text(self, value: float | None) -> str:
        """Return a value as it is shown: ``94.12%``, ``1.734 bits per token``, ``0.00291``."""
        return self._written(value, signed=False)

    def difference(self, value: float | None) -> str:
        """Return a difference of two values as it is shown: ``+1.23`` points, ``-0.00041``."""
        return self._written(value, signed=True)

    def _written(self, value: float | None, *, signed: bool) -> str:
        if value is None or math.isnan(value):
            return "-"
        sign = "+" if signed else ""
        if self.unit == "percent":
            return f"{100 * value:{sign}.2f}" + ("" if signed else "%")
        unit = f" {self.unit}" if self.unit and not signed else ""
        return f"{value:{sign}.4g}{unit}"


ACCURACY = Metric("accuracy", "maximize", "percent")

METRICS = {
    "accuracy": ACCURACY,
    "balanced_accuracy": Metric("balanced accuracy", "maximize", "percent"),
    "auroc": Metric("AUROC", "maximize", "percent", worst=0.5),
    "mse": Metric("mean squared error", "minimize"),
    "r2": Metric("R²", "maximize"),
    "bits_per_token": Metric("bits per token", "minimize"),
    "perplexity": Metric("perplexity", "minimize"),
}
"""What the built-in training measures, by its name in a study file."""
