"""Explanations of proposals: the surrogate's prediction and its evidence."""

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
"""Probability of the central interval of a prediction."""


@dataclass(frozen=True)
class Neighbour:
    """An evaluated function that is similar to another one.

    Attributes:
        place: number of the observation.
        value: the observed value.
        similarity: the prior correlation of the two values, in [0, 1].
    """

    place: int
    value: float
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """A Gaussian process's prediction for one function.

    Attributes:
        predicted: median of the value.
        low, high: central 90% interval of a measurement. All three are interpolated between
            observed values, so they are within their range.
        contributions: part of the model → its contribution to the mean, in units of the warped
            target, whose deviation is about 1.
        neighbours: the most similar evaluated functions, most similar first.
        observed: number of observed functions.
    """

    predicted: float
    low: float
    high: float
    contributions: Mapping[str, float]
    neighbours: tuple[Neighbour, ...]
    observed: int


def can_explain(surrogate: AnySurrogate) -> bool:
    """Tell whether a surrogate predicts an uncertainty."""
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
    """Explain the prediction for a configuration from the other evaluated ones.

    Only the surrogate 'gp' has contributions and neighbours.

    Args:
        searcher: of the study.
        embedding: of the space.
        observations: of others; those of this configuration are left out.
        configuration: to explain; an index if only functions are searched.
        neighbours: their number.

    Raises:
        SearchError: the surrogate is neither the Gaussian process nor your own, the function is not
            in the embedding, or there are too few observations.
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
