"""The metric of a study: name, direction, unit, and format of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bo_act.errors import SpecError, nearest

Direction = Literal["maximize", "minimize"]

PERCENT = "percent"
_UNITS = {"%": PERCENT, "plain": ""}
"""Other spellings of units."""

_DIGITS = 5  # significant ones of a value
_ALIGNED = 10  # most digits of a number in a column with aligned points
_SMALL, _LARGE = 1e-5, 1e9  # numbers outside have exponents
_LONGEST = 60  # characters of a name or a unit


@dataclass(frozen=True)
class Metric:
    """A quantity that a training measures, and the format of its values.

    Attributes:
        name: for display: ``accuracy``, ``mean squared error``.
        direction: whether larger values are better (``maximize``), or smaller ones (``minimize``).
        unit: ``percent`` for a fraction shown in percent; else a text after the number (``nats``,
            ``per token``), or nothing (``""`` or ``plain``).
        worst: value of a diverged training, such as chance level. If unknown, it counts as the
            worst of the others.

    Raises:
        SpecError: the direction is unknown, the name or the unit is not a line of text, or the
            worst value is not finite.

    Examples:
        >>> loss = Metric("validation loss", "minimize", "nats")
        >>> loss.text(2.1033)
        '2.1033 nats'
        >>> Metric("accuracy", unit="percent").text(0.9412)
        '94.12%'
    """

    name: str
    direction: Direction = "maximize"
    unit: str = ""
    worst: float | None = None

    def __post_init__(self) -> None:
        for key, least in (("name", 1), ("unit", 0)):
            text = getattr(self, key)
            fits = isinstance(text, str) and text == text.strip() and text.isprintable()
            if not fits or not least <= len(text) <= _LONGEST:
                raise SpecError(
                    f"metric.{key}: expected a line of {least} to {_LONGEST} characters, got "
                    f"{str(text)[:_LONGEST]!r}"
                )
        known = get_args(Direction)
        if self.direction not in known:
            hint = nearest(str(self.direction), known)
            raise SpecError(
                f"metric.direction: expected 'maximize' or 'minimize', got {self.direction!r}{hint}"
            )
        if self.worst is not None:
            number = isinstance(self.worst, int | float) and not isinstance(self.worst, bool)
            if not number or not math.isfinite(self.worst):
                raise SpecError(f"metric.worst: expected a finite number, got {self.worst!r}")
            object.__setattr__(self, "worst", float(self.worst))
        object.__setattr__(self, "unit", _UNITS.get(self.unit, self.unit))

    def __str__(self) -> str:
        """Return the metric in words: ``mean squared error (minimize)``."""
        return f"{self.name} ({', '.join([self.direction, *([self.unit] * bool(self.unit))])})"

    @property
    def sign(self) -> float:
        """1 if larger values are better, else -1."""
        return 1.0 if self.direction == "maximize" else -1.0

    @property
    def in_percent(self) -> bool:
        """Whether values are fractions shown in percent."""
        return self.unit == PERCENT

    @property
    def scale(self) -> float:
        """Factor of values for display."""
        return 100.0 if self.in_percent else 1.0

    @property
    def differences(self) -> str:
        """Unit of differences: ``points of accuracy``, ``nats of loss``, ``loss``."""
        unit = "points" if self.in_percent else self.unit
        return f"{unit} of {self.name}" if unit else self.name

    @property
    def axis(self) -> str:
        """The label of an axis with values times ``scale``: ``accuracy (%)``."""
        unit = "%" if self.in_percent else self.unit
        return f"{self.name} ({unit})" if unit else self.name

    def better(self, value: float, other: float | None) -> bool:
        """Tell whether a value is better than another one, or than None."""
        return other is None or self.sign * value > self.sign * other

    def text(self, value: float | None) -> str:
        """Return a value for display: ``94.12%``, ``1.734 bits``, ``0.00291``; ``-`` for None."""
        return self.texts([value])[0]

    def texts(self, values: Sequence[float | None]) -> list[str]:
        """Return values for a column, with equal numbers of decimals."""
        return [self._with_unit(number) for number in self.numbers(values)]

    def numbers(self, values: Sequence[float | None]) -> list[str]:
        """Return values for a column whose heading has the unit."""
        if self.in_percent:
            return [_number(value, 2) for value in self._scaled(values)]
        decimals = [_decimals(value) for value in self._scaled(values)]
        most = max((d for d in decimals if d is not None), default=0)
        largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
        aligned = largest * 10.0**most < 10**_ALIGNED
        return [
            _number(value, most if aligned and d is not None else d)
            for value, d in zip(self._scaled(values), decimals, strict=True)
        ]

    def difference(self, value: float | None) -> str:
        """Return a difference of two values for display: ``+1.23`` points, ``-0.00041``."""
        (scaled,) = self._scaled([value])
        return _number(scaled, 2 if self.in_percent else _decimals(scaled, 3), sign="+")

    def interval(
        self, mean: float, low: float | None, high: float | None, *, signed: bool = False
    ) -> str:
        """Return a mean with half its interval: ``94.12% ±0.31``, ``+0.0012 ±0.0004``.

        Of an interval that ends at a bound, the longer half.

        Args:
            mean: in the middle of the interval.
            low: its lower end, or None.
            high: its upper end.
            signed: whether the mean is a difference.
        """
        if low is None or high is None:
            return self.difference(mean) if signed else self.text(mean)
        middle, half = self._scaled([mean, max(high - mean, mean - low)])
        # Two digits of the half-width decide the digits of the mean.
        decimals = 2 if self.in_percent else _decimals(half or middle, 2, strip=False)
        number = _number(middle, decimals, sign="+" if signed else "")
        return f"{number if signed else self._with_unit(number)} ±{_number(half, decimals)}"

    def _scaled(self, values: Sequence[float | None]) -> list[float | None]:
        """Return values for display, None for NaN."""
        return [None if v is None or math.isnan(v) else self.scale * float(v) for v in values]

    def as_json(self) -> dict[str, Any]:
        """Return the metric for ``--json``."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> Metric | None:
        """Read the result of ``as_json``; None for anything else."""
        try:
            return cls(**content) if isinstance(content, Mapping) else None
        except (SpecError, TypeError):
            return None

    def _with_unit(self, number: str) -> str:
        if number == "-" or not self.unit:
            return number
        return number + ("%" if self.in_percent else f" {self.unit}")


def _number(value: float | None, decimals: int | None, *, sign: str = "") -> str:
    """Return a number with so many decimals, or with an exponent if None."""
    if value is None:
        return "-"
    if decimals is None or math.isinf(value):
        return f"{value:{sign}.{_DIGITS}g}"
    text = f"{value:{sign}.{decimals}f}"
    return text if float(text) else text.replace("-", sign)  # no minus zero


def _decimals(value: float | None, digits: int = _DIGITS, *, strip: bool = True) -> int | None:
    """Return the number of decimals of a value with so many digits; None for an exponent.

    Args:
        value: for display.
        digits: significant ones.
        strip: leave out zeros at the end.
    """
    if not value or math.isinf(value):
        return 0
    if not _SMALL <= abs(value) < _LARGE:
        return None
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if not strip or not decimals:
        return decimals
    return len(f"{value:.{decimals}f}".rstrip("0").partition(".")[2])


ACCURACY = Metric("accuracy", "maximize", PERCENT)

METRICS = {
    "accuracy": ACCURACY,
    "balanced_accuracy": Metric("balanced accuracy", "maximize", PERCENT),
    "auroc": Metric("AUROC", "maximize", PERCENT, worst=0.5),
    "log_loss": Metric("log loss", "minimize", "nats"),
    "mse": Metric("mean squared error", "minimize"),
    "r2": Metric("R²", "maximize"),
    "bits_per_token": Metric("bits per token", "minimize"),
    "perplexity": Metric("perplexity", "minimize"),
}
"""What the built-in training measures, by its name in a study file."""
