"""Enumeration: the expressions that a space file describes, addressed by number.

Filling the slots of the schemas gives expressions; an expression's number is its place in the
enumeration, schema after schema, with the last slot running fastest. Expressions are not stored:
number, slots and tree are computed from one another. A slot is also an Optuna parameter, so that
any sampler can search the space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.names import hint, own_names
from bo_act.activations.operators import of_kind
from bo_act.errors import ExpressionError, SearchError, SpecError, nearest, shortened
from bo_act.spaces.schemas import KINDS, read_schema
from bo_act.specs import SpaceSpec
from bo_act.specs.space import LISTED

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import CategoricalDistribution

SCHEMA_SLOT = "schema"
EXPRESSION_SLOT = "expression"


class Enumeration:
    """The expressions of a space file: the part of ``Space`` that needs no catalogue.

    Args:
        spec: the checked content of a space file.

    Raises:
        SpecError: an unknown operator, an invalid schema, or an invalid baseline.
    """

    kind = "activation"
    """What one choice is called among a trial's user attributes."""

    def __init__(self, spec: SpaceSpec) -> None:
        self.spec = spec = _understood(spec)
        self.name = spec.name
        for kind in KINDS:
            _check_operators(spec, kind)
        self.schemas = tuple(read_schema(text, spec) for text in spec.schemas)
        self.named_expressions = tuple(
            _expression(text, spec, "expressions") for text in spec.expressions
        )
        self.baselines = tuple(_expression(text, spec, "baselines") for text in spec.baselines)
        _check_distinct(spec, "schemas", [str(schema.tree) for schema in self.schemas])
        _check_distinct(spec, "expressions", [str(single) for single in self.named_expressions])
        _check_distinct(spec, "require", spec.require)

    def __len__(self) -> int:
        return sum(map(len, self.schemas)) + len(self.named_expressions)

    @property
    def can_be_listed(self) -> bool:
        """Whether the space is small enough for a catalogue of all its functions."""
        return len(self) <= LISTED

    @cached_property
    def hash(self) -> str:
        """Identify the space by its operators, schemas, expressions and domain."""
        left = {"name", "description", "baselines"}
        # Without requirements, the same hash as in versions that had none.
        left |= set() if self.spec.require else {"require"}
        content = self.spec.model_dump_json(exclude=left)
        return hashlib.sha256(content.encode()).hexdigest()

    def expression(self, number: int) -> Expression:
        """Return the expression of that number, from 0 to ``len(space) - 1``."""
        self._check_number(number)
        for schema in self.schemas:
            if number < len(schema):
                return schema.fill(schema.operators(number))
            number -= len(schema)
        return self.named_expressions[number]

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, got {number}")

    def __iter__(self) -> Iterator[Expression]:
        for schema in self.schemas:
            names = [slot.name for slot in schema.slots]
            for chosen in product(*(slot.choices for slot in schema.slots)):
                yield schema.fill(dict(zip(names, chosen, strict=True)))
        yield from self.named_expressions

    # --- Optuna parameters ------------------------------------------------------------------

    @cached_property
    def schema_choices(self) -> tuple[str, ...]:
        """Choices of the ``schema`` parameter; a single entry means no parameter."""
        return (
            *(schema.text for schema in self.schemas),
            *([EXPRESSION_SLOT] * bool(self.named_expressions)),
        )

    @cached_property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """All slots of all schemas as Optuna distributions, by parameter name."""
        from optuna.distributions import CategoricalDistribution

        slots: dict[str, tuple[str, ...]] = {}
        if len(self.schema_choices) > 1:
            slots[SCHEMA_SLOT] = self.schema_choices
        for schema in self.schemas:
            slots.update((slot.name, slot.choices) for slot in schema.slots)
        if self.named_expressions:
            slots[EXPRESSION_SLOT] = tuple(map(str, self.named_expressions))
        return {name: CategoricalDistribution(choices) for name, choices in slots.items()}

    def slots(self, name: str = "") -> dict[str, CategoricalDistribution]:
        """Return the slots of one activation of a study, prefixed with its name.

        Args:
            name: tells apart several activations of one study; parameters are ``stage1.left``.
        """
        return {slot_of(name, slot): choices for slot, choices in self.distributions.items()}

    def params(self, number: int) -> dict[str, str]:
        """Return the Optuna parameters of the expression of that number."""
        self._check_number(number)
        choice = {}
        for position, schema in enumerate(self.schemas):
            if number < len(schema):
                if len(self.schema_choices) > 1:
                    choice = {SCHEMA_SLOT: self.schema_choices[position]}
                return choice | schema.operators(number)
            number -= len(schema)
        if len(self.schema_choices) > 1:
            choice = {SCHEMA_SLOT: EXPRESSION_SLOT}
        return choice | {EXPRESSION_SLOT: str(self.named_expressions[number])}

    def number(self, params: Mapping[str, object]) -> int:
        """Return the number of the expression with these Optuna parameters.

        Other parameters are ignored.

        Raises:
            ExpressionError: a slot is missing or has an invalid value.
        """
        start = 0
        try:
            several = len(self.schema_choices) > 1
            choice = params[SCHEMA_SLOT] if several else self.schema_choices[0]
            for schema in self.schemas:
                if schema.text == choice:
                    return start + schema.number(
                        {s.name: str(params[s.name]) for s in schema.slots}
                    )
                start += len(schema)
            texts = self.distributions[EXPRESSION_SLOT].choices
            return start + texts.index(str(params[EXPRESSION_SLOT]))
        except (KeyError, ValueError) as error:
            raise ExpressionError(
                f"these parameters are not a member of the space {self.name!r}: {dict(params)}; "
                f"its slots are {', '.join(self.distributions)}"
            ) from error

    def slots_of_schema(self, schema: str) -> tuple[str, ...]:
        """Return the slots that belong to one choice of the ``schema`` parameter."""
        for candidate in self.schemas:
            if candidate.text == schema:
                return tuple(slot.name for slot in candidate.slots)
        return (EXPRESSION_SLOT,)

    def completed(self, given: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Return all slots of one expression: the given ones, and random choices for the rest.

        Args:
            given: some slots.
            generator: of the random choices.

        Raises:
            SearchError: a slot has an invalid choice, or no schema has all of these slots.
        """
        for slot, value in given.items():
            choices = self.distributions[slot].choices
            if value not in choices:
                came = shortened(repr(value))
                raise SearchError(
                    f"a trial was enqueued with {slot} = {came}, which is not a choice of that "
                    f"slot in the space "
                    f"{self.name!r}{nearest(own_names(str(value)), map(str, choices))}"
                )
        fitting = [
            schema
            for schema in self.schema_choices
            if set(given) - {SCHEMA_SLOT} <= set(self.slots_of_schema(schema))
            and given.get(SCHEMA_SLOT, schema) == schema
        ]
        if not fitting:
            raise SearchError(
                f"a trial was enqueued with "
                f"{', '.join(f'{k} = {v!r}' for k, v in given.items())}; no schema of the space "
                f"{self.name!r} has all of these slots"
            )
        schema = fitting[0] if len(fitting) == 1 else str(generator.choice(fitting))
        filled = {SCHEMA_SLOT: schema} if len(self.schema_choices) > 1 else {}
        for slot in self.slots_of_schema(schema):
            choices = self.distributions[slot].choices
            filled[slot] = str(
                given[slot] if slot in given else choices[generator.integers(len(choices))]
            )
        return filled

    def text_of(self, params: Mapping[str, object]) -> str:
        """Return the canonical text of the expression with these Optuna parameters."""
        return str(canonical(self.expression(self.number(params))))

    def find(self, expression: Expression) -> int | None:
        """Return the number of an expression in this spelling.

        Operands of commutative operators may stand in any order, and ``x`` for ``identity(x)``.
        None if no schema fits: the catalogue knows whether the function is in the space under
        another spelling.
        """
        start = 0
        for schema in self.schemas:
            if (operators := schema.match(expression)) is not None:
                return start + schema.number(operators)
            start += len(schema)
        wanted = canonical(expression)
        for offset, named in enumerate(self.named_expressions):
            if canonical(named) == wanted:
                return start + offset
        return None


def slot_of(name: str, slot: str) -> str:
    """Return the name of a slot or attribute of one activation of a study."""
    return f"{name}.{slot}" if name else slot


# --- checks ------------------------------------------------------------------------


def _understood(spec: SpaceSpec) -> SpaceSpec:
    """Return a space with the operators' own names instead of other libraries'."""
    kinds = (*KINDS, "schemas", "expressions", "baselines")
    own = {kind: tuple(map(own_names, getattr(spec, kind))) for kind in kinds}
    return spec.model_copy(update=own)


def _check_operators(spec: SpaceSpec, kind: str) -> None:
    chosen: Sequence[str] = getattr(spec, kind)
    known = of_kind(kind)  # type: ignore[arg-type]
    for name in chosen:
        if name not in known:
            raise SpecError(
                f"space {spec.name!r}: unknown {kind} operator {name!r}{hint(name, known)}; "
                f"known: {', '.join(known)}"
            )
    _check_distinct(spec, kind, chosen)


def _check_distinct(spec: SpaceSpec, key: str, entries: Sequence[str]) -> None:
    for position, entry in enumerate(entries):
        if entry in entries[:position]:
            raise SpecError(f"space {spec.name!r}, {key}: {entry!r} is listed twice")


def _expression(text: str, spec: SpaceSpec, key: str) -> Expression:
    try:
        return parse(text)
    except ExpressionError as error:
        raise SpecError(f"space {spec.name!r}, {key}: {error}") from error
