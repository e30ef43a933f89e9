"""What all specs share, and which numbers are ones."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from bo_act.errors import BoActError, SpecError

SEEDS = 2**32
"""Seeds are 0 to this, without it: what NumPy, scikit-learn and torch all take."""
MOST = 2**31 - 1
"""The largest count: what torch and databases all hold."""

MOST_WORKERS, MOST_SEEDS, MOST_EVALUATIONS = 4_096, 10_000, 1_000_000
"""What one call may ask for."""

PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused, numbers that are ones.

    A truth value is no number, a number with a point is no whole one (pydantic would take ``true``
    for 1 and 3.0 for 3), and none is infinite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_ones(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, bool | int | float) or info.field_name is None:
            return value
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool):
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"expected a number, got {str(value).lower()}")
        elif isinstance(value, float):
            if int in kinds and float not in kinds:
                raise ValueError(f"expected a whole number, got {value}")
        elif abs(value) >= 2**63:
            raise ValueError(f"expected a number of less than 2^63, got {shown(value)}")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows, those inside of unions."""
    inside = get_args(annotation)
    return set().union(*map(_kinds, inside)) if inside else {annotation}


def whole(
    value: object, what: str, *, low: int = 0, high: int = MOST, error: type[BoActError] = SpecError
) -> int:
    """Return an argument that has to be a whole number.

    Args:
        value: what was given.
        what: its name.
        low: the least that is allowed.
        high: the most that is allowed.
        error: what to raise.

    Raises:
        BoActError: of the kind ``error``: it is no whole number, or outside the range.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high:
        return int(value)
    raise error(f"{what}: expected a whole number from {low:,} to {high:,}, got {shown(value)}")


def checked_seed(value: object, *, error: type[BoActError] = SpecError) -> int:
    """Return an argument that has to be a seed; see ``whole``."""
    return whole(value, "seed", high=SEEDS - 1, error=error)


def derived_seed(seed: int, more: int) -> int:
    """Return another seed, so many further on; after the last comes the first."""
    return (seed + more) % SEEDS


def shown(value: object) -> str:
    """Return what came, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**60:
        return f"one of more than {60 * (value.bit_length() // 200)} digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
