"""The published embedding: the union of two UMAP graphs in two dimensions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from bo_act.activations.derivatives import Functions, values_and_slopes
from bo_act.dependencies.extras import require_extra
from bo_act.errors import SearchError
from bo_act.features.table import FeatureTable
from bo_act.search.embedding.embedding import Embedding
from bo_act.specs.base import checked_seed

# As published; for the outputs it is umap-learn's default.
_SPECTRUM_NEIGHBOURS = 3
_OUTPUT_NEIGHBOURS = 15
_SAMPLES, _CLIP = 1_000, 5.0

# umap-learn computes in float32; squares of larger values overflow.
_LARGE = 1e15


@dataclass(frozen=True)
class UmapEmbedder:
    """The embedding of Bingham and Miikkulainen (2023), arXiv 2301.05785.

    It is the union of two fuzzy simplicial sets: UMAP of the outputs for 1,000 samples of the
    normal distribution, clipped to [-5, 5] (Euclidean), and UMAP of the Fisher spectra (Manhattan,
    3 neighbours). Spectra are compared by their quantiles. For one layer, their Manhattan distance
    equals that of distribution functions up to a factor (both are the Wasserstein-1 distance); this
    factor, the number of bins in a released vector, weights the layers. Both coordinates are scaled
    by one factor, which keeps the neighbours.

    The published code fits anew for every proposal, without a seed. The features never change, so
    this class fits once, with a seed.

    Attributes:
        seed: of the samples and the layout.
        functions: of the table. None: outputs at the quantiles of the table instead of samples.
    """

    seed: int = 0
    functions: Functions | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed, error=SearchError))

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed a table with the block ``outputs``, and optionally ``fim``.

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
            # umap-learn's numba changes them for the whole process.
            torch.set_num_threads(threads)
        low, high = places.min(axis=0), places.max(axis=0)
        points = np.full((len(table), 2), np.nan)
        points[rows] = (places - low) / max(float((high - low).max()), np.finfo(float).tiny)
        made_from = {"embedder": repr(self), "features": table.hash}
        return Embedding(points, {"umap": slice(0, 2)}, valid, made_from)

    def _layout(self, table: FeatureTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        umap = require_extra("umap", 'the embedding "umap"')
        given: dict[str, Any] = {"random_state": self.seed, "n_jobs": 1}
        outputs = np.clip(self._outputs(table)[rows], -_LARGE, _LARGE)
        few = min(_OUTPUT_NEIGHBOURS, len(rows) - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of seeds without parallelism, and of tiny tables
            if "fim" not in table.blocks:
                alone = umap.UMAP(n_neighbors=few, **given).fit(outputs)
                return np.asarray(alone.embedding_, dtype=np.float64)
            given["transform_mode"] = "graph"  # no separate layouts
            of_outputs = umap.UMAP(n_neighbors=few, **given).fit(outputs)
            of_spectra = umap.UMAP(
                metric="manhattan", n_neighbors=_SPECTRUM_NEIGHBOURS, **given
            ).fit(weighted_spectra(table)[rows])
            union = umap.umap_.general_simplicial_set_union(
                *(_without_weakest(model.graph_) for model in (of_outputs, of_spectra))
            )
            union = umap.umap_.reset_local_connectivity(union, True)
            # The layout of a sum of two models in umap-learn, but with our own random state.
            a, b = umap.umap_.find_ab_params(1.0, 0.1)
            layout, _ = umap.umap_.simplicial_set_embedding(
                None,
                union,
                n_components=2,
                initial_alpha=1.0,
                a=a,
                b=b,
                gamma=1.0,
                negative_sample_rate=5,
                n_epochs=None,
                init="random" if connected_components(union)[0] > 1 else "spectral",
                random_state=np.random.RandomState(self.seed),
                metric="euclidean",
                metric_kwds={},
                densmap=False,
                densmap_kwds={},
                output_dens=False,
            )
        return np.asarray(layout, dtype=np.float64)

    def _outputs(self, table: FeatureTable) -> NDArray[np.float64]:
        """Return the N functions' outputs at 1,000 samples, or at the table's 256 quantiles."""
        if self.functions is None:
            return np.sinh(table.blocks["outputs"].values.astype(np.float64))
        generator = np.random.default_rng(self.seed)
        x = np.clip(generator.standard_normal(_SAMPLES), -_CLIP, _CLIP)
        outputs = np.empty((len(table), _SAMPLES))
        for indices, value, _ in values_and_slopes(self.functions, torch.from_numpy(x)):
            outputs[indices] = value.numpy()
        return np.nan_to_num(outputs, posinf=_LARGE, neginf=-_LARGE)


def _without_weakest(graph: Any) -> Any:
    """Return a graph with its weakest edges set to 0.

    umap-learn does this in place when it lays out a model, before models are added.
    """
    epochs = 500 if graph.shape[0] <= 10_000 else 200  # umap-learn's default
    graph.data[graph.data < graph.data.max() / epochs] = 0.0
    return graph


def weighted_spectra(table: FeatureTable) -> NDArray[np.float32]:
    """Return the quantiles of the Fisher spectra, (N, L·Q), each layer times its number of bins.

    Their Manhattan distance equals that of released vectors, up to a factor. Layers have equal
    weights if their bins are unknown, as in tables of earlier versions.
    """
    quantiles = table.blocks["fim"].values
    bins = np.asarray(table.provenance.get("bins") or [1], dtype=np.float64)
    if quantiles.shape[1] % len(bins) or not bins.any():
        return quantiles
    weights = np.repeat(bins / bins.sum(), quantiles.shape[1] // len(bins))
    return np.asarray(quantiles * weights, dtype=np.float32)
