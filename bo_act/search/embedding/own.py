"""Your own embeddings: points from a function, a scikit-learn transformer, or a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bo_act.errors import BoActError, SearchError
from bo_act.features.table import FeatureTable
from bo_act.search.embedding.embedding import GIVEN, Embedding
from bo_act.user_code.failures import USERS, is_machines, one_line

_BESIDE = "fim_null"  # redundant with the block ``fim``


@dataclass(frozen=True)
class OwnEmbedder:
    """An embedder made of your own function, transformer or network.

    Attributes:
        make: a function of the ``FeatureTable``, which returns an ``Embedding`` or an (N, d) array
            (rows that are not finite have no coordinates); a scikit-learn transformer, whose
            ``fit_transform`` gets the features (n, k) of the n functions that have all of them; or
            an ``nn.Module``, called with a dict of their blocks as float32 tensors, (n, k) each.

    Examples:
        >>> from sklearn.decomposition import PCA
        >>> from bo_act import compute_features, load_space
        >>> table = compute_features(load_space("classic"))
        >>> OwnEmbedder(PCA(3)).fit(table).points.shape
        (33, 3)
    """

    make: Any

    @property
    def name(self) -> str:
        """Its name in messages."""
        return getattr(self.make, "__name__", type(self.make).__name__)

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed a table.

        Raises:
            SearchError: it fails, or returns no points.
        """
        try:
            points = self._points(table)
        except BoActError:
            raise
        except USERS as error:
            if is_machines(error):
                raise
            raise SearchError(f"the embedding {self.name!r} fails: {one_line(error)}") from error
        return points if isinstance(points, Embedding) else self._embedding(points, len(table))

    def _points(self, table: FeatureTable) -> Any:
        if not isinstance(self.make, nn.Module) and not hasattr(self.make, "fit_transform"):
            return self.make(table)
        blocks = {name: block for name, block in table.blocks.items() if name != _BESIDE}
        rows = np.flatnonzero(np.logical_and.reduce([block.present for block in blocks.values()]))
        parts = {name: block.values[rows] for name, block in blocks.items()}
        if isinstance(self.make, nn.Module):
            with torch.no_grad():
                given = {name: torch.from_numpy(part) for name, part in parts.items()}
                placed = np.asarray(self.make.eval()(given).cpu(), dtype=np.float64)
        else:
            features = np.hstack(list(parts.values())).astype(np.float64)
            placed = np.asarray(self.make.fit_transform(features), dtype=np.float64)
        if placed.ndim != 2 or len(placed) != len(rows):
            raise SearchError(
                f"the embedding {self.name!r}: expected points ({len(rows)}, d), got an array of "
                f"shape {placed.shape}"
            )
        points = np.full((len(table), placed.shape[1]), np.nan)
        points[rows] = placed
        return points

    def _embedding(self, points: Any, count: int) -> Embedding:
        plain = points.detach().cpu() if isinstance(points, torch.Tensor) else points
        try:
            numbers = np.asarray(plain, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if numbers.ndim != 2 or len(numbers) != count or not numbers.shape[1]:
            shape = f" of shape {numbers.shape}" if numbers.size else ""
            raise SearchError(
                f"the embedding {self.name!r}: expected an Embedding or an array ({count}, d), a "
                f"row for each function of the catalogue, got {type(points).__name__}{shape}"
            )
        valid = np.asarray(np.isfinite(numbers).all(axis=1))
        numbers = np.where(valid[:, None], numbers, np.nan)
        blocks = {GIVEN: slice(0, numbers.shape[1])}
        return Embedding(numbers, blocks, valid, {"embedder": self.name})


def is_own(given: object) -> bool:
    """Tell whether an object is for ``OwnEmbedder``: it makes points, but is no ``Embedder``."""
    if isinstance(given, type) or given is None:
        return False
    if isinstance(given, nn.Module) or hasattr(given, "fit_transform"):
        return True
    return isinstance(given, Callable) and not hasattr(given, "fit")  # type: ignore[arg-type]
