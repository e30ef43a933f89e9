"""The parameters of a study besides its functions, and the values that all baselines share.

"Better than ReLU" is a fair comparison only with equal settings.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from bo_act.dependencies.optuna_internals import contains
from bo_act.errors import ExpressionError, SearchError, nearest
from bo_act.search.configurations import Parameters
from bo_act.search.unenumerated import ExpressionPool
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.space import Space
from bo_act.study.sampling.configurations import functions_of, params_of
from bo_act.study.sampling.enqueued import check_keys, completed
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import common_parameters, own_trials


def is_compared(trial: FrozenTrial) -> bool:
    """Tell whether a trial uses the values shared by all baselines."""
    return trial.user_attrs.get("proposal", {}).get("by") in ("baseline", "enqueued")


@dataclass(frozen=True)
class SharedSettings:
    """Values by name: given, or from the first baseline, or drawn by name and seed alone.

    So baselines that begin at the same time in different processes have the same values.

    Attributes:
        defaults: the given values.
        seed: of the drawn values.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def check(
        self,
        slots: Collection[str],
        parameters: Mapping[str, BaseDistribution] | None,
        *,
        closed: bool,
    ) -> None:
        """Refuse invalid defaults.

        Args:
            slots: of the study's functions.
            parameters: the known ones; None if none is known yet.
            closed: whether there are no others.

        Raises:
            SearchError: a name is unknown, or a value is outside its parameter's range.
        """
        for name, value in self.defaults.items():
            if name in slots:
                raise SearchError(
                    f"defaults: {name!r} is a slot of the functions, but defaults are values of "
                    "the other parameters; leave it out"
                )
            if parameters is None:
                continue
            if name in parameters:
                if closed or parameters[name].single():
                    _checked(name, value, parameters[name])
                continue
            hint = nearest(name, set(parameters) - set(self.defaults))
            if hint or closed:
                raise SearchError(
                    f"defaults: unknown parameter {name!r}"
                    f"{hint or '; known: ' + (', '.join(parameters) or 'none')}"
                )

    def values(
        self, wanted: Mapping[str, BaseDistribution], before: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return a value of each parameter.

        Args:
            wanted: parameters by name.
            before: parameters of earlier baseline trials, the first one first.

        Raises:
            SearchError: a default is outside its parameter's range.
        """
        values: dict[str, Any] = {}
        for name, distribution in wanted.items():
            if name in self.defaults:
                values[name] = _checked(name, self.defaults[name], distribution)
                continue
            for params in before:
                with suppress(KeyError, SearchError):
                    values[name] = _checked(name, params[name], distribution)
                    break
            else:
                values[name] = self._drawn(name, distribution)
        return values

    def _drawn(self, name: str, distribution: BaseDistribution) -> Any:
        parameters = Parameters({name: distribution})
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return parameters.decode(parameters.draw(1, generator)[0])[name]


@dataclass(frozen=True, eq=False)
class StudyParameters:
    """The parameters of a sampler's studies.

    Attributes:
        space: of the functions.
        catalogue: of the sampler.
        activations: names of the functions.
        baselines: their indices.
        given: the other parameters; None to read them from trials.
        settings: of the baselines.
    """

    space: Space
    catalogue: Catalogue | ExpressionPool
    activations: tuple[str, ...]
    baselines: tuple[int, ...]
    given: Mapping[str, BaseDistribution] | None
    settings: SharedSettings

    def __post_init__(self) -> None:
        self.settings.check(self.slots, self.given, closed=self.given is not None)

    @property
    def slots(self) -> dict[str, BaseDistribution]:
        """The slots of all functions."""
        return {slot: d for name in self.activations for slot, d in self.space.slots(name).items()}

    def common(self, study: Study) -> dict[str, BaseDistribution]:
        """Return the other searched parameters: as given, or common to all finished trials."""
        searched = self.given
        if searched is None:
            searched = common_parameters(own_trials(study))
        slots = self.slots
        return {n: d for n, d in searched.items() if n not in slots and not d.single()}

    def known(self, study: Study) -> dict[str, BaseDistribution]:
        """Return the other parameters, given or in any trial."""
        known = dict(self.given or {})
        for trial in StudyView.of(study).trials:
            known |= trial.distributions
        slots = self.slots
        return {name: d for name, d in known.items() if name not in slots}

    def shared(self, study: Study, wanted: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Return the values of other parameters for all baselines."""
        before = []
        if not wanted.keys() <= self.settings.defaults.keys():
            before = [params_of(t) for t in StudyView.of(study).in_order if self._is_baseline(t)]
        return self.settings.values(wanted, before)

    def check_defaults(self, study: Study) -> None:
        """Refuse defaults of parameters that no trial has requested, see ``SharedSettings``."""
        if self.given is None and self.settings.defaults and (known := self.known(study)):
            self.settings.check((), known, closed=False)

    def check_enqueued(self, study: Study, fixed: Mapping[str, Any]) -> None:
        """Refuse invalid parameters of an enqueued trial.

        Raises:
            SearchError: a key is unknown, or a slot's value is invalid.
        """
        check_keys(fixed, self.slots, self.known(study), closed=self.given is not None)
        self.completed(fixed, 0)

    def completed(self, fixed: Mapping[str, Any], number: int) -> dict[str, str]:
        """Return all slots of an enqueued trial, with missing ones drawn by its number."""
        return completed(self.space, self.activations, fixed, seed=(self.settings.seed, number))

    def _is_baseline(self, trial: FrozenTrial) -> bool:
        try:
            functions = functions_of(self.catalogue, params_of(trial), self.activations)
        except ExpressionError:
            return False
        return len(set(functions)) == 1 and functions[0] in self.baselines


def _checked(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """Return a value in its distribution's own type."""
    try:
        inside = distribution.to_internal_repr(value)
        if contains(distribution, inside):
            return distribution.to_external_repr(inside)
    except (TypeError, ValueError):
        pass
    raise SearchError(f"defaults: {name} = {value!r} is not in {distribution}")
