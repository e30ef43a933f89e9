"""FeatureTable: the features of each function of a catalogue before any training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bo_act.errors import FeatureError

NOT_COMPUTED = "not computed"
"""The reason of a feature that could be computed and was not asked for."""


@dataclass(frozen=True, eq=False)
class Block:
    """One kind of feature for all N functions.

    Attributes:
        values: (N, k) float32; rows of missing functions are NaN.
        reasons: N texts: why a function lacks the feature, ``""`` if it has it; ``NOT_COMPUTED``
            if it was left out.

    Examples:
        >>> import numpy as np
        >>> block = Block(np.array([[1.0, 2.0], [np.nan, np.nan]]), ("", "not finite"))
        >>> block.present
        array([ True, False])
    """

    values: np.ndarray
    reasons: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise FeatureError(f"expected values (N, k), got shape {self.values.shape}")
        if len(self.values) != len(self.reasons):
            raise FeatureError(
                f"expected a reason (or '') for each of the block's {len(self.values)} rows, got "
                f"{len(self.reasons)}"
            )
        bad = self.present & ~np.isfinite(self.values).all(axis=1)
        if bad.any():
            raise FeatureError(f"row {int(np.flatnonzero(bad)[0])} is not finite and has no reason")

    @cached_property
    def present(self) -> np.ndarray:
        """(N,) bool: which functions have the feature."""
        return np.array([not reason for reason in self.reasons], dtype=bool)

    @cached_property
    def left_out(self) -> np.ndarray:
        """(N,) bool: which functions were left out."""
        return np.array([reason == NOT_COMPUTED for reason in self.reasons], dtype=bool)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """All features of the N functions of one catalogue.

    Attributes:
        catalogue_hash: of the catalogue that indexes the rows.
        blocks: feature kind → block. ``outputs`` and ``moments`` come from the function alone;
            ``fim`` (L · Q log-eigenvalue quantiles) and ``fim_null`` (L null-space masses) from
            an untrained network of L layers that uses it.
        provenance: data and options of the features.

    Examples:
        >>> import bo_act
        >>> table = bo_act.compute_features(bo_act.load_space("classic"))
        >>> sorted(table.blocks)
        ['moments', 'outputs']
    """

    catalogue_hash: str
    blocks: Mapping[str, Block]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {name: len(block.values) for name, block in self.blocks.items()}
        if len(set(counts.values())) != 1:
            raise FeatureError(f"expected blocks of equal length, got {counts}")

    def __len__(self) -> int:
        return len(next(iter(self.blocks.values())).values)

    def without(self, *kinds: str) -> FeatureTable:
        """Return the table without the blocks of these names."""
        blocks = {name: block for name, block in self.blocks.items() if name not in kinds}
        return FeatureTable(self.catalogue_hash, blocks, self.provenance)

    @cached_property
    def hash(self) -> str:
        """Identify the table by its catalogue and its numbers."""
        digest = hashlib.sha256(self.catalogue_hash.encode())
        for name in sorted(self.blocks):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.blocks[name].values).data)
        return digest.hexdigest()

    def missing(self) -> dict[str, dict[str, int]]:
        """Count the reasons of missing features: block → kind of reason → functions."""
        counts: dict[str, dict[str, int]] = {}
        for name, block in self.blocks.items():
            # The rest of a reason says at which layer or at which x.
            kinds = [re.split(r" at |, ", reason)[0] for reason in block.reasons if reason]
            counts[name] = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        return counts
