"""Your own acquisition functions: any of BoTorch's, made by your function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.surrogate.outcomes import Outcomes
from bo_act.search.surrogate.own import given_spec
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import AcquisitionSpec
from bo_act.user_code.failures import USERS, is_machines, one_line
from bo_act.user_code.files import call_with

MakeAcquisition = Callable[..., AcquisitionFunction]
"""``make_acquisition(model, best_f, X_baseline, X_pending, candidates, seed)``, see
``OwnAcquisition``."""

_CHUNK = 512


@dataclass(frozen=True)
class OwnAcquisition:
    """An acquisition function that your function makes, in place of an ``AcquisitionSpec``.

    Attributes:
        make: a class of BoTorch, or a function that returns an acquisition function of single
            points, (m, 1, d) → (m,). It gets the arguments of its signature by name: ``model``, the
            fitted BoTorch model; ``best_f``, the largest warped value observed; ``X_baseline``
            (n, d) observed points; ``X_pending`` (p, d) points under evaluation, or None;
            ``candidates`` (m, d), a sample if they are not listed, also as ``candidate_set``;
            ``seed``. With several objectives or constraints, ``model`` has one output per outcome,
            objectives first, and there are also ``ref_point`` (M,), ``objective`` and
            ``constraints``, as for BoTorch's functions. torch's random state is seeded before each
            call.
        name: for messages.

    Examples:
        >>> from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        >>> def make_acquisition(model, X_baseline, X_pending):
        ...     return qLogNoisyExpectedImprovement(model, X_baseline, X_pending=X_pending)
        >>> OwnAcquisition(make_acquisition).name
        'make_acquisition'
    """

    make: MakeAcquisition
    name: str = ""
    per_second: ClassVar[bool] = False
    needs_costs: ClassVar[bool] = False
    needs_list: ClassVar[bool] = False
    repeats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.make, "__name__", "make_acquisition"))

    @classmethod
    def of(
        cls, given: AcquisitionSpec | OwnAcquisition | MakeAcquisition
    ) -> AcquisitionSpec | OwnAcquisition:
        """Return the acquisition of an argument: a spec, or a function that makes one.

        Raises:
            SearchError: it is neither.
        """
        makes = "make_acquisition(model, best_f) that returns a BoTorch acquisition function"
        if isinstance(given, OwnAcquisition):
            return given
        spec = given_spec(given, AcquisitionSpec, part="acquisition", makes=makes)
        return cls(cast(MakeAcquisition, given)) if spec is None else spec


AnyAcquisition = AcquisitionSpec | OwnAcquisition


def own_scorer(
    own: OwnAcquisition,
    model: Surrogate | Outcomes,
    best: float,
    *,
    candidates: Tensor,
    seed: int,
    more: Mapping[str, Any] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return your own acquisition function, points (m, d) → scores (m,), in chunks.

    Args:
        own: makes the function.
        model: the surrogate, or the surrogates of several outcomes.
        best: the largest warped target observed.
        candidates: (m, d).
        seed: of random draws.
        more: further arguments that it may ask for.

    Raises:
        SearchError: the function fails, or makes something else.
    """
    what = f"the acquisition {own.name!r}"
    offered = {
        "model": model.botorch_model(),
        "best_f": best,
        "X_baseline": model.observed,
        "X_pending": model.pending if len(model.pending) else None,
        "candidates": candidates,
        "candidate_set": candidates,  # as BoTorch's own classes call them
        "seed": seed,
        **(more or {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        acquisition = call_with(own.make, offered, what=what, error=SearchError)
    if not isinstance(acquisition, AcquisitionFunction):
        raise SearchError(
            f"{what}: expected a botorch.acquisition.AcquisitionFunction, got "
            f"{type(acquisition).__name__}"
        )

    def score(points: Tensor) -> Tensor:
        return torch.cat(
            [_scored(acquisition, chunk, what, seed) for chunk in points.split(_CHUNK)]
        )

    return score


def _scored(acquisition: AcquisitionFunction, points: Tensor, what: str, seed: int) -> Tensor:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scores = acquisition(points.unsqueeze(-2))
    except USERS as error:
        if is_machines(error):
            raise
        raise SearchError(f"{what} fails over the candidates: {one_line(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(points),):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise SearchError(
            f"{what}: expected a score for each of {len(points)} single points of shape "
            f"({len(points)}, 1, d), got {came}"
        )
    return scores.to(points).nan_to_num(nan=-math.inf)
