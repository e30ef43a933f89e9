"""Space: the expressions that a space file describes, addressed by number.

Filling the slots of the schemas gives expressions; an expression's number is its place in the
enumeration, schema after schema, with the last slot running fastest. Expressions are not stored:
number, slots and tree are computed from one another. A slot is also an Optuna parameter, so that
any sampler can search the space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.names import hint, own_names
from bo_act.activations.operators import of_kind
from bo_act.errors import ExpressionError, SearchError, SpecError, nearest, shortened
from bo_act.html import Markup, box, escape, table
from bo_act.spaces.schemas import KINDS, read_schema
from bo_act.specs import SpaceSpec
from bo_act.specs.files import read_space
from bo_act.specs.space import LISTED

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import CategoricalDistribution
    from optuna.study import Study
    from optuna.trial import BaseTrial

    from bo_act.activations.module import Activation
    from bo_act.spaces.catalogue import Catalogue

SCHEMA_SLOT = "schema"
EXPRESSION_SLOT = "expression"

_SHOWN = 12  # baselines drawn in a notebook


class Space:
    """All expressions of a space file.

    Args:
        spec: the checked content of a space file.

    Raises:
        SpecError: an unknown operator, an invalid schema, or an invalid baseline.

    Examples:
        >>> import bo_act
        >>> space = bo_act.load_space("classic")
        >>> len(space), str(space.expression(0))
        (34, 'relu(x)')
    """

    kind = "activation"
    """What one choice is called among a trial's user attributes."""

    def __init__(self, spec: SpaceSpec) -> None:
        self.spec = spec = _understood(spec)
        self.name = spec.name
        for kind in KINDS:
            _check_operators(spec, kind)
        self.shapes = tuple(read_schema(text, spec) for text in spec.schemas)
        self.named_expressions = tuple(
            _expression(text, spec, "expressions") for text in spec.expressions
        )
        self.baselines = tuple(_expression(text, spec, "baselines") for text in spec.baselines)
        _check_distinct(spec, "schemas", [str(shape.tree) for shape in self.shapes])
        _check_distinct(spec, "expressions", [str(single) for single in self.named_expressions])
        _check_distinct(spec, "require", spec.require)

    def __len__(self) -> int:
        return sum(map(len, self.shapes)) + len(self.named_expressions)

    @property
    def can_be_listed(self) -> bool:
        """Whether the space is small enough for a catalogue of all its functions."""
        return len(self) <= LISTED

    def __repr__(self) -> str:
        return f"Space({self.name!r}, {len(self)} expressions)"

    def _repr_html_(self) -> str:
        """Show schemas, operators and baselines in a notebook."""
        from bo_act.activations.plots import graph

        spec = self.spec
        about = [("expressions", f"{len(self):,}"), ("schemas", ", ".join(spec.schemas) or "none")]
        about += [(kind, ", ".join(getattr(spec, kind))) for kind in KINDS if getattr(spec, kind)]
        if self.named_expressions:
            about.append(("single expressions", f"{len(self.named_expressions)}"))
        if spec.require:
            about.append(("required", ", ".join(spec.require)))
        figures = "".join(
            f'<figure style="margin:0;text-align:center">{graph(one, width=96, height=64)}'
            f"<figcaption><code>{escape(str(one))}</code></figcaption></figure>"
            for one in self.baselines[:_SHOWN]
        )
        baselines = Markup(f'<div style="display:flex;flex-wrap:wrap;gap:1em">{figures}</div>')
        return box(
            f"Space {self.name}",
            spec.description,
            table(("", ""), about, numbers=frozenset()),
            "Baselines:" if self.baselines else "No baselines.",
            baselines,
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """The distinct functions of the space (computed at first use; cached if it is big)."""
        from bo_act.spaces.catalogue_cache import load_catalogue

        return load_catalogue(self)

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
        for shape in self.shapes:
            if number < len(shape):
                return shape.fill(shape.operators(number))
            number -= len(shape)
        return self.named_expressions[number]

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, got {number}")

    def __iter__(self) -> Iterator[Expression]:
        for shape in self.shapes:
            names = [slot.name for slot in shape.slots]
            for chosen in product(*(slot.choices for slot in shape.slots)):
                yield shape.fill(dict(zip(names, chosen, strict=True)))
        yield from self.named_expressions

    # --- Optuna parameters ------------------------------------------------------------------

    @cached_property
    def schema_choices(self) -> tuple[str, ...]:
        """Choices of the ``schema`` parameter; a single entry means no parameter."""
        return (
            *(shape.text for shape in self.shapes),
            *([EXPRESSION_SLOT] * bool(self.named_expressions)),
        )

    @cached_property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """All slots of all schemas as Optuna distributions, by parameter name."""
        from optuna.distributions import CategoricalDistribution

        slots: dict[str, tuple[str, ...]] = {}
        if len(self.schema_choices) > 1:
            slots[SCHEMA_SLOT] = self.schema_choices
        for shape in self.shapes:
            slots.update((slot.name, slot.choices) for slot in shape.slots)
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
        schema = {}
        for choice, shape in enumerate(self.shapes):
            if number < len(shape):
                if len(self.schema_choices) > 1:
                    schema = {SCHEMA_SLOT: self.schema_choices[choice]}
                return schema | shape.operators(number)
            number -= len(shape)
        if len(self.schema_choices) > 1:
            schema = {SCHEMA_SLOT: EXPRESSION_SLOT}
        return schema | {EXPRESSION_SLOT: str(self.named_expressions[number])}

    def number(self, params: Mapping[str, object]) -> int:
        """Return the number of the expression with these Optuna parameters.

        Other parameters are ignored.

        Raises:
            ExpressionError: a slot is missing or has an invalid value.
        """
        start = 0
        try:
            several = len(self.schema_choices) > 1
            schema = params[SCHEMA_SLOT] if several else self.schema_choices[0]
            for shape in self.shapes:
                if shape.text == schema:
                    return start + shape.number({s.name: str(params[s.name]) for s in shape.slots})
                start += len(shape)
            texts = self.distributions[EXPRESSION_SLOT].choices
            return start + texts.index(str(params[EXPRESSION_SLOT]))
        except (KeyError, ValueError) as error:
            raise ExpressionError(
                f"these parameters are not a member of the space {self.name!r}: {dict(params)}; "
                f"its slots are {', '.join(self.distributions)}"
            ) from error

    def slots_of_schema(self, schema: str) -> tuple[str, ...]:
        """Return the slots that belong to one choice of the ``schema`` parameter."""
        for shape in self.shapes:
            if shape.text == schema:
                return tuple(slot.name for slot in shape.slots)
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
        shapes = [
            schema
            for schema in self.schema_choices
            if set(given) - {SCHEMA_SLOT} <= set(self.slots_of_schema(schema))
            and given.get(SCHEMA_SLOT, schema) == schema
        ]
        if not shapes:
            raise SearchError(
                f"a trial was enqueued with "
                f"{', '.join(f'{k} = {v!r}' for k, v in given.items())}; no schema of the space "
                f"{self.name!r} has all of these slots"
            )
        schema = shapes[0] if len(shapes) == 1 else str(generator.choice(shapes))
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
        for shape in self.shapes:
            if (operators := shape.match(expression)) is not None:
                return start + shape.number(operators)
            start += len(shape)
        wanted = canonical(expression)
        for place, single in enumerate(self.named_expressions):
            if canonical(single) == wanted:
                return start + place
        return None

    def enqueue(
        self,
        study: Study,
        function: str | Expression | Mapping[str, str | Expression],
        params: Mapping[str, Any] | None = None,
        *,
        skip_if_exists: bool = False,
        **more: Any,
    ) -> None:
        """Have a study evaluate a function before its sampler's proposals.

        Args:
            study: whose objective calls ``suggest``; its sampler may be any.
            function: of the space, in any spelling; with several activations, one per name, or one
                for all.
            params: values of other parameters of the study. With ``ActivationSampler``, omitted
                ones get the values of the baselines; else the sampler draws them.
            skip_if_exists: do nothing if the study has such a trial.
            **more: values of parameters, as ``lr=0.1``.

        Raises:
            ExpressionError: not an expression, or not in the space.
            SearchError: the study has no such parameter or activation.
        """
        names: Sequence[str] = getattr(study.sampler, "activations", ("",))
        functions = function if isinstance(function, Mapping) else dict.fromkeys(names, function)
        fixed: dict[str, Any] = {}
        texts = {}
        for name, one in functions.items():
            number = self._number_of(one)
            fixed |= {slot_of(name, slot): value for slot, value in self.params(number).items()}
            texts[slot_of(name, "activation")] = str(canonical(self.expression(number)))
        others = {**(params or {}), **more}
        if both := fixed.keys() & others.keys():
            raise SearchError(
                f"expected values of other parameters beside the function, got slots of the "
                f"function itself, {', '.join(both)}; leave them out"
            )
        fixed |= others
        if check := getattr(study.sampler, "check_enqueued", None):
            check(study, fixed)
        study.enqueue_trial(fixed, user_attrs=texts, skip_if_exists=skip_if_exists)

    def _number_of(self, function: str | Expression) -> int:
        expression = parse(function) if isinstance(function, str) else function
        if self.can_be_listed:
            return int(self.catalogue.representative[self.catalogue.index(expression)])
        number = self.find(expression)
        if number is None:
            raise ExpressionError(
                f"{expression} is not in the space {self.name!r}: no schema can express it"
            )
        return number

    def activation_of(self, trial: BaseTrial, name: str = "") -> str:
        """Return the text of the function that a trial evaluates, in canonical form.

        Args:
            trial: any, of any sampler: enqueued, running, or finished.
            name: tells apart several activations of one study.

        Raises:
            ExpressionError: the trial has no function of that name yet.
        """
        start = slot_of(name, "")
        params = {**enqueued(trial), **trial.params}
        own = {key.removeprefix(start): v for key, v in params.items() if key.startswith(start)}
        with suppress(ExpressionError):
            return str(canonical(self.expression(self.number(own))))
        ends = ".activation"
        names = [key.removesuffix(ends) for key in trial.user_attrs if key.endswith(ends)]
        text = trial.user_attrs.get(slot_of(name, "activation"))
        if text is None or (names and not name):
            known = f"; its functions are named {', '.join(names)}" if names else " yet"
            raise ExpressionError(
                f"trial {trial.number} has no function{f' named {name!r}' if name else ''} of the "
                f"space {self.name!r}{known}"
            )
        return str(canonical(parse(text)))

    def suggest(
        self,
        trial: BaseTrial,
        name: str = "",
        *,
        normalize: bool = False,
        learnable: Literal["layer", "channel"] | None = None,
    ) -> Activation:
        """Ask an Optuna trial for one function of the space.

        With ``ActivationSampler`` the slots are filled with the proposed function; any other
        sampler fills them in its own way.

        Args:
            trial: running or frozen trial.
            name: tells apart several activations of one study, as given to the sampler.
            normalize: as in ``Activation``.
            learnable: as in ``Activation``.

        Returns:
            An ``Activation``: a module, and ``activation()`` is a fresh one of the same function.
        """
        from bo_act.activations.module import Activation

        function = self.suggest_expression(trial, name)
        return Activation(function, normalize=normalize, learnable=learnable)

    def suggest_expression(self, trial: BaseTrial, name: str = "") -> Expression:
        """Ask an Optuna trial for one function of the space, as a canonical expression.

        Its text is in the trial's user attribute ``activation`` from then on.

        Raises:
            TrialPruned: a sampler that knows no catalogue filled the slots with an expression that
                does not satisfy what the space requires.
        """
        found = self._suggested(trial, name)
        if self.spec.require:
            from optuna.exceptions import TrialPruned

            from bo_act.spaces.smoothness import left_out, unsatisfied

            if unsatisfied(found, self.spec.domain, self.spec.require):
                raise TrialPruned(str(left_out(found, self.spec)))
        return found

    def _suggested(self, trial: BaseTrial, name: str) -> Expression:
        def ask(slot: str) -> str:
            choices = self.distributions[slot].choices
            return str(trial.suggest_categorical(slot_of(name, slot), choices))

        schema = ask(SCHEMA_SLOT) if SCHEMA_SLOT in self.distributions else self.schema_choices[0]
        for shape in self.shapes:
            if shape.text == schema:
                found = canonical(shape.fill({slot.name: ask(slot.name) for slot in shape.slots}))
                break
        else:
            found = canonical(parse(ask(EXPRESSION_SLOT)))
        _note(trial, slot_of(name, "activation"), str(found))
        return found


def load_space(name: str) -> Space:
    """Load a space by name (``"act_bench"``) or by the path of its file.

    Raises:
        ContentNotFoundError: no such file.
        SpecError: the file is not a space, or names an unknown operator.

    Examples:
        >>> load_space("classic")
        Space('classic', 34 expressions)
    """
    return Space(read_space(name))


def slot_of(name: str, slot: str) -> str:
    """Return the name of a slot or attribute of one activation of a study."""
    return f"{name}.{slot}" if name else slot


def enqueued(trial: BaseTrial) -> dict[str, Any]:
    """Return the parameters of an enqueued trial."""
    from optuna.trial import FrozenTrial, Trial

    if isinstance(trial, FrozenTrial):
        return dict(trial.system_attrs.get("fixed_params", {}))
    return dict(trial._fixed_params) if isinstance(trial, Trial) else {}


def _note(trial: BaseTrial, key: str, text: str) -> None:
    from optuna.trial import FrozenTrial

    if not isinstance(trial, FrozenTrial) and trial.user_attrs.get(key) != text:
        trial.set_user_attr(key, text)


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
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise SpecError(f"space {spec.name!r}, {key}: {entry!r} is listed twice")


def _expression(text: str, spec: SpaceSpec, key: str) -> Expression:
    try:
        return parse(text)
    except ExpressionError as error:
        raise SpecError(f"space {spec.name!r}, {key}: {error}") from error
