"""Why a function was worth a try: what the surrogate said of it, and by which evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import norm

from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, count_different, inverse_warp
from bo_act.search.searcher import fit_observed
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.search.surrogate.own import AnySurrogate
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import SurrogateSpec
from bo_act.torch_state import plain_torch

LEVEL = 0.9
"""Of the central interval of a prediction."""


@dataclass(frozen=True)
class Neighbour:
    """An evaluated function that is like another one.

    Attributes:
        index: in the catalogue.
        value: as observed.
        similarity: the prior correlation of the two values, in [0, 1].
    """

    index: int
    value: float
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """What a Gaussian process says of one function.

    Attributes:
        predicted: the value where half of the probability lies below.
        low, high: central interval of a measurement, of 90%. All three are read from the observed
            values, and so never beyond the best or the worst of them.
        contributions: part of the model → what it adds to the mean, in units of the warped
            target, whose deviation is about 1.
        neighbours: the most similar evaluated functions, the most similar first.
        observed: how many functions the surrogate had seen.
    """

    predicted: float
    low: float
    high: float
    contributions: Mapping[str, float]
    neighbours: tuple[Neighbour, ...]
    observed: int


def can_explain(surrogate: AnySurrogate) -> bool:
    """Tell whether a surrogate has predictions with an uncertainty to tell."""
    return surrogate.is_own or surrogate.name == "gp"


@plain_torch()
def explain(
    embedding: Embedding,
    observations: Observations,
    index: int,
    *,
    surrogate: AnySurrogate | None = None,
    seed: int = 0,
    neighbours: int = 5,
) -> Explanation:
    """Explain what is expected of a function by others that were evaluated.

    Args:
        embedding: of the space.
        observations: of other functions; what it holds of this one is left out.
        index: of the function.
        surrogate: as in the study.
        seed: of the study.
        neighbours: how many are named.

    Raises:
        SearchError: the surrogate is neither the Gaussian process nor your own, the function has
            no place, or too little was observed.
    """
    surrogate = surrogate or SurrogateSpec()
    if not can_explain(surrogate):
        raise SearchError(
            "only the surrogate 'gp', or one of your own, can be asked why, and this one is "
            f"{surrogate.name!r}"
        )
    if not embedding.valid[index]:
        raise SearchError("the function has no place in the embedding: a feature of it is missing")
    others = (observations.indices != index) & embedding.valid[observations.indices]
    seen = Observations(observations.indices[others], observations.values[others])
    if count_different(seen.values) < 2:
        raise SearchError(
            f"expected at least two evaluated functions with different values, got "
            f"{len(seen)}; nothing was predicted then"
        )
    model, y, _ = fit_observed(surrogate, embedding, seen, seed=seed)
    point = torch.from_numpy(embedding.points[[index]])
    said = explain_point(model, y, seen.values, point, neighbours=neighbours)
    functions = tuple(replace(n, index=int(seen.indices[n.index])) for n in said.neighbours)
    return replace(said, neighbours=functions)


@plain_torch()
def explain_point(
    model: Surrogate,
    y: torch.Tensor,
    values: np.ndarray,
    point: torch.Tensor,
    *,
    neighbours: int = 5,
) -> Explanation:
    """Explain what a surrogate expects at one point.

    Contributions and neighbours are those of the kernel of 'gp'; of other models there are none.

    Args:
        model: fitted to n points.
        y: (n,) the warped targets that it was fitted to.
        values: (n,) as observed.
        point: (1, d).
        neighbours: how many are named, by their places among the n.
    """
    mean, variance = (float(part[0]) for part in model.mean_and_variance(point))
    away = norm.ppf(0.5 + LEVEL / 2) * np.sqrt(variance + float(getattr(model, "noise", 0.0)))
    low, predicted, high = inverse_warp([mean - away, mean, mean + away], y.numpy(), values)
    if not isinstance(model, GaussianProcess):
        return Explanation(float(predicted), float(low), float(high), {}, (), len(values))
    similar = model.covariance(point, model.x)[0] / model.prior_variance
    nearest = similar.argsort(descending=True, stable=True)[:neighbours].tolist()
    return Explanation(
        float(predicted),
        float(low),
        float(high),
        {name: float(part[0]) for name, part in model.contributions(point).items()},
        tuple(Neighbour(i, float(values[i]), float(similar[i])) for i in nearest),
        len(values),
    )
