"""The form of a space file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bo_act.specs.base import Spec


class DomainSpec(Spec):
    """The interval on which two functions are compared, and when they count as equal."""

    low: float = -5.0
    high: float = 5.0
    points: Annotated[int, Field(ge=2)] = 1000
    # Below 1e-12, large values have no digits left that could differ.
    tolerance: Annotated[float, Field(ge=1e-12)] = 1e-6

    @model_validator(mode="after")
    def _ordered(self) -> DomainSpec:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low = {self.low}, high = {self.high}")
        return self


class SpaceSpec(Spec):
    """A search space: operators, shapes of trees, and named functions.

    Attributes:
        unary, binary, nary: operator names that fill the slots of the schemas.
        schemas: shapes of trees, e.g. ``"binary(unary(x),unary(x))"``; an operator's own name in
            a schema stands for itself.
        expressions: single functions that belong to the space besides the schemas.
        baselines: members of the space to evaluate first, in this order.
    """

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    unary: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    nary: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    domain: DomainSpec = DomainSpec()

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceSpec:
        if not self.schemas and not self.expressions:
            raise ValueError("expected at least one of 'schemas' and 'expressions', got neither")
        return self
