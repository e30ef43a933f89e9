"""Options of Fisher spectra, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bo_act.errors import FeatureError, nearest
from bo_act.specs.base import checked_seed, shown, whole

__all__ = ["Fisher", "FisherOptions", "Loss", "Sharing", "Statistics", "check_choice"]

Fisher = Literal["mc", "exact", "empirical"]
Loss = Literal["cross_entropy", "mse", "binary_cross_entropy"]
Sharing = Literal["expand", "reduce"]
Statistics = Literal["batch", "running"]


@dataclass(frozen=True, kw_only=True)
class FisherOptions:
    """Which Fisher matrix, and how to summarize its spectra; ``fim_spectra`` explains each.

    Raises:
        FeatureError: an option is unknown or out of range.
    """

    fisher: Fisher = "mc"
    loss: Loss | None = None
    label_smoothing: float = 0.0
    weight_sharing: Sharing = "expand"
    statistics: Statistics = "batch"
    quantiles: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("fisher", self.fisher, get_args(Fisher))
        if self.loss is not None:
            check_choice("loss", self.loss, get_args(Loss))
        check_choice("weight_sharing", self.weight_sharing, get_args(Sharing))
        check_choice("statistics", self.statistics, get_args(Statistics))
        smoothing: object = self.label_smoothing
        number = isinstance(smoothing, int | float) and not isinstance(smoothing, bool)
        if not number or not 0 <= self.label_smoothing <= 1:
            raise FeatureError(
                f"label_smoothing: expected a number from 0 to 1, got {shown(smoothing)}"
            )
        whole(self.quantiles, "quantiles", low=1, high=1_000_000, error=FeatureError)
        checked_seed(self.seed, error=FeatureError)


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse an unknown option.

    Raises:
        FeatureError: with the nearest known option.
    """
    if value not in known:
        raise FeatureError(
            f"expected {name} to be one of {', '.join(known)}, got {shown(value)}"
            f"{nearest(str(value), known)}"
        )
