"""The published embedding: the union of two UMAP graphs in two dimensions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from bo_act.errors import SearchError
from bo_act.extras import require_extra
from bo_act.features.table import FeatureTable
from bo_act.search.embedding.embedding import Embedding
from bo_act.specs.base import checked_seed

# As published; for the outputs it is umap-learn's default.
_SPECTRUM_NEIGHBOURS = 3
_OUTPUT_NEIGHBOURS = 15

# umap-learn computes in float32, where squares of larger values overflow.
_LARGE = 1e15


@dataclass(frozen=True)
class UmapEmbedder:
    """Embed as Bingham and Miikkulainen (2023), arXiv 2301.05785, do.

    UMAP of the function's outputs (Euclidean) and UMAP of the Fisher spectra (Manhattan, 3
    neighbours) are joined by the union of their fuzzy simplicial sets. Spectra are compared by
    their quantiles, which for one layer is the Manhattan distance of their distribution functions
    up to a factor (both are the Wasserstein-1 distance). Outputs are taken at fixed quantiles of
    the clipped normal distribution, where the published code draws 1,000 samples.

    The published code fits again at every proposal, without a seed. The features do not change in
    between, so here it is fitted once.

    Attributes:
        seed: of the layout.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed, error=SearchError))

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed a table with the block ``outputs``, and ``fim`` if it has it.

        Raises:
            MissingExtraError: umap-learn is not installed.
            SearchError: too few functions have features.
        """
        valid = table.blocks["outputs"].present.copy()
        if "fim" in table.blocks:
            valid &= table.blocks["fim"].present
        rows = np.flatnonzero(valid)
        if len(rows) <= _SPECTRUM_NEIGHBOURS:
            raise SearchError(
                f"expected more than {_SPECTRUM_NEIGHBOURS} functions with all their features for "
                f"an embedding by UMAP, got {len(rows)}; use embedding.name = 'pca'"
            )
        threads = torch.get_num_threads()
        try:
            places = self._layout(table, rows)
        finally:
            # numba, which umap-learn brings, sets them anew for the whole process.
            torch.set_num_threads(threads)
        low, high = places.min(axis=0), places.max(axis=0)
        points = np.full((len(table), 2), np.nan)
        points[rows] = (places - low) / np.where(high > low, high - low, 1.0)
        made_from = {"embedder": repr(self), "features": table.hash}
        return Embedding(points, {"umap": slice(0, 2)}, valid, made_from)

    def _layout(self, table: FeatureTable, rows: np.ndarray) -> np.ndarray:
        UMAP = require_extra("umap", 'the embedding "umap"').UMAP
        # The published inputs are clipped to [-5, 5], which the quantile grid never leaves.
        outputs = np.sinh(table.blocks["outputs"].values[rows].astype(np.float64))
        few = min(_OUTPUT_NEIGHBOURS, len(rows) - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a seed costs parallelism, and of tiny tables
            layout = UMAP(n_neighbors=few, random_state=self.seed, n_jobs=1).fit(
                np.clip(outputs, -_LARGE, _LARGE)
            )
            if "fim" in table.blocks:
                spectra = UMAP(
                    metric="manhattan",
                    n_neighbors=_SPECTRUM_NEIGHBOURS,
                    random_state=self.seed,
                    n_jobs=1,
                ).fit(table.blocks["fim"].values[rows])
                layout = layout + spectra
        return np.asarray(layout.embedding_, dtype=np.float64)
