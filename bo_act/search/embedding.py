"""Embeddings: from features to points in which a Gaussian process can interpolate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata

from bo_act.errors import SearchError
from bo_act.features.table import FeatureTable
from bo_act.specs import EmbeddingSpec


@dataclass(frozen=True, eq=False)
class Embedding:
    """N points in d dimensions.

    Attributes:
        points: (N, d) float64 in [0, 1]; rows that are not valid are NaN.
        blocks: name → columns; the surrogate has one kernel for each.
        valid: (N,) bool: functions that have a place, and so can be proposed.
        provenance: what it was made from.
    """

    points: np.ndarray
    blocks: Mapping[str, slice]
    valid: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.valid.shape != self.points.shape[:1]:
            raise SearchError(
                f"expected points (N, d) and valid (N,), got {self.points.shape} and "
                f"{self.valid.shape}"
            )
        if not np.isfinite(self.points[self.valid]).all():
            raise SearchError("a valid point of the embedding is not finite")

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def hash(self) -> str:
        """Identify the embedding by its numbers, to the precision of float32."""
        digest = hashlib.sha256(self.points.astype(np.float32).tobytes())
        return digest.hexdigest()


class Embedder(Protocol):
    """Whatever turns features into an embedding."""

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed all N functions of a table; it never sees a measured value."""
        ...


@dataclass(frozen=True)
class PcaEmbedder:
    """Principal components of each feature block, each scaled by rank to [0, 1].

    Ranks make the few far-away functions (exp of cosh) neighbours of the merely large, so that
    one length scale serves the whole space.

    Attributes:
        outputs: components of the z-scored function, besides its mean, scale and slopes.
        fim: components of the log-eigenvalue quantiles and null-space masses.
    """

    outputs: int = 6
    fim: int = 6

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed a table with the blocks ``outputs`` and ``moments``, and ``fim`` if it has it.

        Functions that lack a block have no place. Without Fisher spectra the output features are
        the whole embedding.
        """
        valid = table.blocks["outputs"].present.copy()
        if "fim" in table.blocks:
            valid &= table.blocks["fim"].present
        if not valid.any():
            raise SearchError(
                "no function of the space has all its features, so nothing can be embedded; "
                "`bo-act features` shows the reasons"
            )
        parts = {"outputs": _output_columns(table)}
        if "fim" in table.blocks:
            parts["fim"] = _fim_columns(table)
        components = {"outputs": self.outputs, "fim": self.fim}
        columns, blocks, start = [], {}, 0
        for name, (extra, curves) in parts.items():
            reduced = np.column_stack([extra[valid], _principal(curves[valid], components[name])])
            # A coordinate that is the same everywhere says nothing.
            reduced = reduced[:, np.ptp(reduced, axis=0) > 0]
            if reduced.shape[1]:
                columns.append(_by_rank(reduced))
                blocks[name] = slice(start, start + reduced.shape[1])
                start += reduced.shape[1]
        points = np.full((len(table), start), np.nan)
        points[valid] = np.column_stack(columns) if columns else np.empty((int(valid.sum()), 0))
        made_from = {"embedder": repr(self), "features": table.hash}
        return Embedding(points, blocks, valid, made_from)


def make_embedder(spec: EmbeddingSpec) -> Embedder:
    """Return the embedder that a spec names."""
    return PcaEmbedder(outputs=spec.outputs, fim=spec.fim)


def _output_columns(table: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the moments (N, 4) and the z-scored function (N, points)."""
    values = np.sinh(table.blocks["outputs"].values.astype(np.float64))
    mean = values.mean(axis=1, keepdims=True)
    deviation = values.std(axis=1, keepdims=True)
    # Constants have no shape; rounding error must not be blown up into one.
    flat = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
    shape = np.where(flat, 0.0, (values - mean) / np.where(flat, 1.0, deviation))
    return table.blocks["moments"].values.astype(np.float64), shape


def _fim_columns(table: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
    """Return no extra column and the log-eigenvalue quantiles with the null-space masses.

    A null-space mass is in [0, 1] and a layer's quantiles are many numbers in tens, so the mass
    is weighted to count about as much as its layer's quantiles.
    """
    quantiles = table.blocks["fim"].values.astype(np.float64)
    null = table.blocks["fim_null"].values.astype(np.float64)
    per_layer = quantiles.shape[1] // null.shape[1]
    scale = np.nanstd(quantiles) * np.sqrt(per_layer)
    return np.empty((len(table), 0)), np.column_stack([quantiles, null * scale])


def _principal(curves: np.ndarray, components: int) -> np.ndarray:
    """Return the leading principal components, (rows, at most ``components``)."""
    centred = curves - curves.mean(axis=0)
    # Eigenvectors of the small covariance: a million rows never enter an SVD.
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    rank = int((variances > 1e-10 * max(variances[-1], 1e-300)).sum())
    leading = vectors[:, ::-1][:, : min(components, rank)]
    # The sign of an eigenvector is arbitrary: make its first large entry positive. (The largest one
    # is no choice where the curves are odd functions: it has a twin of the other sign.)
    sizes = np.abs(leading)
    large = (sizes > 0.7 * sizes.max(axis=0)).argmax(axis=0)
    leading = leading * np.sign(leading[large, np.arange(leading.shape[1])])
    return np.asarray(centred @ leading)


def _by_rank(columns: np.ndarray) -> np.ndarray:
    # Rounded, so that functions equal up to rounding share a rank on every machine.
    scale = np.abs(columns).max(axis=0)
    rounded = np.round(columns / np.where(scale > 0, scale, 1.0), 6)
    return np.asarray((rankdata(rounded, axis=0) - 0.5) / len(columns))
