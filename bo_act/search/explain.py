"""Why a function was worth a try: what the surrogate said of it, and by which evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import SearchError
from bo_act.search.configurations import Configurations, Taken
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, count_different, inverse_warp
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.search.surrogate.own import AnySurrogate

LEVEL = 0.9
"""Of the central interval of a prediction."""


@dataclass(frozen=True)
class Neighbour:
    """An evaluated function that is like another one.

    Attributes:
        place: among the observations.
        value: as observed.
        similarity: the prior correlation of the two values, in [0, 1].
    """

    place: int
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
    searcher: Searcher,
    embedding: Embedding,
    observations: Observations,
    configuration: Configurations | int,
    *,
    neighbours: int = 5,
) -> Explanation:
    """Explain what is expected of a configuration by others that were evaluated.

    Contributions and neighbours are those of the kernel of 'gp'; of other models there are none.

    Args:
        searcher: of the study.
        embedding: of the space.
        observations: of others; a value of this one is left out.
        configuration: to explain; or the function, where functions alone are searched.
        neighbours: how many are named.

    Raises:
        SearchError: the surrogate is neither the Gaussian process nor your own, the function has
            no place, or too little was observed.
    """
    if not can_explain(searcher.surrogate):
        raise SearchError(
            "only the surrogate 'gp', or your own, can explain a prediction; this one is "
            f"{searcher.surrogate.name!r}"
        )
    configuration = Configurations.of(
        [configuration] if isinstance(configuration, int) else configuration
    )
    if not configuration.placed(embedding)[0]:
        raise SearchError("the function is not in the embedding: it lacks a feature")
    others = ~Taken(configuration, ()).among(observations.measured)
    seen = observations.among(others)
    placed = seen.measured.placed(embedding)
    if count_different(seen.values[placed]) < 2:
        raise SearchError(
            f"expected at least two evaluated functions with different values, got "
            f"{int(placed.sum())}; there was no prediction yet"
        )
    fit = searcher.fit(embedding, seen)
    model, point = fit.model, fit.space.points(configuration)
    mean, variance = (float(part[0]) for part in model.mean_and_variance(point))
    away = norm.ppf(0.5 + LEVEL / 2) * np.sqrt(variance + float(getattr(model, "noise", 0.0)))
    low, predicted, high = inverse_warp(
        [mean - away, mean, mean + away], fit.y.numpy(), fit.values
    ).tolist()
    if not isinstance(model, GaussianProcess):
        return Explanation(predicted, low, high, {}, (), len(fit.values))
    similar = model.covariance(point, model.observed)[0] / model.prior_variance
    nearest = similar.argsort(descending=True, stable=True)[:neighbours].tolist()
    places = np.flatnonzero(others)[fit.places]
    return Explanation(
        predicted,
        low,
        high,
        {name: float(part[0]) for name, part in model.contributions(point).items()},
        tuple(Neighbour(int(places[i]), float(fit.values[i]), float(similar[i])) for i in nearest),
        len(fit.values),
    )
