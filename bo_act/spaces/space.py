"""Space: the expressions of a space file, their catalogue, and the trials that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.errors import ExpressionError, SearchError
from bo_act.html import Markup, box, escape, table
from bo_act.spaces.enumeration import EXPRESSION_SLOT, SCHEMA_SLOT, Enumeration, slot_of
from bo_act.spaces.schemas import KINDS
from bo_act.specs.files import read_space

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import BaseTrial

    from bo_act.activations.module import Activation
    from bo_act.spaces.catalogue import Catalogue

_SHOWN = 12  # baselines drawn in a notebook


class Space(Enumeration):
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
            f'<figure style="margin:0;text-align:center">{graph(baseline, width=96, height=64)}'
            f"<figcaption><code>{escape(str(baseline))}</code></figcaption></figure>"
            for baseline in self.baselines[:_SHOWN]
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
        for name, chosen in functions.items():
            number = self._number_of(chosen)
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
        expression = self._suggested(trial, name)
        if self.spec.require:
            from optuna.exceptions import TrialPruned

            from bo_act.spaces.smoothness import left_out, unsatisfied

            if unsatisfied(expression, self.spec.domain, self.spec.require):
                raise TrialPruned(str(left_out(expression, self.spec)))
        return expression

    def _suggested(self, trial: BaseTrial, name: str) -> Expression:
        def ask(slot: str) -> str:
            choices = self.distributions[slot].choices
            return str(trial.suggest_categorical(slot_of(name, slot), choices))

        schema = ask(SCHEMA_SLOT) if SCHEMA_SLOT in self.distributions else self.schema_choices[0]
        for candidate in self.schemas:
            if candidate.text == schema:
                expression = canonical(
                    candidate.fill({slot.name: ask(slot.name) for slot in candidate.slots})
                )
                break
        else:
            expression = canonical(parse(ask(EXPRESSION_SLOT)))
        _note(trial, slot_of(name, "activation"), str(expression))
        return expression


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
