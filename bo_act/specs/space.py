"""The format of a space file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bo_act.specs.base import Spec

LISTED = 3_000_000
"""Expressions up to which a space is listed: grouping them takes about half a minute and 3 GB
(extrapolated from one million)."""

Requirement = Literal["finite_at_zero", "differentiable_at_zero", "twice_differentiable"]

Edge = Annotated[float, Field(ge=-1e6, le=1e6)]


class DomainSpec(Spec):
    """The interval for comparing functions, and the tolerance for equality."""

    low: Edge = -5.0
    high: Edge = 5.0
    points: Annotated[int, Field(ge=2, le=100_000)] = 1000
    # Below 1e-12, large values have no digits left to differ in.
    tolerance: Annotated[float, Field(ge=1e-12)] = 1e-6

    @model_validator(mode="after")
    def _ordered(self) -> DomainSpec:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low = {self.low}, high = {self.high}")
        return self


class SpaceSpec(Spec):
    """A search space: operators, schemas, and single functions.

    Attributes:
        unary, binary, nary: operator names that fill the slots of the schemas.
        schemas: forms of expressions, e.g. ``"binary(unary(x),unary(x))"``; the name of an
            operator in a schema is fixed.
        expressions: single functions that belong to the space besides the schemas.
        baselines: members of the space to evaluate first, in this order.
        require: what a function must satisfy to belong to the space.

    Examples:
        >>> import bo_act
        >>> spec = SpaceSpec(name="few", unary=("tanh", "relu"), schemas=("unary(x)",))
        >>> len(bo_act.Space(spec))
        2
    """

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    unary: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    nary: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    require: tuple[Requirement, ...] = ()
    domain: DomainSpec = DomainSpec()

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceSpec:
        if not self.schemas and not self.expressions:
            raise ValueError("expected at least one of 'schemas' and 'expressions', got neither")
        return self
