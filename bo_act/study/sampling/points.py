"""EmbeddingSampler: searching a finite set of anything by the coordinates of its items."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial
from torch import Tensor

from bo_act.errors import ExpressionError, SearchError, shortened
from bo_act.metrics import Metric
from bo_act.search.acquisition.own import AnyAcquisition, MakeAcquisition
from bo_act.search.configurations import ONE
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.strategies import Strategy
from bo_act.search.surrogate.own import AnySurrogate, MakeModel
from bo_act.spaces.enumeration import slot_of
from bo_act.spaces.space import Space
from bo_act.study.sampling.endings import Constraints
from bo_act.study.sampling.sampler import ActivationSampler


class EmbeddingSampler(ActivationSampler):
    """Searches a finite set of items (molecules, prompts, layers) by your own coordinates.

    A Gaussian process over the points proposes which item to evaluate next. Everything else is as
    in ``ActivationSampler``, which does this with the functions of a space: no item is proposed
    twice, several processes share a study, a resumed study continues as an uninterrupted one would
    have, and other parameters of the objective are searched jointly with the item.

    Args:
        points: (N, d) coordinates of the N items, in any unit, or an ``Embedding`` with several
            blocks of columns.
        labels: N texts for people, saved in the trials' user attribute ``item``; default: numbers.
        names: of the choices, if the objective makes several from the same set.
        baselines: numbers of items to evaluate first.
        initial: random items after the baselines, before the surrogate proposes.
        surrogate: as in ``ActivationSampler``.
        acquisition: as in ``ActivationSampler``.
        strategy: as in ``ActivationSampler``.
        parameters: as in ``ActivationSampler``.
        delegate: as in ``ActivationSampler``.
        seed: as in ``ActivationSampler``.
        max_retries: as in ``ActivationSampler``.
        metric: as in ``ActivationSampler``.
        constraints_func: as in ``ActivationSampler``.

    Raises:
        SearchError: points, labels or baselines do not fit together.

    Examples:
        >>> import numpy as np, optuna, bo_act
        >>> points = np.random.default_rng(0).uniform(size=(2000, 3))
        >>> sampler = bo_act.EmbeddingSampler(points, seed=0)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> def objective(trial):
        ...     item = sampler.suggest(trial)
        ...     return -((points[item] - 0.3) ** 2).sum()
        >>> study.optimize(objective, n_trials=12)
        >>> 0 <= study.best_params["item"] < 2000
        True
    """

    def __init__(
        self,
        points: Embedding | ArrayLike | Tensor,
        *,
        labels: Sequence[str] | None = None,
        names: Sequence[str] = ONE,
        baselines: Sequence[int] = (),
        initial: int = 4,
        surrogate: AnySurrogate | MakeModel | None = None,
        acquisition: AnyAcquisition | MakeAcquisition | None = None,
        strategy: Strategy | None = None,
        parameters: Mapping[str, BaseDistribution] | None = None,
        delegate: BaseSampler | None = None,
        seed: int = 0,
        max_retries: int = 2,
        metric: Metric | None = None,
        constraints_func: Constraints | None = None,
    ) -> None:
        embedding = points if isinstance(points, Embedding) else Embedding.of(points)
        items = _Items(len(embedding), labels, embedding.hash)
        super().__init__(
            cast(Space, items),
            embedding=embedding,
            baselines=cast("Sequence[str]", [items.checked(number) for number in baselines]),
            initial=initial,
            surrogate=surrogate,
            acquisition=acquisition,
            strategy=strategy,
            activations=names,
            parameters=parameters,
            delegate=delegate,
            seed=seed,
            max_retries=max_retries,
            metric=metric,
            constraints_func=constraints_func,
        )

    def suggest(self, trial: BaseTrial, name: str = "") -> int:
        """Ask a trial for an item, by the parameter ``item``, or ``NAME.item`` for several.

        Args:
            trial: of a study with this sampler or any other.
            name: one of the sampler's names.

        Returns:
            The item's number, from 0.

        Raises:
            SearchError: the sampler does not know the name.
        """
        if name not in self.activations:
            raise SearchError(
                f"expected one of the sampler's names {self.activations!r}, got {name!r}; give it "
                f"names=(..., {name!r})"
            )
        number = trial.suggest_int(slot_of(name, ITEM), 0, len(self.catalogue) - 1)
        trial.set_user_attr(slot_of(name, ITEM), self.catalogue.text(number))
        return number


ITEM = "item"


class _Items:
    """N items that stand in for a space and its catalogue.

    Args:
        count: N.
        labels: for people.
        points: hash of their points.
    """

    kind = ITEM
    name = "items"
    baselines = ()
    can_be_listed = True

    def __init__(self, count: int, labels: Sequence[str] | None, points: str) -> None:
        if labels is not None and len(labels) != count:
            raise SearchError(f"expected a label for each of {count} points, got {len(labels)}")
        self._count = count
        self._labels = None if labels is None else list(map(str, labels))
        self.hash = hashlib.sha256(f"{count} {points} {self._labels}".encode()).hexdigest()
        self.distributions = {ITEM: IntDistribution(0, count - 1)}

    def __len__(self) -> int:
        return self._count

    @property
    def catalogue(self) -> _Items:
        return self

    @property
    def space(self) -> _Items:
        return self

    def checked(self, number: object) -> int:
        """Return the number of an item.

        Raises:
            SearchError: there is no such item.
        """
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or not 0 <= int(cast(int, number)) < self._count:
            raise SearchError(
                f"expected the number of one of {self._count} items, from 0, got "
                f"{shortened(repr(number))}"
            )
        return int(cast(int, number))

    def slots(self, name: str = "") -> dict[str, IntDistribution]:
        return {slot_of(name, ITEM): self.distributions[ITEM]}

    def params(self, index: int) -> dict[str, int]:
        return {ITEM: int(index)}

    def index(self, item: object) -> int:
        number = item.get(ITEM) if isinstance(item, Mapping) else item
        try:
            return self.checked(number)
        except SearchError as error:
            raise ExpressionError(str(error)) from error

    def text(self, index: int) -> str:
        return str(index) if self._labels is None else self._labels[index]

    def text_of(self, params: Mapping[str, object]) -> str:
        return self.text(self.index(params))

    def activation_of(self, trial: BaseTrial, name: str = "") -> int:
        return self.index({ITEM: trial.params.get(slot_of(name, ITEM))})

    def completed(self, given: Mapping[str, Any], generator: np.random.Generator) -> dict[str, int]:
        drawn = int(generator.integers(self._count))
        return {ITEM: self.checked(given.get(ITEM, drawn))}
