"""Candidates of a study: all functions of a space, or those seen by local search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from optuna.study import Study, StudyDirection
from torch import Tensor, nn

from bo_act.activations.expressions import Expression
from bo_act.errors import SearchError
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.search.acquisition.own import AnyAcquisition
from bo_act.search.acquisition.pool import check_unlisted
from bo_act.search.embedding.embedding import Embedder, Embedding
from bo_act.search.embedding.factory import make_embedder
from bo_act.search.embedding.own import OwnEmbedder, is_own
from bo_act.search.proposal import Proposal
from bo_act.search.strategies import Strategy
from bo_act.search.unenumerated import ExpressionPool
from bo_act.search.warm_start import Source, make_warm_start
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.costs import costs_of, operator_times
from bo_act.spaces.enumeration import slot_of
from bo_act.spaces.space import Space
from bo_act.specs import EmbeddingSpec
from bo_act.study.sampling.configurations import functions_of, slots_of
from bo_act.study.storage.study_view import StudyView

_TIMES = "operator_times"
"""User attribute of a study: the times of operators, measured when it began."""

Embeddable = (
    EmbeddingSpec
    | Embedder
    | Embedding
    | Callable[[FeatureTable], Any]
    | nn.Module
    | ArrayLike
    | Tensor
    | None
)
"""Types of the sampler's ``embedding``."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Functions with their embedding.

    Attributes:
        catalogue: functions by index; an ``ExpressionPool`` grows.
        baselines: indices of functions to evaluate first.
        fixed: their embedding; None if it grows.
        costs: (N,) inference costs, if the acquisition function needs them.
    """

    catalogue: Catalogue | ExpressionPool
    baselines: tuple[int, ...]
    fixed: Embedding | None = None
    costs: NDArray[np.float64] | None = None

    @property
    def embedding(self) -> Embedding:
        """The functions' coordinates; in an unenumerated space, of those seen so far."""
        if self.fixed is not None:
            return self.fixed
        if not isinstance(self.catalogue, ExpressionPool):
            raise SearchError("listed functions need an embedding")
        return self.catalogue.embedding

    def attributes(self, params: Mapping[str, Any], activations: Sequence[str]) -> dict[str, Any]:
        """Return a trial's user attributes about its functions.

        Args:
            params: of the trial, including all slots.
            activations: names of the functions.
        """
        catalogue, space = self.catalogue, self.catalogue.space
        functions = functions_of(catalogue, params, activations)
        grows = isinstance(catalogue, ExpressionPool)
        attributes: dict[str, Any] = {}
        for name, index in zip(activations, functions, strict=True):
            attributes[slot_of(name, space.kind)] = space.text_of(slots_of(params, name))
            if not grows:  # indices in a growing pool differ between processes
                attributes[slot_of(name, "index")] = index
        if self.costs is not None:
            (index,) = functions
            attributes["cost"] = round(float(self.costs[index]), 3)
        embedded = catalogue if isinstance(catalogue, ExpressionPool) else self.embedding
        return attributes | {"catalogue": catalogue.hash[:16], "embedding": embedded.hash[:16]}


def how_chosen(proposal: Proposal, directions: Sequence[StudyDirection]) -> dict[str, Any]:
    """Return a trial's user attribute ``proposal``: how it was chosen, with its prediction.

    Args:
        proposal: of the trial.
        directions: of the study's objectives.
    """
    how: dict[str, Any] = {"by": proposal.by}
    if proposal.mean is not None and proposal.deviation is not None:
        how |= {"mean": round(proposal.mean, 4), "deviation": round(proposal.deviation, 4)}
    signs = StudyView.of_some([], directions).signs
    if proposal.expected is not None:
        how["expected"] = float(f"{signs[0] * proposal.expected:.7g}")
    if proposal.outcomes:
        how["expected"] = [
            float(f"{sign * mean:.7g}") for sign, mean in zip(signs, proposal.outcomes, strict=True)
        ]
    if proposal.feasible is not None:
        how["feasible"] = round(proposal.feasible, 4)
    if proposal.repetition:
        how["repetition"] = proposal.repetition
    if proposal.note:
        how["note"] = proposal.note
    return how


def listed_candidates(
    space: Space,
    features: FeatureTable | None,
    embedding: Embeddable,
    baselines: Sequence[str | Expression],
    *,
    costs: NDArray[np.float64] | None,
    needs_costs: bool,
    sources: Sequence[Source],
    first: int,
) -> Candidates:
    """Return all functions of a space; arguments as for the sampler.

    Raises:
        ExpressionError: a baseline is not in the space.
        SearchError: features or embedding belong to another space.
    """
    catalogue = space.catalogue
    embedding = _embedded(space, features, embedding)
    if len(embedding) != len(catalogue):
        raise SearchError(
            f"expected an embedding of the {len(catalogue)} functions of the space "
            f"{space.name!r}, got one of {len(embedding)}"
        )
    if needs_costs and costs is None:
        costs = costs_of(catalogue, operator_times())
    if costs is not None:
        costs = np.asarray(costs)
        fits = costs.shape == (len(catalogue),)
        if not fits or not (np.isfinite(costs) & (costs > 0)).all():
            raise SearchError(
                f"expected the costs of the {len(catalogue)} functions of the space "
                f"{space.name!r}, finite and above 0, got "
                + ("other values" if fits else f"an array of shape {costs.shape}")
            )
    start = [catalogue.index(function) for function in baselines]
    if sources:
        warm = make_warm_start(sources, embedding, first=first)
        start = [*warm.best, *start]
        embedding = warm.enrich(embedding)
    return Candidates(catalogue, tuple(dict.fromkeys(start)), embedding, costs)


def study_costs(study: Study, space: Space, device: torch.device) -> NDArray[np.float64]:
    """Return the cost of each function of a space, (N,), from the times recorded in the study.

    They are measured once, since times vary, and a resumed study must continue as if undisturbed.
    If two processes begin at once, both take the times written last.

    Args:
        study: with the times in its user attributes.
        space: with a catalogue.
        device: to measure on.
    """
    if _TIMES not in study.user_attrs:
        rounded = {name: float(f"{t:.4g}") for name, t in operator_times(device).items()}
        study.set_user_attr(_TIMES, rounded)
    return costs_of(space.catalogue, study.user_attrs[_TIMES])


def unlisted_candidates(
    space: Space,
    embedding: object,
    baselines: Sequence[str | Expression],
    acquisition: AnyAcquisition,
) -> Candidates:
    """Return a growing pool of a space's functions; arguments as for the sampler.

    Raises:
        ExpressionError: a baseline is not in the space.
        SearchError: the acquisition function needs a list of all functions.
    """
    check_unlisted(acquisition)
    spec = embedding if isinstance(embedding, EmbeddingSpec) else EmbeddingSpec()
    pool = ExpressionPool(space, components=spec.outputs)
    start = [pool.index(function) for function in baselines]
    for index in start:
        pool.params(index)  # raises if no schema contains the function
    return Candidates(pool, tuple(dict.fromkeys(start)))


def _embedded(
    space: Space,
    features: FeatureTable | None,
    given: Embeddable,
) -> Embedding:
    if isinstance(given, Embedding):
        return given
    if given is None or isinstance(given, EmbeddingSpec):
        given = make_embedder(given or EmbeddingSpec(), space.catalogue)
    if is_own(given):
        given = OwnEmbedder(given)
    if isinstance(given, type) or not callable(fit := getattr(given, "fit", None)):
        return _of_numbers(given, "embedding=")
    features = compute_features(space) if features is None else features
    if features.catalogue_hash != space.catalogue.hash:
        raise SearchError(
            f"the features belong to another catalogue ({features.catalogue_hash[:12]}) than the "
            f"space {space.name!r} ({space.catalogue.hash[:12]}); compute them again with "
            "compute_features(space, ...)"
        )
    fitted = fit(features)
    if isinstance(fitted, Embedding):
        return fitted
    return _of_numbers(fitted, f"what {type(given).__name__}.fit returned")


def _of_numbers(given: object, where: str) -> Embedding:
    try:
        return Embedding.of(given)
    except SearchError as error:
        raise SearchError(f"{where}: {error}") from error


def check_trees(
    space: Space,
    features: FeatureTable | None,
    embedding: object,
    strategy: Strategy | None,
    *,
    warm_start: Sequence[str | Source],
    costs: bool,
) -> None:
    """Refuse options that need a list of all functions.

    Raises:
        SearchError: such an option was given.
    """
    given = {
        "features": features is not None,
        "an embedding": embedding is not None and not isinstance(embedding, EmbeddingSpec),
        "the UMAP embedding": isinstance(embedding, EmbeddingSpec) and embedding.name != "pca",
        "a strategy": strategy is not None,
        "a warm start": bool(warm_start),
        "costs": costs,
    }
    if any(given.values()):
        raise SearchError(
            f"{' and '.join(name for name in given if given[name])} cannot be used while the "
            f"space {space.name!r} of {len(space):,} expressions is searched locally; a smaller "
            "space has a catalogue of all functions"
        )
