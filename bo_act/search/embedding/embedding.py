"""Embeddings: points made of features, for a Gaussian process to interpolate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from bo_act.errors import SearchError
from bo_act.features.rank_pca import output_coordinates, spectrum_coordinates
from bo_act.features.table import FeatureTable
from bo_act.specs.base import whole

# Neighbours that impute a missing spectrum. More of them blur, fewer are less reliable; the error
# on held-out spectra is flat between 12 and 24.
_NEIGHBOURS = 24
# Functions imputed at once; the coordinates of their neighbours take 19 MB.
_CHUNK = 16_384

_ROUNDING = 1e-9  # tolerance of coordinates in [0, 1], and of constant columns


GIVEN = "given"
"""The block of coordinates from a plain array."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """N points in d dimensions.

    The surrogate's length scales expect coordinates in [0, 1]. A column outside that range is
    scaled by rank among the valid functions; a column within it is used unchanged.

    Attributes:
        points: (N, d) float64 in [0, 1], given in any unit; rows that are not valid are NaN.
        blocks: name → columns, each column in one block; the surrogate has one kernel per block.
        valid: (N,) bool: functions with coordinates; only these are proposed.
        provenance: its origin.
        imputed: ascending indices of functions with coordinates imputed from similar ones.

    Raises:
        SearchError: the shapes do not fit, a valid point is not finite, or a column is in no
            block or in two.

    Examples:
        >>> import numpy as np
        >>> embedding = Embedding.of(np.random.default_rng(0).normal(size=(5, 2)))
        >>> bool((embedding.points >= 0).all() and (embedding.points <= 1).all())
        True
    """

    points: np.ndarray
    blocks: Mapping[str, slice]
    valid: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    imputed: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        points, valid = _numbers(self.points), np.asarray(self.valid)
        if points.ndim != 2 or valid.shape != points.shape[:1] or valid.dtype != bool:
            raise SearchError(
                "expected an embedding of points (N, d), a row for each function, and valid (N,) "
                f"of bool, got points of shape {points.shape} and valid of shape {valid.shape} "
                f"and type {valid.dtype}"
            )
        placed = points[valid]
        if not np.isfinite(placed).all():
            row, column = np.argwhere(~np.isfinite(points) & valid[:, None])[0].tolist()
            raise SearchError(
                f"row {row}, column {column} of the embedding is {points[row, column]}; expected "
                "finite numbers (for a function without coordinates set `valid` to False)"
            )
        _check_blocks(self.blocks, points.shape[1])
        outside = ((placed < -_ROUNDING) | (placed > 1 + _ROUNDING)).any(axis=0)
        if outside.any():
            for column in np.flatnonzero(outside).tolist():
                placed[:, column] = _by_rank(placed[:, column])
            points = np.full_like(points, np.nan)
            points[valid] = placed
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "valid", valid)

    @classmethod
    def of(cls, points: object) -> Embedding:
        """Return an embedding with your own coordinates, in one block.

        Args:
            points: (N, d) array or tensor of finite numbers, one row per function in the order of
                the catalogue, in any unit.

        Raises:
            SearchError: ``points`` is something else.
        """
        numbers = _numbers(points)
        if numbers.ndim != 2 or not numbers.shape[1]:
            raise SearchError(
                "expected an embedding (N, d), a row for each function of the catalogue, got "
                f"{_described(points)} of shape {numbers.shape}"
            )
        blocks = {GIVEN: slice(0, numbers.shape[1])}
        valid = np.ones(len(numbers), dtype=bool)
        return cls(numbers, blocks, valid, {"embedder": _described(points)})

    def __len__(self) -> int:
        return len(self.points)

    def restricted(self, among: np.ndarray) -> Embedding:
        """Return the embedding with only the functions in ``among``, (N,) bool, valid."""
        valid = self.valid & among
        points = np.where(valid[:, None], self.points, np.nan)
        return replace(self, points=points, valid=valid, imputed=self.imputed[among[self.imputed]])

    def with_block(self, name: str, columns: np.ndarray) -> Embedding:
        """Return the embedding with further coordinates, (N, k)."""
        width = self.points.shape[1]
        points = np.column_stack([self.points, np.where(self.valid[:, None], columns, np.nan)])
        blocks = {**self.blocks, name: slice(width, width + columns.shape[1])}
        return replace(self, points=points, blocks=blocks)

    @cached_property
    def hash(self) -> str:
        """Identify the embedding by its numbers, to the precision of float32."""
        digest = hashlib.sha256(self.points.astype(np.float32).tobytes())
        return digest.hexdigest()


class Embedder(Protocol):
    """Anything that makes an embedding of features."""

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed all N functions of a table; measured values are never used."""
        ...


@dataclass(frozen=True)
class PcaEmbedder:
    """Principal components of each feature block, each scaled by rank to [0, 1].

    Missing Fisher spectra are imputed from functions with similar outputs.

    Attributes:
        outputs: components of the z-scored function, besides its mean, scale and slopes.
        fim: components of the log-eigenvalue quantiles.

    Examples:
        >>> import bo_act
        >>> table = bo_act.compute_features(bo_act.load_space("classic"))
        >>> PcaEmbedder(outputs=4).fit(table).points.shape[1]
        8
    """

    outputs: int = 6
    fim: int = 6

    def __post_init__(self) -> None:
        for name in ("outputs", "fim"):
            whole(getattr(self, name), name, low=1, high=64, error=SearchError)

    def fit(self, table: FeatureTable) -> Embedding:
        """Embed a table with the blocks ``outputs`` and ``moments``, and optionally ``fim``.

        Functions without output features, or with a failed spectrum, have no coordinates. Without
        any Fisher spectrum, the embedding consists of the output features.
        """
        valid = table.blocks["outputs"].present.copy()
        known = np.zeros_like(valid)
        if "fim" in table.blocks:
            fim = table.blocks["fim"]
            known = valid & fim.present
            valid &= fim.present | fim.left_out
        if not valid.any():
            raise SearchError(
                "no function of the space has all its features, so there is nothing to embed; "
                "`bo-act features` shows the reasons"
            )
        outputs = output_coordinates(table.blocks, np.flatnonzero(valid), self.outputs)
        parts = {"outputs": outputs}
        imputed = np.zeros_like(valid)
        if known.any():
            spectra = spectrum_coordinates(table.blocks, np.flatnonzero(known), self.fim)
            imputed = valid & ~known
            if imputed.any():
                spectra = _impute(outputs, known[valid], spectra)
            parts["fim"] = spectra
        blocks, width = {}, 0
        for name, part in parts.items():
            if part.shape[1]:
                blocks[name] = slice(width, width + part.shape[1])
                width += part.shape[1]
        points = np.full((len(table), width), np.nan)
        points[valid] = np.column_stack(list(parts.values()))
        made_from = {"embedder": repr(self), "features": table.hash}
        return Embedding(points, blocks, valid, made_from, np.flatnonzero(imputed))


def _numbers(given: object) -> np.ndarray:
    """Return an array or a tensor as float64, copied only if necessary."""
    try:
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu().to(torch.float64).numpy()
        numbers = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a sparse tensor
        numbers = np.empty(0, dtype=object)
    if numbers.dtype.kind not in "buif":
        raise SearchError(
            "expected an embedding: an EmbeddingSpec, an object with fit(table), an Embedding, or "
            f"an (N, d) array of numbers, got {_described(given)}"
        )
    return np.asarray(numbers, dtype=np.float64)


def _described(given: object) -> str:
    dtype = getattr(given, "dtype", None)
    return f"{type(given).__name__}" + (f" of {dtype}" if dtype else "")


def _check_blocks(blocks: Mapping[str, slice], width: int) -> None:
    owners = np.zeros(width, dtype=np.int64)
    for name, columns in blocks.items():
        ends = (columns.start, columns.stop) if isinstance(columns, slice) else (None, None)
        if None in ends or columns.step not in (None, 1) or not 0 <= ends[0] < ends[1] <= width:
            raise SearchError(
                f"expected the block {name!r} of an embedding as slice(start, stop) of its {width} "
                f"columns, at least one of them, got {columns!r}"
            )
        owners[columns] += 1
    if (owners != 1).any():
        raise SearchError(
            f"expected each of the {width} columns of an embedding in one block, got "
            f"{dict(blocks)!r}"
        )


def _by_rank(column: np.ndarray) -> np.ndarray:
    """Return the mean ranks of n numbers, in (0, 1); all 1/2 if they are constant."""
    with np.errstate(over="ignore"):
        if np.ptp(column) <= _ROUNDING * np.abs(column).max():
            return np.full(len(column), 0.5)
    return np.asarray((rankdata(column) - 0.5) / len(column))


def _impute(outputs: np.ndarray, known: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Impute the spectra of functions from those with the most similar outputs.

    Modified Shepard interpolation (Franke and Nielson 1980): the weight of a neighbour falls with
    the inverse square of its distance, down to zero at the farthest neighbour, so ties do not
    matter.

    Args:
        outputs: (n, d) coordinates of all functions.
        known: (n,) bool: the m functions with a spectrum.
        spectra: (m, e) coordinates of their spectra.

    Returns:
        (n, e) coordinates of all functions.
    """
    places = np.empty((len(outputs), spectra.shape[1]))
    places[known] = spectra
    tree = cKDTree(outputs[known])
    ranks = range(1, min(_NEIGHBOURS, len(spectra)) + 1)
    missing = np.flatnonzero(~known)
    for chunk in np.array_split(missing, 1 + len(missing) // _CHUNK):
        distance, nearest = tree.query(outputs[chunk], k=ranks)
        distance = np.maximum(distance, 1e-9)  # equal outputs take all the weight
        # A millionth more, so that a weight remains if all have the same distance.
        weights = (1 / distance - 1 / (distance[:, -1:] * (1 + 1e-6))) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        places[chunk] = np.einsum("nk,nke->ne", weights, spectra[nearest])
    return places
