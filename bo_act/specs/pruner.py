"""When trials are stopped early: the pruners of Optuna, with the options of each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bo_act.specs.base import MOST, Count, PositiveInt, Spec

_SCHEDULE = ("startup_trials", "warmup_epochs", "interval", "least_trials")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "median": _SCHEDULE,
    "percentile": ("percentile", *_SCHEDULE),
    "successive_halving": (
        "first_epochs",
        "reduction_factor",
        "early_stopping_rate",
        "bootstrap_trials",
    ),
    "hyperband": ("first_epochs", "reduction_factor", "bootstrap_trials"),
    "wilcoxon": ("p_threshold", "warmup_epochs"),
    "patient": ("patience", "least_gain", "wraps"),
    "threshold": ("lower", "upper", "warmup_epochs", "interval"),
}


class PrunerSpec(Spec):
    """When a trial is stopped early.

    Attributes:
        name: ``none`` is Optuna's NopPruner, which may be called ``nop``, too.
        startup_trials: trials that must have finished before any is pruned.
        warmup_epochs: epochs of each trial before it can be pruned.
        interval: epochs from one look to the next.
        least_trials: trials that must have reached an epoch before one is pruned there.
        percentile: keep trials in the best that many per cent.
        first_epochs: Optuna's ``min_resource``: the steps (the first epoch is step 0) before the
            first halving.
        reduction_factor: of so many trials one goes on.
        early_stopping_rate: halvings that are left out at the start.
        bootstrap_trials: trials that must have reached a halving before any goes on.
        p_threshold: of Wilcoxon's signed-rank test against the best trial, epoch by epoch.
        patience: epochs without improvement before the wrapped pruner is asked.
        least_gain: what counts as an improvement, as values are stored (accuracy as a fraction).
        wraps: the pruner that is asked then; None prunes at once.
        lower, upper: values outside of which a trial is stopped (accuracies as fractions).
    """

    name: Literal[
        "none",
        "median",
        "percentile",
        "successive_halving",
        "hyperband",
        "wilcoxon",
        "patient",
        "threshold",
    ] = "none"
    startup_trials: Count = 10
    warmup_epochs: Count = 2
    interval: PositiveInt = 1
    least_trials: PositiveInt = 1
    percentile: Annotated[float, Field(gt=0, le=100)] = 50.0
    first_epochs: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2, le=MOST)] = 3
    early_stopping_rate: Count = 0
    bootstrap_trials: Count = 0
    p_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: PositiveInt = 5
    least_gain: Annotated[float, Field(ge=0)] = 0.0
    wraps: PrunerSpec | None = None
    lower: float | None = None
    upper: float | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _nop_is_none(cls, name: Any) -> Any:
        return "none" if name == "nop" else name

    @model_validator(mode="after")
    def _options_of_this_pruner(self) -> PrunerSpec:
        known = _OPTIONS[self.name]
        for option, field in type(self).model_fields.items():
            # A resolved file names every option, so a default is no mistake.
            if option not in ("name", *known) and getattr(self, option) != field.default:
                raise ValueError(
                    f"{option} is not an option of the pruner {self.name!r}; its options: "
                    f"{', '.join(known) or 'none'}"
                )
        if self.name == "threshold" and self.lower is self.upper is None:
            raise ValueError("the pruner 'threshold' needs lower or upper")
        if self.name == "patient" and self.wraps and self.wraps.name in ("none", "patient"):
            raise ValueError(f"expected another pruner to wrap, got {self.wraps.name!r}")
        return self
